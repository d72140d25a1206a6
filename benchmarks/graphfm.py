"""A graph of one million edges: batches of subgraphs and of sampled neighbours, and a step of pre-training on each.

Limits: a batch of 1,000 nodes within 0.25 seconds of processor time, whatever its kind; a training step on it takes at
most a tenth of the time of one on the whole graph, and steps on subgraphs less than a quarter of the memory. The
neighbour sampler of torch-geometric needs a compiled extension, so that it is run beside ours only where there is one.
"""

import resource
import sys
import time

import torch
from torch_geometric.data import Data
from torch_geometric.nn import GCN

from heldout.data import NeighbourBatches, SubgraphBatches
from heldout.train import CCASSG

EDGES, NODES, FEATURES, SIZE, STEPS = 1_000_000, 100_000, 64, 1000, 5
SECONDS, SHARE, MEMORY = 0.25, 0.1, 0.25


def spent(call, times: int) -> float:
    """Seconds of processor time of a call, the mean of a few."""
    start = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - start) / times


def peak() -> float:
    """Most memory that the process ever had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


torch.manual_seed(0)
ends = (torch.rand(2, EDGES // 2).pow(2) * NODES).long()
graph = Data(x=torch.randn(NODES, FEATURES), edge_index=torch.cat([ends, ends.flip(0)], 1))
method = CCASSG(GCN(FEATURES, 128, 2, 64))
optimizer = torch.optim.Adam(method.parameters())


def step(data) -> None:
    optimizer.zero_grad()
    method.loss(data).backward()
    optimizer.step()


failed, memory = False, {}
kinds = {
    "subgraph": SubgraphBatches(graph, SIZE),
    "node": NeighbourBatches(graph, SIZE, (10, 10)),
}
steps = {}
for kind, batches in kinds.items():
    source = iter(batches)
    before = peak()
    drawn = spent(lambda source=source: next(source), STEPS)
    batch = next(source)
    steps[kind] = spent(lambda batch=batch: step(batch), STEPS)
    memory[kind] = peak() - before
    failed |= drawn > SECONDS
    print(
        f"{kind}: a batch of {batch.num_nodes:,} nodes and {batch.num_edges:,} edges in {drawn:.3f} s "
        f"(limit {SECONDS:g}), a step in {steps[kind]:.3f} s, {memory[kind]:.0f} MB more"
    )
before = peak()
whole = spent(lambda: step(graph), 1)
memory["full"] = peak() - before
print(f"full: a step in {whole:.2f} s, {memory['full']:.0f} MB more")
failed |= max(steps.values()) > SHARE * whole or memory["subgraph"] > MEMORY * memory["full"]
try:
    from torch_geometric.loader import NeighborLoader

    loader = iter(NeighborLoader(graph, [10, 10], batch_size=SIZE))
    print(f"torch-geometric's NeighborLoader: a batch in {spent(lambda: next(loader), STEPS):.3f} s")
except ImportError as error:
    print(f"torch-geometric's NeighborLoader cannot run here: {error}")
sys.exit(failed)
