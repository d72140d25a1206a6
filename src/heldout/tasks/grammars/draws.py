"""Core: Different numbers in random order, however many there are."""

from __future__ import annotations

import random
from collections.abc import Iterator

from heldout.errors import check_at_least, checked


@checked
def lazily_shuffled(total: int, rng: random.Random) -> Iterator[int]:
    """Yields 0 .. total - 1 in random order; costs time and memory only for those that are taken.

    A Fisher-Yates shuffle that keeps only the entries which are no longer in their place.

    Example:
        >>> sorted(lazily_shuffled(4, random.Random(0))), next(lazily_shuffled(10**12, random.Random(0))) < 10**12
        ([0, 1, 2, 3], True)
    """
    check_at_least(0, total=total)
    return _shuffled(total, rng)


def _shuffled(total: int, rng: random.Random) -> Iterator[int]:
    moved: dict[int, int] = {}
    for first in range(total):
        other = rng.randrange(first, total)
        yield moved.get(other, other)
        moved[other] = moved.get(first, first)
        moved.pop(first, None)
