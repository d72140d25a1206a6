"""Core: What a node encoder learns from without labels: five objectives over the user's own ``encoder(x, edge_index)``.

Each has ``loss(data)``, to be minimised, and ``embed(data)``, the frozen embeddings. A batch whose nodes have sampled
neighbours (``heldout.data.NeighbourBatches``, PyG's ``NeighborLoader``) says by ``batch_size`` how many of its first
nodes count.

Sources: arXiv:2106.12484 (CCA-SSG), arXiv:2106.02466 (Graph Barlow Twins), arXiv:2102.06514 (BGRL), arXiv:2205.10803
(GraphMAE), arXiv:2006.04131 (GRACE); compared in arXiv:2406.08310.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from heldout.data import graph_view, masked_nodes
from heldout.errors import (
    check_at_least,
    check_fraction,
    check_has,
    check_nonnegative,
    check_positive,
    checked,
    require,
)
from heldout.losses import barlow_twins_loss, bootstrap_loss, cca_ssg_loss, scaled_cosine_error, two_view_info_nce
from heldout.method import evaluating


@runtime_checkable
class GraphSSL(Protocol):
    """An objective of self-supervised learning on graphs, which ``pretrain_graph`` minimises.

    One that also has ``after_step(progress)`` is told after each step which share of the steps is made.

    Example:
        >>> isinstance(CCASSG(nn.Identity()), GraphSSL), isinstance(nn.Identity(), GraphSSL)
        (True, False)
    """

    def loss(self, data: Any, generator: torch.Generator | None = None) -> Tensor:
        """The objective on a graph or a batch of it, a scalar; draws follow the generator, or torch's own state."""
        ...

    def embed(self, data: Any) -> Tensor:
        """Embeddings of all nodes ``(nodes, dim)``, in eval mode and without gradient."""
        ...


