"""Core: Choosing between options by likelihood: scores of the options of choice examples, and which choice is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_nonempty, check_one_of, checked
from heldout.language_model import ChoiceExample
from heldout.lm.models.encoding import ids_of_continuation, ids_of_prompt
from heldout.lm.models.generation import score_whole
from heldout.lm.models.local import TransformersLM
from heldout.method import evaluating


@checked
def score_choices(
    model: Any,
    tokenizer: Any,
    examples: Sequence[ChoiceExample],
    normalize: Literal["none", "tokens"] = "none",
    *,
    batch_size: int = 64,
) -> Tensor:
    """Returns the log likelihood in nats, ``(n, options)``, of each option after its prompt.

    A prompt is read once for its options; a module without ``generate`` reads it with each. ``option_scores`` is for
    models that are not at hand, and keeps what it got.

    Args:
        model: of transformers or peft, or a module called like a causal one; in evaluation mode meanwhile.
        tokenizer: with an end token, which pads where it has no padding token.
        examples: with equally many options each.
        normalize: "none": summed over an option's tokens, which favours short options; "tokens": their mean.
        batch_size: options at once.

    Raises:
        ValueError: no examples, options that are not equally many, or one without tokens or longer than the context.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> tokenizer = word_tokenizer(["is ice cold ? yes no"])
        >>> model = tiny_llama(tokenizer, dim=16, layers=1)
        >>> score_choices(model, tokenizer, [ChoiceExample("is ice cold ?", [" no", " yes"], 1)]).shape
        torch.Size([1, 2])
    """
    check_nonempty(examples=examples)
    check_one_of(("none", "tokens"), normalize=normalize)
    check_at_least(1, batch_size=batch_size)
    counts = sorted({len(example.options) for example in examples})
    if len(counts) > 1:
        raise ValueError(f"examples must have equally many options, got {counts[0]} and {counts[-1]}")
    with evaluating(model):
        if hasattr(model, "generate"):
            lm = TransformersLM(model, tokenizer, batch_size=batch_size)
            scores = torch.tensor(lm.score([e.prompt for e in examples], [list(e.options) for e in examples]))
        else:
            scores = _read_whole(model, tokenizer, examples, batch_size)
    if normalize == "none":
        return scores
    lengths = [
        [len(tokenizer(option, add_special_tokens=False)["input_ids"]) for option in example.options]
        for example in examples
    ]
    return scores / torch.tensor(lengths)


@checked
def right_choices(
    model: Any,
    tokenizer: Any,
    examples: Sequence[ChoiceExample],
    normalize: Literal["none", "tokens"] = "none",
    *,
    batch_size: int = 64,
) -> Tensor:
    """Returns bool ``(n,)``: whether the right option of each example is the likeliest.

    Args:
        model, tokenizer, examples, normalize, batch_size: as for ``score_choices``.

    Raises:
        ValueError: as ``score_choices``.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> tokenizer = word_tokenizer(["is ice cold ? yes no"])
        >>> model = tiny_llama(tokenizer, dim=16, layers=1)
        >>> asked = [ChoiceExample("is ice cold ?", [" no", " yes"], answer) for answer in (0, 1)]
        >>> right_choices(model, tokenizer, asked).sum().item()
        1
    """
    scores = score_choices(model, tokenizer, examples, normalize, batch_size=batch_size)
    return scores.argmax(1) == torch.tensor([example.answer for example in examples], dtype=torch.long)


def _read_whole(model: Any, tokenizer: Any, examples: Sequence[ChoiceExample], batch_size: int) -> Tensor:
    contexts, written = [], []
    for number, example in enumerate(examples):
        ids = ids_of_prompt(example.prompt, tokenizer)
        for option in example.options:
            contexts.append(ids)
            written.append(ids_of_continuation(example.prompt, ids, option, tokenizer))
            if not ids or not written[-1]:
                raise ValueError(f"example {number} has a prompt or an option without tokens")
    order = sorted(range(len(contexts)), key=lambda row: len(contexts[row]) + len(written[row]))
    found = torch.empty(len(contexts))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        scores = score_whole(model, [contexts[row] for row in rows], [written[row] for row in rows], 0)
        found[torch.tensor(rows)] = scores.cpu().float()
    return found.view(len(examples), -1)
