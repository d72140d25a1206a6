"""Core: Group quantisation: a few bits per weight, with a scale and a zero point for every group of inputs of a row.

A row of a linear layer's weight is cut into groups of ``group_size`` inputs. In each, ``q = clamp(round(w / scale) +
zero, 0, 2^bits - 1)`` and ``w_hat = (q - zero) * scale``. Everything works on weights of shape ``(out, in)``; the
transposed weights of transformers' ``Conv1D`` (GPT-2) are seen through ``weight_of``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from heldout.errors import check_at_least, check_dimensions, check_nonempty, checked

_PIECE = 1 << 18  # levels, a multiple of 32


class QTensor(NamedTuple):
    """A quantised matrix.

    Attributes:
        q: levels from 0 to ``2^bits - 1``, uint8 ``(out, in)``.
        scale: floating point ``(out, groups)``.
        zero: the level of zero, uint8 ``(out, groups)``; None where symmetric, then it is ``2^(bits - 1)``.
        bits: bits of one level.
        group_size: inputs that share a scale; -1 means the whole row.

    Example:
        >>> tensor = group_quantize(torch.randn(64, 128), bits=4, group_size=32)
        >>> tensor.q.shape, tensor.scale.shape, tensor.nbytes  # 32,768 bytes before
        (torch.Size([64, 128]), torch.Size([64, 4]), 5248)
    """

    q: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    group_size: int

    @property
    def nbytes(self) -> int:
        """Bytes of the packed levels, scales and packed zero points."""
        rows, columns = self.q.shape
        words = rows * -(-columns * self.bits // 32)
        if self.zero is not None:
            words += -(-rows * self.bits // 32) * self.zero.shape[1]
        return 4 * words + self.scale.nbytes


@checked
def group_quantize(
    w: Tensor, bits: int = 4, group_size: int = 128, *, symmetric: bool = False, scale_dtype: torch.dtype | None = None
) -> QTensor:
    """Returns a matrix rounded to ``bits`` bits, each group of inputs to levels of its own.

    Asymmetric: the levels span from the group's minimum to its maximum, and always include zero. Symmetric: from
    ``-max|w|`` to ``max|w|``.

    Args:
        w: floating point ``(out, in)``.
        bits: 1 to 8 (2 to 8 where symmetric).
        group_size: inputs in a group, a divisor of ``in``; -1 for one group per row.
        symmetric: no zero points.
        scale_dtype: in which the scales are kept, and rounded to before any weight is; default: that of ``w``.

    Raises:
        ValueError: if ``w`` is no matrix, is not finite, or has a size that the group does not divide.
        TypeError: if ``w`` or ``scale_dtype`` is not floating point.

    Source: arXiv:2306.00978, eq. 1 and its released code. Deviation: there the range need not include zero, and a group
    of one sign, whose zero point then falls outside the levels, is represented by values far from its own.

    Example:
        >>> tensor = group_quantize(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), bits=2, group_size=4)
        >>> tensor.q.tolist(), tensor.scale.tolist(), tensor.zero.tolist()
        ([[0, 1, 2, 3]], [[1.0]], [[0]])
    """
    check_dimensions(2, w=w)
    check_nonempty(w=w)
    scale, zero = group_range(w, bits, group_size, symmetric=symmetric, scale_dtype=scale_dtype)
    groups = _grouped(w, group_size)
    q = (groups / scale[..., None].to(groups.dtype)).round_().add_(zero[..., None]).clamp_(0, 2**bits - 1)
    levels = q.to(torch.uint8).reshape(w.shape)
    return QTensor(levels, scale, None if symmetric else zero.to(torch.uint8), bits, group_size)


def group_range(
    w: Tensor, bits: int, group_size: int, *, symmetric: bool = False, scale_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the scale and the zero point of every group, ``(out, groups)``; arguments as for ``group_quantize``."""
    check_floating_point(w, scale_dtype)
    if not 1 + symmetric <= bits <= 8:
        raise ValueError(f"bits must be {1 + symmetric} to 8, got {bits}")
    low, high = torch.aminmax(_grouped(w, group_size), dim=-1)
    if not symmetric:  # a zero point is one of the levels, so the range includes zero
        low, high = low.clamp(max=0), high.clamp(min=0)
    if not bool(torch.isfinite(high - low).all()):
        raise ValueError("the weight holds NaN or infinite values")
    if symmetric:
        scale = torch.maximum(-low, high).clamp_(min=1e-5) / (2 ** (bits - 1) - 1)
        scale = scale.to(scale_dtype or w.dtype)
        return scale, torch.full_like(scale, 2 ** (bits - 1), dtype=low.dtype)
    scale = ((high - low).clamp_(min=1e-5) / (2**bits - 1)).to(scale_dtype or w.dtype)
    return scale, (-(low / scale.to(low.dtype)).round()).clamp_(0, 2**bits - 1)


