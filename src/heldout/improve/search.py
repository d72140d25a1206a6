"""improve: tries the applicable Methods on the user's model and data within a budget, and proves which help.

Three phases, each a study whose runs are kept in one folder:

1. *screening* by successive halving: every applicable method, trained briefly under few seeds, is ranked by its
   score on the validation data; the better half goes on to longer training (Jamieson and Talwalkar 2016,
   arXiv 1502.07943);
2. *combining*: the best ones are composed where their stages allow it, and screened likewise;
3. *confirming*: the finalists and the baseline are trained in full on fresh seeds and evaluated on the test sets,
   which no choice before has seen. The winner among the finalists is chosen by validation score, so that its
   reported gain on the test sets carries no winner's curse.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import heldout
from heldout.improve.report import SHIFTED, to_html, to_markdown
from heldout.method import Method
from heldout.methods import available, factory_files, parse
from heldout.problem import (
    Problem,
    ProblemError,
    check_problem,
    example_path,
    inapplicable,
    load_problem,
    settle_metric,
)
from heldout.study import (
    Executor,
    Results,
    Store,
    Study,
    environment,
    higher_is_better,
    interval,
    lower_is_better,
    make_executor,
    ratio_of_means,
    run_study,
)

BASELINE = "baseline"
SCREENING_SEED = 1000
SCREENING_SHARE = 0.45
COMBINED = 3
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How the budget is spent; kept in the output folder, so that a resumed search makes the same choices.

    Attributes:
        short_epochs: epochs of the first rung, under ``short_seeds`` seeds.
        long_epochs: epochs of the second rung and of the combinations, under ``long_seeds`` seeds.
        epochs: epochs of the confirmation, under ``seeds`` fresh seeds.
        finalists: how many candidates are confirmed beside the baseline.
    """

    short_epochs: int
    short_seeds: int
    long_epochs: int
    long_seeds: int
    epochs: int
    seeds: int
    finalists: int

    def cost(self, candidates: int, combinations: int) -> float:
        """Returns the expected cost in epochs of training, most of which a method makes 1.5 times as long."""
        short = (1 + 1.5 * candidates) * self.short_epochs * self.short_seeds
        kept = math.ceil(candidates / 2)
        long = (1 + 1.5 * kept + 2.0 * combinations) * self.long_epochs * self.long_seeds
        return short + long + (1 + 1.8 * self.finalists) * self.epochs * self.seeds


def make_plan(epochs: int, seeds: int, candidates: int, combinations: int, affordable: float) -> Plan:
    """Returns the most thorough plan that costs at most ``affordable`` epochs of training.

    The number of screening seeds goes first, then finalists, then confirmation seeds (not below 3), then epochs.
    """
    short, long = max(1, round(epochs / 4)), max(1, round(epochs / 2))
    plans = [
        Plan(short, 2, long, 3, epochs, seeds, 3),
        Plan(short, 2, long, 2, epochs, seeds, 2),
        Plan(short, 1, long, 2, epochs, seeds, 2),
        Plan(short, 1, short, 1, epochs, seeds, 1),
        Plan(short, 1, short, 1, epochs, min(seeds, 3), 1),
    ]
    for plan in plans:
        if plan.cost(candidates, combinations) <= affordable:
            return plan
    smallest = plans[-1]
    share = affordable / smallest.cost(candidates, combinations)
    brief = max(1, int(smallest.short_epochs * share))
    return replace(smallest, short_epochs=brief, long_epochs=brief, epochs=max(1, int(epochs * share)))


@lru_cache(maxsize=1)
def _problem(path: str, modified: float) -> Problem:
    return load_problem(path)


def run(arm: Mapping[str, Any], seed: int, profile: str) -> dict[str, float]:
    """Trains one candidate and returns its score on the validation sets and, in the "confirm" profile, on the tests."""
    problem = _problem(arm["file"], os.path.getmtime(arm["file"]))
    settle_metric(problem)
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


