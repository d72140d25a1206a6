"""The spectrum of a graph: a description of its topology that does not depend on the order of its nodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_has, check_labels, checked


@checked
def laplacian_spectrum(data: Any, k: int = 21) -> Tensor:
    """Returns the k largest eigenvalues of a graph's normalised Laplacian, in [0, 2], falling: float32 ``(k,)``.

    Of the undirected graph without loops and multiple edges, ``I - D^-1/2 A D^-1/2``; a node without edges has the
    eigenvalue 0, so that a smaller graph is padded with zeros as if it had such nodes.

    Args:
        data: ``torch_geometric.data.Data`` or what has ``edge_index``, and ``op`` or ``num_nodes``.
        k: number of eigenvalues; 21 as published (which end of the spectrum is not).

    Raises:
        ValueError: k below 1, no nodes, edges to nodes that do not exist.

    Source: arXiv:2211.17226, the distance between topologies.

    Example:
        >>> from torch_geometric.data import Data
        >>> triangle = Data(edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]), num_nodes=3)
        >>> laplacian_spectrum(triangle, k=4).round(decimals=4)
        tensor([1.5000, 1.5000, 0.0000, 0.0000])
    """
    check_at_least(1, k=k)
    check_has("edge_index", data=data)
    operations = getattr(data, "op", None)
    nodes = data.num_nodes if operations is None else len(operations)
    if not nodes:
        raise ValueError("data must have nodes")
    source, target = data.edge_index
    check_labels(nodes, **{"edge_index of data": data.edge_index})
    adjacency = torch.zeros(nodes, nodes, dtype=torch.float64, device=source.device)
    adjacency[source, target] = adjacency[target, source] = 1.0
    adjacency.fill_diagonal_(0.0)
    degree = adjacency.sum(1)
    scale = torch.where(degree > 0, degree, 1.0).rsqrt()
    laplacian = torch.diag((degree > 0).double()) - scale[:, None] * adjacency * scale
    values = torch.linalg.eigvalsh(laplacian).clamp(0, 2).flip(0)[:k]
    return torch.nn.functional.pad(values, (0, k - len(values))).float()
