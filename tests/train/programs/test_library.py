"""What is learned of symbols, against counts by hand and a search through everything that was seen."""

import random

import pytest

from heldout.train import EMPTY, MISSING, IntDSL, ListDSL, Observation, ProgramLibrary
from tests.train.programs.test_dsl import term

A, B, C = ("A",), ("B",), ("C",)


def library(arities=(0, 1, 2), **options):
    return ProgramLibrary(ListDSL(list("ABC")), arities, **options)


def doubled(*values):
    return [Observation(1, (value,), value + value) for value in values]


def test_counts_halve_and_the_likelihood_is_that_by_hand():
    known = library(wanted=10)
    known.observe([*doubled(A, A, B), Observation(1, (C,), A)])
    # A: 2; B: 1; C: 1, all confident; the program is right for two of three: 2/3 / (10 / 3)
    assert known.synthesize() == [1]
    assert str(known.learned(1).program) == "concat(x0, x0)"
    assert known.likelihood(1) == pytest.approx(2 / 3 / (10 / 3))
    assert known.learned(1).examples == 3
    known.observe([Observation(1, (A,), B), Observation(1, (B,), B + B)])
    # A: A A 1, B 1: no majority; B: 1.5; C: 0.5, no longer confident
    assert known.learned(1).examples == 1
    assert known.likelihood(1) == pytest.approx(1 / 10)
    known.observe(doubled(A))
    # A: A A 1.5, B 0.5; B: 0.75
    assert known.learned(1).examples == 1
    assert known.likelihood(1) == pytest.approx(1 / 10)


def test_few_examples_do_not_make_a_program_that_is_used():
    few = library(wanted=10)
    few.observe(doubled(A, B, C, A + B))
    few.synthesize()
    assert few.likelihood(1) == pytest.approx(0.4)
    assert few.evaluate(1, [C + C]) is MISSING
    assert few.evaluate(1, [B]) == B + B
    half = library(wanted=8)
    half.observe(doubled(A, B, C, A + B))
    half.synthesize()
    assert half.likelihood(1) == 0.5
    assert half.evaluate(1, [C + C]) is MISSING
    many = library(wanted=6)
    many.observe(doubled(A, B, C, A + B))
    many.synthesize()
    assert many.likelihood(1) == pytest.approx(4 / 6)
    assert many.evaluate(1, [C + C]) == C * 4


def test_a_value_is_drawn_by_counts_where_no_program_is_used():
    known = library(seed=3)
    known.observe([Observation(1, (A,), B)] * 3 + [Observation(1, (A,), C)])
    drawn = [known.evaluate(1, [A]) for _ in range(2000)]
    assert set(drawn) == {B, C}
    assert abs(drawn.count(B) / 2000 - 0.75) < 0.04


def test_nothing_is_no_argument_and_a_failure_spreads():
    known = library(wanted=1)
    known.observe(doubled(A, B))
    known.synthesize()
    assert known.evaluate(1, [EMPTY, A]) == A + A
    assert known.evaluate(1, [MISSING]) is MISSING
    assert known.evaluate(1, [A, B]) is MISSING
    assert known.evaluate(1, []) is MISSING
    assert known.evaluate(2, [A, B]) is MISSING


def test_a_symbol_without_a_meaning_of_its_own_gives_nothing():
    known = library()
    known.observe([Observation(0, (), EMPTY)] * 2)
    known.synthesize()
    assert known.evaluate(0, []) is EMPTY


def test_inverse_agrees_with_a_search_through_all_that_was_seen():
    rng = random.Random(0)
    values = [(), A, B, A + B, B + B]
    known = library()
    seen = [Observation(2, (rng.choice(values), rng.choice(values)), rng.choice(values)) for _ in range(60)]
    known.observe(seen)
    counts = {}
    for _, arguments, value in seen:
        counts.setdefault(arguments, {}).setdefault(value, 0)
        counts[arguments][value] += 1
    for position in (0, 1):
        for other in values:
            for target in values:
                given = [A, A]
                given[1 - position] = other
                expected = {
                    arguments[position]
                    for arguments, gave in counts.items()
                    if arguments[1 - position] == other and max(gave, key=gave.__getitem__) == target
                }
                found = known.inverse(2, position, given, [target])
                assert set(found) - {()} == expected - {()}
                assert len(set(found)) == len(found)


def test_inverse_tries_nothing_and_the_empty_sequence():
    known = library(wanted=0.1)
    known.give(2, term("concat(x0, x1)"), 2)
    assert known.inverse(2, 1, [A, B], [A]) == [()]
    numbers = ProgramLibrary(IntDSL(), [0, 1])
    numbers.observe([Observation(1, (), 3)])
    assert numbers.inverse(1, 0, [5], [3]) == [EMPTY]


def test_a_recursion_that_is_used_becomes_an_operation_for_others():
    numbers = ProgramLibrary(IntDSL(), [2, 2], wanted=1)
    pairs = [(x, y) for x in range(6) for y in range(6)]
    numbers.observe([Observation(0, pair, sum(pair)) for pair in pairs])
    numbers.observe([*(Observation(0, pair, sum(pair)) for pair in pairs),
                     *(Observation(1, (x, y), x * y) for x, y in pairs)])  # fmt: skip
    assert numbers.synthesize() == [0, 1]
    assert "f0" in numbers.dsl.operations
    assert numbers.evaluate(1, [9, 8]) == 72
    alone = ProgramLibrary(IntDSL(), [2, 2], wanted=1, invent=False)
    alone.observe([*(Observation(0, pair, sum(pair)) for pair in pairs),
                   *(Observation(1, (x, y), x * y) for x, y in pairs)])  # fmt: skip
    alone.synthesize()
    assert alone.learned(1).likelihood < 1


