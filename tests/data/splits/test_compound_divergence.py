"""Divergences in closed form, and the split that is searched by them."""

import numpy as np
import pytest
import torch

from heldout.data import chernoff_divergence, mcd_split, ngrams, split_divergences
from heldout.data.splits.compound_divergence import _Counts
from heldout.tasks import ScanGrammar

PAIRS = ScanGrammar().sample(800, seed=0)


def test_equal_distributions_have_divergence_0_and_disjoint_ones_1():
    for alpha in (0.1, 0.5, 0.9):
        assert chernoff_divergence({"a": 1, "b": 3}, {"b": 6, "a": 2}, alpha) == pytest.approx(0.0, abs=1e-12)
        assert chernoff_divergence({"a": 1}, {"b": 1}, alpha) == 1.0


def test_divergence_is_one_minus_the_chernoff_coefficient():
    p, q = {"a": 0.25, "b": 0.75}, {"a": 0.5, "c": 0.5}
    for alpha in (0.1, 0.5):
        assert chernoff_divergence(p, q, alpha) == pytest.approx(1 - 0.25**alpha * 0.5 ** (1 - alpha))


def test_at_alpha_of_a_tenth_it_matters_little_how_often_training_has_a_compound():
    test, often, rarely = {"a": 1, "b": 1}, {"a": 50, "b": 50}, {"a": 99, "b": 1}
    assert chernoff_divergence(rarely, test, 0.1) < 0.15 < chernoff_divergence(rarely, test, 0.5)
    assert chernoff_divergence(often, test, 0.1) == pytest.approx(0, abs=1e-12)
    assert chernoff_divergence(test, rarely, 0.1) != pytest.approx(chernoff_divergence(rarely, test, 0.1))


def test_the_divergences_of_a_split_are_those_of_its_counts():
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(PAIRS), generator=generator)
    train, test = order[:600], order[600:]
    found = split_divergences(PAIRS, train, test, ngrams(1), ngrams(2))
    for n, alpha, value in ((1, 0.5, found.atoms), (2, 0.1, found.compounds)):
        counts = [{}, {}]
        for side, positions in enumerate((train, test)):
            for position in positions.tolist():
                for part in ngrams(n)(PAIRS[position]):
                    counts[side][part] = counts[side].get(part, 0) + 1
        assert value == pytest.approx(chernoff_divergence(*counts, alpha), abs=1e-9)


def test_mcd_keeps_atoms_alike_and_compounds_further_apart_than_any_of_100_random_splits():
    split = mcd_split(PAIRS, ngrams(1), ngrams(2), seed=1)
    assert sorted([*split.train.tolist(), *split.test.tolist()]) == list(range(len(PAIRS)))
    assert len(split.test) == 160
    found = split_divergences(PAIRS, *split, ngrams(1), ngrams(2))
    assert found.atoms <= 0.02
    counts, random = _Counts.of(PAIRS, ngrams(2), "compounds"), []
    for seed in range(100):
        order = np.random.default_rng(seed).permutation(len(PAIRS))
        random.append(chernoff_divergence(counts.sum(order[160:]).tolist(), counts.sum(order[:160]).tolist(), 0.1))
    assert found.compounds > 5 * max(random)


def test_the_limit_on_atoms_is_kept_and_the_seed_decides_the_rest():
    pairs, splits = PAIRS[:300], []
    for limit in (0.005, 0.05):
        splits.append(mcd_split(pairs, ngrams(1), ngrams(2), atom_limit=limit))
        assert split_divergences(pairs, *splits[-1], ngrams(1), ngrams(2)).atoms <= limit
    assert torch.equal(splits[0].test, mcd_split(pairs, ngrams(1), ngrams(2), atom_limit=0.005).test)
    assert not torch.equal(splits[0].test, mcd_split(pairs, ngrams(1), ngrams(2), atom_limit=0.005, seed=1).test)


def test_atoms_come_first_where_the_limit_is_narrow_and_whole_compounds_leave_training():
    pairs = ScanGrammar().sample(60, seed=0)
    split = mcd_split(pairs, ngrams(1), ngrams(2), atom_limit=0.004, test_share=0.3)
    found = split_divergences(pairs, *split, ngrams(1), ngrams(2))
    assert found.atoms <= 0.004
    assert found.compounds > 0.165  # 0.154 where only single examples change places


def test_the_gain_of_moving_one_example_is_the_change_of_the_divergence():
    train, test = torch.arange(20), torch.arange(20, 40)
    counts = _Counts.of(PAIRS[:40], ngrams(2), "compounds")
    held_out = np.arange(40) >= 20
    gains = counts.moved(counts.sum(~held_out), counts.sum(held_out), held_out, 0.1)
    before = split_divergences(PAIRS[:40], train, test, ngrams(1), ngrams(2)).compounds
    for position in range(40):
        moved = held_out.copy()
        moved[position] = not moved[position]
        sides = (torch.from_numpy(np.flatnonzero(mask)) for mask in (~moved, moved))
        after = split_divergences(PAIRS[:40], *sides, ngrams(1), ngrams(2)).compounds
        assert gains[position] == pytest.approx(after - before, abs=1e-9)


def test_compounds_of_targets_can_be_kept_apart():
    split = mcd_split(PAIRS[:300], ngrams(1, side=1), ngrams(2, side=1), seed=0, max_rounds=40)
    assert split_divergences(PAIRS[:300], *split, ngrams(1, side=1), ngrams(2, side=1)).atoms <= 0.02


def test_what_cannot_be_split_is_refused_by_name():
    with pytest.raises(ValueError, match="atoms must occur"):
        mcd_split(PAIRS, lambda pair: [], ngrams(2))
    with pytest.raises(ValueError, match="compounds must occur"):
        mcd_split(PAIRS, ngrams(1), ngrams(50))
    with pytest.raises(ValueError, match="test_share"):
        mcd_split(PAIRS, ngrams(1), ngrams(2), test_share=0.0)
    with pytest.raises(ValueError, match="atom_limit must be at least"):
        mcd_split([("a", ""), ("b", "")], ngrams(1), ngrams(1), test_share=0.5)
    with pytest.raises(ValueError, match="compounds must occur in training and test"):
        split_divergences([("a b", ""), ("a", "")], torch.tensor([0]), torch.tensor([1]), ngrams(1), ngrams(2))
    for p, q, alpha, message in (
        ({"a": 1}, {"a": 1}, 1.0, "alpha"),
        ([1.0, -1.0], [1.0, 1.0], 0.5, "p"),
        ([1.0], [0.0], 0.5, "q"),
        ([1.0], [1.0, 2.0], 0.5, "equally long"),
    ):
        with pytest.raises(ValueError, match=message):
            chernoff_divergence(p, q, alpha)
