"""Graphs of PyTorch Geometric as examples: the nodes of one graph, or many graphs.

``data()`` gives Splits of

* ``Data`` with ``train_mask``, ``val_mask`` and ``test_mask``, or ``(Data, mask)``: an example is a node, and its
  target is the node's ``y``; every step runs the model on the whole graph. Sets may lie in one graph or in several.
* data sets or lists of ``Data`` with one ``y`` each: an example is a graph.

``Splits(unlabeled=...)`` takes a graph, a list of them, or graphs by name, whose nodes have no targets: ``audit`` ranks
them by how wrong the model seems to be on each.

The model is called with those of ``x``, ``edge_index``, ``edge_weight``, ``edge_attr`` and ``batch`` that its
``forward`` names, or with one ``Data`` where it takes nothing else. Targets tell the kind, as for other data: classes,
labels or real numbers. To ``fit`` an example is a dict of tensors; the model puts them together again.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from heldout.data import EDGE_FIELDS
from heldout.errors import check_at_least, checked, require
from heldout.method import Splits, forward
from heldout.problem.problem import Problem
from heldout.train import Fitted

MASKS = {"train": "train_mask", "val": "val_mask", "test": "test_mask"}
BATCH = 128  # graphs that are answered at a time


@dataclass
class GraphProblem(Problem):
    """A problem of graphs: one of examples like every other, but for how the model is called.

    Attributes:
        graphs: those that nodes are examples of.
        unlabeled: graphs without targets, by name.

    Example:
        >>> from pathlib import Path
        >>> from torch_geometric.data import Data
        >>> from torch_geometric.nn import GCN
        >>> node = torch.arange(6)
        >>> graph = Data(x=torch.randn(6, 2), edge_index=torch.tensor([[0, 1], [1, 2]]), y=node % 2)
        >>> graph.train_mask, graph.val_mask, graph.test_mask = node < 4, node == 4, node == 5
        >>> splits, graphs, _ = graph_fields({"train": graph, "val": graph, "test": {"iid": graph}})
        >>> problem = GraphProblem(Path("mine.py"), lambda: GCN(2, 4, 1, 2), splits, {}, graphs=graphs)
        >>> len(problem.splits.train), problem.kind.name
        (4, 'classification')
    """

    graphs: list[Any] = field(default_factory=list)
    unlabeled: dict[str, Any] = field(default_factory=dict)

    def _given_model(self, seed: int) -> nn.Module:
        return on_graphs(super()._given_model(seed), self.graphs)

    def examples(self, fitted: Fitted, dataset: Any) -> Any:
        """Returns a graph (with ``test_mask``, or a pair with its mask) or graphs as ``outputs`` takes them."""
        whole = fitted.module.__dict__["_heldout_graphs"]
        if isinstance(self.given.train, Nodes):
            found: Any = _nodes({("test", "dataset"): dataset}, whole.graphs)["test", "dataset"]
        else:
            found = _graphs({("test", "dataset"): dataset})["test", "dataset"]
        return self.kind.data(found)

    def answers(self, fitted: Fitted, inputs: Any) -> Tensor | None:
        """Returns outputs for the nodes of a graph (or of those in a mask), or for each graph of a list."""
        whole = fitted.module.__dict__["_heldout_graphs"]
        if isinstance(self.given.train, Nodes):
            if not is_graph(inputs) and not _with_mask(inputs):
                return None
            graph, mask = inputs if _with_mask(inputs) else (inputs, torch.ones(len(inputs.x), dtype=torch.bool))
            nodes = Nodes(graph, mask, whole.number(graph))
            place = next((p.device for p in fitted.module.parameters()), nodes.nodes.device)
            asked = {"node": nodes.nodes.to(place), "graph": torch.full((len(nodes),), nodes.number, device=place)}
            return fitted.predict(asked)
        graphs = [inputs] if is_graph(inputs) else inputs
        if isinstance(graphs, Tensor | Mapping) or not len(graphs) or not is_graph(graphs[0]):
            return None
        everyone = [graphs[i] for i in range(len(graphs))]
        rows = Graphs(everyone, *_largest(everyone))
        place = next((p.device for p in fitted.module.parameters()), torch.device("cpu"))
        parts = []
        for start in range(0, len(rows), BATCH):
            batch = default_collate([rows.inputs(i) for i in range(start, min(start + BATCH, len(rows)))])
            parts.append(fitted.predict({name: value.to(place) for name, value in batch.items()}))
        return torch.cat(parts)


class Nodes(Dataset[dict[str, Any]]):
    """Nodes of a graph as examples ``{"node", "graph", "labels"}``.

    Args:
        graph: with ``x``, ``edge_index`` and ``y``.
        mask: bool ``(nodes,)``, or positions; which of them.
        number: of the graph among those of the problem.

    Example:
        >>> from types import SimpleNamespace
        >>> line = SimpleNamespace(x=torch.eye(3), edge_index=torch.tensor([[0, 1], [1, 2]]), y=torch.tensor([0, 1, 1]))
        >>> Nodes(line, torch.tensor([True, False, True]))[1]
        {'node': tensor(2), 'graph': tensor(0), 'labels': tensor(1)}
    """

    @checked
    def __init__(self, graph: Any, mask: Tensor, number: int = 0) -> None:
        check_at_least(0, number=number)
        mask = torch.as_tensor(mask)
        self.nodes = mask.nonzero()[:, 0] if mask.dtype == torch.bool else mask.long()
        self.graph, self.number = graph, number

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, position: int) -> dict[str, Any]:
        node = self.nodes[position]
        return {"node": node, "graph": torch.tensor(self.number), "labels": self.graph.y[node]}


class Graphs(Dataset[dict[str, Any]]):
    """Graphs as examples of tensors, each padded to the largest graph.

    Args:
        graphs: with ``x``, ``edge_index`` and one ``y`` each.
        nodes: of the largest graph.
        edges: likewise.

    Example:
        >>> from types import SimpleNamespace
        >>> dot = SimpleNamespace(x=torch.ones(1, 2), edge_index=torch.zeros(2, 0, dtype=torch.int64), y=1)
        >>> Graphs([dot], 3, 4)[0]["x"].shape
        torch.Size([3, 2])
    """

    @checked
    def __init__(self, graphs: Any, nodes: int, edges: int) -> None:
        check_at_least(0, nodes=nodes, edges=edges)
        self.graphs, self.nodes, self.edges = graphs, nodes, edges

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, position: int) -> dict[str, Any]:
        target = torch.as_tensor(self.graphs[position].y)
        return self.inputs(position) | {"labels": target.reshape(()) if target.numel() == 1 else target.reshape(-1)}

    def inputs(self, position: int) -> dict[str, Tensor]:
        """Returns the tensors of a graph, without its target."""
        graph = self.graphs[position]
        nodes, edges = self.nodes - len(graph.x), self.edges - graph.edge_index.shape[1]
        found = {
            "x": F.pad(graph.x, (0, 0, 0, nodes)),
            "edge_index": F.pad(graph.edge_index, (0, edges)),
            "num_nodes": torch.tensor(len(graph.x)),
            "num_edges": torch.tensor(graph.edge_index.shape[1]),
        }
        for name in EDGE_FIELDS:
            value = getattr(graph, name, None)
            if value is not None:
                found[name] = F.pad(value, (0, edges) if value.ndim == 1 else (0, 0, 0, edges))
        return found


def on_graphs(module: nn.Module, graphs: Sequence[Any] = ()) -> nn.Module:
    """Returns the module, which takes batches of ``Nodes`` or ``Graphs`` from now on; its weights keep their names.

    Args:
        module: called with those of ``x``, ``edge_index``, ``edge_weight``, ``edge_attr`` and ``batch`` that its
            ``forward`` names, or with one ``Data``.
        graphs: those that nodes are examples of.
    """
    known = module.__dict__.get("_heldout_graphs")
    module.__dict__["_heldout_graphs"] = _Whole(graphs)
    if known is None:
        module.register_forward_pre_hook(_put_together, with_kwargs=True, prepend=True)
        module.register_forward_hook(_pick_nodes)
    return module


class _Whole:
    """Graphs joined to one without edges between them; shared by copies of a model."""

    def __init__(self, graphs: Sequence[Any]) -> None:
        self.graphs = list(graphs)
        self._joined: dict[Any, tuple[dict[str, Tensor], Tensor]] = {}

    def __deepcopy__(self, memo: Any) -> _Whole:
        return self

    def number(self, graph: Any) -> int:
        """Returns the number of a graph, which is added where it is new."""
        return _number(self.graphs, graph)

    def joined(self, numbers: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the tensors of some graphs as one, on the device of ``like``, and where each of all graphs begins."""
        key = numbers, like.device, dtype
        if key not in self._joined:
            chosen = [self.graphs[i] for i in numbers]
            sizes = torch.tensor([len(graph.x) for graph in chosen])
            starts = sizes.cumsum(0) - sizes
            first = torch.zeros(len(self.graphs), dtype=torch.int64)
            first[list(numbers)] = starts
            found = {
                "x": torch.cat([graph.x for graph in chosen]),
                "edge_index": torch.cat([g.edge_index + start for g, start in zip(chosen, starts, strict=True)], 1),
                "batch": torch.arange(len(chosen)).repeat_interleave(sizes),
            }
            for name in EDGE_FIELDS:
                if all(getattr(graph, name, None) is not None for graph in chosen):
                    found[name] = torch.cat([getattr(graph, name) for graph in chosen])
            moved = {n: v.to(like.device, dtype if v.is_floating_point() else None) for n, v in found.items()}
            self._joined[key] = moved, first.to(like.device)
        return self._joined[key]


