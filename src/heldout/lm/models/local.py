"""A transformers model as a language model that completes and scores."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heldout.errors import check_no_own_code, check_one_row, checked
from heldout.language_model import Completion, Prompt
from heldout.lm.models.batching import base_of
from heldout.lm.models.encoding import context_of, ids_of_continuation, ids_of_prompt, ids_of_source
from heldout.lm.models.generation import (
    batching,
    continue_contexts,
    end_tokens,
    generate_ids,
    read_contexts,
    score_responses,
    score_whole,
    shared_prefix,
)


class TransformersLM:
    """A transformers model and its tokenizer as an ``LM``.

    Prompts of similar length are completed in one batch, padded on the left. A prompt is read once for its ``n``
    completions or for all the continuations that are scored after it; a prefix that a whole batch shares, such as
    worked examples, is read once for the batch.

    Args:
        model: causal or sequence-to-sequence, used on the device where it is, in evaluation mode.
        tokenizer: with an end token; without padding token the end token is used in its place.
        batch_size: completions or continuations at once; 1 for RWKV, whose rows of a batch change each other.

    Raises:
        ValueError: if the tokenizer has no end token.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> tokenizer = word_tokenizer(["is it ? yes no"])
        >>> lm = TransformersLM(tiny_llama(tokenizer, dim=16, layers=1), tokenizer)
        >>> ((answer, other),) = lm.generate(["is it ?"], 2, temperature=1.0, max_tokens=4)
        >>> answer.tokens <= 4
        True
        >>> yes, no = lm.score(["is it ?"], [["yes", "no"]])[0]
    """

    @checked
    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int = 32) -> None:
        check_one_row(model, batch_size=batch_size)
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer needs an end token (eos_token), where completions stop")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size

    @classmethod
    @checked
    def from_pretrained(cls, folder: str | Path, *, device: str | None = None, **options: Any) -> TransformersLM:
        """Returns the model of a transformers folder or name, in the precision of its weights.

        Args:
            folder: as ``AutoModel`` takes it.
            device: default "cuda" where there is one, else "cpu".
            options: of ``TransformersLM``.

        Raises:
            ValueError: if the folder needs code of its own, which is never run.
        """
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

        check_no_own_code(folder)
        seq2seq = AutoConfig.from_pretrained(folder).is_encoder_decoder
        model = (AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM).from_pretrained(folder, dtype="auto")
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(nn.Module.to(model, place), AutoTokenizer.from_pretrained(folder), **options)

    @cached_property
    def identity(self) -> str:
        """A digest of the weights, the configuration and the tokenizer: what answers depend on."""
        digest = hashlib.sha256(self.model.config.to_json_string(use_diff=False).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        digest.update((fast.to_str() if fast else repr(sorted(self.tokenizer.get_vocab().items()))).encode())
        digest.update(str(self.tokenizer.chat_template).encode())
        settings = getattr(base_of(self.model), "generation_config", None)
        digest.update(b"" if settings is None else settings.to_json_string(use_diff=False).encode())
        return f"transformers {digest.hexdigest()}"

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
        """Returns ``n`` completions of each prompt; see ``LM``.

        Where the context has no room for ``max_tokens``, a completion ends when it is full. The same call gives the
        same samples; another batch of prompts gives others.

        Raises:
            ValueError: a prompt that is empty or fills the context; its number is named.
        """
        options: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "stop": stop, "max_tokens": max_tokens}
        return self._generate(prompts, n, {}, **options, seed=seed)

    def _generate(
        self,
        prompts: Sequence[Prompt],
        n: int,
        further: Mapping[str, Any],
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        max_tokens: int = 256,
        seed: int = 0,
    ) -> list[list[Completion]]:
        check_sampling(n, temperature, top_p, max_tokens)
        contexts = self._contexts(prompts)
        context = context_of(self.model)
        room = [max_tokens if context is None else min(max_tokens, context - len(ids)) for ids in contexts]
        if self.model.config.is_encoder_decoder:
            room = [max_tokens] * len(contexts)
        found: list[list[Completion]] = [[] for _ in prompts]
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for batch in self._batches(room, contexts, n):
                # More samples than a batch holds are drawn in several.
                for taken in _parts(n, max(1, self.batch_size // len(batch))):
                    rows = generate_ids(
                        self.model,
                        self.tokenizer,
                        [contexts[i] for i in batch],
                        taken,
                        max_tokens=room[batch[0]],
                        stop=stop,
                        temperature=temperature,
                        top_p=top_p,
                        **further,
                    )
                    for i, written in zip(batch, rows, strict=True):
                        for ids in written:
                            read = len(contexts[i]) if not found[i] else 0
                            found[i].append(self._completion(ids, stop, read))
        return found

    @checked
    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """Returns the log likelihood of each continuation, summed over its tokens; see ``LM``.

        A continuation is what stands after the prompt, its leading space included.

        Raises:
            ValueError: a prompt without continuations, an empty one, or one that does not fit into the context.
        """
        contexts = self._contexts(prompts)
        rows = self._continuations(prompts, contexts, continuations)
        limit = context_of(self.model)
        if self.model.config.is_encoder_decoder:
            start = self.model.config.decoder_start_token_id
            return [
                [
                    value
                    for part in _chunks(row, self.batch_size)
                    for value in score_responses(self.model, ids, part, start).tolist()
                ]
                for ids, row in zip(contexts, rows, strict=True)
            ]
        for number, (ids, row) in enumerate(zip(contexts, rows, strict=True)):
            longest = len(ids) + max(map(len, row))
            if limit is not None and longest > limit:
                raise ValueError(f"prompt {number} and a continuation have {longest} tokens, more than {limit}")
        found: list[list[float]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: (len(rows[i]), len(contexts[i])))
        for choices, group in groupby(order, key=lambda i: len(rows[i])):
            for batch in _chunks(list(group), max(1, self.batch_size // choices)):
                for part in _parts(choices, self.batch_size):
                    first = [len(found[i]) for i in batch]
                    chosen = [ids for i, j in zip(batch, first, strict=True) for ids in rows[i][j : j + part]]
                    scores = self._scores([contexts[i] for i in batch], chosen).tolist()
                    for k, i in enumerate(batch):
                        found[i] += scores[k * part : (k + 1) * part]
        return found

    def _scores(self, contexts: Sequence[list[int]], continuations: Sequence[list[int]]) -> Tensor:
        """The log likelihood of as many continuations of each context."""
        count, pad, allowed = len(continuations) // len(contexts), self.tokenizer.pad_token_id, batching(self.model)
        equal = len({len(ids) for ids in contexts}) == 1
        if not allowed.copies or not (allowed.padding or equal):
            whole = [ids for ids in contexts for _ in range(count)]
            if allowed.padding:
                return score_whole(self.model, whole, continuations, pad)
            pairs = zip(whole, continuations, strict=True)
            return torch.cat([score_whole(self.model, [ids], [written], pad) for ids, written in pairs])
        read = read_contexts(self.model, contexts, pad, shared=shared_prefix(self.model, contexts))
        return continue_contexts(self.model, read.repeated([count] * len(contexts)), continuations)

    def _contexts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        if isinstance(prompts, str):
            raise TypeError("prompts must be a list of prompts, got one text")
        encoded = ids_of_source if self.model.config.is_encoder_decoder else ids_of_prompt
        contexts = [encoded(prompt, self.tokenizer) for prompt in prompts]
        limit = context_of(self.model)
        for number, ids in enumerate(contexts):
            if not ids:
                raise ValueError(f"prompt {number} has no tokens")
            if limit is not None and len(ids) >= limit + self.model.config.is_encoder_decoder:
                raise ValueError(f"prompt {number} has {len(ids)} tokens and leaves no room in the context of {limit}")
        return contexts

    def _continuations(
        self, prompts: Sequence[Prompt], contexts: Sequence[list[int]], continuations: Sequence[Sequence[str]]
    ) -> list[list[list[int]]]:
        check_choices(prompts, continuations)
        if self.model.config.is_encoder_decoder:  # a text of its own
            rows = [[self.tokenizer(t, add_special_tokens=False)["input_ids"] for t in row] for row in continuations]
        else:
            rows = [
                [ids_of_continuation(prompt, ids, text, self.tokenizer) for text in row]
                for prompt, ids, row in zip(prompts, contexts, continuations, strict=True)
            ]
        for number, row in enumerate(rows):
            if not all(row):
                raise ValueError(f"prompt {number} has a continuation without tokens")
        return rows

    def _batches(self, room: list[int], contexts: list[list[int]], n: int) -> Iterator[list[int]]:
        """Yields numbers of prompts that are completed together: of similar length, and with the same room."""
        order = sorted(range(len(contexts)), key=lambda i: (room[i], len(contexts[i])))
        for _, group in groupby(order, key=lambda i: room[i]):
            yield from _chunks(list(group), max(1, self.batch_size // n))

    def _completion(self, ids: list[int], stop: Sequence[str], read: int) -> Completion:
        ended = bool(ids) and ids[-1] in end_tokens(self.model, self.tokenizer)
        text = self.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
        cut = min((text.index(end) for end in stop if end in text), default=None)
        return Completion(
            text if cut is None else text[:cut],
            tokens=len(ids),
            prompt_tokens=read,
            finish_reason="stop" if ended or cut is not None else "length",
        )


def check_sampling(n: int, temperature: float, top_p: float, max_tokens: int) -> None:
    """Raises ValueError for options of ``LM.generate`` that mean nothing."""
    if n < 1 or max_tokens < 1:
        raise ValueError(f"n and max_tokens must be at least 1, got {n} and {max_tokens}")
    if not (temperature >= 0 and 0 < top_p <= 1):
        raise ValueError(f"temperature must be at least 0 and top_p in (0, 1], got {temperature} and {top_p}")


def check_choices(prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> None:
    """Raises ValueError unless each prompt has continuations to score, none of them empty."""
    if len(prompts) != len(continuations):
        raise ValueError(f"score needs the continuations of each prompt, got {len(continuations)} for {len(prompts)}")
    for number, row in enumerate(continuations):
        if isinstance(row, str):
            raise TypeError(f"prompt {number} needs a list of continuations, got one text")
        if not row or not all(row):
            raise ValueError(f"prompt {number} has no continuations, or an empty one")


def _parts(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def _chunks(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
