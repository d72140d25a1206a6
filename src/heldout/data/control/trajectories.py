"""Core: a store of logged episodes, with returns-to-go and windows of steps that never cross episodes.

Episodes of one's own or of minari's form: observations, actions, rewards, terminations and truncations. Source:
arXiv:2106.01345 (return-conditioned sequences); minari's ``EpisodeData`` for the fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_finite,
    check_fraction,
    check_labels,
    check_length,
    check_nonempty,
    checked,
)

ONE = "observation"
"""Name of the observation of episodes whose observations are one array."""


class _Unnamed(dict[str, Tensor]):
    """Observations that came as one tensor, under ``ONE``."""


class TrajectoryBatch(NamedTuple):
    """Windows of logged steps, as a policy reads them.

    Attributes:
        observations: by name, ``(windows, steps, ...)``.
        actions: int64 ``(windows, steps)``, or float ``(windows, steps, dim)``.
        returns: the return-to-go before each action, float32 ``(windows, steps)``.
        timesteps: number of the step in its episode, from 0, int64 ``(windows, steps)``.
        mask: bool ``(windows, steps)``; where it is False the last step of the episode stands again, and is not meant.

    Example:
        >>> ends = torch.tensor([False, False, True])
        >>> logged = Trajectories(torch.zeros(3, 1), torch.tensor([7, 8, 9]), torch.ones(3), ends)
        >>> read = logged.batch(logged.windows(2), logged.returns())
        >>> read.actions[read.mask].tolist(), read.timesteps.tolist()
        ([7, 8, 9], [[0, 1], [2, 2]])
    """

    observations: dict[str, Tensor]
    actions: Tensor
    returns: Tensor
    timesteps: Tensor
    mask: Tensor


class Windows(NamedTuple):
    """Positions of steps, and which of them are steps of the window.

    Attributes:
        index: int64 ``(windows, length)``, positions in the tensors of ``Trajectories``.
        mask: bool ``(windows, length)``; where it is False the last step of the episode stands again.

    Example:
        >>> ends = torch.tensor([False, False, True])
        >>> found = Trajectories(torch.zeros(3, 1), torch.arange(3), torch.zeros(3), ends).windows(2, stride=1)
        >>> found.index.tolist(), found.mask.sum(1).tolist()
        ([[0, 1], [1, 2], [2, 2]], [2, 2, 1])
    """

    index: Tensor  # type: ignore[assignment]  # a field of its own, not the method of tuples
    mask: Tensor


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Logged episodes, one after the other along the first dimension of every tensor.

    Args:
        observations: what was seen before each action: ``(steps, ...)``, or several by name.
        actions: int64 ``(steps,)`` of discrete actions, or float ``(steps, dim)``.
        rewards: for each action, ``(steps,)``.
        terminations: bool ``(steps,)``: the episode came to its end with this step.
        truncations: bool ``(steps,)``: it was cut off after this step; default: nowhere.
        final_observations: what was seen at the end of each episode, ``(episodes, ...)`` or by name; what learns values
            needs it.
        levels: of each episode, int64 ``(episodes,)``.

    Raises:
        ValueError: no steps, lengths that differ, values that are not finite, a last step at which no episode ends (the
            flags are missing), or final observations of another form.
        TypeError: flags that are not bool, discrete actions that are no integers.

    Source: arXiv:2106.01345, section 3.

    Example:
        >>> logged = Trajectories(
        ...     torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0, 1, 1]), torch.tensor([1.0, 2.0, 5.0]),
        ...     torch.tensor([False, True, True]))
        >>> len(logged), logged.lengths.tolist(), logged.returns().tolist(), logged.timesteps.tolist()
        (2, [2, 1], [3.0, 2.0, 5.0], [0, 1, 0])
    """

    observations: Any
    actions: Tensor
    rewards: Tensor
    terminations: Tensor
    truncations: Tensor | None = None
    final_observations: Any = None
    levels: Tensor | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        own = self.observations
        if not isinstance(own, _Unnamed):
            put(self, "observations", dict(own) if isinstance(own, Mapping) else _Unnamed({ONE: own}))
        if self.truncations is None and isinstance(self.terminations, Tensor):
            put(self, "truncations", torch.zeros_like(self.terminations))
        check_nonempty(observations=self.observations)
        parts = {f"observations[{name!r}]": value for name, value in self.observations.items()}
        parts |= {name: getattr(self, name) for name in ("actions", "rewards", "terminations", "truncations")}
        for name, value in sorted(parts.items(), key=lambda part: part[0] != "rewards"):  # to which the others are held
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(value).__name__}: Trajectories.from_episodes(...)")
            if value.ndim == 0 or len(value) != len(self.rewards):
                shape = tuple(value.shape)
                raise ValueError(f"{name} must have a row for each of {len(self.rewards)} rewards, got shape {shape}")
            check_finite(**{name: value})
        check_nonempty(rewards=self.rewards)
        for name in ("terminations", "truncations"):
            if parts[name].dtype != torch.bool:
                raise TypeError(f"{name} must be bool, got {parts[name].dtype}")
        if self.rewards.ndim != 1 or self.terminations.ndim != 1 or parts["truncations"].ndim != 1:
            raise ValueError("rewards, terminations and truncations must have one dimension")
        if self.rewards.is_complex() or self.rewards.dtype == torch.bool:
            raise TypeError(f"rewards must be numbers, got {self.rewards.dtype}")
        if self.actions.ndim == 1:
            check_labels(actions=self.actions)
        if not bool(self._ends[-1]):
            raise ValueError("the last step ends no episode: terminations or truncations must say where episodes end")
        if self.final_observations is not None:
            put(self, "final_observations", _finals(self))
        if self.levels is not None:
            check_labels(levels=self.levels)
            check_length(len(self), levels=self.levels)

    @classmethod
    @checked
    def from_episodes(cls, episodes: Iterable[Any]) -> Trajectories:
        """Returns the store of episodes, each a mapping or an object with the fields of minari's ``EpisodeData``.

        Args:
            episodes: with ``observations``, ``actions``, ``rewards``, ``terminations`` and ``truncations``, arrays,
                tensors or lists; observations may be mappings of such, and have one row more than there are actions
                (what was seen at the end), which is kept where all episodes have it. An episode without flags at its
                last step is cut there. ``level``, an integer, is kept where all episodes have it.

        Raises:
            ValueError: no episodes, an episode that lacks a field or whose lengths differ.

        Example:
            >>> episode = {"observations": [[0.0], [1.0], [2.0]], "actions": [1, 0], "rewards": [0.5, 1.0],
            ...            "terminations": [False, True], "truncations": [False, False]}
            >>> Trajectories.from_episodes([episode, episode]).observations["observation"].flatten().tolist()
            [0.0, 1.0, 0.0, 1.0]
        """
        read = [_episode(number, episode) for number, episode in enumerate(episodes)]
        check_nonempty(episodes=read)
        names = list(read[0].observations)
        for number, each in enumerate(read):
            if list(each.observations) != names:
                raise ValueError(
                    f"episode {number} must observe {names}, as the first does, got {[*each.observations]}"
                )
        return _joined(read)

    @classmethod
    @checked
    def concatenate(cls, stores: Sequence[Trajectories]) -> Trajectories:
        """Returns one store with the episodes of several, in their order.

        Raises:
            ValueError: no stores, or stores of other observations or actions.

        Example:
            >>> one = Trajectories(torch.zeros(2, 1), torch.tensor([3, 4]), torch.ones(2), torch.tensor([False, True]))
            >>> len(Trajectories.concatenate([one, one]))
            2
        """
        check_nonempty(stores=stores)
        forms = [
            {n: v.shape[1:] for n, v in each.observations.items()} | {"": each.actions.shape[1:]} for each in stores
        ]
        for number, form in enumerate(forms):
            if form != forms[0]:
                raise ValueError(f"stores must observe and do the same, and store {number} differs from the first")
        return _joined(stores)

    @property
    def _ends(self) -> Tensor:
        assert self.truncations is not None
        return self.terminations | self.truncations

    @property
    def named(self) -> bool:
        """Whether observations came by name, and not as one tensor, which is kept as ``"observation"``."""
        return not isinstance(self.observations, _Unnamed)

    def __len__(self) -> int:
        """How many episodes there are."""
        return int(self._ends.sum())

    @property
    def lengths(self) -> Tensor:
        """Steps of each episode, int64 ``(episodes,)``."""
        last = self._ends.nonzero()[:, 0]
        return torch.diff(last, prepend=last.new_tensor([-1]))

    @property
    def episodes(self) -> Tensor:
        """The episode of each step, int64 ``(steps,)``."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.rewards.device), self.lengths)

    @property
    def timesteps(self) -> Tensor:
        """Number of each step in its episode, from 0, int64 ``(steps,)``."""
        lengths = self.lengths
        first = lengths.cumsum(0) - lengths
        return torch.arange(len(self.rewards), device=self.rewards.device) - torch.repeat_interleave(first, lengths)

    @checked
    def select(self, episodes: Sequence[int] | Tensor) -> Trajectories:
        """Returns the episodes at these positions, in this order.

        Raises:
            ValueError: none, or a position that there is not.

        Example:
            >>> ends = torch.tensor([True, True, True])
            >>> logged = Trajectories(torch.zeros(3, 1), torch.tensor([0, 1, 2]), torch.zeros(3), ends)
            >>> logged.select([2, 0]).actions.tolist()
            [2, 0]
        """
        check_labels(len(self), episodes=episodes)
        check_nonempty(episodes=episodes)
        episodes = torch.as_tensor(episodes, device=self.rewards.device)
        ends = self.lengths.cumsum(0)
        first = ends - self.lengths
        rows = torch.cat([torch.arange(int(first[k]), int(ends[k])) for k in episodes.tolist()])
        rows = rows.to(self.rewards.device)
        assert self.truncations is not None
        return Trajectories(
            type(self.observations)({name: value[rows] for name, value in self.observations.items()}),
            self.actions[rows], self.rewards[rows], self.terminations[rows], self.truncations[rows],
            None if self.final_observations is None
            else {name: value[episodes] for name, value in self.final_observations.items()},
            None if self.levels is None else self.levels[episodes],
        )  # fmt: skip

    @checked
    def returns(self, gamma: float = 1.0, *, rewards: Tensor | None = None) -> Tensor:
        """Returns the return-to-go of each step, ``R_t = r_t + gamma * R_(t+1)`` within its episode, float32.

        Args:
            gamma: discount, in [0, 1].
            rewards: other rewards ``(steps,)`` than those logged, such as normalised ones.

        Raises:
            ValueError: ``gamma`` outside of [0, 1], rewards of another length or not finite.

        Source: arXiv:2106.01345, section 3.

        Example:
            >>> ends = torch.tensor([False, True, True])
            >>> logged = Trajectories(torch.zeros(3, 1), torch.tensor([0, 1, 2]), torch.tensor([1.0, 2.0, 4.0]), ends)
            >>> logged.returns(0.5).tolist()
            [2.0, 2.0, 4.0]
        """
        check_fraction(gamma=gamma)
        check_finite(rewards=rewards)
        given = self.rewards if rewards is None else rewards
        if given.shape != self.rewards.shape:
            raise ValueError(f"rewards must be {tuple(self.rewards.shape)}, got {tuple(given.shape)}")
        lengths = self.lengths
        longest = int(lengths.max())
        places = (self.episodes, self.timesteps)
        padded = torch.zeros(len(lengths), longest, dtype=torch.float64, device=given.device)
        padded[places] = given.double()
        for step in reversed(range(longest - 1)):
            padded[:, step] += gamma * padded[:, step + 1]
        return padded[places].float()

    @checked
    def windows(self, length: int, *, stride: int | None = None) -> Windows:
        """Returns windows of steps, none of which crosses from an episode into another.

        Windows start at steps 0, ``stride``, ... of each episode; the last ones are shorter, and padded by the last
        step of the episode where the mask is False.

        Args:
            length: steps of a window.
            stride: steps between the starts of windows; default: ``length``, so that they do not overlap.

        Raises:
            ValueError: ``length`` or ``stride`` below 1.

        Example:
            >>> ends = torch.tensor([False, False, True, True])
            >>> found = Trajectories(torch.zeros(4, 1), torch.arange(4), torch.zeros(4), ends).windows(2)
            >>> found.index.tolist(), found.mask.tolist()
            ([[0, 1], [2, 2], [3, 3]], [[True, True], [True, False], [True, False]])
        """
        check_at_least(1, length=length, stride=stride)
        starts = (self.timesteps % (stride or length) == 0).nonzero()[:, 0]
        last = (self.lengths.cumsum(0) - 1)[self.episodes[starts]]
        index = starts[:, None] + torch.arange(length, device=starts.device)
        mask = index <= last[:, None]
        return Windows(torch.minimum(index, last[:, None]), mask)

    @checked
    def batch(self, windows: Windows, returns: Tensor) -> TrajectoryBatch:
        """Returns what a policy reads of some windows.

        Args:
            windows: positions of steps, from ``windows``, or some rows of them.
            returns: return-to-go of each step ``(steps,)``, from ``returns``, scaled as the policy is used to.

        Raises:
            ValueError: returns of another length, positions that there are not.

        Example:
            >>> ends = torch.tensor([False, True])
            >>> logged = Trajectories(torch.zeros(2, 1), torch.tensor([3, 4]), torch.ones(2), ends)
            >>> logged.batch(logged.windows(2), logged.returns()).returns.tolist()
            [[2.0, 1.0]]
        """
        index, mask = windows
        check_finite(returns=returns)
        check_labels(len(self.rewards), windows=index)
        if returns.shape != self.rewards.shape:
            raise ValueError(f"returns must be {tuple(self.rewards.shape)}, got {tuple(returns.shape)}")
        seen = {name: value[index] for name, value in self.observations.items()}
        return TrajectoryBatch(seen, self.actions[index], returns[index].float(), self.timesteps[index], mask)


_FIELDS = ("observations", "actions", "rewards", "terminations", "truncations")


def _episode(number: int, episode: Any) -> Trajectories:
    """One episode as a store of its own, which checks it."""
    found = {}
    for name in _FIELDS:
        value = episode.get(name) if isinstance(episode, Mapping) else getattr(episode, name, None)
        if value is None and name not in ("terminations", "truncations"):
            raise ValueError(f"episode {number} has no {name}")
        found[name] = value
    rewards = _tensor(found["rewards"])
    steps = len(rewards)
    if not steps:
        raise ValueError(f"episode {number} must have a step, got none")
    seen = found["observations"]
    form = dict if isinstance(seen, Mapping) else _Unnamed
    seen = {n: _kept(v) for n, v in seen.items()} if isinstance(seen, Mapping) else {ONE: _kept(seen)}
    for name, value in seen.items():
        if len(value) not in (steps, steps + 1):
            raise ValueError(f"episode {number} must have {steps} or {steps + 1} {name}s, got {len(value)}")
    flags = [
        torch.zeros(steps, dtype=torch.bool) if found[n] is None else _tensor(found[n]).bool() for n in _FIELDS[3:]
    ]
    for name, flag in zip(_FIELDS[3:], flags, strict=True):
        if flag.shape != (steps,):
            raise ValueError(f"episode {number} must have {steps} {name}, got shape {tuple(flag.shape)}")
    if bool((flags[0] | flags[1])[:-1].any()):
        raise ValueError(f"episode {number} goes on after its end: terminations or truncations before the last step")
    if not bool(flags[0][-1] | flags[1][-1]):
        flags[1] = flags[1].clone()
        flags[1][-1] = True
    whole = all(len(value) == steps + 1 for value in seen.values())
    finals = {name: value[steps:] for name, value in seen.items()} if whole else None
    seen = form({name: value[:steps] for name, value in seen.items()})
    level = episode.get("level") if isinstance(episode, Mapping) else getattr(episode, "level", None)
    levels = None if level is None else torch.as_tensor([level])
    try:
        return Trajectories(seen, _tensor(found["actions"]), rewards, flags[0], flags[1], finals, levels)
    except (ValueError, TypeError) as error:
        raise type(error)(f"episode {number}: {error}") from None


def _tensor(value: Any) -> Tensor:
    """A tensor on the CPU's terms: float32 for real numbers, int64 for integers."""
    made = value if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value).copy())
    if made.dtype == torch.bool:
        return made
    return made.float() if made.is_floating_point() else made.long()


