"""The report of ``improve``: the ranked table in the terminal, Markdown, and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from heldout.errors import check_has, check_nonempty, checked
from heldout.improve.groups import group_rows
from heldout.improve.verdict import BELOW_TUNED, HELPS, HURTS, OPEN, SHIFTED, trained_as
from heldout.report import Scale, cell, curve_chart, forest, number, render

if TYPE_CHECKING:
    from rich.console import Console

Document = Mapping[str, Any]


def to_html(document: Document) -> str:
    """Returns the page: verdict, all gains on one axis, code of the winner, curves, what was tried and what not."""
    scale = Scale(document["metric"]["name"])
    tests = _test_sets(document)
    return render(
        "improve.html.jinja",
        heading=f"What improves {document['title']}",
        document=document,
        environment=document["environment"],
        test_sets=tests,
        baseline_scores=_baseline_scores(document),
        tuned_scores=_baseline_scores(document, "tuned"),
        gains=_gains(document, scale) if document["finalists"] else None,
        curves=_curves(document),
        groups=_groups(document, scale),
        tried=_tried(document["methods"]),
        score=scale.score,
        plain_gain=scale.gain,
        exported=exported(document),
    )


def to_markdown(document: Document) -> str:
    """Returns the verdict and the ranked table as Markdown."""
    scale, names = Scale(document["metric"]["name"]), _test_sets(document)
    lines = [f"# What improves {cell(document['title'])}", "", cell(document["verdict"]), ""]
    lines += [f"Warning: {cell(warning)}\n" for warning in document["warnings"]]
    lines += [
        "| method | " + " | ".join(map(cell, names)) + " | training | inference |",
        "|---" * (len(names) + 3) + "|",
    ]
    baseline, tuned = _baseline_scores(document), _baseline_scores(document, "tuned")
    lines.append("| baseline | " + " | ".join(scale.score(baseline[name]) for name in names) + " | 1 × | 1 × |")
    if tuned:
        lines.append("| tuned baseline | " + " | ".join(scale.score(tuned[name]) for name in names) + " | | |")
    for row in document["finalists"]:
        tests = [row["tests"][name] for name in names]
        cells = [f"{scale.score(entry['score'])} ({scale.with_interval(entry)}, {word(entry)})" for entry in tests]
        costs = f"{number(row['training_cost'], 3)} × | {number(row['inference_cost'], 3)} ×"
        lines.append(f"| {cell(trained_as(row))} | " + " | ".join(cells) + f" | {costs} |")
    if rows := _groups(document, scale):
        lines += ["", "| method | test set | group | examples | baseline | score | gain |", "|---" * 7 + "|"]
        lines += ["| " + " | ".join(map(cell, map(str, row.values()))) + " |" for row in rows]
    lines += ["", "| method | what became of it | |", "|---|---|---|"]
    lines += [f"| {cell(row['method'])} | {row['status']} | {cell(row['detail'])} |" for row in document["methods"]]
    if document.get("note"):
        lines += ["", cell(document["note"])]
    if document.get("code"):
        lines += ["", "```python", document["code"].rstrip(), "```"]
    if document.get("load"):
        lines += ["", "Without training:", "", "```python", f"fitted = {document['load']}", "```"]
    return "\n".join(lines) + "\n"


@checked
def print_improvement(document: Document, console: Console) -> None:
    """Prints the gains of each finalist, one row for each test set, what became of the methods, and the verdict.

    Args:
        document: as ``improve`` returns it.
        console: what is printed on.

    Example:
        >>> from rich.console import Console
        >>> left_out = {"method": "bang", "status": "not applicable", "detail": "it needs the pretrained state"}
        >>> document = {"metric": {"name": "accuracy"}, "finalists": [], "winner": None, "methods": [left_out],
        ...             "failed": [], "warnings": [], "verdict": "No method is shown to help.", "report": "report.html"}
        >>> print_improvement(document, Console(width=80))
        bang: not applicable, it needs the pretrained state
        <BLANKLINE>
        No method is shown to help.
        Report: report.html
    """
    check_nonempty(document=document)
    check_has("print", console=console)
    from rich.markup import escape
    from rich.table import Table

    scale, tuned = Scale(document["metric"]["name"]), _baseline_scores(document, "tuned")
    for row in document["finalists"]:
        star = "★ " if row["method"] == document["winner"] else ""
        cost = f"training {number(row['training_cost'], 3)} ×, inference {number(row['inference_cost'], 3)} ×"
        console.print(f"[bold]{star}{escape(trained_as(row))}[/]  [dim]{cost}[/]", highlight=False)
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("test set", overflow="fold", min_width=8)
        for heading in ("baseline", "score", "gain", "interval"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("verdict", overflow="fold", min_width=7)
        for test in _test_sets(document):
            entry = row["tests"][test]
            style = {"holds": "green", "contradicted": "red"}.get(_sign(entry), "default")
            gained, *ends = scale.gains(entry)
            between = "" if entry["low"] is None else " to ".join(ends)
            scores = (scale.score(entry["baseline"]), scale.score(entry["score"]))
            table.add_row(escape(test), *scores, f"[{style}]{gained}[/]", between, f"[{style}]{word(entry)}[/]")
            if "tuned_gain" in entry:
                gained, *ends = scale.gains(entry, "tuned_")
                between = " to ".join(ends)
                score = scale.score(tuned[test]) if test in tuned else ""
                table.add_row("[dim]  over tuned[/]", f"[dim]{score}[/]", "", f"[dim]{gained}[/]", f"[dim]{between}[/]")
        console.print(table)
        if groups := _groups({"finalists": [row]}, scale):
            table = Table(box=None, header_style="dim", pad_edge=False, style="dim")
            table.add_column("group", overflow="fold", min_width=8)
            for heading in ("examples", "baseline", "score", "gain"):
                table.add_column(heading, justify="right", no_wrap=True)
            for each in groups:
                numbers = (str(each[key]) for key in ("n", "baseline", "score", "gain"))
                table.add_row(escape(f"{each['test']}, {each['group']}"), *numbers)
            console.print(table)
        console.print()
    if len(document["finalists"]) > 1:
        told = "Finalists stand in the order of their validation scores, by which they were chosen."
        console.print(f"[dim]{told}{' ★ is the winner.' if document['winner'] else ''}[/]\n", highlight=False)
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
        console.print(f"Winner: {escape(document['kept'])}", highlight=False, soft_wrap=True)
        console.print(f"Without training: {escape(document['load'])}", highlight=False, soft_wrap=True)
        if exported(document):
            console.print(f"torch.export: {escape(exported(document))}", highlight=False, soft_wrap=True)
    if document.get("note"):
        console.print(escape(document["note"]))
    console.print(f"Report: {escape(document['report'])}", highlight=False, soft_wrap=True)


def _groups(document: Document, scale: Scale) -> list[dict[str, Any]]:
    """Scores and gains of the groups of test sets, in words."""
    return [
        {
            "method": method,
            "test": test,
            "group": row["group"],
            "n": row["n"],
            "baseline": scale.score(row["baseline"]),
            "score": scale.score(row["score"]),
            "gain": scale.with_interval(row),
        }
        for method, test, row in group_rows(document["finalists"])
    ]


def exported(document: Document) -> str:
    """Returns the file of the exported program, or why there is none; empty where there is no winner.

    Example:
        >>> exported({"export": {"file": None, "reason": "it has a test-time stage"}})
        'none: it has a test-time stage'
    """
    export = document.get("export")
    if not export:
        return ""
    return f"{document['kept']}/{export['file']}" if export["file"] else f"none: {export['reason']}"


def _sign(entry: Mapping[str, Any]) -> str:
    """The style of the verdict on a gain: shown to help, shown to hurt, or neither."""
    return {HELPS: "holds", HURTS: "contradicted", BELOW_TUNED: "contradicted"}.get(entry["verdict"], "quiet")


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
    return [*names, SHIFTED] if len(names) > 2 else names


def _baseline_scores(document: Document, which: str = "baseline") -> dict[str, float | None]:
    """Scores of the recipe as given, or of the "tuned" one; empty where that was not trained."""
    if not document.get(which):
        return {}
    scores = {name: entry["score"] for name, entry in document[which]["tests"].items()}
    shifted = [scores[name] for name in document["test_sets"][1:]]
    scores[SHIFTED] = sum(shifted) / len(shifted) if shifted and None not in shifted else None
    return scores


def _gains(document: Document, scale: Scale) -> Any:
    """Every finalist's gain on every test set, on one axis; over the tuned baseline, too, where there is one."""
    rows = []
    for test in _test_sets(document):
        for finalist in document["finalists"]:
            entry = finalist["tests"][test]
            star = " ★" if finalist["method"] == document["winner"] else ""
            rows.append(_row(f"{trained_as(finalist)}{star}", test, entry, scale, "", word(entry), _sign(entry)))
            if "tuned_gain" in entry:
                rows.append(
                    _row(f"{trained_as(finalist)} over the tuned baseline", test, entry, scale, "tuned_", "", "quiet")
                )
    unit = f", {scale.points}" if scale.points else ""
    return forest(rows, title=f"gain in {document['metric']['name']} over the baseline{unit}; to the right is better")


