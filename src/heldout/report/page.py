"""Pages and charts of reports: one self-contained HTML file, readable at any width, in light and dark.

Charts are Vega-Lite, drawn to SVG once, when the page is written; the page needs no script and no network. Their text
and grid take the page's own colours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from heldout.report.drawing import DrawingError, draw, stop_drawing
from heldout.study import plain, plain_text

if TYPE_CHECKING:
    from jinja2 import Environment
from heldout.errors import check_at_least, check_finite, checked
from heldout.report.formats import duration, number, with_interval

INK, LINE = "#010203", "#010204"  # stand for the page's text and line colours until the SVG is on the page
DASHES = [[1, 0], [6, 3], [2, 2]]
PALETTE = ["#3b82c4", "#d96a1f", "#35905f", "#c4527f", "#8a6fc9", "#a07d1f", "#23939a", "#808080"]
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


@checked
def render(template: str, **context: Any) -> str:
    """Returns the page that a template of the ``templates`` folder makes; every value is escaped and made plain.

    Args:
        template: a file name in that folder, such as "forest.html.jinja".
        context: what the template names.

    Example:
        >>> page = render("forest.html.jinja", rows=[], ticks=[], reference=None, title="gain < 1")
        >>> "gain &lt; 1" in page
        True
    """
    stop_drawing()  # the charts of the page are among the values
    return _environment().get_template(template).render(**context)


@checked
def chart(specification: Mapping[str, Any]) -> Markup:
    """Returns a Vega-Lite specification as SVG in the page's colours, or a note that says why it cannot be drawn.

    Args:
        specification: Vega-Lite; what its own ``config`` says goes before the page's.

    Example:
        >>> along = {"x": {"field": "x", "type": "quantitative"}}
        >>> two = {"title": "Two", "mark": "point", "data": {"values": [{"x": 1}, {"x": 2}]}, "encoding": along}
        >>> chart(two).startswith('<svg role="img" aria-label="Two"')
        True
    """
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
        "title": {"color": INK, "subtitleColor": INK, "fontSize": 13, "anchor": "start", "fontWeight": "bold"},
        "mark": {"color": PALETTE[0]},
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
    svg = re.sub(r"<svg\b", f'<svg role="img" aria-label="{escape(_title(specification))}"', svg, count=1)
    svg = re.sub(r"<script\b.*?</script>", "", svg, flags=re.DOTALL)
    return Markup(svg.replace(INK, "currentColor").replace(LINE, "var(--line)"))


def _title(specification: Mapping[str, Any]) -> str:
    title = specification.get("title", "")
    return str(title.get("text", "") if isinstance(title, Mapping) else title) or "chart"


@checked
def interval_bar(estimate: float | None, low: float | None, high: float | None, reference: float = 0.0) -> Markup:
    """Returns a small drawing of an interval beside the value that it is compared with.

    Args:
        estimate: None for no drawing.
        low, high: ends of the interval; None for no interval.
        reference: the value that it is compared with.

    Example:
        >>> "0.5 [0.2, 0.8], against 0" in interval_bar(0.5, 0.2, 0.8), interval_bar(None, None, None)
        (True, Markup(''))
    """
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
    told = f"{with_interval(estimate, low, high)}, against {number(reference)}"
    start = Markup('<svg class="bar" viewBox="0 0 200 24" role="img" aria-label="{}">').format(told)
    return start + Markup("".join(drawing) + "</svg>")


@checked
def interval_chart(title: str, rows: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]]) -> Markup:
    """Returns a chart of one metric: mean and interval of every arm, and the values of single seeds behind them.

    Args:
        title: above the chart.
        rows: ``{"arm", "mean", "low", "high"}``, in the order they are drawn.
        points: ``{"arm", "value"}``.

    Example:
        >>> rows = [{"arm": "sam", "mean": 0.9, "low": 0.88, "high": 0.92}]
        >>> points = [{"arm": "sam", "value": value} for value in (0.89, 0.9, 0.91)]
        >>> "accuracy" in interval_chart("accuracy", rows, points)
        True
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