class _Objective(nn.Module):
    """The encoder, and what all five share."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    @torch.no_grad()
    def embed(self, data: Any) -> Tensor:
        """Returns embeddings of all nodes ``(nodes, dim)``, in eval mode and without gradient.

        Raises:
            ValueError: the encoder does not give one row for each node.
        """
        check_has("x", "edge_index", data=data)
        with evaluating(self.encoder):
            return _rows(self.encoder(data.x, data.edge_index), data)


class _TwoViews(_Objective):
    def __init__(self, encoder: nn.Module, drop_edge: tuple[float, float], mask_feature: tuple[float, float]) -> None:
        super().__init__(encoder)
        for name, shares in (("drop_edge", drop_edge), ("mask_feature", mask_feature)):
            if len(shares) != 2 or not all(0 <= share < 1 for share in shares):
                raise ValueError(f"{name} must be two probabilities in [0, 1), one for each view, got {shares}")
        self.drop_edge, self.mask_feature = tuple(drop_edge), tuple(mask_feature)

    def _views(self, data: Any, generator: torch.Generator | None) -> list[tuple[Tensor, Tensor]]:
        check_has("x", "edge_index", data=data)
        return [
            graph_view(data.x, data.edge_index, edges, columns, generator)
            for edges, columns in zip(self.drop_edge, self.mask_feature, strict=True)
        ]

    def _encoded(self, data: Any, generator: torch.Generator | None) -> list[Tensor]:
        return [_counted(_rows(self.encoder(*view), data), data) for view in self._views(data, generator)]


class CCASSG(_TwoViews):
    """Two views agree in each column, and columns are decorrelated: ``heldout.losses.cca_ssg_loss``.

    A step costs two passes of the encoder, and ``dim ** 2`` numbers a node.

    Args:
        encoder: ``encoder(x, edge_index)`` gives ``(nodes, dim)``.
        decorrelation: weight of the second term.
        drop_edge, mask_feature: probabilities of the views.

    Raises:
        ValueError: probabilities outside [0, 1), or a weight below 0.

    Source: arXiv:2106.12484, algorithm 1.

    Example:
        >>> from heldout.tasks import BlockModel
        >>> from torch_geometric.nn import GCN
        >>> graph = BlockModel(nodes=100).sample(0)
        >>> method = CCASSG(GCN(64, 32, 2, 16))
        >>> method.loss(graph).ndim, method.embed(graph).shape
        (0, torch.Size([100, 16]))
    """

    @checked
    def __init__(
        self,
        encoder: nn.Module,
        *,
        decorrelation: float = 1e-3,
        drop_edge: tuple[float, float] = (0.2, 0.2),
        mask_feature: tuple[float, float] = (0.2, 0.2),
    ) -> None:
        check_nonnegative(decorrelation=decorrelation)
        super().__init__(encoder, drop_edge, mask_feature)
        self.decorrelation = decorrelation

    @checked
    def loss(self, data: Any, generator: torch.Generator | None = None) -> Tensor:
        """Returns the objective on a graph or a batch of it, a scalar.

        Raises:
            ValueError: fewer than 2 nodes.
        """
        return cca_ssg_loss(*self._encoded(data, generator), self.decorrelation)  # type: ignore[arg-type, call-arg]


class GraphBarlowTwins(_TwoViews):
    """The cross-correlation of two views is drawn to the identity: ``heldout.losses.barlow_twins_loss``.

    A step costs two passes of the encoder, and ``dim ** 2`` numbers a node.

    Args:
        encoder: ``encoder(x, edge_index)`` gives ``(nodes, dim)``.
        off_diagonal: weight of correlations of different columns; default: ``1 / dim``.
        drop_edge, mask_feature: probabilities of the views.

    Raises:
        ValueError: probabilities outside [0, 1), or a weight below 0.

    Source: arXiv:2106.02466, section 3.

    Example:
        >>> from heldout.tasks import BlockModel
        >>> from torch_geometric.nn import GCN
        >>> GraphBarlowTwins(GCN(64, 32, 2, 16)).loss(BlockModel(nodes=100).sample(0)).ndim
        0
    """

    @checked
    def __init__(
        self,
        encoder: nn.Module,
        *,
        off_diagonal: float | None = None,
        drop_edge: tuple[float, float] = (0.2, 0.2),
        mask_feature: tuple[float, float] = (0.2, 0.2),
    ) -> None:
        check_nonnegative(off_diagonal=off_diagonal)
        super().__init__(encoder, drop_edge, mask_feature)
        self.off_diagonal = off_diagonal

    @checked
    def loss(self, data: Any, generator: torch.Generator | None = None) -> Tensor:
        """Returns the objective on a graph or a batch of it, a scalar.

        Raises:
            ValueError: fewer than 2 nodes.
        """
        return barlow_twins_loss(*self._encoded(data, generator), self.off_diagonal)  # type: ignore[arg-type, call-arg]


class BGRL(_TwoViews):
    """Each view predicts what a slow copy of the encoder says of the other: ``heldout.losses.bootstrap_loss``.

    The copy, the target, begins with other weights, where the encoder's layers have ``reset_parameters``, and follows
    as their exponential average, with a momentum that rises to 1 as half a cosine. A step costs four passes.

    Args:
        encoder: ``encoder(x, edge_index)`` gives ``(nodes, dim)``.
        dim: of the embeddings.
        hidden: width of the predictor, of two layers.
        momentum: of the average at the beginning, in [0, 1].
        drop_edge, mask_feature: probabilities of the views.

    Raises:
        ValueError: probabilities outside [0, 1), widths below 1, or a momentum outside [0, 1].

    Source: arXiv:2102.06514, section 3; the target's own weights as in the official code.

    Example:
        >>> from heldout.tasks import BlockModel
        >>> from torch_geometric.nn import GCN
        >>> method = BGRL(GCN(64, 32, 2, 16), dim=16)
        >>> bool(0 <= method.loss(BlockModel(nodes=100).sample(0)) <= 4)
        True
    """

    @checked
    def __init__(
        self,
        encoder: nn.Module,
        dim: int,
        *,
        hidden: int = 256,
        momentum: float = 0.99,
        drop_edge: tuple[float, float] = (0.2, 0.2),
        mask_feature: tuple[float, float] = (0.2, 0.2),
    ) -> None:
        check_at_least(1, dim=dim, hidden=hidden)
        check_fraction(momentum=momentum)
        super().__init__(encoder, drop_edge, mask_feature)
        self.momentum = momentum
        self.predictor = nn.Sequential(nn.Linear(dim, hidden), nn.PReLU(), nn.Linear(hidden, dim))
        self.target = copy.deepcopy(encoder)
        for module in self.target.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        self.target.requires_grad_(False)

    @checked
    def loss(self, data: Any, generator: torch.Generator | None = None) -> Tensor:
        """Returns the objective on a graph or a batch of it, a scalar in [0, 4].

        Raises:
            ValueError: a graph without nodes.
        """
        views = self._views(data, generator)
        predicted = [self.predictor(_counted(_rows(self.encoder(*view), data), data)) for view in views]
        with torch.no_grad():
            targets = [_counted(_rows(self.target(*view), data), data) for view in views]
        return bootstrap_loss(predicted[0], targets[1], predicted[1], targets[0])

    @checked
    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Moves the target towards the encoder.

        Args:
            progress: share of the steps that is made, in [0, 1], which the momentum follows.

        Raises:
            ValueError: a share out of range.
        """
        check_fraction(progress=progress)
        momentum = 1 - (1 - self.momentum) * (1 + math.cos(math.pi * progress)) / 2
        torch._foreach_lerp_([*self.target.parameters()], [*self.encoder.parameters()], 1 - momentum)


