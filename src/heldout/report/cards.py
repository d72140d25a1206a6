"""Cards of the terminal: what one system or one Method is for, how to use it, and what its evidence says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from heldout.errors import check_has, checked
from heldout.report.formats import VERDICT_STYLE, number

if TYPE_CHECKING:
    from heldout.catalog import NamedMethod, System


@checked
def system_card(
    system: System, evidence: Mapping[str, Any] | None, console: Console, *, told: Mapping[str, str] | None = None
) -> None:
    """Prints what one system is for, its parts, how to use it and what its evidence says.

    ``told`` is what its Method tells of itself, by heading.

    Example:
        >>> from heldout.catalog import find
        >>> console = Console(width=80)
        >>> with console.capture() as printed:
        ...     system_card(find("lines"), None, console)
        >>> printed.get().splitlines()[-1]
        'No evidence recorded yet.'
    """
    check_has("slug", "title", system=system)
    console.print(f"[bold]{system.slug}[/]  {escape(system.title)}")
    console.print(f"[dim]{escape(system.authors)}, {system.year}, arXiv:{system.arxiv}[/]\n")
    console.print(escape(system.summary) + "\n")
    console.print(f"[bold]Topic[/]   {system.topic}")
    console.print("[bold]Rooms[/]   " + ", ".join(system.rooms))
    if not system.built:
        console.print("Planned: not built yet.")
        return
    console.print("[bold]Parts[/]   " + "\n        ".join(system.parts))
    _print_told(console, told or {})
    if system.method:
        _print_use(console, system.slug.replace("-", "_"), system.space)
    elif told:
        _print_trial(console, system.slug.replace("-", "_"))
    if system.extra:
        console.print(escape(f"Needs   pip install 'heldout[{system.extra}]'"))
    console.print(f"[bold]Claims[/]  heldout reproduce {system.slug} --workers 2\n")
    if evidence is None:
        console.print("No evidence recorded yet.")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("verdict", "claim", "estimate", "95 % interval"):
        table.add_column(heading)
    for claim in evidence["claims"]:
        _add_claim(table, claim["verdict"], claim)
    for check in evidence["checks"]:
        _add_claim(table, "check", check)
    console.print(table)
    times = "once" if evidence["recorded"] == 1 else f"{evidence['recorded']} times; this is the newest"
    console.print(f"\n[dim]{len(evidence['seeds'])} seeds, {evidence['seconds']:.0f} s of runs; recorded {times}[/]")


def _add_claim(table: Table, word: str, claim: Mapping[str, Any]) -> None:
    style = VERDICT_STYLE[claim["verdict"]]
    low, high = claim["low"], claim["high"]
    between = "" if low is None else f"{number(low)} to {number(high)}"
    estimate = "" if claim["estimate"] is None else number(claim["estimate"])
    table.add_row(f"[{style}]{word}[/]", escape(claim["text"]), estimate, between)


@checked
def method_card(method: NamedMethod, console: Console, *, told: Mapping[str, str] | None = None) -> None:
    """Prints what a Method is for and how to use it; ``told`` is what it tells of itself, by heading.

    Example:
        >>> from heldout.catalog import named_methods
        >>> console = Console(width=120)
        >>> with console.capture() as printed:
        ...     method_card(named_methods()["sam"], console)
        >>> "from heldout.methods import sam; heldout.fit(model, splits, sam())" in printed.get()
        True
    """
    check_has("name", "summary", method=method)
    console.print(f"[bold]{method.name}[/]  {escape(method.summary)}")
    if method.arxiv:
        console.print(f"[dim]arXiv:{method.arxiv}[/]")
    console.print()
    if method.on_request:
        console.print("Tried by heldout improve only when asked for.")
    _print_told(console, told or {})
    _print_use(console, method.name, method.space)
    if method.of:
        console.print(f"[bold]Claims[/]  heldout show {method.of}")


def _print_use(console: Console, name: str, space: Mapping[str, Sequence[Any]]) -> None:
    console.print(f"[bold]Method[/]  from heldout.methods import {name}; heldout.fit(model, splits, {name}())")
    _print_trial(console, name)
    if space:
        console.print(
            "[bold]Space[/]   " + "\n        ".join(f"{name}: {_values(each)}" for name, each in space.items())
        )


def _print_trial(console: Console, name: str) -> None:
    console.print(f"[bold]Try it[/]  heldout improve my_model.py --methods {name}")


def _print_told(console: Console, told: Mapping[str, str]) -> None:
    for heading, text in told.items():
        console.print(f"[bold]{heading.capitalize()}[/]  {escape(text)}")


def _values(values: Sequence[Any]) -> str:
    """What a parameter is searched over, in words."""
    if len(values) == 3 and values[2] == "log":
        return f"{values[0]:g} to {values[1]:g}, by orders of magnitude"
    return ", ".join(map(str, values))
