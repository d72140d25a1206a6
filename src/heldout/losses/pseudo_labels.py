"""Core: Cross-entropy to labels that a model guesses itself, where it is sure of them.

Source: Lee, Pseudo-Label, ICML 2013 workshop; arXiv:2001.07685 (FixMatch), eq. 4.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from heldout.errors import check_dimensions, check_fraction, check_nonempty, check_values, checked


@checked
def confident_cross_entropy(logits: Tensor, guesses: Tensor, threshold: float = 0.95) -> Tensor:
    """Returns the cross-entropy to the most probable class of ``guesses``, of the examples where it is probable enough.

    The sum over these examples is divided by the number of all, so that a batch with few sure guesses counts little.
    No gradient enters the guesses.

    Args:
        logits: ``(batch, classes)`` of what learns.
        guesses: logits ``(batch, classes)`` of what labels: of the same model, or of the same examples seen otherwise.
        threshold: least probability of a label that is learnt, in [0, 1]; 0 takes all.

    Raises:
        ValueError: no example, shapes that differ, NaN among the guesses, a threshold outside of [0, 1].

    Source: arXiv:2001.07685, eq. 4.

    Example:
        >>> import torch
        >>> logits = torch.zeros(4, 2)
        >>> guesses = torch.tensor([[3.0, 0.0], [0.1, 0.0], [0.0, 0.1], [0.0, 3.0]])
        >>> round(confident_cross_entropy(logits, guesses, 0.9).item(), 4)  # half of log 2
        0.3466
    """
    check_nonempty(logits=logits)
    check_dimensions(2, logits=logits)
    check_fraction(threshold=threshold)
    if guesses.shape != logits.shape:
        raise ValueError(f"guesses must have the shape of logits, {tuple(logits.shape)}, got {tuple(guesses.shape)}")
    check_values(guesses=guesses)
    confidence, labels = guesses.detach().float().softmax(1).max(1)
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return (losses * (confidence >= threshold)).mean()
