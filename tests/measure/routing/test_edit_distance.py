import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.measure import edit_distances, edit_distances_within
from heldout.measure.routing import edit_distance

TOKENS = st.lists(st.integers(0, 3), max_size=7)


def by_the_book(first, second):
    """The whole table, cell by cell."""
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i in range(len(first) + 1):
        for j in range(len(second) + 1):
            if i == 0 or j == 0:
                table[i][j] = i + j
            else:
                replaced = table[i - 1][j - 1] + (first[i - 1] != second[j - 1])
                table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, replaced)
    return table[-1][-1]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=12))
def test_distances_are_those_of_the_whole_table(pairs):
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    assert edit_distances(first, second).tolist() == [by_the_book(*pair) for pair in pairs]


@settings(max_examples=60, deadline=None)
@given(TOKENS, TOKENS, TOKENS)
def test_it_is_a_metric(a, b, c):
    ab, ba, bc, ac, aa = edit_distances([a, b, b, a, a], [b, a, c, c, a]).tolist()
    assert aa == 0
    assert ab == ba
    assert (ab == 0) == (a == b)
    assert ac <= ab + bc


def test_pairs_in_several_parts_are_all_there(monkeypatch):
    monkeypatch.setattr(edit_distance, "_AT_ONCE", 3)
    rng = np.random.default_rng(0)
    first, second = ([rng.integers(0, 4, rng.integers(0, 6)).tolist() for _ in range(8)] for _ in range(2))
    assert edit_distances(first, second).tolist() == [by_the_book(*pair) for pair in zip(first, second, strict=True)]


def test_pairs_of_one_list_are_those_of_two():
    rng = np.random.default_rng(1)
    sequences = [rng.integers(0, 4, rng.integers(0, 6)).tolist() for _ in range(9)]
    pairs = rng.integers(0, 9, (30, 2))
    expected = edit_distances(*([sequences[place] for place in side] for side in pairs.T))
    assert np.array_equal(edit_distances_within(sequences, pairs), expected)
    assert len(edit_distances_within([], np.zeros((0, 2), int))) == 0
    with pytest.raises(ValueError, match="pairs must be integers from 0 to 8"):
        edit_distances_within(sequences, np.array([[0, 9]]))
    with pytest.raises(ValueError, match=r"pairs must be \(pairs, 2\)"):
        edit_distances_within(sequences, np.array([0, 1]))
    with pytest.raises(ValueError, match="sequences must be integers of at least 0"):
        edit_distances_within([[-1], [0]], np.array([[0, 1]]))


def test_known_words():
    words = [list(word.encode()) for word in ("kitten", "sitting", "", "flaw", "lawn")]
    assert edit_distances([words[0], words[2], words[3]], [words[1], words[3], words[4]]).tolist() == [3, 4, 2]
    assert edit_distances([], []).tolist() == []
    assert edit_distances([[1]], [[0] * 40_000]).tolist() == [40_000]  # beyond 16 bits
    assert edit_distances([[2**40, 1]], [[2**40, 2**33 + 1]]).tolist() == [1]


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match="first and second must be equally long"):
        edit_distances([[1]], [])
    with pytest.raises(ValueError, match="second must be integers of at least 0"):
        edit_distances([[1]], [[-1]])
    with pytest.raises((TypeError, ValueError), match="first"):
        edit_distances([[1.5]], [[1]])
