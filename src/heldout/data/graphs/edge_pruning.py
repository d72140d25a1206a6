"""Core: Edges of a graph removed in one shot, by their degrees (TEDDY), at random, or by any score.

Source: arXiv:2402.01261 (Seo, Yun and Yang, ICLR 2024), section 4; self-loops as in the official code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_finite,
    check_has,
    check_labels,
    check_one_of,
    checked,
)

EdgeScore = Literal["edge_degree", "random"]


@checked
def edge_degree_scores(edge_index: Tensor, num_nodes: int | None = None, *, undirected: bool = True) -> Tensor:
    """Returns TEDDY's score of each edge: large at nodes of low degree, smallest between hubs among hubs.

    With ``d`` the number of edges that leave a node, ``s_i`` the mean of ``1 / sqrt(d_j)`` over the neighbours of i and
    ``a_i = s_i / d_i``, the score of an edge is ``a_i a_j``. Self-loops have the largest score of all. Costs two
    scatters over the edges and three gathers.

    Args:
        edge_index: int64 ``(2, edges)``; a self-loop counts in the degree.
        num_nodes: of the graph; default: the largest number of a node, plus 1.
        undirected: whether both directions of each edge are there; if not, an edge counts for both of its ends.
            deviation: the paper has no directed graphs.

    Returns:
        float64 ``(edges,)``, on the device of ``edge_index``.

    Raises:
        ValueError: another shape, no integers, or nodes outside of the graph.

    Source: arXiv:2402.01261, equation of the edge-degree score in section 4.

    Example:
        >>> path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> edge_degree_scores(path, 3)
        tensor([0.3536, 0.3536, 0.3536, 0.3536], dtype=torch.float64)
    """
    nodes = _check_edges(edge_index, num_nodes)
    source, target = edge_index
    both = [(source, target)] if undirected else [(source, target), (target, source)]
    degree = sum(torch.bincount(one, minlength=nodes) for one, _ in both).double()  # type: ignore[union-attr]
    inverse = degree.reciprocal().masked_fill_(degree == 0, 0.0)
    roots, neighbours = inverse.sqrt(), torch.zeros_like(degree)
    for one, other in both:
        neighbours.scatter_add_(0, one, roots.index_select(0, other))
    factor = neighbours * inverse * inverse
    scores = factor.index_select(0, source).mul_(factor.index_select(0, target))
    loops = source == target
    return scores.masked_fill_(loops, float(scores.max())) if bool(loops.any()) else scores


@checked
def prune_edges(
    data: Any,
    sparsity: float,
    score: Tensor | Callable[[Any], Tensor] | EdgeScore = "edge_degree",
    undirected: bool = True,
    *,
    seed: int = 0,
) -> Any:
    """Returns a copy of a graph without the edges of lowest score; all nodes stay, and attributes of edges follow.

    Of n pairs of joined nodes ``floor(sparsity * n)`` go, each with both directions and all its copies; its score is
    the mean of theirs. Self-loops never go and do not count. Ties are broken at random. With one score and seed, what
    goes at a lower sparsity goes at a higher one, too.

    Args:
        data: ``torch_geometric.data.Data``; it stays as it is, and shares with the copy what has nothing to do with
            edges.
        sparsity: share of the pairs to remove, in [0, 1).
        score: "edge_degree" for ``edge_degree_scores``, "random", or real numbers ``(edges,)``, or a function of
            ``data`` that returns them.
        undirected: whether both directions of a pair go together; if not, n counts directed edges, each goes alone, and
            counts in the degree of both of its ends.
        seed: of ties, and of "random".

    Raises:
        ValueError: a sparsity outside [0, 1), an edge whose other direction is missing (with ``undirected``), scores of
            another number or not finite, or a graph that keeps its edges as a sparse matrix ``adj_t``, too.

    Source: arXiv:2402.01261, section 4. deviation: pairs are counted where the official code counts directed edges.

    Example:
        >>> from heldout.tasks import BlockModel
        >>> graph = BlockModel(nodes=100, tail=2.0).sample(0)
        >>> graph.num_edges, prune_edges(graph, 0.25).num_edges
        (600, 450)
    """
    check_has("edge_index", "edge_subgraph", "num_nodes", data=data)
    _check_sparsity(sparsity)
    check_at_least(0, seed=seed)
    if getattr(data, "adj_t", None) is not None:
        raise ValueError("data has edges in adj_t besides edge_index: which of them the model reads cannot be told")
    edges = data.edge_index
    nodes = _check_edges(edges, int(data.num_nodes) if data.num_nodes is not None else None)
    scores = _scores_of(data, score, nodes, undirected)
    keep = kept_edges(edges, sparsity, scores, undirected, seed=seed)
    pruned = data.edge_subgraph(keep)
    if "num_nodes" not in pruned and pruned.num_nodes != nodes:  # it was told by the edges alone
        pruned.num_nodes = nodes
    return pruned


@checked
def kept_edges(edge_index: Tensor, sparsity: float, score: Tensor, undirected: bool = True, *, seed: int = 0) -> Tensor:
    """Returns which edges stay when those of lowest score go, bool ``(edges,)``; see ``prune_edges``.

    Args:
        edge_index: int64 ``(2, edges)``.
        sparsity: share of the pairs to remove, in [0, 1).
        score: one number for each edge, ``(edges,)``.
        undirected: whether both directions of a pair go together.
        seed: of ties.

    Raises:
        ValueError: as ``prune_edges``.

    Example:
        >>> kept_edges(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), 0.5, torch.tensor([1.0, 1.0, 2.0, 2.0]))
        tensor([False, False,  True,  True])
    """
    _check_sparsity(sparsity)
    check_at_least(0, seed=seed)
    nodes = _check_edges(edge_index, None)
    if score.shape != (edge_index.shape[1],):
        raise ValueError(
            f"score must have one number for each of {edge_index.shape[1]} edges, got {tuple(score.shape)}"
        )
    check_finite(score=score)
    proper = (edge_index[0] != edge_index[1]).nonzero()[:, 0]
    groups, count = _groups(edge_index[:, proper], nodes, undirected)
    mean = torch.zeros(count, dtype=torch.float64, device=edge_index.device)
    mean.index_add_(0, groups, score[proper].detach().double())
    mean /= groups.bincount(minlength=count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(edge_index.device)
    order = order[mean[order].argsort(stable=True)]
    gone = torch.zeros(count, dtype=torch.bool, device=edge_index.device)
    gone[order[: math.floor(sparsity * count + 1e-9)]] = True
    keep = torch.ones_like(edge_index[0], dtype=torch.bool)
    keep[proper] = ~gone[groups]
    return keep


@checked
def edge_pairs(edge_index: Tensor) -> tuple[Tensor, int]:
    """Returns which pair of nodes each edge belongs to, and how many pairs there are, for ``random_edges``.

    Both directions and all copies of an edge are one pair where each edge has both; otherwise each edge is one. A
    self-loop is none: -1.

    Args:
        edge_index: int64 ``(2, edges)``.

    Raises:
        ValueError: another shape, another type, or nodes below 0.

    Example:
        >>> edge_pairs(torch.tensor([[0, 1, 1, 2, 2], [1, 0, 2, 1, 2]]))
        (tensor([ 0,  0,  1,  1, -1]), 2)
    """
    nodes = _check_edges(edge_index, None)
    proper = edge_index[0] != edge_index[1]
    groups, count = _groups(edge_index[:, proper], nodes, has_both_directions(edge_index))
    return groups.new_full((edge_index.shape[1],), -1).masked_scatter_(proper, groups), count


@checked
def random_edges(pairs: Tensor, count: int, sparsity: float, generator: torch.Generator | None = None) -> Tensor:
    """Returns which edges stay when ``floor(sparsity * count)`` random pairs go, bool ``(edges,)``.

    Args:
        pairs: int64 ``(edges,)``, the pair of each edge from 0, or -1 for those that stay, of ``edge_pairs``.
        count: of pairs.
        sparsity: share to remove, in [0, 1).
        generator: of the draw, on the CPU.

    Raises:
        ValueError: numbers out of range.

    Example:
        >>> random_edges(torch.tensor([0, 0, 1, 1, -1]), 2, 0.5).sum()
        tensor(3)
    """
    _check_sparsity(sparsity)
    check_at_least(0, count=count)
    check_labels(count + 1, pairs=pairs + 1)
    stays = torch.ones(count + 1, dtype=torch.bool)  # the last is that of self-loops
    stays[torch.randperm(count, generator=generator)[: math.floor(sparsity * count + 1e-9)]] = False
    return stays.to(pairs.device)[pairs]


@checked
def has_both_directions(edge_index: Tensor) -> bool:
    """Returns whether each edge ``(2, edges)`` is there in both directions, equally often.

    Example:
        >>> has_both_directions(torch.tensor([[0, 1], [1, 0]])), has_both_directions(torch.tensor([[0], [1]]))
        (True, False)
    """
    nodes = _check_edges(edge_index, None)
    there, back = edge_index[0] * nodes + edge_index[1], edge_index[1] * nodes + edge_index[0]
    return torch.equal(there.sort().values, back.sort().values)


def _check_sparsity(sparsity: float) -> None:
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity, the share of edges to remove, must lie in [0, 1), got {sparsity}")


def _check_edges(edge_index: Tensor, num_nodes: int | None) -> int:
    if edge_index.ndim != 2 or edge_index.shape[0] != 2 or edge_index.dtype != torch.int64:
        raise ValueError(f"edge_index must be int64 (2, edges), got {edge_index.dtype} {tuple(edge_index.shape)}")
    check_at_least(0, num_nodes=num_nodes)
    if not edge_index.numel():
        return num_nodes or 0
    low, high = (int(each) for each in edge_index.aminmax())
    if low < 0 or (num_nodes is not None and high >= num_nodes):
        check_labels(num_nodes, edge_index=edge_index)
    return num_nodes if num_nodes is not None else high + 1


def _scores_of(data: Any, score: Any, nodes: int, undirected: bool) -> Tensor:
    edges = data.edge_index
    if isinstance(score, str):
        check_one_of(("edge_degree", "random"), score=score)
        if score == "random":
            return edges.new_zeros(edges.shape[1])
        return edge_degree_scores(edges, nodes, undirected=undirected)
    return torch.as_tensor(score(data) if callable(score) else score, device=edges.device)


def _groups(edges: Tensor, nodes: int, undirected: bool) -> tuple[Tensor, int]:
    """Returns which edges go together ``(edges,)``, and how many groups there are."""
    if not undirected:
        return torch.arange(edges.shape[1], device=edges.device), edges.shape[1]
    there, back = edges[0] * nodes + edges[1], edges[1] * nodes + edges[0]
    if not torch.equal(there.sort().values, back.sort().values):
        raise ValueError("edge_index must hold both directions of each edge; for a directed graph, undirected=False")
    pairs, groups = torch.minimum(there, back).unique(return_inverse=True)
    return groups, len(pairs)
