"""The drawings as a pretrained network sees them: the world of studies that train its last layers only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import check_at_least, checked
from heldout.nn import cached_features, efficientnet_lite0
from heldout.tasks.images.drawings import Drawings, drawings


@checked
def first_drawings(pictures: Drawings, things: int) -> Drawings:
    """Returns the first things of each class, in all their styles.

    Args:
        pictures: as of ``drawings``.
        things: how many of each class, at least 1.

    Raises:
        ValueError: things below 1.

    Example:
        >>> few = Drawings(torch.zeros(6, 3, 8, 8), torch.tensor([0, 0, 1] * 2), torch.arange(6) // 3,
        ...                torch.arange(3).repeat(2), ("a", "b"), ("p", "q", "r"))
        >>> first_drawings(few, 1).things.tolist()
        [0, 2, 0, 2]
    """
    check_at_least(1, things=things)
    once = pictures.domains == pictures.domains[0]
    rank = F.one_hot(pictures.labels[once]).cumsum(0).gather(1, pictures.labels[once].unsqueeze(1)).squeeze(1)
    kept = torch.isin(pictures.things, pictures.things[once][rank <= things])
    images, labels, domains, numbers = (column[kept] for column in pictures[:4])
    return Drawings(images, labels, domains, numbers, pictures.classes, pictures.names)


@checked
def drawing_features(size: int = 96, *, before: str = "dropout", things: int | None = None) -> tuple[Drawings, Tensor]:
    """Returns the drawings, and what EfficientNet-Lite0 with ImageNet weights makes of them up to one of its parts.

    Computed once and then read from disk (``cached_features``).

    Args:
        size: height and width in pixels.
        before: the part that would come next: "dropout" gives the features ``(n, 1280)`` that enter its head,
            "stage6" the maps ``(n, 112, size / 16, size / 16)`` of its first five stages.
        things: of each class, the first so many; None is all.

    Raises:
        SourceError: a package is not there, or is another; the message names the command.
        ValueError: no such part.

    Example:
        >>> pictures, features = drawing_features(96)  # doctest: +SKIP
        >>> features.shape  # doctest: +SKIP
        torch.Size([3484, 1280])
    """
    net = efficientnet_lite0()
    names = [name for name, _ in net.named_children()]
    if before not in names[1:]:
        raise ValueError(f"before must be one of {', '.join(names[1:])}, got {before!r}")
    pictures = drawings(size=size)
    if things is not None:
        pictures = first_drawings(pictures, things)
    return pictures, cached_features(net[: names.index(before)], pictures.images)
