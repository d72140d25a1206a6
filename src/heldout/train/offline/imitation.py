"""Core: Policies learned from logged episodes alone, with or without returns, and forecasters from series.

With a policy that reads returns this is what a decision transformer is trained by; without, it is behaviour cloning.
Source: arXiv:2106.01345; arXiv:2402.02338, section 4.3, for what of a language model is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.data import Trajectories, Windows
from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_finite,
    check_nonempty,
    check_nonnegative,
    check_positive,
    checked,
)
from heldout.method import evaluating
from heldout.train.supervised import seeded


@checked
def fit_policy(
    policy: nn.Module,
    trajectories: Trajectories,
    returns: Tensor | None = None,
    *,
    window: int,
    stride: int | None = None,
    steps: int = 400,
    batch_size: int = 32,
    lr: float = 1e-4,
    weight_decay: float = 1e-4,
    warmup: int = 20,
    schedule: Literal["constant", "cosine"] = "constant",
    clip: float = 0.25,
    seed: int = 0,
) -> list[float]:
    """Trains a policy in place to do what was done, and returns the loss of each step.

    The loss is cross-entropy on the logged actions (squared error of real ones) over the steps of windows that do not
    cross episodes; AdamW on what requires a gradient, so that a frozen backbone stays as it is. Parts that
    have weights, none of which is trained, keep their mode, so that statistics of a frozen BatchNorm in evaluation mode
    stay; in the end all are in evaluation mode.

    Args:
        policy: from a ``TrajectoryBatch`` to logits ``(windows, steps, actions)`` or real actions, such as
            ``ReturnConditionedPolicy`` or ``HistoryPolicy``.
        trajectories: what was done.
        returns: return-to-go of each step ``(steps,)`` as the policy shall read it; default: those of the rewards as
            they are. ``RewardScale`` makes them small.
        window, stride: of ``Trajectories.windows``.
        steps, batch_size: updates, and windows in each; each pass over the windows has an order of its own.
        lr, weight_decay: of AdamW.
        warmup: updates in which the rate grows.
        schedule: of the rate after that: as it is, or a cosine to 0.
        clip: greatest norm of the gradient.
        seed: of the order and of dropout.

    Raises:
        ValueError: options out of range, returns of another length, nothing to train, a loss that is not finite.

    Source: arXiv:2402.02338, section 4.3; official code (AdamW 1e-4, weight decay 1e-4, warm-up, clip 0.25, window 20).

    Example:
        >>> from heldout.nn import HistoryPolicy
        >>> seen = torch.eye(4).repeat(8, 1)
        >>> logged = Trajectories(seen, torch.arange(32) % 4, torch.ones(32), torch.arange(32) % 4 == 3)
        >>> losses = fit_policy(HistoryPolicy(4, 4, hidden=16), logged, window=4, steps=60, lr=0.03)
        >>> losses[-1] < 0.1 < losses[0]
        True
    """
    check_at_least(1, window=window, stride=stride)
    windows = trajectories.windows(window, stride=stride)
    known = trajectories.returns() if returns is None else returns
    trajectories.batch(Windows(windows.index[:1], windows.mask[:1]), known)  # refuses returns that do not fit

    def loss_of(rows: Tensor) -> Tensor:
        return _action_loss(policy, trajectories, Windows(windows.index[rows], windows.mask[rows]), known)

    return _trained(
        policy, loss_of, len(windows.index), steps=steps, batch_size=batch_size, lr=lr, weight_decay=weight_decay,
        warmup=warmup, schedule=schedule, clip=clip, seed=seed,
    )  # fmt: skip


@checked
@torch.no_grad()
def policy_loss(
    policy: nn.Module, trajectories: Trajectories, returns: Tensor | None = None, *, window: int, batch_size: int = 64
) -> float:
    """Returns the loss of ``fit_policy`` on episodes, the mean over their steps, in evaluation mode.

    Args:
        policy, trajectories, returns, window: as for ``fit_policy``.
        batch_size: windows at a time.

    Raises:
        ValueError: options out of range, returns of another length.

    Example:
        >>> from heldout.nn import HistoryPolicy
        >>> logged = Trajectories(torch.zeros(2, 1), torch.tensor([0, 1]), torch.ones(2), torch.tensor([False, True]))
        >>> policy_loss(HistoryPolicy(1, 2), logged, window=2) > 0
        True
    """
    check_at_least(1, window=window, batch_size=batch_size)
    known = trajectories.returns() if returns is None else returns
    index, mask = trajectories.windows(window)
    total = 0.0
    with evaluating(policy):
        for rows, real in zip(index.split(batch_size), mask.split(batch_size), strict=True):
            total += float(_action_loss(policy, trajectories, Windows(rows, real), known)) * int(real.sum())
    return total / int(mask.sum())


@checked
def fit_forecaster(
    model: nn.Module,
    series: Tensor,
    *,
    steps: int = 400,
    batch_size: int = 32,
    lr: float = 1e-4,
    weight_decay: float = 1e-4,
    warmup: int = 20,
    schedule: Literal["constant", "cosine"] = "constant",
    clip: float = 0.25,
    seed: int = 0,
) -> list[float]:
    """Trains a forecaster in place on all steps of series at once, and returns the loss of each update.

    Args:
        model: from series ``(batch, steps, dim)`` to what follows each sample, such as ``LMForecaster``.
        series: ``(series, steps, dim)``, two steps or more; the loss is the squared error of ``model(series[:, :-1])``.
        steps, batch_size, lr, weight_decay, warmup, schedule, clip, seed: as for ``fit_policy``.

    Raises:
        ValueError: options out of range, series of another form or not finite, a loss that is not finite.

    Source: arXiv:2402.02338, section 4 (teacher forcing, MSE; official code).

    Example:
        >>> walk = nn.Linear(1, 1)
        >>> losses = fit_forecaster(walk, torch.arange(5.0).reshape(1, 5, 1), steps=200, lr=0.1, clip=10.0)
        >>> losses[-1] < 0.01
        True
    """
    check_dimensions(3, series=series)
    check_nonempty(series=series)
    check_finite(series=series)
    if series.shape[1] < 2:
        raise ValueError(f"series must have two steps or more, got {series.shape[1]}")

    def loss_of(rows: Tensor) -> Tensor:
        chosen = series[rows]
        return F.mse_loss(model(chosen[:, :-1]), chosen[:, 1:])

    return _trained(
        model, loss_of, len(series), steps=steps, batch_size=batch_size, lr=lr, weight_decay=weight_decay,
        warmup=warmup, schedule=schedule, clip=clip, seed=seed,
    )  # fmt: skip


def _action_loss(policy: nn.Module, trajectories: Trajectories, windows: Windows, returns: Tensor) -> Tensor:
    batch = trajectories.batch(windows, returns)
    said, done = policy(batch)[batch.mask], batch.actions[batch.mask]
    return F.mse_loss(said, done) if done.is_floating_point() else F.cross_entropy(said, done)


def _trained(
    model: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    examples: int,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    warmup: int,
    schedule: str,
    clip: float,
    seed: int,
) -> list[float]:
    check_at_least(1, steps=steps, batch_size=batch_size)
    check_at_least(0, warmup=warmup)
    check_nonnegative(lr=lr, weight_decay=weight_decay)
    check_positive(clip=clip)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not weights:
        raise ValueError("nothing of the model requires a gradient")
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay)
    generator, order, losses = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.int64), []
    _train_mode(model)
    with seeded(seed):
        for step in range(steps):
            rate = min(1.0, (step + 1) / max(1, warmup))
            if schedule == "cosine" and step >= warmup:
                rate = (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
            for group in optimizer.param_groups:
                group["lr"] = lr * rate
            while len(order) < min(batch_size, examples):
                order = torch.cat([order, torch.randperm(examples, generator=generator)])
            chosen, order = order[:batch_size], order[batch_size:]
            loss = loss_of(chosen)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise ValueError(f"the loss is {losses[-1]} at step {step + 1}: lower lr ({lr})")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, clip)
            optimizer.step()
    model.eval()
    return losses


def _train_mode(module: nn.Module) -> None:
    """Train mode for all but the parts that have weights, none of which is trained."""
    weights = [*module.parameters()]
    if weights and not any(weight.requires_grad for weight in weights):
        return
    module.training = True
    for part in module.children():
        _train_mode(part)
