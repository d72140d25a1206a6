"""Core: Clips of one object that moves over a still ground, where no single frame tells how it moves.

Place, turn and size of the object in a frame drawn at random follow the same law for all motions, and a clip played
backwards is a clip of the opposite motion. What looks at frames without their order can therefore never tell a motion
from its opposite; from how much the frames of a clip differ, it may tell the pair.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_between,
    check_dimensions,
    check_labels,
    check_nonempty,
    check_positive,
    check_same_length,
    checked,
)
from heldout.tasks.seeds import Seed, generator_of

MOTIONS = ("left", "right", "up", "down", "clockwise", "counter-clockwise", "grow", "shrink")
_STEP, _TURN, _GROWTH = (0.06, 0.1), (20.0, 30.0), (1.08, 1.12)  # each frame: of the image's side; degrees; factor
_DIAMETER = (0.55, 0.7)  # of the image's side, at the middle of the clip
_LARGEST = 2.0  # of the image's side, to which a thing may grow


class MovingClips(NamedTuple):
    """Clips and what they show.

    Attributes:
        clips: ``(n, 3, frames, height, width)`` in [0, 1].
        motions: int64 ``(n,)``, numbers in ``MOTIONS``.
        labels: int64 ``(n,)``, what moves.

    Example:
        >>> shown = MovingClips(torch.rand(2, 3, 4, 8, 8), torch.tensor([0, 7]), torch.tensor([5, 5]))
        >>> [MOTIONS[motion] for motion in shown.motions]  # the same thing in two motions
        ['left', 'shrink']
    """

    clips: Tensor
    motions: Tensor
    labels: Tensor


@checked
def moving_clips(
    sprites: Tensor, grounds: Tensor, motions: Tensor, *, frames: int = 8, speed: float = 1.0, seed: Seed = 0
) -> Tensor:
    """Returns clips ``(n, 3, frames, height, width)`` in [0, 1]: each sprite moves over its ground.

    At speed 1 a frame is 6 to 10 % of the image's side further than the one before, 20 to 30 degrees, or 8 to 12 %
    larger. What leaves on one side comes in on the other. Sprites have a random turn, place and size, 55 to 70 % of the
    shorter side before they grow or shrink.

    Args:
        sprites: ``(n, 4, h, w)`` in [0, 1]: red, green, blue and alpha.
        grounds: ``(n, 3, height, width)`` in [0, 1].
        motions: int64 ``(n,)``, numbers in ``MOTIONS``.
        frames: of each clip.
        speed: factor on step and angle, exponent of the growth.
        seed: of place, turn, size and speed.

    Raises:
        ValueError: sprites, grounds or motions of another form or length, frames below 1, speed not positive, or so
            many frames at such a speed that sprites could grow to more than twice the shorter side.

    Example:
        >>> sprites, grounds = torch.ones(2, 4, 8, 8), torch.zeros(2, 3, 16, 16)
        >>> moving_clips(sprites, grounds, torch.tensor([0, 6]), frames=4).shape
        torch.Size([2, 3, 4, 16, 16])
    """
    check_dimensions(4, sprites=sprites, grounds=grounds)
    check_dimensions(1, motions=motions)
    check_nonempty(sprites=sprites, grounds=grounds)
    check_same_length(sprites=sprites, grounds=grounds, motions=motions)
    check_between(0, 1, sprites=sprites, grounds=grounds)
    check_labels(len(MOTIONS), motions=motions)
    check_at_least(1, frames=frames)
    check_positive(speed=speed)
    if (largest := _DIAMETER[1] * _GROWTH[1] ** min(speed * (frames - 1) / 2, 99.0)) > _LARGEST:
        raise ValueError(
            f"frames and speed must let things grow to at most {_LARGEST:g} x the image's side, got {frames} and "
            f"{speed:g}, at which they grow to {largest:.1f}"
        )
    if sprites.shape[1] != 4 or grounds.shape[1] != 3:
        raise ValueError(
            f"sprites must have 4 channels and grounds 3, got {tuple(sprites.shape)} and {tuple(grounds.shape)}"
        )
    places, angles, sizes = _paths(motions.cpu(), frames, speed, generator_of(seed))
    height, width = grounds.shape[2:]
    side = min(height, width)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    found = []
    for part in torch.arange(len(motions)).split(128):
        away = [
            (axis - at.mul(length)[..., None, None] + length / 2).remainder(length) - length / 2
            for axis, at, length in ((y, places[part, :, 0], height), (x, places[part, :, 1], width))
        ]
        cos, sin = (each[part][..., None, None] for each in (angles.cos(), angles.sin()))
        radius = sizes[part][..., None, None] * side / 2
        grid = torch.stack([cos * away[1] + sin * away[0], cos * away[0] - sin * away[1]], dim=4) / radius[..., None]
        own = sprites[part].repeat_interleave(frames, 0)
        pasted = F.grid_sample(own, grid.flatten(0, 1).to(own), align_corners=False).unflatten(0, (-1, frames))
        alpha = pasted[:, :, 3:]
        ground = grounds[part].unsqueeze(1)
        found.append((ground * (1 - alpha) + pasted[:, :, :3] * alpha).transpose(1, 2))
    return torch.cat(found).clamp_(0, 1)


@checked
def forwards_and_backwards(moving: MovingClips) -> MovingClips:
    """Returns each clip followed, ``len`` further on, by the same one played backwards, with the opposite motion.

    On these, a model without a sense of order gets exactly half of the directions right.

    Raises:
        ValueError: clips, motions or labels of another form.

    Example:
        >>> one = MovingClips(torch.rand(1, 3, 4, 8, 8), torch.tensor([6]), torch.tensor([2]))
        >>> forwards_and_backwards(one).motions.tolist()
        [6, 7]
    """
    clips, motions, labels = moving
    check_dimensions(5, clips=clips)
    check_same_length(clips=clips, motions=motions, labels=labels)
    check_labels(len(MOTIONS), motions=motions)
    return MovingClips(
        torch.cat([clips, clips.flip(2)]), torch.cat([motions, motions ^ 1]), torch.cat([labels, labels])
    )


def _paths(motions: Tensor, frames: int, speed: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Place ``(n, frames, 2)`` in [0, 1), angle ``(n, frames)`` in radians, and size ``(n, frames)`` of the side."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(motions), 1, generator=generator)

    time = torch.arange(frames) - (frames - 1) / 2
    sign = torch.where(motions % 2 == 0, -1.0, 1.0).unsqueeze(1)  # of each pair, the second is the positive one
    pair = (motions // 2).unsqueeze(1)
    # What a motion does not change is frozen at a frame drawn at random: the law of one frame is the same for all.
    frozen = time[torch.randint(frames, (len(motions), 1), generator=generator)]
    step, turn, growth = uniform(*_STEP) * speed, uniform(*_TURN) * speed, uniform(*_GROWTH).pow(speed)
    at = [uniform(0, 1) + torch.where(pair == which, sign * step * time, 0.0) for which in (1, 0)]  # y, then x
    # clockwise (4) is positive where y points down
    angles = uniform(0, 2 * math.pi) + torch.where(pair == 2, -sign * (turn * time).deg2rad(), 0.0)
    exponent = torch.where(pair == 3, -sign * time, frozen)  # grow (6) is the first of its pair
    sizes = uniform(*_DIAMETER) * growth.pow(exponent)
    return torch.stack([each.expand(-1, frames) for each in at], dim=2).remainder(1), angles.expand(-1, frames), sizes
