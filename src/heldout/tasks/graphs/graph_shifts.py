"""Core: What may change between the graph that a model was trained on and those that it meets: features and edges.

Source: arXiv:2403.09953 (Zheng et al., ICLR 2024), appendix, for the noise and the mask of features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from heldout.errors import (
    check_dimensions,
    check_finite,
    check_fraction,
    check_has,
    check_labels,
    check_length,
    check_nonnegative,
    check_positive,
    checked,
)
from heldout.tasks.seeds import Seed, generator_of


@checked
def noisy_features(graph: Any, std: float, seed: Seed = 0) -> Any:
    """Returns a copy of a graph with Gaussian noise added to its features.

    Args:
        graph: ``torch_geometric.data.Data`` with real ``x``; it stays as it is.
        std: standard deviation of the noise.
        seed: number or generator.

    Raises:
        TypeError: a graph without ``x``.
        ValueError: std below 0 or not finite; features that are not ``(nodes, columns)``, or not finite.

    Example:
        >>> from heldout.tasks import BlockModel
        >>> graph = BlockModel(nodes=40).sample(0)
        >>> noisy_features(graph, 0.5).x.std() > graph.x.std()
        tensor(True)
    """
    _check_features(graph)
    check_nonnegative(std=std)
    shifted = graph.clone()
    noise = torch.randn(graph.x.shape, generator=generator_of(seed))
    shifted.x = graph.x + std * noise.to(graph.x)
    return shifted


@checked
def masked_columns(graph: Any, share: float, seed: Seed = 0) -> Any:
    """Returns a copy of a graph in which columns of the features, each with this probability, are 0 for all nodes.

    Args:
        graph: ``torch_geometric.data.Data`` with ``x``; it stays as it is.
        share: probability of a column, in [0, 1].
        seed: number or generator.

    Raises:
        TypeError: a graph without ``x``.
        ValueError: a share outside [0, 1]; features that are not ``(nodes, columns)``, or not finite.

    Example:
        >>> from heldout.tasks import BlockModel
        >>> graph = BlockModel(nodes=40).sample(0)
        >>> masked_columns(graph, 1.0).x.abs().sum()
        tensor(0.)
    """
    _check_features(graph)
    check_fraction(share=share)
    shifted = graph.clone()
    masked = torch.rand(graph.x.shape[1], generator=generator_of(seed)) < share
    shifted.x = graph.x.masked_fill(masked.to(graph.x.device), 0)
    return shifted


@checked
def rewired(graph: Any, share: float, seed: Seed = 0) -> Any:
    """Returns a copy of an undirected graph in which one end of a share of its edges is moved to any node.

    Homophily falls with it, towards that of chance. The number of edges stays; no self-loop and no double edge appears.
    Attributes of edges are not known for new ones, so that a graph that has any is refused.

    Args:
        graph: ``torch_geometric.data.Data`` with both directions of each edge, without double edges; it stays as it is.
        share: of the edges, in [0, 1], rounded to whole edges.
        seed: number or generator.

    Raises:
        TypeError: a graph without ``edge_index``.
        ValueError: a share outside [0, 1]; a graph that is directed, has double edges, attributes of edges, edges of
            nodes that it has not, or one in which a node has no place left for an edge.

    Example:
        >>> from heldout.tasks import BlockModel
        >>> graph = BlockModel(nodes=40).sample(0)
        >>> rewired(graph, 0.5).num_edges == graph.num_edges
        True
    """
    check_has("edge_index", "clone", "num_nodes", graph=graph)
    check_fraction(share=share)
    if graph.edge_attr is not None or graph.edge_weight is not None:
        raise ValueError("a graph with attributes of edges cannot be rewired: they are not known for new edges")
    nodes = int(graph.num_nodes)
    check_has("ndim", "dtype", edge_index=graph.edge_index)
    check_dimensions(2, edge_index=graph.edge_index)
    check_length(2, edge_index=graph.edge_index)
    check_labels(nodes, edge_index=graph.edge_index)
    edges = graph.edge_index.cpu()
    codes = (edges[0] * nodes + edges[1]).sort().values
    if len(codes) != len(codes.unique()) or not torch.equal(codes, (edges[1] * nodes + edges[0]).sort().values):
        raise ValueError("graph must be undirected, with both directions of each edge, and without double edges")
    generator = generator_of(seed)
    pairs = edges[:, edges[0] < edges[1]]
    if pairs.shape[1] > nodes * (nodes - 1) // 4:
        raise ValueError("rewiring needs a graph with at most half of all pairs as edges")
    order = torch.randperm(pairs.shape[1], generator=generator)
    moved, stay = order.split([round(share * len(order)), len(order) - round(share * len(order))])
    ends = pairs[torch.randint(2, (len(moved),), generator=generator), moved]  # that stay where they are
    taken = pairs[0, stay] * nodes + pairs[1, stay]
    while len(ends):
        check_positive(
            places_left=nodes - 1 - torch.cat([taken // nodes, taken % nodes]).bincount(minlength=nodes)[ends]
        )
        others = torch.randint(nodes, (len(ends),), generator=generator)
        drawn = torch.minimum(ends, others) * nodes + torch.maximum(ends, others)
        places = torch.from_numpy(np.unique(drawn.numpy(), return_index=True)[1])
        places = places[(ends[places] != others[places]) & ~torch.isin(drawn[places], taken)]
        taken = torch.cat([taken, drawn[places]])
        left = torch.ones(len(ends), dtype=torch.bool)
        left[places] = False
        ends = ends[left]
    new = torch.stack([taken // nodes, taken % nodes])
    loops = edges[:, edges[0] == edges[1]]
    both = torch.cat([new, new.flip(0), loops], 1)
    shifted = graph.clone()
    shifted.edge_index = both[:, (both[0] * nodes + both[1]).argsort()].to(graph.edge_index.device)
    return shifted


def _check_features(graph: Any) -> None:
    check_has("x", "clone", graph=graph)
    check_has("ndim", "dtype", x=graph.x)
    check_dimensions(2, x=graph.x)
    check_finite(x=graph.x)
