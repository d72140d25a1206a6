"""What a Method may see of training data that come task after task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import Subset

from heldout.errors import checked
from heldout.method import Method, Run, Splits
from heldout.train import TaskStream, in_order


@checked
def task_after_task(method: Method | None, splits: TaskStream) -> Method:
    """Returns a Method under which ``fit`` trains in the order of tasks and no stage sees data that are not at hand.

    Before training these are the first task's; after it, the last one's: what builds on training data then (a memory,
    statistics, more units) may not undo the order.

    Args:
        method: what to change beside; None is the plain recipe.
        splits: the stream.

    Example:
        >>> stream = TaskStream(train=(torch.zeros(4, 1), torch.tensor([0, 0, 1, 1])), tasks=torch.tensor([0, 0, 1, 1]))
        >>> task_after_task(None, stream).stages
        ('data',)
    """
    if method is None:
        return in_order()
    last = splits.number - 1
    whole = (in_order() + method).renamed(method.name)
    return replace(
        whole,
        model=_seeing(whole.model, 0, put_back=True),
        weights=_seeing(whole.weights, last, put_back=False),
        predict=_seeing(whole.predict, last, put_back=False),
    )


def _seeing(stage: Callable[[Run, Any], Any] | None, task: int, *, put_back: bool) -> Callable[[Run, Any], Any] | None:
    if stage is None:
        return None

    def act(run: Run, value: Any) -> Any:
        splits, train_set = run.splits, run.train_set
        if isinstance(splits, TaskStream):
            run.splits = _of_task(splits, task)
            run.train_set = run.splits.train
        try:
            return stage(run, value)
        finally:
            if put_back:
                run.splits, run.train_set = splits, train_set

    return act


def _of_task(splits: TaskStream, task: int) -> Splits:
    own = (splits.tasks == task).nonzero().flatten()  # type: ignore[union-attr]
    rows: dict[str, Any] = {
        name: torch.as_tensor(getattr(splits, name))[own] if getattr(splits, name) is not None else None
        for name in ("domains", "groups")
    }
    rest = {name: getattr(splits, name) for name in ("val", "test", "unlabeled", "initial_state")}
    return Splits(train=Subset(splits.train, own.tolist()), **rest, **rows)
