"""improve: tries the applicable Methods on the user's model and data within a budget, and proves which help.

The budget is planned backwards from a confirmation that is never shortened (see ``heldout.improve.plan``):

1. *screening*: every applicable method is ranked by its score on the validation data, after all of the recipe's epochs
   under one seed, or, where the budget buys that, by successive halving: half of the epochs first, the better half in
   full and under more seeds (Jamieson and Talwalkar 2016, arXiv 1502.07943). Much shorter training does not rank: what
   helps a model that is half trained may do nothing in the end. Methods that act after training share the baseline's.
   Differences that two examples make do not rank methods: the validation loss does then, and ties at the cut go on;
2. *combining*: the best ones are composed where their stages allow it, and screened likewise;
3. *tuning*: a learning rate for the baseline and each finalist, with the same number of trials, in full training;
4. *confirming*: the finalists, the baseline and the tuned baseline are trained in full on fresh seeds and evaluated on
   the test sets, which no choice before has seen. The winner among the finalists is chosen by validation score, so that
   its reported gain on the test sets carries no winner's curse.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import heldout
from heldout.improve.events import tell_runs, tell_verdict
from heldout.improve.plan import AFTER_COST, FEWEST_SEEDS, METHOD_COST, SHARE, Plan, least_seconds, make_plan
from heldout.improve.report import to_html, to_markdown
from heldout.improve.selection import AIMS, selection_sets
from heldout.improve.sharing import SharedTraining, acts_after_training
from heldout.improve.verdict import BASELINE, RATES, TUNED, accounted, compare, ranking, resolution, sentence
from heldout.improve.winner import write_winner
from heldout.methods import available, factory_files, parse
from heldout.problem import Problem, ProblemError, check_problem, inapplicable, load_problem
from heldout.report import OnEvent, curve_values, ignore, telling
from heldout.study import (
    Executor,
    Results,
    Store,
    Study,
    environment,
    higher_is_better,
    log_curve,
    lower_is_better,
    make_executor,
    run_study,
    write_atomically,
)

SCREENING_SEED = 1000
COMBINED = 3
CURVES = {"loss": "training loss", "train_error": "training error"}
MOST_FINALISTS = 5
RATE = math.sqrt(10)  # between neighbours of the search for a learning rate
Say = Callable[[str], None]


@lru_cache(maxsize=1)
def _loaded(
    path: str, modified: float, aim: str, device: str | None = None
) -> tuple[Problem, list[Any], SharedTraining]:
    problem = load_problem(path, device=device)
    return problem, list(selection_sets(problem, aim)[0].values()), SharedTraining()


def run(arm: Mapping[str, Any], seed: int, profile: str) -> dict[str, float]:
    """Trains one candidate and returns its score on the validation sets and, in the "confirm" profile, on the tests."""
    problem, selected_on, trainings = _loaded(arm["file"], os.path.getmtime(arm["file"]), arm["aim"], arm.get("device"))
    method = None if arm["method"] == BASELINE else parse(arm["method"], problem.own_methods)
    fitted = trainings.fit(problem, method, seed=seed, epochs=arm["epochs"], rate=arm["rate"])
    started = time.perf_counter()
    scores, losses = [], []
    for dataset in selected_on:
        outputs, targets = fitted.outputs(dataset)
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
        metrics |= {f"test {name}": problem.score(fitted, dataset) for name, dataset in problem.splits.test.items()}
    return metrics


@dataclass(frozen=True)
class _Candidate:
    """A method (or the baseline) with a learning rate, as a multiple of the recipe's."""

    method: str
    rate: float = 1.0


@dataclass
class _Search:
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

    def study(self, candidates: Mapping[str, _Candidate], epochs: int, profile: str) -> Study:
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
        if self.problem.asked_device:
            common["device"] = self.problem.asked_device
        return Study(
            slug="improve",
            arms={name: {"method": each.method, "rate": each.rate, **common} for name, each in candidates.items()},
            run=run,
            metrics=metrics,
            seeds={profile: 1},
            time_limit={profile: 24 * 3600.0},
            source=[self.problem.path.resolve(), *factory_files()],
            shared_setup=True,
        )

    def screen(self, candidates: Iterable[str] | Mapping[str, _Candidate], epochs: int, seeds: int) -> Results:
        if not isinstance(candidates, Mapping):
            candidates = {name: _Candidate(name) for name in candidates}
        results = run_study(
            self.study(candidates, epochs, "screen"),
            profile="screen",
            seeds=seeds,
            first_seed=SCREENING_SEED,
            on=self.executor,
            store=self.store,
            deadline=self.stop_choosing,
            progress=self.progress,
        )
        tell_runs(results, self.on_event)
        return results

    def confirm(self, candidates: Mapping[str, _Candidate], epochs: int, seeds: int) -> Results:
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

    def sign(self) -> float:
        return 1.0 if self.problem.maximise else -1.0


