"""Core: Several heads, one prediction: each example weighs the heads by how good they seem for it.

Source: arXiv:2208.08661 (Zhang et al., DRM, KDD 2023).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from heldout.errors import check_finite, checked

Estimate = Literal["entropy", "uniform"] | Tensor

_FLOOR = 1e-8  # of a gap: a head that is certain has entropy 0


@checked
def head_weights(logits: Tensor, estimate: Estimate = "entropy", gamma: float = 1.0, *, hard: bool = False) -> Tensor:
    """Returns the weight of each head for each example, ``(batch, heads)``, with rows that sum to 1.

    The weight of a head is its gap to the power ``-gamma``, normalised over the heads of one example.

    Args:
        logits: ``(batch, heads, classes)``.
        estimate: the gap of each head, least where the head fits best: "entropy" of its prediction in nats,
            "uniform" for the same gap everywhere, or a non-negative tensor ``(batch, heads)``. To weigh by
            probabilities p of a domain classifier, pass 1 / p.
        gamma: 0 gives equal weights; the larger, the sharper.
        hard: all weight to the head of the smallest gap (the first of several), whatever gamma is.

    Raises:
        ValueError: shapes that do not fit, a negative gamma, negative or NaN gaps.

    Example:
        >>> logits = torch.tensor([[[0.0, 0.0], [9.0, 0.0]]])
        >>> head_weights(logits).argmax(1), head_weights(logits, gamma=0.0)
        (tensor([1]), tensor([[0.5000, 0.5000]]))
    """
    check_finite(gamma=gamma)
    if logits.ndim != 3:
        raise ValueError(f"logits must be (batch, heads, classes), got {tuple(logits.shape)}")
    if not hard and not gamma >= 0:
        raise ValueError(f"gamma must not be negative, got {gamma}: hard=True takes the head of the smallest gap")
    if isinstance(estimate, Tensor):
        gap = estimate
        if gap.shape != logits.shape[:2]:
            raise ValueError(f"estimate must be (batch, heads) {tuple(logits.shape[:2])}, got {tuple(gap.shape)}")
        if not bool((gap >= 0).all()):
            raise ValueError("estimate must hold gaps of at least 0, got a negative value or NaN")
    elif estimate == "entropy":
        log_probabilities = logits.log_softmax(2)
        gap = -(log_probabilities.exp() * log_probabilities.clamp(min=torch.finfo(logits.dtype).min)).sum(2)
    elif estimate == "uniform":
        gap = logits.new_ones(logits.shape[:2])
    else:
        raise ValueError(f'estimate must be "entropy", "uniform" or a tensor of gaps, got {estimate!r}')
    if hard:
        return torch.nn.functional.one_hot(gap.argmin(1), gap.shape[1]).to(logits.dtype)
    return (-gamma * gap.clamp(min=_FLOOR).log()).softmax(1)


@checked
def combine_heads(logits: Tensor, estimate: Estimate = "entropy", gamma: float = 1.0, *, hard: bool = False) -> Tensor:
    """Returns probabilities ``(batch, classes)``: the heads' predictions, weighted by ``head_weights``.

    Args:
        logits: ``(batch, heads, classes)``.
        estimate: the gap of each head: "entropy", "uniform", or a tensor ``(batch, heads)``.
        gamma: 0 is the mean over heads; the larger, the more does the head of the smallest gap decide.
        hard: the prediction of the head of the smallest gap.

    Example:
        >>> combine_heads(torch.tensor([[[0.0, 0.0], [9.0, 0.0]]]), hard=True).round(decimals=2)
        tensor([[1., 0.]])

    Source: arXiv:2208.08661, section 4.2.
    """
    weights = head_weights(logits, estimate, gamma, hard=hard)
    return torch.einsum("bh,bhc->bc", weights, logits.softmax(2))
