"""Cosine power annealing: a learning rate between cosine and exponential decay, as scheduler, as curve, as Method.

Source: arXiv:1903.09900 (Hundt, Jain, Hager), section 3.3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from heldout.errors import check_at_least, check_nonnegative, check_positive, checked
from heldout.method import Method, Run, Splits
from heldout.optim.sam import SAM


@checked
def cosine_power_annealing(
    epochs: int, max_lr: float, min_lr: float = 1e-8, power: float = 2.0, *, warmup_epochs: int = 0
) -> Tensor:
    """Returns the learning rate of each epoch 1, ..., E, float64 ``(epochs,)``: from ``max_lr`` down to ``min_lr``.

    With ``c(e) = (1 + cos(pi e / E)) / 2`` the curve is ``power ** (c + 1)``, rescaled so that its largest value is
    ``max_lr`` and its least ``min_lr``. The larger the power, the earlier it falls; ``power=1`` is the limit ``c``
    itself, a cosine. A single epoch without warm-up has ``max_lr``.

    Args:
        epochs: E, or any other unit that the rate changes by.
        max_lr, min_lr: the ends, ``0 <= min_lr <= max_lr``.
        power: at least 1; the paper has 2 on CIFAR-10 and 10 on ImageNet.
        warmup_epochs: fewer than ``epochs``: the share of the way from ``min_lr`` to ``max_lr`` rises linearly and is
            whole at this epoch; the curve falls over the remaining ones.

    Raises:
        ValueError: a power below 1, ``min_lr`` above ``max_lr``, a warm-up that leaves no epoch.

    Source: arXiv:1903.09900, equation 3.

    Example:
        >>> cosine_power_annealing(4, 1.0, 0.0, power=1).mul(100).round().tolist()
        [100.0, 59.0, 17.0, 0.0]
        >>> cosine_power_annealing(4, 1.0, 0.0, power=10).mul(100).round().tolist()
        [100.0, 35.0, 7.0, 0.0]
    """
    _check_curve(epochs, min_lr, power, warmup_epochs)
    check_positive(max_lr=max_lr)
    _check_ends(max_lr, min_lr)
    shares = [_share_of_epoch(epoch, epochs, power, warmup_epochs) for epoch in range(1, epochs + 1)]
    return min_lr + (max_lr - min_lr) * torch.tensor(shares, dtype=torch.float64)


class CosinePowerAnnealingLR(LRScheduler):
    """Sets each group's learning rate to ``cosine_power_annealing``, its peak being the rate that the group has.

    A torch scheduler: ``step()`` once an epoch (or once a step, with ``epochs`` their number), ``state_dict`` and
    ``load_state_dict`` to resume. The rate is a function of ``last_epoch`` alone, so that a resumed curve is the whole
    one; beyond its end it stays at ``min_lr``.

    Args:
        optimizer: any torch Optimizer.
        epochs: how many values the curve has.
        min_lr: the last of them; the paper has 1e-8 for final training and 1e-4 for search.
        power: at least 1.
        warmup_epochs: fewer than ``epochs``.
        last_epoch: -1 to start; else the groups must have their "initial_lr".

    Raises:
        ValueError: as ``cosine_power_annealing``.

    Source: arXiv:1903.09900, equation 3.

    Example:
        >>> optimizer = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.025)
        >>> schedule = CosinePowerAnnealingLR(optimizer, epochs=3, min_lr=0.005)
        >>> for _ in range(3):
        ...     optimizer.step()
        ...     print(round(optimizer.param_groups[0]["lr"], 4))
        ...     schedule.step()
        0.025
        0.0106
        0.005
    """

    @checked
    def __init__(
        self,
        optimizer: Optimizer,
        epochs: int,
        min_lr: float = 1e-8,
        power: float = 2.0,
        *,
        warmup_epochs: int = 0,
        last_epoch: int = -1,
    ) -> None:
        _check_curve(epochs, min_lr, power, warmup_epochs)
        check_at_least(-1, last_epoch=last_epoch)
        for group in optimizer.param_groups:
            _check_ends(float(group.get("initial_lr", group["lr"])), min_lr)
        self.epochs, self.min_lr, self.power, self.warmup_epochs = epochs, min_lr, power, warmup_epochs
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Returns the learning rate of each group for the epoch that comes next."""
        share = _share_of_epoch(min(self.last_epoch + 1, self.epochs), self.epochs, self.power, self.warmup_epochs)
        return [self.min_lr + (float(peak) - self.min_lr) * share for peak in self.base_lrs]


def _share_of_epoch(epoch: int, epochs: int, power: float, warmup_epochs: int) -> float:
    """The share in [0, 1] of the way from ``min_lr`` to ``max_lr``, at one of the epochs 1, ..., E."""
    if epoch <= warmup_epochs:
        return epoch / warmup_epochs
    falling = epochs - warmup_epochs
    highest = 1.0 if warmup_epochs else _power_curve(1 / falling, power)  # without warm-up the first epoch is the peak
    return _power_curve((epoch - warmup_epochs) / falling, power) / highest if highest else 1.0


