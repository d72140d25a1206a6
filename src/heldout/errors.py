"""What is told to a user in one line: what was wrong, and what to do."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class ProblemError(ValueError):
    """The user's file, model or options cannot be worked on; the message says what is wrong and where."""


class MissingExtraError(ModuleNotFoundError):
    """A library that an optional part needs is not installed; the message is the line to run."""


EXTRAS: dict[str, tuple[str, ...]] = {
    "lm": (
        *("accelerate", "aiohttp", "compressed_tensors", "datasets", "peft", "rouge_score", "tokenizers"),
        *("transformers", "trl"),
    ),
    "evals": ("inspect_ai",),
    "retrieval": ("faiss",),
    "lightning": ("lightning",),
    "ray": ("ray",),
    "tracking": ("tensorboard", "wandb"),
}
"""What each extra brings, as Python imports it."""


def install_line(module: str) -> str:
    """Returns what to say where a library is not there: one line, with the command that installs it.

    Example:
        >>> install_line("transformers.utils")
        "transformers is not installed: pip install 'heldout[lm]'"
        >>> install_line("altair")
        'altair is not installed: pip install altair'
    """
    name = module.partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if name in modules), None)
    return f"{name} is not installed: pip install " + (f"'heldout[{extra}]'" if extra else name)


def require(module: str) -> Any:
    """Returns a module of an optional library.

    Raises:
        MissingExtraError: it is not installed; the message names the extra that brings it.

    Example:
        >>> require("json").loads("[1]")
        [1]
        >>> require("faiss_of_tomorrow")
        Traceback (most recent call last):
        heldout.errors.MissingExtraError: faiss_of_tomorrow is not installed: pip install faiss_of_tomorrow
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise MissingExtraError(install_line(module), name=error.name) from None
