"""Core: How a graph network is called, and hooks that change the graph that it is called with.

A network is called with ``x, edge_index``, by position or name, and with ``edge_weight``, ``edge_attr`` and ``batch``
by name, or with one ``torch_geometric.data.Data``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from heldout.errors import checked
from heldout.method import Splits

EDGE_FIELDS = ("edge_weight", "edge_attr")
"""What may come with edges, one row for each."""


@checked
def edge_hook(module: nn.Module, hook: Callable[..., Any]) -> RemovableHandle:
    """Registers a forward pre-hook, with keyword arguments, that changes the graph that a module is called with.

    Hooks act by their attribute ``place``, whatever came first: 0 for those that replace edges, 1 for those that leave
    edges out, 2 for those that add nodes; hooks without one act before.

    Args:
        module: called with a graph.
        hook: ``(module, args, kwargs) -> (args, kwargs)`` or None.

    Example:
        >>> import torch
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


@checked
def edges_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Returns the edges of a call, int64 ``(2, edges)``.

    Args:
        args, kwargs: of the call.

    Example:
        >>> import torch
        >>> edges_of((torch.zeros(2, 1),), {"edge_index": torch.tensor([[0], [1]])}).tolist()
        [[0], [1]]
    """
    if _is_data(args):
        return args[0].edge_index
    return kwargs["edge_index"] if "edge_index" in kwargs else args[1]


@checked
def with_edges(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], edges: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments of a call with other edges; what comes with edges stays, and so does the graph given.

    Args:
        args, kwargs: of the call.
        edges: int64 ``(2, edges)``.

    Example:
        >>> import torch
        >>> with_edges((1, torch.zeros(2, 0)), {}, torch.tensor([[0], [1]]))
        ((1, tensor([[0],
                [1]])), {})
    """
    if _is_data(args):
        graph = copy.copy(args[0])
        graph.edge_index = edges
        return (graph,), dict(kwargs)
    if "edge_index" in kwargs:
        return args, {**kwargs, "edge_index": edges}
    return (args[0], edges, *args[2:]), dict(kwargs)


@checked
def training_graph(splits: Splits) -> Any:
    """Returns the graph whose nodes are training examples, or the first of graphs that are; None where there is none.

    Example:
        >>> import torch
        >>> training_graph(Splits(train=[(torch.zeros(2), 0)])) is None
        True
    """
    graphs = getattr(splits.train, "graphs", None)
    graph = getattr(splits.train, "graph", None) if graphs is None else graphs[0]
    return graph if hasattr(graph, "edge_index") else None


def _is_data(args: tuple[Any, ...]) -> bool:
    return len(args) == 1 and hasattr(args[0], "edge_index")
