"""How well will architectures rank, also those of a design space that was never seen? (GENNAPE)

Source: arXiv:2211.17226. The contrastive encoder and the heads are not in the official code: number of clusters,
temperature, projection and standardisation of the embeddings are choices of this library.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from heldout.errors import (
    check_at_least,
    check_finite,
    check_labels,
    check_nonempty,
    check_positive,
    check_same_length,
    checked,
    require,
)
from heldout.losses import spectral_contrastive
from heldout.measure.architectures.laplacian_spectrum import laplacian_spectrum
from heldout.method import device_of, evaluating
from heldout.nn import CGEncoder, FuzzyCMeans, FuzzyHeads, computation_graph


class ArchitecturePredictor:
    """Graphs of architectures -> scores that rank them within a family; the larger, the better.

    As published: ``pretrain`` the encoder on graphs without labels, ``fit`` fuzzy heads on those that were measured,
    with the encoder and the clusters frozen; ``predict`` networks of any family, and ``finetune`` on a few that were
    measured there. With ``fit(train_encoder=True)`` and a head of ``regression_head`` it is the k-GNN that is trained
    end to end, without ``pretrain`` a random encoder.

    Args:
        encoder: is trained in place, on its device, where the heads have to be, too; graphs are moved there.
        heads: ``FuzzyHeads``, or a module ``(n, width) -> (n,)`` or ``(n, 1)``; in place.
        example_input: for ``computation_graph``, where models are given instead of graphs.
        seed: of all that is drawn.

    Raises:
        ValueError: a negative seed.

    Source: arXiv:2211.17226.

    Example:
        >>> from torch_geometric.data import Data
        >>> def path(n):
        ...     edges = torch.arange(n + 1) + torch.tensor([[0], [1]])
        ...     return Data(op=torch.tensor([0, *[2] * n, 1]), edge_index=edges)
        >>> graphs = [path(n) for n in (1, 2, 3, 4, 5, 6)]
        >>> predictor = ArchitecturePredictor(CGEncoder(3, 16, 2), FuzzyHeads(16, 2))
        >>> scores = predictor.pretrain(graphs, epochs=1).fit(graphs, [1, 2, 3, 4, 5, 6], epochs=300).predict(graphs)
        >>> bool(scores[5] > scores[0])
        True
    """

    @checked
    def __init__(
        self, encoder: CGEncoder, heads: nn.Module, *, example_input: Tensor | None = None, seed: int = 0
    ) -> None:
        check_at_least(0, seed=seed)
        self.encoder, self.heads, self.example_input, self.seed = encoder, heads, example_input, seed
        self._centre, self._scale = torch.zeros(encoder.width), torch.ones(encoder.width)
        self._fitted = False

    @checked
    def pretrain(
        self,
        graphs: Sequence[Any],
        *,
        epochs: int = 40,
        lr: float = 1e-3,
        batch_size: int = 32,
        tau: float = 0.1,
        k: int = 21,
    ) -> ArchitecturePredictor:
        """Returns itself, with an encoder that draws graphs of like spectra together.

        A linear projection stands between embedding and loss, and is thrown away. One pass over the graphs an epoch,
        by Adam; spectra are computed once.

        Args:
            graphs: of any family, without labels; at least 2.
            epochs: 0 leaves the encoder as it is.
            lr: of Adam.
            batch_size: at least 2.
            tau: temperature of ``spectral_contrastive``.
            k: eigenvalues of ``laplacian_spectrum``.

        Raises:
            ValueError: fewer than 2 graphs, one with a cycle, options out of range.
            FloatingPointError: the loss is no longer finite.

        Example:
            >>> from torch_geometric.data import Data
            >>> edge = Data(op=torch.tensor([0, 1]), edge_index=torch.tensor([[0], [1]]))
            >>> _ = ArchitecturePredictor(CGEncoder(2, 8), nn.Linear(8, 1)).pretrain([edge, edge], epochs=1)
        """
        check_at_least(0, epochs=epochs)
        check_at_least(2, batch_size=batch_size)
        check_positive(lr=lr, tau=tau)
        stack = _Stack(self._graphs(graphs))
        if len(graphs) < 2:
            raise ValueError(f"graphs must be 2 at least, got {len(graphs)}")
        if not epochs:
            return self
        spectra = torch.stack([laplacian_spectrum(graph, k) for graph in stack.graphs])
        generator = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            width, like = self.encoder.width, next(self.encoder.parameters())
            projection = nn.Linear(width, width).to(like)
            optimizer = torch.optim.Adam([*self.encoder.parameters(), *projection.parameters()], lr=lr, fused=True)
            self.encoder.train()
            for rows in _batches(len(graphs), batch_size, epochs, generator, least=2):
                embeddings = self.encoder(stack.take(rows).to(self._place))
                loss = spectral_contrastive(projection(embeddings), spectra[rows].to(like), tau)
                _step(loss, optimizer)
        self.encoder.eval()
        return self

    @checked
    def fit(
        self,
        graphs: Sequence[Any],
        accuracies: ArrayLike,
        family: Sequence[Hashable] | None = None,
        *,
        epochs: int = 100,
        lr: float = 1e-3,
        batch_size: int = 32,
        train_encoder: bool = False,
    ) -> ArchitecturePredictor:
        """Returns itself, with heads fitted to accuracies by squared error.

        Args:
            graphs: that were measured.
            accuracies: ``(n,)``, the larger the better; any scale.
            family: of each graph: accuracies are standardised within it, so that no head learns which family is
                good. Default: all of one.
            epochs: passes over the graphs.
            lr: of Adam.
            batch_size: graphs in a step.
            train_encoder: end to end, embeddings not standardised, clusters of the untrained encoder; default: the
                encoder is frozen and its embeddings are computed once.

        Raises:
            ValueError: fewer graphs than clusters or than 2, lengths that differ, accuracies that are not finite or
                all equal, a graph with a cycle.
            FloatingPointError: the loss is no longer finite.

        Example:
            >>> from torch_geometric.data import Data
            >>> edge = Data(op=torch.tensor([0, 1]), edge_index=torch.tensor([[0], [1]]))
            >>> predictor = ArchitecturePredictor(CGEncoder(2, 8), regression_head(8))
            >>> predictor.fit([edge, edge], [0.1, 0.9], epochs=1).predict([edge]).shape
            torch.Size([1])
        """
        stack = _Stack(self._graphs(graphs))
        targets = standardised(accuracies, family)
        check_same_length(graphs=graphs, accuracies=targets)
        embeddings = self._embeddings(stack)
        self._centre, self._scale = torch.zeros(self.encoder.width), torch.ones(self.encoder.width)
        if not train_encoder:
            self._centre = embeddings.mean(0)
            self._scale = embeddings.std(0, correction=0).clamp(min=1e-6)
        if isinstance(self.heads, FuzzyHeads):
            clusters = FuzzyCMeans(len(self.heads.centres), self.heads.m, seed=self.seed)
            centred = embeddings - self._centre.to(embeddings)
            self.heads.assign(clusters.fit(centred / self._scale.to(embeddings)))
        self._train(stack, targets, epochs, lr, batch_size, train_encoder)
        self._fitted = True
        return self

    @checked
    def finetune(
        self,
        graphs: Sequence[Any],
        accuracies: ArrayLike,
        *,
        epochs: int = 100,
        lr: float = 1e-3,
        batch_size: int = 32,
        train_encoder: bool = False,
    ) -> ArchitecturePredictor:
        """Returns another predictor, this one trained further on a few graphs of one family; clusters stay.

        Args:
            graphs: that were measured; published: 50.
            accuracies: ``(n,)`` of one family; any scale.
            epochs: published: 100.
            lr: of Adam.
            batch_size: graphs in a step.
            train_encoder: whether the encoder learns with the heads.

        Raises:
            ValueError: before ``fit``; what ``fit`` refuses.
            FloatingPointError: the loss is no longer finite.

        Example:
            >>> from torch_geometric.data import Data
            >>> edge = Data(op=torch.tensor([0, 1]), edge_index=torch.tensor([[0], [1]]))
            >>> fitted = ArchitecturePredictor(CGEncoder(2, 8), regression_head(8)).fit([edge] * 2, [0, 1], epochs=1)
            >>> tuned = fitted.finetune([edge] * 2, [1, 0], epochs=1)
            >>> tuned is fitted
            False
        """
        self._check_fitted("finetune")
        stack = _Stack(self._graphs(graphs))
        targets = standardised(accuracies)
        check_same_length(graphs=graphs, accuracies=targets)
        tuned = copy.deepcopy(self)
        tuned._train(stack, targets, epochs, lr, batch_size, train_encoder)
        return tuned

    @checked
    def predict(self, graphs: Sequence[Any]) -> Tensor:
        """Returns a score for each graph or model, float32 ``(n,)``: to be compared within a family only.

        Raises:
            ValueError: before ``fit``; no graphs, one with a cycle; models without ``example_input``.

        Example:
            >>> from torch_geometric.data import Data
            >>> edge = Data(op=torch.tensor([0, 1]), edge_index=torch.tensor([[0], [1]]))
            >>> fitted = ArchitecturePredictor(CGEncoder(2, 8), regression_head(8)).fit([edge] * 2, [0, 1], epochs=1)
            >>> fitted.predict([edge, edge]).shape
            torch.Size([2])
        """
        self._check_fitted("predict")
        embeddings = self._embeddings(_Stack(self._graphs(graphs)))
        with evaluating(self.heads), torch.no_grad():
            return self._score(embeddings)

    def _train(
        self, stack: _Stack, targets: Tensor, epochs: int, lr: float, batch_size: int, train_encoder: bool
    ) -> None:
        check_at_least(0, epochs=epochs)
        check_at_least(1, batch_size=batch_size)
        check_positive(lr=lr)
        fixed = None if train_encoder else self._embeddings(stack)
        trained = [*self.heads.parameters(), *(self.encoder.parameters() if train_encoder else ())]
        optimizer = torch.optim.Adam(trained, lr=lr, fused=True)
        generator = torch.Generator().manual_seed(self.seed + 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1)
            self.heads.train()
            self.encoder.train(train_encoder)
            for rows in _batches(len(targets), batch_size, epochs, generator):
                embeddings = self.encoder(stack.take(rows).to(self._place)) if fixed is None else fixed[rows]
                _step(F.mse_loss(self._score(embeddings), targets[rows].to(embeddings)), optimizer)
        self.encoder.eval()
        self.heads.eval()

    def _score(self, embeddings: Tensor) -> Tensor:
        scores = self.heads((embeddings - self._centre.to(embeddings)) / self._scale.to(embeddings))
        return scores.reshape(len(embeddings))

    def _embeddings(self, stack: _Stack) -> Tensor:
        with evaluating(self.encoder), torch.no_grad():
            parts = torch.arange(len(stack.graphs)).split(512)
            return torch.cat([self.encoder(stack.take(rows).to(self._place)) for rows in parts])

    @property
    def _place(self) -> torch.device:
        return device_of(self.encoder)

    def _graphs(self, graphs: Sequence[Any]) -> list[Any]:
        check_nonempty(graphs=graphs)
        found = []
        for number, graph in enumerate(graphs):
            if isinstance(graph, nn.Module):
                if self.example_input is None:
                    raise ValueError("graphs hold models: example_input must be given to trace them")
                graph = computation_graph(graph, self.example_input)
            if not hasattr(graph, "op") or not hasattr(graph, "edge_index"):
                raise TypeError(f"graphs must have op and edge_index, got {type(graph).__name__} at {number}")
            if not len(graph.op):
                raise ValueError(f"graphs must have nodes, and number {number} has none")
            check_labels(len(graph.op), **{f"edge_index of graphs[{number}]": graph.edge_index})
            _check_acyclic(graph, number)
            found.append(graph)
        return found

    def _check_fitted(self, name: str) -> None:
        if not self._fitted:
            raise ValueError(f"graphs can be given to {name} only after fit")


@checked
def regression_head(width: int) -> nn.Sequential:
    """Returns the head of the published k-GNN: linear layers, one ReLU in the middle, and one number at the end.

    Args:
        width: of the embeddings ``(n, width)``.

    Raises:
        ValueError: a width below 1.

    Source: github.com/Ascend-Research/GENNAPE.

    Example:
        >>> regression_head(8)(torch.zeros(3, 8)).shape
        torch.Size([3, 1])
    """
    check_at_least(1, width=width)
    first, second, third, fourth = (nn.Linear(width, width) for _ in range(4))
    return nn.Sequential(first, second, nn.ReLU(), third, fourth, nn.Linear(width, 1))


@checked
def standardised(values: ArrayLike, family: Sequence[Hashable] | None = None) -> Tensor:
    """Returns values with mean 0 and variance 1 within each family: float32 ``(n,)``.

    Args:
        values: ``(n,)``.
        family: of each value; default: all of one.

    Raises:
        ValueError: fewer than 2 of a family, values that are all equal there or not finite, lengths that differ.

    Example:
        >>> standardised([1, 3, 10, 30], ["a", "a", "b", "b"])
        tensor([-1.,  1., -1.,  1.])
    """
    found = torch.as_tensor(values, dtype=torch.float64).flatten()
    check_finite(values=found)
    names = [None] * len(found) if family is None else list(family)
    check_same_length(values=found, family=names)
    for name in dict.fromkeys(names):
        rows = torch.tensor([each == name for each in names])
        inside = found[rows]
        if len(inside) < 2 or not bool(inside.std(correction=0) > 0):
            of = "" if family is None else f" in the family {name!r}"
            raise ValueError(f"values (accuracies) must be 2 at least that differ{of}, got {inside.tolist()[:3]}")
        found[rows] = (inside - inside.mean()) / inside.std(correction=0)
    return found.float()


class _Stack:
    """Graphs collated once, of which batches are cut by index arithmetic."""

    _KEYS = ("op", "shape", "weighted", "kernel", "bias")

    def __init__(self, graphs: list[Any]) -> None:
        self.graphs = graphs
        keys = [key for key in self._KEYS if isinstance(getattr(graphs[0], key, None), Tensor)]
        self.nodes = {key: torch.cat([getattr(graph, key) for graph in graphs]) for key in keys}
        self.edges = torch.cat([graph.edge_index for graph in graphs], 1)  # counted from each graph's first node
        self.sizes, self.size_of_edges = (
            torch.tensor([len(graph.op) for graph in graphs]),
            torch.tensor([graph.edge_index.shape[1] for graph in graphs]),
        )

    def take(self, rows: Tensor) -> Any:
        sizes, edges = self.sizes[rows], self.size_of_edges[rows]
        picked = _ranges(self.sizes, rows)
        offsets = torch.repeat_interleave(sizes.cumsum(0) - sizes, edges)
        return require("torch_geometric.data").Data(
            **{key: values[picked] for key, values in self.nodes.items()},
            edge_index=self.edges[:, _ranges(self.size_of_edges, rows)] + offsets,
            batch=torch.repeat_interleave(torch.arange(len(rows)), sizes),
            num_graphs=len(rows),
        )


def _ranges(sizes: Tensor, rows: Tensor) -> Tensor:
    """Positions of the entries of some of the pieces that lie one after the other."""
    starts, chosen = (sizes.cumsum(0) - sizes)[rows], sizes[rows]
    return torch.arange(int(chosen.sum())) + torch.repeat_interleave(starts - (chosen.cumsum(0) - chosen), chosen)


def _batches(number: int, size: int, epochs: int, generator: torch.Generator, least: int = 1) -> Iterator[Tensor]:
    for _ in range(epochs):
        for rows in torch.randperm(number, generator=generator).split(size):
            if len(rows) >= least:
                yield rows


def _step(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    if not bool(loss.isfinite()):
        raise FloatingPointError(f"the loss is {loss.item()}: lower lr")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _check_acyclic(graph: Any, number: int) -> None:
    source, target = graph.edge_index.tolist()
    if all(first < second for first, second in zip(source, target, strict=True)):
        return
    before: dict[int, list[int]] = {}
    for first, second in zip(source, target, strict=True):
        before.setdefault(second, []).append(first)
    try:
        TopologicalSorter(before).prepare()
    except CycleError as error:
        cycle = " -> ".join(f"{first}" for first, _ in pairwise([*error.args[1], None]))
        raise ValueError(f"graphs must be acyclic, that at {number} has the cycle {cycle}") from None
