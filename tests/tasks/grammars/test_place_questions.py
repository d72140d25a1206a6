"""Questions on made-up places."""

import pytest

from heldout.tasks import PLACE_NAMES, place_questions


def test_every_question_is_read_back_as_its_query():
    grammar = place_questions()
    assert all(grammar.interpret(source) == target for source, target in grammar.sample(300, seed=1))


def test_queries_are_asked_in_several_ways():
    grammar = place_questions()
    said = ("how many people live in brint", "how populous is brint", "what is the population of brint")
    assert {grammar.interpret(each) for each in said} == {("population", "(", "brint", ")")}
    pairs = grammar.sample(2000, seed=0)
    assert len({target for _, target in pairs}) < 0.6 * len(pairs)


def test_all_places_occur_in_questions_and_queries():
    pairs = place_questions().sample(1000, seed=0)
    for side in range(2):
        words = {word for pair in pairs for word in pair[side]}
        assert {name for names in PLACE_NAMES.values() for name in names} <= words


def test_depth_two_names_places_only():
    longest = {depth: max(len(target) for _, target in place_questions(depth).sample(400)) for depth in (2, 3)}
    assert longest[2] == 7 < longest[3]


def test_a_depth_that_names_nothing_is_refused():
    with pytest.raises(ValueError, match="depth"):
        place_questions(1)
