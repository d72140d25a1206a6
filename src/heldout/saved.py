"""A model that ``heldout.save`` or ``heldout improve`` has kept, loaded whole: it predicts as it did, untrained."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.adapt import Kept, alike, answers_of, predictor_from, restored
from heldout.errors import check_nonempty, checked
from heldout.method import Method, Run, Splits, as_dataset
from heldout.methods import parse
from heldout.nn import rebuilt
from heldout.problem import Kind, Problem, as_examples, load_problem
from heldout.train import Fitted, Saved, read_saved, seeded, squared_error

__all__ = ["Loaded", "digest_of", "load"]

_SOFT = ("cross_entropy", "CrossEntropyLoss")  # a loss on real numbers that are soft labels


@dataclass
class Loaded(Fitted):
    """What ``heldout.load`` returns: ``predict``, ``outputs``, ``evaluate`` and ``module`` as after ``heldout.fit``.

    Attributes:
        recipe: how it was made and what it scored: all of ``recipe.json``.
        problem: the user's file, where one was given.
    """

    recipe: dict[str, Any] = field(default_factory=dict)
    problem: Problem | None = None

    @property
    def note(self) -> str:
        """What it needs at test time, such as whole batches; empty for a plain model."""
        return self.recipe.get("note", "")

    def reset(self) -> None:
        """Forgets what was learnt at test time: before another data set."""
        reset = getattr(self.predictor, "reset", None)
        if callable(reset):
            reset()

    @checked
    def predict(self, inputs: Any) -> Any:
        """Returns logits (or log-probabilities) ``(batch, classes)``, or values for regression.

        Args:
            inputs: a tensor or a NumPy array ``(batch, ...)``, a tuple of them, or a dict of keyword arguments. Where
                the file is one of graphs, a ``Data`` (or a pair with its mask), or a list of graphs. Where it is one
                of texts, a list of prompts: the answers are a list of texts then.
        """
        plain = Fitted(self.module, self.predictor, self.run)
        found = None if self.problem is None else self.problem.answers(plain, inputs)
        return plain.predict(_tensors(inputs)) if found is None else found

    @checked
    def evaluate(self, dataset: Any, *, batch_size: int = 128) -> dict[str, float]:
        """Returns the metrics on a data set, after a ``reset()``.

        With a file: its metric under its name, and ``loss``, for data in the form of the file's. Without one:
        ``{"accuracy", "loss"}``, or ``{"mse", "loss"}`` for regression.
        """
        check_nonempty(dataset=dataset)
        if self.problem is None:
            return super().evaluate(as_dataset(as_examples(dataset, "dataset"), "dataset"), batch_size=batch_size)
        self.reset()
        outputs, targets = self.problem.outputs(self, self.problem.examples(self, dataset), batch_size=batch_size)
        loss = self.problem.kind.loss(outputs, targets)
        return {self.problem.metric: self.problem.judge(outputs, targets), "loss": loss}


@checked
def load(
    folder: str | Path,
    module: str | Path | Problem | nn.Module | Callable[[], nn.Module],
    *,
    predict: Callable[[nn.Module], Callable[[Any], Tensor]] | None = None,
    device: torch.device | str | None = None,
) -> Loaded:
    """Returns a model that ``heldout.save`` or ``heldout improve`` wrote, with everything that its predictions need.

    Nothing is trained. What a Method had changed in the structure of the model (heads, layers) is changed again. The
    training data are read only where a predict stage of one's own keeps no form of itself, see ``heldout.save``.

    Args:
        folder: such as ``out/winner``.
        module: the file that ``improve`` had (or its Problem), or one of the built-in examples; or a module as it was
            before the Method (it is copied), or a function that builds one. Its weights do not matter.
        predict: ``(module) -> predictor``, for a predict stage of one's own that was fitted without a file.
        device: where to predict; default: where the module is, or what the file says.

    Raises:
        ValueError: the folder holds no such model, or of another structure than the module.

    Example:
        >>> import heldout, tempfile
        >>> data = (torch.randn(32, 2), torch.arange(32) % 2)
        >>> fitted = heldout.fit(nn.Linear(2, 2), data, epochs=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     recipe = heldout.save(fitted, f"{folder}/mine")
        ...     again = heldout.load(f"{folder}/mine", nn.Linear(2, 2))
        >>> again.predict(data[0].numpy()).equal(fitted.predict(data[0])), again.note
        (True, '')
    """
    folder = Path(folder)
    saved = read_saved(folder)
    recipe, problem = saved.recipe, None
    if isinstance(module, str | Path | Problem):
        asked = None if device is None else str(device)
        problem = module if isinstance(module, Problem) else load_problem(module, device=asked)
        if recipe.get("file_digest") not in (None, digest_of(problem.path)):
            warnings.warn(f"{problem.path} has changed since {folder} was written", stacklevel=2)
        built, place = problem.model(0), problem.recipe_device
    else:
        built, place = copy.deepcopy(module) if isinstance(module, nn.Module) else module(), device
        if not isinstance(built, nn.Module):
            raise TypeError(f"module must build an nn.Module, got {type(built).__name__}")
        if recipe.get("one_logit"):
            built = Kind("binary", (), 2, torch.int64).module(built)
    run = _run(recipe, built, problem)
    method = _method(recipe, problem)
    with seeded(recipe["seed"]):
        run.module = _with_weights(_with_structure(run, problem, recipe, method), saved.weights).eval()
        if place is not None:
            run.module = run.module.to(place)
        run.device = next((p.device for p in run.module.parameters()), torch.device("cpu"))
        predictor = _predictor(run, saved, method, predict)
    return Loaded(run.module, predictor, run, recipe=recipe, problem=problem)


@checked
def digest_of(file: str | Path) -> str:
    """Returns the SHA-256 of a file, hexadecimal: whether it is still the one that a model was made by."""
    with Path(file).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _run(recipe: Mapping[str, Any], module: nn.Module, problem: Problem | None) -> Run:
    """What stages see of the run that made the model; its data only where a file was given."""
    splits = Splits(train=[]) if problem is None else problem.splits
    classes = recipe["task"] == "classification"
    return Run(
        module=module,
        splits=splits,
        train_set=splits.train,
        objective=F.cross_entropy if classes or recipe["loss"] in _SOFT else squared_error,
        initial_state=splits.initial_state or {},
        task=recipe["task"],
        num_classes=recipe["num_classes"],
        epochs=recipe["epochs"],
        batch_size=recipe["batch_size"],
        seed=recipe["seed"],
        device=torch.device("cpu"),
        generator=torch.Generator().manual_seed(recipe["seed"]),
    )


def _method(recipe: Mapping[str, Any], problem: Problem | None) -> Method | None:
    if problem is None or not recipe.get("method"):
        return None
    return parse(recipe["method"], problem.own_methods)


def _with_structure(run: Run, problem: Problem | None, recipe: Mapping[str, Any], method: Method | None) -> nn.Module:
    try:
        return rebuilt(run.module, recipe["structure"])
    except ValueError as error:
        if problem is None or method is None or method.model is None:
            raise ValueError(f"module must be built like the one that was kept: {error}") from None
    run.module = problem.model(run.seed)  # a model stage of the file's own puts in again what it had put in
    try:
        return rebuilt(method.model(run, run.module), recipe["structure"])
    except ValueError as error:
        raise ValueError(f"the model stage of {method.name} does not give the module that was kept: {error}") from None


def _with_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    kinds = {value.dtype for value in weights.values() if value.is_floating_point()}
    if len(kinds) == 1:
        module = module.to(next(iter(kinds)))
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        told = str(error).splitlines()[-1].strip()
        raise ValueError(f"module must be built like the one that was kept: {told}") from error
    return module


def _predictor(run: Run, saved: Saved, method: Method | None, predict: Callable[..., Any] | None) -> Any:
    recipe = saved.recipe
    if recipe["predictor"] is not None:
        return predictor_from(Kept(recipe["predictor"], saved.tensors), run.module)
    name = recipe.get("method") or "the Method"
    if predict is not None:
        predictor = predict(run.module)
    elif method is not None and method.predict is not None:
        try:
            predictor = method.predict(run, run.module)
        except KeyError as error:
            raise ValueError(
                f"the predict stage of {name} needs {error} of its training: let the module or the predictor's "
                "state_dict() hold it"
            ) from error
    else:
        raise ValueError(
            f"{name} has a predict stage of its own: give module=FILE, the file that defines it, or "
            "predict=(module) -> predictor"
        )
    if recipe["predictor_state"] is not None:
        predictor.load_state_dict(restored(recipe["predictor_state"], saved.tensors))  # type: ignore[attr-defined]
    answers = saved.tensors.get("answers")
    if answers is not None and len(run.splits.train) and not alike(answers, answers_of(predictor, run)):  # type: ignore[arg-type]
        raise ValueError(
            f"the predict stage of {name}, run again, answers otherwise than the one that was kept: let it return an "
            "object whose state_dict() holds all that it has drawn or learnt, with load_state_dict() and reset()"
        )
    return predictor


def _tensors(inputs: Any) -> Any:
    if isinstance(inputs, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(inputs))
    if isinstance(inputs, Mapping):
        return {name: _tensors(value) for name, value in inputs.items()}
    return tuple(map(_tensors, inputs)) if isinstance(inputs, tuple | list) else inputs
