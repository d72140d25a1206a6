"""Pseudo-3-D residual networks: a 3 x 3 x 3 convolution as one over space and one over time, in three arrangements.

Source: arXiv:1711.10305 (Qiu, Yao, Mei; ICCV 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import (
    check_at_least,
    check_between,
    check_dimensions,
    check_nonempty,
    check_one_of,
    checked,
)

P3D_VARIANTS = ("A", "B", "C", "2D", "3D")
Variant = Literal["A", "B", "C", "2D", "3D"]
Form = Literal["relu", "inner", "norm", "plain"]


class TemporalConv3d(nn.Conv3d):
    """A convolution over time alone, kernel (k, 1, 1), run as a 2-D one over (time, pixels); weights as ``nn.Conv3d``.

    Inputs ``(batch, in_channels, time, h, w)``, outputs ``(batch, channels, time, h / stride, w / stride)``; zeros come
    before the first and after the last frame. benchmarks/pseudo_3d.py measures what the 2-D form saves.

    Args:
        in_channels, channels: of input and output.
        kernel: frames, odd.
        stride: of height and width; pixels between are left out.
        groups, bias: as of ``nn.Conv3d``.

    Raises:
        ValueError: an even kernel, or a number below 1; in the forward pass, other than 5 dimensions.

    Example:
        >>> conv = TemporalConv3d(2, 2, 3)
        >>> clips = torch.rand(1, 2, 4, 5, 5)
        >>> torch.allclose(conv(clips), nn.Conv3d.forward(conv, clips), atol=1e-6)
        True
    """

    @checked
    def __init__(
        self, in_channels: int, channels: int, kernel: int = 3, *, stride: int = 1, groups: int = 1, bias: bool = False
    ) -> None:
        check_at_least(1, in_channels=in_channels, channels=channels, kernel=kernel, stride=stride, groups=groups)
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}")
        super().__init__(
            in_channels, channels, (kernel, 1, 1), (1, stride, stride), (kernel // 2, 0, 0), groups=groups, bias=bias
        )

    @checked
    def forward(self, input: Tensor) -> Tensor:
        check_dimensions(5, input=input)
        step = self.stride[1]
        seen = input if step == 1 else input[..., ::step, ::step]
        found = F.conv2d(
            seen.flatten(3),
            self.weight.squeeze(4),
            self.bias,
            padding=(self.kernel_size[0] // 2, 0),
            groups=self.groups,
        )
        return found.unflatten(3, seen.shape[3:])


class P3DUnit(nn.Module):
    """S, a convolution over space, and T, one over time, in place of a 3 x 3 x 3 one.

    Variant A is T(S(x)), B is S(x) + T(x), C is S(x) + T(S(x)). Inputs ``(batch, in_channels, time, h, w)``, outputs
    ``(batch, channels, time, h / stride, w / stride)``. Of c channels: 12 c^2 weights instead of 27 c^2.

    Args:
        in_channels, channels: of input and output.
        variant: "A", "B" or "C"; "2D" is S alone and "3D" the whole 3 x 3 x 3 convolution, to compare with.
        stride: of height and width.
        form: what follows the convolutions: "relu", BatchNorm and ReLU each, as published; "norm", BatchNorm each;
            "inner", BatchNorm and ReLU between S and T only, for a place where the network's own follow; "plain",
            nothing.
        bias: of the convolutions whose outputs are not normalised.

    Raises:
        ValueError: an unknown variant or form, a number below 1.

    Source: arXiv:1711.10305, section 3.2 and figure 3; BatchNorm and ReLU on each branch before the sum as in the
    published code. deviation: ReLU's gradient on T is 1 at 0, so that a T that starts at zero can learn.

    Example:
        >>> P3DUnit(4, 8, "C", stride=2)(torch.zeros(2, 4, 5, 6, 6)).shape
        torch.Size([2, 8, 5, 3, 3])
    """

    spatial: nn.Conv3d
    spatial_norm: nn.Module
    temporal: TemporalConv3d | None
    temporal_norm: nn.Module

    @checked
    def __init__(
        self,
        in_channels: int,
        channels: int,
        variant: Variant,
        *,
        stride: int = 1,
        form: Form = "relu",
        bias: bool = False,
    ) -> None:
        check_at_least(1, in_channels=in_channels, channels=channels, stride=stride)
        super().__init__()
        self.variant, self.form = variant, form
        time = 3 if variant == "3D" else 1
        two = variant in ("A", "B", "C")
        normed = form in ("relu", "norm")
        inner = form == "inner" and variant in ("A", "C")  # S is normalised, for it enters T
        self.spatial = nn.Conv3d(
            in_channels,
            channels,
            (time, 3, 3),
            (1, stride, stride),
            (time // 2, 1, 1),
            bias=bias and not normed and not inner,
        )
        self.spatial_norm = nn.BatchNorm3d(channels) if normed or inner else nn.Identity()
        before, step = (in_channels, stride) if variant == "B" else (channels, 1)
        self.temporal = TemporalConv3d(before, channels, stride=step, bias=bias and not normed) if two else None
        self.temporal_norm = nn.BatchNorm3d(channels) if two and normed else nn.Identity()
        self.spatial_relu, self.temporal_relu = form == "relu" or inner, form == "relu"
        _init_convolutions(self)

    @checked
    def forward(self, clips: Tensor) -> Tensor:
        check_dimensions(5, clips=clips)
        over_space = self.spatial_norm(self.spatial(clips))
        if self.spatial_relu:
            over_space = F.relu(over_space)
        if self.temporal is None:
            return over_space
        over_time = self.temporal_norm(self.temporal(clips if self.variant == "B" else over_space))
        if self.temporal_relu:
            over_time = over_time.clamp(min=0)
        return over_time if self.variant == "A" else over_space + over_time


class P3DBottleneck(nn.Module):
    """Residual block: a 1 x 1 x 1 convolution to fewer channels, a ``P3DUnit``, and one back; plus the input; ReLU.

    Inputs ``(batch, in_ch, time, h, w)``, outputs ``(batch, out_ch, time, h / stride, w / stride)``. The input goes
    through a 1 x 1 x 1 convolution where its shape is another.

    Args:
        in_ch, mid_ch, out_ch: channels of input, unit and output.
        variant: of the unit.
        stride: of height and width.
        stride_on: the convolution that has it: "reduce", the first, as published; "spatial", the unit, as the 2-D
            ResNets of torchvision and timm, for their weights.

    Raises:
        ValueError: an unknown variant, a number below 1.

    Source: arXiv:1711.10305, section 3.2 and figure 3.

    Example:
        >>> P3DBottleneck(16, 4, 32, "A", stride=2)(torch.zeros(1, 16, 3, 8, 8)).shape
        torch.Size([1, 32, 3, 4, 4])
    """

    @checked
    def __init__(
        self,
        in_ch: int,
        mid_ch: int,
        out_ch: int,
        variant: Variant,
        stride: int = 1,
        *,
        stride_on: Literal["reduce", "spatial"] = "reduce",
    ) -> None:
        check_at_least(1, in_ch=in_ch, mid_ch=mid_ch, out_ch=out_ch, stride=stride)
        super().__init__()
        first, second = (stride, 1) if stride_on == "reduce" else (1, stride)
        self.reduce, self.reduce_norm = _pointwise(in_ch, mid_ch, first)
        self.unit = P3DUnit(mid_ch, mid_ch, variant, stride=second)
        self.restore, self.restore_norm = _pointwise(mid_ch, out_ch)
        self.shortcut = _shortcut(in_ch, out_ch, stride)

    @checked
    def forward(self, clips: Tensor) -> Tensor:
        check_dimensions(5, clips=clips)
        inside = self.unit(F.relu(self.reduce_norm(self.reduce(clips))))
        return F.relu(self.restore_norm(self.restore(inside)) + self.shortcut(clips))


class P3DBasicBlock(nn.Module):
    """Residual block of two ``P3DUnit``; plus the input; ReLU. For small networks.

    Inputs ``(batch, in_ch, time, h, w)``, outputs ``(batch, out_ch, time, h / stride, w / stride)``.

    Args:
        in_ch, out_ch: channels of input and output.
        variant: of both units.
        stride: of height and width, on the first unit.

    Raises:
        ValueError: an unknown variant, a number below 1.

    deviation: the paper has bottlenecks only. This is the 2-D basic block with units in place of its convolutions; as
    there, no ReLU comes inside of the second one, whose outputs are added to the input.

    Example:
        >>> P3DBasicBlock(4, 8, "B", stride=2)(torch.zeros(1, 4, 3, 8, 8)).shape
        torch.Size([1, 8, 3, 4, 4])
    """

    @checked
    def __init__(self, in_ch: int, out_ch: int, variant: Variant, stride: int = 1) -> None:
        check_at_least(1, in_ch=in_ch, out_ch=out_ch, stride=stride)
        super().__init__()
        self.unit1 = P3DUnit(in_ch, out_ch, variant, stride=stride)
        self.unit2 = P3DUnit(out_ch, out_ch, variant, form="norm")
        self.shortcut = _shortcut(in_ch, out_ch, stride)

    @checked
    def forward(self, clips: Tensor) -> Tensor:
        check_dimensions(5, clips=clips)
        return F.relu(self.unit2(self.unit1(clips)) + self.shortcut(clips))


class P3DResNet(nn.Module):
    """Pseudo-3-D residual network from clips ``(batch, in_channels, time, h, w)`` to logits ``(batch, num_classes)``.

    A 1 x 7 x 7 convolution and max-pooling; a stage of blocks for each entry of ``layers``, whose units take the
    variants in turn along the depth; the mean over what is left of time and space; dropout; a linear layer. With
    ``temporal_pool``, time is halved by the first pooling and after each stage for as long as there are two frames.
    Where one is left, the blocks are ordinary 2-D ones: for 16 frames the fourth stage, as published.

    Args:
        layers: blocks of each stage; from the second stage on, each halves height and width.
        num_classes: number of outputs.
        in_channels: of the clips.
        width: channels of the stem and of the first stage's units, doubled by each stage.
        variants: of the blocks in turn: of "A", "B", "C"; ``["2D"]`` gives the network that looks at single frames, and
            ``["3D"]`` that of whole 3 x 3 x 3 convolutions.
        frames: length of the clips that it is made for; longer ones are taken, too.
        temporal_pool: whether time is pooled.
        stem_stride: of the first convolution, in height and width.
        stem_kernel: of the first convolution, in height and width, odd.
        stem_pool: whether max-pooling over (2, 3, 3) follows the first convolution, (1, 3, 3) without
            ``temporal_pool``.
        block: "bottleneck", four times as wide outside of the unit as within, or "basic".
        stride_on: of ``P3DBottleneck``.
        dropout: before the linear layer.

    Raises:
        ValueError: an unknown variant, no layers, a number out of range; in the forward pass, no clips, or clips of
            another number of channels or of too few frames for the pooling.
        TypeError: in the forward pass, clips of integers.

    Source: arXiv:1711.10305, section 3.3 and the network definition that was published with it.

    Example:
        >>> net = P3DResNet((1, 1), 5, width=8, frames=8)
        >>> net(torch.rand(2, 3, 8, 32, 32)).shape
        torch.Size([2, 5])
    """

    @checked
    def __init__(
        self,
        layers: Sequence[int] = (3, 4, 6, 3),
        num_classes: int = 101,
        *,
        in_channels: int = 3,
        width: int = 64,
        variants: str | Sequence[str] = "ABC",
        frames: int = 16,
        temporal_pool: bool = True,
        stem_stride: int = 2,
        stem_kernel: int = 7,
        stem_pool: bool = True,
        block: Literal["bottleneck", "basic"] = "bottleneck",
        stride_on: Literal["reduce", "spatial"] = "reduce",
        dropout: float = 0.5,
    ) -> None:
        check_nonempty(layers=layers, variants=variants)
        check_at_least(1, layers=layers, num_classes=num_classes, in_channels=in_channels, width=width, frames=frames)
        check_at_least(1, stem_stride=stem_stride, stem_kernel=stem_kernel)
        check_between(0, 1, dropout=dropout)
        for each in variants:
            check_one_of(P3D_VARIANTS, variants=each)
        if stem_kernel % 2 == 0:
            raise ValueError(f"stem_kernel must be odd, got {stem_kernel}")
        super().__init__()
        self.in_channels, self.least_frames = in_channels, 1
        self.stem = nn.Conv3d(
            in_channels,
            width,
            (1, stem_kernel, stem_kernel),
            (1, stem_stride, stem_stride),
            (0, stem_kernel // 2, stem_kernel // 2),
            bias=False,
        )
        self.stem_norm = nn.BatchNorm3d(width)
        left = frames

        def halved() -> int:
            """The factor of the next pooling of time; notes what it asks of a clip."""
            nonlocal left
            factor = 2 if temporal_pool and left > 1 else 1
            left, self.least_frames = left // factor, self.least_frames * factor
            return factor

        factor = halved() if stem_pool else 1
        self.stem_pool: nn.Module = nn.Identity()
        if stem_pool:
            self.stem_pool = nn.MaxPool3d((factor, 3, 3), (factor, 2, 2), (0, 1, 1))
        turn, before = cycle(variants), width
        stages: list[nn.Module] = []
        for number, repeats in enumerate(layers):
            mid = width * 2**number
            after = 4 * mid if block == "bottleneck" else mid
            blocks: list[nn.Module] = []
            for repeat in range(repeats):
                stride = 2 if number > 0 and repeat == 0 else 1
                variant: Any = next(turn) if left > 1 else "2D"
                if block == "bottleneck":
                    blocks.append(P3DBottleneck(before, mid, after, variant, stride, stride_on=stride_on))
                else:
                    blocks.append(P3DBasicBlock(before, after, variant, stride))
                before = after
            if number < len(layers) - 1 and (factor := halved()) > 1:
                blocks.append(nn.MaxPool3d((factor, 1, 1)))
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(before, num_classes)
        _init_convolutions(self)

    @checked
    def forward(self, clips: Tensor) -> Tensor:
        check_dimensions(5, clips=clips)
        check_nonempty(clips=clips)
        if not clips.is_floating_point():
            raise TypeError(f"clips must be floating point, got {clips.dtype}: clips.float() / 255")
        if clips.shape[1] != self.in_channels:
            raise ValueError(f"clips must have {self.in_channels} channels, got shape {tuple(clips.shape)}")
        if clips.shape[2] < self.least_frames:
            raise ValueError(
                f"clips must have at least {self.least_frames} frames, which are pooled to one, got {clips.shape[2]}"
            )
        maps = self.stages(self.stem_pool(F.relu(self.stem_norm(self.stem(clips)))))
        return self.head(self.dropout(maps.mean((2, 3, 4))))


@checked
def p3d63(num_classes: int = 487, **options: Any) -> P3DResNet:
    """Returns the pseudo-3-D form of ResNet-50.

    Args:
        num_classes: outputs; 487 is the number of classes of Sports-1M.
        options: of ``P3DResNet``.

    Source: arXiv:1711.10305, section 3.3.

    Example:
        >>> p3d63(5, width=8).eval()(torch.zeros(1, 3, 16, 32, 32)).shape
        torch.Size([1, 5])
    """
    return P3DResNet((3, 4, 6, 3), num_classes, **options)


@checked
def p3d131(num_classes: int = 487, **options: Any) -> P3DResNet:
    """Returns the pseudo-3-D form of ResNet-101.

    Args:
        num_classes, options: as of ``p3d63``.

    Source: arXiv:1711.10305, section 3.3.

    Example:
        >>> p3d131(5, width=8).eval()(torch.zeros(1, 3, 16, 32, 32)).shape
        torch.Size([1, 5])
    """
    return P3DResNet((3, 4, 23, 3), num_classes, **options)


@checked
def p3d199(num_classes: int = 487, **options: Any) -> P3DResNet:
    """Returns the pseudo-3-D form of ResNet-152, the network of the paper's results on Sports-1M.

    Args:
        num_classes, options: as of ``p3d63``.

    Source: arXiv:1711.10305, section 3.3.

    Example:
        >>> p3d199(5, width=8).eval()(torch.zeros(1, 3, 16, 32, 32)).shape
        torch.Size([1, 5])
    """
    return P3DResNet((3, 8, 36, 3), num_classes, **options)


@checked
def factorize_conv3d(
    module: nn.Module, variant: Literal["A", "B", "C"] = "A", *, form: Form = "inner", seed: int = 0
) -> nn.Module:
    """Returns a module in which every 3 x 3 x 3 convolution is a new ``P3DUnit`` of the same shape; the rest is shared.

    Replaced are dense ``nn.Conv3d`` of kernel (3, 3, 3), padding 1 and stride 1 in time; all others stay. The module is
    changed in place, but for one that is itself such a convolution. The units begin with random weights: a trained
    3 x 3 x 3 kernel has no exact factors in general; they learn, also where the convolution was frozen. They lie where
    the convolutions lay (device, data type, mode). One that is used twice becomes one unit that is used twice.

    Args:
        module: the user's own 3-D network.
        variant: of all units.
        form: of all units; by default BatchNorm and ReLU come between S and T only, for the network's own follow.
        seed: of the new weights.

    Raises:
        ValueError: no such convolution.

    Source: arXiv:1711.10305, section 3.2.

    Example:
        >>> net = nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), nn.ReLU())
        >>> factorize_conv3d(net, "B")[0].temporal.weight.shape
        torch.Size([8, 3, 3, 1, 1])
    """
    check_between(0, 2**63 - 1, seed=seed)
    found = {name: part for name, part in module.named_modules(remove_duplicate=False) if _is_full(part)}
    if not found:
        raise ValueError(
            "module must hold an nn.Conv3d of kernel (3, 3, 3), padding 1, stride 1 in time and one group, got none"
        )
    units: dict[int, P3DUnit] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, part in found.items():
            if id(part) not in units:
                bias = part.bias is not None
                unit = P3DUnit(
                    part.in_channels, part.out_channels, variant, stride=part.stride[1], form=form, bias=bias
                )
                units[id(part)] = unit.to(part.weight.device, part.weight.dtype).train(part.training)
            if not name:
                return units[id(part)]
            module.set_submodule(name, units[id(part)])
    return module


def _is_full(part: nn.Module) -> bool:
    return (
        isinstance(part, nn.Conv3d)
        and part.kernel_size == (3, 3, 3)
        and part.padding in (1, (1, 1, 1), "same")
        and part.dilation == (1, 1, 1)
        and part.stride[0] == 1
        and part.stride[1] == part.stride[2]
        and part.groups == 1
        and part.padding_mode == "zeros"
    )


def _pointwise(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Conv3d, nn.BatchNorm3d]:
    return nn.Conv3d(inputs, outputs, 1, (1, stride, stride), bias=False), nn.BatchNorm3d(outputs)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Identity() if inputs == outputs and stride == 1 else nn.Sequential(*_pointwise(inputs, outputs, stride))


def _init_convolutions(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv3d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
