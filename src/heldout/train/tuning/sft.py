"""Core: Supervised fine-tuning of a language model, on trl: prompts masked, rows packed, tokens weighted.

Causal models go through trl's SFTTrainer, sequence-to-sequence models through transformers' Trainer, with the same rows
and the same loss: the mean over response tokens of weight times negative log likelihood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import check_at_least, checked
from heldout.lm import context_of, ids_of_prompt
from heldout.method import evaluating
from heldout.train.tuning.tuned import (
    Log,
    Tuned,
    arguments,
    check_lengths,
    prepared_tokenizer,
    quiet_training,
    rows_of,
    text_field,
    tune,
    without_begin,
)

IGNORED = -100
Encoded = dict[str, list[Any]]


@checked
def sft(
    model: Any,
    tokenizer: Any,
    data: Sequence[Any],
    *,
    steps: int | None = None,
    epochs: float = 1.0,
    batch_size: int = 16,
    lr: float = 1e-4,
    schedule: str = "linear",
    warmup: float = 0.03,
    weight_decay: float = 0.0,
    max_length: int | None = None,
    truncate: bool = False,
    packing: bool = False,
    lora: Any = None,
    seed: int = 0,
    device: str | None = None,
    on_log: Log | None = None,
    **options: Any,
) -> Tuned:
    """Fine-tunes a language model on prompts and responses, and returns it with its history.

    Args:
        model: a causal or sequence-to-sequence model of transformers; tuned in place. With ``lora`` it is wrapped.
        tokenizer: its tokenizer; where it has no padding token, the end token pads.
        data: rows, each a dict with ``prompt`` and ``completion`` (or ``response``), with ``text`` (every token
            counts), or with ``messages`` (the last one is the response); or a pair (prompt, response), or a text.
            A prompt may be chat messages; then the sequence is the one that the tokenizer's chat template writes, with
            its ends of turns, and an end token where it writes none. An end token follows each other response. A row
            may have ``weight``, which multiplies the loss of its tokens, or ``weights``, one for each token of its
            response and the end token.
        steps: updates; default: as many as ``epochs`` take.
        epochs: passes over the data.
        batch_size: rows, or packs of rows, in a batch.
        lr: highest learning rate of AdamW: 1e-4 suits adapters, 1e-5 to 5e-5 the tuning of all weights.
        schedule: of the learning rate, as transformers names it: "linear", "cosine", "constant", ...
        warmup: share of the steps (below 1), or number of steps, in which the learning rate grows.
        weight_decay: of AdamW.
        max_length: tokens of prompt and response; default: what the model can take.
        truncate: cut the end of longer rows; otherwise they are an error.
        packing: join rows to sequences of ``max_length``; attention and positions stay within a row, so the loss is
            that of the same rows apart. For causal models.
        lora: a peft configuration, such as ``heldout.train.lora(16)``; default: all weights are tuned.
        seed: of order and dropout.
        device: "cpu", or wherever there is one.
        on_log: told every 10 steps what the trainer logs.
        options: further arguments of trl's ``SFTConfig``, such as ``gradient_accumulation_steps=4`` or ``bf16=True``.

    Raises:
        ValueError: no row; a row without its fields, whose last message is not the assistant's, or that is too long,
            with its number; weights that do not fit; packing for a model in which packed rows see each other.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> tokenizer = word_tokenizer(["sort b a : c"])
        >>> rows = [{"prompt": "sort b a :", "completion": "a b"}]
        >>> tuned = sft(tiny_llama(tokenizer, dim=16, layers=1), tokenizer, rows, steps=20, lr=1e-2)
        >>> tuned.history[-1]["step"]
        20.0

    Source: the trainer is trl's (https://huggingface.co/docs/trl), version 1.
    """
    separate = bool(model.config.is_encoder_decoder)
    if packing and separate:
        raise ValueError("packing joins prompt and response, which a sequence-to-sequence model reads apart")
    tokenizer = prepared_tokenizer(tokenizer)
    limit = max_length if max_length is not None else context_of(model)
    if packing and limit is None:
        raise ValueError("packing needs max_length: the model's configuration does not limit its context")
    encoded = encode_rows(data, tokenizer, max_length=limit, truncate=truncate, separate=separate)
    if packing:
        assert limit is not None
        _check_packing(model, encoded)
        encoded = pack(encoded, limit)
    with quiet_training(seed) as folder:
        trainer = _trainer(
            model,
            tokenizer,
            encoded,
            lora=lora,
            recipe={
                "folder": folder,
                "steps": steps,
                "epochs": epochs,
                "batch_size": batch_size,
                "lr": lr,
                "schedule": schedule,
                "warmup": warmup,
                "weight_decay": weight_decay,
                "seed": seed,
                "device": device,
                "options": options,
            },
        )
        return tune(trainer, on_log)


@checked
def encode_rows(
    data: Sequence[Any],
    tokenizer: Any,
    *,
    max_length: int | None = None,
    truncate: bool = False,
    separate: bool = False,
) -> list[Encoded]:
    """Returns the rows of ``sft`` as token ids and labels, and ``loss_weights`` if any row has one.

    Args:
        data, tokenizer: as for ``sft``.
        max_length: most tokens of prompt and response together, or of each where they are ``separate``.
        truncate: cut the end of longer rows instead of raising.
        separate: keep prompt and response apart, for sequence-to-sequence models.

    Example:
        >>> from heldout.lm import word_tokenizer
        >>> encode_rows([("a b", "c")], word_tokenizer(["a b c"]))
        [{'input_ids': [4, 5, 6, 2], 'labels': [-100, -100, 6, 2]}]
    """
    rows, lengths, weighted = [], [], False
    for number, row in enumerate(rows_of(data, "data")):
        prompt, response = _prompt_and_response(row, number, tokenizer, separate)
        weights = _weights(row, number, len(response))
        weighted |= weights is not None
        read = prompt if separate else prompt + response
        labels = response if separate else [IGNORED] * len(prompt) + response
        spread = [1.0] * len(response) if weights is None else weights
        lengths.append(max(len(read), len(labels)))
        if truncate and max_length is not None and not separate and len(prompt) >= max_length:
            raise ValueError(f"the prompt of row {number} alone has {len(prompt)} tokens of at most {max_length}")
        found: Encoded = {
            "input_ids": read,
            "labels": labels,
            "loss_weights": spread if separate else [0.0] * len(prompt) + spread,
        }
        if truncate:
            found = {name: values[:max_length] for name, values in found.items()}
        rows.append(found)
    if not truncate:
        check_lengths(lengths, max_length, "tokens")
    if not weighted:
        for row in rows:
            del row["loss_weights"]
    return rows


@checked
def pack(rows: Sequence[Encoded], length: int) -> list[Encoded]:
    """Returns rows joined to sequences of at most ``length`` tokens, with ``position_ids`` that begin anew in each row.

    Best fit decreasing: the longest rows first, each where the least room is left.

    Example:
        >>> rows = [{"input_ids": [1, 2], "labels": [1, 2]}, {"input_ids": [3], "labels": [3]}]
        >>> pack(rows, 3)
        [{'input_ids': [1, 2, 3], 'labels': [-100, 2, -100], 'position_ids': [0, 1, 0]}]
    """
    check_at_least(1, length=length)
    import bisect

    room: list[tuple[int, int]] = []  # (what is left, which pack), sorted
    packs: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"])):
        size = len(rows[index]["input_ids"])
        place = bisect.bisect_left(room, (size, -1))
        if place == len(room):
            left, number = length, len(packs)
            packs.append([])
        else:
            left, number = room.pop(place)
        packs[number].append(index)
        bisect.insort(room, (left - size, number))
    joined = []
    for members in packs:
        found: Encoded = {name: [v for i in members for v in rows[i][name]] for name in rows[members[0]]}
        # The first token of a row is predicted from nothing; joined, it would be from the row before.
        found["labels"] = [v for i in members for v in [IGNORED, *rows[i]["labels"][1:]]]
        found["position_ids"] = [p for i in members for p in range(len(rows[i]["input_ids"]))]
        joined.append(found)
    return joined


@checked
def weighted_nll(logits: Tensor, labels: Tensor, weights: Tensor, count: Tensor | int | None = None) -> Tensor:
    """Returns the sum of weight times negative log likelihood over the labels that are not -100, over their count.

    Args:
        logits: ``(batch, length, vocabulary)``.
        labels: ``(batch, length)``; each is what the logits at its place predict.
        weights: ``(batch, length)``.
        count: what to divide by; default: the number of labels.

    Example:
        >>> logits, labels = torch.zeros(1, 2, 4), torch.tensor([[3, -100]])
        >>> round(float(weighted_nll(logits, labels, torch.tensor([[2.0, 1.0]])).exp()), 4)
        16.0
    """
    losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    total = (losses * weights.flatten()).sum()
    return total / torch.as_tensor((labels != IGNORED).sum() if count is None else count).clamp(min=1)


def _prompt_and_response(row: Any, number: int, tokenizer: Any, separate: bool) -> tuple[list[int], list[int]]:
    if isinstance(row, str):
        row = {"text": row}
    elif isinstance(row, Sequence):
        if len(row) != 2:
            raise ValueError(f"row {number} must be a pair (prompt, response), got {len(row)} items")
        row = {"prompt": row[0], "completion": row[1]}
    elif isinstance(row, Mapping) and row.get("messages") is not None:
        before, last = _turns(row["messages"], number)
        row = {**row, "prompt": before, "completion": last["content"]}
    if not isinstance(row, Mapping):
        raise TypeError(f"row {number} must be a dict, a pair (prompt, response) or a text, got {type(row).__name__}")
    if row.get("prompt") is None:
        if separate:
            raise ValueError(f"row {number} has no field 'prompt', which a sequence-to-sequence model reads")
        text = text_field(row, number, "text", "prompt")
        return [], [*ids_of_prompt(without_begin(text, tokenizer), tokenizer), tokenizer.eos_token_id]
    response = text_field(row, number, "completion", "response")
    if not isinstance(response, str):
        before, last = _turns(response, number)
        if before:
            raise ValueError(f"row {number} has {len(response)} messages in its response: it must be one")
        response = last["content"]
    if not isinstance(row["prompt"], str) and not separate:
        return _in_template(row["prompt"], response, number, tokenizer)
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    return ids_of_prompt(without_begin(row["prompt"], tokenizer), tokenizer), [*ids, tokenizer.eos_token_id]


def _turns(messages: Any, number: int) -> tuple[list[Any], Any]:
    """Returns the turns before the last one, and the last one, which must be the assistant's."""
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not len(messages):
        raise ValueError(f"row {number} needs a list of at least one message, got {messages!r}")
    *before, last = messages
    if not isinstance(last, Mapping) or not isinstance(last.get("content"), str):
        raise ValueError(f"row {number}: its last message must have a text as its content, got {last!r}")
    if last.get("role") not in ("assistant", "model"):
        raise ValueError(
            f"row {number} ends with a message of the {last.get('role')!r}: the last must be the assistant's"
        )
    return before, last


