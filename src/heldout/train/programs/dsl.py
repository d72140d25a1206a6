"""Core: Small programs as trees, of two languages: natural numbers, and sequences of symbols.

Two things are no value: ``EMPTY`` (there is nothing, as behind a bracket) and ``MISSING`` (there should be something,
and no program gave it). Source: arXiv:2210.01603, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from heldout.errors import check_at_least, check_fields, check_nonempty, checked, short

Value = Hashable


class NoValue(Enum):
    """What stands where no value is; each equals itself alone, also when it was copied."""

    EMPTY = "EMPTY"
    MISSING = "MISSING"

    def __repr__(self) -> str:
        return self.value


EMPTY = NoValue.EMPTY
"""Nothing, on purpose: a symbol without a meaning of its own. It is no argument."""

MISSING = NoValue.MISSING
"""A failure: no program, another number of arguments than it takes, or an error in it."""


class Operation(NamedTuple):
    """A function of a language, with the types of what it takes and gives.

    Attributes:
        takes: types of its arguments, by name.
        gives: type of its value.
        function: of values; None in place of a value, or an IndexError, TypeError or ValueError, is a failure.

    Example:
        >>> language = DSL({"double": Operation(takes=("int",), gives="int", function=lambda x: 2 * x)}, "int")
        >>> language.compile(SmallProgram("double", (SmallProgram("x0"),)))(4)
        8
    """

    takes: tuple[str, ...]
    gives: str
    function: Callable[..., Any]


@dataclass(frozen=True)
class SmallProgram:
    """A program: an operation, or an argument ``x0``, ``x1``, ..., with the programs that it takes.

    ``rec0``, ``rec1``, ... recur over that argument: ``rec0(base, step)`` is ``base`` where it is 0, and otherwise
    ``step``, in which the argument is one less and ``r`` the value there.

    Args:
        name: of the operation or argument.
        parts: what it takes.

    Attributes:
        size: how many names it has.

    Example:
        >>> program = SmallProgram("concat", (SmallProgram("x0"), SmallProgram("x0")))
        >>> str(program), program.size
        ('concat(x0, x0)', 3)
    """

    name: str
    parts: tuple[SmallProgram, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def size(self) -> int:
        return 1 + sum(part.size for part in self.parts)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.parts))})" if self.parts else self.name


@dataclass(frozen=True)
class DSL:
    """A small language of typed operations; see ``IntDSL`` and ``ListDSL``.

    Args:
        operations: by name; those that take nothing are constants.
        value: type of arguments and answers, one of those that the operations name.
        recursion: whether programs may recur over a natural number.
        limit: values above it (numbers) or longer than it (sequences) are failures.

    Raises:
        ValueError: no operations, or a limit below 1.

    Example:
        >>> language = DSL({"one": Operation((), "int", lambda: 1)}, "int")
        >>> language.compile(SmallProgram("one"))()
        1
    """

    operations: Mapping[str, Operation]
    value: str
    recursion: bool = False
    limit: int = 1000

    def __post_init__(self) -> None:
        check_fields(self)
        check_nonempty(operations=self.operations)
        check_at_least(1, limit=self.limit)
        object.__setattr__(self, "operations", dict(self.operations))

    def accepts(self, value: Any) -> bool:
        """Returns whether something is a value of this language: a natural number, or a tuple of symbols."""
        if self.value == "int":
            return isinstance(value, int) and not isinstance(value, bool) and value >= 0
        return isinstance(value, tuple)

    def check(self, **named: Any) -> None:
        """Raises TypeError unless each argument is a value of this language."""
        wanted = "a number of at least 0" if self.value == "int" else "a tuple of symbols"
        for name, value in named.items():
            if not self.accepts(value):
                raise TypeError(f"{name} must be {wanted} in this language, got {short(value)}")

    def within(self, value: Any) -> bool:
        """Returns whether a value is no larger, or no longer, than the limit."""
        if isinstance(value, tuple):
            return len(value) <= self.limit
        return not isinstance(value, int) or value <= self.limit

    def extended(self, name: str, program: SmallProgram, arity: int) -> DSL:
        """Returns the language with a program as a further operation.

        Raises:
            ValueError: the name is taken, or the program has unknown names.
        """
        if name in self.operations:
            raise ValueError(f"name must be a new one, got {name!r}")
        known = _Kept(self.compile(program))
        operation = Operation((self.value,) * arity, self.value, known)
        return DSL({**self.operations, name: operation}, self.value, self.recursion, self.limit)

    def without(self, name: str) -> DSL:
        """Returns the language without an operation; the same where it has none of that name."""
        if name not in self.operations:
            return self
        kept = {each: operation for each, operation in self.operations.items() if each != name}
        return DSL(kept, self.value, self.recursion, self.limit)

    @checked
    def compile(self, program: SmallProgram) -> Callable[..., Any]:
        """Returns the function of a program: of values, to a value or ``MISSING``.

        Raises:
            ValueError: a name that is no operation and no argument.
        """
        inner = self._inner(program)

        def call(*arguments: Value) -> Any:
            try:
                value = inner(arguments, None)
            except (IndexError, TypeError, ValueError, RecursionError):
                return MISSING
            return MISSING if value is None or not self.within(value) else value

        return call

    def _inner(self, program: SmallProgram) -> Callable[[tuple, Any], Any]:
        name, parts = program.name, [self._inner(part) for part in program.parts]
        if name == "r":
            return lambda arguments, before: before
        if name in self.operations:
            operation = self.operations[name]
            if len(parts) != len(operation.takes):
                raise ValueError(f"program must give {name} {len(operation.takes)} parts, got {program}")
            return _applied(operation.function, parts)
        if name[:1] == "x" and name[1:].isdigit() and not parts:
            place = int(name[1:])
            return lambda arguments, before: arguments[place]
        if name[:3] == "rec" and name[3:].isdigit() and len(parts) == 2 and self.recursion:
            return self._recursion(int(name[3:]), *parts)
        raise ValueError(f"program must be of operations and arguments of the language, got {name!r}")

    def _recursion(self, place: int, base: Callable, step: Callable) -> Callable:
        def recur(arguments: tuple, before: Any) -> Any:
            changed = list(arguments)
            changed[place] = 0
            value = base(tuple(changed), before)
            for smaller in range(arguments[place]):
                if value is None or value > self.limit:
                    return None
                changed[place] = smaller
                value = step(tuple(changed), value)
            return value

        return recur


class _Kept:
    """A function that remembers its values."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.values: dict[tuple, Any] = {}

    def __call__(self, *arguments: Any) -> Any:
        if arguments not in self.values:
            value = self.function(*arguments)
            self.values[arguments] = None if value is MISSING else value
        return self.values[arguments]


