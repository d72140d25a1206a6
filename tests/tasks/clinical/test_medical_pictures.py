"""Synthetic medical pictures: findings lie in the organ, answers are balanced and told by nothing else."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from heldout.tasks import FINDINGS, IMAGING, ORGANS, medical_pictures
from heldout.tasks.clinical import medical_pictures as module

SIZE = 24


@pytest.mark.parametrize("imaging", IMAGING)
@pytest.mark.parametrize("finding", FINDINGS)
def test_every_cell_is_made_balanced_standardised_and_again_the_same(imaging, finding):
    for organ in ORGANS:
        made = medical_pictures(imaging, organ, finding, 25, seed=1000)
        assert made.images.shape == (25, 1, SIZE, SIZE)
        assert made.images.isfinite().all()
        torch.testing.assert_close(made.images.mean((1, 2, 3)), torch.zeros(25), atol=1e-4, rtol=0)
        torch.testing.assert_close(made.images.std((1, 2, 3)), torch.ones(25), atol=1e-3, rtol=0)
        counts = made.labels.bincount(minlength=len(FINDINGS[finding]))
        assert counts.max() - counts.min() <= 1
        assert torch.equal(medical_pictures(imaging, organ, finding, 25, seed=1000).images, made.images)
        assert not torch.equal(medical_pictures(imaging, organ, finding, 25, seed=1001).images, made.images)
        share = made.organs.float().mean((1, 2))
        assert ((share > 0.1) & (share < 0.7)).all()


@pytest.mark.parametrize("organ", ORGANS)
def test_findings_are_what_their_labels_say(organ):
    """Without noise and texture, by the map of tissue: what the answer asks for can be counted."""
    n, generator = 60, torch.Generator().manual_seed(1000)
    where = module._Organs(organ, n, 64, generator)
    inside = where.mask > 0.5
    labels = torch.arange(n) % 2
    denser = module._side(labels, where, generator) > 0.15
    right = (denser & (where.x > 0)).sum((1, 2)) > (denser & (where.x < 0)).sum((1, 2))
    assert torch.equal(right.long(), labels)
    assert not (denser & ~inside).any()

    labels = torch.arange(n) % 3
    fluid = module._fluid(labels, where, generator) > 0.2
    height = [_extent(where.y[i][fluid[i]]) / _extent(where.y[i][inside[i]]) for i in range(n)]
    for label, low, high in ((0, 0, 0), (1, 0.15, 0.45), (2, 0.5, 0.8)):
        assert all(low <= height[i] <= high for i in range(n) if labels[i] == label)
    assert all(where.y[i][inside[i]].max() - where.y[i][fluid[i]].max() < 0.1 for i in range(n) if labels[i])

    nodules = module._nodules(labels, where, generator)
    peaks = _peaks(nodules)
    assert all(peaks[i] == 0 for i in range(n) if labels[i] == 0)
    assert all(peaks[i] == 1 for i in range(n) if labels[i] == 1)
    assert sum(peaks[i] == 4 for i in range(n) if labels[i] == 2) >= 0.9 * (n // 3)

    mass = module._mass(labels, where, generator) > 0.25
    assert not mass[labels == 0].any()
    smooth, spiculated = ([_roughness(mass[i]) for i in range(n) if labels[i] == k] for k in (1, 2))
    assert sum(smooth) / len(smooth) < 0.75 * sum(spiculated) / len(spiculated)


def _extent(values):
    return float(values.max() - values.min()) if len(values) else 0.0


def _peaks(maps):
    padded = torch.nn.functional.max_pool2d(maps.unsqueeze(1), 7, 1, 3).squeeze(1)
    return ((maps == padded) & (maps > 0.5)).sum((1, 2)).tolist()


def _roughness(mask):
    """Edge over the square root of the area: least for a disc."""
    edge = (mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum()
    return float(edge) / math.sqrt(float(mask.sum()))


def test_organ_and_imaging_do_not_tell_the_answer():
    for finding, answers in FINDINGS.items():
        labels, cells = [], []
        for i, imaging in enumerate(IMAGING):
            for j, organ in enumerate(ORGANS):
                drawn = medical_pictures(imaging, organ, finding, 30, seed=1000 + 10 * i + j).labels
                labels += drawn.tolist()
                cells += [[float(i == k) for k in range(5)] + [float(j == k) for k in range(5)]] * 30
        fitted = LogisticRegression().fit(cells[::2], labels[::2])
        assert abs(fitted.score(cells[1::2], labels[1::2]) - 1 / len(answers)) < 0.08


def test_ways_of_imaging_look_unlike_each_other():
    means = [medical_pictures(i, "round", "side", 60, seed=1000).images.mean(0).flatten() for i in IMAGING]
    likeness = torch.corrcoef(torch.stack(means)) - torch.eye(5)
    assert likeness.max() < 0.97


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x-ray", "round", "mass", 4), "imaging must be"),
        (("attenuation", "liver", "mass", 4), "organ must be"),
        (("attenuation", "round", "cyst", 4), "finding must be"),
        (("attenuation", "round", "mass", 0), "n must be"),
    ],
)
def test_unknown_cells_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        medical_pictures(*arguments)
