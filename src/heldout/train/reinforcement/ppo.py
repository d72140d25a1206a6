"""Core: Proximal policy optimization on environments that are played in step, with values at limits of time.

Source: arXiv:1707.06347 (PPO); arXiv:1506.02438 (generalized advantage estimation); arXiv:1712.00378 for episodes that
are cut off: what came after them is estimated, not taken as nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.data import map_observations
from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_finite,
    check_fraction,
    check_has,
    check_nonempty,
    check_nonnegative,
    check_positive,
    checked,
)
from heldout.method import device_of, evaluating
from heldout.tasks import LevelWorld
from heldout.train.supervised import seeded


class PPOLog(NamedTuple):
    """What an iteration of PPO saw.

    Attributes:
        transitions: so far.
        episodes: that ended in this iteration.
        mean_return: of these, NaN where there are none.
        policy_loss, value_loss, entropy: means over the updates.
        kl: mean of ``ratio - 1 - log(ratio)`` over the updates.
        clipped: share of ratios outside of the clipping range.
    """

    transitions: int
    episodes: int
    mean_return: float
    policy_loss: float
    value_loss: float
    entropy: float
    kl: float
    clipped: float


@checked
def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminations: Tensor,
    truncations: Tensor,
    *,
    gamma: float = 0.999,
    lam: float = 0.95,
) -> Tensor:
    """Returns the advantages ``A_t = delta_t + gamma * lam * A_(t+1)``, the sum cut where an episode ends.

    ``delta_t = r_t + gamma * V(s_(t+1)) - V(s_t)``, without the next value where the episode came to its end, and with
    it where it was cut off.

    Args:
        rewards, values: ``(steps, ...)``, in the order of time along the first dimension.
        next_values: of the states that the actions led to, also where an episode was cut off there.
        terminations, truncations: bool, of the same shape.
        gamma: discount, in [0, 1].
        lam: of the exponential average over lengths, in [0, 1].

    Raises:
        ValueError: shapes that differ, no steps, values that are not finite, options outside of [0, 1].
        TypeError: flags that are not bool.

    Source: arXiv:1506.02438, eq. 16; arXiv:1712.00378, section 2.

    Example:
        >>> no, yes = torch.tensor([False]), torch.tensor([True])
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> generalized_advantages(one, zero, 5 * one, yes, no, gamma=0.5).tolist()
        [1.0]
        >>> generalized_advantages(one, zero, 5 * one, no, yes, gamma=0.5).tolist()
        [3.5]
    """
    check_nonempty(rewards=rewards)
    check_finite(rewards=rewards, values=values, next_values=next_values)
    check_fraction(gamma=gamma, lam=lam)
    given = {"values": values, "next_values": next_values, "terminations": terminations, "truncations": truncations}
    for name, value in given.items():
        if value.shape != rewards.shape:
            raise ValueError(f"{name} must be {tuple(rewards.shape)} as the rewards, got {tuple(value.shape)}")
        if name.endswith("ations") and value.dtype != torch.bool:
            raise TypeError(f"{name} must be bool, got {value.dtype}")
    deltas = rewards + gamma * torch.where(terminations, 0.0, next_values) - values
    carried = gamma * lam * (~(terminations | truncations)).to(deltas.dtype)
    found, following = torch.zeros_like(deltas), torch.zeros_like(deltas[0])
    for step in reversed(range(len(deltas))):
        following = deltas[step] + carried[step] * following
        found[step] = following
    return found


@checked
def clipped_policy_loss(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, *, clip: float = 0.2) -> Tensor:
    """Returns ``-mean(min(ratio * A, clip(ratio, 1 - clip, 1 + clip) * A))``, a scalar.

    Args:
        log_prob: of the actions that were taken, with their graph, ``(n,)``.
        old_log_prob: when they were taken, ``(n,)``; no gradient enters it.
        advantage: ``(n,)``; no gradient enters it.
        clip: half width of the range in which the ratio is followed.

    Raises:
        ValueError: no actions, shapes that differ, advantages that are not finite, a clip that is not positive.

    Source: arXiv:1707.06347, eq. 7.

    Example:
        >>> clipped_policy_loss(torch.tensor([2.0]).log(), torch.zeros(1), torch.ones(1)).item()
        -1.2000000476837158
    """
    check_nonempty(log_prob=log_prob)
    check_dimensions(1, log_prob=log_prob)
    check_finite(old_log_prob=old_log_prob, advantage=advantage)
    check_positive(clip=clip)
    for name, value in {"old_log_prob": old_log_prob, "advantage": advantage}.items():
        if value.shape != log_prob.shape:
            raise ValueError(f"{name} must be {tuple(log_prob.shape)} as log_prob, got {tuple(value.shape)}")
    ratio, weight = (log_prob - old_log_prob.detach()).exp(), advantage.detach()
    return -torch.minimum(ratio * weight, ratio.clamp(1 - clip, 1 + clip) * weight).mean()


@checked
def ppo(
    policy: nn.Module,
    world: LevelWorld,
    *,
    transitions: int,
    steps: int = 256,
    epochs: int = 3,
    minibatches: int = 8,
    lr: float = 5e-4,
    gamma: float = 0.999,
    lam: float = 0.95,
    clip: float = 0.2,
    entropy: float = 0.01,
    value_weight: float = 0.5,
    max_grad_norm: float = 0.5,
    anneal: bool = False,
    seed: int = 0,
    on_iteration: Callable[[PPOLog], None] | None = None,
) -> list[PPOLog]:
    """Trains a policy in place by PPO, and returns what each iteration saw.

    An iteration plays ``steps`` actions in each environment, sampled from the policy, and makes ``epochs`` passes over
    them by Adam. Advantages are normalised in each minibatch. The last state of a rollout, and the last of an episode
    that was cut off, have the value that the policy gives them. Rollouts are in evaluation mode, updates in training
    mode. Worlds are played on the CPU; the policy is asked where its weights are.

    Args:
        policy: from observations to logits ``(batch, actions)`` and values ``(batch,)``, such as ``ActorCritic``.
        world: played in step; it goes on where it stands.
        transitions: to play in all, rounded up to whole iterations.
        steps, epochs, minibatches: of an iteration.
        lr: of Adam.
        gamma, lam: of ``generalized_advantages``.
        clip: of ``clipped_policy_loss``.
        entropy: weight of the mean entropy, which is raised.
        value_weight: weight of half the squared error of the values.
        max_grad_norm: the gradient's greatest norm.
        anneal: the rate falls linearly to 0.
        seed: of actions, order and dropout.
        on_iteration: called with what an iteration saw.

    Raises:
        ValueError: options out of range, fewer transitions of an iteration than minibatches, a loss that is not finite.
        TypeError: a policy that does not return logits and values.

    Source: arXiv:1707.06347; the defaults are those of arXiv:2312.05742's behaviour policies (64 environments there).

    Example:
        >>> from heldout.nn import ActorCritic, GridEncoder
        >>> from heldout.tasks import KeyMazes
        >>> policy = ActorCritic(GridEncoder(8, 5, hidden=16), 16, 4)
        >>> log = ppo(policy, KeyMazes(range(4), envs=4, size=5), transitions=64, steps=8)
        >>> len(log), log[-1].transitions
        (2, 64)
    """
    check_has("observations", "step", world=world)
    check_at_least(1, transitions=transitions, steps=steps, epochs=epochs, minibatches=minibatches)
    check_nonnegative(lr=lr, entropy=entropy, value_weight=value_weight)
    check_fraction(gamma=gamma, lam=lam)
    check_positive(clip=clip, max_grad_norm=max_grad_norm)
    check_at_least(0, seed=seed)
    played = steps * len(world)
    if played < 2 * minibatches:
        raise ValueError(f"minibatches must leave 2 of an iteration's {played} transitions to each, got {minibatches}")
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    if not weights:
        raise ValueError("policy must have weights that require a gradient")
    optimizer = torch.optim.Adam(weights, lr=lr, eps=1e-5)
    running, log = torch.zeros(len(world)), []
    iterations = math.ceil(transitions / played)
    with seeded(seed):
        for iteration in range(iterations):
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - iteration / iterations) if anneal else lr
            rollout = _rollout(policy, world, steps, running)
            advantages = generalized_advantages(*rollout.told, gamma=gamma, lam=lam)
            returns = (advantages + rollout.told[1]).flatten()
            flat = map_observations(lambda seen: seen.flatten(0, 1), rollout.observations)
            sums = torch.zeros(5)
            for _ in range(epochs):
                for rows in torch.randperm(played).tensor_split(minibatches):
                    losses = _losses(policy, map_observations(lambda seen, rows=rows: seen[rows], flat),
                                     rollout.actions.flatten()[rows], rollout.log_probs.flatten()[rows],
                                     advantages.flatten()[rows], returns[rows], clip)  # fmt: skip
                    loss = losses[0] + value_weight * losses[1] - entropy * losses[2]
                    if not bool(loss.isfinite()):
                        raise ValueError(f"the loss is {loss.item()} after {iteration * played} transitions: lower lr")
                    optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(weights, max_grad_norm)
                    optimizer.step()
                    sums += torch.stack(losses).detach()
            ended = rollout.ended
            mean = sum(ended) / len(ended) if ended else math.nan
            log.append(PPOLog((iteration + 1) * played, len(ended), mean, *(sums / (epochs * minibatches)).tolist()))
            if on_iteration is not None:
                on_iteration(log[-1])
    return log


class PolicyHistory:
    """The weights of a policy at each iteration of ``ppo``, and what it reached with them.

    Args:
        policy: that is trained; each of its states is copied.

    Attributes:
        returns: mean return of the episodes of each iteration, NaN where none ended.

    Raises:
        TypeError: a policy that is no module.

    Source: arXiv:2312.05742, section 3 (suboptimal data, of checkpoints of the policy that became the expert).

    Example:
        >>> from heldout.nn import ActorCritic, GridEncoder
        >>> from heldout.tasks import KeyMazes
        >>> policy = ActorCritic(GridEncoder(8, 5, hidden=16), 16, 4)
        >>> history = PolicyHistory(policy)
        >>> log = ppo(policy, KeyMazes(range(4), envs=4, size=5), transitions=512, steps=64, on_iteration=history)
        >>> worse = history.at_return(0.5)
        >>> len(history.returns)
        2
    """

    @checked
    def __init__(self, policy: nn.Module) -> None:
        self.policy = policy
        self.returns: list[float] = []
        self._states = [copy.deepcopy(policy.state_dict())]  # the last one has not been played with

    def __call__(self, log: PPOLog) -> None:
        """Takes note of an iteration: ``ppo(..., on_iteration=history)``."""
        self.returns.append(log.mean_return)
        self._states.append(copy.deepcopy(self.policy.state_dict()))

    @checked
    def at_return(self, share: float) -> nn.Module:
        """Returns a copy of the policy as it was when its episodes had about this share of what the last ones had.

        Raises:
            ValueError: a share outside of [0, 1], no iteration in which an episode ended.
        """
        check_fraction(share=share)
        known = [(value, state) for value, state in zip(self.returns, self._states, strict=False) if value == value]
        if not known:
            raise ValueError("at_return: no episode ended in any iteration")
        aim = share * known[-1][0]
        found = copy.deepcopy(self.policy)
        found.load_state_dict(min(known, key=lambda each: abs(each[0] - aim))[1])
        return found


class _Rollout(NamedTuple):
    observations: Any  # (steps, envs, ...)
    actions: Tensor
    log_probs: Tensor
    told: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # rewards, values, next values, terminations, truncations
    ended: list[float]  # returns of episodes that ended


@torch.no_grad()
def _rollout(policy: nn.Module, world: LevelWorld, steps: int, running: Tensor) -> _Rollout:
    """``running`` has the returns so far of the episodes that are being played, and is moved on."""
    seen: list[Any] = []
    rows: list[tuple[Tensor, ...]] = []
    ended: list[float] = []
    with evaluating(policy):
        for step in range(steps + 1):
            here = world.observations()
            logits, values = _said(policy, here)
            if step:
                following = torch.where(rows[-1][5], rows[-1][6], values)  # the next episode's is not meant at an end
                rows[-1] = (*rows[-1][:5], rows[-1][5], following)
            if step == steps:
                break
            actions = torch.distributions.Categorical(logits=logits).sample()
            log_prob = logits.log_softmax(-1).gather(-1, actions[:, None])[:, 0]
            done = world.step(actions)
            last = torch.zeros_like(values)
            if bool(done.truncations.any()):
                cut = done.truncations
                last[cut] = _said(policy, map_observations(lambda each, cut=cut: each[cut], done.observations))[1]
            seen.append(here)
            rows.append((actions, log_prob, values, done.rewards, done.terminations,
                         done.terminations | done.truncations, last))  # fmt: skip
            running += done.rewards
            over = rows[-1][5]
            ended += running[over].tolist()
            running[over] = 0.0
    actions, log_probs, values, rewards, terminations, over, following = map(torch.stack, zip(*rows, strict=True))
    observations = map_observations(lambda *each: torch.stack(each), *seen)
    told = (rewards, values, following, terminations, over & ~terminations)
    return _Rollout(observations, actions, log_probs, told, ended)


def _said(policy: nn.Module, observations: Any) -> tuple[Tensor, Tensor]:
    device = device_of(policy)
    said = policy(map_observations(lambda each: each.to(device), observations))
    if not isinstance(said, tuple) or len(said) != 2 or said[0].ndim != 2 or said[1].shape != said[0].shape[:1]:
        raise TypeError("policy must return logits (batch, actions) and values (batch,)")
    return said[0].float().cpu(), said[1].float().cpu()


def _losses(
    policy: nn.Module, observations: Any, actions: Tensor, old: Tensor, advantages: Tensor, returns: Tensor, clip: float
) -> tuple[Tensor, ...]:
    """Of the policy and of the value, the entropy, the divergence, and the share that was clipped."""
    policy.train()
    logits, values = _said(policy, observations)
    log_probs = logits.log_softmax(-1)
    chosen = log_probs.gather(-1, actions[:, None])[:, 0]
    normalised = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    change = (chosen - old).detach()
    ratio = change.exp()
    return (
        clipped_policy_loss(chosen, old, normalised, clip=clip),
        F.mse_loss(values, returns) / 2,
        -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1).mean(),  # never taken: 0
        (ratio - 1 - change).mean(),
        ((ratio - 1).abs() > clip).float().mean(),
    )
