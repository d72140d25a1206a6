"""A user's FILE: the model and the data that ``improve`` (and ``audit``) work on, loaded and checked.

The file defines ``model() -> nn.Module`` and ``data() -> heldout.Splits``, and may define

* ``optimizer``: a torch Optimizer class or partial, or ``(module) -> Optimizer``
* ``epochs`` (default 10), ``batch_size`` (default 64), ``schedule``, ``loss``, ``augment``, ``max_grad_norm``
* ``metric``: "accuracy", "mse", or ``(outputs, targets) -> float``, with ``metric_goal = "max"`` or ``"min"``
* ``pretrained_state() -> state dict`` that training starts from
* ``methods``: further Methods to try, by name
"""

from __future__ import annotations

import hashlib
import warnings as python_warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from heldout.data import batches, predict_all
from heldout.method import Method, Splits, Task
from heldout.study import StudyError, load_file
from heldout.train import Fitted, fit, problem_of, scaled_optimizer, score, seeded

EXAMPLES = ("digits", "fashion")
RECIPE = ("optimizer", "epochs", "batch_size", "schedule", "loss", "augment", "max_grad_norm")
SCANNED_EXAMPLES = 20_000


class ProblemError(ValueError):
    """The user's file cannot be worked on; the message says what is wrong and where."""


@dataclass
class Problem:
    """The model and data of one file.

    Attributes:
        path: the file.
        make_model: builds an untrained (or pretrained) module.
        splits: the data.
        recipe: keyword arguments for ``heldout.fit``.
        metric: name of what is measured.
        maximise: whether more of it is better.
        own_methods: Methods that the file defines.
    """

    path: Path
    make_model: Callable[[], nn.Module]
    splits: Splits
    recipe: dict[str, Any]
    measure: Callable[[Tensor, Tensor], float] | None = None
    metric: str = "accuracy"
    maximise: bool = True
    own_methods: dict[str, Method] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """Epochs of the user's recipe."""
        return self.recipe.get("epochs", 10)

    @cached_property
    def task(self) -> Task:
        """Classification or regression, told by the targets."""
        return problem_of(self.model(0), self.splits.train)[0]

    def model(self, seed: int) -> nn.Module:
        """Returns a model initialised under ``seed``, with the pretrained state where there is one."""
        with seeded(seed):
            module = self.make_model()
        start = self.splits.initial_state
        if start is not None:
            try:
                unknown = module.load_state_dict(start, strict=False).unexpected_keys
            except RuntimeError as error:
                raise ProblemError(f"{self.path}: the pretrained state does not fit the model: {error}") from error
            if len(unknown) == len(start):
                raise ProblemError(f"{self.path}: no entry of the pretrained state belongs to the model")
        return module

    def fit(self, method: Method | None, *, seed: int, epochs: int | None = None, rate: float = 1.0) -> Fitted:
        """Trains the model under a Method with the user's recipe, its learning rate multiplied by ``rate``."""
        recipe = {**self.recipe, "epochs": epochs or self.epochs}
        if rate != 1.0:
            recipe["optimizer"] = scaled_optimizer(self.recipe.get("optimizer"), rate)
        return fit(self.model(seed), self.splits, method, seed=seed, **recipe)

    def score(self, fitted: Fitted, dataset: Any) -> float:
        """Returns the metric of a trained model on a data set."""
        outputs, targets = fitted.outputs(dataset)
        if self.measure is not None:
            return float(self.measure(outputs, targets))
        return score(outputs, targets, fitted.run.task)[self.metric]

    def validation_sets(self) -> dict[str, Dataset]:
        """Returns the validation sets by name."""
        return dict(self.splits.val) if isinstance(self.splits.val, Mapping) else {"val": self.splits.val}  # type: ignore[dict-item]

    def fingerprint(self) -> str:
        """Returns a digest of the data, so that results on other data are never taken for results on this one."""
        digest = hashlib.sha256()
        sets = {"train": self.splits.train, **self.validation_sets(), **self.splits.test}
        for name, dataset in sets.items():
            size = len(dataset)  # type: ignore[arg-type]
            probe = torch.linspace(0, size - 1, min(size, 64)).long()
            inputs, targets, _ = next(batches(dataset, len(probe), probe))
            digest.update(f"{name}:{size}".encode())
            for tensor in [*_tensors(inputs), torch.as_tensor(targets)]:
                digest.update(_bytes(tensor))
        return digest.hexdigest()[:16]


