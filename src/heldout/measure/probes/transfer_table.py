"""How well do models that were trained in different ways do where they were trained, in other domains, on other tasks?

Source: the comparison of arXiv:2303.06580: specialised, joint and continual training on cross-domain and cross-task
test sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import nn

from heldout.errors import (
    check_fields,
    check_finite,
    check_fraction,
    check_nonempty,
    check_one_of,
    check_values,
    checked,
)
from heldout.measure.dynamics.stream_matrix import StreamMatrix
from heldout.method import evaluating
from heldout.statistics import CONFIDENCE, Interval, interval

TransferBlock = Literal["in-domain", "cross-domain", "cross-task"]
TRANSFER_BLOCKS = ("in-domain", "cross-domain", "cross-task")


class TransferTest(NamedTuple):
    """A test set and what it is to the training sets.

    Attributes:
        block: "in-domain", of a training set's own task and domain; "cross-domain", of a task that was trained on, in a
            domain that was not; "cross-task", of a task that was not.
        data: as the scoring function takes it.
        sets: the training sets whose own models are judged by it, where each set has one; empty: all.

    Example:
        >>> TransferTest("in-domain", [1, 2, 3], ("lesions, device 1",)).sets
        ('lesions, device 1',)
    """

    block: TransferBlock
    data: Any
    sets: tuple[str, ...] = ()


@dataclass(frozen=True)
class TransferTable:
    """Scores of models by how they were trained, on each test; higher is better.

    Args:
        scores: way of training -> test -> score; of several models the mean.
        blocks: test -> its block.
        best: as ``scores``, of several models the best on this test: chosen by what it is to be judged by, and so an
            upper line alone. Default: ``scores``.

    Raises:
        ValueError: no test, an unknown block, scores of other tests than ``blocks`` has or that are not finite.

    Example:
        >>> table = TransferTable({"joint": {"a": 0.8, "b": 0.4}}, {"a": "in-domain", "b": "cross-task"})
        >>> table.mean("joint", "cross-task")
        0.4
    """

    scores: Mapping[str, Mapping[str, float]]
    blocks: Mapping[str, TransferBlock]
    best: Mapping[str, Mapping[str, float]] | None = None

    def __post_init__(self) -> None:
        if self.best is None:
            object.__setattr__(self, "best", self.scores)
        check_fields(self)
        check_nonempty(scores=self.scores, blocks=self.blocks)
        for name, block in self.blocks.items():
            check_one_of(TRANSFER_BLOCKS, **{f"blocks[{name!r}]": block})
        for field in ("scores", "best"):
            found = getattr(self, field)
            if set(found) != set(self.scores):
                raise ValueError("best must be of the same ways of training as scores")
            for way, row in found.items():
                if set(row) != set(self.blocks):
                    raise ValueError(f"{field}[{way!r}] must have the tests of blocks, {', '.join(self.blocks)}")
                check_values(**{f"{field}[{way!r}]": list(row.values())})

    @checked
    def mean(self, way: str, block: TransferBlock, *, best: bool = False) -> float:
        """Returns the mean score over the tests of a block; NaN where it has none.

        Args:
            way: of training.
            block: of tests.
            best: of the best model on each test, see the class.

        Raises:
            ValueError: an unknown way or block.
        """
        check_one_of(self.scores, way=way)
        check_one_of(TRANSFER_BLOCKS, block=block)
        row = (self.best or self.scores)[way] if best else self.scores[way]
        own = [score for name, score in row.items() if self.blocks[name] == block]
        return float(np.mean(own)) if own else math.nan


class TransferRow(NamedTuple):
    """One cell of a table over seeds.

    Attributes:
        way: of training.
        block: of tests.
        interval: the mean score over its tests, with the interval over seeds; no ends for one seed.

    Example:
        >>> table = TransferTable({"joint": {"a": 0.8}}, {"a": "in-domain"})
        >>> transfer_intervals([table])[0].interval.estimate
        0.8
    """

    way: str
    block: TransferBlock
    interval: Interval


@checked
def transfer_table(
    models: Mapping[str, nn.Module | Mapping[str, nn.Module]],
    tests: Mapping[str, TransferTest],
    score: Callable[[nn.Module, Any], float],
) -> TransferTable:
    """Returns the scores of models by how they were trained, on each test; each model is in eval mode for it.

    Args:
        models: way of training -> a model, or training set -> its own model. Of several models that a test judges the
            mean is the score: which of them suits a test is not known before it.
        tests: by name.
        score: ``(model, data) -> score``, higher is better.

    Raises:
        ValueError: no model or test, an unknown block, a test of sets of which none has a model, scores that are not
            finite.

    Source: arXiv:2303.06580, its cross-domain and cross-task comparison.

    Example:
        >>> own = {"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)}
        >>> tests = {"test of a": TransferTest("in-domain", 1.0, ("a",)), "new": TransferTest("cross-task", 0.0)}
        >>> table = transfer_table({"specialised": own}, tests, lambda model, data: data)
        >>> table.scores
        {'specialised': {'test of a': 1.0, 'new': 0.0}}
    """
    check_nonempty(models=models, tests=tests)
    scores: dict[str, dict[str, float]] = {}
    best: dict[str, dict[str, float]] = {}
    for way, own in models.items():
        scores[way], best[way] = {}, {}
        for name, test in tests.items():
            if isinstance(own, nn.Module):
                judged = [own]
            else:
                judged = [model for of, model in own.items() if not test.sets or of in test.sets]
            if not judged:
                raise ValueError(
                    f"models[{way!r}] must have a model of one of {', '.join(test.sets)}, the test {name!r}"
                )
            values = []
            for model in judged:
                with evaluating(model):
                    values.append(float(score(model, test.data)))
                check_finite(**{f"score of {way!r} on {name!r}": values[-1]})
            scores[way][name], best[way][name] = float(np.mean(values)), max(values)
    return TransferTable(scores, {name: test.block for name, test in tests.items()}, best)


@checked
def transfer_tests(tests: Mapping[tuple[str, str], Any], trained: Sequence[tuple[str, str]]) -> dict[str, TransferTest]:
    """Returns test sets of (task, domain) with what each is to those that are trained on, named "task, domain".

    In-domain tests judge the model of their own set, cross-domain ones those of their task, cross-task ones all. A test
    whose task and whose domain are both new is left out: it would be neither. So is one of a task and a domain that are
    known, but not together: it would be less than cross-domain.

    Args:
        tests: (task, domain) -> data.
        trained: (task, domain) of the training sets.

    Raises:
        ValueError: no test, or nothing that is trained on.

    Example:
        >>> found = transfer_tests({("cat", "photo"): 1, ("cat", "sketch"): 2}, [("cat", "photo")])
        >>> {name: (test.block, test.sets) for name, test in found.items()}
        {'cat, photo': ('in-domain', ('cat, photo',)), 'cat, sketch': ('cross-domain', ('cat, photo',))}
    """
    check_nonempty(tests=tests, trained=trained)
    tasks, domains = ({key[place] for key in trained} for place in (0, 1))
    found = {}
    for (task, domain), data in tests.items():
        name = f"{task}, {domain}"
        if (task, domain) in trained:
            found[name] = TransferTest("in-domain", data, (name,))
        elif task in tasks and domain not in domains:
            own = tuple(f"{task}, {other}" for of, other in trained if of == task)
            found[name] = TransferTest("cross-domain", data, own)
        elif task not in tasks and domain in domains:
            found[name] = TransferTest("cross-task", data)
    return found


@checked
def half_way(matrix: StreamMatrix) -> float:
    """Returns the score at which half of what earlier tasks lose is kept: between just after learning and the end.

    Args:
        matrix: of a stream of at least two tasks.

    Raises:
        ValueError: a single task.

    Example:
        >>> round(half_way(StreamMatrix([[0.8, 0.0], [0.4, 0.9]])), 2)
        0.6
    """
    if matrix.tasks < 2:
        raise ValueError("matrix must be of at least 2 tasks, got 1")
    return float((np.diagonal(matrix.scores)[:-1] + matrix.scores[-1, :-1]).mean() / 2)


@checked
def transfer_intervals(
    tables: Sequence[TransferTable], *, confidence: float = CONFIDENCE, seed: int = 0
) -> list[TransferRow]:
    """Returns the mean of each way of training in each block that has tests, with its interval over tables.

    Args:
        tables: one for each seed, of the same ways of training.
        confidence: of the intervals.
        seed: of the bootstrap.

    Raises:
        ValueError: no table, or tables of other ways or blocks.

    Example:
        >>> tables = [TransferTable({"joint": {"a": score}}, {"a": "cross-domain"}) for score in (0.5, 0.6, 0.7)]
        >>> [row] = transfer_intervals(tables)
        >>> row.block, round(row.interval.estimate, 2), row.interval.low < 0.6 < row.interval.high
        ('cross-domain', 0.6, True)
    """
    check_nonempty(tables=tables)
    check_fraction(confidence=confidence)
    kinds = [(set(table.scores), set(table.blocks.values())) for table in tables]
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError("tables must be of the same ways of training, and have tests of the same blocks")
    rows = []
    for way in tables[0].scores:
        for block in (block for block in TRANSFER_BLOCKS if block in kinds[0][1]):
            values = np.array([table.mean(way, block) for table in tables])  # type: ignore[arg-type]
            rows.append(TransferRow(way, block, interval([values], confidence=confidence, seed=seed)))  # type: ignore[arg-type]
    return rows
