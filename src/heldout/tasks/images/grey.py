"""Core: Grey images: scikit-learn's digits, and Fashion-MNIST from its published files."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import checked

_FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"
_IDX_FILES = {"train": "train", "test": "t10k"}


@checked
def digits(*, size: int = 8) -> tuple[Tensor, Tensor]:
    """Returns scikit-learn's 1,797 handwritten digits: images ``(n, 1, size, size)`` in [0, 1] and int64 labels.

    Args:
        size: height and width in pixels; above the original 8 the images are enlarged bilinearly.

    Raises:
        ValueError: a size below 8.

    Example:
        >>> images, labels = digits(size=16)
        >>> tuple(images.shape), labels.unique().numel()
        ((1797, 1, 16, 16), 10)
    """
    from sklearn.datasets import load_digits

    if size < 8:
        raise ValueError(f"size must be at least 8 pixels, got {size}")
    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    if size > 8:
        images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return images, torch.from_numpy(data.target).long()


@checked
def fashion_mnist(
    folder: str | Path | None = None, *, part: Literal["train", "test"] = "train"
) -> tuple[Tensor, Tensor]:
    """Returns Fashion-MNIST: images ``(60000 or 10000, 1, 28, 28)`` in [0, 1] and int64 labels.

    Args:
        folder: where the IDX files are, gzipped or not; by default $HELDOUT_FASHION_MNIST, then the folder of the
            Debian package dataset-fashion-mnist.
        part: the training or the test images.

    Raises:
        FileNotFoundError: the files are not there; the message says how to get them.
        ValueError: a file is truncated, is not an IDX file, or its shape is not the expected one.

    Example:
        >>> images, labels = fashion_mnist(part="test")  # doctest: +SKIP
        >>> images.shape, labels.bincount().tolist()[:2]  # doctest: +SKIP
        (torch.Size([10000, 1, 28, 28]), [1000, 1000])
    """
    if part not in _IDX_FILES:
        raise ValueError(f"part must be 'train' or 'test', got {part!r}")
    where = Path(folder or os.environ.get("HELDOUT_FASHION_MNIST") or _FASHION_FOLDER)
    prefix = _IDX_FILES[part]
    images = _read_idx(_find_idx(where, f"{prefix}-images-idx3-ubyte"), 3)
    labels = _read_idx(_find_idx(where, f"{prefix}-labels-idx1-ubyte"), 1)
    if images.shape[1:] != (28, 28):
        raise ValueError(f"Fashion-MNIST images are 28 x 28, got {images.shape[1]} x {images.shape[2]} in {where}")
    if len(images) != len(labels):
        raise ValueError(f"{where} has {len(images)} {part} images but {len(labels)} labels")
    return torch.from_numpy(images).unsqueeze(1).float().div_(255), torch.from_numpy(labels).long()


def _find_idx(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"no {name}[.gz] in {folder}: run `apt-get install dataset-fashion-mnist`, or pass a folder (or set "
        "HELDOUT_FASHION_MNIST to one) that holds the four IDX files of Fashion-MNIST"
    )


def _read_idx(path: Path, dims: int) -> np.ndarray:
    """Returns the uint8 array of an IDX file: a big-endian header 0, 0, type, dims, sizes; then the values."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is truncated or not a gzip file: {error}") from error
    header = 4 + 4 * dims
    if content[:4] != bytes((0, 0, 0x08, dims)) or len(content) < header:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes with {dims} dimension(s)")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dims, 4))
    if len(content) - header != math.prod(shape):
        raise ValueError(f"{path} should hold {math.prod(shape)} values for shape {shape}, got {len(content) - header}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()
