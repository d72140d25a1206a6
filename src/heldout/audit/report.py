"""The report of ``audit``: findings in the terminal, and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from heldout.audit.judging import FINE, INFORMATION, NOTABLE, OPEN, SERIOUS
from heldout.errors import check_has, check_nonempty, checked
from heldout.report import Scale, chart, curve_chart, forest, number, render, with_interval

if TYPE_CHECKING:
    from rich.console import Console

Document = Mapping[str, Any]
STYLES = {SERIOUS: "contradicted", NOTABLE: "inconclusive", OPEN: "quiet", FINE: "holds", INFORMATION: "quiet"}
TERMINAL = {SERIOUS: "bold red", NOTABLE: "yellow", OPEN: "dim", FINE: "green", INFORMATION: "dim"}
RELIABILITY = 3  # sets drawn in one reliability diagram
LARGEST_MATRIX = 20  # classes of a confusion matrix that is shown whole
CONFUSED = 10  # pairs of classes listed beside it


def to_html(document: Document) -> str:
    """Returns the page: findings by severity, the sets on one axis, calibration, confusion, curves, examples."""
    scale = Scale(document["metric"]["name"])
    findings = document["findings"]
    charts = (_reliability(document), *_curves(document), _layers(document), _known(document))
    return render(
        "audit.html.jinja",
        heading=f"Audit of {document['title']}",
        document=document,
        environment=document["environment"],
        wrong=_wrong(findings),
        others={word: [e for e in findings if e["severity"] == word] for word in (OPEN, FINE, INFORMATION)},
        styles=STYLES,
        value=with_interval,
        score=scale.score,
        sets=_sets_forest(document, scale),
        groups=[_group_forest(document, name) for name in ("classes", "groups", "domains") if document.get(name)],
        charts=[each for each in charts if each],
        compositions=document.get("compositions", {}),
        matrices=_matrices(document),
    )


def _wrong(findings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is serious or notable; a remedy that an earlier finding has named already is told by that finding's name."""
    first: dict[tuple[str, str | None], str] = {}
    rows = []
    for entry in findings:
        if entry["severity"] in (SERIOUS, NOTABLE):
            remedies = (entry["remedy"], entry["command"])
            named = first.setdefault(remedies, entry["name"])
            rows.append({**entry, "repeats": named if named != entry["name"] and any(remedies) else ""})
    return rows


@checked
def print_audit(document: Document, console: Console) -> None:
    """Prints the findings, the worst first, what may help, what was not done, and where the page lies.

    Args:
        document: as ``audit`` returns it.
        console: what is printed on.

    Example:
        >>> from rich.console import Console
        >>> finding = {"severity": FINE, "name": "calibration", "value": 0.01, "low": 0.0, "high": 0.02,
        ...            "reading": "confidence is accuracy", "threshold": "", "remedy": "", "command": ""}
        >>> document = {"summary": "Nothing is wrong.", "findings": [finding], "skipped": [], "not_applicable": [],
        ...             "warnings": [], "suspects": [], "report": "report.html"}
        >>> print_audit(document, Console(width=80))
        Nothing is wrong.
        <BLANKLINE>
        fine  calibration  0.01 [0, 0.02]
          confidence is accuracy.
        Report: report.html
    """
    check_nonempty(document=document)
    check_has("print", console=console)
    from rich.markup import escape
    from rich.padding import Padding

    console.print(f"[bold]{escape(document['summary'])}[/]\n", highlight=False)
    said: set[str] = set()  # limits and remedies that several findings share
    for entry in document["findings"]:
        style, value = TERMINAL[entry["severity"]], with_interval(entry["value"], entry["low"], entry["high"])
        told = f"[{style}]{entry['severity']}[/]  [bold]{escape(entry['name'])}[/]  {escape(value)}"
        console.print(told, highlight=False)
        below = [f"[dim]{escape(entry['reading'])}.[/]"]
        if entry["severity"] in (SERIOUS, NOTABLE, OPEN):
            below.append(f"[dim]Limits: {escape(entry['threshold'])}.[/]")
        below += [f"Remedy: {escape(entry['remedy'])}."] if entry["remedy"] else []
        below += [f"Try it: {escape(entry['command'])}"] if entry["command"] else []
        for line in (each for each in below if each not in said):
            console.print(Padding(line, (0, 0, 0, 2), expand=False), highlight=False)
        said.update(below)
    for entry in document["skipped"]:
        console.print(f"[yellow]not done: {escape(entry['part'])}: {escape(entry['reason'])}[/]", highlight=False)
    for entry in document["not_applicable"]:
        told = f"[dim]not applicable: {escape(entry['part'])}: {escape(entry['reason'])}[/]"
        console.print(told, highlight=False)
    for warning in document["warnings"]:
        console.print(f"[yellow]{escape(warning)}[/]", highlight=False)
    if document["suspects"]:
        shown = ", ".join(map(str, document["suspects"][:10]))
        console.print(f"\nTraining examples to look at first: {shown} ({len(document['suspects'])} in all)")
    console.print(f"Report: {escape(document['report'])}", highlight=False, soft_wrap=True)