def improve(
    path: str | Path,
    *,
    budget: float = 600.0,
    seeds: int = 5,
    methods: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    combine: int = 2,
    aim: str = "both",
    screen_only: bool = False,
    device: str | None = None,
    workers: int = 1,
    threads: int = 1,
    on: str = "local",
    out: str | Path | None = None,
    say: Say = lambda text: None,
    progress: Any = None,
    on_event: OnEvent = ignore,
) -> dict[str, Any]:
    """Searches for what improves the model of a file and returns the report as one JSON-serialisable document.

    A verdict needs the baseline and a finalist, trained for all of the recipe's epochs on at least three fresh seeds.
    Where the budget does not buy that, nothing but the baseline is timed, and the report says what it would take.

    Args:
        path: the user's file (see ``heldout.problem``), or "digits" or "fashion".
        budget: wall-clock seconds for this call; no new run starts later.
        seeds: fresh seeds of the confirmation, at least 3.
        methods: expressions such as ``"sam(rho=0.1)"`` to try; default: every method of the catalog and of the file.
        exclude: names to leave out.
        combine: the most methods in one combination; 1 tries them alone.
        aim: what methods are selected for: "iid", "shift" or "both" (see ``heldout.improve.selection``).
        screen_only: rank the methods by short training, and stop before the confirmation: no verdict.
        device: where to train, or "auto"; default: what the file says.
        workers: processes.
        threads: threads of arithmetic in each of them.
        on: "local", "processes", "ray" or "ray://host:port".
        out: output folder; default ``heldout-runs/improve-<file stem>``.
        say: called with a line at the start of each phase.
        progress: see ``heldout.study.run_study``.
        on_event: called with a ``heldout.report.LogEvent`` for every phase, run and gain, and for the verdict; see
            ``heldout.report.event_log`` for TensorBoard and W&B.

    Raises:
        ProblemError: the file cannot be worked on; nothing was trained.
        StudyError: the output folder cannot be used.
    """
    if combine < 1 or seeds < FEWEST_SEEDS:
        raise ProblemError(f"combine must be at least 1 and seeds at least {FEWEST_SEEDS}, got {combine} and {seeds}")
    if aim not in AIMS:
        raise ProblemError(f"the aim must be one of {', '.join(AIMS)}, got {aim!r}")
    started = time.monotonic()
    problem = load_problem(path, device=device)
    warnings = check_problem(problem)
    candidates, skipped = _candidates(problem, methods, exclude)
    if not candidates:
        raise ProblemError("no method applies: " + "; ".join(f"{name}: {reason}" for name, reason in skipped.items()))
    selected_on, warning = selection_sets(problem, aim)
    warnings += [warning] if warning else []
    folder = (
        Path(out).absolute() if out is not None else Path("heldout-runs").absolute() / f"improve-{problem.path.stem}"
    )
    with Store.open(folder) as store, closing(make_executor(on, workers=workers, threads=threads)) as executor:
        search = _Search(
            problem=problem,
            store=store,
            executor=executor,
            workers=workers,
            say=telling(say, on_event),
            progress=progress,
            on_event=on_event,
            stop_choosing=started + budget,
            stop=started + budget,
            fingerprint=problem.fingerprint(),
            aim=aim,
            step=resolution([len(dataset) for dataset in selected_on.values()], problem.metric),  # type: ignore[arg-type]
            after=frozenset(n for n in candidates if acts_after_training(parse(n, problem.own_methods))),
        )
        plan, per_epoch = _plan(search, folder, candidates, combine, seeds, budget, screen_only)
        document = {
            "file": str(problem.path),
            "title": problem.path.stem,
            "kind": problem.kind.name,
            "metric": {"name": problem.metric, "higher_is_better": problem.maximise},
            "aim": aim,
            "selected_on": list(selected_on),
            "test_sets": list(problem.splits.test),
            "budget": budget,
            "plan": asdict(plan) if plan else None,
            "warnings": warnings,
            "not_applicable": [{"method": name, "reason": reason} for name, reason in skipped.items()],
            "rates": {},
            "curves": {},
            "environment": environment(),
            "out": str(folder),
        }
        if plan is None:
            found, rungs, failed = _nothing(search, budget, per_epoch)
        else:
            found, rungs, failed = _searched(search, plan, candidates, combine, per_epoch, screen_only, document)
    reasons = {run["arm"]: run["error"] for run in failed}
    table = accounted([*candidates, *skipped], skipped, rungs, found, reasons)
    document |= {**found, "screening": rungs, "failed": failed, "methods": table, "seconds": time.monotonic() - started}
    document["complete"] = found["complete"] and not any(row["status"] == "not tried" for row in table)
    _write(search, document, folder)
    tell_verdict(document, on_event)
    return document


