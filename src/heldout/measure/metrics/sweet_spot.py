"""Where along an axis a method works, and how narrowly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from heldout.errors import checked


class SweetSpot(NamedTuple):
    """The best place on an axis.

    Attributes:
        best: the position of the highest score; the first of several.
        score: the score there.
        width: length of the stretch around it where the score, interpolated linearly, is within ``drop`` of the best.
        low: where that stretch begins.
        high: where it ends.

    Example:
        >>> spot = sweet_spot([0.0, 1.0, 2.0], [0.5, 0.9, 0.5], drop=0.2)
        >>> spot.best, spot.width, (spot.low, spot.high)
        (1.0, 1.0, (0.5, 1.5))
    """

    best: float
    score: float
    width: float
    low: float
    high: float


@checked
def sweet_spot(
    positions: Sequence[float], scores: Sequence[float] | Sequence[Sequence[float]], drop: float = 0.05
) -> SweetSpot:
    """Returns where a score is highest along an axis, and over how wide a stretch it stays within ``drop`` of that.

    Args:
        positions: places on the axis, such as shares of the unlabelled data in which two cues agree; in any order.
        scores: one score for each, higher is better; or several runs ``(runs, positions)``, which are averaged.
        drop: in the unit of the scores; 0.05 is 5 points of accuracy.

    Raises:
        ValueError: fewer than 2 positions, repeated ones, numbers that do not match or are not finite, or a drop
            that is not positive.

    Source: arXiv:2312.16313, section 4 (sensitivity to the unlabelled data).

    Example:
        >>> sweet_spot([0.0, 0.5, 1.0], [0.9, 0.8, 0.5])
        SweetSpot(best=0.0, score=0.9, width=0.25, low=0.0, high=0.25)
    """
    x, y = np.asarray(positions, dtype=float), np.asarray(scores, dtype=float)
    if y.ndim == 2:
        y = y.mean(0)
    if x.ndim != 1 or len(x) < 2 or y.shape != x.shape:
        raise ValueError(f"sweet_spot needs at least 2 positions and a score for each, got {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("positions and scores must be finite")
    if len(np.unique(x)) < len(x):
        raise ValueError("positions must differ from each other")
    if not drop > 0:
        raise ValueError(f"drop must be positive, got {drop}")
    order = x.argsort()
    x, y = x[order], y[order]
    peak = int(y.argmax())
    floor = y[peak] - drop
    high = _crossing(x[peak:], y[peak:], floor)
    low = _crossing(x[peak::-1], y[peak::-1], floor)
    return SweetSpot(float(x[peak]), float(y[peak]), *(round(v, 12) for v in (high - low, low, high)))


def _crossing(x: np.ndarray, y: np.ndarray, floor: float) -> float:
    """The first place, going along x from the peak, where the interpolated score falls below the floor."""
    below = np.flatnonzero(y < floor)
    if not len(below):
        return float(x[-1])
    i = below[0]
    return float(x[i - 1] + (x[i] - x[i - 1]) * (y[i - 1] - floor) / (y[i - 1] - y[i]))
