"""Core: Boxes (left, top, right, bottom): how far they overlap, and which of many overlapping ones are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_dimensions, check_finite, check_fraction, checked


@checked
def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Returns the intersection over union of each box of one list with each of another, ``(..., n, m)``.

    Args:
        first: ``(..., n, 4)``, left, top, right and bottom, in any unit; a box without area overlaps with none.
        second: ``(..., m, 4)``.

    Raises:
        ValueError: shapes that are no boxes, or boxes whose right or bottom lies before their left or top.

    Example:
        >>> box_iou(torch.tensor([[0.0, 0.0, 2.0, 1.0]]), torch.tensor([[1.0, 0.0, 3.0, 1.0], [0.0, 0.0, 2.0, 1.0]]))
        tensor([[0.3333, 1.0000]])
    """
    check_boxes(first=first, second=second)
    shared, union = _shared(first.unsqueeze(-2), second.unsqueeze(-3))
    return shared / union.clamp(min=torch.finfo(union.dtype).tiny)


@checked
def generalized_box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Returns the generalised intersection over union of pairs of boxes, ``(...)``, in [-1, 1].

    It is the intersection over union less the share of the smallest box around both that neither covers, so that it
    tells apart, and has a gradient for, boxes that do not meet.

    Args:
        first: ``(..., 4)``, left, top, right and bottom.
        second: ``(..., 4)``, of the same shape.

    Raises:
        ValueError: shapes that are no boxes or differ, or boxes whose right or bottom lies before their left or top.

    Source: arXiv:1902.09630, algorithm 1.

    Example:
        >>> apart = torch.tensor([[0.0, 0.0, 1.0, 1.0], [2.0, 0.0, 3.0, 1.0]])
        >>> round(generalized_box_iou(apart[:1], apart[1:]).item(), 4)
        -0.3333
    """
    check_boxes(first=first, second=second)
    if first.shape != second.shape:
        raise ValueError(f"first and second must be of one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
    tiny = torch.finfo(first.dtype).tiny
    shared, union = _shared(first, second)
    corner = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    around = corner.prod(-1)
    return shared / union.clamp(min=tiny) - (around - union) / around.clamp(min=tiny)


@checked
def suppress_overlaps(boxes: Tensor, scores: Tensor, *, iou: float = 0.5) -> Tensor:
    """Returns which boxes are kept when those that overlap with a better one are left out: bool ``(batch, n)``.

    From the best score on, a box is kept where its intersection over union with each box kept before it is at most
    ``iou``. Of equal scores the first comes first. All pictures of a batch are gone through at once.

    Args:
        boxes: ``(batch, n, 4)``, left, top, right and bottom.
        scores: ``(batch, n)``.
        iou: the overlap above which the worse one is left out, in [0, 1].

    Raises:
        ValueError: shapes that do not match, scores that are not finite, iou out of range.

    Example:
        >>> boxes = torch.tensor([[[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [3.0, 3.0, 4.0, 4.0]]])
        >>> suppress_overlaps(boxes, torch.tensor([[0.8, 0.9, 0.1]])).tolist()
        [[False, True, True]]
    """
    check_dimensions(3, boxes=boxes)
    check_dimensions(2, scores=scores)
    check_fraction(iou=iou)
    check_finite(scores=scores)
    check_boxes(boxes=boxes)
    if scores.shape != boxes.shape[:2]:
        raise ValueError(f"scores must be {tuple(boxes.shape[:2])} as the boxes, got {tuple(scores.shape)}")
    order = scores.argsort(dim=1, descending=True, stable=True)
    sorted_boxes = boxes.gather(1, order.unsqueeze(2).expand(-1, -1, 4))
    beside = box_iou(sorted_boxes, sorted_boxes) > iou
    kept = torch.ones_like(order, dtype=torch.bool)
    for place in range(1, kept.shape[1]):
        kept[:, place] = ~(beside[:, place, :place] & kept[:, :place]).any(1)
    return torch.zeros_like(kept).scatter(1, order, kept)


def check_boxes(**named: Tensor) -> None:
    """Refuses what is not finite boxes ``(..., 4)`` with left <= right and top <= bottom.

    Raises:
        ValueError: something else; the message names the argument.

    Example:
        >>> check_boxes(boxes=torch.tensor([[0.5, 0.5, 0.2, 0.2]]))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: boxes must be (left, top, right, bottom) with left <= right and top <= bottom, got [0.5, ...]
    """
    for name, boxes in named.items():
        check_at_least(1, **{f"dimensions of {name}": boxes.ndim})
        if boxes.shape[-1] != 4 or not boxes.is_floating_point():
            raise ValueError(f"{name} must be real numbers (..., 4), got {boxes.dtype} {tuple(boxes.shape)}")
        check_finite(**{name: boxes})
        turned = (boxes[..., 2:] < boxes[..., :2]).any(-1)
        if turned.any():
            first = [round(value, 4) for value in boxes[turned][0].tolist()]
            raise ValueError(
                f"{name} must be (left, top, right, bottom) with left <= right and top <= bottom, got {first}"
            )


def _shared(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of the intersection and of the union of boxes that broadcast against each other."""
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(each[..., 2:] - each[..., :2]).prod(-1) for each in (first, second)]
    return shared, areas[0] + areas[1] - shared
