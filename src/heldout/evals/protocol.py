"""What a protocol is: a question, a record of options, and what it does with a language model.

The record is the only place where a protocol's options stand: ``heldout eval`` and the task of inspect-ai read its
fields.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from heldout.errors import check_at_least, check_fields, checked
from heldout.language_model import LM

Document = dict[str, Any]
Say = Callable[[str], None]
OFF_FORMAT = 0.1  # share of unreadable answers from which on there is a warning


@dataclass(frozen=True)
class Protocol:
    """One evaluation of a language model.

    Attributes:
        name: on the command line, and after ``heldout/`` in inspect-ai.
        question: what it answers, in one line.
        options: the record of its options, a dataclass of fields that ``option`` makes.
        run: ``(model, options, say) -> document``: findings with a reading, tables and charts, all of it JSON.

    Example:
        >>> @dataclass(frozen=True)
        ... class Options:
        ...     prompt: str = option("Name a colour.", "What is asked.")
        >>> def run(lm, options, say):
        ...     ((said,),) = lm.generate([options.prompt])
        ...     return {"findings": [finding("words", len(said.text.split()), None, None, "words of the answer")]}
        >>> from heldout.lm import ScriptedLM
        >>> brevity = Protocol("brevity", "How short are answers?", Options, run)
        >>> brevity.run(ScriptedLM(["light blue"]), brevity.options(), print)["findings"][0]["value"]
        2
    """

    name: str
    question: str
    options: type
    run: Callable[[LM, Any, Say], Document]

    def __post_init__(self) -> None:
        check_fields(self)


def option(default: Any, help: str, *, minimum: float | None = None) -> Any:
    """Returns a field of a record of options, with what the command line says of it.

    Example:
        >>> @dataclass(frozen=True)
        ... class Options:
        ...     tests: int = option(100, "Inputs of each task.", minimum=2)
        >>> Options().tests, fields(Options)[0].metadata["help"]
        (100, 'Inputs of each task.')
    """
    return field(default=default, metadata={"help": help, "min": minimum})


def check_minima(record: Any) -> None:
    """Refuses fields of a record of options that lie below their minimum; the message names the field."""
    for one in fields(record):
        if (least := one.metadata.get("min")) is not None:
            check_at_least(least, **{one.name: getattr(record, one.name)})


@checked
def options_from(record: type, given: Mapping[str, Any]) -> Any:
    """Returns a record of options from plain values: texts stand for paths, and for several texts with commas.

    Example:
        >>> @dataclass(frozen=True)
        ... class Options:
        ...     tasks: tuple[str, ...] = option((), "Tasks.")
        >>> options_from(Options, {"tasks": "sort, maximum"}).tasks
        ('sort', 'maximum')
    """
    hints = get_type_hints(record)
    return record(**{name: _converted(value, hints[name]) for name, value in given.items()})


@checked
def plain_parameters(record: type) -> inspect.Signature:
    """Returns the signature of a function that takes a record's fields as plain values.

    Args:
        record: a dataclass of fields that ``option`` makes; those of other types than int, bool, float and str become
            texts, empty by default, as ``options_from`` takes them.

    Example:
        >>> @dataclass(frozen=True)
        ... class Options:
        ...     tests: int = option(100, "Inputs of each task.")
        ...     tasks: tuple[str, ...] = option((), "Tasks.")
        >>> str(plain_parameters(Options))
        "(*, tests: int = 100, tasks: str = '')"
    """

    def parameter(one: Field, hint: Any) -> inspect.Parameter:
        plain = hint in (int, bool, float, str)
        default = one.default if plain and one.default is not MISSING else ""
        kind = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(one.name, kind, default=default, annotation=hint if plain else str)

    hints = get_type_hints(record)
    return inspect.Signature([parameter(one, hints[one.name]) for one in fields(record)])


def finding(name: str, value: float, low: float | None, high: float | None, reading: str) -> dict[str, Any]:
    """Returns a number with its interval and one sentence on how to read it."""
    return {"name": name, "value": value, "low": low, "high": high, "reading": reading}


def format_warnings(off_format: Mapping[str, float], advice: str) -> list[str]:
    """Returns a warning where a tenth or more of the answers could not be read, which then count as wrong.

    Args:
        off_format: by what was asked, the share of its answers that hold none in the expected form.
        advice: what to change.

    Example:
        >>> format_warnings({"sort": 1.0, "maximum": 0.02}, "raise max_tokens")
        ['100 % of the answers to sort are off the format and tell nothing of what the model knows: raise max_tokens']
    """
    return [
        f"{share:.0%} of the answers to {name} are off the format".replace("%", " %")
        + (" and tell nothing of what the model knows" if share > 0.5 else ", and count as wrong")
        + f": {advice}"
        for name, share in off_format.items()
        if share >= OFF_FORMAT
    ]


def _converted(value: Any, hint: Any) -> Any:
    if hint == tuple[str, ...] and isinstance(value, list):  # as inspect splits "-T tasks=sort,maximum"
        return tuple(map(str, value))
    if not isinstance(value, str) or hint is str:
        return value
    if hint == tuple[str, ...]:
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return Path(value) if value else None
