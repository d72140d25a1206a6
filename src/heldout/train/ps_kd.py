"""Progressive self-knowledge distillation: labels softened with the model's own earlier predictions.

Source: arXiv:2006.12000 (PS-KD), eq. 3-5.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.data import gather
from heldout.errors import check_at_least, checked
from heldout.losses import soft_cross_entropy
from heldout.method import Batch, Method, Run, Splits, forward, why_no_class_labels

Storage = Literal["memory", "topk", "snapshot"]
Growth = Literal["linear", "constant"]


class ProgressiveSelfDistillation:
    """Targets ``(1 - alpha_t) onehot(y) + alpha_t p``, where p is the model's prediction one epoch earlier.

    alpha_t grows linearly from ``alpha_T / epochs`` in epoch 1 to ``alpha_T`` in the last. p is the softmax that the
    training pass of the example's latest earlier epoch gave (under its augmentation, with the weights of that
    moment), and the one-hot label before there is any. Costs an O(batch x classes) copy per step and no forward
    pass. Two epochs of predictions are held, so that an example drawn twice in one epoch still reads the earlier one.

    Args:
        num_examples: size of the training set that ``index`` counts in.
        num_classes: number of classes K.
        epochs: length of the training, for the schedule of alpha.
        alpha_T: weight of the prediction in the last epoch, in [0, 1].
        storage: "memory" holds all probabilities (2 x num_examples x K numbers); "topk" holds the ``top_k`` largest
            and spreads the rest evenly, for large K; "snapshot" holds no table but a copy of the model from the end
            of the previous epoch (see ``begin_epoch``) and runs it on the same inputs, which doubles the forward cost.
        top_k: probabilities per example with storage "topk".
        growth: "linear", or "constant" for ``alpha_T`` in every epoch (an ablation of the paper).
        device: where the table lives; best where training runs.
        dtype: of the table; ``torch.float16`` halves it.

    Example:
        >>> distillation = ProgressiveSelfDistillation(num_examples=4, num_classes=2, epochs=2, alpha_T=0.8)
        >>> index, labels = torch.tensor([3]), torch.tensor([1])
        >>> distillation.targets(index, labels, epoch=1)
        tensor([[0., 1.]])
        >>> distillation.update(index, torch.tensor([[0.0, 0.0]]))
        >>> distillation.targets(index, labels, epoch=2)
        tensor([[0.4000, 0.6000]])
    """

    @checked
    def __init__(
        self,
        num_examples: int,
        num_classes: int,
        epochs: int,
        alpha_T: float = 0.8,
        storage: Storage = "memory",
        *,
        top_k: int = 10,
        growth: Growth = "linear",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_at_least(1, num_examples=num_examples)
        check_at_least(2, num_classes=num_classes)
        check_at_least(1, top_k=top_k)
        if num_examples < 1 or num_classes < 2 or epochs < 1:
            raise ValueError(
                f"expected at least 1 example, 2 classes and 1 epoch, got {num_examples}, {num_classes} and {epochs}"
            )
        if not 0 <= alpha_T <= 1:
            raise ValueError(f"alpha_T must lie in [0, 1], got {alpha_T}")
        if storage not in ("memory", "topk", "snapshot"):
            raise ValueError(f'storage must be "memory", "topk" or "snapshot", got {storage!r}')
        if storage == "topk" and not 1 <= top_k < num_classes:
            raise ValueError(f"top_k must lie in 1..{num_classes - 1}, got {top_k}")
        if growth not in ("linear", "constant"):
            raise ValueError(f'growth must be "linear" or "constant", got {growth!r}')
        self.num_examples, self.num_classes, self.epochs = num_examples, num_classes, epochs
        self.alpha_T, self.storage, self.growth, self.epoch = alpha_T, storage, growth, 1
        self.device = torch.device(device)
        rows = 0 if storage == "snapshot" else num_examples
        width = top_k if storage == "topk" else num_classes
        # Two predictions of each example; _written holds the epoch of each, 0 for none.
        self._probabilities = torch.zeros(2, rows, width, dtype=dtype, device=device)
        self._classes = torch.zeros(2, rows if storage == "topk" else 0, width, dtype=torch.int32, device=device)
        self._written = torch.zeros(2, rows, dtype=torch.int32, device=device)
        self._teacher: nn.Module | None = None

    @checked
    def alpha(self, epoch: int) -> float:
        """Returns the weight of the prediction in an epoch, counted from 1."""
        if not 1 <= epoch <= self.epochs:
            raise ValueError(f"epoch must lie in 1..{self.epochs}, got {epoch}")
        return self.alpha_T if self.growth == "constant" else self.alpha_T * epoch / self.epochs

    @checked
    def targets(self, index: Tensor, labels: Tensor, epoch: int, inputs: Any = None) -> Tensor:
        """Returns the targets of a batch in an epoch, of the shape of ``index`` with a last axis of classes.

        Args:
            index: positions in the whole training set ``(batch,)``, or of tokens ``(batch, tokens)``.
            labels: class indices of the same shape.
            epoch: the epoch under way, counted from 1; ``update`` writes for it.
            inputs: the batch's inputs, for storage "snapshot".

        Raises:
            ValueError: index, labels or epoch out of range, or snapshot storage without ``inputs``.
        """
        alpha = self.alpha(epoch)
        index = self._checked(index)
        if labels.shape != index.shape or labels.is_floating_point():
            raise ValueError(f"labels must be class indices {tuple(index.shape)}, got {labels.dtype} {labels.shape}")
        if not _within(labels, self.num_classes):
            raise ValueError(f"labels must lie in 0..{self.num_classes - 1}")
        if epoch == 1 and self.epoch == 1 and index.unique().numel() < index.numel():
            warnings.warn(
                "an index occurs twice in one batch: index must count in the whole training set, not in a subset",
                stacklevel=2,
            )
        self.epoch = epoch
        labels = labels.to(self.device, torch.int64).unsqueeze(-1)
        if self.storage == "snapshot":
            taught = alpha if self._teacher is not None else 0.0
            past, weight = self._teach(inputs, index), torch.full(index.shape, taught, device=self.device)
        else:
            earlier = self._written[:, index]
            latest, slot = earlier.masked_fill(earlier >= epoch, 0).max(0)
            past, weight = self._read(slot, index), (latest > 0) * alpha
        weight = weight.unsqueeze(-1)
        return (past * weight).scatter_add(-1, labels, 1 - weight)

    @checked
    def update(self, index: Tensor, logits: Tensor) -> None:
        """Stores softmax(logits) of a batch as the predictions of the epoch that ``targets`` was last asked for.

        Raises:
            ValueError: index out of range, or logits not of the shape of ``index`` with a last axis of classes.
        """
        index = self._checked(index)
        if logits.shape != (*index.shape, self.num_classes):
            raise ValueError(f"logits must be {(*index.shape, self.num_classes)}, got {tuple(logits.shape)}")
        self._write(index, logits.detach().float().softmax(-1).to(self.device))

    @checked
    def all_gather_update(self, index: Tensor, logits: Tensor, group: dist.ProcessGroup | None = None) -> None:
        """Stores the predictions of all processes of a group, so that each holds the whole table.

        Every process must call it in every step; batches may differ in size. Costs one all-gather of
        ``(batch, classes)`` floats. Without ``torch.distributed`` it is ``update``.

        Raises:
            ValueError: as ``update``.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return self.update(index, logits)
        index = self._checked(index).reshape(-1)
        probabilities = logits.detach().float().softmax(-1).to(self.device).reshape(-1, self.num_classes)
        if len(probabilities) != len(index):
            raise ValueError(f"logits must have a row for each of {len(index)} indices, got {tuple(logits.shape)}")
        world = dist.get_world_size(group)
        sizes = [index.new_zeros(1) for _ in range(world)]
        dist.all_gather(sizes, index.new_tensor([len(index)]), group=group)
        longest = max(int(size) for size in sizes)
        padding = longest - len(index)
        indices = [index.new_zeros(longest) for _ in range(world)]
        tables = [probabilities.new_zeros(longest, self.num_classes) for _ in range(world)]
        dist.all_gather(indices, F.pad(index, (0, padding)), group=group)
        dist.all_gather(tables, F.pad(probabilities, (0, 0, 0, padding)), group=group)
        for size, rank_index, rank_probabilities in zip(sizes, indices, tables, strict=True):
            self._write(rank_index[: int(size)], rank_probabilities[: int(size)])
        return None

    @checked
    def begin_epoch(self, module: nn.Module) -> None:
        """Takes a copy of the model as it stands: the teacher of the coming epoch, for storage "snapshot"."""
        self._teacher = copy.deepcopy(module).eval().requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        """Returns what is needed to resume training; tensors are not copied."""
        return {
            "probabilities": self._probabilities,
            "classes": self._classes,
            "written": self._written,
            "epoch": self.epoch,
            "teacher": self._teacher.state_dict() if self._teacher is not None else None,
        }

    @checked
    def load_state_dict(self, state: Mapping[str, Any], module: nn.Module | None = None) -> None:
        """Restores a ``state_dict()``; ``module`` is a model of the same structure, for storage "snapshot".

        Raises:
            ValueError: tables of another size, or a stored teacher without ``module``.
        """
        for name in ("probabilities", "classes", "written"):
            own = getattr(self, f"_{name}")
            if own.shape != state[name].shape:
                raise ValueError(f"{name} must be {tuple(own.shape)}, got {tuple(state[name].shape)}")
            own.copy_(state[name])
        self.epoch = state["epoch"]
        if state["teacher"] is not None:
            if module is None:
                raise ValueError("the state holds a teacher: pass a module of the same structure")
            self.begin_epoch(module)
            self._teacher.load_state_dict(state["teacher"])  # type: ignore[union-attr]

    def _checked(self, index: Tensor) -> Tensor:
        if index.is_floating_point() or index.dtype == torch.bool:
            raise ValueError(f"index must hold integers, got {index.dtype}")
        if not _within(index, self.num_examples):
            raise ValueError(f"index must lie in 0..{self.num_examples - 1}, the examples of the training set")
        return index.to(self.device)

    def _read(self, slot: Tensor, index: Tensor) -> Tensor:
        stored = self._probabilities[slot, index].float()
        if self.storage == "memory":
            return stored
        width = stored.shape[-1]
        rest = (1 - stored.sum(-1, keepdim=True)).clamp(min=0) / (self.num_classes - width)
        spread = rest.expand(*index.shape, self.num_classes)
        return spread.scatter(-1, self._classes[slot, index].long(), stored)

    def _write(self, index: Tensor, probabilities: Tensor) -> None:
        if self.storage == "snapshot":
            return
        written = self._written[:, index]
        slot = written.masked_fill(written >= self.epoch, -1).argmin(0)
        if self.storage == "topk":
            probabilities, classes = probabilities.topk(self._classes.shape[-1], dim=-1)
            self._classes[slot, index] = classes.int()
        self._probabilities[slot, index] = probabilities.to(self._probabilities.dtype)
        self._written[slot, index] = self.epoch

    def _teach(self, inputs: Any, index: Tensor) -> Tensor:
        if self._teacher is None:
            return torch.zeros(*index.shape, self.num_classes, device=self.device)
        if inputs is None:
            raise ValueError('storage "snapshot" needs the inputs of the batch')
        with torch.no_grad():
            return forward(self._teacher, inputs).float().softmax(-1).to(self.device)


