"""Core: Label smoothing: cross-entropy with a share of each label spread over all classes. Source: arXiv:1512.00567."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from heldout.data import all_targets
from heldout.errors import checked
from heldout.method import Batch, Method, Run, Splits, why_no_class_labels


@checked
def label_smoothing(smoothing: float = 0.1) -> Method:
    """Returns the Method that trains on labels of which ``smoothing`` is spread over all classes; it costs nothing.

    Replaces the loss by cross-entropy.

    Args:
        smoothing: in [0, 1).

    Raises:
        ValueError: ``smoothing`` outside of [0, 1).

    Source: arXiv:1512.00567, section 7.

    Example:
        >>> label_smoothing(0.2).stages
        ('loss',)
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must lie in [0, 1), got {smoothing}")

    def loss(run: Run, batch: Batch) -> Tensor:
        return F.cross_entropy(batch.logits, batch.targets, label_smoothing=smoothing)

    def check(module: nn.Module, splits: Splits) -> str | None:
        return why_no_class_labels(all_targets(splits.train))

    return Method("label_smoothing", loss=loss, check=check)
