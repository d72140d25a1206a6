"""Repeated data: a small part of a training set is shown again and again, the rest once, at a fixed number of draws.

Source: arXiv:2205.10487 (Hernandez et al.), section 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from heldout.errors import check_at_least, check_fraction, check_nonempty, checked
from heldout.method import Method, Run, Splits


class RepeatSchedule(Sampler):
    """Draws ``total`` positions: a share ``fraction`` of them from a small subset, ``repeats`` times each, others once.

    The subset has ``fraction * total / repeats`` examples (rounded, one at least) and is gone through in shuffled
    passes, so that each of them is drawn equally often, give or take one. The two kinds are mixed at random. A pass
    over the sampler is a whole training; the next pass has the same examples in another order.

    Args:
        dataset: of n examples.
        total: positions of a pass.
        fraction: share of them that is drawn from the subset, in [0, 1].
        repeats: draws of each example of the subset, from 1 to ``fraction * total``; at 1 no example comes twice.
        seed: of the subset and of the orders.

    Attributes:
        subset: positions of the repeated examples, int64, ascending.
        unique: positions of the others that are drawn, int64, ascending.

    Raises:
        ValueError: a fraction outside of [0, 1], fewer repeats than 1 or more than there are draws, or a data set with
            fewer examples than are drawn.

    Source: arXiv:2205.10487, section 2. deviation: exactly ``fraction * total`` draws instead of that many on average.

    Example:
        >>> schedule = RepeatSchedule(range(100), total=40, fraction=0.5, repeats=10)
        >>> len(schedule), len(schedule.subset), len(set(schedule))
        (40, 2, 22)
        >>> sum(schedule.is_repeated(position) for position in schedule)
        20
    """

    @checked
    def __init__(self, dataset: Dataset, total: int, fraction: float, repeats: float, seed: int = 0) -> None:
        check_nonempty(dataset=dataset)
        check_at_least(1, total=total, repeats=repeats)
        check_at_least(0, seed=seed)
        check_fraction(fraction=fraction)
        self.total, self.fraction, self.repeats = total, fraction, repeats
        again = round(fraction * total)
        if again and repeats > again:
            raise ValueError(f"repeats must be at most fraction * total = {again}, got {repeats:g}")
        size = max(1, round(again / repeats)) if again else 0
        available, asked = len(dataset), size + total - again  # type: ignore[arg-type]
        if available < asked:
            raise ValueError(f"dataset must hold the {asked} different examples that are drawn, got {available}")
        self.generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(available, generator=self.generator)[:asked]
        self.subset, self.unique = (part.sort().values for part in (chosen[:size], chosen[size:]))
        self._repeated = frozenset(self.subset.tolist())

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        again = self.total - len(self.unique)
        order = torch.empty(self.total, dtype=torch.int64)
        places = self._shuffled(torch.arange(self.total))
        order[places[again:]] = self._shuffled(self.unique)
        if again:
            passes = [self._shuffled(self.subset) for _ in range(-(-again // len(self.subset)))]
            order[places[:again].sort().values] = torch.cat(passes)[:again]
        return iter(order.tolist())

    @checked
    def is_repeated(self, position: int) -> bool:
        """Returns whether an example of the data set belongs to the subset."""
        check_at_least(0, position=position)
        return position in self._repeated

    def summary(self) -> dict[str, float]:
        """Returns what a pass draws: its length, different examples, and how often those of the subset come.

        Example:
            >>> RepeatSchedule(range(100), total=40, fraction=0.5, repeats=10).summary()
            {'total': 40, 'different': 22, 'subset': 2, 'repeated_draws': 20, 'repeats': 10.0}
        """
        again = self.total - len(self.unique)
        return {
            "total": self.total,
            "different": len(self.subset) + len(self.unique),
            "subset": len(self.subset),
            "repeated_draws": again,
            "repeats": again / len(self.subset) if again else 0.0,
        }

    def _shuffled(self, positions: Tensor) -> Tensor:
        return positions[torch.randperm(len(positions), generator=self.generator)]


@checked
def repeated_data(fraction: float = 0.1, repeats: float = 100) -> Method:
    """Returns the Method that spends a share of every epoch on few examples, to ask what repetition costs here.

    An epoch is as long as before. A share ``fraction`` of it shows a subset, each example ``repeats`` times, and the
    rest shows other examples once; what is left over is never shown. It is meant as a question: where results are no
    worse, duplicates in the training set are no cause of a bad one. It costs nothing.

    Args:
        fraction: share of an epoch, in (0, 1].
        repeats: draws of each example of the subset in an epoch, above 1; the subset has one example at least.

    Raises:
        ValueError: options out of range.

    Source: arXiv:2205.10487, section 2; the paper's main setting has a tenth of the tokens, at 1 to a million repeats.

    Example:
        >>> repeated_data(fraction=0.5, repeats=10).stages
        ('data',)
    """
    check_fraction(fraction=fraction)
    check_at_least(1, repeats=repeats)
    if fraction == 0 or repeats == 1:
        raise ValueError(f"fraction must be above 0 and repeats above 1, got {fraction:g} and {repeats:g}")

    def data(run: Run, train_set: Any) -> Sampler:
        if train_set is not run.splits.train:
            raise TypeError("repeated_data draws from the training set as given: write it without the method before it")
        size = len(run.splits.train)  # type: ignore[arg-type]
        schedule = RepeatSchedule(run.splits.train, size, fraction, repeats, seed=run.seed)
        run.state["repeated_data"] = schedule.summary()
        return schedule

    def check(module: nn.Module, splits: Splits) -> str | None:
        draws = round(fraction * len(splits.train))  # type: ignore[arg-type]
        if repeats <= draws:
            return None
        return (
            f"it shows an example {repeats:g} times, and a share of {fraction:g} of the training set is {draws} draws"
        )

    return Method("repeated_data", data=data, check=check)
