"""The report of ``improve``: the ranked table in the terminal, Markdown, and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from heldout.improve.verdict import HELPS, HURTS, OPEN, SHIFTED
from heldout.report import cell, interval_chart, number, render

if TYPE_CHECKING:
    from rich.console import Console

Document = Mapping[str, Any]


def to_html(document: Document) -> str:
    """Returns the page: verdict, confirmed gains, code of the winner, screening, what did not apply."""
    score, gain = _formats(document)
    return render(
        "improve.html.jinja",
        heading=f"What improves {document['title']}",
        document=document,
        environment=document["environment"],
        test_sets=_test_sets(document),
        baseline_scores=_baseline_scores(document),
        charts=[_gain_chart(document, name) for name in _test_sets(document) if document["finalists"]],
        score=score,
        gain=lambda entry: _with_interval(entry, gain),
        plain_gain=gain,
        sign=_sign,
        word=word,
    )


def to_markdown(document: Document) -> str:
    """Returns the verdict and the ranked table as Markdown."""
    score, gain = _formats(document)
    names = _test_sets(document)
    lines = [f"# What improves {cell(document['title'])}", "", cell(document["verdict"]), ""]
    lines += [f"Warning: {cell(warning)}\n" for warning in document["warnings"]]
    lines += [
        "| method | " + " | ".join(map(cell, names)) + " | training | inference |",
        "|---" * (len(names) + 3) + "|",
    ]
    baseline = _baseline_scores(document)
    lines.append("| baseline | " + " | ".join(score(baseline[name]) for name in names) + " | 1 × | 1 × |")
    for row in document["finalists"]:
        cells = [f"{score(row['tests'][name]['score'])} ({_with_interval(row['tests'][name], gain)})" for name in names]
        costs = f"{number(row['training_cost'], 3)} × | {number(row['inference_cost'], 3)} ×"
        lines.append(f"| {cell(row['method'])} | " + " | ".join(cells) + f" | {costs} |")
    lines += ["", "| method | what became of it | |", "|---|---|---|"]
    lines += [f"| {cell(row['method'])} | {row['status']} | {cell(row['detail'])} |" for row in document["methods"]]
    if document.get("note"):
        lines += ["", cell(document["note"])]
    if document.get("code"):
        lines += ["", "```python", document["code"].rstrip(), "```"]
    return "\n".join(lines) + "\n"


def print_improvement(document: Document, console: Console) -> None:
    """Prints the ranked table, one row for each finalist and test set, and the verdict."""
    from rich.markup import escape
    from rich.table import Table

    score, gain = _formats(document)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("method", "test set"):
        table.add_column(heading, no_wrap=True)
    for heading in ("baseline", "score", "gain", "interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for row in document["finalists"]:
        name = escape(row["method"])
        notes = [
            f"[bold]{name}[/]" if row["method"] == document["winner"] else name,
            f"[dim]  training {number(row['training_cost'], 3)} ×[/]",
            f"[dim]  inference {number(row['inference_cost'], 3)} ×[/]",
        ]
        tests = _test_sets(document)
        for note, test in zip_longest(notes, tests, fillvalue=""):
            if not test:
                table.add_row(note)
                continue
            entry = row["tests"][test]
            style = {"holds": "green", "contradicted": "red"}.get(_sign(entry), "default")
            between = "" if entry["low"] is None else f"{gain(entry['low'])} to {gain(entry['high'])}"
            cells = (score(entry["baseline"]), score(entry["score"]), f"[{style}]{gain(entry['gain'])}[/]", between)
            table.add_row(note, escape(test), *cells, f"[{style}]{word(entry)}[/]")
            if "tuned_gain" in entry:
                between = f"{gain(entry['tuned_low'])} to {gain(entry['tuned_high'])}"
                table.add_row(
                    "", "[dim]  tuned baseline[/]", "", "", f"[dim]{gain(entry['tuned_gain'])}[/]", f"[dim]{between}[/]"
                )
        table.add_section()
    if document["finalists"]:
        console.print(table)
    by_status: dict[str, list[str]] = {}
    for row in document["methods"]:
        if row["status"] in ("not applicable", "failed", "not confirmed"):
            console.print(f"[dim]{escape(row['method'])}: {row['status']}, {escape(row['detail'])}[/]")
        else:
            by_status.setdefault(row["status"], []).append(row["method"])
    for status in ("screened", "not tried"):
        if names := by_status.get(status):
            console.print(f"[dim]{status}: {escape(', '.join(names))}[/]")
    for run in document["failed"]:
        console.print(f"[red]failed[/] {escape(run['arm'])} on seed {run['seed']}: {escape(run['error'])}")
    for warning in document["warnings"]:
        console.print(f"[yellow]{escape(warning)}[/]")
    console.print(f"\n[bold]{escape(document['verdict'])}[/]")
    if document.get("code"):
        console.print(f"\n{escape(document['code'].rstrip())}\n", highlight=False)
        console.print(f"Weights: {escape(document['weights'])}", highlight=False, soft_wrap=True)
    if document.get("note"):
        console.print(escape(document["note"]))
    console.print(f"Report: {escape(document['report'])}", highlight=False, soft_wrap=True)


def _formats(document: Document) -> tuple[Callable[[float | None], str], Callable[[float | None], str]]:
    """How scores and gains are written: accuracies in percent and percentage points, other metrics as they are."""
    if document["metric"]["name"] == "accuracy":
        return (
            lambda value: "–" if value is None else f"{100 * value:.1f} %",
            lambda value: "–" if value is None else f"{100 * value:+.1f}",
        )
    return number, lambda value: "–" if value is None else f"{value:+.4g}"


def _with_interval(entry: Mapping[str, Any], gain: Callable[[float | None], str]) -> str:
    if entry["low"] is None:
        return gain(entry["gain"])
    return f"{gain(entry['gain'])} [{gain(entry['low'])}, {gain(entry['high'])}]"


def _sign(entry: Mapping[str, Any]) -> str:
    """The style of the verdict on a gain: shown to help, shown to hurt, or neither."""
    return {HELPS: "holds", HURTS: "contradicted"}.get(entry["verdict"], "quiet")


def word(entry: Mapping[str, Any]) -> str:
    """Returns the verdict on a gain in a word or two.

    Example:
        >>> word({"verdict": "not decided", "seeds_needed": 9}), word({"verdict": "helps", "seeds_needed": None})
        ('open: ~9 seeds', 'helps')
    """
    if entry["verdict"] == OPEN:
        return f"open: ~{entry['seeds_needed']} seeds" if entry["seeds_needed"] else "open: > 200 seeds"
    return entry["verdict"]


def _test_sets(document: Document) -> list[str]:
    names = list(document["test_sets"])
    return [*names, SHIFTED] if len(names) > 1 else names


def _baseline_scores(document: Document) -> dict[str, float | None]:
    scores = {name: entry["score"] for name, entry in document["baseline"]["tests"].items()}
    shifted = [scores[name] for name in document["test_sets"][1:]]
    scores[SHIFTED] = sum(shifted) / len(shifted) if shifted and None not in shifted else None
    return scores


def _gain_chart(document: Document, name: str) -> Any:
    unit = 100.0 if document["metric"]["name"] == "accuracy" else 1.0
    rows = [{"arm": "baseline", "mean": 0.0, "low": None, "high": None}]
    for row in document["finalists"]:
        entry = row["tests"][name]
        low, high = (None if entry[end] is None else unit * entry[end] for end in ("low", "high"))
        rows.append({"arm": row["method"], "mean": unit * entry["gain"], "low": low, "high": high})
    return interval_chart(f"gain on {name}{', points' if unit == 100.0 else ''}", rows, [])
