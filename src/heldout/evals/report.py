"""What ``eval`` shows: findings, tables and charts, in the terminal and as one HTML page."""

from __future__ import annotations

from typing import Any

from heldout.errors import check_has, check_nonempty, checked
from heldout.evals.protocol import Document
from heldout.report import chart, number, render, with_interval


def to_html(document: Document) -> str:
    """Returns the page: findings, charts, tables."""
    return render(
        "eval.html.jinja",
        heading=document["title"],
        document=document,
        environment=document["environment"],
        charts=[chart({"width": 300, "height": 220, **picture}) for picture in document["charts"]],
        value=with_interval,
    )


@checked
def print_eval(document: Document, console: Any) -> None:
    """Prints findings, the tables, and where the page lies.

    Args:
        document: as ``evaluate`` returns it; each of its tables has a row.
        console: what is printed on.

    Example:
        >>> from rich.console import Console
        >>> finding = {"name": "accuracy", "value": 0.8, "low": 0.7, "high": 0.9, "reading": "higher is better"}
        >>> document = {"findings": [finding], "tables": [], "skipped": [], "report": "report.html"}
        >>> print_eval(document, Console(width=80))
        accuracy  0.8 [0.7, 0.9]
          higher is better
        Report: report.html
    """
    check_nonempty(document=document)
    check_has("print", console=console)
    from rich.markup import escape
    from rich.table import Table

    for warning in document.get("warnings", []):
        console.print(f"[yellow]{escape(warning)}[/]", highlight=False)
    for entry in document["findings"]:
        console.print(
            f"[bold]{escape(entry['name'])}[/]  {escape(with_interval(entry['value'], entry['low'], entry['high']))}",
            highlight=False,
        )
        console.print(f"  [dim]{escape(entry['reading'])}[/]", highlight=False)
    for listed in (each for each in document["tables"] if each["rows"]):
        table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
        for column in listed["rows"][0]:
            table.add_column(column.replace("_", " "))
        for row in listed["rows"]:
            table.add_row(
                *(escape(number(v, 3) if isinstance(v, float) else str("" if v is None else v)) for v in row.values())
            )
        console.print()
        console.print(table)
    for entry in document["skipped"]:
        console.print(f"[dim]not tested: {escape(entry['part'])}: {escape(entry['reason'])}[/]", highlight=False)
    console.print(f"Report: {escape(document['report'])}", highlight=False, soft_wrap=True)
