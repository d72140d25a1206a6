"""Pictures of examples on a page: tensors as PNG files inside the page, without an imaging library."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import TYPE_CHECKING

from heldout.errors import check_has, checked

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 96  # pixels of a side on the page; a larger picture is thinned out


@checked
def png(image: Tensor) -> bytes:
    """Returns the PNG file of a picture: grey or colour, 8 bits a channel.

    Values in [0, 1] are taken as they are; others are stretched from the least to the largest one.

    Args:
        image: ``(height, width)``, or ``(channels, height, width)`` with 1 or 3 channels.

    Raises:
        ValueError: another shape, or a value that is not finite.

    Example:
        >>> import torch
        >>> png(torch.zeros(1, 2, 2))[:4]
        b'\\x89PNG'

    Source: the PNG specification (ISO/IEC 15948), colour types 0 and 2, no filter.
    """
    check_has("ndim", "numel", image=image)
    picture = image[None] if image.ndim == 2 else image
    if picture.ndim != 3 or picture.shape[0] not in (1, 3) or not picture.numel():
        raise ValueError(f"image must be (height, width) or (1 or 3, height, width), got {tuple(image.shape)}")
    picture = picture.detach().cpu().double()
    low, high = float(picture.min()), float(picture.max())
    if not abs(low) < float("inf") or not abs(high) < float("inf"):
        raise ValueError("image must be finite, got NaN or infinity in it")
    if low < 0 or high > 1:
        picture = (picture - low) / ((high - low) or 1.0)
    bytes_of = (picture * 255).round().byte().permute(1, 2, 0).numpy()
    height, width, channels = bytes_of.shape
    rows = b"".join(b"\0" + row.tobytes() for row in bytes_of)
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


@checked
def data_uri(image: Tensor) -> str:
    """Returns a picture as an address that holds it, for ``<img src>``; at most 96 pixels a side.

    Args:
        image: as ``png`` takes it.

    Example:
        >>> import torch
        >>> data_uri(torch.zeros(1, 2, 2))[:22]
        'data:image/png;base64,'
    """
    step = -(-max(image.shape[-2:]) // LARGEST)
    return "data:image/png;base64," + base64.b64encode(png(image[..., ::step, ::step])).decode()
