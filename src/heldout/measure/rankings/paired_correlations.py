"""Core: Correlations of the scores of models on two benchmarks over all pairs of seeds, in batches; NaN is no seed.

Pairs of seeds within a model cancel in the numerator of Kendall's tau, so that it is a sum over pairs of models; no
vector of all pairs is made, and a bootstrap is one batch.

Source: arXiv:2310.17514 (Sun, Williams, Hupkes; CoNLL 2023), the crossed pairing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from heldout.statistics import percentile

Array = NDArray[np.float64]
RankMethod = Literal["kendall", "pearson", "spearman"]
Pairing = Literal["crossed", "mean"]

METHODS, PAIRINGS = ("kendall", "pearson", "spearman"), ("crossed", "mean")
LEAST_MODELS = 3
_KEPT_BITS = 40  # of a mean: 12 digits of its own, whatever the other models' scores are
_AT_ONCE = 1 << 18  # numbers of a temporary, 2 MB, which stay in the cache


def padded(scores: Sequence[Sequence[float] | Array]) -> Array:
    """``(models, seeds)``, with NaN where a model has fewer seeds than another."""
    found = np.full((len(scores), max(map(len, scores))), np.nan)
    for row, each in zip(found, scores, strict=True):
        row[: len(each)] = each
    return found


def by_pairing(table: Array, pairing: Pairing) -> Array:
    """Means over seeds, or the scores as they are; means that differ by rounding alone are equal."""
    if pairing != "mean":
        return table
    scores = np.where(np.isfinite(table), table, 0.0)
    largest = np.abs(scores).max(-1, keepdims=True)
    means = scores.sum(-1, keepdims=True) / np.isfinite(table).sum(-1, keepdims=True)
    fraction, exponent = np.frexp(np.where(np.abs(means) > largest * 2.0**-_KEPT_BITS, means, 0.0))
    return np.ldexp(np.round(np.ldexp(fraction, _KEPT_BITS)), exponent - _KEPT_BITS)


def resampled_scores(tables: Sequence[Array], resamples: int, rng: np.random.Generator) -> Iterator[list[Array]]:
    """Resamples of the models, the same in all tables, and of each model's seeds; in chunks ``(n, models, seeds)``."""
    models = len(tables[0])
    step = _rows_at_once(tables)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        chosen = rng.integers(0, models, (size, models))
        drawn = []
        for table in tables:
            counts = np.isfinite(table).sum(1)[chosen][:, :, None]
            seeds = (rng.random((size, models, table.shape[1])) * counts).astype(int)
            values = np.take_along_axis(table[chosen], seeds, axis=2)
            drawn.append(np.where(np.arange(table.shape[1]) < counts, values, np.nan))
        yield drawn


def _rows_at_once(tables: Sequence[Array]) -> int:
    return max(1, _AT_ONCE // (tables[0].shape[-2] * max(table.shape[-1] for table in tables)) ** 2)


def correlations(first: Array, second: Array, method: RankMethod) -> Array:
    """Of ``(n, models, seeds)`` each, ``(n,)``."""
    step = _rows_at_once([first, second])
    parts = [
        Ranked(first[start : start + step], method).correlation(Ranked(second[start : start + step], method))
        for start in range(0, len(first), step)
    ]
    return np.concatenate(parts)


class Ranked:
    """Scores ``(n, models, seeds)`` of one benchmark, prepared to be correlated with another's of the same models."""

    def __init__(self, scores: Array, method: RankMethod) -> None:
        self.method, self.scores = method, scores
        there = np.isfinite(scores)
        self.counts = there.sum(2).astype(float)
        low, high = np.where(there, scores, np.inf), np.where(there, scores, -np.inf)
        self.varies = low.min((1, 2)) < high.max((1, 2))
        if method != "pearson":
            flat = np.where(there, scores, 0.0).reshape(len(scores), -1)
            mask = there.reshape(len(scores), -1).astype(float)
            signs = np.sign(flat[:, :, None] - flat[:, None, :]) * mask[:, :, None] * mask[:, None, :]
            self.signs = signs.reshape(len(scores), *scores.shape[1:], *scores.shape[1:])
        if method == "kendall":
            self.sums, self.untied = self.signs.sum((2, 4)), np.square(self.signs).sum((2, 4))

    def correlation(self, other: Ranked) -> Array:
        """The correlation over all pairs of a seed here and a seed there, ``(n,)``; NaN where one side is constant."""
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.method == "kendall":
                product = (self.sums * other.sums).sum((1, 2))
                own, others = (
                    (one.untied * two.counts[:, :, None] * two.counts[:, None, :]).sum((1, 2))
                    for one, two in ((self, other), (other, self))
                )
                return np.clip(product / np.sqrt(own * others), -1.0, 1.0)
            x, y = self._against(other), other._against(self)
            product = (np.nansum(x, axis=2) * np.nansum(y, axis=2)).sum(1)
            own = (np.nansum(x * x, axis=2) * other.counts).sum(1)
            others = (np.nansum(y * y, axis=2) * self.counts).sum(1)
            varies = self.varies & other.varies
            return np.clip(np.where(varies, product / np.sqrt(own * others), np.nan), -1.0, 1.0)

    def _against(self, other: Ranked) -> Array:
        """Values, or ranks, about their mean, none above 1; each stands in a pair with each seed of the other side."""
        values = self.scores
        if self.method == "spearman":
            ranks = np.einsum("nmsij,ni->nms", self.signs, other.counts)
            values = np.where(np.isfinite(values), ranks, np.nan)
        weights = other.counts[:, :, None]
        mean = np.nansum(values * weights, axis=(1, 2)) / (self.counts * other.counts).sum(1)
        centred = values - mean[:, None, None]
        return centred / np.nanmax(np.abs(centred), axis=(1, 2), keepdims=True)


def bootstrap_interval(resampled: Sequence[Array], value: float, confidence: float) -> tuple[float, float]:
    """Of the values of all chunks of resamples; NaN where there are none."""
    drawn = np.concatenate([np.empty(0), *resampled])
    there = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or not len(there):
        return float("nan"), float("nan")
    low, high = percentile(there, confidence)
    return min(low, value), max(high, value)
