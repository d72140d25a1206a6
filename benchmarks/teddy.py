"""One million edges: TEDDY's scores and pruning, beside one raw scatter, and four times as many edges for linearity.

Limits: scores of a million edges within 2 seconds of processor time; four times the edges within 6 times the time.
"""

import sys

import torch
from timing import best

from heldout.data import edge_degree_scores, kept_edges

EDGES, NODES, SECONDS, RATIO = 1_000_000, 100_000, 2.0, 6.0


def graph(edges: int) -> torch.Tensor:
    """Both directions of random pairs of the same nodes, with a heavy tail of degrees."""
    generator = torch.Generator().manual_seed(0)
    ends = (torch.rand(2, edges // 2, generator=generator).pow(2) * NODES).long()
    return torch.cat([ends, ends.flip(0)], 1)


edges, more = graph(EDGES), graph(4 * EDGES)
ones, total = torch.ones(EDGES, dtype=torch.float64), torch.zeros(NODES, dtype=torch.float64)
scatter = best(lambda: total.index_add_(0, edges[0], ones))
score, larger = best(lambda: edge_degree_scores(edges)), best(lambda: edge_degree_scores(more))
scores = edge_degree_scores(edges)
prune = best(lambda: kept_edges(edges, 0.4, scores))
print(f"{EDGES:,} edges: scores {score:.3f} s (limit {SECONDS:g}), {score / scatter:.1f} x a raw scatter")
print(f"{4 * EDGES:,} edges: {larger:.3f} s, x {larger / score:.1f} (limit {RATIO:g})")
print(f"which of {EDGES:,} edges stay: {prune:.3f} s")
sys.exit(score > SECONDS or larger > RATIO * score)
