"""Points in the plane whose two coordinates are two cues."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from heldout.errors import checked
from heldout.tasks.images.dominoes import agreeing, check_agreement
from heldout.tasks.seeds import Seed, generator_of


class LShape(NamedTuple):
    """Points and the two labels that can be read from them.

    Attributes:
        points: ``(n, 2)`` in [-1, 1]^2.
        labels: int64 ``(n,)``, whether the first coordinate is positive: the true cue.
        spurious: int64 ``(n,)``, whether the second one is.

    Example:
        >>> world = l_shape(agreement=0.0, n=10, margin=0.1)
        >>> bool(((world.points[:, 0] > 0) == (world.labels == 1)).all()), bool((world.labels == world.spurious).any())
        (True, False)
    """

    points: Tensor
    labels: Tensor
    spurious: Tensor


@checked
def l_shape(agreement: float, n: int, *, margin: float = 0.0, seed: Seed = 0) -> LShape:
    """Returns points of which ``round(agreement * n)`` lie in the quadrants where both coordinates have one sign.

    With agreement 1, as in training, either coordinate gives the label, and the two simplest hypotheses are the axes;
    the other two quadrants tell them apart. Labels are balanced.

    Args:
        agreement: share of points in the first and third quadrants, in [0, 1].
        n: number of points.
        margin: least distance from both axes, in [0, 1).
        seed: an int, or a ``torch.Generator`` to draw from.

    Raises:
        ValueError: a share outside of [0, 1], no points, or a margin outside of [0, 1).

    Source: the two-dimensional example of arXiv:2202.03418, section 4.1.

    Example:
        >>> world = l_shape(agreement=1.0, n=100)
        >>> bool((world.points.sign()[:, 0] == world.points.sign()[:, 1]).all())
        True
    """
    check_agreement(agreement, n)
    if not 0 <= margin < 1:
        raise ValueError(f"margin must be in [0, 1), got {margin}")
    generator = generator_of(seed)
    labels = torch.arange(n) % 2
    spurious = torch.where(agreeing(labels, agreement), labels, 1 - labels)
    signs = 2 * torch.stack([labels, spurious], dim=1) - 1
    size = margin + (1 - margin) * (1 - torch.rand(n, 2, generator=generator))
    order = torch.randperm(n, generator=generator)
    return LShape((signs * size)[order], labels[order], spurious[order])
