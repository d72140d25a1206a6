"""Pages and charts of reports: one self-contained HTML file, readable at any width, in light and dark.

Charts are Vega-Lite, drawn to SVG once, when the page is written; the page needs no script and no network. Their text
and grid take the page's own colours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from heldout.report.drawing import DrawingError, draw, stop_drawing
from heldout.study import plain, plain_text

if TYPE_CHECKING:
    from jinja2 import Environment

INK, LINE = "#010203", "#010204"  # stand for the page's text and line colours until the SVG is on the page
PALETTE = ["#3b82c4", "#e0762f", "#3f9d6a", "#c4527f", "#8a6fc9", "#b08b2a", "#2fa3a8", "#8c8c8c"]
WIDTH = 370


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        finalize=_finalized,
    )
    environment.filters["number"] = number
    environment.filters["seconds"] = duration
    environment.globals["interval_bar"] = interval_bar
    return environment


def _finalized(value: Any) -> Any:
    return plain_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def render(template: str, **context: Any) -> str:
    """Returns the page that a template of the ``templates`` folder makes; every value is escaped and made plain."""
    stop_drawing()  # the charts of the page are among the values
    return _environment().get_template(template).render(**context)


def chart(specification: Mapping[str, Any]) -> Markup:
    """Returns a Vega-Lite specification as SVG in the page's colours, or a note that says why it cannot be drawn."""
    config = {
        "background": "transparent",
        "font": "sans-serif",
        "view": {"stroke": None},
        "axis": {
            "labelColor": INK,
            "titleColor": INK,
            "gridColor": LINE,
            "domainColor": LINE,
            "tickColor": LINE,
            "labelFontSize": 11,
            "titleFontSize": 11,
            "titleFontWeight": "normal",
            "labelLimit": 130,
        },
        "legend": {
            "labelColor": INK,
            "titleColor": INK,
            "labelFontSize": 11,
            "orient": "bottom",
            "columns": 3,
            "symbolOpacity": 1,
        },
        "title": {"color": INK, "fontSize": 13, "anchor": "start", "fontWeight": "bold"},
        "range": {"category": PALETTE},
    }
    document = {"$schema": "https://vega.github.io/schema/vega-lite/v5.json", **plain(specification)}
    document["config"] = {**config, **document.get("config", {})}
    try:
        svg = draw(document)
    except DrawingError as error:
        return Markup('<p class="quiet">This figure cannot be drawn: {}</p>').format(str(error))
    size = re.compile(r'<svg([^>]*?) width="([\d.]+)" height="[\d.]+"')
    svg = size.sub(r'<svg\1 style="width:100%;max-width:\2px;height:auto"', svg, count=1)
    svg = re.sub(r"<script\b.*?</script>", "", svg, flags=re.DOTALL)
    return Markup(svg.replace(INK, "currentColor").replace(LINE, "var(--line)"))


def interval_bar(estimate: float | None, low: float | None, high: float | None, reference: float = 0.0) -> Markup:
    """Returns a small drawing of an interval beside the value that it is compared with."""
    if estimate is None:
        return Markup("")
    values = [value for value in (estimate, low, high, reference) if value is not None]
    least, most = min(values), max(values)
    spread = (most - least) or 1.0

    def place(value: float) -> float:
        return 8 + 184 * (value - least) / spread

    drawing = [f'<line x1="{place(reference):.1f}" x2="{place(reference):.1f}" y1="2" y2="22" class="reference"/>']
    if low is not None and high is not None:
        drawing.append(f'<line x1="{place(low):.1f}" x2="{place(high):.1f}" y1="12" y2="12" class="interval"/>')
    drawing.append(f'<circle cx="{place(estimate):.1f}" cy="12" r="4.5" class="estimate"/>')
    return Markup(f'<svg class="bar" viewBox="0 0 200 24" role="img" aria-label="interval">{"".join(drawing)}</svg>')


def interval_chart(title: str, rows: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]]) -> Markup:
    """Returns a chart of one metric: mean and interval of every arm, and the values of single seeds behind them.

    Args:
        title: above the chart.
        rows: ``{"arm", "mean", "low", "high"}``, in the order they are drawn.
        points: ``{"arm", "value"}``.
    """
    arms = [row["arm"] for row in rows]
    y = {"field": "arm", "type": "nominal", "sort": arms, "title": None}
    colour = {"field": "arm", "type": "nominal", "sort": arms, "legend": None}
    x = {"type": "quantitative", "scale": {"zero": False, "nice": True}, "title": None, "axis": {"tickCount": 5}}
    layers = [
        {
            "data": {"values": list(points)},
            "mark": {"type": "tick", "thickness": 1.5, "size": 13, "opacity": 0.5},
            "encoding": {"y": y, "x": {**x, "field": "value"}, "color": colour},
        },
        {
            "data": {"values": [row for row in rows if row["low"] is not None]},
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}, "color": colour},
        },
        {
            "data": {"values": list(rows)},
            "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
            "encoding": {"y": y, "x": {**x, "field": "mean"}, "color": colour},
        },
    ]
    return chart({"title": title, "width": WIDTH - 110, "height": {"step": 22}, "layer": layers})


def curve_chart(title: str, values: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> Markup:
    """Returns a chart of one curve: the mean over seeds of every arm, and the range between seeds as a band.

    Args:
        values: ``{"arm", "step", "mean", "low", "high"}``.
    """
    x = {"field": "step", "type": "quantitative", "title": None}
    colour = {"field": "arm", "type": "nominal", "sort": list(arms), "title": None}
    y = {"type": "quantitative", "scale": {"zero": False}, "title": None}
    layers = [
        {
            "mark": {"type": "area", "opacity": 0.15},
            "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour},
        },
        {
            "mark": {"type": "line", "strokeWidth": 1.8},
            "encoding": {"x": x, "y": {**y, "field": "mean"}, "color": colour},
        },
    ]
    return chart(
        {"title": title, "width": WIDTH - 50, "height": 190, "data": {"values": list(values)}, "layer": layers}
    )


def number(value: float | None, digits: int = 4) -> str:
    """Returns a number for people: 4 significant digits, a dash for None."""
    return "–" if value is None else f"{value + 0.0:.{digits}g}"  # no minus zero


def duration(seconds: float) -> str:
    """Returns a time span for people.

    Example:
        >>> duration(3.21), duration(75), duration(7300)
        ('3.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
