"""Fine-tuning targets in a model's own words: its own answers where they are right, gold answers where they are not.

Text that a model would have written itself is likely under it, so training on it moves the weights less, and less of
what the model could do is lost.

Source: Gupta et al., "Selective Self-to-Supervised Fine-Tuning" (arXiv:2502.08130).
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from heldout.errors import checked
from heldout.language_model import LM, Prompt
from heldout.method import evaluating

TARGET_SOURCES = ("self", "paraphrase", "gold")
RESTATE = (
    "Question:\n{prompt}\n\nReference answer:\n{reference}\n\n"
    "Answer the question in your own words. Keep the final result of the reference answer."
)
_IGNORED = -100
_FIELD = re.compile(r"\{prompt\}|\{reference\}")


class SelfTargets(Dataset[dict[str, Any]]):
    """Rows ``{"prompt", "response", "source"}``, which ``heldout.train.sft`` takes as they are.

    Args:
        prompts: texts or chat messages.
        responses: what to train on, without an end token: the trainer adds it.
        sources: "self", "paraphrase" or "gold", for each.

    Example:
        >>> targets = SelfTargets(["2 + 2 =", "3 + 3 ="], ["4", "6"], ["self", "gold"])
        >>> targets[1], targets.counts()
        ({'prompt': '3 + 3 =', 'response': '6', 'source': 'gold'}, {'self': 1, 'paraphrase': 0, 'gold': 1})
    """

    @checked
    def __init__(self, prompts: Sequence[Prompt], responses: Sequence[str], sources: Sequence[str]) -> None:
        if not len(prompts) == len(responses) == len(sources):
            raise ValueError(
                "every prompt needs a response and a source, "
                f"got {len(prompts)} prompts, {len(responses)} responses and {len(sources)} sources"
            )
        if unknown := set(sources) - set(TARGET_SOURCES):
            raise ValueError(f"a source must be one of {', '.join(TARGET_SOURCES)}, got {min(unknown)!r}")
        self.prompts, self.responses, self.sources = list(prompts), list(responses), list(sources)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"prompt": self.prompts[index], "response": self.responses[index], "source": self.sources[index]}

    def counts(self) -> dict[str, int]:
        """Returns how many targets come from each source."""
        found = Counter(self.sources)
        return {source: found[source] for source in TARGET_SOURCES}

    @checked
    def nll(self, model: nn.Module, tokenizer: Any, *, batch_size: int = 16) -> Tensor:
        """Returns the mean negative log likelihood per token of each target, in nats, ``(rows,)``.

        The tokens are those that training counts: the response and one end token. Cost: one forward pass over the
        data, in batches of similar length.

        Args:
            model: a causal or sequence-to-sequence model of transformers; put into evaluation mode and back.
            tokenizer: its tokenizer, with an end token.
            batch_size: rows of a forward pass.

        Raises:
            ValueError: a tokenizer without an end token; a likelihood that is not finite, with the number of its row.
        """
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer needs an end token (eos_token), which is a part of every target")
        separate = bool(getattr(model.config, "is_encoder_decoder", False))
        rows = [self._ids(number, tokenizer) for number in range(len(self))]
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i][0]) + len(rows[i][1]), len(rows[i][1])))
        found = torch.empty(len(rows))
        with evaluating(model), torch.inference_mode():
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                found[chosen] = _mean_nll(model, [rows[i] for i in chosen], separate).cpu()
        if not bool(found.isfinite().all()):
            raise ValueError(f"the likelihood of row {int((~found.isfinite()).nonzero()[0])} is not finite")
        return found

    def _ids(self, number: int, tokenizer: Any) -> tuple[list[int], list[int]]:
        prompt, end = self.prompts[number], tokenizer.eos_token_id
        if isinstance(prompt, str):
            read = tokenizer(prompt)["input_ids"]
            read = read[:-1] if read and read[-1] == end else read
        else:
            messages = [dict(message) for message in prompt]
            read = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        return read, [*tokenizer(self.responses[number], add_special_tokens=False)["input_ids"], end]


@checked
def self_targets(
    lm: LM,
    pairs: Sequence[Any],
    judge: Callable[[str, str, str], bool],
    paraphrase: str | None = RESTATE,
    max_new_tokens: int = 256,
    batch_size: int = 16,
    *,
    stop: Sequence[str] = (),
) -> SelfTargets:
    """Returns a target for each pair: the model's own answer if it is right, its paraphrase of the gold, or the gold.

    1. The model answers the prompt, greedily and once. If the judge accepts the answer, it is the target.
    2. Otherwise the model restates the gold answer, given both. If the judge accepts that, it is the target.
    3. Otherwise the gold answer is the target, as it is.

    No pair is dropped and the order stays. Train the same model on the result, from the weights that answered here.
    Cost: one decoding pass over the data, and one over the pairs that the model got wrong.

    Args:
        lm: the model that will be trained, such as ``heldout.lm.TransformersLM(model, tokenizer)``; only ``generate``
            is called.
        pairs: ``(prompt, gold response)``, or dicts with ``prompt`` and ``response`` (or ``completion``). A prompt is a
            text or chat messages.
        judge: ``(prompt, response, reference) -> bool``, such as ``heldout.lm.judge_number()``. Of chat messages it
            gets the texts, a line break between them.
        paraphrase: with the fields ``{prompt}`` and ``{reference}``; in chat messages it takes the place of the last
            one. None leaves out step 2.
        max_new_tokens: of an answer; twice the length of long gold answers is enough.
        batch_size: prompts that are answered together, the shorter ones first.
        stop: strings that end an answer, and are no part of it.

    Raises:
        TypeError: an ``lm`` without ``generate``, or a bare transformers model; a judge that returns no bool.
        ValueError: no pairs; a pair that is none, with its number; a template without its fields.

    Warns:
        UserWarning: if no own answer was accepted; if accepted answers were cut off at ``max_new_tokens``.

    Example:
        >>> from types import SimpleNamespace
        >>> class Parrot:
        ...     def generate(self, prompts, n=1, **options):
        ...         return [[SimpleNamespace(text="It is 4.")] for _ in prompts]
        >>> targets = self_targets(Parrot(), [("2 + 2 =", "4"), ("3 + 3 =", "6")], lambda p, r, gold: gold in r)
        >>> [(row["response"], row["source"]) for row in targets]
        [('It is 4.', 'self'), ('6', 'gold')]

    Source: arXiv:2502.08130. Deviation: the paper says what the sources are; that an own answer comes before a
        paraphrase, and that paraphrases are judged as well, is our reading.
    """
    if isinstance(lm, nn.Module):
        raise TypeError("lm must be a language model that takes texts: wrap it as TransformersLM(model, tokenizer)")
    if not callable(getattr(lm, "generate", None)):
        raise TypeError(f"lm needs a method generate(prompts, ...), which {type(lm).__name__} has not")
    if batch_size < 1 or max_new_tokens < 1:
        raise ValueError(f"batch_size and max_new_tokens must be at least 1, got {batch_size} and {max_new_tokens}")
    if paraphrase is not None:
        for field in ("{prompt}", "{reference}"):
            if field not in paraphrase:
                raise ValueError(f"the paraphrase template needs {field}")
    prompts, golds = _split(pairs)
    responses, sources = list(golds), ["gold"] * len(golds)
    open_pairs, cut = list(range(len(golds))), 0

    def take(source: str, asked: Mapping[int, Prompt]) -> list[int]:
        """Makes accepted answers targets, and returns the pairs that remain."""
        nonlocal cut
        said = _answers(lm, asked, max_new_tokens, batch_size, stop)
        remaining = []
        for i in asked:
            text, whole = said[i]
            if _accepted(judge, i, _text(prompts[i]), text, golds[i]):
                responses[i], sources[i] = text, source
                cut += not whole
            else:
                remaining.append(i)
        return remaining

    open_pairs = take("self", {i: prompts[i] for i in open_pairs})
    if paraphrase is not None and open_pairs:
        take("paraphrase", {i: _restated(paraphrase, prompts[i], golds[i]) for i in open_pairs})
    targets = SelfTargets(prompts, responses, sources)
    counts = targets.counts()
    if not counts["self"]:
        warnings.warn(
            f"none of {len(prompts)} own answers was accepted: the targets are {counts['paraphrase']} paraphrases and "
            f"{counts['gold']} gold answers; look at what the model answers and what the judge makes of it",
            stacklevel=2,
        )
    if cut:
        warnings.warn(
            f"{cut} accepted answers were cut off at max_new_tokens={max_new_tokens}: a model that is trained on them "
            "learns to stop in the middle; raise it",
            stacklevel=2,
        )
    return targets


def _split(pairs: Sequence[Any]) -> tuple[list[Prompt], list[str]]:
    if isinstance(pairs, str | Mapping):
        raise TypeError(f"pairs must be a sequence of (prompt, gold response), got {type(pairs).__name__}")
    prompts: list[Prompt] = []
    golds = []
    for number in range(len(pairs)):
        pair = pairs[number]
        if isinstance(pair, Mapping):
            prompt, gold = pair.get("prompt"), pair.get("response", pair.get("completion"))
        elif isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(f"pair {number} must be (prompt, gold response), got {pair!r:.80}")
        else:
            prompt, gold = pair
        if not prompt or not isinstance(prompt, str | Sequence) or not isinstance(gold, str) or not gold:
            raise ValueError(f"pair {number} needs a prompt and a gold response that is a text, got {pair!r:.80}")
        prompts.append(prompt)
        golds.append(gold)
    if not prompts:
        raise ValueError("self_targets needs at least one pair (prompt, gold response), got none")
    return prompts, golds


def _answers(
    lm: LM, asked: Mapping[int, Prompt], max_new_tokens: int, batch_size: int, stop: Sequence[str]
) -> dict[int, tuple[str, bool]]:
    """The answer to each prompt, without end tokens, and whether the model ended it."""
    end = getattr(getattr(lm, "tokenizer", None), "eos_token", None)
    order = sorted(asked, key=lambda i: len(_text(asked[i])))
    found = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        said = lm.generate([asked[i] for i in batch], temperature=0.0, max_tokens=max_new_tokens, stop=stop)
        if len(said) != len(batch):
            raise ValueError(f"the language model gave {len(said)} answers to {len(batch)} prompts")
        for i, (completion, *_) in zip(batch, said, strict=True):
            text = completion.text
            while end and text.rstrip().endswith(end):
                text = text.rstrip().removesuffix(end).rstrip()
            found[i] = text, getattr(completion, "finish_reason", "stop") != "length"
    return found


def _accepted(judge: Callable[[str, str, str], bool], number: int, prompt: str, response: str, gold: str) -> bool:
    verdict = judge(prompt, response, gold)
    if not isinstance(verdict, bool | np.bool_):
        raise TypeError(f"the judge must return a bool, got {type(verdict).__name__} for pair {number}")
    return bool(verdict)


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def _restated(template: str, prompt: Prompt, gold: str) -> Prompt:
    # Not str.format: texts may hold braces, and must not reach other fields.
    parts = {"{prompt}": prompt if isinstance(prompt, str) else prompt[-1]["content"], "{reference}": gold}
    asked = _FIELD.sub(lambda match: parts[match.group()], template)
    return asked if isinstance(prompt, str) else [*prompt[:-1], {**prompt[-1], "content": asked}]


def _mean_nll(model: Any, rows: Sequence[tuple[list[int], list[int]]], separate: bool) -> Tensor:
    """Mean over the response's tokens, ``(batch,)``; prompt and response stand in one sequence unless separate."""
    reads = [read if separate else read + written for read, written in rows]
    labels = _padded([written if separate else [_IGNORED] * len(read) + written for read, written in rows], _IGNORED)
    ids, mask = _padded(reads, 0), _padded([[1] * len(read) for read in reads], 0)
    device = model.device
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    if separate:
        logits = model(**inputs, labels=labels.to(device)).logits
    else:
        logits, labels = model(**inputs).logits[:, :-1], labels[:, 1:]
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), labels.to(device).flatten(), ignore_index=_IGNORED, reduction="none"
    )
    counted = (labels != _IGNORED).sum(1).to(device)
    return losses.view(labels.shape).sum(1) / counted


def _padded(rows: Sequence[list[int]], value: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])
