"""Winsorised SGD: ``heldout.optim.winsorized_grad`` in place of a backward pass. Source: arXiv:2002.10657."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from heldout.errors import check_same_length, checked
from heldout.measure import per_example_grads
from heldout.optim import winsorized_grad


@checked
def winsorized_backward(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    percent: float = 10.0,
) -> None:
    """Sets each parameter's ``.grad`` to the winsorised mean of its per-example gradients; an optimizer steps next.

    Needs ``batch * parameters`` floats and sorts them. The model is used in eval mode.

    Args:
        model, inputs, targets, loss: as ``heldout.measure.per_example_grads``; the loss is not reduced.
        percent: as ``winsorized_grad``.

    Raises:
        ValueError: as both.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> winsorized_backward(model, torch.rand(8, 2), torch.tensor([0, 1] * 4), percent=10)
        >>> optimizer.step()
    """
    check_same_length(inputs=inputs if isinstance(inputs, Tensor) else None, targets=targets)
    grads = winsorized_grad(per_example_grads(model, inputs, targets, loss), percent)
    for name, parameter in model.named_parameters():
        if name in grads:
            parameter.grad = grads[name]
