"""What tuning a language model has in common, whichever trainer of trl or transformers does it."""

from __future__ import annotations

import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from heldout.errors import check_at_least, check_between, check_fields, check_fraction, checked
from heldout.train.supervised import seeded

Log = Callable[[dict[str, float]], None]
LOG_EVERY = 10  # steps


@dataclass(frozen=True)
class Tuned:
    """A tuned language model.

    Attributes:
        model: in evaluation mode; the one that was given, or the peft model around it.
        history: what the trainer logged, in order: ``step``, ``loss`` and further means over the steps since the last.

    Example:
        >>> tuned = Tuned(model=None, history=[{"step": 10.0, "loss": 2.5}, {"step": 20.0, "loss": 1.5}])
        >>> tuned.history[-1]["loss"] < tuned.history[0]["loss"]
        True
    """

    model: Any
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_fields(self)


@checked
def lora(rank: int = 16, *, alpha: int | None = None, dropout: float = 0.0, modules: Any = "all-linear") -> Any:
    """Returns the peft configuration of low-rank adapters for ``sft(lora=...)``, ``dpo`` and ``grpo``.

    Args:
        rank: of each adapter.
        alpha: scale times rank; default twice the rank.
        dropout: on the adapters' inputs.
        modules: names of the adapted layers, as peft has them; default all linear ones but the head.

    Example:
        >>> lora(8).lora_alpha
        16
    """
    check_at_least(1, rank=rank)
    check_fraction(dropout=dropout)
    from peft import LoraConfig

    return LoraConfig(
        r=rank, lora_alpha=2 * rank if alpha is None else alpha, lora_dropout=dropout, target_modules=modules
    )


@checked
def prepared_tokenizer(tokenizer: Any) -> Any:
    """Returns the tokenizer, with the end token as padding where it has none.

    Raises:
        ValueError: if it has no end token: a model that is tuned without one never learns to stop.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer needs an end token (eos_token): without one the model never learns to stop")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@checked
def rows_of(data: Any, what: str) -> list[Any]:
    """Returns the rows of a data set or sequence as a list, or says that there is none."""
    if isinstance(data, Mapping | str):
        raise TypeError(f"{what} must be a sequence of rows, got {type(data).__name__}")
    rows = [data[i] for i in range(len(data))]
    if not rows:
        raise ValueError(f"{what} needs at least one row, got none")
    return rows


@checked
def text_field(row: Any, number: int, *names: str) -> Any:
    """Returns the first of the named fields that a row has; raises ValueError naming row and field."""
    if not isinstance(row, Mapping):
        raise TypeError(f"row {number} must be a dict, got {type(row).__name__}")
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise ValueError(f"row {number} has no field {names[0]!r}; it has {', '.join(map(repr, row)) or 'none'}")


@checked
def without_begin(prompt: Any, tokenizer: Any) -> Any:
    """Returns a prompt without the beginning token that it begins with, where the tokenizer adds one of its own.

    A rendered chat template begins with it; encoded as it is, the text would begin with two.
    """
    begin = tokenizer.bos_token
    if not isinstance(prompt, str) or not begin or not prompt.startswith(begin):
        return prompt
    return prompt.removeprefix(begin) if tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id] else prompt


@checked
def arguments(
    config: Callable[..., Any],
    folder: str,
    *,
    steps: int | None,
    epochs: float,
    batch_size: int,
    lr: float,
    schedule: str,
    warmup: float,
    weight_decay: float,
    seed: int,
    device: str | None,
    options: Mapping[str, Any],
    **more: Any,
) -> Any:
    """Returns the trainer's arguments: quiet, without checkpoints, in the precision of the weights.

    ``options`` are the trainer's own and win over everything else.

    Raises:
        ValueError: steps, epochs or batch_size that are not positive, a rate or seed that is negative, or NaN for any.
    """
    if steps is not None and not (0 < steps < float("inf") and steps == int(steps)):
        raise ValueError(f"steps must be a whole number of at least 1, or None, got {steps!r}")
    if not (0 < batch_size < float("inf") and batch_size == int(batch_size)):
        raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    if not 0 < epochs < float("inf"):
        raise ValueError(f"epochs must be positive, got {epochs!r}")
    for name, value in (("lr", lr), ("warmup", warmup), ("weight_decay", weight_decay)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be finite and not negative, got {value!r}")
    check_between(0, 2**32 - 1, seed=seed)
    chosen: dict[str, Any] = {
        "output_dir": folder,
        "max_steps": -1 if steps is None else steps,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch_size,
        "learning_rate": lr,
        "lr_scheduler_type": schedule,
        "warmup_steps": warmup,
        "weight_decay": weight_decay,
        "seed": seed,
        "data_seed": seed,
        "use_cpu": device == "cpu" or not torch.cuda.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": LOG_EVERY,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **more,
        **options,
    }
    return config(**chosen)


@contextmanager
def quiet_training(seed: int) -> Iterator[str]:
    """A temporary folder for the trainer; the global generators, which trainers seed, are put back afterwards."""
    import datasets
    from transformers.utils import logging

    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    shown = logging.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="heldout-") as folder, seeded(seed), warnings.catch_warnings():
        # About trl's own defaults and the hook that rollouts use: nothing that the user can act on.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message=r".*rollout_func.* experimental")
        try:
            yield folder
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
            if shown[0]:
                logging.enable_progress_bar()
            if shown[1]:
                datasets.enable_progress_bars()


@contextmanager
def saved_as_reference(model: Any, folder: str) -> Iterator[None]:
    """Lets a trainer that reads its reference model from disk find the model as it is now.

    trl reads it from where the model once came from, which is another model if it was tuned since, and nowhere if it
    was made in memory.
    """
    name = model.config._name_or_path
    model.save_pretrained(folder)
    model.config._name_or_path = folder
    try:
        yield
    finally:
        model.config._name_or_path = name


@checked
def tune(trainer: Any, on_log: Log | None) -> Tuned:
    """Trains, and returns the model with what was logged every 10 steps and at the last one."""
    from transformers import PrinterCallback, TrainerCallback

    history: list[dict[str, float]] = []

    class History(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "train_runtime" not in logs:
                entry = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
                history.append({"step": float(state.global_step), **entry})
                if on_log:
                    on_log(history[-1])

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == state.max_steps:
                control.should_log = True

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(History())
    trainer.train()
    return Tuned(trainer.model.eval(), history)


@checked
def check_lengths(lengths: Sequence[int], limit: int | None, what: str) -> None:
    """Raises ValueError naming the first row that is longer than the limit."""
    for number, length in enumerate(lengths):
        if limit is not None and length > limit:
            raise ValueError(f"row {number} has {length} {what}, more than the {limit} that the model can take")
