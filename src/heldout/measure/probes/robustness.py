"""Worst-case perturbations of inputs: of each by itself, and one for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import checked
from heldout.method import evaluating

Norm = Literal["linf", "l2"]
Model = nn.Module | Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


@checked
def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    norm: Norm = "linf",
    steps: int = 7,
    step_size: float | None = None,
    clip: tuple[float, float] | None = None,
    loss: Loss = F.cross_entropy,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Returns the inputs, each moved within a ball so as to raise its loss: projected gradient ascent.

    ``steps`` forward and backward passes; gradients of parameters are left alone. For a linear model and two classes
    the result is the exact worst case.

    Args:
        model: maps inputs to logits. A module is put in eval mode for the call.
        x: inputs ``(batch, ...)``, floating point.
        y: targets ``(batch,)``.
        eps: radius of the ball, in the units of x.
        norm: "linf" or "l2", over all dimensions of an example.
        steps: number of ascent steps.
        step_size: length of a step in the norm; ``2.5 eps / steps`` by default.
        clip: smallest and largest allowed value of an input, such as ``(0, 1)`` for images.
        loss: ``(outputs, targets) -> scalar``.
        generator: draws a starting point in the ball; by default the ascent starts from x.

    Raises:
        ValueError: eps negative or not finite, steps below 1, an unknown norm, or a gradient that is not finite.
        TypeError: inputs that are not floating point.

    Source: arXiv:1706.06083, section 2.1.

    Example:
        >>> weight = torch.tensor([[0.0, 0.0], [3.0, -4.0]])
        >>> pgd(lambda x: x @ weight.T, torch.zeros(1, 2), torch.tensor([1]), 0.5, norm="l2")
        tensor([[-0.3000,  0.4000]])
    """
    length = _check(eps, norm, steps, step_size)
    if not x.is_floating_point():
        raise TypeError(f"pgd needs floating-point inputs, got {x.dtype}")
    x = x.detach()
    delta = torch.zeros_like(x)
    if generator is not None:
        delta = _project(_steepest(torch.randn(x.shape, generator=generator).to(x), norm), eps, norm)
        delta *= torch.rand((len(x), *[1] * (x.ndim - 1)), generator=generator).to(x) * eps
    with _eval_mode(model):
        for _ in range(steps):
            gradient = _input_gradient(model, _clip(x + delta, clip), y, loss)
            delta = _project(delta + length * _steepest(gradient, norm), eps, norm)
    return _clip(x + delta, clip)


@checked
def universal_perturbation(
    model: Model,
    loader: Iterable[tuple[Tensor, Tensor]],
    eps: float,
    *,
    norm: Norm = "l2",
    steps: int = 100,
    step_size: float | None = None,
    clip: tuple[float, float] | None = None,
    loss: Loss = F.cross_entropy,
) -> Tensor:
    """Returns one perturbation, of the shape of an input, that raises the loss on all inputs together.

    Projected gradient ascent on the mean loss of one batch after the other. It starts where the classes' gradients may
    cancel, so the order of the batches decides which class it moves away from.

    Args:
        model: maps inputs to logits. A module is put in eval mode for the call.
        loader: batches ``(inputs, targets)``, gone through again until ``steps`` steps are taken; a list or a
            DataLoader, not a generator that ends.
        eps: largest norm of the perturbation, in the units of the inputs.
        norm: "l2" or "linf".
        steps: number of ascent steps, one batch each.
        step_size: length of a step in the norm; ``5 eps / steps`` by default.
        clip: smallest and largest allowed value of a perturbed input.
        loss: ``(outputs, targets) -> scalar``.

    Raises:
        ValueError: no batches, or as ``pgd`` does.
        TypeError: inputs that are not floating point.

    Source: arXiv:1610.08401; by gradient ascent as in arXiv:1811.11304.

    Example:
        >>> weight = torch.tensor([[0.0, 0.0], [3.0, -4.0]])
        >>> batch = torch.zeros(4, 2), torch.tensor([1, 1, 1, 0])
        >>> universal_perturbation(lambda x: x @ weight.T, [batch], 0.5)
        tensor([-0.3000,  0.4000])
    """
    length = _check(eps, norm, steps, 5 * eps / max(steps, 1) if step_size is None else step_size)
    delta: Tensor | None = None
    with _eval_mode(model):
        for _, (inputs, targets) in zip(range(steps), _cycle(loader), strict=False):
            if not inputs.is_floating_point():
                raise TypeError(f"universal_perturbation needs floating-point inputs, got {inputs.dtype}")
            delta = torch.zeros_like(inputs[0]) if delta is None else delta
            gradient = _input_gradient(model, _clip(inputs.detach() + delta, clip), targets, loss).sum(0)
            delta = _project((delta + length * _steepest(gradient[None], norm)[0])[None], eps, norm)[0]
    if delta is None:
        raise ValueError("universal_perturbation needs at least one batch, the loader gave none")
    return delta


def _cycle(loader: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch[0], batch[1]
        if empty:
            return


def _eval_mode(model: Model) -> AbstractContextManager[None]:
    return evaluating(model) if isinstance(model, nn.Module) else nullcontext()


@torch.enable_grad()
def _input_gradient(model: Model, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(model(x), y), x)
    if not gradient.isfinite().all():
        raise ValueError("the gradient of the loss in the inputs is not finite")
    return gradient


def _steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The step of unit norm along which the loss of each example rises most; zero where the gradient is."""
    if norm == "linf":
        return gradient.sign()
    return F.normalize(gradient.flatten(1), dim=1, eps=1e-30).view_as(gradient)


def _project(delta: Tensor, eps: float, norm: Norm) -> Tensor:
    if norm == "linf":
        return delta.clamp(-eps, eps)
    return delta.flatten(1).renorm(2, 0, eps).view_as(delta) if eps else torch.zeros_like(delta)


def _clip(x: Tensor, clip: tuple[float, float] | None) -> Tensor:
    return x.detach() if clip is None else x.detach().clamp(*clip)


def _check(eps: float, norm: str, steps: int, step_size: float | None) -> float:
    """Returns the length of a step."""
    if not 0 <= eps < math.inf or steps < 1:
        raise ValueError(f"needs a finite eps >= 0 and at least one step, got eps={eps}, steps={steps}")
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm must be 'linf' or 'l2', got {norm!r}")
    length = 2.5 * eps / steps if step_size is None else step_size
    if not 0 <= length < math.inf:
        raise ValueError(f"step_size must be finite and not negative, got {step_size}")
    return length
