"""A Method inside Lightning, which brings devices, precision, logging and distributed training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from heldout.data import TARGET_KEYS, sample_ids, split_target
from heldout.errors import checked
from heldout.method import Added, Batch, Method, Splits, forward
from heldout.nn import inputs_for
from heldout.train.continual.task_stream import TaskOrder
from heldout.train.engines.processes import check_processes_agree
from heldout.train.supervised import (
    BASELINE,
    Fitted,
    Recipe,
    finish,
    make_optimizer,
    make_schedule,
    objective,
    prepare,
    score,
    seeded,
)

_STATE = "heldout"  # what a checkpoint holds under this name is ours


class LightningMethod(LightningModule):
    """A model, its data and a Method as a LightningModule: ``Trainer(max_epochs=n).fit(LightningMethod(...))``.

    The data and model stages run at construction, the optimizer and loss stages inside the Trainer (an optimizer
    that evaluates its closure twice, such as SAM, is evaluated by Lightning's own closure; of accumulated gradients,
    on each of the step's batches again), the weights and predict
    stages in ``fitted()``. Under a distributed strategy each process sees its share of the training set; a Method whose
    stages come to hold something else in each process (a discriminator that learns aside, say) is stopped. What a stage
    trains by itself at construction (dbat, useful) is trained in each process, on the whole set by its batch size.

    Validation and test sets of the splits are evaluated by ``val_loss`` and ``val_accuracy`` (or ``val_mse``) and by
    ``test_loss`` and so on, means over the sets; each by its name, too, where there are several. ``EarlyStopping`` and
    ``ModelCheckpoint`` monitor them. They are those of the module; test-time stages act in ``fitted()``. A checkpoint
    is loaded by ``LightningMethod.load_from_checkpoint(file, model=..., data=..., method=..., epochs=...)``.

    A LightningModule of one's own keeps its ``training_step``, its optimizer with its schedule, and its validation and
    test steps (its other hooks are not called): the Method's other stages act around them, and what a Method adds to
    the loss is added to its loss. A Method that replaces the loss, or the module as a whole, is refused.

    Args:
        model: the module to copy, or a function that builds one; or a LightningModule.
        data: Splits, or a training set alone; a LightningDataModule, whose data sets and batch size are taken; None for
            those of a LightningModule's own ``train_dataloader``.
        method: what to change; None is the plain recipe.
        seed: of initialisation and of the stages; data order and dropout follow Lightning's ``seed_everything``.
        recipe: the options of ``heldout.fit``; ``epochs`` must be the Trainer's ``max_epochs``. Precision and
            gradient clipping are the Trainer's.

    Raises:
        ValueError: the method cannot act on this model or data, or an option that belongs to the Trainer is given.

    Example:
        >>> import lightning
        >>> data = (torch.randn(32, 2), torch.arange(32) % 2)
        >>> task = LightningMethod(nn.Linear(2, 2), data, epochs=1)
        >>> trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        ...                             enable_progress_bar=False, enable_model_summary=False)
        >>> trainer.fit(task)
        >>> sorted(task.fitted().evaluate(data))
        ['accuracy', 'loss']
    """

    @checked
    def __init__(
        self,
        model: Any,
        data: Splits | Any = None,
        method: Method | None = None,
        *,
        seed: int = 0,
        **recipe: Any,
    ) -> None:
        super().__init__()
        for option in ("max_grad_norm", "autocast"):
            if recipe.get(option) is not None:
                raise ValueError(f"{option} belongs to Lightning: give the Trainer gradient_clip_val or precision")
        self.method = method or BASELINE
        own = model if isinstance(model, LightningModule) else None
        if own is not None:
            _check_own(own, self.method, recipe)
        if data is None and own is None:
            raise TypeError("data must be Splits, a training set or a LightningDataModule, got None")
        if data is None or isinstance(data, LightningDataModule):
            data, size = _splits_of(own if data is None else data)
            recipe = {"batch_size": size, **recipe}
        self.recipe = Recipe(**recipe)
        with seeded(seed):
            self._run, self._train_set = prepare(model, data, self.method, self.recipe, seed)
        self.module: nn.Module = self._run.module
        if own is not None and self._own is None:
            raise ValueError(f"{self.method.name} replaces the module: the training_step of its own would not see it")
        if self._own is not None:
            self._own.log = self.log  # type: ignore[method-assign]  # the Trainer knows the outer module only
        self._augmentation = torch.Generator().manual_seed(seed + 1)
        self._accumulated: list[tuple[Any, Any, Any]] = []
        self._accumulated_in = -1  # the step whose batches these are
        self._answers: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._predictor: Any = None
        self._restored: dict[str, Any] | None = None
        self._names: list[str] = []  # of the sets under evaluation
        for name, sets in (("val_dataloader", self._run.splits.val), ("test_dataloader", self._run.splits.test)):
            if (sets is None or sets == {}) and not (self._own and is_overridden(name, self._own, LightningModule)):
                setattr(self, name, None)  # Lightning's sign for none

    @property
    def _own(self) -> LightningModule | None:
        """The LightningModule that was given in place of a plain module."""
        return self.module if isinstance(self.module, LightningModule) else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the model."""
        return self.module(*args, **kwargs)

    def train_dataloader(self) -> DataLoader:
        """The training set after the Method's data stage, with the position of every example."""
        sampler = self._train_set if isinstance(self._train_set, Sampler) else None
        dataset: Any = self._run.splits.train if sampler is not None else self._train_set
        self._run.train_set = dataset
        return DataLoader(
            _WithIndex(dataset, self._run.splits.train),
            batch_size=self.recipe.batch_size,
            shuffle=sampler is None,
            sampler=sampler,
            num_workers=self.recipe.num_workers,
            drop_last=len(dataset) % self.recipe.batch_size == 1,
        )

    def val_dataloader(self) -> Any:
        """The validation sets of the splits, or a LightningModule's own."""
        val = self._run.splits.val
        sets = {} if val is None else dict(val) if isinstance(val, Mapping) else {"val": val}
        return self._loaders(sets, "val_dataloader")

    def test_dataloader(self) -> Any:
        """The test sets of the splits, or a LightningModule's own."""
        return self._loaders(dict(self._run.splits.test), "test_dataloader")

    def _loaders(self, sets: dict[str, Any], name: str) -> Any:
        if not sets and self._own is not None and is_overridden(name, self._own, LightningModule):
            return getattr(self._own, name)()
        self._names = list(sets)
        size, workers = self.recipe.batch_size, self.recipe.num_workers
        return [DataLoader(dataset, batch_size=size, num_workers=workers) for dataset in sets.values()]

    def configure_optimizers(self) -> Any:
        """The user's optimizer under the Method's optimizer stage, with the schedule stepped every step."""
        if self._own is not None:
            return self._own_optimizers(self._own)
        optimizer: Optimizer = make_optimizer(self.recipe.optimizer, self.module)
        if self.method.optimizer:
            optimizer = self.method.optimizer(self._run, optimizer)
        scheduler = make_schedule(self.recipe.schedule, optimizer, int(self.trainer.estimated_stepping_batches))
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _own_optimizers(self, own: LightningModule) -> Any:
        configured: Any = own.configure_optimizers()
        if self.method.optimizer is None:
            return configured
        given = configured["optimizer"] if isinstance(configured, Mapping) else configured
        if not isinstance(given, Optimizer):
            raise ValueError(
                f"{self.method.name} wraps one optimizer: configure_optimizers must return an optimizer, or a dict of "
                f"it and its lr_scheduler, got {type(configured).__name__}"
            )
        wrapped = self.method.optimizer(self._run, given)
        if not isinstance(configured, Mapping):
            return wrapped
        scheduler: Any = configured.get("lr_scheduler")
        scheduler = scheduler["scheduler"] if isinstance(scheduler, Mapping) else scheduler
        if scheduler is not None and wrapped is not given:
            _reschedule(scheduler, wrapped)
        return {**configured, "optimizer": wrapped}

    def on_fit_start(self) -> None:
        """Tells the stages where the model is."""
        if self.trainer.max_epochs != self.recipe.epochs:
            raise ValueError(
                f"epochs is {self.recipe.epochs} but the Trainer's max_epochs is {self.trainer.max_epochs}"
            )
        self._run.device = self.device
        in_tasks = isinstance(self._train_set, TaskOrder)
        if in_tasks and (self.trainer.accumulate_grad_batches > 1 or self.trainer.max_steps > 0):
            raise ValueError("a stream of tasks is laid out for whole epochs of one batch a step")

    def on_train_start(self) -> None:
        """Refuses batches without the positions of their examples."""
        if not isinstance(getattr(self.trainer.train_dataloader, "dataset", None), _WithIndex):
            raise ValueError(
                "Methods need the position of every example: give the DataModule or the training set to "
                "LightningMethod(model, data), and nothing but the module to Trainer.fit"
            )

    def on_train_epoch_start(self) -> None:
        """Counts epochs from 1."""
        self._run.epoch = self.current_epoch + 1

    @checked
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """A new step begins: its first evaluation is number 0. After the first step the processes are compared."""
        self._run.evaluation = -1
        if self.global_step == 1 and self.trainer.world_size > 1:
            self._check_processes_agree()

    @checked
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Returns the Method's objective of a batch."""
        inputs, targets, index = batch
        self._run.step = self.global_step
        self._run.evaluation += 1
        if self.recipe.augment and self._run.evaluation == 0:
            self._inputs = self.recipe.augment(inputs, self._augmentation)
        inputs = self._inputs if self.recipe.augment else inputs
        if self.trainer.accumulate_grad_batches > 1 and self.method.optimizer:
            self._accumulate(inputs, targets, index)
        loss = self._objective(inputs, targets, index, batch_idx)
        if self._run.evaluation == 0 and self._own is None:
            self.log("train_loss", loss.detach(), on_step=False, on_epoch=True)
        return loss

    def _objective(self, inputs: Any, targets: Any, index: Any, number: int) -> Tensor:
        batch = Batch(self.module, inputs, targets, index)
        if self._own is None:
            return objective(self._run, batch, self.method)
        answered: list[Any] = []
        handle = self._own.register_forward_hook(lambda _module, _inputs, output: answered.append(output))
        try:
            told: Any = self._own.training_step(_as_given(inputs, targets, self._run.splits.train), number)
        finally:
            handle.remove()
        loss = told["loss"] if isinstance(told, Mapping) else told
        if not isinstance(loss, Tensor):
            raise ValueError(f"training_step must return the loss, got {type(loss).__name__}")
        if self.method.loss is None:
            return loss
        if len(answered) == 1:  # the step has called the module: its pass is the batch's own
            batch.cached_logits = forward(lambda: answered[0], ())
        return loss + self.method.loss(self._run, batch)

    def on_train_epoch_end(self) -> None:
        """Compares the processes after every epoch."""
        if self.trainer.world_size > 1:
            self._check_processes_agree()

    def _check_processes_agree(self) -> None:
        check_processes_agree(self.method.name, self._run.state, self.all_gather, self.device)  # type: ignore[arg-type]

    @checked
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Answers a batch of a validation set, or calls a LightningModule's own step."""
        return self._evaluation_step("validation_step", batch, batch_idx, dataloader_idx)

    @checked
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Answers a batch of a test set, or calls a LightningModule's own step."""
        return self._evaluation_step("test_step", batch, batch_idx, dataloader_idx)

    def _evaluation_step(self, name: str, batch: Any, number: int, which: int) -> Any:
        if self._own is not None and is_overridden(name, self._own, LightningModule):
            step = getattr(self._own, name)
            takes_which = "dataloader_idx" in step.__code__.co_varnames[: step.__code__.co_argcount]
            return step(batch, number, which) if takes_which else step(batch, number)
        inputs, targets = split_target(batch)
        inputs, classes = inputs_for(self.module, inputs), self._run.num_classes
        outputs = forward(self._predictor or self.module, inputs)
        if classes and outputs.shape[1:] != (classes,) and self.method.predict and self._predictor is None:
            self._predictor = self.method.predict(self._run, self.module)  # the module gives the logits of many heads
            outputs = forward(self._predictor, inputs)
        self._answers.setdefault(which, []).append((outputs.detach(), targets))
        return None

    def on_validation_epoch_end(self) -> None:
        """Logs ``val_loss`` and its like."""
        self._log_answers("val")

    def on_test_epoch_end(self) -> None:
        """Logs ``test_loss`` and its like."""
        self._log_answers("test")

    def _log_answers(self, prefix: str) -> None:
        found: dict[str, list[float]] = {}
        several = len(self._answers) > 1
        for which, pairs in self._answers.items():
            outputs, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
            metrics = score(outputs, targets, self._run.task)
            metrics["loss"] = self._run.objective(outputs, targets).item()
            name = self._names[which] if which < len(self._names) else str(which)
            for metric, value in metrics.items():
                found.setdefault(metric, []).append(value)
                if several:
                    self.log(f"{prefix}_{name}_{metric}", value, sync_dist=True)
        for metric, values in found.items():
            self.log(f"{prefix}_{metric}", sum(values) / len(values), prog_bar=metric == "loss", sync_dist=True)
        self._answers, self._predictor = {}, None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps with the weights what a predict stage has learnt in training, and what else the stages hold."""
        from heldout.adapt import kept_of

        kept = None
        if self.method.predict and self._trains_its_predictor():
            was, self._run.module = self._run.module, self.module
            kept = kept_of(self.method.predict(self._run, self.module), self._run)
            self._run.module = was
        checkpoint[_STATE] = {
            "held": sorted(self._run.state),
            "settings": None if kept is None else json.dumps(kept.settings),
            "tensors": {} if kept is None else dict(kept.tensors),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes it up again."""
        self._restored = checkpoint.get(_STATE)

    def _trains_its_predictor(self) -> bool:
        return self.method.loss is not None or self.method.model is not None

    def _accumulate(self, inputs: Any, targets: Any, index: Any) -> None:
        """Keeps the batches of a step; where the optimizer evaluates again, all but the last are evaluated here."""
        if self._run.evaluation == 0:
            if self._accumulated_in != self.global_step:
                self._accumulated, self._accumulated_in = [], self.global_step
            self._accumulated.append((inputs, targets, index))
            return
        (optimizer,) = self.trainer.optimizers
        optimizer.zero_grad()
        for earlier in self._accumulated[:-1]:
            loss = self._objective(*earlier, 0)
            self.trainer.strategy.backward(loss / self.trainer.accumulate_grad_batches, optimizer)

    def fitted(self) -> Fitted:
        """Returns the trained model after the Method's weights and predict stages.

        Raises:
            ValueError: a checkpoint was loaded, and the stages need what only the process that trained has.
        """
        if self._own is not None:
            vars(self._own).pop("log", None)
        self._run.module = self.module
        self._run.device = next(self.module.parameters()).device
        restored = self._restored
        if restored is None or self.global_step:
            return finish(self._run, self.method)
        if restored["settings"] is not None:
            from heldout.adapt import Kept, predictor_from

            self.module.eval()
            kept = Kept(json.loads(restored["settings"]), restored["tensors"])
            return Fitted(self.module, predictor_from(kept, self.module), self._run)
        if lost := sorted(set(restored["held"]) - set(self._run.state)):
            raise ValueError(
                f"{self.method.name} needs for its last stages what training held in memory ({', '.join(lost)}), and a "
                "checkpoint does not hold it: call fitted() after Trainer.fit, and keep that by fitted().save(folder)"
            )
        return finish(self._run, self.method)


