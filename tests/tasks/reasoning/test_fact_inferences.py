import dataclasses
import time

import pytest
import torch

from heldout.tasks import (
    TokenRows,
    comparison_facts,
    composition_facts,
    fact_compositions,
    fact_leaks,
    majority_answer,
)

CLEAN = {"test_in_train": 0, "marked_in_train": 0, "not_in_train": 0, "mixed_tests": 0, "wrong": 0}


def composition(seed=0, **options):
    asked = {"phi": 4.0, "ood_fraction": 0.1, "test_fraction": 0.05} | options
    return composition_facts(30, 8, 6, seed=seed, **asked)


def comparison(seed=0, **options):
    return comparison_facts(40, 3, 5, seed=seed, **({"phi": 6.0} | options))


WORLDS = {"composition": composition, "comparison": comparison}


def rows(part):
    return {tuple(row) for row in part.ids.tolist()}


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("seed", range(3))
def test_nothing_leaks_and_everything_follows(world, seed):
    made = world(seed)
    assert fact_leaks(made) == CLEAN
    assert all(len(part.ids) for part in made.splits.values())
    for part in (made.train, *made.splits.values()):
        assert len(rows(part)) == len(part.ids)


def test_the_composition_is_that_of_a_naive_enumeration():
    made = composition(probe_size=10**6)
    facts = [tuple(fact) for fact in made.facts.tolist()]
    tail, marked = {fact[:2]: fact[2] for fact in facts}, dict(zip(facts, made.marked.tolist(), strict=True))
    wholly_id, wholly_ood = set(), set()
    for first in facts:
        for second in facts:
            if second[0] == first[2]:
                row = (first[0], first[1], second[1], tail[second[:2]])
                if not marked[first] and not marked[second]:
                    wholly_id.add(row)
                elif marked[first] and marked[second]:
                    wholly_ood.add(row)
    end = len(made.vocab) - 1
    train, test_id = rows(made.train), rows(made.splits["test_id"])
    inferred = {row for row in train if row[3] != end}
    assert train - inferred == {(*fact, end) for fact in facts}
    assert inferred == rows(made.splits["train_inferred"])
    assert rows(made.splits["test_ood"]) == wholly_ood
    assert test_id <= wholly_id
    assert inferred <= wholly_id - test_id
    assert len(test_id) == pytest.approx(0.05 * len(wholly_id), rel=0.5)


def test_counts_are_those_of_the_specification():
    made = composition_facts(60, 12, 12, phi=9.0, ood_fraction=0.1, test_fraction=0.05)
    assert len(made.facts) == 60 * 12
    assert int(made.marked.sum()) == 72
    assert len(made.train.ids) == 720 + round(9.0 * 648)
    degree = torch.bincount(made.facts[:, 0])
    assert degree.tolist() == [12] * 60
    assert len(made.facts[:, :2].unique(dim=0)) == 720
    made = comparison()
    assert len(made.facts) == 40 * 3
    assert int(made.marked.sum()) == 3 * 4
    assert len(made.train.ids) == 120 + 6 * 108
    assert made.marked.view(3, 40).sum(1).tolist() == [4, 4, 4]  # of each attribute


def test_what_counts_is_the_answer_and_the_end_of_a_fact():
    made = composition()
    fact, inference = made.splits["atomic_id"], made.splits["test_id"]
    assert fact.counts.tolist() == [[False, False, True, True]] * len(fact.ids)
    assert inference.counts.tolist() == [[False, False, False, True]] * len(inference.ids)
    assert torch.equal(fact.answers, fact.ids[:, 2])
    assert torch.equal(inference.answers, inference.ids[:, 3])
    assert made.vocab[fact.ids[0, 3]] == "<end>"
    assert len(made.vocab) == 30 + 8 + 1


def test_comparisons_are_those_of_the_values_with_labels_of_the_attribute():
    made = comparison()
    value = {tuple(fact[:2]): fact[2] for fact in made.facts.tolist()}
    for part in (made.splits["test_id"], made.splits["test_ood"], made.splits["train_inferred"]):
        for attribute, one, other, label in part.ids.tolist():
            assert one != other
            less, more = value[one, attribute], value[other, attribute]
            word = "smaller" if less < more else "larger" if less > more else "equal"
            assert made.vocab[label] == f"<a_{attribute - 40} {word}>"
    for name in ("test_id", "test_ood"):  # pairs are held out in both orders
        turned = {(a, y, x) for a, x, y, _ in rows(made.splits[name])}
        assert turned == {row[:3] for row in rows(made.splits[name])}
    assert not {row[:3] for row in rows(made.train)} & {(a, y, x) for a, x, y, _ in rows(made.splits["test_id"])}


def planted(world, name, part):
    return dataclasses.replace(world, splits={**world.splits, name: part})


