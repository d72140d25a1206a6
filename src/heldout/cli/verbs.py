"""The command line: which verbs there are. Heavy imports happen inside the command that needs them."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from heldout import __version__
from heldout.cli.catalog import data_sources, list_systems, show
from heldout.cli.evals import evals
from heldout.cli.improve import audit, improve
from heldout.cli.studies import report, reproduce, run
from heldout.cli.weights import merge, quantize

app = typer.Typer(
    name="heldout",
    help="Which published idea makes your model work on unseen data? heldout tries them, and proves the answer.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command("list")(list_systems)
app.command()(show)
app.command()(reproduce)
app.command()(run)
app.command()(improve)
app.command()(audit)
app.add_typer(evals, name="eval")
app.command()(merge)
app.command()(quantize)
app.command("data")(data_sources)
app.command()(report)


def main() -> None:
    """Runs the command line; bad input is one line on stderr and exit code 2."""
    try:
        app()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _version(value: bool) -> None:
    if value:
        print(f"heldout {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """heldout."""
