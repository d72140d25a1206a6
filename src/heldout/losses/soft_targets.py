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


@checked
def distillation_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Returns the KL divergence between a teacher's class probabilities and its student's, the mean of all rows.

    A row's is ``sum_k t_k (log t_k - log s_k)`` with the teacher's probabilities t, at temperature 1: 0 where both
    agree. The teacher gets no gradient.

    Args:
        logits: of the student, ``(..., classes)``.
        teacher_logits: of the same shape.

    Raises:
        ValueError: shapes differ.

    Source: arXiv:1503.02531 (Hinton et al.), section 2.

    Example:
        >>> import torch
        >>> distillation_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[100.0, 0.0]]))
        tensor(0.6931)
    """
    if logits.shape != teacher_logits.shape:
        got = tuple(teacher_logits.shape)
        raise ValueError(f"teacher_logits must have the shape of logits {tuple(logits.shape)}, got {got}")
    teacher = teacher_logits.detach().log_softmax(-1)
    return soft_cross_entropy(logits, teacher.exp()) + (teacher.exp() * teacher).sum(-1).mean()
