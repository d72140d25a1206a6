"""Core: Early stopping: the epoch with the lowest validation loss is kept, and training ends once it is long past.

Source: Prechelt, "Early Stopping - But When?" (1998), the criterion UP with strips of one epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from heldout.errors import check_at_least, checked
from heldout.method import Method, Run, Splits
from heldout.train.supervised import BASELINE, Fitted, finish, fit, outputs_of, score, seeded


class _StoppedError(Exception):
    """Training is over."""


class _Watch:
    """Looks at the validation loss after each epoch, and keeps the weights of the best one."""

    def __init__(self, patience: int, validation_loss: Callable[[Any], float]) -> None:
        self.patience, self.validation_loss = patience, validation_loss
        self.run: Run | None = None
        self.best, self.best_epoch = float("inf"), 0
        self.state: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []

    def method(self) -> Method:
        return Method("early_stopping", optimizer=self._meet, weights=self._restore)

    def _meet(self, run: Run, optimizer: Any) -> Any:
        self.run = run
        return optimizer

    def _restore(self, run: Run, module: Any) -> Any:
        if not self.state:
            raise FloatingPointError("the validation loss is not finite after any epoch")
        module.load_state_dict(self.state)
        return module

    def __call__(self, entry: dict[str, float]) -> None:
        assert self.run is not None
        module = self.run.module
        with torch.random.fork_rng(devices=[]):  # looking changes nothing
            loss = entry["validation_loss"] = self.validation_loss(module)
        self.history.append(entry)
        if loss < self.best:
            self.best, self.best_epoch = loss, int(entry["epoch"])
            self.state = {name: value.detach().clone() for name, value in module.state_dict().items()}
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
    history holds ``validation_loss``. The weights and predict stages of the Method act on the model that is kept.

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
        ValueError: there is no validation data.
        FloatingPointError: the training loss is no longer finite, or the validation loss never is.

    Example:
        >>> x = torch.randn(96, 2, generator=torch.Generator().manual_seed(0))
        >>> splits = Splits(train=(x[:64], (x[:64, 0] > 0).long()), val=(x[64:], (x[64:, 0] > 0).long()))
        >>> fitted = fit_stopping_early(lambda: torch.nn.Linear(2, 2), splits, patience=2, epochs=3)
        >>> sorted(fitted.history[0])
        ['epoch', 'loss', 'seconds', 'train_error', 'validation_loss']
    """
    check_at_least(1, patience=patience)
    method, started = method or BASELINE, time.perf_counter()
    watch = _Watch(patience, validation_loss or _default_loss(data, recipe.get("loss")))
    watched = (watch.method() + method).renamed(method.name)

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
