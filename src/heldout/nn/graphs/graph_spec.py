"""Core: A small undirected graph whose edges sit at ports of their nodes, and whose parts have an order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_fields, check_has, checked, short

if TYPE_CHECKING:
    import networkx as nx


class GraphEdge(NamedTuple):
    """An undirected edge.

    Attributes:
        first, second: order ids of its nodes.
        port: the place that it takes at both of them.
        order: its own order id.

    Example:
        >>> twice = (GraphEdge(0, 1, port=0, order=2), GraphEdge(0, 1, port=1, order=3))
        >>> GraphSpec(nodes=(0, 1), edges=twice).elements
        4
    """

    first: int
    second: int
    port: int
    order: int


@dataclass(frozen=True)
class GraphSpec:
    """A connected graph of at least two nodes; ``nodes`` and ``edges`` are its elements.

    Args:
        nodes: order ids of the nodes.
        edges: their edges; several may join the same two nodes, at different ports.
        max_conn: number of ports of a node.

    Raises:
        ValueError: order ids that are not 0, 1, 2, ... in some order; an edge with an unknown node, from a node to
            itself, or at a port that is taken or not below ``max_conn``; a single node, or parts not connected.

    Example:
        >>> graph = GraphSpec(nodes=(0, 1), edges=(GraphEdge(0, 1, port=0, order=2),))
        >>> graph.elements
        3
    """

    nodes: tuple[int, ...]
    edges: tuple[GraphEdge, ...]
    max_conn: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(self.nodes))
        object.__setattr__(self, "edges", tuple(GraphEdge(*edge) for edge in self.edges))
        check_fields(self)
        check_at_least(1, max_conn=self.max_conn)
        if len(self.nodes) < 2:
            raise ValueError(f"nodes must be at least 2, got {len(self.nodes)}")
        if sorted([*self.nodes, *(edge.order for edge in self.edges)]) != list(range(self.elements)):
            raise ValueError("nodes and edges must have the order ids 0, 1, 2, ..., each once")
        known, taken = set(self.nodes), set[tuple[int, int]]()
        for edge in self.edges:
            if edge.first not in known or edge.second not in known or edge.first == edge.second:
                raise ValueError(f"edges must join two different nodes of the graph, got {edge}")
            if not 0 <= edge.port < self.max_conn:
                raise ValueError(f"edges must lie at ports from 0 to {self.max_conn - 1}, got {edge}")
            places = {(edge.first, edge.port), (edge.second, edge.port)}
            if places & taken:
                raise ValueError(f"edges must lie at free ports of their nodes, got {edge}")
            taken |= places
        if not connected(self.nodes, self.edges):
            raise ValueError("edges must connect all nodes")

    @property
    def elements(self) -> int:
        """Number of nodes and edges together."""
        return len(self.nodes) + len(self.edges)

    @classmethod
    @checked
    def from_networkx(cls, graph: nx.Graph, max_conn: int = 10) -> GraphSpec:
        """Returns a graph of networkx: nodes get the first order ids, edges the next, at their first free port.

        Args:
            graph: directions, loops and repeated edges are left out.
            max_conn: as of ``GraphSpec``; more if the edges need it.

        Example:
            >>> import networkx as nx
            >>> GraphSpec.from_networkx(nx.cycle_graph(3)).edges[2]
            GraphEdge(first=1, second=2, port=2, order=5)
        """
        check_has("nodes", "edges", graph=graph)
        number = {node: order for order, node in enumerate(graph.nodes)}
        return cls._numbered(len(number), ((number[edge[0]], number[edge[1]]) for edge in graph.edges), max_conn)

    @classmethod
    @checked
    def from_pyg(cls, data: Any, max_conn: int = 10) -> GraphSpec:
        """Returns the graph of a ``torch_geometric.data.Data``; both directions of an edge are one.

        Args:
            data: with ``num_nodes`` and ``edge_index`` ``(2, edges)``; loops are left out.
            max_conn: as of ``GraphSpec``; more if the edges need it.

        Raises:
            TypeError: something without these two.
            ValueError: an ``edge_index`` that is not ``(2, edges)`` of node numbers, or no graph of ``GraphSpec``.
        """
        check_has("num_nodes", "edge_index", data=data)
        index, count = data.edge_index, int(data.num_nodes or 0)
        if (
            not isinstance(index, Tensor)
            or index.dim() != 2
            or len(index) != 2
            or index.dtype not in (torch.int32, torch.int64)
        ):
            raise ValueError(f"data must have an integer edge_index of shape (2, edges), got {short(index)}")
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < count:
            raise ValueError(f"data must have an edge_index with nodes from 0 to {count - 1}, got {short(index)}")
        return cls._numbered(count, map(tuple, index.t().tolist()), max_conn)

    @classmethod
    def _numbered(cls, count: int, pairs: Iterable[Any], max_conn: int) -> GraphSpec:
        check_at_least(1, max_conn=max_conn)
        used: list[set[int]] = [set() for _ in range(count)]
        edges: list[GraphEdge] = []
        for first, second in sorted({(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]}):
            taken = used[first] | used[second]
            port = next(each for each in range(len(taken) + 1) if each not in taken)
            used[first].add(port)
            used[second].add(port)
            edges.append(GraphEdge(first, second, port, count + len(edges)))
        return cls(tuple(range(count)), tuple(edges), max(max_conn, *(edge.port + 1 for edge in edges), 1))

    def to_networkx(self) -> nx.Graph:
        """Returns it as a simple graph of networkx, without ports and order."""
        import networkx as nx

        graph = nx.Graph()
        graph.add_nodes_from(self.nodes)
        graph.add_edges_from((edge.first, edge.second) for edge in self.edges)
        return graph


@checked
def connected(nodes: Iterable[int], edges: Iterable[GraphEdge]) -> bool:
    """Returns whether every node can be reached from every other.

    Example:
        >>> connected((0, 1, 2), [GraphEdge(0, 1, 0, 3)])
        False
    """
    left, around = set(nodes), dict[int, list[int]]()
    for edge in edges:
        around.setdefault(edge.first, []).append(edge.second)
        around.setdefault(edge.second, []).append(edge.first)
    frontier = [left.pop()] if left else []
    while frontier:
        for other in around.get(frontier.pop(), ()):
            if other in left:
                left.remove(other)
                frontier.append(other)
    return not left
