"""GPTQ: round a weight matrix column by column, and let the columns to come make up for each error.

The error in the layer's outputs is a quadratic form in the second moments H of its inputs; after a column is rounded,
the best correction of the others is known in closed form. Source: arXiv:2210.17323.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from heldout.errors import check_dimensions, check_nonnegative, check_one_of, check_values, checked
from heldout.weights.quantization.block_rules import Rule, block_linears, block_stacks
from heldout.weights.quantization.blockwise import BlockInputs, evaluating, watching
from heldout.weights.quantization.quantize import (
    QTensor,
    check_floating_point,
    check_layers,
    dequantize,
    group_range,
    weight_of,
)

Order = Literal["activation", "natural"]


@checked
def gptq(
    model: nn.Module,
    calib: Iterable[Tensor | Mapping[str, Any]],
    bits: int = 4,
    group_size: int = 128,
    *,
    symmetric: bool = False,
    damping: float = 0.01,
    order: Order = "activation",
    rules: Mapping[type[nn.Module], Rule] | None = None,
    scale_dtype: torch.dtype | None = None,
) -> dict[str, QTensor]:
    """Quantises the linear layers of a model's blocks by GPTQ, in place; returns the quantised weights by name.

    Blocks are visited in order, each on the output of the *quantised* blocks before it (a decoder reads what the
    encoder made before it was quantised); the layers of one block are rounded at once, on the inputs that they have
    before.

    Args:
        model: see ``awq_search``.
        calib: batches of calibration data, as for ``awq_search``.
        bits, group_size, symmetric, scale_dtype: see ``group_quantize``.
        damping: added to the diagonal of H, as a fraction of its mean.
        order: see ``gptq_quantize``.
        rules: which blocks there are, as for ``awq_search``.

    Raises:
        ValueError: as ``awq_search``; no weight has changed then, unless an activation is not finite.

    Source: arXiv:2210.17323, algorithm 1.

    Example:
        >>> from heldout.weights import BlockRule
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear = nn.Linear(8, 8)
        ...     def forward(self, x):
        ...         return x + self.linear(x)
        >>> model = nn.Sequential(Block(), Block())
        >>> quantised = gptq(model, [torch.randn(64, 8)], 3, 8, rules={Block: lambda block: BlockRule(())})
        >>> torch.equal(model[1].linear.weight, dequantize(quantised["1.linear"]))
        True
    """
    check_nonnegative(damping=damping)
    check_one_of(get_args(Order), order=order)
    stacks = block_stacks(model, rules)
    layers = block_linears(model, rules)
    check_layers(layers, group_size)
    inputs = BlockInputs(model, stacks, calib)
    quantised: dict[str, QTensor] = {}
    with evaluating(model), torch.no_grad():
        for name, block in ((name, block) for stack in stacks for name, block in stack.items()):
            inputs.enter(name)
            inside = set(block.modules())
            own = {layer: module for layer, module in layers.items() if module in inside}
            moments = _moments(inputs, name, block, own)
            for layer, module in own.items():
                weight = weight_of(module)
                quantised[layer] = gptq_quantize(
                    weight, moments[layer], bits, group_size, symmetric=symmetric, damping=damping,
                    order=order, scale_dtype=scale_dtype,
                )  # fmt: skip
                weight.copy_(dequantize(quantised[layer]))
            inputs.hidden = inputs.run(name, block)
    return quantised


@checked
def gptq_quantize(
    w: Tensor,
    moments: Tensor,
    bits: int = 4,
    group_size: int = 128,
    *,
    symmetric: bool = False,
    damping: float = 0.01,
    order: Order = "activation",
    scale_dtype: torch.dtype | None = None,
) -> QTensor:
    """Returns one weight matrix quantised so that its outputs change little.

    Args:
        w: floating point ``(out, in)``.
        moments: second moments of the inputs ``(in, in)``, up to a factor.
        bits, group_size, symmetric, scale_dtype: see ``group_quantize``.
        damping: added to the diagonal of the moments, as a fraction of its mean.
        order: "activation" rounds the columns of the largest inputs first, while most others are there to make up for
            them, with the scales of the given weights ("act-order" with static groups in the paper's code); "natural"
            is the paper's algorithm: from left to right, and a group's scale is that of its weights when their turn
            comes.

    Raises:
        ValueError: as ``group_quantize``, if the moments are not positive semi-definite, or ``damping`` is negative.
        TypeError: as ``group_quantize``.

    Source: arXiv:2210.17323, algorithm 1.

    Example:
        >>> x, w = torch.randn(100, 8) @ torch.randn(8, 8), torch.randn(4, 8)
        >>> q = gptq_quantize(w, x.T @ x, bits=3, group_size=8)
        >>> q.q.shape, q.scale.shape
        (torch.Size([4, 8]), torch.Size([4, 1]))
    """
    check_dimensions(2, w=w, moments=moments)
    check_values(w=w, moments=moments)
    check_floating_point(w, scale_dtype)
    check_nonnegative(damping=damping)
    check_one_of(get_args(Order), order=order)
    rows, columns = w.shape
    size = columns if group_size == -1 else group_size
    importance = moments.diagonal()
    columns_in_turn = (
        importance.argsort(descending=True, stable=True) if order == "activation" else torch.arange(columns)
    ).to(w.device)
    hessian = moments.double()[columns_in_turn][:, columns_in_turn]
    turns, diagonal = columns_in_turn.tolist(), hessian.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1
    weight = w.double()[:, columns_in_turn].masked_fill(dead, 0)
    diagonal.add_(damping * diagonal.mean())
    factor, failed = torch.linalg.cholesky_ex(hessian)
    if int(failed):
        raise ValueError("the second moments of the inputs are not positive definite; use more calibration data")
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
    dtype = scale_dtype or w.dtype
    ranges = functools.partial(group_range, bits=bits, group_size=size, symmetric=symmetric, scale_dtype=dtype)
    if order == "activation":
        scale, zero = ranges(w)
    else:
        scale = torch.empty(rows, columns // size, dtype=dtype, device=w.device)
        zero = torch.empty_like(scale)
    q = torch.empty(w.shape, dtype=torch.uint8, device=w.device)
    for start in range(0, columns, size):
        end = start + size
        if order == "natural":
            found = ranges(weight[:, start:end].to(w.dtype))
            scale[:, start // size], zero[:, start // size] = (part[:, 0] for part in found)
        errors = torch.empty(rows, size, dtype=torch.double, device=w.device)
        for turn in range(start, end):
            column = turns[turn]
            step, level_of_zero = scale[:, column // size].double(), zero[:, column // size].double()
            level = ((weight[:, turn] / step).round() + level_of_zero).clamp_(0, 2**bits - 1)
            q[:, column] = level.to(torch.uint8)
            error = (weight[:, turn] - (level - level_of_zero) * step) / inverse[turn, turn]
            weight[:, turn:end] -= error[:, None] * inverse[turn, turn:end]
            errors[:, turn - start] = error
        weight[:, end:] -= errors @ inverse[start:end, end:]
    return QTensor(q, scale, None if symmetric else zero.to(torch.uint8), bits, group_size)


def _moments(inputs: BlockInputs, name: str, block: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}

    def see(layer: str, x: Tensor) -> None:
        x = x.float()
        full = f"{name}.{layer}"
        sums[full] = sums.get(full, 0) + x.T @ x

    with watching(block, [layer.removeprefix(f"{name}.") for layer in layers], see):
        inputs.run(name, block)
    for layer in layers:
        if layer not in sums:
            raise ValueError(f"no calibration data reached {layer}")
        if not bool(torch.isfinite(sums[layer]).all()):
            raise ValueError(f"the input of {layer} is not finite on the calibration data")
    return sums
