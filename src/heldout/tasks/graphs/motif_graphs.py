"""Core: Graphs whose class is a motif, beside another motif that goes with the class by chance.

All sizes are equal between classes and between attached motifs, so that numbers of nodes and edges give nothing away.
Source: arXiv:2312.12475, the synthetic graphs; arXiv:1903.03894 (Ying et al.) for motifs attached to random graphs.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from heldout.errors import (
    check_at_least,
    check_fraction,
    check_length,
    check_nonnegative,
    check_one_of,
    checked,
    require,
)
from heldout.tasks.seeds import Seed, generator_of

_RING = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)]
_WHEEL = [*_RING, *[(5, node) for node in range(5)]]
_PRISM = [(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3), (0, 3), (1, 4), (2, 5), (0, 4)]  # and one diagonal
_STAR = [(0, node) for node in range(1, 7)]
_PATH = [(node, node + 1) for node in range(6)]


@checked
def motif_graphs(
    n: int,
    bias: float = 0.5,
    seed: Seed = 0,
    *,
    base: Literal["tree", "ba"] = "tree",
    nodes: tuple[int, int] = (15, 30),
    extra_edges: int = 2,
    features: int = 4,
    noise: float = 0.1,
) -> list[Any]:
    """Returns graphs of two classes as a list of ``torch_geometric.data.Data``, as many of either class.

    A random graph carries a wheel (``y`` 1) or a prism with a diagonal (``y`` 0), both of 6 nodes and 10 edges, and a
    star (``spurious`` 1) or a path (0), both of 7 nodes and 6 edges; each hangs on one edge. The star comes with
    probability ``bias`` in class 1 and ``1 - bias`` in class 0: 0.5 tells nothing, below it the bias is reversed.
    ``importance`` is the weight under which it tells nothing, ``0.5 / P(spurious | y)``.

    ``x`` is float32 ``(nodes, features)``, 1 with noise: it tells nothing. ``edge_index`` is int64 ``(2, edges)``, both
    directions of each pair, sorted; nodes are in random order.

    Args:
        n: graphs.
        bias: probability that a graph's second motif goes with its class.
        seed: number or generator.
        base: "tree", in which each node hangs on a random one before it, or "ba", in which it hangs on two of them by
            their degrees.
        nodes: least and most nodes of that graph, drawn uniformly.
        extra_edges: random pairs of nodes that are joined besides, at most as many as the least number of nodes.
        features: columns of ``x``.
        noise: its standard deviation.

    Raises:
        ValueError: fewer than 2 graphs, nodes that are no range of at least 4, numbers out of range.
        MissingExtraError: without torch-geometric.

    Example:
        >>> graphs = motif_graphs(4, bias=0.9)
        >>> sorted(int(graph.y) for graph in graphs), graphs[0].x.shape[1]
        ([0, 0, 1, 1], 4)
    """
    check_at_least(2, n=n)
    check_fraction(bias=bias)
    check_one_of(("tree", "ba"), base=base)
    check_length(2, nodes=nodes)
    check_at_least(4, nodes=nodes)
    check_at_least(0, extra_edges=extra_edges)
    check_at_least(1, features=features)
    check_nonnegative(noise=noise)
    if nodes[0] > nodes[1]:
        raise ValueError(f"nodes must be (least, most), got {nodes}")
    if extra_edges > nodes[0]:
        raise ValueError(f"extra_edges must be at most the least number of nodes, {nodes[0]}, got {extra_edges}")
    geometric = require("torch_geometric.data")
    generator = generator_of(seed)
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    labels = rng.permutation(np.arange(n) % 2)
    follows = rng.random(n) < bias
    graphs = []
    for label, follow in zip(labels.tolist(), follows.tolist(), strict=True):
        spurious = label if follow else 1 - label
        size, pairs = _base(int(rng.integers(nodes[0], nodes[1] + 1)), base, rng)
        for motif in (_WHEEL if label else _PRISM, _STAR if spurious else _PATH):
            count = 1 + max(max(pair) for pair in motif)
            pairs += [(first + size, second + size) for first, second in motif]
            pairs.append((int(rng.integers(size)), size + int(rng.integers(count))))
            size += count
        known = {tuple(sorted(pair)) for pair in pairs}
        while len(known) < len(pairs) + extra_edges:
            first, second = rng.choice(size, 2, replace=False).tolist()
            known.add((min(first, second), max(first, second)))
        ends = rng.permutation(size)[np.array(sorted(known))]
        both = np.concatenate([ends, ends[:, ::-1]])
        both = both[np.lexsort((both[:, 1], both[:, 0]))]
        x = 1 + noise * torch.from_numpy(rng.standard_normal((size, features))).float()
        graphs.append(
            geometric.Data(
                x=x, edge_index=torch.from_numpy(both.T.copy()), y=torch.tensor([label]),
                spurious=torch.tensor([spurious]), importance=torch.tensor([0.5 / (bias if follow else 1 - bias)]),
            )
        )  # fmt: skip
    return graphs


def _base(size: int, kind: str, rng: np.random.Generator) -> tuple[int, list[tuple[int, int]]]:
    if kind == "tree":
        return size, [(int(rng.integers(node)), node) for node in range(1, size)]
    pairs = [(0, 1), (0, 2), (1, 2)]
    ends = [0, 1, 0, 2, 1, 2]  # each node as often as it has edges
    for node in range(3, size):
        chosen: set[int] = set()
        while len(chosen) < 2:
            chosen.add(ends[int(rng.integers(len(ends)))])
        pairs += [(other, node) for other in sorted(chosen)]
        ends += [*sorted(chosen), node, node]
    return size, pairs
