"""A virtual node for graph networks: one more in each graph, joined with all others, which carries what is far away.

Source: arXiv:1704.01212 (Gilmer et al., ICML 2017: "master node"), section 5.2, for any network of graphs.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from heldout.data import EDGE_FIELDS, edge_hook, training_graph
from heldout.errors import check_dimensions, check_labels, check_positive, check_same_length, checked
from heldout.method import Method, Run, Splits, forward

PART = "virtual_node"


class VirtualNode(nn.Module):
    """What a virtual node begins with, a learned vector; called with a graph, it adds one to each graph of a batch.

    Args:
        features: width of node features.

    Attributes:
        start: ``(features,)``, zeros before training.

    Raises:
        ValueError: fewer than one feature.

    Example:
        >>> x, edges, batch, rows = VirtualNode(2)(torch.ones(3, 2), torch.tensor([[0], [1]]), torch.tensor([0, 0, 1]))
        >>> x.shape, batch.tolist(), rows.tolist()
        (torch.Size([5, 2]), [0, 0, 0, 1, 1], [0, 1, 3])
        >>> edges.tolist()
        [[0, 0, 1, 3, 2, 2, 4], [1, 2, 2, 4, 0, 1, 3]]
    """

    @checked
    def __init__(self, features: int) -> None:
        super().__init__()
        check_positive(features=features)
        self.features = features
        self.start = nn.Parameter(torch.zeros(features))

    @checked
    def forward(
        self, x: Tensor, edge_index: Tensor, batch: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns ``(x, edge_index, batch, rows)`` with the virtual nodes, each behind the nodes of its graph.

        Edges to and from virtual nodes follow the others: first those to them, then those from them. ``rows`` is where
        the nodes lie that were given. Graphs without nodes get none.

        Args:
            x: ``(nodes, features)``.
            edge_index: int64 ``(2, edges)``.
            batch: int64 ``(nodes,)``, the graph of each node; None: one graph.

        Raises:
            ValueError: features of another width, or shapes that do not fit.
        """
        check_dimensions(2, x=x, edge_index=edge_index)
        if x.shape[1] != self.features:
            raise ValueError(f"x must have {self.features} features for each node, got {x.shape[1]}")
        check_labels(len(x), edge_index=edge_index)
        if batch is None:
            batch = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        check_same_length(x=x, batch=batch)
        graphs, of = batch.unique(return_inverse=True)
        place = torch.cat([of, torch.arange(len(graphs), device=x.device)]).argsort(stable=True).argsort()
        rows, added = place.split([len(x), len(graphs)])
        to = torch.stack([rows, added[of]])
        edges = torch.cat([rows[edge_index], to, to.flip(0)], 1)
        order = place.argsort()
        nodes = torch.cat([x, self.start.to(x.dtype).expand(len(graphs), -1)])[order]
        return nodes, edges, torch.cat([batch, graphs])[order], rows


@checked
def virtual_node() -> Method:
    """Returns the Method that gives each graph a node joined with all of its nodes, in training and in answers.

    Two layers of any graph network then see the whole graph. The node's features are learned, from zeros; its edges
    have a weight of 1 and attributes of 0. Answers for nodes are those for the nodes that were given; pooling over a
    graph includes the virtual node.

    Source: arXiv:1704.01212, section 5.2. deviation: there the edges to it are of a kind, and the node has weights, of
    their own.

    Example:
        >>> virtual_node().stages
        ('model',)
    """
    return Method("virtual_node", model=_with_virtual_node, check=_why_no_virtual_node)


def _with_virtual_node(run: Run, module: nn.Module) -> nn.Module:
    graph = training_graph(run.splits)
    like = next((p for p in module.parameters() if p.is_floating_point()), graph.x)
    return add_virtual_node(module, VirtualNode(graph.x.shape[1]).to(like.device, like.dtype))


