"""Core: Intervals over seeds: bootstrap (BCa) and jackknife Student-t, vectorised over resamples.

With the handful of seeds that a study can afford, the BCa bootstrap is too narrow. ``interval`` therefore returns the
hull of the BCa interval and of ``estimate +- t(n - 1) * jackknife standard error``, which for a mean is the ordinary
Student-t interval. See ``interval`` for the coverage that was measured.

Sources: B. Efron, "Better bootstrap confidence intervals", JASA 82 (1987); B. Efron and R. Tibshirani, "An
Introduction to the Bootstrap" (1993), ch. 11 and 14; D. Lakens, "Equivalence tests" (2017) for equivalence by interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heldout.errors import check_at_least, check_fraction, check_nonempty, check_values, checked

Array = NDArray[np.float64]
Statistic = Callable[..., Array]

RESAMPLES = 9999
MAX_VALUES = 10_000_000  # resampled values in all: beyond 1,000 samples fewer resamples are enough
CONFIDENCE = 0.95
_CHUNK = 250_000  # resampled values at a time, so that they stay in the cache


@dataclass(frozen=True)
class Interval:
    """An estimate with the two ends of its interval; the ends are None where there is no interval.

    Example:
        >>> found = interval([np.array([1.0, 2.0, 3.0])])
        >>> found.low < found.estimate < found.high, interval([np.array([1.0])])
        (True, Interval(estimate=1.0, low=None, high=None))
    """

    estimate: float
    low: float | None
    high: float | None


@checked
def mean(x: Array) -> Array:
    """Mean over the last axis.

    Raises:
        ValueError: nothing, or something that is not finite.

    Example:
        >>> mean(np.array([[1.0, 3.0], [2.0, 6.0]])).tolist()
        [2.0, 4.0]
    """
    check_values(x=x)
    return x.mean(axis=-1)


@checked
def ratio_of_means(a: Array, b: Array) -> Array:
    """Mean of a over mean of b, over the last axis.

    Example:
        >>> float(ratio_of_means(np.array([2.0, 4.0]), np.array([1.0, 2.0])))
        2.0
    """
    check_nonempty(a=a, b=b)
    return a.mean(axis=-1) / b.mean(axis=-1)


@checked
def pearson(x: Array, y: Array) -> Array:
    """Pearson correlation over the last axis; NaN where one of the two is constant.

    Example:
        >>> float(pearson(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])).round(6))
        1.0
    """
    if not np.size(x) or np.shape(x)[-1:] != np.shape(y)[-1:]:
        raise ValueError(f"x and y must be of one length, and not empty, got shapes {np.shape(x)} and {np.shape(y)}")
    x = x - x.mean(axis=-1, keepdims=True)
    y = y - y.mean(axis=-1, keepdims=True)
    scale = np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.clip(np.where(scale > 0, (x * y).sum(axis=-1) / scale, np.nan), -1.0, 1.0)


@checked
def spearman(x: Array, y: Array) -> Array:
    """Spearman rank correlation over the last axis (ties share their mean rank).

    Example:
        >>> float(spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 10.0, 11.0])).round(6))
        1.0
    """
    from scipy.stats import rankdata

    return pearson(rankdata(x, axis=-1), rankdata(y, axis=-1))


@checked
def interval(
    samples: Sequence[Array], statistic: Statistic = mean, *, confidence: float = CONFIDENCE, seed: int = 0
) -> Interval:
    """Estimate and interval of a statistic of paired samples, each ``(n,)``, resampled together.

    The interval is the hull of the BCa bootstrap interval and the jackknife Student-t interval. BCa is replaced by
    the percentile bootstrap where it is not defined (n < 3, or no resample on one side of the estimate). One sample
    has no interval; samples that never vary have an interval of width zero. ``seed`` is fixed so that the same
    numbers always give the same interval.

    Coverage at a nominal 95 %, by simulation (4,000 draws for means, 2,000 for the others):

    ================================  ====  ========  ====
    samples                             n   BCa only  hull
    ================================  ====  ========  ====
    mean, normal                        5       0.83  0.95
    mean, normal                       10       0.90  0.95
    mean, Student-t with 3 d.o.f.       5       0.82  0.96
    mean, exponential (skewed)          5       0.80  0.88
    mean, exponential (skewed)         10       0.87  0.90
    mean, lognormal (very skewed)       5       0.74  0.83
    ratio of normal means               5       0.84  0.95
    Pearson correlation of 0.9         10       0.93  0.95
    ================================  ====  ========  ====

    With few seeds of a strongly skewed metric, no interval that is made from the values alone keeps its promise.

    Example:
        >>> found = interval([np.array([0.02, 0.03, 0.01, 0.04, 0.03])])
        >>> round(found.estimate, 3), found.low > 0
        (0.026, True)
    """
    check_values(samples=samples)
    check_fraction(confidence=confidence)
    check_at_least(0, seed=seed)
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    n = len(arrays[0])
    if n == 0 or any(sample.shape != (n,) for sample in arrays):
        raise ValueError(f"interval needs paired samples of one length, got shapes {[s.shape for s in arrays]}")
    estimate = float(statistic(*arrays))
    if n == 1 or not np.isfinite(estimate):
        return Interval(estimate, None, None)
    jackknife = _jackknife(arrays, statistic)
    resamples = max(999, min(RESAMPLES, MAX_VALUES // n))
    resampled = bootstrap_distribution(arrays, statistic, resamples=resamples, seed=seed)
    resampled = resampled[np.isfinite(resampled)]
    if not len(resampled) or not np.isfinite(jackknife).all():
        return Interval(estimate, None, None)
    low, high = bca(resampled, estimate, jackknife, confidence) or percentile(resampled, confidence)
    below, above = _student_t(jackknife, estimate, confidence)
    return Interval(estimate, min(low, below, estimate), max(high, above, estimate))


@checked
def bootstrap_distribution(
    samples: Sequence[Array], statistic: Statistic, *, resamples: int = RESAMPLES, seed: int = 0
) -> Array:
    """The statistic of ``resamples`` paired resamples, ``(resamples,)``.

    Args:
        samples: each ``(n,)``; element i of all of them is drawn together.
        statistic: of arrays ``(resamples, n)``, one for each sample, over the last axis.
        resamples: how many.
        seed: of the draws.

    Raises:
        ValueError: no samples, values that are not finite, or numbers out of range.

    Example:
        >>> drawn = bootstrap_distribution([np.array([0.0, 1.0])], mean, resamples=1000)
        >>> drawn.shape, sorted(set(drawn.tolist()))
        ((1000,), [0.0, 0.5, 1.0])
    """
    check_values(samples=samples)
    check_at_least(1, resamples=resamples)
    check_at_least(0, seed=seed)
    n = len(samples[0])
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // n)
    parts = []
    for start in range(0, resamples, step):
        picked = generator.integers(0, n, (min(step, resamples - start), n))
        parts.append(statistic(*(sample[picked] for sample in samples)))
    return np.concatenate(parts)


@checked
def percentile(resampled: Array, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The percentile bootstrap interval.

    Example:
        >>> low, high = percentile(np.arange(101.0), 0.9)
        >>> round(float(low), 6), round(float(high), 6)
        (5.0, 95.0)
    """
    check_nonempty(resampled=resampled)
    check_fraction(confidence=confidence)
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