def _sets_forest(document: Document, scale: Scale) -> Any:
    """The metric on every set, on one axis, with a line at the score of the given test set."""
    sets = document.get("sets", {})
    if not sets:
        return None
    given = next(iter(document["shifts"]))
    rows = [
        {
            "label": name,
            "group": {"train": "training", "val": "validation", "test": "test sets"}[row["role"]],
            **{key: scale.unit * row[name_of] for key, name_of in _ENDS},
            "numbers": f"{scale.score(row['score'])} [{scale.score(row['low'])}, {scale.score(row['high'])}]",
            "word": f"n = {row['n']:,}",
            "style": "quiet",
        }
        for name, row in sets.items()
    ]
    metric = document["metric"]["name"] + (", %" if scale.points else "")
    title = f"{metric}; 95 % intervals over examples; the line is at {given}"
    return forest(rows, reference=scale.unit * sets[given]["score"], title=title)


_ENDS = (("estimate", "score"), ("low", "low"), ("high", "high"))


def _group_forest(document: Document, kind: str) -> tuple[str, Any]:
    """Gains of each class or group over the accuracy of all of them together."""
    scale, groups = Scale("accuracy"), document[kind]
    whole = sum(row["accuracy"] * row["n"] for row in groups) / sum(row["n"] for row in groups)
    rows = []
    for row in sorted(groups, key=lambda row: row["accuracy"]):
        entry = {"gain": row["accuracy"] - whole, "low": row["low"] - whole, "high": row["high"] - whole}
        style = "contradicted" if entry["high"] < 0 else "holds" if entry["low"] > 0 else "quiet"
        rows.append(
            {
                "label": f"{row['group']}",
                **{key: 100 * entry[part] for key, part in (("estimate", "gain"), ("low", "low"), ("high", "high"))},
                "numbers": scale.with_interval(entry),
                "word": f"{scale.score(row['accuracy'])}, n = {row['n']:,}",
                "style": style,
            }
        )
    where = "the given test set" if kind == "classes" else "the training set"
    title = f"points of accuracy above or below all of {where} ({scale.score(whole)}); the intervals hold together"
    return kind.capitalize(), forest(rows, title=title)


