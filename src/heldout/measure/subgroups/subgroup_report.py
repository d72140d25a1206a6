"""Core: A binary classifier's metric in each subgroup of each factor, with intervals, against the rest or the best.

Source: the protocol of arXiv:2402.10965 (Rahman et al.): the area under the ROC curve by hospital, age, insurance and
comorbidity. Intervals and the adjustment for the number of groups are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heldout.data import factor_rows
from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_finite,
    check_labels,
    check_nonempty,
    check_one_of,
    check_same_length,
    checked,
)
from heldout.measure.metrics.calibration import brier, expected_calibration_error
from heldout.statistics import CONFIDENCE, Interval, newcombe, wilson

Array = NDArray[np.float64]
MetricName = Literal["auc", "accuracy", "sensitivity", "specificity"]
Metric = MetricName | Callable[[Array, Array], float]
Against = Literal["rest", "best"]

_NAMES: tuple[MetricName, ...] = ("auc", "accuracy", "sensitivity", "specificity")
_MOST_VALUES = 100  # of a factor: beyond that it is a quantity that wants bins
_AT_ONCE = 2_000_000  # resampled weights at a time


class Subgroup(NamedTuple):
    """One group of one factor.

    Attributes:
        factor: such as "hospital".
        value: such as 3.
        n: examples.
        rate: share of them with label 1.
        metric: in this group alone, with its 95 % interval; the estimate is NaN where it is not defined.
        gap: how far the metric lies below that of the comparison, above 0 where the group is worse, with an interval
            that holds for all groups of the report at once; None where it is not judged.
        reason: why it is not judged, or "".
        confusion: true positives, false positives, false negatives, true negatives.
        brier: mean squared error of the probabilities, as ``heldout.measure.brier``; None where scores are none.
        calibration_error: as ``heldout.measure.expected_calibration_error``; None likewise.

    Example:
        >>> young = Subgroup("age", "young", 50, 0.2, Interval(0.8, 0.7, 0.9), Interval(0.1, 0.02, 0.2))
        >>> young.behind
        True
    """

    factor: str
    value: Hashable
    n: int
    rate: float
    metric: Interval
    gap: Interval | None = None
    reason: str = ""
    confusion: tuple[int, int, int, int] = (0, 0, 0, 0)
    brier: float | None = None
    calibration_error: float | None = None

    @property
    def behind(self) -> bool:
        """Whether the whole interval says that the group is worse than what it is compared with."""
        return self.gap is not None and self.gap.low is not None and self.gap.low > 0


class SubgroupReport(NamedTuple):
    """A metric of all examples and of each group.

    Attributes:
        metric: its name.
        overall: of all examples, with its 95 % interval.
        groups: by factor, in the order in which they were given, and by value.
        against: what a group is compared with: the "rest" of the examples, or the "best" group of its factor.
        comparisons: for how many the intervals of the gaps are adjusted.

    Example:
        >>> SubgroupReport("auc", Interval(0.8, 0.7, 0.9), ()).worst is None
        True
    """

    metric: str
    overall: Interval
    groups: tuple[Subgroup, ...]
    against: Against = "rest"
    comparisons: int = 0

    def of(self, factor: str) -> dict[Hashable, Subgroup]:
        """Returns the groups of a factor by value.

        Raises:
            ValueError: there is no such factor.
        """
        check_one_of({group.factor: None for group in self.groups}, factor=factor)
        return {group.value: group for group in self.groups if group.factor == factor}

    @property
    def worst(self) -> Subgroup | None:
        """The judged group with the largest gap, or None."""
        judged = [group for group in self.groups if group.gap is not None]
        return max(judged, key=lambda group: group.gap.estimate, default=None)  # type: ignore[union-attr]

    @property
    def behind(self) -> list[Subgroup]:
        """The groups that are worse for certain, the largest gap first."""
        found = [group for group in self.groups if group.behind]
        return sorted(found, key=lambda group: -group.gap.estimate)  # type: ignore[union-attr]

    def records(self) -> list[dict[str, Any]]:
        """Returns one flat dict for each group, as ``pandas.DataFrame`` takes them."""
        found = []
        for group in self.groups:
            gap = group.gap or Interval(math.nan, None, None)
            found.append({
                "factor": group.factor, "value": group.value, "n": group.n, "rate": group.rate,
                self.metric: group.metric.estimate, "low": group.metric.low, "high": group.metric.high,
                "gap": gap.estimate, "gap_low": gap.low, "gap_high": gap.high, "reason": group.reason,
                "brier": group.brier, "calibration_error": group.calibration_error,
            })  # fmt: skip
        return found


@checked
def subgroup_report(
    y: Tensor | np.ndarray | Sequence,
    score: Tensor | np.ndarray | Sequence,
    groups: Any,
    metric: Metric = "auc",
    *,
    against: Against = "rest",
    min_n: int = 30,
    threshold: float = 0.5,
    bootstrap: int = 500,
    seed: int = 0,
) -> SubgroupReport:
    """Returns how well a classifier does in each group of each factor, and how far below the rest that is.

    Each group is ranked by itself. Groups are small, so that no group should be told worse without its interval: that
    of a gap is made at the level 1 - 0.05 / (number of comparisons), and holds for all of them at once (Bonferroni). A
    group of one class, or smaller than ``min_n``, is listed with the reason why it is not judged.

    The interval of the area is normal on the scale of its logit, with the standard error of ``bootstrap`` resamples
    within the classes; where they never vary (an area of 0 or 1) it is Wilson's for as many trials as the smaller class
    has examples, by the bound of Birnbaum and Klose on the variance. Shares have Wilson's, other metrics the normal one
    with the bootstrap's standard error. Gaps are differences of independent estimates, by ``newcombe``; those to the
    best group are adjusted for all pairs of a factor, as which is best is seen on the same data. Costs a sort and
    ``bootstrap`` weighted sums for each group and for its rest.

    Args:
        y: 0 and 1, ``(n,)``.
        score: ``(n,)``, larger where label 1 is more probable: probabilities or logits.
        groups: columns of values by the name of a factor (a mapping, a frame), each ``(n,)``; quantities want bins
            (``numpy.digitize``), what is missing a value of its own.
        metric: "auc", "accuracy", "sensitivity", "specificity", or ``(y, score) -> number``, of float64 arrays, where
            more is better and NaN says that it is not defined.
        against: what a group is compared with: the "rest" of the examples, or the "best" group of its factor.
        min_n: least examples of a group that is judged.
        threshold: from which score on label 1 is predicted; 0 for logits.
        bootstrap: resamples, at least 50.
        seed: of the resamples.

    Raises:
        ValueError: no examples, labels other than 0 and 1, scores that are not finite, lengths that differ, values that
            are missing, a factor of more than 100 values.

    Source: arXiv:2402.10965. Z. W. Birnbaum and O. M. Klose, Annals of Mathematical Statistics 28 (1957).

    Example:
        >>> y, score = [0, 1] * 40, [0.2, 0.9] * 20 + [0.6, 0.5] * 20
        >>> report = subgroup_report(y, score, {"site": ["a"] * 40 + ["b"] * 40})
        >>> [(group.value, group.metric.estimate, group.behind) for group in report.groups]
        [('a', 1.0, False), ('b', 0.0, True)]
        >>> report.worst.value, report.overall.estimate
        ('b', 0.75)
    """
    labels, scores = binary_scores(y, score)
    names, rows = factor_rows(groups, "groups")
    check_same_length(y=labels, groups=rows)
    if not callable(metric):
        check_one_of(_NAMES, metric=metric)
    check_one_of(("rest", "best"), against=against)
    check_at_least(1, min_n=min_n)
    check_at_least(50, bootstrap=bootstrap)
    check_at_least(0, seed=seed)
    judge = _Judge(labels, scores, metric, threshold, bootstrap, seed)
    members: dict[tuple[str, Hashable], np.ndarray] = {}
    for name, column in zip(names, zip(*rows, strict=True), strict=True):
        number = {value: place for place, value in enumerate(_values(column, name))}
        codes = np.array([number[value] for value in column])
        members |= {(name, value): codes == place for value, place in number.items()}
    reasons = {key: judge.why_not(mask, min_n) for key, mask in members.items()}
    judged = {name: [key for key in members if key[0] == name and not reasons[key]] for name in names}
    if against == "rest":  # the rest of the only group is nothing, and the rest must have both classes, too
        reasons |= {
            key: "there is no rest that could be judged"
            for name in names
            for key in judged[name]
            if judge.why_not(~members[key], 1)
        }
        comparisons = sum(not reason for reason in reasons.values())
    else:
        comparisons = sum(len(keys) * (len(keys) - 1) // 2 for keys in judged.values())
    level = 1 - (1 - CONFIDENCE) / max(1, comparisons)
    found = []
    for key, mask in members.items():
        gap, reason = None, reasons[key]
        if not reason:
            other, reason = ~mask, ""
            if against == "best":
                best = max(judged[key[0]], key=lambda each: judge.point(members[each]))
                other = members[best]
                reason = "it is the best group" if best == key else ""
            ends = judge.interval(other, level), judge.interval(mask, level)
            if not reason and any(end.low is None for end in ends):
                reason = "the metric is not defined on its resamples"
            gap = None if reason else newcombe(*ends)
        found.append(judge.subgroup(*key, mask, gap, reason))
    overall = judge.interval(np.ones(len(labels), dtype=bool), CONFIDENCE)
    title = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
    return SubgroupReport(title, overall, tuple(found), against, comparisons)


@checked
def binary_scores(
    y: Tensor | np.ndarray | Sequence, score: Tensor | np.ndarray | Sequence
) -> tuple[NDArray[np.int64], Array]:
    """Returns labels and scores as arrays ``(n,)``, after the checks that all measures of binary scores share.

    Args:
        y: 0 and 1.
        score: larger where label 1 is more probable.

    Raises:
        ValueError: no examples, labels other than 0 and 1, scores that are not finite, other lengths or dimensions.

    Example:
        >>> labels, scores = binary_scores(torch.tensor([True, False]), [0.25, 0.5])
        >>> labels.tolist(), scores.tolist()
        ([1, 0], [0.25, 0.5])
    """
    check_nonempty(y=y, score=score)
    labels, scores = _array(y, "y"), _array(score, "score")
    check_dimensions(1, y=labels, score=scores)
    check_same_length(y=labels, score=scores)
    check_finite(y=labels, score=scores)
    if np.array_equal(labels, np.round(labels)):  # 0.0 and 1.0 are labels, too
        labels = labels.astype(np.int64)
    check_labels(2, y=labels)
    return labels.astype(np.int64), scores.astype(np.float64)


def _array(values: Any, name: str) -> np.ndarray:
    try:
        found = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values)
        return found.astype(np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must hold one number for each example") from None


class _Judge:
    """The metric of any part of the examples, with its interval; what was resampled once is not resampled again."""

    def __init__(
        self, labels: NDArray[np.int64], scores: Array, metric: Metric, threshold: float, bootstrap: int, seed: int
    ) -> None:
        self.labels, self.scores, self.metric, self.threshold = labels, scores, metric, threshold
        self.bootstrap, self.seed = bootstrap, seed
        self.errors: dict[bytes, tuple[float, float]] = {}
        self.probabilities = bool((scores >= 0).all() and (scores <= 1).all())

    def why_not(self, mask: np.ndarray, min_n: int) -> str:
        ones, count = int(self.labels[mask].sum()), int(mask.sum())
        if not count:
            return "it has no examples"
        if self.metric in ("auc", "sensitivity") and ones == 0:
            return f"all of its {count} examples have label 0"
        if self.metric in ("auc", "specificity") and ones == count:
            return f"all of its {count} examples have label 1"
        if count < min_n:
            return f"it has {count} examples, fewer than {min_n}"
        return "" if math.isfinite(self.point(mask)) else "the metric is not defined on it"

    def counts(self, mask: np.ndarray) -> tuple[int, int, int, int]:
        told, true = self.scores[mask] >= self.threshold, self.labels[mask] == 1
        return (
            int((told & true).sum()),
            int((told & ~true).sum()),
            int((~told & true).sum()),
            int((~told & ~true).sum()),
        )

    def share(self, mask: np.ndarray) -> tuple[int, int]:
        """Successes and trials of a metric that is a share."""
        tp, fp, fn, tn = self.counts(mask)
        return {"accuracy": (tp + tn, tp + fp + fn + tn), "sensitivity": (tp, tp + fn), "specificity": (tn, fp + tn)}[
            str(self.metric)
        ]

    def point(self, mask: np.ndarray) -> float:
        y, score = self.labels[mask], self.scores[mask]
        if callable(self.metric):
            return float(self.metric(y.astype(np.float64), score))
        if self.metric == "auc":
            return float(_areas(score[y == 1], score[y == 0])[0]) if 0 < y.sum() < len(y) else math.nan
        good, of = self.share(mask)
        return good / of if of else math.nan

    def interval(self, mask: np.ndarray, level: float) -> Interval:
        from scipy.special import expit, logit, ndtri

        point = self.point(mask)
        if not math.isfinite(point):
            return Interval(math.nan, None, None)
        if self.metric != "auc" and not callable(self.metric):
            return wilson(*self.share(mask), level)
        if (key := mask.tobytes()) not in self.errors:
            self.errors[key] = (point, self._standard_error(mask))
        error, z = self.errors[key][1], float(ndtri(0.5 + level / 2))
        if callable(self.metric):
            known = math.isfinite(error)
            return Interval(point, point - z * error if known else None, point + z * error if known else None)
        if not 0 < point < 1 or error == 0:
            ones = int(self.labels[mask].sum())
            trials = min(ones, int(mask.sum()) - ones)
            return wilson(point * trials, trials, level)
        return Interval(point, *(float(expit(logit(point) + sign * z * error)) for sign in (-1, 1)))

    def _standard_error(self, mask: np.ndarray) -> float:
        """Of the metric, for an area on the scale of its logit."""
        from scipy.special import logit

        generator, y, score = np.random.default_rng(self.seed), self.labels[mask], self.scores[mask]
        if callable(self.metric):
            rows = generator.integers(0, len(y), (self.bootstrap, len(y)))
            drawn = np.array([self.metric(y[row].astype(np.float64), score[row]) for row in rows])
            drawn = drawn[np.isfinite(drawn)]
            return float(drawn.std(ddof=1)) if len(drawn) > 1 else math.nan
        ones, zeros = score[y == 1], score[y == 0]
        drawn = _areas(ones, zeros, self.bootstrap, generator)
        least = 0.5 / (len(ones) * len(zeros))
        return float(logit(drawn.clip(least, 1 - least)).std(ddof=1))

    def subgroup(self, factor: str, value: Hashable, mask: np.ndarray, gap: Interval | None, reason: str) -> Subgroup:
        errors: tuple[float | None, float | None] = (None, None)
        y, score = (torch.from_numpy(each[mask]) for each in (self.labels, self.scores))
        if self.probabilities:
            both = torch.stack([1 - score, score], 1)
            errors = brier(both, y), expected_calibration_error(both, y)
        return Subgroup(
            factor, value, len(y), float(y.double().mean()), self.interval(mask, CONFIDENCE), gap, reason,
            self.counts(mask), *errors,
        )  # fmt: skip


def _areas(ones: Array, zeros: Array, resamples: int = 0, generator: np.random.Generator | None = None) -> Array:
    """The area under the ROC curve, or that of resamples within the classes; ties count half."""
    zeros = np.sort(zeros)
    below, upto = np.searchsorted(zeros, ones, "left"), np.searchsorted(zeros, ones, "right")
    pairs = len(ones) * len(zeros)
    if generator is None:
        return np.array([(below + upto).sum() / (2 * pairs)])
    found = []
    step = max(1, _AT_ONCE // (len(ones) + len(zeros)))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        first = generator.multinomial(len(ones), np.full(len(ones), 1 / len(ones)), count)
        second = generator.multinomial(len(zeros), np.full(len(zeros), 1 / len(zeros)), count)
        sums = np.concatenate([np.zeros((count, 1)), second.cumsum(1)], 1)
        found.append((first * (sums[:, below] + sums[:, upto])).sum(1) / (2 * pairs))
    return np.concatenate(found)


def _values(column: Sequence, name: str) -> list[Hashable]:
    """The values of a factor, in order."""
    found = list(dict.fromkeys(column))
    if len(found) > _MOST_VALUES:
        raise ValueError(f"groups must have at most {_MOST_VALUES} values of a factor, got {len(found)} of {name}: "
                         "put a quantity into bins (numpy.digitize)")  # fmt: skip
    return sorted(found, key=lambda value: (str(type(value)), value))  # type: ignore[arg-type,return-value]
