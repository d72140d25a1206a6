"""How numbers, times, verdicts and Markdown cells are written: the one place that decides it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heldout.errors import check_at_least, check_fields, check_finite, check_nonempty, checked

VERDICT_STYLE = {"holds": "green", "inconclusive": "yellow", "contradicted": "red", "not judged": "dim"}
VERDICT_SIGN = {"holds": "✅", "inconclusive": "➖", "contradicted": "❌"}


NOTHING = 1e-12  # what is smaller is what rounding leaves of a zero
SHARES = ("accuracy", "balanced_accuracy", "token_accuracy")  # metrics that are written in percent


@checked
def number(value: float | None, digits: int = 4, *, signed: bool = False) -> str:
    """Returns a number for people: 4 significant digits, a dash for None, 0 for what rounding leaves of it.

    Args:
        value: the number.
        digits: how many of it are written.
        signed: with a sign, as gains are.

    Example:
        >>> number(0.123456), number(2.78e-17), number(None), number(0.25, signed=True)
        ('0.1235', '0', '–', '+0.25')
    """
    check_at_least(1, digits=digits)
    if value is None:
        return "–"
    if abs(value) < NOTHING:
        return "0"
    return f"{value:{'+' if signed else ''}.{digits}g}"


@dataclass(frozen=True)
class Scale:
    """How the values of one metric are written: shares in percent and points, other metrics as they are.

    Args:
        metric: its name.

    Example:
        >>> Scale("accuracy").score(0.9312), Scale("accuracy").gain(-0.0213), Scale("mse").gain(0.5)
        ('93.1 %', '-2.1', '+0.5')
        >>> Scale("accuracy").with_interval({"gain": 0.02, "low": 0.01, "high": 0.03})
        '+2.0 [+1.0, +3.0]'
    """

    metric: str

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def shares(self) -> bool:
        """Whether values are shares of examples, which are written in percent."""
        return self.metric.replace(" ", "_") in SHARES

    @property
    def unit(self) -> float:
        """What a value is multiplied by before it is written: 100 for shares."""
        return 100.0 if self.shares else 1.0

    @property
    def points(self) -> str:
        """What differences are counted in: "points", or nothing."""
        return "points" if self.shares else ""

    @checked
    def score(self, value: float | None) -> str:
        """Returns a score as text."""
        if value is None or not self.shares:
            return number(value)
        return f"{100 * value:.1f} %"

    @checked
    def gain(self, value: float | None) -> str:
        """Returns a difference of scores as text, with its sign."""
        if value is None or not self.shares:
            return number(value, 3, signed=True)
        return _without_minus_zero(f"{100 * value:+.1f}")

    @checked
    def gains(self, entry: Mapping[str, Any], prefix: str = "") -> tuple[str, str, str]:
        """Returns a gain and the ends of its interval as texts, of ``{"gain", "low", "high"}``, named after a prefix.

        All three have the decimals that tell the interval's width in two digits, five at most (else 3 digits each);
        dashes where there is no interval.
        """
        check_nonempty(entry=entry)
        gain, low, high = (entry[prefix + part] for part in ("gain", "low", "high"))
        width = 0.0 if low is None or high is None or self.shares else high - low
        decimals = max(0, 1 - math.floor(math.log10(width))) if NOTHING < width < math.inf else None
        if decimals is None or decimals > 5:
            return self.gain(gain), self.gain(low), self.gain(high)
        said = [_without_minus_zero(f"{value:+.{decimals}f}") for value in (gain, low, high)]
        return said[0], said[1], said[2]

    @checked
    def with_interval(self, entry: Mapping[str, Any], prefix: str = "") -> str:
        """Returns a gain with its interval, of ``{"gain", "low", "high"}``, each name after the prefix."""
        gain, low, high = self.gains(entry, prefix)
        return gain if entry[prefix + "low"] is None else f"{gain} [{low}, {high}]"


def _without_minus_zero(text: str) -> str:
    return text.lstrip("+-") if float(text) == 0 else text


@checked
def duration(seconds: float) -> str:
    """Returns a time span for people.

    Example:
        >>> duration(3.21), duration(75), duration(7300)
        ('3.2 s', '1 min 15 s', '2 h 1 min')
    """
    check_finite(seconds=seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


@checked
def with_interval(value: float, low: float | None, high: float | None, digits: int = 3) -> str:
    """Returns a number with its interval, where there is one.

    Example:
        >>> with_interval(0.5, 0.25, 0.75), with_interval(0.5, None, None), with_interval(0.0, 1.39e-17, 0.138)
        ('0.5 [0.25, 0.75]', '0.5', '0 [0, 0.138]')
    """
    check_at_least(1, digits=digits)
    if low is None or high is None:
        return number(value, digits)
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


@checked
def cell(text: str) -> str:
    """Returns a text as a cell of a Markdown table.

    Example:
        >>> cell("a|b <c>")
        'a\\\\|b &lt;c>'
    """
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
