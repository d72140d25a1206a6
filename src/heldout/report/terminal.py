"""What the command line shows of the catalog: one table, one card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from heldout.catalog import System

VERDICT_STYLE = {"holds": "green", "inconclusive": "yellow", "contradicted": "red", "not judged": "dim"}


def systems_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the systems, built ones first."""
    cells = [("system", "status", "claims", "what you get")]
    cells += [
        (row["slug"], row["status"], claims_text(row["claims"]), row["summary"])
        for row in sorted(rows, key=lambda row: row["status"])
    ]
    widths = [max(len(row[place]) for row in cells) for place in range(3)]
    console = Console(highlight=False)
    for row in cells:
        line = "  ".join(f"{text:<{width}}" for text, width in zip(row[:3], widths)) + "  "
        style = {"built": "", "status": "bold"}.get(row[1], "dim")
        console.print(Text(line + row[3], style), no_wrap=True, overflow="ellipsis")
    built = sum(row["status"] == "built" for row in rows)
    console.print(f"\n{built} built, {len(rows) - built} planned. [bold]heldout show SYSTEM[/] tells more.")


def claims_text(counts: Mapping[str, int] | None) -> str:
    """Returns counts of verdicts as text, such as "3 hold, 1 inconclusive"."""
    if not counts:
        return ""
    words = {"holds": "hold", "inconclusive": "inconclusive", "contradicted": "contradicted"}
    return ", ".join(f"{counts[verdict]} {word}" for verdict, word in words.items() if counts[verdict])


def system_card(system: System, evidence: Mapping[str, Any] | None) -> None:
    """Prints what one system is for, its parts, how to use it and what its evidence says."""
    console = Console()
    console.print(f"[bold]{system.slug}[/]  {escape(system.title)}")
    console.print(f"[dim]{escape(system.authors)}, {system.year}, arXiv:{system.arxiv}[/]\n")
    console.print(escape(system.summary) + "\n")
    console.print("[bold]Rooms[/]   " + ", ".join(system.rooms))
    if not system.built:
        console.print("Planned: not built yet.")
        return
    console.print("[bold]Parts[/]   " + "\n        ".join(system.parts))
    if system.method:
        name = system.slug.replace("-", "_")
        console.print(f"[bold]Method[/]  from heldout.methods import {name}; heldout.fit(model, splits, {name}())")
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
    between = "" if low is None else f"{low:.4g} to {high:.4g}"
    estimate = "" if claim["estimate"] is None else f"{claim['estimate']:.4g}"
    table.add_row(f"[{style}]{word}[/]", escape(claim["text"]), estimate, between)
