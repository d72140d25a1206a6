"""Graph networks over graphs of operations: one embedding for each architecture.

Source: arXiv:2211.17226; node embedding and layers of its k-GNN as in the official code.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from heldout.errors import (
    check_at_least,
    check_fraction,
    check_has,
    check_labels,
    check_one_of,
    check_positive,
    checked,
    require,
)
from heldout.nn.architectures.computation_graph import CG_KERNELS, CG_OPERATIONS

GraphLayer = Literal["graphconv", "gin", "transformer"]
_SHAPE, _KERNEL, _BIAS = 8, 4, 2  # columns of the published embedding


class CGEncoder(nn.Module):
    """Graphs of operations -> one embedding each, ``(graphs, width)``: graph layers with tanh, then the nodes' mean.

    A node's embedding is its operation's, and where shapes are known a linear map of them; nodes with weights have
    an embedding of the operation of their own, of the two sizes of the kernel and of the bias beside it.

    Called with one ``Data`` or with a ``Batch`` of them, that have ``op`` and ``edge_index``, and with ``maxima`` all
    that ``computation_graph`` gives. Weights are drawn from torch's own generator.

    Args:
        vocab: number of operations; default: of ``CG_OPERATIONS``.
        width: of all layers, at least 20 with shapes.
        layers: published: 6.
        kind: "graphconv" (the published k-GNN), "gin" or "transformer" (attention over neighbours, 4 heads).
        maxima: height, width and channels that shapes are divided by, of ``shape_maxima``; default: graphs that have
            operations and edges alone.
        dropout: probability, after each layer.

    Raises:
        ValueError: sizes below 1, a width that is too small, another kind, operations outside of the vocabulary.
        MissingExtraError: without torch-geometric.

    Example:
        >>> from torch_geometric.data import Data
        >>> path = Data(op=torch.tensor([0, 2, 1]), edge_index=torch.tensor([[0, 1], [1, 2]]))
        >>> CGEncoder(vocab=3, width=16)(path).shape
        torch.Size([1, 16])
    """

    maxima: Tensor | None

    @checked
    def __init__(
        self,
        vocab: int = len(CG_OPERATIONS),
        width: int = 32,
        layers: int = 6,
        kind: GraphLayer = "graphconv",
        *,
        maxima: tuple[float, float, float] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_at_least(1, vocab=vocab, width=width, layers=layers)
        check_one_of(("graphconv", "gin", "transformer"), kind=kind)
        check_fraction(dropout=dropout)
        networks = require("torch_geometric.nn")
        self.vocab, self.width = vocab, width
        if maxima is None:
            self.operation = nn.Embedding(vocab, width)
            self.register_buffer("maxima", None)
        else:
            check_positive(maxima=maxima)
            rest = width - _SHAPE - 2 * _KERNEL - _BIAS
            if rest < 2:
                raise ValueError(f"width must be at least {width - rest + 2} with shapes, got {width}")
            self.operation = nn.Embedding(vocab, width - _SHAPE)
            self.weighted_operation = nn.Embedding(vocab, rest)
            self.shape = nn.Linear(6, _SHAPE)
            self.kernel = nn.Embedding(CG_KERNELS, _KERNEL)
            self.bias = nn.Linear(2, _BIAS)
            self.register_buffer("maxima", torch.tensor([*maxima, *maxima], dtype=torch.float32))
        make = {
            "graphconv": lambda: networks.GraphConv(width, width),
            "gin": lambda: networks.GINConv(nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))),
            "transformer": lambda: networks.TransformerConv(width, width, heads=4, concat=False),
        }[kind]
        self.layers = nn.ModuleList(make() for _ in range(layers))
        self.dropout = nn.Dropout(dropout)

    @checked
    def forward(self, graph: Any) -> Tensor:
        check_has("op", "edge_index", graph=graph)
        check_labels(self.vocab, **{"op of graph": graph.op})
        nodes = self._embed(graph)
        for layer in self.layers:
            nodes = self.dropout(torch.tanh(layer(nodes, graph.edge_index)))
        of = getattr(graph, "batch", None)
        if of is None:
            return nodes.mean(0, keepdim=True)
        number = int(getattr(graph, "num_graphs", of.max() + 1))
        sums = nodes.new_zeros(number, self.width).index_add(0, of, nodes)
        return sums / torch.bincount(of, minlength=number)[:, None]

    def _embed(self, graph: Any) -> Tensor:
        if self.maxima is None:
            return self.operation(graph.op)
        check_has("shape", "weighted", "kernel", "bias", graph=graph)
        shape = self.shape(graph.shape.to(self.shape.weight.dtype) / self.maxima)
        bias = self.bias(nn.functional.one_hot(graph.bias, 2).to(shape.dtype))
        kernel = self.kernel(graph.kernel).flatten(1)
        weighted = torch.cat([self.weighted_operation(graph.op), shape, kernel, bias], 1)
        return torch.where(graph.weighted[:, None], weighted, torch.cat([self.operation(graph.op), shape], 1))
