"""A user's FILE: the model and the data that ``improve`` (and ``audit``) work on, loaded and checked.

The file defines ``model() -> nn.Module`` and ``data() -> heldout.Splits``, and may define the names below.
``data()`` may also return a dict of the fields of Splits. Its sets may be arrays, frames, Hugging Face data sets,
DataLoaders or streams (see ``heldout.problem.as_examples``).

* ``optimizer``: a torch Optimizer class or partial, or ``(module) -> Optimizer``
* ``epochs`` (default 10), ``batch_size`` (default 64), ``schedule``, ``loss``, ``augment``, ``max_grad_norm``
* ``device`` (a torch device, or "auto": the accelerator where there is one), ``autocast`` (a torch data type),
  ``num_workers``
* ``sampler(train) -> Sampler`` that each epoch follows; ``early_stopping``, epochs of patience on the validation loss;
  ``compile``, True or the options of ``torch.nn.Module.compile``; ``epoch_length``, how many examples of a stream make
  an epoch
* ``train(model, splits, stages, seed) -> model``: a loop of your own in place of ``heldout.fit`` (see
  ``heldout.train.Stages``)
* ``kind``: "classification", "binary", "multi-label", "regression", "tokens" or "language", where the data do not tell
* ``metric``: a name of the kind's (``heldout.problem.metrics``; "accuracy", "auroc", "mae" ...), "loss", or
  ``(outputs, targets) -> float`` with ``metric_goal = "max"`` or ``"min"``
* ``pretrained_state() -> state dict`` that training starts from
* ``factors``: ``{"train": {"shape": [...], "colour": [...]}, "<test set>": {...}}``, what each example is made of, or a
  function that returns it: ``audit`` tells how the model does on combinations that it was not trained on, ``improve``
  what is gained on the examples of a test set that have one value of a factor
* ``methods``: further Methods to try, by name

A ``loss`` that is the plain one of its kind (``heldout.problem.Kind.is_plain``) is as good as none: every Method may
replace it. With one of the file's own, Methods that would put another in its place are left out, and say why.

Where the data are texts, the problem is a causal language model; see ``heldout.problem.language`` for its names. Data
may be graphs of PyTorch Geometric, too; see ``heldout.problem.graphs``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from heldout.errors import ProblemError, checked
from heldout.method import Splits
from heldout.problem.graphs import GraphProblem, graph_fields, holds_graphs
from heldout.problem.inputs import as_examples, sampler_of
from heldout.problem.language import is_language, load_language
from heldout.problem.problem import Problem
from heldout.study import StudyError, load_file
from heldout.train import TaskStream

EXAMPLES = ("digits", "fashion", "graphs", "smollm", "stream")
RECIPE = ("optimizer", "epochs", "batch_size", "schedule", "loss", "augment", "max_grad_norm")
PLACE = ("device", "autocast", "num_workers")
PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": None}


@checked
def load_problem(
    path: str | Path,
    *,
    device: str | None = None,
    autocast: str | None = None,
    compile: bool | None = None,
    num_workers: int | None = None,
) -> Problem:
    """Returns the problem that a file defines; "digits", "fashion", "graphs", "smollm" and "stream" are built in.

    Args:
        path: the file.
        device: where to train, in place of what the file says; "auto" is the accelerator where there is one.
        autocast: "bfloat16" or "float16" for forward passes in training, or "float32" for none, in place of the file's.
        compile: whether the model is compiled, in place of what the file says; options that it gives stay.
        num_workers: processes that load data, in place of the file's.

    Raises:
        ProblemError: the file is missing, fails, or lacks ``model`` or ``data``; there is no such device; an option is
            out of range, or has no effect on the file's own ``train``.

    Example:
        >>> import tempfile
        >>> text = '''
        ... import torch
        ... epochs = 5
        ... def model():
        ...     return torch.nn.Linear(2, 1)
        ... def data():
        ...     x = torch.randn(8, 2)
        ...     return {"train": (x, x[:, :1]), "val": (x, x[:, :1]), "test": {"iid": (x, x[:, :1])}}
        ... '''
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "linear_problem.py").write_text(text)
        ...     problem = load_problem(f"{folder}/linear_problem.py")
        >>> problem.kind.name, problem.epochs, problem.metric, problem.maximise
        ('regression', 5, 'mse', False)
    """
    asked: dict[str, Any] = {"autocast": autocast, "compile": compile, "num_workers": num_workers}
    asked = {name: value for name, value in asked.items() if value is not None}
    if autocast not in (None, *PRECISIONS):
        raise ProblemError(f"autocast must be {', '.join(PRECISIONS)}, got {autocast!r}")
    if num_workers is not None and num_workers < 0:
        raise ProblemError(f"num_workers must be at least 0, got {num_workers}")
    file = example_path(str(path)) if str(path) in EXAMPLES else Path(path)
    if not file.is_file():
        raise ProblemError(f"no file {str(path)!r} (the built-in examples are {', '.join(EXAMPLES)})")
    try:
        names = vars(load_file(file))
    except StudyError as error:
        raise ProblemError(str(error)) from error
    overridden = _overridden(names, asked)
    names = _with_asked(names, asked, file)
    problem = _load(file, names, device)
    problem.asked_options, problem.overridden = asked, overridden
    return problem


def _load(file: Path, names: Mapping[str, Any], device: str | None) -> Problem:
    """The problem that the names of a file define."""
    for name, form in (("model", "model() -> nn.Module"), ("data", "data() -> heldout.Splits")):
        if not callable(names.get(name)):
            raise ProblemError(f"{file} must define {form}")
    given = _call(names["data"], file, "data", (Splits, Mapping))
    fields = dict(given) if isinstance(given, Mapping) else dict(vars(given))
    graphs: list[Any] | None = None
    unlabeled: dict[str, Any] = {}
    sampler = None
    try:
        if is_language(names, fields.get("train")):
            return _language(file, names, Splits(**fields), device)
        if holds_graphs(fields.get("train")):
            splits, graphs, unlabeled = graph_fields(fields)
        else:
            sampler = sampler_of(fields.get("train"))
            splits = _with_examples(fields, _epoch_length(names))
    except (ValueError, TypeError) as error:
        raise ProblemError(f"{file}: {error}") from error
    splits = _with_start(splits, names, file)
    metric, goal = names.get("metric"), names.get("metric_goal", "max")
    if goal not in ("max", "min"):
        raise ProblemError(f'{file}: metric_goal must be "max" or "min", got {goal!r}')
    own: Any = Problem if graphs is None else partial(GraphProblem, graphs=graphs, unlabeled=unlabeled)
    problem = own(
        path=file,
        make_model=lambda: _call(names["model"], file, "model", nn.Module),
        given=splits,
        given_recipe=_recipe(names, fields["train"]),
        asked_kind=names.get("kind"),
        asked_device=device,
        own_methods=dict(names.get("methods", {})),
        converted=isinstance(given, Mapping) or graphs is not None or not _for_fit(fields["train"]),
        **_training(names, file, sampler),
    )
    _check_device(problem, device, names)
    if problem.in_tasks and (problem.own_train or problem.sampler or problem.patience):
        own_order = "train()" if problem.own_train else "sampler" if problem.sampler else "early_stopping"
        raise ProblemError(f"{file}: a TaskStream comes task after task, which {own_order} would change: leave it out")
    if callable(metric):
        problem.measure, problem.asked_metric, problem.asked_maximise = metric, metric.__name__, goal == "max"
    elif metric is not None and not isinstance(metric, str):
        raise ProblemError(f"{file}: metric must be a name or a function, got {metric!r}")
    else:
        problem.asked_metric = metric or None
    return problem


def _with_asked(names: Mapping[str, Any], asked: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The names of a file, those of options as they were asked for."""
    changed = dict(names)
    for name, value in asked.items():
        if name != "compile" and callable(names.get("train")):
            raise ProblemError(f"{file}: train() takes the place of heldout.fit: it has to do {name} itself")
        if name == "autocast":
            value = PRECISIONS[value]
        elif name == "compile" and value and names.get("compile"):
            continue
        changed[name] = value
    return changed


