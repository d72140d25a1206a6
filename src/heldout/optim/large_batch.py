"""Core: learning rates and schedules for batches larger than a recipe was tuned for. Source: arXiv:1705.08741."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from heldout.errors import check_at_least, checked


@checked
def scale_lr(
    lr: float, batch_size: int, reference_batch: int, rule: Literal["sqrt", "linear", "none"] = "sqrt"
) -> float:
    """Returns the learning rate for ``batch_size``, where ``lr`` was tuned for ``reference_batch``.

    Args:
        lr: learning rate at the reference batch size.
        batch_size: examples per update.
        reference_batch: examples per update of the recipe.
        rule: ``"sqrt"`` keeps the covariance of an update (arXiv:1705.08741, eq. 7), ``"linear"`` its mean per
            example (arXiv:1706.02677), ``"none"`` returns ``lr``.

    Raises:
        ValueError: for sizes or a learning rate that are not positive, or an unknown rule.

    Example:
        >>> scale_lr(0.1, batch_size=512, reference_batch=128)
        0.2
    """
    check_at_least(1, batch_size=batch_size, reference_batch=reference_batch)
    _check_sizes(batch_size, reference_batch)
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}")
    ratio = batch_size / reference_batch
    factors = {"sqrt": math.sqrt(ratio), "linear": ratio, "none": 1.0}
    if rule not in factors:
        raise ValueError(f"rule must be one of {', '.join(factors)}, got {rule!r}")
    return lr * factors[rule]


@checked
def adapt_regime(
    milestones: Sequence[int], epochs: int, batch_size: int, reference_batch: int
) -> tuple[list[int], int]:
    """Returns milestones and number of epochs that give a larger batch as many updates per phase as the reference.

    Every number is multiplied by ``ceil(batch_size / reference_batch)``.

    Args:
        milestones: epochs at which the learning rate falls, at the reference batch size.
        epochs: number of epochs at the reference batch size.
        batch_size: examples per update.
        reference_batch: examples per update of the recipe.

    Raises:
        ValueError: for sizes that are not positive.

    Source: arXiv:1705.08741, section 5.

    Example:
        >>> adapt_regime([10, 20], epochs=30, batch_size=512, reference_batch=128)
        ([40, 80], 120)
    """
    check_at_least(1, batch_size=batch_size, reference_batch=reference_batch)
    check_at_least(0, epochs=epochs)
    _check_sizes(batch_size, reference_batch)
    factor = -(-batch_size // reference_batch)
    return [milestone * factor for milestone in milestones], epochs * factor


def _check_sizes(batch_size: int, reference_batch: int) -> None:
    if batch_size < 1 or reference_batch < 1:
        raise ValueError(f"batch sizes must be positive, got {batch_size} and {reference_batch}")
