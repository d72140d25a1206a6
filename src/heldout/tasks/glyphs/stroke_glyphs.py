"""Characters that nobody has seen: each class is a random program of strokes, each image another writing of it.

In the manner of Omniglot (Lake, Salakhutdinov and Tenenbaum, Science 350 (2015)), with a script of one's own: what all
characters of a script share is a number, so that the distance between two scripts can be chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_between, check_fraction, check_nonempty, check_nonnegative, checked
from heldout.tasks.glyphs.writing import affine_maps
from heldout.tasks.seeds import Seed, generator_of

_STROKES = 4  # at most
_POINTS = 16  # of a stroke
_AT_ONCE = 256  # images that are drawn together


@checked
def stroke_glyphs(
    script: Sequence[float], per_class: int, *, size: int = 28, jitter: float = 1.0, seed: Seed = 0
) -> tuple[Tensor, Tensor]:
    """Returns images ``(classes * per_class, 1, size, size)`` in [0, 1] and int64 labels, ordered by class.

    A class is two to four strokes, each a curve through three points. Each image moves the points, turns, shears,
    scales and shifts the whole, and has a pen of its own.

    Args:
        script: of each class, in [0, 1]: 0 is straight strokes of a broad pen, 1 is bows of a thin, dotted one, and
            between them it is by degrees.
        per_class: images of each class.
        size: height and width in pixels, at least 8.
        jitter: how much the images of a class differ, at least 0; at 0 they are all the same.
        seed: of classes and images.

    Raises:
        ValueError: no class, options out of range.

    Example:
        >>> images, labels = stroke_glyphs([0.0, 0.0, 1.0], 4)
        >>> images.shape, labels.tolist()
        (torch.Size([12, 1, 28, 28]), [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    """
    check_nonempty(script=script)
    check_fraction(script=script)
    check_at_least(1, per_class=per_class)
    check_between(8, 512, size=size)
    check_nonnegative(jitter=jitter)
    generator = generator_of(seed)
    style = torch.as_tensor(list(script), dtype=torch.float32)
    points, drawn = _programs(style, generator)
    labels = torch.arange(len(style)).repeat_interleave(per_class)
    images = [
        _written(points[part], drawn[part], style[part], size, jitter, generator) for part in labels.split(_AT_ONCE)
    ]
    return torch.cat(images), labels


def _programs(style: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Three points ``(classes, strokes, 3, 2)`` of each stroke, in [-0.8, 0.8], and which strokes there are."""
    classes = len(style)
    ends = torch.rand(classes, _STROKES, 2, 2, generator=generator) * 1.6 - 0.8
    joined = torch.rand(classes, _STROKES - 1, generator=generator) < 0.5  # a stroke may begin where one has ended
    ends[:, 1:, 0] = torch.where(joined.unsqueeze(2), ends[:, :-1, 1], ends[:, 1:, 0])
    along = ends[:, :, 1] - ends[:, :, 0]
    short = along.norm(dim=2, keepdim=True)
    ends[:, :, 1] = ends[:, :, 0] + along * (0.6 / short.clamp(min=1e-3)).clamp(min=1.0)  # none is a mere dot
    along = ends[:, :, 1] - ends[:, :, 0]
    across = torch.stack([-along[..., 1], along[..., 0]], 2)
    side = torch.rand(classes, _STROKES, 1, generator=generator).sub(0.5).sign()
    bow = side * style.view(-1, 1, 1) * (0.6 + 0.5 * torch.rand(classes, _STROKES, 1, generator=generator))
    middle = ends.mean(2) + bow * across
    count = torch.randint(2, _STROKES + 1, (classes, 1), generator=generator)
    return torch.stack([ends[:, :, 0], middle, ends[:, :, 1]], 2), torch.arange(_STROKES) < count


def _written(
    points: Tensor, drawn: Tensor, style: Tensor, size: int, jitter: float, generator: torch.Generator
) -> Tensor:
    """Images ``(n, 1, size, size)`` of n programs."""
    n = len(points)
    points = points + 0.07 * jitter * torch.randn(points.shape, generator=generator)
    maps = affine_maps(n, jitter, generator)
    t = torch.linspace(0, 1, _POINTS)
    weights = torch.stack([(1 - t).square(), 2 * t * (1 - t), t.square()])  # of a quadratic Bezier curve
    curve = torch.einsum("nskd,kp->nspd", points, weights).flatten(1, 2)
    curve = torch.einsum("nij,npj->npi", maps[:, :, :2], curve) + maps[:, None, :, 2]
    phase = torch.rand(n, 1, generator=generator) * 2 * math.pi
    gaps = (torch.arange(_POINTS) * 2.1 + phase).sin() > 1.6 - style.unsqueeze(1) * 1.2
    there = (drawn.unsqueeze(2) & ~gaps.unsqueeze(1)).flatten(1)
    spread = 1 + 0.25 * jitter * (torch.rand(n, 1, generator=generator) * 2 - 1)
    pen = (0.11 - 0.05 * style.unsqueeze(1)) * spread.clamp(min=0.2)
    axis = torch.linspace(-1, 1, size)
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), 2).flip(2).reshape(1, -1, 2)
    distance = torch.cdist(pixels.expand(n, -1, -1), curve).masked_fill(~there.unsqueeze(1), torch.inf).amin(2)
    return (-(distance / pen).square() / 2).exp().view(n, 1, size, size)
