"""Core: What is kept, lost and carried over when one task is learnt after the other.

Sources: arXiv:1706.08840 (Lopez-Paz and Ranzato, GEM), equations 2 to 4 for average, backward and forward transfer;
arXiv:1801.10112 (Chaudhry et al.), section 5, for forgetting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from heldout.errors import check_between, check_fields, check_fraction, check_one_of, check_values, checked
from heldout.statistics import CONFIDENCE, Interval, interval, percentile

Array = NDArray[np.float64]
StreamStatistic = Literal["average", "forgetting", "backward_transfer", "forward_transfer"]


@dataclass(frozen=True)
class StreamMatrix:
    """Scores after each task of a stream, on each task; higher is better.

    Args:
        scores: ``(tasks, tasks)``; ``scores[t][j]`` is the score on task j after learning task t.
        initial: ``(tasks,)``, the scores before the first task; needed for forward transfer.

    Raises:
        ValueError: not a square of finite numbers, or an ``initial`` of another length.

    Example:
        >>> matrix = StreamMatrix([[0.9, 0.2], [0.6, 0.8]], initial=[0.1, 0.1])
        >>> round(matrix.average(), 2), round(matrix.forgetting(), 2), round(matrix.forward_transfer(), 2)
        (0.7, 0.3, 0.1)
    """

    scores: Any
    initial: Any = None

    def __post_init__(self) -> None:
        scores = np.asarray(self.scores, dtype=np.float64)
        if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not scores.size:
            raise ValueError(f"scores must be (tasks, tasks), got {scores.shape}")
        object.__setattr__(self, "scores", scores)
        if self.initial is not None:
            initial = np.asarray(self.initial, dtype=np.float64)
            if initial.shape != (len(scores),):
                raise ValueError(f"initial must hold {len(scores)} scores, got shape {initial.shape}")
            object.__setattr__(self, "initial", initial)
        check_fields(self)
        check_values(scores=self.scores, initial=self.initial)

    @property
    def tasks(self) -> int:
        """The number of tasks."""
        return len(self.scores)

    def average(self) -> float:
        """Returns the mean score over all tasks after the last one."""
        return float(self.scores[-1].mean())

    def forgetting_by_task(self) -> Array:
        """Returns what each task but the last has lost: ``(tasks - 1,)``.

        It is the best score so far, from its own learning on, less the last one; below 0 where it only got better.
        """
        last = self.tasks - 1
        best = np.array([self.scores[task:last, task].max() for task in range(last)])
        return best - self.scores[last, :last]

    def forgetting(self) -> float:
        """Returns the mean of ``forgetting_by_task``; NaN for one task."""
        return float(self.forgetting_by_task().mean()) if self.tasks > 1 else float("nan")

    def backward_transfer(self) -> float:
        """Returns the mean change of a task's score from just after its learning to the end; NaN for one task.

        Below 0 where tasks are forgotten.
        """
        if self.tasks < 2:
            return float("nan")
        return float((self.scores[-1, :-1] - np.diagonal(self.scores)[:-1]).mean())

    def forward_transfer(self) -> float:
        """Returns by how much earlier tasks raise the score of a task before it is learnt; NaN for one task.

        Raises:
            ValueError: there are no scores from before the first task.
        """
        if self.initial is None:
            raise ValueError("forward transfer needs the scores from before the first task: initial")
        if self.tasks < 2:
            return float("nan")
        before = np.array([self.scores[task - 1, task] for task in range(1, self.tasks)])
        return float((before - self.initial[1:]).mean())

    def learning(self) -> float:
        """Returns the mean score on a task just after it was learnt."""
        return float(np.diagonal(self.scores).mean())


_STATISTICS: dict[str, Callable[[StreamMatrix], float]] = {
    "average": StreamMatrix.average,
    "forgetting": StreamMatrix.forgetting,
    "backward_transfer": StreamMatrix.backward_transfer,
    "forward_transfer": StreamMatrix.forward_transfer,
}


@checked
def stream_interval(
    matrices: Sequence[StreamMatrix], statistic: StreamStatistic, *, confidence: float = CONFIDENCE, seed: int = 0
) -> Interval:
    """Returns a statistic's mean over streams with its interval over them: streams of other seeds or orders.

    Args:
        matrices: one for each stream.
        statistic: which.
        confidence: of the interval.
        seed: of the bootstrap.

    Raises:
        ValueError: no matrix, an unknown statistic.

    Example:
        >>> streams = [StreamMatrix([[0.9, 0.2], [kept, 0.8]]) for kept in (0.5, 0.6, 0.7)]
        >>> found = stream_interval(streams, "forgetting")
        >>> round(found.estimate, 2), found.low < 0.3 < found.high
        (0.3, True)
    """
    check_one_of(tuple(_STATISTICS), statistic=statistic)
    return interval([np.array([_STATISTICS[statistic](m) for m in matrices])], confidence=confidence, seed=seed)


@checked
def stream_interval_by_examples(
    correct: Sequence[Sequence[Any]],
    statistic: StreamStatistic,
    *,
    initial: Sequence[Any] | None = None,
    confidence: float = CONFIDENCE,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Returns a statistic of one stream with the interval that comes from the choice of test examples.

    Each task's test examples are drawn again with replacement, the same ones after each task. It says nothing of other
    seeds of training or orders of tasks: that is ``stream_interval``.

    Forgetting starts from the best score so far, and a best of noisy scores is too high, so that the same examples
    cannot both choose it and measure it: here one half of a task's examples chooses after which task it was best, the
    other half measures from there, and then the other way round. The estimate is the mean of the two; it is less than
    ``StreamMatrix.forgetting`` of all examples where little is forgotten.

    Args:
        correct: ``correct[t][j]``, ``(examples of task j,)``: the score of each test example of task j after task t.
        statistic: which.
        initial: ``initial[j]``, the same before the first task.
        confidence: of the interval.
        draws: of the bootstrap, at least 100.
        seed: of the bootstrap.

    Raises:
        ValueError: tasks with other numbers of examples in another row, an unknown statistic, or fewer than 4 examples
            of a task for forgetting.

    Example:
        >>> a, b = np.ones(50), np.tile([1.0, 0.0], 25)
        >>> found = stream_interval_by_examples([[a, b], [b, a]], "forgetting")
        >>> found.estimate, found.low < 0.5 < found.high
        (0.5, True)
    """
    check_one_of(tuple(_STATISTICS), statistic=statistic)
    check_fraction(confidence=confidence)
    check_between(100, 1_000_000, draws=draws)
    rows = [[np.asarray(part, dtype=np.float64) for part in row] for row in correct]
    if initial is not None:
        rows = [[np.asarray(part, dtype=np.float64) for part in initial], *rows]
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise ValueError("correct must hold one row of scores for each task, with one entry for each task")
    stacked = []
    for task in range(len(rows[0])):
        shapes = {row[task].shape for row in rows}
        if len(shapes) > 1 or any(len(shape) != 1 or not shape[0] for shape in shapes):
            raise ValueError(f"correct must hold the same examples of task {task} in each row, got shapes {shapes}")
        stacked.append(np.stack([row[task] for row in rows]))

    if statistic == "forgetting":
        return _forgetting_interval(stacked[:-1], 0 if initial is None else 1, confidence, draws, seed)

    def value(means: Array) -> float:
        matrix = StreamMatrix(means[1:], means[0]) if initial is not None else StreamMatrix(means)
        return _STATISTICS[statistic](matrix)

    estimate = value(np.stack([part.mean(1) for part in stacked], 1))
    random = np.random.default_rng(seed)
    resampled = []
    for _ in range(draws):
        means = [part[:, random.integers(part.shape[1], size=part.shape[1])].mean(1) for part in stacked]
        resampled.append(value(np.stack(means, 1)))
    low, high = percentile(np.array(resampled), confidence)
    return Interval(estimate, min(low, estimate), max(high, estimate))


