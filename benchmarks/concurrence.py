"""Agreement of benchmarks beside benchbench and scipy, on the same tables of scores.

benchbench (Zhang and Hardt, arXiv:2405.01719) tells how diverse the tasks of a benchmark are: one less Kendall's W of
their rankings, after Kendall's tau and the largest change of rank of every two tasks. W follows from the mean of
Spearman's correlations r over pairs of m tasks, (1 + (m - 1) r) / m, and the taus are those of ``concurrence_matrix``
with means over seeds. Beside it, the bootstrap of the crossed pairing of two benchmarks, where scipy's kendalltau gets
the vector of all pairs of seeds of each resample. Values must agree to 1e-9.

Limits: at most the time of benchbench, and a fifth of that of a loop over scipy. Processor time, one thread. benchbench
lives in a folder of its own, and is left out, and said to be, where none is named:
    pip install --no-deps --target peer benchbench==1.0.1 zarth_utils==1.0
    python benchmarks/concurrence.py --peer peer
(IBM's benchbench, another program of that name, is in no registry.)
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from heldout.measure import concurrence, concurrence_matrix

TASKS, MODELS, RESAMPLES, SEEDS = 40, 60, 999, 3
LIMIT, LIMIT_SCIPY, TOLERANCE = 1.0, 0.2, 1e-9


def best_of(rounds: int, function: Callable[[], Any]) -> tuple[float, Any]:
    times = []
    for _ in range(rounds):
        started = time.process_time()
        value = function()
        times.append(time.process_time() - started)
    return min(times), value


def verdict(name: str, ours: float, theirs: float, difference: float, limit: float) -> bool:
    print(
        f"{name}: heldout {1e3 * ours:.0f} ms, peer {1e3 * theirs:.0f} ms, ratio {ours / theirs:.3f} (limit {limit:g}),"
        f" largest difference {difference:.1e}"
    )
    return ours / theirs <= limit and difference <= TOLERANCE


def tables() -> bool:
    try:
        from benchbench.measures.ordinal import get_diversity
        from benchbench.utils.metric import get_rank_diff
    except ImportError as error:
        print(f"benchbench is not there ({error}): left out; pip install --no-deps --target peer benchbench==1.0.1")
        return True
    rng = np.random.default_rng(0)
    skills = rng.standard_normal((MODELS, 3)) @ rng.standard_normal((3, TASKS)) + rng.standard_normal((MODELS, TASKS))
    frame = pd.DataFrame(skills, columns=[f"task {i}" for i in range(TASKS)])
    rows = frame.rename_axis("model").melt(var_name="benchmark", value_name="score", ignore_index=False).reset_index()
    rows["seed"] = 0

    def ours() -> tuple[np.ndarray, float]:
        pairs = np.triu_indices(TASKS, 1)
        taus = concurrence_matrix(rows, "kendall", "mean", resamples=0).values
        ranks = concurrence_matrix(rows, "spearman", "mean", resamples=0).values
        return taus[pairs], (1 + (TASKS - 1) * float(ranks[pairs].mean())) / TASKS

    seconds, (taus, agreement) = best_of(5, ours)
    peer_seconds, (diversity, _) = best_of(3, lambda: get_diversity(frame, list(frame.columns)))
    ranked = (-frame).rank().to_numpy().T
    peers = np.array([1 - 2 * get_rank_diff(ranked[i], ranked[j])[0] for i, j in zip(*np.triu_indices(TASKS, 1))])
    difference = max(abs(agreement - (1 - diversity)), float(np.abs(taus - peers).max()))
    return verdict(f"{TASKS} tasks of {MODELS} models, benchbench", seconds, peer_seconds, difference, LIMIT)


def bootstrap() -> bool:
    rng = np.random.default_rng(1)
    a, b = (rng.random((8, 1)) + 0.1 * rng.standard_normal((8, SEEDS)) for _ in range(2))
    crossed = np.repeat(a, SEEDS, axis=1), np.tile(b, (1, SEEDS))

    def loop() -> float:
        draws = np.random.default_rng(0)
        for _ in range(RESAMPLES):
            models = draws.integers(0, len(a), len(a))
            first, second = (side[models[:, None], draws.integers(0, SEEDS, (len(a), SEEDS))] for side in (a, b))
            kendalltau(np.repeat(first, SEEDS, axis=1).ravel(), np.tile(second, (1, SEEDS)).ravel())
        return float(kendalltau(crossed[0].ravel(), crossed[1].ravel()).statistic)

    sides = [{f"model {i}": row.tolist() for i, row in enumerate(side)} for side in (a, b)]
    seconds, found = best_of(5, lambda: concurrence(sides[0], sides[1], resamples=RESAMPLES))
    peer_seconds, value = best_of(2, loop)
    name = f"{RESAMPLES} resamples of {len(a)} models with {SEEDS} seeds, scipy"
    return verdict(name, seconds, peer_seconds, abs(found.value - value), LIMIT_SCIPY)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="folder that benchbench was installed to")
    if folder := parser.parse_args().peer:
        sys.path.append(folder)
    return int(not (tables() & bootstrap()))


if __name__ == "__main__":
    sys.exit(main())
