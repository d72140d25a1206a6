"""Batches of token ids through a transformers model, reading what they share once."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heldout.lm.models.stopping import stop_at

_SHARED = 16  # tokens: a shorter common prefix is not worth a pass of its own


@dataclass
class ReadContexts:
    """What a causal model keeps of contexts that it has read.

    Attributes:
        cache: keys and values, one row for each context.
        ids: ``(batch, length)``, padded where the contexts differ in length.
        mask: ``(batch, length)``, 0 on padding.
        logits: ``(batch, vocabulary)``, of the token after each context.
    """

    cache: Any
    ids: Tensor
    mask: Tensor
    logits: Tensor

    def repeated(self, counts: Sequence[int]) -> ReadContexts:
        """Returns each context as many times as its count says; the cache is used up."""
        index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(self.ids.device)
        self.cache.batch_select_indices(index)
        return ReadContexts(self.cache, self.ids[index], self.mask[index], self.logits[index])


@torch.inference_mode()
def read_contexts(model: Any, contexts: Sequence[list[int]], pad: int) -> ReadContexts:
    """Returns what a causal model keeps of a batch of contexts, their common prefix read once for all.

    Raises:
        TypeError: if the model keeps no cache that can be copied from row to row.
    """
    shared = min(_shared_length(contexts) if len(contexts) > 1 else 0, min(len(ids) for ids in contexts) - 1)
    shared = shared if shared >= _SHARED else 0
    ids, mask = _padded([ids[shared:] for ids in contexts], pad, model.device)
    cache = None
    if shared:
        prefix = torch.tensor([list(contexts[0][:shared])], device=model.device)
        cache = _copyable(model(input_ids=prefix, use_cache=True, **_accepted(model, logits_to_keep=1)).past_key_values)
        cache.batch_repeat_interleave(len(contexts))
        prefix = prefix.expand(len(contexts), -1)
        ids, mask = torch.cat([prefix, ids], 1), torch.cat([torch.ones_like(prefix), mask], 1)
    out = model(
        input_ids=ids[:, shared:],
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
        **_accepted(model, position_ids=_positions(mask)[:, shared:], logits_to_keep=1),
    )
    return ReadContexts(_copyable(out.past_key_values), ids, mask, out.logits[:, -1].float())


@torch.inference_mode()
def continue_contexts(model: Any, read: ReadContexts, continuations: Sequence[Sequence[int]]) -> Tensor:
    """Returns the log likelihood in nats, ``(batch,)``, of a continuation of each context; the cache is used up."""
    lengths = torch.tensor([len(ids) for ids in continuations], device=model.device)
    width = int(lengths.max())
    ids = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in continuations], device=model.device)
    inside = torch.arange(width, device=model.device) < lengths[:, None]
    logits = read.logits[:, None]
    if width > 1:  # what follows the last token is not asked for
        mask = torch.cat([read.mask, inside[:, :-1].long()], 1)
        out = model(
            input_ids=ids[:, :-1],
            attention_mask=mask,
            past_key_values=read.cache,
            use_cache=True,
            **_accepted(model, position_ids=_positions(mask)[:, read.mask.shape[1] :]),
        )
        logits = torch.cat([logits, out.logits.float()], 1)
    return _sums(logits, ids, inside)


@torch.inference_mode()
def score_responses(model: Any, prompt: Sequence[int], responses: Sequence[Sequence[int]], start: int) -> Tensor:
    """Returns the log likelihood of each response of a sequence-to-sequence model, which reads the prompt once."""
    from transformers.modeling_outputs import BaseModelOutput

    read = torch.tensor([list(prompt)], device=model.device)
    hidden = model.get_encoder()(input_ids=read).last_hidden_state.expand(len(responses), -1, -1)
    lengths = torch.tensor([len(ids) for ids in responses], device=model.device)
    width = int(lengths.max())
    ids = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in responses], device=model.device)
    before = torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], 1)
    out = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
        attention_mask=torch.ones_like(read).expand(len(responses), -1),
        decoder_input_ids=before,
        use_cache=False,
    )
    return _sums(out.logits.float(), ids, torch.arange(width, device=model.device) < lengths[:, None])


@torch.inference_mode()
def generate_ids(
    model: Any,
    tokenizer: Any,
    contexts: Sequence[list[int]],
    n: int = 1,
    *,
    max_tokens: int = 256,
    stop: Sequence[str] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
) -> list[list[list[int]]]:
    """Returns the ids of ``n`` completions of each context, written in one batch, their end tokens included.

    A context is read once for all of its completions, and the prefix that all contexts share once for all of them.

    Args:
        model: of transformers, causal or sequence-to-sequence; its mode is left as it is.
        tokenizer: with padding and end tokens.
        contexts: token ids.
        n: completions of each.
        max_tokens: most tokens of a completion.
        stop: strings that end a completion, which contains them.
        temperature: of sampling, which draws from torch's global generator; 0 decodes greedily.
        top_p: share of the probability that is sampled from.
        top_k: most tokens that are sampled from; 0: all.
        repetition_penalty: divides positive logits of tokens that the context or the completion has, and multiplies
            negative ones (arXiv:1909.05858).

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> tokenizer = word_tokenizer(["a b c"])
        >>> model = tiny_llama(tokenizer, dim=16, layers=1)
        >>> [[len(ids) <= 3 for ids in rows] for rows in generate_ids(model, tokenizer, [[4, 5], [6]], 2, max_tokens=3)]
        [[True, True], [True, True]]
    """
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    options: dict[str, Any] = {"max_new_tokens": max_tokens, "do_sample": temperature > 0, "pad_token_id": pad}
    if temperature > 0:
        options |= {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    if repetition_penalty != 1.0:
        options["repetition_penalty"] = repetition_penalty
    separate = bool(model.config.is_encoder_decoder)
    ids, mask = _padded(contexts, pad, model.device, left=not separate)
    if _shares(contexts, n) and not separate:
        # The last token is left to generate, which needs the logits that follow it.
        read = read_contexts(model, [context[:-1] for context in contexts], pad)
        ids, mask = torch.cat([read.ids, ids[:, -1:]], 1), torch.cat([read.mask, mask[:, -1:]], 1)
        options["past_key_values"] = read.repeated([n] * len(contexts)).cache
    ids, mask = ids.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
    start = 1 if separate else ids.shape[1]
    if stop:
        options["stopping_criteria"] = stop_at(tokenizer, stop, start)
    out = model.generate(input_ids=ids, attention_mask=mask, eos_token_id=end, **options)
    rows = []
    for row in out[:, start:].tolist():
        # Rows that ended early are filled up with padding, which may be the end token itself.
        if end in row:
            row = row[: row.index(end) + 1]
        while row and row[-1] == pad and pad != end:
            row.pop()
        rows.append(row)
    return [rows[i : i + n] for i in range(0, len(rows), n)]


def _shares(contexts: Sequence[list[int]], n: int) -> bool:
    """Whether completions have enough in common to read it apart from them."""
    shortest = min(len(ids) for ids in contexts)
    return shortest > 1 and (n > 1 or (len(contexts) > 1 and _shared_length(contexts) > _SHARED))


def _shared_length(contexts: Sequence[list[int]]) -> int:
    first, last = min(contexts), max(contexts)  # in the order of lists: what these two share, all share
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def _padded(rows: Sequence[Sequence[int]], pad: int, device: Any, *, left: bool = True) -> tuple[Tensor, Tensor]:
    width = max(len(ids) for ids in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(len(row))
        ids[i, place], mask[i, place] = torch.tensor(list(row)), 1
    return ids.to(device), mask.to(device)


def _accepted(model: Any, **options: Any) -> dict[str, Any]:
    """Returns the options that the model's forward takes: some models know no positions, or give all logits."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    known = inspect.signature(base.forward).parameters
    return {name: value for name, value in options.items() if name in known}


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def _sums(logits: Tensor, ids: Tensor, inside: Tensor) -> Tensor:
    scores = torch.log_softmax(logits, -1).gather(-1, ids[..., None]).squeeze(-1)
    return torch.where(inside, scores, 0.0).sum(1)


def _copyable(cache: Any) -> Any:
    if not hasattr(cache, "batch_select_indices"):
        raise TypeError(f"the model keeps {type(cache).__name__}, which cannot be copied from row to row")
    return cache
