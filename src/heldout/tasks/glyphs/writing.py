"""Core: How one character is written differently each time: turned, sheared, scaled and shifted a little."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import check_at_least, check_dimensions, check_finite, check_nonempty, check_nonnegative, checked
from heldout.tasks.seeds import Seed, generator_of


def affine_maps(count: int, jitter: float, generator: torch.Generator) -> Tensor:
    """Returns affine maps ``(count, 2, 3)`` of the square [-1, 1] x [-1, 1] near the identity.

    At ``jitter`` 1 turns and shears are normal with standard deviations of 0.17 (10 degrees) and 0.15, scales of 0.12
    in the logarithm for each axis, and shifts uniform within 0.15.
    """
    turn, shear, wide, high = (torch.randn(4, count, generator=generator) * jitter).unbind(0)
    shift = (torch.rand(count, 2, 1, generator=generator) * 2 - 1) * 0.15 * jitter
    cos, sin = (0.17 * turn).cos(), (0.17 * turn).sin()
    wide, high = (0.12 * wide).exp(), (0.12 * high).exp()
    slant = 0.15 * shear
    linear = torch.stack([cos * wide, cos * slant - sin * high, sin * wide, sin * slant + cos * high], 1)
    return torch.cat([linear.view(count, 2, 2), shift], 2)


@checked
def rewritten(images: Tensor, times: int = 1, *, jitter: float = 1.0, seed: Seed = 0) -> Tensor:
    """Returns each image ``times`` times in a row, each time turned, sheared, scaled and shifted by another draw.

    What comes in at the border is 0, so characters should be bright on black.

    Args:
        images: ``(n, channels, height, width)``, uint8 or floating point.
        times: how often each.
        jitter: how much they differ, at least 0; at 0 they are copies.
        seed: of the draws.

    Raises:
        ValueError: no images, values that are not finite, options out of range.

    Example:
        >>> rewritten(torch.zeros(3, 1, 16, 16), 5).shape
        torch.Size([15, 1, 16, 16])
    """
    check_dimensions(4, images=images)
    check_nonempty(images=images)
    check_finite(images=images)
    check_at_least(1, times=times)
    check_nonnegative(jitter=jitter)
    many = images.repeat_interleave(times, 0)
    if not jitter:
        return many
    maps = affine_maps(len(many), jitter, generator_of(seed)).to(many.device)
    source = many if many.is_floating_point() else many.float()
    grid = F.affine_grid(maps.to(source.dtype), list(source.shape), align_corners=False)
    drawn = F.grid_sample(source, grid, align_corners=False)
    return drawn if many.is_floating_point() else drawn.round().to(many.dtype)
