"""Methods of graph networks that are trained on fewer edges: always the same ones gone (TEDDY), or others in each step.

Sources: arXiv:2402.01261 (Seo, Yun and Yang, ICLR 2024); arXiv:1907.10903 (Rong et al., ICLR 2020: DropEdge).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from heldout.data.graphs.edge_pruning import edge_degree_scores, kept_edges
from heldout.errors import checked
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

    def choose(run: Run, edges: Tensor) -> Tensor:
        known = run.state.setdefault("teddy edges", [])  # graphs, and which edges of them stay
        for seen, keep in known:
            if seen is edges:
                return cast(Tensor, keep)
        both = _undirected(edges)
        keep = kept_edges(edges, sparsity, edge_degree_scores(edges, undirected=both), both, seed=run.seed)
        known.append((edges, keep))
        del known[:-4]
        return keep

    return _training_on("teddy", choose)


@checked
def drop_edge(sparsity: float = 0.2) -> Method:
    """Returns the Method that trains a graph network without a random share of the edges, others in every step.

    Answers are given on whole graphs. Both directions of a pair go together where each edge has both.

    Args:
        sparsity: share of the edges to remove, in (0, 1).

    Raises:
        ValueError: a sparsity out of range.

    Source: arXiv:1907.10903, section 3.

    Example:
        >>> drop_edge(0.5).stages
        ('model', 'weights')
    """
    _check(sparsity)

    def choose(run: Run, edges: Tensor) -> Tensor:
        drawn = int(torch.randint(2**31, (), generator=run.generator))
        return kept_edges(edges, sparsity, torch.zeros_like(edges[0]), _undirected(edges), seed=drawn)

    return _training_on("drop_edge", choose)


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

    return module.register_forward_pre_hook(prune, with_kwargs=True)


def _why_no_graphs(module: nn.Module, splits: Splits) -> str | None:
    graphs = getattr(splits.train, "graphs", None)
    graph = getattr(splits.train, "graph", None) if graphs is None else graphs[0]
    if not hasattr(graph, "edge_index"):
        return "it removes edges of graphs, and the training examples are no graphs or nodes of one"
    return None
