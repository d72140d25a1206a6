"""improve: tries the applicable Methods on the user's model and data within a budget, and proves which help.

The budget is planned backwards from a confirmation that is never shortened (see ``heldout.improve.plan``):

1. *screening*: every applicable method is ranked by its score on the validation data, after all of the recipe's epochs
   under one seed, or, where the budget buys that, by successive halving: half of the epochs first, the better half in
   full and under more seeds (Jamieson and Talwalkar 2016, arXiv 1502.07943). Much shorter training does not rank: what
   helps a model that is half trained may do nothing in the end. Methods that act after training share the baseline's.
   Differences that two examples make do not rank methods: the validation loss does then, and ties at the cut go on;
2. *combining*: the best ones are composed where their stages allow it, and screened likewise;
3. *tuning*: settings of the baseline and of each finalist, with the same number of trials, in full training;
4. *confirming*: the finalists, the baseline and the tuned baseline are trained in full on fresh seeds and evaluated on
   the test sets, which no choice before has seen. How many finalists and seeds is decided by cost alone, before the
   first of these runs. The winner is, of the finalists that are shown to help, the best by validation score.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from heldout.data import all_targets
from heldout.errors import checked
from heldout.improve.costs import Costs
from heldout.improve.events import tell_verdict
from heldout.improve.groups import gains_by_group, groups_of
from heldout.improve.plan import FEWEST_SEEDS, SEEDS, SHARE, Plan, least_seconds, make_plan
from heldout.improve.report import to_html, to_markdown
from heldout.improve.screening import COMBINED, measured_costs, select_finalists
from heldout.improve.selection import AIMS, leaves_out, selection_sets
from heldout.improve.sharing import acts_after_training
from heldout.improve.trials import Candidate, Say, Search
from heldout.improve.tuning import Setting, described, still_improving, tune
from heldout.improve.verdict import BASELINE, TUNED, accounted, compare, sentence
from heldout.improve.winner import write_winner
from heldout.method import as_dataset
from heldout.methods import available, on_request, parse
from heldout.problem import Problem, ProblemError, check_problem, inapplicable, load_problem, resolution
from heldout.report import OnEvent, curve_values, ignore, telling
from heldout.study import (
    Store,
    environment,
    make_executor,
    write_atomically,
)


@checked
def improve(
    path: str | Path,
    *,
    budget: float = 600.0,
    seeds: int | None = None,
    methods: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    combine: int = 2,
    aim: str = "both",
    screen_only: bool = False,
    device: str | None = None,
    autocast: str | None = None,
    compile: bool | None = None,
    num_workers: int | None = None,
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
        path: the user's file (see ``heldout.problem``), or a built-in example (``heldout.problem.load_problem``).
        budget: wall-clock seconds for this call; no new run starts later.
        seeds: fresh seeds of the confirmation, at least 3; default: 3 to 10, as time allows, whatever they show.
        methods: expressions such as ``"sam(rho=0.1)"`` to try; default: every method of the catalog and of the file.
        exclude: names to leave out.
        combine: the most methods in one combination; 1 tries them alone.
        aim: what methods are selected for: "iid", "shift" or "both" (see ``heldout.improve.selection``).
        screen_only: rank the methods on validation data, and stop before the confirmation: no verdict.
        device: where to train, or "auto"; default: what the file says.
        autocast: "bfloat16", "float16", or "float32" for none; default: what the file says.
        compile: whether the model is compiled; default: what the file says.
        num_workers: processes that load the data of a run; default: what the file says.
        workers: processes.
        threads: threads of arithmetic in each of them.
        on: "local", "processes", "ray" or "ray://host:port"; every machine needs heldout, and the file at its path.
        out: output folder; default ``heldout-runs/improve-<file stem>``.
        say: called with a line at the start of each phase.
        progress: see ``heldout.study.run_study``.
        on_event: called with a ``heldout.report.LogEvent`` for every phase, run and gain, and for the verdict; see
            ``heldout.report.event_log`` for TensorBoard and W&B.

    Raises:
        ProblemError: the file cannot be worked on; nothing was trained.
        StudyError: the output folder cannot be used.

    Example:
        >>> report = improve("digits", budget=120.0, methods=["sam", "mixup"])  # doctest: +SKIP
        >>> print(report["verdict"])  # doctest: +SKIP
        >>> improve("digits", aim="fame")
        Traceback (most recent call last):
        heldout.errors.ProblemError: the aim must be one of iid, shift, both, got 'fame'
    """
    if combine < 1 or (seeds is not None and seeds < FEWEST_SEEDS):
        raise ProblemError(f"combine must be at least 1 and seeds at least {FEWEST_SEEDS}, got {combine} and {seeds}")
    if aim not in AIMS:
        raise ProblemError(f"the aim must be one of {', '.join(AIMS)}, got {aim!r}")
    started = time.monotonic()
    problem = load_problem(path, device=device, autocast=autocast, compile=compile, num_workers=num_workers)
    warnings = [*problem.overridden, *check_problem(problem)]
    candidates, skipped = _candidates(problem, methods, exclude)
    if not candidates:
        raise ProblemError("no method applies: " + "; ".join(f"{name}: {reason}" for name, reason in skipped.items()))
    groups = groups_of(problem)
    selected_on, warning = selection_sets(problem, aim)
    warnings += [warning] if warning else []
    folder = (
        Path(out).absolute() if out is not None else Path("heldout-runs").absolute() / f"improve-{problem.path.stem}"
    )
    with Store.open(folder) as store, closing(make_executor(on, workers=workers, threads=threads)) as executor:
        sizes = [len(dataset) for dataset in selected_on.values()]  # type: ignore[arg-type]
        search = Search(
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
            step=resolution(sizes, problem.metric),
            after=frozenset(n for n in candidates if acts_after_training(parse(n, problem.own_methods))),
            tests_share=sum(map(len, problem.splits.test.values())) / sum(sizes),  # type: ignore[arg-type]
            groups=groups,
        )
        plan, per_epoch = _plan(search, folder, candidates, combine, seeds, budget, screen_only)
        document: dict[str, Any] = {
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
            "settings": {},
            "curves": {},
            "environment": environment(),
            "out": str(folder),
        }
        if plan is None:
            found, rungs, failed = _nothing(search, budget, per_epoch, budget - search.left() / max(1, search.workers))
        else:
            found, rungs, failed = _searched(search, plan, candidates, combine, seeds, per_epoch, screen_only, document)
    reasons = {run["arm"]: run["error"] for run in failed}
    table = accounted([*candidates, *skipped], skipped, rungs, found, reasons, document["settings"])
    document |= {**found, "screening": rungs, "failed": failed, "methods": table, "seconds": time.monotonic() - started}
    document["complete"] = found["complete"] and not any(row["status"] == "not tried" for row in table)
    _write(search, document, folder)
    tell_verdict(document, on_event)
    return document


