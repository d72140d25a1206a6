"""How well do similarities agree with those of judges: choices, whole similarity matrices, and uncertainty.

Source: arXiv:2409.06509 (AligNet); representational similarity analysis: Kriegeskorte et al. 2008.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import (
    check_between,
    check_dimensions,
    check_labels,
    check_nonempty,
    check_same_length,
    check_values,
    checked,
)
from heldout.losses import check_choices, pair_similarities
from heldout.statistics import spearman

Metric = Literal["cosine", "dot", "euclidean"]


@checked
def odd_one_out(z: Tensor, triplets: Tensor, y: Tensor, *, normalize: bool = False) -> float:
    """Returns the share of triplets of which the odd item is the judged one: the other two have the largest similarity.

    A tie for the largest is wrong, so that constant embeddings score 0; chance is 1/3.

    Args:
        z: embeddings, ``(items, dim)``.
        triplets: int64 ``(n, 3)``, rows of z.
        y: place of the odd item in each triplet, int64 ``(n,)`` in 0..2.
        normalize: similarities are cosines, instead of inner products.

    Raises:
        ValueError: no triplets, positions or places out of range, values that are not finite.

    Source: arXiv:2409.06509; the rule for ties is the published code's.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> odd_one_out(z, torch.tensor([[0, 1, 2], [2, 0, 1]]), torch.tensor([2, 0]))
        1.0
    """
    check_dimensions(2, z=z)
    check_values(z=z)
    check_triplets(len(z), triplets=triplets)
    check_same_length(triplets=triplets, y=y)
    check_dimensions(1, y=y)
    check_labels(3, y=y)
    similarity = pair_similarities(z[triplets], normalize=normalize)
    right = 2 - y.long().unsqueeze(1)  # the pair without the odd item
    own = similarity.gather(1, right)
    others = similarity.scatter(1, right, float("-inf"))
    return (own.squeeze(1) > others.amax(1)).double().mean().item()


@checked
def check_triplets(items: int, /, **named: Tensor) -> None:
    """Refuses triplets that are not int64 ``(n, 3)`` of different positions below ``items``.

    Example:
        >>> check_triplets(4, triplets=torch.tensor([[0, 3, 1]]))
        >>> check_triplets(3, triplets=torch.tensor([[0, 0, 1]]))
        Traceback (most recent call last):
        ValueError: triplets must be of three different items, got [0, 0, 1]
    """
    for name, value in named.items():
        check_dimensions(2, **{name: value})
        check_nonempty(**{name: value})
        if value.shape[1] != 3:
            raise ValueError(f"{name} must be (n, 3), got {tuple(value.shape)}")
        if value.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, got {value.dtype}")
        check_labels(items, **{name: value})
        same = (value[:, 0] == value[:, 1]) | (value[:, 0] == value[:, 2]) | (value[:, 1] == value[:, 2])
        if bool(same.any()):
            raise ValueError(f"{name} must be of three different items, got {value[same][0].tolist()}")


@checked
def dissimilarities(z: Tensor, metric: Metric = "cosine") -> Tensor:
    """Returns the dissimilarity matrix of embeddings, float64 ``(items, items)``.

    Args:
        z: ``(items, dim)``.
        metric: "cosine" (1 less the cosine), "dot" (the negative inner product) or "euclidean".

    Raises:
        ValueError: no items, values that are not finite, an unknown metric.

    Example:
        >>> dissimilarities(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), "cosine")
        tensor([[0., 1.],
                [1., 0.]], dtype=torch.float64)
    """
    check_dimensions(2, z=z)
    check_values(z=z)
    z = z.double()
    if metric == "cosine":
        z = F.normalize(z, dim=1)
        return 1 - z @ z.T
    if metric == "dot":
        return -z @ z.T
    if metric == "euclidean":
        return torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")
    raise ValueError(f"metric must be cosine, dot or euclidean, got {metric!r}")


@checked
def rsa(z_or_d: Tensor, d_ref: Tensor, metric: Metric | Literal["precomputed"] = "cosine") -> float:
    """Returns the rank correlation (Spearman) of two dissimilarity matrices, over the pairs above the diagonal.

    NaN where all pairs of one of the two are equally dissimilar.

    Args:
        z_or_d: embeddings ``(items, dim)``, or with "precomputed" their dissimilarities ``(items, items)``.
        d_ref: dissimilarities to agree with, ``(items, items)``.
        metric: of the embeddings, as for ``dissimilarities``; or "precomputed".

    Raises:
        ValueError: shapes that do not fit, fewer than 3 items, values that are not finite, a matrix that is not
            symmetric.

    Example:
        >>> z = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
        >>> round(rsa(z, dissimilarities(z, "euclidean"), "euclidean"), 4)
        1.0
    """
    check_dimensions(2, z_or_d=z_or_d, d_ref=d_ref)
    check_values(z_or_d=z_or_d, d_ref=d_ref)
    check_same_length(z_or_d=z_or_d, d_ref=d_ref)
    if metric not in ("cosine", "dot", "euclidean", "precomputed"):
        raise ValueError(f"metric must be cosine, dot, euclidean or precomputed, got {metric!r}")
    if len(d_ref) < 3:
        raise ValueError(f"d_ref must be of at least 3 items, got {len(d_ref)}")
    own = z_or_d.double() if metric == "precomputed" else dissimilarities(z_or_d, metric)
    for name, matrix in {"z_or_d": own, "d_ref": d_ref.double()}.items():
        if matrix.shape[0] != matrix.shape[1] or not torch.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-6):
            raise ValueError(f"{name} must be a symmetric matrix of dissimilarities, got {tuple(matrix.shape)}")
    rows, columns = torch.triu_indices(len(own), len(own), 1)
    pairs = [matrix.cpu()[rows, columns].double().numpy() for matrix in (own, d_ref)]
    return float(spearman(*pairs))


@checked
def uncertainty_alignment(p_model: Tensor, p_judge: Tensor) -> float:
    """Returns the rank correlation (Spearman) of a model's uncertainty with the judges', over the same triplets.

    Uncertainty is the entropy of the choice. A temperature of the model's choices that all triplets share changes the
    order of entropies little, though not nothing. NaN where one of the two is the same for all triplets.

    Args:
        p_model, p_judge: probability of each choice, ``(n, choices)``.

    Raises:
        ValueError: different shapes, no triplets, rows that are no probabilities.

    Source: arXiv:2409.06509.

    Example:
        >>> p = torch.tensor([[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0.4, 0.3, 0.3]])
        >>> uncertainty_alignment(p, p.square() / p.square().sum(1, keepdim=True))
        1.0
    """
    check_dimensions(2, p_model=p_model, p_judge=p_judge)
    check_nonempty(p_model=p_model)
    if p_model.shape != p_judge.shape:
        raise ValueError(f"p_model and p_judge must be alike, got {tuple(p_model.shape)} and {tuple(p_judge.shape)}")
    check_between(0, 1, p_model=p_model, p_judge=p_judge)
    check_choices(p_model=p_model, p_judge=p_judge)
    entropies = [-torch.xlogy(p.double(), p.double()).sum(1).cpu().numpy() for p in (p_model, p_judge)]
    return float(spearman(*entropies))
