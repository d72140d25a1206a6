"""LeBeD: how wrong a graph network is on a graph without labels, by how far training on its own answers takes it.

A copy of the network is trained from its first weights again, on the graph at hand and with the answers of the trained
network as labels, until its embeddings fit the edges as well as those of the trained network do. The further away from
the trained weights it then is, the more wrong the trained network is expected to be.

Source: arXiv:2403.09953 (Zheng et al., ICLR 2024), section 4; the order within an epoch is that of the official code:
the structure is measured on the embeddings before the step, the distance after it. deviation: one margin, rate and
number of epochs for every graph, where the official settings differ by data set and network.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_finite,
    check_has,
    check_labels,
    check_length,
    check_nonnegative,
    check_positive,
    checked,
)
from heldout.method import device_of


class LebedResult(NamedTuple):
    """How far training on a network's own answers takes it.

    Attributes:
        score: distance of the weights at the stop from the trained ones; the larger, the more wrong. Only scores of one
            network, with the same settings, can be compared.
        epoch: number of steps that were made.
        structure_gap: by how much the two losses of structure differed before the last step.
        stopped: whether the gap fell below the margin; if not, all epochs were used.
        agreement: share of nodes for which the copy answers at the stop as the trained network does.
        predicted: number of classes among the answers; with one, the score says little.

    Example:
        >>> near = LebedResult(score=1.2, epoch=40, structure_gap=0.01, stopped=True, agreement=0.98, predicted=5)
        >>> far = near._replace(score=3.4, agreement=0.7)  # the same network on another graph
        >>> max(near, far, key=lambda found: found.score).agreement
        0.7
    """

    score: float
    epoch: int
    structure_gap: float
    stopped: bool
    agreement: float
    predicted: int


@checked
def lebed_score(
    model: nn.Module,
    initial: Mapping[str, Tensor],
    graph: Any,
    *,
    head: str | None = None,
    lr: float = 1e-3,
    weight_decay: float = 5e-4,
    max_epochs: int = 500,
    min_epochs: int = 5,
    margin: float = 0.03,
    relative: bool = False,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    seed: int = 0,
) -> LebedResult:
    """Returns how far the network moves away when it learns its own answers on a graph: LeBeD's score of its error.

    Keep ``copy.deepcopy(model.state_dict())`` before you train: without the first weights the score means nothing. The
    model and the graph stay as they are, and torch's own randomness too.

    Args:
        model: a trained network that gives logits ``(nodes, classes)``; in training mode it may use dropout.
        initial: the ``state_dict`` of the same model before it was trained.
        graph: has ``x`` and ``edge_index`` ``(2, edges)``, without labels.
        head: name of the layer whose first argument is the embeddings ``(nodes, dim)``; default: of the layers with
            weights, at any depth, that are given what layers before them made, the last called one, such as the last
            convolution.
        lr, weight_decay: of Adam.
        max_epochs: steps at most.
        min_epochs: steps at least.
        margin: training stops when the two losses of structure differ by less.
        relative: whether the margin is a share of the trained network's loss.
        forward: ``(model, graph) -> logits``; default: ``model(graph.x, graph.edge_index)``.
        seed: of the pairs without edge, and of dropout.

    Raises:
        TypeError: a graph without ``x`` or ``edge_index``.
        ValueError: first weights with other names or shapes than the model's, not finite, or equal to the trained ones;
            a head that is no layer, or not called, or given features in place of embeddings, as in a network of one
            layer; a graph without edges, with edges of nodes that it has not, or without pairs that have no edge;
            logits that are not ``(nodes, classes)`` or not finite.

    Example:
        >>> from torch_geometric.nn import GCN
        >>> from heldout.tasks import BlockModel
        >>> graph, model = BlockModel(nodes=100).sample(0), GCN(64, 16, 2, 5)
        >>> initial = copy.deepcopy(model.state_dict())
        >>> optimizer = torch.optim.Adam(model.parameters(), 0.01)
        >>> for _ in range(20):
        ...     F.cross_entropy(model(graph.x, graph.edge_index), graph.y).backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> lebed_score(model, initial, graph, max_epochs=30).epoch <= 30
        True
    """
    check_has("x", "edge_index", graph=graph)
    check_positive(lr=lr, margin=margin)
    check_nonnegative(weight_decay=weight_decay)
    check_at_least(1, min_epochs=min_epochs)
    check_at_least(min_epochs, max_epochs=max_epochs)
    check_has("ndim", "dtype", x=graph.x, edge_index=graph.edge_index)
    check_dimensions(2, edge_index=graph.edge_index)
    check_length(2, edge_index=graph.edge_index)
    check_labels(len(graph.x), edge_index=graph.edge_index)
    _check_states(model, initial)
    call = forward or (lambda module, given: module(given.x, given.edge_index))
    place = device_of(model)
    nodes, edges = len(graph.x), graph.edge_index.to(place)
    devices = [place] if place.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        trained = copy.deepcopy(model).eval().requires_grad_(True)
        away = _pairs_without_edge(graph.edge_index.cpu(), nodes).to(place)
        if head is not None and head not in dict(trained.named_modules()):
            raise ValueError(f"head must name a layer of the model, got {head!r}")
        layer = head or _last_layer(trained, graph, call)
        with torch.no_grad():
            answers, embeddings = _embedded(trained, layer, graph, call, "the model's logits for this graph")
            labels = answers.argmax(1)
            reference = structure_loss(embeddings, edges, away)
        allowed = margin * float(reference) if relative else margin
        learner = copy.deepcopy(model).train()
        learner.load_state_dict(initial)
        learner.requires_grad_(True)
        optimizer = torch.optim.Adam(learner.parameters(), lr=lr, weight_decay=weight_decay)
        gap, epoch = math.inf, 0
        said = "lr may be too high, or half precision too coarse: logits of the copy that learns this graph"
        for epoch in range(1, max_epochs + 1):
            logits, embeddings = _embedded(learner, layer, graph, call, said)
            if not embeddings.requires_grad:
                raise ValueError(f"head {layer!r} is given features and no embeddings: their structure never changes")
            gap = abs(float(structure_loss(embeddings.detach(), edges, away)) - float(reference))
            optimizer.zero_grad()
            F.cross_entropy(logits, labels).backward()
            optimizer.step()
            if epoch >= min_epochs and gap < allowed:
                break
        with torch.no_grad():
            again = _embedded(learner.eval(), layer, graph, call, said)[0].argmax(1)
    distance = parameter_distance(dict(learner.named_parameters()), dict(trained.named_parameters()))
    return LebedResult(
        distance.item(), epoch, gap, gap < allowed, (again == labels).double().mean().item(), len(labels.unique())
    )


@checked
def structure_loss(embeddings: Tensor, edges: Tensor, others: Tensor) -> Tensor:
    """Returns how badly the cosine of two nodes' embeddings, as a logit, tells an edge from a pair without one.

    Args:
        embeddings: ``(nodes, dim)``; a node of zeros has cosine 0 with all.
        edges: int64 ``(2, m)``, pairs with an edge.
        others: int64 ``(2, n)``, pairs without.

    Returns:
        The mean binary cross-entropy over all pairs, a scalar in nats, from softplus(-1) to softplus(1), in float32 or
        float64.

    Raises:
        ValueError: embeddings or pairs of other shapes, embeddings that are not finite, or no pairs.

    Example:
        >>> orthogonal = torch.eye(3)
        >>> structure_loss(orthogonal, torch.tensor([[0], [1]]), torch.tensor([[0], [2]]))
        tensor(0.6931)
    """
    if embeddings.ndim != 2 or any(pairs.ndim != 2 or len(pairs) != 2 for pairs in (edges, others)):
        shapes = [tuple(given.shape) for given in (embeddings, edges, others)]
        raise ValueError(f"expected embeddings (nodes, dim), edges (2, m) and others (2, n), got {shapes}")
    if not edges.shape[1] + others.shape[1]:
        raise ValueError("edges and others must not both be empty")
    check_finite(embeddings=embeddings)
    # In half precision a cosine has two or three digits: fewer than a margin.
    unit = F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)
    logits = [(unit[pairs[0]] * unit[pairs[1]]).sum(1) for pairs in (edges, others)]
    return torch.cat([F.softplus(-logits[0]), F.softplus(logits[1])]).mean()


@checked
def parameter_distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Tensor:
    """Returns the Euclidean distance of two sets of named tensors, all of them taken as one long vector.

    Give ``dict(model.named_parameters())`` rather than a ``state_dict``, which has running means and counters as well.

    Args:
        first, second: tensors by name, with the same names and shapes; the order does not matter.

    Returns:
        A scalar in float64, on the device of ``second``, without gradient.

    Raises:
        ValueError: names or shapes that differ, or no tensor.

    Example:
        >>> parameter_distance({"a": torch.zeros(2)}, {"a": torch.tensor([3.0, 4.0])})
        tensor(5., dtype=torch.float64)
    """
    _check_alike(first, second, "first", "second")
    total = [
        (first[name].detach().to(value.device, torch.float64) - value.detach().double()).square().sum()
        for name, value in second.items()
    ]
    return torch.stack(total).sum().sqrt()


def _check_alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor], name: str, against: str) -> None:
    if not other:
        raise ValueError(f"{against} has no parameters")
    if odd := sorted(set(one) ^ set(other)):
        raise ValueError(f"{name} and {against} must have the same names; {odd[0]!r} is in one of them alone")
    for key, value in other.items():
        if one[key].shape != value.shape:
            raise ValueError(f"{key!r} of {name} must have shape {tuple(value.shape)}, got {tuple(one[key].shape)}")


def _check_states(model: nn.Module, initial: Mapping[str, Tensor]) -> None:
    trained = model.state_dict()
    _check_alike(initial, trained, "initial", "the model")
    check_finite(initial=initial)
    names = [name for name, _ in model.named_parameters()]
    if all(torch.equal(initial[name].to(trained[name]), trained[name]) for name in names):
        raise ValueError("initial must be the weights before training, but they are those that the model has now")


def _embedded(
    module: nn.Module, layer: str, graph: Any, call: Callable[[nn.Module, Any], Tensor], said: str
) -> tuple[Tensor, Tensor]:
    entered: list[Tensor] = []
    handle = module.get_submodule(layer).register_forward_pre_hook(
        lambda _, args, kwargs: entered.append(args[0] if args else next(iter(kwargs.values()))), with_kwargs=True
    )
    try:
        logits = call(module, graph)
    finally:
        handle.remove()
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(graph.x):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the model must give logits ({len(graph.x)}, classes) for this graph, got {shape}")
    if not bool(logits.isfinite().all()):
        raise ValueError(f"{said} are not finite")
    if not entered:
        raise ValueError(f"head {layer!r} is not called")
    given = entered[-1]
    if not isinstance(given, Tensor) or given.ndim != 2 or len(given) != len(graph.x):
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"head {layer!r} must be given embeddings (nodes, dim), got {shape}")
    return logits, given


def _last_layer(module: nn.Module, graph: Any, call: Callable[[nn.Module, Any], Tensor]) -> str:
    """Returns the name of the last layer with weights that is called with a row for each node, made by others before.

    What is called with the features of the graph, such as a network inside of another, is none.
    """
    called: list[str] = []
    handles = []
    for name, child in module.named_modules():
        if not name or not any(True for _ in child.parameters()):
            continue

        def note(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            given = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(given, Tensor) and given.requires_grad and given.ndim == 2 and len(given) == len(graph.x):
                called.append(name)

        handles.append(child.register_forward_pre_hook(note, with_kwargs=True))
    try:
        call(module, graph)
    finally:
        for handle in handles:
            handle.remove()
    # A convolution is called before the linear layer inside of it: the outermost of the last is meant.
    outer = [name for name in called if not any(name.startswith(f"{other}.") for other in called)]
    if not outer:
        raise ValueError("the model has no layer that is called with embeddings, a row for each node: give head")
    return outer[-1]


def _pairs_without_edge(edges: Tensor, nodes: int) -> Tensor:
    """Returns as many pairs as there are edges, of two nodes and without an edge either way, drawn with replacement."""
    if not edges.shape[1]:
        raise ValueError("graph must have edges: their structure tells when to stop")
    loops = torch.arange(nodes) * (nodes + 1)
    taken = torch.cat([edges[0] * nodes + edges[1], edges[1] * nodes + edges[0], loops]).unique()
    if len(taken) > 0.9 * nodes * nodes:
        raise ValueError("graph must have pairs without an edge: almost all pairs have one")
    found: list[Tensor] = []
    while sum(map(len, found)) < edges.shape[1]:
        drawn = torch.randint(nodes * nodes, (edges.shape[1],))
        found.append(drawn[~torch.isin(drawn, taken)])
    codes = torch.cat(found)[: edges.shape[1]]
    return torch.stack([codes // nodes, codes % nodes])
