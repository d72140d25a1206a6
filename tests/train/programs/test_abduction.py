"""Trees against a recursion by hand; the edit that is found is one, gives the answer, or is not found."""

import itertools
import math
import random

import pytest
import torch

from heldout.nn import Parse
from heldout.tasks import SCAN_ARITIES, command_heads, mini_scan, projective_command
from heldout.train import EMPTY, MISSING, GroundedTree, IntDSL, ListDSL, Observation, ProgramLibrary, abduce
from tests.train.programs.test_dsl import term

GRAMMAR = mini_scan(manners=("opposite", "around"))
WORDS = sorted({word for source, _ in GRAMMAR.clauses for word in source} | {"and", "after"})
MEANING = {
    "left": "cons('I_TURN_LEFT', x0)", "right": "cons('I_TURN_RIGHT', x0)", "opposite": "cons(car(x0), x0)",
    "around": "concat(concat(x0, x0), concat(x0, x0))", "twice": "concat(x0, x0)",
    "thrice": "concat(x0, concat(x0, x0))", "and": "concat(x0, x1)", "after": "concat(x1, x0)",
    **{word: f"cons('{action}', nil)" for word, action in GRAMMAR.primitives.items()},
}  # fmt: skip


def scan_library(known=tuple(WORDS)):
    actions = sorted({action for _, target in GRAMMAR.clauses for action in target})
    arities = [SCAN_ARITIES.get(word, 0) for word in WORDS]
    library = ProgramLibrary(ListDSL(actions), arities, wanted=1)
    for word in known:
        library.give(WORDS.index(word), term(MEANING[word]), arities[WORDS.index(word)])
    return library


def command(text):
    words = projective_command(text)
    return Parse(tuple(WORDS.index(word) for word in words), command_heads(words))


def test_trees_with_known_programs_have_the_values_that_the_interpreter_gives():
    library = scan_library()
    for source, target in GRAMMAR.sample(300, seed=1):
        assert GroundedTree(command(source), library).value == target


def test_children_are_in_the_order_of_their_positions():
    library = scan_library()
    tree = GroundedTree(command("jump after walk twice"), library)
    assert tree.formula(WORDS) == "after(jump, twice(walk))"
    assert tree.children[1] == [0, 3]


def numbers():
    """0 to 4 stand for themselves, 5 is +, 6 is floored -; pairs up to 4 were seen."""
    library = ProgramLibrary(IntDSL(), [0] * 5 + [2, 2], wanted=1)
    for symbol in range(5):
        library.give(symbol, term("succ(" * symbol + "zero" + ")" * symbol), 0)
    library.give(5, term("rec0(x1, succ(r))"), 2)
    library.give(6, term("rec1(x0, pred(r))"), 2)
    pairs = list(itertools.product(range(5), repeat=2))
    library.observe([Observation(symbol, (), symbol) for symbol in range(5)]
                    + [Observation(5, pair, sum(pair)) for pair in pairs]
                    + [Observation(6, (x, y), max(0, x - y)) for x, y in pairs])  # fmt: skip
    return library


def scores(symbols, classes=7, seed=0):
    drawn = torch.randn(len(symbols), classes, generator=torch.Generator().manual_seed(seed))
    drawn[range(len(symbols)), list(symbols)] += 3
    return drawn.log_softmax(1)


SUM = Parse((3, 5, 1, 6, 2), (1, 3, 1, -1, 3))  # (3 + 1) - 2


def test_probabilities_of_subtrees_are_sums_over_symbols_and_programs():
    library, given = numbers(), scores(SUM.symbols)
    tree = GroundedTree(SUM, library, given)
    assert tree.values == [3, 4, 1, 2, 2]
    expected = sum(given[place, symbol].item() for place, symbol in enumerate(SUM.symbols))
    assert tree.log_probabilities[tree.root] == pytest.approx(expected, abs=1e-5)
    unknown = GroundedTree(Parse((3,), (-1,)), ProgramLibrary(IntDSL(), [0] * 7), given[:1])
    assert unknown.log_probabilities[0] == pytest.approx(given[0, 3].item() + math.log(1e-7), abs=1e-4)


def own_edits(before, after):
    """Positions that were edited themselves: their symbol changed, or their value while no child's did."""
    changed = [i for i in range(len(before.symbols)) if before.values[i] != after.values[i]]
    return [
        i
        for i in range(len(before.symbols))
        if before.symbols[i] != after.symbols[i] or (i in changed and not any(c in changed for c in before.children[i]))
    ]


