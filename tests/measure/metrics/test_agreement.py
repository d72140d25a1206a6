import random
from collections import Counter

import pytest

from heldout.measure import agreement_curve, agreement_point


def test_shares_are_those_of_a_naive_count():
    rng = random.Random(0)
    shown = [[rng.choice("abcd") for _ in range(5)] for _ in range(300)]
    chosen = [rng.choice("abcde") for _ in range(300)]
    right = [rng.choice("abc") for _ in range(300)]
    point = agreement_point(shown, chosen, right)
    rows = list(zip(shown, chosen, right, strict=True))
    top = [max(Counter(row).values()) for row in shown]
    assert point.n == 5
    assert point.accuracy == pytest.approx(sum(c == r for _, c, r in rows) / 300)
    assert point.any_correct == pytest.approx(sum(r in row for row, _, r in rows) / 300)
    assert point.outside == pytest.approx(sum(c not in row for row, c, _ in rows) / 300)
    agree = [row.count(c) == t for (row, c, _), t in zip(rows, top, strict=True)]
    assert point.agreement == pytest.approx(sum(agree) / 300)
    first = [c == row[0] and not a for (row, c, _), a in zip(rows, agree, strict=True)]
    assert point.first == pytest.approx(sum(first) / 300)
    assert point.majority == pytest.approx(sum(Counter(row).most_common(1)[0][0] == r for row, _, r in rows) / 300)


def test_choosing_the_majority_agrees_and_is_within_the_bounds():
    shown = [["a", "b", "b"], ["c", None, None], ["d", "d", "e"]]
    point = agreement_point(shown, ["b", "c", "d"], ["b", "c", "e"])
    assert point.agreement == 1
    assert point.accuracy == point.majority == pytest.approx(2 / 3)
    assert point.any_correct == 1
    assert point.first == point.last == point.outside == 0


def test_no_choice_is_wrong_and_outside():
    point = agreement_point([["a", "a"], [None, None]], [None, None], ["a", "a"])
    assert (point.accuracy, point.outside, point.agreement, point.majority) == (0, 1, 0, 0.5)


def test_the_curve_runs_from_few_to_many_paths():
    curve = agreement_curve({2: ([["a", "b"]], ["b"]), 1: ([["a"]], ["a"])}, ["b"])
    assert [(p.n, p.accuracy, p.last) for p in curve] == [(1, 0, 0), (2, 1, 0)]
    with pytest.raises(ValueError, match="for 3 paths have 2"):
        agreement_curve({3: ([["a", "b"]], ["b"])}, ["b"])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="got 1, 2, 1"):
        agreement_point([["a"]], ["a", "b"], ["a"])
    with pytest.raises(ValueError, match=r"got \[1, 2\]"):
        agreement_point([["a"], ["a", "b"]], ["a", "b"], ["a", "b"])
    with pytest.raises(ValueError, match="got 0, 0, 0"):
        agreement_point([], [], [])