def in_train(world, ids):
    counts = torch.tensor([[False, False, False, True]]).expand(len(ids), 4)
    train = TokenRows(torch.cat([world.train.ids, ids]), torch.cat([world.train.counts, counts]))
    return dataclasses.replace(world, train=train)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_planted_leaks_are_found(world):
    made = world()
    tests = {name: made.splits[name] for name in ("test_id", "test_ood")}
    found = fact_leaks(in_train(made, tests["test_id"].ids[:3]))
    assert found == CLEAN | {"test_in_train": 3}
    found = fact_leaks(in_train(made, tests["test_ood"].ids[:2]))
    assert found == CLEAN | {"test_in_train": 2, "marked_in_train": 2}
    without = TokenRows(made.train.ids[1:], made.train.counts[1:])
    assert fact_leaks(dataclasses.replace(made, train=without)) == CLEAN | {"not_in_train": 1}
    swapped = planted(planted(made, "test_id", tests["test_ood"]), "test_ood", tests["test_id"])
    assert fact_leaks(swapped)["mixed_tests"] == sum(len(part.ids) for part in tests.values())
    wrong = tests["test_id"].ids.clone()
    wrong[:4, 3] = torch.where(wrong[:4, 3] == 2, 3, 2)
    assert fact_leaks(planted(made, "test_id", TokenRows(wrong, tests["test_id"].counts)))["wrong"] >= 3


def test_a_graph_of_ones_own_is_split_and_named():
    triples = torch.tensor([[0, 0, 1], [1, 0, 2], [2, 1, 0], [0, 1, 2]])
    made = fact_compositions(triples, phi=1.0, ood_fraction=0.0, test_fraction=0.0, names=["a", "b", "c", "next", "of"])
    inferred = [" ".join(made.vocab[t] for t in row) for row in made.splits["train_inferred"].ids.tolist()]
    assert set(inferred) <= {"a next next c", "b next of a", "c of next b", "c of of c", "a of of a"}
    assert fact_leaks(made) == CLEAN
    with pytest.raises(ValueError, match="one tail"):
        fact_compositions(torch.cat([triples, torch.tensor([[0, 0, 2]])]), phi=1.0)
    with pytest.raises(ValueError, match="entities must be at least 3"):
        fact_compositions(triples, phi=1.0, entities=2)
    with pytest.raises(ValueError, match="names"):
        fact_compositions(triples, phi=1.0, names=["a"])


def test_a_larger_phi_only_adds_to_a_smaller_one_with_the_same_facts():
    few, many = composition(phi=2.0), composition(phi=4.0)
    assert torch.equal(few.facts, many.facts)
    assert torch.equal(few.marked, many.marked)
    assert rows(few.train) < rows(many.train)
    assert rows(few.splits["test_ood"]) == rows(many.splits["test_ood"])


def test_the_papers_size_is_made_in_seconds():
    start = time.process_time()
    made = composition_facts()
    assert len(made.train.ids) == 40_000 + 9 * 38_000
    assert len(made.splits["test_ood"].ids) <= 3000
    assert time.process_time() - start < 5


def test_the_majority_answer_looks_at_the_tokens_that_are_given():
    train = TokenRows(
        torch.tensor([[0, 2, 5], [0, 2, 5], [0, 3, 6], [1, 3, 7], [1, 3, 7]]), torch.tensor([[False, False, True]] * 5)
    )
    test = TokenRows(torch.tensor([[0, 3, 6], [1, 2, 5], [4, 3, 7]]), torch.tensor([[False, False, True]] * 3))
    assert majority_answer(train, test, [0, 1]) == pytest.approx(1 / 3)  # unseen pairs are wrong
    assert majority_answer(train, test, [1]) == pytest.approx(2 / 3)
    assert majority_answer(train, test, []) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="given"):
        majority_answer(train, test, [2])


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("out_degree", lambda: composition_facts(10, 4, 5)),
        ("phi", lambda: composition(phi=100.0)),
        ("phi", lambda: comparison(phi=1000.0)),
        ("ood_fraction", lambda: composition(ood_fraction=1.5)),
        ("test_fraction", lambda: comparison(test_fraction=-0.1)),
        ("triples", lambda: fact_compositions(torch.tensor([[0, 1]]))),
        ("values", lambda: comparison_facts(10, 2, 1)),
    ],
)
def test_bad_input_is_refused_by_name(argument, call):
    with pytest.raises(ValueError, match=argument):
        call()


def test_one_marked_fact_is_a_leak_as_two_are_and_a_false_fact_is_wrong():
    made = composition()
    facts, marked = made.facts, made.marked
    tails = {tuple(fact[:2].tolist()): (int(fact[2]), bool(mark)) for fact, mark in zip(facts, marked, strict=True)}
    mixed = next(
        [head, first, second, tails[bridge, second][0]]
        for (head, first), (bridge, ood) in tails.items()
        for (entity, second), (_, other) in tails.items()
        if entity == bridge and ood != other
    )
    row = torch.tensor([mixed])
    assert fact_leaks(in_train(made, row)) == CLEAN | {"marked_in_train": 1}
    counts = made.splits["test_ood"].counts[:1]
    for name in ("test_ood", "test_id"):
        part = made.splits[name]
        assert fact_leaks(planted(made, name, TokenRows(torch.cat([part.ids, row]), torch.cat([part.counts, counts]))))[
            "mixed_tests"
        ] == 1  # fmt: skip
    stated = made.splits["atomic_id"].ids.clone()
    stated[0, 2] = (stated[0, 2] + 1) % 30
    changed = planted(made, "atomic_id", TokenRows(stated, made.splits["atomic_id"].counts))
    assert fact_leaks(changed)["wrong"] == 1
