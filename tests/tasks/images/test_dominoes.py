import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heldout.tasks import dominoes, l_shape


def flat(classes=2, each=5, height=4, first=0.0):
    """Images whose brightness tells their number: ``first + index / 100``."""
    labels = torch.arange(classes).repeat_interleave(each)
    images = (first + torch.arange(len(labels)) / 100).view(-1, 1, 1, 1).expand(-1, 1, height, 3)
    return images.clone(), labels


@given(st.floats(0, 1), st.integers(1, 60), st.integers(2, 4), st.integers(0, 99))
def test_the_halves_agree_in_the_requested_share(agreement, n, classes, seed):
    pairs = dominoes(flat(classes), flat(classes), agreement, n, seed=seed)
    agree = (pairs.labels == pairs.spurious).float()
    assert abs(agree.sum().item() - agreement * n) <= 0.5 + 1e-6
    assert pairs.labels.bincount(minlength=classes).max() - pairs.labels.bincount(minlength=classes).min() <= 1
    for label in pairs.labels.unique():
        members = pairs.labels == label
        assert abs(agree[members].sum().item() - agreement * members.sum().item()) <= 1 + 1e-6


def test_training_data_is_completely_correlated_and_shows_what_it_says():
    top, bottom = flat(first=0.0), flat(height=6, first=0.5)
    pairs = dominoes(top, bottom, 1.0, 8)
    assert torch.equal(pairs.labels, pairs.spurious)
    pairs = dominoes(top, bottom, 0.25, 8)
    assert pairs.images.shape == (8, 1, 10, 3)
    seen_top = (pairs.images[:, 0, 0, 0] * 100).round().long()
    seen_bottom = ((pairs.images[:, 0, 4, 0] - 0.5) * 100).round().long()
    assert torch.equal(top[1][seen_top], pairs.spurious)
    assert torch.equal(bottom[1][seen_bottom], pairs.labels)


def test_no_image_is_used_again_before_its_class_is_used_up():
    pairs = dominoes(flat(), flat(), 1.0, 20)
    used = (pairs.images[:, 0, 0, 0] * 100).round().long().bincount()
    assert used.tolist() == [2] * 10


def test_the_same_seed_gives_the_same_dominoes():
    first, again, other = (dominoes(flat(), flat(), 0.5, 9, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


@pytest.mark.parametrize("agreement", [-0.1, 1.1, float("nan")])
def test_a_share_outside_of_0_and_1_is_refused(agreement):
    with pytest.raises(ValueError, match=r"agreement must be in \[0, 1\]|agreement must be a number"):
        dominoes(flat(), flat(), agreement, 4)
    with pytest.raises(ValueError, match=r"agreement must be in \[0, 1\]|agreement must be a number"):
        l_shape(agreement, 4)


def test_halves_that_do_not_fit_are_refused():
    wide = (torch.rand(4, 1, 4, 5), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(ValueError, match="same channels and width"):
        dominoes(flat(), wide, 0.5, 4)
    with pytest.raises(ValueError, match=r"top needs images of each of the classes 0..2, got \[0, 1\]"):
        dominoes(flat(2), flat(3), 0.5, 4)
    with pytest.raises(ValueError, match=r"bottom needs images of each of the classes 0..1"):
        dominoes(flat(2), (torch.rand(4, 1, 4, 3), torch.zeros(4, dtype=torch.long)), 0.5, 4)
    with pytest.raises(ValueError, match="n must be at least 1"):
        dominoes(flat(), flat(), 0.5, 0)


@given(st.floats(0, 1), st.integers(1, 60), st.floats(0, 0.9), st.integers(0, 99))
def test_points_lie_in_the_requested_quadrants(agreement, n, margin, seed):
    world = l_shape(agreement, n, margin=margin, seed=seed)
    assert world.points.shape == (n, 2)
    assert world.points.abs().max() <= 1
    assert world.points.abs().min() >= margin
    assert torch.equal(world.labels, (world.points[:, 0] > 0).long())
    assert torch.equal(world.spurious, (world.points[:, 1] > 0).long())
    assert abs((world.labels == world.spurious).sum().item() - agreement * n) <= 0.5 + 1e-6
    assert abs(int(world.labels.sum()) - n / 2) <= 0.5


def test_a_margin_outside_of_0_and_1_is_refused():
    with pytest.raises(ValueError, match="margin"):
        l_shape(0.5, 4, margin=1.0)
    with pytest.raises(ValueError, match="n must be at least 1"):
        l_shape(0.5, 0)
