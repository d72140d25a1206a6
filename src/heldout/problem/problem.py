"""The model and data of one file, as everything that works on them sees it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from heldout.data import batches
from heldout.errors import ProblemError
from heldout.method import Method, Splits, Task
from heldout.train import Fitted, fit, problem_of, scaled_optimizer, score, seeded


@dataclass
class Problem:
    """The model and data of one file.

    Attributes:
        path: the file.
        make_model: builds an untrained (or pretrained) module.
        splits: the data.
        recipe: keyword arguments for ``heldout.fit``.
        measure: the file's own metric, ``(outputs, targets) -> float``; None for a built-in one.
        asked_metric: the built-in metric, or the name of the file's own; None where the file names none.
        asked_maximise: whether more of the file's own metric is better.
        own_methods: Methods that the file defines.
    """

    path: Path
    make_model: Callable[[], nn.Module]
    splits: Splits
    recipe: dict[str, Any]
    measure: Callable[[Tensor, Tensor], float] | None = None
    asked_metric: str | None = None
    asked_maximise: bool = True
    own_methods: dict[str, Method] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """Epochs of the user's recipe."""
        return self.recipe.get("epochs", 10)

    @cached_property
    def task(self) -> Task:
        """Classification or regression, told by the targets."""
        return problem_of(self.model(0), self.splits.train)[0]

    @property
    def metric(self) -> str:
        """The name of what is measured: the file's own, or accuracy; the mean squared error of a regression."""
        if self.measure is None and self.asked_metric in (None, "accuracy"):
            return "mse" if self.task == "regression" else "accuracy"
        return self.asked_metric or "accuracy"

    @property
    def maximise(self) -> bool:
        """Whether more of the metric is better."""
        return self.asked_maximise if self.measure is not None else self.metric == "accuracy"

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
            for tensor in [*tensors_of(inputs), torch.as_tensor(targets)]:
                digest.update(bytes_of(tensor))
        return digest.hexdigest()[:16]


def tensors_of(inputs: Any) -> list[Tensor]:
    if isinstance(inputs, Mapping):
        inputs = tuple(inputs[key] for key in sorted(inputs))
    return [torch.as_tensor(part) for part in (inputs if isinstance(inputs, tuple | list) else [inputs])]


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
