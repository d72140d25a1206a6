"""Novelty curriculum: new examples keep arriving until late in training, and none leaves.

Source: arXiv:2311.04420 (Zhou, Jiang and Bansal), section 4.2, and the authors' released code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, Subset

from heldout.annotations import short
from heldout.data.loading import sample_ids
from heldout.errors import check_at_least, check_fraction, check_nonempty, checked
from heldout.method import Method, Run, Splits


class NoveltyCurriculum(Sampler):
    """Draws shuffled positions of the examples that are visible by now: a share ``start`` of them at first.

    At step t of ``total_steps`` the share ``max(start, min(1, t / (end * total_steps)))`` of the n examples is visible,
    in an order that is drawn once.

    For a DataLoader, call ``set_step(t)`` before each epoch; or give ``batch_size`` and the steps are counted as the
    positions are drawn, so that the pool also grows within an epoch.

    Args:
        dataset: n examples.
        start: share that is visible at first, in (0, 1].
        end: share of the steps after which all examples are visible, in (0, 1].
        total_steps: optimizer steps of the whole training, at least 1.
        key: the primitives of an example: then primitives are unlocked on this schedule instead of examples, and an
            example becomes visible with the first of its primitives (at once, if it has none).
        draws: positions in an epoch; the visible pool is gone through again and again. None: once through the pool.
        batch_size: examples of a step, to count steps by; None: ``set_step`` alone does.
        seed: of both orders.

    Raises:
        ValueError: an empty data set, shares out of range, numbers below 1.
        TypeError: without ``total_steps``; a key that gives no collection, or a text, whose letters are none.

    Source: arXiv:2311.04420, section 4.2.

    Example:
        >>> sampler = NoveltyCurriculum(range(10), total_steps=100)
        >>> [sampler.visible_at(t) for t in (0, 16, 40, 80, 100)]
        [2, 2, 5, 10, 10]
        >>> sampler.set_step(40)
        >>> len(list(sampler))
        5
    """

    @checked
    def __init__(
        self,
        dataset: Dataset,
        start: float = 0.2,
        end: float = 0.8,
        *,
        total_steps: int,
        key: Callable[[Any], Iterable[Hashable]] | None = None,
        draws: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        check_nonempty(dataset=dataset)
        _check_shares(start, end)
        check_at_least(1, total_steps=total_steps, draws=draws, batch_size=batch_size)
        check_at_least(0, seed=seed)
        self.start, self.end, self.total_steps = start, end, total_steps
        self.draws, self.batch_size, self.step = draws, batch_size, 0
        self._since = 0  # positions drawn of the step under way
        self.generator = torch.Generator().manual_seed(seed)
        size = len(dataset)  # type: ignore[arg-type]
        if key is None:
            self._unlocked_with = torch.randperm(size, generator=self.generator).argsort()
            self._units = size
        else:
            primitives = [_held(key(dataset[position])) for position in range(size)]
            units = sorted(set().union(*primitives), key=repr)
            rank = dict(zip(units, torch.randperm(len(units), generator=self.generator).tolist(), strict=True))
            self._unlocked_with = torch.tensor([min((rank[each] for each in held), default=-1) for held in primitives])
            self._units = len(units)

    @checked
    def set_step(self, step: int) -> None:
        """Sets how many optimizer steps are taken, from 0; beyond ``total_steps`` everything stays visible."""
        check_at_least(0, step=step)
        self.step = step

    @checked
    def visible_at(self, step: int) -> int:
        """Returns how many examples are visible at a step; with a key, how many have an unlocked primitive."""
        check_at_least(0, step=step)
        return len(self._pool(step))

    def __len__(self) -> int:
        """How many positions an epoch that starts now draws."""
        return self.draws or len(self._pool(self.step))

    def __iter__(self) -> Iterator[int]:
        left = self.draws
        while left is None or left > 0:
            pool = self._pool(self.step)
            for position in pool[torch.randperm(len(pool), generator=self.generator)].tolist():
                if left == 0:
                    return
                yield position
                left = None if left is None else left - 1
                self._drawn()
            if left is None:
                return

    def _pool(self, step: int) -> Tensor:
        share = max(self.start, min(1.0, step / (self.end * self.total_steps)))
        return (self._unlocked_with < math.ceil(self._units * share - 1e-9)).nonzero().squeeze(1)

    def _drawn(self) -> None:
        if self.batch_size is not None:
            self._since += 1
            if self._since == self.batch_size:
                self._since, self.step = 0, self.step + 1


@checked
def novelty_curriculum(start: float = 0.2, end: float = 0.8) -> Method:
    """Returns the Method that shows a share of the training set at first and all of it only late in training.

    The number of steps stays as it is: early on, few examples are repeated more often. It costs nothing.

    Args:
        start: share that is visible at first, in (0, 1].
        end: share of the training after which all examples are visible, in (0, 1].

    Source: arXiv:2311.04420, section 4.2.

    Example:
        >>> novelty_curriculum().stages
        ('data',)
    """
    _check_shares(start, end)

    def data(run: Run, train_set: Any) -> Sampler:
        if isinstance(train_set, Sampler):
            raise TypeError("novelty_curriculum orders a data set, got a sampler: write it before that method")
        positions = sample_ids(train_set, run.splits.train)
        if train_set is not run.splits.train and not isinstance(train_set, Subset):
            raise TypeError("novelty_curriculum orders the training set as given: write it without that method")
        size = len(positions)
        steps = run.epochs * run.state.get("steps_per_epoch", math.ceil(size / run.batch_size))
        curriculum = NoveltyCurriculum(
            train_set, start, end, total_steps=steps, draws=size, batch_size=run.batch_size, seed=run.seed
        )
        return _Renumbered(curriculum, positions)

    def check(module: nn.Module, splits: Splits) -> str | None:
        size = len(splits.train)  # type: ignore[arg-type]
        if math.ceil(start * size) < size:
            return None
        return f"it shows a share of {start:g} at first, which is all of {size} examples"

    return Method("novelty_curriculum", data=data, check=check)


def _check_shares(start: float, end: float) -> None:
    check_fraction(start=start, end=end)
    if start == 0 or end == 0:
        raise ValueError(f"start and end must lie in (0, 1], got {start} and {end}")


def _held(primitives: Any) -> set[Hashable]:
    if isinstance(primitives, str) or not isinstance(primitives, Iterable):
        raise TypeError(f"key must give the primitives of an example as a collection, got {short(primitives)}")
    return set(primitives)


class _Renumbered(Sampler):
    """What a sampler over a view draws, as positions in what the view is of."""

    def __init__(self, sampler: NoveltyCurriculum, positions: Tensor) -> None:
        self.sampler, self.positions = sampler, positions.tolist()

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        return (self.positions[position] for position in self.sampler)
