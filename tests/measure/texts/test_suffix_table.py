"""Tables of what follows the last tokens."""

from collections import Counter

import numpy as np
import pytest

from heldout.measure import SuffixTable, suffix_hits


def slow(seen, context, most):
    """The most frequent answer of the seen contexts that share the longest end with this one."""
    for size in range(most, -1, -1):
        end = context[len(context) - size :] if size <= len(context) else None
        same = [a for c, a in seen if end is not None and len(c) >= size and c[len(c) - size :] == end]
        if same:
            return Counter(same).most_common(1)[0][0]
    raise AssertionError


@pytest.mark.parametrize("most", [0, 1, 2, 5])
def test_answers_are_those_of_a_plain_search(most):
    generator = np.random.default_rng(most)
    rows = [generator.integers(0, 3, size=generator.integers(1, 6)).tolist() for _ in range(120)]
    answers = generator.integers(0, 4, size=120).tolist()
    table = SuffixTable(most)
    table.add(rows[:30], answers[:30])
    table.add(rows[30:80], answers[30:80])
    expected = [slow(list(zip(rows[:80], answers[:80], strict=True)), row, most) for row in rows[80:]]
    assert table.answers(rows[80:]) == expected
    assert most == 0 or len(set(expected)) > 1


def test_without_tokens_it_is_the_most_frequent_answer():
    table = SuffixTable(0)
    table.add([[1], [2], [3]], ["a", "b", "b"])
    assert table.answers([[1], []]) == ["b", "b"]


def test_a_longer_end_that_was_seen_once_goes_before_a_shorter_one_seen_often():
    table = SuffixTable(2)
    table.add([[1, 9], [2, 9], [3, 9]], ["rare", "often", "often"])
    assert table.answers([[1, 9], [4, 9], [9], [4, 8]]) == ["rare", "often", "often", "often"]


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match="most"):
        SuffixTable(-1)
    with pytest.raises(ValueError, match="answers"):
        SuffixTable().add([[1]], [])
    with pytest.raises(ValueError, match="table"):
        SuffixTable().answers([[1]])


def test_a_stream_is_told_from_all_tasks_so_far_and_no_later_one():
    train = [([[1, 2], [3, 2], [3, 4]], ["a", "a", "b"]), ([[1, 2], [5, 2], [5, 2]], ["c", "c", "a"])]
    test = [([[3, 2], [9, 4]], ["a", "b"]), ([[5, 2], [6, 6], [3, 4]], ["c", "c", "b"])]
    # After the first task it says a, b; a, a, b. After both: a, b; c, of the two after [5, 2] the first; a; b.
    assert suffix_hits(train, test) == [[[True, True], [False, False, True]], [[True, True], [True, False, True]]]
    assert suffix_hits(train, test, 0)[1] == [[True, False], [False, False, False]]


def test_a_stream_of_other_lengths_is_refused_by_name():
    with pytest.raises(ValueError, match="test"):
        suffix_hits([([[1]], ["a"])], [])
    with pytest.raises(ValueError, match="answers"):
        suffix_hits([([[1]], ["a"])], [([[1]], [])])
    with pytest.raises(ValueError, match="most"):
        suffix_hits([], [], -1)
