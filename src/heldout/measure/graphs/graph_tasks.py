"""Core: One fixed protocol of three tasks by which embeddings of the nodes of a graph are measured.

Source: arXiv:2406.08310 (Xu et al., 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from heldout.data import LinkSplit
from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_fields,
    check_finite,
    check_labels,
    check_length,
    check_nonempty,
    check_one_of,
    checked,
)
from heldout.measure.graphs.clustering import probe_clustering
from heldout.measure.graphs.link_prediction import probe_link_prediction
from heldout.measure.graphs.node_classification import probe_node_classification

GraphTask = Literal["classification", "link", "clustering"]
EmbeddingScaling = Literal["none", "columns", "rows", "both"]
EMBEDDING_SCALINGS = ("none", "columns", "rows", "both")
GRAPH_TASKS: dict[GraphTask, str] = {"classification": "accuracy", "link": "auc", "clustering": "nmi"}
"""The tasks, and the metric that each is judged by."""


@dataclass(frozen=True)
class GraphTasks:
    """What frozen embeddings of one graph's nodes are measured by; what is left out is not measured.

    Attributes:
        y: classes, int64 ``(nodes,)``, for classification and clustering.
        masks: bool ``(nodes,)`` of the nodes to train on, to choose by, and to test on.
        split: links, of ``heldout.data.split_links``.
        node_epochs, link_epochs: of the training of heads.
        link_width: of the decoder.
        decoder: "mlp" or "dot", as for ``probe_link_prediction``.
        restarts: of k-means.
        scaling: what is done to the embeddings first: "columns" gives each mean 0 and variance 1, so that their scale
            does not count; "rows" gives each node length 1, so that nodes without neighbours, which some objectives
            lay far outside, are no clusters of their own; "both", in this order; "none" as the source has it.

    Raises:
        ValueError: there is nothing to measure, masks without classes, or options below 1.

    Example:
        >>> import torch
        >>> y, part = torch.arange(60) % 2, torch.arange(60) // 20
        >>> tasks = GraphTasks(y, masks=(part == 0, part == 1, part == 2))
        >>> found = tasks.measure(y[:, None] + 0.1 * torch.randn(60, 3))
        >>> sorted(found)
        ['accuracy', 'ari', 'nmi', 'val_accuracy', 'val_nmi']
    """

    y: Tensor | None = None
    masks: Sequence[Tensor] | None = None
    split: LinkSplit | None = None
    node_epochs: int = 300
    link_epochs: int = 300
    link_width: int = 256
    decoder: Literal["mlp", "dot"] = "mlp"
    restarts: int = 10
    scaling: EmbeddingScaling = "none"

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(
            1,
            node_epochs=self.node_epochs,
            link_epochs=self.link_epochs,
            link_width=self.link_width,
            restarts=self.restarts,
        )
        check_one_of(EMBEDDING_SCALINGS, scaling=self.scaling)
        check_length(3, masks=self.masks)
        check_labels(y=self.y)
        if self.y is None and self.split is None:
            raise ValueError("y or split must be given: there is nothing to measure")
        if self.masks is not None and self.y is None:
            raise ValueError("masks need y: the classes of the nodes")

    @property
    def known(self) -> tuple[GraphTask, ...]:
        """The tasks that can be measured."""
        here = {"classification": self.masks, "link": self.split, "clustering": self.y}
        return tuple(task for task in GRAPH_TASKS if here[task] is not None)

    @checked
    def measure(self, h: Tensor, tasks: Sequence[GraphTask] | None = None, seed: int = 0) -> dict[str, float]:
        """Returns the metrics of some tasks: those on what is tested on, and, as ``val_``, on what is chosen by.

        Args:
            h: embeddings, ``(nodes, dim)``.
            tasks: of ``GRAPH_TASKS``; default: all that are known.
            seed: of the probes.

        Returns:
            ``accuracy`` and ``val_accuracy``; ``auc``, ``ap`` and ``val_auc``; ``nmi``, ``ari`` and, with masks,
            ``val_nmi``; clusters are compared on the nodes to test on, or all without masks.

        Raises:
            ValueError: a task that is not known, or what the probes refuse.
        """
        asked = self.known if tasks is None else tuple(tasks)
        check_nonempty(tasks=asked)
        for task in asked:
            check_one_of(self.known, tasks=task)
        if self.scaling != "none":
            check_dimensions(2, h=h)
            check_finite(h=h)
        if self.scaling in ("columns", "both"):
            h = (h - h.mean(0)) / (h.var(0, correction=0) + 1e-8).sqrt()
        if self.scaling in ("rows", "both"):
            h = F.normalize(h, dim=1)
        found: dict[str, float] = {}
        if "classification" in asked:
            assert self.y is not None
            assert self.masks is not None
            node = probe_node_classification(h, self.y, self.masks, seed, epochs=self.node_epochs)
            found |= {"accuracy": node.accuracy, "val_accuracy": node.val_accuracy}
        if "link" in asked:
            assert self.split is not None
            link = probe_link_prediction(
                h, self.split, seed, decoder=self.decoder, epochs=self.link_epochs, width=self.link_width
            )
            found |= {"auc": link.auc, "ap": link.ap, "val_auc": link.val_auc}
        if "clustering" in asked:
            assert self.y is not None
            test = None if self.masks is None else self.masks[2]
            clusters = probe_clustering(h, self.y, seed=seed, nodes=test, restarts=self.restarts)
            found |= {"nmi": clusters.nmi, "ari": clusters.ari}
            if self.masks is not None:
                found["val_nmi"] = self._agreement(clusters.clusters, self.masks[1])
        return found

    def _agreement(self, clusters: Tensor, nodes: Tensor) -> float:
        from sklearn.metrics import normalized_mutual_info_score

        assert self.y is not None
        return float(normalized_mutual_info_score(self.y[nodes].cpu().numpy(), clusters[nodes].cpu().numpy()))
