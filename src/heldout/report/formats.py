"""How numbers, times, verdicts and Markdown cells are written: the one place that decides it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

VERDICT_STYLE = {"holds": "green", "inconclusive": "yellow", "contradicted": "red", "not judged": "dim"}
VERDICT_SIGN = {"holds": "✅", "inconclusive": "➖", "contradicted": "❌"}


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


def with_interval(value: float, low: float | None, high: float | None, digits: int = 3) -> str:
    """Returns a number with its interval, where there is one.

    Example:
        >>> with_interval(0.5, 0.25, 0.75), with_interval(0.5, None, None)
        ('0.5 [0.25, 0.75]', '0.5')
    """
    if low is None or high is None:
        return number(value, digits)
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def cell(text: str) -> str:
    """Returns a text as a cell of a Markdown table.

    Example:
        >>> cell("a|b <c>")
        'a\\\\|b &lt;c>'
    """
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