def _forgetting_interval(stacked: Sequence[Array], skip: int, confidence: float, draws: int, seed: int) -> Interval:
    """Of ``(rows, examples)`` by task but for the last one; the first ``skip`` rows are from before the stream."""
    if not stacked:
        raise ValueError("correct must hold two tasks at least: one task forgets nothing")
    random = np.random.default_rng(seed)
    lost = []  # by task: what each example has lost since the row that the other half has chosen
    for task, part in enumerate(stacked):
        count = part.shape[1]
        if count < 4:
            raise ValueError(f"correct must hold 4 examples of task {task} at least, to choose and to measure by")
        order = random.permutation(count)
        halves = order[: count // 2], order[count // 2 :]
        since = part[skip + task : -1]
        found = []
        for chosen, measured in (halves, halves[::-1]):
            best = since[:, chosen].mean(1).argmax()
            found.append(since[best, measured] - part[-1, measured])
        lost.append(found)
    estimate = float(np.mean([[half.mean() for half in found] for found in lost]))
    resampled = [
        np.mean([[half[random.integers(len(half), size=len(half))].mean() for half in found] for found in lost])
        for _ in range(draws)
    ]
    low, high = percentile(np.array(resampled), confidence)
    return Interval(estimate, min(low, estimate), max(high, estimate))