def _in_template(prompt: Any, response: str, number: int, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Returns prompt and response as the chat template itself writes the conversation, ends of turns included.

    What the template opens for generation alone (such as ``<think>``) is not trained on. Where the template does not
    end a turn, an end token does.
    """
    opened = ids_of_prompt(prompt, tokenizer)
    turns = [*map(dict, prompt), {"role": "assistant", "content": response}]
    whole = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    before = tokenizer.apply_chat_template(turns[:-1], tokenize=True, return_dict=False) if turns[:-1] else []
    same = next(
        (i for i, (a, b) in enumerate(zip(opened, whole, strict=False)) if a != b), min(len(opened), len(whole))
    )
    if same < len(before) or same == len(whole):
        raise ValueError(
            f"row {number}: the chat template writes earlier turns otherwise once there is an answer; give prompt and "
            "completion as texts"
        )
    marks = {*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)}
    last = next((token for token in reversed(whole[same:]) if tokenizer.decode([token]).strip()), None)
    ended = last in marks - {tokenizer.unk_token_id}  # white space may stand behind the mark
    return whole[:same], whole[same:] if ended else [*whole[same:], tokenizer.eos_token_id]


def _check_packing(model: Any, rows: Sequence[Encoded]) -> None:
    """Raises ValueError if a row's logits are others behind another row in a pack than alone, or behind a third."""
    first, second = (torch.tensor([rows[at]["input_ids"][:16]], device=model.device) for at in (0, -1))
    positions = torch.cat([torch.arange(ids.shape[1], device=model.device) for ids in (first, second)])[None]
    name = getattr(model.config, "model_type", type(model).__name__)
    try:
        with evaluating(model), torch.no_grad():
            alone = model(input_ids=second).logits[0]
            packed, other = (
                model(input_ids=torch.cat([before, second], 1), position_ids=positions, use_cache=False).logits[0]
                for before in (first, second[:, :1].expand_as(first))
            )
    except TypeError as error:
        raise ValueError(f"packing needs a model that takes position_ids, which {name} does not: {error}") from None
    difference = (packed[first.shape[1] :] - alone).abs().max().item()
    leak = (packed[first.shape[1] :] - other[first.shape[1] :]).abs().max().item()  # what stands before is masked out
    exact, scale = next(model.parameters()).dtype in (torch.float32, torch.float64), alone.abs().max().item()
    if not (difference <= (1e-4 if exact else 2e-2) * scale and leak <= (1e-6 if exact else 1e-4) * scale):
        raise ValueError(f"packing=True is not for {name}: in this architecture rows of a pack see each other")


def _weights(row: Any, number: int, count: int) -> list[float] | None:
    if not isinstance(row, Mapping) or (row.get("weight") is None and row.get("weights") is None):
        return None
    if row.get("weights") is not None:
        weights = [float(value) for value in row["weights"]]
        if len(weights) != count:
            raise ValueError(f"row {number} has {len(weights)} weights for {count} tokens of response and end")
    else:
        weights = [float(row["weight"])] * count
    if not all(0 <= value < float("inf") for value in weights):
        raise ValueError(f"row {number} has a weight that is negative or not finite")
    return weights


def _trainer(model: Any, tokenizer: Any, rows: list[Encoded], *, lora: Any, recipe: dict[str, Any]) -> Any:
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments
    from trl import SFTConfig, SFTTrainer

    separate = bool(model.config.is_encoder_decoder)

    def loss_of(trainer: Any, net: Any, inputs: dict[str, Any], weights: Tensor, count: Any) -> tuple[Tensor, Any]:
        labels = inputs.pop("labels")
        if separate:
            inputs["decoder_input_ids"] = trainer.model.prepare_decoder_input_ids_from_labels(labels=labels)
            outputs = net(**inputs)
            return weighted_nll(outputs.logits, labels, weights, count), outputs
        outputs = net(**inputs)
        return weighted_nll(outputs.logits[:, :-1], labels[:, 1:], weights[:, 1:], count), outputs

    class Weighted:
        """Trainers that multiply each token's loss by ``loss_weights``, where the batch has them."""

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            weights = inputs.pop("loss_weights", None)
            if weights is None:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
            loss, outputs = loss_of(self, model, inputs, weights, num_items_in_batch)
            return (loss, outputs) if return_outputs else loss

    def collate(batch: list[Encoded]) -> dict[str, Tensor]:
        fills = {"input_ids": tokenizer.pad_token_id, "labels": IGNORED, "loss_weights": 0.0, "position_ids": 0}
        columns = {name: _padded([row[name] for row in batch], fills[name]) for name in batch[0]}
        if "position_ids" not in columns:  # packs attend by their positions; a mask would let rows see each other
            lengths = torch.tensor([len(row["input_ids"]) for row in batch])
            columns["attention_mask"] = (torch.arange(columns["input_ids"].shape[1]) < lengths[:, None]).long()
        return columns

    common = {
        "model": model,
        "train_dataset": Dataset.from_list(rows),
        "data_collator": collate,
        "processing_class": tokenizer,
    }
    if separate:
        if lora is not None:
            from peft import get_peft_model

            common["model"] = get_peft_model(model, lora)
        args = arguments(TrainingArguments, **recipe, remove_unused_columns=False)
        return type("WeightedTrainer", (Weighted, Trainer), {})(args=args, **common)
    args = arguments(
        SFTConfig, **recipe, remove_unused_columns=False, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}
    )
    return type("WeightedTrainer", (Weighted, SFTTrainer), {})(args=args, peft_config=lora, **common)


def _padded(rows: Sequence[Sequence[Any]], value: Any) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])