@checked
def dequantize(tensor: QTensor) -> Tensor:
    """Returns the matrix ``(q - zero) * scale``, in the data type of the scales.

    Example:
        >>> dequantize(group_quantize(torch.tensor([[-1.0, 2.0]]), bits=8, group_size=2)).round(decimals=2)
        tensor([[-1.,  2.]])
    """
    zero = 2 ** (tensor.bits - 1) if tensor.zero is None else tensor.zero[..., None].to(tensor.scale.dtype)
    groups = _grouped(tensor.q, tensor.group_size).to(tensor.scale.dtype)
    return groups.sub_(zero).mul_(tensor.scale[..., None]).reshape(tensor.q.shape)


@checked
def fake_quantize(w: Tensor, bits: int = 4, group_size: int = 128, *, symmetric: bool = False) -> Tensor:
    """Returns ``dequantize(group_quantize(w, ...))`` without making the levels: the weight with its rounding error.

    Example:
        >>> fake_quantize(torch.tensor([[0.0, 1.2, 3.0]]), bits=2, group_size=3)
        tensor([[0., 1., 3.]])
    """
    check_dimensions(2, w=w)
    check_nonempty(w=w)
    scale, zero = group_range(w, bits, group_size, symmetric=symmetric)
    step, level = scale[..., None], zero[..., None]
    rounded = (_grouped(w, group_size) / step).round_().add_(level).clamp_(0, 2**bits - 1)
    return rounded.sub_(level).mul_(step).view(w.shape)


