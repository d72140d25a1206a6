"""Core: The losses of gradient boosting: their best constant, their residuals and Newton's step along a direction.

All take outputs ``(n, outputs)`` and give float64. Source: arXiv:1909.12098, after Friedman 2001.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, log_softmax
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_finite,
    check_labels,
    check_same_length,
    checked,
)

Array = NDArray[Any]
CONSTANT_STEPS = 5


class BoostingLoss(Protocol):
    """What boosting asks of a loss; the mean over examples where it is one number.

    Example:
        >>> def first_step(loss: BoostingLoss, targets: Array) -> float:
        ...     outputs = np.tile(loss.initial(targets), (len(targets), 1))
        ...     return loss.newton_step(outputs, targets, loss.negative_gradient(outputs, targets))
        >>> first_step(SquaredLoss(), np.array([[1.0], [3.0]]))
        1.0
    """

    def initial(self, targets: Any) -> Array:
        """Returns the outputs ``(outputs,)`` to start from."""

    def value(self, outputs: Array, targets: Any) -> float:
        """Returns the mean loss."""

    def negative_gradient(self, outputs: Array, targets: Any) -> Array:
        """Returns ``(n, outputs)``: minus the derivative of each example's loss by its outputs."""

    def newton_step(self, outputs: Array, targets: Any, direction: Array) -> float:
        """Returns how far to go along a direction ``(n, outputs)``; 0 where the loss has no curvature left."""


class SquaredLoss:
    """Half the squared error of targets ``(n, outputs)``; a direction is its own best step, 1.

    Example:
        >>> SquaredLoss().negative_gradient(np.zeros((2, 1)), np.array([[1.0], [-2.0]])).tolist()
        [[1.0], [-2.0]]
    """

    @checked
    def initial(self, targets: Array) -> Array:
        check_dimensions(2, targets=targets)
        return np.asarray(targets, float).mean(0)

    @checked
    def value(self, outputs: Array, targets: Array) -> float:
        check_same_length(outputs=outputs, targets=targets)
        return float(((outputs - targets) ** 2).mean() / 2)

    @checked
    def negative_gradient(self, outputs: Array, targets: Array) -> Array:
        check_same_length(outputs=outputs, targets=targets)
        return np.asarray(targets - outputs, float)

    @checked
    def newton_step(self, outputs: Array, targets: Array, direction: Array) -> float:
        return 1.0


class BinomialLoss:
    """``log(1 + exp(-2 y F))`` of targets y in {-1, 1}, ``(n, 1)``; the probability of 1 is ``1 / (1 + exp(-2 F))``.

    Example:
        >>> BinomialLoss().initial(np.array([[1.0], [1.0], [1.0], [-1.0]])).round(4).tolist()
        [0.5493]
    """

    @checked
    def initial(self, targets: Array) -> Array:
        check_dimensions(2, targets=targets)
        if not np.isin(targets, (-1, 1)).all():
            raise ValueError("targets of the binomial loss must be -1 or 1")
        mean = np.asarray(targets, float).mean(0).clip(-1 + 1e-12, 1 - 1e-12)
        return 0.5 * np.log((1 + mean) / (1 - mean))

    @checked
    def value(self, outputs: Array, targets: Array) -> float:
        return float(np.logaddexp(0.0, -2 * targets * outputs).mean())

    @checked
    def negative_gradient(self, outputs: Array, targets: Array) -> Array:
        check_same_length(outputs=outputs, targets=targets)
        return np.asarray(2 * targets * expit(-2 * targets * outputs), float)

    @checked
    def newton_step(self, outputs: Array, targets: Array, direction: Array) -> float:
        residuals = self.negative_gradient(outputs, targets)
        curvature = residuals * (2 * targets - residuals)
        return _ratio((residuals * direction).sum(), (curvature * direction**2).sum())


