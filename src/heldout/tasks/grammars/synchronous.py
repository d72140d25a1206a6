"""Core: Grammars that write two languages at once: a source and its target, from rules of one's own.

Source: Aho and Ullman (1969), syntax-directed translation; as semantic parsing: Wong and Mooney (NAACL 2006).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from heldout.data import SequencePair, as_tokens
from heldout.errors import check_at_least, check_fields, check_nonempty, checked

Tokens = tuple[str, ...]

_TRIES = 20  # draws for each pair that is asked for


class _Rule(NamedTuple):
    source: Tokens
    target: Tokens

    @property
    def symbols(self) -> list[str]:
        return [token for token in self.source if _is_symbol(token)]


@dataclass(frozen=True)
class SynchronousGrammar:
    """Rules ``symbol -> (source, target)``, whose symbols are replaced by the same rule in both sides.

    A symbol is written ``<town>`` in rules. Each symbol of a source occurs once in it, and any number of times in its
    target.

    Args:
        rules: symbol, without brackets -> its rules, each a source and a target as texts or token sequences.
        start: what sentences are written from.
        depth: the most rules within each other.

    Raises:
        ValueError: no rules, a symbol without rules, an empty source, a symbol that occurs twice in a source or that
            only the target has, or rules that never end.

    Example:
        >>> rules = {"question": [("how big is <town>", "size ( <town> )")], "town": [("Aldby", "aldby")]}
        >>> grammar = SynchronousGrammar(rules)
        >>> grammar.sample(1)
        [(('how', 'big', 'is', 'Aldby'), ('size', '(', 'aldby', ')'))]
        >>> grammar.interpret("how big is Aldby")
        ('size', '(', 'aldby', ')')
    """

    rules: Mapping[str, Sequence[tuple[str | Sequence[str], str | Sequence[str]]]]
    start: str = "question"
    depth: int = 6

    def __post_init__(self) -> None:
        check_fields(self)
        check_nonempty(rules=self.rules)
        check_at_least(1, depth=self.depth)
        if self.start not in self.rules:
            raise ValueError(f"start must be a symbol of the rules, got {self.start!r}")
        for symbol, found in self._rules.items():
            for rule in found:
                names = rule.symbols
                if not rule.source or len(set(names)) < len(names):
                    raise ValueError(f"rules of {symbol} must have sources in which each symbol occurs once")
                if not {token for token in rule.target if _is_symbol(token)} <= set(names):
                    raise ValueError(f"rules of {symbol} must have no symbol in a target that the source lacks")
                if unknown := [name for name in names if not self.rules.get(name[1:-1])]:
                    raise ValueError(f"rules must have rules for {unknown[0]}")
        if self.start not in self._heights or self._heights[self.start] > self.depth:
            raise ValueError(f"rules must end within a depth of {self.depth} from {self.start}")

    @checked
    def sample(self, n: int, *, seed: int = 0) -> list[SequencePair]:
        """Returns n different sources with their targets; the rules of a symbol are equally likely.

        Raises:
            ValueError: so many different sources are not found in 20 draws for each, where rules are few.
        """
        check_at_least(1, n=n)
        check_at_least(0, seed=seed)
        rng = random.Random(seed)
        found: dict[Tokens, Tokens] = {}
        for _ in range(_TRIES * n + 1000):
            source, target = self._drawn(self.start, self.depth, rng)
            found.setdefault(source, target)
            if len(found) == n:
                return list(found.items())
        raise ValueError(f"n must be at most about {len(found)} for so few rules, got {n}")

    def interpret(self, source: str | Sequence[str]) -> tuple[str, ...]:
        """Returns the target of a source, read from its words alone; of several readings that of the first rules.

        Raises:
            ValueError: it is no sentence of this grammar.
        """
        words = as_tokens(source, "source")
        found = self._read(f"<{self.start}>", words, self.depth)
        if found is None:
            raise ValueError(f"source must be a sentence of this grammar, got {' '.join(words)!r}")
        return found

    @cached_property
    def _rules(self) -> dict[str, list[_Rule]]:
        return {
            symbol: [_Rule(as_tokens(source, "rules"), as_tokens(target, "rules")) for source, target in given]
            for symbol, given in self.rules.items()
        }

    @cached_property
    def _heights(self) -> dict[str, int]:
        """The fewest rules within each other that a symbol ends with; without those that never end."""
        found: dict[str, int] = {}
        while True:
            grown = {
                symbol: min(heights)
                for symbol, rules in self._rules.items()
                if (heights := [height for rule in rules if (height := _height(rule, found)) is not None])
            }
            if grown == found:
                return found
            found = grown

    def _drawn(self, symbol: str, depth: int, rng: random.Random) -> SequencePair:
        fitting = [
            rule
            for rule in self._rules[symbol]
            if (height := _height(rule, self._heights)) is not None and height <= depth
        ]
        rule = rng.choice(fitting)
        inner = {name: self._drawn(name[1:-1], depth - 1, rng) for name in rule.symbols}
        return _replaced(rule.source, inner, 0), _replaced(rule.target, inner, 1)

    def _read(self, symbol: str, words: Tokens, depth: int) -> Tokens | None:
        """The target of words that a symbol writes."""
        if depth == 0:
            return None
        for rule in self._rules[symbol[1:-1]]:
            found = self._matched(rule.source, words, depth)
            if found is not None:
                return _replaced(rule.target, {name: (target, target) for name, target in found.items()}, 1)
        return None

    def _matched(self, pattern: Tokens, words: Tokens, depth: int) -> dict[str, Tokens] | None:
        """The targets of a pattern's symbols, where it matches the words."""
        if not pattern or len(pattern) > len(words):
            return {} if not pattern and not words else None
        first, rest = pattern[0], pattern[1:]
        if not _is_symbol(first):
            return self._matched(rest, words[1:], depth) if words[0] == first else None
        for size in range(1, len(words) - len(rest) + 1):
            others = self._matched(rest, words[size:], depth)
            if others is not None:
                read = self._read(first, words[:size], depth - 1)
                if read is not None:
                    return {**others, first: read}
        return None


def _is_symbol(token: str) -> bool:
    return len(token) > 2 and token[0] == "<" and token[-1] == ">"


def _height(rule: _Rule, heights: Mapping[str, int]) -> int | None:
    inner = [heights.get(name[1:-1]) for name in rule.symbols]
    known = [height for height in inner if height is not None]
    return None if len(known) < len(inner) else 1 + max(known, default=0)


def _replaced(pattern: Tokens, inner: Mapping[str, SequencePair], side: int) -> Tokens:
    return tuple(part for token in pattern for part in (inner[token][side] if token in inner else (token,)))
