"""A Method inside transformers' Trainer, which brings devices, accumulation, checkpoints and distributed training."""

from __future__ import annotations

import copy
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainingArguments

from heldout.data import sample_ids
from heldout.errors import checked
from heldout.method import Added, Batch, Method, Run, Splits
from heldout.train.continual.task_stream import TaskOrder
from heldout.train.engines.processes import check_processes_agree
from heldout.train.supervised import BASELINE, Fitted, finish, problem_of, seeded

INDEX = "heldout_index"


def _check_counts_as_fit(args: TrainingArguments) -> None:
    """Refuses what makes steps differ from batches, by which a stream tells when a task ends."""
    if args.gradient_accumulation_steps > 1 or args.max_steps > 0 or args.num_train_epochs % 1:
        raise ValueError(
            "a stream of tasks is laid out for whole epochs of one batch a step: leave gradient_accumulation_steps at "
            "1 and max_steps unset, or train task by task with ContinualTrainer"
        )


class MethodTrainer(Trainer):
    """``transformers.Trainer`` with a Method: every stage runs at its place, the rest is the Trainer's.

    The data and model stages run at construction, the weights stage at the end of ``train()``, the predict stage in
    ``fitted()``. Examples are dicts with a "labels" entry. An optimizer that evaluates its closure twice (SAM) is
    given one that runs the step's micro-batches again, so gradient accumulation works. Checkpoints hold the model
    and the optimizer, not what a Method keeps between steps.

    Args:
        model: the model; it is trained in place, as the Trainer does.
        args: the Trainer's arguments.
        method: what to change; None is the plain Trainer.
        splits: data that stages may need beside the training set; default: ``Splits(train=train_dataset)``.
        train_dataset: the training set; default: that of ``splits``.
        kwargs: further arguments of the Trainer.

    Raises:
        ValueError: the method cannot act on this model or data.

    Example:
        >>> from heldout.optim import sam
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=12, num_labels=2, **sizes))
        >>> rows = [{"input_ids": torch.arange(4) + label, "labels": label} for label in (0, 1) * 4]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no"}
        ...     args = TrainingArguments(folder, num_train_epochs=2, **quiet)
        ...     trainer = MethodTrainer(model, args, sam(rho=0.05), train_dataset=rows)
        ...     _ = trainer.train()  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        >>> len(trainer.training_errors), trainer.fitted().module is model
        (2, True)
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        method: Method | None = None,
        *,
        splits: Splits | None = None,
        train_dataset: Dataset | None = None,
        **kwargs: Any,
    ) -> None:
        self.method = method or BASELINE
        splits = splits or Splits(train=train_dataset)  # type: ignore[arg-type]
        reason = self.method.check(model, splits) if self.method.check else None
        if reason:
            raise ValueError(f"{self.method.name} cannot act here: {reason}")
        self._run = self._start(model, args, splits, kwargs)
        with seeded(args.seed):
            train_set = self.method.data(self._run, splits.train) if self.method.data else splits.train
            if self.method.model:
                model = self._run.module = self.method.model(self._run, model)
        self._sampler = train_set if isinstance(train_set, Sampler) else None
        if isinstance(self._sampler, TaskOrder):
            _check_counts_as_fit(args)
        dataset = splits.train if self._sampler is not None else train_set
        self._run.train_set = dataset
        self._micro_batches: list[tuple[dict[str, Any], tuple[Any, ...], dict[str, Any]]] = []
        self.training_errors: list[float] = []
        super().__init__(model, args, train_dataset=_WithIndex(dataset, splits.train), **kwargs)
        self._columns = None if not args.remove_unused_columns else self._signature()
        args.remove_unused_columns = False  # done by our collator, which has to see the index
        self._collate, self.data_collator = self.data_collator, self._collate_with_index

    def _start(self, model: nn.Module, args: TrainingArguments, splits: Splits, kwargs: dict[str, Any]) -> Run:
        labels = torch.as_tensor(splits.train[0]["labels"])
        task = "regression" if labels.is_floating_point() else "classification"
        classes = getattr(getattr(model, "config", None), "num_labels", None)
        if classes is None:
            classes = problem_of(model, splits.train)[1]
        run = Run(
            module=model,
            splits=splits,
            train_set=splits.train,
            objective=F.mse_loss if task == "regression" else F.cross_entropy,
            initial_state=splits.initial_state
            or {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()},
            task=task,  # type: ignore[arg-type]
            num_classes=None if task == "regression" else classes,
            epochs=int(args.num_train_epochs),
            batch_size=args.per_device_train_batch_size,
            seed=args.seed,
            device=next(model.parameters()).device,
            generator=torch.Generator().manual_seed(args.seed),
        )
        untrained = copy.deepcopy(model) if self.method.data else model

        def train_plain(untrained: nn.Module, dataset: Any, epochs: int) -> tuple[nn.Module, list[float]]:
            with tempfile.TemporaryDirectory() as folder:
                brief = dataclasses.replace(
                    args, output_dir=folder, save_strategy="no", eval_strategy="no", seed=run.seed
                )
                plain = MethodTrainer(copy.deepcopy(untrained), brief, train_dataset=dataset, **kwargs)
                plain.add_callback(_stop_after(epochs))
                plain.train()
            return plain._run.module.to(run.device), plain.training_errors

        run.train_plain = functools.partial(train_plain, untrained)
        return run

    def _signature(self) -> set[str]:
        self._set_signature_columns_if_needed()
        return {*self._signature_columns, "labels", "label", "label_ids"}  # type: ignore[misc]

    def _collate_with_index(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        index = torch.tensor([example[INDEX] for example in examples]) if INDEX in examples[0] else None
        keep = self._columns
        batch = self._collate([
            {key: value for key, value in example.items() if key != INDEX and (keep is None or key in keep)}
            for example in examples
        ])  # fmt: skip
        return dict(batch) if index is None else {**batch, INDEX: index}

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        return self._sampler if self._sampler is not None else super()._get_train_sampler(train_dataset)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """The Trainer's optimizer, or the one that was given, under the Method's optimizer stage."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.method.optimizer and not isinstance(optimizer, _StepWithClosure):
            self.optimizer = _StepWithClosure(self.method.optimizer(self._run, optimizer), self._evaluate_again)
        return self.optimizer  # type: ignore[return-value]

    @checked
    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward pass; the batch is kept for an optimizer that asks for another."""
        if self.method.optimizer:
            if self._run.step != self.state.global_step:
                self._micro_batches = []
            self._micro_batches.append((inputs, args, kwargs))
        step, epoch = self.state.global_step, min(int(self.state.epoch or 0) + 1, self._run.epochs)
        if (self._run.step, step) == (0, 1) or (self._run.step != step and self._run.epoch != epoch):
            self._check_processes_agree()  # after the first step, and after every epoch
        self._run.evaluation, self._run.step, self._run.epoch = 0, step, epoch
        self._run.device = self.args.device
        return super().training_step(model, inputs, *args, **kwargs)

    def _check_processes_agree(self) -> None:
        if self.accelerator.num_processes > 1:
            check_processes_agree(self.method.name, self._run.state, self.accelerator.gather, self.args.device)

    def _evaluate_again(self) -> Tensor:
        """Further evaluations of the step's objective: the gradient of all its micro-batches, clipped as the first."""
        self._run.evaluation += 1
        self.optimizer.zero_grad()  # type: ignore[union-attr]
        total = torch.zeros((), device=self.args.device)
        for inputs, args, kwargs in self._micro_batches:  # with the normaliser of their first evaluation
            total += super().training_step(self.model_wrapped, dict(inputs), *args, **kwargs)
        if self.args.max_grad_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)  # type: ignore[union-attr]
        return total

    @checked
    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """The Trainer's loss, replaced or extended by the Method's loss stage on training batches.

        Where the Trainer's loss is a sum over the step's items, divided by their number in all micro-batches, the mean
        that the stage gives of a micro-batch counts by the micro-batch's share of the items.
        """
        inputs = dict(inputs)
        index = inputs.pop(INDEX, None)
        if index is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        labels = inputs["labels"]
        if self.method.loss is None or isinstance(self.method.loss, Added):
            loss, outputs = super().compute_loss(model, inputs, True, **kwargs)
            batch = Batch(model, inputs, labels, index)
            batch.cached_logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits
            if self.method.loss:
                loss = loss + self.method.loss(self._run, batch) * self._share(inputs, kwargs.get("num_items_in_batch"))
        else:
            batch = Batch(model, {key: value for key, value in inputs.items() if key != "labels"}, labels, index)
            share = self._share(inputs, kwargs.get("num_items_in_batch"))
            loss, outputs = self.method.loss(self._run, batch) * share, {"logits": batch.logits}
        self._count_errors(batch, labels)
        return (loss, outputs) if return_outputs else loss

    def _share(self, inputs: dict[str, Any], items: Any) -> Any:
        """What a mean over this micro-batch is multiplied by to add up to the mean over the step's micro-batches."""
        if items is None:
            # Then the Trainer divides by their number, unless the user's loss function has done so.
            return 1 / self.current_gradient_accumulation_steps if self.compute_loss_func is not None else 1.0
        if not (self.model_accepts_loss_kwargs or self.compute_loss_func is not None):
            return 1.0
        labels = inputs["labels"][..., 1:] if getattr(self, "_loss_shifts_labels", False) else inputs["labels"]
        mine = (inputs.get("shift_labels", labels) != -100).sum()
        all_processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return mine / items * all_processes

    def _count_errors(self, batch: Batch, labels: Tensor) -> None:
        if self._run.task != "classification" or self._run.evaluation > 0:
            return
        wrong = (batch.logits.detach().argmax(-1) != labels).float().mean().item()
        while len(self.training_errors) < self._run.epoch:
            self._batches_of_epoch = 0
            self.training_errors.append(0.0)
        self._batches_of_epoch += 1
        self.training_errors[-1] += (wrong - self.training_errors[-1]) / self._batches_of_epoch

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains as the Trainer does, then runs the Method's weights stage."""
        output = super().train(*args, **kwargs)
        self._check_processes_agree()
        self._run.module = self.model  # type: ignore[assignment]
        self._run.device = next(self.model.parameters()).device  # type: ignore[union-attr]
        if self.method.weights:
            self.model = self._run.module = self.method.weights(self._run, self._run.module)
        return output

    def fitted(self) -> Fitted:
        """Returns the trained model with the Method's predict stage around it."""
        return finish(self._run, dataclasses.replace(self.method, weights=None))


class _StepWithClosure(Optimizer):
    """An optimizer whose ``step()`` gives the wrapped one a closure: already done at first, evaluated again after."""

    def __init__(self, optimizer: Optimizer, evaluate_again: Callable[[], Tensor]) -> None:
        self.optimizer, self.evaluate_again = optimizer, evaluate_again
        self.__setstate__({})

    def __getattr__(self, name: str) -> Any:
        if name in ("optimizer", "__setstate__"):
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state_dict)

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """Steps the wrapped optimizer."""
        evaluations = 0

        def evaluate() -> Tensor:
            nonlocal evaluations
            evaluations += 1
            return torch.zeros(()) if evaluations == 1 else self.evaluate_again()

        return self.optimizer.step(evaluate)  # type: ignore[arg-type]


class _WithIndex(Dataset):
    """Dict examples with their position in the original training set."""

    def __init__(self, dataset: Any, base: Any) -> None:
        self.dataset, self.ids = dataset, sample_ids(dataset, base).tolist()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {**self.dataset[position], INDEX: self.ids[position]}


def _stop_after(epochs: int) -> Any:
    from transformers import TrainerCallback

    class StopAfter(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control.should_training_stop = state.epoch >= epochs
            return control

    return StopAfter()
