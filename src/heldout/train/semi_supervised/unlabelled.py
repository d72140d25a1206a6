"""Core: The unlabelled data of a run, drawn in batches: for Methods that learn from ``Splits(unlabeled=...)``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from heldout.data import gather
from heldout.errors import check_at_least, checked
from heldout.method import Run, Splits, why_no_class_labels
from heldout.nn import inputs_for


class UnlabelledBatches:
    """Random batches of a run's unlabelled data, on the model's device; every evaluation of one step gets the same.

    Each example comes once before any comes again, but for those of a last incomplete batch.

    Args:
        run: whose ``splits.unlabeled`` is drawn from, in an order of the run's seed.
        batch_size: examples of a batch; all of them where there are fewer.

    Raises:
        ValueError: ``batch_size`` below 1; at a draw: examples of another form than the labelled ones.

    Example:
        >>> from heldout import Method, Splits, fit
        >>> def model(run, module):
        ...     run.state["drawn"] = UnlabelledBatches(run, 3).draw(run)
        ...     return module
        >>> splits = Splits(train=(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])), unlabeled=torch.ones(5, 2))
        >>> fit(torch.nn.Linear(2, 2), splits, Method("m", model=model), epochs=1).run.state["drawn"].shape
        torch.Size([3, 2])
    """

    @checked
    def __init__(self, run: Run, batch_size: int) -> None:
        check_at_least(1, batch_size=batch_size)
        self.dataset: Any = run.splits.unlabeled
        self.like, _ = gather(run.splits.train, torch.arange(1))
        self.batch_size = min(batch_size, len(self.dataset))  # type: ignore[arg-type]
        self.generator = torch.Generator().manual_seed(run.seed)
        self.order = torch.empty(0, dtype=torch.long)
        self.batch: Any = None

    @checked
    def draw(self, run: Run) -> Any:
        """Returns the inputs of the step under way: another batch at its first evaluation, the same at the others."""
        return self.next_batch(run) if self.batch is None or run.evaluation == 0 else self.batch

    @checked
    def next_batch(self, run: Run) -> Any:
        """Returns the inputs of the next batch."""
        if len(self.order) < self.batch_size:
            self.order = torch.randperm(len(self.dataset), generator=self.generator)
        positions, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
        self.batch = inputs_for(run.module, _inputs_at(self.dataset, positions, self.like))
        return self.batch


@checked
def inputs_like(batch: Any, inputs: Any) -> Any:
    """Returns the inputs of an unlabelled batch, in the form of labelled inputs: what comes behind them is left out.

    Args:
        batch: a tensor, a tuple or list of tensors, or a dict of them, as a ``DataLoader`` collates it.
        inputs: a labelled batch without its target, as ``heldout.data.split_target`` gives it.

    Raises:
        ValueError: the form or the shape of an example differs.

    Example:
        >>> inputs_like([torch.zeros(3, 2), torch.zeros(3)], torch.ones(5, 2)).shape
        torch.Size([3, 2])
    """
    return _like(batch, inputs)


@checked
def why_no_unlabelled(splits: Splits) -> str | None:
    """Returns why a method that needs class labels and unlabelled data beside them cannot use these, or None.

    Example:
        >>> from heldout import Splits
        >>> why_no_unlabelled(Splits(train=(torch.zeros(2, 3), torch.tensor([0, 1]))))
        'it needs unlabelled inputs of the target distribution in Splits(unlabeled=...)'
    """
    inputs, targets = gather(splits.train, torch.arange(1))
    if reason := why_no_class_labels(targets):
        return reason
    if splits.unlabeled is None:
        return "it needs unlabelled inputs of the target distribution in Splits(unlabeled=...)"
    if not len(splits.unlabeled):  # type: ignore[arg-type]
        return "the unlabelled data in Splits(unlabeled=...) is empty"
    try:
        _inputs_at(splits.unlabeled, torch.arange(1), inputs)
    except ValueError as error:
        return str(error)
    return None


def _like(batch: Any, inputs: Any) -> Any:
    """The inputs of an unlabelled batch, in the form of labelled inputs: what comes behind them is left out.

    Raises ValueError where the form or the shape of an example differs.
    """
    if isinstance(inputs, Mapping):
        if not isinstance(batch, Mapping) or not set(inputs) <= set(batch):
            raise ValueError(f"unlabelled examples must be dicts with {', '.join(map(str, inputs))} like labelled ones")
        return {name: _like(batch[name], inputs[name]) for name in inputs}
    if isinstance(inputs, tuple):
        if not isinstance(batch, tuple | list) or len(batch) < len(inputs):
            raise ValueError(f"unlabelled examples must have {len(inputs)} inputs like labelled ones")
        return tuple(_like(value, other) for value, other in zip(batch, inputs, strict=False))
    if isinstance(batch, tuple | list):
        batch = batch[0] if len(batch) else None
    if not isinstance(batch, Tensor) or not isinstance(inputs, Tensor):
        raise ValueError(f"unlabelled examples must be tensors, got {type(batch).__name__}")
    if batch.shape[1:] != inputs.shape[1:]:
        raise ValueError(
            f"an unlabelled example has the shape {tuple(batch.shape[1:])}, a labelled one {tuple(inputs.shape[1:])}"
        )
    return batch


def _inputs_at(dataset: Any, positions: Tensor, like: Any) -> Any:
    if isinstance(dataset, Tensor):
        return _like(dataset[positions], like)
    fetch_many = getattr(dataset, "__getitems__", None)
    items = fetch_many(positions.tolist()) if fetch_many else [dataset[i] for i in positions.tolist()]
    return _like(torch.utils.data.default_collate(items), like)
