"""Core: Vendi score: how many different examples a set holds, as the entropy of a similarity matrix's spectrum.

Source: arXiv:2210.02410 (Friedman, Dieng); orders other than 1: arXiv:2310.12952.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from heldout.errors import checked

_ROWS_AT_ONCE = 4096
_TOLERANCE = 1e-6  # of eigenvalues below zero and of asymmetry, relative to the trace


@checked
def vendi_score(features: Tensor | None = None, *, kernel: Tensor | None = None, q: float = 1.0) -> float:
    """Returns the effective number of different examples, from 1 (all alike) to n (none alike).

    It is ``exp(H_q(eigenvalues of K / n))`` for similarities ``K`` with unit diagonal, and ``H_q`` Rényi's entropy.
    For features, ``K`` holds the cosines: the d x d matrix of the same non-zero eigenvalues is used where n > d, so
    that memory is O(min(n, d)^2) beside the features and the cost one pass over them.

    Args:
        features: ``(n, d)``; rows are scaled to length 1.
        kernel: ``(n, n)`` instead, symmetric and positive semi-definite; scaled to a unit diagonal.
        q: order of the entropy, at least 0: 1 is Shannon's, 0 counts the rank, larger orders weigh common examples
            more, up to ``math.inf``.

    Raises:
        ValueError: not exactly one of features and kernel, wrong shapes, no examples, values that are not finite, a row
            of length zero (its index is told), a kernel that is not symmetric or has negative eigenvalues, q below 0.

    Example:
        >>> round(vendi_score(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])), 6)
        2.0
    """
    if (features is None) == (kernel is None):
        raise ValueError("vendi_score needs either features or a kernel")
    if math.isnan(q) or q < 0:
        raise ValueError(f"q must be at least 0, got {q}")
    similarities = _cosines(features) if features is not None else _unit_diagonal(kernel)  # type: ignore[arg-type]
    eigenvalues = torch.linalg.eigvalsh(similarities)
    lowest = float(eigenvalues[0])
    if lowest < -_TOLERANCE:
        raise ValueError(f"the kernel is not positive semi-definite: it has the eigenvalue {lowest * len(eigenvalues)}")
    return _exp_entropy(eigenvalues.clamp(min=0), q)


def _cosines(features: Tensor) -> Tensor:
    """Cosines ``(n, n)`` or the matrix ``(d, d)`` of the same eigenvalues, with trace 1, in float64."""
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features must be (n, d) with n and d at least 1, got {tuple(features.shape)}")
    if not features.isfinite().all():
        raise ValueError(f"the features of example {int((~features.isfinite().all(1)).nonzero()[0])} are not finite")
    features = features.detach()
    lengths = torch.linalg.vector_norm(features, dim=1, dtype=torch.float64)
    if (lengths == 0).any():
        raise ValueError(
            f"the features of example {int((lengths == 0).nonzero()[0])} are all zero: it has no direction"
        )
    count, dim = features.shape
    if count <= dim:
        rows = features.double() / lengths[:, None]
        return rows @ rows.T / count
    total = torch.zeros(dim, dim, dtype=torch.float64, device=features.device)
    for part, length in zip(features.split(_ROWS_AT_ONCE), lengths.split(_ROWS_AT_ONCE), strict=True):
        rows = part.double() / length[:, None]
        total.addmm_(rows.T, rows)
    return total / count


def _unit_diagonal(kernel: Tensor) -> Tensor:
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or len(kernel) == 0:
        raise ValueError(f"the kernel must be square with at least one row, got {tuple(kernel.shape)}")
    kernel = kernel.detach().double()
    if not kernel.isfinite().all():
        raise ValueError("the kernel has values that are not finite")
    diagonal = kernel.diagonal()
    if (diagonal <= 0).any():
        raise ValueError(f"the similarity of example {int((diagonal <= 0).nonzero()[0])} to itself must be positive")
    scale = diagonal.rsqrt()
    kernel = kernel * scale[:, None] * scale
    if not torch.allclose(kernel, kernel.T, rtol=0, atol=_TOLERANCE):
        raise ValueError("the kernel is not symmetric")
    return kernel / len(kernel)


def _exp_entropy(eigenvalues: Tensor, q: float) -> float:
    shares = eigenvalues / eigenvalues.sum()
    if q == 0:
        return float((shares > 1e-12).sum())
    if q == 1:
        return float(torch.special.entr(shares).sum().exp())
    if math.isinf(q):
        return float(1 / shares.max())
    return float(shares.pow(q).sum().pow(1 / (1 - q)))