def load_problem(path: str | Path) -> Problem:
    """Returns the problem that a file defines; "digits" and "fashion" are the built-in examples.

    Raises:
        ProblemError: the file is missing, fails, or lacks ``model`` or ``data``.
    """
    file = example_path(str(path)) if str(path) in EXAMPLES else Path(path)
    if not file.is_file():
        raise ProblemError(f"no file {str(path)!r} (the built-in examples are {' and '.join(EXAMPLES)})")
    try:
        names = vars(load_file(file))
    except StudyError as error:
        raise ProblemError(str(error)) from error
    for name, form in (("model", "model() -> nn.Module"), ("data", "data() -> heldout.Splits")):
        if not callable(names.get(name)):
            raise ProblemError(f"{file} must define {form}")
    splits = _call(names["data"], file, "data", Splits)
    if callable(names.get("pretrained_state")):
        state = _call(names["pretrained_state"], file, "pretrained_state", Mapping)
        splits = Splits(**{**splits.__dict__, "initial_state": state})
    metric, goal = names.get("metric"), names.get("metric_goal", "max")
    if goal not in ("max", "min"):
        raise ProblemError(f'{file}: metric_goal must be "max" or "min", got {goal!r}')
    problem = Problem(
        path=file,
        make_model=lambda: _call(names["model"], file, "model", nn.Module),
        splits=splits,
        recipe={key: names[key] for key in RECIPE if key in names},
        own_methods=dict(names.get("methods", {})),
    )
    if callable(metric):
        problem.measure, problem.metric, problem.maximise = metric, metric.__name__, goal == "max"
    elif metric not in (None, "accuracy", "mse", "loss"):
        raise ProblemError(f'{file}: metric must be "accuracy", "mse", "loss" or a function, got {metric!r}')
    elif metric:
        problem.metric, problem.maximise = metric, metric == "accuracy"
    return problem


def example_path(name: str) -> Path:
    """Returns the file of a built-in example."""
    return Path(__file__).parents[1] / "examples" / f"{name}.py"


def _call(function: Callable[[], Any], file: Path, name: str, kind: Any) -> Any:
    try:
        value = function()
    except Exception as error:
        raise ProblemError(f"{file}: {name}() fails: {type(error).__name__}: {error}") from error
    if not isinstance(value, kind):
        raise ProblemError(f"{file}: {name}() must return a {kind.__name__}, got {type(value).__name__}")
    return value


def check_problem(problem: Problem) -> list[str]:
    """Returns warnings about a problem; everything that training would trip over is an error here.

    Checked before any training: every split is there and not empty, inputs and targets are finite, labels fit
    the model's outputs, there is more than one class, the splits have one shape, the model can be trained, and
    whether a test set shares rows with the training set (a warning).

    Raises:
        ProblemError: what is wrong and where.
    """
    splits = problem.splits
    if splits.val is None:
        raise ProblemError(f"{problem.path}: data() needs a val split: methods are selected on it")
    if not splits.test:
        raise ProblemError(f"{problem.path}: data() needs at least one test set: gains are reported on it")
    if not isinstance(problem.epochs, int) or problem.epochs < 1:
        raise ProblemError(f"{problem.path}: epochs must be a positive integer, got {problem.epochs!r}")
    sets = {"train": splits.train}
    sets |= {
        f"val[{n!r}]" if isinstance(splits.val, Mapping) else "val": d for n, d in problem.validation_sets().items()
    }
    sets |= {f"test[{name!r}]": dataset for name, dataset in splits.test.items()}
    shapes, targets, rows = {}, {}, {}
    for name, dataset in sets.items():
        if len(dataset) == 0:  # type: ignore[arg-type]
            raise ProblemError(f"{problem.path}: {name} is empty")
        shapes[name], targets[name], rows[name] = _scan(problem, name, dataset)
        if shapes[name] != shapes["train"]:
            raise ProblemError(
                f"{problem.path}: examples of {name} have inputs {shapes[name]}, those of train {shapes['train']}"
            )
        if targets[name].is_floating_point() != targets["train"].is_floating_point():
            raise ProblemError(f"{problem.path}: {name} and train have different kinds of targets")
    module = problem.model(0)
    try:
        task, classes = problem_of(module, splits.train)
    except (ValueError, TypeError) as error:
        raise ProblemError(f"{problem.path}: {error}") from error
    except Exception as error:
        raise ProblemError(f"{problem.path}: the model fails on the training data: {error}") from error
    if not any(p.requires_grad for p in module.parameters()):
        raise ProblemError(f"{problem.path}: the model has no parameter that requires a gradient")
    if task == "classification":
        _check_labels(problem, targets, classes or 0)
    settle_metric(problem)
    _check_metric(problem, module, sets["train"])
    return _shared_rows(rows)


