"""Gains by group of a test set, where the file names what its examples are made of (``factors``).

A group is the examples of a test set that have one value of a factor. They are told beside the whole test set, with
intervals adjusted for the number of finalists and of groups; no verdict and no choice rests on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heldout.data import factor_rows
from heldout.errors import ProblemError
from heldout.improve.plan import FEWEST_SEEDS
from heldout.problem import Problem
from heldout.statistics import interval
from heldout.study import Results

MOST_VALUES = 12  # of a factor that makes groups
FEWEST_EXAMPLES = 10  # of a group
Groups = Mapping[str, Mapping[str, Tensor]]


def groups_of(problem: Problem) -> dict[str, dict[str, Tensor]]:
    """Returns positions ``(n,)`` of examples by test set and group, "factor = value"; none where no factors are given.

    Factors of more than ``MOST_VALUES`` values and groups of fewer than ``FEWEST_EXAMPLES`` examples are left out.

    Raises:
        ProblemError: factors of a test set are not as many as its examples.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for test, dataset in problem.splits.test.items():
        if test not in problem.factors:
            continue
        try:
            names, rows = factor_rows(problem.factors[test], f"factors[{test!r}]")
        except (ValueError, TypeError) as error:
            raise ProblemError(f"{problem.path}: {error}") from error
        if len(rows) != len(dataset):  # type: ignore[arg-type]
            raise ProblemError(
                f"{problem.path}: factors[{test!r}] has {len(rows)} rows, the test set {len(dataset)} examples"  # type: ignore[arg-type]
            )
        groups: dict[str, Tensor] = {}
        for place, name in enumerate(names):
            values = dict.fromkeys(row[place] for row in rows)
            for value in sorted(values, key=str) if 1 < len(values) <= MOST_VALUES else ():
                positions = torch.tensor([number for number, row in enumerate(rows) if row[place] == value])
                if len(positions) >= FEWEST_EXAMPLES:
                    groups[f"{name} = {value}"] = positions
        if groups:
            found[test] = groups
    return found


def metric_of(test: str, group: str) -> str:
    """Returns what the score of a group is called among the metrics of a run."""
    return f"test {test}, {group}"


def scores_by_group(problem: Problem, test: str, outputs: Tensor, targets: Tensor, groups: Groups) -> dict[str, float]:
    """Returns the metric of each group of a test set by its name; one that is not defined on a group is left out."""
    found = {}
    for group, positions in groups.get(test, {}).items():
        try:
            value = problem.judge(outputs[positions], targets[positions])
        except Exception:  # a metric of the file's own may need more than a group holds
            continue
        if math.isfinite(value):
            found[metric_of(test, group)] = value
    return found


def gains_by_group(
    results: Results, arm: str, baseline: str, groups: Groups, *, maximise: bool, finalists: int
) -> dict[str, list[dict[str, Any]]]:
    """Returns rows ``{"group", "n", "baseline", "score", "gain", "low", "high"}`` by test set, the least gain first.

    Groups whose score is known on fewer than three seeds are left out.
    """
    number = sum(map(len, groups.values()))
    found: dict[str, list[dict[str, Any]]] = {}
    for test, members in groups.items():
        rows: list[dict[str, Any]] = []
        for group, positions in members.items():
            own, other = (results.metric(name, metric_of(test, group)) for name in (arm, baseline))
            seeds = sorted(set(own) & set(other))
            if len(seeds) < FEWEST_SEEDS:
                continue
            scores = [np.array([each[seed] for seed in seeds]) for each in (own, other)]
            gain = interval(
                [(scores[0] - scores[1]) * (1.0 if maximise else -1.0)], confidence=1 - 0.05 / (finalists * number)
            )
            means = {"baseline": float(scores[1].mean()), "score": float(scores[0].mean())}
            ends = {"gain": gain.estimate, "low": gain.low, "high": gain.high}
            rows.append({"group": group, "n": len(positions), **means, **ends})
        if rows:
            found[test] = sorted(rows, key=lambda row: row["gain"])
    return found


def group_rows(finalists: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Returns ``(method, test set, row)`` of all groups of all finalists, as reports show them."""
    return [
        (finalist["method"], test, row)
        for finalist in finalists
        for test, rows in finalist.get("groups", {}).items()
        for row in rows
    ]
