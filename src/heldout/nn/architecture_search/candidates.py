"""Candidate operations of a search: SharpSepConv, pooling that may change the width, identity, nothing.

Source: arXiv:1903.09900 (sharpDARTS), section 3.1; arXiv:1806.09055 (DARTS), section 3.1.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import check_at_least, check_dimensions, checked

Primitive = Callable[[int, int, bool], nn.Module]


class SharpSepConv(nn.Module):
    """Two depthwise-separable convolutions with a free width between them, each after a ReLU and before a BatchNorm.

    ``(batch, in_channels, h, w)`` becomes ``(batch, out_channels, ceil(h / stride), ceil(w / stride))``: ReLU,
    depthwise k x k with stride and dilation, pointwise to ``mid_channels``, BatchNorm, ReLU, depthwise k x k, pointwise
    to ``out_channels``, BatchNorm. Convolutions have no bias: ``in k^2 + in mid + mid k^2 + mid out`` weights, and two
    for each channel of a BatchNorm that has some. ``mid_channels=in_channels`` is the SepConv of DARTS.

    Args:
        in_channels, out_channels: widths.
        kernel_size: k, odd.
        stride: of the first depthwise convolution.
        dilation: of the first depthwise convolution; the padding follows it.
        mid_channels: default ``out_channels``; the paper's "flood" has 4 times as many, its "choke" 32.
        affine: BatchNorms have weights and biases; not during a search, where they would undo its coefficients.

    Raises:
        ValueError: an even kernel, widths below 1.

    Source: arXiv:1903.09900, section 3.1.

    Example:
        >>> SharpSepConv(8, 16, stride=2, dilation=2)(torch.zeros(2, 8, 7, 7)).shape
        torch.Size([2, 16, 4, 4])
    """

    @checked
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        dilation: int = 1,
        mid_channels: int | None = None,
        affine: bool = True,
    ) -> None:
        check_at_least(1, in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, stride=stride)
        check_at_least(1, dilation=dilation, mid_channels=mid_channels)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        super().__init__()
        mid = mid_channels or out_channels
        padding = (kernel_size - 1) // 2
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(
                in_channels, in_channels, kernel_size, stride, padding * dilation, dilation, in_channels, bias=False
            ),
            nn.Conv2d(in_channels, mid, 1, bias=False),
            nn.BatchNorm2d(mid, affine=affine),
            nn.ReLU(),
            nn.Conv2d(mid, mid, kernel_size, 1, padding, groups=mid, bias=False),
            nn.Conv2d(mid, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels, affine=affine),
        )

    @checked
    def forward(self, inputs: Tensor) -> Tensor:
        check_dimensions(4, inputs=inputs)
        return self.layers(inputs)


class ResizablePool(nn.Module):
    """Pooling and BatchNorm, and where the width changes a pointwise convolution and another BatchNorm.

    ``(batch, in_channels, h, w)`` becomes ``(batch, out_channels, ceil(h / stride), ceil(w / stride))``.

    Args:
        in_channels, out_channels: widths.
        kernel_size: odd.
        stride: of the pooling.
        kind: "max", or "mean" (of the positions inside the image).
        affine: BatchNorms have weights and biases.

    Source: arXiv:1903.09900, section 3.2.

    Example:
        >>> ResizablePool(8, 16, stride=2)(torch.zeros(2, 8, 7, 7)).shape
        torch.Size([2, 16, 4, 4])
    """

    @checked
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        kind: Literal["max", "mean"] = "max",
        affine: bool = True,
    ) -> None:
        check_at_least(1, in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, stride=stride)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        super().__init__()
        padding = (kernel_size - 1) // 2
        pool: nn.Module = nn.MaxPool2d(kernel_size, stride, padding)
        if kind == "mean":
            pool = nn.AvgPool2d(kernel_size, stride, padding, count_include_pad=False)
        layers = [pool, nn.BatchNorm2d(in_channels, affine=affine)]
        if in_channels != out_channels:
            layers += [
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels, affine=affine),
            ]
        self.layers = nn.Sequential(*layers)

    @checked
    def forward(self, inputs: Tensor) -> Tensor:
        check_dimensions(4, inputs=inputs)
        return self.layers(inputs)


class FactorizedReduce(nn.Module):
    """Half the resolution by two pointwise convolutions, of the even and of the odd positions, side by side.

    ``(batch, in_channels, h, w)`` becomes ``(batch, out_channels, ceil(h / 2), ceil(w / 2))``: ReLU, the two
    convolutions, BatchNorm. Odd sizes are padded by zeros.

    Args:
        in_channels, out_channels: widths.
        affine: the BatchNorm has weights and biases.

    Source: arXiv:1806.09055, the identity of a reduction cell.

    Example:
        >>> FactorizedReduce(4, 6)(torch.zeros(2, 4, 7, 7)).shape
        torch.Size([2, 6, 4, 4])
    """

    @checked
    def __init__(self, in_channels: int, out_channels: int, *, affine: bool = True) -> None:
        check_at_least(1, in_channels=in_channels)
        check_at_least(2, out_channels=out_channels)
        super().__init__()
        self.even = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, affine=affine)

    @checked
    def forward(self, inputs: Tensor) -> Tensor:
        check_dimensions(4, inputs=inputs)
        active = inputs.relu()
        shifted = F.pad(active, (0, 1, 0, 1))[:, :, 1:, 1:]
        return self.norm(torch.cat([self.even(active), self.odd(shifted)], dim=1))


class Zero(nn.Module):
    """No connection: zeros ``(batch, channels, ceil(h / stride), ceil(w / stride))``.

    Example:
        >>> Zero(stride=2)(torch.ones(1, 3, 5, 5)).sum()
        tensor(0.)
    """

    @checked
    def __init__(self, stride: int = 1) -> None:
        check_at_least(1, stride=stride)
        super().__init__()
        self.stride = stride

    @checked
    def forward(self, inputs: Tensor) -> Tensor:
        return torch.zeros_like(inputs[..., :: self.stride, :: self.stride])


def _skip(channels: int, stride: int, affine: bool) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine=affine)


def _sep(kernel_size: int, *, dilation: int = 1, flood: int = 1, choke: int | None = None) -> Primitive:
    def make(channels: int, stride: int, affine: bool) -> nn.Module:
        mid = choke or flood * channels
        return SharpSepConv(channels, channels, kernel_size, stride, dilation=dilation, mid_channels=mid, affine=affine)

    return make


def _pool(kind: Literal["max", "mean"]) -> Primitive:
    return lambda channels, stride, affine: ResizablePool(channels, channels, 3, stride, kind=kind, affine=affine)


PRIMITIVES: dict[str, Primitive] = {
    "none": lambda channels, stride, affine: Zero(stride),
    "skip_connect": _skip,
    "max_pool_3x3": _pool("max"),
    "avg_pool_3x3": _pool("mean"),
    "sep_conv_3x3": _sep(3),
    "sep_conv_5x5": _sep(5),
    "dil_conv_3x3": _sep(3, dilation=2),
    "dil_conv_5x5": _sep(5, dilation=2),
    "flood_conv_3x3": _sep(3, flood=4),
    "flood_conv_5x5": _sep(5, flood=4),
    "choke_conv_3x3": _sep(3, choke=32),
    "choke_conv_5x5": _sep(5, choke=32),
}
