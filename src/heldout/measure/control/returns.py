"""Core: How returns of runs on several tasks are put together: normalised, averaged over the middle, with intervals.

Source: arXiv:2108.13264 (interquartile mean, stratified bootstrap; rliable); arXiv:1912.01588 (normalised returns).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heldout.annotations import short
from heldout.errors import check_at_least, check_dimensions, check_fraction, check_values, checked
from heldout.statistics import CONFIDENCE, Interval, percentile


@checked
def normalised_return(returns: ArrayLike, low: ArrayLike, high: ArrayLike) -> NDArray[np.float64]:
    """Returns ``(R - low) / (high - low)``: 0 for what is as bad as ``low``, 1 for what is as good as ``high``.

    Args:
        returns: of any shape.
        low, high: numbers, or arrays that broadcast against the returns, such as one for each task.

    Raises:
        ValueError: values that are not finite, or ``high`` that is not above ``low``.

    Source: arXiv:1912.01588, section 2.2.

    Example:
        >>> normalised_return([2.0, 4.0], 2.0, 6.0).tolist()
        [0.0, 0.5]
    """
    values, least, most = _numbers(returns=returns, low=low, high=high)
    if (most <= least).any():
        raise ValueError(f"high must be above low, got {high!r} and {low!r}")
    return (values - least) / (most - least)


@checked
def iqm(scores: ArrayLike) -> float:
    """Returns the interquartile mean: that of the middle half of all scores, whatever their shape.

    A quarter of the scores, rounded down, is left out at each end.

    Args:
        scores: such as ``(runs, tasks)``.

    Raises:
        ValueError: no scores, or some that are not finite.

    Source: arXiv:2108.13264, section 4.3; ``scipy.stats.trim_mean``, as rliable has it.

    Example:
        >>> iqm([0.0, 1.0, 3.0, 100.0])
        2.0
    """
    from scipy.stats import trim_mean

    (values,) = _numbers(scores=scores)
    return float(trim_mean(values, 0.25, axis=None))


@checked
def stratified_interval(
    scores: ArrayLike,
    statistic: Callable[[NDArray[np.float64]], float] = iqm,
    *,
    resamples: int = 2000,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Returns a statistic of runs on tasks with its stratified bootstrap interval: runs are redrawn within each task.

    Args:
        scores: ``(runs, tasks)``; the tasks are those that one wants to know about, and are not redrawn.
        statistic: of such an array; default: the interquartile mean.
        resamples: redrawn arrays.
        confidence: of the percentile interval.
        seed: of the draws.

    Raises:
        ValueError: scores of another form or not finite, options out of range.

    Source: arXiv:2108.13264, section 4.1.

    Example:
        >>> found = stratified_interval([[0.0, 10.0], [1.0, 11.0], [2.0, 12.0]], np.mean)
        >>> found.estimate, found.low >= 5.0, found.high <= 7.0
        (6.0, True, True)
    """
    (values,) = _numbers(scores=scores)
    check_dimensions(2, scores=values)
    check_at_least(1, resamples=resamples)
    check_fraction(confidence=confidence)
    check_at_least(0, seed=seed)
    estimate = float(statistic(values))
    if len(values) == 1:
        return Interval(estimate, None, None)
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(values), size=(resamples, *values.shape))
    drawn = np.array([statistic(np.take_along_axis(values, row, 0)) for row in rows], dtype=np.float64)
    return Interval(estimate, *percentile(drawn, confidence))


@checked
def generalization_gap(train: ArrayLike, test: ArrayLike) -> float:
    """Returns the mean score on training levels less that on test levels.

    Args:
        train, test: scores, each of any shape and number.

    Raises:
        ValueError: no scores, or some that are not finite.

    Source: arXiv:2312.05742, section 2.

    Example:
        >>> generalization_gap([1.0, 0.5], [0.25])
        0.5
    """
    known, new = _numbers(train=train, test=test)
    return float(known.mean() - new.mean())


def _numbers(**named: ArrayLike) -> list[NDArray[np.float64]]:
    """Arrays of finite numbers, of which each holds some."""
    found = []
    for name, value in named.items():
        try:
            found.append(np.asarray(value, dtype=np.float64))
        except (TypeError, ValueError):
            raise TypeError(f"{name} must be numbers, got {short(value)}") from None
        check_values(**{name: found[-1]})
    return found