@dataclass
class _Search:
    """The state of one search: what was asked, and the studies run so far."""

    problem: Problem
    store: Store
    executor: Executor
    workers: int
    say: Say
    progress: Any
    stop_screening: float
    stop: float
    fingerprint: str

    def study(self, candidates: Iterable[str], epochs: int, profile: str) -> Study:
        direction = higher_is_better if self.problem.maximise else lower_is_better
        costs = ("training seconds", "inference seconds", "seconds per epoch")
        metrics = {"validation": direction, **dict.fromkeys(costs, lower_is_better)}
        if profile == "confirm":
            metrics |= {f"test {name}": direction for name in self.problem.splits.test}
        common = {
            "file": str(self.problem.path.resolve()),
            "epochs": epochs,
            "data": self.fingerprint,
            "heldout": heldout.__version__,
        }
        return Study(
            slug="improve",
            arms={name: {"method": name, **common} for name in candidates},
            run=run,
            metrics=metrics,
            seeds={profile: 1},
            time_limit={profile: 24 * 3600.0},
            source=[self.problem.path.resolve(), *factory_files()],
        )

    def screen(self, candidates: Sequence[str], epochs: int, seeds: int) -> Results:
        return run_study(
            self.study(candidates, epochs, "screen"),
            profile="screen",
            seeds=seeds,
            first_seed=SCREENING_SEED,
            on=self.executor,
            store=self.store,
            deadline=self.stop_screening,
            progress=self.progress,
        )

    def confirm(self, candidates: Sequence[str], epochs: int, seeds: int) -> Results:
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


def improve(
    path: str | Path,
    *,
    budget: float = 600.0,
    seeds: int = 5,
    methods: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    combine: int = 2,
    workers: int = 1,
    on: str = "local",
    out: str | Path | None = None,
    say: Say = lambda text: None,
    progress: Any = None,
) -> dict[str, Any]:
    """Searches for what improves the model of a file and returns the report as one JSON-serialisable document.

    Args:
        path: the user's file (see ``heldout.problem``), or "digits" or "fashion".
        budget: wall-clock seconds for this call; no new run starts later.
        seeds: fresh seeds of the confirmation.
        methods: expressions such as ``"sam(rho=0.1)"`` to try; default: every method of the catalog and of the file.
        exclude: names to leave out.
        combine: the most methods in one combination; 1 tries them alone.
        workers: processes.
        on: "local", "processes", "ray" or "ray://host:port".
        out: output folder; default ``heldout-runs/improve-<file stem>``.
        say: called with a line at the start of each phase.
        progress: see ``heldout.study.run_study``.

    Raises:
        ProblemError: the file cannot be worked on; nothing was trained.
        StudyError: the output folder cannot be used.
    """
    if combine < 1 or seeds < 2:
        raise ProblemError(f"combine must be at least 1 and seeds at least 2, got {combine} and {seeds}")
    started = time.monotonic()
    problem = load_problem(path)
    warnings = check_problem(problem)
    candidates, skipped = _candidates(problem, methods, exclude)
    if not candidates:
        raise ProblemError("no method applies: " + "; ".join(f"{s['method']}: {s['reason']}" for s in skipped))
    folder = Path(out) if out is not None else Path("heldout-runs") / f"improve-{problem.path.stem}"
    with Store.open(folder) as store, closing(make_executor(on, workers=workers)) as executor:
        search = _Search(
            problem=problem,
            store=store,
            executor=executor,
            workers=workers,
            say=say,
            progress=progress,
            stop_screening=started + SCREENING_SHARE * budget,
            stop=started + budget,
            fingerprint=problem.fingerprint(),
        )
        plan = _plan(search, folder, candidates, combine, seeds, budget)
        if plan.epochs < problem.epochs:
            warnings.append(
                f"a budget of {budget:.0f} s allows {plan.epochs} of {problem.epochs} epochs: raise it to train in full"
            )
        finalists, rungs, failed = _select(search, plan, candidates, combine)
        say(f"Confirming {', '.join(finalists)} against the baseline on {plan.seeds} fresh seeds and the test sets")
        confirmed = search.confirm([BASELINE, *finalists], plan.epochs, plan.seeds)
    failed += confirmed.failed
    document = {
        "file": str(problem.path),
        "title": problem.path.stem,
        "metric": {"name": problem.metric, "higher_is_better": problem.maximise},
        "test_sets": list(problem.splits.test),
        "budget": budget,
        "plan": asdict(plan),
        "warnings": warnings,
        "not_applicable": skipped,
        "screening": rungs,
        **_judge(search, confirmed, finalists),
        "failed": failed,
        "environment": environment(),
        "seconds": time.monotonic() - started,
        "out": str(folder),
    }
    _write(search, document, folder, plan)
    return document


