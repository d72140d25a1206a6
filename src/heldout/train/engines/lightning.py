"""A Method inside Lightning, which brings devices, precision, logging and distributed training."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler

from heldout.data import sample_ids, split_target
from heldout.errors import checked
from heldout.method import Batch, Method, Splits
from heldout.train.supervised import (
    BASELINE,
    Fitted,
    Recipe,
    finish,
    make_optimizer,
    make_schedule,
    objective,
    prepare,
    seeded,
)


class LightningMethod(LightningModule):
    """A model, its data and a Method as a LightningModule: ``Trainer(max_epochs=n).fit(LightningMethod(...))``.

    The data and model stages run at construction, the optimizer and loss stages inside the Trainer (an optimizer
    that evaluates its closure twice, such as SAM, is evaluated by Lightning's own closure; of accumulated gradients,
    on each of the step's batches again), the weights and predict
    stages in ``fitted()``. Under a distributed strategy each process sees its share of the training set.

    Args:
        model: the module to copy, or a function that builds one.
        data: Splits, or a training set alone.
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
        data: Splits | Any,
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
        self.recipe = Recipe(**recipe)
        with seeded(seed):
            self._run, self._train_set = prepare(model, data, self.method, self.recipe, seed)
        self.module: nn.Module = self._run.module
        self._augmentation = torch.Generator().manual_seed(seed + 1)
        self._accumulated: list[tuple[Any, Any, Any]] = []
        self._accumulated_in = -1  # the step whose batches these are

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

    def configure_optimizers(self) -> Any:
        """The user's optimizer under the Method's optimizer stage, with the schedule stepped every step."""
        optimizer: Optimizer = make_optimizer(self.recipe.optimizer, self.module)
        if self.method.optimizer:
            optimizer = self.method.optimizer(self._run, optimizer)
        scheduler = make_schedule(self.recipe.schedule, optimizer, int(self.trainer.estimated_stepping_batches))
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Tells the stages where the model is."""
        if self.trainer.max_epochs != self.recipe.epochs:
            raise ValueError(
                f"epochs is {self.recipe.epochs} but the Trainer's max_epochs is {self.trainer.max_epochs}"
            )
        self._run.device = self.device

    def on_train_epoch_start(self) -> None:
        """Counts epochs from 1."""
        self._run.epoch = self.current_epoch + 1

    @checked
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """A new step begins: its first evaluation is number 0."""
        self._run.evaluation = -1

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
        loss = objective(self._run, Batch(self.module, inputs, targets, index), self.method)
        if self._run.evaluation == 0:
            self.log("train_loss", loss.detach(), on_step=False, on_epoch=True)
        return loss

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
            loss = objective(self._run, Batch(self.module, *earlier), self.method)
            self.trainer.strategy.backward(loss / self.trainer.accumulate_grad_batches, optimizer)

    def fitted(self) -> Fitted:
        """Returns the trained model after the Method's weights and predict stages."""
        self._run.module = self.module
        self._run.device = next(self.module.parameters()).device
        return finish(self._run, self.method)


class _WithIndex(Dataset):
    """Examples as (inputs, target, position in the original training set)."""

    def __init__(self, dataset: Any, base: Any) -> None:
        self.dataset, self.ids = dataset, sample_ids(dataset, base)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> tuple[Any, Any, Tensor]:
        return (*split_target(self.dataset[position]), self.ids[position])
