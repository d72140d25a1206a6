"""Core: Perplexity of a causal language model, and the blocks of tokens that it is measured on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import check_at_least, checked
from heldout.method import evaluating, forward


@checked
def perplexity(model: nn.Module, data: Iterable[Tensor | Mapping[str, Any]]) -> float:
    """Returns exp of the mean negative log likelihood per predicted token.

    Every token but the first of its sequence is predicted from those before it, so the number depends on the length
    of the sequences. The model is put into evaluation mode and back.

    Args:
        model: token ids ``(batch, length)`` -> logits ``(batch, length, vocabulary)``, or an output with ``logits``.
        data: batches of token ids, int64 ``(batch, length)``; or dicts with ``input_ids`` and further arguments of
            the model, where tokens with an ``attention_mask`` of 0 are not counted, nor is what follows them, wherever
            they stand; the positions of the others begin at 0 in models that are told them.

    Raises:
        ValueError: if there is no token to predict, or a loss is not finite.

    Example:
        >>> uniform = nn.Embedding.from_pretrained(torch.zeros(5, 8))
        >>> round(perplexity(uniform, [torch.tensor([[0, 1, 2]])]), 4)
        8.0
    """
    total, count = 0.0, 0
    with evaluating(model), torch.inference_mode():
        for batch in data:
            ids = batch if isinstance(batch, Tensor) else batch["input_ids"]
            targets = ids[:, 1:]
            if not isinstance(batch, Tensor) and batch.get("attention_mask") is not None:
                real = batch["attention_mask"] != 0
                targets = targets.masked_fill(~(real[:, 1:] & real[:, :-1]), -100)
                if "position_ids" not in batch and "position_ids" in signature(model.forward).parameters:
                    batch = {**batch, "position_ids": (real.long().cumsum(1) - 1).clamp(min=0)}
            logits = forward(model, batch)
            losses = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets.flatten(), reduction="none")
            total += float(losses.double().sum())
            count += int((targets != -100).sum())
    if not count:
        raise ValueError("perplexity needs at least one sequence of two tokens")
    if not math.isfinite(total):
        raise ValueError("the model's loss is not finite")
    return math.exp(min(total / count, 700.0))


@checked
def token_blocks(texts: Iterable[str], tokenizer: Any, length: int, *, limit: int | None = None) -> Tensor:
    """Returns texts, joined and cut into blocks of equal length: int64 ``(blocks, length)``; the rest is dropped.

    Texts are separated by the tokenizer's end-of-text token, where it has one.

    Args:
        texts: the texts; read until there are ``limit`` blocks.
        tokenizer: a tokenizer of transformers, or ``text -> list of token ids``.
        length: tokens of a block.
        limit: most blocks; default: all.

    Raises:
        ValueError: if the texts do not fill one block.

    Example:
        >>> token_blocks(["abc", "defg"], lambda text: [ord(letter) for letter in text], 3).tolist()
        [[97, 98, 99], [100, 101, 102]]
    """
    check_at_least(1, length=length)
    if length < 1:
        raise ValueError(f"a block needs at least 1 token, got {length}")
    ids: list[int] = []
    end = getattr(tokenizer, "eos_token_id", None)
    for text in texts:
        if hasattr(tokenizer, "eos_token_id"):
            ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            ids += [] if end is None else [end]
        else:
            ids += tokenizer(text)
        if limit is not None and len(ids) >= limit * length:
            break
    blocks = len(ids) // length if limit is None else min(limit, len(ids) // length)
    if not blocks:
        raise ValueError(f"the texts have {len(ids)} tokens, less than one block of {length}")
    return torch.tensor(ids[: blocks * length], dtype=torch.int64).view(blocks, length)
