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
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from heldout.improve.plan import Plan, make_plan
from heldout.improve.report import to_html, to_markdown
from heldout.improve.trial import BASELINE
from heldout.improve.verdict import judge
from heldout.improve.winner import winner_code
from heldout.improve.work import Say, Search
from heldout.method import Method
from heldout.methods import available, parse
from heldout.problem import (
    Problem,
    ProblemError,
    check_problem,
    inapplicable,
    load_problem,
)
from heldout.study import (
    Results,
    Store,
    environment,
    make_executor,
    write_atomically,
)

SCREENING_SHARE = 0.45
COMBINED = 3


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
        search = Search(
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
        **judge(search, confirmed, finalists),
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


def _plan(search: Search, folder: Path, candidates: list[str], combine: int, seeds: int, budget: float) -> Plan:
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
    write_atomically(file, json.dumps({"asked": asked, "plan": asdict(plan)}, indent=1))
    return plan


def _select(
    search: Search, plan: Plan, candidates: list[str], combine: int
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
    search: Search, results: Results, candidates: Sequence[str], title: str, epochs: int
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


def _write(search: Search, document: dict[str, Any], folder: Path, plan: Plan) -> None:
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
        write_atomically(folder / "winner.py", document["code"])
    write_atomically(folder / "improve.json", json.dumps(document, indent=1))
    write_atomically(folder / "improve.md", to_markdown(document))
    write_atomically(folder / "report.html", to_html(document))
    document["report"] = str(folder / "report.html")
