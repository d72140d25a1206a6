"""The report of ``audit``: findings in the terminal, and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from heldout.report import chart, number, render

if TYPE_CHECKING:
    from rich.console import Console

Document = Mapping[str, Any]


def to_html(document: Document) -> str:
    """Returns the page: findings first, then the sets, calibration, curve, coherence by layer, suspects."""
    charts = [_shift_chart(document), _reliability_chart(document), _curve_chart(document), _layer_chart(document)]
    return render(
        "audit.html.jinja",
        heading=f"Audit of {document['title']}",
        document=document,
        environment=document["environment"],
        charts=[each for each in charts if each is not None],
        value=_value,
        suspects=list(
            zip(
                document["suspects"],
                document.get("suspect_labels", []),
                document.get("suspect_margins", []),
                strict=False,
            )
        )[:50],
    )


def print_audit(document: Document, console: Console) -> None:
    """Prints every finding with its reading, and where the page lies."""
    from rich.markup import escape
    from rich.padding import Padding

    for entry in document["findings"]:
        console.print(f"[bold]{escape(entry['name'])}[/]  {escape(_value(entry))}", highlight=False)
        hint = f" Try {escape(', '.join(entry['methods']))}." if entry["methods"] else ""
        console.print(Padding(f"[dim]{escape(entry['reading'])}.{hint}[/]", (0, 0, 0, 2)), highlight=False)
    for entry in document["skipped"]:
        console.print(f"[dim]not done: {escape(entry['part'])}: {escape(entry['reason'])}[/]")
    for warning in document["warnings"]:
        console.print(f"[yellow]{escape(warning)}[/]")
    if document["suspects"]:
        shown = ", ".join(map(str, document["suspects"][:10]))
        console.print(f"\nTraining examples to look at first: {shown} ({len(document['suspects'])} in all)")
    console.print(f"Report: {escape(document['report'])}", highlight=False, soft_wrap=True)


def _value(entry: Mapping[str, Any]) -> str:
    """A finding's number, with its interval where there is one."""
    if entry["low"] is None:
        return number(entry["value"], 3)
    return f"{number(entry['value'], 3)} [{number(entry['low'], 3)}, {number(entry['high'], 3)}]"


def _shift_chart(document: Document) -> Any:
    if not document.get("sets"):
        return None
    metric = "accuracy" if document["task"] == "classification" else "mse"
    values = [{"set": name, **{k: row[k] for k in (metric, "low", "high")}} for name, row in document["sets"].items()]
    y = {"field": "set", "type": "nominal", "sort": None, "title": None}
    x = {"type": "quantitative", "scale": {"zero": False}, "title": None}
    layers = [
        {
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}},
        },
        {"mark": {"type": "point", "filled": True, "size": 60}, "encoding": {"y": y, "x": {**x, "field": metric}}},
    ]
    return chart({"title": metric, "width": 260, "height": {"step": 22}, "data": {"values": values}, "layer": layers})


def _reliability_chart(document: Document) -> Any:
    if not document.get("calibration"):
        return None
    values = [
        {"set": name, "confidence": row["confidence"], "accuracy": row["accuracy"], "count": row["count"]}
        for name, table in document["calibration"].items()
        for row in table["bins"]
    ]
    scale = {"domain": [0, 1]}
    x = {"field": "confidence", "type": "quantitative", "scale": scale}
    y = {"field": "accuracy", "type": "quantitative", "scale": scale}
    colour = {"field": "set", "type": "nominal", "title": None}
    ideal = {"values": [{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]}
    layers: list[dict[str, Any]] = [
        {"data": ideal, "mark": {"type": "line", "strokeDash": [4, 4], "opacity": 0.5}, "encoding": {"x": x, "y": y}},
        {
            "data": {"values": values},
            "mark": {"type": "line", "point": True},
            "encoding": {"x": x, "y": y, "color": colour},
        },
    ]
    return chart({"title": "reliability", "width": 280, "height": 220, "layer": layers})


def _curve_chart(document: Document) -> Any:
    if not document["curve"]:
        return None
    names = {"loss": "training loss", "val_loss": "validation loss"}
    values = [
        {"epoch": entry["epoch"], "which": title, "loss": entry[name]}
        for entry in document["curve"]
        for name, title in names.items()
    ]
    encoding = {
        "x": {"field": "epoch", "type": "quantitative"},
        "y": {"field": "loss", "type": "quantitative"},
        "color": {"field": "which", "type": "nominal", "title": None},
    }
    mark = {"type": "line", "point": len(document["curve"]) < 3}
    return chart(
        {
            "title": "training",
            "width": 280,
            "height": 190,
            "data": {"values": values},
            "mark": mark,
            "encoding": encoding,
        }
    )


def _layer_chart(document: Document) -> Any:
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
            "title": "gradient coherence by layer",
            "width": 260,
            "data": {"values": values},
            "mark": "bar",
            "encoding": encoding,
        }
    )
