"""Queries against 100,000 x 128 entries, and the cost of appending one entry.

Limits: a query takes at most 1.2 times its floor, the product and its topk, and less than scikit-learn's; appending one
entry to 100,000 costs at most twice what it costs at 10,000, so that a stream costs what it is long.

python benchmarks/knn_memory.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestNeighbors

from heldout.nn import KNNMemory

ENTRIES, DIM, BATCH, K = 100_000, 128, 32, 10


def seconds_each(functions: dict[str, Callable[[], object]], repeats: int = 15) -> dict[str, float]:
    """Returns the median time of each, measured in turns so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in times.items()}


def main() -> int:
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(ENTRIES, DIM, generator=generator))
    labels = torch.randint(0, 10, (ENTRIES,), generator=generator)
    queries = F.normalize(torch.randn(BATCH, DIM, generator=generator))
    memory = KNNMemory(DIM)
    memory.add(features, labels)
    neighbours = NearestNeighbors(n_neighbors=K, algorithm="brute", metric="cosine").fit(features.numpy())
    contestants: dict[str, Callable[[], object]] = {
        "matmul + topk": lambda: (queries @ features.T).topk(K, dim=1),
        "KNNMemory.query": lambda: memory.query(queries, K),
        "KNNMemory.vote": lambda: memory.vote(queries, K, 0.1, 10),
        "sklearn NearestNeighbors": lambda: neighbours.kneighbors(queries.numpy()),
    }
    try:
        import faiss

        index = faiss.IndexFlatIP(DIM)
        index.add(features.numpy())
        by_faiss = KNNMemory(DIM, backend="faiss")
        by_faiss.add(features, labels)
        contestants["faiss IndexFlatIP"] = lambda: index.search(queries.numpy(), K)
        contestants["KNNMemory(backend='faiss').query"] = lambda: by_faiss.query(queries, K)
    except ImportError:
        print("faiss is not installed: left out")
    times = seconds_each(contestants)
    print(f"{BATCH} queries, {ENTRIES:,} x {DIM} entries, k={K}, {torch.get_num_threads()} threads")
    for name, seconds in times.items():
        print(f"  {name:34s} {1e3 * seconds:8.2f} ms   {seconds / times['matmul + topk']:5.2f} x")

    print("appending batches of 32 to an empty memory")
    each = {}
    for entries in (1_000, 3_000, 10_000, 30_000, 100_000):
        rows, classes = features[:32], labels[:32]

        def fill(entries: int = entries, rows: torch.Tensor = rows, classes: torch.Tensor = classes) -> None:
            growing = KNNMemory(DIM)
            for _ in range(0, entries, 32):
                growing.add(rows, classes)

        each[entries] = 1e6 * seconds_each({"fill": fill}, 3)["fill"] / entries
        print(f"  {entries:7,} entries: {each[entries]:6.2f} us per entry")
    ours = times["KNNMemory.query"]
    within = ours <= min(1.2 * times["matmul + topk"], times["sklearn NearestNeighbors"])
    return 0 if within and each[100_000] <= 2 * each[10_000] else 1


if __name__ == "__main__":
    raise SystemExit(main())
