"""The search for programs against all programs, written out without equivalence."""

import itertools
import random

import pytest

from heldout.train import IntDSL, ListDSL, SmallProgram, draw_program, synthesize
from tests.train.programs.test_dsl import term


def all_programs(dsl, arity, kind, size):
    """Every program of a type and size, none left out."""
    if size == 1 and kind == dsl.value:
        yield from (SmallProgram(f"x{place}") for place in range(arity))
    for name, operation in dsl.operations.items():
        if operation.gives != kind:
            continue
        takes = operation.takes
        for sizes in itertools.product(range(1, size), repeat=len(takes)):
            if sum(sizes) == size - 1:
                parts = [list(all_programs(dsl, arity, each, s)) for each, s in zip(takes, sizes, strict=True)]
                yield from (SmallProgram(name, chosen) for chosen in itertools.product(*parts))


@pytest.mark.parametrize("wanted", ["cons('A', x0)", "concat(x0, cdr(x0))", "cons(car(x0), x0)", "cdr(cdr(x0))"])
def test_no_smaller_program_does_it(wanted):
    language = ListDSL(["A", "B"])
    inputs = [tuple(text) for text in ("AB", "B", "ABB", "BA")]
    function = language.compile(term(wanted))
    examples = [((value,), function(value)) for value in inputs]
    found = synthesize(language, examples, 1)
    assert found.share == 1.0
    assert all(language.compile(found.program)(value) == function(value) for value in inputs)
    for size in range(1, found.program.size):
        for program in all_programs(language, 1, "list", size):
            tried = language.compile(program)
            assert any(tried(value) != function(value) for value in inputs)


def test_it_finds_a_sequence_three_times_and_the_difference_floored_at_0():
    thrice = synthesize(ListDSL(list("AB")), [((tuple(t),), tuple(t) * 3) for t in ("A", "BA", "ABB")], 1)
    assert str(thrice.program) == "concat(x0, concat(x0, x0))"
    pairs = list(itertools.product(range(8), repeat=2))
    less = synthesize(IntDSL(), [((x, y), max(0, x - y)) for x, y in pairs], 2)
    assert less.share == 1.0
    assert all(IntDSL().compile(less.program)(x, y) == max(0, x - y) for x, y in [(20, 3), (3, 20), (15, 15)])


def test_multiplication_is_found_with_addition_as_an_operation():
    pairs = list(itertools.product(range(6), repeat=2))
    plus = synthesize(IntDSL(), [((x, y), x + y) for x, y in pairs], 2).program
    language = IntDSL().extended("plus", plus, 2)
    times = synthesize(language, [((x, y), x * y) for x, y in pairs], 2)
    assert times.share == 1.0
    assert language.compile(times.program)(11, 12) == 132


def test_it_is_the_same_again():
    examples = [((tuple(t),), tuple(t[::-1])) for t in ("AB", "B", "BBA")]
    found = [synthesize(ListDSL(["A", "B"]), examples, 1, max_size=7) for _ in range(2)]
    assert found[0] == found[1]


def test_most_examples_are_reproduced_where_one_is_wrong():
    examples = [((tuple(t),), tuple(t) * 2) for t in ("A", "B", "AB", "BA")] + [((("B", "B"),), ("A",))]
    found = synthesize(ListDSL(["A", "B"]), examples, 1, max_terms=3000)
    assert str(found.program) == "concat(x0, x0)"
    assert found.share == 0.8


def test_constants_are_taken_where_half_of_the_outputs_hold_them():
    mostly = [((("B",),), ("A", "B")), ((("C",),), ("A", "C")), ((("C", "C"),), ("C",))]
    assert str(synthesize(ListDSL(list("ABC")), mostly, 1).program) == "cons('A', x0)"
    assert str(synthesize(ListDSL(list("ABC")), [((), ("B",))], 0).program) == "cons('B', nil)"


def test_the_budget_ends_the_search():
    examples = [((tuple(t),), tuple(t[::-1])) for t in ("AB", "ABBA", "BBA")]
    found = synthesize(ListDSL(["A", "B"]), examples, 1, max_terms=50)
    assert found.terms == 50
    assert found.share < 1
    nothing = synthesize(IntDSL(), [((), 30)], 0, max_size=4)
    assert nothing.program is None
    assert nothing.share == 0.0


def test_random_programs_are_of_the_language_and_hold_what_it_has():
    language = ListDSL(["A", "B"])
    rng = random.Random(0)
    drawn = [draw_program(language, 1, rng) for _ in range(3000)]
    values = [language.compile(program)(("B",)) for program in drawn]
    assert max(program.size for program in drawn) <= 7
    assert {"x0", "nil", "cons('A', x0)", "concat(x0, x0)"} <= set(map(str, drawn))
    share = sum(value == ("A", "B") for value in values) / 3000
    assert 0.003 < share < 0.1
    assert draw_program(language, 1, random.Random(3)) == draw_program(language, 1, random.Random(3))


def test_bad_input_is_refused_by_name():
    language = ListDSL(["A"])
    good = [((("A",),), ("A",))]
    for options, words in (
        ({"max_size": 0}, "max_size"), ({"max_terms": 0}, "max_terms"), ({"timeout": 0.0}, "timeout"),
        ({"timeout": -1.0}, "timeout"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            synthesize(language, good, 1, **options)
    with pytest.raises(ValueError, match="examples"):
        synthesize(language, [], 1)
    with pytest.raises(ValueError, match="as arity, 2"):
        synthesize(language, good, 2)
    with pytest.raises(TypeError, match="examples must be a tuple"):
        synthesize(language, [((3,), ("A",))], 1)
    with pytest.raises(ValueError, match="arity"):
        draw_program(language, -1, random.Random(0))
