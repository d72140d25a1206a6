"""Core: The header of a safetensors file: what is in the file and where, read as strictly as safetensors reads it.

A file that safetensors refuses is refused here, in one error that names the file and the tensor. Source: the format
as https://github.com/huggingface/safetensors specifies it.
"""

from __future__ import annotations

import gc
import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_SIZES = {code: dtype.itemsize for code, dtype in DTYPES.items()}
_MOST_BYTES = 2**63
_MAX_HEADER = 100_000_000
_PICKLES = (b"PK", *(bytes([0x80, protocol]) for protocol in range(2, 6)))  # a torch.save archive, a bare pickle
_FIELDS = {"dtype", "shape", "data_offsets"}


class Entry(NamedTuple):
    """Where one tensor lies: the file's number, and the first byte in it (safetensors) or the tensor itself."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: int
    start: int = 0
    tensor: Tensor | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_header(file: Path, handle: IO[bytes], number: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """Returns the tensors of a safetensors file by name, in the order in which they lie in it, and its metadata.

    Args:
        file: its path, for messages.
        handle: the file, open for reading at its beginning.
        number: what the entries call the file.

    Raises:
        ValueError: whatever safetensors refuses, and data types that torch does not have; the message names the file
            and the tensor.
    """
    size = os.fstat(handle.fileno()).st_size
    prefix = handle.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= length <= min(_MAX_HEADER, size - 8):
        if prefix[:2] in _PICKLES:
            raise ValueError(f"{file} holds a pickle, not safetensors; it is refused because a pickle can run code")
        raise ValueError(f"{file} is not a safetensors file, or is truncated")
    with _uncollected():
        header = _parsed(file, handle.read(length))
        notes = header.pop("__metadata__", None)
        notes = {} if notes is None else notes
        if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
            raise ValueError(f"{file} is not a safetensors file: its __metadata__ is not an object of strings")
        return _entries(file, header, number, 8 + length, size), notes


def header_bytes(layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Returns the first bytes of a safetensors file whose tensors follow in the layout's order.

    Raises:
        ValueError: if a data type is none that safetensors holds, or the metadata names no string.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, (dtype, shape) in layout.items():
        if dtype not in _CODES:
            raise ValueError(f"{name!r} has the data type {dtype}, which safetensors does not hold")
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _parsed(file: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_no_constant)
        if b"\\u" in raw:  # a name that no text can hold
            json.dumps(header, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        said = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{file} is not a safetensors file: its header is not JSON: {said}") from None
    if not isinstance(header, dict):
        raise ValueError(f"{file} is not a safetensors file: its header is not a JSON object")
    return header


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _entries(file: Path, header: Mapping[str, Any], number: int, start: int, size: int) -> dict[str, Entry]:
    for name, item in header.items():
        if type(item) is not dict or item.keys() != _FIELDS:
            raise ValueError(f"{file} is damaged at {name!r}: expected an object of {', '.join(sorted(_FIELDS))}")
        offsets = item["data_offsets"]
        if type(offsets) is not list or len(offsets) != 2 or not type(offsets[0]) is type(offsets[1]) is int:
            raise ValueError(f"{file} is damaged at {name!r}: data_offsets must be two integers")
        if type(item["dtype"]) is not str or item["dtype"] not in DTYPES:
            raise ValueError(f"{file} holds {name!r} in the data type {item['dtype']}, which is not supported")
    entries, position = {}, 0
    for name in sorted(header, key=lambda name: header[name]["data_offsets"]):
        item = header[name]
        code, shape, (begin, end) = item["dtype"], item["shape"], item["data_offsets"]
        count = _SIZES[code] * _elements(shape)
        if not 0 <= count < _MOST_BYTES or begin != position or end - begin != count or start + end > size:
            raise ValueError(f"{file} is damaged or truncated at {name!r}: its bytes do not fit its shape or the file")
        entries[name] = Entry(DTYPES[code], tuple(shape), number, start + begin)
        position = end
    if start + position != size:
        last = f"after {next(reversed(entries))!r}, its last tensor" if entries else "and no tensor"
        raise ValueError(f"{file} is damaged: it holds {size - start - position} bytes {last}")
    return entries


def _elements(shape: Any) -> int:
    """Returns the number of elements, -1 for what is no shape."""
    count = 1
    if type(shape) is not list:
        return -1
    for length in shape:
        if type(length) is not int or length < 0:
            return -1
        count *= length
    return count


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keeps the garbage collector from walking a million small objects again and again while they are made."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
