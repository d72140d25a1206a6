"""What do people read? Pages, charts, tables of the terminal, cards, and the formats of numbers."""

from heldout.report.cards import method_card, system_card
from heldout.report.formats import VERDICT_SIGN, VERDICT_STYLE, cell, duration, number, with_interval
from heldout.report.page import chart, curve_chart, interval_bar, interval_chart, render
from heldout.report.study import load_results, print_results, to_html, to_markdown, write_report
from heldout.report.terminal import claims_text, systems_table, terminal

__all__ = [
    "VERDICT_SIGN",
    "VERDICT_STYLE",
    "cell",
    "chart",
    "claims_text",
    "curve_chart",
    "duration",
    "interval_bar",
    "interval_chart",
    "load_results",
    "method_card",
    "number",
    "print_results",
    "render",
    "system_card",
    "systems_table",
    "terminal",
    "to_html",
    "to_markdown",
    "with_interval",
    "write_report",
]
