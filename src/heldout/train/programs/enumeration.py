"""Core: The smallest program for examples, by bottom-up enumeration up to observational equivalence.

Source: Udupa et al. (2013), "TRANSIT"; it stands in for the learned search of arXiv:2210.01603.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from heldout.errors import check_at_least, check_nonempty, check_positive, checked
from heldout.train.programs.dsl import DSL, MISSING, SmallProgram

_PROBES = (0, 1, 2, 5)  # of arguments and results, by which steps of a recursion are told apart
_SPARE = 3  # a part may be so much longer than the longest output


class Synthesis(NamedTuple):
    """What a search for a program found.

    Attributes:
        program: the smallest of those that reproduce most examples; None if none reproduces any.
        share: of the examples that it reproduces, in [0, 1].
        terms: how many terms were tried, equivalent ones and those of other types as well; of recursions only whole
            ones are counted.

    Example:
        >>> from heldout.train import ListDSL
        >>> examples = [((("A",),), ("A",)), ((("A",),), ("A", "A"))]  # they contradict each other
        >>> found = synthesize(ListDSL(["A"]), examples, arity=1, max_size=3)
        >>> str(found.program), found.share
        ('x0', 0.5)
    """

    program: SmallProgram | None
    share: float
    terms: int


class _Term(NamedTuple):
    program: SmallProgram
    values: tuple  # on each example; None is a failure


class _Budget:
    """Counts terms and looks at the clock."""

    def __init__(self, terms: int, timeout: float) -> None:
        self.left, self.used, self.until = terms, 0, time.monotonic() + timeout

    def spent(self) -> bool:
        self.used += 1
        return self.used > self.left or (self.used % 64 == 0 and time.monotonic() > self.until)


@checked
def synthesize(
    dsl: DSL,
    examples: Sequence[tuple],
    arity: int,
    *,
    max_size: int = 9,
    max_terms: int = 20_000,
    timeout: float = 10.0,
) -> Synthesis:
    """Returns the smallest program that reproduces all examples, or most of them where none reproduces all.

    Terms are built by size, and of those that agree on all inputs only the first is kept. Constants of sequences are
    used where at least half of the outputs hold them. Recursions over an argument (``DSL.recursion``) are tried after
    all that does without, the smaller ones first; their steps are told apart by their values on a grid.

    Args:
        dsl: the language.
        examples: ``(inputs, output)``, inputs a tuple of ``arity`` values.
        arity: number of arguments.
        max_size: names in a program.
        max_terms: tried at most without recursion, and as many again of the steps, of the bases and of the whole of
            recursions; with it alone the same is found on every machine.
        timeout: seconds at most.

    Raises:
        ValueError: no examples, inputs of another number than ``arity``, or numbers out of range.
        TypeError: a value that is none of the language.

    Example:
        >>> from heldout.train import ListDSL
        >>> found = synthesize(ListDSL(["A", "B"]), [((("A",),), ("A",) * 3), ((("A", "B"),), ("A", "B") * 3)], 1)
        >>> str(found.program), found.share
        ('concat(x0, concat(x0, x0))', 1.0)
    """
    check_nonempty(examples=examples)
    check_at_least(0, arity=arity)
    check_at_least(1, max_size=max_size, max_terms=max_terms)
    check_positive(timeout=timeout)
    for inputs, output in examples:
        if not isinstance(inputs, tuple) or len(inputs) != arity:
            raise ValueError(f"examples must have inputs of as many values as arity, {arity}, got {inputs!r}")
        for value in (*inputs, output):
            dsl.check(examples=value)
    outputs = tuple(output for _, output in examples)
    leaves = [
        _Term(SmallProgram(f"x{place}"), tuple(inputs[place] for inputs, _ in examples)) for place in range(arity)
    ]
    budget = _Budget(max_terms, timeout)
    best: tuple[int, SmallProgram | None] = (0, None)
    longest = max((len(output) for output in outputs if isinstance(output, tuple)), default=0) + _SPARE
    for kind, term in _grown(_useful(dsl, outputs), leaves, len(outputs), max_size, budget, longest, dsl.value):
        if kind != dsl.value:
            continue
        right = sum(value == output for value, output in zip(term.values, outputs, strict=True))
        if right > best[0]:
            best = right, term.program
            if right == len(outputs):
                break
    tried = min(budget.used, max_terms)
    if best[0] < len(outputs) and dsl.recursion and arity:
        budget = _Budget(max_terms, budget.until - time.monotonic())
        best = _recursive(dsl, examples, arity, max_size, budget, best)
        tried += min(budget.used, max_terms)
    return Synthesis(best[1], best[0] / len(outputs), tried)


@checked
def draw_program(dsl: DSL, arity: int, rng: random.Random, *, depth: int = 2) -> SmallProgram:
    """Returns a random program: at each place one of what the language has there, each as likely, recursion left out.

    Args:
        dsl: the language.
        arity: number of arguments.
        rng: of the draws.
        depth: of nested operations at most, where the language has constants or arguments to end with.

    Raises:
        ValueError: negative numbers.

    Example:
        >>> from heldout.train import IntDSL
        >>> str(draw_program(IntDSL(), 1, random.Random(1)))
        'zero'
    """
    check_at_least(0, arity=arity, depth=depth)

    def drawn(kind: str, left: int) -> SmallProgram:
        arguments = [f"x{place}" for place in range(arity)] if kind == dsl.value else []
        names = [name for name, operation in dsl.operations.items() if operation.gives == kind]
        short = [name for name in names if not dsl.operations[name].takes]
        allowed = [*arguments, *(names if left > 0 or not (arguments or short) else short)]
        name = rng.choice(allowed)
        takes = dsl.operations[name].takes if name in dsl.operations else ()
        return SmallProgram(name, tuple(drawn(each, left - 1) for each in takes))

    return drawn(dsl.value, depth)


def _useful(dsl: DSL, outputs: tuple) -> Mapping[str, Any]:
    """The operations without the constants that less than half of the outputs hold: a program writes its constants."""
    if dsl.value == "int":
        return dsl.operations
    return {
        name: operation
        for name, operation in dsl.operations.items()
        if operation.takes
        or operation.gives == dsl.value
        or 2 * sum(operation.function() in output for output in outputs) >= len(outputs)
    }


def _grown(
    operations: Mapping[str, Any],
    leaves: Sequence[_Term],
    examples: int,
    max_size: int,
    budget: _Budget,
    longest: int,
    value: str,
) -> Iterator[tuple[str, _Term]]:
    """Terms with their types, by size; of those that have the same values on all examples the first alone."""
    bank: dict[tuple[str, int], list[_Term]] = {}
    seen: set[tuple] = set()

    def new(gives: str, term: _Term) -> bool:
        key = (gives, term.values)
        if key in seen or all(value is None for value in term.values):
            return False
        seen.add(key)
        bank.setdefault((gives, term.program.size), []).append(term)
        return True

    for term in leaves:
        if new(value, term):
            yield value, term
    for size in range(1, max_size + 1):
        for name, operation in operations.items():
            if size == 1 and operation.takes:
                continue
            for sizes in _compositions(size - 1, len(operation.takes)):
                banks = [bank.get((kind, each), []) for kind, each in zip(operation.takes, sizes, strict=True)]
                for parts in itertools.product(*banks):
                    if budget.spent():
                        return
                    values = _values(operation.function, parts, examples, longest)
                    term = _Term(SmallProgram(name, tuple(part.program for part in parts)), values)
                    if new(operation.gives, term):
                        yield operation.gives, term


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Ways to write a number as an ordered sum of so many numbers from 1 on."""
    if parts == 0:
        if total == 0:
            yield ()
        return
    for first in range(1, total - parts + 2):
        for rest in _compositions(total - first, parts - 1):
            yield first, *rest


