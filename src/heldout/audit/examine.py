"""audit: one report on a user's own model: how well it generalizes, and what seems to stand in its way."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from heldout.audit.graphs import OF_GRAPHS
from heldout.audit.judging import LADDER, ranked
from heldout.audit.parts import PARTS
from heldout.audit.report import to_html
from heldout.audit.work import Audit, NotApplicableError, metric_of
from heldout.errors import checked
from heldout.method import Method, Run, device_of
from heldout.problem import EXAMPLES, GraphProblem, Problem, ProblemError, check_problem, load_problem
from heldout.report import LogEvent, OnEvent, ignore, telling
from heldout.saved import Loaded, load
from heldout.study import environment, write_atomically
from heldout.weights import load_checkpoint

Say = Callable[[str], None]


@checked
def audit(
    file: str | Path,
    *,
    weights: str | Path | None = None,
    budget: float = 180.0,
    seed: int = 0,
    out: str | Path | None = None,
    device: str | None = None,
    autocast: str | None = None,
    compile: bool | None = None,
    num_workers: int | None = None,
    say: Say = lambda text: None,
    on_event: OnEvent = ignore,
) -> dict[str, Any]:
    """Returns the report on the model of a user's file as one JSON document, and writes it as HTML beside.

    Findings come worst first. Each is "serious", "notable", "open" (its interval does not tell), "fine", or "for
    information" where nothing tells good from bad; the limits stand beside it. Methods are named only where something
    is wrong, and only those that ``improve`` would try on this file. "complete" is False where a part was not done.

    Args:
        file: what ``improve`` takes: a file that defines ``model()`` and ``data()``, or a built-in example.
        weights: a safetensors file of the trained model, or a folder that ``heldout.save`` or ``improve`` wrote, of
            which the whole predictor is audited; without it the model is trained by the file's own recipe.
        budget: seconds; parts for which no time is left are listed under "skipped".
        seed: of training and of the examples that are looked at.
        out: folder of the report; default ``heldout-runs/audit-NAME``.
        device: where to train and measure, or "auto"; default: what the file says.
        autocast: "bfloat16", "float16", or "float32" for none; default: what the file says.
        compile: whether the model is compiled; default: what the file says.
        num_workers: processes that load the data in training; default: what the file says.
        say: told what is being done.
        on_event: called with a ``heldout.report.LogEvent`` for every phase, epoch and finding, and at the end.

    Raises:
        ProblemError: the file or the weights cannot be used.

    Example:
        >>> report = audit("digits", budget=60.0)  # doctest: +SKIP
        >>> [finding["name"] for finding in report["findings"] if finding["severity"] == "serious"]  # doctest: +SKIP
        >>> audit("nowhere.py")
        Traceback (most recent call last):
        heldout.errors.ProblemError: no file 'nowhere.py' (the built-in examples are ...)
    """
    started = time.monotonic()
    problem = load_problem(file, device=device, autocast=autocast, compile=compile, num_workers=num_workers)
    warnings = [*problem.overridden, *check_problem(problem)]
    if not problem.splits.test:
        raise ProblemError(f"{problem.path}: audit needs at least one test set in Splits(test=...)")
    document: dict[str, Any] = {
        "title": problem.path.stem,
        "file": str(problem.path),
        "asked": str(file) if str(file) in EXAMPLES else str(problem.path),
        "metric": {"name": problem.metric, "higher_is_better": problem.maximise},
        "weights": None if weights is None else str(weights),
        "task": problem.task,
        "warnings": warnings,
        "findings": [],
        "skipped": [],
        "not_applicable": [],
        "suspects": [],
        "environment": environment(),
    }
    say = telling(say, on_event)
    say("training the model" if weights is None else "loading the weights")
    predictor = None
    document["curve"] = []
    if weights is None:
        module, document["curve"] = _trained(problem, seed, on_event)
    elif Path(weights).is_dir():
        predictor = _predictor(problem, weights)
        module = predictor.module
        if predictor.note:
            document["warnings"].append(f"{predictor.recipe.get('method', 'the predictor')}: {predictor.note}")
    else:
        module = _loaded(problem, weights)
    document["parameters"] = sum(p.numel() for p in module.parameters())
    document["train_examples"] = len(problem.splits.train)  # type: ignore[arg-type]
    work = Audit(problem, module, seed, started + budget, document, on_event, predictor)
    classifies = problem.task == "classification"
    for title, part, needs_classes in PARTS:
        if part in OF_GRAPHS and not isinstance(problem, GraphProblem):
            continue
        if needs_classes and not classifies:
            reason = f"it needs classes, this is {problem.kind.name}"
            document["not_applicable"].append({"part": title, "reason": reason})
            continue
        if time.monotonic() > work.deadline:
            document["skipped"].append({"part": title, "reason": "the budget was used up before"})
            continue
        say(title)
        try:
            part(work)
        except NotApplicableError as error:
            document["not_applicable"].append({"part": title, "reason": str(error)})
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            document["skipped"].append({"part": title, "reason": reason})
    document["findings"] = ranked(document["findings"])
    document["summary"] = _summary(document["findings"])
    document["complete"] = not document["skipped"]
    on_event(LogEvent("verdict", document["title"], text=document["summary"]))
    document["seconds"] = time.monotonic() - started
    folder = Path(out) if out is not None else Path("heldout-runs") / f"audit-{problem.path.stem}"
    _write(document, folder)
    return document


def _summary(findings: list[dict[str, Any]]) -> str:
    """What was found in one line: how many findings of each severity, and the worst of them."""
    counts = {word: sum(entry["severity"] == word for entry in findings) for word in LADDER}
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    worst = findings[0] if findings and findings[0]["severity"] in LADDER[:2] else None
    return (told or "nothing was measured") + (f"; first: {worst['name']}" if worst else "") + "."


def _trained(problem: Problem, seed: int, on_event: OnEvent) -> tuple[nn.Module, list[dict[str, float]]]:
    """The model after the user's own recipe, and its loss and error on training and validation data by epoch."""
    curve: list[dict[str, float]] = []
    modules: list[nn.Module] = []

    def watch(run: Run, module: nn.Module) -> nn.Module:
        modules.append(module)
        return module

    def measure(entry: dict[str, float]) -> None:
        pairs = [problem.outputs(modules[0], dataset) for dataset in problem.validation_sets().values()]
        found = [{"loss": problem.kind.loss(*pair), "score": metric_of(problem, *pair)} for pair in pairs]
        mean = {f"val_{name}": sum(each[name] for each in found) / len(found) for name in found[0]}
        curve.append({**entry, **mean})
        values = {name: value for name, value in curve[-1].items() if name not in ("epoch", "seconds")}
        on_event(LogEvent("curve", "training", step=int(entry["epoch"]), values=values))

    method = Method("baseline", model=watch)
    fitted = problem.fit(method, seed=seed, on_epoch=measure)
    if not curve:  # a loop of the file's own that does not tell of its epochs
        modules[:1] = [fitted.module]
        measure({"epoch": float(problem.epochs), "seconds": fitted.seconds})
    return fitted.module, curve


def _predictor(problem: Problem, folder: str | Path) -> Loaded:
    try:
        return load(folder, problem)
    except (ValueError, TypeError) as error:
        raise ProblemError(f"cannot read the weights {folder}: {error}") from error


def _loaded(problem: Problem, weights: str | Path) -> nn.Module:
    try:
        state = load_checkpoint(weights)
    except (OSError, ValueError) as error:
        raise ProblemError(f"cannot read the weights {weights}: {error}") from error
    module = problem.model(0)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ProblemError(
            f"the weights {weights} do not fit the model: {str(error).splitlines()[-1].strip()}"
        ) from error
    return module.to(problem.recipe_device or device_of(module)).eval()


def _write(document: dict[str, Any], folder: Path) -> None:
    document["report"] = str(folder / "report.html")
    for name, text in (("report.html", to_html(document)), ("audit.json", json.dumps(document, indent=1))):
        write_atomically(folder / name, text)
