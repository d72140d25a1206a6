"""Objects that cover part of an image and have nothing to do with it: blobs, letters, textures, or given sprites.

The procedural analogue of photographs with objects superimposed. Source: arXiv:2306.17848, section 4.4.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import check_between, check_dimensions, check_finite, check_nonempty, checked
from heldout.tasks.images.checks import check_images
from heldout.tasks.seeds import generator_of

OCCLUDERS = ("blobs", "letters", "textures")
_SIZE = 32  # pixels of a drawn sprite
_LETTERS = {  # seven rows of five pixels each
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "G": "01110 10001 10000 10111 10001 10001 01111",
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "K": "10001 10010 10100 11000 10100 10010 10001",
    "N": "10001 11001 10101 10011 10001 10001 10001",
    "R": "11110 10001 10001 11110 10100 10010 10001",
    "S": "01111 10000 10000 01110 00001 00001 11110",
    "X": "10001 10001 01010 00100 01010 10001 10001",
    "Z": "11111 00001 00010 00100 01000 10000 11111",
}
_NEAR = 0.05  # covered when less than this part of the level is missing
_FREE = 20  # objects pasted wherever chance puts them; each later one lies on a pixel that is still open


@checked
def occluders(
    kind: Literal["blobs", "letters", "textures"] | Tensor, level: float
) -> Callable[[Tensor, torch.Generator | int], Tensor]:
    """Returns the function ``(images, generator) -> images`` that covers a part ``level`` of each image by objects.

    Objects of random kind, turn, size and place are pasted, opaque, one after the other, until the part that is covered
    is within about five per cent of ``level``; images of few pixels miss it by a few. Where twenty have left too much
    open, as at high levels, each further one is pasted on what is open. Grey images get grey objects.

    Args:
        kind: "blobs", "letters" or "textures", drawn anew each time; or sprites ``(n, 4, height, width)`` in [0, 1]:
            red, green, blue and alpha, such as ``clipart_sprites()``.
        level: part of the image to cover, in [0, 0.9].

    Returns:
        A function of images ``(batch, 1 or 3, height, width)`` in [0, 1] and a CPU generator, or the seed of one. It
        raises ValueError for other images.

    Raises:
        ValueError: an unknown kind, a level out of range, sprites of another shape or without a visible pixel.

    Example:
        >>> images = torch.zeros(2, 1, 28, 28)
        >>> covered = (occluders(torch.ones(1, 4, 8, 8), 0.2)(images, 0) > 0).float().mean()
        >>> bool(0.18 < covered < 0.25)
        True
    """
    check_between(0, 0.9, level=level)
    if isinstance(kind, Tensor):
        check_dimensions(4, kind=kind)
        check_nonempty(kind=kind)
        check_finite(kind=kind)
        check_between(0, 1, kind=kind)
        if kind.shape[1] != 4:
            raise ValueError(f"kind must be sprites (n, 4, height, width), got {tuple(kind.shape)}")
        if not (kind[:, 3] > 0.5).flatten(1).any(1).all():
            raise ValueError("kind must be sprites with a visible pixel each: alpha above 0.5")

    def occlude(images: Tensor, generator: torch.Generator | int) -> Tensor:
        check_images(images)
        if images.shape[1] not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels to be occluded, got {images.shape[1]}")
        return _covered(images, kind, level, generator_of(generator))

    return occlude


def _covered(images: Tensor, kind: str | Tensor, level: float, generator: torch.Generator) -> Tensor:
    batch, channels, height, width = images.shape
    found, covered = images.clone(), torch.zeros(batch, 1, height, width, dtype=torch.bool)
    for pasted in itertools.count():
        need = level - covered.float().mean((1, 2, 3))
        open_ = (need > max(_NEAR * level, 0.5 / (height * width))).nonzero().flatten()
        if not len(open_):
            break
        sprites = _drawn(kind, len(open_), generator)
        share = level * (0.4 + 0.4 * torch.rand(len(open_), generator=generator))
        share = torch.minimum(share, 1.1 * need[open_])  # some of it will lie on what is covered already
        onto = None if pasted < _FREE else ~covered[open_, 0]
        objects = _placed(sprites, share, height, width, onto, generator)
        alpha = objects[:, 3:] > 0.5
        colour = objects[:, :3] if channels == 3 else objects[:, :3].mean(1, keepdim=True)
        places = open_.to(images.device)
        found[places] = torch.where(alpha.to(images.device), colour.to(images), found[places])
        covered[open_] |= alpha
    return found.clamp_(0, 1)


def _placed(
    sprites: Tensor, share: Tensor, height: int, width: int, onto: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Each sprite turned at random, so large that its visible pixels are ``share`` of the image, inside if it fits.

    With ``onto``, bool ``(batch, height, width)``, a visible pixel of each lies on one that is True instead.
    """
    batch, side = len(sprites), min(height, width)
    visible = sprites[:, 3] > 0.5
    scale = (share * height * width / visible.float().mean((1, 2))).sqrt() / side  # of the sprite's side to the image's
    angle = torch.rand(batch, generator=generator) * 2 * math.pi
    cos, sin = angle.cos(), angle.sin()
    y, x = torch.meshgrid(_centres(height) * height / side, _centres(width) * width / side, indexing="ij")
    if onto is None:
        rooms = ((length / side - scale).clamp(min=0) for length in (height, width))
        down, across = ((2 * torch.rand(batch, generator=generator) - 1) * room for room in rooms)
    else:
        pixel = torch.multinomial(onto.flatten(1).double(), 1, generator=generator)[:, 0]
        part = torch.multinomial(visible.flatten(1).double(), 1, generator=generator)[:, 0]
        v, u = _centres(visible.shape[1])[part // visible.shape[2]], _centres(visible.shape[2])[part % visible.shape[2]]
        down, across = (
            y.flatten()[pixel] - scale * (sin * u + cos * v),
            x.flatten()[pixel] - scale * (cos * u - sin * v),
        )
    dy, dx = y - down.view(-1, 1, 1), x - across.view(-1, 1, 1)
    cos, sin = cos.view(-1, 1, 1), sin.view(-1, 1, 1)
    grid = torch.stack([cos * dx + sin * dy, cos * dy - sin * dx], dim=3) / scale.view(-1, 1, 1, 1)
    return F.grid_sample(sprites, grid, align_corners=False)


def _centres(count: int) -> Tensor:
    """Where the middles of ``count`` pixels lie that share [-1, 1]."""
    return (2 * torch.arange(count) + 1) / count - 1


def _drawn(kind: str | Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Sprites ``(count, 4, size, size)``."""
    if isinstance(kind, Tensor):
        chosen = kind.float().cpu()[torch.randint(len(kind), (count,), generator=generator)]
        return torch.cat([chosen[:, :3], (chosen[:, 3:] > 0.5).float()], dim=1)
    colour = torch.rand(count, 3, 1, 1, generator=generator).expand(count, 3, _SIZE, _SIZE)
    line = torch.linspace(-1, 1, _SIZE)
    if kind == "letters":
        rows = [[[float(bit) for bit in row] for row in glyph.split()] for glyph in _LETTERS.values()]
        glyphs = F.pad(torch.tensor(rows), (1, 1)).unsqueeze(1)  # 7 x 7 pixels
        chosen = glyphs[torch.randint(len(glyphs), (count,), generator=generator)]
        return torch.cat([colour, F.interpolate(chosen, (_SIZE, _SIZE))], dim=1)
    y, x = torch.meshgrid(line, line, indexing="ij")
    if kind == "blobs":  # a circle whose radius is a random trigonometric polynomial of the angle
        angle = torch.atan2(y, x)
        radius = torch.full((count, _SIZE, _SIZE), 0.7)
        for wave in (2, 3, 4, 5):
            size = torch.rand(count, 1, 1, generator=generator) * 0.3 / wave
            phase = torch.rand(count, 1, 1, generator=generator) * 2 * math.pi
            radius += size * (wave * angle + phase).cos()
        return torch.cat([colour, ((x * x + y * y).sqrt() < radius).float().unsqueeze(1)], dim=1)
    aspect = 0.4 + 0.6 * torch.rand(count, 1, 1, generator=generator)
    waves = 2 + 6 * torch.rand(count, 1, 1, generator=generator)
    checks = torch.rand(count, 1, 1, generator=generator) < 0.5
    stripes = (waves * math.pi * x).sin()
    pattern = torch.where(checks, stripes * (waves * math.pi * y).sin(), stripes).unsqueeze(1) > 0
    other = torch.rand(count, 3, 1, 1, generator=generator)
    return torch.cat([torch.where(pattern, colour, other), (y.abs() < aspect).float().unsqueeze(1)], dim=1)
