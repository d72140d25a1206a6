"""Claims: sentences about arms and metrics that results hold up, contradict or leave open.

Every claim is judged by the 95 % interval of one seed-paired quantity (see ``statistics.interval``):

- **holds**: the whole interval lies on the claimed side of the claim's margin or bound.
- **contradicted**: the whole interval speaks against it. For ``better`` this means beyond zero on the other side,
  because a positive effect that is smaller than its margin does not turn the finding around: that is *inconclusive*,
  and the note says that the effect is smaller than claimed. For claims with a bound, it means the failing side of it.
- **inconclusive**: anything else, and always with a single seed, which has no interval.
- **not judged**: an arm, a metric or all runs that the claim needs are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import numpy as np

from heldout.errors import check_fields, checked
from heldout.statistics import Array, Interval, effect_size, interval, pearson, ratio_of_means, spearman

CONSTANT = "the same on every seed"

Verdict = Literal["holds", "inconclusive", "contradicted", "not judged"]


@dataclass(frozen=True)
class Judged:
    """A claim with its evidence.

    Attributes:
        text: the claim's sentence.
        estimate, low, high: in the units of ``margin``: a difference of metrics in the good direction (of
            ``equivalent``: a - b), a metric, a correlation or a ratio; None where there is none.
        margin: what the claim asks for: its margin, bound, ratio or width.
        verdict: "holds", "inconclusive", "contradicted" or "not judged".
        effect_size: Cohen's d_z of paired differences; None for other quantities, and where it is not defined.
        n: seeds, or runs for a correlation; 0 where nothing could be judged.
        note: what the reader should know, such as seeds that are missing.
        kind, arms, metrics: what was compared: the form of the claim, and its names.

    Example:
        >>> judged = Judged("a beats b", 0.03, 0.01, 0.05, 0.0, "holds", 1.2, 5, "", "better", ("a", "b"), ("score",))
        >>> judged.low > judged.margin, f"{judged.estimate:+.2f} [{judged.low:.2f}, {judged.high:.2f}]"
        (True, '+0.03 [0.01, 0.05]')
    """

    text: str
    estimate: float | None
    low: float | None
    high: float | None
    margin: float
    verdict: Verdict
    effect_size: float | None
    n: int
    note: str
    kind: str
    arms: tuple[str, ...]
    metrics: tuple[str, ...]

    def __post_init__(self) -> None:
        check_fields(self)


class Measured(Protocol):
    """What claims ask of results; ``heldout.study.Results`` has it."""

    seeds: list[int]
    arms: dict[str, dict[str, Any]]
    metrics: dict[str, str]

    def metric(self, arm: str, name: str) -> Mapping[int, float]: ...


class _MissingError(Exception):
    """What a claim needs and the results do not have."""


class Claim:
    """Base of the claim forms: a sentence and a way to judge it.

    Attributes:
        text: the sentence; made from the other fields where it is left empty.
        margin: what the estimate is compared with.

    Example:
        >>> from types import SimpleNamespace
        >>> measured = {0: 0.91, 1: 0.93, 2: 0.92}
        >>> results = SimpleNamespace(seeds=[0, 1, 2], arms={"a": {}}, metrics={}, metric=lambda arm, name: measured)
        >>> claim: Claim = at_least("a", on="accuracy", value=0.9)
        >>> claim.judge(results).verdict, at_least("a", on="accuracy", value=0.95).judge(results).verdict
        ('inconclusive', 'contradicted')
    """

    text: str
    margin: float

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]
            value = getattr(self, each.name)
            if each.type == "float" and not (isinstance(value, int | float) and np.isfinite(value)):
                raise ValueError(f"{each.name} must be a finite number, got {value!r}")
        if not self.text:
            object.__setattr__(self, "text", self._sentence())

    @property
    def arm_names(self) -> tuple[str, ...]:
        raise NotImplementedError

    @property
    def metric_names(self) -> tuple[str, ...]:
        return (self.on,)  # type: ignore[attr-defined]

    @checked
    def judge(self, results: Measured) -> Judged:
        """The claim with estimate, interval and verdict from the finished runs of ``results``."""
        try:
            return self._judge(results)
        except _MissingError as missing:
            return self._judged(Interval(float("nan"), None, None), "not judged", 0, str(missing))

    def _sentence(self) -> str:
        raise NotImplementedError

    def _judge(self, results: Measured) -> Judged:
        raise NotImplementedError

    def _judged(self, found: Interval, verdict: Verdict, n: int, note: str = "", effect: float | None = None) -> Judged:
        if n > 1 and found.low is not None and found.low == found.high:
            note = "; ".join(filter(None, [note, CONSTANT]))
        return Judged(
            text=self.text,
            estimate=found.estimate if np.isfinite(found.estimate) else None,
            low=found.low,
            high=found.high,
            margin=self.margin,
            verdict=verdict,
            effect_size=effect,
            n=n,
            note=note,
            kind=type(self).__name__,
            arms=self.arm_names,
            metrics=self.metric_names,
        )

    def _paired(self, results: Measured, *arms: str) -> tuple[list[Array], list[str]]:
        """Values of ``self.on`` for each arm over the seeds that all of them finished, and what to note of it."""
        metric = self.metric_names[0]
        columns = [_values(results, arm, metric) for arm in arms]
        seeds = sorted(set.intersection(*(set(column) for column in columns)))
        if not seeds:
            raise _MissingError(f"no seed was finished by {' and '.join(dict.fromkeys(arms))}")
        notes = []
        if len(seeds) == 1:
            notes.append("one seed has no interval")
        if len(seeds) < len(results.seeds):
            notes.append(f"{len(seeds)} of {len(results.seeds)} seeds")
        return [np.array([column[seed] for seed in seeds]) for column in columns], notes


def _values(results: Measured, arm: str, metric: str) -> Mapping[int, float]:
    if arm not in results.arms:
        raise _MissingError(f"the arm {arm} was not run")
    values = results.metric(arm, metric)
    if not values:
        raise _MissingError(f"the arm {arm} has no finished run with {metric}")
    return values


def _against_bound(found: Interval, low: float, high: float) -> Verdict:
    """The verdict on "the quantity lies within [low, high]"."""
    if found.low is None or found.high is None:
        return "inconclusive"
    if found.low >= low and found.high <= high:
        return "holds"
    return "contradicted" if found.high < low or found.low > high else "inconclusive"


@dataclass(frozen=True)
class better(Claim):  # noqa: N801 - read as a verb in a list of claims
    """Claims that ``arm`` beats ``than`` on the metric ``on`` by more than ``margin``.

    The quantity is the seed-paired difference in the metric's good direction, so that positive is better whatever the
    direction; several arms in ``than`` stand for the best of them on each seed.

    Example:
        >>> better("useful", than="erm", on="test_accuracy", margin=0.002).text
        'useful has better test_accuracy than erm by more than 0.002'
    """

    arm: str
    than: str | Sequence[str]
    on: str
    margin: float = 0.0
    text: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "than", (self.than,) if isinstance(self.than, str) else tuple(self.than))
        if not self.than:
            raise ValueError("better needs at least one arm in than, got none")
        super().__post_init__()

    @property
    def arm_names(self) -> tuple[str, ...]:
        return (self.arm, *self.than)

    def _sentence(self) -> str:
        others = self.than[0] if len(self.than) == 1 else f"the best of {', '.join(self.than)}"
        by = f" by more than {self.margin:g}" if self.margin else ""
        return f"{self.arm} has better {self.on} than {others}{by}"

    def _judge(self, results: Measured) -> Judged:
        (ours, *others), notes = self._paired(results, *self.arm_names)
        sign = _sign(results, self.on)
        differences = sign * ours - np.max([sign * other for other in others], axis=0)
        found = interval([differences])
        verdict: Verdict = "inconclusive"
        if found.low is not None and found.high is not None:
            if found.low > self.margin:
                verdict = "holds"
            elif found.high < min(0.0, self.margin):
                verdict = "contradicted"
            elif found.low > 0 and found.high < self.margin:
                notes.append("better, but by less than claimed")
        return self._judged(found, verdict, len(differences), "; ".join(notes), effect_size(differences))


@dataclass(frozen=True)
class at_least(Claim):  # noqa: N801
    """Claims that the mean of ``on`` over seeds is at least ``value`` for ``arm``.

    Example:
        >>> at_least("useful", on="test_accuracy", value=0.9).text
        'useful reaches test_accuracy of at least 0.9'
    """

    arm: str
    on: str
    value: float
    text: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        super().__post_init__()

    @property
    def arm_names(self) -> tuple[str, ...]:
        return (self.arm,)

    @property
    def margin(self) -> float:  # type: ignore[override]
        return self.value

    def _sentence(self) -> str:
        return f"{self.arm} reaches {self.on} of at least {self.value:g}"

    def _judge(self, results: Measured) -> Judged:
        (values,), notes = self._paired(results, self.arm)
        found = interval([values])
        return self._judged(found, _against_bound(found, self.value, np.inf), len(values), "; ".join(notes))


@dataclass(frozen=True)
class at_most(Claim):  # noqa: N801
    """Claims that the mean of ``on`` over seeds is at most ``value`` for ``arm``.

    Example:
        >>> at_most("useful", on="ece", value=0.05).text
        'useful keeps ece at or below 0.05'
    """

    arm: str
    on: str
    value: float
    text: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        super().__post_init__()

    @property
    def arm_names(self) -> tuple[str, ...]:
        return (self.arm,)

    @property
    def margin(self) -> float:  # type: ignore[override]
        return self.value

    def _sentence(self) -> str:
        return f"{self.arm} keeps {self.on} at or below {self.value:g}"

    def _judge(self, results: Measured) -> Judged:
        (values,), notes = self._paired(results, self.arm)
        found = interval([values])
        return self._judged(found, _against_bound(found, -np.inf, self.value), len(values), "; ".join(notes))


@dataclass(frozen=True)
class cheaper(Claim):  # noqa: N801
    """Claims that the mean of ``on`` for ``arm`` is at most ``ratio`` times that of ``than``.

    For costs, times, steps and errors: positive quantities of which less is better. The interval is that of the ratio
    of the two means over seeds, resampled in pairs.

    Example:
        >>> cheaper("lines", than="ensemble", on="seconds", ratio=0.5).text
        'lines needs at most 0.5 x the seconds of ensemble'
    """

    arm: str
    than: str
    on: str
    ratio: float
    text: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        super().__post_init__()

    @property
    def arm_names(self) -> tuple[str, ...]:
        return (self.arm, self.than)

    @property
    def margin(self) -> float:  # type: ignore[override]
        return self.ratio

    def _sentence(self) -> str:
        return f"{self.arm} needs at most {self.ratio:g} x the {self.on} of {self.than}"

    def _judge(self, results: Measured) -> Judged:
        (ours, theirs), notes = self._paired(results, self.arm, self.than)
        if (theirs <= 0).any() or (ours < 0).any():
            note = f"a ratio needs positive values of {self.on}"
            return self._judged(Interval(float("nan"), None, None), "inconclusive", len(ours), note)
        found = interval([ours, theirs], ratio_of_means)
        return self._judged(found, _against_bound(found, -np.inf, self.ratio), len(ours), "; ".join(notes))


@dataclass(frozen=True)
class correlates(Claim):  # noqa: N801
    """Claims that two metrics correlate by at least ``at_least`` over all runs of ``arms`` (all arms by default).

    ``method`` is ``"pearson"`` or ``"spearman"``. Runs are resampled as if they were independent; the runs of one arm
    are not quite, so with few arms the interval is too narrow.

    Example:
        >>> correlates("sharpness", with_="gap", at_least=0.9).text
        'sharpness correlates with gap by at least 0.9'
    """

    x: str
    with_: str
    at_least: float
    arms: Sequence[str] | None = None
    method: Literal["pearson", "spearman"] = "pearson"
    text: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.method not in ("pearson", "spearman"):
            raise ValueError(f"method must be 'pearson' or 'spearman', got {self.method!r}")
        object.__setattr__(self, "arms", None if self.arms is None else tuple(self.arms))
        super().__post_init__()

    @property
    def arm_names(self) -> tuple[str, ...]:
        return tuple(self.arms or ())

    @property
    def metric_names(self) -> tuple[str, ...]:
        return (self.x, self.with_)

    @property
    def margin(self) -> float:  # type: ignore[override]
        return self.at_least

    def _sentence(self) -> str:
        over = f" over {', '.join(self.arms)}" if self.arms else ""
        return f"{self.x} correlates with {self.with_} by at least {self.at_least:g}{over}"

    def _judge(self, results: Measured) -> Judged:
        pairs = []
        for arm in self.arms or results.arms:
            if arm not in results.arms:
                raise _MissingError(f"the arm {arm} was not run")
            ys = results.metric(arm, self.with_)
            pairs += [(x, ys[seed]) for seed, x in results.metric(arm, self.x).items() if seed in ys]
        if len(pairs) < 3:
            raise _MissingError(f"a correlation needs at least 3 finished runs, got {len(pairs)}")
        x, y = np.array(pairs).T
        found = interval([x, y], spearman if self.method == "spearman" else pearson)
        if not np.isfinite(found.estimate):
            return self._judged(found, "inconclusive", len(x), "one of the two metrics never varies")
        note = "" if found.low is not None else "some resamples have no correlation"
        if found.low is not None and found.high is not None:
            found = Interval(found.estimate, max(found.low, -1.0), min(found.high, 1.0))
        return self._judged(found, _against_bound(found, self.at_least, np.inf), len(x), note)


@dataclass(frozen=True)
class ordered(Claim):  # noqa: N801
    """Claims that every arm is at least as good on ``on`` as the one before it, up to ``tolerance``.

    The claim holds when it holds for every neighbouring pair, and is contradicted when any pair contradicts it; that
    needs no correction for several comparisons. The estimate shown is that of the weakest pair, which the note names.

    Example:
        >>> ordered(["small", "medium", "large"], on="test_accuracy").text
        'test_accuracy gets no worse along small, medium, large'
    """

    arms: Sequence[str]
    on: str
    tolerance: float = 0.0
    text: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "arms", tuple(self.arms))
        if len(self.arms) < 2:
            raise ValueError(f"ordered needs at least 2 arms, got {len(self.arms)}")
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance must not be negative, got {self.tolerance!r}")
        super().__post_init__()

    @property
    def arm_names(self) -> tuple[str, ...]:
        return tuple(self.arms)

    @property
    def margin(self) -> float:  # type: ignore[override]
        return -self.tolerance

    def _sentence(self) -> str:
        by = f" by more than {self.tolerance:g}" if self.tolerance else ""
        return f"{self.on} gets no worse{by} along {', '.join(self.arms)}"

    def _judge(self, results: Measured) -> Judged:
        judged = []
        for worse, good in zip(self.arms, self.arms[1:], strict=False):
            (first, second), notes = self._paired(results, worse, good)
            differences = _sign(results, self.on) * (second - first)
            found = interval([differences])
            note = "; ".join([f"weakest pair: {worse}, {good}", *notes])
            verdict = _against_bound(found, -self.tolerance, np.inf)
            judged.append(self._judged(found, verdict, len(differences), note, effect_size(differences)))
        rank = {"contradicted": 0, "inconclusive": 1, "holds": 2}
        return min(judged, key=lambda pair: (rank[pair.verdict], pair.estimate))


@dataclass(frozen=True)
class equivalent(Claim):  # noqa: N801
    """Claims that two arms differ on ``on`` by no more than ``within`` either way.

    Holds when the 95 % interval of the seed-paired difference (a - b) lies inside +-``within``: two one-sided tests
    at 2.5 % each, stricter than the usual 5 %. Contradicted when it lies wholly outside.

    Example:
        >>> equivalent("int8", "float32", on="test_accuracy", within=0.005).text
        'int8 and float32 have the same test_accuracy within 0.005'
    """

    a: str
    b: str
    on: str
    within: float
    text: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.within >= 0:
            raise ValueError(f"within must not be negative, got {self.within!r}")
        super().__post_init__()

    @property
    def arm_names(self) -> tuple[str, ...]:
        return (self.a, self.b)

    @property
    def margin(self) -> float:  # type: ignore[override]
        return self.within

    def _sentence(self) -> str:
        return f"{self.a} and {self.b} have the same {self.on} within {self.within:g}"

    def _judge(self, results: Measured) -> Judged:
        (a, b), notes = self._paired(results, self.a, self.b)
        found = interval([a - b])
        verdict = _against_bound(found, -self.within, self.within)
        return self._judged(found, verdict, len(a), "; ".join(notes), effect_size(a - b))


def _sign(results: Measured, metric: str) -> float:
    return 1.0 if results.metrics[metric] == "higher" else -1.0
