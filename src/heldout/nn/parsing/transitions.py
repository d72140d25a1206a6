"""Core: Arc-standard transitions: what may follow in the parse of a sentence, and what makes a given tree.

Source: Nivre (2004), "Incrementality in deterministic dependency parsing"; features of Chen and Manning (2014), as in
arXiv:2210.01603.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from heldout.errors import check_at_least, check_nonempty, checked, short

LEFT, RIGHT, SHIFT = 0, 1, 2
"""Transitions: the second of the stack becomes a child of the top, the top one of the second, the next word comes."""

FEATURES = 18
"""Symbols that a parser looks at: 3 of the stack, 3 of the buffer, 6 descendants of each of the two on top."""


class ParseState:
    """A sentence that is being parsed.

    Attributes:
        symbols: of the sentence.
        stack: positions, the top last.
        next: first position of the buffer.
        heads: position of each symbol's head; -1 where none is known yet.
        left: positions of each symbol's children before it, in rising order.
        right: those behind it, in rising order.

    Args:
        symbols: int, at least one.
        arities: how many children each symbol takes; None if that is not known.

    Raises:
        ValueError: an empty sentence, or a symbol without arity.

    Example:
        >>> state = ParseState([4, 7])
        >>> for move in (SHIFT, SHIFT, LEFT):
        ...     state.advance(move)
        >>> state.heads, state.finished
        ([1, -1], True)
    """

    __slots__ = ("arities", "heads", "left", "next", "right", "stack", "symbols")

    @checked
    def __init__(self, symbols: Sequence[int], arities: Sequence[int] | None = None) -> None:
        check_nonempty(symbols=symbols)
        if arities is not None and (unknown := [each for each in symbols if not 0 <= each < len(arities)]):
            raise ValueError(f"symbols must have arities, got symbol {short(unknown[0])} without one")
        self.symbols = list(symbols)
        self.arities = arities
        self.stack: list[int] = []
        self.next = 0
        self.heads = [-1] * len(self.symbols)
        self.left: list[list[int]] = [[] for _ in self.symbols]
        self.right: list[list[int]] = [[] for _ in self.symbols]

    @property
    def finished(self) -> bool:
        """Whether all symbols are in one tree."""
        return self.next == len(self.symbols) and len(self.stack) == 1

    def legal(self) -> tuple[bool, bool, bool]:
        """Returns which of the three transitions may follow; of an unfinished sentence, one at least.

        With arities, a symbol gets no more children than it takes and becomes a child only when it has all of its own,
        and the rest is shifted; where this leaves nothing, what a sentence without arities may do.
        """
        two, more = len(self.stack) > 1, self.next < len(self.symbols)
        if self.arities is None or not two:
            return two, two, more
        top, second = self._free(self.stack[-1]), self._free(self.stack[-2])
        left, right = top > 0 and second == 0, second > 0 and top == 0
        return (left, right, more) if left or right or more else (True, True, False)

    def _free(self, position: int) -> int:
        taken = len(self.left[position]) + len(self.right[position])
        return self.arities[self.symbols[position]] - taken  # type: ignore[index]

    def advance(self, transition: int) -> None:
        """Makes a transition, which must be one that may follow.

        Raises:
            ValueError: it may not.
        """
        if transition == SHIFT and self.next < len(self.symbols):
            self.stack.append(self.next)
            self.next += 1
        elif transition == LEFT and len(self.stack) > 1:
            child = self.stack.pop(-2)
            self.heads[child] = self.stack[-1]
            self.left[self.stack[-1]].insert(0, child)
        elif transition == RIGHT and len(self.stack) > 1:
            child = self.stack.pop()
            self.heads[child] = self.stack[-1]
            self.right[self.stack[-1]].append(child)
        else:
            raise ValueError(f"transition must be one that may follow, got {short(transition)}")

    def features(self, null: int) -> list[int]:
        """Returns the 18 symbols that a parser looks at, ``null`` where there is none.

        Three of the stack, the top last; three of the buffer; then of the top and of the one below it: first child to
        the left, last to the right, second to the left, last but one to the right, first left child of the first left
        one, last right child of the last right one.
        """
        symbols, stack = self.symbols, self.stack
        found = [null] * (3 - len(stack)) + [symbols[each] for each in stack[-3:]]
        ahead = symbols[self.next : self.next + 3]
        found += ahead + [null] * (3 - len(ahead))
        for depth in (-1, -2):
            if len(stack) < -depth:
                found += [null] * 6
                continue
            left, right = self.left[stack[depth]], self.right[stack[depth]]
            further_left = self.left[left[0]] if left else []
            further_right = self.right[right[-1]] if right else []
            found += [
                symbols[left[0]] if left else null,
                symbols[right[-1]] if right else null,
                symbols[left[1]] if len(left) > 1 else null,
                symbols[right[-2]] if len(right) > 1 else null,
                symbols[further_left[0]] if further_left else null,
                symbols[further_right[-1]] if further_right else null,
            ]
        return found


class OracleStep(NamedTuple):
    """A state's features, and the transition that leads to the given tree.

    Attributes:
        features: 18 symbols.
        transition: ``LEFT``, ``RIGHT`` or ``SHIFT``.

    Example:
        >>> last = oracle_steps([5, 6], [-1, 0], null=0)[-1]  # the second symbol becomes a child of the first
        >>> last.transition == RIGHT, len(last.features)
        (True, 18)
    """

    features: list[int]
    transition: int


@checked
def oracle_steps(symbols: Sequence[int], heads: Sequence[int], null: int) -> list[OracleStep]:
    """Returns the transitions that make a projective tree, ``2 n - 1`` of them, each with the features before it.

    Args:
        symbols: of the sentence, ``n``.
        heads: position of each symbol's head, -1 for the root.
        null: stands in features where there is no symbol.

    Raises:
        ValueError: heads that are no tree, or none that is projective.

    Source: arc-standard static oracle.

    Example:
        >>> [step.transition for step in oracle_steps([5, 6, 7], [1, -1, 1], null=0)]
        [2, 2, 0, 2, 1]
    """
    check_nonempty(symbols=symbols)
    check_heads(len(symbols), heads)
    check_at_least(0, null=null)
    state = ParseState(symbols)
    missing = [0] * len(symbols)
    for head in heads:
        if head >= 0:
            missing[head] += 1
    steps = []
    while not state.finished:
        move = SHIFT
        if len(state.stack) > 1:
            second, top = state.stack[-2:]
            if heads[second] == top and not missing[second]:
                move = LEFT
            elif heads[top] == second and not missing[top]:
                move = RIGHT
        if move == SHIFT and state.next == len(symbols):
            raise ValueError(f"heads must be a projective tree, in which no arcs cross, got {list(heads)}")
        if move != SHIFT:
            missing[top if move == LEFT else second] -= 1
        steps.append(OracleStep(state.features(null), move))
        state.advance(move)
    return steps


@checked
def check_heads(length: int, heads: Sequence[int]) -> None:
    """Raises ValueError unless heads are those of one tree over so many symbols, whether its arcs cross or not.

    Args:
        length: of the sentence.
        heads: position of each symbol's head, -1 for the root.

    Example:
        >>> check_heads(2, [1, -1])
        >>> check_heads(2, [1, 0])
        Traceback (most recent call last):
        ValueError: heads must be positions with one root (-1), got [1, 0]
    """
    check_at_least(1, length=length)
    if len(heads) != length:
        raise ValueError(f"heads must be as many as symbols, got {len(heads)} for {length}")
    if any(not -1 <= head < length for head in heads) or list(heads).count(-1) != 1:
        raise ValueError(f"heads must be positions with one root (-1), got {list(heads)}")
    for position in range(length):
        for _ in range(length):
            position = heads[position]
            if position == -1:
                break
        else:
            raise ValueError(f"heads must be a tree, got a circle in {list(heads)}")
