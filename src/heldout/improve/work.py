"""The search under way: what was asked, and the studies run so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import heldout
from heldout.improve.trial import run
from heldout.methods import factory_files
from heldout.problem import Problem
from heldout.study import (
    Executor,
    Results,
    Store,
    Study,
    higher_is_better,
    lower_is_better,
    run_study,
)

SCREENING_SEED = 1000
Say = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """A method (or the baseline) with a learning rate, as a multiple of the recipe's."""

    method: str
    rate: float = 1.0


@dataclass
class Search:
    """The state of one search: what was asked, and the studies run so far."""

    problem: Problem
    store: Store
    executor: Executor
    workers: int
    say: Say
    progress: Any
    stop_choosing: float
    stop: float
    fingerprint: str
    aim: str
    step: float

    def study(self, candidates: Mapping[str, Candidate], epochs: int, profile: str) -> Study:
        direction = higher_is_better if self.problem.maximise else lower_is_better
        costs = ("validation loss", "training seconds", "inference seconds", "seconds per epoch")
        metrics = {"validation": direction, **dict.fromkeys(costs, lower_is_better)}
        if profile == "confirm":
            metrics |= {f"test {name}": direction for name in self.problem.splits.test}
        common = {
            "file": str(self.problem.path.resolve()),
            "epochs": epochs,
            "aim": self.aim,
            "data": self.fingerprint,
            "heldout": heldout.__version__,
        }
        return Study(
            slug="improve",
            arms={name: {"method": each.method, "rate": each.rate, **common} for name, each in candidates.items()},
            run=run,
            metrics=metrics,
            seeds={profile: 1},
            time_limit={profile: 24 * 3600.0},
            source=[self.problem.path.resolve(), *factory_files()],
        )

    def screen(self, candidates: Iterable[str] | Mapping[str, Candidate], epochs: int, seeds: int) -> Results:
        if not isinstance(candidates, Mapping):
            candidates = {name: Candidate(name) for name in candidates}
        return run_study(
            self.study(candidates, epochs, "screen"),
            profile="screen",
            seeds=seeds,
            first_seed=SCREENING_SEED,
            on=self.executor,
            store=self.store,
            deadline=self.stop_choosing,
            progress=self.progress,
        )

    def confirm(self, candidates: Mapping[str, Candidate], epochs: int, seeds: int) -> Results:
        return run_study(
            self.study(candidates, epochs, "confirm"),
            profile="confirm",
            seeds=seeds,
            on=self.executor,
            store=self.store,
            deadline=self.stop,
            progress=self.progress,
        )

    def sign(self) -> float:
        return 1.0 if self.problem.maximise else -1.0