def _applied(function: Callable, parts: list[Callable]) -> Callable[[tuple, Any], Any]:
    """The function of the parts' values; None where one of them failed."""

    def apply(arguments: tuple, before: Any) -> Any:
        values = [part(arguments, before) for part in parts]
        return None if None in values else function(*values)

    return apply


@checked
def IntDSL(*, limit: int = 1000) -> DSL:  # noqa: N802 (it stands for a language, as a class would)
    """Returns the language of natural numbers: 0, successor, predecessor (that of 0 is 0), equality, if, recursion.

    Args:
        limit: largest value; beyond it a program fails.

    Raises:
        ValueError: a limit below 1.

    Source: arXiv:2210.01603, section 3; deviation: "if" and the fixpoint are joined to recursion over an argument.

    Example:
        >>> x0, x1, r = (SmallProgram(name) for name in ("x0", "x1", "r"))
        >>> plus = SmallProgram("rec0", (x1, SmallProgram("succ", (r,))))
        >>> str(plus), IntDSL().compile(plus)(3, 4)
        ('rec0(x1, succ(r))', 7)
    """
    return DSL(
        {
            "zero": Operation((), "int", lambda: 0),
            "succ": Operation(("int",), "int", lambda x: x + 1),
            "pred": Operation(("int",), "int", lambda x: max(0, x - 1)),
            "equal": Operation(("int", "int"), "bool", lambda x, y: x == y),
            "if": Operation(("bool", "int", "int"), "int", lambda test, x, y: x if test else y),
        },
        "int",
        recursion=True,
        limit=limit,
    )


@checked
def ListDSL(constants: Sequence, *, limit: int = 100) -> DSL:  # noqa: N802
    """Returns the language of sequences of symbols: nil, constants, cons, car, cdr, concat.

    Args:
        constants: symbols that a program may write; hashable, with different texts.
        limit: longest value; beyond it a program fails.

    Raises:
        ValueError: no constants, two with the same text, or a limit below 1.

    Source: arXiv:2210.01603, section 3; deviation: "concat" is given, and there is no "if" and no fixpoint.

    Example:
        >>> language = ListDSL(["LEFT", "JUMP"])
        >>> left = SmallProgram("cons", (SmallProgram("'LEFT'"), SmallProgram("x0")))
        >>> language.compile(left)(("JUMP",))
        ('LEFT', 'JUMP')
    """
    check_nonempty(constants=constants)
    if len({repr(each) for each in constants}) < len(constants):
        raise ValueError("constants must have different texts")
    written = {repr(each): Operation((), "symbol", lambda each=each: each) for each in constants}  # type: ignore[misc]
    return DSL(
        {
            **written,
            "nil": Operation((), "list", lambda: ()),
            "cons": Operation(("symbol", "list"), "list", lambda first, rest: (first, *rest)),
            "car": Operation(("list",), "symbol", lambda x: x[0]),
            "cdr": Operation(("list",), "list", lambda x: x[1:]),
            "concat": Operation(("list", "list"), "list", lambda x, y: x + y),
        },
        "list",
        limit=limit,
    )
