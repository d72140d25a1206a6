"""improve, audit: a user's own model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from heldout.cli.completion import example_names, method_list
from heldout.cli.options import (
    Autocast,
    Compiled,
    Json,
    Log,
    NumWorkers,
    On,
    Out,
    Threads,
    Workers,
    calls,
    names,
    seconds,
)
from heldout.cli.output import RUNS_FAILED, console, one_line_errors, print_json, say_step


def improve(
    file: Annotated[
        str,
        typer.Argument(
            help="A file that defines model() and data(); or: digits, fashion, graphs, smollm.",
            autocompletion=example_names,
        ),
    ],
    budget: Annotated[str, typer.Option(help="Wall-clock time, such as 90s, 10m, 2h.")] = "10m",
    seeds: Annotated[
        int | None, typer.Option(min=3, help="Fresh seeds for the confirmation; default: 3 to 10, as time allows.")
    ] = None,
    aim: Annotated[str, typer.Option("--for", help="What to select for: iid, shift or both.")] = "both",
    screen_only: Annotated[
        bool, typer.Option("--screen-only", help="Rank on validation data and stop: no verdict.")
    ] = False,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated methods, such as 'useful,sam(rho=0.1)'; default: all.", autocompletion=method_list
        ),
    ] = None,
    exclude: Annotated[
        str, typer.Option(help="Comma-separated methods to leave out.", autocompletion=method_list)
    ] = "",
    combine: Annotated[int, typer.Option(min=1, help="Most methods in one combination.")] = 2,
    device: Annotated[
        str | None, typer.Option(help="Where to train, such as cuda, or auto; default: what the file says.")
    ] = None,
    autocast: Autocast = None,
    compile: Compiled = None,
    num_workers: NumWorkers = None,
    workers: Workers = 1,
    threads: Threads = 1,
    on: On = "local",
    out: Out = None,
    log: Log = None,
    as_json: Json = False,
) -> None:
    """Find what makes YOUR model better on data it has not seen, and prove it on fresh seeds."""
    with one_line_errors():
        from heldout.improve import improve as search
        from heldout.study import rich_progress

        with rich_progress() as progress:
            document = search(
                file,
                budget=seconds(budget),
                seeds=seeds,
                aim=aim,
                screen_only=screen_only,
                methods=calls(methods) if methods else None,
                exclude=names(exclude),
                combine=combine,
                device=device,
                autocast=autocast,
                compile=compile,
                num_workers=num_workers,
                workers=workers,
                threads=threads,
                on=on,
                out=out,
                say=lambda text: print(text, file=sys.stderr),
                progress=progress,
                on_event=_event_log(log, out, "improve", file),
            )
    if as_json:
        print_json(document)
    else:
        from heldout.improve import print_improvement

        print_improvement(document, console())
    if not document["complete"]:
        raise typer.Exit(RUNS_FAILED)


def audit(
    file: Annotated[
        str,
        typer.Argument(
            help="What improve takes: a file with model() and data(); or: digits, fashion, graphs, smollm.",
            autocompletion=example_names,
        ),
    ],
    weights: Annotated[
        Path | None,
        typer.Option(
            help="The trained model: safetensors, or a folder like out/winner; default: train it by the file's recipe."
        ),
    ] = None,
    budget: Annotated[str, typer.Option(help="Wall-clock time, such as 90s, 3m.")] = "3m",
    seed: Annotated[int, typer.Option(min=0, help="Of training, and of the examples that are looked at.")] = 0,
    device: Annotated[
        str | None,
        typer.Option(help="Where to train and measure, such as cuda, or auto; default: what the file says."),
    ] = None,
    autocast: Autocast = None,
    compile: Compiled = None,
    num_workers: NumWorkers = None,
    threads: Threads = 1,
    out: Out = None,
    log: Log = None,
    as_json: Json = False,
) -> None:
    """Tell how well YOUR model generalizes, and what seems to stand in its way."""
    from heldout.study import limited_threads

    with one_line_errors(), limited_threads(threads):
        from heldout.audit import audit as examine

        document = examine(
            file,
            weights=weights,
            budget=seconds(budget),
            seed=seed,
            out=out,
            device=device,
            autocast=autocast,
            compile=compile,
            num_workers=num_workers,
            say=say_step,
            on_event=_event_log(log, out, "audit", file),
        )
    if as_json:
        print_json(document)
    else:
        from heldout.audit import print_audit

        print_audit(document, console())
    if not document["complete"]:
        raise typer.Exit(RUNS_FAILED)


def _event_log(tracker: str | None, out: Path | None, verb: str, file: str) -> Any:
    """What is told every event: nothing, or a log in the output folder."""
    from heldout.report import event_log, ignore

    folder = out or Path("heldout-runs") / f"{verb}-{Path(file).stem}"
    return ignore if tracker is None else event_log(tracker, folder / tracker)
