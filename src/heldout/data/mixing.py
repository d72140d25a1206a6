"""Core: Mixing pairs of examples and their labels: Mixup. Source: arXiv:1710.09412."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_finite,
    check_labels,
    check_nonempty,
    check_same_length,
    checked,
)


class Mixed(NamedTuple):
    """Mixed examples: ``weight`` of each and ``1 - weight`` of its partner.

    Attributes:
        inputs: like the batch's inputs.
        targets: class probabilities ``(batch, classes)``.
        partner: positions of the partners in the batch, ``(batch,)``.
        weight: of the example itself, in [0, 1].

    Example:
        >>> mixed = mixup(torch.eye(4), torch.arange(4), 4, generator=torch.Generator().manual_seed(0))
        >>> by_hand = mixed.weight * torch.eye(4) + (1 - mixed.weight) * torch.eye(4)[mixed.partner]
        >>> torch.allclose(mixed.targets, by_hand)
        True
    """

    inputs: Any
    targets: Tensor
    partner: Tensor
    weight: float


@checked
def mixup(
    inputs: Any,
    targets: Tensor,
    num_classes: int,
    *,
    alpha: float = 0.2,
    smoothing: float = 0.0,
    generator: torch.Generator | None = None,
) -> Mixed:
    """Returns the batch mixed with a permutation of itself, by one weight drawn from Beta(alpha, alpha).

    Args:
        inputs: a floating-point tensor ``(batch, ...)``, or a tuple or dict of them.
        targets: class indices ``(batch,)``.
        num_classes: number of classes.
        alpha: parameter of the Beta distribution; 0 mixes nothing.
        smoothing: share of each label that is spread over all classes, as in ``soft_labels``.
        generator: randomness of the pairing and the weight.

    Raises:
        ValueError: alpha is negative or not finite, targets do not fit.
        TypeError: an input is not floating point, so that it cannot be mixed (token ids, for example).

    Source: arXiv:1710.09412, eq. 2.

    Example:
        >>> mixed = mixup(torch.eye(2), torch.tensor([0, 1]), 2, generator=torch.Generator().manual_seed(0))
        >>> torch.equal(mixed.inputs, mixed.targets)
        True
    """
    check_same_length(inputs=inputs if isinstance(inputs, Tensor) else None, targets=targets)
    check_at_least(1, num_classes=num_classes)
    check_labels(num_classes, targets=targets)
    weight, partner = beta_weight(alpha, generator), permutation(len(targets), generator)
    labels = soft_labels(targets, num_classes, smoothing=smoothing)
    return Mixed(mix(inputs, partner, weight), mix(labels, partner, weight), partner, weight)


@checked
def beta_weight(alpha: float, generator: torch.Generator | None = None) -> float:
    """Returns a weight drawn from Beta(alpha, alpha); 1 where alpha is 0.

    Args:
        alpha: at least 0; small values give weights near 0 and 1, 1 a uniform one.
        generator: where randomness comes from; None is torch's own.

    Raises:
        ValueError: alpha is negative or not finite.

    Example:
        >>> beta_weight(0.0), 0 <= beta_weight(0.2, torch.Generator().manual_seed(0)) <= 1
        (1.0, True)
    """
    if not (alpha >= 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha must be finite and at least 0, got {alpha}")
    if alpha == 0:
        return 1.0
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


@checked
def permutation(size: int, generator: torch.Generator | None = None) -> Tensor:
    """Returns a random partner for each of ``size`` examples: a permutation ``(size,)``, in which some may stay.

    Args:
        size: how many, at least 0.
        generator: where randomness comes from; None is torch's own.

    Raises:
        ValueError: a negative size.

    Example:
        >>> permutation(5, torch.Generator().manual_seed(0)).sort().values
        tensor([0, 1, 2, 3, 4])
    """
    check_at_least(0, size=size)
    return torch.randperm(size, generator=generator)


@checked
def mix(values: Any, partner: Tensor, weight: float) -> Any:
    """Returns ``weight * values + (1 - weight) * values[partner]`` for a floating-point tensor, or a tuple or dict.

    Args:
        values: a tensor ``(batch, ...)``, or tensors in tuples, lists (which come back as tuples) and dicts.
        partner: positions, int64 ``(batch,)``.
        weight: of the values themselves.

    Raises:
        TypeError: something in it is not a floating-point tensor.
        ValueError: another number of partners than of values, positions that there are not, or a weight that is not
            finite.

    Example:
        >>> mix(torch.tensor([0.0, 4.0]), torch.tensor([1, 0]), 0.75)
        tensor([1., 3.])
    """
    check_finite(weight=weight)
    check_nonempty(partner=partner)
    check_dimensions(1, partner=partner)
    check_labels(len(partner), partner=partner)
    check_same_length(values=values if isinstance(values, Tensor) else None, partner=partner)
    if isinstance(values, dict):
        return {name: mix(value, partner, weight) for name, value in values.items()}
    if isinstance(values, tuple | list):
        return tuple(mix(value, partner, weight) for value in values)
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"only floating-point inputs can be mixed, got {kind}")
    return torch.lerp(values[partner.to(values.device)], values, weight)


@checked
def soft_labels(targets: Tensor, num_classes: int, *, smoothing: float = 0.0) -> Tensor:
    """Returns class probabilities ``(batch, classes)``: ``1 - smoothing`` on the label, the rest spread over all.

    Args:
        targets: class indices ``(batch,)``.
        num_classes: number of classes.
        smoothing: in [0, 1). Source: arXiv:1512.00567, section 7.

    Raises:
        ValueError: smoothing is out of range, targets are not class indices ``(batch,)``.

    Example:
        >>> soft_labels(torch.tensor([1]), 2, smoothing=0.5)
        tensor([[0.2500, 0.7500]])
    """
    check_at_least(1, num_classes=num_classes)
    check_labels(num_classes, targets=targets)
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must lie in [0, 1), got {smoothing}")
    if targets.ndim != 1 or targets.is_floating_point():
        raise ValueError(f"targets must be class indices (batch,), got {targets.dtype} {tuple(targets.shape)}")
    return F.one_hot(targets, num_classes).float().mul_(1 - smoothing).add_(smoothing / num_classes)
