"""The trials of a search: trainings of candidates, as runs of studies."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import heldout
from heldout.errors import check_nonempty, checked
from heldout.improve.events import tell_runs
from heldout.improve.groups import Groups, groups_of, metric_of, scores_by_group
from heldout.improve.selection import LEFT_OUT, leaves_out, leaving_out, selection_sets
from heldout.improve.sharing import SharedTraining
from heldout.improve.verdict import BASELINE
from heldout.methods import factory_files, parse
from heldout.problem import Problem, load_problem
from heldout.report import OnEvent
from heldout.study import (
    Executor,
    Results,
    Store,
    Study,
    higher_is_better,
    log_curve,
    lower_is_better,
    run_study,
)

SCREENING_SEED = 1000
CURVES = {"loss": "training loss", "train_error": "training error"}
OPTIONS = ("device", "autocast", "compile", "num_workers")  # of an arm, where they were asked for
Asked = tuple[tuple[str, Any], ...]
Say = Callable[[str], None]


@lru_cache(maxsize=1)
def _problem(path: str, modified: float, asked: Asked) -> Problem:
    return load_problem(path, **dict(asked))


@lru_cache(maxsize=1)
def _loaded(
    path: str, modified: float, aim: str, asked: Asked, turn: int | None
) -> tuple[Problem, list[Any], SharedTraining]:
    """The problem, what candidates are scored on, and trainings that are shared; ``turn``: of the left-out domain."""
    problem = _problem(path, modified, asked)
    sets = selection_sets(problem, aim)[0]
    if turn is not None:
        problem, sets[LEFT_OUT] = leaving_out(problem, turn)
    elif LEFT_OUT in sets:  # nothing is left out of the training: what is left is the given distribution
        sets = problem.validation_sets()
    return problem, list(sets.values()), SharedTraining()


@checked
def run(arm: Mapping[str, Any], seed: int, profile: str) -> dict[str, float]:
    """Trains one candidate and returns its score on the validation sets and, in the "confirm" profile, on the tests.

    Where methods are selected on left-out domains, each seed of the search leaves out another one; a confirmation
    trains on all of them, and its validation score is that of the given validation data.

    Args:
        arm: "file", "method" (an expression, or "baseline"), "epochs", "rate" (times the recipe's learning rate),
            "aim", and those of ``OPTIONS`` that were asked for.
        seed: of the training.
        profile: "confirm", or any other name for the search.

    Example:
        >>> import tempfile
        >>> text = '''
        ... import torch
        ... def model():
        ...     return torch.nn.Linear(2, 2)
        ... def data():
        ...     x, y = torch.randn(8, 2), torch.arange(8) % 2
        ...     return {"train": (x, y), "val": (x, y), "test": {"iid": (x, y)}}
        ... '''
        >>> arm = {"method": "sam(rho=0.1)", "aim": "iid", "epochs": 1, "rate": 1.0}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "trial_demo.py")
        ...     _ = file.write_text(text)
        ...     sorted(run({**arm, "file": str(file)}, 0, "confirm"))[2:]
        ['test iid', 'training seconds', 'validation', 'validation loss']
    """
    check_nonempty(arm=arm)
    file, modified, aim = arm["file"], os.path.getmtime(arm["file"]), arm["aim"]
    asked = tuple((name, arm[name]) for name in OPTIONS if name in arm)
    turn = seed if profile != "confirm" and leaves_out(_problem(file, modified, asked), aim) else None
    problem, selected_on, trainings = _loaded(file, modified, aim, asked, turn)
    method = None if arm["method"] == BASELINE else parse(arm["method"], problem.own_methods)
    fitted = trainings.fit(problem, method, seed=seed, epochs=arm["epochs"], rate=arm["rate"])
    started = time.perf_counter()
    scores, losses = [], []
    for dataset in selected_on:
        outputs, targets = problem.outputs(fitted, dataset)
        losses.append(problem.kind.loss(outputs, targets))
        scores.append(problem.judge(outputs, targets))
    seconds = time.perf_counter() - started
    for epoch in fitted.history:
        for curve in ("loss", "train_error"):
            if curve in epoch:
                log_curve(CURVES[curve], int(epoch["epoch"]), epoch[curve])
    metrics = {
        "validation": float(np.mean(scores)),
        "validation loss": float(np.mean(losses)),
        "training seconds": fitted.seconds,
        "inference seconds": seconds,
        "seconds per epoch": float(np.median([epoch["seconds"] for epoch in fitted.history])),
    }
    if profile == "confirm":
        groups = groups_of(problem)
        for name, dataset in problem.splits.test.items():
            outputs, targets = problem.outputs(fitted, dataset)
            metrics[f"test {name}"] = problem.judge(outputs, targets)
            metrics |= scores_by_group(problem, name, outputs, targets, groups)
    return metrics


@dataclass(frozen=True)
class Candidate:
    """A method (or the baseline) with a learning rate, as a multiple of the recipe's, and epochs where they differ."""

    method: str
    rate: float = 1.0
    epochs: int | None = None


