"""Core: Texts as the training loop takes them: rows of token ids, scored by the tokens that count.

A text has a label for each token, from a vocabulary of tens of thousands. One-hot rows are out of the question, and so
are the logits of a whole data set. Labels therefore travel with the inputs, as ``wanted``: int64 ``(batch, length)``,
-100 where a token does not count. For each text the model answers with two sums over the tokens that count: of their
log likelihoods, and of those that it finds likeliest, ``(batch, 2)``; the target of a text is their number, twice. To
``fit`` these are real numbers, so that every Method that acts on weights, gradients or data acts on texts, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from heldout.data import gather
from heldout.errors import check_same_length, checked
from heldout.lm import TransformersLM
from heldout.method import Batch, Run, evaluating, forward
from heldout.nn import inputs_for
from heldout.train import encode_rows, pack

IGNORED = -100
TOKENS_AT_ONCE = 4096  # of an evaluation batch, padding included
LONGEST_ANSWER = 256  # tokens, where the file does not say
Judge = Callable[[str, str, Any], float]


@dataclass(frozen=True, eq=False)
class Language:
    """How texts become tokens, and how generated answers are judged.

    Attributes:
        tokenizer: of transformers, with an end token.
        max_length: tokens of a prompt and its completion.
        truncate: whether longer rows lose their end; otherwise they are an error.
        packing: whether rows of the training set are joined to sequences of ``max_length`` tokens.
        judge: ``(prompt, answer, row) -> score``, more is better; None where answers are not judged.
        max_new_tokens: of an answer; None is twice the longest completion, 256 at most.
    """

    tokenizer: Any
    max_length: int | None = None
    truncate: bool = False
    packing: bool = False
    judge: Judge | None = None
    max_new_tokens: int | None = None


class Texts(Dataset[dict[str, Any]]):
    """Rows of text, encoded as ``heldout.train.sft`` encodes them; examples are padded to the longest of their batch.

    Args:
        rows: texts, dicts or pairs, as ``heldout.train.sft`` takes them.
        language: the tokenizer and its options.
        packed: join rows to sequences of ``language.max_length`` tokens; examples are sequences then.

    Raises:
        ValueError: a row without its fields, or too long, with its number.

    Example:
        >>> from heldout.lm import word_tokenizer
        >>> texts = Texts([("a b", "c"), ("a", "b c")], Language(word_tokenizer(["a b c"])))
        >>> texts[0]["labels"], texts.tokens  # the completion and the end token
        (tensor([2., 2.]), 5)
    """

    @checked
    def __init__(self, rows: Any, language: Language, *, packed: bool = False) -> None:
        tokenizer, limit = language.tokenizer, language.max_length
        whole = encode_rows(rows, tokenizer, max_length=None if language.truncate else limit)
        self.truncated = sum(limit is not None and len(row["input_ids"]) > limit for row in whole)
        encoded = encode_rows(rows, tokenizer, max_length=limit, truncate=True) if self.truncated else whole
        if packed:
            if limit is None:
                raise ValueError("packing needs max_length: the model's configuration does not limit its context")
            encoded = pack(encoded, limit)
        self.rows: list[Any] = [rows[i] for i in range(len(rows))]
        self.language, self.packed = language, packed
        self.encoded = [{name: torch.tensor(values) for name, values in row.items()} for row in encoded]
        self.counts = torch.tensor([int((row["labels"][1:] != IGNORED).sum()) for row in self.encoded])
        self.lengths = [len(row["input_ids"]) for row in self.encoded]

    def with_rows(self, rows: Any) -> Texts:
        """Returns other rows under the same options."""
        return Texts(rows, self.language, packed=self.packed)

    def with_prompts(self, change: Callable[[str], str]) -> Texts | None:
        """Returns the rows with other prompts (of messages, what users say); None where a row has no prompt.

        A row that would become too long stays as it is.
        """
        if self.pairs is None:
            return None
        rows = [_with_prompt(row, change) for row in self.rows]
        if (limit := self.language.max_length) is not None:
            encoded = encode_rows(rows, self.language.tokenizer)
            rows = [
                new if len(each["input_ids"]) <= limit else old
                for old, new, each in zip(self.rows, rows, encoded, strict=True)
            ]
        return self.with_rows(rows)

    @property
    def tokens(self) -> int:
        """How many tokens count."""
        return int(self.counts.sum())

    @property
    def weighted(self) -> bool:
        """Whether tokens have weights."""
        return "loss_weights" in self.encoded[0]

    @property
    def pairs(self) -> list[tuple[Any, str]] | None:
        """Prompt and completion of each row; None where a row has no prompt."""
        found = [_pair(row) for row in self.rows]
        return None if None in found else found  # type: ignore[return-value]

    def longest_answer(self) -> int:
        """Returns the most tokens that a generated answer may have."""
        return self.language.max_new_tokens or min(LONGEST_ANSWER, 2 * int(self.counts.max()))

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: list[int]) -> list[dict[str, Any]]:
        rows = [self.encoded[i] for i in positions]
        width = max(len(row["input_ids"]) for row in rows)
        pad = self.language.tokenizer.pad_token_id or 0
        fills = {"input_ids": pad, "labels": IGNORED, "loss_weights": 0.0, "position_ids": 0}
        names = {"labels": "wanted", "loss_weights": "weights"}
        items: list[dict[str, Any]] = []
        for position, row in zip(positions, rows, strict=True):
            size = len(row["input_ids"])
            item = {names.get(key, key): F.pad(row[key], (0, width - size), value=fills[key]) for key in row}
            if "position_ids" not in row:  # packs attend by their positions; a mask would let rows see each other
                item["attention_mask"] = (torch.arange(width) < size).long()
            items.append(item | {"labels": self.counts[position].float().expand(2)})
        return items


def scored(module: nn.Module) -> nn.Module:
    """Returns the causal language model, which answers with two sums for each text where it is given ``wanted``.

    Called without it, to generate for instance, it answers as ever. Its weights keep their names.
    """
    if not module.__dict__.get("_heldout_scored"):
        module.__dict__["_heldout_scored"] = True
        module.register_forward_pre_hook(_take_wanted, with_kwargs=True)
        module.register_forward_hook(_answer_with_sums)
    return module


def _take_wanted(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    if "wanted" not in kwargs:
        return None
    kept = {name: value for name, value in kwargs.items() if name not in ("wanted", "weights")}
    if hasattr(getattr(module, "config", None), "use_cache"):
        kept["use_cache"] = False
    module.__dict__["_heldout_wanted"] = kwargs["wanted"], kwargs.get("weights")
    return args, kept


def _answer_with_sums(module: nn.Module, args: Any, output: Any) -> Tensor | None:
    asked = module.__dict__.pop("_heldout_wanted", None)
    return None if asked is None else token_sums(forward(lambda: output, ()), *asked)


def token_sums(logits: Tensor, wanted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Returns for each text the sum of weight times log likelihood, and the number of likeliest tokens, ``(batch, 2)``.

    Args:
        logits: ``(batch, length, vocabulary)``; those at a place predict the next token.
        wanted: int64 ``(batch, length)``, -100 where a token does not count.
        weights: ``(batch, length)``; default 1.

    Example:
        >>> sums = token_sums(torch.zeros(1, 3, 4), torch.tensor([[IGNORED, 0, 3]]))
        >>> sums[0, 0].exp().item(), sums[0, 1].item()
        (0.0625, 1.0)
    """
    labels = wanted[:, 1:]
    counted = labels != IGNORED
    chosen = logits[:, :-1][counted]
    scores = -F.cross_entropy(precise(chosen), labels[counted], reduction="none")
    hits = (chosen.argmax(1) == labels[counted]).to(scores.dtype)
    if weights is not None:
        scores = scores * weights[:, 1:][counted].to(scores.dtype)
    found = torch.stack([scores, hits], 1)
    return found.new_zeros(len(wanted), 2).index_add(0, counted.nonzero()[:, 0], found)


