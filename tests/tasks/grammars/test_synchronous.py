"""Grammars of two languages at once."""

import pytest

from heldout.tasks import SynchronousGrammar

RULES = {
    "question": [("how big is <town>", "size ( <town> )"), ("is <town> in <region>", "in ( <region> , <town> )")],
    "town": [("aldby", "a"), ("the capital of <region>", "capital ( <region> )")],
    "region": [("fen", "f"), ("the region of <town>", "region ( <town> )")],
}


def test_targets_follow_the_rules_and_their_order_within_each_side():
    grammar = SynchronousGrammar(RULES)
    assert " ".join(grammar.interpret("is aldby in the region of aldby")) == "in ( region ( a ) , a )"
    assert " ".join(grammar.interpret("how big is the capital of fen")) == "size ( capital ( f ) )"


def test_interpreting_what_was_written_gives_its_target():
    grammar = SynchronousGrammar(RULES)
    pairs = grammar.sample(25, seed=1)
    assert len({source for source, _ in pairs}) == 25
    assert all(grammar.interpret(source) == target for source, target in pairs)


def test_a_symbol_may_occur_several_times_in_a_target():
    grammar = SynchronousGrammar({"question": [("<town> twice", "<town> <town>")], "town": [("a b", "A")]})
    assert grammar.sample(1) == [(("a", "b", "twice"), ("A", "A"))]


def test_depth_bounds_the_nesting():
    shallow, deep = (SynchronousGrammar(RULES, depth=depth) for depth in (2, 5))
    assert {source for source, _ in shallow.sample(2)} == {("how", "big", "is", "aldby"), ("is", "aldby", "in", "fen")}
    assert max(target.count("capital") for _, target in deep.sample(20)) == 3
    with pytest.raises(ValueError, match="sentence"):
        shallow.interpret("how big is the capital of fen")


def test_seeds_decide_what_is_drawn():
    grammar = SynchronousGrammar(RULES)
    assert grammar.sample(10, seed=1) == grammar.sample(10, seed=1) != grammar.sample(10, seed=2)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({}, "rules"),
        ({"town": [("a", "a")]}, "start"),
        ({"question": [("<town>", "x")]}, "<town>"),
        ({"question": [("", "x")]}, "sources"),
        ({"question": [("x", "<town>")]}, "lacks"),
        ({"question": [("<town> <town>", "x")], "town": [("a", "a")]}, "once"),
        ({"question": [("again <question>", "<question>")]}, "end"),
    ],
)
def test_rules_that_write_nothing_are_refused(rules, says):
    with pytest.raises(ValueError, match=says):
        SynchronousGrammar(rules)


@pytest.mark.parametrize("source", ["how big is", "how big is fen", "", "is aldby in fen fen"])
def test_what_is_no_sentence_is_refused(source):
    with pytest.raises(ValueError, match="sentence"):
        SynchronousGrammar(RULES).interpret(source)


def test_more_sentences_than_there_are_are_refused():
    with pytest.raises(ValueError, match="n must"):
        SynchronousGrammar(RULES, depth=2).sample(3)
