"""Methods of graph networks that are trained on fewer edges: always the same ones gone (TEDDY), or others in each step.

Sources: arXiv:2402.01261 (Seo, Yun and Yang, ICLR 2024); arXiv:1907.10903 (Rong et al., ICLR 2020: DropEdge).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from heldout.data.graphs.edge_pruning import (
    edge_degree_scores,
    edge_pairs,
    has_both_directions,
    kept_edges,
    random_edges,
)
from heldout.data.graphs.graph_calls import EDGE_FIELDS, edge_hook, edges_of, training_graph, with_edges
from heldout.errors import checked
from heldout.method import Method, Run, Splits


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
        both = has_both_directions(edges)
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
        edges = edges_of(args, kwargs)
        keep = choose(edges)
        if args and hasattr(args[0], "edge_subgraph"):  # one Data
            return (args[0].edge_subgraph(keep),), kwargs
        fields = {name: kwargs[name][keep] for name in EDGE_FIELDS if kwargs.get(name) is not None}
        return with_edges(args, kwargs | fields, edges[:, keep])

    prune.place = 1  # type: ignore[attr-defined]
    return edge_hook(module, prune)


def _why_no_graphs(module: nn.Module, splits: Splits) -> str | None:
    if training_graph(splits) is None:
        return "it removes edges of graphs, and the training examples are no graphs or nodes of one"
    return None