@checked
def curve_chart(
    title: str, values: Sequence[Mapping[str, Any]], arms: Sequence[str], *, page: Sequence[str] | None = None
) -> Markup:
    """Returns a chart of one curve: the mean over seeds of every arm, and the range between seeds as a band.

    Arms beyond the eighth share colours with earlier ones and are dashed or dotted.

    Args:
        title: above the chart.
        values: ``{"arm", "step", "mean", "low", "high"}``.
        arms: in the order of the legend.
        page: all arms of the charts of a page, of which each has one colour throughout; default: ``arms``.

    Example:
        >>> values = [{"arm": "sam", "step": step, "mean": 1 / step, "low": 0.0, "high": 1.0} for step in (1, 2, 3)]
        >>> "training loss" in curve_chart("training loss", values, ["sam"])
        True
    """
    x = {"field": "step", "type": "quantitative", "title": None, "axis": {"tickMinStep": 1}}
    domain = list(dict.fromkeys(arms))
    everyone = list(dict.fromkeys([*(page or ()), *domain]))
    rounds = [everyone.index(arm) for arm in domain]
    colours = {"domain": domain, "range": [PALETTE[i % len(PALETTE)] for i in rounds]}
    colour = {"field": "arm", "type": "nominal", "scale": colours, "title": None}
    y = {"type": "quantitative", "scale": {"zero": False}, "title": None}
    lines: dict[str, Any] = {"x": x, "y": {**y, "field": "mean"}, "color": colour}
    if max(rounds, default=0) >= len(PALETTE):
        dashes = {"domain": domain, "range": [DASHES[i // len(PALETTE) % len(DASHES)] for i in rounds]}
        lines["strokeDash"] = {"field": "arm", "type": "nominal", "scale": dashes, "title": None}
    layers = [
        {
            "mark": {"type": "area", "opacity": 0.15},
            "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour},
        },
        {"mark": {"type": "line", "strokeWidth": 1.8}, "encoding": lines},
    ]
    return chart(
        {"title": title, "width": WIDTH - 50, "height": 190, "data": {"values": list(values)}, "layer": layers}
    )


@checked
def forest(rows: Sequence[Mapping[str, Any]], *, reference: float | None = 0.0, title: str = "") -> Markup:
    """Returns a forest plot as a table: intervals of many rows on one axis, each with its numbers and a word.

    It is HTML, not a drawing: it has the width of the page, and every mark is text as well.

    Args:
        rows: ``{"label", "estimate", "low", "high", "numbers", "word", "style"}``, and ``"group"``, a heading that goes
            before the first row of each run of rows that share it. "style" is a class of the page: "holds",
            "contradicted", "inconclusive" or "quiet". Rows whose estimate is None have no mark.
        reference: the value with a line through all rows; None for no line.
        title: what the axis measures.

    Raises:
        ValueError: a reference that is not finite.

    Example:
        >>> row = {"label": "sam", "estimate": 0.5, "low": 0.2, "high": 0.8, "numbers": "0.5 [0.2, 0.8]"}
        >>> plot = forest([{**row, "word": "helps", "style": "holds"}], title="gain")
        >>> 'aria-label="sam: 0.5 [0.2, 0.8], helps"' in plot
        True
    """
    check_finite(reference=reference)
    ends = [float(row[key]) for row in rows for key in ("estimate", "low", "high") if row.get(key) is not None]
    ticks = nice_ticks(min([*ends, *([] if reference is None else [reference])], default=0.0),
                       max([*ends, *([] if reference is None else [reference])], default=1.0))  # fmt: skip
    span = ticks[-1] - ticks[0]

    def place(value: float) -> float:
        return 100 * (value - ticks[0]) / span

    at = [{"left": place(tick), "text": number(tick)} for tick in ticks]
    drawn = []
    for row in rows:
        low, high = row.get("low"), row.get("high")
        marked = row.get("estimate") is not None
        ranged = marked and low is not None and high is not None
        drawn.append(
            {
                **row,
                "dot": place(row["estimate"]) if marked else None,
                "start": place(low) if ranged else None,  # type: ignore[arg-type]
                "width": place(high) - place(low) if ranged else None,  # type: ignore[arg-type]
            }
        )
    line = None if reference is None else place(reference)
    template = _environment().get_template("forest.html.jinja")
    return Markup(template.render(rows=drawn, ticks=at, reference=line, title=title))


@checked
def nice_ticks(least: float, most: float, most_ticks: int = 6) -> list[float]:
    """Returns round values, evenly spaced, that hold a range between the first and the last of them.

    Example:
        >>> nice_ticks(-0.3, 4.2)
        [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    check_finite(least=least, most=most)
    check_at_least(1, most_ticks=most_ticks)
    if most <= least:
        least, most = least - (abs(least) or 1.0), least + (abs(least) or 1.0)
    span = most - least
    power = 10.0 ** math.floor(math.log10(span / most_ticks))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if span / (size * power) <= most_ticks)
    first, last = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]
