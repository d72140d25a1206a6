"""A language model that says what it is told to, for tests and examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from heldout.errors import check_at_least, check_fraction, check_nonnegative, checked
from heldout.language_model import Completion, Prompt


class ScriptedLM:
    """An ``LM`` whose answers are written by hand.

    Args:
        answers: a function ``(prompt, number of the sample) -> text``, a mapping from prompt to text, or a list of
            texts that are given in turn, whatever the prompt. Of chat messages the last one is looked up.
        scores: a function ``(prompt, continuation) -> log likelihood``; without it nothing can be scored.
        price: cost of each word of an answer.

    Attributes:
        calls: prompts that were completed so far, once for each completion.

    Example:
        >>> lm = ScriptedLM({"2 + 2 =": "4"})
        >>> lm.generate(["2 + 2 ="])[0][0].text
        '4'
    """

    @checked
    def __init__(
        self,
        answers: Callable[[Any, int], str] | Mapping[str, str] | Sequence[str],
        *,
        scores: Callable[[Any, str], float] | None = None,
        price: float = 0.0,
    ) -> None:
        self._answers, self._scores, self._price = answers, scores, price
        self.calls: list[Prompt] = []
        self.identity = "scripted"

    @checked
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
        """Returns the scripted answers, cut at stop strings and after ``max_tokens`` words."""
        check_at_least(1, n=n, max_tokens=max_tokens)
        check_nonnegative(temperature=temperature)
        check_fraction(top_p=top_p)
        return [[self._completion(prompt, k, stop, max_tokens) for k in range(n)] for prompt in prompts]

    @checked
    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """Returns the scripted log likelihoods."""
        if self._scores is None:
            raise ValueError("this ScriptedLM has no scores")
        return [
            [self._scores(prompt, text) for text in row] for prompt, row in zip(prompts, continuations, strict=True)
        ]

    def _completion(self, prompt: Prompt, sample: int, stop: Sequence[str], max_tokens: int) -> Completion:
        text = self._text(prompt, sample)
        self.calls.append(prompt)
        for end in stop:
            text = text.split(end)[0]
        words = text.split()
        full = len(words) > max_tokens
        if full:
            words, text = words[:max_tokens], " ".join(words[:max_tokens])
        read = text_of_prompt(prompt)
        return Completion(
            text,
            tokens=len(words),
            prompt_tokens=len(read.split()) if sample == 0 else 0,
            cost=self._price * len(words),
            finish_reason="length" if full else "stop",
        )

    def _text(self, prompt: Prompt, sample: int) -> str:
        if callable(self._answers):
            return self._answers(prompt, sample)
        if isinstance(self._answers, Mapping):
            key = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            if key not in self._answers:
                raise KeyError(f"ScriptedLM has no answer to {key!r}")
            return self._answers[key]
        if len(self.calls) >= len(self._answers):
            raise IndexError(f"ScriptedLM has given all of its {len(self._answers)} answers")
        return self._answers[len(self.calls)]


def text_of_prompt(prompt: Prompt) -> str:
    """Returns the text of a prompt; chat messages are joined by line breaks."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