def _kept(value: Any) -> Tensor:
    """As ``_tensor``, but bytes stay bytes: pictures would take eight times the room."""
    made = value if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value).copy())
    return made if made.dtype == torch.uint8 else _tensor(made)


def _joined(stores: Sequence[Trajectories]) -> Trajectories:
    finals: Any = [each.final_observations for each in stores]
    levels: Any = [each.levels for each in stores]
    return Trajectories(
        type(stores[0].observations)(
            {name: torch.cat([each.observations[name] for each in stores]) for name in stores[0].observations}
        ),
        torch.cat([each.actions for each in stores]),
        torch.cat([each.rewards for each in stores]),
        torch.cat([each.terminations for each in stores]),
        torch.cat([each.truncations for each in stores]),  # type: ignore[misc]
        final_observations=None
        if any(each is None for each in finals)
        else {name: torch.cat([each[name] for each in finals]) for name in finals[0]},
        levels=None if any(each is None for each in levels) else torch.cat(levels),
    )


def _finals(logged: Trajectories) -> dict[str, Tensor]:
    """Final observations by name, of the form of the others."""
    own = logged.final_observations
    named = dict(own) if isinstance(own, Mapping) else {ONE: own}
    if list(named) != list(logged.observations):
        raise ValueError(f"final_observations must be of {[*logged.observations]}, got {[*named]}")
    for name, value in named.items():
        form = (len(logged), *logged.observations[name].shape[1:])
        if not isinstance(value, Tensor) or tuple(value.shape) != form:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"final_observations[{name!r}] must be a tensor {form}, one of each episode, got {got}")
        check_finite(**{f"final_observations[{name!r}]": value})
    return named