def test_of_two_symbols_with_one_program_the_one_with_fewer_examples_is_forgotten():
    known = library([1, 1], wanted=1)
    known.observe([*doubled(A, B), *(Observation(0, (value,), value * 2) for value in (A, B, C))])
    assert known.synthesize() == [0]
    assert known.learned(1) == (None, 0.0, 1, 0)
    assert known.evaluate(1, [A]) is MISSING


def test_a_better_program_replaces_a_worse_one_and_a_longer_one_does_not():
    known = library(wanted=1)
    known.give(1, term("concat(x0, concat(x0, nil))"), 1)
    known.observe(doubled(A, B))
    assert known.likelihood(1) == 1.0
    assert known.synthesize() == []  # solved: nothing is looked for
    known.observe([Observation(1, (C,), A)] * 3 + [Observation(1, (B + C,), A)] * 3 + [Observation(1, (A,), A)] * 5)
    assert known.likelihood(1) < 0.5
    assert known.synthesize() == [1]
    assert str(known.learned(1).program) == "cons('A', nil)"


def test_without_arities_the_most_frequent_number_of_arguments_counts():
    known = library(None, wanted=1)
    known.observe([*doubled(A, B, C), Observation(1, (A, B), A), Observation(0, (), B)])
    assert (known.arity(0), known.arity(1)) == (0, 1)
    known.synthesize()
    assert known.evaluate(1, [B + C]) == B + C + B + C
    known.observe([Observation(1, (A, C), A + C)] * 9)
    assert known.arity(1) == 2
    assert known.learned(1).program is None


def test_a_shorter_program_of_the_same_likelihood_is_taken():
    known = library(wanted=1)
    known.give(1, term("concat(x0, concat(x0, nil))"), 1)
    known.observe([*doubled(A, B), Observation(1, (C,), A)])
    assert known.likelihood(1) == pytest.approx(2 / 3)
    assert known.synthesize(max_terms=3000) == [1]
    assert str(known.learned(1).program) == "concat(x0, x0)"


def test_what_an_earlier_program_gave_is_forgotten_with_it():
    known = library(wanted=1)
    known.observe(doubled(A, B))
    known.synthesize()
    assert known.evaluate(1, [C + C]) == C * 4
    known.observe([Observation(1, (value,), A + value) for value in (A, B, C)] * 3)
    assert known.synthesize() == [1]
    assert known.evaluate(1, [C + C]) == A + C + C


def test_a_search_looks_first_at_what_the_program_gets_wrong():
    known = library(wanted=1, seed=1)
    known.give(1, term("concat(x0, x0)"), 1)
    known.observe(doubled(*((f"s{number}",) for number in range(30))))
    known.observe([*doubled(*((f"s{number}",) for number in range(30))),
                   *(Observation(1, (value,), value[:1] + value) for value in (A + B, B + C))])  # fmt: skip
    assert known.synthesize(max_examples=4) == [1]
    assert str(known.learned(1).program) == "cons(car(x0), x0)"
    assert known.likelihood(1) == 1.0


def test_numbers_of_arguments_are_forgotten_as_values_are():
    known = library(None)
    known.observe(doubled(A, B, C))
    known.observe([Observation(1, (A, B), A)] * 2)  # 1.5 with one argument, 2 with two
    assert known.arity(1) == 2


def test_one_example_is_enough_where_there_are_no_arguments():
    known = library(wanted=10)
    known.observe([Observation(0, (), A)])
    assert known.synthesize() == [0]
    assert known.likelihood(0) == 1.0


def test_exploring_gives_values_of_random_programs():
    known = library(explore=True, seed=0)
    values = {known.evaluate(0, []) for _ in range(400)}
    assert {(), A, B, C} <= values
    assert known.evaluate(0, [A]) is MISSING


def test_the_report_names_programs():
    known = library(wanted=1)
    known.observe(doubled(A, B))
    known.synthesize()
    assert known.report(["a", "twice", "and"]).splitlines()[1] == "twice: concat(x0, x0) (likelihood 1.00, 2 examples)"


def test_bad_input_is_refused_by_name():
    known = library()
    for call in (known.likelihood, known.learned, known.arity, lambda symbol: known.evaluate(symbol, [])):
        with pytest.raises(ValueError, match="symbol must be one with an arity, got 7"):
            call(7)
    with pytest.raises(ValueError, match="symbol"):
        known.observe([Observation(9, (), A)])
    with pytest.raises(TypeError, match="observations"):
        known.observe([Observation(1, (3,), A)])
    with pytest.raises(TypeError, match="arguments"):
        known.evaluate(1, [3])
    with pytest.raises(ValueError, match="position"):
        known.inverse(1, 1, [A], [A])
    with pytest.raises(ValueError, match="timeout"):
        known.synthesize(timeout=0.0)
    with pytest.raises(ValueError, match="arities"):
        library([-1])
    with pytest.raises(ValueError, match="wanted"):
        library(wanted=0)
    with pytest.raises(ValueError, match="arity must be 1"):
        known.give(1, term("nil"), 0)
