"""Panels of nine pictures with a rule in each row, as in Raven's matrices: is the colour of a row constant or not?

Source: the kinds of rules are those of RAVEN (arXiv:1903.02741); the task is the one of arXiv:2303.03340, section 4.
"""

from __future__ import annotations

import colorsys
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_nonnegative, check_one_of, checked
from heldout.tasks.seeds import Seed, generator_of

PANEL_RULES = ("constant", "progression", "distribute")
_COLOURS, _SIZES, _SHAPES = 6, 5, 5
Attribute = Literal["colour", "size", "shape"]


class RowPanels(NamedTuple):
    """Panels and what is true of them.

    Attributes:
        images: ``(n, 3, size, size)`` in [0, 1].
        labels: 1 where the rule of the asked attribute is constant, int64 ``(n,)``; half of them are,
            of an odd number one more.
        rules: number in ``PANEL_RULES`` of colour, size and shape, int64 ``(n, 3)``.
        values: of colour, size and shape in the cells, int64 ``(n, 3, 3, 3)``: attribute, row, column.

    Example:
        >>> panels = row_panels(8, attribute="size", seed=0)
        >>> sizes = panels.values[panels.labels == 1, 1]
        >>> bool((sizes == sizes[:, :, :1]).all())  # constant along each row
        True
    """

    images: Tensor
    labels: Tensor
    rules: Tensor
    values: Tensor


@checked
def row_panels(
    count: int, *, attribute: Attribute = "colour", size: int = 36, noise: float = 0.1, seed: Seed = 0
) -> RowPanels:
    """Returns panels of 3 x 3 cells, each with one coloured shape, whose rows follow one rule for each attribute.

    The rules: constant (a row has one value, each row one of its own), progression (the value goes up or down by one
    from left to right, the same way in all rows), distribute (each row has the same three values in another order). The
    asked attribute is constant in every second panel and follows one of the other two rules otherwise, each as often;
    the rules of the others are drawn at random. Colours are six hues, shapes five, sizes five; the background has a
    random grey and a random slope.

    Args:
        count: number of panels.
        attribute: that the labels ask for: "colour", "size" or "shape".
        size: pixels of a side; at least 18.
        noise: standard deviation of the pixels' noise.
        seed: a number or a generator.

    Raises:
        ValueError: numbers out of range, an unknown attribute.

    Example:
        >>> panels = row_panels(4, seed=1)
        >>> panels.images.shape, panels.labels.tolist()
        (torch.Size([4, 3, 36, 36]), [1, 0, 0, 1])
    """
    check_at_least(1, count=count)
    check_at_least(18, size=size)
    check_nonnegative(noise=noise)
    check_one_of(("colour", "size", "shape"), attribute=attribute)
    g = generator_of(seed)
    asked = ("colour", "size", "shape").index(attribute)
    rules = torch.randint(len(PANEL_RULES), (count, 3), generator=g)
    kinds = torch.tensor([0, 1, 0, 2])[torch.arange(count) % 4]
    rules[:, asked] = kinds[torch.randperm(count, generator=g)]
    spans = (_COLOURS, _SIZES, _SHAPES)
    values = torch.stack([_follow(rules[:, i], span, g) for i, span in enumerate(spans)], dim=1)
    images = _drawn(values, size, g)
    images = (images + noise * torch.randn(images.shape, generator=g)).clamp(0, 1)
    return RowPanels(images, (rules[:, asked] == 0).long(), rules, values)


def _follow(rules: Tensor, span: int, g: torch.Generator) -> Tensor:
    """Values of the cells under a rule for each panel, ``(n, row, column)``."""
    count = len(rules)
    three = torch.rand(count, span, generator=g).argsort(1)[:, :3]  # different values
    constant = three[:, :, None].expand(-1, -1, 3)
    starts = torch.randint(span - 2, (count, 3), generator=g)
    up = starts[:, :, None] + torch.arange(3)
    down = torch.rand(count, generator=g) < 0.5
    progression = torch.where(down[:, None, None], up.flip(2), up)
    orders = torch.rand(count, 3, 3, generator=g).argsort(2)
    distribute = three[:, None, :].expand(-1, 3, -1).gather(2, orders)
    return torch.stack([constant, progression, distribute])[rules, torch.arange(count)]


def _drawn(values: Tensor, size: int, g: torch.Generator) -> Tensor:
    """Pictures of the cells' values, without noise."""
    count, cell = len(values), size // 3
    colour, scale, shape = (values[:, i].flatten(1) for i in range(3))  # (n, 9)
    hues = torch.tensor([colorsys.hsv_to_rgb(i / _COLOURS, 0.9, 0.9) for i in range(_COLOURS)])
    axis = (torch.arange(cell) + 0.5) / cell * 2 - 1
    shift = (torch.rand(count, 9, 2, 1, 1, generator=g) - 0.5) * 0.3
    y, x = axis[:, None] - shift[:, :, 0], axis[None, :] - shift[:, :, 1]
    radius = (0.4 + 0.1 * scale)[:, :, None, None]
    x, y = x / radius, y / radius
    masks = torch.stack(
        [
            x * x + y * y <= 1,
            torch.maximum(x.abs(), y.abs()) <= 0.85,
            x.abs() + y.abs() <= 1.15,
            (y >= -0.9) & (y <= 0.9) & (x.abs() <= (y + 0.9) / 1.8),
            (torch.minimum(x.abs(), y.abs()) <= 0.35) & (torch.maximum(x.abs(), y.abs()) <= 1),
        ],
        dim=2,
    )
    mask = masks.gather(2, shape[:, :, None, None, None].expand(-1, -1, 1, cell, cell)).float()  # (n, 9, 1, cell, cell)
    slope = torch.rand(count, 2, generator=g) - 0.5
    grey = 0.3 + 0.4 * torch.rand(count, generator=g)
    full = (torch.arange(size) + 0.5) / size - 0.5
    ground = grey[:, None, None] + 0.4 * (slope[:, :1, None] * full[:, None] + slope[:, 1:, None] * full)
    images = ground[:, None].repeat(1, 3, 1, 1)
    for place in range(9):
        top, left = place // 3 * cell, place % 3 * cell
        inside = images[:, :, top : top + cell, left : left + cell]
        shade = hues[colour[:, place]][:, :, None, None]
        inside.copy_(torch.where(mask[:, place] > 0, shade, inside))
    return images
