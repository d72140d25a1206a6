"""Cost of weak-to-strong losses in training: plain soft cross-entropy, ours, and the published code's formula.

Limit: the forward and backward pass of the strong model, that is, a step with the confidence loss takes at most 1.1
times a plain step, for two classes and for ten.

python benchmarks/weak_to_strong.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.losses import ConfidenceLoss, ProductLoss, soft_cross_entropy
from heldout.nn import small_cnn

BATCH = 64
LIMIT = 1.1
Loss = Callable[[Tensor, Tensor], Tensor]


def published(logits: Tensor, weak: Tensor) -> Tensor:
    """Two classes, after the warm-up: the threshold is a quantile."""
    share = logits.softmax(1)[:, 0]
    first = (share >= torch.quantile(share, weak[:, 1].mean())).float()
    target = 0.5 * weak + 0.5 * torch.stack([first, 1 - first], 1).detach()
    return F.cross_entropy(logits, target)


def training_step(model: nn.Module, loss: Loss, classes: int) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, 3, 32, 32, generator=generator)
    weak = torch.randn(BATCH, classes, generator=generator).softmax(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        loss(model(x), weak).backward()
        optimizer.step()

    return step


def main() -> int:
    torch.set_num_threads(1)
    confidence = ConfidenceLoss(0.5)
    slow = []
    for classes in (2, 10):
        losses: dict[str, Loss] = {"soft cross-entropy": soft_cross_entropy}
        losses["confidence (ours)"] = lambda logits, weak: confidence(logits, weak, 1.0)
        losses["product (ours)"] = ProductLoss()
        if classes == 2:
            losses["confidence (published formula)"] = published
        steps = {name: training_step(small_cnn(3, classes), loss, classes) for name, loss in losses.items()}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(15):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - start)
        plain = times["soft cross-entropy"]
        for name, seconds in times.items():
            ratio = statistics.median(a / b for a, b in zip(seconds, plain, strict=True))
            print(f"{classes:2d} classes  {name:32s} {1e3 * statistics.median(seconds):7.2f} ms  {ratio:.3f}")
            if name.startswith("confidence (ours") and ratio > LIMIT:
                slow.append(f"{classes} classes: {ratio:.3f}")
    print("beyond the limit: " + ", ".join(slow) if slow else f"within the limit of {LIMIT}")
    return 1 if slow else 0


if __name__ == "__main__":
    raise SystemExit(main())
