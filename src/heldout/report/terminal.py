"""The terminal, and the table of systems on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from heldout.errors import check_nonempty, checked

ROOMY = 1000


def terminal() -> Console:
    """Returns what tables are printed on: as wide as the terminal, and so wide that nothing is cut where there is none.

    ``COLUMNS`` decides where it is set.

    Example:
        >>> terminal().print("[bold]done[/]")
        done
    """
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False) if narrow else Console(highlight=False, width=ROOMY)


@checked
def systems_table(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Prints the systems, built ones first.

    Args:
        rows: ``{"slug", "status", "claims", "summary"}``: status "built" or "planned", claims as for ``claims_text``.
        console: what is printed on.

    Example:
        >>> counts = {"holds": 2, "inconclusive": 1, "contradicted": 0}
        >>> row = {"slug": "useful", "status": "built", "claims": counts, "summary": "Learn features evenly."}
        >>> systems_table([row], Console(width=80))
        system  status  claims                  what you get
        useful  built   2 hold, 1 inconclusive  Learn features evenly.
        <BLANKLINE>
        1 built, 0 planned. heldout show SYSTEM tells more.
    """
    cells = [("system", "status", "claims", "what you get")]
    cells += [
        (row["slug"], row["status"], claims_text(row["claims"]), row["summary"])
        for row in sorted(rows, key=lambda row: row["status"])
    ]
    widths = [max(len(row[place]) for row in cells) for place in range(3)]
    for row in cells:
        line = "  ".join(f"{text:<{width}}" for text, width in zip(row[:3], widths)) + "  "
        style = {"built": "", "status": "bold"}.get(row[1], "dim")
        console.print(Text(line + row[3], style), no_wrap=True, overflow="ellipsis")
    built = sum(row["status"] == "built" for row in rows)
    console.print(f"\n{built} built, {len(rows) - built} planned. [bold]heldout show SYSTEM[/] tells more.")


def methods_table(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Prints the Methods, those of systems first, then the comparisons that they have to beat.

    Args:
        rows: at least one ``{"name", "of", "summary"}``; "of" is the slug of the Method's system, empty or None without
            one.
        console: what is printed on.

    Example:
        >>> own = {"name": "bang", "of": "bang", "summary": "Average two models."}
        >>> methods_table([{"name": "sam", "of": "", "summary": "Flat minima."}, own], Console(width=80))
        bang  bang        Average two models.
        sam   comparison  Flat minima.
        <BLANKLINE>
        heldout show METHOD tells more.
    """
    check_nonempty(rows=rows)
    rows = [{**row, "of": row["of"] or ""} for row in rows]
    widths = [max(len(row[key]) for row in rows) for key in ("name", "of")]
    for row in sorted(rows, key=lambda row: not row["of"]):
        line = f"{row['name']:<{widths[0]}}  {row['of'] or 'comparison':<{max(widths[1], len('comparison'))}}  "
        console.print(Text(line + row["summary"]), no_wrap=True, overflow="ellipsis")
    console.print("\n[bold]heldout show METHOD[/] tells more.")


@checked
def claims_text(counts: Mapping[str, int] | None) -> str:
    """Returns counts of verdicts as text; empty without counts.

    Args:
        counts: of "holds", "inconclusive" and "contradicted", all three; None where nothing was recorded.

    Example:
        >>> claims_text({"holds": 3, "inconclusive": 1, "contradicted": 0})
        '3 hold, 1 inconclusive'
    """
    if not counts:
        return ""
    words = {"holds": "hold", "inconclusive": "inconclusive", "contradicted": "contradicted"}
    return ", ".join(f"{counts[verdict]} {word}" for verdict, word in words.items() if counts[verdict])