@checked
def add_virtual_node(module: nn.Module, node: VirtualNode) -> nn.Module:
    """Returns a module that calls itself with graphs that have virtual nodes, kept as its part ``virtual_node``.

    Outputs that are, or hold as ``logits``, a row for each node become the rows of the nodes that were given. Methods
    that change edges in training do so before.

    Args:
        module: called with ``x, edge_index``, by position or name, and with ``edge_weight``, ``edge_attr`` and
            ``batch`` by name where it takes them, or with one ``Data``. It is changed in place.
        node: of the width of its features.

    Raises:
        ValueError: the module has a part of that name.

    Example:
        >>> class Neighbours(nn.Module):
        ...     def forward(self, x, edge_index):
        ...         return x.new_zeros(x.shape).index_add(0, edge_index[1], x[edge_index[0]])
        >>> counts = add_virtual_node(Neighbours(), VirtualNode(1))
        >>> counts(torch.ones(3, 1), torch.tensor([[0], [1]])).flatten().tolist()
        [0.0, 1.0, 0.0]
    """
    if hasattr(module, PART):
        raise ValueError(f"module has a part {PART!r} already")
    module.add_module(PART, node)
    edge_hook(module, _add_nodes)
    module.register_forward_hook(_drop_nodes, prepend=True)
    return module


def _add_nodes(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    node = module.get_submodule(PART)
    graphs = module.__dict__.get("_heldout_batch")  # where the module itself is not called with it
    if len(args) == 1 and not kwargs and hasattr(args[0], "edge_index"):  # one Data
        data = args[0]
        found = node(data.x, data.edge_index, graphs if graphs is not None else getattr(data, "batch", None))
        edges = {n: _longer(n, data[n], found[1]) for n in EDGE_FIELDS if getattr(data, n, None) is not None}
        new = copy.copy(data)
        new.x, new.edge_index, new.batch = found[:3]
        if "ptr" in new:
            new.ptr = torch.cat([new.ptr.new_zeros(1), found[2].bincount().cumsum(0)])
        for name, value in edges.items():
            new[name] = value
        module.__dict__["_heldout_rows"] = found[3], len(new.x)
        return (new,), {}
    given = dict(zip(("x", "edge_index"), args[:2], strict=False)) | kwargs
    batch = kwargs.get("batch", graphs)
    x, edges, new_batch, rows = node(given["x"], given["edge_index"], batch)
    module.__dict__["_heldout_rows"] = rows, len(x)
    new = {"x": x, "edge_index": edges}
    new |= {name: _longer(name, kwargs[name], edges) for name in EDGE_FIELDS if kwargs.get(name) is not None}
    new |= {"batch": new_batch} if kwargs.get("batch") is not None else {}
    kept = tuple(new.pop(name) for name in ("x", "edge_index")[: len(args)])
    return (*kept, *args[2:]), kwargs | new


_add_nodes.place = 2  # type: ignore[attr-defined]  # of edge_hook: behind those that change edges


def _longer(name: str, values: Tensor, edges: Tensor) -> Tensor:
    fill = 1.0 if name == "edge_weight" else 0.0
    return torch.cat([values, values.new_full((edges.shape[1] - len(values), *values.shape[1:]), fill)])


def _drop_nodes(module: nn.Module, args: Any, output: Any) -> Any:
    rows, total = module.__dict__.pop("_heldout_rows")
    found = output if isinstance(output, Tensor) else _logits(output)
    if found is None or not found.ndim or len(found) != total:
        return None
    return found[rows]


def _logits(output: Any) -> Tensor | None:
    try:
        return forward(lambda: output, ())
    except TypeError:  # a tuple, say, of which nobody knows what is of nodes
        return None


def _why_no_virtual_node(module: nn.Module, splits: Splits) -> str | None:
    graph = training_graph(splits)
    if graph is None:
        return "it adds a node to graphs, and the training examples are no graphs or nodes of one"
    if graph.x.ndim != 2 or not graph.x.is_floating_point():
        return "it learns the features of a node, and those given are no rows of real numbers"
    if hasattr(module, PART):
        return f"the model has a part {PART!r} already"
    return None
