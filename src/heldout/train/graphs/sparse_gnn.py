"""Sparse graph networks in a single training: edges pruned by degrees, weights projected, a dense teacher (TEDDY).

Source: arXiv:2402.01261 (Seo, Yun and Yang, ICLR 2024), section 4; order of steps and choice of the epoch as in the
official code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from heldout.data import prune_edges
from heldout.errors import check_at_least, check_class_labels, check_finite, check_has, check_nonnegative, checked
from heldout.losses import distillation_loss
from heldout.method import evaluating
from heldout.train.supervised import seeded
from heldout.weights import L0Projection


class SparseResult(NamedTuple):
    """A graph network after training with few edges and few weights.

    Attributes:
        model: a copy of the one given, with the weights of the best epoch.
        data: the graph that it was trained on and is to be used with.
        logits: of all nodes of that graph, ``(nodes, classes)``.
        epoch: the best one, counted from 1.
        val_accuracy: at that epoch.
        test_accuracy: at that epoch, once; None without ``test_mask``.
        edge_sparsity: share of the edges that are gone.
        weight_sparsity: share of the projected weights that are zero; 0.0 without projection.
        teacher_logits: those that were learned from, for other students; None without distillation.

    Example:
        >>> from torch_geometric.nn import GCN
        >>> from heldout.tasks import BlockModel
        >>> graph = BlockModel(nodes=100).sample(0)
        >>> graph.train_mask, graph.val_mask = torch.arange(100) < 50, torch.arange(100) >= 50
        >>> found = train_sparse_gnn(GCN(64, 16, 2, 5), graph, distill=0.0, epochs=2)  # the plain training
        >>> found.edge_sparsity, found.weight_sparsity, found.teacher_logits, found.test_accuracy
        (0.0, 0.0, None, None)
    """

    model: nn.Module
    data: Any
    logits: Tensor
    epoch: int
    val_accuracy: float
    test_accuracy: float | None
    edge_sparsity: float
    weight_sparsity: float
    teacher_logits: Tensor | None


@checked
def train_sparse_gnn(
    model: nn.Module,
    data: Any,
    edge_sparsity: float = 0.0,
    weight_sparsity: float = 0.0,
    distill: float = 0.1,
    teacher_logits: Tensor | None = None,
    epochs: int = 200,
    optimizer: Callable[[Iterable[Any]], Optimizer] | None = None,
    *,
    score: Tensor | Callable[[Any], Tensor] | Literal["edge_degree", "random"] = "edge_degree",
    exclude: Callable[[str, Tensor], bool] | None = None,
    undirected: bool = True,
    seed: int = 0,
) -> SparseResult:
    """Returns a copy of a graph network trained on a pruned graph, with few weights, by a dense teacher.

    Edges are pruned once. Each step takes the whole graph: cross-entropy on the training nodes plus ``distill`` times
    the KL divergence from the teacher on all nodes; after it all but the largest weights are zero. What is returned is
    the epoch of highest validation accuracy, the last one of equals. With sparsities and ``distill`` of 0 it is the
    plain training. Costs two forward passes and one backward pass an epoch, and as much again for a teacher.

    Args:
        model: called as ``model(x, edge_index)``, gives logits ``(nodes, classes)``; it stays as it is, and its weights
            are the start of the copy. A model that keeps what it computed from a graph (``cached=True``) must be new.
        data: ``torch_geometric.data.Data`` with ``x``, ``edge_index``, ``y`` and bool ``train_mask``, ``val_mask`` and
            perhaps ``test_mask`` of all nodes; on the model's device.
        edge_sparsity: share of the pairs of nodes to part, in [0, 1).
        weight_sparsity: share of the weights to set to zero, in [0, 1), all parameters together.
        distill: weight of the teacher. Published: 0.1, and up to 10; to be tuned.
        teacher_logits: of all nodes, ``(nodes, classes)``; default: a copy of the model is trained first on the whole
            graph, dense, with the same epochs, optimizer and seed.
        epochs: steps.
        optimizer: makes one of the parameters; default: Adam with a rate of 0.01 and weight decay of 5e-4.
        score: of edges, as for ``prune_edges``.
        exclude: ``(name, parameter) -> bool``, parameters that are not projected, such as biases.
        undirected: whether both directions of a pair go together, as for ``prune_edges``.
        seed: of dropout, and of ties among edges.

    Raises:
        ValueError: sparsities outside [0, 1), a graph without masks or class labels, a model that keeps what it
            computed from a graph, teacher logits of another shape or not finite, and what ``prune_edges`` and
            ``L0Projection`` refuse.
        FloatingPointError: the loss is no longer finite.

    Source: arXiv:2402.01261, section 4.

    Example:
        >>> from torch_geometric.nn import GCN
        >>> from heldout.tasks import BlockModel
        >>> graph = BlockModel(nodes=200, tail=2.0).sample(0)
        >>> graph.train_mask, graph.val_mask = torch.arange(200) < 100, torch.arange(200) >= 100
        >>> found = train_sparse_gnn(GCN(64, 16, 2, 5), graph, 0.2, 0.8, epochs=5)
        >>> found.data.num_edges, round(found.weight_sparsity, 2)
        (960, 0.8)
    """
    check_has("x", "edge_index", "y", "train_mask", "val_mask", data=data)
    check_nonnegative(distill=distill)
    check_at_least(1, epochs=epochs)
    check_at_least(0, seed=seed)
    for name, sparsity in (("edge_sparsity", edge_sparsity), ("weight_sparsity", weight_sparsity)):
        if not 0 <= sparsity < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {sparsity}")
    _check_nodes(data)
    _check_new(model)
    if distill and teacher_logits is None:
        dense = train_sparse_gnn(model, data, 0.0, 0.0, 0.0, epochs=epochs, optimizer=optimizer, seed=seed)
        teacher_logits = dense.logits
    if teacher_logits is not None:
        check_finite(teacher_logits=teacher_logits)
        if teacher_logits.ndim != 2 or len(teacher_logits) != len(data.y):
            got = tuple(teacher_logits.shape)
            raise ValueError(f"teacher_logits must have one row for each of {len(data.y)} nodes, got {got}")
    graph = prune_edges(data, edge_sparsity, score, undirected, seed=seed) if edge_sparsity else data
    student = copy.deepcopy(model)
    steps = (optimizer or _adam)([p for p in student.parameters() if p.requires_grad])
    projection = L0Projection(student, weight_sparsity, exclude=exclude) if weight_sparsity else None
    if projection is not None:
        steps.register_step_post_hook(projection)

    with seeded(seed):
        best = _fit(student, graph, steps, epochs, distill, teacher_logits)
    return SparseResult(
        student,
        graph,
        best.logits,
        best.epoch,
        best.val_accuracy,
        accuracy_on(graph, "test_mask", best.logits) if _has(graph, "test_mask") else None,
        1 - graph.num_edges / data.num_edges if data.num_edges else 0.0,
        projection.sparsity() if projection is not None else 0.0,
        teacher_logits if distill else None,
    )


@checked
def accuracy_on(data: Any, mask: str, logits: Tensor) -> float:
    """Returns the share of the nodes of a mask, such as "val_mask", that are classified right.

    Args:
        data: a graph with ``y`` and the mask.
        mask: its name.
        logits: of all nodes, ``(nodes, classes)``.

    Raises:
        ValueError: a graph without the mask, or a mask of no nodes.

    Example:
        >>> from torch_geometric.data import Data
        >>> graph = Data(y=torch.tensor([0, 1]), test_mask=torch.tensor([True, True]))
        >>> accuracy_on(graph, "test_mask", torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        0.5
    """
    check_has("y", mask, data=data)
    check_finite(logits=logits)
    where = getattr(data, mask)
    if logits.ndim != 2 or len(logits) != len(data.y):
        raise ValueError(f"logits must have one row for each of {len(data.y)} nodes, got {tuple(logits.shape)}")
    if not bool(where.any()):
        raise ValueError(f"{mask} of data must hold a node")
    return float((logits.argmax(1) == data.y)[where].double().mean())


class _Best(NamedTuple):
    epoch: int
    val_accuracy: float
    logits: Tensor


def _fit(
    model: nn.Module, data: Any, optimizer: Optimizer, epochs: int, distill: float, teacher: Tensor | None
) -> _Best:
    """Trains in place, and leaves the model with the weights of the best epoch."""
    best, state = _Best(0, -1.0, torch.empty(0)), list[Tensor]()
    for epoch in range(1, epochs + 1):
        model.train()
        optimizer.zero_grad()
        logits = model(data.x, data.edge_index)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(data.y):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"model must give logits (nodes, classes), got {got}")
        loss = F.cross_entropy(logits[data.train_mask], data.y[data.train_mask])
        if distill and teacher is not None:
            loss = loss + distill * distillation_loss(logits, teacher)
        if not bool(loss.isfinite()):
            raise FloatingPointError(f"the loss is {loss.item()} at epoch {epoch}: lower the learning rate")
        loss.backward()
        optimizer.step()
        with evaluating(model), torch.no_grad():
            logits = model(data.x, data.edge_index)
        accuracy = accuracy_on(data, "val_mask", logits)
        if accuracy >= best.val_accuracy:
            best = _Best(epoch, accuracy, logits)
            state = [value.detach().clone() for value in (*model.parameters(), *model.buffers())]
    with torch.no_grad():
        for value, kept in zip((*model.parameters(), *model.buffers()), state, strict=True):
            value.copy_(kept)
    return best


def _adam(parameters: Iterable[Any]) -> Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, weight_decay=5e-4)


def _check_new(model: nn.Module) -> None:
    for module in model.modules():
        if any(value is not None for name, value in vars(module).items() if name.startswith("_cached")):
            raise ValueError("model keeps what it computed from a graph (cached=True): pruning would not reach it")


def _has(data: Any, name: str) -> bool:
    return getattr(data, name, None) is not None


def _check_nodes(data: Any) -> None:
    check_class_labels(y=data.y)
    if data.y.ndim != 1 or data.y.is_floating_point():
        raise ValueError(f"y of data must be class indices (nodes,), got {data.y.dtype} {tuple(data.y.shape)}")
    for name in ("train_mask", "val_mask", "test_mask"):
        mask = getattr(data, name, None)
        if mask is None and name == "test_mask":
            continue
        if mask is None or mask.dtype != torch.bool or mask.shape != data.y.shape or not bool(mask.any()):
            raise ValueError(f"{name} of data must be bool, one entry for each of {len(data.y)} nodes, and hold a node")
