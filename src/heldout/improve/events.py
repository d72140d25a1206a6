"""What ``improve`` tells while it works: runs as they end, gains and the verdict, as events for any log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heldout.report import LogEvent, OnEvent
from heldout.study import Results


def tell_runs(results: Results, on_event: OnEvent) -> None:
    """Tells every finished run: its curves by step, and its metrics."""
    for run in results.runs:
        name = f"{results.profile}/{run['arm']}/seed {run['seed']}"
        for curve, points in run["curves"].items():
            for step, value in points:
                if value is not None:
                    on_event(LogEvent("curve", name, step=int(step), values={curve: value}))
        on_event(LogEvent("run", name, values=run["metrics"]))


def tell_verdict(document: Mapping[str, Any], on_event: OnEvent) -> None:
    """Tells the gain of every finalist on every test set, and the verdict."""
    for row in document["finalists"]:
        for test, entry in row["tests"].items():
            values = {key: entry[key] for key in ("score", "baseline", "gain", "low", "high") if entry[key] is not None}
            on_event(LogEvent("gain", f"{row['method']}/{test}", values=values, text=entry["verdict"]))
    on_event(LogEvent("verdict", document["title"], text=document["verdict"]))
