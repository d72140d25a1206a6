"""The two languages: what their programs compute, what fails, and what is no value."""

import copy
import pickle

import pytest

from heldout.train import DSL, EMPTY, MISSING, IntDSL, ListDSL, Operation, SmallProgram
from heldout.train.programs.dsl import NoValue


def term(text):
    """A program from its text."""
    name, _, rest = text.partition("(")
    if not rest:
        return SmallProgram(text)
    parts, depth, start, inner = [], 0, 0, rest[:-1]
    for place, sign in enumerate(inner + ","):
        depth += (sign == "(") - (sign == ")")
        if sign == "," and depth == 0:
            parts.append(term(inner[start:place].strip()))
            start = place + 1
    return SmallProgram(name, tuple(parts))


def test_nothing_and_a_failure_are_different_and_stay_themselves():
    assert EMPTY is not MISSING
    assert EMPTY != MISSING
    for value in (EMPTY, MISSING):
        assert copy.deepcopy(value) is value
        assert pickle.loads(pickle.dumps(value)) is value
        assert isinstance(value, NoValue)
    assert (repr(EMPTY), repr(MISSING)) == ("EMPTY", "MISSING")


@pytest.mark.parametrize(
    ("text", "arguments", "value"),
    [
        ("succ(succ(zero))", (), 2),
        ("pred(zero)", (), 0),
        ("if(equal(x0, zero), x1, pred(x0))", (0, 5), 5),
        ("if(equal(x0, zero), x1, pred(x0))", (3, 5), 2),
        ("rec0(x1, succ(r))", (3, 4), 7),
        ("rec1(x0, pred(r))", (9, 4), 5),
        ("rec1(x0, pred(r))", (4, 9), 0),
        ("rec0(zero, succ(succ(r)))", (6,), 12),
        ("rec0(zero, x0)", (6,), 5),  # the argument is one less in a step
        ("rec0(zero, rec1(succ(x1), succ(r)))", (3, 4), 5),  # its own r, and x1 is 0 in the base
    ],
)
def test_programs_of_numbers_compute_what_they_say(text, arguments, value):
    assert IntDSL().compile(term(text))(*arguments) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("nil", ()),
        ("cons('A', x0)", ("A", "B", "C")),
        ("cons(car(x0), cdr(x0))", ("B", "C")),
        ("concat(cdr(x0), x0)", ("C", "B", "C")),
        ("cdr(nil)", ()),
        ("cons(car(nil), x0)", MISSING),
    ],
)
def test_programs_of_sequences_compute_what_they_say(text, value):
    language = ListDSL(["A", "B"])
    assert language.compile(term(text))(("B", "C")) == value


def test_what_grows_beyond_the_limit_fails():
    assert IntDSL(limit=5).compile(term("rec0(x0, succ(succ(r)))"))(3) == MISSING
    assert IntDSL(limit=8).compile(term("rec0(zero, succ(succ(r)))"))(3) == 6
    assert ListDSL(["A"], limit=3).compile(term("concat(x0, x0)"))(("A", "A")) is MISSING


def test_a_program_becomes_an_operation_and_fails_as_it_does():
    plus = IntDSL(limit=20).extended("plus", term("rec0(x1, succ(r))"), 2)
    times = term("rec0(zero, plus(x1, r))")
    assert plus.compile(times)(4, 5) == 20
    assert plus.compile(times)(4, 6) is MISSING
    with pytest.raises(ValueError, match="plus"):
        plus.extended("plus", term("zero"), 0)


def test_values_of_a_language_are_told():
    numbers, sequences = IntDSL(), ListDSL(["A"])
    assert [numbers.accepts(value) for value in (0, 7, -1, True, 1.0, (), EMPTY)] == [True, True, *[False] * 5]
    assert [sequences.accepts(value) for value in ((), ("A",), ["A"], "A", 0)] == [True, True, False, False, False]
    with pytest.raises(TypeError, match="answer must be a number"):
        numbers.check(answer=())
    with pytest.raises(TypeError, match="answer must be a tuple"):
        sequences.check(answer=3)


def test_size_and_text():
    program = term("concat(x0, cons('A', nil))")
    assert program.size == 5
    assert str(program) == "concat(x0, cons('A', nil))"
    assert program == term("concat(x0, cons('A', nil))")


@pytest.mark.parametrize("text", ["unknown", "succ", "succ(zero, zero)", "rec0(zero)", "y0"])
def test_what_is_no_program_of_the_language_is_refused(text):
    with pytest.raises(ValueError, match="program"):
        IntDSL().compile(term(text))


def test_unusable_languages_are_refused_by_name():
    with pytest.raises(ValueError, match="constants"):
        ListDSL([])
    with pytest.raises(ValueError, match="constants"):
        ListDSL(["A", "A"])
    with pytest.raises(ValueError, match="limit"):
        IntDSL(limit=0)
    with pytest.raises(ValueError, match="operations"):
        DSL({}, "int")
    with pytest.raises(ValueError, match="rec0"):
        ListDSL(["A"]).compile(term("rec0(nil, x0)"))
    assert DSL({"one": Operation((), "int", lambda: 1)}, "int").compile(term("one"))() == 1
