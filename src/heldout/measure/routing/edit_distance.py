"""Core: Levenshtein distances of many pairs of sequences at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from heldout.errors import check_labels, check_same_length, checked

_AT_ONCE = 1 << 12  # pairs of a table, which then stays in the cache
_EMPTY = np.zeros(0, np.int64)


@checked
def edit_distances(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Returns the Levenshtein distance of each pair: the fewest insertions, deletions and substitutions, ``(pairs,)``.

    A row of the table of all pairs is one pass over ``(longest second, pairs)`` numbers, so that pairs of about equal
    length cost the least; there are as many passes as the longest of ``first`` has entries.

    Args:
        first: integers of at least 0, a sequence for each pair; may be empty.
        second: as many, each compared with that of ``first`` at its place.

    Raises:
        ValueError: unequal numbers of sequences, or entries below 0.
        TypeError: entries that are no integers.

    Example:
        >>> edit_distances([[1, 2, 3], [1, 2], []], [[1, 3], [1, 2], [4, 4]]).tolist()
        [1, 0, 2]
    """
    check_same_length(first=first, second=second)
    left, right = ([np.array(each) if len(each) else _EMPTY for each in side] for side in (first, second))
    check_labels(first=np.concatenate([_EMPTY, *left]), second=np.concatenate([_EMPTY, *right]))
    parts = [
        _distances(left[start : start + _AT_ONCE], right[start : start + _AT_ONCE])
        for start in range(0, len(left), _AT_ONCE)
    ]
    return np.concatenate([_EMPTY, *parts])


def _distances(first: list[NDArray], second: list[NDArray]) -> NDArray[np.int64]:
    (rows, longest), (columns, _) = _padded(first), _padded(second)
    ends = np.array([len(each) for each in first]), np.array([len(each) for each in second])
    steps = np.arange(len(columns) + 1, dtype=np.int32)[:, None]
    above = np.broadcast_to(steps, (len(steps), len(first))).copy()
    pairs = np.arange(len(first))
    found = np.where(ends[0] == 0, ends[1], 0)
    for at in range(longest):
        here = np.empty_like(above)
        here[0] = at + 1
        here[1:] = np.minimum(above[1:] + 1, above[:-1] + (columns != rows[at]))
        # an insertion costs 1 for each column: without the column's number it is the lowest value so far
        here = np.minimum.accumulate(here - steps, axis=0) + steps
        over = ends[0] == at + 1
        found[over] = here[ends[1][over], pairs[over]]
        above = here
    return found.astype(np.int64)


def _padded(sequences: list[NDArray]) -> tuple[NDArray[np.int64], int]:
    """``(longest, pairs)``, behind the end whatever: the distance is read where both sequences end."""
    longest = max(map(len, sequences))
    table = np.full((longest, len(sequences)), -1, np.int64)
    for pair, sequence in enumerate(sequences):
        table[: len(sequence), pair] = sequence
    return table, longest