class GraphMAE(_Objective):
    """Features of masked nodes are reconstructed from those around: ``heldout.losses.scaled_cosine_error``.

    Features of ``floor(mask_rate * nodes)`` nodes are replaced by one learned token; codes are mapped linearly, those
    of the same nodes set to 0, and decoded by a graph network. A step costs one pass of the encoder, one of the
    decoder.

    Args:
        encoder: ``encoder(x, edge_index)`` gives ``(nodes, dim)``.
        features: columns of ``x``.
        dim: of the embeddings.
        decoder: ``decoder(codes, edge_index)`` gives ``(nodes, features)``; default: one GCN layer.
        mask_rate: share of the nodes, in (0, 1].
        alpha: exponent of the error, at least 1.
        drop_edge: probability with which an edge is left out.

    Raises:
        ValueError: widths below 1, or options out of range.
        MissingExtraError: without a decoder and torch-geometric.

    Source: arXiv:2205.10803, section 3. deviation: no masked node keeps its features or has those of another; the
    published decoder has the encoder's kind of layer.

    Example:
        >>> from heldout.tasks import BlockModel
        >>> from torch_geometric.nn import GCN
        >>> GraphMAE(GCN(64, 32, 2, 16), features=64, dim=16).loss(BlockModel(nodes=100).sample(0)).ndim
        0
    """

    @checked
    def __init__(
        self,
        encoder: nn.Module,
        features: int,
        dim: int,
        *,
        decoder: nn.Module | None = None,
        mask_rate: float = 0.5,
        alpha: float = 2.0,
        drop_edge: float = 0.0,
    ) -> None:
        check_at_least(1, features=features, dim=dim, alpha=alpha)
        if not 0 < mask_rate <= 1:
            raise ValueError(f"mask_rate must lie in (0, 1], got {mask_rate}")
        if not 0 <= drop_edge < 1:
            raise ValueError(f"drop_edge must lie in [0, 1), got {drop_edge}")
        super().__init__(encoder)
        self.token = nn.Parameter(torch.zeros(1, features))
        self.to_decoder = nn.Linear(dim, dim, bias=False)
        self.decoder = decoder or require("torch_geometric.nn").GCNConv(dim, features)
        self.mask_rate, self.alpha, self.drop_edge = mask_rate, alpha, drop_edge

    @checked
    def loss(self, data: Any, generator: torch.Generator | None = None) -> Tensor:
        """Returns the objective on a graph or a batch of it, a scalar.

        Raises:
            ValueError: a graph without nodes, or features of another width.
        """
        check_has("x", "edge_index", data=data)
        if data.x.ndim != 2 or data.x.shape[1] != self.token.shape[1]:
            raise ValueError(f"data must have x (nodes, {self.token.shape[1]}), got {tuple(data.x.shape)}")
        counted = _count(data)
        masked = masked_nodes(counted, self.mask_rate, generator).to(data.x.device)
        hidden = torch.zeros(len(data.x), 1, dtype=torch.bool, device=data.x.device)
        hidden[masked] = True
        _, edges = graph_view(data.x, data.edge_index, self.drop_edge, 0.0, generator)
        codes = self.to_decoder(_rows(self.encoder(torch.where(hidden, self.token, data.x), edges), data))
        outputs = self.decoder(codes.masked_fill(hidden, 0.0), edges)
        return scaled_cosine_error(outputs[masked], data.x[masked], self.alpha)


