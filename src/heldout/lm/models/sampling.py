"""A transformers model whose samples are limited further: to a number of tokens, and by a penalty on repetition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from heldout.errors import checked
from heldout.language_model import Completion, Prompt
from heldout.lm.models.local import TransformersLM


class SamplingLM(TransformersLM):
    """A ``TransformersLM`` that also takes ``top_k`` and ``repetition_penalty``, as probing for inputs does.

    Args:
        as ``TransformersLM``.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> tokenizer = word_tokenizer(["is it ? yes no"])
        >>> lm = SamplingLM(tiny_llama(tokenizer, dim=16, layers=1), tokenizer)
        >>> ((answer,),) = lm.generate(["is it ?"], temperature=1.0, top_k=2, repetition_penalty=1.2, max_tokens=4)
        >>> answer.tokens <= 4
        True
    """

    @checked
    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int = 1,
        *,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        **options: Any,
    ) -> list[list[Completion]]:
        """Returns ``n`` completions of each prompt; see ``TransformersLM.generate``.

        Args:
            prompts, n, options: as there.
            top_k: most tokens that are sampled from; 0: all.
            repetition_penalty: divides positive logits of tokens that stand in the prompt or the completion, and
                multiplies negative ones.

        Raises:
            ValueError: as there; top_k below 0, or repetition_penalty not above 0.

        Source: Keskar et al. (arXiv:1909.05858), section 4.1, for the penalty.
        """
        if top_k < 0 or not repetition_penalty > 0:
            raise ValueError(f"top_k must be at least 0, repetition_penalty above 0; got {top_k}, {repetition_penalty}")
        further: dict[str, Any] = {"top_k": top_k} if top_k and options.get("temperature", 0.0) > 0 else {}
        if repetition_penalty != 1.0:
            further["repetition_penalty"] = repetition_penalty
        return self._generate(prompts, n, further, **options)
