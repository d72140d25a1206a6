"""Real objects without a background: drawings of openclipart, cut out, as sprites to paste on other images."""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import check_at_least, check_nonempty, checked
from heldout.sources import CLIP, cache_folder
from heldout.tasks.images.drawings import read_png

CLIPART_FOLDERS = ("recreation/games", "recreation/music", "signs_and_symbols")
_RENDERED_VERSION = 1  # raised when the way of rendering changes
_LARGEST_FILE, _LARGEST_PIXELS = 150_000, 1_500_000  # bytes, pixels: larger drawings are passed over
_LEAST_VISIBLE, _MOST_VISIBLE = 0.25, 0.95  # no mere lines, no full rectangles


@checked
def clipart_sprites(
    folders: Sequence[str] = CLIPART_FOLDERS, *, size: int = 64, limit: int = 100, folder: str | Path | None = None
) -> Tensor:
    """Returns sprites ``(n, 4, size, size)`` in [0, 1], red, green, blue and alpha, of drawings by many authors.

    Each is cut to what is visible, its longer side fills the square. Drawings are left out that are large, refer to
    others, cannot be rendered, or are mere lines or full rectangles (visible below a quarter or above 95 % of their
    box). Rendered once, then read from the user's cache. The default folders hold games, instruments and signs, all but
    a few of which belong to none of ``DRAWING_CLASSES``.

    Args:
        folders: of openclipart, with all that lies below each.
        size: height and width in pixels, at least 8.
        limit: drawings looked at in each folder, evenly spaced in the order of their names.
        folder: that holds the folders; default: of the package ``heldout.sources.CLIP``.

    Raises:
        SourceError: the package is not there; the message names the command.
        ValueError: size below 8, limit below 1, no such folder, or no drawing that can be used.

    Example:
        >>> clipart_sprites(size=32).shape[1:]  # doctest: +SKIP
        torch.Size([4, 32, 32])
    """
    check_nonempty(folders=folders)
    check_at_least(8, size=size)
    check_at_least(1, limit=limit)
    root = CLIP.files()[0].parents[1] if folder is None else Path(folder)
    chosen: list[Path] = []
    for name in folders:
        if not (root / name).is_dir():
            raise ValueError(f"folders must name folders of {root}, got {name!r}")
        files = sorted((root / name).rglob("*.svg"))
        chosen += files[:: max(1, -(-len(files) // limit))]
    contents = [path.read_bytes() for path in chosen]
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    key = hashlib.sha256(repr((_RENDERED_VERSION, size, digests)).encode()).hexdigest()[:32]
    path = cache_folder() / "clipart" / f"{key}.npy"
    if not path.is_file():
        sprites = [each for content in contents if (each := _sprite(content, size)) is not None]
        if not sprites:
            raise ValueError(f"folders must hold a drawing that can be used, got {len(contents)} files in {root}")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.npy")
        np.save(partial, np.stack(sprites))
        partial.replace(path)
    return torch.from_numpy(np.load(path)).float() / 255


def _sprite(content: bytes, size: int) -> np.ndarray | None:
    """uint8 ``(4, size, size)`` of a drawing, or None where it is of no use."""
    import vl_convert

    text = content.decode("utf-8", errors="replace")
    if len(content) > _LARGEST_FILE or re.search(r"<image|https?://[^\"']+\.svg|file:", text):
        return None
    try:
        png = vl_convert.svg_to_png(text)
        width, height = struct.unpack(">II", png[16:24])
        pixels = read_png(png) if width * height <= _LARGEST_PIXELS else None
    except (RuntimeError, ValueError):
        return None
    if pixels is None or not (pixels[..., 3] > 127).any():
        return None
    rows, columns = (np.flatnonzero((pixels[..., 3] > 127).any(axis=axis)) for axis in (1, 0))
    cut = torch.from_numpy(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]).permute(2, 0, 1).float() / 255
    if not _LEAST_VISIBLE <= float((cut[3] > 0.5).float().mean()) <= _MOST_VISIBLE:
        return None
    longer = max(cut.shape[1:])
    shape = [max(1, round(size * length / longer)) for length in cut.shape[1:]]
    weighted = torch.cat([cut[:3] * cut[3:], cut[3:]])  # invisible pixels have no colour to give
    small = F.interpolate(weighted.unsqueeze(0), shape, mode="area")[0]
    small[:3] /= small[3:].clamp(min=1e-6)
    up, left = (size - shape[0]) // 2, (size - shape[1]) // 2
    square = F.pad(small, (left, size - shape[1] - left, up, size - shape[0] - up))
    return (square.clamp(0, 1) * 255).round().byte().numpy()
