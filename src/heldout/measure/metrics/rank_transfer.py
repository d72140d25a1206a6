"""Core: Whether those that train better also generalize better: ranks of training and of test scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heldout.errors import check_fraction, check_values, checked
from heldout.statistics import CONFIDENCE, Interval, interval, spearman

Array = NDArray[np.float64]


class RankTransfer(NamedTuple):
    """What training scores tell about test scores; each with its interval over the candidates.

    Attributes:
        spearman: rank correlation.
        quartile_gap: mean test score of the quarter that trains best, less that of the quarter that trains worst.

    Example:
        >>> found = rank_transfer([0.7, 0.8, 0.9, 1.0], [0.9, 0.8, 0.7, 0.6])  # who trains best generalizes worst
        >>> round(found.spearman.estimate, 6), round(found.quartile_gap.estimate, 6)
        (-1.0, -0.3)
    """

    spearman: Interval
    quartile_gap: Interval


@checked
def rank_transfer(
    train_scores: Sequence[float], test_scores: Sequence[float], *, confidence: float = CONFIDENCE
) -> RankTransfer:
    """Returns how well candidates' training scores rank their test scores.

    Intervals are of other candidates of the same kind, which are resampled; they say nothing of other data.

    Args:
        train_scores: of at least 4 candidates, higher is better; not all the same.
        test_scores: of the same candidates.
        confidence: of the intervals.

    Raises:
        ValueError: fewer than 4 candidates, lengths that differ, numbers that are not finite, or scores that are all
            the same, which have no ranks.

    Source: arXiv:2303.03340, section 4, which compares the candidates that train best with those that train worst.

    Example:
        >>> found = rank_transfer([0.7, 0.8, 0.9, 0.95], [0.5, 0.6, 0.65, 0.7])
        >>> round(found.spearman.estimate, 6), round(found.quartile_gap.estimate, 6)
        (1.0, 0.2)
    """
    check_values(train_scores=train_scores, test_scores=test_scores)
    check_fraction(confidence=confidence)
    train, test = np.asarray(train_scores, float), np.asarray(test_scores, float)
    if train.ndim != 1 or train.shape != test.shape or len(train) < 4:
        raise ValueError(
            f"train_scores and test_scores must be of at least 4 candidates each, got {train.shape} and {test.shape}"
        )
    for name, scores in (("train_scores", train), ("test_scores", test)):
        if (scores == scores[0]).all():
            raise ValueError(f"{name} must not be all the same: they have no ranks")
    return RankTransfer(
        interval([train, test], spearman, confidence=confidence),
        interval([train, test], _quartile_gap, confidence=confidence),
    )


def _quartile_gap(train: Array, test: Array) -> Array:
    """Over the last axis; candidates of equal training score stand in their order."""
    quarter = max(1, train.shape[-1] // 4)
    ordered = np.take_along_axis(test, np.argsort(train, axis=-1, kind="stable"), axis=-1)
    return ordered[..., -quarter:].mean(-1) - ordered[..., :quarter].mean(-1)
