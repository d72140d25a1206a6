"""Quantisation as Methods: what a trained model loses, on which data, when its weights keep a few bits each.

Source: arXiv:2306.00978 for AWQ; rounding to the nearest level is its baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from heldout.data import batches
from heldout.errors import check_at_least, check_between, checked
from heldout.method import Method, Run, Splits
from heldout.nn import inputs_for
from heldout.weights.quantization.awq import apply_awq, awq_search
from heldout.weights.quantization.block_rules import block_linears
from heldout.weights.quantization.quantize import check_layers, linears, rtn, weight_of

_GROUPS = (128, 64, 32, 16, 8)


@checked
def rtn_method(bits: int = 4, group_size: int | None = None, symmetric: bool = False) -> Method:
    """Returns the Method that rounds the weights of linear layers to the nearest level, after training.

    The model computes with the rounded weights, in the precision that it had: its scores are those of a quantised
    model, its speed and memory are not. ``heldout quantize`` writes the small files.

    Args:
        bits: of a weight, 2 to 8.
        group_size: weights of a row that share a scale; None takes the largest of 128, 64, 32, 16 and 8 that divides
            every layer's inputs, or whole rows.
        symmetric: levels around zero, without an offset.

    Raises:
        ValueError: numbers out of range.

    Source: arXiv:2306.00978, eq. 1.

    Example:
        >>> rtn_method(bits=3).stages
        ('weights',)
    """
    _check(bits, group_size)

    def weights(run: Run, module: nn.Module) -> nn.Module:
        rtn(module, bits, _group(linears(module), group_size), symmetric=symmetric)
        return module

    def check(module: nn.Module, splits: Splits) -> str | None:
        return _why_not(module, group_size)

    return Method("rtn", weights=weights, check=check)


@checked
def awq_method(bits: int = 4, group_size: int | None = None, symmetric: bool = False, examples: int = 64) -> Method:
    """Returns the Method that quantises a transformer's blocks by AWQ, after training, calibrated on training examples.

    As ``rtn``, with the input channels that carry large activations scaled up before. Activation functions are not
    scaled, so that the model keeps its modules.

    Args:
        bits, group_size, symmetric: as for ``rtn_method``.
        examples: of the training set, drawn at random, that activations are measured on.

    Raises:
        ValueError: numbers out of range.

    Source: arXiv:2306.00978.

    Example:
        >>> awq_method(bits=3, group_size=32).stages
        ('weights',)
    """
    _check(bits, group_size)
    check_at_least(1, examples=examples)

    def weights(run: Run, module: nn.Module) -> nn.Module:
        order = torch.randperm(len(run.splits.train), generator=run.generator)[:examples]  # type: ignore[arg-type]
        calib = [_unlabeled(module, inputs) for inputs, _, _ in batches(run.splits.train, 1, order)]  # no padding
        layers = block_linears(module)
        size = _group(layers, group_size)
        apply_awq(module, awq_search(module, calib, bits, size, symmetric=symmetric, activations=False))
        rtn(module, bits, size, symmetric=symmetric, layers=layers)
        return module

    def check(module: nn.Module, splits: Splits) -> str | None:
        inputs = next(batches(splits.train, 1))[0]
        if not isinstance(inputs, Tensor | Mapping):
            return f"it calibrates on inputs that are tensors or mappings, not {type(inputs).__name__}"
        try:
            layers = block_linears(module)
        except ValueError:
            return "it acts on the blocks of transformers, and finds no list of blocks in this model"
        return _why_not(module, group_size, layers)

    return Method("awq", weights=weights, check=check)


def _check(bits: int, group_size: int | None) -> None:
    check_between(2, 8, bits=bits)
    check_at_least(1, group_size=group_size)


def _group(layers: Mapping[str, nn.Module], asked: int | None) -> int:
    if asked is not None:
        return asked
    widths = [weight_of(layer).shape[1] for layer in layers.values()]
    return next((size for size in _GROUPS if all(width % size == 0 for width in widths)), -1)


def _unlabeled(module: nn.Module, inputs: Any) -> Any:
    """Inputs as the model takes them: texts come with the tokens that count, which are no arguments of it."""
    given = inputs_for(module, inputs)
    return given if isinstance(given, Tensor) else {k: v for k, v in given.items() if k not in ("wanted", "weights")}


def _why_not(module: nn.Module, group_size: int | None, layers: Mapping[str, nn.Module] | None = None) -> str | None:
    if any("lora_" in name for name, _ in module.named_parameters()):
        return "it acts on whole weights: merge the adapters into the model first"
    try:
        chosen = linears(module) if layers is None else layers
        check_layers(chosen, _group(chosen, group_size) if chosen else 1)
    except ValueError as error:
        return str(error)
    return None
