"""Core: The residual stream of a decoder: read at every block, and put in at one, from where the model runs on.

The model itself runs, whatever its architecture; only what its blocks are handed is looked at or replaced. Nothing
stays behind in the model, also where it raises.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from heldout.errors import (
    check_dimensions,
    check_finite,
    check_labels,
    check_nonempty,
    check_same_length,
    checked,
)
from heldout.method import evaluating
from heldout.nn import decoder_parts

Entering = Callable[[int, Tensor], tuple[Tensor, int]]

_OUTPUTS: WeakKeyDictionary[type, int] = (
    WeakKeyDictionary()
)  # class of block -> entries of what it returns; 0: a tensor


class ResidualStream(NamedTuple):
    """What runs through a model.

    Attributes:
        states: before each block, and behind the last one, before the final norm: ``(batch, length, width)`` each.
        logits: the model's own, ``(batch, length, vocabulary)``, or None for a model without a head.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=7, n_embd=8, n_layer=2, n_head=2))
        >>> stream = residual_stream(model, torch.tensor([[1, 2, 3]]))
        >>> torch.allclose(model.lm_head(model.transformer.ln_f(stream.states[-1])), stream.logits)
        True
    """

    states: tuple[Tensor, ...]
    logits: Tensor | None


@checked
def residual_stream(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None, *, blocks: str | None = None
) -> ResidualStream:
    """Returns the residual stream before each block of a decoder and behind the last one. One forward pass.

    The model runs in eval mode without gradients and is left as it was.

    Args:
        model: a decoder of transformers, see ``heldout.nn.decoder_parts``.
        input_ids: int64 ``(batch, length)``.
        attention_mask: as the model takes it, ``(batch, length)``.
        blocks: name of the list of blocks; default: found.

    Raises:
        ValueError: ids that the model has not, or no list of blocks.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=7, n_embd=8, n_layer=3, n_head=2))
        >>> stream = residual_stream(model, torch.tensor([[1, 2, 3]]))
        >>> len(stream.states), stream.states[0].shape, stream.logits.shape
        (4, torch.Size([1, 3, 8]), torch.Size([1, 3, 7]))
    """
    parts = decoder_parts(model, blocks=blocks)
    check_ids(model, input_ids, attention_mask)
    states: list[Tensor] = []

    def enter(number: int, hidden: Tensor) -> tuple[Tensor, int]:
        states.append(hidden)
        return hidden, len(hidden)

    with _watched(parts.blocks, enter, states.append):
        output = _run(model, input_ids, attention_mask)
    if len(states) != len(parts.blocks) + 1:
        raise ValueError(f"model must run its {len(parts.blocks)} blocks once each, it ran {len(states) - 1}")
    return ResidualStream(tuple(states), getattr(output, "logits", None))


@checked
def run_from_layer(
    model: nn.Module,
    residual: Tensor,
    layer: int | Tensor,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    blocks: str | None = None,
) -> Tensor:
    """Returns the logits ``(batch, length, vocabulary)`` of a model whose residual stream before a block is given.

    Only the blocks from that one on are computed. Rows may enter at different layers: they run together from there on.
    The model runs in eval mode without gradients, and is left as it was.

    Args:
        model: a decoder of transformers with a head.
        residual: ``(batch, length, width)``.
        layer: number of the block that it enters, or int64 ``(batch,)`` of each row; the number of blocks stands for
            behind the last one.
        input_ids, attention_mask: as for ``residual_stream``; of the ids only the shape matters to most models.
        blocks: name of the list of blocks; default: found.

    Raises:
        ValueError: a layer that the model has not, shapes that differ, or a model without a head.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=7, n_embd=8, n_layer=3, n_head=2))
        >>> ids = torch.tensor([[1, 2, 3]])
        >>> stream = residual_stream(model, ids)
        >>> torch.equal(run_from_layer(model, stream.states[2], 2, ids), stream.logits)
        True
    """
    parts = decoder_parts(model, blocks=blocks)
    count = len(parts.blocks)
    check_ids(model, input_ids, attention_mask)
    check_finite(residual=residual)
    if residual.ndim != 3 or residual.shape[:2] != input_ids.shape:
        raise ValueError(f"residual must be {(*input_ids.shape, 'width')}, got {tuple(residual.shape)}")
    layers = torch.full((len(residual),), layer) if isinstance(layer, int) else layer.cpu()
    check_labels(count + 1, layer=layers)
    check_same_length(residual=residual, layer=layers)
    apart = functools.partial(_run_apart, model, residual, layers, input_ids, attention_mask, parts.path)
    if len(layers.unique()) > 1 and (input_ids.shape[1] % len(residual) == 0 or len(residual) in _sizes(model)):
        return apart()
    order = layers.argsort(stable=True)  # those that have entered are the first rows
    entered = (layers[:, None] <= torch.arange(count)).sum(0).tolist()
    sorted_rows = order.to(residual.device)

    def enter(number: int, hidden: Tensor) -> tuple[Tensor, int]:
        if hidden.shape[-1] != residual.shape[-1]:
            raise ValueError(f"residual must have the width {hidden.shape[-1]}, got {residual.shape[-1]}")
        return (residual[sorted_rows] if number == 0 else hidden), entered[number]

    try:
        with _watched(parts.blocks, enter):
            mask = None if attention_mask is None else attention_mask[sorted_rows]
            output = _run(model, input_ids[sorted_rows], mask)
    except _UnsureError:
        return apart()
    if getattr(output, "logits", None) is None:
        raise ValueError(f"model must have a head that gives logits, and {type(model).__name__} has none")
    return output.logits[sorted_rows.argsort()]


def _run_apart(
    model: nn.Module, residual: Tensor, layers: Tensor, input_ids: Tensor, mask: Tensor | None, blocks: str
) -> Tensor:
    """As ``run_from_layer``, layer by layer: where it cannot be told which of a block's inputs have an entry a row."""
    found: list[Tensor] = [residual] * len(residual)
    for layer in layers.unique().tolist():
        rows = (layers == layer).nonzero()[:, 0].to(residual.device)
        its = None if mask is None else mask[rows]
        logits = run_from_layer(model, residual[rows], layer, input_ids[rows], its, blocks=blocks)
        for row, part in zip(rows.tolist(), logits, strict=True):
            found[row] = part
    return torch.stack(found)


