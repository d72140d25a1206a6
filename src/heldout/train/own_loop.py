"""Core: A training loop of the user's own, with the stages of a Method handed in.

``fit_with`` prepares a Method as ``fit`` does, calls ``train(model, splits, stages, seed) -> model``, and finishes it.
A loop that leaves out a stage which the Method has would pass the plain recipe off as the Method: that is an error.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Sampler

from heldout.data import batches, sample_ids, to_device
from heldout.errors import check_at_least, check_labels, check_positive, check_same_length, checked
from heldout.method import Batch, Method, Run, Splits
from heldout.nn import inputs_for
from heldout.optim import SAM
from heldout.train.supervised import BASELINE, Fitted, Objective, Recipe, finish, objective, prepare, seeded

TrainFunction = Callable[[nn.Module, Splits, "Stages", int], nn.Module]


class Stages:
    """The stages of a Method, bound to one training: what a training loop of the user's own is handed.

    The data and model stages have acted on the ``splits.train`` and the model that the loop gets; the weights and
    predict stages act on the model that it returns. In between the loop calls, for a Method of any kind::

        def train(model, splits, stages, seed):
            optimizer = stages.optimizer(torch.optim.AdamW(model.parameters(), lr=1e-3))
            for _ in range(stages.epochs):
                for inputs, targets, index in stages.batches():
                    stages.step(optimizer, inputs, targets, index)
            return model

    Attributes:
        name: the Method's.
        history: one dict for each epoch that was begun: ``epoch``, ``seconds``, and ``loss`` and ``train_error``
            (classification) of what ``loss`` and ``step`` saw in it.
        epochs: how long to train.
        batch_size: examples per batch of ``batches``.
        device: where the model is.

    Example:
        >>> def train(model, splits, stages, seed):
        ...     for _ in range(stages.epochs):
        ...         print([len(targets) for _, targets, _ in stages.batches()])
        ...     return model
        >>> data = (torch.randn(9, 2), torch.arange(9) % 2)
        >>> fitted = fit_with(train, nn.Linear(2, 2), data, epochs=2, batch_size=4)
        [4, 4]
        [4, 4]
        >>> [entry["epoch"] for entry in fitted.history]
        [1.0, 2.0]
    """

    def __init__(
        self,
        run: Run,
        train_set: Any,
        method: Method,
        rate: float = 1.0,
        stop_after: int | None = None,
        on_epoch: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        self.name, self.epochs, self.batch_size, self.device = method.name, run.epochs, run.batch_size, run.device
        self._run, self._method, self._rate = run, method, rate
        self._sampler = train_set if isinstance(train_set, Sampler) else None
        self._data: Any = run.splits.train if self._sampler is not None else train_set
        run.train_set = self._data
        run.evaluation = -1
        self.history: list[dict[str, float]] = []
        self._stop_after, self._on_epoch, self._seen = stop_after, on_epoch, _Seen(run.device)
        self._ids = sample_ids(self._data, run.splits.train)
        self._order = torch.Generator().manual_seed(run.seed)
        self._used: set[str] = set()

    @property
    def train_set(self) -> Any:
        """The training set after the Method's data stage."""
        return self._data

    @property
    def sampler(self) -> Sampler | None:
        """The sampler over ``train_set`` that the Method's data stage gave, or None."""
        self._used.add("data")
        return self._sampler

    @checked
    def index(self, positions: Tensor) -> Tensor:
        """Returns the int64 positions in the original set, as ``loss`` takes them, of examples of ``train_set``."""
        return self._ids[positions]

    def start_epoch(self) -> None:
        """Counts the epochs, for Methods that follow them; ``batches`` does it by itself."""
        self._end_epoch()
        if self._run.epoch == self._stop_after:
            raise _StoppedError
        self._run.epoch += 1
        self._used.add("epochs")
        self.history.append({"epoch": float(self._run.epoch)})
        self._seen = _Seen(self.device)

    def _end_epoch(self) -> None:
        if self.history:
            self.history[-1] |= self._seen.entry()
            if self._on_epoch is not None:
                self._on_epoch(self.history[-1])

    @checked
    def batches(self, batch_size: int | None = None) -> Iterator[tuple[Any, Tensor, Tensor]]:
        """Yields ``(inputs, targets, index)`` of one epoch on the model's device, in an order of the run's seed.

        The Method's sampler is obeyed. A last batch of a single example is left out, since batch statistics are
        undefined on it.
        """
        self.start_epoch()
        size = batch_size or self.batch_size
        if self.sampler is not None:
            order = torch.as_tensor(list(self.sampler), dtype=torch.int64)
        else:
            order = torch.randperm(len(self._data), generator=self._order)
        if len(order) > 1 and len(order) % size == 1:
            order = order[:-1]
        for inputs, targets, positions in batches(self._data, size, order):
            yield inputs_for(self._run.module, inputs), to_device(targets, self.device), self._ids[positions]

    @checked
    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Returns the optimizer under the Method's optimizer stage; make schedules for what this returns.

        ``heldout improve`` searches learning rates here: the groups' rates are multiplied.
        """
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * self._rate
        self._used.add("optimizer")
        if self._method.optimizer:
            optimizer = self._method.optimizer(self._run, optimizer)
        if isinstance(optimizer, SAM):
            optimizer.register_step_pre_hook(_check_closure)
        optimizer.register_step_post_hook(self._stepped)
        return optimizer

    @checked
    def loss(self, inputs: Any, targets: Tensor, index: Tensor) -> Tensor:
        """Returns the objective of a batch, a scalar: the file's own loss, replaced or extended by the Method.

        Args:
            inputs: as the model takes them.
            targets: ``(batch, ...)``.
            index: int64 ``(batch,)``, positions in the original training set, as ``batches`` and ``index`` give them.
        """
        check_same_length(targets=targets, index=index)
        check_labels(len(self._run.splits.train), index=index)  # type: ignore[arg-type]
        self._used.add("loss")
        self._run.evaluation += 1
        batch = Batch(self._run.module, inputs, targets, index)
        loss = objective(self._run, batch, self._method)
        if self._run.evaluation == 0:
            self._seen.add(batch, loss.detach(), self._run.task == "classification")
        return loss

    @checked
    def step(self, optimizer: Optimizer, inputs: Any, targets: Tensor, index: Tensor) -> Tensor:
        """Takes one optimizer step on a batch and returns its loss, detached; for optimizers of every kind."""
        first: list[Tensor] = []

        def closure() -> Tensor:
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = self.loss(inputs, targets, index)
            loss.backward()
            first.append(loss.detach())
            return loss

        self._run.evaluation = -1
        optimizer.step(closure)  # type: ignore[arg-type]  # torch types the closure as () -> float
        return first[0]

    def _stepped(self, *_: Any) -> None:
        self._run.step += 1
        self._run.evaluation = -1

    def unused(self) -> list[str]:
        """Returns what the loop should have called for this Method and did not."""
        needed: set[str] = {name for name in ("optimizer", "loss") if name in self._method.stages}
        if self._sampler is not None:
            needed.add("data")
        if self._rate != 1.0:
            needed.add("optimizer")
        if needed & {"optimizer", "loss"}:
            needed.add("epochs")
        calls = {
            "optimizer": "stages.optimizer(...)",
            "loss": "stages.step(...) or stages.loss(...)",
            "data": "stages.batches() or stages.sampler",
            "epochs": "stages.batches() or stages.start_epoch()",
        }
        return [text for name, text in calls.items() if name in needed - self._used]


def _check_closure(optimizer: Optimizer, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    if not any(given is not None for given in (*args[1:], *named.values())):  # args[0] is the optimizer
        raise ValueError(
            "this Method's optimizer evaluates the loss twice in a step: the loop must call "
            "stages.step(optimizer, inputs, targets, index), or optimizer.step with a closure"
        )


class _StoppedError(Exception):
    """The epochs that were asked for are over."""


class _Seen:
    """Sums over the batches of an epoch."""

    def __init__(self, device: torch.device) -> None:
        self.started, self.examples, self.judged = time.perf_counter(), 0, 0
        self.loss, self.wrong = torch.zeros((), device=device), torch.zeros((), device=device)

    def add(self, batch: Batch, loss: Tensor, classes: bool) -> None:
        self.examples += len(batch.targets)
        self.loss += loss * len(batch.targets)
        if classes and batch.cached_logits is not None:
            self.judged += len(batch.targets)
            self.wrong += (batch.cached_logits.detach().argmax(1) != batch.targets).sum()

    def entry(self) -> dict[str, float]:
        found = {"seconds": time.perf_counter() - self.started}
        if self.examples:
            found["loss"] = self.loss.item() / self.examples
        if self.judged:
            found["train_error"] = self.wrong.item() / self.judged
        return found


@checked
def fit_with(
    train: TrainFunction,
    model: nn.Module | Callable[[], nn.Module],
    data: Splits | Any,
    method: Method | None = None,
    *,
    epochs: int = 10,
    batch_size: int = 64,
    loss: Objective | None = None,
    rate: float = 1.0,
    seed: int = 0,
    device: torch.device | str | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> Fitted:
    """Trains a copy of a model by a loop of your own, with a Method's stages handed in.

    Args:
        train: ``(model, splits, stages, seed) -> model``; see ``Stages``. ``splits`` are the original ones.
        model: the module to copy, or a function that builds one (called under ``seed``).
        data: Splits, or a training set alone.
        method: what to change; None is the plain recipe.
        epochs: what ``stages.epochs`` says.
        batch_size: what ``stages.batches`` yields.
        loss: ``(outputs, targets) -> scalar``; default cross-entropy or mean squared error.
        rate: what ``stages.optimizer`` multiplies learning rates by.
        seed: of initialisation, data order and dropout; torch's global generator is seeded with it.
        device: where to train; default: where the model is.

    Raises:
        ValueError: the method cannot act here, or the loop left out a stage that it has.
        TypeError: the loop returned no module.

    Example:
        >>> from heldout.optim import sam
        >>> def train(model, splits, stages, seed):
        ...     optimizer = stages.optimizer(torch.optim.SGD(model.parameters(), lr=0.5))
        ...     for _ in range(stages.epochs):
        ...         for batch in stages.batches():
        ...             stages.step(optimizer, *batch)
        ...     return model
        >>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
        >>> data = (x, (x[:, 0] > 0).long())
        >>> fitted = fit_with(train, lambda: nn.Linear(2, 2), data, sam(rho=0.05), epochs=20)
        >>> fitted.evaluate(data)["accuracy"] > 0.9
        True
    """
    check_positive(rate=rate)
    check_at_least(0, seed=seed)
    method = method or BASELINE
    started = time.perf_counter()
    with seeded(seed):
        recipe = Recipe(epochs=epochs, batch_size=batch_size, loss=loss)
        run, train_set = _prepare(train, model, data, method, recipe, seed, device, rate)
        stages = Stages(run, train_set, method, rate, on_epoch=on_epoch)
        run.module = _trained(train, run, stages)
        if unused := stages.unused():
            raise ValueError(f"train leaves out a part of {method.name}: it must call {', '.join(unused)}")
        fitted = finish(run, method)
    fitted.history, fitted.seconds = stages.history, time.perf_counter() - started
    return fitted


def _prepare(
    train: TrainFunction, model: Any, data: Any, method: Method, recipe: Recipe, seed: int, device: Any, rate: float
) -> tuple[Run, Any]:
    """As ``prepare``, with the loop in the place of ``fit``'s where a data stage trains the plain recipe."""
    bare = dataclasses.replace(method, data=None, model=None)
    run, train_set = prepare(model, data, bare, recipe, seed, device)
    untrained = copy.deepcopy(run.module) if method.data else run.module
    run.train_plain = functools.partial(_train_plain, train, run, untrained, rate)
    if method.data:
        train_set = method.data(run, run.splits.train)
    if method.model:
        run.module = method.model(run, run.module).to(run.device)
    return run, train_set