def _scan(problem: Problem, name: str, dataset: Any) -> tuple[list[tuple[int, ...]], Tensor, set[bytes]]:
    shape: list[tuple[int, ...]] = []
    targets: list[Tensor] = []
    rows: set[bytes] = set()
    order = torch.arange(min(len(dataset), SCANNED_EXAMPLES))
    try:
        for inputs, target, positions in batches(dataset, 1024, order):
            tensors = _tensors(inputs)
            shape = [tuple(tensor.shape[1:]) for tensor in tensors]
            target = torch.as_tensor(target)
            for what, tensor in [*(("input", t) for t in tensors), ("target", target)]:
                if tensor.is_floating_point() and not tensor.isfinite().all():
                    bad = int(positions[(~tensor.isfinite()).reshape(len(tensor), -1).any(1).nonzero()[0, 0]])
                    raise ProblemError(f"{problem.path}: the {what} of example {bad} of {name} is NaN or infinite")
            targets.append(target)
            flat = [t.reshape(len(t), -1).contiguous() for t in tensors]
            rows.update(hashlib.blake2b(b"".join(map(_bytes, row)), digest_size=12).digest() for row in zip(*flat))
    except ProblemError:
        raise
    except Exception as error:
        raise ProblemError(f"{problem.path}: {name} cannot be read: {type(error).__name__}: {error}") from error
    return shape, torch.cat(targets), rows


def _check_labels(problem: Problem, targets: dict[str, Tensor], classes: int) -> None:
    for name, labels in targets.items():
        if labels.ndim != 1:
            raise ProblemError(f"{problem.path}: labels of {name} must have shape (n,), got {tuple(labels.shape)}")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise ProblemError(
                f"{problem.path}: labels of {name} must lie in 0..{classes - 1} for a model with {classes} outputs, "
                f"got {low}..{high}"
            )
    if len(targets["train"].unique()) < 2:
        raise ProblemError(f"{problem.path}: train holds only one class, {int(targets['train'][0])}")


def _check_metric(problem: Problem, module: nn.Module, dataset: Dataset) -> None:
    if problem.measure is None:
        return
    few = torch.utils.data.Subset(dataset, range(min(32, len(dataset))))  # type: ignore[arg-type]
    try:
        value = float(problem.measure(*predict_all(module, few)))
    except Exception as error:
        raise ProblemError(f"{problem.path}: metric fails: {type(error).__name__}: {error}") from error
    if value != value:
        python_warnings.warn(f"metric {problem.metric} is NaN on the first training examples", stacklevel=2)


def _shared_rows(rows: dict[str, set[bytes]]) -> list[str]:
    found = []
    for name, own in rows.items():
        shared = len(own & rows["train"])
        if name != "train" and shared:
            found.append(f"{name} shares {shared} of its {len(own)} rows with train: its score will look too good")
    return found


def settle_metric(problem: Problem) -> None:
    """Measures a regression without a metric of its own by the mean squared error, in place."""
    if problem.measure is None and problem.metric == "accuracy" and problem.task == "regression":
        problem.metric, problem.maximise = "mse", False


def inapplicable(problem: Problem, method: Method) -> str | None:
    """Returns why a method cannot act on this problem, or None."""
    return method.check(problem.model(0), problem.splits) if method.check else None


def _tensors(inputs: Any) -> list[Tensor]:
    if isinstance(inputs, Mapping):
        inputs = tuple(inputs[key] for key in sorted(inputs))
    return [torch.as_tensor(part) for part in (inputs if isinstance(inputs, tuple | list) else [inputs])]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
