"""Core: How many bits describe an array or a text: the shortest of what general compressors make of it.

An upper bound of the Kolmogorov complexity, for measures in the manner of minimum description length.

Source: arXiv:2506.17859, appendix, where the prior of a strategy and its program are compressed.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from heldout.errors import check_finite, check_nonempty, check_one_of, checked, require

STDLIB_COMPRESSORS = ("none", "zlib", "bz2", "lzma", "delta+zlib", "delta+lzma")


@checked
def description_bits(
    array_or_source: Tensor | np.ndarray | Sequence[float] | str | bytes,
    *,
    compressors: Sequence[str] = STDLIB_COMPRESSORS,
) -> float:
    """Returns the bits of the shortest compressed form of an array's bytes, or of a text in UTF-8.

    Bits depend on the data type: random float64 numbers take 64 bits each, so give what is compared the same type.

    Args:
        array_or_source: a tensor, an array or numbers (as float64), in C order; or a text, such as a program.
        compressors: of which the shortest counts: "none", "zlib", "bz2", "lzma", "brotli", "zstd", each also behind
            "delta+", which stores each byte less the byte one element before. By default those of the standard
            library, so that the number is the same on every machine; "brotli" and "zstd" need packages of that name
            ("zstandard" for the latter).

    Raises:
        ValueError: nothing to describe, numbers that are not finite, no or unknown compressors.
        MissingExtraError: a compressor whose package is not installed.

    Source: arXiv:2506.17859. Deviation: "none" is always among the compressors, so that no form is longer than the raw.

    Example:
        >>> description_bits(np.zeros(1000)) < 1000, description_bits("abc")
        (True, 24.0)
    """
    check_nonempty(array_or_source=array_or_source, compressors=compressors)
    data, width = _bytes_of(array_or_source)
    codecs: dict[str, Callable[[bytes], bytes]] = {
        "none": lambda raw: raw,
        "zlib": lambda raw: zlib.compress(raw, 9),
        "bz2": lambda raw: bz2.compress(raw, 9),
        "lzma": _lzma,
        "brotli": lambda raw: require("brotli").compress(raw),
        "zstd": lambda raw: require("zstandard").ZstdCompressor(level=19).compress(raw),
    }
    shortest = len(data)
    for each in compressors:
        name = each.removeprefix("delta+")
        check_one_of(codecs, compressors=name)
        shortest = min(shortest, len(codecs[name](_delta(data, width) if name != each else data)))
    return 8.0 * shortest


def _bytes_of(value: Any) -> tuple[bytes, int]:
    """The bytes, and how many of them are an element."""
    if isinstance(value, str):
        return value.encode(), 1
    if isinstance(value, bytes):
        return value, 1
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    array = np.asarray(value, order="C") if isinstance(value, np.ndarray) else np.asarray(value, np.float64)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"array_or_source must hold numbers, got {array.dtype}")
    check_finite(array_or_source=array)
    return array.astype(array.dtype.newbyteorder("<")).tobytes(), array.itemsize


def _lzma(raw: bytes) -> bytes:
    # The dictionary of preset 9 is 64 MB, which takes longer to make than short data to compress.
    return lzma.compress(raw, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": max(4096, len(raw))}])


def _delta(data: bytes, width: int) -> bytes:
    raw = np.frombuffer(data, np.uint8)
    return np.concatenate([raw[:width], raw[width:] - raw[:-width]]).tobytes()
