"""Arc-standard transitions: the oracle rebuilds every projective tree, features are those by hand."""

import random

import pytest

from heldout.nn import ParseState, oracle_steps
from heldout.nn.parsing.transitions import LEFT, RIGHT, SHIFT


def projective_tree(length, rng):
    """Heads of a random projective tree: a root somewhere, and trees to its left and right that hang on it."""
    heads = [-1] * length

    def hang(start, stop, head):
        while start < stop:
            end = rng.randint(start + 1, stop)
            root = rng.randrange(start, end)
            heads[root] = head
            hang(start, root, root)
            hang(root + 1, end, root)
            start = end

    root = rng.randrange(length)
    hang(0, root, root)
    hang(root + 1, length, root)
    return heads


def crosses(heads):
    arcs = [tuple(sorted((child, head))) for child, head in enumerate(heads) if head >= 0]
    root = heads.index(-1)
    return any(a < c < b < d for a, b in arcs for c, d in arcs) or any(a < root < b for a, b in arcs)


def test_the_oracle_rebuilds_every_projective_tree():
    rng = random.Random(0)
    for _ in range(400):
        length = rng.randint(1, 12)
        heads = projective_tree(length, rng)
        steps = oracle_steps([0] * length, heads, null=1)
        assert len(steps) == 2 * length - 1
        state = ParseState([0] * length)
        for step in steps:
            assert state.legal()[step.transition]
            assert state.features(1) == step.features
            state.advance(step.transition)
        assert state.finished
        assert state.heads == heads


def test_trees_whose_arcs_cross_are_refused_and_no_others():
    rng = random.Random(1)
    refused = 0
    for _ in range(500):
        length = rng.randint(3, 7)
        order = rng.sample(range(length), length)
        heads = [-1] * length
        for place, position in enumerate(order[1:], 1):
            heads[position] = order[rng.randrange(place)]
        if crosses(heads):
            refused += 1
            with pytest.raises(ValueError, match="projective"):
                oracle_steps([0] * length, heads, null=1)
        else:
            oracle_steps([0] * length, heads, null=1)
    assert 50 < refused < 450


def test_features_are_those_by_hand():
    state = ParseState([10, 11, 12, 13, 14, 15, 16])
    for move in (SHIFT, SHIFT, LEFT, SHIFT, SHIFT, RIGHT, SHIFT, RIGHT):
        state.advance(move)
    # 11 has 10 to its left; 12 has 13 and 14 to its right; the buffer begins with 15
    null = 99
    top = [null, 14, null, 13, null, null]
    below = [10, null, null, null, null, null]
    assert state.features(null) == [null, 11, 12, 15, 16, null, *top, *below]


def test_features_reach_to_the_children_of_children():
    state = ParseState([10, 11, 12, 13, 14])
    for move in (SHIFT, SHIFT, LEFT, SHIFT, LEFT, SHIFT, SHIFT, RIGHT, RIGHT):
        state.advance(move)
    assert state.heads == [1, 2, -1, 2, 3]
    assert state.features(99)[6:12] == [11, 13, 99, 99, 10, 14]


def test_the_second_to_the_right_is_the_last_but_one():
    state = ParseState([10, 11, 12, 13])
    for move in (SHIFT, SHIFT, RIGHT, SHIFT, RIGHT, SHIFT, RIGHT):
        state.advance(move)
    assert state.features(99)[6:12] == [99, 13, 99, 12, 99, 99]


def test_arities_leave_the_trees_that_they_allow():
    state = ParseState([0, 1], [0, 1])
    assert state.legal() == (False, False, True)
    state.advance(SHIFT), state.advance(SHIFT)
    assert state.legal() == (True, False, False)
    stuck = ParseState([0, 0], [0, 1])
    stuck.advance(SHIFT), stuck.advance(SHIFT)
    assert stuck.legal() == (True, True, False)
    unfinished = ParseState([1, 1, 0], [0, 1])
    unfinished.advance(SHIFT), unfinished.advance(SHIFT)
    assert unfinished.legal() == (False, False, True)


@pytest.mark.parametrize(
    ("heads", "words"),
    [([0, -1], "circle"), ([-1, -1], "one root"), ([1, 0], "one root"), ([-1, 5], "positions"), ([-1], "as many"),
     ([1, 2, 1, -1], "circle")],
)  # fmt: skip
def test_what_is_no_tree_is_refused(heads, words):
    with pytest.raises(ValueError, match=words):
        oracle_steps([0] * max(2, len(heads)), heads, null=1)


def test_unusable_states_are_refused_by_name():
    with pytest.raises(ValueError, match="symbols must not be empty"):
        ParseState([])
    with pytest.raises(ValueError, match="symbol 3 without"):
        ParseState([3], [0, 1])
    for move in (LEFT, RIGHT, 7):
        with pytest.raises(ValueError, match="transition"):
            ParseState([0]).advance(move)
    done = ParseState([0])
    done.advance(SHIFT)
    with pytest.raises(ValueError, match="transition"):
        done.advance(SHIFT)