def _row(
    label: str, test: str, entry: Mapping[str, Any], scale: Scale, prefix: str, verdict: str, style: str
) -> dict[str, Any]:
    ends = {key: entry[prefix + part] for key, part in (("estimate", "gain"), ("low", "low"), ("high", "high"))}
    marks = {key: None if value is None else scale.unit * value for key, value in ends.items()}
    told = scale.with_interval(entry, prefix)
    return {"label": label, "group": test, **marks, "numbers": told, "word": verdict, "style": style}


def _curves(document: Document) -> list[Any]:
    """Charts of the finalists' training, and of the baselines', over the confirmation's seeds."""
    arms = {
        name: list(dict.fromkeys(value["arm"] for value in values))
        for name, values in document.get("curves", {}).items()
    }
    page = list(dict.fromkeys(arm for each in arms.values() for arm in each))
    return [
        curve_chart(f"{name.capitalize()} by epoch", document["curves"][name], each, page=page)
        for name, each in arms.items()
    ]


def _tried(methods: Sequence[Mapping[str, str]]) -> dict[str, list[Mapping[str, str]]]:
    """Methods by what became of them, in the order of how far they came."""
    order = ("confirmed", "not confirmed", "screened", "failed", "not tried", "not applicable")
    return {status: rows for status in order if (rows := [row for row in methods if row["status"] == status])}
