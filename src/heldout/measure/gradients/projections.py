"""Core: Random projections of long vectors that are made piece by piece, such as the gradients of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Projection = Literal["rademacher", "srht", "countsketch", "none"]
_BLOCK = 4096  # parameters whose rows of a dense projection are drawn at once


# --- projections ----------------------------------------------------------------------------------------------------


# Takes the gradients of a batch, ``(batch, n)`` for one parameter after the other, and returns ``(batch, dim)``.
Projector = Callable[[Iterator[Tensor]], Tensor]


def _projector(kind: Projection, size: int, dim: int, seed: int, device: torch.device) -> Projector:
    if kind == "none":
        return lambda parts: torch.cat(list(parts), dim=1)
    if kind == "countsketch":
        return _count_sketch(size, dim, seed, device)
    if kind == "srht":
        generator = torch.Generator().manual_seed(seed)
        padded = 1 << max(0, (max(size, dim) - 1).bit_length())
        sign = _signs((size,), (seed, 0), device)
        kept = torch.randperm(padded, generator=generator)[:dim].to(device)

        def srht(parts: Iterator[Tensor]) -> Tensor:
            flat = torch.cat(list(parts), dim=1)
            return _hadamard(F.pad(flat * sign, (0, padded - size)))[:, kept] / math.sqrt(dim)

        return srht

    def dense(parts: Iterator[Tensor]) -> Tensor:
        drawn, signs, total = -1, torch.empty(0), torch.empty(0)
        for number, place, piece in _pieces(parts, _BLOCK):
            if number != drawn:
                drawn, signs = number, _signs((_BLOCK, dim), (seed, number), device)
            total = total if len(total) else piece.new_zeros(len(piece), dim)
            total.addmm_(piece, signs[place : place + piece.shape[1]])
        return total / math.sqrt(dim)

    return dense


def _count_sketch(size: int, dim: int, seed: int, device: torch.device) -> Projector:
    """Every ``dim`` parameters in a row go to the ``dim`` places in their order, rotated by a random number of places.

    Two parameters share a place with a probability of at most ``1 / dim``, as if each were sent to a random one, and a
    batch of gradients is read once, in order.
    """
    generator = torch.Generator().manual_seed(seed)
    shifts = torch.randint(0, dim, (-(-size // dim),), generator=generator).tolist()
    sign = _signs((size,), (seed, 0), device)

    def project(parts: Iterator[Tensor]) -> Tensor:
        total, done = torch.empty(0), 0
        for number, place, piece in _pieces(parts, dim):
            total = total if len(total) else piece.new_zeros(len(piece), dim)
            count, first = piece.shape[1], (place + shifts[number]) % dim
            signs, fitting = sign[done : done + count], min(count, dim - first)
            total[:, first : first + fitting].addcmul_(piece[:, :fitting], signs[:fitting])
            if fitting < count:
                total[:, : count - fitting].addcmul_(piece[:, fitting:], signs[fitting:])
            done += count
        return total

    return project


def _pieces(parts: Iterator[Tensor], width: int) -> Iterator[tuple[int, int, Tensor]]:
    """Cuts what is in a row when all parts are joined into blocks: yields a block's number, a place in it, and columns.

    A block that goes over the end of a part comes in several pieces.
    """
    done = 0
    for part in parts:
        start, columns = 0, part.shape[1]
        while start < columns:
            place = (done + start) % width
            count = min(width - place, columns - start)
            yield (done + start) // width, place, part[:, start : start + count]
            start += count
        done += columns


def _signs(shape: tuple[int, ...], key: tuple[int, int], device: torch.device) -> Tensor:
    """Random signs as float32, the same for the same key everywhere."""
    count = math.prod(shape)
    drawn = np.random.Generator(np.random.Philox(key=list(key))).bytes(-(-count // 8))
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8), count=count)
    return torch.from_numpy(bits).to(device, torch.float32).mul_(2).sub_(1).view(shape)


def _hadamard(values: Tensor) -> Tensor:
    """The unnormalised Walsh-Hadamard transform of each row, whose length is a power of two."""
    rows, length = values.shape
    half = 1
    while half < length:
        pairs = values.view(rows, -1, 2, half)
        values = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], dim=2).view(
            rows, length
        )
        half *= 2
    return values
