"""Cost of a step of architecture search: ours beside DARTS written naively, on the same network and batches.

The naive one sums ``weight * op(x)`` over all operations, multiplies the zeros of "none" too, and for the second order
copies the whole model, moves the copy's weights, and moves the model's own weights there and back for the difference.
Limits: our steps, first and second order, take at most 1.05 times as long, and both find the same gradient.

python benchmarks/sharpdarts.py
"""

from __future__ import annotations

import copy
import functools
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.nn import MixedOp, SearchNetwork, architecture_parameters
from heldout.train import DifferentiableSearch

LIMIT, ROUNDS, BATCH, LR = 1.05, 5, 16, 0.025
Examples = tuple[Tensor, Tensor]


def naive_forward(self: MixedOp, inputs: Tensor) -> Tensor:
    weights = F.softmax(self.alphas, dim=-1)
    return sum(w * op(inputs) for w, op in zip(weights, self.ops, strict=True))  # type: ignore[return-value]


class Naive:
    """Algorithm 1 of arXiv:1806.09055 with deep copies."""

    def __init__(self, model: nn.Module, unrolled: bool) -> None:
        self.model, self.unrolled = model, unrolled
        for module in model.modules():
            if isinstance(module, MixedOp):
                module.forward = functools.partial(naive_forward, module)  # type: ignore[method-assign]
        self.arch, self.weights = parts_of(model)
        self.arch_optimizer = torch.optim.Adam(self.arch, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
        self.optimizer = torch.optim.SGD(self.weights, lr=LR, momentum=0.9, weight_decay=3e-4)

    def loss(self, model: nn.Module, batch: Examples) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def arch_gradient(self, train: Examples, val: Examples) -> list[Tensor]:
        if not self.unrolled:
            return list(torch.autograd.grad(self.loss(self.model, val), self.arch))
        gradients = torch.autograd.grad(self.loss(self.model, train), self.weights)
        ahead = self._copied()
        arch, weights = parts_of(ahead)
        with torch.no_grad():
            for p, gradient in zip(weights, gradients, strict=True):
                p -= LR * gradient
        self.loss(ahead, val).backward()
        direct, vector = [p.grad for p in arch], [p.grad for p in weights]
        eps = 0.01 / torch.cat([v.flatten() for v in vector]).norm()  # type: ignore[union-attr]
        ends = []
        for sign in (1, -2):
            self._move(vector, sign * eps)
            ends.append(torch.autograd.grad(self.loss(self.model, train), self.arch))
        self._move(vector, eps)
        return [d - LR * (a - b) / (2 * eps) for d, a, b in zip(direct, *ends, strict=True)]  # type: ignore[operator]

    def step(self, train: Examples, val: Examples) -> None:
        for p, gradient in zip(self.arch, self.arch_gradient(train, val), strict=True):
            p.grad = gradient
        self.arch_optimizer.step()
        self.optimizer.zero_grad()
        self.loss(self.model, train).backward()
        nn.utils.clip_grad_norm_(self.weights, 5.0)
        self.optimizer.step()

    def _copied(self) -> nn.Module:
        copied = copy.deepcopy(self.model)
        for module in copied.modules():
            if isinstance(module, MixedOp):
                module.forward = functools.partial(naive_forward, module)  # type: ignore[method-assign]
        copied.zero_grad()
        return copied

    def _move(self, vector: list[Tensor | None], by: Tensor | float) -> None:
        with torch.no_grad():
            for p, v in zip(self.weights, vector, strict=True):
                p += by * v  # type: ignore[operator]


def parts_of(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    arch = architecture_parameters(model)
    known = {id(p) for p in arch}
    return arch, [p for p in model.parameters() if id(p) not in known]


def network() -> SearchNetwork:
    torch.manual_seed(0)
    return SearchNetwork(10, in_channels=1, channels=4, layers=3, nodes=2, weighting="scalar")


def examples(seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(BATCH, 1, 16, 16, generator=generator)
    return images, torch.randint(0, 10, (BATCH,), generator=generator)


def main() -> int:
    torch.set_num_threads(1)
    train, val, failed = examples(0), examples(1), False
    print(
        f"DARTS cells, 8 operations an edge, batch {BATCH} of 16 x 16, processor time of one thread, best of {ROUNDS}"
    )
    for unrolled in (False, True):
        sgd = functools.partial(torch.optim.SGD, lr=LR, momentum=0.9, weight_decay=3e-4)
        ours = DifferentiableSearch(network(), [train], [val], unrolled=unrolled, optimizer=sgd)
        naive = Naive(network(), unrolled)
        pairs = zip(ours.arch_gradient(train, val)[0], naive.arch_gradient(train, val), strict=True)
        difference = max(((a - b).abs().max() / b.abs().max().clamp_min(1e-3)).item() for a, b in pairs)
        times: dict[str, list[float]] = {"ours": [], "naive": []}
        for _ in range(ROUNDS):
            for name, step in (("ours", ours.step), ("naive", naive.step)):
                start = time.process_time()
                step(train, val)
                times[name].append(time.process_time() - start)
        ratio = min(times["ours"]) / min(times["naive"])
        print(
            f"  {'second' if unrolled else 'first'} order: ours {1e3 * min(times['ours']):7.1f} ms, naive "
            f"{1e3 * min(times['naive']):7.1f} ms, ratio {ratio:.3f} (limit {LIMIT}), gradients {difference:.0e} apart"
        )
        failed |= ratio > LIMIT or difference > 0.02
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
