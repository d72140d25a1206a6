"""Real things and real grounds to move them over: drawings cut out of their white paper, and photographs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from heldout.errors import check_at_least, check_between, check_dimensions, check_nonempty, checked, require
from heldout.tasks.seeds import Seed, generator_of

_WHITE = 0.97  # and above, in each channel: paper


@checked
def photographs() -> dict[str, Tensor]:
    """Returns scikit-learn's two photographs by name, uint8 ``(3, 427, 640)``: ``china``, a temple, and ``flower``.

    They come inside scikit-learn (china.jpg and flower.jpg, both CC BY).

    Raises:
        MissingExtraError: Pillow, which reads them, is not installed.

    Example:
        >>> {name: tuple(picture.shape) for name, picture in photographs().items()}
        {'china': (3, 427, 640), 'flower': (3, 427, 640)}
    """
    require("PIL")
    from sklearn.datasets import load_sample_images

    data = load_sample_images()
    names = [str(name).rpartition("/")[2].removesuffix(".jpg") for name in data.filenames]
    pictures = [torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous() for image in data.images]
    return dict(zip(names, pictures, strict=True))


@checked
def photo_crops(picture: Tensor, count: int, *, size: int = 64, seed: Seed = 0) -> Tensor:
    """Returns square pieces ``(count, 3, size, size)`` in [0, 1] of a photograph, at random places and scales.

    A piece's side is between ``size`` and the picture's shorter side, even in its logarithm; half are mirrored.

    Args:
        picture: uint8 ``(3, height, width)``.
        count: of pieces.
        size: height and width in pixels.
        seed: of places, scales and mirroring.

    Raises:
        ValueError: a picture of another form or smaller than ``size``, a count below 1.

    Example:
        >>> photo_crops(torch.zeros(3, 40, 60, dtype=torch.uint8), 5, size=16).shape
        torch.Size([5, 3, 16, 16])
    """
    check_dimensions(3, picture=picture)
    check_at_least(1, count=count, size=size)
    if picture.dtype != torch.uint8 or picture.shape[0] != 3:
        raise ValueError(f"picture must be uint8 (3, height, width), got {picture.dtype} {tuple(picture.shape)}")
    shorter = min(picture.shape[1:])
    if shorter < size:
        raise ValueError(f"picture must be at least {size} pixels high and wide, got {tuple(picture.shape)}")
    generator = generator_of(seed)
    found = []
    for _ in range(count):
        scale, down, right, mirror = torch.rand(4, generator=generator).tolist()
        side = min(shorter, round(size * (shorter / size) ** scale))
        top, left = (int(at * (length - side + 1)) for at, length in zip((down, right), picture.shape[1:], strict=True))
        piece = picture[:, top : top + side, left : left + side].unsqueeze(0).float() / 255
        small = torch.nn.functional.interpolate(piece, (size, size), mode="area")[0]
        found.append(small.flip(2) if mirror < 0.5 else small)
    return torch.stack(found)


@checked
def cut_out(images: Tensor) -> Tensor:
    """Returns sprites ``(n, 4, height, width)``: alpha is 0 where white paper is connected to the border, else 1.

    White inside of a thing (an eye, a tooth) stays. A thing that is white up to its edge loses it.

    Args:
        images: ``(n, 3, height, width)`` in [0, 1], on white, such as ``drawings().images / 255``.

    Raises:
        ValueError: images of another form, or not in [0, 1].

    Example:
        >>> image = torch.ones(1, 3, 5, 5)
        >>> image[..., 1:4, 1:4] = 0
        >>> image[..., 2, 2] = 1
        >>> int(cut_out(image)[0, 3].sum())
        9
    """
    from scipy.ndimage import label

    check_dimensions(4, images=images)
    check_nonempty(images=images)
    check_between(0, 1, images=images)
    if images.shape[1] != 3:
        raise ValueError(f"images must have 3 channels, got shape {tuple(images.shape)}")
    paper = torch.nn.functional.pad((images > _WHITE).all(1), (1, 1, 1, 1), value=True).cpu().numpy()
    outside = np.stack([(regions := label(each)[0]) == regions[0, 0] for each in paper])[:, 1:-1, 1:-1]
    alpha = torch.from_numpy(~outside).to(images).unsqueeze(1)
    return torch.cat([images, alpha], dim=1)
