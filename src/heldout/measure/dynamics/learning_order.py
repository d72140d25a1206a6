"""Core: When each training example is learned: a measure of its difficulty."""

from __future__ import annotations

import torch
from torch import Tensor

from heldout.errors import checked


@checked
def first_learned(correct: Tensor) -> Tensor:
    """Returns for each example the first evaluation at which it is predicted correctly: int64 ``(examples,)``.

    Args:
        correct: bool ``(evaluations, examples)``, one row for each evaluation of a fixed set during training.

    Returns:
        Row numbers from 0; the number of rows where an example is never predicted correctly.

    Raises:
        ValueError: not a two-dimensional bool tensor with at least one row.

    Example:
        >>> first_learned(torch.tensor([[True, False, False], [False, True, False]]))
        tensor([0, 1, 2])

    Source: arXiv:2203.10036.
    """
    if correct.dtype != torch.bool or correct.ndim != 2 or len(correct) == 0:
        raise ValueError(
            f"correct must be a bool tensor (evaluations, examples), got {correct.dtype} {tuple(correct.shape)}"
        )
    first = correct.int().argmax(0)
    return torch.where(correct.any(0), first, len(correct))
