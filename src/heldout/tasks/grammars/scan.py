"""Core: SCAN: commands such as "jump around left twice and walk", and the actions that they ask for.

Source: arXiv:1711.00350 (Lake and Baroni), appendix: the grammar of 20,910 commands and its interpretation.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from heldout.data import SequencePair, as_tokens
from heldout.errors import check_at_least, check_fields, check_nonempty, checked
from heldout.tasks.grammars.draws import lazily_shuffled

SCAN_PRIMITIVES = MappingProxyType({"walk": "I_WALK", "look": "I_LOOK", "run": "I_RUN", "jump": "I_JUMP"})
"""The four actions of SCAN that have a word of their own, with what they are in a target."""

_TURNS = {"left": "I_TURN_LEFT", "right": "I_TURN_RIGHT"}
_MANNERS = ("opposite", "around")
_REPEATS = {"twice": 2, "thrice": 3}
_CONJUNCTIONS = ("and", "after")
RESERVED = frozenset({"turn", *_TURNS, *_MANNERS, *_REPEATS, *_CONJUNCTIONS})


@dataclass(frozen=True)
class ScanGrammar:
    """Commands with one or two clauses, each of an action, perhaps a direction, and perhaps a number of repetitions.

    command := clause [(and | after) clause];  clause := phrase [twice | thrice];
    phrase := primitive [[manner] direction] | turn [manner] direction.

    Args:
        primitives: word -> action; as many as you like.
        manners: of "opposite" (turn twice, then act) and "around" (turn and act, four times).
        turn: whether "turn left" is a phrase.

    Attributes:
        clauses: all of them with their targets; made at first use.

    Raises:
        ValueError: no primitives, a word with spaces or of the grammar's own, or an unknown manner.

    Source: arXiv:1711.00350.

    Example:
        >>> grammar = ScanGrammar()
        >>> len(grammar), " ".join(grammar.interpret("jump opposite left after walk twice"))
        (20910, 'I_WALK I_WALK I_TURN_LEFT I_TURN_LEFT I_JUMP')
        >>> source, target = grammar.sample(1, seed=3)[0]
        >>> grammar.interpret(source) == target
        True
    """

    primitives: Mapping[str, str] = field(default_factory=lambda: SCAN_PRIMITIVES)
    manners: Sequence[str] = _MANNERS
    turn: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_nonempty(primitives=self.primitives)
        for word in self.primitives:
            if word in RESERVED or word != "".join(word.split()) or not word:
                raise ValueError(f"primitives must be single words other than the grammar's own, got {word!r}")
        if unknown := [manner for manner in self.manners if manner not in _MANNERS]:
            raise ValueError(f"manners must be of {', '.join(_MANNERS)}, got {unknown[0]!r}")

    @cached_property
    def clauses(self) -> list[SequencePair]:
        phrases: list[SequencePair] = [((word,), (action,)) for word, action in self.primitives.items()]
        acting: list[SequencePair] = list(phrases)
        if self.turn:
            acting.append((("turn",), ()))
        for word, action in acting:
            for direction, turned in _TURNS.items():
                phrases.append(((*word, direction), (turned, *action)))
                if "opposite" in self.manners:
                    phrases.append(((*word, "opposite", direction), (turned, turned, *action)))
                if "around" in self.manners:
                    phrases.append(((*word, "around", direction), (turned, *action) * 4))
        found: list[SequencePair] = list(phrases)
        for repeat, times in _REPEATS.items():
            found += [((*source, repeat), target * times) for source, target in phrases]
        return found

    def __len__(self) -> int:
        """How many commands there are."""
        clauses = len(self.clauses)
        return clauses + len(_CONJUNCTIONS) * clauses**2

    def pairs(self) -> Iterator[SequencePair]:
        """Yields all commands with their targets, those of one clause first; 20,910 take some 20 ms."""
        yield from self.clauses
        for source, target in self.clauses:
            before = (*source, "and")
            for other, after in self.clauses:
                yield (*before, *other), target + after
        for source, target in self.clauses:
            before = (*source, "after")
            for other, after in self.clauses:
                yield (*before, *other), after + target

    @checked
    def sample(
        self, n: int, *, seed: int = 0, keep: Callable[[tuple[str, ...]], Any] | None = None
    ) -> list[SequencePair]:
        """Returns n different commands with their targets, each set of n equally likely.

        Costs nothing for the commands that are not drawn.

        Args:
            n: at least 1.
            seed: of the draw.
            keep: what source tokens must satisfy; None keeps all. Commands are drawn until n satisfy it.

        Raises:
            ValueError: the grammar has fewer commands that satisfy it.
        """
        check_at_least(1, n=n)
        check_at_least(0, seed=seed)
        found: list[SequencePair] = []
        for number in lazily_shuffled(len(self), random.Random(seed)):
            pair = self._numbered(number)
            if keep is None or keep(pair[0]):
                found.append(pair)
            if len(found) == n:
                return found
        raise ValueError(f"n must be at most {len(found)}, the commands that satisfy keep, got {n}")

    def interpret(self, source: str | Sequence[str]) -> tuple[str, ...]:
        """Returns the actions that a command asks for, read from its words alone.

        Raises:
            ValueError: it is no command of this grammar.
        """
        words = as_tokens(source, "source")
        for conjunction in _CONJUNCTIONS:
            if conjunction in words:
                at = words.index(conjunction)
                first, second = self._clause(words[:at]), self._clause(words[at + 1 :])
                return first + second if conjunction == "and" else second + first
        return self._clause(words)

    def _clause(self, words: tuple[str, ...]) -> tuple[str, ...]:
        if words and words[-1] in _REPEATS:
            return self._phrase(words[:-1]) * _REPEATS[words[-1]]
        return self._phrase(words)

    def _phrase(self, words: tuple[str, ...]) -> tuple[str, ...]:
        if len(words) == 1 and words[0] in self.primitives:
            return (self.primitives[words[0]],)
        acts = words[:1] == ("turn",) and self.turn
        known = acts or (words[:1] and words[0] in self.primitives)
        if not known or len(words) not in (2, 3) or words[-1] not in _TURNS or words[1:-1] not in [(), *self._manners]:
            raise ValueError(f"source must be a command of this grammar, got {' '.join(words)!r}")
        act = () if acts else (self.primitives[words[0]],)
        turned = (_TURNS[words[-1]],)
        if words[1] == "around":
            return 4 * (turned + act)
        return turned * (2 if words[1] == "opposite" else 1) + act

    @property
    def _manners(self) -> list[tuple[str, ...]]:
        return [(manner,) for manner in self.manners]

    def _numbered(self, number: int) -> SequencePair:
        """The command of a number, in the order of ``pairs``."""
        clauses = len(self.clauses)
        if number < clauses:
            return self.clauses[number]
        conjunction, rest = divmod(number - clauses, clauses**2)
        first, second = divmod(rest, clauses)
        (source, before), (other, after) = self.clauses[first], self.clauses[second]
        joined = (*source, _CONJUNCTIONS[conjunction], *other)
        return joined, (before + after if conjunction == 0 else after + before)


@checked
def mini_scan(primitives: Mapping[str, str] = SCAN_PRIMITIVES, *, manners: Sequence[str] = ()) -> ScanGrammar:
    """Returns SCAN without "turn", and without manners unless they are asked for: targets of 12 actions at most.

    command := clause [(and | after) clause];  clause := primitive [left | right] [twice | thrice].

    Args:
        primitives: word -> action.
        manners: of "opposite" and "around", those that there are.

    Example:
        >>> grammar = mini_scan()
        >>> len(grammar), max(len(target) for _, target in grammar.pairs())
        (2628, 12)
    """
    return ScanGrammar(primitives, manners=manners, turn=False)
