"""audit: one report on a user's own model: how well it generalizes, and what seems to stand in its way."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from heldout.audit.parts import PARTS
from heldout.audit.report import to_html
from heldout.audit.work import Audit
from heldout.method import Method, Run
from heldout.problem import Problem, ProblemError, check_problem, load_problem
from heldout.study import environment, write_atomically
from heldout.train import fit, outputs_of, score
from heldout.weights import load_checkpoint

Say = Callable[[str], None]


def audit(
    file: str | Path,
    *,
    weights: str | Path | None = None,
    budget: float = 180.0,
    seed: int = 0,
    out: str | Path | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Returns the report on the model of a user's file as one JSON document, and writes it as HTML beside.

    Args:
        file: what ``improve`` takes: a file that defines ``model()`` and ``data()``, or a built-in example.
        weights: a safetensors file of the trained model; without it the model is trained by the file's own recipe.
        budget: seconds; parts for which no time is left are listed under "skipped".
        seed: of training and of the examples that are looked at.
        out: folder of the report; default ``heldout-runs/audit-NAME``.
        say: told what is being done.

    Raises:
        ProblemError: the file or the weights cannot be used.
    """
    started = time.monotonic()
    problem = load_problem(file)
    warnings = check_problem(problem)
    if not problem.splits.test:
        raise ProblemError(f"{problem.path}: audit needs at least one test set in Splits(test=...)")
    document: dict[str, Any] = {
        "title": problem.path.stem,
        "file": str(problem.path),
        "weights": None if weights is None else str(weights),
        "task": problem.task,
        "warnings": warnings,
        "findings": [],
        "skipped": [],
        "suspects": [],
        "environment": environment(),
    }
    say("training the model" if weights is None else "loading the weights")
    module, document["curve"] = _trained(problem, seed) if weights is None else (_loaded(problem, weights), [])
    document["parameters"] = sum(p.numel() for p in module.parameters())
    document["train_examples"] = len(problem.splits.train)  # type: ignore[arg-type]
    work = Audit(problem, module, seed, started + budget, document)
    classifies = problem.task == "classification"
    for title, part, needs_classes in PARTS:
        if needs_classes and not classifies:
            continue
        if time.monotonic() > work.deadline:
            document["skipped"].append({"part": title, "reason": "the budget was used up before"})
            continue
        say(title)
        try:
            part(work)
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            document["skipped"].append({"part": title, "reason": reason})
    document["seconds"] = time.monotonic() - started
    folder = Path(out) if out is not None else Path("heldout-runs") / f"audit-{problem.path.stem}"
    _write(document, folder)
    return document


def _trained(problem: Problem, seed: int) -> tuple[nn.Module, list[dict[str, float]]]:
    """The model after the user's own recipe, and its loss and error on training and validation data by epoch."""
    curve: list[dict[str, float]] = []
    modules: list[nn.Module] = []

    def watch(run: Run, module: nn.Module) -> nn.Module:
        modules.append(module)
        return module

    def measure(entry: dict[str, float]) -> None:
        found = [score(*outputs_of(modules[0], d), problem.task) for d in problem.validation_sets().values()]
        mean = {f"val_{name}": sum(each[name] for each in found) / len(found) for name in found[0]}
        curve.append({**entry, **mean})

    method = Method("baseline", model=watch)
    fitted = fit(problem.model(seed), problem.splits, method, seed=seed, on_epoch=measure, **problem.recipe)
    return fitted.module, curve


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
    return module.eval()


def _write(document: dict[str, Any], folder: Path) -> None:
    document["report"] = str(folder / "report.html")
    for name, text in (("report.html", to_html(document)), ("audit.json", json.dumps(document, indent=1))):
        write_atomically(folder / name, text)
