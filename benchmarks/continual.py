"""The Fisher information of 10,000 examples against a loop over them, and what strategies add to a step.

    OMP_NUM_THREADS=1 python benchmarks/continual.py

A loop over single examples is how the Fisher information is got where there are no per-example gradients: squares of
the gradients of larger batches are another, smaller quantity. Exits 1 where the diagonal is not 5 times as fast on
a perceptron and 3 times on convolutions (whose own forward and backward pass is a fifth of the loop's time), differs
from the loop's, or a step under EWC takes over 1.5 times a plain one.
"""

import sys

import torch
import torch.nn.functional as F
from timing import best
from torch import nn

from heldout.measure import fisher_diagonal
from heldout.nn import mlp, small_cnn
from heldout.train import EWC, ContinualStrategy, Replay, RWalk, SynapticIntelligence

EXAMPLES, LOOPED = 10_000, 200
FASTER, SLOWER = (5.0, 3.0), 1.5


def by_loop(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    model.eval()
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in range(len(x)):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        for name, p in model.named_parameters():
            total[name] += p.grad.square()
    model.zero_grad()
    return {name: value / len(x) for name, value in total.items()}


def step_seconds(strategy: ContinualStrategy, make: object, x: torch.Tensor, y: torch.Tensor, steps: int = 30) -> float:
    model = make()
    strategy.begin_task(model, (x[:500], y[:500]))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def train() -> None:
        with strategy.attach(optimizer, model):
            for step in range(steps):
                inputs, targets = x[step * 32 : step * 32 + 32], y[step * 32 : step * 32 + 32]
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()

    train()
    strategy.end_task(model, (x[:500], y[:500]))
    strategy.begin_task(model, (x[:500], y[:500]))
    return best(train, 7) / steps


def main() -> int:
    torch.manual_seed(0)
    missed = 0
    x, y = torch.randn(EXAMPLES, 1, 16, 16), torch.randint(0, 10, (EXAMPLES,))
    models = {
        "perceptron 256-256-128-10": lambda: mlp(256, 10),
        "convolutions 16-32-32": lambda: small_cnn(in_channels=1, num_classes=10, widths=(16, 32, 32)),
    }
    for (name, make), faster in zip(models.items(), FASTER, strict=True):
        model = make()
        ours = best(lambda model=model: fisher_diagonal(model, (x, y)), 2)
        loop = best(lambda model=model: by_loop(model, x[:LOOPED], y[:LOOPED]), 3) * EXAMPLES / LOOPED
        found, wanted = fisher_diagonal(model, (x[:LOOPED], y[:LOOPED])), by_loop(model, x[:LOOPED], y[:LOOPED])
        away = max(float((found[n] - wanted[n]).norm() / wanted[n].norm()) for n in wanted)
        print(f"{name}: Fisher of {EXAMPLES} examples {ours:.2f} s, a loop {loop:.2f} s, {loop / ours:.1f} x as fast")
        missed += loop / ours < faster or away > 1e-4
        plain = step_seconds(ContinualStrategy(), make, x, y)
        for strategy in (EWC(1.0), SynapticIntelligence(0.1), RWalk(0.1), Replay(200)):
            ratio = step_seconds(strategy, make, x, y) / plain
            print(f"  a step of {strategy.name}: {ratio:.2f} x a plain one of {1000 * plain:.2f} ms")
            missed += strategy.name == "ewc" and ratio > SLOWER
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
