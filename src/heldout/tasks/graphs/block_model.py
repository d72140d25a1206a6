"""Core: Graphs of communities whose features tell of them: a degree-corrected contextual stochastic block model.

Source: arXiv:1807.09596 (Deshpande et al., NeurIPS 2018) for features beside a block model; arXiv:1008.3926 (Karrer and
Newman) for the correction of degrees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_fields,
    check_fraction,
    check_nonnegative,
    check_positive,
    checked,
    require,
)
from heldout.tasks.seeds import Seed, generator_of

_WORDS = 12  # of a node, before words that were drawn twice


@dataclass(frozen=True)
class BlockModel:
    """What graphs are drawn from: classes are communities, and features tell of the class with noise.

    Graphs of one model share the centres or topics of their classes; ``dataclasses.replace`` makes a shifted model of
    the same ``world``.

    Attributes:
        nodes: of a graph.
        classes: communities.
        degree: mean degree.
        homophily: share of edges that stay within a class, in the mean.
        hub_homophily: the same for edges that are drawn from the tenth of the nodes with the largest expected degrees;
            None for no difference.
        tail: exponent of a Pareto distribution of expected degrees, cut at the root of ``nodes`` times the mean
            before the cut; None for equal ones. The smaller, the heavier the tail: citation graphs have about 2.
        priors: probabilities of the classes; None for equal ones.
        features: numbers of a node.
        signal: of features "gaussian", the distance of a centre from 0 in standard deviations of the noise; of "words",
            the share of words that come from the topic of the class.
        kind: "gaussian" for real numbers; "words" for a bag of up to 12 words as 0 and 1, of topics that share no word.
        world: seed of centres.

    Example:
        >>> graph = BlockModel(nodes=100, classes=2).sample(0)
        >>> graph.x.shape, graph.y.shape, graph.num_edges
        (torch.Size([100, 64]), torch.Size([100]), 600)
    """

    nodes: int = 600
    classes: int = 5
    degree: float = 6.0
    homophily: float = 0.8
    hub_homophily: float | None = None
    tail: float | None = None
    priors: tuple[float, ...] | None = None
    features: int = 64
    signal: float = 1.0
    kind: Literal["gaussian", "words"] = "gaussian"
    world: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(2, nodes=self.nodes, classes=self.classes)
        check_at_least(1, features=self.features)
        check_at_least(0, world=self.world)
        check_positive(degree=self.degree, tail=self.tail)
        check_fraction(homophily=self.homophily, hub_homophily=self.hub_homophily)
        check_nonnegative(signal=self.signal)
        if self.degree > self.nodes / 4:
            raise ValueError(f"degree must be at most a quarter of the nodes ({self.nodes}), got {self.degree}")
        if self.hub_homophily is not None and self.tail is None:
            raise ValueError("hub_homophily needs a tail: without one all nodes have the same expected degree")
        if self.kind == "words":
            check_fraction(signal=self.signal)
            if self.features < self.classes:
                raise ValueError(f"each of {self.classes} topics needs a word, got {self.features} features")
        if self.priors is not None:
            check_nonnegative(priors=self.priors)
            if len(self.priors) != self.classes or not math.isclose(sum(self.priors), 1.0, abs_tol=1e-6):
                raise ValueError(f"priors must be {self.classes} probabilities that sum to 1, got {self.priors}")

    @checked
    def sample(self, seed: Seed = 0) -> Any:
        """Returns a graph as a ``torch_geometric.data.Data``.

        ``x`` is float32 ``(nodes, features)``, ``y`` int64 ``(nodes,)``, ``edge_index`` int64 ``(2, edges)``, with both
        directions of each pair, without self-loops, sorted. The number of edges is exactly that of the mean degree.

        Raises:
            ValueError: if classes are so small, or a tail so heavy, that not enough pairs are to be had.
            MissingExtraError: without torch-geometric.
        """
        geometric = require("torch_geometric.data")
        generator = generator_of(seed)
        priors = torch.tensor(self.priors or (1 / self.classes,) * self.classes, dtype=torch.float64)
        labels = torch.multinomial(priors, self.nodes, replacement=True, generator=generator)
        return geometric.Data(x=self._features(labels, generator), y=labels, edge_index=self._edges(labels, generator))

    def _features(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        world = torch.Generator().manual_seed(self.world)
        if self.kind == "gaussian":
            centres = torch.nn.functional.normalize(torch.randn(self.classes, self.features, generator=world), dim=1)
            return self.signal * centres[labels] + torch.randn(self.nodes, self.features, generator=generator)
        order = torch.randperm(self.features, generator=world)
        size = self.features // self.classes
        shape = (self.nodes, _WORDS)
        topical = order[labels[:, None] * size + torch.randint(size, shape, generator=generator)]
        others = torch.randint(self.features, shape, generator=generator)
        words = torch.where(torch.rand(shape, generator=generator) < self.signal, topical, others)
        return torch.zeros(self.nodes, self.features).scatter_(1, words, 1.0)

    def _edges(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        wanted = round(self.nodes * self.degree / 2)
        order = labels.argsort(stable=True)
        sizes = labels.bincount(minlength=self.classes)
        weights = self._weights(generator)[order]
        totals, within = weights.cumsum(0), torch.full((self.nodes,), self.homophily, dtype=torch.float64)
        if self.hub_homophily is not None:
            within[weights >= weights.quantile(0.9)] = self.hub_homophily
        ends = torch.cat([totals.new_zeros(1), totals])[torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])]
        found = np.zeros(0, dtype=np.int64)
        for _ in range(64):
            first, second = self._pairs(round(1.2 * (wanted - len(found))) + 16, totals, ends, within, generator)
            low, high = torch.minimum(first, second), torch.maximum(first, second)
            codes = np.concatenate([found, (low * self.nodes + high)[low < high].numpy()])
            found = codes[np.sort(np.unique(codes, return_index=True)[1])][:wanted]  # in the order of drawing
            if len(found) == wanted:
                pairs = order[torch.from_numpy(np.stack(np.divmod(found, self.nodes)))]
                both = torch.cat([pairs, pairs.flip(0)], 1)
                return both[:, (both[0] * self.nodes + both[1]).argsort()]
        raise ValueError(
            f"only {len(found)} of {wanted} pairs could be drawn: fewer edges, or more nodes of each class"
        )

    def _weights(self, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(self.nodes, dtype=torch.float64, generator=generator)
        if self.tail is None:
            return torch.ones(self.nodes, dtype=torch.float64)
        heavy = (1 - uniform) ** (-1 / self.tail)
        return heavy.clamp(max=math.sqrt(self.nodes) * heavy.mean().item())

    def _pairs(
        self, number: int, totals: Tensor, ends: Tensor, homophily: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Returns nodes in the order of classes: the first by weight, the second by weight in its class or outside it.

        Args:
            totals: ``(nodes,)``, sums of weights up to and with each node.
            ends: ``(classes + 1,)``, sums of weights before each class, and of all.
            homophily: ``(nodes,)``, of edges from each node.
        """
        draw = torch.rand(3, number, dtype=torch.float64, generator=generator)
        first = torch.searchsorted(totals, draw[0] * ends[-1], right=True).clamp(max=self.nodes - 1)
        group = torch.searchsorted(ends, totals[first], right=False) - 1
        low, high = ends[group], ends[group + 1]
        inside = low + draw[1] * (high - low)
        outside = draw[1] * (ends[-1] - (high - low))
        outside = torch.where(outside >= low, outside + (high - low), outside)
        within = (draw[2] < homophily[first]) | (high - low >= ends[-1])
        second = torch.searchsorted(totals, torch.where(within, inside, outside), right=True)
        return first, second.clamp(max=self.nodes - 1)
