"""Core: What tells the examples that a model gets wrong from those that it gets right, beside a random feature.

Source: the protocol of arXiv:2402.10965 (Rahman et al.): "correctly classified or not" is predicted from features of
the patient and the site by trees, and their importances are read. Held-out folds, the control and intervals are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from heldout.data import factor_rows
from heldout.errors import (
    check_at_least,
    check_different,
    check_dimensions,
    check_finite,
    check_nonempty,
    check_one_of,
    check_same_length,
    checked,
)
from heldout.measure.subgroups.subgroup_report import binary_scores
from heldout.statistics import CONFIDENCE, Interval

Array = NDArray[np.float64]
CONTROL = "random control"


class GapDriver(NamedTuple):
    """How much a feature tells of where the model is wrong.

    Attributes:
        feature: its name.
        importance: what shuffling it costs on held-out folds, in the score of the report.
        above_control: the same less that of the random control, paired by fold.

    Example:
        >>> GapDriver("age", Interval(0.1, 0.05, 0.15), Interval(0.1, 0.04, 0.16)).drives
        True
    """

    feature: str
    importance: Interval
    above_control: Interval

    @property
    def drives(self) -> bool:
        """Whether the whole interval lies above the random control."""
        return self.above_control.low is not None and self.above_control.low > 0


class GapDrivers(NamedTuple):
    """What predicts the errors.

    Attributes:
        drivers: the features, the most important first.
        control: the importance of a random feature, which is near 0.
        score: of the trees on held-out folds: the area under the ROC curve where what is told is yes or no (0.5 is
            nothing), R2 where it is a number (0 is nothing).
        score_name: "auc" or "r2".

    Example:
        >>> nothing = Interval(0.0, -0.1, 0.1)
        >>> GapDrivers((GapDriver("age", nothing, nothing),), nothing, Interval(0.5, 0.4, 0.6), "auc")["age"].drives
        False
    """

    drivers: tuple[GapDriver, ...]
    control: Interval
    score: Interval
    score_name: str

    def __getitem__(self, feature: Any) -> Any:
        """Returns the driver of a name; numbers are places of the tuple."""
        if not isinstance(feature, str):
            return tuple.__getitem__(self, feature)
        check_one_of([each.feature for each in self.drivers], feature=feature)
        return next(each for each in self.drivers if each.feature == feature)


@checked
def misranked(y: Tensor | np.ndarray | Sequence, score: Tensor | np.ndarray | Sequence) -> Array:
    """Returns for each example the share of those with the other label that stand on its wrong side, ties as halves.

    Its mean over either label is 1 less the area under the ROC curve: what each example takes from it.

    Args:
        y: 0 and 1, ``(n,)``, both.
        score: ``(n,)``, larger where label 1 is more probable.

    Returns:
        float64 ``(n,)``, in [0, 1].

    Raises:
        ValueError: one label alone, and as ``subgroup_report``.

    Example:
        >>> misranked([1, 0, 0], [0.5, 0.1, 0.9]).tolist()
        [0.5, 0.0, 1.0]
    """
    labels, scores = binary_scores(y, score)
    if labels.min() == labels.max():
        raise ValueError(f"y must hold both labels, got only {labels[0]}")
    found = np.empty(len(labels))
    for label, sign in ((1, 1.0), (0, -1.0)):
        own, other = labels == label, np.sort(sign * scores[labels != label])
        below, upto = (np.searchsorted(other, sign * scores[own], side) for side in ("left", "right"))
        found[own] = 1 - (below + upto) / (2 * len(other))
    return found


@checked
def gap_drivers(
    wrong: Tensor | np.ndarray | Sequence,
    features: Any,
    *,
    model: Literal["forest", "boosting"] = "forest",
    folds: int = 5,
    repeats: int = 5,
    seed: int = 0,
) -> GapDrivers:
    """Returns which features of the examples tell where a model is wrong: permutation importance on held-out folds.

    Trees learn ``wrong`` from the features and a random control, on all folds but one; on that one each column is
    shuffled ``repeats`` times. Intervals are over folds, with the variance of Nadeau and Bengio, as trainings overlap.
    Features that carry the same share their importance: a low one does not say that a feature is harmless. It is a
    description, not a cause. Costs ``folds`` trainings and ``folds * repeats * features`` predictions.

    Args:
        wrong: what is explained, ``(n,)``: booleans or 0 and 1 (mis-classified), or numbers (``misranked``, a loss).
        features: columns by name (a mapping, a frame) of numbers or words; words are numbered in the order of the mean
            of ``wrong`` on the training folds.
        model: "forest" (100 trees, leaves of at least 2 % of the examples) or "boosting" (histogram gradient boosting).
        folds: at least 2.
        repeats: shuffles of each column of a fold.
        seed: of folds, trees, shuffles and the control.

    Raises:
        ValueError: nothing to explain (one value alone), too few examples for the folds, values that are missing or not
            finite, lengths that differ.

    Source: arXiv:2402.10965. L. Breiman, Machine Learning 45 (2001). C. Nadeau and Y. Bengio, Machine Learning 52
    (2003), for the variance.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> age, height = rng.uniform(0, 90, 400), rng.normal(size=400)
        >>> found = gap_drivers(rng.random(400) < age / 90, {"age": age, "height": height}, repeats=2)
        >>> found.drivers[0].feature, found["age"].drives, found["height"].drives
        ('age', True, False)
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    check_nonempty(wrong=wrong)
    target = np.asarray(wrong.detach().cpu() if isinstance(wrong, Tensor) else wrong)
    if target.dtype.kind not in "bifu":
        raise ValueError("wrong must hold booleans or numbers")
    target = target.astype(np.float64)
    check_dimensions(1, wrong=target)
    check_finite(wrong=target)
    names, rows = factor_rows(features, "features")
    check_same_length(wrong=target, features=rows)
    check_different(features=[*names, CONTROL])
    check_one_of(("forest", "boosting"), model=model)
    check_at_least(2, folds=folds)
    check_at_least(1, repeats=repeats)
    check_at_least(0, seed=seed)
    yes_or_no = set(np.unique(target)) <= {0.0, 1.0}
    least = int(min((target == 0).sum(), (target == 1).sum())) if yes_or_no else len(target) // 2
    if target.min() == target.max():
        raise ValueError(f"wrong must vary, all of it is {target[0]:g}")
    if least < folds:
        raise ValueError(f"folds must be at most {least} for these examples, got {folds}")
    generator = np.random.default_rng(seed)
    columns = [_column([row[number] for row in rows], name) for number, name in enumerate(names)]
    columns.append(generator.normal(size=len(target)))
    splitter = (StratifiedKFold if yes_or_no else KFold)(folds, shuffle=True, random_state=seed)
    drops, scores = [], []
    for train, test in splitter.split(target[:, None], target):
        table = np.stack([_numbers(column, target, train) for column in columns], 1)
        trees = _trees(model, yes_or_no, len(train), seed).fit(table[train], target[train])
        whole = _scores(trees, table[test][None], target[test], yes_or_no)[0]
        scores.append(whole)
        shuffled = (_shuffled(table[test], place, repeats, generator) for place in range(len(columns)))
        drops.append([whole - np.mean(_scores(trees, each, target[test], yes_or_no)) for each in shuffled])
    importances = np.array(drops)  # (folds, columns)
    found = [
        GapDriver(name, _over_folds(importances[:, place]), _over_folds(importances[:, place] - importances[:, -1]))
        for place, name in enumerate(names)
    ]
    found.sort(key=lambda each: -each.importance.estimate)
    score = _over_folds(np.array(scores))
    return GapDrivers(tuple(found), _over_folds(importances[:, -1]), score, "auc" if yes_or_no else "r2")


