"""Losses on unlabelled batches, and a trainer for them: Pseudo-Label with a threshold, FixMatch, Mean Teacher.

Source: Lee, Pseudo-Label, ICML 2013 workshop; arXiv:2001.07685 (FixMatch); arXiv:1703.01780 (Mean Teacher).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from heldout.data import strong_view, weak_view
from heldout.errors import check_between, check_fraction, check_nonempty, check_nonnegative, checked
from heldout.losses import confident_cross_entropy
from heldout.method import evaluating
from heldout.train.semi_supervised.loop import (
    StepLog,
    check_in_classes,
    fit_batches,
    labelled_batch,
    logits_of,
    unlabelled_batch,
)
from heldout.train.supervised import OptimizerFactory, make_optimizer

View = Callable[[Any, torch.Generator], Any]


class UnlabelledLoss(Protocol):
    """A loss on unlabelled inputs, its weight, and what it keeps from step to step.

    It is called with ``(module, inputs, generator)`` and returns a scalar; ``after_step(module)`` is called after each
    step of the optimizer; ``result(module)`` returns the model that training gives in the end.

    Attributes:
        weight: of this loss beside that of the labelled batch.

    Example:
        >>> class Entropy:
        ...     weight = 0.1
        ...     def __call__(self, module, inputs, generator):
        ...         return torch.distributions.Categorical(logits=module(inputs)).entropy().mean()
        ...     def after_step(self, module):
        ...         pass
        ...     def result(self, module):
        ...         return module
        >>> SemiSupervised(nn.Linear(2, 2), Entropy()).step(None, torch.randn(8, 2)).unlabelled_loss > 0
        True
    """

    weight: float

    def __call__(self, module: nn.Module, inputs: Any, generator: torch.Generator) -> Tensor: ...

    def after_step(self, module: nn.Module) -> None: ...

    def result(self, module: nn.Module) -> nn.Module: ...


class PseudoLabelLoss:
    """Cross-entropy to the model's own most probable class, where that has probability ``threshold`` or more.

    For training; ``heldout.adapt.PseudoLabel`` is the same idea at test time. One forward and backward pass a batch.

    Args:
        threshold: in [0, 1].
        weight: of this loss beside that of the labelled batch.

    Raises:
        ValueError: options out of range.

    Source: Lee, Pseudo-Label, ICML 2013 workshop, with the threshold of arXiv:2001.07685.

    Example:
        >>> loss = PseudoLabelLoss(threshold=0.0)
        >>> loss(nn.Linear(2, 3), torch.zeros(4, 2), torch.Generator()).item() > 0
        True
    """

    @checked
    def __init__(self, threshold: float = 0.95, weight: float = 1.0) -> None:
        check_fraction(threshold=threshold)
        check_nonnegative(weight=weight)
        self.threshold, self.weight = threshold, weight

    @checked
    def __call__(self, module: nn.Module, inputs: Any, generator: torch.Generator) -> Tensor:
        """Returns the loss of inputs ``(batch, ...)``, a scalar."""
        logits = logits_of(module, inputs)
        return confident_cross_entropy(logits, logits, self.threshold)

    def after_step(self, module: nn.Module) -> None:
        """Keeps nothing."""

    def result(self, module: nn.Module) -> nn.Module:
        """Returns the model itself."""
        return module


class FixMatch:
    """Cross-entropy of a strongly changed input to the label that the weakly changed one gets, where that is sure.

    Two forward passes and one backward pass a batch. The label is guessed in the mode that the model is in, as in the
    published code: a layer with BatchNorm sees the weak view, too.

    Args:
        threshold: least probability of a label, in [0, 1].
        weight: of this loss beside that of the labelled batch.
        weak, strong: ``(inputs, generator) -> inputs``, random changes that leave the class as it is. The default ones
            know images ``(batch, channels, height, width)`` and vectors of real numbers.

    Raises:
        ValueError: options out of range.
        TypeError: at a call, inputs that the default views do not know.

    Source: arXiv:2001.07685, eq. 4.

    Example:
        >>> loss = FixMatch(threshold=0.0)
        >>> loss(nn.Linear(2, 3), torch.randn(4, 2), torch.Generator().manual_seed(0)).item() > 0
        True
    """

    @checked
    def __init__(
        self, threshold: float = 0.95, weight: float = 1.0, weak: View = weak_view, strong: View = strong_view
    ) -> None:
        check_fraction(threshold=threshold)
        check_nonnegative(weight=weight)
        self.threshold, self.weight, self.weak, self.strong = threshold, weight, weak, strong

    @checked
    def __call__(self, module: nn.Module, inputs: Any, generator: torch.Generator) -> Tensor:
        """Returns the loss of inputs ``(batch, ...)``, a scalar."""
        with torch.no_grad():
            guesses = logits_of(module, self.weak(inputs, generator))
        return confident_cross_entropy(logits_of(module, self.strong(inputs, generator)), guesses, self.threshold)

    def after_step(self, module: nn.Module) -> None:
        """Keeps nothing."""

    def result(self, module: nn.Module) -> nn.Module:
        """Returns the model itself."""
        return module


class MeanTeacher:
    """Squared difference between the class probabilities of the model and of the moving average of its weights.

    Each sees a weakly changed input of its own. The average (the teacher) is in evaluation mode, its BatchNorm
    statistics are the model's; it is the result. Two forward passes and one backward pass a batch, and one copy of the
    model.

    Args:
        decay: of the average, in [0, 1); less at first, 1 - 1 / (t + 1) at step t, so that the start is forgotten.
        weight: of this loss beside that of the labelled batch.
        view: ``(inputs, generator) -> inputs``, a random change that leaves the class as it is.

    Raises:
        ValueError: options out of range.

    Source: arXiv:1703.01780, section 2; the square is a mean over classes. deviation: the weight is not ramped up.

    Example:
        >>> loss, model = MeanTeacher(), nn.Linear(2, 3)
        >>> loss(model, torch.zeros(4, 2), torch.Generator()).item()  # teacher and model are equal, the view too
        0.0
        >>> loss.after_step(model)
        >>> loss.result(model) is model
        False
    """

    @checked
    def __init__(self, decay: float = 0.99, weight: float = 10.0, view: View = weak_view) -> None:
        check_between(0, math.nextafter(1.0, 0.0), decay=decay)
        check_nonnegative(weight=weight)
        self.decay, self.weight, self.view = decay, weight, view
        self._averaged: AveragedModel | None = None

    def _teacher(self, module: nn.Module) -> AveragedModel:
        if self._averaged is None:

            def average(means: Any, now: Any, count: Any) -> None:
                get_ema_multi_avg_fn(min(self.decay, 1 - 1 / (int(count) + 1)))(means, now, count)

            self._averaged = AveragedModel(module, multi_avg_fn=average)
            self._averaged.update_parameters(module)  # the first one copies
            self._averaged.requires_grad_(False)
        return self._averaged

    @checked
    def __call__(self, module: nn.Module, inputs: Any, generator: torch.Generator) -> Tensor:
        """Returns the loss of inputs ``(batch, ...)``, a scalar."""
        teacher = self._teacher(module)
        with evaluating(teacher), torch.no_grad():
            wanted = logits_of(teacher, self.view(inputs, generator)).softmax(1)
        return F.mse_loss(logits_of(module, self.view(inputs, generator)).softmax(1), wanted)

    @checked
    def after_step(self, module: nn.Module) -> None:
        """Takes the model's weights into the average; to be called after each step of its optimizer."""
        self._teacher(module).update_parameters(module)

    @checked
    def result(self, module: nn.Module) -> nn.Module:
        """Returns the teacher, in evaluation mode, with what may be trained as in the model."""
        teacher = self._teacher(module).module
        for own, other in zip(module.parameters(), teacher.parameters(), strict=True):
            other.requires_grad_(own.requires_grad)
        return teacher.eval()


