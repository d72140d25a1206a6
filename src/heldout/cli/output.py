"""What the command line prints, and what it ends with."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

BAD_INPUT, RUNS_FAILED, CLAIMS_FAILED, INTERRUPTED = 2, 1, 3, 130


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What the user did wrong is told in one line; anything else is a bug and keeps its traceback."""
    from heldout.errors import ProblemError, install_line
    from heldout.study import DamagedStoreError, StudyError

    try:
        yield
    except DamagedStoreError as error:
        say(str(error))
        raise typer.Exit(RUNS_FAILED) from None
    except (StudyError, ProblemError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        say("interrupted; what is finished is kept, and the same command goes on")
        raise typer.Exit(INTERRUPTED) from None
    except ModuleNotFoundError as error:
        fail(install_line(error.name or "a library"))


def fail(message: str) -> NoReturn:
    """Tells what is wrong with the input, and ends with the exit code of bad input."""
    say(message)
    raise typer.Exit(BAD_INPUT)


def say(message: str) -> None:
    """Prints one line on stderr."""
    print(f"heldout: {' '.join(message.split())}", file=sys.stderr)


def say_step(text: str) -> None:
    """Prints on stderr what is being done."""
    print(f"  {text} ...", file=sys.stderr)


def print_json(document: Any) -> None:
    """Prints one JSON document on stdout."""
    print(json.dumps(document, ensure_ascii=False))


def console() -> Console:
    """Returns what tables are printed on: as wide as the terminal; nothing is cut where there is none."""
    from heldout.report import terminal

    return terminal()