def _column(values: list, name: str) -> np.ndarray:
    if all(isinstance(value, bool | int | float) for value in values):
        column = np.array(values, dtype=np.float64)
        check_finite(**{f"features {name!r}": column})
        return column
    return np.array([str(value) for value in values])


def _numbers(column: np.ndarray, target: Array, train: np.ndarray) -> Array:
    """Numbers as they are; words by the mean of the target that they have on the training rows, unknown ones by all."""
    if column.dtype.kind == "f":
        return column
    words, codes = np.unique(column, return_inverse=True)
    counts = np.bincount(codes[train], minlength=len(words))
    sums = np.bincount(codes[train], target[train], minlength=len(words))
    return np.where(counts > 0, sums / np.maximum(counts, 1), target[train].mean())[codes]


def _trees(model: str, yes_or_no: bool, n: int, seed: int) -> Any:
    from sklearn import ensemble

    kind = "Classifier" if yes_or_no else "Regressor"
    leaf = max(5, n // 50)
    if model == "forest":
        options = {"n_estimators": 100, "min_samples_leaf": leaf, "max_features": 0.5, "n_jobs": 1}
        return getattr(ensemble, f"RandomForest{kind}")(random_state=seed, **options)
    options = {"max_iter": 60, "learning_rate": 0.05, "max_leaf_nodes": 8, "min_samples_leaf": leaf}
    return getattr(ensemble, f"HistGradientBoosting{kind}")(random_state=seed, **options)


def _scores(trees: Any, tables: Array, target: Array, yes_or_no: bool) -> list[float]:
    """Of each of some tables ``(tables, rows, columns)``, told in one call, as each call of a forest is slow."""
    from sklearn.metrics import r2_score, roc_auc_score

    rows = tables.reshape(-1, tables.shape[-1])
    told = (trees.predict_proba(rows)[:, 1] if yes_or_no else trees.predict(rows)).reshape(len(tables), -1)
    score = roc_auc_score if yes_or_no else r2_score
    return [float(score(target, each)) for each in told]


def _shuffled(table: Array, place: int, times: int, generator: np.random.Generator) -> Array:
    found = np.repeat(table[None], times, axis=0)
    found[:, :, place] = generator.permuted(found[:, :, place], axis=1)
    return found


def _over_folds(values: Array) -> Interval:
    """Mean and Student's interval over k folds, whose variance counts 1 / k + 1 / (k - 1) times, not 1 / k."""
    from scipy.special import stdtrit

    k, middle = len(values), float(values.mean())
    error = math.sqrt(float(values.var(ddof=1)) * (1 / k + 1 / (k - 1)))
    half = float(stdtrit(k - 1, 0.5 + CONFIDENCE / 2)) * error
    return Interval(middle, middle - half, middle + half)
