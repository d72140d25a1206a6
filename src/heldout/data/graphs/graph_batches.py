"""Core: Mini-batches of one large graph: nodes with sampled neighbours, or the subgraphs that random walks reach.

Nothing compiled is needed. A pass gathers rows of the adjacency lists of a batch's nodes, so that its cost follows the
batches and not the graph; the lists are sorted once.

Sources: arXiv:1706.02216 (Hamilton et al., NeurIPS 2017: neighbour sampling); arXiv:1907.04931 (Zeng et al., ICLR 2020:
GraphSAINT) for random walks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_has, check_labels, check_nonempty, checked, require


class _Lists:
    """The neighbours of each node, one list after the other."""

    def __init__(self, data: Any) -> None:
        check_has("x", "edge_index", "num_nodes", data=data)
        edges = data.edge_index
        if not isinstance(edges, Tensor) or edges.ndim != 2 or edges.shape[0] != 2 or edges.dtype != torch.int64:
            raise ValueError("data must have an int64 edge_index (2, edges)")
        self.nodes = int(data.num_nodes)
        if self.nodes < 1:
            raise ValueError("data must have nodes, got none")
        if not isinstance(data.x, Tensor) or len(data.x) != self.nodes:
            raise ValueError(f"data must have a row of x for each of {self.nodes} nodes")
        check_labels(self.nodes, data=edges)
        source, target = edges.cpu()
        self.degree = torch.bincount(target, minlength=self.nodes)
        self.start = self.degree.cumsum(0) - self.degree
        self.neighbour = source[target.argsort(stable=True)]  # of each node, where its messages come from
        self.place = torch.full((self.nodes,), -1)  # in a batch; as found again after each

    def step(self, at: Tensor, generator: torch.Generator) -> Tensor:
        """A neighbour of each node at random; a node without any stays where it is."""
        degree = self.degree[at]
        place = self.start[at] + (torch.rand(len(at), generator=generator, dtype=torch.float64) * degree).long()
        moves = degree > 0
        there = at.clone()
        there[moves] = self.neighbour[place[moves]]
        return there

    def rows(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """All edges into some nodes: where they come from, and the place among ``nodes`` of where they go."""
        degree = self.degree[nodes]
        owner = torch.repeat_interleave(torch.arange(len(nodes)), degree)
        first = degree.cumsum(0) - degree
        offset = torch.arange(len(owner)) - first[owner]
        return self.neighbour[self.start[nodes][owner] + offset], owner


class SubgraphBatches:
    """Each pass yields ``ceil(nodes / size)`` subgraphs, each of the nodes that random walks reach and all edges there.

    ``size // (walk_length + 1)`` walks begin at nodes drawn at random, so that a subgraph has at most ``size`` nodes,
    and fewer where walks meet. Statistics of a batch, such as those of BatchNorm, are those of its subgraph.

    Args:
        data: a graph with ``x``, ``edge_index`` and ``num_nodes``, such as ``torch_geometric.data.Data``.
        size: nodes of a batch, at most.
        walk_length: steps of a walk.
        generator: of the walks, on the CPU; each pass draws others. Default: one with seed 0.

    Yields ``torch_geometric.data.Data`` with ``x``, ``edge_index`` and ``nodes``, the numbers of its nodes in the
    graph, sorted.

    Raises:
        ValueError: a graph without nodes, edges of other nodes, a size or length below 1.
        MissingExtraError: without torch-geometric.

    Source: arXiv:1907.04931, the random walk sampler, without its weights of the loss.

    Example:
        >>> from heldout.tasks import BlockModel
        >>> batches = SubgraphBatches(BlockModel(nodes=300).sample(0), size=100)
        >>> len(batches), all(batch.num_nodes <= 100 for batch in batches)
        (3, True)
    """

    @checked
    def __init__(
        self, data: Any, size: int = 500, walk_length: int = 4, *, generator: torch.Generator | None = None
    ) -> None:
        check_at_least(1, size=size, walk_length=walk_length)
        self._data_class = require("torch_geometric.data").Data
        self._lists, self._x = _Lists(data), data.x
        self.size, self.walk_length = size, walk_length
        self.generator = generator or torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return math.ceil(self._lists.nodes / self.size)

    def __iter__(self) -> Iterator[Any]:
        for _ in range(len(self)):
            at = torch.randint(
                self._lists.nodes, (max(1, self.size // (self.walk_length + 1)),), generator=self.generator
            )
            reached = [at]
            while len(reached) <= self.walk_length:
                reached.append(self._lists.step(reached[-1], self.generator))
            nodes = torch.cat(reached).unique()[: self.size]
            yield self._data_class(
                x=self._x[nodes.to(self._x.device)], edge_index=self._within(nodes).to(self._x.device), nodes=nodes
            )

    def _within(self, nodes: Tensor) -> Tensor:
        lists = self._lists
        source, owner = lists.rows(nodes)
        lists.place[nodes] = torch.arange(len(nodes))
        source = lists.place[source]
        lists.place[nodes] = -1
        inside = source >= 0
        return torch.stack([source[inside], owner[inside]])


class NeighbourBatches:
    """Each pass yields every node once, in batches, with neighbours of it and neighbours of those, as many as asked.

    The nodes of a batch come first, ``batch_size`` of them, as in PyG's ``NeighborLoader``; losses count them alone.
    Edges are those that were drawn, towards the batch. Statistics of a batch, such as those of BatchNorm, are also
    those of the neighbours.

    Args:
        data: a graph with ``x``, ``edge_index`` and ``num_nodes``, such as ``torch_geometric.data.Data``.
        size: nodes of a batch, without neighbours.
        neighbours: how many of each node, in each layer; drawn without replacement.
        generator: of order and draws, on the CPU; each pass draws others. Default: one with seed 0.

    Yields ``torch_geometric.data.Data`` with ``x``, ``edge_index``, ``batch_size`` and ``nodes``, the numbers of its
    nodes in the graph.

    Raises:
        ValueError: a graph without nodes, edges of other nodes, a size or number of neighbours below 1, or no layer.
        MissingExtraError: without torch-geometric.

    Source: arXiv:1706.02216, algorithm 2.

    Example:
        >>> from heldout.tasks import BlockModel
        >>> batches = NeighbourBatches(BlockModel(nodes=300).sample(0), size=100, neighbours=(5, 5))
        >>> sorted(node for batch in batches for node in batch.nodes[: batch.batch_size].tolist()) == [*range(300)]
        True
    """

    @checked
    def __init__(
        self,
        data: Any,
        size: int = 500,
        neighbours: Sequence[int] = (10, 10),
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        check_at_least(1, size=size, neighbours=neighbours)
        check_nonempty(neighbours=neighbours)
        self._data_class = require("torch_geometric.data").Data
        self._lists, self._x = _Lists(data), data.x
        self.size, self.neighbours = size, tuple(neighbours)
        self.generator = generator or torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return math.ceil(self._lists.nodes / self.size)

    def __iter__(self) -> Iterator[Any]:
        for seeds in torch.randperm(self._lists.nodes, generator=self.generator).split(self.size):
            nodes, edges = self._sampled(seeds)
            yield self._data_class(
                x=self._x[nodes.to(self._x.device)],
                edge_index=edges.to(self._x.device),
                batch_size=len(seeds),
                nodes=nodes,
            )

    def _sampled(self, seeds: Tensor) -> tuple[Tensor, Tensor]:
        lists, nodes, edges, fresh = self._lists, seeds, [], seeds
        lists.place[seeds] = torch.arange(len(seeds))
        for most in self.neighbours:
            source, owner = lists.rows(fresh)
            kept = _first_of_each(owner, most, self.generator)
            source, target = source[kept], lists.place[fresh][owner[kept]]
            new = source[lists.place[source] < 0].unique()
            lists.place[new] = len(nodes) + torch.arange(len(new))
            nodes = torch.cat([nodes, new])
            edges.append(torch.stack([lists.place[source], target]))
            fresh = new
        lists.place[nodes] = -1
        return nodes, torch.cat(edges, 1)


def _first_of_each(owner: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Places of at most so many entries of each owner, at random. Owners come in order."""
    order = torch.rand(len(owner), generator=generator, dtype=torch.float64).add_(owner).argsort()
    counts = torch.bincount(owner)
    rank = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    return order[rank < most]