def precise(logits: Tensor) -> Tensor:
    """Returns logits in single precision at least."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def sums_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean over the tokens that count of (weight times) negative log likelihood: the loss of SFT.

    Args:
        outputs: ``(batch, 2 or more)``, as ``token_sums`` gives them.
        targets: of the same shape, the number of tokens that count.
    """
    return -outputs[:, 0].sum() / targets[:, 0].sum().clamp(min=1)


@checked
def text_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean negative log likelihood of each text, ``(batch,)``; see ``sums_loss``.

    Args:
        outputs: ``(batch, 2 or more)``, as ``token_sums`` gives them.
        targets: of the same shape, the number of tokens that count.

    Raises:
        ValueError: other numbers of rows.

    Example:
        >>> text_losses(torch.tensor([[-3.0, 1.0], [-1.0, 2.0]]), torch.tensor([[3.0, 3.0], [2.0, 2.0]]))
        tensor([1.0000, 0.5000])
    """
    check_same_length(outputs=outputs, targets=targets)
    return -outputs[:, 0] / targets[:, 0].clamp(min=1)


def tokens_of(run: Run, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Returns logits ``(tokens, vocabulary)``, labels and positions among all training tokens ``(tokens,)`` of a batch.

    Only tokens that count: to losses of classes these are examples.
    """
    view: Any = run.train_set
    while isinstance(view, Subset) and view is not run.splits.train:
        view = view.dataset
    texts: Any = view if view is run.splits.train else run.train_set
    inputs = {name: value for name, value in batch.inputs.items() if name not in ("wanted", "weights")}
    labels = batch.inputs["wanted"][:, 1:]
    counted = labels != IGNORED
    logits = forward(batch.module, inputs)[:, :-1][counted]
    first = (texts.counts.cumsum(0) - texts.counts)[batch.index].to(labels.device)
    place = first[:, None] + counted.long().cumsum(1) - 1
    return precise(logits), labels[counted], place[counted]


