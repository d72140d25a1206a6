"""Core: Does a causal model write a given span of tokens, greedily or among its best beams?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from heldout.errors import check_at_least, check_dimensions, check_labels, check_nonempty, checked
from heldout.method import device_of, evaluating, forward
from heldout.nn import inputs_for


@checked
def writes_spans(
    model: nn.Module,
    inputs: Any,
    ids: Tensor,
    spans: Tensor,
    *,
    closing: Tensor | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Returns for each span whether greedy decoding after the tokens before it writes exactly its tokens: bool.

    One forward pass over the rows tells all spans: decoding goes on rightly as long as each token is the most likely
    one after the right ones before it.

    Args:
        model: a causal language model; used in eval mode.
        inputs: what it is called with, a tensor of ``rows`` rows (token ids, or states that stand for them).
        ids: int64 ``(rows, length)``, the tokens.
        spans: int64 ``(spans, 3)``: row, first token (at least 1), token behind the last one.
        closing: token ids, one of which must be written behind the span; default: anything may be.
        batch_size: rows at once.

    Raises:
        ValueError: tokens that the model does not know, spans beyond the tokens, or that are empty.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> model = tiny_llama(word_tokenizer(["a b c"]), dim=16, layers=1)
        >>> ids = torch.tensor([[4, 5, 6]])
        >>> right = model(ids).logits[0].argmax(1)[:2] == ids[0, 1:]
        >>> bool(writes_spans(model, ids, ids, torch.tensor([[0, 1, 3]]))[0]) == bool(right.all())
        True
    """
    written, wrong = _written(model, inputs, ids, spans, batch_size)
    row, start, end = spans.unbind(1)
    right = wrong[row, end] == wrong[row, start]
    return right if closing is None else right & torch.isin(written[row, end - 1], closing)


@checked
def span_accuracy(model: nn.Module, inputs: Any, ids: Tensor, spans: Tensor, *, batch_size: int = 64) -> Tensor:
    """Returns for each span the share of its tokens that are the most likely ones, each after the right ones before it.

    float64 ``(spans,)``. Arguments and errors as for ``writes_spans``, and one forward pass over the rows as well.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> model = tiny_llama(word_tokenizer(["a b c"]), dim=16, layers=1)
        >>> ids = torch.tensor([[4, 5, 6]])
        >>> right = model(ids).logits[0].argmax(1)[:2] == ids[0, 1:]
        >>> span_accuracy(model, ids, ids, torch.tensor([[0, 1, 3]])).item() == right.double().mean().item()
        True
    """
    _, wrong = _written(model, inputs, ids, spans, batch_size)
    row, start, end = spans.unbind(1)
    return 1 - (wrong[row, end] - wrong[row, start]).double() / (end - start)


@checked
def usage_scores(model: nn.Module, parts: Sequence[Any], *, short: int = 8, beams: int = 0) -> dict[str, float]:
    """Returns how much of the usages of call sites a model writes, as means over the parts.

    Args:
        model: a causal language model.
        parts: ``heldout.tasks.CallWindows``, such as one for each group of APIs.
        short: tokens of a short usage, at most.
        beams: call sites of each part whose name is looked for among five beams, for a model that can ``generate``;
            0 leaves them out.

    Returns:
        ``usage``: the share of whole usages that are written; ``usage_short``: of the short ones, over the parts that
        have any; ``usage_tokens``: the share of a usage's tokens, each after right ones; with ``beams`` ``call_at_5``.

    Raises:
        ValueError: no parts, none with a short usage, or options below 1 and 0.

    Example:
        >>> from heldout.lm import code_tokenizer, tiny_llama
        >>> from heldout.tasks import api_functions, call_windows
        >>> functions, _ = api_functions("import os\\ndef f(x):\\n    return os.mkdir(x)", {"files": ["os"]})
        >>> tokenizer = code_tokenizer([functions[0].text], 300)
        >>> windows = call_windows(functions, tokenizer, length=40)
        >>> sorted(usage_scores(tiny_llama(tokenizer, dim=16, layers=1), [windows]))
        ['usage', 'usage_short', 'usage_tokens']
    """
    check_nonempty(parts=parts)
    check_at_least(1, short=short)
    check_at_least(0, beams=beams)
    right = [writes_spans(model, each.inputs, each.ids, each.usages) for each in parts]
    tokens = [span_accuracy(model, each.inputs, each.ids, each.usages) for each in parts]
    few = [hits[each.usages[:, 2] - each.usages[:, 1] <= short] for hits, each in zip(right, parts, strict=True)]
    if not any(map(len, few)):
        raise ValueError(f"short must be the tokens of some usage or more, got {short}")
    found = {"usage": right, "usage_short": [each for each in few if len(each)], "usage_tokens": tokens}
    if beams:
        before = [context for each in parts for context in each.before_names()[:beams]]
        names = [each.ids[row, a:b].tolist() for each in parts for row, a, b in each.calls[:beams].tolist()]
        hits = writes_among(model, before, names, closing=parts[0].opening.tolist(), pad=0)
        found["call_at_5"] = list(hits.split([min(beams, len(each.names)) for each in parts]))
    return {key: sum(each.double().mean().item() for each in some) / len(some) for key, some in found.items()}


