"""Cross-entropy, distillation from a general teacher, and a pull towards what quantisation leaves: the loss of GEM.

Source: arXiv:2503.22698 and its released script, where the quantiser is the identity, so that the third term is 0;
here it is what the caller's quantiser makes of the outputs (deviation).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from heldout.errors import check_dimensions, check_labels, check_nonnegative, check_same_length, checked
from heldout.losses.distillation import distillation_loss


@checked
def distill_quant(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor,
    quantised: Tensor | None = None,
    *,
    distillation: float = 0.7,
    quantisation: float = 0.3,
    temperature: float = 1.0,
) -> Tensor:
    """Returns ``CE + distillation * T^2 KL(teacher || student) + quantisation * MSE(logits, quantised)``.

    Args:
        logits: the student's, ``(batch, classes)``.
        labels: class indices ``(batch,)``.
        teacher_logits: of the general model, ``(batch, classes)``; no gradient flows into them.
        quantised: what the logits become when the outputs (or the weights) are quantised, ``(batch, classes)``; no
            gradient flows into it. None leaves the term out.
        distillation, quantisation: weights of the terms, 0 or more.
        temperature: of the distillation, above 0.

    Raises:
        ValueError: shapes that differ, or weights out of range.

    Source: arXiv:2503.22698, the released script.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> plain = F.cross_entropy(logits, torch.tensor([0, 1]))
        >>> torch.equal(distill_quant(logits, torch.tensor([0, 1]), logits), plain)
        True
    """
    check_nonnegative(distillation=distillation, quantisation=quantisation)
    check_dimensions(2, logits=logits)
    check_same_length(logits=logits, labels=labels)
    check_labels(logits.shape[1], labels=labels)
    total = F.cross_entropy(logits, labels) + distillation * distillation_loss(logits, teacher_logits, temperature)
    if quantised is None:
        return total
    if quantised.shape != logits.shape:
        raise ValueError(f"quantised must have the shape of logits {tuple(logits.shape)}, got {tuple(quantised.shape)}")
    return total + quantisation * F.mse_loss(logits, quantised.detach())
