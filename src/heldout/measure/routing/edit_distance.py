"""Core: Levenshtein distances of many pairs of sequences at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from heldout.errors import check_labels, check_same_length, checked

_AT_ONCE = 1 << 12  # pairs of a table, which then stays in the cache


@checked
def edit_distances(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Returns the Levenshtein distance of each pair: the fewest insertions, deletions and substitutions, ``(pairs,)``.

    ``edit_distances_within`` is faster where the same sequences are in many pairs.

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
    for name, side in (("first", first), ("second", second)):
        check_labels(**{name: _joined(side)})
    places = np.arange(len(first))
    return _distances([*first, *second], places, len(first) + places)


@checked
def edit_distances_within(sequences: Sequence[Sequence[int]], pairs: NDArray) -> NDArray[np.int64]:
    """Returns the Levenshtein distances of pairs of sequences of one list, ``(pairs,)``.

    A row of the table of all pairs is one pass over ``(longest, pairs)`` numbers, and there are as many rows as the
    longest sequence has entries.

    Args:
        sequences: integers of at least 0; may be empty.
        pairs: places of the two sequences, integers ``(pairs, 2)``.

    Raises:
        ValueError: entries below 0, or pairs of sequences that are not there.
        TypeError: entries that are no integers.

    Example:
        >>> edit_distances_within([[1, 2, 3], [1, 3], [4]], np.array([[0, 1], [0, 2], [2, 2]])).tolist()
        [1, 3, 0]
    """
    check_labels(sequences=_joined(sequences))
    check_labels(len(sequences), pairs=pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs must be (pairs, 2), got shape {pairs.shape}")
    return _distances(sequences, pairs[:, 0], pairs[:, 1])


def _joined(sequences: Sequence[Sequence[int]]) -> NDArray:
    return np.concatenate([np.zeros(0, np.int64), *(np.array(each) for each in sequences if len(each))])


def _distances(sequences: Sequence[Sequence[int]], first: NDArray, second: NDArray) -> NDArray[np.int64]:
    ends = np.array([len(each) for each in sequences], np.int64)
    table = np.full((max([1, *ends]), len(ends)), -1, np.int64)  # what stands behind an end is never read
    for place, sequence in enumerate(sequences):
        table[: len(sequence), place] = sequence
    found = np.zeros(len(first), np.int64)
    for start in range(0, len(first), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        rows, columns = first[part], second[part]
        found[part] = _table(
            table[: ends[rows].max(), rows], table[: ends[columns].max(), columns], ends[rows], ends[columns]
        )
    return found


def _table(rows: NDArray, columns: NDArray, last_row: NDArray, last_column: NDArray) -> NDArray[np.int64]:
    """Sequences ``(longest, pairs)`` of both sides; the distance is read where both end."""
    small = np.int16 if max(len(rows), len(columns)) < 1 << 14 else np.int32
    steps, pairs = np.arange(len(columns) + 1, dtype=small)[:, None], np.arange(rows.shape[1])
    above = np.broadcast_to(steps, (len(steps), len(pairs)))
    found = np.where(last_row == 0, last_column, 0)
    for at, entries in enumerate(rows, 1):
        here = np.empty((len(steps), len(pairs)), small)
        here[0] = at
        here[1:] = np.minimum(above[1:] + 1, above[:-1] + (columns != entries))
        # an insertion costs 1 for each column: without the column's number it is the lowest value so far
        above = np.minimum.accumulate(here - steps, axis=0) + steps
        over = last_row == at
        found[over] = above[last_column[over], pairs[over]]
    return found
