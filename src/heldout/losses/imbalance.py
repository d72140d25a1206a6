"""Core: Losses for training sets whose classes are of unequal size, where all classes matter alike.

Source: arXiv:2007.07314 (logit adjustment), arXiv:1901.05555 (class-balanced loss).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.data import class_counts, why_balanced
from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_finite,
    check_labels,
    check_length,
    check_nonempty,
    check_nonnegative,
    check_same_length,
    checked,
)
from heldout.method import Batch, Method, Run


@checked
def logit_adjusted_cross_entropy(logits: Tensor, targets: Tensor, counts: Tensor, tau: float = 1.0) -> Tensor:
    """Returns the mean cross-entropy of ``logits + tau * log prior``: rare classes must win by a margin.

    A model trained so ranks classes by the balanced error when its own logits are compared.

    Args:
        logits: ``(batch, classes)``.
        targets: class indices ``(batch,)``.
        counts: training examples of each class ``(classes,)``; a class without any counts as having one.
        tau: strength; 1 is consistent for the balanced error, 0 is plain cross-entropy.

    Raises:
        ValueError: shapes do not fit, labels out of range, a negative count or strength.

    Source: arXiv:2007.07314, eq. 10.

    Example:
        >>> loss = logit_adjusted_cross_entropy(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([3, 1]))
        >>> round(loss.exp().item(), 4)
        1.3333
    """
    check_dimensions(2, logits=logits)
    check_dimensions(1, targets=targets)
    check_nonempty(logits=logits)
    check_same_length(logits=logits, targets=targets)
    check_length(logits.shape[1], counts=counts)
    check_labels(logits.shape[1], targets=targets)
    check_nonnegative(counts=counts, tau=tau)
    known = counts.clamp(min=1).to(logits.device, torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits + (tau * (known / known.sum()).log()).to(logits.dtype), targets)


@checked
def class_balanced_weights(counts: Tensor, beta: float = 0.999) -> Tensor:
    """Returns the weight of each class, ``(1 - beta) / (1 - beta ** n)`` scaled to a mean of 1, float32 ``(classes,)``.

    Args:
        counts: training examples of each class ``(classes,)``; a class without any counts as having one.
        beta: in [0, 1): 0 weighs all classes alike, towards 1 by the inverse of their counts.

    Raises:
        ValueError: ``beta`` outside of [0, 1), no class, or a negative count.

    Source: arXiv:1901.05555, eq. 7 and section 4.

    Example:
        >>> class_balanced_weights(torch.tensor([1, 2]), beta=0.5).tolist()
        [1.2000000476837158, 0.800000011920929]
    """
    check_dimensions(1, counts=counts)
    check_nonempty(counts=counts)
    check_nonnegative(counts=counts)
    if not 0 <= beta < 1:
        raise ValueError(f"beta must lie in [0, 1), got {beta}")
    weights = (1 - beta) / (1 - beta ** counts.clamp(min=1).double())
    return (weights / weights.mean()).float()


@checked
def logit_adjustment(tau: float = 1.0) -> Method:
    """Returns the Method that replaces the loss by ``logit_adjusted_cross_entropy``; it costs nothing.

    Args:
        tau: strength, at least 0.

    Source: arXiv:2007.07314.

    Example:
        >>> logit_adjustment(tau=0.5).stages
        ('loss',)
    """
    check_at_least(0, tau=tau)
    check_finite(tau=tau)

    def loss(run: Run, batch: Batch) -> Tensor:
        return logit_adjusted_cross_entropy(batch.logits, batch.targets, _counts(run), tau)

    return Method("logit_adjustment", loss=loss, check=why_balanced)


@checked
def class_balanced(beta: float = 0.999) -> Method:
    """Returns the Method that weighs the cross-entropy of each example by ``class_balanced_weights``; costs nothing.

    Args:
        beta: in [0, 1).

    Source: arXiv:1901.05555.

    Example:
        >>> class_balanced(beta=0.99).stages
        ('loss',)
    """
    class_balanced_weights(torch.ones(1), beta)

    def loss(run: Run, batch: Batch) -> Tensor:
        if "class_balanced" not in run.state:
            run.state["class_balanced"] = class_balanced_weights(_counts(run), beta)
        weights = run.state["class_balanced"].to(batch.targets.device)[batch.targets]
        return (weights * F.cross_entropy(batch.logits, batch.targets, reduction="none")).mean()

    return Method("class_balanced", loss=loss, check=why_balanced)


def _counts(run: Run) -> Tensor:
    """Of the training set as the data stages left it."""
    if "class counts" not in run.state:
        run.state["class counts"] = class_counts(run.train_set, run.num_classes or 1)
    return run.state["class counts"]
