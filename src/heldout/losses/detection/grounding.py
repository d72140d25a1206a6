"""Core: What a detector with prompts minimises: patches agree with texts where they should, and boxes fit.

Sources: arXiv:1708.02002 (focal loss); arXiv:1902.09630 (generalised overlap); arXiv:1904.01355, sections 3.1 and 4.2
(which places answer for a box: those in its middle, of several boxes the smallest); their sum as in arXiv:2112.03857.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_finite,
    check_fraction,
    check_nonnegative,
    check_one_of,
    check_same_length,
    checked,
)
from heldout.nn import check_boxes, check_outputs, generalized_box_iou, patch_centres


class PatchTargets(NamedTuple):
    """What patches should say.

    Attributes:
        positive: bool ``(batch, rows, columns)``, which patches show what is asked for.
        boxes: ``(batch, rows, columns, 4)``, the box of each; zeros where there is none.

    Example:
        >>> found = patch_targets(torch.tensor([[[0.0, 0.0, 0.5, 1.0]]]), 1, 2)
        >>> found.positive.tolist(), found.boxes[0, 0, 0].tolist()
        ([[[True, False]]], [0.0, 0.0, 0.5, 1.0])
    """

    positive: Tensor
    boxes: Tensor


@checked
def patch_targets(boxes: Tensor, rows: int, columns: int, *, middle: float = 0.5) -> PatchTargets:
    """Returns which patches of a map answer for which boxes.

    A patch answers for a box where its centre lies in the middle of it, and always where the box's centre lies in the
    patch; of several boxes for the smallest.

    Args:
        boxes: ``(batch, most, 4)``, left, top, right and bottom as parts of the picture; rows of zeros are no boxes.
            A picture may have none.
        rows, columns: of the map.
        middle: width and height of the middle as parts of those of the box, in [0, 1].

    Raises:
        ValueError: boxes of another format, or outside of the picture; middle out of range.

    Source: arXiv:1904.01355, section 3.1, with sampling of the centre.

    Example:
        >>> patch_targets(torch.zeros(1, 0, 4), 2, 2).positive.any().item()
        False
    """
    check_targets(boxes)
    check_fraction(middle=middle)
    check_at_least(1, rows=rows, columns=columns)
    size = boxes[..., 2:] - boxes[..., :2]
    there = (size > 0).all(2)
    at = (boxes[..., :2] + boxes[..., 2:]) / 2  # (batch, most, 2)
    centres = patch_centres(rows, columns).to(boxes)  # (rows, columns, 2)
    away = (centres - at[:, :, None, None]).abs()  # (batch, most, rows, columns, 2)
    inside = (away <= middle / 2 * size[:, :, None, None]).all(4)
    grid = at.new_tensor([columns, rows])
    cell = torch.minimum((at * grid).floor(), grid - 1)
    own = ((centres * grid).floor() == cell[:, :, None, None]).all(4)
    answers = (inside | own) & there[:, :, None, None]
    area = size.prod(2)[:, :, None, None].expand_as(answers).masked_fill(~answers, torch.inf)
    if not boxes.shape[1]:
        none = boxes.new_zeros(len(boxes), rows, columns, 4)
        return PatchTargets(none[..., 0].bool(), none)
    chosen = area.argmin(1).flatten(1)  # (batch, patches)
    positive = answers.any(1)
    found = boxes.gather(1, chosen.unsqueeze(2).expand(-1, -1, 4)).unflatten(1, (rows, columns))
    return PatchTargets(positive, found * positive.unsqueeze(3))


@checked
def alignment_loss(logits: Tensor, positive: Tensor, *, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """Returns the focal loss of patches against a text, of each picture: ``(batch,)``.

    Summed over patches and divided by the number of those that are positive, at least 1: a picture in which nothing is
    to be found counts, with all its patches.

    Args:
        logits: ``(batch, ...)``.
        positive: bool, of the same shape: which patches show what the text says.
        gamma: how far patches that are told right already count less, at least 0; 0 is cross-entropy.
        alpha: weight of positive patches; that of the others is ``1 - alpha``; in [0, 1].

    Raises:
        ValueError: shapes that differ, logits that are not finite, options out of range.
        TypeError: positive that is not bool.

    Source: arXiv:1708.02002, equation 5.

    Example:
        >>> alignment_loss(torch.zeros(1, 4), torch.tensor([[True, False, False, False]]), gamma=0, alpha=0.5)
        tensor([1.3863])
    """
    check_nonnegative(gamma=gamma)
    check_fraction(alpha=alpha)
    check_finite(logits=logits)
    if positive.dtype != torch.bool:
        raise TypeError(f"positive must be bool, got {positive.dtype}")
    if logits.shape != positive.shape or logits.ndim < 2:
        raise ValueError(
            f"logits and positive must be (batch, ...) of one shape, got {tuple(logits.shape)} and "
            f"{tuple(positive.shape)}"
        )
    wanted = positive.to(logits.dtype)
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    weight = alpha * wanted + (1 - alpha) * (1 - wanted)
    wrong = torch.sigmoid(torch.where(positive, -logits, logits))  # probability of the other answer
    losses = weight * wrong**gamma * entropy
    return losses.flatten(1).sum(1) / wanted.flatten(1).sum(1).clamp(min=1)


@checked
def box_regression_loss(boxes: Tensor, targets: Tensor, *, l1: float = 5.0, giou: float = 2.0) -> Tensor:
    """Returns how far boxes are from those that they should be: ``(...)``, one number each.

    The sum of the absolute differences of four sides, and of one minus the generalised overlap, each with its weight.

    Args:
        boxes: ``(..., 4)``, left, top, right and bottom.
        targets: ``(..., 4)``, the same of those they should be.
        l1, giou: weights, at least 0.

    Raises:
        ValueError: boxes of another format, shapes that differ, weights below 0.

    Source: arXiv:2005.12872, section 3.1 and its weights; arXiv:1902.09630.

    Example:
        >>> box = torch.tensor([[0.0, 0.0, 0.5, 0.5]])
        >>> box_regression_loss(box, box).item(), round(box_regression_loss(box, box + 0.5).item(), 4)
        (0.0, 13.0)
    """
    check_nonnegative(l1=l1, giou=giou)
    check_boxes(boxes=boxes, targets=targets)
    if boxes.shape != targets.shape:
        raise ValueError(f"boxes and targets must be of one shape, got {tuple(boxes.shape)}, {tuple(targets.shape)}")
    overlap = generalized_box_iou(boxes, targets)
    return l1 * (boxes - targets).abs().sum(-1) + giou * (1 - overlap)


@checked
def grounding_loss(
    outputs: Tensor, boxes: Tensor, *, box_weight: float = 0.5, reduction: Literal["mean", "none"] = "mean"
) -> Tensor:
    """Returns the loss of a detector with prompts: alignment of all patches, and boxes of those that show something.

    Args:
        outputs: ``(batch, rows, columns, 5)`` of ``PromptDetector``.
        boxes: ``(batch, most, 4)``, what is to be found: left, top, right and bottom, as parts of the picture; rows of
            zeros are no boxes. A picture without a box is a negative: its patches are told to score low.
        box_weight: of the mean ``box_regression_loss`` over the positive patches of a picture, at least 0.
        reduction: "mean" over pictures, or "none": ``(batch,)``.

    Raises:
        ValueError: outputs or boxes of another shape or format, another number of one than of the other.

    Source: arXiv:2112.03857, section 3.1: classification by alignment plus localisation.

    Example:
        >>> outputs = torch.tensor([9.0, 0.0, 0.0, 1.0, 1.0]).view(1, 1, 1, 5)
        >>> round(grounding_loss(outputs, torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])).item(), 4)
        0.0
    """
    check_outputs(outputs)
    check_nonnegative(box_weight=box_weight)
    check_one_of(("mean", "none"), reduction=reduction)
    check_same_length(outputs=outputs, boxes=boxes)
    wanted = patch_targets(boxes.to(outputs), *outputs.shape[1:3])
    aligned = alignment_loss(outputs[..., 0], wanted.positive)
    away = box_regression_loss(outputs[..., 1:], wanted.boxes).masked_fill(~wanted.positive, 0.0)
    placed = away.flatten(1).sum(1) / wanted.positive.flatten(1).sum(1).clamp(min=1)
    losses = aligned + box_weight * placed
    return losses.mean() if reduction == "mean" else losses


def check_targets(boxes: Tensor) -> None:
    """Refuses what is not boxes ``(batch, most, 4)`` within [0, 1], or zeros where there is none."""
    check_dimensions(3, boxes=boxes)
    check_boxes(boxes=boxes)
    check_fraction(boxes=boxes)
    flat = (boxes[..., 2:] <= boxes[..., :2]).any(2) & (boxes != 0).any(2)
    if flat.any():
        raise ValueError(f"boxes must have a width and a height, or be zeros, got {boxes[flat][0].tolist()}")
