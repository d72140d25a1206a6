"""Core: Early stopping: the epoch with the lowest validation loss is kept, and training ends once it is long past.

Source: Prechelt, "Early Stopping - But When?" (1998), the criterion UP with strips of one epoch.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from heldout.errors import check_at_least, checked
from heldout.method import Method, Run, Splits
from heldout.train.plain import PlainTraining, untrained
from heldout.train.supervised import BASELINE, Fitted, finish, fit, outputs_of, score, seeded


class _StoppedError(Exception):
    """Training is over."""


class _Watch:
    """Looks at the validation loss after each epoch, and keeps the weights of the best one.

    What follows the weights through training (an average of them) is kept with them: whatever a Method's state holds
    that has a ``snapshot()``, which returns the function that puts it back.
    """

    def __init__(self, patience: int, validation_loss: Callable[[Any], float]) -> None:
        self.patience, self.validation_loss = patience, validation_loss
        self.run: Run | None = None
        self.best, self.best_epoch = float("inf"), 0
        self.state: dict[str, Tensor] = {}
        self.followers: list[Callable[[], None]] = []
        self.history: list[dict[str, float]] = []

    def around(self, method: Method) -> Method:
        """Returns the method for a run that is watched: its last stages act on the weights that are kept."""

        def optimizer(run: Run, base: Any) -> Any:
            self.run = run
            return method.optimizer(run, base) if method.optimizer else base

        def weights(run: Run, module: Any) -> Any:
            self._restore(module)
            return method.weights(run, module) if method.weights else module

        return replace(method, optimizer=optimizer, weights=weights)

    def _restore(self, module: Any) -> None:
        if not self.state:
            raise FloatingPointError("the validation loss is not finite after any epoch")
        module.load_state_dict(self.state)
        for put_back in self.followers:
            put_back()

    def __call__(self, entry: dict[str, float]) -> None:
        assert self.run is not None
        module = self.run.module
        with torch.random.fork_rng(devices=[]):  # looking changes nothing
            loss = entry["validation_loss"] = self.validation_loss(module)
        self.history.append(entry)
        if loss < self.best:
            self.best, self.best_epoch = loss, int(entry["epoch"])
            self.state = {name: value.detach().clone() for name, value in module.state_dict().items()}
            following = [each for each in self.run.state.values() if callable(getattr(each, "snapshot", None))]
            self.followers = [each.snapshot() for each in following]
        elif entry["epoch"] - self.best_epoch >= self.patience:
            raise _StoppedError


@checked
def fit_stopping_early(
    model: Any,
    data: Splits,
    method: Method | None = None,
    *,
    patience: int,
    validation_loss: Callable[[Any], float] | None = None,
    seed: int = 0,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    **recipe: Any,
) -> Fitted:
    """Trains as ``fit`` does, up to ``epochs``, and returns the model of the epoch with the lowest validation loss.

    Training ends after ``patience`` epochs without a lower one; the schedule is that of all epochs. Each entry of the
    history holds ``validation_loss``. The weights and predict stages of the Method act on the model that is kept; an
    average of weights is that of its epoch. A plain training that the Method asks for stops early, too.

    Args:
        model: as for ``fit``.
        data: Splits with validation data.
        method: what to change; None is the plain recipe.
        patience: epochs, at least 1.
        validation_loss: ``module -> loss``, lower is better; default: the loss of ``recipe``, else cross-entropy or
            mean squared error, averaged over the validation sets.
        seed: as for ``fit``.
        on_epoch: as for ``fit``.
        recipe: the other options of ``fit``.

    Raises:
        ValueError: there is no validation data, or data come task after task.
        FloatingPointError: the training loss is no longer finite, or the validation loss never is.

    Example:
        >>> x = torch.randn(96, 2, generator=torch.Generator().manual_seed(0))
        >>> splits = Splits(train=(x[:64], (x[:64, 0] > 0).long()), val=(x[64:], (x[64:, 0] > 0).long()))
        >>> fitted = fit_stopping_early(lambda: torch.nn.Linear(2, 2), splits, patience=2, epochs=3)
        >>> sorted(fitted.history[0])
        ['epoch', 'loss', 'seconds', 'train_error', 'validation_loss']
    """
    check_at_least(1, patience=patience)
    from heldout.train.continual.task_stream import TaskStream

    if isinstance(data, TaskStream):
        raise ValueError("data come task after task, which early stopping would cut short: use fit")
    method, started = method or BASELINE, time.perf_counter()
    watch = _Watch(patience, validation_loss or _default_loss(data, recipe.get("loss")))

    def plain(run: Run, whole: PlainTraining, dataset: Any, epochs: int) -> tuple[nn.Module, list[float]]:
        """The recipe without a method, as ``Run.train_plain``; of a few epochs only, none is looked for."""
        if epochs != run.epochs:
            return whole(dataset, epochs)
        order = Method("order", data=lambda *_: dataset) if isinstance(dataset, Sampler) else None
        splits = run.splits
        if order is None and dataset is not splits.train:
            splits = replace(splits, train=dataset, domains=None, groups=None)
        alone = fit_stopping_early(
            untrained(run, run.module),
            splits,
            order,
            patience=patience,
            validation_loss=watch.validation_loss,
            seed=run.seed,
            **recipe,
        )
        return alone.module, [entry.get("train_error", entry["loss"]) for entry in alone.history]

    def first(run: Run, train_set: Any) -> Any:
        run.train_plain = functools.partial(plain, run, run.train_plain)
        return method.data(run, train_set) if method.data else train_set

    watched = watch.around(method)
    if method.data or method.model:  # the stages that may ask for a plain training
        watched = replace(watched, data=first)

    def after_epoch(entry: dict[str, float]) -> None:
        try:
            watch(entry)
        finally:
            if on_epoch:
                on_epoch(entry)

    try:
        fitted = fit(model, data, watched, seed=seed, on_epoch=after_epoch, **recipe)
    except _StoppedError:
        assert watch.run is not None
        with seeded(seed):
            fitted = finish(watch.run, watched)
        fitted.history, fitted.seconds = watch.history, time.perf_counter() - started
    return fitted


def _default_loss(data: Splits, own: Callable[[Tensor, Tensor], Tensor] | None) -> Callable[[Any], float]:
    if data.val is None:
        raise ValueError("data must hold validation data: early stopping looks at it")
    sets = list(data.val.values()) if isinstance(data.val, dict) else [data.val]

    def loss(module: Any) -> float:
        total = 0.0
        for dataset in sets:
            outputs, targets = outputs_of(module, dataset)
            total += _loss(outputs, targets, own)
        return total / len(sets)

    return loss


def _loss(outputs: Tensor, targets: Tensor, own: Callable[[Tensor, Tensor], Tensor] | None) -> float:
    if own is not None:
        return float(own(outputs, targets))
    return score(outputs, targets, "regression" if targets.is_floating_point() else "classification")["loss"]
