"""A progress bar on stderr for studies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from heldout.errors import checked
from heldout.study.engine import Event


@checked
@contextmanager
def rich_progress(*, disable: bool = False) -> Iterator[Callable[[Event], None]]:
    """Gives a function for ``run_study(progress=...)`` that draws one bar per study on stderr.

    Example:
        >>> with rich_progress(disable=True) as progress:
        ...     progress(Event("resumed", "demo", done=0, failed=0, total=10))
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=disable) as bars:
        known: dict[str, TaskID] = {}

        def show(event: Event) -> None:
            if event.kind == "note":
                bars.console.print(f"[dim]{escape(event.error)}[/dim]")
                return
            if event.slug not in known or event.kind == "resumed":
                known[event.slug] = bars.add_task(escape(event.slug), total=event.total, note="")
            run = escape(f"{event.arm} on seed {event.seed}") if event.arm else ""
            note = f"[red]{event.failed} failed[/red] {run}" if event.failed else run
            bars.update(known[event.slug], completed=event.done + event.failed, note=note)
            if event.kind == "failed":
                bars.console.print(f"[red]failed[/red] {run}: {escape(event.error)}")

        yield show
