"""A learning rate for the baseline and for each finalist, found with the same number of trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from heldout.improve.plan import Plan
from heldout.improve.trials import Candidate, Search
from heldout.improve.verdict import BASELINE, RATES

RATE = math.sqrt(10)  # between neighbours


def search_rates(
    search: Search, plan: Plan, finalists: Sequence[str]
) -> tuple[dict[str, float], dict[str, Any] | None, list[dict[str, Any]]]:
    """The learning rates of the baseline and each finalist, as multiples of the recipe's, chosen by full training.

    Each is tried at a third, once and three times (in steps of the square root of ten); a best value at an end is
    followed by one further out, four times at most. Scores that differ by less than the resolution are told apart by
    the validation loss, where it is lower by two thousandths or more.
    """
    names = [BASELINE, *finalists]
    if not plan.trials:
        return dict.fromkeys(names, 1.0), None, []
    search.say(f"Searching learning rates for {', '.join(names)}")
    tried: dict[str, dict[int, float]] = {name: {} for name in names}
    losses: dict[str, dict[int, float]] = {name: {} for name in names}
    best = dict.fromkeys(names, 0)
    failed: list[dict[str, Any]] = []
    powers = {name: [-1, 0, 1] for name in names}
    for _ in range(5):
        arms = {
            f"{name} at {RATE**power:.3g} x": Candidate(name, RATE**power) for name in names for power in powers[name]
        }
        if not arms:
            break
        results = search.screen(arms, plan.epochs, plan.trials)
        failed += [run for run in results.failed if arms[run["arm"]].rate == 1.0]
        for label, candidate in arms.items():
            if len(values := results.metric(label, "validation")) == plan.trials:
                power = round(math.log(candidate.rate, RATE))
                tried[candidate.method][power] = search.sign() * float(np.mean(list(values.values())))
                losses[candidate.method][power] = float(
                    np.mean(list(results.metric(label, "validation loss").values()))
                )
        for name in names:
            powers[name] = []
            if 0 not in tried[name]:
                continue
            best[name] = best_power(tried[name], losses[name], search.step)
            if best[name] and best[name] in (min(tried[name]), max(tried[name])):
                powers[name] = [best[name] + (1 if best[name] > 0 else -1)]
    entries = [
        {"method": f"{name} at {RATE**power:.3g} x", "score": search.sign() * value, "gain": value - tried[name][0],
         "loss_gain": 0.0, "seeds": plan.trials, "seconds": None, "kept": power == best[name]}
        for name in names for power, value in sorted(tried[name].items()) if 0 in tried[name]
    ]  # fmt: skip
    plain = tried[BASELINE].get(0)
    rung = {
        "title": f"{RATES} (gain over the recipe's own)",
        "epochs": plan.epochs,
        "baseline": None if plain is None else search.sign() * plain,
        "candidates": entries,
    }
    return {name: RATE ** best[name] for name in names}, rung, failed


def best_power(scores: Mapping[int, float], losses: Mapping[int, float], step: float) -> int:
    """The power of the best learning rate, 0 unless another one is better; ties in score are broken by the loss."""
    best = 0
    for power in sorted(scores, key=abs):
        gain = scores[power] - scores[best]
        if gain > step or (abs(gain) <= step and losses[power] < 0.998 * losses[best]):
            best = power
    return best
