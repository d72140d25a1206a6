"""One run of a search: a candidate trained on the user's data, and its scores."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from heldout.improve.selection import selection_sets
from heldout.improve.verdict import BASELINE
from heldout.methods import parse
from heldout.problem import Problem, load_problem
from heldout.train import score


@lru_cache(maxsize=1)
def _problem(path: str, modified: float) -> Problem:
    return load_problem(path)


def run(arm: Mapping[str, Any], seed: int, profile: str) -> dict[str, float]:
    """Trains one candidate and returns its score on the validation sets and, in the "confirm" profile, on the tests."""
    problem = _problem(arm["file"], os.path.getmtime(arm["file"]))
    method = None if arm["method"] == BASELINE else parse(arm["method"], problem.own_methods)
    fitted = problem.fit(method, seed=seed, epochs=arm["epochs"], rate=arm["rate"])
    started = time.perf_counter()
    scores, losses = [], []
    for dataset in selection_sets(problem, arm["aim"])[0].values():
        outputs, targets = fitted.outputs(dataset)
        plain = score(outputs, targets, fitted.run.task)
        losses.append(plain["loss"])
        scores.append(float(problem.measure(outputs, targets)) if problem.measure else plain[problem.metric])
    seconds = time.perf_counter() - started
    metrics = {
        "validation": float(np.mean(scores)),
        "validation loss": float(np.mean(losses)),
        "training seconds": fitted.seconds,
        "inference seconds": seconds,
        "seconds per epoch": float(np.median([epoch["seconds"] for epoch in fitted.history])),
    }
    if profile == "confirm":
        metrics |= {f"test {name}": problem.score(fitted, dataset) for name, dataset in problem.splits.test.items()}
    return metrics
