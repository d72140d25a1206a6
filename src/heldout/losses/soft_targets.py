"""Core: Cross-entropy with soft targets, for mixing methods, label smoothing and distillation."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from heldout.errors import checked


@checked
def soft_cross_entropy(logits: Tensor, targets: Tensor, reduction: Literal["mean", "sum", "none"] = "mean") -> Tensor:
    """Returns ``-sum_k targets_k log softmax(logits)_k``, averaged over all axes but the last.

    Args:
        logits: ``(..., classes)``.
        targets: class probabilities of the same shape; constants, unless they carry a graph of their own.
        reduction: "mean", "sum", or "none" for one value per example ``(...)``.

    Raises:
        ValueError: shapes differ, or an unknown reduction.

    Example:
        >>> import torch
        >>> soft_cross_entropy(torch.zeros(1, 2), torch.tensor([[0.5, 0.5]]))
        tensor(0.6931)
    """
    if logits.shape != targets.shape:
        raise ValueError(f"targets must have the shape of logits {tuple(logits.shape)}, got {tuple(targets.shape)}")
    losses = -(targets * logits.log_softmax(-1)).sum(-1)
    if reduction == "mean":
        return losses.mean()
    if reduction == "sum":
        return losses.sum()
    if reduction == "none":
        return losses
    raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
