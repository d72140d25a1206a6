"""What Methods for graphs add to a step, beside PyTorch Geometric's own and beside EERM as it is published.

DropEdge: choosing which of a million edges stay, both directions of a pair together, beside ``dropout_edge``. Limit:
2 x its time. Virtual node: adding one to a batch of 200 graphs, beside PyG's transform of each and its collation.
Limit: as long. EERM: drawing environments by pairs beside drawing them from a nodes x nodes table of each policy, as in
the paper's code, at 2,000 nodes. Limit: half as long, and 100,000 nodes within 2 seconds, where the table takes 40 GB.
"""

import sys

import torch
from timing import best
from torch_geometric.data import Batch, Data
from torch_geometric.transforms import VirtualNode as VirtualNodeOfPyG
from torch_geometric.utils import dropout_edge

from heldout.data import edge_pairs, random_edges
from heldout.nn import VirtualNode
from heldout.train import EdgeEditors


def graph(nodes: int, pairs: int) -> torch.Tensor:
    """Both directions of random pairs."""
    ends = torch.randint(nodes, (2, pairs), generator=torch.Generator().manual_seed(0))
    return torch.cat([ends, ends.flip(0)], 1)


class Table:
    """Policies with a chance for every pair of nodes, as in the paper's code: a dense table for each."""

    def __init__(self, edges: torch.Tensor, nodes: int) -> None:
        self.logits = torch.zeros(nodes, nodes, requires_grad=True)
        self.there = torch.zeros(nodes, nodes)
        self.there[edges[0], edges[1]] = 1
        self.nodes = nodes

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.multinomial(self.logits.detach().softmax(0).T, 1).T
        flip = torch.zeros(self.nodes, self.nodes).scatter_(0, chosen, 1)
        edges = (self.there + flip * (1 - 2 * self.there)).nonzero().T
        columns = torch.arange(self.nodes)
        return edges, (self.logits[chosen[0], columns] - self.logits.logsumexp(0)).sum()


edges = graph(100_000, 500_000)
pairs, count = edge_pairs(edges)  # once for each graph
mine = best(lambda: edges[:, random_edges(pairs, count, 0.2)])
peer = best(lambda: dropout_edge(edges, 0.2, True))
print(f"drop_edge, {edges.shape[1]:,} edges: {mine:.3f} s, {mine / peer:.2f} x dropout_edge's {peer:.3f} s (limit 2)")
failed = mine > 2 * peer

graphs = [Data(x=torch.randn(30, 16), edge_index=graph(30, 45)) for _ in range(200)]
batch, node, transform = Batch.from_data_list(graphs), VirtualNode(16), VirtualNodeOfPyG()
mine = best(lambda: node(batch.x, batch.edge_index, batch.batch))
peer = best(lambda: Batch.from_data_list([transform(each.clone()) for each in graphs]))
print(f"virtual_node, {len(graphs)} graphs: {mine:.4f} s, {mine / peer:.2f} x PyG's transform's {peer:.4f} s (limit 1)")
failed |= mine > peer

edges = graph(2000, 8000)
editors, table = EdgeEditors(edges, 2000), Table(edges, 2000)
mine = best(lambda: editors.draw(0)[1].backward())
peer = best(lambda: table.draw()[1].backward())
large = EdgeEditors(graph(100_000, 500_000), 100_000)
spent = best(lambda: large.draw(0)[1].backward())
print(f"eerm, 2,000 nodes: {mine:.4f} s an environment, {mine / peer:.2f} x a table's {peer:.4f} s (limit 0.5)")
print(f"eerm, 100,000 nodes and a million edges: {spent:.2f} s an environment (limit 2)")
sys.exit(failed or mine > 0.5 * peer or spent > 2)
