"""The predictor that knows its urns by heart, for every position of a batch, against a loop over positions.

``TaskMixturePredictor`` is two products of matrices and a softmax over the tasks. The loop goes over sequences and
positions, counts what stands before each and weighs all tasks by one vector operation, as the equation is written. Both
work in float64 on one thread, are timed in turns by processor time, and must agree.

Limits: 20 x the loop at 16 tasks, 4 x at 1,024, where both spend their time in the exponentials of all tasks.

    python benchmarks/icl_strategies.py [--quick]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from heldout.measure import TaskMixturePredictor
from heldout.tasks import urns

LIMITS = {16: 20.0, 1024: 4.0}


def loop(tasks: Tensor, tokens: Tensor) -> Tensor:
    found = torch.empty(*tokens.shape, tasks.shape[1], dtype=torch.float64)
    log_tasks = tasks.log()
    for i, row in enumerate(tokens):
        for t in range(len(row)):
            counts = row[:t].bincount(minlength=tasks.shape[1]).double()
            found[i, t] = (log_tasks * counts).sum(1).softmax(0) @ tasks
    return found


def seconds_of(call: Callable[..., Tensor], *arguments: Tensor) -> float:
    start = time.process_time()
    call(*arguments)
    return time.process_time() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    repeats = 2 if parser.parse_args().quick else 5
    torch.set_num_threads(1)
    print("64 sequences of 32 draws, 8 categories")
    print(f"{'tasks':>5}  {'loop, ms':>8}  {'predictor, ms':>13}  {'ratio':>6}  limit")
    within = True
    for count, limit in LIMITS.items():
        world = urns(8, count, 32)
        tokens = world.sample(64)
        predictor = TaskMixturePredictor(world.tasks)
        torch.testing.assert_close(predictor.predict(tokens), loop(world.tasks, tokens))
        best = [float("inf")] * 2
        for _ in range(repeats):
            seconds = seconds_of(loop, world.tasks, tokens), seconds_of(predictor.predict, tokens)
            best = [min(pair) for pair in zip(best, seconds, strict=True)]
        ratio = best[0] / best[1]
        within &= ratio >= limit
        print(f"{count:>5}  {1e3 * best[0]:>8.1f}  {1e3 * best[1]:>13.2f}  {ratio:>6.1f}  {limit:g}")
    return 0 if within else 1


if __name__ == "__main__":
    raise SystemExit(main())
