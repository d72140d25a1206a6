"""Core: How often each example was shown.

Source: arXiv:2311.04420 (Zhou, Jiang and Bansal), section 4.2: repetition as a factor of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

from heldout.errors import check_fields, check_nonempty, checked


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
