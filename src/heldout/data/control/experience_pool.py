"""Core: Rewards of logged episodes put on one scale, and what is asked for of a policy that has read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from heldout.data.control.trajectories import Trajectories
from heldout.errors import (
    check_between,
    check_finite,
    check_nonempty,
    check_positive,
    checked,
)


@dataclass(frozen=True)
class RewardScale:
    """How rewards are made small numbers: ``(reward - low) / (high - low) / scale``, by the range of a pool.

    Args:
        low, high: the smallest and the largest reward of the pool.
        scale: by which the normalised rewards are divided.

    Raises:
        ValueError: a range that is not finite or has no width, a scale that is not positive.

    Source: official code of arXiv:2402.02338 (``process_reward``, scale 1000).

    Example:
        >>> import torch
        >>> RewardScale.of(torch.tensor([-1.0, 0.0, 3.0]), scale=2.0)(torch.tensor([1.0])).tolist()
        [0.25]
    """

    low: float
    high: float
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_finite(low=self.low, high=self.high)
        check_positive(scale=self.scale)
        if not self.high > self.low:
            raise ValueError(f"rewards must differ to be normalised by their range, got {self.low} to {self.high}")

    @classmethod
    @checked
    def of(cls, rewards: Tensor, *, scale: float = 1.0, tails: float = 0.0, shift: bool = True) -> RewardScale:
        """Returns the scale of a pool's rewards ``(steps,)``.

        Args:
            rewards: of the pool.
            scale: by which the normalised rewards are divided.
            tails: share of the rewards at either end that may lie outside of the range, below 0.5: where a few are far
                from all others, those others would be one number.
            shift: whether the smallest becomes 0, as published; False: rewards are divided by their range alone, and
                ``low`` is 0. With the shift each further step earns, and of two episodes the longer one seems better.

        Raises:
            ValueError: no rewards, rewards that are all equal or not finite, a share out of range.

        Example:
            >>> import torch
            >>> RewardScale.of(torch.tensor([0.0, 2.0]))
            RewardScale(low=0.0, high=2.0, scale=1.0)
            >>> RewardScale.of(torch.tensor([-90.0, 0.0, 1.0, 2.0, 70.0]), tails=0.25)
            RewardScale(low=0.0, high=2.0, scale=1.0)
            >>> RewardScale.of(torch.tensor([-3.0, -1.0]), shift=False)
            RewardScale(low=0.0, high=2.0, scale=1.0)
        """
        check_nonempty(rewards=rewards)
        check_finite(rewards=rewards)
        check_between(0, 0.499, tails=tails)
        low, high = np.quantile(rewards.double().cpu().numpy(), [tails, 1 - tails]).tolist()
        return cls(low, high, scale) if shift or not high > low else cls(0.0, high - low, scale)

    @checked
    def __call__(self, rewards: Tensor) -> Tensor:
        """Returns the rewards, normalised and scaled, in their shape."""
        check_finite(rewards=rewards)
        return (rewards - self.low) / (self.high - self.low) / self.scale


class ExperiencePool(NamedTuple):
    """Logged episodes with their returns as a policy reads them.

    Attributes:
        logged: the episodes.
        returns: return-to-go of each step from scaled rewards, float32 ``(steps,)``.
        scale: of the rewards.
        best: the highest return of an episode: what a policy is asked for.

    Source: arXiv:2402.02338, section 4.3, and its official code (a target of the best return in the pool).

    Example:
        >>> import torch
        >>> ends = torch.tensor([False, True, True])
        >>> pool = ExperiencePool.of(Trajectories(torch.zeros(3, 1), torch.tensor([0, 1, 1]), torch.arange(3.0), ends))
        >>> pool.returns.tolist(), pool.best
        ([0.5, 0.5, 1.0], 1.0)
    """

    logged: Trajectories
    returns: Tensor
    scale: RewardScale
    best: float

    @classmethod
    @checked
    def of(cls, logged: Trajectories, *, scale: float = 1.0, tails: float = 0.0) -> ExperiencePool:
        """Returns the pool of some episodes.

        Args:
            logged: the episodes.
            scale, tails: of ``RewardScale.of``; rewards are shifted where all episodes are equally long. Deviation: the
                source shifts always, which asks for the longest episode where they are not.

        Raises:
            ValueError: rewards that are all equal, options out of range.
        """
        equally_long = bool((logged.lengths == logged.lengths[0]).all())
        own = RewardScale.of(logged.rewards, scale=scale, tails=tails, shift=equally_long)
        returns = logged.returns(rewards=own(logged.rewards))
        return cls(logged, returns, own, float(returns[logged.timesteps == 0].max()))
