"""Core: Gram matrices of any kernel, and their Cholesky factor with a jitter that is reported when it is not enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from heldout.errors import check_values, checked

Kernel = Callable[[Any, Any], Any] | Literal["rbf"]


@checked
def rbf_kernel(sigma: float = 1.0, *, variance: float = 1.0) -> Callable[[Any, Any], Tensor]:
    """Returns the kernel ``variance * exp(-|a - b|^2 / (2 sigma^2))`` of points ``(n, ...)``, flattened, in float64.

    Args:
        sigma: width, in the unit of the points.
        variance: the kernel of a point with itself.

    Raises:
        ValueError: a width or a variance that is not positive.

    Example:
        >>> rbf_kernel(sigma=2.0)(torch.zeros(1, 3), torch.zeros(2, 3))
        tensor([[1., 1.]], dtype=torch.float64)
    """
    if not (sigma > 0 and variance > 0):
        raise ValueError(f"sigma and variance must be positive, got {sigma} and {variance}")

    def kernel(a: Any, b: Any) -> Tensor:
        first, second = (torch.as_tensor(x).double().flatten(1) for x in (a, b))
        distances = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
        return variance * torch.exp(-0.5 * (distances / sigma).square())

    return kernel


@checked
def gram(kernel: Kernel, a: Any, b: Any) -> Tensor:
    """Returns the Gram matrix ``(len(a), len(b))`` in float64, without a gradient.

    Args:
        kernel: "rbf" (of width 1), or a callable of two sets of points that returns a matrix: a tensor, an array, or a
            lazy matrix with ``to_dense()``, as gpytorch's kernels return. It receives ``a`` and ``b`` as they are.
        a, b: sets of points, ``(n, ...)`` each; tensors or arrays.

    Raises:
        ValueError: the matrix has another shape, or values that are not finite.

    Example:
        >>> gram(lambda a, b: a @ b.T, torch.eye(2), torch.ones(3, 2)).shape
        torch.Size([2, 3])
    """
    check_values(a=a, b=b)
    if kernel == "rbf":
        kernel = rbf_kernel()
    if not callable(kernel):
        raise ValueError(f'kernel must be "rbf" or a callable, got {kernel!r}')
    with torch.no_grad():
        found = kernel(a, b)
        matrix = torch.as_tensor(found.to_dense() if hasattr(found, "to_dense") else found).double()
    if matrix.shape != (len(a), len(b)):
        raise ValueError(f"the kernel must return a matrix ({len(a)}, {len(b)}), got {tuple(matrix.shape)}")
    if not matrix.isfinite().all():
        raise ValueError("the kernel must return finite values, got NaN or infinity")
    return matrix


@checked
def gram_cholesky(matrix: Tensor, jitter: float = 1e-6) -> Tensor:
    """Returns the lower Cholesky factor of ``matrix + jitter * mean(diagonal) * I``.

    Args:
        matrix: symmetric ``(n, n)``.
        jitter: relative to the mean of the diagonal.

    Raises:
        ValueError: the matrix is not symmetric, or has eigenvalues below minus the jitter.

    Example:
        >>> gram_cholesky(torch.ones(2, 2).double(), jitter=1e-6).diagonal().round(decimals=3)
        tensor([1.0000, 0.0010], dtype=torch.float64)
    """
    check_values(matrix=matrix)
    if jitter < 0:
        raise ValueError(f"jitter must be at least 0, got {jitter}")
    if not torch.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-4 * float(matrix.abs().max())):
        raise ValueError("a Gram matrix must be symmetric, this one is not")
    added = jitter * matrix.diagonal().mean()
    factor, failed = torch.linalg.cholesky_ex(matrix + added * torch.eye(len(matrix), dtype=matrix.dtype))
    if failed:
        smallest = torch.linalg.eigvalsh(matrix)[0].item()
        raise ValueError(
            f"the Gram matrix is not positive semi-definite beyond the jitter: its smallest eigenvalue is "
            f"{smallest:.3g} and the jitter adds {float(added):.3g}; raise jitter, or check the kernel"
        )
    return factor
