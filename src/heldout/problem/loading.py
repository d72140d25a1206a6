"""A user's FILE: the model and the data that ``improve`` (and ``audit``) work on, loaded and checked.

The file defines ``model() -> nn.Module`` and ``data() -> heldout.Splits``, and may define the names below.
Splits of arrays, frames and Hugging Face data sets are taken, too (see ``heldout.problem.as_examples``).

* ``optimizer``: a torch Optimizer class or partial, or ``(module) -> Optimizer``
* ``epochs`` (default 10), ``batch_size`` (default 64), ``schedule``, ``loss``, ``augment``, ``max_grad_norm``
* ``device`` (a torch device, or "auto": the accelerator where there is one), ``autocast`` (a torch data type),
  ``num_workers``
* ``kind``: "classification", "binary", "multi-label", "regression", "tokens" or "language", where the data do not tell
* ``metric``: a name of the kind's (``heldout.problem.metrics``; "accuracy", "auroc", "mae" ...), "loss", or
  ``(outputs, targets) -> float`` with ``metric_goal = "max"`` or ``"min"``
* ``pretrained_state() -> state dict`` that training starts from
* ``methods``: further Methods to try, by name

Where the data are texts, the problem is a causal language model; see ``heldout.problem.language`` for its names. Data
may be graphs of PyTorch Geometric, too; see ``heldout.problem.graphs``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from heldout.errors import ProblemError
from heldout.method import Splits
from heldout.problem.graphs import GraphProblem, graph_splits, holds_graphs
from heldout.problem.inputs import as_examples
from heldout.problem.language import is_language, load_language
from heldout.problem.problem import Problem
from heldout.study import StudyError, load_file

EXAMPLES = ("digits", "fashion", "smollm")
RECIPE = ("optimizer", "epochs", "batch_size", "schedule", "loss", "augment", "max_grad_norm")
PLACE = ("device", "autocast", "num_workers")


def load_problem(path: str | Path, *, device: str | None = None) -> Problem:
    """Returns the problem that a file defines; "digits", "fashion" and "smollm" are the built-in examples.

    Args:
        path: the file.
        device: where to train, in place of what the file says; "auto" is the accelerator where there is one.

    Raises:
        ProblemError: the file is missing, fails, or lacks ``model`` or ``data``; there is no such device.
    """
    file = example_path(str(path)) if str(path) in EXAMPLES else Path(path)
    if not file.is_file():
        raise ProblemError(f"no file {str(path)!r} (the built-in examples are {', '.join(EXAMPLES)})")
    try:
        names = vars(load_file(file))
    except StudyError as error:
        raise ProblemError(str(error)) from error
    for name, form in (("model", "model() -> nn.Module"), ("data", "data() -> heldout.Splits")):
        if not callable(names.get(name)):
            raise ProblemError(f"{file} must define {form}")
    splits = _call(names["data"], file, "data", Splits)
    if is_language(names, splits.train):
        recipe = {key: names[key] for key in (*RECIPE, *PLACE) if key in names}
        problem: Problem = load_language(file, names, _with_start(splits, names, file), recipe, device)
        _check_device(problem, device, names)
        return problem
    graphs: list[Any] | None = None
    try:
        if holds_graphs(splits.train):
            splits, graphs = graph_splits(splits)
        else:
            splits = _with_examples(splits)
    except (ValueError, TypeError) as error:
        raise ProblemError(f"{file}: {error}") from error
    splits = _with_start(splits, names, file)
    metric, goal = names.get("metric"), names.get("metric_goal", "max")
    if goal not in ("max", "min"):
        raise ProblemError(f'{file}: metric_goal must be "max" or "min", got {goal!r}')
    own: Any = Problem if graphs is None else partial(GraphProblem, graphs=graphs)
    problem = own(
        path=file,
        make_model=lambda: _call(names["model"], file, "model", nn.Module),
        given=splits,
        given_recipe={key: names[key] for key in (*RECIPE, *PLACE) if key in names},
        asked_kind=names.get("kind"),
        asked_device=device,
        own_methods=dict(names.get("methods", {})),
    )
    _check_device(problem, device, names)
    if callable(metric):
        problem.measure, problem.asked_metric, problem.asked_maximise = metric, metric.__name__, goal == "max"
    elif metric is not None and not isinstance(metric, str):
        raise ProblemError(f"{file}: metric must be a name or a function, got {metric!r}")
    else:
        problem.asked_metric = metric or None
    return problem


def example_path(name: str) -> Path:
    """Returns the file of a built-in example."""
    return Path(__file__).parents[1] / "examples" / f"{name}.py"


def _with_start(splits: Splits, names: Mapping[str, Any], file: Path) -> Splits:
    if not callable(names.get("pretrained_state")):
        return splits
    state = _call(names["pretrained_state"], file, "pretrained_state", Mapping)
    return Splits(**{**splits.__dict__, "initial_state": state})


def _check_device(problem: Problem, device: str | None, names: Mapping[str, Any]) -> None:
    try:
        torch.empty(0, device=problem.recipe_device)
    except (RuntimeError, AssertionError, TypeError) as error:
        asked = device if device is not None else names.get("device")
        raise ProblemError(f"{problem.path}: no device {asked!r} here: {str(error).splitlines()[0]}") from error


def _with_examples(splits: Splits) -> Splits:
    val: Any = splits.val
    if isinstance(val, Mapping):
        val = {name: as_examples(each, f"val[{name!r}]") for name, each in val.items()}
    elif val is not None:
        val = as_examples(val, "val")
    test = {name: as_examples(each, f"test[{name!r}]") for name, each in splits.test.items()}
    return replace(splits, train=as_examples(splits.train, "train"), val=val, test=test)


def _call(function: Callable[[], Any], file: Path, name: str, kind: Any) -> Any:
    try:
        value = function()
    except Exception as error:
        raise ProblemError(f"{file}: {name}() fails: {type(error).__name__}: {error}") from error
    if not isinstance(value, kind):
        raise ProblemError(f"{file}: {name}() must return a {kind.__name__}, got {type(value).__name__}")
    return value