class SemiSupervised:
    """Trains a classifier on labelled batches and, by a loss of one's choice, on unlabelled ones.

    It has the interface of ``PseudoSupervisor``: ``step`` on batches, or ``fit`` on loaders.

    Args:
        predictor: inputs to logits ``(batch, classes)``, or to the log-odds of class 1 ``(batch,)`` or ``(batch, 1)``;
            a transformers classifier as well. Trained in place.
        loss: ``PseudoLabelLoss``, ``FixMatch``, ``MeanTeacher``, or one's own.
        optimizer: as for ``heldout.fit``, or an optimizer. Default: AdamW with learning rate 1e-3.
        augment: ``(inputs, generator) -> inputs`` on labelled batches, such as ``heldout.data.weak_view``, which is a
            part of FixMatch and Mean Teacher where they are published.
        seed: of the random views.

    Attributes:
        predictor: what was given.

    Example:
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] > 0).long()
        >>> trainer = SemiSupervised(nn.Linear(2, 2), FixMatch(0.6))
        >>> trainer.step((x[:8], y[:8]), x[8:40]).labelled_loss > 0
        True
        >>> history = trainer.fit([(x[:8], y[:8])], [x[8:100], x[100:]], epochs=2)
        >>> sorted(history[0]), trainer.result().training
        (['epoch', 'labelled_loss', 'unlabelled_loss'], False)
    """

    @checked
    def __init__(
        self,
        predictor: nn.Module,
        loss: UnlabelledLoss,
        *,
        optimizer: OptimizerFactory | Optimizer | None = None,
        augment: View | None = None,
        seed: int = 0,
    ) -> None:
        check_between(0, 2**63 - 1, seed=seed)
        self.predictor, self.loss, self.augment = predictor, loss, augment
        self._optimizer = optimizer if isinstance(optimizer, Optimizer) else make_optimizer(optimizer, predictor)
        self._generator = torch.Generator().manual_seed(seed)

    @checked
    def step(self, labelled: Any, unlabelled: Any, validation: Any = None) -> StepLog:
        """Returns the log of one optimizer step on the sum of both losses.

        Args:
            labelled: a batch ``(inputs, labels)`` or a dict with labels; None where there is none.
            unlabelled: a batch of inputs, what comes behind them is left out; None where there is none.
            validation: not looked at.

        Raises:
            ValueError: neither batch, or labels outside of the classes.
            FloatingPointError: the loss is not finite.
        """
        check_nonempty(labelled=labelled, unlabelled=unlabelled)
        if labelled is None and unlabelled is None:
            raise ValueError("labelled or unlabelled must be a batch, got None for both")
        found: dict[str, float] = {}

        def closure() -> Tensor:
            self._optimizer.zero_grad()
            total = torch.zeros(())
            like = None
            if labelled is not None:
                like, labels = labelled_batch(self.predictor, labelled)
                seen = like if self.augment is None else self.augment(like, self._generator)
                logits = logits_of(self.predictor, seen)
                check_in_classes(labels, logits.shape[1], "labels")
                total = F.cross_entropy(logits, labels)
                found.setdefault("labelled_loss", total.item())
            if unlabelled is not None:
                extra = self.loss(self.predictor, unlabelled_batch(unlabelled, like), self._generator)
                found.setdefault("unlabelled_loss", extra.item())
                total = total.to(extra.device) + self.loss.weight * extra
            if not bool(total.isfinite()):
                raise FloatingPointError(f"the training loss is {total.item()}: lower the learning rate or the weight")
            total.backward()
            return total

        with torch.enable_grad():
            self._optimizer.step(closure)  # type: ignore[arg-type]  # torch types the closure as () -> float
        self.loss.after_step(self.predictor)
        return StepLog(**found)

    @checked
    def fit(
        self,
        labelled_loader: Iterable[Any],
        unlabelled_loader: Iterable[Any],
        val_loader: Iterable[Any] | None = None,
        epochs: int = 1,
        *,
        on_epoch: Callable[[dict[str, float]], None] | None = None,
    ) -> list[dict[str, float]]:
        """Returns one dict for each epoch, a pass over the unlabelled batches; see ``fit_batches``."""
        return fit_batches(self, labelled_loader, unlabelled_loader, val_loader, epochs, on_epoch)

    def result(self) -> nn.Module:
        """Returns the trained model: the predictor, or what its loss makes of it (the teacher)."""
        return self.loss.result(self.predictor)