def _power_curve(progress: float, power: float) -> float:
    """``(power ** c - 1) / (power - 1)``: 1 at progress 0 and 0 at progress 1."""
    cosine = (1 + math.cos(math.pi * progress)) / 2
    if progress >= 1:
        return 0.0
    return cosine if power == 1 else math.expm1(cosine * math.log(power)) / math.expm1(math.log(power))


def _check_curve(epochs: int, min_lr: float, power: float, warmup_epochs: int) -> None:
    check_at_least(1, epochs=epochs, power=power)
    check_positive(power=power)
    check_nonnegative(min_lr=min_lr, warmup_epochs=warmup_epochs)
    if warmup_epochs >= epochs:
        raise ValueError(f"warmup_epochs must be fewer than the {epochs} epochs, got {warmup_epochs}")


def _check_ends(max_lr: float, min_lr: float) -> None:
    if min_lr > max_lr:
        raise ValueError(f"min_lr must be at most the highest learning rate, {max_lr:g}, got {min_lr:g}")


@checked
def cosine_power(power: float = 2.0, *, min_lr: float = 1e-8, warmup_epochs: int = 0) -> Method:
    """Returns the Method that trains with cosine power annealing in the place of the recipe's schedule.

    The curve spans all epochs of the run and falls at every step: with ``u`` the share of the run that is over, the
    rate is ``min_lr + (peak - min_lr) * (power ** c(u) - 1) / (power - 1)``, ``c(u) = (1 + cos(pi u)) / 2``. ``peak``
    is what the recipe starts from (a group's "initial_lr"; of a OneCycleLR its maximum). ``power=1`` is
    ``CosineAnnealingLR``, ``fit``'s default. The rate is set for the length of a step, and what the recipe's scheduler
    has set is put back: its own account stays right. Where an epoch's number of steps cannot be known in advance (a
    sampler, a loop of one's own), that of the epoch before is used, and in the first epoch the size of the training set
    over the batch size.

    Deviation: the paper changes the rate once an epoch, so that the last epoch of few is lost at ``min_lr``.

    Args:
        power: at least 1; the paper has 2 and 10.
        min_lr: the rate at the end; a group whose peak is below keeps its peak.
        warmup_epochs: rise linearly to the peak over these; fewer than the epochs of the run.

    Raises:
        ValueError: a power below 1; at the start of training: a warm-up that leaves no epoch.

    Source: arXiv:1903.09900, equation 3.

    Example:
        >>> cosine_power(10).stages
        ('optimizer',)
    """
    _check_curve(warmup_epochs + 1, min_lr, power, warmup_epochs)

    def optimizer(run: Run, base: Optimizer) -> Optimizer:
        _check_curve(run.epochs, min_lr, power, warmup_epochs)
        inner = base.base_optimizer if isinstance(base, SAM) else base
        progress = _Progress(run)
        replaced: list[tuple[dict[str, Any], Any]] = []

        def put_back(*_: Any) -> None:
            for group, rate in replaced:
                group["lr"] = rate
            replaced.clear()

        def set_rate(*_: Any) -> None:
            put_back()  # of a step that raised
            epochs = progress()
            if epochs < warmup_epochs:
                share = epochs / warmup_epochs
            else:
                share = _power_curve((epochs - warmup_epochs) / (run.epochs - warmup_epochs), power)
            for group in inner.param_groups:
                rate = group["lr"]
                replaced.append((group, rate))
                peak = float(group.get("max_lr", group.get("initial_lr", rate)))
                low = min(min_lr, peak)
                value = low + (peak - low) * share
                group["lr"] = torch.full_like(rate, value) if isinstance(rate, Tensor) else value

        inner.register_step_pre_hook(set_rate)
        inner.register_step_post_hook(put_back)
        return base

    def check(module: nn.Module, splits: Splits) -> str | None:
        if not any(p.requires_grad for p in module.parameters()):
            return "the model has no parameter that requires a gradient"
        return None

    return Method("cosine_power", optimizer=optimizer, check=check)


class _Progress:
    """How many epochs, a real number, of a run are over; the same however often it is asked during a step."""

    def __init__(self, run: Run) -> None:
        self.run, self.epoch, self.first_step = run, 0, 0
        self.length = max(1, math.ceil(len(run.train_set) / run.batch_size))
        if len(run.train_set) % run.batch_size == 1 and self.length > 1:  # fit leaves out a last batch of one
            self.length -= 1

    def __call__(self) -> float:
        epoch, step = max(self.run.epoch, 1), self.run.step
        if epoch != self.epoch:
            if self.epoch:
                self.length = max(step - self.first_step, 1)
            self.epoch, self.first_step = epoch, step
        within = min((step - self.first_step) / self.length, 1.0)
        return min(epoch - 1 + within, float(self.run.epochs))
