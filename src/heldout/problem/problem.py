"""The model and data of one file, as everything that works on them sees it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, TensorDataset

from heldout.data import all_targets, batches, gather
from heldout.errors import ProblemError, check_fields, check_positive, checked
from heldout.method import Method, Run, Splits, Task, as_dataset, evaluating, forward
from heldout.nn import inputs_for
from heldout.problem.inputs import as_examples
from heldout.problem.kinds import Kind, kind_of
from heldout.train import (
    Fitted,
    TaskStream,
    TrainFunction,
    fit,
    fit_stopping_early,
    fit_with,
    in_order,
    outputs_of,
    scaled_optimizer,
    seeded,
)


@dataclass
class Problem:
    """The model and data of one file.

    Attributes:
        path: the file.
        make_model: builds an untrained (or pretrained) module.
        given: the data as the file gives them; ``splits`` are what is worked on.
        given_recipe: the recipe as the file gives it; ``recipe`` is what is worked with.
        asked_kind: the kind of problem that the file names; None where outputs and targets tell it.
        asked_device: where to train, in place of what the file says.
        asked_options: "autocast", "compile" and "num_workers" as they were asked for, in place of what the file says.
        overridden: what the file says otherwise than was asked for, in words.
        measure: the file's own metric, ``(outputs, targets) -> float``; None for a built-in one.
        asked_metric: the built-in metric, or the name of the file's own; None where the file names none.
        asked_maximise: whether more of the file's own metric is better.
        own_methods: Methods that the file defines, and those that have another form for its kind of problem.
        own_train: the file's own training loop; None is ``heldout.fit``.
        sampler: ``(train) -> Sampler`` that each epoch follows; None is every example once.
        patience: epochs of early stopping; None is none.
        compiled: whether the model is compiled, or the options of ``torch.nn.Module.compile``.
        converted: the file's data are of another form than ``heldout.fit`` takes.
        factors: for "train" and for test sets by name, columns of what each example is made of (a mapping, a frame).

    Example:
        >>> x, y = torch.randn(32, 2), torch.arange(32) % 2
        >>> splits = Splits((x, y), val=(x, y), test={"iid": (x, y)})
        >>> problem = Problem(Path("mine.py"), lambda: nn.Linear(2, 2), splits, {"epochs": 3})
        >>> problem.kind.name, problem.metric, problem.maximise
        ('classification', 'accuracy', True)
        >>> fitted = problem.fit(None, seed=0)
        >>> score = problem.score(fitted, problem.splits.test["iid"])
        >>> len(fitted.history), score == fitted.evaluate((x, y))["accuracy"]
        (3, True)
    """

    path: Path
    make_model: Callable[[], nn.Module]
    given: Splits
    given_recipe: dict[str, Any]
    asked_kind: str | None = None
    asked_device: str | None = None
    measure: Callable[[Tensor, Tensor], float] | None = None
    asked_metric: str | None = None
    asked_maximise: bool = True
    own_methods: dict[str, Method | Callable[..., Method]] = field(default_factory=dict)
    own_train: TrainFunction | None = None
    sampler: Callable[[Any], Sampler] | None = None
    patience: int | None = None
    compiled: bool | Mapping[str, Any] = False
    converted: bool = False
    factors: Mapping[str, Any] = field(default_factory=dict)
    asked_options: dict[str, Any] = field(default_factory=dict)
    overridden: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def epochs(self) -> int:
        """Epochs of the user's recipe."""
        return self.given_recipe.get("epochs", 10)

    @cached_property
    def kind(self) -> Kind:
        """What outputs and targets mean: told by the file, or by the model's outputs and all training targets."""
        train, module = self.given.train, self._given_model(0)
        try:
            if len(train) == 0:  # type: ignore[arg-type]
                raise ValueError("train is empty")
            inputs, _ = gather(train, torch.arange(min(2, len(train))))  # type: ignore[arg-type]
            try:
                with evaluating(module), torch.no_grad():
                    outputs = forward(module, inputs_for(module, inputs))
            except Exception as error:
                raise ValueError(f"the model fails on the training data: {error}") from error
            metric = self.asked_metric if self.measure is None else None
            kind = kind_of(
                outputs, all_targets(train), self.asked_kind, loss=self.given_recipe.get("loss"), metric=metric
            )
            kind.objective(self.given_recipe.get("loss"))
        except (ValueError, TypeError) as error:
            raise ProblemError(f"{self.path}: {error}") from error
        if metric not in (None, "loss", *kind.metrics):
            names = ", ".join(f'"{name}"' for name in (*kind.metrics, "loss"))
            raise ProblemError(
                f"{self.path}: metric of a {kind.name} problem must be {names} or a function, got {metric!r}"
            )
        return kind

    @cached_property
    def splits(self) -> Splits:
        """The data, with targets as ``fit`` takes them (see ``heldout.problem.Kind``)."""
        given, encoded = self.given, self.kind.data
        val = {name: encoded(d) for name, d in given.val.items()} if isinstance(given.val, Mapping) else given.val
        if val is not None and not isinstance(val, Mapping):
            val = encoded(val)
        test = {name: encoded(dataset) for name, dataset in given.test.items()}
        return replace(given, train=encoded(given.train), val=val, test=test)

    @property
    def recipe_device(self) -> torch.device | str | None:
        """Where to train: as asked for, or as the file says; None is where the model is."""
        asked = self.asked_device or self.given_recipe.get("device")
        if asked != "auto":
            return asked
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Keyword arguments for ``heldout.fit``; without a loss where it is the one that ``fit`` would take."""
        recipe = {key: value for key, value in self.given_recipe.items() if key not in ("loss", "device")}
        if self.recipe_device is not None:
            recipe["device"] = self.recipe_device
        loss = self.kind.objective(self.given_recipe.get("loss"))
        return recipe if loss is None else {**recipe, "loss": loss}

    @cached_property
    def as_given(self) -> bool:
        """Whether ``heldout.fit`` takes the model, the data and the loss as the file gives them."""
        given = self.given_recipe.get("loss")
        same_loss = self.recipe.get("loss") is (None if given is None or self.kind.is_plain(given) else given)
        if self.recipe_device is not None or self.own_train or self.sampler or self.patience or self.compiled:
            return False
        if self.in_tasks or self.converted or self.asked_options:
            return False
        return same_loss and not self.kind.one_logit and self.splits.train is self.given.train

    @property
    def in_tasks(self) -> bool:
        """Whether training data come one task after the other."""
        return isinstance(self.given, TaskStream)

    @property
    def asked(self) -> dict[str, Any]:
        """What ``load_problem`` was asked for beside the file: device and options."""
        return {**({"device": self.asked_device} if self.asked_device else {}), **self.asked_options}

    @property
    def own_loss(self) -> bool:
        """Whether the file's loss is another one than its kind's (see ``heldout.problem.Kind.is_plain``)."""
        return self.recipe.get("loss") is not self.kind.objective(None)

    @property
    def task(self) -> Task:
        """What the kind is for ``fit``: class indices or real numbers."""
        return "classification" if self.kind.name in ("classification", "binary") else "regression"

    @property
    def metric(self) -> str:
        """The name of what is measured: the file's own, or the first of its kind's metrics."""
        return self.asked_metric or next(iter(self.kind.metrics))

    @property
    def maximise(self) -> bool:
        """Whether more of the metric is better."""
        if self.measure is not None:
            return self.asked_maximise
        return self.metric != "loss" and self.kind.metrics[self.metric].maximise

    @checked
    def model(self, seed: int) -> nn.Module:
        """Returns a model initialised under ``seed``, with the pretrained state where there is one.

        A model of one logit answers with the two of its classes.
        """
        return self.kind.module(self._given_model(seed))

    def _given_model(self, seed: int) -> nn.Module:
        with seeded(seed):
            module = self.make_model()
        start = self.given.initial_state
        if start is not None:
            try:
                unknown = module.load_state_dict(start, strict=False).unexpected_keys
            except RuntimeError as error:
                raise ProblemError(f"{self.path}: the pretrained state does not fit the model: {error}") from error
            if len(unknown) == len(start):
                raise ProblemError(f"{self.path}: no entry of the pretrained state belongs to the model")
        return module

    @checked
    def fit(
        self,
        method: Method | None,
        *,
        seed: int,
        epochs: int | None = None,
        rate: float = 1.0,
        on_epoch: Callable[[dict[str, float]], None] | None = None,
    ) -> Fitted:
        """Trains the model under a Method with the user's recipe, its learning rate multiplied by ``rate``.

        ``on_epoch`` is called with each new entry of the history.
        """
        check_positive(rate=rate)
        recipe = {**self.recipe, "epochs": epochs or self.epochs}
        model: Any = partial(self._compiled_model, seed) if self.compiled else self.model(seed)
        if self.own_train is not None:
            return self._fit_by_own_loop(model, method, recipe, seed, rate, on_epoch)
        if rate != 1.0:
            recipe["optimizer"] = scaled_optimizer(recipe.get("optimizer"), rate)
        if self.sampler is not None:
            own = Method("sampler", data=self._by_sampler)
            method = own if method is None else (own + method).renamed(method.name)
        if self.in_tasks:
            method = in_order() if method is None else (in_order() + method).renamed(method.name)
        if self.patience is None:
            return fit(model, self.splits, method, seed=seed, on_epoch=on_epoch, **recipe)
        return fit_stopping_early(
            model,
            self.splits,
            method,
            patience=self.patience,
            validation_loss=self._validation_loss,
            seed=seed,
            on_epoch=on_epoch,
            **recipe,
        )

    def _fit_by_own_loop(
        self, model: Any, method: Method | None, recipe: dict[str, Any], seed: int, rate: float, on_epoch: Any
    ) -> Fitted:
        assert self.own_train is not None
        given = {key: recipe[key] for key in ("epochs", "batch_size", "loss", "device") if key in recipe}
        fitted = fit_with(self.own_train, model, self.splits, method, rate=rate, seed=seed, on_epoch=on_epoch, **given)
        if not fitted.history:  # the loop says nothing of its epochs
            each = fitted.seconds / recipe["epochs"]
            fitted.history = [{"epoch": float(epoch), "seconds": each} for epoch in range(1, recipe["epochs"] + 1)]
        return fitted

    def _by_sampler(self, run: Run, train_set: Any) -> Sampler:
        """The file's sampler as a data stage; plain trainings that a Method asks for follow it, too."""
        run.train_plain = partial(self._train_plain, run, run.train_plain)
        return _seeded_sampler(self.sampler, train_set, run.seed)

    def _train_plain(self, run: Run, whole: Any, dataset: Any, epochs: int) -> tuple[nn.Module, list[float]]:
        given = dataset is run.splits.train
        return whole(_seeded_sampler(self.sampler, dataset, run.seed) if given else dataset, epochs)

    def _compiled_model(self, seed: int) -> nn.Module:
        module = self.model(seed)
        module.compile(**(self.compiled if isinstance(self.compiled, Mapping) else {}))
        return module

    def _validation_loss(self, module: nn.Module) -> float:
        sets = self.validation_sets().values()
        return sum(self.kind.loss(*self.outputs(module, dataset)) for dataset in sets) / len(sets)

    def outputs(self, fitted: Fitted | nn.Module, dataset: Any, *, batch_size: int = 128) -> tuple[Tensor, Tensor]:
        """Returns outputs and encoded targets of a data set, as ``judge`` and ``kind.loss`` take them."""
        if isinstance(fitted, Fitted):
            return fitted.outputs(dataset, batch_size=batch_size)
        return outputs_of(fitted, dataset)

    def examples(self, fitted: Fitted, dataset: Any) -> Any:
        """Returns a data set of the file's form as ``outputs`` takes it."""
        return self.kind.data(as_dataset(as_examples(dataset, "dataset"), "dataset"))

    def answers(self, fitted: Fitted, inputs: Any) -> Any:
        """Returns what a trained model answers to inputs that are no tensors, or None where there is no such form."""
        return None

    @checked
    def score(self, fitted: Fitted, dataset: Any) -> float:
        """Returns the metric of a trained model on a data set."""
        return self.judge(*self.outputs(fitted, dataset))

    @checked
    def judge(self, outputs: Tensor, targets: Tensor) -> float:
        """Returns the metric of outputs against encoded targets; the file's own sees them in the file's form."""
        if self.measure is not None:
            return float(self.measure(*self.kind.decode(outputs, targets)))
        return self.kind.score(self.metric, outputs, targets)

    def validation_sets(self) -> dict[str, Dataset]:
        """Returns the validation sets by name."""
        return named_validation(self.splits)

    def fingerprint(self) -> str:
        """Returns a digest of the data, by which results on other data are told from results on this one.

        Sets of tensors are in it whole. Of others it has the size and at most 64 examples, evenly spaced: a change
        between them goes unseen.
        """
        digest = hashlib.sha256()
        sets = {"train": self.splits.train, **self.validation_sets(), **self.splits.test}
        for name, dataset in sets.items():
            size = len(dataset)  # type: ignore[arg-type]
            if isinstance(dataset, TensorDataset):
                digest.update(f"{name}:{size}".encode())
                for tensor in dataset.tensors:
                    digest.update(str((tensor.dtype, tuple(tensor.shape))).encode() + bytes_of(tensor))
                continue
            probe = torch.linspace(0, size - 1, min(size, 64)).long()
            inputs, targets, _ = next(batches(dataset, len(probe), probe))
            digest.update(f"{name}:{size}".encode())
            for tensor in [*tensors_of(inputs), torch.as_tensor(targets)]:
                digest.update(bytes_of(tensor))
        if isinstance(self.splits, TaskStream):
            digest.update(bytes_of(torch.as_tensor(self.splits.tasks)))
        return digest.hexdigest()[:16]


def _seeded_sampler(make: Any, train_set: Any, seed: int) -> Sampler:
    """The file's sampler, as new: nothing of an earlier run is in its randomness."""
    made = make(train_set)
    if not isinstance(made, Sampler):
        raise ProblemError(f"sampler(train) must return a torch Sampler, got {type(made).__name__}")
    sampler: Any = copy.copy(made)
    if isinstance(getattr(sampler, "generator", None), torch.Generator):
        sampler.generator = torch.Generator().manual_seed(seed)
    return sampler


def named_validation(splits: Splits) -> dict[str, Dataset]:
    return dict(splits.val) if isinstance(splits.val, Mapping) else {"val": splits.val}  # type: ignore[dict-item]


def tensors_of(inputs: Any) -> list[Tensor]:
    if isinstance(inputs, Mapping):
        inputs = tuple(inputs[key] for key in sorted(inputs))
    return [torch.as_tensor(part) for part in (inputs if isinstance(inputs, tuple | list) else [inputs])]


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