def _check_own(own: LightningModule, method: Method, recipe: Mapping[str, Any]) -> None:
    if not own.automatic_optimization:
        raise ValueError(
            "a LightningModule that optimizes by hand leaves a Method no place: use the parts in its steps"
        )
    if method.loss is not None and not isinstance(method.loss, Added):
        raise ValueError(
            f"{method.name} replaces the loss, and the LightningModule computes its own in training_step: give "
            "LightningMethod the plain network instead, or call the loss in training_step"
        )
    for option in ("optimizer", "schedule", "loss", "augment"):
        if recipe.get(option) is not None:
            raise ValueError(f"{option} is what the LightningModule itself says: leave it out")


def _reschedule(scheduler: Any, optimizer: Optimizer) -> None:
    """Puts a schedule onto the optimizer that has been wrapped around its own, with the same parameter groups."""
    rates = [group["lr"] for group in optimizer.param_groups]
    LambdaLR(optimizer, lambda step: 1.0)  # a scheduler that is made for it marks its step(), which others look for
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler.optimizer = optimizer


def _splits_of(source: Any) -> tuple[Splits, int]:
    """The data sets of a LightningDataModule, or of a LightningModule with loaders, and its batch size."""
    if isinstance(source, LightningDataModule):
        source.prepare_data()
        for stage in ("fit", "test"):
            source.setup(stage)
    kind = LightningDataModule if isinstance(source, LightningDataModule) else LightningModule
    if not is_overridden("train_dataloader", source, kind):
        raise ValueError("data must be given: there is no train_dataloader")
    loader = source.train_dataloader()
    val, test = (
        _datasets(getattr(source, f"{name}_dataloader")()) if is_overridden(f"{name}_dataloader", source, kind) else []
        for name in ("val", "test")
    )
    names = [[str(number) for number in range(len(sets))] for sets in (val, test)]
    return Splits(
        train=_datasets(loader)[0],
        val=None if not val else val[0] if len(val) == 1 else dict(zip(names[0], val, strict=True)),
        test={"test": test[0]} if len(test) == 1 else dict(zip(names[1], test, strict=True)),
    ), loader.batch_size


def _datasets(loaders: Any) -> list[Any]:
    loaders = list(loaders) if isinstance(loaders, list | tuple) else [loaders]
    for loader in loaders:
        if not isinstance(loader, DataLoader) or loader.collate_fn is not default_collate or loader.batch_size is None:
            raise ValueError(
                "the loaders of data must be DataLoaders that collate by default, since Methods draw the batches "
                "themselves: give Splits of data sets instead"
            )
    return [loader.dataset for loader in loaders]


def _as_given(inputs: Any, targets: Any, train: Any) -> Any:
    """A batch as a loader of the training set would give it."""
    if isinstance(inputs, Mapping):
        key = next(key for key in TARGET_KEYS if key in train[0])
        return {**inputs, key: targets}
    return [*inputs, targets] if isinstance(inputs, tuple) else [inputs, targets]


class _WithIndex(Dataset):
    """Examples as (inputs, target, position in the original training set)."""

    def __init__(self, dataset: Any, base: Any) -> None:
        self.dataset, self.ids = dataset, sample_ids(dataset, base)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> tuple[Any, Any, Tensor]:
        return (*split_target(self.dataset[position]), self.ids[position])
