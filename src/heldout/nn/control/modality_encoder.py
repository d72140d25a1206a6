"""Core: Tokens of a language model's width from numbers: scalars, series, vectors, features, graphs.

Source: arXiv:2402.02338 (NetLLM), section 4.1, with the layers of its official code: each feature has an encoder of its
own and a linear map of its own to the model's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from heldout.errors import check_at_least, check_fields, check_nonempty, checked, require


@dataclass(frozen=True)
class FeatureSpec:
    """What a feature of an observation is.

    Args:
        kind: ``scalar``: one number; ``series``: values over time, read by a convolution; ``vector``: numbers of one
            moment, such as one for each choice; ``features``: those of another, frozen network, mapped linearly;
            ``graph``: nodes ``(nodes, size)`` and their edges.
        size: numbers of a series, vector or features; features of a node; 1 of a scalar.
        kernel: width of a series' convolution; at most ``size``.
        edges: of a graph: the feature that holds its adjacency ``(nodes, nodes)``, whose row tells from which nodes a
            node hears. Nodes whose features are all 0 are not there.

    Raises:
        ValueError: sizes out of range, a graph without ``edges``, or ``edges`` of what is no graph.

    Example:
        >>> FeatureSpec("series", 6).kernel
        4
    """

    kind: Literal["scalar", "series", "vector", "features", "graph"]
    size: int = 1
    kernel: int = 4
    edges: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(1, size=self.size, kernel=self.kernel)
        if self.kind == "scalar" and self.size != 1:
            raise ValueError(f"size must be 1 of a scalar, got {self.size}")
        if self.kind == "series" and self.kernel > self.size:
            raise ValueError(f"kernel must be at most the {self.size} values of the series, got {self.kernel}")
        if (self.kind == "graph") != bool(self.edges):
            raise ValueError(f"edges must name the adjacency of a graph, and of nothing else, got {self.edges!r}")


class ModalityEncoder(nn.Module):
    """Returns a token for each feature, ``(..., features, width)`` in the order of the specifications.

    A scalar, a series and a vector go through ``hidden`` filters (of size 1, ``kernel`` and all) and LeakyReLU; a graph
    through two rounds of messages of PyG's, averaged over its nodes; frozen features through nothing. Then each has a
    linear map of its own.

    Args:
        specs: what each feature is, by name.
        width: of the language model.
        hidden: filters.

    Raises:
        ValueError: no features, sizes below 1.
        MissingExtraError: a graph, and PyG is not installed.

    Source: arXiv:2402.02338, section 4.1; official code (``state_encoder.py``).

    Example:
        >>> encoder = ModalityEncoder({"buffer": FeatureSpec("scalar"), "sizes": FeatureSpec("vector", 6)}, width=32)
        >>> encoder({"buffer": torch.zeros(2, 5, 1), "sizes": torch.ones(2, 5, 6)}).shape
        torch.Size([2, 5, 2, 32])
    """

    @checked
    def __init__(self, specs: Mapping[str, FeatureSpec], width: int, *, hidden: int = 256) -> None:
        super().__init__()
        check_nonempty(specs=specs)
        check_at_least(1, width=width, hidden=hidden)
        self.specs, self.width = dict(specs), width
        self.encoders = nn.ModuleList(_encoder(spec, hidden) for spec in self.specs.values())
        self.maps = nn.ModuleList(nn.Linear(_outputs(spec, hidden), width) for spec in self.specs.values())

    @property
    def tokens(self) -> int:
        """How many tokens an observation has."""
        return len(self.specs)

    @checked
    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Returns the tokens.

        Args:
            observations: by name ``(..., size)``; of a graph ``(..., nodes, size)``, and its adjacency
                ``(..., nodes, nodes)``. What no specification names is not read.

        Raises:
            ValueError: a feature is missing, or has another size.
        """
        found = []
        for (name, spec), encoder, to_width in zip(self.specs.items(), self.encoders, self.maps, strict=True):
            for needed in filter(None, (name, spec.edges)):
                if needed not in observations:
                    raise ValueError(f"observations must have {needed!r}, got {', '.join(map(repr, observations))}")
            value = observations[name]
            if not value.ndim or value.shape[-1] != spec.size:
                raise ValueError(f"{name} must have {spec.size} numbers, got shape {tuple(value.shape)}")
            value = value.to(next(to_width.parameters()).dtype)
            encoded = encoder(value, observations[spec.edges]) if spec.kind == "graph" else encoder(value)
            found.append(to_width(encoded))
        return torch.stack(found, -2)


