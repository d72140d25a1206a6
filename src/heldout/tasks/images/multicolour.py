"""Images with many spurious features: a grey digit in the centre, and around it patches whose colours tell the class.

Each patch has a map of its own from classes to colours, so that models may rely on different patches. Source:
arXiv:2309.17230 (MultiColorMNIST). Deviation: the patches are a ring one patch thick, the digit fills what it encloses.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_between,
    check_dimensions,
    check_finite,
    check_labels,
    check_same_length,
    checked,
)
from heldout.tasks.images.biases import colourise


@checked
def multicolour(
    images: Tensor,
    labels: Tensor,
    flip_rate: float,
    *,
    patches: int = 32,
    patch_size: int = 2,
    num_classes: int = 10,
    contrast: float = 1.0,
    map_seed: int = 0,
    seed: int = 0,
) -> Tensor:
    """Returns images ``(n, 3, side, side)`` of grey digits inside a ring of coloured patches, values in [0, 1].

    ``side`` is ``(patches / 4 + 1) * patch_size``.

    Args:
        images: grey images ``(n, 1, h, w)`` in [0, 1]; they are resized to fit the ring.
        labels: int64 ``(n,)``.
        flip_rate: probability that a patch takes a colour drawn uniformly, instead of the colour of the class: 0 for
            training, p for a test set.
        patches: number of patches, a multiple of 4 and at least 8.
        patch_size: side of a patch in pixels.
        num_classes: number of classes, and of colours.
        contrast: factor on the digit; below 1 the patches are the easier feature.
        map_seed: which colour each class has in each patch; the same for training and test.
        seed: randomness of the flips.

    Raises:
        ValueError: sizes that do not fit, ``flip_rate`` outside [0, 1].

    Example:
        >>> from heldout.tasks import digits
        >>> images, labels = digits()
        >>> multicolour(images, labels, flip_rate=0.8).shape
        torch.Size([1797, 3, 18, 18])
    """
    check_dimensions(1, labels=labels)
    check_same_length(images=images, labels=labels)
    check_finite(images=images, contrast=contrast)
    check_at_least(1, patches=patches, num_classes=num_classes)
    check_labels(num_classes, labels=labels)
    colours = patch_colours(labels, flip_rate, patches=patches, num_classes=num_classes, map_seed=map_seed, seed=seed)
    return paint_patches(images, colours, num_colours=num_classes, patch_size=patch_size, contrast=contrast)


@checked
def patch_colours(
    labels: Tensor,
    flip_rate: float,
    *,
    patches: int = 32,
    num_classes: int = 10,
    map_seed: int = 0,
    seed: int = 0,
) -> Tensor:
    """Returns the colour of every patch, int64 ``(n, patches)``; arguments as in ``multicolour``.

    Raises:
        ValueError: ``flip_rate`` outside [0, 1], labels that are not in 0 .. num_classes - 1, numbers below 1.

    Example:
        >>> colours = patch_colours(torch.tensor([3, 3, 5]), flip_rate=0.0, patches=8)
        >>> colours.shape, colours[0].equal(colours[1]), bool((colours[0] == colours[2]).any())
        (torch.Size([3, 8]), True, False)
    """
    check_at_least(1, patches=patches, num_classes=num_classes)
    check_labels(num_classes, labels=labels)
    if not 0 <= flip_rate <= 1:
        raise ValueError(f"flip_rate must lie in [0, 1], got {flip_rate}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}")
    maps = torch.Generator().manual_seed(map_seed)
    colour_of = torch.stack([torch.randperm(num_classes, generator=maps) for _ in range(patches)])
    generator = torch.Generator().manual_seed(seed)
    flipped = torch.rand(len(labels), patches, generator=generator) < flip_rate
    uniform = torch.randint(0, num_classes, (len(labels), patches), generator=generator)
    return torch.where(flipped, uniform, colour_of[:, labels].T)


@checked
def paint_patches(
    images: Tensor, colours: Tensor, *, num_colours: int = 10, patch_size: int = 2, contrast: float = 1.0
) -> Tensor:
    """Returns grey images inside a ring of patches of the given colours; a patch of colour -1 is black.

    Args:
        images: ``(n, 1, h, w)`` in [0, 1].
        colours: int64 ``(n, patches)`` in -1..num_colours - 1, clockwise from the upper left corner.
        num_colours: number of evenly spaced hues.
        patch_size: side of a patch in pixels.
        contrast: factor on the images.

    Raises:
        ValueError: images that are not grey, or sizes that do not fit.

    Example:
        >>> painted = paint_patches(torch.zeros(1, 1, 8, 8), torch.tensor([[0, -1, -1, -1, -1, -1, -1, 5]]))
        >>> painted.shape, painted[0, :, 0, 0].tolist()  # the upper left corner is red
        (torch.Size([1, 3, 6, 6]), [1.0, 0.0, 0.0])
    """
    check_dimensions(2, colours=colours)
    check_same_length(images=images, colours=colours)
    check_finite(images=images, contrast=contrast)
    check_at_least(1, num_colours=num_colours)
    check_between(-1, num_colours - 1, colours=colours)
    check_labels(colours=colours.clamp(min=0))
    n, patches = colours.shape
    if patches < 8 or patches % 4:
        raise ValueError(f"the ring needs a multiple of 4 patches, at least 8, got {patches}")
    if images.ndim != 4 or images.shape[:2] != (n, 1):
        raise ValueError(f"expected {n} grey images (n, 1, h, w), got {tuple(images.shape)}")
    if patch_size < 1:
        raise ValueError(f"patch_size must be at least 1 pixel, got {patch_size}")
    cells = patches // 4 + 1
    inside = (cells - 2) * patch_size
    grey = F.interpolate(images, size=(inside, inside), mode="bilinear", align_corners=False, antialias=True)
    hues = colourise(torch.ones(num_colours, 1, 1, 1), torch.arange(num_colours), num_colours).flatten(1)
    palette = torch.cat([hues, torch.zeros(1, 3)])  # -1 is the last
    ring = torch.zeros(n, 3, cells, cells)
    rows, columns = _ring(cells)
    ring[:, :, rows, columns] = palette[colours].transpose(1, 2)
    canvas = ring.repeat_interleave(patch_size, dim=2).repeat_interleave(patch_size, dim=3)
    canvas[:, :, patch_size : patch_size + inside, patch_size : patch_size + inside] = contrast * grey
    return canvas.clamp_(0, 1)


def _ring(cells: int) -> tuple[list[int], list[int]]:
    last, steps = cells - 1, range(cells - 1)
    places = [(0, i) for i in steps] + [(i, last) for i in steps]
    places += [(last, last - i) for i in steps] + [(last - i, 0) for i in steps]
    return [row for row, _ in places], [column for _, column in places]
