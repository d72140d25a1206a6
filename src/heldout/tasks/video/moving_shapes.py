"""Clips of coloured shapes that move over textures: which shape, and which motion, are independent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import check_at_least, check_nonempty, check_one_of, checked
from heldout.tasks.seeds import Seed, generator_of
from heldout.tasks.video.moving import MOTIONS, MovingClips, moving_clips

MOVING_SHAPES = ("triangle", "L", "T", "half disc", "arrow", "hook", "wedge", "flag")
GROUND_TEXTURES = ("stripes", "clouds", "checks", "rings")
_SIDE = 32  # pixels of a drawn sprite
_BRIGHTEST = 0.4  # of a ground


@checked
def moving_shapes(
    count: int,
    *,
    shapes: Sequence[str] = MOVING_SHAPES[:4],
    grounds: Sequence[str] = GROUND_TEXTURES[:2],
    size: int = 32,
    frames: int = 8,
    speed: float = 1.0,
    seed: Seed = 0,
) -> MovingClips:
    """Returns clips of one shape each that moves over a still texture, as ``moving_clips`` says.

    Motions are as frequent as each other, up to one clip, and so are shapes and textures. They are independent: whole
    rounds hold each combination once, what is left over is dealt at random. Colours are random. No shape looks the same
    after a turn by less than a whole one.

    Args:
        count: of clips.
        shapes: of ``MOVING_SHAPES``; ``labels`` are numbers in this sequence. By default the first four.
        grounds: of ``GROUND_TEXTURES``. By default the first two.
        size: height and width in pixels, at least 8.
        frames: of each clip.
        speed: 1 is that of ``moving_clips``.
        seed: of everything.

    Raises:
        ValueError: an unknown or no shape or texture, a count or size out of range.

    Example:
        >>> moving = moving_shapes(8, size=16, frames=4)
        >>> moving.clips.shape, moving.motions.unique().tolist()
        (torch.Size([8, 3, 4, 16, 16]), [0, 1, 2, 3, 4, 5, 6, 7])
    """
    check_at_least(1, count=count)
    check_at_least(8, size=size)
    check_nonempty(shapes=shapes, grounds=grounds)
    for shape in shapes:
        check_one_of(MOVING_SHAPES, shapes=shape)
    for ground in grounds:
        check_one_of(GROUND_TEXTURES, grounds=ground)
    generator = generator_of(seed)
    order = torch.randperm(count, generator=generator)
    left = count % (len(MOTIONS) * len(shapes) * len(grounds))
    rounds = torch.arange(count - left)

    def dealt(kinds: int, every: int) -> Tensor:
        return torch.cat([rounds // every, torch.randperm(left, generator=generator)])[order] % kinds

    motions, labels = dealt(len(MOTIONS), 1), dealt(len(shapes), len(MOTIONS))
    textures = dealt(len(grounds), len(MOTIONS) * len(shapes))
    stencils = torch.stack([_stencil(shape) for shape in shapes])[labels].unsqueeze(1)
    colour = torch.rand(count, 3, 1, 1, generator=generator)
    colour = colour / colour.amax(1, keepdim=True)  # at full brightness, which no ground has
    sprites = torch.cat([colour.expand(-1, -1, _SIDE, _SIDE), stencils], dim=1)
    below = torch.empty(count, 3, size, size)
    for number, ground in enumerate(grounds):
        mine = textures == number
        below[mine] = _textures(ground, int(mine.sum()), size, generator)
    clips = moving_clips(sprites, below, motions, frames=frames, speed=speed, seed=generator)
    return MovingClips(clips, motions, labels)


def _stencil(shape: str) -> Tensor:
    """Alpha ``(side, side)`` of a shape inside the unit circle, its edges one pixel soft."""
    fine = 4 * _SIDE
    line = (torch.arange(fine) + 0.5) / fine * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")

    def box(left: float, top: float, right: float, bottom: float) -> Tensor:
        return (x > left) & (x < right) & (y > top) & (y < bottom)

    inside = {
        "triangle": (y < 0.7) & (y > -0.9 + 4 * x.abs()),
        "L": box(-0.6, -0.8, -0.1, 0.8) | box(-0.6, 0.3, 0.6, 0.8),
        "T": box(-0.65, -0.7, 0.65, -0.2) | box(-0.25, -0.7, 0.25, 0.8),
        "half disc": (x * x + y * y < 0.8) & (y > -0.05),
        "arrow": box(-0.2, -0.2, 0.2, 0.9) | ((y < -0.1) & (y > -0.9 + 1.2 * x.abs())),
        "hook": (((x * x + y * y - 0.45).abs() < 0.3) & ((y < 0) | (x < 0))),
        "wedge": (x * x + y * y < 0.9) & (y.abs() < 0.9 * x + 0.2),
        "flag": box(-0.6, -0.9, -0.3, 0.9) | ((x > -0.6) & (x < 0.7 - (y + 0.4).abs()) & ((y + 0.4).abs() < 0.5)),
    }[shape]
    return F.avg_pool2d(inside.float().view(1, 1, fine, fine), 4)[0, 0]


def _textures(ground: str, count: int, size: int, generator: torch.Generator) -> Tensor:
    """Images ``(count, 3, size, size)`` between two colours of at most ``_BRIGHTEST``."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    line = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(line, line, indexing="ij")
    angle, waves, phase = uniform(0, 3.1416, 1, 1), uniform(4, 9, 1, 1), uniform(0, 6.2832, 1, 1)
    along, across = angle.cos() * x + angle.sin() * y, angle.cos() * y - angle.sin() * x
    if ground == "stripes":
        level = 0.5 + 0.5 * (waves * along + phase).sin()
    elif ground == "checks":
        level = ((waves * along + phase).sin() * (waves * across).sin() > 0).float()
    elif ground == "rings":
        far = ((x - uniform(-1, 1, 1, 1)) ** 2 + (y - uniform(-1, 1, 1, 1)) ** 2).sqrt()
        level = 0.5 + 0.5 * (waves * 1.5 * far + phase).sin()
    else:
        coarse = torch.rand(count, 1, 5, 5, generator=generator)
        level = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)[:, 0].clamp(0, 1)
    first, second = (_BRIGHTEST * uniform(0, 1, 3, 1, 1) for _ in range(2))
    return first + (second - first) * level.unsqueeze(1)
