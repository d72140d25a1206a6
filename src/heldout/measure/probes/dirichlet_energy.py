"""How much a graph network's features still differ between neighbours: over-smoothing, layer by layer.

Source: arXiv:2006.13318 (Cai and Wang), definition 3.1; divided by the squared norm as in arXiv:2303.10993 (Rusch,
Bronstein and Mishra), so that features of other sizes can be compared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from heldout.errors import check_dimensions, check_finite, check_labels, check_length, check_nonempty, checked


@checked
def dirichlet_energy(features: Tensor, edge_index: Tensor, *, by_degree: bool = True) -> float:
    """Returns the Dirichlet energy of node features as a share of their squared norm, from 0 to below 2.

    It is 0 where ``x_i / sqrt(1 + d_i)`` is the same for all nodes that are joined, so that neighbours tell nothing
    more apart: what stacked averaging ends in. Features that have nothing to do with the edges come near 1. With ``d``
    the number of edges that leave a node, the energy is half the sum over edges of the squared differences of
    ``x_i / sqrt(1 + d_i)``, the Rayleigh quotient of the normalised Laplacian with self-loops.

    Args:
        features: ``(nodes, dim)`` real numbers.
        edge_index: int64 ``(2, edges)``, both directions of each edge; self-loops are left out.
        by_degree: as said, which is 0 for what averaging as in a GCN ends in. False: the differences are those of ``x``
            itself, as a share of twice the sum of ``d_i |x_i|^2``; 0 for equal rows, in which other means end.

    Returns:
        0.0 for features that are all 0.

    Raises:
        ValueError: other shapes, no nodes, numbers that are not finite, or nodes outside of the graph.

    Example:
        >>> path = torch.tensor([[0, 1], [1, 0]])
        >>> dirichlet_energy(torch.ones(2, 3), path), round(dirichlet_energy(torch.tensor([[1.0], [-1.0]]), path), 6)
        (0.0, 1.0)
    """
    check_dimensions(2, features=features, edge_index=edge_index)
    check_nonempty(features=features)
    check_length(2, edge_index=edge_index)
    check_finite(features=features)
    check_labels(len(features), edge_index=edge_index.reshape(-1))
    values = features.detach().double()
    total = float(values.square().sum())
    if total == 0:
        return 0.0
    source, target = edge_index[:, edge_index[0] != edge_index[1]]
    degree = torch.bincount(source, minlength=len(values)).double()
    scaled = values * (1 + degree).rsqrt()[:, None] if by_degree else values
    # sum over edges of |a - b|^2 / 2 = sum_i d_i |a_i|^2 - sum over edges of a.b: one gather of rows and one scatter
    joined = torch.zeros_like(scaled).index_add_(0, source, scaled.index_select(0, target))
    energy = float((degree[:, None] * scaled.square()).sum() - (scaled * joined).sum())
    if not by_degree:
        total = float((degree[:, None] * scaled.square()).sum())
        return max(0.0, energy) / total if total else 0.0
    return max(0.0, energy) / total
