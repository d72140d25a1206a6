"""Hints, reversed answers and scratchpads, on examples of one's own."""

import random

import pytest

from heldout.data import add_index_hints, draw_hints, reverse_answer, running_state_scratchpad

HINTS = [f"h{number}" for number in range(9)]


def test_hints_are_consecutive_and_every_place_of_the_vocabulary_is_drawn_equally_often():
    rng, starts = random.Random(0), [0] * 6
    for _ in range(3000):
        drawn = draw_hints(4, HINTS, rng)
        start = HINTS.index(drawn[0])
        assert list(drawn) == HINTS[start : start + 4]
        starts[start] += 1
    assert min(starts) > 400
    assert max(starts) < 600


def test_a_hint_stands_before_each_token_and_drawn_hints_are_shared():
    hints = draw_hints(3, HINTS, random.Random(4))
    first, second = add_index_hints("1 0 2", hints), add_index_hints(["7", "7", "7"], hints)
    assert first[0::2] == second[0::2] == hints
    assert first[1::2] == ("1", "0", "2")
    assert add_index_hints("5", hints) == (hints[0], "5")
    assert len({add_index_hints("1 0", HINTS, random.Random(seed))[0] for seed in range(30)}) > 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("1 0", ["a"]), "at least 2 hints"),
        (("1 0", ["a", "a"]), "different hints"),
        (("1 a", ["a", "b", "c"]), "hold no token, got 'a'"),
        (("", ["a"]), "tokens"),
    ],
)
def test_bad_hints_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        add_index_hints(*arguments)


def test_a_reversed_answer_keeps_its_groups_and_twice_reversed_it_is_the_answer():
    pairs = [(("a", "b"), ("x", "1", "y", "2")), (("c",), ("z", "3"))]
    found = reverse_answer(pairs, group=2)
    assert found == [(("a", "b"), ("y", "2", "x", "1")), (("c",), ("z", "3"))]
    assert reverse_answer(found, group=2) == pairs
    assert reverse_answer([("a", "1 2 3")]) == [(("a",), ("3", "2", "1"))]
    with pytest.raises(ValueError, match="whole groups of 2"):
        reverse_answer([("a", "1 2 3")], group=2)


def test_a_scratchpad_has_the_state_after_each_token_that_is_shown():
    total = running_state_scratchpad("1 2 3", lambda state, token: state + int(token), 10)
    assert total == ("11", "13", "16")
    shown = running_state_scratchpad(
        "1 2 3", lambda state, token: state + int(token), 10, hints="a b c", shown=lambda token: token != "2"
    )
    assert shown == ("a", "11", "c", "16")
    assert running_state_scratchpad("1", lambda state, token: state, 0, shown=lambda token: False) == ()
    with pytest.raises(ValueError, match="equally long"):
        running_state_scratchpad("1 2", lambda state, token: state, 0, hints=["a"])
