"""Core: Average precision of boxes: how pure the list of what was found stays on the way to finding everything.

Source: Everingham et al., International Journal of Computer Vision 88 (2010), section 4.2; matching and the 101 points
as the evaluation of COCO (arXiv:1405.0312) has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from heldout.errors import (
    check_at_least,
    check_between,
    check_dimensions,
    check_finite,
    check_nonempty,
    check_same_length,
    checked,
)
from heldout.method import evaluating, forward
from heldout.nn import box_iou, check_boxes, detections, inputs_for


@checked
def average_precision(
    boxes: Sequence[Tensor],
    scores: Sequence[Tensor],
    targets: Sequence[Tensor],
    *,
    iou: float = 0.5,
    points: int | None = None,
) -> float:
    """Returns the average precision of what was found in pictures, all of one kind of thing, in [0, 1].

    From the best score on, over all pictures, each box is right where its overlap with a box that is to be found, and
    that no better box of this picture has found, is at least ``iou``; of several it takes the one it overlaps most.
    Precision at a recall is the best one at this recall or beyond. A picture without a box to be found counts: all that
    is found there is wrong. What has not been found at all counts as found with precision 0.

    Args:
        boxes: of each picture, ``(found, 4)``: left, top, right and bottom, in the unit of ``targets``.
        scores: of each picture, ``(found,)``; of equal scores, earlier pictures and boxes come first.
        targets: of each picture, ``(there, 4)``; there may be none in a picture, but not in all of them.
        iou: least overlap of a box that is right, in (0, 1].
        points: None for the exact area under the curve; 101 for the mean over as many equally spaced recalls, as COCO.

    Raises:
        ValueError: lists of different lengths, no picture, no box to be found in any, boxes of another format, values
            that are not finite, options out of range.

    Source: see the module; COCO's precision of a recall that is never reached is 0.

    Example:
        >>> there = [torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.zeros(0, 4)]
        >>> average_precision(there, [torch.tensor([0.9]), torch.zeros(0)], there)
        1.0
        >>> wrong = [there[0], there[0]]  # better, in a picture where there is nothing
        >>> average_precision(wrong, [torch.tensor([0.5]), torch.tensor([0.9])], there)
        0.5
    """
    check_same_length(boxes=boxes, scores=scores, targets=targets)
    check_nonempty(boxes=boxes)
    check_between(0, 1, iou=iou)
    check_at_least(torch.finfo(torch.float64).tiny, iou=iou)
    if points is not None:
        check_at_least(2, points=points)
    for number, (found, score, there) in enumerate(zip(boxes, scores, targets, strict=True)):
        check_dimensions(2, **{f"boxes[{number}]": found, f"targets[{number}]": there})
        check_boxes(**{f"boxes[{number}]": found, f"targets[{number}]": there})
        check_dimensions(1, **{f"scores[{number}]": score})
        check_finite(**{f"scores[{number}]": score})
        check_same_length(**{f"boxes[{number}]": found, f"scores[{number}]": score})
    total = sum(map(len, targets))
    if not total:
        raise ValueError("targets must hold a box that is to be found, in one picture at least")
    all_scores = torch.cat([score.double() for score in scores]).cpu()
    right = torch.cat([_right(f.double(), s, t.double(), iou) for f, s, t in zip(boxes, scores, targets, strict=True)])
    order = all_scores.argsort(descending=True, stable=True)
    hits = right[order].double().cumsum(0).numpy()
    precision = hits / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or beyond
    if points is None:
        gained = np.diff(hits, prepend=0.0)
        return float((gained * best).sum() / total)
    at = np.searchsorted(hits / total, np.linspace(0, 1, points), side="left")
    return float(np.append(best, 0.0)[at].mean())


@checked
def prompted_precision(
    model: nn.Module,
    images: Tensor,
    prompts: Tensor,
    boxes: Tensor,
    *,
    iou: float = 0.5,
    most: int = 10,
    least: float = 0.0,
    batch_size: int = 100,
) -> float:
    """Returns the average precision of a detector over pairs of a picture and a prompt, in eval mode.

    Pairs with nothing to be found count: all that is found there is wrong.

    Args:
        model: from images and prompts to ``(batch, rows, columns, 5)``, see ``PromptDetector``.
        images: ``(n, ...)``.
        prompts: ``(n, ...)``.
        boxes: ``(n, most, 4)``, what is to be found, as parts of the picture; rows of zeros are none.
        iou: least overlap of a box that is right, in (0, 1].
        most: boxes of a picture at most.
        least: score below which nothing counts as found. At 0 the ranking alone counts, and what looks like a thing at
            all is found sooner or later, whatever is asked for.
        batch_size: pictures at once.

    Raises:
        ValueError: lengths that differ, boxes of another format or none at all, options out of range.

    Example:
        >>> from heldout.nn import small_prompt_detector
        >>> images, prompts = torch.rand(2, 3, 24, 24), torch.tensor([[1], [2]])
        >>> boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5]], [[0.0, 0.0, 0.0, 0.0]]])
        >>> 0 <= prompted_precision(small_prompt_detector(words=3), images, prompts, boxes) <= 1
        True
    """
    check_same_length(images=images, prompts=prompts, boxes=boxes)
    check_nonempty(images=images)
    check_finite(images=images, prompts=prompts)
    check_dimensions(3, boxes=boxes)
    check_boxes(boxes=boxes)
    check_at_least(1, batch_size=batch_size)
    found = []
    with evaluating(model), torch.no_grad():
        for some, asked in zip(images.split(batch_size), prompts.split(batch_size), strict=True):
            found += detections(forward(model, inputs_for(model, (some, asked))), most=most, least=least)
    there = [each[each.any(1)] for each in boxes.to(found[0].boxes)]
    return average_precision([each.boxes for each in found], [each.scores for each in found], there, iou=iou)


@checked
def prompt_gap(
    model: nn.Module, images: Tensor, prompts: Tensor, boxes: Tensor, others: Sequence[Tensor], **options: Any
) -> float:
    """Returns by how much a detector finds things better by their own prompts than by other ones, in [-1, 1].

    The average precision with the pictures' own prompts less the mean of those with other ones, of the same pictures
    and boxes. A detector that does not read what is asked for has 0, however well it finds things.

    Args:
        model, images, prompts, boxes: as in ``prompted_precision``.
        others: at least one, each ``(n, ...)``: prompts of something that is not what the boxes hold.
        options: of ``prompted_precision``.

    Raises:
        ValueError: no other prompts, lengths that differ, and what ``prompted_precision`` refuses.

    Example:
        >>> from heldout.nn import small_prompt_detector
        >>> images, prompts = torch.rand(2, 3, 24, 24), torch.tensor([[1], [1]])
        >>> boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5]], [[0.0, 0.0, 0.0, 0.0]]])
        >>> prompt_gap(small_prompt_detector(words=3), images, prompts, boxes, [prompts])  # the same ones
        0.0
    """
    check_nonempty(others=others)
    for number, each in enumerate(others):
        check_same_length(**{"images": images, f"others[{number}]": each})
        check_finite(**{f"others[{number}]": each})
    own, *wrong = (prompted_precision(model, images, each, boxes, **options) for each in (prompts, *others))
    return own - float(np.mean(wrong))


def _right(found: Tensor, scores: Tensor, targets: Tensor, iou: float) -> Tensor:
    """Which boxes of a picture are right: bool ``(found,)``, in their own order."""
    right = torch.zeros(len(found), dtype=torch.bool)
    if not len(found) or not len(targets):
        return right
    overlap = box_iou(found, targets).cpu().numpy()
    for place in scores.argsort(descending=True, stable=True).tolist():
        best = int(overlap[place].argmax())
        if overlap[place, best] >= iou:
            right[place] = True
            overlap[:, best] = -1.0  # found
    return right
