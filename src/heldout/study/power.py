"""How many seeds a claim needs: read off a pilot on development seeds, before anything is recorded.

A claim whose quantity lies d away from its bound, with standard deviation s between seeds, is decided by n seeds when
its 95 % interval stays clear of the bound with a chance of 80 %: t(n - 1) s / sqrt(n) + z(0.8) s / sqrt(n) <= d. The
spread of a few pilot seeds is itself uncertain: read the number as its order of magnitude.

Source: J. Cohen, "Statistical Power Analysis for the Behavioral Sciences" (1988), for the paired t test.
"""

from __future__ import annotations

import math

from heldout.errors import check_at_least, checked
from heldout.study.claims import Judged

MOST_SEEDS = 200
POWER = 0.8


@checked
def seeds_needed(claim: Judged, seeds: int, *, most: int = MOST_SEEDS) -> int | None:
    """Returns the least number of seeds that would decide a claim, at least 2; None where not even ``most`` would.

    Args:
        claim: a claim as a pilot judged it, with an interval.
        seeds: how many seeds the pilot had.

    Raises:
        ValueError: the claim has no interval, as with a single seed.

    Example:
        >>> from heldout.study import Study, at_least, higher_is_better, run_study
        >>> study = Study(slug="demo", arms={"a": {}}, run=lambda arm, seed, profile: {"x": 1 + seed % 3},
        ...               metrics={"x": higher_is_better}, claims=[at_least("a", on="x", value=1)])
        >>> seeds_needed(run_study(study, seeds=3).claims[0], seeds=3)
        10
    """
    check_at_least(1, seeds=seeds, most=most)
    if claim.estimate is None or claim.low is None or claim.high is None:
        raise ValueError(f"the claim {claim.text!r} has no interval: a pilot needs at least 2 seeds")
    # The samples of a correlation are runs, of which every seed brings several.
    per_seed = max(1.0, claim.n / seeds)
    needed = samples_needed(_distance(claim), claim.low, claim.high, claim.n, most=math.ceil(most * per_seed))
    return None if needed is None else max(2, math.ceil(needed / per_seed))


@checked
def samples_needed(distance: float, low: float, high: float, n: int, *, most: int = MOST_SEEDS) -> int | None:
    """Returns the least number of samples, at least 2, that would decide a mean; None where not even ``most`` would.

    Args:
        distance: of the mean from what it is compared with.
        low: of its 95 % interval.
        high: of its 95 % interval.
        n: samples that the interval is of, at least 2.

    Example:
        >>> samples_needed(distance=1.0, low=-2.0, high=4.0, n=3)
        14
    """
    check_at_least(2, n=n)
    check_at_least(1, most=most)
    if distance <= 0:
        return None
    deviation = (high - low) / 2 * math.sqrt(n) / _student(n)
    for number in range(2, most + 1):
        if (_student(number) + _normal(POWER)) * deviation / math.sqrt(number) <= distance:
            return number
    return None


def _distance(claim: Judged) -> float:
    """How far the estimate lies inside the region that decides the claim one way; 0 where no region holds it."""
    estimate, margin = claim.estimate or 0.0, claim.margin
    if claim.kind == "better":
        return max(estimate - margin, min(0.0, margin) - estimate)
    if claim.kind == "equivalent":
        return abs(margin - abs(estimate))
    return abs(estimate - margin)


def _student(samples: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(samples - 1, 0.975))


def _normal(probability: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(probability))
