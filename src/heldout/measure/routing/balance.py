"""Core: How decided and how balanced the routing of a mixture of experts is."""

from __future__ import annotations

import torch
from torch import Tensor

from heldout.errors import check_nonempty, check_nonnegative, checked


@checked
def routing_entropy(weights: Tensor) -> Tensor:
    """Returns the entropy in nats over the last axis: 0 where one expert has all weight, log(experts) where none has.

    Args:
        weights: routing weights ``(..., experts)``, at least 0; rows need not sum to 1.

    Returns:
        ``(...)``, float64.

    Raises:
        ValueError: weights below 0 or not finite, or a row of zeros.

    Example:
        >>> routing_entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]])).round(decimals=3).tolist()
        [0.0, 0.693]
    """
    shares = _shares(weights)
    return torch.special.entr(shares).sum(-1)


@checked
def load_variation(load: Tensor) -> Tensor:
    """Returns the coefficient of variation of the experts' load over the last axis: 0 where all carry the same.

    The highest value, of a load on one expert alone, is ``sqrt(experts - 1)``.

    Args:
        load: how many tokens, or what share of them, each expert took, ``(..., experts)``, at least 0.

    Returns:
        Standard deviation (of all experts, not of a sample of them) over mean, ``(...)``, float64.

    Raises:
        ValueError: a load below 0 or not finite, or of no token at all.

    Example:
        >>> load_variation(torch.tensor([[2, 2, 2, 2], [0, 0, 0, 8]])).round(decimals=3).tolist()
        [0.0, 1.732]
    """
    shares = _shares(load)
    return shares.std(-1, correction=0) * shares.shape[-1]


def _shares(values: Tensor) -> Tensor:
    if not values.ndim:
        raise ValueError("weights, or a load, must have an axis of experts, got a single number")
    check_nonempty(weights=values)
    check_nonnegative(weights=values)
    shares = values.detach().double()
    total = shares.sum(-1, keepdim=True)
    if not bool((total > 0).all()):
        raise ValueError("weights, or a load, must not be 0 for all experts")
    return shares / total
