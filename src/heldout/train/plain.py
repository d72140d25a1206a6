"""Core: What the plain training of a run starts from: where a Method trains more models than one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from heldout.errors import checked
from heldout.method import Run

PlainTraining = Callable[[Any, int], tuple[nn.Module, list[float]]]


@checked
def untrained(run: Run, default: nn.Module) -> nn.Module:
    """Returns the untrained module that ``run.train_plain`` trains copies of; they start from what it holds.

    Where a data stage comes first it is not the model itself, which that stage may have changed.

    Args:
        run: in its model stage.
        default: what is returned where the plain training does not tell.

    Example:
        >>> from heldout import Method, fit
        >>> def model(run, module):
        ...     run.state["same"] = untrained(run, module) is module
        ...     return module
        >>> import torch
        >>> fit(nn.Linear(2, 2), (torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])), Method("m", model=model)).run.state
        {'same': True}
    """
    return _module_of(run.train_plain) or default


def _module_of(training: Any) -> nn.Module | None:
    for part in training.args if isinstance(training, functools.partial) else ():
        if isinstance(part, nn.Module):
            return part
        if (found := _module_of(part)) is not None:
            return found
    return None
