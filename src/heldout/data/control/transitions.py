"""Core: Single transitions of logged episodes, as value learning reads them; two logs as one; and minari's form.

An episode that came to its end has nothing after it; one that was cut off goes on, and its last state has a value: the
two are told apart here. Source: minari's ``EpisodeData`` and ``EpisodeBuffer`` for the fields.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from heldout.data.control.observations import map_observations
from heldout.data.control.trajectories import ONE, Trajectories
from heldout.errors import check_at_least, check_fraction, check_labels, checked


class Transitions(NamedTuple):
    """Single steps.

    Attributes:
        observations: ``(n, ...)``, or by name where they were logged so.
        actions: int64 ``(n,)``, or float ``(n, dim)``.
        rewards: float32 ``(n,)``.
        next_observations: of the states that were reached, as ``observations``; None where they were not logged.
        terminations: bool ``(n,)``: nothing came after it; False where an episode was cut off.
    """

    observations: Any
    actions: Tensor
    rewards: Tensor
    next_observations: Any
    terminations: Tensor


@checked
def transitions_of(trajectories: Trajectories, rows: Tensor | None = None) -> Transitions:
    """Returns steps of logged episodes, with what was seen after each; none reaches into the next episode.

    Args:
        trajectories: where ``final_observations`` are missing, ``next_observations`` are None.
        rows: int64 ``(n,)``, positions of steps; default: all of them.

    Raises:
        ValueError: positions that there are not.

    Example:
        >>> seen, ends = torch.tensor([0.0, 1.0, 5.0]), torch.tensor([False, True, True])
        >>> logged = Trajectories(seen, torch.tensor([0, 1, 0]), torch.ones(3), ends,
        ...                       final_observations=torch.tensor([2.0, 6.0]))
        >>> transitions_of(logged).next_observations.tolist()
        [1.0, 2.0, 6.0]
    """
    steps = len(trajectories.rewards)
    if rows is None:
        rows = torch.arange(steps, device=trajectories.rewards.device)
    check_labels(steps, rows=rows)
    seen, finals, following = trajectories.observations, trajectories.final_observations, None
    if finals is not None:
        assert trajectories.truncations is not None
        over = trajectories.terminations | trajectories.truncations
        number = over.cumsum(0)[rows] - 1  # of the episode, at its last step
        last, after = over[rows], (rows + 1).clamp(max=steps - 1)

        def next_of(inner: Tensor, final: Tensor) -> Tensor:
            found = inner[after].clone()
            found[last] = final[number[last]]
            return found

        following = _as_given(trajectories, map_observations(next_of, seen, finals))
    return Transitions(
        _as_given(trajectories, {name: value[rows] for name, value in seen.items()}), trajectories.actions[rows],
        trajectories.rewards[rows].float(), following, trajectories.terminations[rows],
    )  # fmt: skip


@checked
def mix_returns(first: Trajectories, second: Trajectories, fraction: float, *, seed: int = 0) -> Trajectories:
    """Returns whole episodes of two logs, about as many steps as the first has, with a share of its mean return.

    Which episodes are taken is drawn, so that the share is met on average. Where a log has too few episodes for so many
    steps there are fewer, in the same proportion.

    Args:
        first: the better one.
        second: a worse one.
        fraction: of the first's mean return; what the second has of it at least, and 1 at most.
        seed: of which episodes are taken, and of their order.

    Raises:
        ValueError: a first log that is not better than the second or whose mean return is not positive or that has
            fewer steps than an episode of the mixture, a fraction that no mixture has.

    Source: arXiv:2312.05742, section 3 (expert and suboptimal data, mixed to 75 % of the expert's return).

    Example:
        >>> ends = torch.ones(40, dtype=torch.bool)
        >>> good, bad = (Trajectories(torch.zeros(40), torch.zeros(40).long(), torch.full((40,), r), ends)
        ...              for r in (1.0, 0.0))
        >>> mixed = mix_returns(good, bad, 0.75)
        >>> len(mixed), mixed.rewards.mean().item()
        (40, 0.75)
    """
    check_fraction(fraction=fraction)
    check_at_least(0, seed=seed)
    means = [float(log.rewards.double().sum()) / len(log) for log in (first, second)]
    if means[0] <= 0 or means[1] >= means[0]:
        raise ValueError(f"first must have a positive mean return above the second's {means[1]:g}, got {means[0]:g}")
    if fraction * means[0] < means[1]:
        raise ValueError(f"fraction must be at least the second's share {means[1] / means[0]:.3f}, got {fraction}")
    share = (fraction * means[0] - means[1]) / (means[0] - means[1])  # of the episodes that are the first's
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(log), generator=generator) for log in (first, second)]
    lengths = [log.lengths.double().mean().item() for log in (first, second)]
    episodes = len(first.rewards) / (share * lengths[0] + (1 - share) * lengths[1])
    parts_of = ((share, first), (1 - share, second))
    episodes = min([episodes, *(len(log) / part for part, log in parts_of if part)])
    counts = [round(part * episodes) for part, _ in parts_of]
    if not any(counts):
        raise ValueError(f"first must have the steps of an episode of the mixture, got {len(first.rewards)}")
    parts = [
        log.select(order[:count]) for log, order, count in zip((first, second), orders, counts, strict=True) if count
    ]
    joined = Trajectories.concatenate(parts)
    return joined.select(torch.randperm(len(joined), generator=generator))


@checked
def to_episodes(trajectories: Trajectories) -> list[dict[str, Any]]:
    """Returns each episode in minari's form, as NumPy arrays; ``Trajectories.from_episodes`` reads them again.

    Each has ``observations`` (with the last one where it was logged), ``actions``, ``rewards``, ``terminations`` and
    ``truncations``, the arguments of ``minari.EpisodeBuffer``, and ``level`` where there are levels.

    Example:
        >>> logged = Trajectories(torch.zeros(2, 1), torch.tensor([3, 4]), torch.ones(2), torch.tensor([False, True]))
        >>> (episode,) = to_episodes(logged)
        >>> episode["actions"].tolist(), episode["observations"].shape
        ([3, 4], (2, 1))
    """
    found, first = [], 0
    finals = trajectories.final_observations
    for number, length in enumerate(trajectories.lengths.tolist()):
        rows = slice(first, first + length)
        seen = {name: value[rows] for name, value in trajectories.observations.items()}
        if finals is not None:
            seen = {name: torch.cat([value, finals[name][number : number + 1]]) for name, value in seen.items()}
        episode: dict[str, Any] = {
            "observations": _as_given(trajectories, {name: value.numpy(force=True) for name, value in seen.items()})
        }
        for name in ("actions", "rewards", "terminations", "truncations"):
            episode[name] = getattr(trajectories, name)[rows].numpy(force=True)
        if trajectories.levels is not None:
            episode["level"] = int(trajectories.levels[number])
        found.append(episode)
        first += length
    return found


def _as_given(trajectories: Trajectories, observations: dict[str, Any]) -> Any:
    """Observations as those of the log were given: by name, or one array without its name."""
    return observations if trajectories.named else observations[ONE]
