import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.measure import gradient_features


@pytest.mark.parametrize("projection", ["rademacher", "srht", "countsketch"])
def test_projections_keep_inner_products_and_depend_on_the_seed_alone(projection):
    model = nn.Sequential(nn.Linear(40, 60), nn.Tanh(), nn.Linear(60, 5))
    x = torch.randn(30, 40, generator=torch.Generator().manual_seed(1))
    data = x, torch.arange(30) % 5
    options = {"dim": 1024, "projection": projection, "normalise": False}
    features = gradient_features(model, data, **options)
    full = gradient_features(model, data, projection="none", normalise=False)
    assert (features.norm(dim=1) / full.norm(dim=1) - 1).abs().mean() < 3 / 1024**0.5
    cosine = F.normalize(full) @ F.normalize(full).T
    assert (F.normalize(features) @ F.normalize(features).T - cosine).abs().max() < 6 / 1024**0.5
    torch.testing.assert_close(gradient_features(model, data, batch_size=7, **options), features)
    assert not torch.allclose(gradient_features(model, data, seed=1, **options), features)


def test_a_dense_projection_does_not_depend_on_how_parameters_are_chunked(monkeypatch):
    from heldout.measure.gradients import projections

    flat = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))
    first = projections._projector("rademacher", 5000, 8, 0, flat.device)(iter([flat]))
    longer = torch.cat([flat, torch.zeros(3, 5000)], dim=1)
    torch.testing.assert_close(projections._projector("rademacher", 10000, 8, 0, flat.device)(iter([longer])), first)


def test_hadamard_is_the_matrix_of_signs():
    from heldout.measure.gradients.projections import _hadamard

    matrix = _hadamard(torch.eye(8))
    assert matrix.abs().eq(1).all()
    assert all(float(a @ b) == 0 for a, b in itertools.combinations(matrix, 2))
