"""Core: Decorrelation of variables, linear or not, under weights of examples; which pairs need it.

Two variables are independent when no function of the one covaries with a function of the other; random Fourier features
are such functions. Weights of examples can make variables independent that are not so in the data.

Sources: arXiv:2312.12475 (Chen, Xiao, Kuang et al., AAAI 2024); arXiv:2104.07876 (Zhang et al., CVPR 2021: StableNet)
and arXiv:2112.03806 (Li et al.: OOD-GNN) for the loss; Shen et al., KDD 2020, for clusters of variables whose
correlation is stable; Rahimi and Recht, NeurIPS 2007, for the features.
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_finite,
    check_labels,
    check_length,
    check_nonempty,
    check_nonnegative,
    check_one_of,
    check_same_length,
    checked,
)

CovarianceForm = Literal["reweighted", "scaled"]
_STARTS = 10  # of k-medoids


@checked
def random_fourier_features(z: Tensor, num_features: int = 5, *, generator: torch.Generator | None = None) -> Tensor:
    """Returns random functions of each variable, ``sqrt(2) cos(omega z + b)``: ``(n, d, num_features)``.

    ``omega`` is drawn from N(0, 1) and ``b`` from U(0, 2 pi), anew for each variable and function. Products of features
    approximate the Gaussian kernel of width 1, so that variables should have a spread of about 1.

    Args:
        z: ``(n, d)``, real.
        num_features: functions of each variable.
        generator: of the draw, on the CPU; None for torch's own.

    Raises:
        ValueError: z that is not ``(n, d)``, empty or not finite, or no feature.
        TypeError: z that is not real.

    Source: Rahimi and Recht, NeurIPS 2007, section 3.

    Example:
        >>> random_fourier_features(torch.randn(6, 3), 5).shape
        torch.Size([6, 3, 5])
    """
    _check_variables(z)
    check_at_least(1, num_features=num_features)
    shape = z.shape[1], num_features
    omega = torch.randn(shape, generator=generator).to(z)
    phase = 2 * torch.pi * torch.rand(shape, generator=generator).to(z)
    return 2**0.5 * torch.cos(z[:, :, None] * omega + phase)


@checked
def rff_decorrelation(
    z: Tensor,
    weights: Tensor,
    mask: Tensor | None = None,
    num_features: int = 5,
    generator: torch.Generator | None = None,
    *,
    form: CovarianceForm = "reweighted",
) -> Tensor:
    """Returns how dependent pairs of variables are under weights: squared covariances of random functions of them.

    ``sum_{i<j} mask_ij ||Sigma_ij||_F^2``, where ``Sigma_ij`` holds the covariances of the functions of i and those of
    j. In the form "reweighted" they are those of the weighted data,
    ``1/(n-1) sum_n w_n (u_n - mean_w u)^T (v_n - mean_w v)``, which vanish at the weights ``p(a) p(b) / p(a, b)``. In
    the form "scaled", as printed in the papers, weights multiply the functions, ``w_n u_n - mean(w u)``: they enter
    twice, and their own variance counts as covariance, for functions have means. It keeps weights near 1, does not
    vanish at those weights, and in general at none.

    Gradients go to ``weights`` and to ``z``: detach z to move weights alone. One product of ``(n, d q)`` with itself,
    ``n d^2 q^2`` multiplications, is the floor for any mask.

    Args:
        z: ``(n, d)``, of a spread of about 1: see ``random_fourier_features``.
        weights: ``(n,)``, at least 0, of mean 1 by convention: they are divided by their mean.
        mask: ``(d, d)``, symmetric, bool or numbers: which pairs count; None for all.
        num_features: functions of each variable.
        generator: of the functions, on the CPU.
        form: "reweighted" or "scaled".

    Raises:
        ValueError: fewer than 2 examples, shapes that do not fit, an asymmetric mask, values that are not finite,
            weights below 0 or all 0.
        TypeError: z that is not real.

    Source: arXiv:2312.12475, the loss L_D, with the indicator as its text has it (printed the other way round); form
    "reweighted" as in the code of arXiv:2104.07876.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> a = torch.randn(500, 1, generator=generator)
        >>> apart, alike = torch.cat([a, torch.randn(500, 1, generator=generator)], 1), torch.cat([a, a**2 - 1], 1)
        >>> [round(rff_decorrelation(z, torch.ones(500), generator=generator).item(), 2) for z in (apart, alike)]
        [0.01, 0.19]
    """
    _check_variables(z)
    check_one_of(("reweighted", "scaled"), form=form)
    check_dimensions(1, weights=weights)
    check_same_length(z=z, weights=weights)
    check_nonnegative(weights=weights)
    if len(z) < 2:
        raise ValueError(f"z must hold at least 2 examples, got {len(z)}")
    if not bool((weights > 0).any()):
        raise ValueError("weights must not all be 0")
    wanted = _pairs(z, mask)
    functions = random_fourier_features(z, num_features, generator=generator).flatten(1)
    w = (weights / weights.mean()).to(z)[:, None]
    if form == "reweighted":
        left = functions - (w * functions).mean(0)
        covariances = (w * left).T @ left / (len(z) - 1)
    else:
        left = w * functions
        left = left - left.mean(0)
        covariances = left.T @ left / (len(z) - 1)
    blocks = covariances.square().unflatten(1, (-1, num_features)).sum(2).unflatten(0, (-1, num_features)).sum(1)
    return (wanted * blocks).sum() / 2


@checked
def correlation_stability(z: Tensor, groups: Tensor) -> Tensor:
    """Returns by how much each correlation of two variables differs between groups: a dissimilarity, ``(d, d)``.

    The standard deviation over groups of Pearson's correlation within a group. Where a correlation is the same in all
    of them it is taken for lasting; where it comes and goes, for spurious. Correlations of few examples differ by
    chance, by about ``1 / sqrt(n)``. A variable that is constant within a group has the correlation 0 there.

    Args:
        z: ``(n, d)``, real: embeddings of nodes, with the graph as their group, or of examples.
        groups: int64 ``(n,)``, from 0: graph, environment, or a random fold; each needs 2 rows.

    Raises:
        ValueError: fewer than 2 groups, a group of one row, shapes that do not fit, values that are not finite.
        TypeError: z that is not real.

    Warns:
        UserWarning: a variable that is constant within a group, or almost.

    Source: arXiv:2312.12475, the dissimilarity Dis, after Shen et al., KDD 2020.

    Example:
        >>> a = torch.tensor([0.0, 1.0, 2.0])
        >>> z = torch.stack([torch.cat([a, a]), torch.cat([a, a]), torch.cat([a, -a])], 1)
        >>> correlation_stability(z, torch.tensor([0, 0, 0, 1, 1, 1]))  # the third turns round
        tensor([[0.0000, 0.0000, 1.4142],
                [0.0000, 0.0000, 1.4142],
                [1.4142, 1.4142, 0.0000]])
    """
    _check_variables(z)
    check_dimensions(1, groups=groups)
    check_same_length(z=z, groups=groups)
    check_labels(groups=groups)
    _, numbers, counts = groups.to(z.device).unique(return_inverse=True, return_counts=True)
    if len(counts) < 2:
        raise ValueError(f"groups must hold at least 2 groups, got {len(counts)}")
    if int(counts.min()) < 2:
        raise ValueError("groups must have at least 2 rows each, got one of a single row")
    found, constant = [], False
    for rows in z.detach().double()[numbers.argsort(stable=True)].split(counts.tolist()):
        centred = rows - rows.mean(0)
        length = centred.norm(dim=0)
        flat = length <= 1e-6 * rows.norm(dim=0)
        constant = constant or bool(flat.any())
        unit = torch.where(flat, 0.0, centred / length.clamp(min=torch.finfo(torch.float64).tiny))
        found.append(unit.T @ unit)
    if constant:
        warnings.warn("z has variables that are constant within a group: their correlation is taken as 0", stacklevel=3)
    dissimilarity = torch.stack(found).std(0)
    return dissimilarity.fill_diagonal_(0.0).to(z.dtype)


@checked
def cluster_variables(dissimilarity: Tensor, k: int, seed: int = 0) -> Tensor:
    """Returns the cluster of each variable, int64 ``(d,)``: k-medoids on dissimilarities.

    Clusters are numbered in the order of their first variables; the best of 10 starts counts. Pairs to decorrelate are
    those of different clusters, ``clusters[:, None] != clusters``.

    Args:
        dissimilarity: ``(d, d)``, symmetric and at least 0, as ``correlation_stability`` gives it.
        k: clusters, at most d.
        seed: of the starts.

    Raises:
        ValueError: a k outside of 1 to d, or a dissimilarity that is not square, symmetric, finite and at least 0.

    Source: Shen et al., KDD 2020; k-medoids, as arXiv:2312.12475 leaves the algorithm open.

    Example:
        >>> place = torch.tensor([0.0, 5.0, 0.1, 5.2])
        >>> cluster_variables((place[:, None] - place).abs(), 2)
        tensor([0, 1, 0, 1])
    """
    check_dimensions(2, dissimilarity=dissimilarity)
    check_nonempty(dissimilarity=dissimilarity)
    check_length(dissimilarity.shape[0], dissimilarity=dissimilarity.T)
    check_finite(dissimilarity=dissimilarity)
    check_nonnegative(dissimilarity=dissimilarity)
    check_at_least(1, k=k)
    if not torch.allclose(dissimilarity, dissimilarity.T):
        raise ValueError("dissimilarity must be symmetric")
    if k > len(dissimilarity):
        raise ValueError(f"k must be at most the number of variables, {len(dissimilarity)}, got {k}")
    distance = dissimilarity.detach().double().cpu()
    generator = torch.Generator().manual_seed(seed)
    best, least = None, float("inf")
    for _ in range(_STARTS):
        labels, cost = _medoids(distance, _seeds(distance, k, generator))
        if cost < least:
            best, least = labels, cost
    assert best is not None
    _, numbers = best.unique(return_inverse=True)
    first = torch.stack([(numbers == cluster).nonzero()[0, 0] for cluster in range(int(numbers.max()) + 1)])
    return first.argsort().argsort()[numbers].to(dissimilarity.device)


def _seeds(distance: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Medoids to start from, each drawn by its squared distance from those before, as in k-means++."""
    chosen = [int(torch.randint(len(distance), (), generator=generator))]
    while len(chosen) < k:
        far = distance[:, chosen].min(1).values.square()
        far[chosen] = 0
        if not bool((far > 0).any()):
            far = torch.ones(len(distance), dtype=torch.float64)
            far[chosen] = 0
        chosen.append(int(torch.multinomial(far, 1, generator=generator)))
    return torch.tensor(chosen)


