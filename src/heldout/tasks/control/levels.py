"""Core: Levels of an environment: split for training, validation and test, and played many at a time.

A level is an integer: the same one is the same maze, map or task again. Those that are learned from are kept apart from
those that are tested on. Source: arXiv:2312.05742, section 3 (levels 0 to 199 to train on, 200 to 249 to validate on,
250 and after to test on).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_labels,
    check_length,
    check_nonempty,
    check_positive,
    checked,
    require,
)


class LevelSplit(NamedTuple):
    """Levels to train on, to validate on and to test on; no level is in two of them."""

    train: range
    val: range
    test: range


@checked
def split_levels(n_train: int, n_val: int, n_test: int, *, start: int = 0) -> LevelSplit:
    """Returns three disjoint ranges of levels, one after the other.

    Args:
        n_train, n_val, n_test: levels of each.
        start: the first level.

    Raises:
        ValueError: fewer than 1 level of a kind, a negative start.

    Source: arXiv:2312.05742, section 3.

    Example:
        >>> split_levels(200, 50, 100)
        LevelSplit(train=range(0, 200), val=range(200, 250), test=range(250, 350))
    """
    check_at_least(1, n_train=n_train, n_val=n_val, n_test=n_test)
    check_at_least(0, start=start)
    ends = np.cumsum([start, n_train, n_val, n_test]).tolist()
    return LevelSplit(*(range(a, b) for a, b in itertools.pairwise(ends)))


@checked
def split_alike(
    levels: Sequence[int], alike: Callable[[int], Hashable], shares: Sequence[float], *, seed: int = 0
) -> tuple[tuple[int, ...], ...]:
    """Returns levels in parts, those that are alike in the same one: where there are fewer layouts than numbers.

    Numbers that differ can be the same level, or one that differs in little: parts by number alone would then share
    what they were to be kept apart by.

    Args:
        levels: to be dealt, each of them once.
        alike: from a level to what is the same for levels that are alike, such as the bytes of its grid.
        shares: of the kinds of levels for each part, which make 1; a part has so many kinds, rounded.
        seed: of which kinds are in which part.

    Raises:
        ValueError: no levels, one that comes twice, shares that are not positive or do not make 1, fewer kinds of
            levels than parts, or a part that would have none.

    Example:
        >>> split_alike(range(8), lambda level: level % 4, (0.5, 0.5), seed=1)
        ((0, 1, 4, 5), (2, 3, 6, 7))
    """
    levels = list(levels)
    check_nonempty(levels=levels, shares=shares)
    check_positive(shares=list(shares))
    check_at_least(0, seed=seed)
    if len(set(levels)) < len(levels):
        raise ValueError("levels must come once each")
    if abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"shares must make 1, got {sum(shares):g}")
    kinds: dict[Hashable, int] = {}  # by their first level
    own = [kinds.setdefault(alike(level), len(kinds)) for level in levels]
    order = np.random.default_rng(seed).permutation(len(kinds))
    cuts = np.round(np.cumsum([0.0, *shares]) * len(kinds)).astype(int)
    parts = [set(order[a:b].tolist()) for a, b in itertools.pairwise(cuts)]
    if not all(parts):
        raise ValueError(f"levels must be of kinds enough for {len(parts)} parts, got {len(kinds)}")
    return tuple(tuple(level for level, kind in zip(levels, own, strict=True) if kind in part) for part in parts)


class LevelStep(NamedTuple):
    """What came of one action in each environment.

    Attributes:
        observations: of the states that were reached, also where the episode ended there: ``(envs, ...)``, or several
            by name.
        rewards: float32 ``(envs,)``.
        terminations: bool ``(envs,)``: the episode came to its end.
        truncations: bool ``(envs,)``: it was cut off, by a limit of time; the state that was reached has a value.
    """

    observations: Any
    rewards: Tensor
    terminations: Tensor
    truncations: Tensor


@runtime_checkable
class LevelWorld(Protocol):
    """Environments that are played in step, each on a level: ``KeyMazes``, or anything by way of ``GymLevels``.

    Where an episode ends the next one begins at once: ``observations()`` is what is to be acted on, and the step's own
    observations are what was reached. ``levels`` are those that are being played, int64 ``(envs,)``. A world whose
    steps are dear can have ``rest`` as well, see ``GymLevels``.
    """

    levels: Tensor
    actions: int

    def __len__(self) -> int:
        """How many environments there are."""
        ...

    def reset(self) -> Any:
        """Begins all episodes anew, on the levels that came first, and returns their observations."""
        ...

    def observations(self) -> Any:
        """What is to be acted on."""
        ...

    def step(self, actions: Tensor) -> LevelStep:
        """Acts in all environments."""
        ...


class LevelOrder:
    """Which level each environment plays next: its own again and again, or one that is drawn.

    Args:
        levels: to play, integers of at least 0.
        envs: environments that draw from the levels; None: one for each level, in order, which it keeps.
        seed: of the draws.

    Raises:
        ValueError: no levels, a negative one, fewer than 1 environment.

    Example:
        >>> LevelOrder([7, 9]).next(torch.tensor([True, True])).tolist()
        [7, 9]
    """

    @checked
    def __init__(self, levels: Sequence[int], envs: int | None = None, *, seed: int = 0) -> None:
        check_nonempty(levels=levels)
        check_labels(levels=list(levels))
        check_at_least(1, envs=envs)
        check_at_least(0, seed=seed)
        self.levels = torch.as_tensor(list(levels), dtype=torch.int64)
        self.envs = len(self.levels) if envs is None else envs
        self.seed, self.generator = seed, None if envs is None else torch.Generator()
        self.restart()

    @checked
    def next(self, ended: Tensor) -> Tensor:
        """Returns the levels of environments whose episodes ended, bool ``(envs,)``, in their order."""
        check_length(self.envs, ended=ended)
        if self.generator is None:
            return self.levels[ended]
        return self.levels[torch.randint(len(self.levels), (int(ended.sum()),), generator=self.generator)]

    def restart(self) -> None:
        """Lets the draws begin anew, so that the same levels follow again."""
        if self.generator is not None:
            self.generator.manual_seed(self.seed)


class GymLevels:
    """Levels of anybody's gymnasium environment, as a ``LevelWorld``.

    An environment is made for a level when an episode begins on it, and is reset with the level as its seed, so that
    both kinds work: those made for a level, and those whose levels are their seeds (minigrid, procgen, highway-env).
    The one that was there before is closed; the same level again keeps its environment.

    Args:
        make: from a level to a new ``gymnasium.Env`` with discrete actions, not to one that is being played.
        levels: to play.
        envs: played in step, each on levels that are drawn; None: one for each level, in order, again and again.
        seed: of the draws.

    Raises:
        MissingExtraError: gymnasium is not installed.
        TypeError: actions that are not ``Discrete``, observations that are neither ``Box``, ``Discrete`` nor a ``Dict``
            of these.
        ValueError: no levels, fewer than 1 environment, an environment that is played in another place already.

    Example:
        >>> world = GymLevels(lambda level: maze_env([level]), range(3))  # doctest: +SKIP
        >>> world.reset().shape  # doctest: +SKIP
        torch.Size([3, 8, 9, 9])
    """

    @checked
    def __init__(
        self, make: Callable[[int], Any], levels: Sequence[int], *, envs: int | None = None, seed: int = 0
    ) -> None:
        self._spaces = require("gymnasium").spaces
        self._order = LevelOrder(levels, envs, seed=seed)
        self.make = make
        self.levels = torch.full((self._order.envs,), -1)
        self._envs: list[Any] = [None] * self._order.envs
        self._seen: list[Any] = [None] * self._order.envs
        self.actions = 0
        self.reset()

    def __len__(self) -> int:
        """How many environments there are."""
        return self._order.envs

    def reset(self) -> Any:
        """Begins all episodes anew, on the levels that came first, and returns their observations."""
        self._order.restart()
        self._resting = torch.zeros(len(self), dtype=torch.bool)
        self._begin(~self._resting)
        return self.observations()

    def observations(self) -> Any:
        """What is to be acted on: ``(envs, ...)``, or several by name."""
        return _stacked(self._seen)

    @checked
    def step(self, actions: Tensor) -> LevelStep:
        """Acts in all environments that do not rest, one after the other.

        Args:
            actions: int64 ``(envs,)``, from 0.

        Raises:
            ValueError: actions that there are not, or of another number of environments.
        """
        check_length(len(self), actions=actions)
        check_labels(self.actions, actions=actions)
        rewards = torch.zeros(len(self))
        ended, cut = torch.zeros(2, len(self), dtype=torch.bool)
        for place in (~self._resting).nonzero()[:, 0].tolist():
            env = self._envs[place]
            self._seen[place], reward, terminated, truncated, _ = env.step(env.action_space.start + int(actions[place]))
            rewards[place], ended[place], cut[place] = float(reward), bool(terminated), truncated and not terminated
        found = LevelStep(_stacked(self._seen), rewards, ended, cut)
        self._begin(ended | cut)
        return found

    @checked
    def rest(self, envs: Tensor) -> None:
        """Lets these environments, bool ``(envs,)``, stand still and give nothing until all begin anew.

        Raises:
            ValueError: of another number of environments.
        """
        check_length(len(self), envs=envs)
        self._resting = envs.clone()

    def close(self) -> None:
        """Closes all environments."""
        for env in self._envs:
            env.close()

    def _begin(self, ended: Tensor) -> None:
        for place, level in zip(ended.nonzero()[:, 0].tolist(), self._order.next(ended).tolist(), strict=True):
            if level != int(self.levels[place]):
                before, self._envs[place] = self._envs[place], None
                if before is not None:
                    before.close()
                self._envs[place] = self._made(level)
                self.levels[place] = level
            self._seen[place] = self._envs[place].reset(seed=level)[0]

    def _made(self, level: int) -> Any:
        env = self.make(level)
        if not hasattr(env, "step") or not hasattr(env, "action_space"):
            raise TypeError(f"make must return a gymnasium.Env, got {type(env).__name__}")
        if any(env.unwrapped is other.unwrapped for other in self._envs if other is not None):
            raise ValueError(
                f"make must make an environment of its own for level {level}, got one that is being played"
            )
        if not isinstance(env.action_space, self._spaces.Discrete):
            raise TypeError(f"make must give an environment with Discrete actions, got {env.action_space}")
        seen = env.observation_space
        for space in seen.values() if isinstance(seen, self._spaces.Dict) else [seen]:
            if not isinstance(space, self._spaces.Box | self._spaces.Discrete):
                raise TypeError(f"make must give observations of Box, Discrete or a Dict of these, got {seen}")
        if self.actions not in (0, int(env.action_space.n)):
            raise ValueError(
                f"make must give {self.actions} actions on every level, got {env.action_space.n} on {level}"
            )
        self.actions = int(env.action_space.n)
        return env


def _stacked(seen: Sequence[Any]) -> Any:
    if isinstance(seen[0], dict):
        return {name: _stacked([each[name] for each in seen]) for name in seen[0]}
    return torch.from_numpy(np.stack([np.asarray(each) for each in seen]))
