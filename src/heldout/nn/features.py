"""Core: split_head: a classifier seen as an encoder and its classification layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from heldout.data import gather
from heldout.errors import checked
from heldout.method import Splits, evaluating, forward, why_no_class_labels


class Encoder:
    """Everything before a model's classification layer, as a callable from inputs to features ``(batch, dim)``.

    It runs the model itself, in the mode that the model is in, with gradients, and returns what enters ``head``.
    Inputs with more axes than ``(batch, dim)`` are reduced by the rule of ``split_head``.

    Args:
        module: the whole model.
        head: its classification layer, a part of it that each forward pass runs. ``split_head`` finds it.

    Attributes:
        module: the whole model.
        head: its classification layer, an ``nn.Linear``.
        dim: length of a feature vector.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> encoder, x = Encoder(model, model[2]), torch.rand(5, 4)
        >>> encoder.dim, encoder(x).equal(model[:2](x))
        (8, True)
    """

    @checked
    def __init__(self, module: nn.Module, head: nn.Linear) -> None:
        self.module, self.head, self.dim = module, head, head.in_features

    def __call__(self, inputs: Any) -> Tensor:
        entered: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
        try:
            logits = forward(self.module, inputs)
        finally:
            handle.remove()
        return _one_vector_each(entered[-1], logits, self.head)


@checked
def split_head(module: nn.Module, example_inputs: Any) -> tuple[Encoder, nn.Linear]:
    """Returns ``(encoder, head)``: the model up to its classification layer, and that layer. Nothing is copied.

    The classification layer is the last ``nn.Linear`` that a forward pass executes; it must have as many outputs as
    the model. Where it is applied to every token ``(batch, tokens, dim)``, the features of an example are those of
    the token whose logits the model returns (CLS or last token, padding included), or the mean over tokens where
    the model returns the mean of the token logits.

    Args:
        module: a classifier: any ``nn.Module``, or a transformers model whose output has ``.logits``.
        example_inputs: a small batch: a tensor, a tuple of them, or a dict of keyword arguments.

    Raises:
        ValueError: no such layer, or token features that cannot be reduced by this rule.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> encoder, head = split_head(model, torch.zeros(2, 3, 4))
        >>> encoder(torch.zeros(5, 3, 4)).shape, head is model[3]
        (torch.Size([5, 8]), True)
    """
    executed: list[nn.Linear] = []
    handles = [
        m.register_forward_hook(lambda m, _args, _out: executed.append(m))
        for m in module.modules()
        if isinstance(m, nn.Linear)
    ]
    try:
        with evaluating(module), torch.no_grad():
            logits = forward(module, example_inputs)
            if not executed:
                raise ValueError("the model has no classification layer: its forward pass runs no nn.Linear")
            head = executed[-1]
            if logits.ndim != 2 or head.out_features != logits.shape[1]:
                raise ValueError(
                    f"the model has no classification layer: its last nn.Linear has {head.out_features} outputs, "
                    f"the model returns {tuple(logits.shape)} for this batch"
                )
            if executed.count(head) > 1:
                raise ValueError(f"the last nn.Linear runs {executed.count(head)} times in one forward pass")
    finally:
        for handle in handles:
            handle.remove()
    encoder = Encoder(module, head)
    with evaluating(module), torch.no_grad():
        encoder(example_inputs)
    return encoder, head


@checked
def why_no_head(module: nn.Module, splits: Splits) -> str | None:
    """Returns why ``split_head`` cannot act on this model and data, or None: the check of methods that need a head.

    Args:
        module: any model; up to two training examples are run through it.
        splits: with the training data.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> splits = Splits(TensorDataset(torch.rand(4, 2), torch.tensor([0, 1, 0, 1])))
        >>> why_no_head(nn.Linear(2, 2), splits) is None
        True
        >>> why_no_head(nn.ReLU(), splits)
        'the model has no classification layer: its forward pass runs no nn.Linear'
    """
    inputs, targets = gather(splits.train, torch.arange(min(2, len(splits.train))))  # type: ignore[arg-type]
    if reason := why_no_class_labels(targets):
        return reason
    try:
        split_head(module, inputs_for(module, inputs))
    except ValueError as error:
        return str(error)
    return None


@checked
def inputs_for(module: nn.Module, inputs: Any) -> Any:
    """Returns inputs on the model's device, with floating-point ones in the model's data type.

    Args:
        module: whose first floating-point parameter tells device and type; without one the inputs come back.
        inputs: a tensor, or tensors in tuples, lists (which come back as tuples) and mappings (as dicts).

    Example:
        >>> inputs_for(torch.nn.Linear(2, 1).double(), torch.ones(1, 2))
        tensor([[1., 1.]], dtype=torch.float64)
    """
    if isinstance(inputs, Mapping):
        return {name: inputs_for(module, value) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(inputs_for(module, value) for value in inputs)
    parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
    if parameter is None or not isinstance(inputs, Tensor):
        return inputs
    dtype = parameter.dtype if inputs.is_floating_point() else inputs.dtype
    return inputs.to(parameter.device, dtype, non_blocking=True)


def _one_vector_each(entered: Tensor, logits: Tensor, head: nn.Linear) -> Tensor:
    if entered.ndim == 2 and len(entered) == len(logits):
        return entered
    if entered.ndim < 3 or len(entered) != len(logits):
        raise ValueError(
            f"the classification layer gets {tuple(entered.shape)} for {len(logits)} examples: expected one vector each"
        )
    tokens = entered.flatten(1, -2)
    with torch.no_grad():
        token_logits = head(tokens)
        distance = (token_logits - logits.unsqueeze(1)).abs().amax(2)
        close = 1e-4 * token_logits.abs().amax().clamp(min=1e-6)
        one_token = (distance.amin(1) <= close).all()
        mean_of_tokens = ((token_logits.mean(1) - logits).abs().amax(1) <= close).all()
    if one_token:
        return tokens[torch.arange(len(tokens), device=tokens.device), distance.argmin(1)]
    if mean_of_tokens:
        return tokens.mean(1)
    raise ValueError(
        f"the classification layer runs on {tokens.shape[1]} tokens of each example, and the model returns neither "
        "one token's logits nor their mean: pool before the classification layer, or pass your own encoder"
    )
