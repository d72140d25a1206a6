"""Which candidates are worth confirming: ranked on validation data by successive halving, then combined."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from heldout.catalog import named_methods
from heldout.improve.costs import Costs
from heldout.improve.plan import SHARE, Plan
from heldout.improve.trials import Search
from heldout.improve.verdict import BASELINE, ranking
from heldout.methods import parse
from heldout.problem import Problem, inapplicable
from heldout.study import Event, Results

COMBINED = 3  # of the best methods are combined


def select_finalists(
    search: Search, plan: Plan, candidates: list[str], combine: int
) -> tuple[list[str], list[dict[str, Any]], list[dict[str, Any]]]:
    """Successive halving, then combinations; returns the candidates worth confirming, best first, every rung, failures.

    What is not better than the baseline by its validation score, or by its validation loss where the scores tie, is not
    worth confirming; the best is, in any case. Methods that act after training go first, for they cost least; then the
    file's own and the plain ones of the catalog, which cost about as much as the baseline.
    """
    plain = {*search.problem.own_methods, *(name for name, method in named_methods().items() if method.of is None)}
    screened = sorted(candidates, key=lambda name: (name not in search.after, name.partition("(")[0] not in plain))
    if len(candidates) == 1:
        return screened, [], []
    names = [name for name in screened if not plan.long_epochs or name not in search.after] or screened
    epochs = plan.short_epochs or plan.epochs
    search.say(f"Screening {len(names)} methods with {epochs} epochs, as far as the time goes")
    first = _screened(search, plan, names, epochs)
    rung = _rank(search, first, names, "screening", epochs)
    rungs, failed = [rung], list(first.failed)
    ranked, final = _scored(rung), list(rung["candidates"])
    if plan.long_epochs:
        kept = _kept(rung["candidates"], math.ceil(len(names) / 2))
        _mark(rung, kept)
        kept += [name for name in screened if name in search.after and name not in names]
        search.say(f"Training for {plan.long_epochs} epochs: {', '.join(kept)}")
        second = search.screen([BASELINE, *kept], plan.long_epochs, plan.long_seeds)
        rung = _rank(search, second, kept, "longer training", plan.long_epochs)
        failed += second.failed
        rungs.append(rung)
        if better := _scored(rung):
            ranked, final = better, list(rung["candidates"])
        pairs = _combinations(search.problem, ranked[:COMBINED], candidates, combine)
        if pairs:
            search.say(f"Combining: {', '.join(pairs)}")
            third = search.screen([BASELINE, *pairs], plan.long_epochs, plan.long_seeds)
            rung = _rank(search, third, pairs, "combinations", plan.long_epochs)
            rungs.append(rung)
            failed += third.failed
            final += rung["candidates"]
    final = [entry for entry in ranking(final, search.step) if entry["gain"] is not None]
    half = search.step / 2
    promising = [e for e in final if e["gain"] > half or (e["gain"] > -half and e["loss_gain"] > 0)]
    chosen = [entry["method"] for entry in promising or final[:1]] or screened[:1]
    for rung in rungs[1:] or rungs:
        _mark(rung, chosen)
    return chosen, rungs, failed


def _screened(search: Search, plan: Plan, names: Sequence[str], epochs: int) -> Results:
    """The first rung; where the plan cannot pay for all of it, as much as leaves time to confirm the best of them.

    The plan sets aside what a method usually costs; here that is what the dearest of those trained so far has cost.
    """
    if plan.screened >= len(names):
        return search.screen([BASELINE, *names], epochs, plan.short_seeds)
    begun: dict[tuple[str, int], float] = {}
    spent: dict[str, float] = {}

    def watch(event: Event) -> None:
        if event.kind == "started":
            begun[event.arm, event.seed] = time.monotonic()
        elif event.kind == "finished":
            spent[event.arm] = time.monotonic() - begun[event.arm, event.seed]
        if search.progress is not None:
            search.progress(event)

    def late() -> bool:
        if BASELINE not in spent:
            return time.monotonic() >= search.stop_choosing
        dearest = max(spent.values())
        confirmation = plan.seeds * (spent[BASELINE] + dearest) / SHARE / max(1, search.workers)
        return time.monotonic() >= search.stop - confirmation - dearest

    return search.screen([BASELINE, *names], epochs, plan.short_seeds, deadline=late, progress=watch)


def measured_costs(search: Search, plan: Plan, rungs: Sequence[Mapping[str, Any]], plain: float) -> Costs:
    """Returns what the runs of the rungs cost; of the shorter ones, what they would for all epochs.

    Args:
        plain: seconds of training the baseline for all epochs, where no rung tells.
    """
    costs = Costs(plain, search.after, search.tests_share)
    for rung in rungs:
        scale = plan.epochs / rung["epochs"]
        for entry in (rung["plain"], *rung["candidates"]):
            if entry["seconds"] is not None:
                training, inference = entry["seconds"]
                costs.training[entry["method"]] = scale * training
                costs.inference[entry["method"]] = inference
    costs.plain = costs.training.pop(BASELINE, plain)
    return costs


def _rank(search: Search, results: Results, candidates: Sequence[str], title: str, epochs: int) -> dict[str, Any]:
    """A rung: candidates by their mean gain over the baseline on the validation data, paired by seed."""
    entries: list[dict[str, Any]] = []
    for name in candidates:
        entry: dict[str, Any] = {
            "method": name,
            "score": None,
            "gain": None,
            "loss_gain": 0.0,
            "seeds": 0,
            "seconds": None,
            "kept": False,
        }
        own, reference = results.metric(name, "validation"), results.metric(BASELINE, "validation")
        if shared := sorted(set(own) & set(reference)):
            losses, plain = results.metric(name, "validation loss"), results.metric(BASELINE, "validation loss")
            entry["score"] = float(np.mean([own[s] for s in shared]))
            entry["gain"] = search.sign() * float(np.mean([own[s] - reference[s] for s in shared]))
            entry["loss_gain"] = float(np.mean([plain[s] - losses[s] for s in shared]))
            entry["seeds"] = len(shared)
            entry["seconds"] = _seconds(results, name)
        entries.append(entry)
    entries = ranking(entries, search.step)
    values = list(results.metric(BASELINE, "validation").values())
    return {
        "title": title,
        "epochs": epochs,
        "baseline": float(np.mean(values)) if values else None,
        "plain": {"method": BASELINE, "seconds": _seconds(results, BASELINE)},
        "candidates": entries,
    }


def _seconds(results: Results, name: str) -> tuple[float, float] | None:
    """The mean seconds of training and of inference on what candidates are selected on."""
    found = [results.metric(name, f"{part} seconds") for part in ("training", "inference")]
    return (float(np.mean(list(found[0].values()))), float(np.mean(list(found[1].values())))) if found[0] else None


def _scored(rung: Mapping[str, Any]) -> list[str]:
    """The methods of a rung that have a score, best first."""
    return [entry["method"] for entry in rung["candidates"] if entry["gain"] is not None]


def _kept(entries: Sequence[Mapping[str, Any]], number: int) -> list[str]:
    """The first ``number`` of a ranking, and those that tie with the last of them in score and loss alike."""
    scored = [entry for entry in entries if entry["gain"] is not None]
    kept = list(scored[:number])
    if kept:
        last = kept[-1]
        kept += [e for e in scored[number:] if e["tier"] == last["tier"] and e["loss_gain"] == last["loss_gain"]]
    return [entry["method"] for entry in kept]


def _mark(rung: dict[str, Any], kept: Sequence[str]) -> None:
    for entry in rung["candidates"]:
        entry["kept"] = entry["method"] in kept


def _combinations(problem: Problem, best: Sequence[str], order: Sequence[str], combine: int) -> list[str]:
    """Compositions of the best methods, in the catalog's order, that neither clash nor fail their checks."""
    best = sorted(best, key=order.index)
    combined = []
    for size in range(2, combine + 1):
        for names in itertools.combinations(best, size):
            try:
                method = parse("+".join(names), problem.own_methods)
            except ValueError:
                continue
            if inapplicable(problem, method) is None:
                combined.append(method.name)
    return combined
