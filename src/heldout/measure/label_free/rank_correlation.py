"""Core: How well scores that need no labels order data sets by a model's error on them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from heldout.errors import check_between, check_dimensions, check_finite, check_nonnegative, check_same_length, checked
from heldout.statistics import pearson, spearman


class RankCorrelation(NamedTuple):
    """How errors and scores go together.

    Attributes:
        spearman: rank correlation in [-1, 1]; ties share their mean rank.
        r2: share of the variance of the errors that a straight line through the scores explains, in [0, 1], of either
            slope.

    Example:
        >>> RankCorrelation(0.5, 0.25).r2
        0.25
    """

    spearman: float
    r2: float


@checked
def rank_correlation(errors: ArrayLike, scores: ArrayLike) -> RankCorrelation:
    """Returns Spearman's correlation and R^2 of errors with scores: 1 where a larger score always is a larger error.

    Where all errors or all scores are equal both are 0: such scores rank nothing.

    Args:
        errors: ``(n,)`` true errors of a model, 0 or more, one for each data set.
        scores: ``(n,)`` in the same order; the larger, the more wrong.

    Raises:
        ValueError: fewer than 2 of them, lengths that differ, numbers that are not finite, or errors below 0.

    Example:
        >>> found = rank_correlation([0.1, 0.2, 0.4], [1.0, 3.0, 2.0])
        >>> round(found.spearman, 6), round(found.r2, 6)
        (0.5, 0.107143)
    """
    check_nonnegative(errors=errors)
    check_between(-math.inf, math.inf, scores=scores)  # numbers at all
    check_finite(scores=scores)
    first, second = np.asarray(errors, dtype=float), np.asarray(scores, dtype=float)
    check_dimensions(1, errors=first, scores=second)
    check_same_length(errors=first, scores=second)
    if len(first) < 2:
        raise ValueError(f"errors must be of at least 2 data sets, got {len(first)}")
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return RankCorrelation(0.0, 0.0)
    return RankCorrelation(float(spearman(first, second)), float(pearson(first, second)) ** 2)
