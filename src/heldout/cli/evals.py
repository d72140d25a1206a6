"""eval: one command for each protocol, whose options are the fields of the protocol's record."""

from __future__ import annotations

import json
from dataclasses import Field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from heldout.cli.options import Json, Out, Threads, spread
from heldout.cli.output import console, fail, one_line_errors, print_json, say_step

if TYPE_CHECKING:
    from heldout.evals import Protocol


class Protocols(TyperGroup):
    """The protocols, read from ``heldout.evals`` when one is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        from heldout.evals import EVALS

        return list(EVALS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        with one_line_errors():
            from heldout.evals import EVALS

        if cmd_name not in EVALS:
            fail(f"unknown evaluation {cmd_name!r}; there are: {', '.join(EVALS)}")
        return _command(EVALS[cmd_name])


evals = typer.Typer(
    cls=Protocols,
    no_args_is_help=True,
    help="Evaluate a language model as a paper does, local or behind an endpoint.\n\n"
    "Example: heldout eval verbalizer --model http://localhost:8000/v1#qwen3 --tests 200",
)


def _command(protocol: Protocol) -> Any:
    from heldout.evals import options_from

    @spread(protocol.options, _option, partial(options_from, protocol.options))
    def command(
        model: Annotated[str, typer.Option(help="A transformers folder, or http://host/v1#name of an endpoint.")],
        options: Any,
        cache: Annotated[Path | None, typer.Option(help="An SQLite file that keeps the model's answers.")] = None,
        budget: Annotated[float | None, typer.Option(min=0, help="Money that an endpoint may cost.")] = None,
        prices: Annotated[tuple[float, float], typer.Option(help="Money for a million tokens read, and written.")] = (
            0.0,
            0.0,
        ),
        concurrency: Annotated[int, typer.Option(min=1, help="Requests to an endpoint at once.")] = 16,
        extra: Annotated[
            str | None,
            typer.Option(help="Further fields of each request, a JSON object; null takes one out: '{\"top_k\": 20}'."),
        ] = None,
        threads: Threads = 1,
        out: Out = None,
        as_json: Json = False,
    ) -> None:
        from heldout.study import limited_threads

        with one_line_errors(), limited_threads(threads):
            from heldout.evals import evaluate, print_eval

            document = evaluate(
                protocol.name,
                model,
                options=options,
                cache=cache,
                budget=budget,
                prices=prices,
                max_concurrency=concurrency,
                extra=_fields(extra),
                out=out,
                say=say_step,
            )
        if as_json:
            print_json(document)
        else:
            print_eval(document, console())

    single = typer.Typer(add_completion=False)
    single.command(protocol.name, help=protocol.question)(command)
    return get_command(single)


def _fields(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        fail(f"--extra must be a JSON object, got {text}")
    return found


def _option(field: Field, hint: Any) -> Any:
    """A field of a record as an option; a field of several texts is written with commas."""
    several = hint == tuple[str, ...]
    said = {key: field.metadata[key] for key in ("help", "min") if field.metadata.get(key) is not None}
    flag = [f"--{field.name.replace('_', '-')}"] if hint is bool else []
    return Annotated[str if several else hint, typer.Option(*flag, **said)]