def _medoids(distance: Tensor, medoids: Tensor) -> tuple[Tensor, float]:
    while True:
        labels = distance[:, medoids].argmin(1)
        labels[medoids] = torch.arange(len(medoids))  # also where another medoid lies at the same place
        moved = medoids.clone()
        for cluster in range(len(medoids)):
            members = (labels == cluster).nonzero()[:, 0]
            within = distance[members][:, members].sum(0)
            best = members[within.argmin()]
            if within.min() < within[members == medoids[cluster]].min():
                moved[cluster] = best
        if torch.equal(moved, medoids):
            return labels, float(distance[torch.arange(len(labels)), medoids[labels]].sum())
        medoids = moved


def _pairs(z: Tensor, mask: Tensor | None) -> Tensor:
    """What each pair counts, ``(d, d)``, with nothing on the diagonal."""
    d = z.shape[1]
    if mask is None:
        return 1 - torch.eye(d, dtype=z.dtype, device=z.device)
    check_dimensions(2, mask=mask)
    check_nonnegative(mask=mask)
    if mask.shape != (d, d) or not torch.equal(mask, mask.T):
        raise ValueError(f"mask must be symmetric and ({d}, {d}), got shape {tuple(mask.shape)}")
    return mask.to(z).clone().fill_diagonal_(0)


def _check_variables(z: Tensor) -> None:
    if not z.is_floating_point():
        raise TypeError(f"z must hold real numbers, got {str(z.dtype).removeprefix('torch.')}")
    check_dimensions(2, z=z)
    check_nonempty(z=z)
    check_finite(z=z)
