"""Core: Training of an agent on logged episodes, with the best of its states chosen on validation levels.

Source: arXiv:2312.05742, section 3 (early stopping on levels that are neither trained nor tested on).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from heldout.data import Trajectories
from heldout.errors import check_at_least, check_fields, check_has, check_nonnegative, checked
from heldout.train.supervised import seeded


@runtime_checkable
class LearnsOffline(Protocol):
    """What ``fit_offline`` trains: an ``OfflineAgent``, a ``DecisionTransformer``, or an own module of this form."""

    def source(self, trajectories: Trajectories) -> tuple[int, Callable[[Tensor], Any]]:
        """How many examples there are, and what makes a batch of those at some positions."""
        ...

    def update(self, batch: Any) -> float:
        """Makes one step and returns its loss."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """As a module's."""
        ...


@dataclass(frozen=True)
class OfflineFit:
    """What a training saw.

    Attributes:
        losses: of each update.
        scores: of each validation, by the number of updates before it; empty without validation.
        best: number of updates of the state that was kept.
    """

    losses: list[float]
    scores: dict[int, float] = field(default_factory=dict)
    best: int = 0

    def __post_init__(self) -> None:
        check_fields(self)


@checked
def fit_offline(
    agent: LearnsOffline,
    trajectories: Trajectories,
    validate: Callable[[Any], float] | None = None,
    *,
    updates: int = 2000,
    batch_size: int = 256,
    every: int = 200,
    patience: int | None = None,
    min_delta: float = 0.0,
    seed: int = 0,
) -> OfflineFit:
    """Trains an agent in place on logged episodes, and leaves it in the state that did best on validation levels.

    Batches are drawn at random, each example as probably as any other, with replacement.

    Args:
        agent: such as ``BC``, ``CQL``, ``BCQ``, ``IQL`` or ``DecisionTransformer``.
        trajectories: what was done.
        validate: score of the agent, the higher the better, such as
            ``lambda agent: play_levels(agent, KeyMazes(split.val)).success``. None: the last state is kept.
        updates, batch_size: to make, and examples of each.
        every: updates between validations; the last state is always validated.
        patience: validations without a gain after which training stops; None: it does not.
        min_delta: less than this is no gain.
        seed: of batches and dropout.

    Raises:
        ValueError: options out of range, an empty log, a score that is not finite, and what the agent refuses.

    Source: arXiv:2312.05742, section 3 (patience 10).

    Example:
        >>> from torch import nn
        >>> from heldout.train import BC
        >>> seen = torch.eye(4).repeat(8, 1)
        >>> logged = Trajectories(seen, torch.arange(32) % 4, torch.ones(32), torch.arange(32) % 4 == 3)
        >>> agent = BC(nn.Identity(), 4, 4, lr=0.1)
        >>> right = lambda agent: (agent.act(torch.eye(4)) == torch.arange(4)).double().mean().item()
        >>> fit = fit_offline(agent, logged, right, updates=40, every=20)
        >>> fit.scores[fit.best]
        1.0
    """
    check_has("source", "update", "state_dict", agent=agent)
    check_at_least(1, updates=updates, batch_size=batch_size, every=every, patience=patience)
    check_nonnegative(min_delta=min_delta)
    check_at_least(0, seed=seed)
    count, batch_of = agent.source(trajectories)
    generator = torch.Generator().manual_seed(seed)
    losses, scores, best, kept = [], {}, 0, None
    with seeded(seed):
        for update in range(1, updates + 1):
            losses.append(agent.update(batch_of(torch.randint(count, (batch_size,), generator=generator))))
            if validate is None or (update % every and update != updates):
                continue
            scores[update] = float(validate(agent))
            if not math.isfinite(scores[update]):
                raise ValueError(f"validate must return a finite score, got {scores[update]} after {update} updates")
            if kept is None or scores[update] > scores[best] + min_delta:
                best, kept = update, copy.deepcopy(agent.state_dict())
            elif patience is not None and (update - best) / every >= patience:
                break
    if kept is not None:
        agent.load_state_dict(kept)  # type: ignore[attr-defined]
    return OfflineFit(losses, scores, best or len(losses))