@checked
def pack_codes(q: Tensor, bits: int) -> Tensor:
    """Returns the levels of each row packed densely into int32 words, the first level in the lowest bits.

    Level i of a row lies at the bits ``i * bits`` to ``(i + 1) * bits - 1`` of the row's words: the layout
    "pack-quantized" of compressed-tensors. 3 bits cross the borders of words, as its releases read them that support
    them at all.

    Args:
        q: uint8 ``(rows, columns)`` in main memory, values below ``2^bits``.
        bits: 2, 3, 4 or 8.

    Returns:
        int32 ``(rows, ceil(columns * bits / 32))``.

    Raises:
        ValueError: if ``q`` is not a uint8 matrix, or ``bits`` is another number.

    Example:
        >>> pack_codes(torch.tensor([[1, 2, 3]], dtype=torch.uint8), bits=4).tolist()
        [[801]]
        >>> unpack_codes(pack_codes(torch.tensor([[1, 2, 3]], dtype=torch.uint8), bits=4), 4, columns=3).tolist()
        [[1, 2, 3]]
    """
    check_dimensions(2, q=q)
    check_nonempty(q=q)
    _check_packing(bits)
    if q.dtype != torch.uint8 or q.dim() != 2:
        raise ValueError(f"expected a uint8 matrix of levels, got {q.dtype} of shape {tuple(q.shape)}")
    rows, columns = q.shape
    if bits == 8 and columns % 4 == 0:
        return q.clone(memory_format=torch.contiguous_format).view(torch.int32)
    if padding := -columns % 32:
        q = nn.functional.pad(q, (0, padding))
    levels = q.contiguous().numpy().reshape(-1)
    packed = np.empty(levels.size // 8 * bits, np.uint8)
    for first in range(0, levels.size, _PIECE):
        piece = levels[first : first + _PIECE]
        packed[first // 8 * bits : (first + piece.size) // 8 * bits] = _PACKERS[bits](piece)
    words = torch.from_numpy(packed).view(rows, -1).view(torch.int32)
    return words if not padding else words[:, : -(-columns * bits // 32)].contiguous()


@checked
def unpack_codes(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Returns the uint8 levels ``(rows, columns)`` that ``pack_codes`` has packed.

    Args:
        packed: int32 ``(rows, ceil(columns * bits / 32))`` in main memory.
        bits: 2, 3, 4 or 8.
        columns: levels in a row.

    Raises:
        ValueError: if the shape does not fit ``bits`` and ``columns``.

    Example:
        >>> word = 1 + (2 << 3) + (3 << 6)
        >>> unpack_codes(torch.tensor([[word]], dtype=torch.int32), bits=3, columns=3)
        tensor([[1, 2, 3]], dtype=torch.uint8)
    """
    check_dimensions(2, packed=packed)
    check_nonempty(packed=packed)
    check_at_least(1, columns=columns)
    _check_packing(bits)
    words = -(-columns * bits // 32)
    if packed.dtype != torch.int32 or packed.shape[1:] != (words,):
        raise ValueError(
            f"{columns} levels of {bits} bits take an int32 matrix of {words} columns, "
            f"got {packed.dtype} of shape {tuple(packed.shape)}"
        )
    if bits == 8 and columns % 4 == 0:
        return packed.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    if padding := -words % bits:
        packed = nn.functional.pad(packed, (0, padding))
    data = packed.contiguous().numpy().view(np.uint8).reshape(-1)
    levels = np.empty(data.size // bits * 8, np.uint8)
    for first in range(0, levels.size, _PIECE):
        piece = levels[first : first + _PIECE]
        _UNPACKERS[bits](data[first // 8 * bits : (first + piece.size) // 8 * bits], piece)
    q = torch.from_numpy(levels).view(packed.shape[0], -1)
    return q if q.shape[1] == columns else q[:, :columns].contiguous()


# What follows works on pieces that stay in the cache. Each step joins, or parts, two neighbours that lie in one wider
# integer: v = low + high * 2^width becomes v - high * (2^width - 2^filled) = low + high * 2^filled, and back.


def _join(v: np.ndarray, width: int, filled: int) -> np.ndarray:
    high = v >> width
    high *= v.dtype.type(2**width - 2**filled)
    return v - high


def _part(v: np.ndarray, width: int, filled: int) -> np.ndarray:
    high = v >> filled
    high *= v.dtype.type(2**width - 2**filled)
    high += v
    return high


def _pack_2(q: np.ndarray) -> np.ndarray:
    return _pack_pairs(_pack_pairs(q, 2), 4)


def _pack_3(q: np.ndarray) -> np.ndarray:
    sixes = _pack_pairs(q, 3).view(np.uint16)
    twelves = _join(sixes, 8, 6).view(np.uint32)
    a, b, c, d = _join(twelves, 16, 12).reshape(-1, 4).T
    words = np.empty((len(a), 3), np.uint32)
    words[:, 0] = a | b << 24
    words[:, 1] = b >> 8 | c << 16
    words[:, 2] = c >> 16 | d << 8
    return words.reshape(-1).view(np.uint8)


def _pack_4(q: np.ndarray) -> np.ndarray:
    return _pack_pairs(q, 4)


def _pack_8(q: np.ndarray) -> np.ndarray:
    return q


def _pack_pairs(q: np.ndarray, bits: int) -> np.ndarray:
    """Returns bytes that hold two levels each."""
    pairs = q.view(np.uint16)
    joined = pairs >> (8 - bits)
    joined |= pairs
    if bits < 4:
        joined &= np.uint16(2 ** (2 * bits) - 1)
    return joined.astype(np.uint8)


def _unpack_2(data: np.ndarray, out: np.ndarray) -> None:
    halves = np.empty(2 * data.size, np.uint8)
    _unpack_4(data, halves)
    _unpack_pairs(halves, 2, out)


def _unpack_3(data: np.ndarray, out: np.ndarray) -> None:
    a, b, c = data.view(np.uint32).reshape(-1, 3).T
    twenty_fours = np.empty((len(a), 4), np.uint32)
    twenty_fours[:, 0] = a & 0xFFFFFF
    twenty_fours[:, 1] = a >> 24 | (b & 0xFFFF) << 8
    twenty_fours[:, 2] = b >> 16 | (c & 0xFF) << 16
    twenty_fours[:, 3] = c >> 8
    twelves = _part(twenty_fours.reshape(-1), 16, 12).view(np.uint16)
    _unpack_pairs(_part(twelves, 8, 6).view(np.uint8), 3, out)


def _unpack_4(data: np.ndarray, out: np.ndarray) -> None:
    pairs = out.view(np.uint16)
    pairs[:] = data
    pairs |= pairs << 4
    pairs &= np.uint16(0x0F0F)


def _unpack_8(data: np.ndarray, out: np.ndarray) -> None:
    out[:] = data


def _unpack_pairs(data: np.ndarray, bits: int, out: np.ndarray) -> None:
    out.view(np.uint16)[:] = _part(data.astype(np.uint16), 8, bits)


_PACKERS = {2: _pack_2, 3: _pack_3, 4: _pack_4, 8: _pack_8}
_UNPACKERS = {2: _unpack_2, 3: _unpack_3, 4: _unpack_4, 8: _unpack_8}


@checked
def linears(model: nn.Module, skip: Collection[str] = ("lm_head", "embed")) -> dict[str, nn.Module]:
    """Returns the linear layers (``nn.Linear`` and transformers' ``Conv1D``) by name.

    Args:
        model: any module.
        skip: layers whose name contains one of these are left out; so are those that share their weight with
            another module, such as a head that is tied to the embedding.

    Returns:
        name -> module, in the order of the module tree.

    Example:
        >>> list(linears(nn.ModuleDict({"up": nn.Linear(2, 4), "norm": nn.LayerNorm(4), "lm_head": nn.Linear(4, 9)})))
        ['up']
    """
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {
        name: module
        for name, module in model.named_modules()
        if is_linear(module) and owners[id(module.weight)] == 1 and not any(part in name for part in skip)
    }


def is_linear(module: nn.Module) -> bool:
    """Whether a module is ``nn.Linear`` or transformers' ``Conv1D``."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def weight_of(module: nn.Module) -> Tensor:
    """Returns a linear layer's weight as ``(out, in)``: a view, detached."""
    weight: Any = module.weight
    return weight.detach().T if type(module).__name__ == "Conv1D" else weight.detach()


@checked
def rtn(
    model: nn.Module,
    bits: int = 4,
    group_size: int = 128,
    *,
    symmetric: bool = False,
    layers: Mapping[str, nn.Module] | None = None,
    scale_dtype: torch.dtype | None = None,
) -> dict[str, QTensor]:
    """Rounds the weights of a model's linear layers to the nearest level, in place; returns the quantised weights.

    The model computes with the dequantised weights from then on: its accuracy is that of the quantised model, its
    memory is not. ``pack_codes`` makes the small form.

    Args:
        model: any module.
        bits, group_size, symmetric, scale_dtype: see ``group_quantize``.
        layers: the layers by name; default: ``linears(model)``.

    Returns:
        name of the layer -> its quantised weight, ``(out, in)``.

    Raises:
        ValueError: if there is no linear layer, a weight is not finite, or a size does not fit the group; the message
            names the layer. No weight has changed then.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> quantised = rtn(nn.Sequential(model), bits=8, group_size=4)["0"]
        >>> torch.equal(model.weight, dequantize(quantised))
        True
    """
    chosen = linears(model) if layers is None else layers
    check_layers(chosen, group_size)
    options: Any = {"symmetric": symmetric, "scale_dtype": scale_dtype}
    found = {name: group_quantize(weight_of(module), bits, group_size, **options) for name, module in chosen.items()}
    for name, tensor in found.items():
        weight_of(chosen[name]).copy_(dequantize(tensor))
    return found


def check_layers(layers: Mapping[str, nn.Module], group_size: int) -> None:
    """Raises ValueError, naming the layer, where a weight cannot be quantised in groups of this size."""
    if not layers:
        raise ValueError("the model has no linear layer to quantise")
    for name, module in layers.items():
        weight = weight_of(module)
        if group_size != -1 and (group_size < 1 or weight.shape[1] % group_size):
            widths = [weight_of(other).shape[1] for other in layers.values()]
            fits = [size for size in (256, 128, 64, 32, 16, 8) if all(width % size == 0 for width in widths)]
            hint = f"{fits[0]} and -1 (whole rows) do" if fits else "-1 (whole rows) does"
            raise ValueError(f"group_size {group_size} does not divide the {weight.shape[1]} inputs of {name}; {hint}")
        if not bool(torch.isfinite(weight).all()):
            raise ValueError(f"{name} holds NaN or infinite weights")


def check_floating_point(w: Tensor, scale_dtype: torch.dtype | None) -> None:
    """Raises TypeError unless a weight, and the data type in which its scales are to be kept, are floating point."""
    for name, dtype in (("w", w.dtype), ("scale_dtype", scale_dtype)):
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"{name} must be floating point, got {dtype}")


def _grouped(w: Tensor, group_size: int) -> Tensor:
    if w.dim() != 2 or not w.numel():
        raise ValueError(f"expected a matrix (out, in), got shape {tuple(w.shape)}")
    size = w.shape[1] if group_size == -1 else group_size
    if size < 1 or w.shape[1] % size:
        raise ValueError(f"group_size must divide the {w.shape[1]} inputs, or be -1 for whole rows; got {group_size}")
    return w.reshape(w.shape[0], -1, size)


def _check_packing(bits: int) -> None:
    if bits not in _PACKERS:
        raise ValueError(f"levels of 2, 3, 4 or 8 bits can be packed, got {bits}")