def _searched(
    search: Search,
    plan: Plan,
    candidates: list[str],
    combine: int,
    asked: int | None,
    per_epoch: float,
    screen_only: bool,
    document: dict[str, Any],
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Everything after the plan: the findings, the rungs of the screening, and the failed runs."""
    reserve = plan.confirmation() * per_epoch / max(1, search.workers)
    search.stop_choosing = search.stop - (0.0 if screen_only else 1.1 * reserve)
    ranked, rungs, failed = select_finalists(search, plan, candidates, combine)
    if screen_only:
        verdict = f"No verdict: only screened. Best so far: {', '.join(ranked[:3]) or 'nothing'}."
        return {**_empty(search), "verdict": verdict, "complete": True}, rungs, failed
    costs = measured_costs(search, plan, rungs, plan.epochs * per_epoch)
    kept = _kept(search)
    finalists = costs.affordable(plan, ranked or candidates[:1], search.left(), asked=asked)
    finalists = kept.get("tuned", finalists)
    tunable = bool(plan.trials) and costs.tunable(plan, finalists, search.left())
    plan = replace(plan, trials=kept.get("trials", plan.trials * tunable))
    search.stop_choosing = search.stop - 1.1 * costs.confirmation(plan, finalists) / max(1, search.workers)
    settings, tried, more = tune(search, plan, finalists)
    rungs += [tried] if tried else []
    document["warnings"] += _advice(search, plan, settings[BASELINE])
    found, unfinished = _confirmed(search, plan, costs, finalists, settings, asked, document)
    return found, rungs, [*failed, *more, *unfinished]


def _confirmed(
    search: Search,
    plan: Plan,
    costs: Costs,
    finalists: list[str],
    settings: Mapping[str, Setting],
    asked: int | None,
    document: dict[str, Any],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The findings of the confirmation, and its failed runs; its arms are named by what is trained."""
    arms = {BASELINE: Candidate(BASELINE)}
    rates = {name: settings[name].rate for name in finalists}
    if settings[BASELINE] != Setting():
        arms[TUNED] = settings[BASELINE].candidate(BASELINE)
        rates[BASELINE] = settings[BASELINE].rate
    kept = _kept(search)
    if not kept:
        chosen, seeds = costs.confirmable(plan, finalists, rates, search.left(), asked=asked)
        kept = {"tuned": finalists, "trials": plan.trials, "finalists": chosen, "seeds": seeds}
        _keep(search, kept)
    of = {TUNED: BASELINE}
    for name in kept["finalists"]:
        candidate = settings[name].candidate(name)
        if candidate.method not in arms:  # else another finalist has become the same
            arms[candidate.method], of[candidate.method] = candidate, name
    finalists = [name for name in arms if name not in (BASELINE, TUNED)]
    plan = replace(plan, finalists=len(finalists), seeds=kept["seeds"])
    document["plan"] = asdict(plan)
    changed = {name: each for name, each in arms.items() if name in of and settings[of[name]] != Setting()}
    document["settings"] = {name: {"of": of[name], **asdict(each)} for name, each in changed.items()}
    document["rates"] = {BASELINE if name == TUNED else name: each.rate for name, each in changed.items()}
    search.say(f"Confirming {', '.join(finalists)} on {plan.seeds} fresh seeds and the test sets")
    confirmed = search.confirm(arms, plan.epochs, plan.seeds)
    if asked is None and confirmed.pending:  # the clock ends it, whatever the results are
        done = min(len(confirmed.metric(arm, "validation")) for arm in arms)
        if done >= FEWEST_SEEDS:
            _keep(search, {**kept, "seeds": done})
            plan = replace(plan, seeds=done)
            document["plan"] = asdict(plan)
            confirmed = search.confirm(arms, plan.epochs, done)
    tests, metric = list(search.problem.splits.test), search.problem.metric
    found = compare(
        confirmed,
        finalists,
        tests,
        maximise=search.problem.maximise,
        metric=metric,
        seeds=plan.seeds,
        ranked=leaves_out(search.problem, search.aim),  # a confirmation leaves no domain out
    )
    for row in found["finalists"]:
        row["rate"] = settings[of[row["method"]]].rate
        row["groups"] = gains_by_group(
            confirmed,
            row["method"],
            BASELINE,
            search.groups,
            maximise=search.problem.maximise,
            finalists=len(finalists),
        )
    document["warnings"] += at_chance(search.problem, found["baseline"]["tests"])
    verdict, winner = sentence(found, tests, search.aim, metric)
    complete = not confirmed.pending and not found["unfinished"]
    document["curves"] = curve_values(confirmed.runs)
    return {**found, "verdict": verdict, "winner": winner, "complete": complete}, list(confirmed.failed)


def _kept(search: Search) -> dict[str, Any]:
    """What was decided before a confirmation that has begun: to resume a search changes nothing of it."""
    return json.loads((search.folder / "plan.json").read_text()).get("confirmation", {})


def _keep(search: Search, decided: Mapping[str, Any]) -> None:
    file = search.folder / "plan.json"
    write_atomically(file, json.dumps({**json.loads(file.read_text()), "confirmation": decided}, indent=1))


def _advice(search: Search, plan: Plan, setting: Setting) -> list[str]:
    """What the baseline's own trainings say about the recipe: better settings, and whether it trains long enough."""
    said = []
    if setting != Setting():
        better = described(setting, search.problem)
        said.append(f"the baseline does better with {better}: gains are told against both")
    elif not plan.trials:
        said.append("the budget did not allow a search for the recipe's settings")
    if gained := still_improving(search, plan):
        said.insert(0, gained)
    return said


def at_chance(problem: Problem, scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a warning where the baseline's accuracy on the given test data is that of the most frequent class."""
    name, dataset = next(iter(problem.splits.test.items()))
    score = scores[name]["score"]
    if problem.metric != "accuracy" or score is None:
        return []
    targets = all_targets(as_dataset(dataset))
    if targets.ndim != 1:
        return []
    share = float(targets.unique(return_counts=True)[1].max()) / len(targets)
    if score > share + 2 * math.sqrt(share * (1 - share) / len(targets)):
        return []
    return [
        f"the baseline answers no better on {name} than the most frequent class alone ({100 * share:.1f} %): it has "
        "hardly learned, and a gain over it may be a better start, not better generalization"
    ]


def _empty(search: Search) -> dict[str, Any]:
    tests = {name: {"score": None} for name in search.problem.splits.test}
    baseline = {"method": BASELINE, "validation": None, "tests": tests, "seeds": 0}
    return {"baseline": baseline, "tuned": None, "finalists": [], "unfinished": [], "winner": None}


def _nothing(
    search: Search, budget: float, per_epoch: float, spent: float
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    epochs = search.problem.epochs
    least = spent + least_seconds(epochs, per_epoch, search.workers)
    verdict = (
        f"No verdict: {epochs} epochs take about {epochs * per_epoch:.0f} s a run, and a verdict needs the baseline "
        f"and a method on {FEWEST_SEEDS} fresh seeds, at least {math.ceil(least)} s with the {spent:.0f} s that "
        f"loading and timing took; the budget is {budget:.0f} s. Nothing was tried. Give "
        f"--budget {math.ceil(least / 60 + 0.5)}m or more, or --screen-only for a ranking without proof."
    )
    return {**_empty(search), "verdict": verdict, "complete": False}, [], []


def _candidates(
    problem: Problem, methods: Sequence[str] | None, exclude: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    known = [*problem.own_methods, *available()]
    if unknown := [name for name in exclude if name not in known]:
        raise ProblemError(f"cannot exclude {unknown[0]!r}: the methods are {', '.join(known)}")
    candidates, skipped = [], {}
    tried = [*problem.own_methods, *(name for name in available() if name not in on_request())]
    for expression in methods if methods is not None else dict.fromkeys(tried):
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
    search: Search,
    folder: Path,
    candidates: list[str],
    combine: int,
    seeds: int | None,
    budget: float,
    screen_only: bool,
) -> tuple[Plan | None, float]:
    """The plan, or None where the budget buys no verdict, and the seconds of an epoch of plain training."""
    asked = {"candidates": candidates, "combine": combine, "seeds": seeds, "budget": budget, "aim": search.aim}
    asked |= {"data": search.fingerprint, "screen_only": screen_only, "workers": search.workers}
    asked |= {"options": search.problem.asked} if search.problem.asked else {}
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
    runs = probe.runs
    if search.problem.own_train is not None:  # nothing tells its epochs apart, and a first run also loads libraries
        runs = search.screen([BASELINE], half, 2).runs or runs
    per_epoch = min(
        max(run["metrics"]["seconds per epoch"] + run["metrics"]["inference seconds"] / epochs, 1e-4) for run in runs
    )
    pairs = min(len(candidates), COMBINED)
    combinations = sum(math.comb(pairs, size) for size in range(2, combine + 1))
    affordable = SHARE * (search.stop - time.monotonic()) * max(1, search.workers) / per_epoch
    after = len(search.after)
    plan = make_plan(epochs, seeds or SEEDS, len(candidates), combinations, affordable, after=after)
    if screen_only:
        plan = Plan(len(candidates), half, 2, epochs, 2, 0, epochs, seeds or SEEDS, 1, after)
    if plan is not None:
        search.say(plan.text(per_epoch, combinations if plan.long_epochs else 0, max(1, search.workers)))
    kept = {"asked": asked, "plan": asdict(plan) if plan else None, "seconds per epoch": per_epoch}
    write_atomically(file, json.dumps(kept, indent=1))
    return plan, per_epoch


def _write(search: Search, document: dict[str, Any], folder: Path) -> None:
    """Writes the winner, then the report as JSON and HTML; each appears when it is complete.

    A report that ends in a verdict is not overwritten by one that does not: that one is named ``unfinished``.
    """
    if document["winner"]:
        search.say(f"Writing {document['winner']} whole")
        write_winner(document, search.problem, folder)
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
