import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.tasks import digits, slabs, two_block_images


def pieces(k, margin):
    """The k intervals of a slab coordinate and their classes, from their definition."""
    size = (2 - 2 * (k - 1) * margin) / k
    return [(-1 + i * (size + 2 * margin), -1 + i * (size + 2 * margin) + size, abs(i - k // 2) % 2) for i in range(k)]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([3, 5, 7]), st.floats(0, 0.16), st.integers(0, 1000), st.floats(0.1, 10))
def test_no_example_is_in_a_gap_and_the_piece_names_the_class(k, margin, seed, width):
    data = slabs(200, 3, [1, k, k], margin=margin, rotate=False, width=width, seed=seed)
    linear, *columns = data.coordinates.T / width
    assert ((linear > 0) == (data.y == 1)).all()
    assert (linear.abs() >= margin - 1e-6).all()
    assert data.x.abs().max() <= width * (1 + 1e-6)
    for column in columns:
        inside = torch.stack([(column >= low - 1e-5) & (column <= high + 1e-5) for low, high, _ in pieces(k, margin)])
        classes = torch.tensor([label for *_, label in pieces(k, margin)])
        if margin > 1e-3:
            assert (inside.sum(0) == 1).all()
            assert classes[inside.int().argmax(0)].equal(data.y)


def best_threshold(values, labels):
    order = values.argsort()
    ones = labels[order].cumsum(0)
    zeros = torch.arange(1, len(labels) + 1) - ones
    right = (zeros + ones[-1] - ones).double() / len(labels)
    return max(right.max().item(), 1 - right.min().item())


@pytest.mark.parametrize(("k", "accuracy"), [(3, 0.75), (5, 0.6875), (7, 0.625)])
def test_the_best_threshold_on_a_slab_has_its_closed_form_accuracy(k, accuracy):
    data = slabs(100_000, 1, [k], rotate=False, seed=2)
    assert best_threshold(data.x[:, 0], data.y) == pytest.approx(accuracy, abs=0.006)
    means = [data.x[data.y == label, 0].mean().item() for label in (0, 1)]
    assert means == pytest.approx([0, 0], abs=0.01)


@pytest.mark.parametrize("k", [3, 5, 7])
def test_a_linear_score_of_a_slab_has_auc_one_half(k):
    from sklearn.metrics import roc_auc_score

    data = slabs(50_000, 1, [k], rotate=False, seed=3)
    assert roc_auc_score(data.y, data.x[:, 0]) == pytest.approx(0.5, abs=0.01)


def test_classes_are_balanced_and_coordinates_independent_given_the_class():
    data = slabs(50_000, 4, "LMS-5", rotate=False, seed=1)
    assert data.y.double().mean().item() == pytest.approx(0.5, abs=0.01)
    for label in (0, 1):
        own = data.x[data.y == label].double()
        correlations = np.corrcoef(torch.cat([own, own.abs()], dim=1).T.numpy())
        assert np.abs(correlations[:4, 5:] - np.diag(correlations[:4, 4:].diagonal())[:, 1:]).max() < 0.03


def test_the_rotation_is_orthogonal_and_shared_by_samples():
    data = slabs(100, 30, "LMS-5", seed=4)
    torch.testing.assert_close(data.Q @ data.Q.T, torch.eye(30), atol=1e-5, rtol=0)
    fresh = data.sample(200, seed=5)
    assert fresh.Q.equal(data.Q)
    assert ((fresh.coordinates[:, 0] > 0) == (fresh.y == 1)).all()
    torch.testing.assert_close(fresh.x, fresh.coordinates @ fresh.Q, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "bayes"), [("margin", 0.9), ("flip", 0.8)])
def test_the_linear_rule_loses_what_the_noise_takes(kind, bayes):
    data = slabs(40_000, 2, "LMS-7", noise=0.2, noise_kind=kind, rotate=False)
    right = ((data.x[:, 0] > 0) == (data.y == 1)).double().mean().item()
    assert right == pytest.approx(bayes, abs=0.01)
    if kind == "margin":
        assert (data.x[:, 0].abs() < 0.1).double().mean().item() == pytest.approx(0.2, abs=0.01)


def test_specifications_name_their_blocks():
    assert slabs(5, 4, "MS-(5,7)").blocks == {"5-slab": [0], "7-slab": [1, 2, 3]}
    assert slabs(5, 3, "MS-7").blocks == {"7-slab": [0, 1, 2]}
    assert slabs(5, spec=[3, 1, 3]).blocks == {"3-slab": [0, 2], "linear": [1]}
    assert slabs(5).x.shape == (5, 50)


def test_the_same_seed_gives_the_same_data():
    assert slabs(20, 5, seed=3).x.equal(slabs(20, 5, seed=3).x)
    assert not slabs(20, 5, seed=3).x.equal(slabs(20, 5, seed=4).x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n of at least 1"),
        ({"spec": "LMS-4"}, "3, 5 or 7"),
        ({"spec": "slab"}, "spec must be like"),
        ({"spec": [2]}, "3, 5 or 7"),
        ({"spec": []}, "got none"),
        ({"spec": [1, 5], "dim": 3}, "dim is 3"),
        ({"dim": 0}, "dim at least 1"),
        ({"spec": "LMS-5", "margin": 0.25}, "no width"),
        ({"margin": -0.1}, "no width"),
        ({"width": 0.0}, "no width"),
        ({"noise": 1.5}, "noise"),
        ({"noise": 0.1, "spec": "MS-5"}, "linear coordinate"),
        ({"noise_kind": "other"}, "noise_kind"),
    ],
)
def test_wrong_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        slabs(**({"n": 10} | options))


def test_a_sample_needs_at_least_one_example():
    with pytest.raises(ValueError, match="at least 1"):
        slabs(10, 3).sample(0, seed=0)


@pytest.fixture(scope="module")
def pairs():
    source = digits(size=28)
    return two_block_images(60, simple=(0, 1), complex=(3, 8), simple_source=source, complex_source=source, seed=1)


def test_both_halves_of_an_image_are_of_its_class(pairs):
    source, labels = digits(size=28)
    halves = pairs.tensors[0].split(28, dim=2)
    for half, classes in zip(halves, ((0, 1), (3, 8)), strict=True):
        distance = torch.cdist(half.flatten(1), source.flatten(1))
        assert labels[distance.argmin(1)].equal(torch.tensor(classes)[pairs.tensors[1]])
    assert pairs.tensors[1].bincount().tolist() == [30, 30]


@pytest.mark.parametrize("block", ["simple", "complex"])
def test_randomizing_a_block_moves_only_that_block(pairs, block):
    mixed = pairs.randomized(block, seed=2)
    kept = "complex" if block == "simple" else "simple"
    for name in (block, kept):
        index = (slice(None), *pairs.blocks[name])
        assert mixed.tensors[0][index].equal(pairs.tensors[0][index]) == (name == kept)
        assert mixed.tensors[0][index].sum().item() == pytest.approx(pairs.tensors[0][index].sum().item(), rel=1e-4)
    assert mixed.tensors[1].equal(pairs.tensors[1])
    with pytest.raises(ValueError, match="'simple' or 'complex'"):
        pairs.randomized("both")
