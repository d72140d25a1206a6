"""What is told to a user in one line: what was wrong, and what to do."""

from __future__ import annotations

import json
from importlib import import_module
from inspect import signature
from pathlib import Path
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


def check_steps_alone(optimizer: Any, name: str) -> None:
    """Raises TypeError where an optimizer evaluates the closure by itself, as LBFGS does, and so cannot be wrapped.

    Args:
        optimizer: what is wrapped; asked whether its ``step`` needs a closure.
        name: what wraps it, for the message.

    Example:
        >>> class Searching:
        ...     def step(self, closure): ...
        >>> check_steps_alone(Searching(), "SAM")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        TypeError: SAM cannot wrap Searching, whose step evaluates the loss by itself ...
    """
    closure = signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise TypeError(
            f"{name} cannot wrap {type(optimizer).__name__}, whose step evaluates the loss by itself as often as it "
            "likes; use an optimizer that steps on the gradient it is given, such as SGD or AdamW"
        )


def check_no_own_code(folder: str | Path) -> None:
    """Raises ValueError where a transformers folder needs code of its own, which is never run.

    Args:
        folder: as ``AutoModel`` takes it; what is no folder here is not looked at.

    Example:
        >>> check_no_own_code("nowhere")
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        return
    try:
        config = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(config, dict) or not config.get("auto_map"):
        return
    if config.get("model_type") not in require("transformers").CONFIG_MAPPING:
        raise ValueError(
            f"{file} names code of its own (auto_map), which is never run: only models of transformers are"
        )