def check_ids(model: Any, input_ids: Tensor, attention_mask: Tensor | None = None) -> None:
    """Refuses token ids that are none of a model's, and a mask of another shape.

    Raises:
        ValueError: ids that are not integers or that the model has not, none at all, or a mask of another shape.
    """
    embedding = decoder_embedding(model)
    check_dimensions(2, input_ids=input_ids)
    check_nonempty(input_ids=input_ids)
    check_labels(None if embedding is None else embedding.num_embeddings, input_ids=input_ids)
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must be of the shape {tuple(input_ids.shape)}, got {tuple(attention_mask.shape)}"
        )


def decoder_embedding(model: nn.Module) -> nn.Embedding | None:
    """Returns the embedding of a model's tokens, or None where it tells none."""
    getter = getattr(model, "get_input_embeddings", None)
    embedding = getter() if getter else None
    return embedding if isinstance(embedding, nn.Embedding) else None


@torch.no_grad()
def _run(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None) -> Any:
    told = {} if attention_mask is None else {"attention_mask": attention_mask}
    with evaluating(model):
        try:
            return model(input_ids=input_ids, use_cache=False, **told)
        except IndexError as error:
            raise ValueError(f"input_ids are longer than the model can take: {input_ids.shape[1]} tokens") from error


def _sizes(model: nn.Module) -> set[int]:
    """The numbers of a model's configuration: of heads, positions, widths."""
    told = vars(getattr(model, "config", None) or object) if hasattr(model, "config") else {}
    return {value for value in told.values() if isinstance(value, int)}


class _UnsureError(Exception):
    """An input of a block whose first axis may or may not be that of the rows."""


@contextmanager
def _watched(
    blocks: Sequence[nn.Module], enter: Entering, leave: Callable[[Tensor], None] | None = None
) -> Iterator[None]:
    """Hands what enters each block to ``enter``, which tells what enters instead, and how many rows of it run."""
    own = {block: block.__dict__.get("forward") for block in blocks}
    ran = 0

    def wrapped(block: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal ran
            number, ran = ran, ran + 1
            hidden, rows = enter(number, args[0] if args else kwargs["hidden_states"])
            kind, batch = type(block), len(hidden)
            if args:
                args = (hidden, *args[1:])
            else:
                kwargs["hidden_states"] = hidden
            if 0 < rows < batch:
                args, kwargs = (_first_rows(given, rows, batch) for given in (args, kwargs))
            if rows or kind not in _OUTPUTS:
                output = original(*args, **kwargs)
                _OUTPUTS[kind] = len(output) if isinstance(output, tuple) else 0
            if rows:
                through = output[0] if isinstance(output, tuple) else output
                hidden = through if rows == batch else torch.cat([through, hidden[rows:]])
            if leave is not None and number == len(blocks) - 1:
                leave(hidden)
            return (hidden, *[None] * (_OUTPUTS[kind] - 1)) if _OUTPUTS[kind] else hidden

        return run

    try:
        for block in own:
            block.forward = wrapped(block, block.forward)  # type: ignore[method-assign]
        yield
    finally:
        for block, forward in own.items():
            if forward is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = forward


def _first_rows(given: Any, rows: int, batch: int) -> Any:
    """What belongs to the first rows of a batch: of masks, positions and biases that have an entry for each row."""
    if isinstance(given, Tensor):
        if given.ndim < 2 or given.shape[0] % batch:
            return given
        if given.shape[0] != batch:
            raise _UnsureError
        return given[:rows]
    if isinstance(given, tuple | list):
        return type(given)(_first_rows(part, rows, batch) for part in given)
    if isinstance(given, dict):
        return {name: _first_rows(part, rows, batch) for name, part in given.items()}
    return given
