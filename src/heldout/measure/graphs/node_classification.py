"""Core: How well a linear head tells the classes of nodes from frozen embeddings, at its best epoch by validation.

Source: arXiv:2406.08310 (Xu et al., 2024), the protocol of node classification.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_labels,
    check_length,
    check_nonnegative,
    check_positive,
    check_same_length,
    check_values,
    checked,
)


class NodeProbe(NamedTuple):
    """How well classes of nodes are told.

    Attributes:
        accuracy: on the nodes to test on, at the epoch below.
        val_accuracy: the best one on the nodes to choose by.
        epoch: that has it, the first of those that do.

    Example:
        >>> NodeProbe(0.8, 0.82, 40).accuracy
        0.8
    """

    accuracy: float
    val_accuracy: float
    epoch: int


@checked
def probe_node_classification(
    h: Tensor,
    y: Tensor,
    masks: Sequence[Tensor],
    seed: int = 0,
    *,
    epochs: int = 300,
    lr: float = 0.01,
    weight_decay: float = 1e-5,
) -> NodeProbe:
    """Returns how well a linear head that is trained on frozen embeddings tells the classes of other nodes.

    Full-batch Adam on cross-entropy. Embeddings are taken as they are: at one rate their scale counts, so give all that
    are compared the same treatment.

    Args:
        h: embeddings, ``(nodes, dim)``, made by whatever model.
        y: classes, int64 ``(nodes,)``; told apart by equality.
        masks: bool ``(nodes,)`` of the nodes to train on, to choose the epoch by, and to test on; without overlap.
        seed: of the head's first weights.
        epochs, lr, weight_decay: of the training.

    Raises:
        ValueError: embeddings that are not finite, masks that are not three, overlap or hold no node, fewer than two
            classes to train on, or options out of range.

    Source: arXiv:2406.08310. deviation: the checkpoint is chosen by validation alone.

    Example:
        >>> h = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
        >>> part = torch.arange(300) % 3
        >>> probe_node_classification(h, (h[:, 0] > 0).long(), [part == 0, part == 1, part == 2]).accuracy > 0.8
        True
    """
    check_dimensions(2, h=h)
    check_values(h=h)
    check_dimensions(1, y=y)
    check_labels(y=y)
    check_same_length(h=h, y=y)
    check_length(3, masks=masks)
    check_at_least(1, epochs=epochs)
    check_at_least(0, seed=seed)
    check_positive(lr=lr)
    check_nonnegative(weight_decay=weight_decay)
    for mask in masks:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != y.shape or not bool(mask.any()):
            raise ValueError(f"masks must be bool, one entry for each of {len(y)} nodes, and hold a node each")
    if bool((torch.stack(list(masks)).sum(0) > 1).any()):
        raise ValueError("masks must not overlap")
    y = y.to(h.device).unique(return_inverse=True)[1]
    train, val, test = (mask.to(h.device).nonzero()[:, 0] for mask in masks)
    if len(y[train].unique()) < 2:
        raise ValueError("y must hold at least 2 classes among the nodes to train on")
    x = h.detach().float()
    parts, classes = [x[rows] for rows in (train, val, test)], int(y.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    bound = x.shape[1] ** -0.5
    weight = ((2 * torch.rand(x.shape[1], classes, generator=generator) - 1) * bound).to(h.device).requires_grad_()
    bias = torch.zeros(classes, device=h.device, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=lr, weight_decay=weight_decay)
    best = NodeProbe(0.0, -1.0, 0)
    with torch.enable_grad():
        for epoch in range(1, epochs + 1):
            optimizer.zero_grad()
            F.cross_entropy(parts[0] @ weight + bias, y[train]).backward()
            optimizer.step()
            accuracy = _accuracy(parts[1], weight, bias, y[val])
            if accuracy > best.val_accuracy:
                best = NodeProbe(_accuracy(parts[2], weight, bias, y[test]), accuracy, epoch)
    return best


@torch.no_grad()
def _accuracy(x: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> float:
    return float(((x @ weight + bias).argmax(1) == y).double().mean())
