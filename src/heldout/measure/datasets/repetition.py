"""Core: How often each example was shown, and how much of a corpus is there more than once.

Source: arXiv:2311.04420 (Zhou, Jiang and Bansal), section 4.2: repetition as a factor of its own; arXiv:2205.10487
(Hernandez et al.): what repeated data cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heldout.errors import check_at_least, check_dimensions, check_fields, check_labels, check_nonempty, checked

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Repetition:
    """How often each example was shown.

    Attributes:
        counts: example -> how often, for those that were shown.

    Example:
        >>> found = repetition([4, 5, 4, 4])
        >>> found.counts, found.mean, found.most
        ({4: 3, 5: 1}, 2.0, 3)
    """

    counts: Mapping[Hashable, int]

    def __post_init__(self) -> None:
        check_fields(self)
        check_nonempty(counts=self.counts)

    @property
    def draws(self) -> int:
        """How many examples were shown, repetitions included."""
        return sum(self.counts.values())

    @property
    def mean(self) -> float:
        """Mean repetitions of an example that was shown."""
        return self.draws / len(self.counts)

    @property
    def most(self) -> int:
        """Repetitions of the example that was shown most often."""
        return max(self.counts.values())


@checked
def repetition(sampler_log: Iterable[Hashable]) -> Repetition:
    """Returns how often each example of a log occurs.

    Args:
        sampler_log: what was shown, in any order: positions that a sampler drew, or the examples themselves.

    Raises:
        ValueError: nothing was shown.

    Example:
        >>> repetition(["a", "b", "a"]).counts
        {'a': 2, 'b': 1}
    """
    counts = dict(Counter(sampler_log))
    if not counts:
        raise ValueError("sampler_log must not be empty")
    return Repetition(counts)


@dataclass(frozen=True)
class RepetitionReport:
    """How much of a corpus is there more than once.

    Attributes:
        window: what was looked for: windows of so many tokens, or ``"exact"`` for whole items.
        items: how many there are.
        tokens: of all items.
        repeated_items: share of the items that occur more than once, or hold a window that does.
        repeated_tokens: share of the tokens that lie in such an item or window.
        redundant_tokens: share of the tokens that would go if each such item or window were kept once.
        histogram: repeats -> how many different items or windows are there so often; 1 are those that do not repeat.
        groups: exact repetition only: positions of the items that are alike, each group ascending; without single ones.

    Example:
        >>> report = repetition_report(["a b", "c", "a b"], "exact")
        >>> report.repeated_tokens, report.redundant_tokens, report.histogram, report.groups
        (0.8, 0.4, {1: 1, 2: 1}, ((0, 2),))
    """

    window: int | Literal["exact"]
    items: int
    tokens: int
    repeated_items: float
    repeated_tokens: float
    redundant_tokens: float
    histogram: Mapping[int, int]
    groups: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)


@checked
def repetition_report(
    tokens_or_texts: Sequence[str] | Sequence[Sequence[int]] | Sequence[Tensor] | Tensor,
    n: int | Literal["exact"] = 13,
) -> RepetitionReport:
    """Returns how much of a corpus is repeated: whole items, or windows of ``n`` tokens within and between items.

    Nothing is hashed: windows are numbered exactly, by doubling, in ``O(tokens log tokens log n)``.

    Args:
        tokens_or_texts: texts, whose tokens are what spaces separate, or rows of token ids: int64 ``(items, length)``,
            or one sequence of ids for each item, of any length.
        n: tokens of a window; 13 is a usual choice for finding copies. Items shorter than it have no window.
            ``"exact"`` compares whole items, texts letter by letter.

    Raises:
        ValueError: no items, or a window below 1 token.
        TypeError: one text where several are expected.

    Source: arXiv:2205.10487 counts exact repeats; windows of 13 tokens are those of arXiv:2005.14165, appendix C.

    Example:
        >>> repetition_report(["the cat sat on a mat", "a dog", "the cat sat on it"], n=4).repeated_items
        0.6666666666666666
    """
    if isinstance(tokens_or_texts, str):
        raise TypeError("tokens_or_texts must be several texts or rows of token ids, got one text")
    check_nonempty(tokens_or_texts=tokens_or_texts)
    if isinstance(n, int):
        check_at_least(1, n=n)
    rows = _token_rows(tokens_or_texts)
    lengths = np.array([len(row) for row in rows])
    total = int(lengths.sum())
    if n == "exact":
        keys = [
            item if isinstance(item, str) else row.tobytes() for item, row in zip(tokens_or_texts, rows, strict=True)
        ]
        counts = repetition(keys).counts
        places: dict[Hashable, list[int]] = {}
        for position, key in enumerate(keys):
            if counts[key] > 1:
                places.setdefault(key, []).append(position)
        groups = tuple(tuple(alike) for alike in places.values())
        whole = [position for alike in groups for position in alike]
        later = [position for alike in groups for position in alike[1:]]
        return RepetitionReport(
            window="exact",
            items=len(rows),
            tokens=total,
            repeated_items=len(whole) / len(rows),
            repeated_tokens=float(lengths[whole].sum() / max(1, total)),
            redundant_tokens=float(lengths[later].sum() / max(1, total)),
            histogram=dict(sorted(Counter(counts.values()).items())),
            groups=groups,
        )
    starts, numbers = _windows(rows, lengths, n)
    _, first, inverse, counts_of = np.unique(numbers, return_index=True, return_inverse=True, return_counts=True)
    often = counts_of[inverse] > 1
    later_window = often & (first[inverse] != np.arange(len(numbers)))
    covered, redundant = (_covered(starts[chosen], n, total) for chosen in (often, later_window))
    owner = np.repeat(np.arange(len(rows)), lengths)
    return RepetitionReport(
        window=n,
        items=len(rows),
        tokens=total,
        repeated_items=len(np.unique(owner[covered])) / len(rows),
        repeated_tokens=float(covered.sum() / max(1, total)),
        redundant_tokens=float(redundant.sum() / max(1, total)),
        histogram={
            int(count): int(many) for count, many in zip(*np.unique(counts_of, return_counts=True), strict=True)
        },
    )


def _token_rows(items: Sequence[Any] | Tensor) -> list[IntArray]:
    """The tokens of each item, as numbers."""
    if isinstance(items[0], str):
        known: dict[str, int] = {}
        return [np.array([known.setdefault(word, len(known)) for word in text.split()], np.int64) for text in items]
    for item in items:
        check_dimensions(1, tokens_or_texts=torch.as_tensor(item))
        check_labels(tokens_or_texts=item)
    return [np.asarray(item, dtype=np.int64) for item in items]


def _windows(rows: Sequence[IntArray], lengths: IntArray, n: int) -> tuple[IntArray, IntArray]:
    """Where the windows of n tokens begin in all tokens, one after the other, and a number that equal ones share."""
    stream = np.concatenate(rows)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(stream))  # tokens from here to the end of the item
    starts = np.flatnonzero(left >= n)
    if not len(starts):
        return starts, starts
    doubled, size = _numbered(stream), 1
    numbers, done = np.zeros_like(starts), 0
    while True:
        if n & size:
            numbers = _numbered(numbers * len(stream) + doubled[starts + done])
            done += size
        if done == n:
            return starts, numbers
        ahead = np.minimum(np.arange(len(stream)) + size, len(stream) - 1)  # beyond the end no window is asked for
        doubled, size = _numbered(doubled * len(stream) + doubled[ahead]), 2 * size


def _numbered(values: IntArray) -> IntArray:
    return np.unique(values, return_inverse=True)[1].reshape(-1)


def _covered(starts: IntArray, n: int, total: int) -> NDArray[np.bool_]:
    """Which tokens lie in one of the windows."""
    change = np.bincount(starts, minlength=total + 1) - np.bincount(starts + n, minlength=total + 1)
    return np.cumsum(change)[:total] > 0
