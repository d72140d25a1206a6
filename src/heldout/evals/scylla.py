"""Scylla as ``heldout eval scylla``: generalization by complexity. Source: arXiv:2410.01769."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heldout.errors import ProblemError, check_fields
from heldout.evals.protocol import Document, Protocol, Say, check_minima, finding, format_warnings, option
from heldout.language_model import LM
from heldout.measure import Scylla, ScyllaReport, ScyllaScore
from heldout.statistics import Interval, newcombe, wilson
from heldout.tasks import LIST_LEVELS, list_tasks


@dataclass(frozen=True)
class ScyllaOptions:
    """What Scylla may be told.

    Example:
        >>> ScyllaOptions(tests=10, tasks=("maximum",)).mode
        'instruction'
    """

    tests: int = option(100, "Inputs of each task.", minimum=2)
    mode: str = option("instruction", "instruction, few-shot or mixed.")
    tasks: tuple[str, ...] = option((), "Comma-separated tasks; default: all twenty.")
    max_tokens: int = option(2048, "Of an answer.", minimum=1)
    seed: int = option(0, "Of all drawing.", minimum=0)

    def __post_init__(self) -> None:
        check_fields(self)
        check_minima(self)


def run_scylla(lm: LM, options: ScyllaOptions, say: Say) -> Document:
    """Returns the generalization gap by level of complexity: familiar inputs against matched unfamiliar ones."""
    rows, skipped = [], []
    for task in scylla_tasks(options.tasks):
        say(task.name)
        try:
            rows.append(scylla_task(lm, task, options))
        except ValueError as error:  # too few inputs that the model proposes are of use
            skipped.append({"part": task.name, "reason": str(error)})
    if not rows:
        raise ProblemError(f"no task could be tested: {skipped[0]['reason']}")
    return scylla_document(ScyllaReport(tuple(rows)), skipped)


def scylla_tasks(names: Sequence[str] = ()) -> list[Any]:
    """Returns the named list tasks, or all twenty.

    Raises:
        ProblemError: an unknown name.
    """
    known = list_tasks()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ProblemError(f"unknown task {unknown[0]!r}; there are: {', '.join(known)}")
    return [known[name] for name in names or known]


def scylla_task(lm: LM, task: Any, options: ScyllaOptions) -> ScyllaScore:
    """Returns the score of one task."""
    mode: Any = options.mode
    asked = Scylla([task], tests=options.tests, mode=mode, max_tokens=options.max_tokens, seed=options.seed)
    return asked.run(lm).rows[0]


def scylla_document(report: ScyllaReport, skipped: Sequence[Mapping[str, str]] = ()) -> Document:
    """Returns findings, table and charts of a report."""
    curve = {level: _with_width(gap, report.levels()[level]) for level, gap in report.gap_curve().items()}
    critical = report.critical_complexity()
    share = report.bootstrap()[critical]
    findings = [
        finding(
            "critical complexity", critical, None, None,
            f"the level with the largest gap, {LIST_LEVELS[critical - 1]}; it is so in {share:.0%} of resamples",
        ),
        *(
            finding(
                f"gap at level {level}", gap.estimate, gap.low, gap.high,
                f"accuracy that tasks of {LIST_LEVELS[level - 1]} lose on numbers that the model did not propose",
            )
            for level, gap in curve.items()
        ),
        finding(
            "generalization score", report.score(), None, None,
            "accuracy on unfamiliar inputs less the gap, later levels weighing more; heldout's own definition",
        ),
    ]  # fmt: skip
    values = [
        {"level": f"{level}: {LIST_LEVELS[level - 1]}", "accuracy": getattr(row, f"accuracy_{side}"), "inputs": said}
        for level, rows in report.levels().items()
        for row in rows
        for side, said in (("id", "familiar"), ("ood", "unfamiliar"))
    ]
    accuracy = {
        "title": "accuracy by level",
        "data": {"values": values},
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": {"field": "level", "type": "ordinal", "title": None},
            "y": {"field": "accuracy", "aggregate": "mean", "type": "quantitative", "scale": {"domain": [0, 1]}},
            "color": {"field": "inputs", "type": "nominal", "title": None},
        },
    }
    gaps = [{"level": f"{level}", "gap": g.estimate, "low": g.low, "high": g.high} for level, g in curve.items()]
    x = {"field": "level", "type": "ordinal"}
    gap_chart = {
        "title": "gap by level",
        "data": {"values": gaps},
        "layer": [
            {
                "mark": "rule",
                "encoding": {"x": x, "y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "line", "point": True},
                "encoding": {"x": x, "y": {"field": "gap", "type": "quantitative", "title": "gap"}},
            },
        ],
    }
    return {
        "title": "Scylla: generalization by complexity",
        "findings": findings,
        "tables": [{"title": "Tasks", "rows": report.table()}],
        "charts": [accuracy, gap_chart],
        "skipped": list(skipped),
        "warnings": format_warnings(
            {row.task: 1 - (row.parsed_id + row.parsed_ood) / 2 for row in report.rows},
            "raise --max-tokens, or use --mode few-shot",
        ),
    }


def _with_width(gap: Interval, rows: Sequence[ScyllaScore]) -> Interval:
    """A gap whose bootstrap interval has no width gets that of two proportions, not below 0 as the gap itself."""
    if gap.low != gap.high:
        return gap
    tests = sum(len(row.right_id) for row in rows)
    sides = [sum(getattr(row, f"accuracy_{side}") * len(row.right_id) for row in rows) for side in ("id", "ood")]
    found = newcombe(*(wilson(right, tests) for right in sides))
    return Interval(gap.estimate, max(0.0, min(found.low or 0.0, gap.estimate)), max(found.high or 0.0, gap.estimate))


SCYLLA = Protocol(
    "scylla",
    "How much does a model lose on inputs that it does not find typical, by the complexity of the task?",
    ScyllaOptions,
    run_scylla,
)
