"""Core: fine-tuning of the last blocks of a causal model, over activations that are computed once.

The blocks below are frozen, so what they make of the data is the same in every step: it is kept, and a step costs a
forward and a backward pass through the last blocks and the head alone. Deviation from plain fine-tuning: no dropout.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from heldout.errors import check_nonempty, check_nonnegative, checked
from heldout.sources import SMOL, cache_folder, computed_once

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
    inner = _inner(model, layers)
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


class LastBlocks(nn.Module):
    """The last blocks of a causal model as a model, which remembers what the blocks below make of each row of tokens.

    It is called like the model that it was made of, gives the same logits, and may be tuned: its parameters are those
    of the last blocks and the last norm, in copies of their own; there is no dropout. Copies of it share the memory.
    It writes nothing (``generate``), and keeps no keys and values. Memory: the width times 4 bytes for each token.

    Attributes:
        config: of the last blocks alone.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> model = tiny_llama(word_tokenizer(["a b c"]), dim=16, layers=3)
        >>> short, ids = last_blocks(model, 1), torch.tensor([[4, 5, 6]])
        >>> torch.allclose(short(ids).logits, model(ids).logits, atol=1e-5), len(short.blocks)
        (True, 1)
    """

    def __init__(self, below: _Below, top: Any) -> None:
        super().__init__()
        self.blocks, self.norm, self.config = top.model.layers, top.model.norm, top.config
        self._kept = _Kept(below, top)

    @property
    def device(self) -> torch.device:
        """Where its blocks are."""
        return next(self.blocks.parameters()).device

    def get_input_embeddings(self) -> Any:
        """Returns the embedding, which is not tuned."""
        return self._kept.top.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """Returns the head, which is not tuned."""
        return self._kept.top.get_output_embeddings()

    def read(self, rows: Sequence[Sequence[int]], path: str | Path | None = None) -> None:
        """Computes what the blocks below make of rows of token ids, or reads it from a file; prefixes are known then.

        Args:
            rows: of token ids.
            path: file to keep it in; its name tells all that it depends on: model, number of blocks, and rows.
        """
        below = self._kept.below
        wanted = [tuple(row) for row in rows]
        states = below.states(wanted) if path is None else computed_once(Path(path), lambda: below.states(wanted))
        if [len(each) for each in states] != [len(row) for row in wanted]:
            raise ValueError(f"{path} holds the states of other rows")
        for row, each in zip(wanted, states, strict=True):
            below.keep(row, each.to(self.device))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool = False,
    ) -> Any:
        """Returns the model's output for ids ``(batch, length)``, which are padded behind."""
        from transformers.modeling_outputs import CausalLMOutput

        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if bool((mask[:, 1:] > mask[:, :-1]).any()):
            raise ValueError("attention_mask must have its zeros behind the tokens: rows are padded on the right")
        rows = [tuple(ids[:count]) for ids, count in zip(input_ids.tolist(), mask.sum(1).tolist(), strict=True)]
        if unknown := [row for row in dict.fromkeys(rows) if not self._kept.below.knows(row)]:
            self.read(unknown)
        hidden = nn.utils.rnn.pad_sequence([self._kept.below.find(row).to(self.device) for row in rows], True)
        if hidden.shape[1] < input_ids.shape[1]:
            hidden = functional.pad(hidden, (0, 0, 0, input_ids.shape[1] - hidden.shape[1]))
        top = _with_layers(self._kept.top, self.blocks, self.norm)
        last = top.model(inputs_embeds=hidden, attention_mask=mask, use_cache=False).last_hidden_state
        head = self.get_output_embeddings()
        logits = functional.linear(last, head.weight.detach(), None if head.bias is None else head.bias.detach())
        if labels is None:
            return CausalLMOutput(logits=logits)
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED)
        return CausalLMOutput(loss=loss, logits=logits)


