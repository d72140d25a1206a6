"""Core: ProgramLibrary: what each symbol means, learned from arguments and values that were seen together.

Source: arXiv:2210.01603, section 3 and the official code (semantics).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from heldout.errors import check_at_least, check_positive, checked, short
from heldout.train.programs.dsl import DSL, EMPTY, MISSING, NoValue, SmallProgram
from heldout.train.programs.enumeration import draw_program, synthesize

USED, SOLVED = 0.5, 0.95  # likelihoods above which a program is used, and from which on none is looked for
_FORGOTTEN = 1e-3  # counts below it are dropped


class Observation(NamedTuple):
    """What a symbol made of its arguments once.

    Attributes:
        symbol: its number.
        arguments: values, ``EMPTY`` ones left out.
        value: what it gave.

    Example:
        >>> from heldout.train import ListDSL
        >>> library = ProgramLibrary(ListDSL(["L", "J"]), [1])
        >>> library.observe([Observation(symbol=0, arguments=(("J",),), value=("L", "J"))])
        >>> library.evaluate(0, [("J",)])  # as it was seen: there is no program yet
        ('L', 'J')
    """

    symbol: int
    arguments: tuple[Any, ...]
    value: Any


class LearnedProgram(NamedTuple):
    """What is known of a symbol.

    Attributes:
        program: None where there is none.
        likelihood: share of its confident examples that the program reproduces, less where these are few.
        arity: how many arguments it takes; None where that is not known yet.
        examples: number of confident ones.

    Example:
        >>> from heldout.train import ListDSL
        >>> library = ProgramLibrary(ListDSL(["L", "J"]), [1])
        >>> library.give(0, SmallProgram("x0"), arity=1)
        >>> found = library.learned(0)
        >>> str(found.program), found.likelihood, found.examples
        ('x0', 1.0, 0)
    """

    program: SmallProgram | None
    likelihood: float
    arity: int | None
    examples: int


@dataclass
class _Symbol:
    arity: int | None
    program: SmallProgram | None = None
    function: Any = None
    likelihood: float = 0.0
    seen: dict[tuple, dict[Any, float]] = field(default_factory=dict)  # arguments -> value -> count
    children: dict[int, float] = field(default_factory=dict)  # number of arguments -> count
    examples: list[tuple[tuple, Any]] = field(default_factory=list)
    inverse: dict[tuple, list[tuple[Any, Any]]] = field(default_factory=dict)
    kept: dict[tuple, Any] = field(default_factory=dict)


class ProgramLibrary:
    """A program for each symbol, found by search, and until then what was seen.

    A symbol whose program has a likelihood above 0.5 is computed; another one gives a value that it was seen to give
    for the same arguments, drawn by counts; else ``MISSING``. Counts halve with each call of ``observe``.

    Args:
        dsl: of programs and values.
        arities: how many arguments each symbol takes, by its number; a list, a mapping, or None, so that the most
            frequent number of arguments is taken.
        wanted: examples for each argument; with fewer confident ones a likelihood is divided by
            ``wanted * arity / examples``.
        explore: whether a symbol of which nothing is known gives the value of a random program, in place of
            ``MISSING``.
        invent: whether a program with a recursion that is used becomes an operation for other programs.
        seed: of all draws.

    Attributes:
        dsl: with what was invented.

    Raises:
        ValueError: a negative arity, or ``wanted`` not above 0.

    Source: arXiv:2210.01603; the official code (``wanted`` of 10).

    Example:
        >>> from heldout.train import ListDSL
        >>> library = ProgramLibrary(ListDSL(["L", "J", "W"]), [1], wanted=1)
        >>> library.observe([Observation(0, (("J",),), ("L", "J")), Observation(0, (("W",),), ("L", "W"))])
        >>> library.synthesize(), str(library.learned(0).program), library.evaluate(0, [("W", "W")])
        ([0], "cons('L', x0)", ('L', 'W', 'W'))
    """

    @checked
    def __init__(
        self,
        dsl: DSL,
        arities: Sequence[int] | Mapping[int, int] | None = None,
        *,
        wanted: float = 10.0,
        explore: bool = False,
        invent: bool = True,
        seed: int = 0,
    ) -> None:
        check_positive(wanted=wanted)
        check_at_least(0, seed=seed)
        given = None if arities is None else dict(arities if isinstance(arities, Mapping) else enumerate(arities))
        if given is not None:
            check_at_least(0, arities=list(given.values()))
        self.dsl, self.wanted, self.explore, self.invent = dsl, wanted, explore, invent
        self.arities = given
        self.rng = random.Random(seed)
        self._symbols: dict[int, _Symbol] = {symbol: _Symbol(arity) for symbol, arity in (given or {}).items()}

    def _of(self, symbol: int) -> _Symbol:
        if symbol not in self._symbols:
            if self.arities is not None or not isinstance(symbol, int) or symbol < 0:
                raise ValueError(f"symbol must be one with an arity, got {short(symbol)}")
            self._symbols[symbol] = _Symbol(None)
        return self._symbols[symbol]

    @checked
    def evaluate(self, symbol: int, arguments: Sequence[Any]) -> Any:
        """Returns the value of a symbol for arguments: a value, ``EMPTY``, or ``MISSING`` where it fails.

        Args:
            symbol: its number.
            arguments: values in order; ``EMPTY`` ones are left out, ``MISSING`` ones make it fail.

        Raises:
            ValueError: a symbol without arity, where arities are given.
            TypeError: an argument that is no value of the language.
        """
        for value in arguments:
            if not isinstance(value, NoValue):
                self.dsl.check(arguments=value)
        return self.value_of(symbol, arguments)

    def value_of(self, symbol: int, arguments: Sequence[Any]) -> Any:
        """Returns what ``evaluate`` does, without looking at what the arguments are: for inner loops."""
        known = self._of(symbol)
        if MISSING in arguments:
            return MISSING
        inputs = tuple(value for value in arguments if value is not EMPTY)
        if known.likelihood > USED:
            if len(inputs) != known.arity:
                return MISSING
            if inputs not in known.kept:
                known.kept[inputs] = known.function(*inputs)
            return known.kept[inputs]
        if inputs in known.seen:
            values = known.seen[inputs]
            return self.rng.choices(list(values), list(values.values()))[0]
        if self.explore and known.arity in (None, len(inputs)):
            return self.dsl.compile(draw_program(self.dsl, len(inputs), self.rng))(*inputs)
        return MISSING

    @checked
    def inverse(self, symbol: int, position: int, arguments: Sequence[Any], targets: Sequence[Any]) -> list[Any]:
        """Returns values of one argument with which a symbol was seen to give one of the targets.

        What it gave most often counts. Nothing, or the empty sequence, is added where the symbol gives a target then.

        Args:
            symbol: its number.
            position: of the argument among ``arguments``, in which no ``EMPTY`` stands elsewhere.
            arguments: the others are held fixed.
            targets: values that are wanted.

        Raises:
            ValueError: a position that the arguments do not have, or a symbol without arity.
        """
        if not 0 <= position < len(arguments):
            raise ValueError(f"position must be one of {len(arguments)} arguments, got {position}")
        return self.inverse_of(symbol, position, tuple(arguments), targets)

    def inverse_of(self, symbol: int, position: int, arguments: tuple, targets: Sequence[Any]) -> list[Any]:
        """Returns what ``inverse`` does, unchecked: for inner loops."""
        others = arguments[:position] + arguments[position + 1 :]
        known = self._of(symbol)
        found = [value for value, gave in known.inverse.get((position, others), ()) if gave in targets]
        empty: Any = EMPTY if self.dsl.value == "int" else ()
        without = others if empty is EMPTY else (*arguments[:position], (), *arguments[position + 1 :])
        if empty not in found and self.value_of(symbol, without) in targets:
            found.append(empty)
        return found

    @checked
    def observe(self, observations: Iterable[Observation]) -> None:
        """Halves all counts, adds one for each observation, and judges the programs by what is confident then.

        An example is confident if its count is 1 at least and more than half of all of the same arguments.

        Raises:
            ValueError: a symbol without arity.
            TypeError: a value that is none of the language.
        """
        for known in self._symbols.values():
            for values in known.seen.values():
                for value in values:
                    values[value] *= 0.5
            for number in known.children:
                known.children[number] *= 0.5
        for symbol, arguments, value in observations:
            for each in (*arguments, value):
                if each is not EMPTY:
                    self.dsl.check(observations=each)
            known = self._of(symbol)
            values = known.seen.setdefault(tuple(arguments), {})
            values[value] = values.get(value, 0.0) + 1
            known.children[len(arguments)] = known.children.get(len(arguments), 0.0) + 1
        for known in self._symbols.values():
            self._judge(known)

    def _judge(self, known: _Symbol) -> None:
        if self.arities is None and known.children:
            arity = max(known.children, key=lambda number: (known.children[number], -number))
            if arity != known.arity:
                known.arity, known.program, known.function, known.kept = arity, None, None, {}
        known.examples, inverse = [], defaultdict(list)
        for arguments in list(known.seen):
            values = {value: count for value, count in known.seen[arguments].items() if count >= _FORGOTTEN}
            if not values:
                del known.seen[arguments]
                continue
            known.seen[arguments] = values
            value = max(values, key=values.__getitem__)
            if len(arguments) == known.arity and values[value] >= 1 and values[value] > 0.5 * sum(values.values()):
                known.examples.append((arguments, value))
            for place, argument in enumerate(arguments):
                inverse[place, arguments[:place] + arguments[place + 1 :]].append((argument, value))
        known.inverse = dict(inverse)
        known.likelihood = self._likelihood(known, known.function)

    def _likelihood(self, known: _Symbol, function: Any) -> float:
        if function is None or not known.examples:
            return 0.0
        right = sum(function(*arguments) == value for arguments, value in known.examples)
        few = max(1.0, self.wanted * (known.arity or 0) / len(known.examples))
        return right / len(known.examples) / few

    @checked
    def synthesize(
        self, *, max_size: int = 9, max_terms: int = 20_000, timeout: float = 10.0, max_examples: int = 100
    ) -> list[int]:
        """Looks for a better program for each symbol that is not solved; returns the symbols that have a new one.

        A program is taken if its likelihood is higher, or equal and it is shorter. Of two symbols with one program, the
        one with fewer examples is forgotten.

        Args:
            max_size: of a program; see ``synthesize``.
            max_terms: tried for a symbol.
            timeout: seconds for a symbol.
            max_examples: of a symbol that are looked at: those that its program gets wrong, then others, drawn.

        Raises:
            ValueError: numbers out of range.
        """
        check_at_least(1, max_examples=max_examples)
        check_at_least(1, max_size=max_size, max_terms=max_terms)
        check_positive(timeout=timeout)
        changed = []
        for symbol in sorted(self._symbols):
            known = self._symbols[symbol]
            examples = [each for each in known.examples if each[1] is not EMPTY]
            if known.arity is None or not examples or known.likelihood >= SOLVED:
                continue
            if known.function is not None and all(known.function(*inputs) == value for inputs, value in examples):
                continue  # as good as it can be until more is seen
            found = synthesize(
                self.dsl.without(f"f{symbol}"), self._chosen(known, examples, max_examples), known.arity,
                max_size=max_size, max_terms=max_terms, timeout=timeout,
            ).program  # fmt: skip
            if found is None or found == known.program:
                continue
            function = self.dsl.compile(found)
            likelihood = self._likelihood(known, function)
            shorter = known.program is None or found.size < known.program.size
            if likelihood > known.likelihood or (likelihood == known.likelihood and shorter):
                known.program, known.function, known.likelihood, known.kept = found, function, likelihood, {}
                changed.append(symbol)
                self._keep(symbol, known)
        self._clear_doubles()
        return [symbol for symbol in changed if self._symbols[symbol].program is not None]

    def _chosen(self, known: _Symbol, examples: list, most: int) -> list:
        if len(examples) <= most:
            return examples
        wrong = [each for each in examples if known.function is None or known.function(*each[0]) != each[1]]
        right = [each for each in examples if each not in wrong]
        if len(wrong) >= most:
            return self.rng.sample(wrong, most)
        return wrong + self.rng.sample(right, most - len(wrong))

    def _keep(self, symbol: int, known: _Symbol) -> None:
        """A recursion that is used becomes an operation of the language, for other programs."""
        recurs = known.program is not None and known.program.name.startswith("rec")
        name = f"f{symbol}"
        if self.invent and recurs and known.likelihood > USED and name not in self.dsl.operations:
            self.dsl = self.dsl.extended(name, known.program, known.arity)  # type: ignore[arg-type]

    def _clear_doubles(self) -> None:
        first: dict[tuple, int] = {}
        for symbol in sorted(self._symbols, key=lambda each: -len(self._symbols[each].examples)):
            known = self._symbols[symbol]
            if known.program is None:
                continue
            if (known.arity, known.program) in first:
                self._symbols[symbol] = _Symbol(None if self.arities is None else known.arity)
            first.setdefault((known.arity, known.program), symbol)

    @checked
    def give(self, symbol: int, program: SmallProgram, arity: int) -> None:
        """Gives a symbol a program that is known, which is used from now on and whose likelihood is 1 until judged.

        Raises:
            ValueError: another arity than the symbol's, or a program that is none of the language.
        """
        check_at_least(0, arity=arity)
        known = self._of(symbol)
        if known.arity not in (None, arity):
            raise ValueError(f"arity must be {known.arity}, as given for the symbol, got {arity}")
        known.arity, known.program, known.function = arity, program, self.dsl.compile(program)
        known.likelihood, known.kept = 1.0, {}

    @checked
    def learned(self, symbol: int) -> LearnedProgram:
        """Returns what is known of a symbol.

        Raises:
            ValueError: a symbol without arity.
        """
        known = self._of(symbol)
        return LearnedProgram(known.program, known.likelihood, known.arity, len(known.examples))

    def likelihood(self, symbol: int) -> float:
        """Returns the likelihood of a symbol's program, 0 without one."""
        return self._of(symbol).likelihood

    def arity(self, symbol: int) -> int | None:
        """Returns how many arguments a symbol takes, None where that is not known."""
        return self._of(symbol).arity

    @checked
    def report(self, names: Sequence[str] | None = None) -> str:
        """Returns a line for each symbol that was seen: its name, program, likelihood and number of examples.

        Args:
            names: of the symbols, by number.
        """
        lines = []
        for symbol in sorted(self._symbols):
            known = self._symbols[symbol]
            name = str(symbol) if names is None or symbol >= len(names) else names[symbol]
            program = "none" if known.program is None else str(known.program)
            lines.append(f"{name}: {program} (likelihood {known.likelihood:.2f}, {len(known.examples)} examples)")
        return "\n".join(lines)