def _written(model: nn.Module, inputs: Any, ids: Tensor, spans: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """The most likely token after each place, and how many of a row's tokens 1 to p - 1 are not the most likely."""
    check_at_least(1, batch_size=batch_size)
    check_dimensions(2, ids=ids, spans=spans)
    check_nonempty(ids=ids, spans=spans)
    if spans.shape[1] != 3 or spans.is_floating_point():
        raise ValueError(f"spans must be int64 (spans, 3), got {spans.dtype} {tuple(spans.shape)}")
    if len(inputs) != len(ids):
        raise ValueError(f"inputs must have the {len(ids)} rows of ids, got {len(inputs)}")
    row, start, end = spans.unbind(1)
    beyond = ids.shape[1]
    if bool(((row < 0) | (row >= len(ids)) | (start < 1) | (end <= start) | (end > beyond)).any()):
        raise ValueError(f"spans must lie within {len(ids)} rows and tokens 1 to {beyond}, with a token each")
    with evaluating(model), torch.inference_mode():
        most_likely = []
        for part in inputs.split(batch_size):
            logits = forward(model, inputs_for(model, part))
            check_labels(logits.shape[-1], ids=ids)
            most_likely.append(logits.argmax(-1).cpu())
    written = torch.cat(most_likely)  # after position p
    wrong = torch.zeros(len(ids), ids.shape[1] + 1, dtype=torch.int64)
    wrong[:, 2:] = (written[:, :-1] != ids[:, 1:].cpu()).cumsum(1)
    return written, wrong


@checked
def writes_among(
    model: Any,
    contexts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    closing: Sequence[int],
    pad: int,
    k: int = 5,
    batch_size: int = 64,
) -> Tensor:
    """Returns for each context whether its continuation is among the k best that beam search finds: bool.

    Beams end with a closing token and are ordered by their mean log-likelihood by token.

    Args:
        model: of transformers, with ``generate``.
        contexts: token ids, at least one each.
        continuations: token ids, without the closing token.
        closing: tokens, any of which ends a continuation.
        pad: a token to pad with, on the left.
        k: beams.
        batch_size: contexts at once.

    Raises:
        ValueError: no contexts, other numbers of continuations, an empty one, k below 1, or a negative pad.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> model = tiny_llama(word_tokenizer(["a b c"]), dim=16, layers=1)
        >>> writes_among(model, [[4, 5]], [[6]], closing=[2], pad=0, k=7).shape
        torch.Size([1])
    """
    check_nonempty(contexts=contexts, closing=closing)
    check_at_least(1, k=k, batch_size=batch_size)
    check_labels(pad=pad, closing=closing)
    if len(contexts) != len(continuations):
        raise ValueError(f"continuations must be {len(contexts)}, one for each context, got {len(continuations)}")
    if not all(len(context) for context in contexts) or not all(len(tokens) for tokens in continuations):
        raise ValueError("contexts and continuations must have a token each")
    ends, found = set(closing), []
    for start in range(0, len(contexts), batch_size):
        part = [list(context) for context in contexts[start : start + batch_size]]
        wanted = [list(tokens) for tokens in continuations[start : start + batch_size]]
        longest, most = max(map(len, part)), max(map(len, wanted)) + 1
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in part], device=device_of(model))
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in part], device=device_of(model))
        with evaluating(model), torch.inference_mode():
            written = model.generate(
                ids,
                attention_mask=mask,
                num_beams=k,
                num_return_sequences=k,
                max_new_tokens=most,
                do_sample=False,
                eos_token_id=sorted(ends),
                pad_token_id=pad,
            )[:, longest:].tolist()
        for number, tokens in enumerate(wanted):
            beams = written[number * k : (number + 1) * k]
            found.append(any(row[: len(tokens)] == tokens and row[len(tokens)] in ends for row in beams
                             if len(row) > len(tokens)))  # fmt: skip
    return torch.tensor(found)
