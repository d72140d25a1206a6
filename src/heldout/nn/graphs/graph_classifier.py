"""Core: A network that classifies whole graphs: message passing, a readout over nodes, and a linear head."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from heldout.errors import (
    check_at_least,
    check_between,
    check_dimensions,
    check_one_of,
    check_same_length,
    checked,
    require,
)

GRAPH_READOUTS = ("sum", "mean")
GraphReadoutKind = Literal["sum", "mean"]
_ENCODERS = ("gcn", "gat", "gin", "sage")


class GraphClassifier(nn.Module):
    """Graphs -> logits, by ``head(readout(nodes(x, edge_index)))``.

    ``model(x, edge_index, batch)`` takes ``(nodes, features)``, int64 ``(2, edges)`` and the graph of each node, int64
    ``(nodes,)`` (None for one graph), and gives ``(graphs, classes)``. Batch normalisation follows each hidden layer.
    Weights are drawn from torch's own generator, as in its layers.

    Args:
        encoder: "gcn", "gat", "gin" or "sage" of torch-geometric.
        features: columns of ``x``.
        classes: columns of the logits.
        hidden: width of all layers, and of what the head reads.
        layers: of the encoder.
        readout: "sum" or "mean" over the nodes of a graph; a mean does not tell the number of nodes.
        dropout: probability, between layers.

    Raises:
        ValueError: another encoder or readout, a width or number of layers below 1, a dropout outside [0, 1].
        MissingExtraError: without torch-geometric.

    Source: arXiv:1810.00826 (Xu et al., ICLR 2019) for "gin" with "sum".

    Example:
        >>> model = GraphClassifier("gin", features=3, classes=2)
        >>> edges = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
        >>> model(torch.ones(4, 3), edges, torch.tensor([0, 0, 1, 1])).shape
        torch.Size([2, 2])
    """

    @checked
    def __init__(
        self,
        encoder: Literal["gcn", "gat", "gin", "sage"],
        features: int,
        classes: int,
        *,
        hidden: int = 32,
        layers: int = 3,
        readout: GraphReadoutKind = "sum",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_one_of(_ENCODERS, encoder=encoder)
        check_one_of(GRAPH_READOUTS, readout=readout)
        check_at_least(1, features=features, classes=classes, hidden=hidden, layers=layers)
        check_between(0, 1, dropout=dropout)
        networks = require("torch_geometric.nn")
        kind = {"gcn": networks.GCN, "gat": networks.GAT, "gin": networks.GIN, "sage": networks.GraphSAGE}[encoder]
        self.encoder = kind(features, hidden, layers, dropout=dropout, norm="batch_norm")
        self.readout = readout
        self.head = nn.Linear(hidden, classes)

    @checked
    def nodes(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Returns the embedding of each node, ``(nodes, hidden)``."""
        return cast(Tensor, self.encoder(x, edge_index))

    @checked
    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor | None = None) -> Tensor:
        check_dimensions(2, x=x)
        embeddings = self.nodes(x, edge_index)
        graph = torch.zeros(len(x), dtype=torch.int64, device=x.device) if batch is None else batch
        check_same_length(x=x, batch=graph)
        graphs = int(graph.max()) + 1 if len(graph) else 0
        vectors = embeddings.new_zeros(graphs, embeddings.shape[1]).index_add(0, graph, embeddings)
        if self.readout == "mean":
            vectors = vectors / graph.bincount(minlength=graphs).clamp(min=1)[:, None]
        return cast(Tensor, self.head(vectors))
