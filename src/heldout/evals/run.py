"""``heldout eval``: evaluations of a language model, with the papers' own metrics, intervals and a report.

``EVALS`` names them. Each takes a language model and options, and returns a document: findings with a reading, tables
and charts, all of it JSON. The same evaluations run inside inspect-ai as ``heldout/NAME``.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heldout.data import emphasised_instruction, verbalizer_instruction, verbalizer_sets
from heldout.language_model import LM
from heldout.lm import CachedLM, EndpointError, EndpointLM, TransformersLM
from heldout.measure import (
    Scylla,
    ScyllaReport,
    ScyllaScore,
    VerbalizerManipulation,
    VerbalizerReport,
    VerbalizerScore,
)
from heldout.problem import ProblemError
from heldout.report import chart, number, render
from heldout.study import environment
from heldout.tasks import LIST_LEVELS, OPINION_CLASSES, list_tasks, opinion_words, opinions

Document = dict[str, Any]
Say = Callable[[str], None]
BINARY = (("0", "1"), ("no", "yes"))  # words that agree with two classes whatever they are


@dataclass(frozen=True)
class EvalOptions:
    """What an evaluation may be told.

    Attributes:
        tests: texts or inputs of each task.
        mode: "generate" or "score" of verbalizer; "instruction", "few-shot" or "mixed" of scylla; default the first.
        data: for verbalizer, a JSON-lines file with "text" and "label"; default: built-in sentences.
        tasks: for scylla, names of tasks; default all.
        cot: for verbalizer, reason before the answer.
        emphasis: for verbalizer, say that the words' usual meaning does not matter.
        max_tokens: of an answer.
        seed: of all drawing.
    """

    tests: int = 100
    mode: str = ""
    data: Path | None = None
    tasks: tuple[str, ...] = ()
    cot: bool = False
    emphasis: bool = False
    max_tokens: int | None = None
    seed: int = 0


def evaluate(
    name: str,
    model: str,
    *,
    options: EvalOptions | None = None,
    cache: Path | None = None,
    budget: float | None = None,
    prices: tuple[float, float] = (0.0, 0.0),
    max_concurrency: int = 16,
    out: Path | None = None,
    say: Say = lambda text: None,
) -> Document:
    """Returns the document of an evaluation, and writes it as JSON and as an HTML page.

    Args:
        name: of ``EVALS``.
        model: a transformers folder, or ``http://host/v1#name`` for a model behind an OpenAI-compatible endpoint.
        options: see ``EvalOptions``.
        cache: an SQLite file that keeps the model's answers.
        budget, prices, max_concurrency: of ``EndpointLM``.
        out: folder of the report; default ``heldout-eval/NAME``.
        say: is told what is being done.

    Raises:
        ProblemError: an unknown evaluation or model, or options that do not fit.
    """
    if name not in EVALS:
        raise ProblemError(f"unknown evaluation {name!r}; there are: {', '.join(EVALS)}")
    lm = language_model(model, budget=budget, prices=prices, max_concurrency=max_concurrency)
    asked: LM = CachedLM(lm, cache) if cache else lm
    start = time.perf_counter()
    try:
        found = EVALS[name](asked, options or EvalOptions(), say)
    except (ValueError, EndpointError) as error:
        raise ProblemError(str(error)) from error
    folder = out or Path("heldout-eval") / name
    document = {
        "eval": name,
        "model": model,
        **found,
        "usage": usage_of(lm),
        "seconds": time.perf_counter() - start,
        "environment": environment(),
        "report": str(folder / "report.html"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(document, indent=1), "utf-8")
    (folder / "report.html").write_text(to_html(document), "utf-8")
    return document


def language_model(
    model: str,
    *,
    budget: float | None = None,
    prices: tuple[float, float] = (0.0, 0.0),
    max_concurrency: int = 16,
) -> TransformersLM | EndpointLM:
    """Returns the model of a folder, or of an endpoint that is written ``http://host/v1#name``.

    Raises:
        ProblemError: neither of them.
    """
    if model.startswith(("http://", "https://")):
        address, _, name = model.partition("#")
        if not name:
            raise ProblemError(f"write the model's name after the address: {model}#NAME")
        return EndpointLM(name, address, budget=budget, prices=prices, max_concurrency=max_concurrency)
    if not (Path(model) / "config.json").is_file():
        raise ProblemError(f"{model} is no folder with a transformers model (config.json), and no http address")
    return TransformersLM.from_pretrained(model)


def usage_of(lm: LM) -> dict[str, float]:
    """Returns what was asked of an endpoint; empty for a local model."""
    if not isinstance(lm, EndpointLM):
        return {}
    return {
        "requests": lm.requests,
        "prompt_tokens": lm.prompt_tokens,
        "completion_tokens": lm.completion_tokens,
        "cost": lm.spent,
    }


def scylla(lm: LM, options: EvalOptions, say: Say) -> Document:
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


def scylla_task(lm: LM, task: Any, options: EvalOptions) -> ScyllaScore:
    """Returns the score of one task."""
    mode: Any = options.mode or "instruction"
    tokens = options.max_tokens or 2048
    return Scylla([task], tests=options.tests, mode=mode, max_tokens=tokens, seed=options.seed).run(lm).rows[0]


def scylla_document(report: ScyllaReport, skipped: Sequence[Mapping[str, str]] = ()) -> Document:
    """Returns findings, table and charts of a report."""
    curve = report.gap_curve()
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
    }


def verbalizer(lm: LM, options: EvalOptions, say: Say) -> Document:
    """Returns accuracy with natural, neutral and unnatural output words."""
    task = verbalizer_task(options)
    rows: list[VerbalizerScore] = []
    for one in task.verbalizers:
        say(one.name)
        rows.append(task.run_one(lm, one))
    return verbalizer_document(VerbalizerReport(tuple(rows), len(task.descriptions), tuple(task.labels)))


def verbalizer_task(options: EvalOptions) -> VerbalizerManipulation:
    """Returns the task: the user's texts, or sentences with a sentiment.

    Raises:
        ProblemError: a file that cannot be read, or a row without text or label.
    """
    if options.data is None:
        texts, labels = opinions(options.tests, held_out=True, seed=options.seed)
        names = list(OPINION_CLASSES["sentiment"])
        words = opinion_words()
    else:
        texts, given = _texts_of(options.data, options.tests)
        names = sorted(set(given))
        labels = [names.index(label) for label in given]
        words = sorted({word.lower() for text in texts for word in re.findall(r"\w+", text)})
    natural = [tuple(names)]
    natural += BINARY if len(names) == 2 else [tuple(map(str, range(1, len(names) + 1)))]
    return VerbalizerManipulation(
        texts,
        labels,
        names,
        verbalizer_sets(natural, n_neutral=4, vocabulary=words, seed=options.seed),
        template=emphasised_instruction if options.emphasis else verbalizer_instruction,
        mode=options.mode or "generate",  # type: ignore[arg-type]
        cot=options.cot,
        max_tokens=options.max_tokens or 16,
        seed=options.seed,
    )


def verbalizer_document(report: VerbalizerReport) -> Document:
    """Returns findings, table and chart of a report."""
    means = {kind: report.accuracy(kind) for kind in ("natural", "neutral", "unnatural")}  # type: ignore[arg-type]
    readings = {
        "natural": "share of right answers with words that agree with the classes",
        "neutral": "with words that mean nothing: what the instruction alone is worth",
        "unnatural": f"with words that mean another class; chance is {1 / report.classes:.2f}, below it the prior wins",
    }
    findings = [finding(kind, m.estimate, m.low, m.high, readings[kind]) for kind, m in means.items()]
    gap = report.gap
    findings.append(
        finding("instruction gap", gap.estimate, gap.low, gap.high, "natural less unnatural; 0 if words do not matter")
    )
    if report.prior_following is not None:
        findings.append(
            finding(
                "prior following", report.prior_following, None, None,
                "share of the wrong answers with unnatural words that say the word that is usual for the class",
            )
        )  # fmt: skip
    rows = report.table()
    order = [row["verbalizer"] for row in rows]
    shared = {
        "y": {"field": "verbalizer", "type": "nominal", "sort": order, "title": None},
        "color": {"field": "kind", "type": "nominal", "title": None},
    }
    x = {"type": "quantitative", "scale": {"domain": [0, 1]}, "title": "accuracy"}
    picture = {
        "title": "accuracy by output words",
        "height": {"step": 22},
        "data": {"values": rows},
        "layer": [
            {"mark": "rule", "encoding": {**shared, "x": {**x, "field": "low"}, "x2": {"field": "high"}}},
            {
                "mark": {"type": "point", "filled": True, "size": 60},
                "encoding": {**shared, "x": {**x, "field": "accuracy"}},
            },
        ],
    }
    return {
        "title": "Verbalizer manipulation: instructions against priors",
        "findings": findings,
        "tables": [{"title": "Verbalizers", "rows": rows}],
        "charts": [picture],
        "skipped": [],
    }


def finding(name: str, value: float, low: float | None, high: float | None, reading: str) -> dict[str, Any]:
    """Returns a number with its interval and one sentence on how to read it."""
    return {"name": name, "value": value, "low": low, "high": high, "reading": reading}


def value_of(entry: Mapping[str, Any]) -> str:
    """Returns a finding's number as text, with its interval where there is one."""
    if entry["low"] is None or entry["high"] is None:
        return number(entry["value"], 3)
    return f"{number(entry['value'], 3)} [{number(entry['low'], 3)}, {number(entry['high'], 3)}]"


