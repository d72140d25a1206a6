"""Compositions of functions that each problem brings along, so that nothing can be memorised but how to compose.

A problem has a few permutations of some symbols, each with a name, and asks for the result of applying some of them one
after the other. "d K G" is G(K(d)): names stand in the order in which they are applied.

Exemplars carry as much information as the tables do: ``covering_exemplars`` draws worked problems of limited depth
whose steps contain every table entry that a query needs, and ``entries_of`` is what a reader of them can know.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from heldout.errors import check_at_least, check_fields, check_nonempty, checked

SYMBOLS = ("a", "b", "c", "d")
FUNCTION_NAMES = ("F", "G", "H", "J", "K", "L", "M", "P")
FIXED_NAMES = ("Q", "R", "S", "T")
"""Names of functions that are the same in every problem, for a model to know by heart."""

Entry = tuple[str, str, str]


@dataclass(frozen=True)
class ComposeProblem:
    """Functions, and which of them are applied to what.

    Attributes:
        tables: name -> image of each of ``SYMBOLS``, in their order.
        names: functions to apply, in this order.
        start: symbol that they are applied to.

    Example:
        >>> problem = ComposeProblem({"F": ("b", "c", "d", "a"), "G": ("d", "c", "b", "a")}, ("F", "G"), "a")
        >>> problem.text, problem.steps, problem.answer
        ('a F G', [('F', 'a', 'b'), ('G', 'b', 'c')], 'c')
    """

    tables: dict[str, tuple[str, ...]]
    names: tuple[str, ...]
    start: str

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def text(self) -> str:
        """The question: the symbol, then the functions in the order in which they are applied."""
        return " ".join([self.start, *self.names])

    @property
    def steps(self) -> list[Entry]:
        """(function, argument, result) of each step."""
        found, value = [], self.start
        for name in self.names:
            result = self.tables[name][SYMBOLS.index(value)]
            found.append((name, value, result))
            value = result
        return found

    @property
    def answer(self) -> str:
        """The symbol that the last step gives."""
        return self.steps[-1][2]


def fixed_tables() -> dict[str, tuple[str, ...]]:
    """Returns the functions of ``FIXED_NAMES``.

    Example:
        >>> sorted(fixed_tables())
        ['Q', 'R', 'S', 'T']
    """
    rng = random.Random("fixed functions")
    return {name: tuple(rng.sample(SYMBOLS, len(SYMBOLS))) for name in FIXED_NAMES}


@checked
def compose_problem(
    depth: int,
    rng: random.Random,
    *,
    functions: int = 3,
    fixed: int = 0,
    names: Sequence[str] = FUNCTION_NAMES,
    tables: dict[str, tuple[str, ...]] | None = None,
) -> ComposeProblem:
    """Returns a problem of some depth with random functions.

    Args:
        depth: functions that are applied; one may be applied again, but not at once.
        rng: draws everything.
        functions: that the problem has.
        fixed: how many of them are of ``FIXED_NAMES``.
        names: of the others.
        tables: functions to use instead.

    Raises:
        ValueError: depth below 1, or numbers of functions that there are not.

    Example:
        >>> problem = compose_problem(2, random.Random(0))
        >>> problem.text, problem.steps, problem.answer
        ('b J P', [('J', 'b', 'd'), ('P', 'd', 'a')], 'a')
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    if tables is None:
        if not (0 <= fixed <= min(functions, len(FIXED_NAMES)) and 1 <= functions - fixed <= len(names)):
            raise ValueError(f"cannot draw {functions} functions of which {fixed} are fixed")
        known = fixed_tables()
        drawn = rng.sample(list(names), functions - fixed)
        tables = {name: tuple(rng.sample(SYMBOLS, len(SYMBOLS))) for name in drawn}
        tables |= {name: known[name] for name in rng.sample(FIXED_NAMES, fixed)}
    applied: list[str] = []
    for _ in range(depth):
        applied.append(rng.choice([name for name in tables if len(tables) == 1 or [name] != applied[-1:]]))
    return ComposeProblem(tables, tuple(applied), rng.choice(SYMBOLS))


@checked
def covering_exemplars(
    query: ComposeProblem, count: int, rng: random.Random, *, depths: Sequence[int] = (1, 2)
) -> list[ComposeProblem]:
    """Returns ``count`` problems with the query's functions whose steps contain all table entries that it needs.

    Args:
        query: to be answered.
        count: exemplars; those that cover an entry of the query come first in the drawing, then any; in random order.
        rng: draws them.
        depths: that exemplars may have.

    Raises:
        ValueError: if ``count`` exemplars cannot hold the entries.

    Example:
        >>> query = compose_problem(4, random.Random(0))
        >>> set(query.steps) <= entries_of(covering_exemplars(query, 6, random.Random(1)))
        True
    """
    check_nonempty(depths=depths)
    check_at_least(1, count=count)
    needed = list(dict.fromkeys(query.steps))
    rng.shuffle(needed)
    found: list[ComposeProblem] = []
    while needed:
        name, value, _ = needed.pop()
        depth = rng.choice(list(depths))
        names = [name]
        while len(names) < depth:  # another entry may be covered on the way
            names.append(rng.choice([other for other in query.tables if len(query.tables) == 1 or other != names[-1]]))
        found.append(ComposeProblem(query.tables, tuple(names), value))
        covered = set(found[-1].steps)
        needed = [entry for entry in needed if entry not in covered]
    if len(found) > count:
        raise ValueError(f"{count} exemplars cannot hold the entries of a query that needs {len(found)}")
    while len(found) < count:
        found.append(compose_problem(rng.choice(list(depths)), rng, tables=query.tables))
    rng.shuffle(found)
    return found


@checked
def entries_of(exemplars: Sequence[ComposeProblem]) -> set[Entry]:
    """Returns the table entries that the steps of exemplars contain.

    Args:
        exemplars: problems; an entry is (function, argument, result). None give the empty set.

    Example:
        >>> problem = ComposeProblem({"F": ("b", "c", "d", "a")}, ("F", "F"), "a")
        >>> sorted(entries_of([problem, problem]))
        [('F', 'a', 'b'), ('F', 'b', 'c')]
    """
    return {entry for exemplar in exemplars for entry in exemplar.steps}
