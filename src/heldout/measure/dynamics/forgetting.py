"""How much of a skill is forgotten on new inputs and on other tasks, after training that shall remove it.

It concerns skills that are tested by choices, and is no guarantee that anything is erased.

Source: arXiv:2409.02228 (Zhang, Choshen, Andreas).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from heldout.errors import (
    check_between,
    check_dimensions,
    check_fields,
    check_fraction,
    check_nonempty,
    check_one_of,
    check_same_length,
    check_values,
    checked,
)
from heldout.measure.dynamics.learning_order import first_learned
from heldout.statistics import CONFIDENCE, Interval, interval, ratio_of_means, spearman

Array = NDArray[np.float64]


@checked
def forget_gap(acc_after: float, chance: float = 0.5) -> float:
    """Returns how far above chance an accuracy still is after forgetting: ``acc_after - chance``.

    Args:
        acc_after: accuracy in [0, 1].
        chance: of guessing, in [0, 1].

    Raises:
        ValueError: a number outside of [0, 1].

    Source: arXiv:2409.02228, section 3.

    Example:
        >>> forget_gap(0.75)
        0.25
    """
    check_between(0, 1, acc_after=acc_after, chance=chance)
    return acc_after - chance


@checked
def forget_ratio(
    acc_before: float, acc_after: float, chance: float = 0.5, *, mode: Literal["random", "flip"] = "random"
) -> float:
    """Returns the share of a skill that is forgotten: 1 for all of it, 0 for nothing, negative where it got better.

    ``(acc_before - acc_after) / (acc_before - chance)``; for flipped answers, where complete forgetting gives the
    mirror image of the accuracy before, ``(acc_before - acc_after) / (2 acc_before - 1)``.

    Args:
        acc_before, acc_after: accuracies in [0, 1]; the former above chance.
        chance: of guessing, in [0, 1); with flipped answers 0.5 (of two options).
        mode: what the model was trained on.

    Raises:
        ValueError: a number out of range, ``acc_before`` not above chance, or flipped answers with another chance.

    Source: arXiv:2409.02228, section 3.

    Example:
        >>> round(forget_ratio(0.9, 0.6), 6), round(forget_ratio(0.9, 0.1, mode="flip"), 6)
        (0.75, 1.0)
    """
    check_between(0, 1, acc_before=acc_before, acc_after=acc_after, chance=chance)
    check_one_of(("random", "flip"), mode=mode)
    if mode == "flip" and chance != 0.5:
        raise ValueError(f"chance must be 0.5 for flipped answers, which are of two options, got {chance}")
    if acc_before <= chance:
        raise ValueError(f"acc_before must be above chance ({chance}), or there is nothing to forget, got {acc_before}")
    return (acc_before - acc_after) / ((acc_before - chance) * (2 if mode == "flip" else 1))


class ForgetClusters(NamedTuple):
    """Tasks in the order in which average linkage puts them.

    Attributes:
        forgotten, evaluated: names, like ones beside each other.
        forgotten_linkage, evaluated_linkage: as ``scipy.cluster.hierarchy`` has them, ``(tasks - 1, 4)``.

    Example:
        >>> right, guessed = [1, 1, 1, 1], [1, 0, 1, 0]
        >>> order = {"sort": guessed, "reverse": guessed, "recall": right}
        >>> after = {"sort": order, "recall": {"sort": right, "reverse": right, "recall": guessed}, "reverse": order}
        >>> found = ForgetMatrix(dict.fromkeys(order, right), after).cluster()
        >>> found.forgotten, found.forgotten_linkage.shape
        (('recall', 'sort', 'reverse'), (2, 4))
    """

    forgotten: tuple[str, ...]
    evaluated: tuple[str, ...]
    forgotten_linkage: Array
    evaluated_linkage: Array


@dataclass(frozen=True, eq=False)
class ForgetMatrix:
    """Whether the examples of each task were right before, and after each task was forgotten.

    Attributes:
        before: evaluated task -> right or not (or a score in [0, 1]) of each of its examples, ``(n,)``.
        after: forgotten task -> evaluated task -> the same of the same examples.
        chance: accuracy of guessing.
        mode: what was trained on.

    Raises:
        ValueError: no tasks, other examples after than before, or values outside of [0, 1].

    Example:
        >>> before = {"order": [1, 1, 1, 1], "recall": [1, 1, 1, 0]}
        >>> found = ForgetMatrix(before, {"order": {"order": [1, 0, 1, 0], "recall": [1, 1, 1, 0]}})
        >>> found.values.tolist()
        [[1.0, 0.0]]
    """

    before: Mapping[str, Sequence[float] | Array]
    after: Mapping[str, Mapping[str, Sequence[float] | Array]]
    chance: float = 0.5
    mode: Literal["random", "flip"] = "random"

    def __post_init__(self) -> None:
        check_fields(self)
        check_nonempty(before=self.before, after=self.after)
        object.__setattr__(self, "before", {name: _right("before", row) for name, row in self.before.items()})
        found: dict[str, dict[str, Array]] = {}
        for name, rows in self.after.items():
            if list(rows) != list(self.before):
                raise ValueError(
                    f"after must have the tasks {', '.join(self.before)} for {name}, got {', '.join(rows)}"
                )
            found[name] = {task: _right("after", row) for task, row in rows.items()}
            for task, row in found[name].items():
                check_same_length(**{f"before[{task!r}]": self.before[task], f"after[{name!r}][{task!r}]": row})
        object.__setattr__(self, "after", found)

    @property
    def forgotten(self) -> tuple[str, ...]:
        """Names of the rows."""
        return tuple(self.after)

    @property
    def evaluated(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self.before)

    @property
    def accuracy_before(self) -> Array:
        """``(evaluated,)``."""
        return np.array([np.mean(self.before[task]) for task in self.evaluated])

    @property
    def accuracy_after(self) -> Array:
        """``(forgotten, evaluated)``."""
        return np.array([[np.mean(row[task]) for task in self.evaluated] for row in self.after.values()])

    @property
    def values(self) -> Array:
        """Forget ratios, ``(forgotten, evaluated)``. Raises ValueError for a task that was not above chance before."""
        for task, accuracy in zip(self.evaluated, self.accuracy_before, strict=True):
            if accuracy <= self.chance:
                raise ValueError(f"{task} was at {accuracy:.3g} before, not above chance: no ratio of it")
        return np.array(
            [
                [
                    forget_ratio(float(b), float(a), self.chance, mode=self.mode)
                    for b, a in zip(self.accuracy_before, row, strict=True)
                ]
                for row in self.accuracy_after
            ]
        )

    @property
    def own(self) -> dict[str, float]:
        """Forget ratio of each task that was forgotten and evaluated, by itself."""
        values = self.values
        return {
            name: float(values[i, self.evaluated.index(name)])
            for i, name in enumerate(self.forgotten)
            if name in self.evaluated
        }

    @property
    def others(self) -> Array:
        """Forget ratios of the other cells, ``(cells,)``."""
        pairs = [(row, column) for row in self.forgotten for column in self.evaluated]
        return np.array([value for pair, value in zip(pairs, self.values.flat, strict=True) if pair[0] != pair[1]])

    @property
    def left(self) -> dict[str, float]:
        """Accuracy after forgetting of each evaluated task: after its own, or the mean where not all were forgotten."""
        if set(self.evaluated) <= set(self.forgotten):
            return {task: float(np.mean(self.after[task][task])) for task in self.evaluated}
        return dict(zip(self.evaluated, self.accuracy_after.mean(0).tolist(), strict=True))

    def correlation(self, told: Mapping[str, float]) -> float:
        """Returns Spearman's correlation, over evaluated tasks, of a number of each with ``left``; 0 where undefined.

        Args:
            told: evaluated task -> what may predict how much of it is left, such as the confidence beforehand.

        Raises:
            ValueError: a task without a number, or one that is not finite.

        Example:
            >>> rows = {"a": {"a": [0.5], "b": [0.9]}, "b": {"a": [0.9], "b": [0.8]}}
            >>> round(ForgetMatrix({"a": [0.9], "b": [0.9]}, rows).correlation({"a": 3.0, "b": 7.0}), 6)
            1.0
        """
        if lacking := [task for task in self.evaluated if task not in told]:
            raise ValueError(f"told must have a number for each evaluated task, got none for {', '.join(lacking)}")
        values, left = np.array([told[task] for task in self.evaluated]), np.array(list(self.left.values()))
        check_values(told=values)
        return float(spearman(values, left)) if min(np.ptp(values), np.ptp(left)) > 0 else 0.0

    def summary(self) -> dict[str, float]:
        """Returns what a matrix says in a few numbers; those that it cannot tell are left out.

        ``able``: how many tasks are evaluated, ``least_before``: the lowest accuracy before; ``own_ratio`` and
        ``span``: mean and range of ``own``; ``others_ratio``: mean of ``others``; ``by_evaluated`` and
        ``by_forgotten``: of ``variance_explained``; ``evaluated_excess``: the former less twice the latter.

        Raises:
            ValueError: a task that was not above chance before.

        Example:
            >>> rows = {"a": {"a": [0.5], "b": [0.9]}, "b": {"a": [0.9], "b": [0.7]}}
            >>> found = ForgetMatrix({"a": [0.9], "b": [0.9]}, rows).summary()
            >>> round(found["own_ratio"], 6), round(found["span"], 6)
            (0.75, 0.5)
        """
        found = {"able": float(len(self.evaluated)), "least_before": float(self.accuracy_before.min())}
        if own := list(self.own.values()):
            found |= {"own_ratio": float(np.mean(own)), "span": float(np.ptp(own))}
        if self.others.size:
            found["others_ratio"] = float(np.mean(self.others))
        if min(self.values.shape) > 1 and np.ptp(self.values) > 1e-6:
            shares = self.variance_explained()
            found |= {"by_evaluated": shares["evaluated"], "by_forgotten": shares["forgotten"]}
            found["evaluated_excess"] = shares["evaluated"] - 2 * shares["forgotten"]
        return found

    def able(self, least: float) -> ForgetMatrix:
        """Returns the matrix of those evaluated tasks alone whose accuracy before was at least so high.

        Raises:
            ValueError: there is none, or a number outside of [0, 1].
        """
        check_between(0, 1, least=least)
        kept = [name for name, value in zip(self.evaluated, self.accuracy_before, strict=True) if value >= least]
        if not kept:
            raise ValueError(f"least must be at most {self.accuracy_before.max():.3g}, the highest before, got {least}")
        after = {name: {task: rows[task] for task in kept} for name, rows in self.after.items()}
        return ForgetMatrix({task: self.before[task] for task in kept}, after, self.chance, self.mode)

    def interval(self, forgotten: str, evaluated: str, *, confidence: float = CONFIDENCE) -> Interval:
        """Returns the forget ratio of a cell with its interval over examples, those of before and after together.

        Args:
            forgotten, evaluated: names of tasks.
            confidence: of the interval.

        Raises:
            ValueError: a task that is not there.
        """
        check_one_of(self.forgotten, forgotten=forgotten)
        check_one_of(self.evaluated, evaluated=evaluated)
        before, after = (np.asarray(side[evaluated]) for side in (self.before, self.after[forgotten]))
        whole = 2 * before - 1 if self.mode == "flip" else before - self.chance
        return interval([before - after, whole], ratio_of_means, confidence=confidence)

    def variance_explained(self) -> dict[str, float]:
        """Returns the shares of the ratios' variance that the forgotten and the evaluated task and neither explain.

        Sums of squares of a two-way analysis of variance without interaction.

        Raises:
            ValueError: fewer than 2 tasks on either side, or ratios that do not differ.

        Source: arXiv:2409.02228, section 4 (that evaluation counts more); the analysis is ours.
        """
        values = self.values
        if min(values.shape) < 2:
            raise ValueError(f"variance_explained needs at least 2 tasks on either side, got {values.shape}")
        total = float(((values - values.mean()) ** 2).sum())
        if total <= 1e-12:
            raise ValueError("variance_explained needs ratios that differ")
        rows, columns = (
            float(((values.mean(axis) - values.mean()) ** 2).sum()) * values.shape[axis] / total for axis in (1, 0)
        )
        return {"forgotten": rows, "evaluated": columns, "residual": max(0.0, 1 - rows - columns)}

    def figure(self) -> dict[str, Any]:
        """Returns the ratios as a heat map (Vega-Lite), like tasks beside each other."""
        rows, columns = self.forgotten, self.evaluated
        pairs = [(row, column) for row in rows for column in columns]
        if min(len(rows), len(columns)) > 1:
            rows, columns = self.cluster()[:2]
        values = [
            {"forgotten": row, "evaluated": column, "ratio": float(value)}
            for (row, column), value in zip(pairs, self.values.flat, strict=True)
        ]
        return {
            "data": {"values": values},
            "mark": "rect",
            "encoding": {
                "x": {"field": "evaluated", "type": "nominal", "sort": list(columns), "title": "evaluated on"},
                "y": {"field": "forgotten", "type": "nominal", "sort": list(rows), "title": "trained on"},
                "color": {"field": "ratio", "type": "quantitative", "title": "forget ratio"},
            },
        }

    def cluster(self) -> ForgetClusters:
        """Returns the tasks clustered by average linkage (UPGMA) of the Euclidean distances of rows and of columns.

        Raises:
            ValueError: fewer than 2 tasks on either side.

        Source: arXiv:2409.02228, section 4.
        """
        from scipy.cluster.hierarchy import leaves_list, linkage

        values = self.values
        if min(values.shape) < 2:
            raise ValueError(f"cluster needs at least 2 tasks on either side, got {values.shape}")
        links = [linkage(side, method="average") for side in (values, values.T)]
        forgotten, evaluated = (
            tuple(names[k] for k in leaves_list(link))
            for names, link in zip((self.forgotten, self.evaluated), links, strict=True)
        )
        return ForgetClusters(forgotten, evaluated, links[0], links[1])


@checked
def forgetting_order(forgetting: Tensor, learning: Tensor, *, threshold: float = 0.6) -> float | None:
    """Returns Spearman's correlation of when examples are forgotten and when they are learned; None where undefined.

    Forgotten is an example at the first look at which its confidence is below the threshold, learned at the first one
    at which it is above. Negative where what is learned first is forgotten last. Examples that are not both forgotten
    and learned are left out; of fewer than 3, or all at one look, there is no correlation.

    Args:
        forgetting: confidences ``(looks, examples)`` in the course of forgetting, of ``choice_confidence``.
        learning: those in the course of learning, of the same examples; looks may be more or fewer.
        threshold: of the confidence, in [0, 1].

    Raises:
        ValueError: values that are not finite, other shapes, or other examples.

    Source: arXiv:2409.02228, section 5.

    Example:
        >>> import torch
        >>> learning = torch.tensor([[0.5, 0.5, 0.5], [0.9, 0.5, 0.5], [0.9, 0.9, 0.5], [0.9, 0.9, 0.9]])
        >>> round(forgetting_order(learning.flip(0), learning), 6)
        -1.0
    """
    check_fraction(threshold=threshold)
    check_dimensions(2, forgetting=forgetting, learning=learning)
    check_values(forgetting=forgetting, learning=learning)
    if forgetting.shape[1] != learning.shape[1]:
        raise ValueError(f"learning must be of {forgetting.shape[1]} examples, got {learning.shape[1]}")
    lost, won = first_learned(forgetting < threshold), first_learned(learning > threshold)
    both = (lost < len(forgetting)) & (won < len(learning))
    steps = [each[both].cpu().numpy().astype(float) for each in (lost, won)]
    if len(steps[0]) < 3 or min(np.ptp(each) for each in steps) == 0:
        return None
    return float(spearman(*steps))


@checked
def forget_matrix(
    model_factory: Callable[[], Any],
    train: Mapping[str, Sequence[Any]],
    test: Mapping[str, Sequence[Any]],
    *,
    forget: Callable[[Any, Sequence[Any]], Any],
    right: Callable[[Any, Sequence[Any]], Any],
    chance: float = 0.5,
    mode: Literal["random", "flip"] = "random",
    on_forgotten: Callable[[str, Any], None] | None = None,
) -> ForgetMatrix:
    """Returns what remains of each task after each task was forgotten: ``forgotten x evaluated`` tests.

    Args:
        model_factory: makes a model that has all the skills, anew for each task; called once more for before.
        train: task -> examples to forget it by, one or more tasks.
        test: task -> held-out examples.
        forget: ``(model, examples) -> model``, such as ``lambda m, e: heldout.train.forget(m, tokenizer, e).model``.
        right: ``(model, examples) -> (n,)`` right or not, such as ``heldout.lm.right_choices`` with a tokenizer.
        chance: accuracy of guessing.
        mode: what ``forget`` trains on, for the ratio.
        on_forgotten: called with each task's name and the model that forgot it, for further measures.

    Raises:
        ValueError: no tasks, no examples, or an answer that is not of one value for each example.

    Source: arXiv:2409.02228, section 4; deviation: forgetting and scoring are handed in, as this room runs neither.

    Example:
        >>> examples = {"a": [1, 2], "b": [3, 4]}
        >>> found = forget_matrix(
        ...     lambda: {1, 2, 3, 4},
        ...     examples,
        ...     examples,
        ...     forget=lambda known, gone: known - set(gone),
        ...     right=lambda known, asked: [number in known for number in asked],
        ...     chance=0.0,
        ... )
        >>> found.values.tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    check_nonempty(train=train, test=test)
    for name, examples in (*train.items(), *test.items()):
        check_nonempty(**{f"examples of {name}": examples})

    def tested(model: Any) -> dict[str, Array]:
        found = {name: _right("right", right(model, examples)) for name, examples in test.items()}
        for name, row in found.items():
            check_same_length(**{f"test[{name!r}]": test[name], "right": row})
        return found

    before, after = tested(model_factory()), {}
    for name, examples in train.items():
        model = forget(model_factory(), examples)
        after[name] = tested(model)
        if on_forgotten is not None:
            on_forgotten(name, model)
    return ForgetMatrix(before, after, chance, mode)


def _right(name: str, values: Any) -> Array:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1:
        raise ValueError(f"{name} must be of one value for each example, got the shape {found.shape}")
    check_values(**{name: found})
    check_between(0, 1, **{name: found})
    return found