def _searched(
    search: _Search,
    plan: Plan,
    candidates: list[str],
    combine: int,
    per_epoch: float,
    screen_only: bool,
    document: dict[str, Any],
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Everything after the plan: the findings, the rungs of the screening, and the failed runs."""
    reserve = plan.confirmation() * per_epoch / max(1, search.workers)
    search.stop_choosing = search.stop - (0.0 if screen_only else 1.1 * reserve)
    ranked, rungs, failed = _select(search, plan, candidates, combine)
    if screen_only:
        verdict = f"No verdict: only screened. Best so far by short training: {', '.join(ranked[:3]) or 'nothing'}."
        return {**_empty(search), "verdict": verdict, "complete": True}, rungs, failed
    finalists = ranked[: _affordable_finalists(search, plan, ranked, _costs(search, rungs), per_epoch)] or ranked[:1]
    rates, tried, more = _rates(search, plan, finalists)
    failed += more
    if tried:
        rungs.append(tried)
    document["rates"] = {name: rate for name, rate in rates.items() if rate != 1.0}
    arms = {BASELINE: _Candidate(BASELINE)}
    if rates.get(BASELINE, 1.0) != 1.0:
        arms[TUNED] = _Candidate(BASELINE, rates[BASELINE])
        best = f"{rates[BASELINE]:.3g} times the learning rate suits the baseline better than the recipe's"
        document["warnings"].append(f"{best}: gains are told against both")
    elif not plan.trials:
        document["warnings"].append("the budget did not allow a search for the recipe's learning rate")
    arms |= {name: _Candidate(name, rates.get(name, 1.0)) for name in finalists}
    search.say(f"Confirming {', '.join(finalists)} on {plan.seeds} fresh seeds and the test sets")
    confirmed = search.confirm(arms, plan.epochs, plan.seeds)
    failed += confirmed.failed
    tests, metric = list(search.problem.splits.test), search.problem.metric
    found = compare(confirmed, finalists, tests, maximise=search.problem.maximise, metric=metric, seeds=plan.seeds)
    verdict, winner = sentence(found, tests, search.aim, metric)
    complete = not confirmed.pending and not found["unfinished"]
    document["curves"] = curve_values(confirmed.runs)
    return {**found, "verdict": verdict, "winner": winner, "complete": complete}, rungs, failed


def _empty(search: _Search) -> dict[str, Any]:
    tests = {name: {"score": None} for name in search.problem.splits.test}
    baseline = {"method": BASELINE, "validation": None, "tests": tests, "seeds": 0}
    return {"baseline": baseline, "tuned": None, "finalists": [], "unfinished": [], "winner": None}


def _nothing(
    search: _Search, budget: float, per_epoch: float
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    epochs = search.problem.epochs
    least = least_seconds(epochs, per_epoch, search.workers)
    verdict = (
        f"No verdict: {epochs} epochs take about {epochs * per_epoch:.0f} s a run, and a verdict needs the baseline "
        f"and a method on {FEWEST_SEEDS} fresh seeds, at least {math.ceil(least)} s; the budget is {budget:.0f} s. "
        f"Nothing was tried. Give --budget {math.ceil(least / 60 + 0.5)}m or more, or --screen-only for a ranking "
        "without proof."
    )
    return {**_empty(search), "verdict": verdict, "complete": False}, [], []


def _affordable_finalists(
    search: _Search, plan: Plan, ranked: Sequence[str], costs: Mapping[str, float], per_epoch: float
) -> int:
    """Time that is left buys finalists, by what their screening cost: decided before any of them is confirmed."""
    left = SHARE * (search.stop - time.monotonic()) * max(1, search.workers) / per_epoch
    for number in range(min(MOST_FINALISTS, len(ranked)), 1, -1):
        together = sum(costs.get(name, METHOD_COST) for name in ranked[:number])
        if plan.confirmation(together) + plan.tuning(together) <= left:
            return number
    return 1


def _costs(search: _Search, rungs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What training with a method costs, as multiples of the baseline's in the same rung."""
    costs = {}
    for rung in rungs:
        for entry in rung["candidates"]:
            if entry["cost"] is not None:
                costs[entry["method"]] = AFTER_COST if entry["method"] in search.after else max(0.5, entry["cost"])
    return costs


def _candidates(
    problem: Problem, methods: Sequence[str] | None, exclude: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    known = [*problem.own_methods, *available()]
    if unknown := [name for name in exclude if name not in known]:
        raise ProblemError(f"cannot exclude {unknown[0]!r}: the methods are {', '.join(known)}")
    candidates, skipped = [], {}
    for expression in methods if methods is not None else known:
        if expression in exclude:
            continue
        try:
            method = parse(expression, problem.own_methods)
        except ValueError as error:
            raise ProblemError(str(error)) from None
        reason = inapplicable(problem, method)
        if reason is None:
            candidates.append(method.name)
        else:
            skipped[method.name] = reason
    return candidates, skipped


def _plan(
    search: _Search,
    folder: Path,
    candidates: list[str],
    combine: int,
    seeds: int,
    budget: float,
    screen_only: bool,
) -> tuple[Plan | None, float]:
    """The plan, or None where the budget buys no verdict, and the seconds of an epoch of plain training."""
    asked = {"candidates": candidates, "combine": combine, "seeds": seeds, "budget": budget, "aim": search.aim}
    asked |= {"data": search.fingerprint, "screen_only": screen_only, "workers": search.workers}
    file = folder / "plan.json"
    if file.exists():
        kept = json.loads(file.read_text())
        if kept.get("asked") == asked and kept.get("plan"):
            return Plan(**kept["plan"]), kept["seconds per epoch"]
    epochs = search.problem.epochs
    half = max(1, round(epochs / 2))
    search.say("Timing the baseline")
    probe = search.screen([BASELINE], half, 1)
    if probe.failed:
        raise ProblemError(f"{search.problem.path}: the baseline itself does not train: {probe.failed[0]['error']}")
    if not probe.runs:
        raise ProblemError(f"the budget of {budget:g} s ended before the baseline could be timed")
    measured = probe.runs[0]["metrics"]  # by the epoch: a first run also loads libraries
    per_epoch = max(measured["seconds per epoch"] + measured["inference seconds"] / epochs, 1e-4)
    pairs = min(len(candidates), COMBINED)
    combinations = sum(math.comb(pairs, size) for size in range(2, combine + 1))
    affordable = SHARE * (search.stop - time.monotonic()) * max(1, search.workers) / per_epoch
    after = len(search.after)
    plan = make_plan(epochs, seeds, len(candidates), combinations, affordable, after=after)
    if screen_only:
        plan = Plan(len(candidates), half, 2, epochs, 2, 0, epochs, seeds, 1, after)
    if plan is not None:
        search.say(plan.text(per_epoch, combinations if plan.long_epochs else 0, max(1, search.workers)))
    kept = {"asked": asked, "plan": asdict(plan) if plan else None, "seconds per epoch": per_epoch}
    write_atomically(file, json.dumps(kept, indent=1))
    return plan, per_epoch


def _select(
    search: _Search, plan: Plan, candidates: list[str], combine: int
) -> tuple[list[str], list[dict[str, Any]], list[dict[str, Any]]]:
    """Successive halving, then combinations; returns the candidates worth confirming, best first, every rung, failures.

    What is not better than the baseline by its validation score, or by its validation loss where the scores tie, is not
    worth confirming; the best is, in any case.
    """
    screened = sorted(candidates, key=lambda name: name not in search.after)
    if not plan.short_epochs:
        return screened[:1], [], []
    names = [name for name in screened if not plan.long_epochs or name not in search.after] or screened
    search.say(f"Screening {len(names)} methods with {plan.short_epochs} epochs, as far as the time goes")
    first = search.screen([BASELINE, *names], plan.short_epochs, plan.short_seeds)
    rung = _rank(search, first, names, "screening", plan.short_epochs)
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
    chosen = [entry["method"] for entry in promising or final[:1]]
    for rung in rungs[1:] or rungs:
        _mark(rung, chosen)
    return chosen, rungs, failed


def _rank(search: _Search, results: Results, candidates: Sequence[str], title: str, epochs: int) -> dict[str, Any]:
    """A rung: candidates by their mean gain over the baseline on the validation data, paired by seed."""
    entries: list[dict[str, Any]] = []
    for name in candidates:
        entry: dict[str, Any] = {
            "method": name,
            "score": None,
            "gain": None,
            "loss_gain": 0.0,
            "seeds": 0,
            "cost": None,
            "kept": False,
        }
        own, reference = results.metric(name, "validation"), results.metric(BASELINE, "validation")
        if shared := sorted(set(own) & set(reference)):
            losses, plain = results.metric(name, "validation loss"), results.metric(BASELINE, "validation loss")
            entry["score"] = float(np.mean([own[s] for s in shared]))
            entry["gain"] = search.sign() * float(np.mean([own[s] - reference[s] for s in shared]))
            entry["loss_gain"] = float(np.mean([plain[s] - losses[s] for s in shared]))
            entry["seeds"] = len(shared)
            own, reference = results.metric(name, "training seconds"), results.metric(BASELINE, "training seconds")
            entry["cost"] = sum(own[s] for s in shared) / sum(reference[s] for s in shared)
        entries.append(entry)
    entries = ranking(entries, search.step)
    values = list(results.metric(BASELINE, "validation").values())
    return {
        "title": title,
        "epochs": epochs,
        "baseline": float(np.mean(values)) if values else None,
        "candidates": entries,
    }


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


def _rates(
    search: _Search, plan: Plan, finalists: Sequence[str]
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
            f"{name} at {RATE**power:.3g} x": _Candidate(name, RATE**power) for name in names for power in powers[name]
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
            best[name] = _best_power(tried[name], losses[name], search.step)
            if best[name] and best[name] in (min(tried[name]), max(tried[name])):
                powers[name] = [best[name] + (1 if best[name] > 0 else -1)]
    entries = [
        {"method": f"{name} at {RATE**power:.3g} x", "score": search.sign() * value, "gain": value - tried[name][0],
         "loss_gain": 0.0, "seeds": plan.trials, "cost": None, "kept": power == best[name]}
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


def _best_power(scores: Mapping[int, float], losses: Mapping[int, float], step: float) -> int:
    """The power of the best learning rate, 0 unless another one is better; ties in score are broken by the loss."""
    best = 0
    for power in sorted(scores, key=abs):
        gain = scores[power] - scores[best]
        if gain > step or (abs(gain) <= step and losses[power] < 0.998 * losses[best]):
            best = power
    return best


def _write(search: _Search, document: dict[str, Any], folder: Path) -> None:
    """Writes the winner's weights and code, then the report as JSON and HTML; each appears when it is complete.

    A report that ends in a verdict is not overwritten by one that does not: that one is named ``unfinished``.
    """
    if document["winner"]:
        search.say(f"Writing the weights of {document['winner']}")
        write_winner(document, search.problem, folder)
        write_atomically(folder / "winner.py", document["code"])
    stem, page = "improve", "report"
    if not document["finalists"] and _ended_in_a_verdict(folder / "improve.json"):
        stem, page = "improve-unfinished", "report-unfinished"
    document["report"] = str(folder / f"{page}.html")
    write_atomically(folder / f"{stem}.json", json.dumps(document, indent=1))
    write_atomically(folder / f"{stem}.md", to_markdown(document))
    write_atomically(folder / f"{page}.html", to_html(document))


def _ended_in_a_verdict(file: Path) -> bool:
    try:
        return bool(json.loads(file.read_text(encoding="utf-8"))["finalists"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