def _overridden(names: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What a file says of the options that were asked for, where it says something else."""
    said = []
    for name, value in asked.items():
        given = names.get(name)
        meant = PRECISIONS[value] if name == "autocast" else value
        if given is not None and (bool(given) if name == "compile" else given) != meant:
            told = str(given).removeprefix("torch.")
            said.append(f"{name} is {value}, as asked for, in place of the file's {told}")
    return said


@checked
def example_path(name: str) -> Path:
    """Returns the file of a built-in example, one of ``EXAMPLES``.

    Example:
        >>> example_path("digits").name, example_path("digits").is_file()
        ('digits.py', True)
    """
    return Path(__file__).parents[1] / "examples" / f"{name}.py"


def _for_fit(train: Any) -> bool:
    """Whether ``heldout.fit`` takes a training set as the file gives it."""
    if isinstance(train, tuple | list) and len(train):  # a pair of tensors, or a list of examples
        return isinstance(train[0], Tensor | tuple | list | Mapping)
    return isinstance(train, Dataset) and not isinstance(train, IterableDataset)


def _with_start(splits: Splits, names: Mapping[str, Any], file: Path) -> Splits:
    if not callable(names.get("pretrained_state")):
        return splits
    state = _call(names["pretrained_state"], file, "pretrained_state", Mapping)
    return type(splits)(**{**splits.__dict__, "initial_state": state})


def _check_device(problem: Problem, device: str | None, names: Mapping[str, Any]) -> None:
    try:
        torch.empty(0, device=problem.recipe_device)
    except (RuntimeError, AssertionError, TypeError) as error:
        asked = device if device is not None else names.get("device")
        raise ProblemError(f"{problem.path}: no device {asked!r} here: {str(error).splitlines()[0]}") from error


def _language(file: Path, names: Mapping[str, Any], splits: Splits, device: str | None) -> Problem:
    problem = load_language(
        file,
        names,
        _with_start(splits, names, file),
        _recipe(names, splits.train),
        asked_device=device,
        **_training(names, file),
    )
    _check_device(problem, device, names)
    return problem


def _recipe(names: Mapping[str, Any], train: Any) -> dict[str, Any]:
    recipe = {key: names[key] for key in (*RECIPE, *PLACE) if key in names}
    if isinstance(train, DataLoader) and train.batch_size is not None:
        recipe.setdefault("batch_size", train.batch_size)
    return recipe


def _always(sampler: Sampler | None) -> Callable[[Any], Any] | None:
    return None if sampler is None else lambda train: sampler


def _epoch_length(names: Mapping[str, Any]) -> int | None:
    length = names.get("epoch_length")
    if length is not None and (not isinstance(length, int) or length < 1):
        raise ValueError(f"epoch_length must be a positive integer, got {length!r}")
    return length


def _function(names: Mapping[str, Any], file: Path, name: str, form: str) -> Callable[..., Any] | None:
    value = names.get(name)
    if value is not None and not callable(value):
        raise ProblemError(f"{file}: {name} must be a function, {form}, got {type(value).__name__}")
    if value is not None:
        arguments = form[: form.index(")")].split(", ")
        try:
            inspect.signature(value).bind(*arguments)
        except TypeError as error:
            raise ProblemError(f"{file}: {name} must be a function {form}: {error}") from None
    return value


def _training(names: Mapping[str, Any], file: Path, sampler: Sampler | None = None) -> dict[str, Any]:
    """How the file says that its model is trained, as fields of ``Problem``; ``sampler`` is a DataLoader's."""
    patience, compiled = names.get("early_stopping"), names.get("compile", False)
    if patience is not None and (not isinstance(patience, int) or patience < 1):
        raise ProblemError(f"{file}: early_stopping must be a number of epochs, at least 1, got {patience!r}")
    if not isinstance(compiled, bool | Mapping):
        raise ProblemError(f"{file}: compile must be True or a dict of options, got {compiled!r}")
    train = _function(names, file, "train", "train(model, splits, stages, seed) -> model")
    own_sampler = _function(names, file, "sampler", "sampler(train) -> Sampler") or _always(sampler)
    if train is not None:
        also: list[str] = [key for key in ("optimizer", "schedule", "augment", "max_grad_norm") if key in names]
        also += [key for key, value in (("sampler", own_sampler), ("early_stopping", patience)) if value]
        if also:
            raise ProblemError(f"{file}: train() takes the place of heldout.fit: it has to do {also[0]} itself")
    factors = names.get("factors", {})
    factors = _call(factors, file, "factors", Mapping) if callable(factors) else factors
    if not isinstance(factors, Mapping):
        raise ProblemError(f'{file}: factors must be {{"train": columns, "<test set>": columns}}, got {factors!r}')
    return {
        "own_train": train, "sampler": own_sampler, "patience": patience, "compiled": compiled, "factors": factors,
    }  # fmt: skip


def _with_examples(fields: Mapping[str, Any], length: int | None) -> Splits:
    kind = TaskStream if fields.get("tasks") is not None else Splits
    if unknown := set(fields) - set(TaskStream.__dataclass_fields__):
        raise ValueError(f"data() returns a dict with {sorted(unknown)[0]!r}, which is no field of heldout.Splits")
    if "train" not in fields:
        raise ValueError('data() returns a dict without "train"')
    val, test = fields.get("val"), fields.get("test")
    if isinstance(val, Mapping):
        val = {name: as_examples(each, f"val[{name!r}]", epoch_length=length) for name, each in val.items()}
    elif val is not None:
        val = as_examples(val, "val", epoch_length=length)
    if isinstance(test, Mapping):
        test = {name: as_examples(each, f"test[{name!r}]", epoch_length=length) for name, each in test.items()}
    train = as_examples(fields["train"], "train", epoch_length=length)
    known = {key: value for key, value in fields.items() if key in kind.__dataclass_fields__}
    return kind(**{**known, "train": train, "val": val, **({} if test is None else {"test": test})})


def _call(function: Callable[[], Any], file: Path, name: str, kind: Any) -> Any:
    try:
        value = function()
    except Exception as error:
        if "must have __len__ and __getitem__" in str(error):  # Splits holds nothing else
            raise ProblemError(
                f"{file}: {error}: return a dict in place of Splits, {{'train': ..., 'val': ...}}"
            ) from error
        raise ProblemError(f"{file}: {name}() fails: {type(error).__name__}: {error}") from error
    if not isinstance(value, kind):
        wanted = kind[0] if isinstance(kind, tuple) else kind
        raise ProblemError(f"{file}: {name}() must return a {wanted.__name__}, got {type(value).__name__}")
    return value
