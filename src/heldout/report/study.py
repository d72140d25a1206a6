"""Reports of a study's results: a table in the terminal, Markdown, and one self-contained HTML page."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from heldout.errors import check_has, checked
from heldout.report.formats import VERDICT_STYLE, cell, number
from heldout.report.page import chart, curve_chart, interval_chart, render
from heldout.statistics import interval
from heldout.study import Judged, Results, StudyError, plain, plain_text, write_atomically

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

DRAWN_SEEDS = 100
DRAWN_STEPS = 200
DRAWN_FIGURES = 12


@checked
def write_report(results: Results, folder: str | Path) -> Path:
    """Writes ``report.html`` and ``report.md`` into a folder and returns the path of the page.

    Raises:
        StudyError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from heldout.study import Study, run_study
        >>> results = run_study(Study("demo", {"a": {}}, lambda *_: {"x": 0.5}, {"x": "higher"}), seeds=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = write_report(results, folder)
        ...     print(page.name, sorted(path.name for path in Path(folder).iterdir()))
        report.html ['report.html', 'report.md']
    """
    folder = Path(folder)
    write_atomically(folder / "report.md", to_markdown(results))
    write_atomically(folder / "report.html", to_html(results))
    return folder / "report.html"


@checked
def load_results(folder: str | Path) -> Results:
    """Returns the results that a finished study left in its output folder.

    Raises:
        StudyError: there is no ``results.json``, or it is none of ours.

    Example:
        >>> import tempfile
        >>> from heldout.study import Study, run_study
        >>> results = run_study(Study("demo", {"a": {}}, lambda *_: {"x": 0.5}, {"x": "higher"}), seeds=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = results.save(folder)
        ...     print(load_results(folder).metric("a", "x"))
        {0: 0.5, 1: 0.5}
    """
    path = Path(folder) / "results.json"
    try:
        document = _plain(json.loads(path.read_text(encoding="utf-8")))
        document.pop("heldout", None)
        claims, checks = (
            [
                Judged(**{**claim, "arms": tuple(claim["arms"]), "metrics": tuple(claim["metrics"])})
                for claim in document.pop(kind, [])
            ]
            for kind in ("claims", "checks")
        )
        return Results(**document, claims=claims, checks=checks)
    except FileNotFoundError:
        raise StudyError(f"{folder} holds no results.json: it is no output folder of a finished study") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from None


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    """A document of results with plain texts; the points of curves, which are many, hold none."""
    curves = [run.pop("curves") for run in document["runs"]]
    document = plain(document)
    for run, of_run in zip(document["runs"], curves, strict=True):
        run["curves"] = {plain_text(name): points for name, points in of_run.items()}
    return document


@checked
def to_html(results: Results) -> str:
    """Returns the page: verdicts, interval plots by metric, curves, figures, every run, failures, environment.

    Example:
        >>> from heldout.study import Study, run_study
        >>> study = Study("demo", {"a": {}}, lambda *_: {"x": 0.5}, {"x": "higher"}, title="A demonstration")
        >>> "A demonstration" in to_html(run_study(study, seeds=2))
        True
    """
    return render(
        "study.html.jinja",
        heading=results.title or results.slug,
        results=results,
        environment=results.environment,
        metric_charts=[_metric_chart(results, name) for name in results.metrics if _reported(results, name)],
        table=_table(results),
        curve_charts=_curve_charts(results),
        figures=_figures(results),
    )


@checked
def to_markdown(results: Results) -> str:
    """Returns the verdicts and the means by arm as Markdown.

    Example:
        >>> from heldout.study import Study, run_study
        >>> print(to_markdown(run_study(Study("demo", {"a": {}}, lambda *_: {"x": 0.5}, {"x": "higher"}), seeds=2)))
        # demo
        <BLANKLINE>
        Profile laptop, seeds [0, 1], 2 runs.
        <BLANKLINE>
        | arm | x |
        |---|---|
        | a | 0.5 |
    """
    lines = [f"# {cell(results.title or results.slug)}", ""]
    lines.append(f"Profile {results.profile}, seeds {results.seeds}, {len(results.runs)} runs.")
    for kind, judged in (("claim", results.claims), ("check", results.checks)):
        if judged:
            lines += ["", f"| verdict | {kind} | estimate | 95 % interval |", "|---|---|---|---|"]
        for claim in judged:
            between = "" if claim.low is None else f"{number(claim.low)} to {number(claim.high)}"
            lines.append(f"| {claim.verdict} | {cell(claim.text)} | {number(claim.estimate)} | {between} |")
    lines += [
        "",
        "| arm | " + " | ".join(map(cell, results.metrics)) + " |",
        "|---" * (len(results.metrics) + 1) + "|",
    ]
    for row in _table(results):
        lines.append(f"| {cell(row['arm'])} | " + " | ".join(number(value) for value in row["cells"]) + " |")
    for run in results.failed:
        lines.append(f"\nFailed: {cell(run['arm'])} on seed {run['seed']}, {run['cause']}: {cell(run['error'])}")
    return "\n".join(lines) + "\n"


@checked
def print_results(results: Results, console: Console) -> None:
    """Prints means by arm and the verdicts, and what failed, was left out or was not made.

    Args:
        results: of a study.
        console: what is printed on, such as ``terminal()``.

    Example:
        >>> from heldout.report import terminal
        >>> from heldout.study import Study, run_study
        >>> print_results(run_study(Study("demo", {"a": {}}, lambda *_: {"x": 0.5}, {"x": "higher"})), terminal())
        arm          x ↑  seconds
        a            0.5  ...
    """
    check_has("print", "width", console=console)
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    rows, arm_width = _table(results), _arm_width(results, console.width)
    room = console.width - arm_width
    for number_of_table, (names, with_seconds) in enumerate(_tables_that_fit(results, room)):
        if number_of_table:
            console.print()
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("arm", overflow="fold", min_width=arm_width, max_width=arm_width)
        for name in names:
            width = _metric_width(name, room)
            table.add_column(
                _heading(results, name), justify="right", overflow="fold", min_width=width, max_width=width
            )
        if with_seconds:
            table.add_column("seconds", justify="right", no_wrap=True)
        for row in rows:
            means = dict(zip(results.metrics, row["cells"], strict=True))
            cells = [number(means[name]) for name in names] + [number(row["seconds"], 3)] * with_seconds
            table.add_row(Text(row["arm"]), *cells)
        console.print(table)
    for kind, judged in (("claim", results.claims), ("check", results.checks)):
        if not judged:
            continue
        console.print()
        claims = Table(box=None, header_style="bold", pad_edge=False)
        for heading in ("verdict", kind, "estimate", "95 % interval"):
            claims.add_column(heading, justify="right" if heading == "estimate" else "left")
        for claim in judged:
            between = "" if claim.low is None else f"{number(claim.low)} to {number(claim.high)}"
            verdict = f"[{VERDICT_STYLE[claim.verdict]}]{claim.verdict}[/]"
            text = escape(claim.text) + (f" [dim]({escape(claim.note)})[/]" if claim.note else "")
            claims.add_row(verdict, text, number(claim.estimate), between)
        console.print(claims)
    for run in results.failed:
        where = f"{escape(run['arm'])} on seed {run['seed']}"
        console.print(f"[red]failed[/] {where}: {run['cause']}: {escape(run['error'])}")
    for reason in dict.fromkeys(results.left_out.values()):
        arms = ", ".join(arm for arm, why in results.left_out.items() if why == reason)
        console.print(f"[yellow]left out[/] {escape(arms)}: {escape(reason)}")
    if results.pending:
        console.print(f"[yellow]{len(results.pending)} runs were not made[/]: run the same command again to go on")


def _arm_width(results: Results, width: int) -> int:
    """Columns for the names of arms: what the longest needs, half of the terminal at most."""
    from rich.cells import cell_len

    return min(max(cell_len(arm) for arm in [*results.arms, "arm"]), max(8, width // 2))


def _metric_width(name: str, room: int) -> int:
    """Columns for a metric: its name wraps at spaces, and is broken where a word is longer than 20."""
    from rich.cells import cell_len

    return min(20, max(8, room - 2), max(10, *(cell_len(word) for word in f"{name} ↑".split(" "))))


def _heading(results: Results, name: str) -> Text:
    from rich.text import Text

    return Text(f"{name} {'↑' if results.metrics[name] == 'higher' else '↓'}")


def _tables_that_fit(results: Results, room: int) -> list[tuple[list[str], bool]]:
    """The metrics of each table, as many side by side as fit, and whether the seconds follow them."""
    tables: list[tuple[list[str], bool]] = []
    names: list[str] = []
    left = room
    for name in results.metrics:
        needed = _metric_width(name, room) + 2
        if names and needed > left:
            tables.append((names, False))
            names, left = [], room
        names.append(name)
        left -= needed
    if left >= len("  seconds"):
        return [*tables, (names, True)]
    return [*tables, (names, False), ([], True)]


def _reported(results: Results, metric: str) -> bool:
    return any(results.metric(arm, metric) for arm in results.arms)


def _table(results: Results) -> list[dict[str, Any]]:
    seconds: dict[str, list[float]] = defaultdict(list)
    for run in results.runs:
        seconds[run["arm"]].append(run["seconds"])
    rows = []
    for arm in results.arms:
        values = [list(results.metric(arm, name).values()) for name in results.metrics]
        cells = [float(np.mean(of_metric)) if of_metric else None for of_metric in values]
        rows.append({"arm": arm, "cells": cells, "seconds": float(np.mean(seconds[arm])) if seconds[arm] else None})
    return rows


def _metric_chart(results: Results, metric: str) -> Any:
    rows, points = [], []
    for arm in results.arms:
        values = np.array(list(results.metric(arm, metric).values()))
        if len(values):
            found = interval([values])
            rows.append({"arm": arm, "mean": found.estimate, "low": found.low, "high": found.high})
            points += [{"arm": arm, "value": float(value)} for value in values[:DRAWN_SEEDS]]
    return interval_chart(f"{metric} {'↑' if results.metrics[metric] == 'higher' else '↓'}", rows, points)


@checked
def curve_values(runs: Iterable[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Returns the curves of runs by name, over the seeds of each arm: ``{"arm", "step", "mean", "low", "high"}``.

    At most 200 steps of a curve are kept, evenly spread; values that are not finite are left out.

    Args:
        runs: ``{"arm", "curves": {name: [[step, value], ...]}}``, as in ``Results.runs``.

    Example:
        >>> curve_values([{"arm": "a", "curves": {"loss": [[1, 2.0]]}}, {"arm": "a", "curves": {"loss": [[1, 4.0]]}}])
        {'loss': [{'arm': 'a', 'step': 1, 'mean': 3.0, 'low': 2.0, 'high': 4.0}]}
    """
    by_name: dict[str, dict[str, dict[float, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for run in runs:
        for name, points in run["curves"].items():
            for step, value in points:
                if value is not None and np.isfinite(value):
                    by_name[name][run["arm"]][step].append(value)
    found: dict[str, list[dict[str, Any]]] = {}
    for name, arms in by_name.items():
        values = found[name] = []
        for arm, steps in arms.items():
            drawn = sorted(steps)
            keep = np.unique(np.linspace(0, len(drawn) - 1, min(len(drawn), DRAWN_STEPS)).round().astype(int))
            for step in (drawn[i] for i in keep):
                of_step = steps[step]
                mean = float(np.mean(of_step))
                values.append({"arm": arm, "step": step, "mean": mean, "low": min(of_step), "high": max(of_step)})
    return found


def _curve_charts(results: Results) -> list[Any]:
    return [curve_chart(name, values, list(results.arms)) for name, values in curve_values(results.runs).items()]


def _figures(results: Results) -> list[tuple[str, Any]]:
    """The figures of every arm's first seed that has them, up to a bound that keeps the page small."""
    seen: set[tuple[str, str]] = set()
    figures: list[tuple[str, Any]] = []
    for run in sorted(results.runs, key=lambda run: run["seed"]):
        for name, specification in run["figures"].items():
            if (run["arm"], name) not in seen and len(figures) < DRAWN_FIGURES:
                seen.add((run["arm"], name))
                figures.append((f"{name}: {run['arm']}, seed {run['seed']}", chart(specification)))
    return figures
