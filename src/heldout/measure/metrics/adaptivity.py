"""How far a combination of heads stays behind the best head. Source: arXiv:2208.08661, the adaptivity gap."""

from __future__ import annotations

import torch
from torch import Tensor

from heldout.errors import check_dimensions, check_labels, check_values, checked


@checked
def adaptivity_gap(
    head_logits: Tensor, targets: Tensor, used: Tensor | None = None, *, groups: Tensor | None = None
) -> float:
    """Returns the accuracy of the best head minus that of the prediction used: what choosing better could gain.

    Args:
        head_logits: ``(batch, heads, classes)``.
        targets: class indices ``(batch,)``.
        used: logits or probabilities ``(batch, classes)`` of the prediction used; default: the mean of the heads'
            probabilities.
        groups: int64 ``(batch,)``: the best head is found in each group apart, as for a mixture of domains. Best
            heads are chosen on these very targets, so that many heads and small groups bias the gap upwards.

    Raises:
        ValueError: shapes that do not fit, or no examples.

    Example:
        >>> heads = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
        >>> adaptivity_gap(heads, torch.tensor([0, 0]), used=heads[:, 1])
        1.0
    """
    check_values(head_logits=head_logits, used=used)
    check_dimensions(3, head_logits=head_logits)
    check_labels(head_logits.shape[-1], targets=targets)
    if head_logits.ndim != 3 or not len(head_logits):
        raise ValueError(f"head_logits must be (batch, heads, classes) with examples, got {tuple(head_logits.shape)}")
    if targets.shape != head_logits.shape[:1]:
        raise ValueError(f"targets must be ({len(head_logits)},), got {tuple(targets.shape)}")
    if used is None:
        used = head_logits.softmax(2).mean(1)
    if used.shape != (len(head_logits), head_logits.shape[2]):
        raise ValueError(
            f"used must be (batch, classes) {(len(head_logits), head_logits.shape[2])}, got {tuple(used.shape)}"
        )
    right = (head_logits.argmax(2) == targets.unsqueeze(1)).double()
    numbers = torch.zeros_like(targets) if groups is None else groups
    if numbers.shape != targets.shape:
        raise ValueError(f"groups must be ({len(targets)},), got {tuple(numbers.shape)}")
    best = sum(right[numbers == number].sum(0).max().item() for number in numbers.unique())
    return (best - (used.argmax(1) == targets).sum().item()) / len(targets)