class GRACE(_TwoViews):
    """Each node is told from all others of two views: ``heldout.losses.two_view_info_nce`` behind a projector.

    A step costs two passes of the encoder, and three products of ``anchors ** 2`` entries.

    Args:
        encoder: ``encoder(x, edge_index)`` gives ``(nodes, dim)``.
        dim: of the embeddings.
        hidden: width of the projector, of two layers with an ELU between; it gives ``dim``.
        temperature: above 0.
        anchors: nodes that are drawn for a step, told from each other; default: all.
        drop_edge, mask_feature: probabilities of the views.

    Raises:
        ValueError: probabilities outside [0, 1), widths below 1, fewer than 2 anchors, or a temperature not above 0.

    Source: arXiv:2006.04131, section 3.

    Example:
        >>> from heldout.tasks import BlockModel
        >>> from torch_geometric.nn import GCN
        >>> GRACE(GCN(64, 32, 2, 16), dim=16, anchors=50).loss(BlockModel(nodes=100).sample(0)).ndim
        0
    """

    @checked
    def __init__(
        self,
        encoder: nn.Module,
        dim: int,
        *,
        hidden: int = 64,
        temperature: float = 0.5,
        anchors: int | None = None,
        drop_edge: tuple[float, float] = (0.2, 0.4),
        mask_feature: tuple[float, float] = (0.3, 0.4),
    ) -> None:
        check_at_least(1, dim=dim, hidden=hidden)
        check_at_least(2, anchors=anchors)
        check_positive(temperature=temperature)
        super().__init__(encoder, drop_edge, mask_feature)
        self.projector = nn.Sequential(nn.Linear(dim, hidden), nn.ELU(), nn.Linear(hidden, dim))
        self.temperature, self.anchors = temperature, anchors

    @checked
    def loss(self, data: Any, generator: torch.Generator | None = None) -> Tensor:
        """Returns the objective on a graph or a batch of it, a scalar.

        Raises:
            ValueError: fewer than 2 nodes.
        """
        first, second = self._encoded(data, generator)
        if self.anchors is not None and self.anchors < len(first):
            rows = masked_nodes(len(first), self.anchors / len(first), generator).to(first.device)
            first, second = first[rows], second[rows]
        return two_view_info_nce(self.projector(first), self.projector(second), self.temperature)


def _count(data: Any) -> int:
    """How many of the first nodes of a batch count."""
    sampled = getattr(data, "batch_size", None)
    return len(data.x) if sampled is None else int(sampled)


def _counted(z: Tensor, data: Any) -> Tensor:
    return z[: _count(data)]


def _rows(z: Any, data: Any) -> Tensor:
    if not isinstance(z, Tensor) or z.ndim != 2 or len(z) != len(data.x):
        got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(f"encoder must give ({len(data.x)}, dim), a row for each node of data, got {got}")
    return cast(Tensor, z)  # type: ignore[redundant-cast]
