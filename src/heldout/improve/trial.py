"""One run of a search: a candidate trained on the user's data, and its scores."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from heldout.methods import parse
from heldout.problem import (
    Problem,
    load_problem,
)

BASELINE = "baseline"


@lru_cache(maxsize=1)
def _problem(path: str, modified: float) -> Problem:
    return load_problem(path)


def run(arm: Mapping[str, Any], seed: int, profile: str) -> dict[str, float]:
    """Trains one candidate and returns its score on the validation sets and, in the "confirm" profile, on the tests."""
    problem = _problem(arm["file"], os.path.getmtime(arm["file"]))
    method = None if arm["method"] == BASELINE else parse(arm["method"], problem.own_methods)
    fitted = problem.fit(method, seed=seed, epochs=arm["epochs"])
    started = time.perf_counter()
    validation = [problem.score(fitted, dataset) for dataset in problem.validation_sets().values()]
    seconds = time.perf_counter() - started
    metrics = {
        "validation": float(np.mean(validation)),
        "training seconds": fitted.seconds,
        "inference seconds": seconds,
        "seconds per epoch": float(np.median([epoch["seconds"] for epoch in fitted.history])),
    }
    if profile == "confirm":
        metrics |= {f"test {name}": problem.score(fitted, dataset) for name, dataset in problem.splits.test.items()}
    return metrics