def _candidates(
    problem: Problem, methods: Sequence[str] | None, exclude: Sequence[str]
) -> tuple[list[str], list[dict[str, str]]]:
    known = [*problem.own_methods, *available()]
    if unknown := [name for name in exclude if name not in known]:
        raise ProblemError(f"cannot exclude {unknown[0]!r}: the methods are {', '.join(known)}")
    candidates, skipped = [], []
    for expression in methods if methods is not None else known:
        if expression in exclude:
            continue
        try:
            method = parse(expression, problem.own_methods)
        except ValueError as error:
            raise ProblemError(str(error)) from None
        reason = inapplicable(problem, method)
        if reason is None and "loss" in method.stages and "loss" in problem.recipe:
            reason = "it replaces the loss, and the file defines its own"
        if reason is None:
            candidates.append(method.name)
        else:
            skipped.append({"method": method.name, "reason": reason})
    return candidates, skipped


def _plan(search: _Search, folder: Path, candidates: list[str], combine: int, seeds: int, budget: float) -> Plan:
    asked = {"candidates": candidates, "combine": combine, "seeds": seeds, "budget": budget, "data": search.fingerprint}
    file = folder / "plan.json"
    if file.exists():
        kept = json.loads(file.read_text())
        if kept.get("asked") == asked:
            return Plan(**kept["plan"])
    epochs = search.problem.epochs
    short = max(1, round(epochs / 4))
    search.say("Timing the baseline")
    probe = search.screen([BASELINE], short, 1)
    if not probe.runs:
        reason = probe.failed[0]["error"] if probe.failed else "the budget ended before it finished"
        raise ProblemError(f"{search.problem.path}: the baseline itself does not train: {reason}")
    measured = probe.runs[0]["metrics"]  # by the epoch: a first run also loads libraries
    per_epoch = measured["seconds per epoch"] + measured["inference seconds"] / epochs
    pairs = min(len(candidates), COMBINED)
    combinations = sum(math.comb(pairs, size) for size in range(2, combine + 1))
    affordable = 0.8 * budget * max(1, search.workers) / max(per_epoch, 1e-4)
    plan = make_plan(epochs, seeds, len(candidates), combinations, affordable)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps({"asked": asked, "plan": asdict(plan)}, indent=1))
    temporary.replace(file)
    return plan


def _select(
    search: _Search, plan: Plan, candidates: list[str], combine: int
) -> tuple[list[str], list[dict[str, Any]], list[dict[str, Any]]]:
    """Successive halving, then combinations; returns finalists, the record of every rung, and failed runs."""
    search.say(f"Screening {len(candidates)} methods with {plan.short_epochs} epochs")
    first = search.screen([BASELINE, *candidates], plan.short_epochs, plan.short_seeds)
    ranked, rung = _rank(search, first, candidates, "screening", plan.short_epochs)
    rungs, failed = [rung], list(first.failed)
    kept = ranked[: math.ceil(len(candidates) / 2)]
    _mark(rung, kept)
    if plan.long_epochs > plan.short_epochs or plan.long_seeds > plan.short_seeds:
        search.say(f"Training the better half for {plan.long_epochs} epochs: {', '.join(kept)}")
        second = search.screen([BASELINE, *kept], plan.long_epochs, plan.long_seeds)
        better, rung = _rank(search, second, kept, "longer training", plan.long_epochs)
        ranked = better or ranked
        rungs.append(rung)
        failed += second.failed
    pairs = _combinations(search.problem, ranked[:COMBINED], candidates, combine)
    scores = {entry["method"]: entry["gain"] for entry in rungs[-1]["candidates"] if entry["gain"] is not None}
    if pairs:
        search.say(f"Combining: {', '.join(pairs)}")
        third = search.screen([BASELINE, *pairs], plan.long_epochs, plan.long_seeds)
        _, rung = _rank(search, third, pairs, "combinations", plan.long_epochs)
        rungs.append(rung)
        failed += third.failed
        scores |= {entry["method"]: entry["gain"] for entry in rung["candidates"] if entry["gain"] is not None}
    if not scores:
        scores = dict.fromkeys(kept or candidates[:1], 0.0)
    best = sorted(scores, key=lambda name: -scores[name])
    promising = [name for name in best if scores[name] > 0][: plan.finalists] or best[:1]
    for rung in rungs[1:]:
        _mark(rung, promising)
    return promising, rungs, failed


