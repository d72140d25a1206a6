import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.data import inductive_split, inductive_split_by_subtree

TREE = torch.tensor([[child, 0, (child - 1) // 2] for child in range(1, 255)])
SIDE = torch.tensor([[entity, 1, (7 * entity + 3) % 255] for entity in range(255)])
GRAPH = torch.cat([TREE, SIDE])


def fits(split, triples, entities):
    rows = lambda part: sorted(map(tuple, part.tolist()))  # noqa: E731
    assert sorted(row for part in split[:4] for row in rows(part)) == rows(triples)
    assert sorted(entity for part in split[4:] for entity in part.tolist()) == list(range(entities))
    val, test = set(split.val_entities.tolist()), set(split.test_entities.tolist())
    for head, _, tail in rows(split.train):
        assert not {head, tail} & (val | test)
    for head, _, tail in rows(split.val):
        assert {head, tail} & val
        assert not {head, tail} & test
    for head, _, tail in rows(split.test):
        assert {head, tail} & test
        assert not {head, tail} & val


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), val=st.sampled_from([0.1, 0.2]), test=st.sampled_from([0.1, 0.25]))
def test_no_training_triple_touches_a_new_entity_and_nothing_is_lost(seed, val, test):
    split = inductive_split(GRAPH, 255, val, test, seed)
    fits(split, GRAPH, 255)
    assert (len(split.val_entities), len(split.test_entities)) == (round(val * 255), round(test * 255))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_subtrees_are_held_out_as_a_whole(seed):
    split = inductive_split_by_subtree(GRAPH, 255, [0], 0.15, 0.2, largest=0.07, seed=seed)
    fits(split, GRAPH, 255)
    for part, share in ((split.val_entities, 0.15), (split.test_entities, 0.2)):
        inside = set(part.tolist())
        assert all(2 * each + 1 in inside and 2 * each + 2 in inside for each in inside if each < 127)
        assert share * 255 <= len(inside) < share * 255 + 0.07 * 255


@pytest.mark.parametrize("seed", range(8))
def test_what_has_several_parents_goes_with_whichever_is_held_out_and_never_to_both_parts(seed):
    parents = [127, 180, 254]
    triples = torch.cat([GRAPH, torch.tensor([[255, 0, parent] for parent in parents])])
    split = inductive_split_by_subtree(triples, 256, [0], seed=seed)
    parts = [set(part.tolist()) for part in (split.val_entities, split.test_entities)]
    fits(split, triples, 256)
    for part in parts:
        assert 255 in part or not part & set(parents)


def test_no_leaf_is_held_out_alone_and_seeds_draw_subtrees():
    split = inductive_split_by_subtree(GRAPH, 255, [0], seed=1)
    held = set(torch.cat([split.val_entities, split.test_entities]).tolist())
    assert all((each - 1) // 2 in held for each in held if each >= 127)
    assert not torch.equal(split.test_entities, inductive_split_by_subtree(GRAPH, 255, [0], seed=2).test_entities)


def test_seeds_draw_and_bad_input_is_refused():
    assert not torch.equal(inductive_split(GRAPH, 255, seed=1).test, inductive_split(GRAPH, 255, seed=2).test)
    for call, said in (
        (lambda: inductive_split(GRAPH, 254), "triples"),
        (lambda: inductive_split(GRAPH[:0], 255), "triples"),
        (lambda: inductive_split(GRAPH[:, :2], 255), "triples"),
        (lambda: inductive_split(GRAPH.double(), 255), "triples"),
        (lambda: inductive_split(GRAPH, 255, 0.0), "val"),
        (lambda: inductive_split(GRAPH, 255, 0.5, 0.5), "val and test"),
        (lambda: inductive_split(GRAPH[:1], 255), "train|val"),
        (lambda: inductive_split_by_subtree(GRAPH, 255, []), "hierarchy"),
        (lambda: inductive_split_by_subtree(GRAPH, 255, [5]), "hierarchy"),
        (lambda: inductive_split_by_subtree(GRAPH, 255, [0], largest=0.001), "largest"),
        (lambda: inductive_split_by_subtree(GRAPH, 255, [0], largest=-1.0), "largest"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
