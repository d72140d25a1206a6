import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch.utils.data import TensorDataset

from heldout.measure import class_margin, intrinsic_dimension, knn_distances


def ball(n, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    radii = torch.rand(n, 1, generator=generator, dtype=torch.float64) ** (1 / dim)
    return radii * directions / directions.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("dim", [2, 5, 10])
def test_uniform_balls_have_their_dimension_also_after_an_isometry_and_in_any_scale(dim):
    x = ball(5000, dim)
    found = intrinsic_dimension(x, n_query=2500)
    assert found.estimate == pytest.approx(dim, rel=0.10 if dim < 10 else 0.15)
    assert found.low < found.estimate < found.high
    frame, _ = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    moved = 7.5 * x @ frame[:dim] + 3
    assert intrinsic_dimension(moved, n_query=2500).estimate == pytest.approx(dim, rel=0.15)


def test_scale_and_repeated_points_change_nothing():
    x = ball(400, 3)
    one = intrinsic_dimension(x)
    assert intrinsic_dimension(1e3 * x).estimate == pytest.approx(one.estimate)
    assert intrinsic_dimension(torch.cat([x, x[:100]])).estimate == pytest.approx(one.estimate)


def test_knn_distances_are_those_of_scikit_learn():
    x, q = ball(500, 6), ball(40, 6, seed=1)
    expected, _ = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(x.numpy()).kneighbors(q.numpy())
    assert np.allclose(knn_distances(q, x, 5).numpy(), expected)


def test_chunks_make_no_difference(monkeypatch):
    x = ball(300, 4)
    whole = knn_distances(x, x, 4)
    monkeypatch.setattr("heldout.measure.datasets.dimension._DISTANCES_AT_ONCE", 1000)
    assert torch.allclose(knn_distances(x, x, 4), whole, atol=1e-7)


def naive_margin(x, y):
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return float(distances[y[:, None] != y].min())


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 60), st.integers(1, 5), st.integers(0, 99))
def test_the_sampled_margin_is_brute_force(n, dim, seed):
    x, y = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), torch.arange(n) % 3
    assert class_margin(x, y, "sample") == pytest.approx(naive_margin(x, y))
    assert class_margin(x, y, "evt") == pytest.approx(naive_margin(x, y))


def test_extrapolation_from_random_pairs_comes_near_the_margin_of_all_pairs():
    x, y = ball(3000, 4), torch.arange(3000) % 2
    exact = naive_margin(x, y)
    for seed in range(3):
        found = class_margin(x, y, "evt", n_pairs=400_000, seed=seed)
        assert exact / 4 < found < 2 * exact
        assert found <= class_margin(x, y, "evt", n_pairs=40_000, seed=seed) * 4


def test_the_margin_scales_with_the_inputs():
    x, y = ball(3000, 4), torch.arange(3000) % 2
    one, other = (class_margin(c * x, y, "evt", n_pairs=50_000) for c in (1.0, 16.0))
    assert other == pytest.approx(16 * one)


def test_a_data_set_and_labels_of_any_values_will_do():
    x, y = ball(50, 3), torch.arange(50) % 2
    expected = class_margin(x, y, "sample")
    assert class_margin(TensorDataset(x, y), method="sample") == expected
    assert class_margin(x.numpy(), np.where(y.numpy() == 0, -7, 5), "sample") == expected
    assert intrinsic_dimension(TensorDataset(x, y)) == intrinsic_dimension(x)


def test_one_class_and_a_margin_of_zero_are_refused():
    x = ball(50, 3)
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        class_margin(x, torch.zeros(50), "sample")
    doubled, y = torch.cat([x, x]), torch.arange(100) // 50
    for method in ("sample", "evt"):
        with pytest.raises(ValueError, match="equal points have different labels"):
            class_margin(doubled, y, method)
    assert class_margin(doubled, y, "sample", min_distance=0.01) >= 0.01
    with pytest.raises(ValueError, match="further apart"):
        class_margin(doubled, y, "sample", min_distance=9.0)


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match=r"k \+ 1 = 6 distinct points, got 5"):
        intrinsic_dimension(ball(5, 2).repeat(4, 1))
    for bad in (1, 0):
        with pytest.raises(ValueError, match="k must be at least 2"):
            intrinsic_dimension(ball(50, 2), k=bad)
    with pytest.raises(ValueError, match="number of points"):
        knn_distances(ball(3, 2), ball(3, 2), 4)


def test_values_that_are_not_finite_are_refused():
    x = ball(20, 2)
    x[3, 1] = float("nan")
    with pytest.raises(ValueError, match="not finite at point 3"):
        intrinsic_dimension(x)
    with pytest.raises(ValueError, match="not finite at point 3"):
        class_margin(x, torch.arange(20) % 2)