def _put_together(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """Before a forward pass: one graph of the nodes or graphs of a batch, as the model takes it."""
    for name in ("_heldout_picked", "_heldout_batch"):  # of a pass that raised
        module.__dict__.pop(name, None)
    if "node" in kwargs:
        node, graph = kwargs["node"], kwargs["graph"]
        dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.get_default_dtype())
        whole, first = module.__dict__["_heldout_graphs"].joined(tuple(graph.unique().tolist()), node, dtype)
        module.__dict__["_heldout_picked"] = first[graph] + node
    elif "num_nodes" in kwargs:
        whole = _one_graph(kwargs)
    else:
        return None
    module.__dict__["_heldout_batch"] = whole["batch"]  # for hooks that need it where the model does not
    return _arguments(module, whole)


def _pick_nodes(module: nn.Module, args: Any, output: Any) -> Tensor | None:
    module.__dict__.pop("_heldout_batch", None)
    picked = module.__dict__.pop("_heldout_picked", None)
    return None if picked is None else forward(lambda: output, ())[picked]


def _one_graph(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    x, edges, sizes, counts = batch["x"], batch["edge_index"], batch["num_nodes"], batch["num_edges"]
    real = torch.arange(x.shape[1], device=x.device) < sizes[:, None]
    there = torch.arange(edges.shape[2], device=x.device) < counts[:, None]
    starts = sizes.cumsum(0) - sizes
    found = {
        "x": x[real],
        "edge_index": (edges + starts[:, None, None]).transpose(1, 2)[there].T,
        "batch": torch.arange(len(x), device=x.device).repeat_interleave(sizes),
    }
    return found | {name: batch[name][there] for name in EDGE_FIELDS if name in batch}


def _arguments(module: nn.Module, whole: Mapping[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    parameters = inspect.signature(module.forward).parameters
    named = {name: value for name, value in whole.items() if name in parameters}
    if "x" in named:
        return (), named
    if len(parameters) == 1 and not any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        require("torch_geometric")
        from torch_geometric.data import Data

        return (Data(**whole),), {}
    return (whole["x"], whole["edge_index"]), {name: value for name, value in named.items() if name != "edge_index"}


def call_on_graph(module: nn.Module, graph: Any) -> Any:
    """Returns what a module answers for one graph, called as ``on_graphs`` has it, on its device and in its precision.

    Args:
        module: takes those of ``x``, ``edge_index``, ``edge_weight``, ``edge_attr`` and ``batch`` that its ``forward``
            names, or one ``Data``.
        graph: with ``x`` and ``edge_index``; it stays as it is.

    Example:
        >>> from types import SimpleNamespace
        >>> class Degrees(nn.Module):
        ...     def forward(self, x, edge_index):
        ...         return x + torch.bincount(edge_index[0], minlength=len(x))[:, None]
        >>> edge = SimpleNamespace(x=torch.zeros(2, 1), edge_index=torch.tensor([[0], [1]]))
        >>> call_on_graph(Degrees(), edge).tolist()
        [[1.0], [0.0]]
    """
    whole = {"x": graph.x, "edge_index": graph.edge_index, "batch": graph.x.new_zeros(len(graph.x), dtype=torch.int64)}
    whole |= {name: getattr(graph, name) for name in EDGE_FIELDS if getattr(graph, name, None) is not None}
    like = next((p for p in module.parameters() if p.is_floating_point()), graph.x)
    whole = {n: v.to(like.device, like.dtype if v.is_floating_point() else None) for n, v in whole.items()}
    args, kwargs = _arguments(module, whole)
    return forward(lambda: module(*args, **kwargs), ())


def graph_fields(fields: Mapping[str, Any]) -> tuple[Splits, list[Any], dict[str, Any]]:
    """Returns Splits of ``Nodes`` or ``Graphs``, the graphs that nodes are examples of, and those without targets.

    Args:
        fields: of Splits, as a file gave them; ``domains`` and ``groups`` have one entry for each training example, or
            for each node of the graph that is trained on.

    Raises:
        ValueError: what ``graph_splits`` refuses; domains or groups of another length.
    """
    of_examples = {name: fields[name] for name in ("domains", "groups") if fields.get(name) is not None}
    apart = ("unlabeled", "domains", "groups")
    splits, known = graph_splits(Splits(**{name: value for name, value in fields.items() if name not in apart}))
    train = splits.train
    for name, values in of_examples.items():
        values = torch.as_tensor(values)
        if isinstance(train, Nodes) and len(values) == len(train.graph.x):
            values = values[train.nodes.cpu()]
        if len(values) != len(train):  # type: ignore[arg-type]
            raise ValueError(f"{name} needs one entry for each of {len(train)} training examples, got {len(values)}")  # type: ignore[arg-type]
        splits = replace(splits, **{name: values})  # type: ignore[arg-type]
    return splits, known, unlabeled_graphs(fields.get("unlabeled"))


def unlabeled_graphs(given: Any) -> dict[str, Any]:
    """Returns graphs without targets by name, from one graph, several, or graphs by name.

    Raises:
        ValueError: something among them is no graph with node features.
    """
    if given is None:
        return {}
    named = given if isinstance(given, Mapping) else {"unlabeled": given} if is_graph(given) else None
    if named is None:
        named = {f"unlabeled {number}": given[number] for number in range(len(given))}
    for name, graph in named.items():
        if not is_graph(graph) or graph.x is None:
            raise ValueError(f"unlabeled[{name!r}] must be a graph with node features x, got {type(graph).__name__}")
    return {str(name): graph for name, graph in named.items()}


def is_graph(value: Any) -> bool:
    """Returns whether something is a graph, as PyTorch Geometric has it."""
    return hasattr(value, "edge_index") and hasattr(value, "x")


def holds_graphs(train: Any) -> bool:
    """Returns whether a training set is made of graphs or of nodes of one.

    Example:
        >>> holds_graphs((torch.zeros(3, 2), torch.zeros(3)))
        False
    """
    if is_graph(train) or _with_mask(train):
        return True
    try:
        return is_graph(train[0])
    except (KeyError, IndexError, TypeError, NotImplementedError):  # a stream has no rows by number
        return False


def graph_splits(given: Splits) -> tuple[Splits, list[Any]]:
    """Returns Splits of ``Nodes`` or ``Graphs`` from what a file gave, and the graphs that nodes are examples of.

    Raises:
        ValueError: a graph without features or targets, or a set without its mask.
    """
    val: Any = given.val if isinstance(given.val, Mapping) or given.val is None else {"": given.val}
    sets: dict[tuple[str, str], Any] = {("train", ""): given.train}
    sets |= {("val", name): each for name, each in (val or {}).items()}
    sets |= {("test", name): each for name, each in given.test.items()}
    by_node = is_graph(given.train) or _with_mask(given.train)
    known: list[Any] = []
    made: Mapping[tuple[str, str], Any] = _nodes(sets, known) if by_node else _graphs(sets)
    found: Any = {name: made["val", name] for name in val or {}}
    if val is not None and not isinstance(given.val, Mapping):
        found = found[""]
    test = {name: made["test", name] for name in given.test}
    return replace(given, train=made["train", ""], val=None if val is None else found, test=test), known


def _nodes(sets: Mapping[tuple[str, str], Any], known: list[Any]) -> dict[tuple[str, str], Nodes]:
    made = {}
    for (role, name), each in sets.items():
        title = f"{role}[{name!r}]" if name else role
        graph, mask = each if _with_mask(each) else (each, getattr(each, MASKS[role], None))
        if not is_graph(graph):
            raise ValueError(f"{title} must be Data or (Data, mask), as train is, got {type(each).__name__}")
        _check(graph, title)
        if mask is None:
            raise ValueError(f"{title} needs {MASKS[role]} in its Data, or (Data, mask)")
        mask = torch.as_tensor(mask)
        if mask.dtype == torch.bool and mask.shape != (len(graph.x),):
            raise ValueError(f"the mask of {title} must have one entry for each of {len(graph.x)} nodes")
        made[role, name] = Nodes(graph, mask, _number(known, graph))
    return made


def _number(known: list[Any], graph: Any) -> int:
    found = next((i for i, other in enumerate(known) if other is graph), None)
    if found is None:
        known.append(graph)
    return len(known) - 1 if found is None else found


def _graphs(sets: Mapping[tuple[str, str], Any]) -> dict[tuple[str, str], Graphs]:
    for (role, name), each in sets.items():
        title = f"{role}[{name!r}]" if name else role
        for number in range(len(each)):
            if not is_graph(each[number]):
                raise ValueError(f"{title} must hold graphs, as train does, got {type(each[number]).__name__}")
            _check(each[number], f"graph {number} of {title}")
    size = _largest([each[i] for each in sets.values() for i in range(len(each))])
    return {key: Graphs(each, *size) for key, each in sets.items()}


def _largest(graphs: Sequence[Any]) -> tuple[int, int]:
    """Nodes and edges of the graphs that have most of them."""
    return max(len(graph.x) for graph in graphs), max(graph.edge_index.shape[1] for graph in graphs)


def _check(graph: Any, title: str) -> None:
    if graph.x is None:
        raise ValueError(f"{title} has no node features x: give it some, such as a constant or the degree")
    if getattr(graph, "y", None) is None:
        raise ValueError(f"{title} has no y")
    index = graph.edge_index
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= len(graph.x)):
        raise ValueError(f"edge_index of {title} names nodes outside of its {len(graph.x)}")


def _with_mask(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and is_graph(value[0]) and not is_graph(value[1])
