"""The loss of a causal model on each sequence, over the tokens that count."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from heldout.errors import check_dimensions, check_labels, check_tensors, checked

_IGNORED = -100


@checked
def next_token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean cross-entropy of the next tokens of each sequence: ``(batch,)``.

    Args:
        logits: ``(batch, length, vocabulary)``; those at a place tell the token after it.
        labels: int64 ``(batch, length)``; -100 where a token does not count. A sequence without one that counts, but
            for its first, has loss 0.

    Raises:
        ValueError: other shapes, labels that are none of the vocabulary.

    Example:
        >>> import torch
        >>> logits = torch.zeros(1, 3, 4)
        >>> round(next_token_losses(logits, torch.tensor([[0, -100, 2]])).item(), 4)  # log 4
        1.3863
    """
    check_tensors(logits=logits, labels=labels)
    check_dimensions(3, logits=logits)
    if labels.shape != logits.shape[:2]:
        raise ValueError(f"labels must be {tuple(logits.shape[:2])} as logits, got {tuple(labels.shape)}")
    check_labels(logits.shape[2], labels=labels[labels != _IGNORED])
    asked = labels[:, 1:]
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), asked.flatten(), ignore_index=_IGNORED, reduction="none")
    return losses.view(asked.shape).sum(1) / (asked != _IGNORED).sum(1).clamp(min=1)
