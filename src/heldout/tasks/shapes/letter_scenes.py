"""Core: Scenes of coloured letters as pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_dimensions, check_labels, checked
from heldout.tasks.shapes.scene_questions import SCENE_COLORS, SCENE_SHAPES

# One letter of 5 x 5 pixels a line: five rows from the top, each a number whose highest of five bits is at the left.
_LETTERS = """
14 17 31 17 17  30 17 30 17 30  15 16 16 16 15  30 17 17 17 30  31 16 30 16 31  31 16 30 16 16  15 16 19 17 15
17 17 31 17 17  14 4 4 4 14  7 2 2 18 12  17 18 28 18 17  16 16 16 16 31  17 27 21 17 17  17 25 21 19 17
14 17 17 17 14  30 17 30 16 16  14 17 21 18 13  30 17 30 18 17  15 16 14 1 30  31 4 4 4 4  17 17 17 17 14
17 17 17 10 4  17 17 21 27 17  17 10 4 10 17  17 10 4 4 4  31 2 4 8 31
"""
_RGB = [
    (230, 25, 25), (30, 160, 50), (40, 80, 235), (245, 225, 30), (245, 130, 30),
    (140, 40, 180), (40, 215, 230), (250, 140, 200), (130, 130, 130), (255, 255, 255),
]  # fmt: skip


@checked
def render_scene(scene: Tensor, cell: int = 8) -> Tensor:
    """Returns scenes as pictures of coloured letters on black, float32 ``(..., 3, rows * cell, columns * cell)``.

    Args:
        scene: int64 ``(rows, columns, 2)`` or ``(batch, rows, columns, 2)``, one more than the colour and the shape of
            each cell; 0 where it is empty.
        cell: side of a cell in pixels, at least 6; letters are as large as a multiple of 5 pixels below it.

    Raises:
        ValueError: a cell that is too small, or colours and shapes that have no picture.

    Example:
        >>> scene = torch.zeros(2, 3, 2, dtype=torch.int64)
        >>> scene[0, 0] = torch.tensor([10, 9])  # a white "i"
        >>> picture = render_scene(scene, cell=6)
        >>> picture.shape, int(picture[0].sum())
        (torch.Size([3, 12, 18]), 9)
    """
    check_dimensions(3, 4, scene=scene)
    check_at_least(6, cell=cell)
    if scene.shape[-1] != 2:
        raise ValueError(f"scene must have a colour and a shape in each cell, got {scene.shape[-1]} numbers")
    check_labels(len(SCENE_COLORS) + 1, scene=scene[..., 0])
    check_labels(len(SCENE_SHAPES) + 1, scene=scene[..., 1])
    if ((scene[..., 0] > 0) != (scene[..., 1] > 0)).any():
        raise ValueError("scene must have both a colour and a shape where it is not empty")
    times = (cell - 1) // 5
    bits = torch.tensor([int(row) for row in _LETTERS.split()]).view(-1, 5, 1)
    letters = (bits >> torch.arange(4, -1, -1)) & 1
    stencils = torch.zeros(len(SCENE_SHAPES) + 1, cell, cell)
    large = letters.repeat_interleave(times, 1).repeat_interleave(times, 2).float()
    stencils[1:, : 5 * times, : 5 * times] = large
    colors = torch.cat([torch.zeros(1, 3), torch.tensor(_RGB) / 255])
    scenes = scene.long().cpu()
    drawn = stencils[scenes[..., 1]].unsqueeze(-3) * colors[scenes[..., 0]][..., None, None]
    rows, columns = scene.shape[-3:-1]
    picture = drawn.movedim(-3, -5).transpose(-3, -2)  # (..., 3, rows, y, columns, x)
    return picture.reshape(*scene.shape[:-3], 3, rows * cell, columns * cell).to(scene.device)