@checked
def bca(
    resampled: Array, estimate: float, jackknife: Array, confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """The bias-corrected and accelerated bootstrap interval, or None where it is not defined.

    Args:
        resampled: the statistic of bootstrap resamples, ``(resamples,)``.
        estimate: the statistic of the samples themselves.
        jackknife: the statistic without one observation in turn, ``(n,)``.
        confidence: in [0, 1].

    Raises:
        ValueError: nothing, values that are not finite, or a confidence outside of [0, 1].

    Example:
        >>> x = np.array([1.0, 2.0, 3.0, 10.0])
        >>> without = (x.sum() - x) / 3
        >>> low, high = bca(bootstrap_distribution([x], mean), 4.0, without)
        >>> low < 4.0 < high, bca(np.array([1.0, 2.0, 3.0]), 2.0, without[:2]) is None
        (True, True)
    """
    check_values(resampled=resampled, jackknife=jackknife)
    check_fraction(confidence=confidence)
    from scipy.special import ndtr, ndtri

    if len(jackknife) < 3:
        return None
    # Resamples that reorder the samples give the estimate itself but for rounding: such ties count half.
    tie = 1e-12 * max(abs(estimate), float(np.abs(resampled).max()))
    below = ((resampled < estimate - tie).mean() + (resampled <= estimate + tie).mean()) / 2
    deviation = jackknife.mean() - jackknife
    largest = float(np.abs(deviation).max())
    if not 0 < below < 1 or largest == 0:
        return None
    # The acceleration has no unit: scaled first, the powers of tiny or huge deviations neither vanish nor overflow.
    deviation = deviation / largest
    spread = (deviation**2).sum()
    bias = ndtri(below)
    acceleration = (deviation**3).sum() / (6 * spread**1.5)
    z = bias + ndtri(np.array([(1 - confidence) / 2, (1 + confidence) / 2]))
    scale = 1 - acceleration * z
    if (scale <= 0).any():
        return None
    low, high = np.quantile(resampled, ndtr(bias + z / scale))
    return float(low), float(high)


@checked
def wilson(successes: float, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Returns a proportion with its Wilson score interval, which is sound near 0 and 1 and for few trials.

    Example:
        >>> found = wilson(9, 10)
        >>> round(found.low, 3), found.estimate, round(found.high, 3)
        (0.596, 0.9, 0.982)

    Source: E. B. Wilson, JASA 22 (1927).
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"wilson needs 0 <= successes <= trials and trials >= 1, got {successes} of {trials}")
    from scipy.special import ndtri

    z = float(ndtri(0.5 + confidence / 2))
    share, spread = successes / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = z * np.sqrt(share * (1 - share) / trials + spread / trials / 4) / (1 + spread)
    return Interval(share, max(0.0, float(middle - half)), min(1.0, float(middle + half)))


@checked
def newcombe(first: Interval, second: Interval) -> Interval:
    """Returns the difference of two independent estimates, ``first - second``, from their own intervals.

    With Wilson's intervals of two proportions it is Newcombe's tenth method, which keeps its width where both are 0 or
    1 and the bootstrap has none.

    Raises:
        ValueError: one of them has no interval.

    Example:
        >>> found = newcombe(wilson(56, 70), wilson(48, 80))
        >>> round(found.estimate, 4), round(found.low, 4), round(found.high, 4)
        (0.2, 0.0524, 0.3339)

    Source: R. G. Newcombe, Statistics in Medicine 17 (1998), 873-890, whose example this is.
    """
    if first.low is None or first.high is None or second.low is None or second.high is None:
        raise ValueError("newcombe needs two estimates with intervals")
    gap = first.estimate - second.estimate
    below = float(np.hypot(first.estimate - first.low, second.high - second.estimate))
    above = float(np.hypot(first.high - first.estimate, second.estimate - second.low))
    return Interval(gap, gap - below, gap + above)


@checked
def effect_size(differences: Array) -> float | None:
    """Cohen's d_z, mean over standard deviation of paired differences; None where that is not defined.

    Example:
        >>> effect_size(np.array([1.0, 2.0, 3.0]))
        2.0
    """
    differences = np.asarray(differences, dtype=np.float64)
    if len(differences) < 2:
        return None
    average, deviation = float(differences.mean()), float(differences.std(ddof=1))
    return average / deviation if deviation > 1e-12 * abs(average) else None


def _jackknife(samples: Sequence[Array], statistic: Statistic) -> Array:
    n = len(samples[0])
    if statistic is mean:
        return (samples[0].sum() - samples[0]) / (n - 1)
    step = max(1, _CHUNK // n)
    parts = []
    for start in range(0, n, step):
        rows = np.arange(start, min(start + step, n))[:, None]
        kept = np.arange(n - 1)[None, :]
        kept = kept + (kept >= rows)
        parts.append(statistic(*(sample[kept] for sample in samples)))
    return np.concatenate(parts)


def _student_t(jackknife: Array, estimate: float, confidence: float) -> tuple[float, float]:
    from scipy.special import stdtrit

    n = len(jackknife)
    error = np.sqrt((n - 1) / n * ((jackknife - jackknife.mean()) ** 2).sum())
    reach = float(stdtrit(n - 1, (1 + confidence) / 2) * error)
    return estimate - reach, estimate + reach