class SoftmaxLoss:
    """The cross-entropy of class indices ``(n,)``; Newton's step is one number, by the Hessian's diagonal.

    Args:
        classes: number of classes.
        prior: start from the classes' log frequencies, the best constant, in place of zeros.

    Example:
        >>> SoftmaxLoss(2).negative_gradient(np.zeros((1, 2)), np.array([1])).tolist()
        [[-0.5, 0.5]]
    """

    @checked
    def __init__(self, classes: int, *, prior: bool = False) -> None:
        check_at_least(2, classes=classes)
        self.classes, self.prior = classes, prior

    @checked
    def initial(self, targets: Array) -> Array:
        if not self.prior:
            return np.zeros(self.classes)
        frequencies = np.bincount(targets, minlength=self.classes) / len(targets)
        return np.asarray(np.log(frequencies.clip(1e-12)), float)

    @checked
    def value(self, outputs: Array, targets: Array) -> float:
        check_labels(self.classes, targets=targets)
        check_same_length(outputs=outputs, targets=targets)
        return float(-log_softmax(outputs, axis=1)[np.arange(len(targets)), targets].mean())

    @checked
    def negative_gradient(self, outputs: Array, targets: Array) -> Array:
        check_same_length(outputs=outputs, targets=targets)
        check_labels(self.classes, targets=targets)
        residuals = -np.exp(log_softmax(np.asarray(outputs, float), axis=1))
        residuals[np.arange(len(targets)), targets] += 1
        return np.asarray(residuals, float)

    @checked
    def newton_step(self, outputs: Array, targets: Array, direction: Array) -> float:
        probabilities = np.exp(log_softmax(outputs, axis=1))
        curvature = probabilities * (1 - probabilities)
        residuals = self.negative_gradient(outputs, targets)
        return _ratio((residuals * direction).sum(), (curvature * direction**2).sum())


class ObjectiveLoss:
    """Any differentiable objective of outputs and targets, its derivatives by autograd.

    It starts from the best constant, which Newton's method finds from zeros, one output after the other. Its step is by
    the whole second derivative along a direction, where ``SoftmaxLoss`` has the paper's diagonal.

    Args:
        objective: ``(outputs, targets) -> scalar``, a mean over examples, as ``torch.nn.functional.cross_entropy``.
        outputs: how many an example has.
        like: a tensor of the data type and on the device that the objective works with; default: float64 on the CPU.

    Example:
        >>> loss = ObjectiveLoss(torch.nn.functional.mse_loss, outputs=1)
        >>> targets = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
        >>> loss.newton_step(np.zeros((2, 1)), targets, targets.numpy())
        1.0
    """

    @checked
    def __init__(self, objective: Callable[[Tensor, Any], Tensor], outputs: int, *, like: Tensor | None = None) -> None:
        check_at_least(1, outputs=outputs)
        self.objective, self.outputs = objective, outputs
        self.like = torch.zeros((), dtype=torch.float64) if like is None else like.new_zeros(())
        if self.like.dtype in (torch.float16, torch.bfloat16):
            self.like = self.like.float()

    @checked
    def initial(self, targets: Any) -> Array:
        start = np.zeros((len(targets), self.outputs))
        for _ in range(CONSTANT_STEPS):
            for output in range(self.outputs):
                slope = self.negative_gradient(start, targets)[:, output].mean()
                along = np.zeros_like(start)
                along[:, output] = slope
                if abs(slope) > 1e-9:
                    start = start + self.newton_step(start, targets, along) * along
        return start[0]

    @checked
    def value(self, outputs: Array, targets: Any) -> float:
        return float(self._loss(torch.from_numpy(outputs).to(self.like), targets))

    @checked
    def negative_gradient(self, outputs: Array, targets: Any) -> Array:
        leaf = torch.from_numpy(outputs).to(self.like, copy=True).requires_grad_()
        (gradient,) = torch.autograd.grad(self._loss(leaf, targets), leaf)
        return np.asarray(-len(outputs) * gradient.double().cpu().numpy(), float)

    @checked
    def newton_step(self, outputs: Array, targets: Any, direction: Array) -> float:
        check_finite(outputs=outputs, direction=direction)
        check_same_length(outputs=outputs, targets=targets, direction=direction)
        step = torch.zeros_like(self.like, requires_grad=True)
        start, along = (torch.from_numpy(part).to(self.like) for part in (outputs, direction))
        (slope,) = torch.autograd.grad(self._loss(start + step * along, targets), step, create_graph=True)
        curvature = torch.autograd.grad(slope, step)[0] if slope.requires_grad else torch.zeros(())
        if curvature <= 1e-12 and -slope.detach() > 1e-6:
            return 1.0  # a loss of straight lines, as the absolute error, or one that bends down here
        return _ratio(-float(slope.detach()), float(curvature))

    def _loss(self, outputs: Tensor, targets: Any) -> Tensor:
        if isinstance(targets, Tensor):
            targets = targets.to(self.like) if targets.is_floating_point() else targets.to(self.like.device)
        with torch.enable_grad():
            return self.objective(outputs, targets)


def _ratio(slope: float, curvature: float) -> float:
    if not curvature > 1e-12:
        warnings.warn("every example is fitted: a step along which the loss has no curvature is left out", stacklevel=4)
        return 0.0
    return float(slope / curvature)
