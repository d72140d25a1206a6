"""Generalization by task complexity: accuracy on inputs that a model finds typical, and on matched unfamiliar ones.

For each problem the model is asked for inputs; the numbers in them are what it is familiar with. Every such input gets
a partner of the same length and structure from numbers that never occurred. The difference in accuracy is the gap, and
the level of complexity with the largest mean gap the critical complexity.

Source: Qi et al., "Quantifying generalization complexity for large language models" (arXiv:2410.01769).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from heldout.errors import (
    check_at_least,
    check_fields,
    check_fraction,
    check_nonempty,
    check_nonnegative,
    checked,
)
from heldout.language_model import LM, Completion, taken_options
from heldout.study import Interval

Numbers = tuple[int, ...]
_LIST = re.compile(r"\[([^\[\]]*)\]")
_LEAST_PARSED = {False: 0.1, True: 0.5}  # of the outputs, without and with a second call: else accuracy counts as 0
_RESAMPLES = 1000  # of the intervals of gap_curve
THINK = "Let's think step by step."
THEREFORE = "Therefore, the answer is"


def probe_prompt(task: Any) -> str:
    """Returns the default request for typical inputs of a task.

    Args:
        task: with a ``statement``, such as those of ``heldout.tasks.list_tasks``.

    Example:
        >>> from heldout.tasks import list_tasks
        >>> probe_prompt(list_tasks()["minimum"]).splitlines()[0]
        'Here is a problem: Find the smallest number of the list.'
    """
    return (
        f"Here is a problem: {task.statement}\nWrite random test inputs for a program that solves it, each a list of "
        "numbers in square brackets, on a line of its own."
    )


@checked
def probe_inputs(
    lm: LM,
    task: Any,
    n: int = 256,
    *,
    prompt: str | None = None,
    requests: int = 256,
    temperature: float = 0.9,
    top_p: float = 0.95,
    top_k: int = 60,
    repetition_penalty: float = 1.2,
    max_tokens: int = 1024,
    seed: int = 0,
) -> tuple[list[Numbers], set[int]]:
    """Returns inputs that a model proposes for a task, without repetition, and all numbers that it named.

    Numbers also count where the list is of no use for the task: the model knows them all the same.

    Args:
        lm: the language model.
        task: with ``statement`` and ``admits``, such as those of ``heldout.tasks.list_tasks``.
        n: inputs at most.
        prompt: default: ``probe_prompt(task)``.
        requests: samples that are drawn; the paper draws 50 x 128.
        temperature, top_p, top_k, repetition_penalty, max_tokens, seed: of sampling. Models whose ``generate`` does not
            take top_k or repetition_penalty, such as endpoints, sample without them.

    Source: the paper's release, step 0; the sampling options are its own.
    deviation: 256 samples, as the default.

    Example:
        >>> from heldout.lm import ScriptedLM
        >>> from heldout.tasks import list_tasks
        >>> probe_inputs(ScriptedLM(lambda prompt, k: "[3, 5] or [4, -1]"), list_tasks()["sort"], requests=2)
        ([(3, 5)], {3, 4, 5})
    """
    check_at_least(1, n=n, requests=requests, max_tokens=max_tokens)
    check_nonnegative(temperature=temperature, top_k=top_k)
    check_fraction(top_p=top_p)
    asked = probe_prompt(task) if prompt is None else prompt
    options: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
    options |= taken_options(lm, top_k=top_k, repetition_penalty=repetition_penalty)
    found: dict[Numbers, None] = {}
    elements: set[int] = set()
    for completion in lm.generate([asked], requests, **options)[0]:
        for written in _LIST.findall(completion.text):
            parts = [part.strip() for part in written.split(",")]
            numbers = tuple(int(part) for part in parts if re.fullmatch(r"\d{1,9}", part))
            elements.update(numbers)
            if len(numbers) == len(parts) and task.admits(numbers):
                found[numbers] = None
    return list(found)[:n], elements


@checked
def matched_ood(
    examples: Sequence[Sequence[int]],
    elements: Iterable[int],
    pool: Iterable[int],
    *,
    keep: Literal["length", "multiplicity"] = "length",
    check: Callable[[Numbers], bool] = lambda numbers: True,
    retries: int = 50,
    seed: int = 0,
    name: str = "the task",
) -> list[Numbers]:
    """Returns a partner for each example: of the same length, from numbers of the pool that the model never named.

    Args:
        examples: lists of numbers.
        elements: numbers that count as familiar.
        pool: numbers to draw from; familiar ones are left out.
        keep: "length": all numbers are drawn; "multiplicity": each different number of the example becomes another one,
            so that equal ones stay equal.
        check: whether a partner is of use; it is drawn again until it is.
        retries: draws for each example.
        seed: of the drawing.
        name: of the task, for the error.

    Raises:
        ValueError: too few unfamiliar numbers, or no partner within the retries.

    Example:
        >>> matched_ood([(1, 2, 1)], {1, 2}, range(4), keep="multiplicity", seed=1)
        [(0, 3, 0)]
    """
    check_at_least(1, retries=retries)
    free = sorted(set(pool) - set(elements))
    rng = random.Random(seed)
    found = []
    for number, example in enumerate(examples):
        different = list(dict.fromkeys(example))
        if len(free) < (len(different) if keep == "multiplicity" else 1):
            raise ValueError(f"{name}: the pool has {len(free)} unfamiliar numbers, too few for example {number}")
        for _ in range(retries):
            if keep == "multiplicity":
                partner = dict(zip(different, rng.sample(free, len(different)), strict=True))
                drawn = tuple(partner[element] for element in example)
            else:
                drawn = tuple(rng.choice(free) for _ in example)
            if check(drawn):
                found.append(drawn)
                break
        else:
            raise ValueError(f"{name}: no partner for example {number} was of use in {retries} draws")
    return found


@dataclass(frozen=True)
class ScyllaScore:
    """The answers to one task.

    Accuracy is that of the outputs that have an answer, and 0 where too few have one: a model that seldom answers can
    look good, so read ``parsed_id`` and ``parsed_ood`` beside it.

    Attributes:
        task, level: which.
        right_id, right_ood: whether each answer was right, on familiar inputs and on their partners; None where an
            output had no answer.
        least_parsed: below this share of outputs with an answer accuracy counts as 0; the paper's 0.1, or 0.5 for a
            second call.

    Source: arXiv:2410.01769, steps 5 and 6 of its release.

    Example:
        >>> score = ScyllaScore("sort", 2, (True, False, None, True), (False, None, True, False))
        >>> round(score.accuracy_id, 2), round(score.accuracy_ood, 2), score.parsed_id
        (0.67, 0.33, 0.75)
    """

    task: str
    level: int
    right_id: tuple[bool | None, ...]
    right_ood: tuple[bool | None, ...]
    least_parsed: float = 0.1

    def __post_init__(self) -> None:
        check_nonempty(right_id=self.right_id, right_ood=self.right_ood)
        check_fields(self)
        check_at_least(0, level=self.level)

    @property
    def parsed_id(self) -> float:
        """Share of the outputs on familiar inputs that had an answer."""
        return float(np.mean([right is not None for right in self.right_id]))

    @property
    def parsed_ood(self) -> float:
        """Share of the outputs on their partners that had an answer."""
        return float(np.mean([right is not None for right in self.right_ood]))

    @property
    def accuracy_id(self) -> float:
        """Share of right answers on familiar inputs, among the outputs with an answer."""
        return float(_accuracy(_codes(self.right_id), self.least_parsed))

    @property
    def accuracy_ood(self) -> float:
        """Share of right answers on their partners, among the outputs with an answer."""
        return float(_accuracy(_codes(self.right_ood), self.least_parsed))

    @property
    def signed_gap(self) -> float:
        """Accuracy on familiar inputs less that on their partners."""
        return self.accuracy_id - self.accuracy_ood

    @property
    def gap(self) -> float:
        """The gap as the paper has it, not below 0; noise alone makes its mean positive."""
        return max(self.signed_gap, 0.0)

    @property
    def ratio(self) -> float:
        """Accuracy on the partners over that on familiar inputs; 1 where both are 0."""
        return self.accuracy_ood / self.accuracy_id if self.accuracy_id else 1.0


@dataclass(frozen=True)
class ScyllaReport:
    """Accuracy and gap by task and by level.

    Attributes:
        rows: one for each task.

    Example:
        >>> easy = ScyllaScore("maximum", 1, (True, True), (True, True))
        >>> hard = ScyllaScore("sort", 2, (True, True), (False, True))
        >>> report = ScyllaReport((easy, hard))
        >>> report.gap_curve()[2].estimate, report.critical_complexity(), round(report.score(), 3)
        (0.5, 2, 0.333)
    """

    rows: tuple[ScyllaScore, ...]

    def levels(self) -> dict[int, list[ScyllaScore]]:
        """Returns the rows by level, in order."""
        found: dict[int, list[ScyllaScore]] = {}
        for row in sorted(self.rows, key=lambda row: row.level):
            found.setdefault(row.level, []).append(row)
        return found

    @checked
    def gap_curve(self, *, signed: bool = False) -> dict[int, Interval]:
        """Returns the mean gap of each level, with its 95 % bootstrap interval over inputs.

        Args:
            signed: leave gaps below 0 as they are.
        """
        found = {}
        for level, rows in self.levels().items():
            estimate = float(np.mean([row.signed_gap if signed else row.gap for row in rows]))
            rng = np.random.default_rng(0)
            gaps = np.mean([self._resampled(row, _RESAMPLES, rng, signed=signed) for row in rows], axis=0)
            low, high = (float(end) for end in np.percentile(gaps, (2.5, 97.5)))
            found[level] = Interval(estimate, min(low, estimate), max(high, estimate))
        return found

    def critical_complexity(self) -> int:
        """Returns the level with the largest mean gap; of equal ones the lowest."""
        return _largest({level: [row.gap for row in rows] for level, rows in self.levels().items()})

    @checked
    def bootstrap(self, resamples: int = 1000, *, seed: int = 0) -> dict[int, float]:
        """Returns how often each level is the critical one when the inputs of each task are drawn anew."""
        rng = np.random.default_rng(seed)
        counts = dict.fromkeys(self.levels(), 0)
        drawn = {level: [self._resampled(row, resamples, rng) for row in rows] for level, rows in self.levels().items()}
        for k in range(resamples):
            counts[_largest({level: [gaps[k] for gaps in tasks] for level, tasks in drawn.items()})] += 1
        return {level: count / resamples for level, count in counts.items()}

    def score(self) -> float:
        """Returns one number for ranking models, a definition of this library.

        It is ``sum_c c (accuracy_ood(c) - gap(c)) / sum_c c`` over levels c, so that difficult levels weigh more. The
        paper ranks by another formula, which is not public.
        """
        levels = self.levels()
        total = sum(level * np.mean([row.accuracy_ood - row.gap for row in rows]) for level, rows in levels.items())
        return float(total / sum(levels))

    def table(self) -> list[dict[str, Any]]:
        """Returns one row for each task."""
        return [
            {
                "task": row.task,
                "level": row.level,
                "accuracy_id": row.accuracy_id,
                "accuracy_ood": row.accuracy_ood,
                "gap": row.gap,
                "signed_gap": row.signed_gap,
                "parsed_id": row.parsed_id,
                "parsed_ood": row.parsed_ood,
                "tests": len(row.right_id),
            }
            for row in self.rows
        ]

    def _resampled(
        self, row: ScyllaScore, resamples: int, rng: np.random.Generator, *, signed: bool = False
    ) -> np.ndarray:
        picked = rng.integers(len(row.right_id), size=(resamples, len(row.right_id)))  # an input and its partner
        first, second = (_accuracy(_codes(side)[picked], row.least_parsed) for side in (row.right_id, row.right_ood))
        return first - second if signed else np.maximum(first - second, 0.0)


class Scylla:
    """The comparison of familiar and matched unfamiliar inputs over tasks of growing complexity.

    Args:
        tasks: see ``heldout.tasks.list_tasks``.
        shots: examples with answers before each question in "few-shot" and "mixed".
        tests: inputs of each task.
        mode: "instruction" (reason step by step), "few-shot" (examples, and the answer at once) or "mixed" (both).
        pool: numbers from which unfamiliar ones are drawn; default 1000 to 9999, and 100 to 999 where "distances" are
            asked about.
        ask: ``(task, numbers, parameters) -> question``; default ``task.ask``.
        write: ``(task, answer) -> text`` of examples; default ``task.write``.
        parse: ``(task, output) -> answer or None``; default ``task.parse``.
        follow_up: ask a second time, with "Therefore, the answer is" after the output, and score that answer.
        max_tokens: of an output.
        seed: of all drawing.

    Raises:
        ValueError: no tasks, or fewer than one test.

    Example:
        >>> from heldout.lm import ScriptedLM
        >>> from heldout.tasks import list_tasks
        >>> familiar = {"maximum": [(1, 2), (7, 3), (4, 5)]}
        >>> scylla = Scylla([list_tasks()["maximum"]], shots=0, tests=3)
        >>> report = scylla.run(ScriptedLM(lambda prompt, k: "The answer is 7."), familiar)
        >>> round(report.rows[0].accuracy_id, 2), report.rows[0].accuracy_ood, report.critical_complexity()
        (0.33, 0.0, 1)
    """

    @checked
    def __init__(
        self,
        tasks: Sequence[Any],
        *,
        shots: int = 8,
        tests: int = 256,
        mode: Literal["instruction", "few-shot", "mixed"] = "instruction",
        pool: Iterable[int] | None = None,
        ask: Callable[[Any, Numbers, Mapping[str, int]], str] = lambda task, numbers, p: task.ask(numbers, p),
        write: Callable[[Any, Any], str] = lambda task, answer: task.write(answer),
        parse: Callable[[Any, str], Any] = lambda task, text: task.parse(text),
        follow_up: bool = False,
        max_tokens: int = 2048,
        seed: int = 0,
    ) -> None:
        check_at_least(1, max_tokens=max_tokens)
        if not tasks or tests < 1 or shots < 0:
            raise ValueError(f"Scylla needs tasks, tests >= 1 and shots >= 0, got {len(tasks)}, {tests} and {shots}")
        if mode not in ("instruction", "few-shot", "mixed"):
            raise ValueError(f"mode must be 'instruction', 'few-shot' or 'mixed', got {mode!r}")
        self.tasks, self.shots, self.tests, self.mode = list(tasks), shots, tests, mode
        self.pool = None if pool is None else list(pool)
        self.ask, self.write, self.parse = ask, write, parse
        self.follow_up, self.max_tokens, self.seed = follow_up, max_tokens, seed

    @checked
    def run(
        self, lm: LM, id_source: Literal["probe"] | Mapping[str, Sequence[Sequence[int]]] = "probe", **probing: Any
    ) -> ScyllaReport:
        """Returns how a language model answers on familiar inputs and on their partners.

        Args:
            lm: the language model.
            id_source: "probe" asks the model for its inputs; somebody who knows what it was trained on gives them, by
                name of the task.
            probing: options of ``probe_inputs``.

        Raises:
            ValueError: fewer familiar inputs of a task than shots and tests, or no partners for them.
        """
        return ScyllaReport(tuple(self._task(lm, task, id_source, probing) for task in self.tasks))

    def _task(self, lm: LM, task: Any, id_source: Any, probing: Mapping[str, Any]) -> ScyllaScore:
        shots = 0 if self.mode == "instruction" else self.shots
        needed = shots + self.tests
        if id_source == "probe":
            examples, elements = probe_inputs(lm, task, needed, seed=self.seed, **probing)
        else:
            given = [tuple(numbers) for numbers in id_source[task.name]]
            examples, elements = (
                [numbers for numbers in given if task.admits(numbers)],
                {x for row in given for x in row},
            )
        if len(examples) < needed:
            raise ValueError(f"{task.name}: {len(examples)} familiar inputs are of use, and {needed} are needed")
        pool = self.pool
        if pool is None:
            pool = list(range(100, 1000) if "distances" in task.statement else range(1000, 10_000))
        partners = matched_ood(
            examples[:needed], elements, pool, keep=task.keep, check=task.admits, seed=self.seed, name=task.name
        )
        sides = [self._side(lm, task, numbers, shots) for numbers in (examples[:needed], partners)]
        right_id, right_ood = sides
        return ScyllaScore(task.name, task.level, right_id, right_ood, _LEAST_PARSED[self.follow_up])

    def _side(self, lm: LM, task: Any, lists: Sequence[Numbers], shots: int) -> tuple[bool | None, ...]:
        rng = random.Random(self.seed)
        problems = [(numbers, task.draw(numbers, rng)) for numbers in lists]
        shown = "".join(
            f"{self.ask(task, numbers, p)}\n{self.write(task, min(task.solve(numbers, p)))}\n\n"
            for numbers, p in problems[:shots]
        )
        think = "" if self.mode == "few-shot" else f" {THINK}"
        prompts = [f"{shown}{self.ask(task, numbers, p)}{think}\n" for numbers, p in problems[shots:]]
        outputs = [_text(row) for row in lm.generate(prompts, max_tokens=self.max_tokens)]
        if self.follow_up:
            again = [f"{prompt}{output}\n{THEREFORE}" for prompt, output in zip(prompts, outputs, strict=True)]
            outputs = [THEREFORE + _text(row) for row in lm.generate(again, max_tokens=min(256, self.max_tokens))]
        answers = [self.parse(task, output) for output in outputs]
        return tuple(
            None if answer is None else task.check(*problem, answer)
            for problem, answer in zip(problems[shots:], answers, strict=True)
        )


def _codes(rights: Sequence[bool | None]) -> np.ndarray:
    """1 for right, 0 for wrong, NaN for no answer."""
    return np.array([np.nan if right is None else float(right) for right in rights])


def _accuracy(codes: np.ndarray, least_parsed: float) -> np.ndarray:
    """Share of right answers along the last axis, among those that are answers; 0 where too few are."""
    answered = ~np.isnan(codes)
    right = np.where(answered, codes, 0.0).sum(-1) / np.maximum(answered.sum(-1), 1)
    return np.where(answered.mean(-1) >= least_parsed, right, 0.0)


def _largest(gaps: Mapping[int, Sequence[float]]) -> int:
    means = {level: float(np.mean(values)) for level, values in gaps.items()}
    return max(sorted(means), key=lambda level: means[level])


def _text(row: Sequence[Completion]) -> str:
    return row[0].text
