"""Sharpness: how fast the training loss rises around the weights that were found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from heldout.data import batches
from heldout.errors import check_at_least, check_positive, checked
from heldout.measure.gradients.per_example import default_example_loss
from heldout.method import as_dataset, evaluating, forward
from heldout.nn import inputs_for

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Sharpness:
    """What ``sharpness`` found.

    Attributes:
        top_eigenvalue: the largest eigenvalue of the Hessian of the mean loss. Gradient descent with a constant
            learning rate is stable up to ``2 / top_eigenvalue``.
        ascent_gap: how much the loss rises within ``rho`` of the weights, to first order: what SAM minimises.
        loss: the mean loss at the weights.
        rho: the radius.
        iterations: Hessian-vector products that were needed.
        converged: whether the eigenvalue settled within the tolerance.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> found = sharpness(model, (torch.tensor([[1.0]]), torch.tensor([[0.0]])), rho=0.5)  # the loss is w^2, w = 1
        >>> round(found.top_eigenvalue, 4), found.loss, round(found.ascent_gap, 4), found.converged
        (2.0, 1.0, 1.25, True)
    """

    top_eigenvalue: float
    ascent_gap: float
    loss: float
    rho: float
    iterations: int
    converged: bool


@checked
def sharpness(
    model: nn.Module,
    dataset: Any,
    loss: Loss | None = None,
    *,
    rho: float = 0.05,
    iterations: int = 50,
    tolerance: float = 1e-3,
    batch_size: int = 256,
    seed: int = 0,
) -> Sharpness:
    """Returns the top Hessian eigenvalue and the SAM ascent gap of the mean loss over a data set.

    The model is used in eval mode and left unchanged. The eigenvalue is found by power iteration, one Hessian-vector
    product (about three forward and backward passes over the data) per iteration; where the eigenvalue of the largest
    magnitude is negative, iteration goes on for the Hessian shifted by it. Memory: a few copies of the parameters, and
    the graph of one batch.

    Args:
        model: any module whose parameters that require a gradient are meant.
        dataset: examples of ``(inputs, target)``, or a pair of tensors; a few hundred are enough.
        loss: ``(outputs, targets) -> mean loss``; default: the mean of that of ``per_example_grads``.
        rho: radius of the ascent step ``rho * g / ||g||``.
        iterations: Hessian-vector products at most, for each of the two phases.
        tolerance: relative change of the eigenvalue at which iteration stops.
        batch_size: examples whose graph is held at once; the result does not depend on it.
        seed: of the first vector.

    Raises:
        ValueError: no examples, no parameter that requires a gradient, a loss that is not a mean over the batch (not a
            scalar), or a loss that is not finite.

    Example:
        >>> x, y = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [0.0]])
        >>> round(sharpness(nn.Linear(1, 1, bias=False), (x, y)).top_eigenvalue, 3)  # 2 * mean(x^2)
        10.0

    Source: arXiv:2010.01412, equation 2, for the gap; arXiv:2103.00065 for the eigenvalue.
    """
    check_positive(rho=rho)
    check_at_least(1, iterations=iterations)
    data = as_dataset(dataset)
    count = len(data)  # type: ignore[arg-type]
    if count == 0:
        raise ValueError("the data set is empty: its loss has no sharpness")
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("the model has no parameter that requires a gradient")
    generator, example_loss = torch.Generator().manual_seed(seed), default_example_loss(model)

    def mean_loss() -> Iterable[Tensor]:
        """The parts of the mean loss, batch by batch, with their graphs."""
        for inputs, targets, _ in batches(data, batch_size):
            outputs = forward(model, inputs_for(model, inputs))
            targets = torch.as_tensor(targets).to(outputs.device)
            value = loss(outputs, targets) if loss else example_loss(outputs, targets).mean()
            if value.ndim:
                raise ValueError(f"loss must return the mean over the batch, it returns the shape {tuple(value.shape)}")
            yield value * (len(targets) / count)

    def gradient() -> tuple[float, list[Tensor]]:
        total, gradients = 0.0, [torch.zeros_like(p) for p in parameters]
        for part in mean_loss():
            torch._foreach_add_(gradients, _gradients(part, parameters))
            total += part.item()
        return total, gradients

    def hessian_times(vector: list[Tensor]) -> list[Tensor]:
        product = [torch.zeros_like(p) for p in parameters]
        for part in mean_loss():
            gradients = _gradients(part, parameters, create_graph=True)
            torch._foreach_add_(product, _gradients(_dot(gradients, vector), parameters))
        return product

    with evaluating(model), torch.enable_grad():
        value, slope = gradient()
        if not torch.isfinite(torch.tensor(value)):
            raise ValueError(f"the loss is {value}: look for NaN inputs or weights")
        gap = _ascent_gap(parameters, slope, rho, value, lambda: sum(part.item() for part in mean_loss()))
        start = [torch.randn(p.shape, generator=generator).to(p) for p in parameters]
        top, used, converged = _dominant(hessian_times, start, 0.0, iterations, tolerance)
        if top < 0:
            shift = top
            top, more, converged = _dominant(hessian_times, start, shift, iterations, tolerance)
            used += more
    return Sharpness(top, gap, value, rho, used, converged)


def _gradients(value: Tensor, parameters: list[Tensor], create_graph: bool = False) -> list[Tensor]:
    if not value.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    found = torch.autograd.grad(value, parameters, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def _dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def _ascent_gap(
    parameters: list[Tensor], slope: list[Tensor], rho: float, value: float, measure: Callable[[], float]
) -> float:
    """The rise of the loss after a step of length rho along the gradient, which is taken back exactly."""
    length = float(_dot(slope, slope).sqrt())
    if length == 0:
        return 0.0
    before = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            torch._foreach_add_(parameters, slope, alpha=rho / length)
            return measure() - value
    finally:
        with torch.no_grad():
            torch._foreach_copy_(parameters, before)


def _dominant(
    times: Callable[[list[Tensor]], list[Tensor]],
    start: list[Tensor],
    shift: float,
    iterations: int,
    tolerance: float,
) -> tuple[float, int, bool]:
    """The eigenvalue farthest from ``shift``, the products used, and whether it settled."""
    vector, value = [part.clone() for part in start], float("nan")
    for used in range(1, iterations + 1):
        torch._foreach_div_(vector, float(_dot(vector, vector).sqrt()))
        product = times(vector)
        before, value = value, float(_dot(vector, product))
        if abs(value - before) <= tolerance * max(abs(value), abs(value - shift)):
            return value, used, True
        torch._foreach_add_(product, vector, alpha=-shift)
        if float(_dot(product, product)) == 0:  # the Hessian is zero in every direction that is left
            return value, used, True
        vector = product
    return value, iterations, False
