"""RISE: which parts of an image a classifier's score rests on, by random masks; and against another class (c-RISE).

Sources: arXiv:1806.07421 (RISE), arXiv:2306.17848 (the contrast).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import check_at_least, check_dimensions, check_finite, check_labels, check_values, checked
from heldout.method import evaluating, forward

Model = nn.Module | Callable[[Tensor], Any]
Contrast = Literal["max", "mean"] | int


@checked
def rise(
    model: Model,
    image: Tensor,
    target: int,
    *,
    n_masks: int = 2000,
    cells: int = 7,
    p: float = 0.5,
    batch_size: int = 128,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Returns how much each pixel raises the score of a class, ``(height, width)``: ``E[f(x * M) M] / E[M]``.

    Masks M are random cells, enlarged smoothly and shifted by part of a cell. ``n_masks`` forward passes.

    Args:
        model: from images ``(batch, channels, height, width)`` to scores ``(batch, classes)``: logits as they come; end
            it with a softmax for probabilities, as in the paper. A module is put in eval mode for the call.
        image: ``(channels, height, width)``; 0 is what a masked pixel becomes.
        target: the class.
        n_masks: number of masks; noise falls with its square root.
        cells: cells of a mask along each side, at most the image's size.
        p: probability that a cell is seen, between 0 and 1.
        batch_size: masks at a time.
        generator: source of the masks; seeded with 0 by default.

    Raises:
        ValueError: an image or scores that are not finite, a target that is no class, p outside of (0, 1), too many
            cells.

    Source: arXiv:1806.07421, eq. 6; division by the masks' own mean instead of by p.

    Example:
        >>> left = lambda x: torch.stack([x[..., :4].sum((1, 2, 3)), x[..., 4:].sum((1, 2, 3))], 1)
        >>> found = rise(left, torch.ones(1, 8, 8), 0, cells=4, n_masks=500)
        >>> bool(found[:, :4].mean() > found[:, 4:].mean())
        True
    """

    def score(scores: Tensor) -> Tensor:
        return scores[:, target]

    return _saliency(model, image, target, score, n_masks, cells, p, batch_size, generator)


@checked
def contrastive_rise(
    model: Model,
    image: Tensor,
    target: int,
    *,
    contrast: Contrast = "max",
    n_masks: int = 2000,
    cells: int = 7,
    p: float = 0.5,
    batch_size: int = 128,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Returns how much each pixel raises the score of a class over that of another, ``(height, width)``. Experimental.

    RISE of ``f_target - f_contrast``, so that evidence for other classes counts negative. Experimental: the paper
    states the idea, the exact form of the contrast is ours.

    Args:
        model, image, target, n_masks, cells, p, batch_size, generator: as for ``rise``.
        contrast: "max", the strongest other class under each mask; "mean" of the other classes; or one class.

    Raises:
        ValueError: as ``rise`` does; a contrast that is no other class; fewer than two classes.

    Source: arXiv:2306.17848, section 5.

    Example:
        >>> halves = lambda x: torch.stack([x[..., :4].sum((1, 2, 3)), x[..., 4:].sum((1, 2, 3))], 1)
        >>> found = contrastive_rise(halves, torch.ones(1, 8, 8), 0, cells=4, n_masks=500)
        >>> bool(found[:, :4].mean() > 0 > found[:, 4:].mean())
        True
    """

    def score(scores: Tensor) -> Tensor:
        classes = scores.shape[1]
        if classes < 2:
            raise ValueError(f"contrast needs a model of at least two classes, got {classes}")
        if isinstance(contrast, int):
            check_labels(classes, contrast=contrast)
            if contrast == target:
                raise ValueError(f"contrast must be another class than the target, got {contrast}")
            return scores[:, target] - scores[:, contrast]
        others = torch.cat([scores[:, :target], scores[:, target + 1 :]], dim=1)
        return scores[:, target] - (others.amax(1) if contrast == "max" else others.mean(1))

    return _saliency(model, image, target, score, n_masks, cells, p, batch_size, generator)


@checked
def patch_selectivity(saliency: Tensor, replaced: Tensor) -> float:
    """Returns the mean saliency of an image's own pixels minus that of the pixels of replaced patches.

    Args:
        saliency: ``(height, width)``, from ``rise`` or ``contrastive_rise`` of an image with replaced patches.
        replaced: bool ``(height, width)``, such as ``heldout.data.patch_mask(...)[0]``.

    Raises:
        ValueError: shapes that differ, a mask of all pixels or none, saliency that is not finite.

    Source: arXiv:2306.17848, section 5.

    Example:
        >>> patch_selectivity(torch.tensor([[1.0, 0.25]]), torch.tensor([[False, True]]))
        0.75
    """
    check_values(saliency=saliency)
    check_dimensions(2, saliency=saliency)
    if replaced.shape != saliency.shape or replaced.dtype != torch.bool:
        raise ValueError(
            f"replaced must be a bool mask {tuple(saliency.shape)}, got {tuple(replaced.shape)} of {replaced.dtype}"
        )
    if replaced.all() or not replaced.any():
        raise ValueError("replaced must hold some pixels, and leave some")
    return float(saliency[~replaced].mean() - saliency[replaced].mean())


def _saliency(
    model: Model,
    image: Tensor,
    target: int,
    score: Callable[[Tensor], Tensor],
    n_masks: int,
    cells: int,
    p: float,
    batch_size: int,
    generator: torch.Generator | None,
) -> Tensor:
    check_dimensions(3, image=image)
    check_finite(image=image)
    if not image.is_floating_point():
        raise TypeError(f"image must be floating point, got {image.dtype}: image.float() / 255")
    check_at_least(1, n_masks=n_masks, cells=cells, batch_size=batch_size)
    if not 0 < p < 1:
        raise ValueError(f"p must lie between 0 and 1, got {p}")
    _, height, width = image.shape
    if cells > min(height, width):
        raise ValueError(f"cells must be at most the size of the image, {height} x {width} pixels, got {cells}")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    weighted = image.new_zeros(height, width, dtype=torch.promote_types(image.dtype, torch.float32))
    seen = torch.zeros_like(weighted)
    mode = evaluating(model) if isinstance(model, nn.Module) else nullcontext()
    with mode, torch.no_grad():
        for count in [batch_size] * (n_masks // batch_size) + [n_masks % batch_size] * (n_masks % batch_size > 0):
            masks = _masks(count, cells, p, height, width, generator).to(weighted)
            scores = forward(model, image * masks.unsqueeze(1).to(image))
            check_finite(scores=scores)
            check_labels(scores.shape[1], target=target)
            weighted += torch.einsum("n,nhw->hw", score(scores).to(masks), masks)
            seen += masks.sum(0)
    if not bool((seen > 0).all()):
        raise ValueError(f"n_masks must be more: {n_masks} masks leave some pixels covered in all of them")
    return weighted / seen


def _masks(count: int, cells: int, p: float, height: int, width: int, generator: torch.Generator) -> Tensor:
    """``(count, height, width)`` in [0, 1]: random cells, enlarged bilinearly and cropped at a random offset."""
    grid = (torch.rand(count, 1, cells + 1, cells + 1, generator=generator) < p).float()
    tall, wide = math.ceil(height / cells), math.ceil(width / cells)
    large = F.interpolate(grid, ((cells + 1) * tall, (cells + 1) * wide), mode="bilinear", align_corners=False)[:, 0]
    down = torch.randint(tall, (count,), generator=generator)
    across = torch.randint(wide, (count,), generator=generator)
    rows = down.unsqueeze(1) + torch.arange(height)
    columns = across.unsqueeze(1) + torch.arange(width)
    return large[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
