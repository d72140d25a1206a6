"""Core: Is what is best ranked first? Normalised discounted cumulative gain."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_nonempty,
    check_nonnegative,
    check_same_length,
    check_values,
    checked,
)


@checked
def ndcg(relevance: ArrayLike, scores: ArrayLike, k: int = 10) -> float:
    """Returns NDCG@k in [0, 1]: gains of the k first by score, discounted by their place, over those of the best order.

    ``sum_{i<k} gain_i / log2(i + 2)``, gains as they are (not ``2^gain``). Equal scores share their mean gain. 0 where
    all gains are 0. Of gains that hardly differ every order is near 1: give ranks, or a small power, instead.

    Args:
        relevance: ``(n,)`` true gains, 0 or more.
        scores: ``(n,)``, the larger the earlier.
        k: how many places count; more than n is n.

    Raises:
        ValueError: none of them, lengths that differ, gains below 0, numbers that are not finite, k below 1.

    Source: Jarvelin and Kekalainen (2002); ties as in scikit-learn's ``ndcg_score``.

    Example:
        >>> round(ndcg([3, 2, 0, 1], [0.9, 0.8, 0.7, 0.1], k=3), 4)
        0.895
    """
    check_at_least(1, k=k)
    gains, given = np.asarray(relevance, dtype=float), np.asarray(scores, dtype=float)
    check_dimensions(1, relevance=gains, scores=given)
    check_values(relevance=gains, scores=given)
    check_nonempty(relevance=gains)
    check_nonnegative(relevance=gains)
    check_same_length(relevance=gains, scores=given)
    discount = 1 / np.log2(np.arange(len(gains)) + 2)
    discount[k:] = 0
    best = float(np.sort(gains)[::-1] @ discount)
    if best == 0:
        return 0.0
    _, group, sizes = np.unique(-given, return_inverse=True, return_counts=True)
    means = np.bincount(group, gains) / sizes
    starts = np.concatenate([[0], np.cumsum(sizes)])
    shares = np.array([discount[first:last].sum() for first, last in pairwise(starts)])
    return float(means @ shares) / best
