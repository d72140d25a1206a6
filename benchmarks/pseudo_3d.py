"""Speed of P3D units: against a (2+1)-D unit of plain nn.Conv3d, and against whole 3 x 3 x 3 convolutions.

Also measured: what ``TemporalConv3d`` saves by running as a 2-D convolution over (time, pixels), and whether the same
could be had for the convolution over space as a 2-D one over all frames (with this version of oneDNN: no, so that it is
a plain nn.Conv3d). Limits, of the sum over the sizes below, forward and backward on one thread: P3D-A takes at most
1.05 times the plain unit and 0.8 times the whole convolution.

python benchmarks/pseudo_3d.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.nn import P3DUnit, TemporalConv3d

SIZES = ((16, 8, 16), (32, 8, 8), (64, 4, 7))  # channels, frames, height and width
BATCH, ROUNDS = 8, 10
LIMIT_PLAIN, LIMIT_FULL = 1.05, 0.8


def plain_unit(channels: int) -> nn.Module:
    """Convolution over space, BatchNorm, ReLU; over time, BatchNorm, ReLU: of torch's layers."""
    return nn.Sequential(
        nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1), bias=False),
        nn.BatchNorm3d(channels),
        nn.ReLU(),
        nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), bias=False),
        nn.BatchNorm3d(channels),
        nn.ReLU(),
    )


class OverFrames(nn.Conv3d):
    """A convolution over space alone as a 2-D one over all frames of all clips."""

    def forward(self, input: Tensor) -> Tensor:
        found = F.conv2d(input.transpose(1, 2).flatten(0, 1), self.weight.squeeze(2), padding=self.padding[1:])
        return found.unflatten(0, (len(input), -1)).transpose(1, 2)


def seconds(ways: dict[str, nn.Module], clips: Tensor) -> dict[str, float]:
    """The least processor time of a forward and backward pass; the ways take turns."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, module in ways.items():
            inputs = clips.clone().requires_grad_()
            start = time.process_time()
            module(inputs).sum().backward()
            best[name] = min(best[name], time.process_time() - start)
    return best


def main() -> int:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    makers: dict[str, Callable[[int], nn.Module]] = {
        "P3D-A (ours)": lambda c: P3DUnit(c, c, "A"),
        "plain (2+1)-D": plain_unit,
        "whole 3 x 3 x 3": lambda c: P3DUnit(c, c, "3D"),
        "over time (ours)": lambda c: TemporalConv3d(c, c),
        "over time, nn.Conv3d": lambda c: nn.Conv3d(c, c, (3, 1, 1), padding=(1, 0, 0), bias=False),
        "over space, nn.Conv3d": lambda c: nn.Conv3d(c, c, (1, 3, 3), padding=(0, 1, 1), bias=False),
        "over space, as frames": lambda c: OverFrames(c, c, (1, 3, 3), padding=(0, 1, 1), bias=False),
    }
    total = dict.fromkeys(makers, 0.0)
    for channels, frames, side in SIZES:
        clips = torch.randn(BATCH, channels, frames, side, side)
        found = seconds({name: make(channels) for name, make in makers.items()}, clips)
        print(f"{BATCH} clips of {channels} x {frames} x {side} x {side}, forward and backward, one thread")
        for name, value in found.items():
            print(f"  {name:24s} {1e3 * value:8.2f} ms")
            total[name] += value
    by_plain = total["P3D-A (ours)"] / total["plain (2+1)-D"]
    by_full = total["P3D-A (ours)"] / total["whole 3 x 3 x 3"]
    print(f"P3D-A by the plain unit: {by_plain:.2f} (at most {LIMIT_PLAIN})")
    print(f"P3D-A by the whole convolution: {by_full:.2f} (at most {LIMIT_FULL})")
    print(f"over time, by nn.Conv3d: {total['over time (ours)'] / total['over time, nn.Conv3d']:.2f}")
    print(f"over space as frames, by nn.Conv3d: {total['over space, as frames'] / total['over space, nn.Conv3d']:.2f}")
    return int(by_plain > LIMIT_PLAIN or by_full > LIMIT_FULL)


if __name__ == "__main__":
    raise SystemExit(main())
