import random

import pytest

from heldout.tasks import CHAIN, PEOPLE, chain_fact, chain_problem


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_answer_is_what_following_the_facts_leads_to(depth):
    problem = chain_problem(depth, random.Random(depth), entries=4)
    value = problem.start
    for name in list(CHAIN)[:depth]:
        value = problem.facts[name][value]
    assert problem.answer == value
    assert [after for *_, after in problem.steps[:-1]] == [before for _, before, _ in problem.steps[1:]]
    assert problem.text.split(" of ")[-1] == f"{problem.start}?"
    asked = problem.text.removeprefix("What is the ").split(" of ")[:-1]
    assert [word.removeprefix("the ") for word in asked] == list(CHAIN)[:depth][::-1]


def test_each_relation_leads_from_what_the_one_before_leads_to_and_to_different_things():
    for seed in range(20):
        facts = chain_problem(4, random.Random(seed)).facts
        reached = set(facts["city"])
        assert reached <= set(PEOPLE)
        for name, values in CHAIN.items():
            assert set(facts[name]) == reached
            reached = set(facts[name].values())
            assert len(reached) == 3
            assert reached <= set(values)


def test_facts_and_start_can_be_given():
    first = chain_problem(4, random.Random(0))
    for person in first.facts["city"]:
        again = chain_problem(2, random.Random(1), facts=first.facts, start=person)
        assert (again.facts, again.start, len(again.steps)) == (first.facts, person, 2)


def test_facts_are_sentences():
    assert chain_fact("food", "Rome", "soup") == "The food of Rome is soup."


def test_bad_input_is_refused():
    rng = random.Random(0)
    for call, message in (
        (lambda: chain_problem(0, rng), "depth must be from 1 to 4, got 0"),
        (lambda: chain_problem(5, rng), "depth must be from 1 to 4, got 5"),
        (lambda: chain_problem(1, rng, entries=1), "entries must be from 2 to 4, got 1"),
        (lambda: chain_problem(1, rng, start="Zoe"), "start must be one of .*, got 'Zoe'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
