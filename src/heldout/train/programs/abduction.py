"""Core: Trees of symbols with values, and the one edit that gives a tree the value that it should have.

Source: arXiv:2210.01603, section 3.3 (deduction-abduction) and the official code.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor

from heldout.errors import check_dimensions, check_has, check_same_length, checked
from heldout.nn import Parse, check_heads
from heldout.train.programs.dsl import EMPTY, MISSING
from heldout.train.programs.library import Observation, ProgramLibrary

LearnedModule = Literal["semantics", "perception", "syntax"]

_SMALL = 1e-7  # probabilities below it count as it


class GroundedTree:
    """A grounded symbol system: symbols, their values, and the arcs between them.

    Args:
        parse: symbols and heads.
        library: of programs, that gives the values.
        scores: ``(n, symbols)``, log-probabilities of the symbols at each position; None where the symbols are given.

    Attributes:
        symbols: of each position.
        heads: position of each symbol's head, -1 for the root.
        children: positions of each symbol's children, by position.
        values: of each symbol, ``EMPTY`` or ``MISSING`` among them.
        log_probabilities: of each subtree: of its symbols and its programs.

    Raises:
        ValueError: heads that are no tree, or scores of another length.

    Source: arXiv:2210.01603, section 3.1.

    Example:
        >>> from heldout.train import IntDSL
        >>> library = ProgramLibrary(IntDSL(), [0, 1])
        >>> library.observe([Observation(0, (), 3), Observation(1, (3,), 4)])
        >>> tree = GroundedTree(Parse((1, 0), (-1, 0)), library)
        >>> tree.value, tree.formula(["three", "next"])
        (4, 'next(three)')
    """

    @checked
    def __init__(self, parse: Parse, library: ProgramLibrary, scores: Tensor | None = None) -> None:
        check_same_length(parse=parse.symbols, scores=scores)
        check_dimensions(2, scores=scores)
        check_heads(len(parse.symbols), parse.heads)
        self.library = library
        self.symbols, self.heads = list(parse.symbols), tuple(parse.heads)
        self.scores = None if scores is None else scores.clamp(min=math.log(_SMALL)).tolist()
        self.children: list[list[int]] = [[] for _ in self.symbols]
        for position, head in enumerate(self.heads):
            if head >= 0:
                self.children[head].append(position)
        self.root = self.heads.index(-1)
        self.values: list[Any] = [MISSING] * len(self.symbols)
        self.log_probabilities = [0.0] * len(self.symbols)
        for position in self._upwards():
            self.refresh(position)

    def _upwards(self) -> list[int]:
        order, stack = [], [self.root]
        while stack:
            order.append(stack.pop())
            stack += self.children[order[-1]]
        return order[::-1]

    @property
    def value(self) -> Any:
        """The value of the root."""
        return self.values[self.root]

    def arguments(self, position: int) -> list[Any]:
        """Returns the values of a symbol's children, in order, ``EMPTY`` ones included."""
        return [self.values[child] for child in self.children[position]]

    def refresh(self, position: int) -> None:
        """Computes a symbol's value, and the probability of its subtree, from its children."""
        self.values[position] = self.library.value_of(self.symbols[position], self.arguments(position))
        score = 0.0 if self.scores is None else self.scores[position][self.symbols[position]]
        own = math.log(max(self.library.likelihood(self.symbols[position]), _SMALL))
        below = sum(self.log_probabilities[child] for child in self.children[position])
        self.log_probabilities[position] = score + own + below

    def copy(self) -> GroundedTree:
        """Returns a tree with symbols and values of its own."""
        twin = object.__new__(GroundedTree)
        twin.__dict__.update(self.__dict__)
        twin.symbols, twin.values = list(self.symbols), list(self.values)
        twin.log_probabilities = list(self.log_probabilities)
        return twin

    def edited(self, position: int, symbol: int, value: Any) -> GroundedTree:
        """Returns the tree in which a position has another symbol and value, and all above it follow."""
        twin = self.copy()
        twin.symbols[position], twin.values[position] = symbol, value
        above = self.heads[position]
        while above >= 0:
            twin.refresh(above)
            above = self.heads[above]
        return twin

    @property
    def parse(self) -> Parse:
        """Its symbols and heads."""
        return Parse(tuple(self.symbols), self.heads)

    def observations(self) -> list[Observation]:
        """Returns what each symbol made of its arguments; failures left out."""
        found = []
        for position, symbol in enumerate(self.symbols):
            arguments = self.arguments(position)
            if self.values[position] is not MISSING and MISSING not in arguments:
                given = tuple(value for value in arguments if value is not EMPTY)
                found.append(Observation(symbol, given, self.values[position]))
        return found

    @checked
    def formula(self, names: Sequence[str]) -> str:
        """Returns the tree as a formula, as in "and(twice(jump), walk)".

        Args:
            names: of the symbols, by number.

        Raises:
            ValueError: a symbol without a name.
        """
        if max(self.symbols) >= len(names):
            raise ValueError(f"names must be one for each symbol up to {max(self.symbols)}, got {len(names)}")

        def written(position: int) -> str:
            symbol = names[self.symbols[position]]
            parts = ", ".join(written(child) for child in self.children[position])
            return f"{symbol}({parts})" if parts else symbol

        return written(self.root)