@checked
def ps_kd(alpha_T: float = 0.8, storage: Storage = "memory", growth: Growth = "linear") -> Method:
    """Softens each label with the model's own prediction of the previous epoch, more and more as training goes on.

    Replaces the loss by cross-entropy with the targets of ``ProgressiveSelfDistillation``. A second evaluation of
    the objective within one step (SAM) uses the targets of the first and stores nothing. Distributed processes share
    their predictions.

    Source: arXiv:2006.12000.

    Example:
        >>> ps_kd(alpha_T=0.7).name
        'ps-kd'
    """

    def loss(run: Run, batch: Batch) -> Tensor:
        if "ps-kd" not in run.state:
            run.state["ps-kd"] = ProgressiveSelfDistillation(
                num_examples=len(run.splits.train),  # type: ignore[arg-type]
                num_classes=run.num_classes,  # type: ignore[arg-type]
                epochs=run.epochs,
                alpha_T=alpha_T,
                storage=storage,
                growth=growth,
                device=run.device,
            )
        distillation: ProgressiveSelfDistillation = run.state["ps-kd"]
        if storage == "snapshot" and run.epoch > distillation.epoch:
            distillation.begin_epoch(run.module)
        targets = distillation.targets(batch.index, batch.targets, run.epoch, batch.inputs)
        if run.evaluation == 0:
            distillation.all_gather_update(batch.index, batch.logits)
        return soft_cross_entropy(batch.logits.float(), targets)

    return Method("ps-kd", loss=loss, check=_check)


def _within(values: Tensor, end: int) -> bool:
    if not values.numel() or values.device.type != "cpu":
        return True  # on an accelerator the indexing itself asserts; asking here would wait for it
    low, high = values.aminmax()
    return int(low) >= 0 and int(high) < end


def _check(module: nn.Module, splits: Splits) -> str | None:
    _, targets = gather(splits.train, torch.arange(1))
    if reason := why_no_class_labels(targets):
        return reason
    return None
