"""Gradient descent on a two-layer ReLU network in the span of the training data, for dimensions far above their number.

Every gradient of the hidden weights lies in the span of the n training inputs, so ``W_t = W_0 + A_t^T X`` with A of
shape ``(n, m)``, and all that a step needs is ``X W_0^T`` and the Gram matrix ``X X^T``. A step costs O(n^2 m) instead
of O(n dim m); the products with X are formed once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_finite, check_nonnegative, checked
from heldout.nn import TwoLayerReLU


class SpanPoints(NamedTuple):
    """Inputs as ``SpanGD`` sees them.

    Attributes:
        initial: ``(k, m)``, their pre-activations before training.
        gram: ``(k, n)``, their inner products with the training inputs.

    Example:
        >>> trainer = SpanGD(torch.randn(4, 10), torch.tensor([1.0, -1.0, 1.0, -1.0]), m=6, lr=0.1)
        >>> points = trainer.points(torch.randn(3, 10))
        >>> points.initial.shape, points.gram.shape, trainer.predict(points).shape
        (torch.Size([3, 6]), torch.Size([3, 4]), torch.Size([3]))
    """

    initial: Tensor
    gram: Tensor


class SpanGD:
    """Full-batch gradient descent on ``mean log(1 + exp(-y f(x)))`` with ``f(x) = sum_j a_j relu(<w_j, x>)``.

    The head ``a_j = +-1/sqrt(m)`` is fixed and there is no bias: ``TwoLayerReLU(dim, m, std=init_std, seed=seed)``,
    trained by SGD over all examples at once, gives the same network, dim / n times slower. The work is done in the
    dtype of ``x``; half precision is not enough for tiny initial weights.

    Args:
        x: training inputs ``(n, dim)``, float32 or float64.
        y: labels -1 and +1 ``(n,)``.
        m: number of hidden units.
        init_std: standard deviation of the initial weights.
        lr: learning rate. A step fits the labels at once when ``lr * dim / n`` is about 1.
        seed: of the initial weights and the head.

    Attributes:
        steps: how many steps were taken.
        gram: ``X X^T``, ``(n, n)``.
        head: the fixed ``a_j``, ``(m,)``.

    Raises:
        ValueError: shapes that do not fit, other labels, half precision, input that is not finite, or an lr that is not
            positive.

    Source: arXiv:2310.02541, section 2.

    Example:
        >>> x = torch.randn(20, 400, generator=torch.Generator().manual_seed(0))
        >>> y = torch.ones(20).index_fill(0, torch.arange(10), -1.0)
        >>> trainer = SpanGD(x, y, m=64, init_std=1e-6, lr=0.05)
        >>> trainer.step()
        >>> bool((trainer.predict(x) * y > 0).all()), trainer.weights().shape
        (True, torch.Size([64, 400]))
    """

    @checked
    def __init__(self, x: Tensor, y: Tensor, m: int = 500, *, init_std: float = 1e-6, lr: float, seed: int = 0) -> None:
        check_finite(y=y)
        check_at_least(1, m=m)
        check_nonnegative(init_std=init_std)
        if x.ndim != 2 or y.shape != x.shape[:1] or not len(x):
            raise ValueError(
                f"SpanGD needs x (n, dim) and y (n,) with n > 0, got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        if x.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"SpanGD needs float32 or float64 inputs, got {x.dtype}")
        if not (y.abs() == 1).all():
            raise ValueError(f"labels must be -1 and +1, got {y.unique().tolist()[:5]}")
        if not (lr > 0 and math.isfinite(lr)):
            raise ValueError(f"lr must be positive and finite, got {lr}")
        self._module = TwoLayerReLU(x.shape[1], m, std=init_std, seed=seed).to(x)
        self.head = self._module.head
        self.lr, self.steps = lr, 0
        self._x, self._y = x, y.to(x)
        self._train = self.points(x)
        self.gram = self._train.gram
        if not self.gram.isfinite().all():
            raise ValueError("x holds values that are not finite, or so large that their products are not")
        self._coefficients = torch.zeros_like(self._train.initial)
        self._hidden = self._train.initial

    @torch.no_grad()
    def step(self) -> None:
        """Takes one step of gradient descent."""
        pull = torch.sigmoid(-self._y * self.train_scores()) * self._y * (self.lr / len(self._y))
        self._coefficients.addcmul_((self._hidden > 0).to(pull) * pull[:, None], self.head)
        self._hidden = torch.addmm(self._train.initial, self.gram, self._coefficients)
        self.steps += 1

    @torch.no_grad()
    @checked
    def points(self, x: Tensor) -> SpanPoints:
        """Returns inputs ``(k, dim)`` in the form that makes repeated predictions cheap: O(k n m) each."""
        return SpanPoints(x @ self._module.weight.T, x @ self._x.T)

    def train_scores(self) -> Tensor:
        """Returns f of the training inputs ``(n,)``."""
        return self._hidden.relu() @ self.head

    @checked
    def predict(self, x: Tensor | SpanPoints) -> Tensor:
        """Returns f ``(k,)`` of inputs ``(k, dim)``, or of what ``points`` made of them; its sign is the label."""
        points = self.points(x) if isinstance(x, Tensor) else x
        return torch.addmm(points.initial, points.gram, self._coefficients).relu() @ self.head

    @torch.no_grad()
    def weights(self) -> Tensor:
        """Returns the hidden weights now, ``(m, dim)``: one product with the training inputs."""
        return torch.addmm(self._module.weight, self._coefficients.T, self._x)
