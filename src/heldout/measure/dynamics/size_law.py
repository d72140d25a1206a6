"""Core: How the loss falls with the size of the model, and the size that a loss is worth.

Source: arXiv:2205.10487 (Hernandez et al.), section 3; the law is that of arXiv:2001.08361 (Kaplan et al.).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from heldout.errors import (
    check_at_least,
    check_fields,
    check_fraction,
    check_one_of,
    check_positive,
    check_same_length,
    checked,
)
from heldout.statistics import CONFIDENCE, Array, Interval, percentile

_LARGEST = 700.0  # of the log of the scale
_FLOORS = 400  # tried on a grid before the best one is refined


@dataclass(frozen=True)
class SizeLaw:
    """A law ``loss(N) = (N / a) ** -b + floor``, and the models that it was fitted to.

    Attributes:
        a: scale, in units of the sizes.
        b: exponent, above 0.
        floor: loss of an endless model; 0 where none was asked for.
        sizes: of the models, as given.
        losses: of the models.
        has_floor: whether the floor was fitted.

    Example:
        >>> law = fit_size_law([1e4, 1e5, 1e6], [4.0, 2.0, 1.0])
        >>> round(law.loss(1e5), 6), round(law.effective_size(2.0))
        (2.0, 100000)
    """

    a: float
    b: float
    floor: float
    sizes: tuple[float, ...]
    losses: tuple[float, ...]
    has_floor: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive(a=self.a, b=self.b, sizes=self.sizes, losses=self.losses)
        check_at_least(0, floor=self.floor)
        check_same_length(sizes=self.sizes, losses=self.losses)

    @checked
    def loss(self, size: float) -> float:
        """Returns the loss that the law gives a model of a size."""
        check_positive(size=size)
        return float((size / self.a) ** -self.b + self.floor)

    @checked
    def effective_size(self, loss: float, *, extrapolate: bool = False) -> float:
        """Returns the size of the model that would have this loss.

        Args:
            loss: of a model that was trained otherwise, for example on repeated data.
            extrapolate: answer also beyond the sizes that the law was fitted to.

        Raises:
            ValueError: a loss at or below the floor, or one of a size beyond those that were fitted.

        Example:
            >>> law = fit_size_law([1, 100], [4.0, 1.0])
            >>> round(law.effective_size(2.0)), round(law.effective_size(0.5, extrapolate=True))
            (10, 1000)
        """
        check_positive(loss=loss)
        if loss <= self.floor:
            raise ValueError(f"loss must be above the law's floor of {self.floor:.6g}, got {loss:.6g}")
        size = self.a * (loss - self.floor) ** (-1 / self.b)
        least, most = min(self.sizes), max(self.sizes)
        if not extrapolate and not least * (1 - 1e-9) <= size <= most * (1 + 1e-9):
            raise ValueError(
                f"loss {loss:.6g} is that of a size of {size:.6g}, beyond the fitted ones from {least:.6g} to "
                f"{most:.6g}: extrapolate=True answers nevertheless"
            )
        return float(size)

    @checked
    def effective_size_interval(
        self, loss: float, *, confidence: float = CONFIDENCE, resamples: int = 999, seed: int = 0
    ) -> Interval:
        """Returns the effective size of a loss with its interval: how well the models determine the law.

        The residuals of the fit, in log loss, are resampled and the law is fitted again. The ends may lie beyond the
        sizes that were fitted; a resample whose law does not fall, or whose floor lies above the loss, is left out, and
        where every tenth is such a one, there is no interval. With a floor it takes about a millisecond a resample.

        Args:
            loss: as for ``effective_size``, within the sizes that were fitted.
            confidence: of the interval.
            resamples: of the residuals.
            seed: of them.

        Raises:
            ValueError: as ``effective_size``, or no more models than the law has parameters.

        Source: the bootstrap of residuals, Efron and Tibshirani (1993), chapter 9.

        Example:
            >>> law = fit_size_law([10, 20, 40, 80], [4.0, 3.6, 3.1, 2.8])
            >>> found = law.effective_size_interval(3.3)
            >>> found.low < found.estimate < found.high
            True
        """
        estimate = self.effective_size(loss)
        check_fraction(confidence=confidence)
        check_at_least(1, resamples=resamples)
        check_at_least(0, seed=seed)
        count, parameters = len(self.sizes), 3 if self.has_floor else 2
        if count <= parameters:
            raise ValueError(f"losses must be of at least {parameters + 1} models for an interval, got {count}")
        fitted = np.log([self.loss(size) for size in self.sizes])
        residuals = (np.log(self.losses) - fitted) * np.sqrt(count / (count - parameters))
        picked = np.random.default_rng(seed).integers(0, count, (resamples, count))
        drawn = np.exp(fitted + residuals[picked])
        if self.has_floor:
            found = np.array([_fit_with_floor(self._logs, row) for row in drawn])
        else:
            found = np.column_stack([*_fit_plain(self._logs, drawn), np.zeros(resamples)])
        level, slope, floor = found.T
        usable = (slope > 0) & (floor < loss)
        if usable.mean() < 0.9:
            return Interval(estimate, None, None)
        sizes = np.exp((level[usable] - np.log(loss - floor[usable])) / slope[usable])
        low, high = percentile(sizes, confidence)
        return Interval(estimate, min(low, estimate), max(high, estimate))

    @cached_property
    def _logs(self) -> Array:
        return np.log(self.sizes)


@checked
def fit_size_law(sizes: Sequence[float], losses: Sequence[float], floor: bool = False) -> SizeLaw:
    """Returns the power law of model size that is nearest to some models' losses, by least squares in log loss.

    Args:
        sizes: of the models, in parameters or any other unit; a size may come again, with another seed.
        losses: of the models, above 0, trained alike and on unrepeated data.
        floor: fit the loss of an endless model, too; it needs three sizes.

    Raises:
        ValueError: fewer than two different sizes (three with a floor), numbers that are not positive, or losses that
            do not fall with the size.

    Source: arXiv:2205.10487, section 3; arXiv:2001.08361.

    Example:
        >>> law = fit_size_law([10, 100, 1000], [2.5, 1.0, 0.85], floor=True)
        >>> 0.7 < law.floor < 0.85, law.effective_size(1.0) < law.effective_size(0.9)
        (True, True)
    """
    check_positive(sizes=sizes, losses=losses)
    check_same_length(sizes=sizes, losses=losses)
    least = 3 if floor else 2
    if (different := len(set(sizes))) < least:
        raise ValueError(f"sizes must hold at least {least} different ones, got {different}")
    logs, values = np.log(np.asarray(sizes, dtype=np.float64)), np.asarray(losses, dtype=np.float64)
    if floor:
        level, slope, lowest = _fit_with_floor(logs, values)
    else:
        (level,), (slope,), lowest = *_fit_plain(logs, values[None]), 0.0
    if not slope > 0 or abs(level / slope) > _LARGEST:
        raise ValueError("losses must fall with the size")
    return SizeLaw(
        a=float(np.exp(level / slope)),
        b=float(slope),
        floor=float(lowest),
        sizes=tuple(map(float, sizes)),
        losses=tuple(map(float, losses)),
        has_floor=floor,
    )


@checked
def interpolated_size(
    sizes: Sequence[float], losses: Sequence[float], loss: float, *, beyond: Literal["refuse", "clip"] = "refuse"
) -> float:
    """Returns the size of the model that would have this loss, read between models that were measured.

    It needs no law: for losses that fall in steps, as that of copying does. Between two neighbours log size is linear
    in loss. Where a larger model has a higher loss, it stands for the smaller ones, too: of several sizes that have a
    loss the largest is given, so a loss is never undervalued. The loss of the largest model is worth its size.

    Args:
        sizes: of the models, in parameters or any other unit; the losses of models of one size are averaged.
        losses: of the models, trained alike and on unrepeated data.
        loss: of a model that was trained otherwise, for example on repeated data.
        beyond: what a loss outside of those that were measured gets: an error (``"refuse"``), or the size at that end
            (``"clip"``), which bounds the true one: from above where the loss is higher than all, from below where it
            is lower.

    Raises:
        ValueError: fewer than two different sizes, numbers that are not positive, a largest model that is no better
            than any other, or a loss outside of those that were measured.

    Source: arXiv:2205.10487, section 3, reads effective sizes from curves without repetition.

    Example:
        >>> round(interpolated_size([1, 100], [4.0, 2.0], 3.0), 6)
        10.0
        >>> interpolated_size([1, 100], [4.0, 2.0], 5.0, beyond="clip")
        1.0
    """
    check_positive(sizes=sizes, losses=losses, loss=loss)
    check_same_length(sizes=sizes, losses=losses)
    check_one_of(("refuse", "clip"), beyond=beyond)
    different, which = np.unique(np.asarray(sizes, dtype=np.float64), return_inverse=True)
    if len(different) < 2:
        raise ValueError(f"sizes must hold at least 2 different ones, got {len(different)}")
    means = np.bincount(which, np.asarray(losses, dtype=np.float64)) / np.bincount(which)
    falling = np.maximum.accumulate(means[::-1])  # from the largest model down
    if falling[0] == falling[-1]:
        raise ValueError("losses must fall with the size: the largest model is no better than any other")
    if beyond == "refuse" and not falling[0] <= loss <= falling[-1]:
        raise ValueError(
            f"loss must lie within those measured, from {falling[0]:.6g} to {falling[-1]:.6g}, got {loss:.6g}: "
            'beyond="clip" answers with the size at that end'
        )
    descending = different[::-1]
    at = int(np.searchsorted(falling, loss))  # the largest model that is no better
    if at == len(falling):
        return float(descending[-1])
    if at == 0:
        return float(descending[at])
    share = (loss - falling[at - 1]) / (falling[at] - falling[at - 1])
    return float(descending[at - 1] * (descending[at] / descending[at - 1]) ** share)


def _fit_plain(logs: Array, losses: Array) -> tuple[Array, Array]:
    """Level and slope of ``log loss = level - slope * log size`` for rows of losses, ``(rows,)`` each."""
    values = np.log(losses)
    centred = logs - logs.mean()
    slope = -(values @ centred) / (centred @ centred)
    return values.mean(-1) + slope * logs.mean(), slope


def _fit_with_floor(logs: Array, losses: Array) -> tuple[float, float, float]:
    """Level, slope and floor: for a floor the others are a straight line's, and the best floor is refined."""
    from scipy.optimize import least_squares

    shares = 1 - np.geomspace(1, 1e-6, _FLOORS)  # of the lowest loss
    floors = shares * losses.min()
    level, slope = _fit_plain(logs, losses[None] - floors[:, None])
    said = np.exp(level[:, None] - slope[:, None] * logs) + floors[:, None]
    best = int(((np.log(said) - np.log(losses)) ** 2).sum(1).argmin())

    def residuals(at: Array) -> Array:
        return np.log(np.exp(at[0] - at[1] * logs) + at[2]) - np.log(losses)

    start = np.array([level[best], slope[best], floors[best]])
    bounds = ([-np.inf, -np.inf, 0.0], [np.inf, np.inf, float(losses.min())])
    scale = np.array([1.0, 1.0, losses.min()])
    found = least_squares(residuals, start, bounds=bounds, x_scale=scale, xtol=1e-14, ftol=1e-14, gtol=1e-14)
    return float(found.x[0]), float(found.x[1]), float(found.x[2])
