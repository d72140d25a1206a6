"""Batches of token ids through a transformers model, reading what they share once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_fraction, check_nonempty, check_nonnegative, check_one_row, checked
from heldout.lm.models.batching import (
    Batching,
    base_of,
    batching_of,
    probe_contexts,
    same_values,
    settled_generation,
)
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


def batching(model: Any) -> Batching:
    """Returns what the batches of a model may share without changing its answers; it is tried once for each model.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> batching(tiny_llama(word_tokenizer(["a b c d e"]), dim=16, layers=1))
        Batching(caches=True, padding=True, copies=True, gaps=True)
    """
    return batching_of(model, _trials)


def end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Returns the tokens that end a completion: the tokenizer's, and those of the model's generation settings.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> tokenizer = word_tokenizer(["a"])
        >>> end_tokens(tiny_llama(tokenizer, dim=16, layers=1), tokenizer) == (tokenizer.eos_token_id,)
        True
    """
    own = getattr(getattr(base_of(model), "generation_config", None), "eos_token_id", None)
    found = [tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or ())]
    return tuple(dict.fromkeys(int(token) for token in found))


@torch.inference_mode()
def score_whole(
    model: Any, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], pad: int
) -> Tensor:
    """Returns the log likelihood in nats, ``(batch,)``, of continuations, each read with its context from the start.

    Padding stands behind, where no causal model looks: this holds for models that keep no cache as well.
    """
    rows = [[*context, *written] for context, written in zip(contexts, continuations, strict=True)]
    ids, mask = _padded(rows, pad, model.device, left=False)
    logits = model(input_ids=ids, use_cache=False, **_accepted(model, attention_mask=mask)).logits
    starts = torch.tensor([len(context) for context in contexts], device=model.device)
    ends = torch.tensor([len(row) for row in rows], device=model.device)
    places = torch.arange(1, ids.shape[1], device=model.device)
    inside = (places >= starts[:, None]) & (places < ends[:, None])
    return _sums(_precise(logits[:, :-1]), ids[:, 1:], inside)


@torch.inference_mode()
def read_contexts(model: Any, contexts: Sequence[list[int]], pad: int, *, shared: int = 0) -> ReadContexts:
    """Returns what a causal model keeps of a batch of contexts.

    Args:
        model: whose ``batching`` allows copies.
        contexts: token ids.
        pad: token for padding, before the contexts, or behind the prefix.
        shared: tokens of a common prefix that is read once; see ``shared_prefix``.
    """
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
    return ReadContexts(_copyable(out.past_key_values), ids, mask, _precise(out.logits[:, -1]))


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
        logits = torch.cat([logits, _precise(out.logits)], 1)
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
    return _sums(_precise(out.logits), ids, torch.arange(width, device=model.device) < lengths[:, None])


