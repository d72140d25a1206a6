"""Data sets that share elements with a target, against all subsets; draws of equal size."""

import random
from collections import Counter
from itertools import chain, combinations

import pytest
import torch
from torch.utils.data import TensorDataset

from heldout.data import match_size, related_sets, shared_elements, training_group

FACTORS = {"modality": 3, "area": 3, "task": 3}


def world(seed, size=9):
    rng = random.Random(seed)
    cells = [(m, a, t) for m in range(3) for a in range(3) for t in range(3)]
    rng.shuffle(cells)
    catalog = {f"set {i}": dict(zip(FACTORS, cell, strict=True)) for i, cell in enumerate(cells[:size])}
    return dict(zip(FACTORS, cells[size], strict=True)), catalog


def covers(target, catalog, group):
    return all(any(catalog[name][factor] == target[factor] for name in group) for factor in target)


@pytest.mark.parametrize("seed", range(1000, 1012))
@pytest.mark.parametrize("most", [1, 2, 3])
def test_related_sets_are_the_minimal_covers_among_all_subsets(seed, most):
    target, catalog = world(seed)
    catalog["the target again"] = dict(target)
    if not covers(
        target, {k: v for k, v in catalog.items() if v != target}, [k for k, v in catalog.items() if v != target]
    ):
        with pytest.raises(ValueError, match="no data set of the catalog has the"):
            related_sets(target, catalog, max_size=most)
        return
    names = [name for name in catalog if catalog[name] != target]
    groups = [g for size in range(1, most + 1) for g in combinations(names, size) if covers(target, catalog, g)]
    minimal = {
        frozenset(g)
        for g in groups
        if not any(covers(target, catalog, part) for size in range(len(g)) for part in combinations(g, size))
    }
    found = related_sets(target, catalog, max_size=most)
    assert {frozenset(group) for group in found} == minimal
    assert len(found) == len(minimal)
    assert sorted(found, key=len) == found


def test_shared_elements_leave_the_target_out_and_keep_its_order():
    target = {"modality": "CT", "area": "lung", "task": "count"}
    catalog = {
        "a": {"task": "count", "area": "skin", "modality": "CT"},
        "b": dict(target),
        "c": {"modality": "photo", "area": "skin", "task": "grade"},
    }
    assert shared_elements(target, catalog) == {"a": ("modality", "task"), "c": ()}


@pytest.mark.parametrize("seed", range(1000, 1020))
def test_training_groups_are_what_their_names_say(seed):
    rng = random.Random(seed)
    cells = [(m, a, t) for m in range(4) for a in range(4) for t in range(4)]
    rng.shuffle(cells)
    catalog = {f"set {i}": dict(zip(FACTORS, cell, strict=True)) for i, cell in enumerate(cells[:40])}
    target = dict(zip(FACTORS, cells[40], strict=True))
    shares = shared_elements(target, catalog)
    assert training_group("base", target, catalog) == ()
    assert set(training_group("all", target, catalog)) == set(catalog)
    assert set(training_group("all-related", target, catalog)) == {n for n, s in shares.items() if len(s) <= 1}
    related = training_group("related", target, catalog, seed=seed)
    assert related in related_sets(target, catalog)
    assert len(related) == 2
    unrelated = training_group("unrelated", target, catalog, seed=seed)
    assert len(set(unrelated)) == len(related)
    assert all(not shares[name] for name in unrelated)
    for factor in FACTORS:
        group = training_group(f"without {factor}", target, catalog, seed=seed)
        rest = [other for other in FACTORS if other != factor]
        assert all(catalog[name][factor] != target[factor] for name in group)
        assert all(any(catalog[name][other] == target[other] for name in group) for other in rest)
        alone = [
            n for n in catalog if all(catalog[n][o] == target[o] for o in rest) and factor not in shares.get(n, ())
        ]
        assert len(set(group)) == len(group) == len(related)
        assert sum(bool(shares[name]) for name in group) == (1 if alone else 2)  # else one that shares nothing
        assert group[-1] in alone or not alone or not shares[group[-1]]
    for arm in ("related", "unrelated", "without area"):
        drawn = {training_group(arm, target, catalog, seed=s) for s in range(30)}
        assert len(drawn) > 1
    unrelated = {n for s in range(200) for n in training_group("unrelated", target, catalog, seed=s)}
    assert unrelated == {n for n, same in shares.items() if not same}