def test_another_symbol_is_found_where_one_gives_the_answer_and_only_there():
    library, rng = numbers(), random.Random(0)
    found = 0
    for number in range(120):
        symbols = tuple(rng.choice([5, 6]) if place % 2 else rng.randrange(5) for place in range(5))
        tree = GroundedTree(Parse(symbols, SUM.heads), library, scores(symbols, seed=number))
        answer = rng.randrange(10)
        edited = abduce(tree, answer, "perception", rng)
        possible = {
            (place, symbol)
            for place in range(5)
            for symbol in range(7)
            if tree.edited(place, symbol, library.evaluate(symbol, tree.arguments(place))).value == answer
        }
        if tree.value == answer:
            assert edited is tree
        elif edited is None:
            assert not {(place, symbol) for place, symbol in possible if place == 3}  # the root is always tried
        else:
            found += 1
            assert edited.value == answer
            (place,) = own_edits(tree, edited)
            assert (place, edited.symbols[place]) in possible
            assert edited.heads == tree.heads
        if not possible:
            assert edited is None
    assert found > 20


def test_the_least_likely_symbol_of_those_that_would_do_is_edited():
    library = numbers()
    sure = torch.full((3, 7), -8.0)
    sure[[0, 1, 2], [1, 5, 1]] = -0.01
    sure[2, 1], sure[2, 3] = -0.9, -1.0  # the last 1 may well be a 3
    tree = GroundedTree(Parse((1, 5, 1), (1, -1, 1)), library, sure)
    assert abduce(tree, 4, "perception").symbols == [1, 5, 3]
    sure[0, 1], sure[0, 3], sure[2, 3] = -0.9, -1.0, -8.0
    sure[2, 1] = -0.01
    tree = GroundedTree(Parse((1, 5, 1), (1, -1, 1)), library, sure)
    assert abduce(tree, 4, "perception").symbols == [3, 5, 1]


def test_of_two_symbols_that_would_do_the_likelier_one_is_taken():
    library = ProgramLibrary(IntDSL(), [0, 0, 0])
    library.observe([Observation(0, (), 1), Observation(1, (), 3), Observation(2, (), 3)])
    for likelier, other in ((1, 2), (2, 1)):
        given = torch.zeros(1, 3)
        given[0, likelier], given[0, other] = -1.0, -3.0
        tree = GroundedTree(Parse((0,), (-1,)), library, given)
        assert abduce(tree, 3, "perception").symbols == [likelier]


def followers():
    """0 is 3, 1 is the next number, 2 is nothing, 3 is 8, 4 is 5; once 5 was seen to be followed by 9."""
    library = ProgramLibrary(IntDSL(), [0, 1, 0, 0, 0], wanted=1)
    library.give(1, term("succ(x0)"), 1)
    library.observe([Observation(2, (), EMPTY), *(Observation(s, (), n) for s, n in ((0, 3), (3, 8), (4, 5))),
                     Observation(1, (5,), 9), *(Observation(1, (n,), n + 1) for n in (1, 2, 3, 4, 8))])  # fmt: skip
    return library


def test_nothing_before_an_argument_does_not_count_as_one():
    parse = Parse((2, 0, 1), (2, 2, -1))
    tree = GroundedTree(parse, followers(), torch.full((3, 5), -1.6))
    assert tree.values == [EMPTY, 3, 4]
    assert abduce(tree, 9, "perception").symbols == [2, 3, 1]


def test_what_was_seen_but_is_not_what_the_program_gives_does_not_pass():
    library = followers()
    library.observe([Observation(1, (5,), 9), *(Observation(1, (n,), n + 1) for n in (1, 2, 3, 4)),
                     *(Observation(s, (), n) for s, n in ((0, 3), (4, 5)))])  # fmt: skip
    only = torch.full((2, 5), -1.6)
    only[0, 4] = -1.0  # tried first
    tree = GroundedTree(Parse((0, 1), (1, -1)), library, only)
    assert library.inverse(1, 0, [3], [9]) == [5, 8]
    assert abduce(tree, 9, "perception").symbols == [3, 1]  # not 4, whose 5 is followed by 6


def test_a_value_is_given_to_the_symbol_whose_program_is_not_known():
    library = scan_library([word for word in WORDS if word != "left"])
    tree = GroundedTree(command("walk left"), library)
    assert tree.value is MISSING
    edited = abduce(tree, ("I_TURN_LEFT", "I_WALK"), "semantics")
    assert edited.value == ("I_TURN_LEFT", "I_WALK")
    assert Observation(WORDS.index("left"), (("I_WALK",),), ("I_TURN_LEFT", "I_WALK")) in edited.observations()
    assert tree.value is MISSING  # the tree itself is left alone


