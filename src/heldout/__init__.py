"""heldout: make models work on data they have not seen.

Importing this package costs nothing: its names and rooms are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "Added": "heldout.method",
    "Batch": "heldout.method",
    "Fitted": "heldout.train",
    "Method": "heldout.method",
    "Run": "heldout.method",
    "Splits": "heldout.method",
    "TaskStream": "heldout.train",
    "fit": "heldout.train",
    "load": "heldout.saved",
    "save": "heldout.train",
}
_ROOMS = {
    "adapt",
    "data",
    "lm",
    "losses",
    "measure",
    "methods",
    "nn",
    "optim",
    "sklearn",
    "study",
    "tasks",
    "train",
    "weights",
}

__all__ = sorted([*_NAMES, *_ROOMS])

if TYPE_CHECKING:
    from heldout import adapt, data, lm, losses, measure, methods, nn, optim, sklearn, study, tasks, train, weights
    from heldout.method import Added, Batch, Method, Run, Splits
    from heldout.saved import load
    from heldout.train import Fitted, TaskStream, fit, save


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    if name in _ROOMS:
        return import_module(f"heldout.{name}")
    raise AttributeError(f"module 'heldout' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
