"""Graph readout beside GINEConv of torch_geometric on the same graphs: one training step of a batch of 32.

The graph is the same for all examples of a batch, so that heldout's readout works on dense tensors; torch_geometric
gets the batch as one graph of many parts, as the published code does. Exits with 1 where the readout takes more than
``LIMIT`` times as long. Run: python benchmarks/g_ssnn.py
"""

import functools
import sys
import time

import networkx as nx
import torch
from torch_geometric.nn import GINEConv

from heldout.nn import GraphReadout

BATCH, DIM, REPEATS, LIMIT = 32, 256, 40, 1.1


def peer(readout: GraphReadout, convs: list[GINEConv], features: torch.Tensor) -> torch.Tensor:
    """The same outputs by way of GINEConv on one graph of ``BATCH`` parts."""
    count, size = len(readout.graph.nodes), len(features)
    elements = features[:, readout.chunk] + readout.codes
    nodes = elements[:, :count].flatten(0, 1)
    edges = elements[:, count:].repeat(1, 2, 1).flatten(0, 1)
    shift = torch.arange(size)[:, None] * count
    index = torch.stack([(readout.source + shift).flatten(), (readout.target + shift).flatten()])
    for conv in convs:
        nodes = conv(nodes, index, edges)
    return readout.head(nodes.unflatten(0, (size, count)).mean(1))


def median_step(model, readout: GraphReadout, features: torch.Tensor) -> float:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        model(features).sum().backward()
        seconds.append(time.perf_counter() - start)
        readout.zero_grad()
    return sorted(seconds)[REPEATS // 2]


def main() -> int:
    torch.manual_seed(0)
    worst = 0.0
    for name, graph in (
        ("path of 3", nx.path_graph(3)),
        ("cycle of 6", nx.cycle_graph(6)),
        ("Petersen", nx.petersen_graph()),
    ):
        readout, features = GraphReadout(graph, DIM, 10, dropout=0.0), torch.randn(BATCH, DIM)
        convs = [GINEConv(layer) for layer in readout.layers]  # which draws the layers' weights anew
        torch.testing.assert_close(readout(features), peer(readout, convs, features), rtol=1e-3, atol=1e-4)
        ours = median_step(readout, readout, features)
        theirs = median_step(functools.partial(peer, readout, convs), readout, features)
        print(
            f"{name:12} heldout {1000 * ours:6.2f} ms   torch_geometric {1000 * theirs:6.2f} ms   {ours / theirs:.2f} x"
        )
        worst = max(worst, ours / theirs)
    return int(worst > LIMIT)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
