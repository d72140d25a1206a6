"""Options that several commands share, and how a record of options becomes a command's options."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from heldout.cli.output import fail

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes.")]
On = Annotated[
    str,
    typer.Option(
        help="local (a process for the runs), in-process (none, for a debugger), processes, ray or ray://host:port."
    ),
]
Autocast = Annotated[
    str | None,
    typer.Option(help="bfloat16 or float16 in training, or float32 for neither; default: what the file says."),
]
Compiled = Annotated[
    bool | None, typer.Option("--compile/--no-compile", help="Compile the model; default: what the file says.")
]
NumWorkers = Annotated[
    int | None, typer.Option(min=0, help="Processes that load the data of a run; default: what the file says.")
]
Threads = Annotated[int, typer.Option(min=1, help="Threads of arithmetic in each process.")]
Log = Annotated[
    str | None, typer.Option(help="Where progress is logged as well: tensorboard (in the output folder) or wandb.")
]
Out = Annotated[Path | None, typer.Option(help="Output folder; finished runs in it are kept and never repeated.")]


def spread(
    record: type,
    annotation: Callable[[Any, Any], Any] = lambda field, hint: hint,
    make: Callable[[dict[str, Any]], Any] | None = None,
) -> Callable:
    """Gives a command one option for each field of a dataclass, in place of its parameter ``options``.

    Args:
        record: the dataclass; every field has a default.
        annotation: ``(field, type) -> annotation`` of the option; by default the field's own type.
        make: the record from the options' values; by default these are its fields.
    """
    hints = get_type_hints(record, include_extras=True)

    def options_of(parameter: inspect.Parameter) -> list[inspect.Parameter]:
        if parameter.name != "options":
            return [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
        return [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default="" if field.default == () else field.default,
                annotation=annotation(field, hints[field.name]),
            )
            for field in fields(record)
        ]

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def called(**given: Any) -> None:
            values = {field.name: given.pop(field.name) for field in fields(record)}
            command(**given, options=make(values) if make else record(**values))

        own = inspect.signature(command, eval_str=True)
        parameters = [each for parameter in own.parameters.values() for each in options_of(parameter)]
        called.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {each.name: each.annotation for each in parameters}
        return called

    return wrap


def seconds(text: str) -> float:
    """Returns the seconds of ``90s``, ``10m``, ``2h`` or a plain number."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    if not match or float(match[1]) <= 0:
        fail(f"--budget must be a time such as 90s, 10m or 2h, got {text!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def size(text: str) -> int:
    """Returns the bytes of ``500MB``, ``1.5 GiB`` or a plain number."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip(), re.IGNORECASE)
    count = 0
    if found:
        unit = 1024 if found[3] else 1000
        count = int(float(found[1]) * unit ** " kmgt".index(found[2].lower() or " "))
    if not count:
        fail(f"--memory must be a size such as 500MB or 4GB, got {text!r}")
    return count


def names(text: str) -> list[str]:
    """Returns what stands between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def calls(text: str) -> list[str]:
    """Returns what stands between commas outside of parentheses."""
    return [part.strip() for part in re.split(r",(?![^(]*\))", text) if part.strip()]