def to_html(document: Document) -> str:
    """Returns the page: findings, charts, tables."""
    return render(
        "eval.html.jinja",
        heading=document["title"],
        document=document,
        environment=document["environment"],
        charts=[chart({"width": 300, "height": 220, **picture}) for picture in document["charts"]],
        value=value_of,
    )


def print_eval(document: Document, console: Any) -> None:
    """Prints findings, the table, and where the page lies."""
    from rich.markup import escape
    from rich.table import Table

    for entry in document["findings"]:
        console.print(f"[bold]{escape(entry['name'])}[/]  {escape(value_of(entry))}", highlight=False)
        console.print(f"  [dim]{escape(entry['reading'])}[/]", highlight=False)
    for listed in document["tables"]:
        table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
        for column in listed["rows"][0]:
            table.add_column(column.replace("_", " "))
        for row in listed["rows"]:
            table.add_row(*(escape(number(v, 3) if isinstance(v, float) else str(v or "")) for v in row.values()))
        console.print()
        console.print(table)
    for entry in document["skipped"]:
        console.print(f"[dim]not tested: {escape(entry['part'])}: {escape(entry['reason'])}[/]", highlight=False)
    console.print(f"Report: {escape(document['report'])}", highlight=False, soft_wrap=True)


def _texts_of(path: Path, limit: int) -> tuple[list[str], list[str]]:
    """The first texts of each label in a JSON-lines file, as many of each."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ProblemError(f"cannot read {path}: {error}") from error
    by_label: dict[str, list[str]] = {}
    for place, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            by_label.setdefault(str(row["label"]), []).append(str(row["text"]))
        except (ValueError, LookupError, TypeError):
            raise ProblemError(f"line {place} of {path} needs the fields 'text' and 'label'") from None
    if len(by_label) < 2:
        raise ProblemError(f"{path} needs texts of at least two labels, got {len(by_label)}")
    each = min(limit // len(by_label), *map(len, by_label.values()))
    if not each:
        raise ProblemError(f"{limit} tests are fewer than one for each of {len(by_label)} labels")
    pairs = [(text, label) for label, texts in by_label.items() for text in texts[:each]]
    return [text for text, _ in pairs], [label for _, label in pairs]


EVALS: dict[str, Callable[[LM, EvalOptions, Say], Document]] = {"scylla": scylla, "verbalizer": verbalizer}
