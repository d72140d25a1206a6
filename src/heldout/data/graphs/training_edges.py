"""Methods of graph networks that are trained on fewer edges: always the same ones gone (TEDDY), or others in each step.

Sources: arXiv:2402.01261 (Seo, Yun and Yang, ICLR 2024); arXiv:1907.10903 (Rong et al., ICLR 2020: DropEdge).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from heldout.data.graphs.edge_pruning import edge_degree_scores, kept_edges
from heldout.errors import check_at_least, check_dimensions, check_labels, checked
from heldout.method import Method, Run, Splits

_OF_EDGES = ("edge_weight", "edge_attr")


@checked
def teddy(sparsity: float = 0.2) -> Method:
    """Returns the Method that trains a graph network without the edges between hubs, the same ones in every step.

    Answers are given on whole graphs. Both directions of a pair go together where each edge has both. It costs nothing:
    fewer edges make steps cheaper.

    Args:
        sparsity: share of the edges to remove, in (0, 1).

    Raises:
        ValueError: a sparsity out of range.

    Source: arXiv:2402.01261. deviation: the paper answers on the pruned graph, too, and prunes weights and learns
    from a teacher besides: ``heldout.train.train_sparse_gnn`` does all of it.

    Example:
        >>> teddy(0.3).stages
        ('model', 'weights')
    """
    _check(sparsity)

    def kept(run: Run, edges: Tensor) -> Tensor:
        both = _undirected(edges)
        return kept_edges(edges, sparsity, edge_degree_scores(edges, undirected=both), both, seed=run.seed)

    def choose(run: Run, edges: Tensor) -> Tensor:
        return cast(Tensor, _once(run, "teddy edges", edges, lambda: kept(run, edges)))

    return _training_on("teddy", choose)


@checked
def drop_edge(sparsity: float = 0.2) -> Method:
    """Returns the Method that trains a graph network without a random share of the edges, others in every step.

    Answers are given on whole graphs. Both directions of a pair go together where each edge has both.

    Args:
        sparsity: share of the edges to remove, in (0, 1).

    Raises:
        ValueError: a sparsity out of range.

    Source: arXiv:1907.10903, section 3. deviation: there each direction of a pair goes alone.

    Example:
        >>> drop_edge(0.5).stages
        ('model', 'weights')
    """
    _check(sparsity)

    def choose(run: Run, edges: Tensor) -> Tensor:
        pairs, count = _once(run, "drop_edge pairs", edges, lambda: edge_pairs(edges))
        kept = run.state.get("drop_edge kept")
        same = run.evaluation > 0 and kept is not None and len(kept) == len(pairs)
        if not same:  # but SAM's second evaluation in a step drops those of the first
            kept = run.state["drop_edge kept"] = random_edges(pairs, count, sparsity, run.generator)
        return cast(Tensor, kept)

    return _training_on("drop_edge", choose)


@checked
def edge_pairs(edge_index: Tensor) -> tuple[Tensor, int]:
    """Returns which pair of nodes each edge belongs to, and how many pairs there are, for ``random_edges``.

    Both directions and all copies of an edge are one pair where each edge has both; otherwise each edge is one. A
    self-loop is none: -1.

    Args:
        edge_index: int64 ``(2, edges)``.

    Raises:
        ValueError: another shape, no integers, or nodes below 0.

    Example:
        >>> edge_pairs(torch.tensor([[0, 1, 1, 2, 2], [1, 0, 2, 1, 2]]))
        (tensor([ 0,  0,  1,  1, -1]), 2)
    """
    check_dimensions(2, edge_index=edge_index)
    check_labels(edge_index=edge_index)
    edge_index = edge_index.long()
    proper = edge_index[0] != edge_index[1]
    ends = edge_index[:, proper]
    if ends.numel() and _undirected(edge_index):
        ends = ends.sort(0).values
        found, groups = (ends[0] * (int(edge_index.max()) + 1) + ends[1]).unique(return_inverse=True)
        count = len(found)
    else:
        count = ends.shape[1]
        groups = torch.arange(count, device=edge_index.device)
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
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity, the share of edges to remove, must lie in [0, 1), got {sparsity}")
    check_at_least(0, count=count)
    check_labels(count + 1, pairs=pairs + 1)
    stays = torch.ones(count + 1, dtype=torch.bool)  # the last is that of self-loops
    stays[torch.randperm(count, generator=generator)[: math.floor(sparsity * count + 1e-9)]] = False
    return stays.to(pairs.device)[pairs]


def _once(run: Run, name: str, edges: Tensor, made: Callable[[], Any]) -> Any:
    """What was made of the same edges before, of a few that were seen last."""
    known = run.state.setdefault(name, [])
    for seen, value in known:
        if seen is edges:
            return value
    value = made()
    known.append((edges, value))
    del known[:-4]
    return value


def _check(sparsity: float) -> None:
    if not 0 < sparsity < 1:
        raise ValueError(f"sparsity, the share of edges to remove, must lie in (0, 1), got {sparsity}")


def _undirected(edges: Tensor) -> bool:
    nodes = int(edges.max()) + 1 if edges.numel() else 0
    there, back = edges[0] * nodes + edges[1], edges[1] * nodes + edges[0]
    return torch.equal(there.sort().values, back.sort().values)


def _training_on(name: str, choose: Callable[[Run, Tensor], Tensor]) -> Method:
    def model(run: Run, module: nn.Module) -> nn.Module:
        run.state[name] = _prune_in_training(module, lambda edges: choose(run, edges))
        return module

    def weights(run: Run, module: nn.Module) -> nn.Module:
        run.state.pop(name).remove()
        return module

    return Method(name, model=model, weights=weights, check=_why_no_graphs)


@checked
def edge_hook(module: nn.Module, hook: Callable[..., Any]) -> RemovableHandle:
    """Registers a forward pre-hook, with keyword arguments, that changes the graph that a module is called with.

    Hooks act by their attribute ``place``, whatever came first: 0 for those that replace edges, 1 for those that leave
    edges out, 2 for those that add nodes; hooks without one act before.

    Args:
        module: called with a graph.
        hook: ``(module, args, kwargs) -> (args, kwargs)`` or None.

    Example:
        >>> module = nn.Identity()
        >>> def double(module, args, kwargs):
        ...     return (2 * args[0],), kwargs
        >>> handle = edge_hook(module, double)
        >>> module(torch.ones(1))
        tensor([2.])
    """
    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    hooks: Any = module._forward_pre_hooks
    placed = [key for key, each in hooks.items() if hasattr(each, "place")]
    for key in sorted(placed, key=lambda key: hooks[key].place):
        hooks.move_to_end(key)
    return handle


def _prune_in_training(module: nn.Module, choose: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """Lets a module that is called with a graph see some of its edges only, while it trains."""

    def prune(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not module.training:
            return None
        if len(args) == 1 and hasattr(args[0], "edge_subgraph"):  # one Data
            return (args[0].edge_subgraph(choose(args[0].edge_index)), *args[1:]), kwargs
        edges = kwargs["edge_index"] if "edge_index" in kwargs else args[1]
        keep = choose(edges)
        kwargs = kwargs | {n: kwargs[n][keep] for n in _OF_EDGES if kwargs.get(n) is not None}
        if "edge_index" in kwargs:
            return args, kwargs | {"edge_index": edges[:, keep]}
        return (args[0], edges[:, keep], *args[2:]), kwargs

    prune.place = 1  # type: ignore[attr-defined]
    return edge_hook(module, prune)


def _why_no_graphs(module: nn.Module, splits: Splits) -> str | None:
    graphs = getattr(splits.train, "graphs", None)
    graph = getattr(splits.train, "graph", None) if graphs is None else graphs[0]
    if not hasattr(graph, "edge_index"):
        return "it removes edges of graphs, and the training examples are no graphs or nodes of one"
    return None
