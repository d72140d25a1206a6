"""Core: A network that classifies the nodes of a graph: an encoder of one of the usual kinds, and a linear head."""

from __future__ import annotations

from typing import Literal, cast

from torch import Tensor, nn

from heldout.errors import check_at_least, check_between, check_one_of, checked, require

NODE_ENCODERS = ("gcn", "gat", "gin", "sage", "mlp")
NodeEncoder = Literal["gcn", "gat", "gin", "sage", "mlp"]


class NodeClassifier(nn.Module):
    """A node's features and those around it -> logits, by ``head(encoder(x, edge_index))``.

    ``model(x, edge_index)`` takes ``(nodes, features)`` and int64 ``(2, edges)`` and gives ``(nodes, classes)``.
    Weights are drawn from torch's own generator, as in its layers.

    Args:
        encoder: "gcn", "gat", "gin" or "sage" of torch-geometric, or "mlp", which does not look at the edges.
        features: columns of ``x``.
        classes: columns of the logits.
        hidden: width of all layers but the last.
        embedding: width of the encoder's last layer, after which there is no activation.
        layers: of the encoder.
        dropout: probability, between layers.

    Raises:
        ValueError: another encoder, a width or number of layers below 1, a dropout outside [0, 1].
        MissingExtraError: without torch-geometric.

    Example:
        >>> import torch
        >>> model = NodeClassifier("gin", features=8, classes=3)
        >>> model(torch.zeros(4, 8), torch.tensor([[0, 1], [1, 0]])).shape
        torch.Size([4, 3])
    """

    @checked
    def __init__(
        self,
        encoder: NodeEncoder,
        features: int,
        classes: int,
        *,
        hidden: int = 64,
        embedding: int = 16,
        layers: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_one_of(NODE_ENCODERS, encoder=encoder)
        check_at_least(1, features=features, classes=classes, hidden=hidden, embedding=embedding, layers=layers)
        check_between(0, 1, dropout=dropout)
        networks = require("torch_geometric.nn")
        self.takes_edges = encoder != "mlp"
        if encoder == "mlp":
            widths = [features, *[hidden] * (layers - 1), embedding]
            self.encoder = networks.MLP(widths, dropout=dropout, norm=None)
        else:
            kind = {"gcn": networks.GCN, "gat": networks.GAT, "gin": networks.GIN, "sage": networks.GraphSAGE}[encoder]
            self.encoder = kind(features, hidden, layers, embedding, dropout=dropout)
        self.head = nn.Linear(embedding, classes)

    @checked
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        embeddings = self.encoder(x, edge_index) if self.takes_edges else self.encoder(x)
        return cast(Tensor, self.head(embeddings))
