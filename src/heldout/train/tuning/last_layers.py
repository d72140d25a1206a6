"""Core: fine-tuning of the last blocks of a causal model, over activations that are computed once.

The blocks below are frozen, so what they make of the data is the same in every step: it is kept, and a step costs a
forward and a backward pass through the last blocks and the head alone. Deviation from plain fine-tuning: no dropout.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from heldout.errors import check_nonnegative, checked

_IGNORED = -100


@checked
def tune_last_layers(
    model: Any,
    tokenizer: Any,
    rows: Sequence[tuple[str, str]],
    *,
    layers: int = 4,
    steps: int = 60,
    batch_size: int = 8,
    lr: float = 1e-4,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> Any:
    """Returns the model with its last blocks and the last norm tuned on the rows; the model given stays as it was.

    The rest is shared with it. AdamW with a linear decay to zero, gradients clipped to norm 1; the loss counts the
    responses and the end token after each. The rows come in random order, all of them before one comes again. Memory:
    the width of the model times 4 bytes for each token of the rows.

    Args:
        model: a causal model of transformers whose blocks are ``model.model.layers`` and whose last norm is
            ``model.model.norm``: Llama, Qwen, Mistral and the like; its head is not tuned.
        tokenizer: its tokenizer, with an end token.
        rows: pairs (prompt, response), which are joined as they are: spaces between the two belong to one of them.
        layers: last blocks that are tuned, from 1 to all of them.
        steps, batch_size, lr, weight_decay: of AdamW.
        seed: of the order.

    Raises:
        ValueError: no rows, a response without tokens, layers or steps out of range, or a model of another form.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> tokenizer = word_tokenizer(["a b c"])
        >>> model = tiny_llama(tokenizer, dim=16, layers=3)
        >>> tuned = tune_last_layers(model, tokenizer, [("a b", " c")], layers=1, steps=2)
        >>> tuned.model.layers[1] is model.model.layers[1], tuned.model.layers[2] is model.model.layers[2]
        (True, False)
    """
    check_nonnegative(lr=lr, weight_decay=weight_decay)
    inner: Any = getattr(model, "model", None)
    if not isinstance(getattr(inner, "layers", None), nn.ModuleList) or not hasattr(inner, "norm"):
        raise ValueError("the model needs its blocks in model.model.layers and its last norm in model.model.norm")
    if not 1 <= layers <= len(inner.layers):
        raise ValueError(f"layers must be from 1 to {len(inner.layers)}, got {layers}")
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps and batch_size must be at least 1, got {steps} and {batch_size}")
    if not rows:
        raise ValueError("tune_last_layers needs at least one row, got none")
    encoded = [_encoded(tokenizer, number, *row) for number, row in enumerate(rows)]
    body = _with_layers(model, inner.layers[:-layers], nn.Identity())
    top = _with_layers(model, copy.deepcopy(inner.layers[-layers:]), copy.deepcopy(inner.norm))
    with torch.no_grad():
        kept = [body.model(ids[None].to(model.device), use_cache=False).last_hidden_state[0] for ids, _ in encoded]
    weights = [*top.model.layers.parameters(), *top.model.norm.parameters()]
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    generator, order = torch.Generator().manual_seed(seed), list[int]()
    for _ in range(steps):
        while len(order) < batch_size:
            order += torch.randperm(len(rows), generator=generator).tolist()
        chosen, order = order[:batch_size], order[batch_size:]
        labels = nn.utils.rnn.pad_sequence([encoded[i][1] for i in chosen], True, _IGNORED).to(model.device)
        hidden = nn.utils.rnn.pad_sequence([kept[i] for i in chosen], True)
        lengths = torch.tensor([len(kept[i]) for i in chosen], device=model.device)
        mask = (torch.arange(hidden.shape[1], device=model.device) < lengths[:, None]).long()
        loss = top(inputs_embeds=hidden, attention_mask=mask, labels=labels, use_cache=False).loss
        gradients = torch.autograd.grad(loss, weights)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
    for weight in weights:
        weight.grad = None
    return _with_layers(model, nn.ModuleList([*inner.layers[:-layers], *top.model.layers]), top.model.norm)


def _encoded(tokenizer: Any, number: int, prompt: str, response: str) -> tuple[Tensor, Tensor]:
    read = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    written = tokenizer(response, add_special_tokens=False)["input_ids"]
    if not written:
        raise ValueError(f"the response of row {number} has no tokens")
    written = [*written, tokenizer.eos_token_id]
    return torch.tensor(read + written), torch.tensor([_IGNORED] * len(read) + written)


def _with_layers(model: Any, layers: Any, norm: nn.Module) -> Any:
    """A model that shares everything with another one but its blocks and last norm, in evaluation mode."""
    other = copy.copy(model)
    other._modules = dict(model._modules)
    other.model = copy.copy(model.model)
    other.model._modules = dict(model.model._modules) | {"layers": layers, "norm": norm}
    other.config = other.model.config = copy.deepcopy(model.config)
    other.config.num_hidden_layers = len(layers)
    return other.eval()