def _trained(train: TrainFunction, run: Run, stages: Stages) -> nn.Module:
    torch.manual_seed(run.seed)
    run.module.train()
    trained = train(run.module, run.splits, stages, run.seed)
    if not isinstance(trained, nn.Module):
        raise TypeError(f"train must return the model, got {type(trained).__name__}")
    stages._end_epoch()
    return trained


def _train_plain(
    train: TrainFunction, run: Run, untrained: nn.Module, rate: float, dataset: Any, epochs: int
) -> tuple[nn.Module, list[float]]:
    """The loop without a method on a copy of the untrained module, stopped after some of its epochs."""
    plain = copy.copy(run)
    plain.module, plain.state = copy.deepcopy(untrained), {}
    plain.splits = dataclasses.replace(run.splits, train=dataset, domains=None, groups=None)
    stages = Stages(plain, dataset, BASELINE, rate, stop_after=epochs)
    with seeded(run.seed), contextlib.suppress(_StoppedError):
        plain.module = _trained(train, plain, stages)
    errors = [entry.get("train_error", entry.get("loss")) for entry in stages.history]
    if not errors or None in errors:
        raise ValueError(
            "the method follows the plain recipe by the epoch: train must call stages.batches() and stages.step(...)"
        )
    return plain.module, errors  # type: ignore[return-value]  # None is refused above
