"""Core: The losses of value learning from logged transitions with discrete actions: CQL, BCQ and IQL.

Each is a function of what networks say, so that it fits any of them. Source: arXiv:2006.04779 (CQL), arXiv:1910.01708
(discrete BCQ), arXiv:2110.06169 (IQL), arXiv:1509.06461 (double Q-learning).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import (
    check_dimensions,
    check_finite,
    check_fraction,
    check_labels,
    check_nonempty,
    check_nonnegative,
    check_positive,
    checked,
)


@checked
def td_target(rewards: Tensor, next_values: Tensor, terminations: Tensor, *, gamma: float = 0.99) -> Tensor:
    """Returns ``r + gamma * V(s')``, without the next value where the episode came to its end, ``(n,)``.

    Where an episode was cut off by a limit of time, ``terminations`` must be False: its next state has a value.

    Args:
        rewards, next_values: ``(n,)``; no gradient enters them.
        terminations: bool ``(n,)``.
        gamma: discount, in [0, 1].

    Raises:
        ValueError: no transitions, shapes that differ, values that are not finite, ``gamma`` outside of [0, 1].
        TypeError: terminations that are not bool.

    Source: arXiv:1712.00378, section 2, for the limit of time.

    Example:
        >>> td_target(torch.ones(2), torch.full((2,), 10.0), torch.tensor([False, True]), gamma=0.5).tolist()
        [6.0, 1.0]
    """
    check_nonempty(rewards=rewards)
    check_dimensions(1, rewards=rewards)
    check_finite(rewards=rewards, next_values=next_values)
    check_fraction(gamma=gamma)
    _same_shape(rewards, "rewards", next_values=next_values, terminations=terminations)
    if terminations.dtype != torch.bool:
        raise TypeError(f"terminations must be bool, got {terminations.dtype}")
    return (rewards + gamma * torch.where(terminations, 0.0, next_values)).detach()


@checked
def double_q_values(online: Tensor, target: Tensor, *, allowed: Tensor | None = None) -> Tensor:
    """Returns the target network's value of the online network's best action, ``(n,)``.

    Args:
        online, target: values of the next states' actions ``(n, actions)``.
        allowed: bool ``(n, actions)``: actions among which the best is chosen; default: all.

    Raises:
        ValueError: shapes that differ, values that are not finite, a state without an allowed action.

    Source: arXiv:1509.06461, eq. 4; arXiv:1910.01708, eq. 20, for the allowed ones.

    Example:
        >>> double_q_values(torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, 3.0]])).tolist()
        [3.0]
    """
    check_nonempty(online=online)
    check_dimensions(2, online=online)
    check_finite(online=online, target=target)
    _same_shape(online, "online", target=target)
    if allowed is not None:
        _same_shape(online, "online", allowed=allowed)
        if allowed.dtype != torch.bool or not bool(allowed.any(1).all()):
            raise ValueError("allowed must be bool, with an action in each state")
        online = online.masked_fill(~allowed, -math.inf)
    return target.gather(1, online.argmax(1, keepdim=True))[:, 0]


@checked
def conservative_penalty(q: Tensor, actions: Tensor) -> Tensor:
    """Returns ``mean(logsumexp_a Q(s, a) - Q(s, a_data))``, a scalar of at least 0: how far other actions stand out.

    Args:
        q: values of all actions ``(n, actions)``, with their graph.
        actions: those of the data, int64 ``(n,)``.

    Raises:
        ValueError: no transitions, actions that there are not.

    Source: arXiv:2006.04779, eq. 4 (CQL(H), whose soft maximum has a closed form over discrete actions).

    Example:
        >>> round(conservative_penalty(torch.zeros(3, 4), torch.tensor([0, 1, 2])).item(), 4)  # log 4
        1.3863
    """
    return (q.logsumexp(1) - _taken(q, actions)).mean()


@checked
def cql_loss(q: Tensor, actions: Tensor, targets: Tensor, *, alpha: float = 4.0) -> Tensor:
    """Returns ``smooth_l1(Q(s, a_data), target) + alpha * conservative_penalty``, a scalar.

    Args:
        q: ``(n, actions)``, with their graph.
        actions: int64 ``(n,)``.
        targets: from ``td_target`` ``(n,)``; no gradient enters them.
        alpha: weight of the penalty; 0 is a deep Q-network.

    Raises:
        ValueError: shapes that do not fit, targets that are not finite, a negative ``alpha``.

    Source: arXiv:2006.04779, eq. 4; the code of arXiv:2312.05742 (alpha 4).

    Example:
        >>> round(cql_loss(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([0.5]), alpha=1.0).item(), 4)
        0.8181
    """
    check_nonnegative(alpha=alpha)
    return _td_loss(q, actions, targets) + alpha * conservative_penalty(q, actions)


@checked
def imitated_actions(logits: Tensor, *, threshold: float = 0.5) -> Tensor:
    """Returns which actions are probable enough: ``G(a) / max G > threshold``, bool ``(n, actions)``.

    The most probable one always is: at 1 it is the only one, at 0 all are.

    Args:
        logits: of the imitating network ``(n, actions)``.
        threshold: in [0, 1].

    Raises:
        ValueError: no states, a threshold outside of [0, 1].

    Source: arXiv:1910.01708, eq. 19.

    Example:
        >>> imitated_actions(torch.tensor([[0.5, 0.3, 0.2]]).log(), threshold=0.5).tolist()
        [[True, True, False]]
    """
    check_nonempty(logits=logits)
    check_dimensions(2, logits=logits)
    check_finite(logits=logits)
    check_fraction(threshold=threshold)
    below = logits - logits.max(1, keepdim=True).values
    return (below > (math.log(threshold) if threshold else -math.inf)) | (below == 0)


@checked
def bcq_loss(q: Tensor, logits: Tensor, actions: Tensor, targets: Tensor, *, penalty: float = 0.01) -> Tensor:
    """Returns ``smooth_l1(Q(s, a), target) - log G(a | s) + penalty * mean(logits^2)``, a scalar.

    Args:
        q: ``(n, actions)``, with their graph.
        logits: of the imitating network ``(n, actions)``, with their graph.
        actions: int64 ``(n,)``.
        targets: ``(n,)``, from ``td_target`` and ``double_q_values`` among ``imitated_actions``.
        penalty: on the logits.

    Raises:
        ValueError: shapes that do not fit, targets that are not finite, a negative penalty.

    Source: arXiv:1910.01708, algorithm 1; its official code for the penalty.

    Example:
        >>> zero = torch.zeros(1, 4)
        >>> round(bcq_loss(zero, zero, torch.tensor([0]), torch.zeros(1)).item(), 4)
        1.3863
    """
    check_nonnegative(penalty=penalty)
    check_dimensions(2, logits=logits)
    _same_shape(q, "q", logits=logits)
    return _td_loss(q, actions, targets) + F.cross_entropy(logits, actions) + penalty * logits.square().mean()


@checked
def expectile_loss(difference: Tensor, *, expectile: float = 0.8) -> Tensor:
    """Returns ``mean(|expectile - 1(u < 0)| * u^2)``, a scalar; at 0.5 half the squared error.

    Args:
        difference: target less estimate ``(n,)``, with its graph.
        expectile: in [0, 1]; near 1 the estimate comes near the greatest target.

    Raises:
        ValueError: nothing, an expectile outside of [0, 1].

    Source: arXiv:2110.06169, eq. 4.

    Example:
        >>> expectile_loss(torch.tensor([1.0, -1.0]), expectile=0.75).item()
        0.5
    """
    check_nonempty(difference=difference)
    check_fraction(expectile=expectile)
    return ((expectile - (difference < 0).to(difference.dtype)).abs() * difference.square()).mean()


@checked
def advantage_weights(advantage: Tensor, *, beta: float = 3.0, cap: float = 100.0) -> Tensor:
    """Returns ``min(exp(beta * advantage), cap)``, without a gradient, in the advantage's shape.

    Args:
        advantage: of the data's actions.
        beta: how sharply better actions are preferred; 0 weighs all alike.
        cap: the greatest weight.

    Raises:
        ValueError: advantages that are not finite, a negative ``beta``, a cap that is not positive.

    Source: arXiv:2110.06169, eq. 7; its official code for the cap.

    Example:
        >>> advantage_weights(torch.tensor([0.0, 10.0])).tolist()
        [1.0, 100.0]
    """
    check_finite(advantage=advantage)
    check_nonnegative(beta=beta)
    check_positive(cap=cap)
    return (beta * advantage.detach()).clamp(max=math.log(cap)).exp().clamp(max=cap)


def _td_loss(q: Tensor, actions: Tensor, targets: Tensor) -> Tensor:
    check_finite(targets=targets)
    taken = _taken(q, actions)
    _same_shape(taken, "actions", targets=targets)
    return F.smooth_l1_loss(taken, targets.detach())


def _taken(q: Tensor, actions: Tensor) -> Tensor:
    check_nonempty(q=q)
    check_dimensions(2, q=q)
    check_dimensions(1, actions=actions)
    check_labels(q.shape[1], actions=actions)
    if len(actions) != len(q):
        raise ValueError(f"actions must be {len(q)}, one for each row of q, got {len(actions)}")
    return q.gather(1, actions[:, None])[:, 0]


def _same_shape(first: Tensor, word: str, **others: Tensor) -> None:
    for name, value in others.items():
        if value.shape != first.shape:
            raise ValueError(f"{name} must be {tuple(first.shape)} as {word}, got {tuple(value.shape)}")
