"""What do people read? Pages, charts, tables of the terminal, cards, and the formats of numbers."""

from heldout.report.cards import method_card, system_card
from heldout.report.events import LogEvent, OnEvent, event_log, ignore, telling
from heldout.report.formats import VERDICT_SIGN, VERDICT_STYLE, Scale, cell, duration, number, with_interval
from heldout.report.page import chart, curve_chart, forest, interval_bar, interval_chart, nice_ticks, render
from heldout.report.pictures import data_uri, png
from heldout.report.study import curve_values, load_results, print_results, to_html, to_markdown, write_report
from heldout.report.terminal import claims_text, methods_table, systems_table, terminal

__all__ = [
    "VERDICT_SIGN",
    "VERDICT_STYLE",
    "LogEvent",
    "OnEvent",
    "Scale",
    "cell",
    "chart",
    "claims_text",
    "curve_chart",
    "curve_values",
    "data_uri",
    "duration",
    "event_log",
    "forest",
    "ignore",
    "interval_bar",
    "interval_chart",
    "load_results",
    "method_card",
    "methods_table",
    "nice_ticks",
    "number",
    "png",
    "print_results",
    "render",
    "system_card",
    "systems_table",
    "telling",
    "terminal",
    "to_html",
    "to_markdown",
    "with_interval",
    "write_report",
]
