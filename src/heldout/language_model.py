"""Core: What a language model is to heldout: something that completes prompts and scores continuations.

Parts that use a language model take any object with these two methods. ``heldout.lm`` has them for transformers models,
for OpenAI-compatible endpoints, with a cache on disk, and scripted for tests.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from heldout.errors import check_at_least, check_fields, check_nonempty

Prompt = str | Sequence[Mapping[str, str]]
"""A text, or chat messages: ``[{"role": "user", "content": "..."}]``."""


@dataclass(frozen=True)
class Completion:
    """One answer of a language model.

    Attributes:
        text: what it wrote, without the prompt and without the stop sequence.
        tokens: tokens that it wrote.
        prompt_tokens: tokens that it read; the completions of one prompt share one reading, which the first one counts.
        cost: money, in the currency of the prices that the model was given; 0 where there are none.
        finish_reason: "stop" (it ended, or met a stop sequence) or "length" (``max_tokens``, or the context, was full);
            an endpoint's own word where it has others.

    Raises:
        ValueError: a negative number of tokens.

    Example:
        >>> from heldout.lm import ScriptedLM
        >>> ((said,),) = ScriptedLM(["It is 7, because"]).generate(["What is 3 + 4?"], max_tokens=3)
        >>> said.text, said.tokens, said.prompt_tokens, said.finish_reason
        ('It is 7,', 3, 5, 'length')
    """

    text: str
    tokens: int = 0
    prompt_tokens: int = 0
    cost: float = 0.0
    finish_reason: str = "stop"

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(0, tokens=self.tokens, prompt_tokens=self.prompt_tokens)


@dataclass(frozen=True)
class ChoiceExample:
    """A prompt with the options that it can be continued by, one of which is right.

    Attributes:
        prompt: what is read.
        options: at least two texts, their leading spaces included.
        answer: which option is right, from 0.

    Raises:
        TypeError: options that are not texts.
        ValueError: an empty prompt or option, fewer than two options, or an answer that is none of them.

    Example:
        >>> ChoiceExample("is ice cold ?", [" no", " yes"], 1).options
        (' no', ' yes')
    """

    prompt: str
    options: Sequence[str]
    answer: int

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.options, str):
            raise TypeError(f"options must be a list of texts, got the text {self.options!r}")
        object.__setattr__(self, "options", tuple(self.options))
        if len(self.options) < 2:
            raise ValueError(f"options must be at least 2, got {len(self.options)}")
        check_nonempty(prompt=self.prompt)
        for option in self.options:
            check_nonempty(options=option)
        if not 0 <= self.answer < len(self.options):
            raise ValueError(f"answer must be from 0 to {len(self.options) - 1}, got {self.answer}")


@runtime_checkable
class LM(Protocol):
    """A language model: completes prompts, and scores continuations of them.

    Example:
        >>> from heldout.lm import ScriptedLM
        >>> isinstance(ScriptedLM({}), LM), isinstance("a text", LM)
        (True, False)
    """

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int = 1,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        max_tokens: int = 256,
        seed: int = 0,
    ) -> list[list[Completion]]:
        """Returns ``n`` completions of each prompt; temperature 0 decodes greedily."""
        ...

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """Returns the log likelihood, in nats, of each of a prompt's continuations, summed over its tokens."""
        ...


def taken_options(lm: Any, **options: Any) -> dict[str, Any]:
    """Returns those options that a model's ``generate`` takes beyond those of ``LM``, such as top_k.

    A wrapper, whose ``lm`` is the model, takes what the model takes.

    Example:
        >>> from heldout.lm import ScriptedLM
        >>> taken_options(ScriptedLM({}), top_k=60, top_p=0.9)
        {'top_p': 0.9}
    """
    while hasattr(lm, "lm"):
        lm = lm.lm
    known = inspect.signature(lm.generate).parameters
    return {name: value for name, value in options.items() if name in known}
