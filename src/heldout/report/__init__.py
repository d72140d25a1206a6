"""What do people read? Pages, charts, tables of the terminal, cards, and the formats of numbers."""

from heldout.report.page import chart, curve_chart, duration, interval_bar, interval_chart, number, render
from heldout.report.study import load_results, print_results, to_html, to_markdown, write_report
from heldout.report.terminal import VERDICT_STYLE, claims_text, system_card, systems_table

__all__ = [
    "VERDICT_STYLE",
    "chart",
    "claims_text",
    "curve_chart",
    "duration",
    "interval_bar",
    "interval_chart",
    "load_results",
    "number",
    "print_results",
    "render",
    "system_card",
    "systems_table",
    "to_html",
    "to_markdown",
    "write_report",
]
