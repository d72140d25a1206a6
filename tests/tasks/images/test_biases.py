import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout import tasks as worlds


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    fractions=st.lists(st.floats(0, 0.3), min_size=1, max_size=3),
    seed=st.integers(0, 5),
)
@settings(max_examples=50, deadline=None)
def test_stratified_parts_are_disjoint_and_keep_class_shares(labels, fractions, seed):
    labels = torch.tensor(labels)
    parts = worlds.stratified_split(labels, fractions, seed=seed)
    joined = torch.cat(parts)
    assert joined.unique().numel() == joined.numel()
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs(len(part) - fraction * len(labels)) <= 1
        for label in labels.unique():
            expected = (labels == label).float().mean() * len(part)
            assert abs((labels[part] == label).sum() - expected) <= 2


@pytest.mark.parametrize("n", [1, 2, 3, 10, 17])
@pytest.mark.parametrize("sizes", [(0.5, 0.5), (0.25, 0.25, 0.5), (1, 0.0), (0.1,) * 10])
def test_fractions_of_one_use_every_example(n, sizes):
    parts = worlds.stratified_split(torch.zeros(n, dtype=torch.long), sizes)
    assert sum(map(len, parts)) == (n if sum(sizes) == pytest.approx(1) and isinstance(sizes[0], float) else 1)
    with pytest.raises(ValueError, match="cannot take parts"):
        worlds.stratified_split(torch.zeros(n, dtype=torch.long), (0.6, n))


@pytest.mark.parametrize("correlation", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_biased_attribute_has_the_stated_correlation(correlation):
    labels = torch.arange(20_000) % 10
    attribute = worlds.biased_attribute(labels, correlation)
    own, following = ((attribute - labels) % 10 == k for k in (0, 1))
    uniform = (1 - abs(correlation)) / 10
    assert own.float().mean() == pytest.approx(max(correlation, 0) + uniform, abs=0.012)
    assert following.float().mean() == pytest.approx(max(-correlation, 0) + uniform, abs=0.012)


def test_colour_bias_paints_each_class_in_its_own_hue():
    images = torch.full((6, 1, 4, 4), 0.5)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    painted = worlds.colour_bias(images, labels, 1.0)
    assert torch.allclose(painted[:3, :, 0, 0], 0.5 * torch.eye(3))
    assert torch.equal(painted[:3], painted[3:])
    with pytest.raises(ValueError, match="1 channel"):
        worlds.colour_bias(painted, labels, 1.0)
    with pytest.raises(ValueError, match="correlation"):
        worlds.colour_bias(images, labels, 1.1)
    with pytest.raises(ValueError, match="labels must be in"):
        worlds.colour_bias(images, labels, 1.0, num_classes=2)


def test_imbalance_falls_geometrically():
    labels = torch.arange(5).repeat(1000)
    kept = worlds.imbalance(labels, 16)
    assert labels[kept].bincount().tolist() == [1000, 500, 250, 125, 62]
    assert torch.equal(kept, kept.sort().values)
    assert len(worlds.imbalance(labels, 1)) == len(labels)
    with pytest.raises(ValueError, match="ratio"):
        worlds.imbalance(labels, 0.5)


@given(rate=st.floats(0, 1), n=st.integers(0, 50), classes=st.integers(2, 6), seed=st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_label_noise_makes_exactly_the_stated_share_wrong(rate, n, classes, seed):
    labels = torch.arange(n) % classes
    noisy, wrong = worlds.label_noise(labels, rate, classes, seed=seed)
    assert torch.equal(noisy != labels, wrong)
    assert wrong.sum() == round(rate * n)
    assert torch.equal(labels, torch.arange(n) % classes)
