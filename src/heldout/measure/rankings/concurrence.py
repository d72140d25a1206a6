"""Core: Do two benchmarks rank models the same way? Their concurrence, with an interval.

The crossed pairing of the source takes all pairs of a seed on one benchmark and a seed on the other, of each model, so
that noise over seeds lowers the value even where rankings agree: read it beside the ceiling and the null of
``concurrence_matrix``.

Source: arXiv:2310.17514 (Sun, Williams, Hupkes; CoNLL 2023).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from heldout.errors import check_at_least, check_fraction, check_nonempty, check_one_of, check_values, checked
from heldout.measure.rankings.paired_correlations import (
    LEAST_MODELS,
    METHODS,
    PAIRINGS,
    Pairing,
    Ranked,
    RankMethod,
    bootstrap_interval,
    by_pairing,
    padded,
    resampled_scores,
)
from heldout.statistics import CONFIDENCE


class Concurrence(NamedTuple):
    """How alike two benchmarks rank models.

    Attributes:
        value: the correlation; NaN where all scores of a benchmark are the same.
        ci: its interval by bootstrap over models and, within each, seeds; NaN where the value is, or without resamples.
        n_models: that both benchmarks have scores of.

    Example:
        >>> small = {"lstm": [0.2], "conv": [0.4], "mlp": [0.3], "transformer": [0.7]}
        >>> large = {"lstm": [0.9], "conv": [0.7], "mlp": [0.8], "transformer": [0.6]}
        >>> found = concurrence(small, large, resamples=99)
        >>> found.value, found.ci, found.n_models
        (-1.0, (-1.0, -1.0), 4)
    """

    value: float
    ci: tuple[float, float]
    n_models: int


@checked
def concurrence(
    scores_a: Mapping[str, Sequence[float]],
    scores_b: Mapping[str, Sequence[float]],
    method: RankMethod = "kendall",
    pairing: Pairing = "crossed",
    *,
    confidence: float = CONFIDENCE,
    resamples: int = 999,
    seed: int = 0,
) -> Concurrence:
    """Returns the correlation of the models' scores on two benchmarks, over the models that both have.

    The number of pairs says nothing of significance: use the interval, never a p-value of crossed pairs.

    Args:
        scores_a, scores_b: the scores of each model, one for each seed, by the model's name. Models need not have the
            same number of seeds.
        method: "kendall" (tau-b), "pearson" or "spearman".
        pairing: "crossed", every seed on one benchmark with every seed on the other, of the same model; or "mean", the
            means over seeds.
        confidence: of the interval.
        resamples: of the bootstrap; with 0 there is no interval, and its ends are NaN.
        seed: of the bootstrap.

    Raises:
        ValueError: fewer than 3 models in common, a model without scores, scores that are not finite.

    Warns:
        UserWarning: models that only one benchmark has, which are left out; scores that are all the same, which have no
            ranks.

    Source: arXiv:2310.17514, section 3. The interval is not in the paper.

    Example:
        >>> a = {"lstm": [0.2, 0.3], "conv": [0.4, 0.5], "transformer": [0.7, 0.8]}
        >>> b = {"lstm": [0.1], "conv": [0.3], "transformer": [0.2]}
        >>> found = concurrence(a, b, pairing="mean")
        >>> round(found.value, 3), found.n_models
        (0.333, 3)
    """
    check_one_of(METHODS, method=method)
    check_one_of(PAIRINGS, pairing=pairing)
    check_fraction(confidence=confidence)
    check_at_least(0, resamples=resamples, seed=seed)
    for name, scores in (("scores_a", scores_a), ("scores_b", scores_b)):
        check_nonempty(**{name: scores})
        for model, each in scores.items():
            check_values(**{f"{name}[{model!r}]": np.asarray(each, float)})
    models = [model for model in scores_a if model in scores_b]
    if len(models) < LEAST_MODELS:
        raise ValueError(f"scores_a and scores_b must have at least {LEAST_MODELS} models in common, got {len(models)}")
    if left := sorted({*scores_a, *scores_b} - set(models)):
        warnings.warn(f"left out, for only one benchmark has them: {', '.join(left)}", stacklevel=3)
    a, b = (padded([scores[model] for model in models]) for scores in (scores_a, scores_b))
    for name, table in (("scores_a", a), ("scores_b", b)):
        if np.nanmin(table) == np.nanmax(table):
            warnings.warn(f"{name} are all the same and have no ranks: their concurrence is NaN", stacklevel=3)
    one, other = (Ranked(by_pairing(table[None], pairing), method) for table in (a, b))
    value = float(one.correlation(other)[0])
    parts = [
        Ranked(by_pairing(first, pairing), method).correlation(Ranked(by_pairing(second, pairing), method))
        for first, second in resampled_scores([a, b], resamples, np.random.default_rng(seed))
    ]
    return Concurrence(value, bootstrap_interval(parts, value, confidence), len(models))
