"""Core: Two views that agree in each column of their embeddings, and columns that say different things.

Sources: arXiv:2106.12484 (Zhang et al., NeurIPS 2021: CCA-SSG); arXiv:2103.03230 (Zbontar et al., ICML 2021: Barlow
Twins), for graphs arXiv:2106.02466 (Bielak et al.: Graph Barlow Twins).
"""

from __future__ import annotations

import torch
from torch import Tensor

from heldout.errors import check_dimensions, check_nonnegative, check_positive, checked


@checked
def cross_correlation(z1: Tensor, z2: Tensor, eps: float = 1e-8) -> Tensor:
    """Returns the correlation of each column of one view with each of the other, ``(dim, dim)``.

    Columns are standardised over the rows with the biased variance; a constant column correlates with none.

    Args:
        z1, z2: ``(n, dim)``, row i of both from the same example; n at least 2.
        eps: added to variances, above 0.

    Raises:
        ValueError: shapes that differ, fewer than 2 rows, or an eps that is not positive.

    Source: arXiv:2103.03230, equation 2. Costs ``n * dim ** 2``.

    Example:
        >>> cross_correlation(torch.tensor([[0.0], [1.0]]), torch.tensor([[5.0], [3.0]])).round(decimals=3)
        tensor([[-1.]])
    """
    first, second = _standardised(z1, z2, eps)
    return first.T @ second / len(first)


@checked
def cca_ssg_loss(z1: Tensor, z2: Tensor, decorrelation: float = 1e-3, *, eps: float = 1e-8) -> Tensor:
    """Returns ``-tr C12 + decorrelation * (|C11 - I|_F^2 + |C22 - I|_F^2)`` of the correlations of views, a scalar.

    The first term is ``-dim`` where the views are the same, the second 0 where their columns are uncorrelated.

    Args:
        z1, z2: ``(n, dim)``, row i of both from the same example; n at least 2.
        decorrelation: weight of the second term; published for citation graphs: 1e-3 and 5e-4.
        eps: added to variances. deviation: the official code has none, so that a dead column gives NaN.

    Raises:
        ValueError: shapes that differ, fewer than 2 rows, or options out of range.

    Source: arXiv:2106.12484, equation 4, divided by n as in the official code.

    Example:
        >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> round(cca_ssg_loss(z, z).item(), 4)
        -2.0
    """
    check_nonnegative(decorrelation=decorrelation)
    first, second = _standardised(z1, z2, eps)
    identity = torch.eye(first.shape[1], dtype=first.dtype, device=first.device)
    spread = sum((z.T @ z / len(z) - identity).square().sum() for z in (first, second))
    return -(first * second).sum() / len(first) + decorrelation * spread


@checked
def barlow_twins_loss(z1: Tensor, z2: Tensor, off_diagonal: float | None = None, *, eps: float = 1e-8) -> Tensor:
    """Returns ``sum_i (1 - C_ii)^2 + off_diagonal * sum_{i != j} C_ij^2`` of the cross-correlation, a scalar.

    Args:
        z1, z2: ``(n, dim)``, row i of both from the same example; n at least 2.
        off_diagonal: weight of the second term; default: ``1 / dim``, as for graphs.
        eps: added to variances.

    Raises:
        ValueError: shapes that differ, fewer than 2 rows, or options out of range.

    Source: arXiv:2103.03230, equation 1; arXiv:2106.02466, section 3.3, for the default.

    Example:
        >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> round(barlow_twins_loss(z, z).item(), 4), round(barlow_twins_loss(z, -z).item(), 4)
        (0.0, 8.0)
    """
    check_nonnegative(off_diagonal=off_diagonal)
    correlation = cross_correlation(z1, z2, eps)
    weight = 1 / len(correlation) if off_diagonal is None else off_diagonal
    diagonal = correlation.diagonal()
    others = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + weight * others


def _standardised(z1: Tensor, z2: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    check_positive(eps=eps)
    check_dimensions(2, z1=z1, z2=z2)
    if z1.shape != z2.shape:
        raise ValueError(f"z1 and z2 must have the same shape, got {tuple(z1.shape)} and {tuple(z2.shape)}")
    if len(z1) < 2 or not z1.shape[1]:
        raise ValueError(f"z1 and z2 must have at least 2 rows and a column, got {tuple(z1.shape)}")
    first, second = (z - z.mean(0) for z in (z1, z2))
    return first / (first.var(0, correction=0) + eps).sqrt(), second / (second.var(0, correction=0) + eps).sqrt()
