"""Stop strings for ``model.generate``, whatever the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_nonempty, checked


@checked
def stop_at(tokenizer: Any, stop: Sequence[str], prompt_length: int) -> Any:
    """Returns stopping criteria that end each row of a batch when it has written one of the strings.

    transformers has its own (``generate(stop_strings=...)``), which prepares tables of the vocabulary, and fails for
    tokenizers that have a token per word or per character. This one decodes the end of each row after every step.

    Args:
        tokenizer: of the model.
        stop: strings, none of them empty.
        prompt_length: tokens of the prompts with their padding, in which nothing is looked for.

    Example:
        >>> from heldout.lm import word_tokenizer
        >>> tokenizer = word_tokenizer(["a stop"])
        >>> ids = tokenizer(["a stop", "a a"], return_tensors="pt")["input_ids"]
        >>> stop_at(tokenizer, ["stop"], 0)(ids, None).tolist()
        [True, False]
    """
    check_nonempty(stop=stop)
    check_at_least(0, prompt_length=prompt_length)
    from transformers import StoppingCriteria, StoppingCriteriaList

    if isinstance(stop, str) or not all(stop):
        raise ValueError(f"stop must be a list of strings that are not empty, got {stop!r}")
    # A string of c characters has at most 4 c tokens, one for each byte; the last of them may hold more text.
    tail = 4 * max(len(text) for text in stop) + 1

    class StopAt(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
            written = input_ids[:, max(prompt_length, input_ids.shape[1] - tail) :]
            texts = tokenizer.batch_decode(written, skip_special_tokens=False)
            done = [any(text in found for text in stop) for found in texts]
            return torch.tensor(done, dtype=torch.bool, device=input_ids.device)

    return StoppingCriteriaList([StopAt()])
