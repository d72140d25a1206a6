"""Core: Views of a graph that self-supervised learning compares: edges dropped, columns of features or nodes masked.

Sources: arXiv:2006.04131 (Zhu et al.: GRACE), arXiv:2106.12484 (Zhang et al., NeurIPS 2021: CCA-SSG) for edges and
columns; arXiv:2205.10803 (Hou et al., KDD 2022: GraphMAE) for nodes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_dimensions, check_labels, checked


@checked
def graph_view(
    x: Tensor, edge_index: Tensor, drop_edge: float, mask_feature: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Returns features with some columns set to 0 for all nodes, and edges without some of them.

    Each column and each directed edge goes by itself with its probability.

    Args:
        x: ``(nodes, features)``; it stays as it is.
        edge_index: int64 ``(2, edges)``.
        drop_edge, mask_feature: probabilities in [0, 1).
        generator: of the draws, on its own device; default: torch's own.

    Raises:
        ValueError: another shape, edges of other nodes, or a probability out of range.

    Source: arXiv:2106.12484, section 3.1. ``heldout.data.prune_edges`` removes a share that is exact, in pairs.

    Example:
        >>> x, edges = graph_view(torch.ones(3, 8), torch.tensor([[0, 1], [1, 2]]), 0.0, 0.5)
        >>> x.shape, edges.shape
        (torch.Size([3, 8]), torch.Size([2, 2]))
    """
    check_dimensions(2, x=x, edge_index=edge_index)
    for name, share in (("drop_edge", drop_edge), ("mask_feature", mask_feature)):
        if not 0 <= share < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {share}")
    if edge_index.dtype != torch.int64 or edge_index.shape[0] != 2:
        raise ValueError(f"edge_index must be int64 (2, edges), got {edge_index.dtype} {tuple(edge_index.shape)}")
    check_labels(len(x), edge_index=edge_index)
    if mask_feature:
        x = x * (_uniform(x.shape[1], x.device, generator) >= mask_feature).to(x.dtype)
    if drop_edge:
        edge_index = edge_index[:, _uniform(edge_index.shape[1], edge_index.device, generator) >= drop_edge]
    return x, edge_index


@checked
def masked_nodes(num_nodes: int, rate: float, generator: torch.Generator | None = None) -> Tensor:
    """Returns ``floor(rate * num_nodes)`` different nodes at random, int64 and sorted, at least one.

    Args:
        num_nodes: at least 1.
        rate: share, in (0, 1].
        generator: of the draw, on whose device they are; default: torch's own.

    Raises:
        ValueError: no nodes, or a rate out of range.

    Source: arXiv:2205.10803, section 3.2.

    Example:
        >>> masked_nodes(7, 0.5).shape
        torch.Size([3])
    """
    check_at_least(1, num_nodes=num_nodes)
    if not 0 < rate <= 1:
        raise ValueError(f"rate must lie in (0, 1], got {rate}")
    device = "cpu" if generator is None else generator.device
    count = max(1, math.floor(rate * num_nodes + 1e-9))
    return torch.randperm(num_nodes, generator=generator, device=device)[:count].sort().values


def _uniform(size: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    return torch.rand(size, generator=generator, device=device if generator is None else generator.device).to(device)
