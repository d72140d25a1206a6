"""RASP-L on tensors against loops over places, at 100 tokens: one head of attention.

The loop is what the published NumPy interpreter does: the predicate is called for each pair of places, whose answers
fill a matrix, and the selected values of each place are gone through one by one. Both get the same sequences, one and a
batch of 64 of them, must agree, and are timed in turns by processor time on one thread. (A loop over Python lists in
place of arrays is ten times as fast as this one.)

Limit: 50 x the loop for the batch, for each reduction; one sequence, where calls cost most, is shown beside.

    python benchmarks/length_generalization.py [--quick]
"""

from __future__ import annotations

import argparse
import operator
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heldout.measure import rasp

LIMIT, TOKENS, BATCH = 50.0, 100, 64
REDUCE: dict[str, Callable] = {"max": max, "min": min}


def loop(keys: NDArray, queries: NDArray, values: NDArray, reduction: str) -> NDArray:
    n = len(keys)
    selected = np.zeros((n, n), dtype=bool)
    for i in range(n):
        for j in range(i + 1):
            selected[i, j] = operator.eq(keys[j], queries[i])
    found = np.zeros(n, dtype=np.int64)
    for i in range(n):
        chosen = [values[j] for j in range(i + 1) if selected[i, j]]
        if chosen:
            found[i] = int(sum(chosen) / len(chosen)) if reduction == "mean" else REDUCE[reduction](chosen)
    return found


def seconds_of(call: Callable[[], Any], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - start) / repeats


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    rounds = 3 if parser.parse_args().quick else 7
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    print(f"{TOKENS} tokens; milliseconds a sequence")
    print(f"{'reduction':>9}  {'sequences':>9}  {'loop':>7}  {'rasp':>8}  {'ratio':>6}  limit")
    within = True
    for count in (1, BATCH):
        keys, queries, values = (torch.randint(0, 20, (count, TOKENS), generator=generator) for _ in range(3))
        rows = [part.numpy() for part in (keys, queries, values)]
        for reduction in ("mean", "max", "min"):
            fast = lambda r=reduction: rasp.kqv(keys, queries, values, torch.eq, 0, r)  # noqa: B023, E731
            slow = lambda r=reduction: [loop(*row, r) for row in zip(*rows, strict=True)]  # noqa: B023, E731
            if not np.array_equal(fast(), np.stack(slow())):
                print(f"{reduction}: the two differ")
                return 1
            best = [float("inf")] * 2
            for _ in range(rounds):
                seconds = seconds_of(slow, max(1, 8 // count)), seconds_of(fast, 512 // count)
                best = [min(pair) for pair in zip(best, seconds, strict=True)]
            ratio = best[0] / best[1]
            judged = count == BATCH
            within &= ratio >= LIMIT or not judged
            slow_ms, fast_ms = (1e3 * each / count for each in best)
            limit = f"{LIMIT:g}" if judged else "-"
            print(f"{reduction:>9}  {count:>9}  {slow_ms:>7.2f}  {fast_ms:>8.4f}  {ratio:>6.1f}  {limit}")
    return 0 if within else 1


if __name__ == "__main__":
    raise SystemExit(main())
