"""Core: Structured ablation: what a network loses when the hidden units between two layers are removed one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from heldout.errors import checked

T = TypeVar("T")


class PruneCurve(NamedTuple, Generic[T]):
    """What ``evaluate`` returned as units were removed.

    Attributes:
        removed: numbers of units removed, from 0 to all.
        values: one for each of them.

    Example:
        >>> curve = PruneCurve(removed=[0, 2, 4], values=[0.95, 0.94, 0.5])
        >>> max(count for count, accuracy in zip(*curve) if accuracy >= 0.9)
        2
    """

    removed: list[int]
    values: list[T]


@checked
def prune_units(
    model: nn.Module,
    layer_in: str,
    layer_out: str,
    order: Tensor,
    evaluate: Callable[[nn.Module], T],
    steps: int = 20,
) -> PruneCurve[T]:
    """Returns how a model fares as the hidden units between two layers are removed in a given order.

    A removed unit is zero where ``layer_in`` gives it out and where ``layer_out`` takes it in, as if its weights were
    zero in both. No weight is touched: the model is as before afterwards, also if ``evaluate`` raises. Costs
    ``steps + 1`` evaluations.

    Args:
        model: any module.
        layer_in: name of a ``Linear``, convolution, ``Embedding`` or ``EmbeddingBag``; its outputs are the units.
        layer_out: name of the ``Linear`` or convolution that takes them, directly or through layers that keep their
            order, such as activations, norms, pooling and flattening.
        order: int64 ``(units,)``, a permutation: which unit goes first.
        evaluate: ``model -> value``, any type.
        steps: points of the curve after the first; they are evenly spaced.

    Raises:
        ValueError: an unknown or unsuitable layer, layers that do not share their units, or an order that is no
            permutation of them.

    Source: arXiv:2310.13061, section 4.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
        >>> curve = prune_units(model, "0", "2", torch.arange(4), lambda m: m(torch.ones(1, 3)).abs().sum().item(), 2)
        >>> curve.removed, curve.values[-1]
        ([0, 2, 4], 0.0)
    """
    first, last = _layer(model, layer_in), _layer(model, layer_out)
    units, inputs = _outputs(first, layer_in), _inputs(last, layer_out)
    if inputs % units or (inputs != units and not (isinstance(first, _CONV) and isinstance(last, nn.Linear))):
        raise ValueError(f"{layer_out} takes {inputs} inputs, which are not the {units} units of {layer_in}")
    if order.shape != (units,) or not torch.equal(order.sort().values.cpu(), torch.arange(units)):
        raise ValueError(f"order must be a permutation of the {units} units of {layer_in}, got {tuple(order.shape)}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    keep = torch.ones(units, device=next(first.parameters()).device)

    def mask_outputs(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output * _channels(keep, module, output)

    def mask_inputs(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        each = keep.repeat_interleave(inputs // units)
        return (args[0] * _channels(each, module, args[0]), *args[1:])

    removed = sorted({round(units * step / steps) for step in range(steps + 1)})
    handles = [first.register_forward_hook(mask_outputs), last.register_forward_pre_hook(mask_inputs)]
    values = []
    try:
        for count in removed:
            keep[order[:count]] = 0
            values.append(evaluate(model))
    finally:
        for handle in handles:
            handle.remove()
    return PruneCurve(removed, values)


_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _layer(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules())
    if name not in modules:
        raise ValueError(f"the model has no layer {name!r}; it has {', '.join(filter(None, modules))}")
    return modules[name]


def _outputs(layer: nn.Module, name: str) -> int:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    if isinstance(layer, _CONV):
        return layer.out_channels
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        return layer.embedding_dim
    raise ValueError(f"{name} must be a Linear, convolution or embedding, got {type(layer).__name__}")


def _inputs(layer: nn.Module, name: str) -> int:
    if isinstance(layer, nn.Linear):
        return layer.in_features
    if isinstance(layer, _CONV) and layer.groups == 1:
        return layer.in_channels
    raise ValueError(f"{name} must be a Linear or a convolution without groups, got {layer}")


def _channels(mask: Tensor, layer: nn.Module, values: Tensor) -> Tensor:
    """The mask along the axis of channels or features of a layer's input or output."""
    mask = mask.to(values.dtype)
    return mask.view(-1, *[1] * (len(layer.kernel_size))) if isinstance(layer, _CONV) else mask