class _Series(nn.Module):
    """A convolution over the last dimension, its values side by side."""

    def __init__(self, hidden: int, kernel: int) -> None:
        super().__init__()
        self.convolution, self.activation = nn.Conv1d(1, hidden, kernel), nn.LeakyReLU()

    def forward(self, values: Tensor) -> Tensor:
        found = self.activation(self.convolution(values.reshape(-1, 1, values.shape[-1])))
        return found.flatten(1).unflatten(0, values.shape[:-1])


class JobGraphEncoder(nn.Module):
    """Returns the mean over the nodes of a graph after two rounds of messages, ``(..., hidden)``.

    Args:
        size: features of a node.
        hidden: of a node's embedding.

    Raises:
        ValueError: sizes below 1; shapes that do not fit.
        MissingExtraError: PyG is not installed.

    Source: arXiv:2402.02338, section 4.1 (a graph network for the jobs' graphs); PyG's ``DenseGraphConv``.

    Example:
        >>> JobGraphEncoder(3, hidden=8)(torch.ones(2, 4, 3), torch.zeros(2, 4, 4)).shape
        torch.Size([2, 8])
    """

    @checked
    def __init__(self, size: int, hidden: int = 64) -> None:
        super().__init__()
        check_at_least(1, size=size, hidden=hidden)
        layer = require("torch_geometric.nn").DenseGraphConv
        self.size, self.hidden = size, hidden
        self.layers = nn.ModuleList([layer(size, hidden), layer(hidden, hidden)])
        self.activation = nn.LeakyReLU()

    @checked
    def node_embeddings(self, nodes: Tensor, edges: Tensor) -> Tensor:
        """Returns an embedding of each node, ``(..., nodes, hidden)``, 0 of nodes that are not there.

        Args:
            nodes: ``(..., nodes, size)``; a node whose features are all 0 is not there.
            edges: ``(..., nodes, nodes)``: row i, column j where i hears from j.

        Raises:
            ValueError: shapes that do not fit.
        """
        if nodes.ndim < 2 or edges.shape != (*nodes.shape[:-1], nodes.shape[-2]) or nodes.shape[-1] != self.size:
            raise ValueError(f"nodes and edges must be (..., n, {self.size}) and (..., n, n), got {tuple(nodes.shape)} "
                             f"and {tuple(edges.shape)}")  # fmt: skip
        here = (nodes != 0).any(-1).reshape(-1, nodes.shape[-2])
        found, adjacency = nodes.reshape(-1, *nodes.shape[-2:]), edges.reshape(-1, *edges.shape[-2:]).to(nodes.dtype)
        for layer in self.layers:
            found = self.activation(layer(found, adjacency, mask=here))
        return found.reshape(*nodes.shape[:-1], self.hidden)

    @checked
    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        """Returns the mean over the nodes that are there."""
        count = (nodes != 0).any(-1).sum(-1, keepdim=True).clamp(min=1)
        return self.node_embeddings(nodes, edges).sum(-2) / count


def _encoder(spec: FeatureSpec, hidden: int) -> nn.Module:
    if spec.kind == "series":
        return _Series(hidden, spec.kernel)
    if spec.kind == "graph":
        return JobGraphEncoder(spec.size, hidden)
    if spec.kind == "features":
        return nn.Identity()
    return nn.Sequential(nn.Linear(spec.size, hidden), nn.LeakyReLU())


def _outputs(spec: FeatureSpec, hidden: int) -> int:
    if spec.kind == "features":
        return spec.size
    return hidden * (spec.size - spec.kernel + 1) if spec.kind == "series" else hidden