@dataclass
class Search:
    """The state of one search: what was asked, and the studies run so far."""

    problem: Problem
    store: Store
    executor: Executor
    workers: int
    say: Say
    progress: Any
    on_event: OnEvent
    stop_choosing: float
    stop: float
    fingerprint: str
    aim: str
    step: float
    after: frozenset[str]  # candidates that act after training
    tests_share: float  # examples of the tests, as a multiple of those that candidates are selected on
    groups: Groups = field(default_factory=dict)  # of the test sets, where the file names factors

    def study(self, candidates: Mapping[str, Candidate], epochs: int, profile: str) -> Study:
        direction = higher_is_better if self.problem.maximise else lower_is_better
        costs = ("validation loss", "training seconds", "inference seconds", "seconds per epoch")
        metrics = {"validation": direction, **dict.fromkeys(costs, lower_is_better)}
        of_groups: list[str] = []
        if profile == "confirm":
            metrics |= {f"test {name}": direction for name in self.problem.splits.test}
            of_groups = [metric_of(test, group) for test, groups in self.groups.items() for group in groups]
            metrics |= dict.fromkeys(of_groups, direction)
        common: dict[str, Any] = {
            "file": str(self.problem.path.resolve()),
            "aim": self.aim,
            "data": self.fingerprint,
            "heldout": heldout.__version__,
        }
        common |= self.problem.asked
        return Study(
            slug="improve",
            arms={
                name: {**common, "method": each.method, "rate": each.rate, "epochs": each.epochs or epochs}
                for name, each in candidates.items()
            },
            run=run,
            metrics=metrics,
            optional=of_groups,
            seeds={profile: 1},
            time_limit={profile: 24 * 3600.0},
            source=[self.problem.path.resolve(), *factory_files()],
            shared_setup=True,
        )

    def screen(
        self,
        candidates: Iterable[str] | Mapping[str, Candidate],
        epochs: int,
        seeds: int,
        *,
        deadline: Callable[[], bool] | None = None,
        progress: Any = None,
    ) -> Results:
        if not isinstance(candidates, Mapping):
            candidates = {name: Candidate(name) for name in candidates}
        results = run_study(
            self.study(candidates, epochs, "screen"),
            profile="screen",
            seeds=seeds,
            first_seed=SCREENING_SEED,
            on=self.executor,
            store=self.store,
            deadline=deadline or self.stop_choosing,
            progress=progress or self.progress,
        )
        tell_runs(results, self.on_event)
        return results

    def confirm(self, candidates: Mapping[str, Candidate], epochs: int, seeds: int) -> Results:
        results = run_study(
            self.study(candidates, epochs, "confirm"),
            profile="confirm",
            seeds=seeds,
            on=self.executor,
            store=self.store,
            deadline=self.stop,
            progress=self.progress,
        )
        tell_runs(results, self.on_event)
        return results

    @property
    def folder(self) -> Path:
        """Of the output."""
        return Path(self.store.folder or ".")

    def left(self) -> float:
        """Seconds of work that the budget still allows, over all workers."""
        return (self.stop - time.monotonic()) * max(1, self.workers)

    def sign(self) -> float:
        return 1.0 if self.problem.maximise else -1.0
