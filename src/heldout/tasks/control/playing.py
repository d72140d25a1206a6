"""Core: Policies played on levels: one episode of each, scored; and many, collected as a data set.

Source: arXiv:2312.05742, section 3 (data sets of policies' episodes on training levels, scores on others).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from heldout.data import Trajectories, map_observations
from heldout.errors import check_at_least, check_dimensions, check_finite, check_fraction, check_has, checked
from heldout.method import device_of, evaluating
from heldout.tasks.control.levels import LevelWorld


@dataclass(frozen=True, eq=False)
class LevelScores:
    """What one episode on each environment of a world came to.

    Attributes:
        levels: int64 ``(episodes,)``.
        returns: float32 ``(episodes,)``, undiscounted.
        lengths: actions, int64 ``(episodes,)``.
        successes: bool ``(episodes,)``: the episode came to its end with a positive reward.
    """

    levels: Tensor
    returns: Tensor
    lengths: Tensor
    successes: Tensor

    @property
    def success(self) -> float:
        """Share of the episodes that succeeded."""
        return float(self.successes.double().mean())

    @property
    def mean_return(self) -> float:
        """Mean of the returns."""
        return float(self.returns.double().mean())


@checked
def play_levels(
    policy: Any, world: LevelWorld, *, epsilon: float = 0.0, sample: bool = False, limit: int = 10_000, seed: int = 0
) -> LevelScores:
    """Returns the scores of a policy on one episode of each environment of a world, begun anew and played in step.

    Args:
        policy: from observations to logits ``(batch, actions)``, alone or first in a tuple (as ``ActorCritic`` has
            it); or with a method ``actor(episodes)``, which gives what acts with a memory, such as ``SequenceActor``.
            A module is put into evaluation mode meanwhile.
        world: such as ``KeyMazes(levels)``, which has an environment for each level.
        epsilon: share of actions that are drawn uniformly, which leads out of circles; the same for all that are
            compared.
        sample: draw from the softmax of the logits instead of taking the greatest.
        limit: most actions of an episode.
        seed: of the draws.

    Raises:
        ValueError: ``epsilon`` outside of [0, 1], logits of another form, rewards that are not finite, an
            episode that does not end within ``limit``.

    Source: arXiv:2312.05742, section 3.

    Example:
        >>> from heldout.tasks import KeyMazes
        >>> lazy = play_levels(lambda seen: torch.zeros(len(seen), 4), KeyMazes(range(6)))
        >>> lazy.success, lazy.lengths.tolist()
        (0.0, [60, 60, 60, 60, 60, 60])
    """
    check_has("reset", "observations", "step", world=world)
    check_fraction(epsilon=epsilon)
    check_at_least(1, limit=limit)
    check_at_least(0, seed=seed)
    generator, count = torch.Generator().manual_seed(seed), len(world)
    rest = getattr(world, "rest", lambda envs: None)
    world.reset()
    levels = world.levels.clone()
    returns, lengths = torch.zeros(count), torch.zeros(count, dtype=torch.int64)
    playing, successes = torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
    with _Acting(policy, count, world.actions) as answer:
        for _ in range(limit):
            logits = answer.logits(world.observations(), playing)
            actions = epsilon_greedy(logits, epsilon=epsilon, sample=sample, generator=generator)
            done = world.step(actions)
            check_finite(rewards=done.rewards)
            answer.record(actions, done.rewards)
            returns += torch.where(playing, done.rewards, 0.0)
            lengths += playing
            successes |= playing & done.terminations & (done.rewards > 0)
            playing &= ~(done.terminations | done.truncations)
            if not bool(playing.any()):
                return LevelScores(levels, returns, lengths, successes)
            rest(~playing)
    raise ValueError(f"limit must let every episode end, and {int(playing.sum())} had not after {limit} actions")


@checked
def collect(
    policy: Any,
    world: LevelWorld,
    transitions: int,
    *,
    epsilon: float = 0.0,
    sample: bool = True,
    limit: int = 10_000,
    seed: int = 0,
) -> Trajectories:
    """Returns whole episodes of a policy, with levels and what was seen at their ends, of about so many transitions.

    Episodes are taken in the order in which they begin, each whole, until there are enough transitions: in the order in
    which they end, short ones would be more frequent than they are.

    Args:
        policy: from observations to logits, alone or first in a tuple; without a memory.
        world: begun anew; its levels are those of the data.
        transitions: at least so many, and less than an episode more.
        epsilon, sample, limit, seed: as for ``play_levels``.

    Raises:
        ValueError: fewer than 1 transition, ``epsilon`` outside of [0, 1], logits of another form, an episode that does
            not end within ``limit``.

    Source: arXiv:2312.05742, section 3.

    Example:
        >>> from heldout.tasks import KeyMazes
        >>> logged = collect(lambda seen: torch.zeros(len(seen), 4), KeyMazes(range(3)), 100)
        >>> len(logged.rewards) >= 100, logged.levels.max().item() <= 2, len(logged.final_observations) == 1
        (True, True, True)
    """
    check_has("reset", "observations", "step", world=world)
    check_at_least(1, transitions=transitions, limit=limit)
    check_fraction(epsilon=epsilon)
    check_at_least(0, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    world.reset()
    steps: list[tuple[Any, Tensor, Tensor, Tensor, Tensor]] = []
    begun = torch.zeros(len(world), dtype=torch.int64)
    found: list[tuple[int, int, int, int, Any]] = []  # environment, first step, step after the last, level, final
    have, everyone = 0, torch.ones(len(world), dtype=torch.bool)
    with _Acting(policy, len(world), world.actions) as answer:
        while have < transitions or not _enough(found, begun, transitions):
            seen, levels = world.observations(), world.levels.clone()
            actions = epsilon_greedy(answer.logits(seen, everyone), epsilon=epsilon, sample=sample, generator=generator)
            done = world.step(actions)
            steps.append((seen, actions, done.rewards, done.terminations, done.truncations & ~done.terminations))
            for env in (done.terminations | done.truncations).nonzero()[:, 0].tolist():
                final = map_observations(lambda each, env=env: each[env].clone(), done.observations)
                found.append((env, int(begun[env]), len(steps), int(levels[env]), final))
                have += len(steps) - int(begun[env])
                begun[env] = len(steps)
            if len(steps) - int(begun.min()) >= limit:
                raise ValueError(f"limit must let every episode end, and one had not after {limit} actions")
    found = _enough(found, begun, transitions)
    envs = torch.cat([torch.full((stop - first,), env) for env, first, stop, _, _ in found])
    times = torch.cat([torch.arange(first, stop) for _, first, stop, _, _ in found])
    seen_at = map_observations(lambda *each: torch.stack(each)[times, envs], *(step[0] for step in steps))
    actions, rewards, ended, cut = (torch.stack([step[k] for step in steps])[times, envs] for k in range(1, 5))  # type: ignore[misc]
    finals = map_observations(lambda *each: torch.stack(each), *(final for *_, final in found))
    return Trajectories(seen_at, actions, rewards, ended, cut, finals, torch.tensor([level for *_, level, _ in found]))


def _enough(found: list[Any], begun: Tensor, transitions: int) -> list[Any]:
    """The first episodes by their beginning that have enough transitions together; none while one of them is played."""
    taken, have = [], 0
    for episode in sorted(found, key=lambda each: (each[1], each[0])):
        if (episode[1], episode[0]) > min((int(first), env) for env, first in enumerate(begun)):
            return []  # an episode that began before this one is being played
        taken.append(episode)
        have += episode[2] - episode[1]
        if have >= transitions:
            return taken
    return []


@checked
def epsilon_greedy(logits: Tensor, *, epsilon: float, sample: bool, generator: torch.Generator) -> Tensor:
    """Returns an action for each row of logits, int64 ``(batch,)``.

    Args:
        logits: ``(batch, actions)``.
        epsilon: share of actions that are drawn uniformly.
        sample: draw from the softmax instead of taking the greatest.
        generator: of the draws; it is drawn from alike whatever the logits are.

    Raises:
        ValueError: logits of another form, ``epsilon`` outside of [0, 1].

    Example:
        >>> epsilon_greedy(torch.eye(3), epsilon=0.0, sample=False, generator=torch.Generator()).tolist()
        [0, 1, 2]
    """
    check_dimensions(2, logits=logits)
    check_fraction(epsilon=epsilon)
    best = logits.argmax(-1)
    if sample:
        best = torch.multinomial(logits.float().softmax(-1), 1, generator=generator)[:, 0]
    if epsilon:
        explore = torch.rand(len(logits), generator=generator) < epsilon
        best = torch.where(explore, torch.randint(logits.shape[-1], best.shape, generator=generator), best)
    return best


class _Acting:
    """A policy in evaluation mode, asked for those that play alone where it has no memory."""

    def __init__(self, policy: Any, episodes: int, actions: int) -> None:
        self.policy, self.episodes, self.actions = policy, episodes, actions
        self.memory = policy.actor(episodes) if hasattr(policy, "actor") else None
        self.mode = evaluating(policy) if isinstance(policy, nn.Module) else None
        self.device = device_of(policy) if isinstance(policy, nn.Module) else torch.device("cpu")

    def __enter__(self) -> _Acting:
        if self.mode is not None:
            self.mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.mode is not None:
            self.mode.__exit__(*error)

    @torch.no_grad()
    def logits(self, observations: Any, playing: Tensor) -> Tensor:
        if self.memory is not None:
            named = observations if isinstance(observations, dict) else {"observation": observations}
            named = map_observations(lambda each: each.to(self.device), named)
            return self._fitting(self.memory.logits(named), self.episodes).cpu()
        said = self.policy(map_observations(lambda each: each[playing].to(self.device), observations))
        said = self._fitting(said[0] if isinstance(said, tuple) else said, int(playing.sum()))
        found = torch.zeros(self.episodes, self.actions, dtype=said.dtype)
        found[playing] = said.cpu()
        return found

    def record(self, actions: Tensor, rewards: Tensor) -> None:
        if self.memory is not None:
            self.memory.record(actions.to(self.device), rewards.to(self.device))

    def _fitting(self, logits: Tensor, rows: int) -> Tensor:
        if not isinstance(logits, Tensor) or tuple(logits.shape) != (rows, self.actions):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"policy must return logits {(rows, self.actions)}, got {got}")
        if not bool(logits.isfinite().all()):
            raise ValueError("policy must return logits that are finite")
        return logits
