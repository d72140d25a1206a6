import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from heldout.tasks import corrupt_labels, modular

RULES = {
    "add": lambda i, j, p: (i + j) % p,
    "subtract": lambda i, j, p: (i - j) % p,
    "multiply": lambda i, j, p: i * j % p,
    "quadratic": lambda i, j, p: (i * i + i * j + j * j) % p,
}


@pytest.mark.parametrize("op", RULES)
def test_labels_follow_the_rule_and_every_pair_appears_once(op):
    split = modular(op, p=11, train_fraction=0.4, seed=3)
    pairs = torch.cat([split.x_train, split.x_test])
    labels = torch.cat([split.y_train, split.y_test])
    assert len({tuple(pair) for pair in pairs.tolist()}) == 121
    assert len(split.x_train) == 48
    assert labels.tolist() == [RULES[op](i, j, 11) for i, j in pairs.tolist()]


def test_unordered_pairs_are_the_triangle_with_its_diagonal():
    split = modular(p=7, unordered=True, train_fraction=0.6)
    pairs = torch.cat([split.x_train, split.x_test])
    assert len(pairs) == 28
    assert bool((pairs[:, 0] <= pairs[:, 1]).all())


def test_only_training_labels_are_corrupted_and_a_seed_fixes_everything():
    split = modular(p=13, corrupt=0.3, seed=5)
    kept = ~split.is_corrupted
    assert int(split.is_corrupted.sum()) == int(0.3 * 84)
    assert torch.equal(split.y_train[kept], split.y_train_true[kept])
    assert torch.equal(split.y_test, split.x_test.sum(1) % 13)
    assert all(torch.equal(a, b) for a, b in zip(split, modular(p=13, corrupt=0.3, seed=5)))
    assert not torch.equal(split.x_train, modular(p=13, corrupt=0.3, seed=6).x_train)


@given(st.integers(0, 300), st.integers(0, 100))
def test_the_floor_of_the_fraction_is_replaced(n, percent):
    labels = torch.zeros(n, dtype=torch.long)
    noisy, replaced = corrupt_labels(labels, percent / 100, 5, seed=1)
    assert int(replaced.sum()) == percent * n // 100
    assert torch.equal(noisy[~replaced], labels[~replaced])


def test_draws_are_uniform_and_may_equal_the_truth():
    noisy, replaced = corrupt_labels(torch.full((10_000,), 3), 1.0, 7)
    assert bool(replaced.all())
    assert int((noisy == 3).sum()) > 0
    assert chisquare(noisy.bincount(minlength=7).numpy()).pvalue > 0.001


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 2}, "p must be at least 3, got 2"),
        ({"corrupt": 1.1}, "corrupt must be between 0 and 1"),
        ({"corrupt": -0.1}, "corrupt must be between 0 and 1"),
        ({"train_fraction": 1.0}, "train_fraction must lie in"),
        ({"p": 3, "train_fraction": 0.01}, "no training or no test pairs"),
        ({"op": "divide"}, "op must be one of"),
        ({"op": "subtract", "unordered": True}, "order of a pair"),
    ],
)
def test_modular_names_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        modular(**options)


def test_corrupt_labels_names_bad_labels():
    with pytest.raises(ValueError, match=r"at least 2 classes|num_classes must be at least 2"):
        corrupt_labels(torch.zeros(3, dtype=torch.long), 0.5, 1)
    with pytest.raises(ValueError, match="labels must be integers from 0 to 1"):
        corrupt_labels(torch.tensor([0, 2]), 0.5, 2)