def _rank(
    search: _Search, results: Results, candidates: Sequence[str], title: str, epochs: int
) -> tuple[list[str], dict[str, Any]]:
    """Candidates by their mean gain over the baseline on the validation data, paired by seed."""
    reference = results.metric(BASELINE, "validation")
    entries: list[dict[str, Any]] = []
    for name in candidates:
        own = results.metric(name, "validation")
        shared = sorted(set(own) & set(reference))
        gain = search.sign() * float(np.mean([own[s] - reference[s] for s in shared])) if shared else None
        score = float(np.mean([own[s] for s in shared])) if shared else None
        entries.append({"method": name, "score": score, "gain": gain, "seeds": len(shared), "kept": False})
    entries.sort(key=lambda entry: -math.inf if entry["gain"] is None else entry["gain"], reverse=True)
    baseline = float(np.mean(list(reference.values()))) if reference else None
    record = {"title": title, "epochs": epochs, "baseline": baseline, "candidates": entries}
    return [entry["method"] for entry in entries if entry["gain"] is not None], record


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


def _judge(search: _Search, confirmed: Results, finalists: Sequence[str]) -> dict[str, Any]:
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


def _compare(search: _Search, results: Results, name: str, tests: Sequence[str]) -> dict[str, Any] | None:
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


def _verdict(search: _Search, winner: dict[str, Any] | None, tests: Sequence[str]) -> tuple[str, bool]:
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


def winner_code(document: Mapping[str, Any], problem: Problem) -> str:
    """Returns the few lines of Python that train the winner."""
    method = document["winner"]
    name = problem.path.stem
    example = problem.path == example_path(name)
    recipe = "".join(f", {key}={name}.{key}" for key in problem.recipe if key != "epochs")
    epochs = f"epochs={document['plan']['epochs']}"
    own = [own for own in problem.own_methods if own in method.split("+")]
    names = sorted({part.split("(")[0] for part in method.split("+")} - set(own))
    parts = [f'{name}.methods["{part}"]' if part in own else _called(part) for part in method.split("+")]
    lines = [
        "import heldout",
        f"from heldout.examples import {name}" if example else f"import {name}  # {problem.path.name}",
        *([f"from heldout.methods import {', '.join(names)}"] if names else []),
        "",
        f"method = {' + '.join(parts)}",
        f"fitted = heldout.fit({name}.model, {name}.data(), method, {epochs}{recipe}, seed=0)",
        "# fitted.predict(inputs), fitted.evaluate(data_set), fitted.module",
    ]
    return "\n".join(lines) + "\n"


def _called(part: str) -> str:
    return part if part.endswith(")") else f"{part}()"


def _write(search: _Search, document: dict[str, Any], folder: Path, plan: Plan) -> None:
    """Writes the winner's weights and code, then the report as JSON and HTML; each appears when it is complete."""
    from safetensors.torch import save_model

    if document["winner"]:
        search.say(f"Writing the weights of {document['winner']}")
        method: Method = parse(document["winner"], search.problem.own_methods)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in the confirmation runs, so that the weights are those of its first seed
        try:
            fitted = search.problem.fit(method, seed=0, epochs=plan.epochs)
        finally:
            torch.set_num_threads(threads)
        temporary = folder / "winner.safetensors.tmp"
        save_model(fitted.module, str(temporary))
        temporary.replace(folder / "winner.safetensors")
        document["weights"] = str(folder / "winner.safetensors")
        document["code"] = winner_code(document, search.problem)
        _write_text(folder / "winner.py", document["code"])
    _write_text(folder / "improve.json", json.dumps(document, indent=1))
    _write_text(folder / "improve.md", to_markdown(document))
    _write_text(folder / "report.html", to_html(document))
    document["report"] = str(folder / "report.html")


def _write_text(file: Path, text: str) -> None:
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)