@checked
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
    **further: Any,
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
        further: settings of ``transformers.GenerationConfig``, such as repetition_penalty.

    Of the checkpoint's generation settings, the end tokens and the forced tokens hold; how to decode is what the call
    says. Contexts of unequal length are completed apart where the model's ``batching`` does not allow padding.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> tokenizer = word_tokenizer(["a b c"])
        >>> model = tiny_llama(tokenizer, dim=16, layers=1)
        >>> [[len(ids) <= 3 for ids in rows] for rows in generate_ids(model, tokenizer, [[4, 5], [6]], 2, max_tokens=3)]
        [[True, True], [True, True]]
    """
    check_nonempty(contexts=contexts)
    check_at_least(1, n=n)
    check_at_least(1, max_tokens=max_tokens)
    check_nonnegative(temperature=temperature)
    check_fraction(top_p=top_p)
    check_one_row(model, n=n, contexts=len(contexts))
    pad, ends = tokenizer.pad_token_id, end_tokens(model, tokenizer)
    separate = bool(model.config.is_encoder_decoder)
    start = 1 if separate else None
    allowed = batching(model)
    if not allowed.padding and len({len(ids) for ids in contexts}) > 1:
        alone: dict[int, list[int]] = {}
        for i, context in enumerate(contexts):
            alone.setdefault(len(context), []).append(i)
        found: list[list[list[int]]] = [[] for _ in contexts]
        for group in alone.values():
            options: dict[str, Any] = {
                "max_tokens": max_tokens,
                "stop": stop,
                "temperature": temperature,
                "top_p": top_p,
            }
            part = generate_ids(model, tokenizer, [contexts[i] for i in group], n, **options, **further)
            for i, written in zip(group, part, strict=True):
                found[i] = written
        return found
    settings = _settings(model, pad, ends) | {"max_new_tokens": max_tokens, "do_sample": temperature > 0} | further
    settings["use_cache"] = allowed.caches
    if temperature > 0:
        settings = {"top_k": 0} | settings | {"temperature": temperature, "top_p": top_p}
    inputs: dict[str, Any] = {}
    ids, mask = _padded(contexts, pad, model.device, left=not separate)
    shared = shared_prefix(model, [context[:-1] for context in contexts])
    if allowed.copies and min(map(len, contexts)) > 1 and (n > 1 or shared):
        # The last token is left to generate, which needs the logits that follow it.
        read = read_contexts(model, [context[:-1] for context in contexts], pad, shared=shared)
        ids, mask = torch.cat([read.ids, ids[:, -1:]], 1), torch.cat([read.mask, mask[:, -1:]], 1)
        inputs["past_key_values"] = read.repeated([n] * len(contexts)).cache
    ids, mask = ids.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
    if stop:
        inputs["stopping_criteria"] = stop_at(tokenizer, stop, start or ids.shape[1])
    out = _written(model, ids, mask, settings, **inputs)
    rows = []
    for row in out[:, start or ids.shape[1] :].tolist():
        # Rows that ended early are filled up with padding, which may be the end token itself.
        last = next((i for i, token in enumerate(row) if token in ends), None)
        if last is not None:
            row = row[: last + 1]
        while row and row[-1] == pad and pad not in ends:
            row.pop()
        rows.append(row)
    return [rows[i : i + n] for i in range(0, len(rows), n)]


def shared_prefix(model: Any, contexts: Sequence[list[int]]) -> int:
    """Returns how many tokens of a common prefix may be read once for all contexts; 0 where it is not worth it."""
    if len(contexts) < 2 or not batching(model).copies:
        return 0
    lengths = {len(ids) for ids in contexts}
    if len(lengths) > 1 and not batching(model).gaps:
        return 0
    first, last = min(contexts), max(contexts)  # in the order of lists: what these two share, all share
    differ = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    shared = min(next(differ, len(first)), min(lengths) - 1)
    return shared if shared >= _SHARED else 0


def _settings(model: Any, pad: int, ends: tuple[int, ...]) -> dict[str, Any]:
    """What a checkpoint's generation settings state as facts; how to decode is the call's business."""
    own = getattr(base_of(model), "generation_config", None)
    facts = ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")
    found = {name: getattr(own, name, None) for name in facts}
    return found | {"pad_token_id": pad, "eos_token_id": list(ends)}


def _written(model: Any, ids: Tensor, mask: Tensor, settings: dict[str, Any], **inputs: Any) -> Any:
    from transformers import GenerationConfig

    config = GenerationConfig(**settings)
    with settled_generation(model, config):
        return model.generate(input_ids=ids, generation_config=config, **_mask(model, mask), **inputs)


def _mask(model: Any, mask: Tensor) -> dict[str, Tensor]:
    """The mask, unless a model that knows none is given one that says nothing."""
    known = inspect.signature(base_of(model).forward).parameters
    return {"attention_mask": mask} if "attention_mask" in known or not bool(mask.all()) else {}


def _trials(model: Any) -> Mapping[str, Callable[[], bool]]:
    """Returns what tries whether caches, padding, copies and gaps leave a model's logits as they are."""
    probe = probe_contexts(model)
    if probe is None:
        return {}
    trials = {"caches": _remembers, "padding": _pads, "copies": _copies, "gaps": _leaves_gaps}
    return {name: partial(trial, model, *probe) for name, trial in trials.items()}


@torch.inference_mode()
def _remembers(model: Any, short: list[int], long: list[int]) -> bool:
    kept, anew = _steps(model, [long]), _steps(model, [long], use_cache=False)
    return all(same_values(found, expected) for found, expected in zip(kept[:2], anew[:2], strict=True))


@torch.inference_mode()
def _pads(model: Any, short: list[int], long: list[int]) -> bool:
    together = _steps(model, [short, long])
    for i, context in enumerate((short, long)):
        alone = _steps(model, [context])
        for found, expected in zip(together, alone, strict=False):
            if not same_values(found[i], expected[0]):
                return False
            if found[i].argmax() != expected[0].argmax():  # a tie, after which the two read different tokens
                break
    return True


def _steps(model: Any, contexts: list[list[int]], *, use_cache: bool = True) -> tuple[Tensor, ...]:
    ids, mask = _padded(contexts, 0, model.device, left=not model.config.is_encoder_decoder)
    facts = _settings(model, 0, ()) | {"eos_token_id": None, "forced_eos_token_id": None}
    asked: dict[str, Any] = {
        "max_new_tokens": 3,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    asked["use_cache"] = use_cache
    logits: tuple[Tensor, ...] = _written(model, ids, mask, facts | asked).logits
    return logits


def _copies(model: Any, short: list[int], long: list[int]) -> bool:
    written = [short[:3], short[1:2]]
    read = read_contexts(model, [long], 0).repeated([2])
    return same_values(continue_contexts(model, read, written), score_whole(model, [long, long], written, 0))


def _leaves_gaps(model: Any, short: list[int], long: list[int]) -> bool:
    prefix = len(long) - len(short)
    contexts, written = [long, [*long[:prefix], short[-1]]], [short[:3], short[2:]]
    read = read_contexts(model, contexts, 0, shared=prefix)
    return same_values(continue_contexts(model, read, written), score_whole(model, contexts, written, 0))


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
    known = inspect.signature(base_of(model).forward).parameters
    return {name: value for name, value in options.items() if name in known}


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def _sums(logits: Tensor, ids: Tensor, inside: Tensor) -> Tensor:
    scores = torch.log_softmax(logits, -1).gather(-1, ids[..., None]).squeeze(-1)
    return torch.where(inside, scores, 0.0).sum(1)


def _copyable(cache: Any) -> Any:
    if not hasattr(cache, "batch_select_indices"):
        raise TypeError(f"the model keeps {type(cache).__name__}, which cannot be copied from row to row")
    return cache
