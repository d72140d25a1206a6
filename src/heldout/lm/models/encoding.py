"""Prompts as token ids, and how many a model can take."""

from __future__ import annotations

from typing import Any

from heldout.errors import checked
from heldout.language_model import Prompt


@checked
def ids_of_prompt(prompt: Prompt, tokenizer: Any) -> list[int]:
    """Returns the token ids of a prompt: a text as it is, chat messages through the tokenizer's template.

    A text gets no end token, but the beginning token that the tokenizer adds.

    Raises:
        ValueError: for chat messages, if the tokenizer has no chat template.

    Example:
        >>> from heldout.lm import word_tokenizer
        >>> ids_of_prompt("b a", word_tokenizer(["a b"]))
        [5, 4]
    """
    if not isinstance(prompt, str):
        if not tokenizer.chat_template:
            raise ValueError("the prompt is a list of chat messages, but the tokenizer has no chat template")
        return tokenizer.apply_chat_template(
            [dict(message) for message in prompt], add_generation_prompt=True, tokenize=True, return_dict=False
        )
    ids = ids_of_source(prompt, tokenizer)
    end = tokenizer.eos_token_id
    if ids and ids[-1] == end and _ending(ids, end) > _ending(_plain(prompt, tokenizer), end):
        return ids[:-1]
    return ids


def ids_of_source(prompt: Prompt, tokenizer: Any) -> list[int]:
    """Returns the token ids that an encoder reads: as ``ids_of_prompt``, with the end token that the tokenizer adds.

    A text that already begins with the beginning token, such as a rendered chat template, gets no second one.

    Example:
        >>> from heldout.lm import word_tokenizer
        >>> ids_of_source("b a", word_tokenizer(["a b"]))
        [5, 4]
    """
    if not isinstance(prompt, str):
        return ids_of_prompt(prompt, tokenizer)
    ids, begin = list(tokenizer(prompt)["input_ids"]), tokenizer.bos_token_id
    if begin is not None and ids[:2] == [begin, begin] and _plain(prompt, tokenizer)[:2] != [begin, begin]:
        return ids[1:]
    return ids


def ids_of_continuation(prompt: Prompt, prompt_ids: list[int], continuation: str, tokenizer: Any) -> list[int]:
    """Returns the token ids of a text that follows a prompt, whose own ids stay as they are.

    Both are encoded together where that leaves the prompt's ids unchanged, as tokenizers of words in sentences need;
    otherwise the continuation is encoded alone.
    """
    if isinstance(prompt, str):
        whole = ids_of_prompt(prompt + continuation, tokenizer)
        if len(whole) > len(prompt_ids) and whole[: len(prompt_ids)] == prompt_ids:
            return whole[len(prompt_ids) :]
    return tokenizer(continuation, add_special_tokens=False)["input_ids"]


def context_of(model: Any) -> int | None:
    """Returns the tokens that a model can take, or None where its configuration does not limit them.

    Args:
        model: of transformers; its ``config`` is all that is read.

    Example:
        >>> from types import SimpleNamespace
        >>> llama, t5 = SimpleNamespace(max_position_embeddings=64), SimpleNamespace(relative_attention_num_buckets=32)
        >>> context_of(SimpleNamespace(config=llama)), context_of(SimpleNamespace(config=t5))
        (64, None)
    """
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    if getattr(config, "relative_attention_num_buckets", None):  # T5: positions are relative
        return None
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)


def _plain(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _ending(ids: list[int], end: int) -> int:
    return next((i for i, token in enumerate(reversed(ids)) if token != end), len(ids))
