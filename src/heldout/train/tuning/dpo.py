"""Core: Direct preference optimisation of a language model, on trl."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from heldout.errors import check_positive, checked
from heldout.lm import context_of, ids_of_prompt
from heldout.train.tuning.tuned import (
    Log,
    Tuned,
    arguments,
    prepared_tokenizer,
    quiet_training,
    rows_of,
    text_field,
    tune,
    without_begin,
)


@checked
def dpo(
    model: Any,
    tokenizer: Any,
    data: Sequence[Any],
    *,
    beta: float = 0.1,
    steps: int | None = None,
    epochs: float = 1.0,
    batch_size: int = 8,
    lr: float = 1e-6,
    schedule: str = "linear",
    warmup: float = 0.03,
    weight_decay: float = 0.0,
    max_length: int | None = None,
    lora: Any = None,
    seed: int = 0,
    device: str | None = None,
    on_log: Log | None = None,
    **options: Any,
) -> Tuned:
    """Tunes a causal model to prefer chosen over rejected responses, and returns it with its history.

    The loss is ``-log sigmoid(beta (log pi(chosen)/ref(chosen) - log pi(rejected)/ref(rejected)))``; the reference is
    the model as it was given.

    Args:
        model: a causal model of transformers; tuned in place. With ``lora`` it is wrapped.
        tokenizer: its tokenizer.
        data: rows with ``prompt``, ``chosen`` and ``rejected``: texts, or chat messages in all three.
        beta: how strongly the model is held to the reference.
        steps, epochs, batch_size, lr, schedule, warmup, weight_decay, lora, seed, device, on_log: as for ``sft``.
        max_length: tokens of prompt and response; the ends of longer responses are cut. Default: what the model can
            take.
        options: further arguments of trl's ``DPOConfig``, such as ``loss_type="ipo"``.

    Raises:
        ValueError: no row, or a row without one of the fields, with its number, or whose prompt
            leaves no room for a response; a sequence-to-sequence model.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> tokenizer = word_tokenizer(["say : yes no"])
        >>> rows = [{"prompt": "say :", "chosen": " yes", "rejected": " no"}]
        >>> tuned = dpo(tiny_llama(tokenizer, dim=16, layers=1), tokenizer, rows, steps=30, lr=1e-2)
        >>> tuned.history[-1]["rewards/accuracies"]
        1.0

    Source: arXiv:2305.18290; the trainer is trl's.
    """
    if model.config.is_encoder_decoder:
        raise ValueError("dpo needs a causal model: trl's trainer does not take sequence-to-sequence models")
    check_positive(beta=beta)
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    tokenizer = prepared_tokenizer(tokenizer)
    fields = ("prompt", "chosen", "rejected")
    rows = [{name: text_field(row, i, name) for name in fields} for i, row in enumerate(rows_of(data, "data"))]
    for number, row in enumerate(rows):
        for name, value in row.items():
            if not isinstance(value, str | Sequence):
                raise TypeError(f"row {number} must hold a text or messages as its {name!r}, got {value!r}")
    limit = max_length if max_length is not None else context_of(model)
    for number, row in enumerate(rows):
        row["prompt"] = without_begin(row["prompt"], tokenizer)
        length = len(ids_of_prompt(row["prompt"], tokenizer))
        if limit is not None and length >= limit:
            raise ValueError(
                f"the prompt of row {number} alone has {length} tokens of at most {limit}: nothing of its responses "
                "would be left; raise max_length, or shorten or leave out the row"
            )
    with quiet_training(seed) as folder:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        args = arguments(
            DPOConfig,
            folder,
            steps=steps,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            schedule=schedule,
            warmup=warmup,
            weight_decay=weight_decay,
            seed=seed,
            device=device,
            options=options,
            beta=beta,
            max_length=limit,
        )
        trainer = DPOTrainer(
            model=model,
            ref_model=None if lora is not None else copy.deepcopy(model),  # trl would read it from where it came from
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora,
        )
        return tune(trainer, on_log)