@checked
def last_blocks(model: Any, layers: int) -> LastBlocks:
    """Returns the last blocks of a causal model as a model of its own, see ``LastBlocks``; the model given stays.

    What is tuned or measured again and again on the same rows costs the last blocks alone.

    Args:
        model: as for ``tune_last_layers``.
        layers: last blocks, from 1 to all of them.

    Raises:
        ValueError: layers out of range, or a model of another form.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> model = tiny_llama(word_tokenizer(["a b c"]), dim=16, layers=3)
        >>> sum(weight.numel() for weight in last_blocks(model, 1).parameters()) < model.num_parameters() / 2
        True
    """
    inner = _inner(model, layers)
    top = _with_layers(model, copy.deepcopy(inner.layers[-layers:]), copy.deepcopy(inner.norm))
    for number, block in enumerate(top.model.layers):
        block.self_attn.layer_idx = number
    return (
        LastBlocks(_Below(_with_layers(model, inner.layers[:-layers], nn.Identity())), top).requires_grad_(True).eval()
    )


@checked
def smollm_blocks(texts: Sequence[str], layers: int) -> tuple[LastBlocks, Any]:
    """Returns the last blocks of SmolLM2-135M over some texts, and its tokenizer, cut to the tokens of these texts.

    What the blocks below make of the texts is computed once and kept in ``heldout.sources.cache_folder``.

    Args:
        texts: whole, such as a prompt with an option; an end token is put behind each.
        layers: last blocks, from 1 to 30.

    Raises:
        SourceError: the package of the model is not installed; the message names the command to run.
        ValueError: no texts, or layers out of range.

    Example:
        >>> model, tokenizer = smollm_blocks(["A cat sat."], 6)  # doctest: +SKIP
    """
    from heldout.lm import smollm

    check_nonempty(texts=texts)
    model, tokenizer = smollm(texts=texts)
    short = last_blocks(model, layers)
    rows = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(list(texts))["input_ids"]]
    told = hashlib.sha256(repr([SMOL.packages[0].sha256, layers, rows]).encode()).hexdigest()[:32]
    short.read(rows, cache_folder() / "features" / f"last-blocks-{told}.pt")
    return short, tokenizer


class _Below:
    """The blocks below, and what they made of rows that were read: the states of a row are those of its prefixes."""

    def __init__(self, body: Any) -> None:
        self.body = body
        self.rows: dict[tuple[int, ...], Tensor] = {}

    def knows(self, row: tuple[int, ...]) -> bool:
        return row in self.rows

    def find(self, row: tuple[int, ...]) -> Tensor:
        return self.rows[row][: len(row)]

    def keep(self, row: tuple[int, ...], states: Tensor) -> None:
        for end in range(1, len(row) + 1):
            self.rows.setdefault(row[:end], states)

    def states(self, rows: Sequence[tuple[int, ...]], batch_size: int = 32) -> list[Tensor]:
        with torch.inference_mode(False), torch.no_grad():  # what is kept may be trained on later
            return self._states(rows, batch_size)

    def _states(self, rows: Sequence[tuple[int, ...]], batch_size: int) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
        for start in range(0, len(order), batch_size):
            members = order[start : start + batch_size]
            ids = nn.utils.rnn.pad_sequence([torch.tensor(rows[number]) for number in members], True)
            lengths = torch.tensor([len(rows[number]) for number in members])
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
            place = self.body.device
            hidden = self.body.model(ids.to(place), attention_mask=mask.to(place), use_cache=False).last_hidden_state
            found |= {number: hidden[row, : len(rows[number])].clone() for row, number in enumerate(members)}
        return [found[number] for number in range(len(rows))]


class _Kept:
    """What is no part of a module and is shared by its copies: the blocks below, embedding and head."""

    def __init__(self, below: _Below, top: Any) -> None:
        self.below, self.top = below, top

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kept:
        return self


def _inner(model: Any, layers: int) -> Any:
    inner: Any = getattr(model, "model", None)
    if not isinstance(getattr(inner, "layers", None), nn.ModuleList) or not hasattr(inner, "norm"):
        raise ValueError("the model needs its blocks in model.model.layers and its last norm in model.model.norm")
    if not 1 <= layers <= len(inner.layers):
        raise ValueError(f"layers must be from 1 to {len(inner.layers)}, got {layers}")
    return inner


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
