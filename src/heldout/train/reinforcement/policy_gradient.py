"""Core: The policy gradient: the REINFORCE loss, discounted returns and normalised rewards.

For policies whose actions are rewarded by what follows them, whatever the actions are; ``grpo`` is for language models.
Source: Williams 1992 (REINFORCE); arXiv:2308.13411 for returns that stop at a reward of zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from heldout.errors import check_dimensions, check_finite, check_fraction, check_nonempty, checked


@checked
def reinforce_loss(log_prob: Tensor, reward: Tensor | float) -> Tensor:
    """Returns ``mean(-log_prob * reward)``, a scalar whose gradient is that of the expected reward, negated.

    The reward is a constant: no gradient enters it.

    Args:
        log_prob: log-probabilities ``(n,)`` of the actions that were taken, with their graph.
        reward: one number for all of them, or one each ``(n,)``; rewards less a baseline are as right, and less noisy.

    Raises:
        ValueError: no action, shapes that do not fit, a reward that is not finite.

    Source: Williams, Simple statistical gradient-following algorithms, Machine Learning 1992, eq. 4.

    Example:
        >>> logits = torch.zeros(3, requires_grad=True)  # of the label 1
        >>> log_prob = torch.distributions.Bernoulli(logits=logits).log_prob(torch.tensor([1.0, 1.0, 0.0]))
        >>> reinforce_loss(log_prob, torch.tensor([3.0, 0.0, 3.0])).backward()
        >>> logits.grad.tolist()
        [-0.5, -0.0, 0.5]
    """
    check_nonempty(log_prob=log_prob)
    check_dimensions(1, log_prob=log_prob)
    check_finite(reward=reward)
    constant = torch.as_tensor(reward, dtype=log_prob.dtype, device=log_prob.device).detach()
    if constant.shape not in ((), log_prob.shape):
        raise ValueError(f"reward must be a number or {tuple(log_prob.shape)}, got {tuple(constant.shape)}")
    return -(log_prob * constant).mean()


@checked
def discounted_returns(rewards: Tensor, gamma: float, *, reset_on_zero: bool = False) -> Tensor:
    """Returns ``G_i = R_i + gamma * G_(i+1)`` of rewards in the order of time ``(n,)``, computed from the last.

    Args:
        rewards: ``(n,)``.
        gamma: discount, in [0, 1].
        reset_on_zero: a reward of exactly 0 ends the sum: its return is 0, and what follows does not count for what
            came before it.

    Raises:
        ValueError: no reward, one that is not finite, ``gamma`` outside of [0, 1].

    Source: arXiv:2308.13411 (official code).

    Example:
        >>> discounted_returns(torch.tensor([1.0, 0.0, 2.0, 3.0]), 0.5).tolist()
        [1.875, 1.75, 3.5, 3.0]
        >>> discounted_returns(torch.tensor([1.0, 0.0, 2.0, 3.0]), 0.5, reset_on_zero=True).tolist()
        [1.0, 0.0, 3.5, 3.0]
    """
    _check_rewards(rewards)
    check_fraction(gamma=gamma)
    following, found = 0.0, []
    for reward in reversed(rewards.tolist()):
        following = 0.0 if reset_on_zero and reward == 0 else reward + gamma * following
        found.append(following)
    dtype = rewards.dtype if rewards.is_floating_point() else torch.float32
    return torch.tensor(found[::-1], dtype=dtype, device=rewards.device)


@checked
def normalize_rewards(rewards: Tensor) -> Tensor:
    """Returns ``(rewards - mean) / std`` with the standard deviation of all of them (divided by n, not n - 1).

    Where all rewards are equal nothing tells the actions apart, and all of them become 0.

    Args:
        rewards: ``(n,)``.

    Raises:
        ValueError: no reward, or one that is not finite.

    Source: arXiv:2308.13411 (official code, which divides by 0 where the rewards are equal).

    Example:
        >>> normalize_rewards(torch.tensor([0.0, 2.0])).tolist()
        [-1.0, 1.0]
        >>> normalize_rewards(torch.tensor([0.1, 0.1, 0.1])).tolist()
        [0.0, 0.0, 0.0]
    """
    _check_rewards(rewards)
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    if (rewards == rewards[0]).all():
        return torch.zeros_like(rewards)
    return (rewards - rewards.mean()) / rewards.std(correction=0)


def _check_rewards(rewards: Tensor) -> None:
    check_nonempty(rewards=rewards)
    check_dimensions(1, rewards=rewards)
    check_finite(rewards=rewards)