def _values(function: Any, parts: Sequence[_Term], examples: int, longest: int) -> tuple:
    found = []
    for place in range(examples):
        arguments = [part.values[place] for part in parts]
        value = None
        if None not in arguments:
            try:
                value = function(*arguments)
            except (IndexError, TypeError, ValueError):
                value = None
        found.append(None if isinstance(value, tuple) and len(value) > longest else value)
    return tuple(found)


def _recursive(
    dsl: DSL,
    examples: Sequence[tuple],
    arity: int,
    max_size: int,
    budget: _Budget,
    best: tuple[int, SmallProgram | None],
) -> tuple[int, SmallProgram | None]:
    """The best of what was found and of recursions over one argument, the smaller first."""
    grid = list(itertools.product(_PROBES, repeat=arity + 1))
    names = [*(f"x{place}" for place in range(arity)), "r"]
    known = [_Term(SmallProgram(name), tuple(point[place] for point in grid)) for place, name in enumerate(names)]
    until = budget.until - time.monotonic()

    def terms(leaves: list[_Term], largest: int) -> list[SmallProgram]:
        grown = _grown(dsl.operations, leaves, len(grid), largest, _Budget(budget.left, until), 0, dsl.value)
        return [term.program for kind, term in grown if kind == dsl.value]

    steps, bases = terms(known, min(5, max_size - 2)), terms(known[:-1], 3)
    candidates = sorted(
        (
            SmallProgram(f"rec{place}", (base, step))
            for place in range(arity)
            for base in bases
            for step in steps
            if 1 + base.size + step.size <= max_size and _mentions(step, "r") and not _mentions(base, f"x{place}")
        ),
        key=lambda program: program.size,
    )
    for program in candidates:
        if budget.spent():
            break
        function, wrong = dsl.compile(program), 0
        for inputs, output in examples:
            value = function(*inputs)
            wrong += value is MISSING or value != output
            if len(examples) - wrong <= best[0]:
                break
        else:
            best = len(examples) - wrong, program
            if not wrong:
                break
    return best


def _mentions(program: SmallProgram, name: str) -> bool:
    return program.name == name or any(_mentions(part, name) for part in program.parts)
