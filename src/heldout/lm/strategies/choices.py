"""Core: Choosing between options by likelihood: scores of the options of choice examples, and which choice is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from heldout.errors import check_nonempty, check_one_of, checked
from heldout.language_model import ChoiceExample
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

    A prompt is read once for its options. ``option_scores`` is for models that are not at hand, and keeps what it got.

    Args:
        model: of transformers or peft; in evaluation mode meanwhile.
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
    counts = sorted({len(example.options) for example in examples})
    if len(counts) > 1:
        raise ValueError(f"examples must have equally many options, got {counts[0]} and {counts[-1]}")
    with evaluating(model):
        lm = TransformersLM(model, tokenizer, batch_size=batch_size)
        scores = torch.tensor(lm.score([e.prompt for e in examples], [list(e.options) for e in examples]))
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
