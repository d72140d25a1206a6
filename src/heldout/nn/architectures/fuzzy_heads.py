"""Fuzzy C-means, and heads of which each answers for the examples near its cluster.

Source: arXiv:2211.17226 (fuzzy heads); Bezdek (1981) for the clustering.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from heldout.errors import check_at_least, check_dimensions, check_finite, check_nonempty, check_nonnegative, checked


class FuzzyCMeans:
    """Clusters of which every example is a member to a degree: lowers ``sum_ic u_ic^m |x_i - c_c|^2``.

    Args:
        n_clusters: C.
        m: the fuzzifier, above 1; towards 1 memberships become hard.
        iterations: at most; it stops where the objective falls by less than a millionth part.
        seed: of the first centres, which are spread as in k-means++.

    Attributes:
        centres: ``(n_clusters, dim)``, after ``fit``.
        objective: of each iteration; never rises.

    Raises:
        ValueError: m of 1 or less, sizes below 1, fewer examples than clusters.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [9.0], [10.0]])
        >>> found = FuzzyCMeans(2).fit(points)
        >>> found.membership(points).argmax(1).unique_consecutive().numel()
        2
    """

    centres: Tensor

    @checked
    def __init__(self, n_clusters: int, m: float = 2.0, *, iterations: int = 100, seed: int = 0) -> None:
        check_at_least(1, n_clusters=n_clusters, iterations=iterations)
        check_at_least(0, seed=seed)
        check_fuzzifier(m)
        self.n_clusters, self.m, self.iterations, self.seed = n_clusters, m, iterations, seed
        self.objective: list[float] = []

    @checked
    def fit(self, X: Tensor) -> FuzzyCMeans:
        """Returns itself with centres for examples ``(n, dim)``.

        Raises:
            ValueError: fewer examples than clusters, another shape, or values that are not finite.

        Example:
            >>> FuzzyCMeans(1).fit(torch.tensor([[0.0], [2.0]])).centres
            tensor([[1.]])
        """
        check_dimensions(2, X=X)
        check_nonempty(X=X)
        check_finite(X=X)
        if len(X) < self.n_clusters:
            raise ValueError(f"X must have at least {self.n_clusters} rows, one for each cluster, got {len(X)}")
        self.centres, self.objective = self._spread(X), []
        for _ in range(self.iterations):
            weights = fuzzy_membership(X, self.centres, self.m) ** self.m
            self.centres = weights.T @ X / weights.sum(0).clamp(min=torch.finfo(X.dtype).tiny)[:, None]
            shares = fuzzy_membership(X, self.centres, self.m) ** self.m
            self.objective.append(float((shares * _squared_distances(X, self.centres)).sum()))
            if len(self.objective) > 1 and self.objective[-2] - self.objective[-1] <= 1e-6 * self.objective[-2]:
                break
        return self

    @checked
    def membership(self, X: Tensor) -> Tensor:
        """Returns how far each example belongs to each cluster: ``(n, n_clusters)``, rows sum to 1.

        Raises:
            ValueError: before ``fit``, or another number of columns.

        Example:
            >>> FuzzyCMeans(1).fit(torch.tensor([[0.0], [2.0]])).membership(torch.tensor([[5.0]]))
            tensor([[1.]])
        """
        if not hasattr(self, "centres"):
            raise ValueError("X can only be assigned after fit")
        check_finite(X=X)
        return fuzzy_membership(X, self.centres, self.m)

    def _spread(self, X: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        chosen = [int(torch.randint(len(X), (1,), generator=generator))]
        for _ in range(1, self.n_clusters):
            near = _squared_distances(X, X[chosen]).amin(1).double().cpu()
            if not bool(near.sum() > 0):  # all examples that are left equal a centre
                near = torch.ones_like(near)
            chosen.append(int(torch.multinomial(near, 1, generator=generator)))
        return X[chosen].clone()


@checked
def fuzzy_membership(X: Tensor, centres: Tensor, m: float = 2.0) -> Tensor:
    """Returns ``u_ic = 1 / sum_k (|x_i - c_c| / |x_i - c_k|)^(2 / (m - 1))``, ``(n, clusters)``.

    An example on a centre belongs to it alone, and in equal parts to centres that coincide. Gradients flow.

    Args:
        X: ``(n, dim)``.
        centres: ``(clusters, dim)``.
        m: the fuzzifier, above 1.

    Raises:
        ValueError: m of 1 or less, no centres, numbers of columns that differ.

    Example:
        >>> fuzzy_membership(torch.tensor([[1.0]]), torch.tensor([[0.0], [3.0]]))
        tensor([[0.8000, 0.2000]])
    """
    check_fuzzifier(m)
    check_dimensions(2, X=X, centres=centres)
    check_nonempty(centres=centres)
    if X.shape[1] != centres.shape[1]:
        raise ValueError(f"X must have the {centres.shape[1]} columns of centres, got {X.shape[1]}")
    squared = _squared_distances(X, centres)
    # In logarithms, so that neither a distance of 0 nor an m close to 1 divides by zero.
    return (-squared.clamp(min=torch.finfo(squared.dtype).tiny).log() / (m - 1)).softmax(1)


class FuzzyHeads(nn.Module):
    """A small network for each cluster, weighted by membership: ``sum_c u_c(h) MLP_c(h)``, ``(n,)``.

    Each is a linear layer, ReLU and a linear layer to one number. With one cluster it is one such network. The centres
    are a buffer, drawn at random at first: ``assign`` those of ``FuzzyCMeans``.

    Args:
        encoder_dim: columns of the embeddings ``h``.
        n_clusters: C; published: unknown, 20 here.
        hidden: width of each network.
        m: the fuzzifier.

    Raises:
        ValueError: sizes below 1, m of 1 or less; in the forward pass, embeddings of another width.

    Example:
        >>> FuzzyHeads(4, 3)(torch.zeros(5, 4)).shape
        torch.Size([5])
    """

    centres: Tensor

    @checked
    def __init__(self, encoder_dim: int, n_clusters: int = 20, hidden: int = 32, *, m: float = 2.0) -> None:
        super().__init__()
        check_at_least(1, encoder_dim=encoder_dim, n_clusters=n_clusters, hidden=hidden)
        check_fuzzifier(m)
        self.m = m
        self.register_buffer("centres", torch.randn(n_clusters, encoder_dim))

        def drawn(*shape: int, fan_in: int) -> nn.Parameter:  # as nn.Linear draws
            return nn.Parameter((2 * torch.rand(shape) - 1) / math.sqrt(fan_in))

        self.first = drawn(n_clusters, encoder_dim, hidden, fan_in=encoder_dim)
        self.first_bias = drawn(n_clusters, hidden, fan_in=encoder_dim)
        self.second = drawn(n_clusters, hidden, fan_in=hidden)
        self.second_bias = drawn(n_clusters, fan_in=hidden)

    @checked
    def assign(self, clusters: FuzzyCMeans) -> None:
        """Takes the centres of fitted clusters.

        Raises:
            ValueError: another number of centres, or of their columns.

        Example:
            >>> FuzzyHeads(1, 1).assign(FuzzyCMeans(1).fit(torch.zeros(2, 1)))
        """
        centres = getattr(clusters, "centres", None)
        if centres is None or centres.shape != self.centres.shape:
            got = None if centres is None else tuple(centres.shape)
            raise ValueError(f"clusters must have centres of shape {tuple(self.centres.shape)}, got {got}")
        self.centres.copy_(centres)

    @checked
    def forward(self, h: Tensor) -> Tensor:
        check_dimensions(2, h=h)
        if h.shape[1] != self.centres.shape[1]:
            raise ValueError(f"h must have {self.centres.shape[1]} columns, got shape {tuple(h.shape)}")
        inner = torch.einsum("nd,cdh->nch", h, self.first) + self.first_bias
        each = (inner.relu() * self.second).sum(2) + self.second_bias
        return (fuzzy_membership(h, self.centres, self.m) * each).sum(1)


@checked
def check_fuzzifier(m: float) -> None:
    """Refuses a fuzzifier that is not above 1 and finite.

    Example:
        >>> check_fuzzifier(1.0)
        Traceback (most recent call last):
        ValueError: m must be above 1 and finite, got 1.0
    """
    check_nonnegative(m=m)
    if m <= 1:
        raise ValueError(f"m must be above 1 and finite, got {m}")


def _squared_distances(X: Tensor, centres: Tensor) -> Tensor:
    return (X[:, None] - centres).square().sum(2)  # exactly 0 on a centre, as cdist is not