def test_groups_that_cannot_be_made_are_refused():
    target = {"modality": 0, "area": 0}
    catalog = {"a": {"modality": 0, "area": 1}, "b": {"modality": 1, "area": 0}}
    with pytest.raises(ValueError, match="0 data sets share no element with the target, 2 are needed"):
        training_group("unrelated", target, catalog)
    with pytest.raises(ValueError, match=r"arm must be base, related, .* or without one of modality, area, got 'near'"):
        training_group("near", target, catalog)
    with pytest.raises(ValueError, match="arm must be"):
        training_group("without task", target, catalog)
    with pytest.raises(ValueError, match="no data set of the catalog has the area 0"):
        related_sets(target, {"a": {"modality": 0, "area": 1}})
    with pytest.raises(ValueError, match="0 data sets share no element with the target, 1 are needed"):
        training_group("without area", target, catalog)
    with pytest.raises(ValueError, match="data sets without the area must not be empty"):
        training_group("without area", target, {"b": {"modality": 1, "area": 0}})
    with pytest.raises(ValueError, match="a must have elements of modality, area"):
        related_sets(target, {"a": {"modality": 0}})
    with pytest.raises(ValueError, match="max_size"):
        related_sets(target, catalog, max_size=0)


def sets(sizes):
    return {name: TensorDataset(torch.arange(size), torch.arange(size) % 3) for name, size in sizes.items()}


@pytest.mark.parametrize(("n", "counts"), [(9, (3, 3, 3)), (10, None), (30, (4, 13, 13)), (64, (4, 20, 40))])
def test_sizes_are_matched_between_sets_and_labels(n, counts):
    data = sets({"small": 4, "middle": 20, "large": 40})
    offset = {"small": 0, "middle": 100, "large": 200}
    shifted = {name: TensorDataset(each.tensors[0] + offset[name], each.tensors[1]) for name, each in data.items()}
    labels = {name: each.tensors[1] for name, each in shifted.items()}
    drawn = match_size(shifted, list(data), n, labels=labels, seed=3)
    rows = [(int(x), int(y)) for x, y in drawn]
    assert len(rows) == n == len(set(rows))
    by_set = [[row for row in rows if row[0] // 100 == k] for k in range(3)]
    if counts:
        assert tuple(map(len, by_set)) == counts
    else:
        assert max(map(len, by_set)) - min(map(len, by_set)) == 1
    for part, name in zip(by_set, data, strict=True):
        if len(part) < len(data[name]):
            classes = Counter(y for _, y in part)
            assert max(classes.values()) - min(classes[y] for y in range(3)) <= 1
    again = [(int(x), int(y)) for x, y in match_size(shifted, list(data), n, labels=labels, seed=3)]
    assert again == rows
    assert [(int(x), int(y)) for x, y in match_size(shifted, list(data), n, labels=labels, seed=4)] != rows or n == 64


def test_labels_are_mixed_and_who_gets_one_more_is_drawn():
    data = sets({"a": 20, "b": 20})
    labels = {name: each.tensors[1] for name, each in data.items()}
    orders = [[int(y) for _, y in match_size(data, ["a"], 12, labels=labels, seed=seed)] for seed in range(10)]
    assert all(order != sorted(order, key=order.index) for order in orders)  # not one label after another
    more = Counter(len(match_size(data, ["a", "b"], 5, seed=seed).datasets[0]) for seed in range(100))
    assert set(more) == {2, 3}
    assert 25 < more[2] < 75


def test_without_labels_draws_are_uniform():
    data = {"a": list(range(6))}
    counts = Counter(
        chain.from_iterable([match_size(data, ["a"], 3, seed=seed)[i] for i in range(3)] for seed in range(600))
    )
    assert all(240 < counts[i] < 360 for i in range(6))


def test_draws_that_cannot_be_made_are_refused():
    data = sets({"a": 4, "b": 5})
    with pytest.raises(ValueError, match="a, b hold 9 examples, fewer than 10"):
        match_size(data, ["a", "b"], 10)
    with pytest.raises(ValueError, match="names must be different"):
        match_size(data, ["a", "a"], 2)
    with pytest.raises(ValueError, match="there is no data set 'c'"):
        match_size(data, ["c"], 2)
    with pytest.raises(ValueError, match="labels of a must be 4, got 3"):
        match_size(data, ["a"], 2, labels={"a": [0, 1, 2]})
    with pytest.raises(ValueError, match="n must be"):
        match_size(data, ["a"], 0)
    with pytest.raises(ValueError, match="labels must have those of b; they have a"):
        match_size(data, ["a", "b"], 2, labels={"a": [0, 1, 2, 3]})
    with pytest.raises(ValueError, match="labels of a must not be NaN"):
        match_size(data, ["a"], 2, labels={"a": [0, 1, 2, float("nan")]})