def outputs_by_length(predict: Callable[[Any], Tensor], texts: Any) -> tuple[Tensor, Tensor]:
    """Returns ``(sums, counts)`` of all texts, float64 ``(n, 2)`` in their order, predicted in batches of like length.

    Args:
        predict: from the inputs of a batch to ``(batch, 2)``.
        texts: or a ``Subset`` of them.
    """
    whole, places = _unwrapped(texts)
    lengths = torch.tensor(whole.lengths)[places]
    order = lengths.argsort(descending=True, stable=True)
    outputs, targets, start = torch.zeros(len(texts), 2).double(), torch.zeros(len(texts), 2).double(), 0
    while start < len(order):
        chosen = order[start : start + max(1, TOKENS_AT_ONCE // int(lengths[order[start]]))]
        inputs, counts = gather(texts, chosen)
        outputs[chosen], targets[chosen] = predict(inputs).detach().cpu().double(), counts.double()
        start += len(chosen)
    return outputs, targets


def judged_answers(module: nn.Module, texts: Any) -> Tensor:
    """Returns the judge's score of the model's answer to each prompt, float64 ``(n,)``; answers are greedy.

    Raises:
        ValueError: there is no judge, a row has no prompt, or a score is not finite, with its number.
    """
    view, places = _unwrapped(texts)
    indices = places.tolist()
    if view.language.judge is None or view.pairs is None:
        raise ValueError("judged answers need judge(prompt, answer, example) and rows with prompts")
    prompts = [view.pairs[i][0] for i in indices]
    with evaluating(module):
        lm = TransformersLM(module, view.language.tokenizer)
        said = lm.generate(prompts, max_tokens=view.longest_answer())
    scores = [
        float(view.language.judge(plain(prompt), answer.text, view.rows[i]))
        for prompt, (answer,), i in zip(prompts, said, indices, strict=True)
    ]
    found = torch.tensor(scores, dtype=torch.float64)
    if not found.isfinite().all():
        raise ValueError(f"judge gives {scores[int((~found.isfinite()).nonzero()[0])]} for an answer")
    return found


def check_packing(module: nn.Module, texts: Texts) -> None:
    """Raises ValueError where rows of a pack see each other in this model."""
    few = texts.rows[:2] + texts.rows[-1:]
    apart, packed = (Texts(few, texts.language, packed=flag) for flag in (False, True))
    with evaluating(module), torch.no_grad():
        sums = [
            sum(forward(module, inputs_for(module, gather(each, torch.tensor([i]))[0]))[0, 0] for i in range(len(each)))
            for each in (apart, packed)
        ]
    if abs(float(sums[0]) - float(sums[1])) > 1e-3 * abs(float(sums[0])):
        raise ValueError("packing = True is not for this model: rows of a pack see each other")


def plain(prompt: Any) -> str:
    """Returns a prompt as text; of chat messages the contents, a line break between them."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def _unwrapped(dataset: Any) -> tuple[Any, Tensor]:
    """The whole that a subset is taken from, and the places of the subset in it."""
    places = torch.arange(len(dataset))
    while isinstance(dataset, Subset):
        places, dataset = torch.as_tensor(dataset.indices)[places], dataset.dataset
    return dataset, places


def _with_prompt(row: Any, change: Callable[[str], str]) -> Any:
    """A row with another prompt; its completion stays."""
    if not isinstance(row, Mapping):
        return (_changed(row[0], change), row[1])
    if row.get("messages") is not None:
        messages = list(row["messages"])
        return {**row, "messages": [*_changed(messages[:-1], change), messages[-1]]}
    return {**row, "prompt": _changed(row["prompt"], change)}


def _changed(prompt: Any, change: Callable[[str], str]) -> Any:
    if isinstance(prompt, str):
        return change(prompt)
    return [{**each, "content": change(each["content"])} if each["role"] == "user" else each for each in prompt]


def _pair(row: Any) -> tuple[Any, str] | None:
    if isinstance(row, Mapping):
        if row.get("messages") is not None:
            messages = list(row["messages"])
            return (messages[:-1], messages[-1]["content"]) if len(messages) > 1 else None
        said = row.get("completion", row.get("response"))
        said = said[0]["content"] if isinstance(said, Sequence) and not isinstance(said, str) else said
        return (row["prompt"], said) if row.get("prompt") is not None and said is not None else None
    return (row[0], row[1]) if isinstance(row, Sequence) and not isinstance(row, str) and len(row) == 2 else None
