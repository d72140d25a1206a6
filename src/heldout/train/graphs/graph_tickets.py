"""Graph lottery tickets by iterative magnitude pruning of learned masks on edges and weights (UGS).

Source: arXiv:2102.06790 (Chen et al., ICML 2021), algorithms 1 and 2.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from heldout.data import prune_edges
from heldout.errors import check_at_least, check_has, check_nonnegative, checked, require
from heldout.method import evaluating
from heldout.train.graphs.sparse_gnn import SparseResult, accuracy_on, train_sparse_gnn
from heldout.train.supervised import seeded
from heldout.weights import L0Projection, apply_mask, weights_only


@checked
def graph_ticket(
    model: nn.Module,
    data: Any,
    edge_sparsity: float,
    weight_sparsity: float = 0.0,
    *,
    rounds: int = 5,
    edge_l1: float = 1e-6,
    weight_l1: float = 1e-5,
    epochs: int = 200,
    optimizer: Callable[[Iterable[Any]], Optimizer] | None = None,
    seed: int = 0,
) -> SparseResult:
    """Returns a graph network trained on a pruned graph, with few weights, where learned masks chose both.

    In each round weights are trained together with a mask on every edge and weight, under an L1 penalty on masks; the
    edges and weights with the smallest masks go, as large a share in each round, by the masks of the epoch of highest
    validation accuracy; weights are rewound to their start. The ticket that is left is trained once more, as by
    ``train_sparse_gnn`` without a teacher. Costs ``rounds + 1`` trainings.

    Args:
        model: called as ``model(x, edge_index)``, of layers that pass messages as in PyTorch Geometric; it stays as it
            is. One that keeps what it computed from a graph (``cached=True``) must be new.
        data: undirected, without self-loops, otherwise as for ``train_sparse_gnn``.
        edge_sparsity: share of the pairs of nodes to part, in [0, 1).
        weight_sparsity: share of the weights with at least two axes to set to zero, in [0, 1).
        rounds: of pruning.
        edge_l1, weight_l1: strength of the penalties.
        epochs: steps of each training.
        optimizer: makes one of weights and masks; default: Adam with a rate of 0.01 and weight decay of 5e-4.
        seed: of dropout, and of ties among edges.

    Raises:
        ValueError: sparsities outside [0, 1), a graph with self-loops, and what ``train_sparse_gnn`` refuses.
        FloatingPointError: the loss is no longer finite.

    Source: arXiv:2102.06790. deviation: masks multiply messages, so that any network takes them; a pair of nodes goes
    by the mean of the masks of its two directions; masks have no weight decay.

    Example:
        >>> from torch_geometric.nn import GCN
        >>> from heldout.tasks import BlockModel
        >>> graph = BlockModel(nodes=200, tail=2.0).sample(0)
        >>> graph.train_mask, graph.val_mask = torch.arange(200) < 100, torch.arange(200) >= 100
        >>> graph_ticket(GCN(64, 16, 2, 5), graph, 0.2, 0.5, rounds=2, epochs=3).data.num_edges
        960
    """
    check_has("x", "edge_index", "y", "train_mask", "val_mask", data=data)
    check_at_least(1, rounds=rounds, epochs=epochs)
    check_at_least(0, seed=seed)
    check_nonnegative(edge_l1=edge_l1, weight_l1=weight_l1)
    for name, sparsity in (("edge_sparsity", edge_sparsity), ("weight_sparsity", weight_sparsity)):
        if not 0 <= sparsity < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {sparsity}")
    if bool((data.edge_index[0] == data.edge_index[1]).any()):
        raise ValueError("data must have no self-loops: networks add their own, and masks would not tell them apart")
    prune_edges(data, 0.0, "random", seed=seed)  # refuses a graph that it cannot prune
    graph, pairs = data, _pairs(data)
    mask = {
        name: torch.ones_like(p, dtype=torch.bool)
        for name, p in model.named_parameters()
        if p.requires_grad and weights_only(name, p)
    }
    for number in range(1, rounds + 1):
        with seeded(seed):
            edges, weights = _learned_masks(model, graph, mask, edge_l1, weight_l1, epochs, optimizer or _adam)
        left = pairs - int((1 - (1 - edge_sparsity) ** (number / rounds)) * pairs + 1e-6)
        now = _pairs(graph)
        graph = prune_edges(graph, max(0.0, (now - left) / now), edges, seed=seed) if now else graph
        if weight_sparsity and mask:
            L0Projection(weights.items(), 1 - (1 - weight_sparsity) ** (number / rounds)).project_()
            mask = {name: each.detach() != 0 for name, each in weights.items()}
    ticket = copy.deepcopy(model)
    if weight_sparsity:
        apply_mask(ticket, mask)
    found = train_sparse_gnn(ticket, graph, distill=0.0, epochs=epochs, optimizer=optimizer, seed=seed)
    for module in found.model.modules():
        for name in list(getattr(module, "parametrizations", ())):
            parametrize.remove_parametrizations(module, name)
    gone = sum(int((~kept).sum()) for kept in mask.values())
    return found._replace(
        edge_sparsity=1 - graph.num_edges / data.num_edges if data.num_edges else 0.0,
        weight_sparsity=gone / max(1, sum(kept.numel() for kept in mask.values())),
    )


def _learned_masks(
    model: nn.Module,
    data: Any,
    mask: dict[str, Tensor],
    edge_l1: float,
    weight_l1: float,
    epochs: int,
    optimizer: Callable[[Iterable[Any]], Optimizer],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the sizes of masks on edges ``(edges,)``, and on weights, 0 where one is gone."""
    learner = copy.deepcopy(model)
    own = dict(learner.named_parameters())
    edges = torch.ones(data.num_edges, device=data.edge_index.device, dtype=data.x.dtype, requires_grad=True)
    weights = {name: kept.to(own[name]).requires_grad_() for name, kept in mask.items()}
    steps = optimizer([p for p in own.values() if p.requires_grad])
    masks = torch.optim.Adam([edges, *weights.values()], lr=steps.param_groups[0]["lr"])
    best, found = -1.0, (edges, weights)

    def logits() -> Tensor:
        masked = {name: own[name] * torch.where(mask[name], each, 0.0) for name, each in weights.items()}
        return functional_call(learner, masked, (data.x, data.edge_index))

    with _masked_messages(learner, edges):
        for epoch in range(1, epochs + 1):
            learner.train()
            steps.zero_grad()
            masks.zero_grad()
            loss = F.cross_entropy(logits()[data.train_mask], data.y[data.train_mask])
            loss = loss + edge_l1 * edges.abs().sum() + weight_l1 * sum(each.abs().sum() for each in weights.values())
            if not bool(loss.isfinite()):
                raise FloatingPointError(f"the loss is {loss.item()} at epoch {epoch}: lower the learning rate")
            loss.backward()
            steps.step()
            masks.step()
            with evaluating(learner), torch.no_grad():
                accuracy = accuracy_on(data, "val_mask", logits())
            if accuracy >= best:
                sizes = {name: torch.where(mask[name], each.detach().abs(), 0.0) for name, each in weights.items()}
                best, found = accuracy, (edges.detach().abs(), {n: each.requires_grad_() for n, each in sizes.items()})
    return found


@contextmanager
def _masked_messages(model: nn.Module, mask: Tensor) -> Iterator[None]:
    """Multiplies messages along edges by their masks; those along self-loops that a layer adds stay as they are."""
    base = require("torch_geometric.nn").MessagePassing
    layers = [module for module in model.modules() if isinstance(module, base)]
    if not layers:
        raise ValueError("model must hold layers that pass messages as in PyTorch Geometric, got none")

    def multiply(module: Any, inputs: Any, messages: Tensor) -> Tensor:
        axis = module.node_dim % messages.ndim
        added = messages.shape[axis] - len(mask)
        if added < 0:
            raise ValueError(f"model must pass one message along each of {len(mask)} edges, got {messages.shape[axis]}")
        factors = F.pad(mask, (0, added), value=1.0)
        return messages * factors.view(-1, *[1] * (messages.ndim - axis - 1))

    handles = [layer.register_message_forward_hook(multiply) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pairs(data: Any) -> int:
    """Returns how many pairs of nodes are joined, each counted once."""
    return int(data.edge_index.sort(0).values.unique(dim=1).shape[1])


def _adam(parameters: Iterable[Any]) -> Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, weight_decay=5e-4)
