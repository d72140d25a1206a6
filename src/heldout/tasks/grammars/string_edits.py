"""Core: PCFG string edits: nested calls such as "append swap_first_last A B C , repeat D", and the strings they make.

Source: arXiv:1908.08351 (Hupkes, Dankers, Mul and Bruni), section 3: PCFG SET.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from heldout.data import SequencePair, as_tokens
from heldout.errors import check_at_least, check_fields, check_nonempty, checked

Letters = tuple[str, ...]

_UNARY: dict[str, Callable[[Letters], Letters]] = {
    "copy": lambda x: x,
    "reverse": lambda x: x[::-1],
    "shift": lambda x: x[1:] + x[:1],
    "echo": lambda x: x + x[-1:],
    "swap_first_last": lambda x: x[-1:] + x[1:-1] + x[:1] if len(x) > 1 else x,
    "repeat": lambda x: x + x,
}
_BINARY: dict[str, Callable[[Letters, Letters], Letters]] = {
    "append": lambda x, y: x + y,
    "prepend": lambda x, y: y + x,
    "remove_first": lambda _x, y: y,
    "remove_second": lambda x, _y: x,
}
EDIT_FUNCTIONS = (*_UNARY, *_BINARY)
"""The ten functions of PCFG SET: six of one string, four of two."""

_TRIES = 20  # draws for each pair that is asked for


@dataclass(frozen=True)
class StringEdits:
    """Function words before their arguments; the two arguments of a binary one are told apart by a comma.

    Of binary functions, the first argument ends at the first comma that belongs to no function within it.

    Args:
        letters: what strings are made of; 20 single letters by default.
        functions: of the ten; all by default.
        max_functions: calls in one source, at least 1.
        max_letters: letters of a written string, which has 1 at least.
        max_output: letters of a target.

    Raises:
        ValueError: no letters, one that is a function or a comma, an unknown function, or a number below 1.

    Source: arXiv:1908.08351, table 1.

    Deviation: the paper draws sources so that their lengths and depths are those of English sentences; here the number
    of calls is uniform.

    Example:
        >>> edits = StringEdits()
        >>> " ".join(edits.interpret("append swap_first_last A B C , repeat D"))
        'C B A D D'
        >>> source, target = edits.sample(1, seed=0)[0]
        >>> edits.interpret(source) == target
        True
    """

    letters: Sequence[str] = tuple("ABCDEFGHIJKLMNOPQRST")
    functions: Sequence[str] = EDIT_FUNCTIONS
    max_functions: int = 4
    max_letters: int = 4
    max_output: int = 24

    def __post_init__(self) -> None:
        check_fields(self)
        check_nonempty(letters=self.letters, functions=self.functions)
        check_at_least(1, max_functions=self.max_functions, max_letters=self.max_letters, max_output=self.max_output)
        if unknown := [name for name in self.functions if name not in EDIT_FUNCTIONS]:
            raise ValueError(f"functions must be of {', '.join(EDIT_FUNCTIONS)}, got {unknown[0]!r}")
        for letter in self.letters:
            if letter in (*EDIT_FUNCTIONS, ",") or letter != "".join(letter.split()) or not letter:
                raise ValueError(f"letters must be single tokens other than functions and the comma, got {letter!r}")

    @checked
    def sample(self, n: int, *, seed: int = 0) -> list[SequencePair]:
        """Returns n different sources with their targets; the numbers of calls are equally likely.

        Raises:
            ValueError: so many different sources are not found in 20 draws for each, where letters are few.
        """
        check_at_least(1, n=n)
        check_at_least(0, seed=seed)
        rng = random.Random(seed)
        found: dict[Letters, Letters] = {}
        for _ in range(_TRIES * n + 1000):
            source, target = self._drawn(rng.randint(1, self.max_functions), rng)
            if len(target) <= self.max_output:
                found.setdefault(source, target)
            if len(found) == n:
                return list(found.items())
        raise ValueError(f"n must be at most about {len(found)} for such short sources, got {n}")

    def interpret(self, source: str | Sequence[str]) -> tuple[str, ...]:
        """Returns the string that a source makes, read from its tokens alone.

        Raises:
            ValueError: a token that is none of this grammar, a missing or superfluous argument.
        """
        tokens = as_tokens(source, "source")
        target, rest = self._read(tokens, tokens)
        if rest:
            raise ValueError(f"source must be one call, got {' '.join(rest)!r} after it")
        return target

    def _drawn(self, calls: int, rng: random.Random) -> SequencePair:
        if calls == 0:
            written = tuple(rng.choice(self.letters) for _ in range(rng.randint(1, self.max_letters)))
            return written, written
        name = rng.choice(self.functions)
        if name in _UNARY:
            source, value = self._drawn(calls - 1, rng)
            return (name, *source), _UNARY[name](value)
        left = rng.randint(0, calls - 1)
        source, value = self._drawn(left, rng)
        other, second = self._drawn(calls - 1 - left, rng)
        return (name, *source, ",", *other), _BINARY[name](value, second)

    def _read(self, tokens: Letters, whole: Letters) -> tuple[Letters, Letters]:
        """What the first call or string of the tokens makes, and the tokens after it."""
        if tokens and tokens[0] in self.functions:
            name = tokens[0]
            first, rest = self._read(tokens[1:], whole)
            if name == "copy":
                return first, rest
            if name == "reverse":
                return tuple(reversed(first)), rest
            if name == "shift":
                return (*first[1:], first[0]), rest
            if name == "echo":
                return (*first, first[-1]), rest
            if name == "repeat":
                return first * 2, rest
            if name == "swap_first_last":
                swapped = list(first)
                swapped[0], swapped[-1] = first[-1], first[0]
                return tuple(swapped), rest
            if not rest or rest[0] != ",":
                raise ValueError(f"source must have a comma and a second string for {name}, got {' '.join(whole)!r}")
            second, rest = self._read(rest[1:], whole)
            chosen = {"append": first + second, "prepend": second + first}
            return chosen.get(name, second if name == "remove_first" else first), rest
        count = next((i for i, token in enumerate(tokens) if token not in self.letters), len(tokens))
        if count == 0:
            raise ValueError(f"source must have letters after each function, got {' '.join(whole)!r}")
        return tokens[:count], tokens[count:]
