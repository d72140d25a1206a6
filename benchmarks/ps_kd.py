"""Cost of PS-KD targets in training: plain cross-entropy, ours, and a table that goes through numpy each step.

Limit: what the targets add to a plain step of the small network here is below 2 % of it.

python benchmarks/ps_kd.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.losses import soft_cross_entropy
from heldout.nn import small_cnn
from heldout.train import ProgressiveSelfDistillation

EXAMPLES, CLASSES, BATCH, EPOCHS = 50_000, 100, 64, 10
LIMIT = 0.02


def training_step(model: nn.Module, loss_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], None]:
    """Returns one SGD step on a random batch of a CIFAR-100-sized problem."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, 3, 32, 32, generator=generator)
    y = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def step() -> None:
        index = torch.randint(0, EXAMPLES, (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss_of(model(x), y, index).backward()
        optimizer.step()

    return step


def cross_entropy() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda logits, y, index: F.cross_entropy(logits, y)


def ours() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    distillation = ProgressiveSelfDistillation(EXAMPLES, CLASSES, EPOCHS)

    def loss(logits: Tensor, y: Tensor, index: Tensor) -> Tensor:
        targets = distillation.targets(index, y, 2)
        distillation.update(index, logits)
        return soft_cross_entropy(logits, targets)

    return loss


def through_numpy() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    table, onehot, alpha = np.zeros((EXAMPLES, CLASSES), dtype=np.float32), np.eye(CLASSES, dtype=np.float32), 0.16

    def loss(logits: Tensor, y: Tensor, index: Tensor) -> Tensor:
        rows = index.numpy()
        soft = (1 - alpha) * onehot[y.numpy()] + alpha * table[rows]
        targets = torch.from_numpy(soft)
        for row, probabilities in zip(rows, logits.softmax(1).detach().cpu().numpy()):
            table[row] = probabilities
        return soft_cross_entropy(logits, targets)

    return loss


def main() -> int:
    losses = {"cross-entropy": cross_entropy(), "PS-KD (ours)": ours(), "PS-KD through numpy": through_numpy()}
    steps = {name: training_step(small_cnn(3, CLASSES), loss) for name, loss in losses.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(60):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    plain = times["cross-entropy"]
    print(f"batch {BATCH}, {EXAMPLES:,} examples, {CLASSES} classes, {torch.get_num_threads()} threads")
    for name, seconds in times.items():
        ratio = statistics.median(s / p for s, p in zip(seconds, plain))
        print(f"  {name:22s} {1e3 * statistics.median(seconds):8.2f} ms per step   {ratio:6.3f} x")

    logits, y, index = torch.randn(BATCH, CLASSES), torch.randint(0, CLASSES, (BATCH,)), torch.arange(BATCH)
    print("forward pass of the loss alone, and what it adds to a plain step")
    alone: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(300):
        for name, loss in losses.items():
            start = time.perf_counter()
            loss(logits, y, index)
            alone[name].append(time.perf_counter() - start)
    shares = {}
    for name, seconds in alone.items():
        added = statistics.median(seconds) - statistics.median(alone["cross-entropy"])
        shares[name] = added / statistics.median(plain)
        print(f"  {name:22s} {1e6 * statistics.median(seconds):8.0f} us   {shares[name]:8.2%}")
    return int(shares["PS-KD (ours)"] > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