def _reliability(document: Document) -> Any:
    """Confidence against accuracy: the given test set, and those of the largest calibration error."""
    table = document.get("calibration")
    if not table:
        return None
    given = next(iter(table))
    worst = sorted((name for name in table if name != given), key=lambda name: -table[name]["ece"])
    chosen = [given, *worst[: RELIABILITY - 1]]
    values = [
        {"set": name, "confidence": row["confidence"], "accuracy": row["accuracy"], "count": row["count"]}
        for name in chosen
        for row in table[name]["bins"]
    ]
    scale = {"domain": [0, 1]}
    x = {"field": "confidence", "type": "quantitative", "scale": scale}
    y = {"field": "accuracy", "type": "quantitative", "scale": scale}
    colour = {"field": "set", "type": "nominal", "title": None, "sort": chosen}
    size = {"field": "count", "type": "quantitative", "legend": None, "scale": {"range": [15, 150]}}
    ideal = {"values": [{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]}
    shared = {"x": x, "y": y, "color": colour}
    layers: list[dict[str, Any]] = [
        {"data": ideal, "mark": {"type": "line", "strokeDash": [4, 4], "opacity": 0.6}, "encoding": {"x": x, "y": y}},
        {"data": {"values": values}, "mark": {"type": "line"}, "encoding": shared},
        {
            "data": {"values": values},
            "mark": {"type": "point", "filled": True, "opacity": 1},
            "encoding": {**shared, "size": size},
        },
    ]
    title = {"text": "Reliability", "subtitle": "on the dashed line, confidence is accuracy"}
    return chart({"title": title, "width": 280, "height": 220, "layer": layers})


def _curves(document: Document) -> list[Any]:
    """Loss and metric by epoch, and the metric by the size of the training set."""
    curve, metric = document["curve"], document["metric"]["name"]
    charts = []
    if len(curve) > 1:
        sides = {"training": "loss", "validation": "val_loss"}
        charts.append(_lines("Loss by epoch", curve, sides))
        sides = {"validation": "val_score"}
        if metric == "accuracy" and all("train_error" in entry for entry in curve):
            curve = [{**entry, "accuracy": 1 - entry["train_error"]} for entry in curve]
            sides = {"training (while it learns)": "accuracy", **sides}
        charts.append(_lines(f"{metric.capitalize()} by epoch", curve, sides))
    if points := document.get("learning_curve"):
        x = {"field": "examples", "type": "quantitative", "title": "training examples", "scale": {"zero": False}}
        y = {"field": "score", "type": "quantitative", "title": metric, "scale": {"zero": False}}
        encoding = {"x": {**x, "axis": {"values": [p["examples"] for p in points]}}, "y": y}
        title = {"text": "Learning curve", "subtitle": "the same recipe on parts of the training set, one seed"}
        mark = {"type": "line", "point": True}
        charts.append(
            chart({"title": title, "width": 280, "height": 190, "data": {"values": points}, "mark": mark,
                   "encoding": encoding})
        )  # fmt: skip
    return charts


def _lines(title: str, curve: Sequence[Mapping[str, float]], sides: Mapping[str, str]) -> Any:
    values = [
        {"arm": side, "step": entry["epoch"], **dict.fromkeys(("mean", "low", "high"), entry[key])}
        for entry in curve
        for side, key in sides.items()
    ]
    return curve_chart(title, values, list(sides))


def _layers(document: Document) -> Any:
    layers = document.get("coherence", {}).get("layers")
    if not layers:
        return None
    values = [{"layer": name or "the model", "alpha": alpha} for name, alpha in layers.items() if alpha == alpha]
    encoding = {
        "y": {"field": "layer", "type": "nominal", "sort": None, "title": None},
        "x": {"field": "alpha", "type": "quantitative", "title": "agreement of gradients, 0 to 1"},
    }
    return chart(
        {
            "title": "Gradient coherence by layer",
            "width": 220,
            "data": {"values": values},
            "mark": "bar",
            "encoding": encoding,
        }
    )


def _known(document: Document) -> Any:
    """What each layer of a transformers model knows, from the embedding on."""
    probes = document.get("probes")
    if not probes:
        return None
    values = [{"layer": layer, "value": value} for layer, value in enumerate(probes["layers"])]
    encoding = {
        "x": {"field": "layer", "type": "ordinal", "title": "blocks passed", "axis": {"labelAngle": 0}},
        "y": {"field": "value", "type": "quantitative", "title": None, "scale": {"domain": [0, 1]}},
    }
    title = {"text": "What each layer knows", "subtitle": probes["what"]}
    mark = {"type": "line", "point": True}
    return chart({"title": title, "width": 280, "height": 190, "data": {"values": values}, "mark": mark,
                  "encoding": encoding})  # fmt: skip


def _matrices(document: Document) -> list[dict[str, Any]]:
    """The confusion matrices, each with the pairs of classes that are confused most."""
    found = []
    for name, counts in document.get("confusion", {}).items():
        size = len(counts)
        totals = [max(1, sum(row)) for row in counts]
        pairs = [(counts[i][j], i, j) for i in range(size) for j in range(size) if i != j and counts[i][j]]
        pairs.sort(key=lambda pair: (-pair[0], pair[1:]))
        said = [f"{i} told as {j}: {count} of {totals[i]}" for count, i, j in pairs[:CONFUSED]]
        shares = [[count / totals[i] for count in row] for i, row in enumerate(counts)]
        cells = [[(c, number(s, 3)) for c, s in zip(*both, strict=True)] for both in zip(counts, shares, strict=True)]
        found.append({"set": name, "cells": cells if size <= LARGEST_MATRIX else [], "pairs": said})
    return found
