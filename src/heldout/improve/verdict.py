"""What the confirmation says: gains with intervals, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from heldout.improve.report import SHIFTED
from heldout.improve.trial import BASELINE
from heldout.improve.work import Search
from heldout.study import (
    Results,
    interval,
    ratio_of_means,
)


def judge(search: Search, confirmed: Results, finalists: Sequence[str]) -> dict[str, Any]:
    """Gains on every test set with intervals, cost ratios, the winner by validation score, and the verdict."""
    tests = list(search.problem.splits.test)
    rows = [row for name in finalists if (row := _compare(search, confirmed, name, tests)) is not None]
    reference = confirmed.metric(BASELINE, "validation")
    baseline = {
        "method": BASELINE,
        "validation": _mean(reference),
        "tests": {name: {"score": _mean(confirmed.metric(BASELINE, f"test {name}"))} for name in tests},
        "seeds": len(reference),
    }
    rows.sort(key=lambda row: search.sign() * row["validation"], reverse=True)
    winner = rows[0] if rows else None
    verdict, wins = _verdict(search, winner, tests)
    return {
        "baseline": baseline,
        "finalists": rows,
        "winner": winner["method"] if winner and wins else None,
        "verdict": verdict,
        "complete": not confirmed.pending,
    }


def _mean(values: Mapping[int, float]) -> float | None:
    return float(np.mean(list(values.values()))) if values else None


def _compare(search: Search, results: Results, name: str, tests: Sequence[str]) -> dict[str, Any] | None:
    def paired(metric: str) -> tuple[np.ndarray, np.ndarray]:
        own, reference = results.metric(name, metric), results.metric(BASELINE, metric)
        seeds = sorted(set(own) & set(reference))
        return np.array([own[s] for s in seeds]), np.array([reference[s] for s in seeds])

    own, reference = paired("validation")
    if not len(own):
        return None
    row: dict[str, Any] = {"method": name, "validation": float(own.mean()), "seeds": len(own), "tests": {}}
    sets = {test: paired(f"test {test}") for test in tests}
    if len(tests) > 1:
        shifts = [sets[test] for test in tests[1:]]
        sets[SHIFTED] = tuple(np.mean([pair[i] for pair in shifts], axis=0) for i in (0, 1))  # type: ignore[assignment]
    for test, (own, reference) in sets.items():
        gain = interval([search.sign() * (own - reference)])
        row["tests"][test] = {
            "score": float(own.mean()),
            "baseline": float(reference.mean()),
            "gain": gain.estimate,
            "low": gain.low,
            "high": gain.high,
        }
    for cost in ("training", "inference"):
        row[f"{cost}_cost"] = float(ratio_of_means(*paired(f"{cost} seconds")))
    return row


def _verdict(search: Search, winner: dict[str, Any] | None, tests: Sequence[str]) -> tuple[str, bool]:
    if winner is None:
        return "The budget ended before a finalist was confirmed; run the same command again to go on.", False
    given = winner["tests"][tests[0]]
    shifted = winner["tests"].get(SHIFTED)
    if given["low"] is None:
        return f"Too few seeds were confirmed to judge {winner['method']}; run the same command again to go on.", False
    unit = 100.0 if search.problem.metric == "accuracy" else 1.0
    points, form = (" points", "+.1f") if unit == 100.0 else ("", "+.3g")

    def amount(entry: dict[str, Any]) -> str:
        gain, low, high = (f"{unit * entry[part]:{form}}" for part in ("gain", "low", "high"))
        return f"{gain}{points} [{low}, {high}]"

    on_given, on_shifted = given["low"] > 0, bool(shifted and shifted["low"] > 0)
    hurts = "" if given["high"] >= 0 or on_given else ", at a loss on the given distribution"
    name = winner["method"]
    if on_given and on_shifted:
        return f"{name} beats the baseline: {amount(given)} on {tests[0]}, {amount(shifted)} on shifted data.", True  # type: ignore[arg-type]
    if on_given:
        return (
            f"{name} beats the baseline on {tests[0]}: {amount(given)}; on shifted data it is not shown to help.",
            True,
        )
    if on_shifted:
        where = f"{amount(shifted)} on shifted data{hurts}; {amount(given)} on {tests[0]}"  # type: ignore[arg-type]
        return f"{name} beats the baseline under shift: {where}.", True
    return f"Nothing beats the baseline: the best candidate, {name}, gains {amount(given)} on {tests[0]}.", False
