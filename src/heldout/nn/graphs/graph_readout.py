"""Readout shaped by a graph: each node and edge holds a part of the features, and a graph network mixes them.

Source: arXiv:2303.03340 (Whitehouse, 2023), section 3; details as in its code.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import check_at_least, check_dimensions, check_fraction, check_positive, checked
from heldout.nn.graphs.graph_spec import GraphSpec


class GraphReadout(nn.Module):
    """From features ``(batch, dim)`` to outputs ``(batch, out)``, through a graph that all inputs share.

    The features are cut into as many chunks as the graph has elements, the first with what is left over; the element of
    order id k gets chunk k, repeated to length ``dim``, plus a fixed code of its order and port. Then in each of
    ``depth`` layers ``h_v <- Linear(h_v + sum over edges of relu(h_u + e_uv))``, with dropout on node and edge features
    before it; edges go both ways and stay as they are. The outputs are a linear layer of the mean over the nodes.
    Cost: ``batch * (2 * edges + nodes * dim) * dim * depth`` operations.

    Args:
        graph: a ``GraphSpec``, or what has ``GraphSpec.from_pyg`` or ``GraphSpec.from_networkx``.
        dim: length of the features, a multiple of 4, at least the number of elements.
        out: number of outputs.
        depth: layers of the graph network (GINE with epsilon 0).
        dropout: on node and edge features.
        split: False gives every element all of the features, an ablation.
        messages: False leaves the messages out, so that chunks meet in the mean only, an ablation.
        temperature: of the code, as of sine-cosine positions.

    Raises:
        ValueError: a length that is not a multiple of 4 or below the number of elements, other numbers out of range;
            in the forward pass, features of another length.

    deviation: in the published code the list of edges that were seen is never filled, so that each edge acts twice in
    each direction; here once. Its table of codes is filled in another order; codes differ from each other in both.

    Example:
        >>> from heldout.nn import GraphSpec, run_graph_program
        >>> readout = GraphReadout(run_graph_program("(push (add (connect identity)))"), dim=12, out=5)
        >>> readout(torch.zeros(2, 12)).shape
        torch.Size([2, 5])
    """

    source: Tensor
    target: Tensor
    chunk: Tensor
    codes: Tensor

    @checked
    def __init__(
        self,
        graph: Any,
        dim: int,
        out: int,
        depth: int = 3,
        dropout: float = 0.3,
        *,
        split: bool = True,
        messages: bool = True,
        temperature: float = 10_000.0,
    ) -> None:
        super().__init__()
        check_at_least(1, dim=dim, out=out, depth=depth)
        check_fraction(dropout=dropout)
        check_positive(temperature=temperature)
        graph = as_graph(graph)
        if dim % 4:
            raise ValueError(f"dim must be a multiple of 4, got {dim}")
        if dim < graph.elements:
            raise ValueError(f"dim must be at least {graph.elements}, the number of nodes and edges, got {dim}")
        self.graph, self.dim, self.dropout, self.messages = graph, dim, dropout, messages
        place = {node: position for position, node in enumerate(graph.nodes)}
        ends = [(place[edge.first], place[edge.second]) for edge in graph.edges]
        orders = [*graph.nodes, *(edge.order for edge in graph.edges)]
        ports = [0] * len(graph.nodes) + [edge.port + 1 for edge in graph.edges]
        firsts, seconds = (torch.tensor(side) for side in zip(*ends, strict=True))
        self.register_buffer("source", torch.cat([firsts, seconds]), persistent=False)
        self.register_buffer("target", torch.cat([seconds, firsts]), persistent=False)
        chunks = chunk_positions(dim, graph.elements) if split else torch.arange(dim).expand(graph.elements, dim)
        self.register_buffer("chunk", chunks[orders], persistent=False)
        self.register_buffer("codes", _codes(orders, ports, dim, temperature), persistent=False)
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(depth))
        self.head = nn.Linear(dim, out)

    @checked
    def forward(self, features: Tensor) -> Tensor:
        check_dimensions(2, features=features)
        if features.shape[1] != self.dim:
            raise ValueError(f"features must have {self.dim} columns, got shape {tuple(features.shape)}")
        tiled = features.index_select(1, self.chunk.flatten()).unflatten(1, self.chunk.shape)
        elements = tiled + self.codes.to(features.dtype)
        nodes, edges = elements.split([len(self.graph.nodes), len(self.graph.edges)], dim=1)
        edges = edges.repeat(1, 2, 1)  # one for each direction
        for layer in self.layers:
            nodes = F.dropout(nodes, self.dropout, self.training)
            if self.messages:
                sent = F.relu(nodes.index_select(1, self.source) + F.dropout(edges, self.dropout, self.training))
                nodes = nodes.index_add(1, self.target, sent.to(nodes.dtype))  # autocast mixes types
            nodes = layer(nodes)
        return self.head(nodes.mean(1))


@checked
def as_graph(graph: Any) -> GraphSpec:
    """Returns a ``GraphSpec``, a graph of torch_geometric or one of networkx as a ``GraphSpec``.

    Example:
        >>> import networkx as nx
        >>> as_graph(nx.path_graph(3)).nodes
        (0, 1, 2)
    """
    if isinstance(graph, GraphSpec):
        return graph
    if hasattr(graph, "edge_index") and hasattr(graph, "num_nodes"):
        return GraphSpec.from_pyg(graph)
    if hasattr(graph, "adj") and hasattr(graph, "edges"):
        return GraphSpec.from_networkx(graph)
    raise TypeError(
        f"graph must be a GraphSpec, a torch_geometric Data or a networkx Graph, got {type(graph).__name__}"
    )


@checked
def chunk_positions(dim: int, elements: int) -> Tensor:
    """Returns for each element the columns of its chunk, repeated to length ``dim``: int64 ``(elements, dim)``.

    Example:
        >>> chunk_positions(10, 3)
        tensor([[0, 1, 2, 3, 0, 1, 2, 3, 0, 1],
                [4, 5, 6, 4, 5, 6, 4, 5, 6, 4],
                [7, 8, 9, 7, 8, 9, 7, 8, 9, 7]])
    """
    check_at_least(1, dim=dim, elements=elements)
    if dim < elements:
        raise ValueError(f"dim must be at least elements, got {dim} and {elements}")
    size = dim // elements
    first = dim - size * (elements - 1)
    sizes = torch.tensor([first] + [size] * (elements - 1))
    starts = sizes.cumsum(0) - sizes
    return starts[:, None] + torch.arange(dim) % sizes[:, None]


def _codes(orders: list[int], ports: list[int], dim: int, temperature: float) -> Tensor:
    """Sines and cosines of order and port, ``(elements, dim)``."""
    quarter = dim // 4
    rates = temperature ** -(torch.arange(quarter) / max(quarter - 1, 1))
    x, y = (torch.tensor(each)[:, None] * rates for each in (orders, ports))
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)