def test_a_value_below_the_root_is_found_through_what_was_seen():
    library = scan_library([word for word in WORDS if word != "run"])
    twice = WORDS.index("twice")
    library.observe([Observation(twice, (("I_RUN",),), ("I_RUN", "I_RUN"))])
    edited = abduce(GroundedTree(command("run twice"), library), ("I_RUN", "I_RUN"), "semantics")
    assert edited.values[0] == ("I_RUN",)
    assert own_edits(GroundedTree(command("run twice"), library), edited) == [0]


def test_nothing_is_found_where_no_single_edit_would_do():
    library = scan_library(["jump", "and"])
    tree = GroundedTree(command("walk left and look right"), library)
    assert abduce(tree, ("I_TURN_LEFT", "I_WALK", "I_TURN_RIGHT", "I_LOOK"), "semantics") is None
    known = GroundedTree(command("jump and jump"), library)
    assert abduce(known, ("I_WALK",), "syntax") is None
    assert abduce(known, ("I_JUMP", "I_JUMP"), "syntax") is known


def test_a_symbol_gets_no_value_with_more_arguments_than_it_takes():
    library = scan_library(["jump", "walk"])
    wrong = GroundedTree(Parse((WORDS.index("jump"), WORDS.index("walk")), (-1, 0)), library)
    assert abduce(wrong, ("I_JUMP", "I_WALK"), "semantics") is None


def test_a_child_may_turn_out_to_be_nothing():
    library = ProgramLibrary(IntDSL(), [0, 1, 0], wanted=1)
    library.observe([Observation(0, (), 3), Observation(1, (3,), 4), Observation(2, (), 9)])
    library.synthesize()
    tree = GroundedTree(Parse((0, 1, 2), (1, -1, 1)), library)  # the symbol takes one argument and has two
    assert tree.value is MISSING
    edited = abduce(tree, 4, "semantics")
    assert edited.values == [3, 4, EMPTY]
    assert edited.observations()[1] == Observation(1, (3,), 4)


def test_a_child_may_turn_out_to_be_nothing_in_sequences_too():
    library = ProgramLibrary(ListDSL(["A", "B"]), [0, 1, 0], wanted=1)
    library.give(1, term("concat(x0, x0)"), 1)
    library.give(0, term("cons('A', nil)"), 0)
    library.give(2, term("cons('B', nil)"), 0)
    tree = GroundedTree(Parse((0, 1, 2), (1, -1, 1)), library)
    assert tree.value is MISSING
    assert abduce(tree, ("A", "A"), "semantics").values == [("A",), ("A", "A"), EMPTY]


def test_of_several_values_that_would_do_each_is_given_sometimes():
    library = ProgramLibrary(IntDSL(), [0, 1])
    library.observe([Observation(1, (5,), 9), Observation(1, (8,), 9)])
    tree = GroundedTree(Parse((0, 1), (1, -1)), library)
    found = [abduce(tree, 9, "semantics", random.Random(seed)).values for seed in range(30)]
    assert {values[0] for values in found} == {5, 8}
    assert all(values[1] == 9 for values in found)


@pytest.mark.parametrize(("known", "expected"), [(0, [3, 9]), (1, [8, 9])])
def test_what_is_less_sure_is_edited(known, expected):
    library = ProgramLibrary(IntDSL(), [0, 1], wanted=1)
    library.observe([Observation(0, (), 3), Observation(1, (3,), 4), Observation(1, (8,), 9)])
    library.give(known, term(["succ(succ(succ(zero)))", "succ(x0)"][known]), known)
    tree = GroundedTree(Parse((0, 1), (1, -1)), library)
    assert abduce(tree, 9, "semantics").values == expected


def test_bad_input_is_refused_by_name():
    library = numbers()
    tree = GroundedTree(SUM, library)
    with pytest.raises(TypeError, match="answer must be a number"):
        abduce(tree, ("A",), "semantics")
    with pytest.raises(ValueError, match="scores"):
        abduce(tree, 3, "perception")
    with pytest.raises(ValueError, match="heads"):
        GroundedTree(Parse((1, 2), (0, 1)), library)
    with pytest.raises(ValueError, match="scores"):
        GroundedTree(SUM, library, torch.zeros(2, 7))
    with pytest.raises(ValueError, match="symbol"):
        GroundedTree(Parse((99,), (-1,)), library)
