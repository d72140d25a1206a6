"""A continual strategy inside transformers' Trainer: each task is one ``train()``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainingArguments

from heldout.data import split_target
from heldout.errors import checked
from heldout.train.continual.strategy import ContinualStrategy


class ContinualTrainer(Trainer):
    """``transformers.Trainer`` for one task of a stream, under a strategy that outlives it.

    The strategy's ``begin_task`` and ``end_task`` are called around ``train()``; by hand where ``fit_stream`` does it.
    Batches keep the Trainer's size, and examples of a memory come in addition.

    Args:
        model: the model; it is trained in place.
        args: the Trainer's arguments.
        strategy: the stream's.
        kwargs: further arguments of the Trainer, ``train_dataset`` above all.

    Source: see ``ContinualStrategy`` and its subclasses.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from heldout.train import EWC
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=12, n_embd=16, n_layer=1, n_head=2, n_positions=8))
        >>> rows = [{"input_ids": torch.arange(6), "labels": torch.arange(6)}] * 4
        >>> strategy = EWC(strength=10.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     args = TrainingArguments(folder, max_steps=2, report_to=[], disable_tqdm=True, save_strategy="no")
        ...     strategy.begin_task(model, rows)
        ...     _ = ContinualTrainer(model, args, strategy, train_dataset=rows).train()  # doctest: +ELLIPSIS
        ...     strategy.end_task(model, rows)
        {'train_runtime': ...}
        >>> strategy.tasks_done
        1
    """

    @checked
    def __init__(self, model: nn.Module, args: TrainingArguments, strategy: ContinualStrategy, **kwargs: Any) -> None:
        super().__init__(model, args, **kwargs)
        self.strategy = strategy
        self._handles: list[Any] = []

    @checked
    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, while the strategy sees the steps of its optimizer, whoever made that.

        Raises:
            ValueError: ``resume_from_checkpoint``: what a strategy has gathered within a task is in no checkpoint.
        """
        if kwargs.get("resume_from_checkpoint") or (args and args[0]):
            raise ValueError(
                "resume_from_checkpoint cannot go on within a task: what the strategy gathered in it is not in the "
                "checkpoint; begin the task anew"
            )
        try:
            return super().train(*args, **kwargs)
        finally:
            for handle in self._handles:
                handle.remove()
            self._handles = []

    @checked
    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """The Trainer's optimizer, whose steps the strategy sees."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if not self._handles:
            self._handles = self.strategy.hook(optimizer, self.model)  # type: ignore[arg-type]
        return optimizer

    @checked
    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """The Trainer's loss on the batch that the strategy makes of it, and what the strategy adds."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        features, labels = self.strategy.mix(*split_target(dict(inputs)))
        mixed = {**features, "labels": labels}
        scaled = self.model_accepts_loss_kwargs and kwargs.get("num_items_in_batch") is not None
        scaled = scaled or self.compute_loss_func is not None  # the Trainer does not divide by the micro-batches then
        share = 1 / self.current_gradient_accumulation_steps if scaled else 1.0
        if replayed := len(labels) != len(inputs["labels"]):
            kwargs.pop("num_items_in_batch", None)  # counted before the memory's examples came in
        loss, outputs = super().compute_loss(model, mixed, True, **kwargs)
        if replayed:
            loss = loss * share
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits
        loss = loss + share * self.strategy.extra_loss(model, features, logits)
        return (loss, outputs) if return_outputs else loss


@checked
def trainer_step(args: TrainingArguments, **kwargs: Any) -> Callable[[nn.Module, Any, ContinualStrategy], None]:
    """Returns how ``fit_stream(train=...)`` trains a task by transformers' Trainer.

    Args:
        args: the Trainer's arguments, the same for each task.
        kwargs: further arguments of the Trainer: ``data_collator``, ``processing_class``, ``callbacks`` ...

    Example:
        >>> import tempfile
        >>> train = trainer_step(TrainingArguments(tempfile.mkdtemp(), max_steps=10, report_to=[]))
    """

    def train(model: nn.Module, data: Any, strategy: ContinualStrategy) -> None:
        ContinualTrainer(model, args, strategy, train_dataset=data, **kwargs).train()

    return train