class _Change(NamedTuple):
    """What may be changed: nothing (the value is looked at as it is), a symbol, or a value."""

    cost: float
    number: int
    position: int
    targets: list
    symbol: int | None = None
    value: Any = None
    overwrites: bool = False


@checked
def abduce(
    tree: GroundedTree, answer: Any, module: LearnedModule, rng: random.Random | None = None
) -> GroundedTree | None:
    """Returns a tree whose root has the answer as its value and in which one position was edited, or None.

    Best-first search from the root downwards; a cost is a log-odds, small where what is changed was unlikely. For
    "perception" a position gets another symbol, for "semantics" another value, for "syntax" nothing is edited: a tree
    passes if it is right. A tree that is right already passes as it is.

    Args:
        tree: deduced.
        answer: the value that the root should have.
        module: that is learned from what is found.
        rng: of the choice among several values that would do; None for one of seed 0.

    Raises:
        TypeError: an answer that is no value of the library's language.
        ValueError: perception without scores.

    Source: arXiv:2210.01603, section 3.3; official code. Deviations: a symbol whose arity is known is given a value
    only where it has as many arguments; an edit after which the root does not have the answer is passed over.

    Example:
        >>> from heldout.train import IntDSL, ProgramLibrary
        >>> library = ProgramLibrary(IntDSL(), [0, 1])
        >>> tree = GroundedTree(Parse((0,), (-1,)), library)
        >>> tree.value, abduce(tree, 7, "semantics").value
        (MISSING, 7)
    """
    check_has("value_of", tree=tree.library)
    library = tree.library
    library.dsl.check(answer=answer)
    if module == "perception" and tree.scores is None:
        raise ValueError("tree must have scores for perception")
    rng = random.Random(0) if rng is None else rng
    numbers = itertools.count()
    queue = [_Change(0.0, next(numbers), tree.root, [answer])]
    while queue:
        change = heapq.heappop(queue)
        if change.symbol is not None:
            value = library.value_of(change.symbol, tree.arguments(change.position))
        else:
            value = change.value if change.overwrites else tree.values[change.position]
        if value in change.targets:
            symbol = tree.symbols[change.position] if change.symbol is None else change.symbol
            untouched = change.symbol is None and not change.overwrites
            found = tree if untouched else tree.edited(change.position, symbol, value)
            if found.value == answer:
                return found
            continue
        if change.symbol is None and not change.overwrites:
            for new in (*_edits(tree, change, module, rng), *_downwards(tree, change)):
                heapq.heappush(queue, new._replace(number=next(numbers)))
    return None


def _edits(tree: GroundedTree, change: _Change, module: str, rng: random.Random) -> list[_Change]:
    position, targets = change.position, change.targets
    symbol = tree.symbols[position]
    if module == "perception":
        scores = tree.scores[position]  # type: ignore[index]
        return [
            _Change(scores[symbol] - score, 0, position, targets, symbol=other)
            for other, score in enumerate(scores)
            if other != symbol
        ]
    arguments = tree.arguments(position)
    if module != "semantics" or MISSING in arguments or (arguments and EMPTY in targets):
        return []
    given = sum(value is not EMPTY for value in arguments)
    if tree.library.arity(symbol) not in (None, given):
        return []
    likelihood = tree.library.likelihood(symbol)
    return [_Change(_log_odds(likelihood), 0, position, targets, value=rng.choice(targets), overwrites=True)]


def _downwards(tree: GroundedTree, change: _Change) -> list[_Change]:
    """The children, each with values that would give the symbol one of its targets."""
    library, symbol = tree.library, tree.symbols[change.position]
    arguments, found = tree.arguments(change.position), []
    for place, child in enumerate(tree.children[change.position]):
        given = [value for other, value in enumerate(arguments) if value is not EMPTY or other == place]
        at = place - sum(value is EMPTY for value in arguments[:place])
        targets: list[Any] = []
        may_be_empty = not tree.children[child] and arguments[place] is not EMPTY
        if may_be_empty and library.value_of(symbol, given[:at] + given[at + 1 :]) in change.targets:
            targets.append(EMPTY)
        for value in library.inverse_of(symbol, at, tuple(given), change.targets):
            if value not in targets:
                targets.append(value)
        if targets:
            cost = _log_odds(math.exp(tree.log_probabilities[child]))
            found.append(_Change(cost, 0, child, targets))
    return found


def _log_odds(probability: float) -> float:
    return math.log(max(probability, _SMALL)) - math.log(max(1 - probability, _SMALL))
