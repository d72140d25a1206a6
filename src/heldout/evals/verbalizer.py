"""Verbalizer manipulation as ``heldout eval verbalizer``: instructions against priors. Source: arXiv:2307.10558."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from heldout.data import emphasised_instruction, verbalizer_instruction, verbalizer_sets
from heldout.errors import ProblemError, check_fields
from heldout.evals.protocol import Document, Protocol, Say, check_minima, finding, format_warnings, option
from heldout.language_model import LM
from heldout.measure import VerbalizerManipulation, VerbalizerReport, VerbalizerScore
from heldout.statistics import Interval, newcombe, wilson
from heldout.tasks import OPINION_CLASSES, opinion_words, opinions

BINARY = (("0", "1"), ("no", "yes"))  # words that agree with two classes whatever they are


@dataclass(frozen=True)
class VerbalizerOptions:
    """What verbalizer manipulation may be told.

    Example:
        >>> VerbalizerOptions(tests=40, cot=True).mode
        'generate'
    """

    tests: int = option(100, "Texts.", minimum=2)
    mode: str = option("generate", "generate or score.")
    data: Path | None = option(None, "JSON lines with text and label; default: built-in sentences.")
    cot: bool = option(False, "Reason before the answer.")
    emphasis: bool = option(False, "Say that the words' usual meaning does not matter.")
    max_tokens: int = option(16, "Of an answer.", minimum=1)
    seed: int = option(0, "Of all drawing.", minimum=0)

    def __post_init__(self) -> None:
        check_fields(self)
        check_minima(self)


def run_verbalizer(lm: LM, options: VerbalizerOptions, say: Say) -> Document:
    """Returns accuracy with natural, neutral and unnatural output words."""
    task = verbalizer_task(options)
    rows: list[VerbalizerScore] = []
    for one in task.verbalizers:
        say(one.name)
        rows.append(task.run_one(lm, one))
    return verbalizer_document(VerbalizerReport(tuple(rows), len(task.descriptions), tuple(task.labels)))


def verbalizer_task(options: VerbalizerOptions) -> VerbalizerManipulation:
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
        mode=options.mode,  # type: ignore[arg-type]
        cot=options.cot,
        max_tokens=options.max_tokens,
        seed=options.seed,
    )


def verbalizer_document(report: VerbalizerReport) -> Document:
    """Returns findings, table and chart of a report."""
    texts = len(report.labels)
    means = {kind: _with_width(report.accuracy(kind), texts) for kind in ("natural", "neutral", "unnatural")}  # type: ignore[arg-type]
    readings = {
        "natural": "share of right answers with words that agree with the classes",
        "neutral": "with words that mean nothing: what the instruction alone is worth",
        "unnatural": f"with words that mean another class; chance is {1 / report.classes:.2f}, below it the prior wins",
    }
    findings = [finding(kind, m.estimate, m.low, m.high, readings[kind]) for kind, m in means.items()]
    gap = report.gap
    if gap.low == gap.high:  # no text differs from another: the bootstrap has no width
        gap = newcombe(*(wilson(means[kind].estimate * texts, texts) for kind in ("natural", "unnatural")))
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
        "warnings": format_warnings(
            {f"{row.verbalizer.name} words": row.off_format for row in report.rows},
            "raise --max-tokens, or use --mode score",
        ),
    }


def _with_width(found: Interval, texts: int) -> Interval:
    """A mean accuracy whose bootstrap interval has no width gets Wilson's, for the number of texts."""
    return wilson(found.estimate * texts, texts) if found.low == found.high else found


def _texts_of(path: Path, limit: int) -> tuple[list[str], list[str]]:
    """The first texts of each label in a JSON-lines file, as many of each."""
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ProblemError(f"cannot read {path}: {error}") from error
    by_label: dict[str, list[str]] = {}
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row["label"], str | int) or not isinstance(row["text"], str):
                raise TypeError
            by_label.setdefault(str(row["label"]), []).append(row["text"])
        except (ValueError, LookupError, TypeError):
            raise ProblemError(
                f"line {place} of {path} needs the fields 'text', a string, and 'label', a word or an integer"
            ) from None
    if len(by_label) < 2:
        raise ProblemError(f"{path} needs texts of at least two labels, got {len(by_label)}")
    each = min(limit // len(by_label), *map(len, by_label.values()))
    if not each:
        raise ProblemError(f"{limit} tests are fewer than one for each of {len(by_label)} labels")
    pairs = [(text, label) for label, texts in by_label.items() for text in texts[:each]]
    return [text for text, _ in pairs], [label for _, label in pairs]


VERBALIZER = Protocol(
    "verbalizer",
    "Does a model follow instructions that contradict what the words usually mean?",
    VerbalizerOptions,
    run_verbalizer,
)
