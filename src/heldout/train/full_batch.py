"""Core: Full-batch training for thousands of steps on a small problem, as the study of grokking needs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import check_length, check_nonempty, check_nonnegative, checked
from heldout.method import evaluating, forward


@checked
def full_batch(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    *,
    steps: int,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    lr: float = 1e-3,
    weight_decay: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.98),
    evaluate: Mapping[str, tuple[Any, Tensor]] | None = None,
    every: int = 20,
) -> Iterator[dict[str, float]]:
    """Trains a model in place by AdamW on all data at once, and yields a record every few steps.

    Leave the ``for`` loop to stop early, look at the model inside it to keep a checkpoint. A step costs one forward
    and one backward pass; subnormal numbers, which slow a CPU down many times, are flushed to zero during the steps.

    Args:
        model: trained as it is, in train mode; parameters without ``requires_grad`` stay fixed.
        inputs: all training inputs: a tensor, a tuple or a dict of them.
        targets: what ``loss(outputs, targets)`` takes.
        steps: most steps to make.
        weight_decay: of AdamW: each step multiplies the weights by ``1 - lr * weight_decay``.
        evaluate: ``{name: (inputs, class indices)}``, the sets whose accuracy is recorded, in eval mode.
        every: steps between records; the last step is recorded, too.

    Yields:
        ``{"step": steps made, "loss": of the last of them, name: accuracy, ...}``.

    Raises:
        ValueError: no step or parameter, an evaluation set named like another entry, or a loss that is not finite.

    Example:
        >>> x, y = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
        >>> for record in full_batch(nn.Linear(1, 2), x, y, steps=500, lr=0.1, evaluate={"train": (x, y)}):
        ...     if record["train"] == 1: break
        >>> record["train"]
        1.0
    """
    check_nonnegative(lr=lr)
    check_length(2, betas=betas)
    check_nonempty(evaluate=evaluate)
    if steps < 1 or every < 1:
        raise ValueError(f"steps and every must be at least 1, got {steps} and {every}")
    if reserved := {"step", "loss"} & set(evaluate or {}):
        raise ValueError(f"an evaluation set cannot be named {reserved.pop()!r}: the record has that entry already")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(f"{type(model).__name__} has no parameters to train")
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
    for start in range(0, steps, every):
        end = min(start + every, steps)
        with _flushing_denormals():
            model.train()
            for _ in range(start, end):
                optimizer.zero_grad()
                value = loss(forward(model, inputs), targets)
                value.backward()
                optimizer.step()
            record = {"step": end, "loss": value.item()} | _accuracies(model, evaluate or {})
        if not math.isfinite(record["loss"]):
            raise ValueError(f"the loss is {record['loss']} at step {end}: lower lr ({lr}) or weight_decay")
        yield record


@torch.no_grad()
def _accuracies(model: nn.Module, sets: Mapping[str, tuple[Any, Tensor]]) -> dict[str, float]:
    with evaluating(model):
        return {
            name: (forward(model, inputs).argmax(-1) == labels).double().mean().item()
            for name, (inputs, labels) in sets.items()
        }


@contextmanager
def _flushing_denormals() -> Iterator[None]:
    flushed = bool((torch.full((1,), 1e-38) * 0.1 == 0).item())
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
