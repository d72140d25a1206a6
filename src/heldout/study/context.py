"""What a run may record beside its metrics: curves and figures.

A curve keeps every point up to 2,000. After that every second one is dropped and only every second further point is
recorded, again and again, so that a curve of any length keeps between 1,000 and 2,000 evenly spaced points and its
last one. The choice depends on nothing but the number of points.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from heldout.errors import checked
from heldout.study.text import plain_name

MAX_POINTS = 2000

Point = list[float | None]  # [step, value]; the value is None where it was not finite


class Curve:
    """Points of one curve, thinned to at most ``MAX_POINTS``."""

    def __init__(self) -> None:
        self.kept: list[Point] = []
        self.stride = 1
        self.count = 0
        self.last: Point = []

    def add(self, step: float, value: float | None) -> None:
        self.last = [step, value]
        if self.count % self.stride == 0:
            self.kept.append(self.last)
            if len(self.kept) > MAX_POINTS:
                self.kept = self.kept[::2]
                self.stride *= 2
        self.count += 1

    def points(self) -> list[Point]:
        return self.kept if self.kept[-1] is self.last else [*self.kept[: MAX_POINTS - 1], self.last]


class Record:
    """Curves and figures of one run."""

    def __init__(self) -> None:
        self.curves: dict[str, Curve] = {}
        self.figures: dict[str, dict[str, Any]] = {}

    def points(self) -> dict[str, list[Point]]:
        return {name: curve.points() for name, curve in self.curves.items()}


_current: ContextVar[Record | None] = ContextVar("heldout_study_record", default=None)


@contextmanager
def recording() -> Iterator[Record]:
    """Collects what is logged inside the block."""
    record = Record()
    token = _current.set(record)
    try:
        yield record
    finally:
        _current.reset(token)


@checked
def log_curve(name: str, step: float, value: Any) -> None:
    """Adds the point (step, value) to a curve of this run; does nothing outside of a run.

    ``value`` may be anything that ``float`` takes; a value that is not finite is kept as a gap. A step must be finite.

    Example:
        >>> log_curve("train_loss", 1, 0.25)
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"value of curve {name!r} must be a number, got {value!r}") from None
    record = _current.get()
    if record is None:
        return
    curve = record.curves.setdefault(plain_name(str(name)), Curve())
    curve.add(step if isinstance(step, int) else float(step), number if math.isfinite(number) else None)


@checked
def log_figure(name: str, figure: Any) -> None:
    """Keeps a figure with this run: an altair chart or a Vega-Lite dictionary; does nothing outside of a run.

    Raises:
        TypeError: when the figure is neither.

    Example:
        >>> log_figure("histogram", {"mark": "bar", "data": {"values": []}, "encoding": {}})
    """
    record = _current.get()
    if record is None:
        return
    specification = figure.to_dict() if hasattr(figure, "to_dict") else figure
    if not isinstance(specification, Mapping):
        raise TypeError(f"the figure {name!r} must be an altair chart or a Vega-Lite dict, got {type(figure).__name__}")
    record.figures[plain_name(str(name))] = json.loads(
        json.dumps(specification, default=_plain), parse_constant=lambda text: None
    )


def _plain(value: Any) -> Any:
    """Arrays and their numbers as Python's, for JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a figure must be JSON-serialisable, got {type(value).__name__} in it")
