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

    The weight of a head is its gap to the power ``-gamma``, normalised over the heads of one example. Gaps and weights
    are float32 for logits in half precision, too, and float64 where the logits or the gaps are.

    Args:
        logits: ``(batch, heads, classes)``; a class may be ruled out by -inf.
        estimate: the gap of each head, least where the head fits best: "entropy" of its prediction in nats,
            "uniform" for the same gap everywhere, or a non-negative tensor ``(batch, heads)``, in which an infinite
            gap means no weight (but at gamma 0). To weigh by probabilities p of a domain classifier, pass 1 / p.
        gamma: 0 gives equal weights; the larger, the sharper.
        hard: all weight to the head of the smallest gap (the first of several), whatever gamma is.

    Raises:
        ValueError: shapes that do not fit, a gamma that is negative or not finite, logits that are no distribution
            (NaN, inf, or -inf for every class), negative or NaN gaps, an example without a finite gap.

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
    log_probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(2)
    if bool(log_probabilities.isnan().any()):
        raise ValueError("logits must be finite (-inf for some of a head's classes is), got NaN, inf or -inf for all")
    if isinstance(estimate, Tensor):
        gap = estimate.to(torch.promote_types(log_probabilities.dtype, estimate.dtype))
        if gap.shape != logits.shape[:2]:
            raise ValueError(f"estimate must be (batch, heads) {tuple(logits.shape[:2])}, got {tuple(gap.shape)}")
        if not bool((gap >= 0).all()):
            raise ValueError("estimate must hold gaps of at least 0, got a negative value or NaN")
        if not bool(gap.isfinite().any(1).all()):
            raise ValueError("estimate must hold a finite gap for each example: one of infinite gaps fits no head")
    elif estimate == "entropy":
        lowest = torch.finfo(log_probabilities.dtype).min
        gap = -(log_probabilities.exp() * log_probabilities.clamp(min=lowest)).sum(2)
    elif estimate == "uniform":
        gap = log_probabilities.new_ones(logits.shape[:2])
    else:
        raise ValueError(f'estimate must be "entropy", "uniform" or a tensor of gaps, got {estimate!r}')
    if hard:
        return torch.nn.functional.one_hot(gap.argmin(1), gap.shape[1]).to(gap.dtype)
    if gamma == 0:
        gap = torch.ones_like(gap)  # 0 times the logarithm of an infinite gap is NaN
    return (-gamma * gap.clamp(min=_FLOOR).log()).softmax(1)


@checked
def combine_heads(logits: Tensor, estimate: Estimate = "entropy", gamma: float = 1.0, *, hard: bool = False) -> Tensor:
    """Returns probabilities ``(batch, classes)``: the heads' predictions, weighted by ``head_weights``.

    They have the data type of the weights: at least float32.

    Args:
        logits: ``(batch, heads, classes)``.
        estimate: the gap of each head: "entropy", "uniform", or a tensor ``(batch, heads)``.
        gamma: 0 is the mean over heads; the larger, the more does the head of the smallest gap decide.
        hard: the prediction of the head of the smallest gap.

    Raises:
        ValueError: as ``head_weights``.

    Example:
        >>> combine_heads(torch.tensor([[[0.0, 0.0], [9.0, 0.0]]]), hard=True).round(decimals=2)
        tensor([[1., 0.]])

    Source: arXiv:2208.08661, section 4.2.
    """
    weights = head_weights(logits, estimate, gamma, hard=hard)
    return torch.einsum("bh,bhc->bc", weights, logits.to(weights.dtype).softmax(2))
