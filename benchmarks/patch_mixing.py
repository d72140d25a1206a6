"""Cost of training on mixed batches: plain steps, PatchMix, CutMix and Mixup, and a CutMix written as is usual.

The usual one draws one box a batch, pastes the flipped batch into it, builds two one-hot matrices with smoothing and
blends them. Limits: a step on a batch of 32 images of 3 x 64 x 64 with PatchMix takes at most 1.1 times the plain step
of the small network here, and so does one with our CutMix; each of the two transforms alone takes at most 0.1 of it.

python benchmarks/patch_mixing.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.data import CutMix, Mixup, PatchMix
from heldout.losses import soft_cross_entropy
from heldout.nn import small_cnn

BATCH, SIZE, CLASSES, SMOOTHING = 32, 64, 100, 0.1
LIMIT = 1.1
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def usual_cutmix() -> Mix:
    """One box a batch from the flipped batch; targets from two one-hot matrices. From arXiv:1905.04899."""
    random = np.random.default_rng(0)

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        height, width = images.shape[-2:]
        side = np.sqrt(1 - random.beta(1.0, 1.0))
        tall, wide = int(height * side), int(width * side)
        y, x = random.integers(0, height), random.integers(0, width)
        top, bottom = np.clip([y - tall // 2, y + tall // 2], 0, height)
        left, right = np.clip([x - wide // 2, x + wide // 2], 0, width)
        kept = 1 - (bottom - top) * (right - left) / (height * width)
        images = images.clone()
        images[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
        low, high = SMOOTHING / CLASSES, 1 - SMOOTHING + SMOOTHING / CLASSES
        own = torch.full((len(labels), CLASSES), low).scatter_(1, labels.view(-1, 1), high)
        other = torch.full((len(labels), CLASSES), low).scatter_(1, labels.flip(0).view(-1, 1), high)
        return images, own * kept + other * (1 - kept)

    return mix


def ours(mixing: Callable[..., tuple[Tensor, Tensor]]) -> Mix:
    generator = torch.Generator().manual_seed(0)
    return lambda images, labels: mixing(images, labels, CLASSES, generator=generator)


def main() -> int:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, 3, SIZE, SIZE, generator=generator)
    labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    ways: dict[str, Mix | None] = {
        "plain": None,
        "PatchMix, 8 x 8 (ours)": ours(PatchMix(grid=8)),
        "CutMix (ours)": ours(CutMix(label_smoothing=SMOOTHING)),
        "Mixup (ours)": ours(Mixup(label_smoothing=SMOOTHING)),
        "CutMix as is usual": usual_cutmix(),
    }
    model = small_cnn(3, CLASSES, (32, 64, 64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(mix: Mix | None) -> None:
        optimizer.zero_grad()
        if mix is None:
            F.cross_entropy(model(images), labels, label_smoothing=SMOOTHING).backward()
        else:
            mixed, targets = mix(images, labels)
            soft_cross_entropy(model(mixed), targets).backward()
        optimizer.step()

    steps, alone = _times(ways, step, 20), _times({n: m for n, m in ways.items() if m}, _alone(images, labels), 100)
    plain = steps["plain"]
    print(f"batch {BATCH} of 3 x {SIZE} x {SIZE}, {CLASSES} classes, processor time of one thread")
    failed = False
    for name in ways:
        ratio = min(steps[name]) / min(plain)  # other programs only ever add time
        line = f"  {name:24s} {1e3 * min(steps[name]):8.2f} ms per step   {ratio:6.3f} x"
        if name in alone:
            share = statistics.median(alone[name]) / statistics.median(plain)
            line += f"   alone {1e3 * statistics.median(alone[name]):7.3f} ms, {share:7.2%} of a plain step"
            if name.startswith(("PatchMix", "CutMix (ours)")):
                failed |= ratio > LIMIT or share > LIMIT - 1
        print(line)
    usual = statistics.median(alone["CutMix as is usual"])
    print(f"  our CutMix takes {statistics.median(alone['CutMix (ours)']) / usual:.2f} x the time of the usual one")
    return int(failed)


def _alone(images: Tensor, labels: Tensor) -> Callable[[Mix | None], None]:
    def run(mix: Mix | None) -> None:
        assert mix is not None
        mix(images, labels)

    return run


def _times(ways: dict[str, Mix | None], run: Callable[[Mix | None], None], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, mix in ways.items():
            start = time.process_time()
            run(mix)
            times[name].append(time.process_time() - start)
    return times


if __name__ == "__main__":
    raise SystemExit(main())
