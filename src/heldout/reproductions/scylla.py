"""Scylla: where between easy and impossible does a model depend most on familiar numbers?

Source: arXiv:2410.01769 (Qi et al.), which claims that the gap between accuracy on inputs that a model finds typical
and on matched unfamiliar ones is not monotonic in the complexity of the task ("generalization valley"), and that its
peak, the critical complexity, is at a higher level for larger models.

World: lists of 3 to 5 two-digit numbers, written digit by digit. Training uses 45 of the 90 numbers; tests use fresh
lists of these, and partners from the other 45. Six tasks at four levels, numbered 1 to 4: maximum and minimum; sorting
and the k-th largest; two numbers with a given sum and three whose sum is a multiple of ten; numbers with a given sum.
Gaps are percentages and keep their sign; accuracy is that of the outputs with an answer, ``parsed`` the least share of
these in any task. And, judged by itself, SmolLM2-135M with the same tasks: lists of 4, three examples, and the most
likely of four options of one form, of which one is right (chance is 25 %).

Arms: two Llamas, trained from scratch on the mixture of tasks and of requests for inputs: ``small`` (2 layers of 48)
and ``large`` (3 layers of 112). ``exact`` solves each problem; ``memory`` gives the answer of the nearest of 2,000
training lists. ``unmatched`` is ``large`` with partners of other lengths. ``probed`` asks ``large`` for its inputs.
``SmolLM2`` is familiar with the 45 two-digit numbers that it would most likely propose, and unfamiliar with the other
45.

Deviations: the tiny models answer at once, without reasoning and second call. Tiny models are given what they were
trained on as familiar inputs, as the specification does. Tests are 200 lists a task, not 256, and 20 tasks are 7. What
SmolLM2 would propose is read off its likelihood of each number after the request, exactly, instead of from 6,400
samples; its partners stay at two digits, so that length explains nothing, where the paper draws from 1000 to 9999; and
it chooses among options, since it writes few answers that can be parsed. It has no larger sibling here.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from heldout.language_model import LM
from heldout.lm import ScriptedLM, TransformersLM, character_tokenizer, smollm, tiny_llama, train_tiny
from heldout.measure import Scylla, ScyllaReport, ScyllaScore, matched_ood, probe_inputs, probe_prompt
from heldout.sources import SMOL, missing
from heldout.study import Study, at_least, at_most, better, higher_is_better, log_curve, log_figure, lower_is_better
from heldout.tasks import ListTask, list_tasks

TESTS = {"smoke": 8, "laptop": 200}  # of each task
# width, layers, learning rate, steps of training
MODELS = {"small": (48, 2, 3e-3, 1000), "large": (112, 3, 2e-3, 800)}
SMOKE_STEPS = 6
LEVELS = (("maximum", "minimum"), ("sort", "top_k"), ("two_sum", "three_sum_multiple_of_10"), ("subset_sum",))
LETTERS = dict(zip((name for level in LEVELS for name in level), "MmskthS", strict=True))
LEVEL_OF = {name: number for number, names in enumerate(LEVELS, 1) for name in names}
TASKS = [task for name, task in list_tasks().items() if name in LETTERS]
BATCH = 64
REAL_TESTS = {"smoke": 2, "laptop": 48}  # of each level


def numbers_of(seed: int) -> tuple[list[int], list[int]]:
    """The familiar and the unfamiliar half of the two-digit numbers."""
    numbers = random.Random(seed).sample(range(10, 100), 90)
    return numbers[:45], numbers[45:]


def lists(task: ListTask, pool: list[int], count: int, rng: random.Random) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    while len(found) < count:
        drawn = tuple(rng.choices(pool, k=rng.randint(3, 5)))
        if task.admits(drawn):
            found.append(drawn)
    return found


def ask(task: ListTask, numbers: Any, parameters: Any) -> str:
    given = "".join(f"{value}:" for value in parameters.values())
    return f"{LETTERS[task.name]}{given}{' '.join(map(str, numbers))}="


def write(task: ListTask, answer: Any) -> str:
    return " ".join(map(str, answer))


def parse(task: ListTask, text: str) -> tuple[int, ...] | None:
    return tuple(int(number) for number in text.split()) if re.fullmatch(r"\d+( \d+)*", text.strip()) else None


def examples(seed: int) -> Callable[[int, torch.Generator], list[tuple[str, str]]]:
    """Draws problems with an answer; one in ten is a request for an input."""
    familiar, _ = numbers_of(seed)

    def draw(count: int, generator: torch.Generator) -> list[tuple[str, str]]:
        rng = random.Random(int(torch.randint(1 << 40, (1,), generator=generator)))
        rows = []
        for task in rng.choices(TASKS, k=count):
            (numbers,) = lists(task, familiar, 1, rng)
            if rng.random() < 0.1:
                rows.append((f"?{LETTERS[task.name]}", f"[{','.join(map(str, numbers))}]"))
            else:
                parameters = task.draw(numbers, rng)
                answers = sorted(task.solve(numbers, parameters))
                rows.append((f"{ask(task, numbers, parameters)}\n", write(task, rng.choice(answers))))
        return rows

    return draw


@functools.lru_cache(maxsize=4)
def trained(size: str, seed: int, profile: str) -> TransformersLM:
    dim, layers, lr, steps = MODELS[size]
    steps = SMOKE_STEPS if profile == "smoke" else steps
    tokenizer = character_tokenizer(" 0123456789=:?[],\n" + "".join(LETTERS.values()))
    model = tiny_llama(tokenizer, dim=dim, layers=layers, context=64, seed=seed)
    losses = train_tiny(model, tokenizer, examples(seed), steps=steps, batch_size=BATCH, lr=lr, seed=seed)
    for step in range(0, steps, max(1, steps // 50)):
        log_curve("training loss", step, losses[step])
    return TransformersLM(model, tokenizer, batch_size=256)


def solver(prompt: str, sample: int) -> str:
    """Solves a problem exactly."""
    task, parameters, numbers = problem_of(prompt)
    return write(task, min(task.solve(numbers, parameters)))


def problem_of(prompt: str) -> tuple[ListTask, dict[str, int], list[int]]:
    task = next(task for task in TASKS if LETTERS[task.name] == prompt[0])
    *given, written = prompt[1:].rstrip("\n=").split(":")
    names = re.findall(r"{(\w+)}", task.statement)
    return task, dict(zip(names, map(int, given), strict=True)), [int(number) for number in written.split()]


@functools.lru_cache(maxsize=1)
def memory(seed: int) -> LM:
    """Gives the answer of the nearest training list of the task: most places equal, then least distance."""
    rng, (familiar, _) = random.Random(seed), numbers_of(seed)
    known = {}
    for task in TASKS:
        rows = [(n, task.draw(n, rng)) for n in lists(task, familiar, 2000, rng)]
        known[task.name] = rows, np.array([[*n, *[0] * (5 - len(n))] for n, _ in rows])

    def answer(prompt: str, sample: int) -> str:
        task, _, numbers = problem_of(prompt)
        rows, places = known[task.name]
        asked = np.array([*numbers, *[0] * (5 - len(numbers))])
        nearest = int(((places != asked).sum(1) + np.abs(places - asked).sum(1) / 1000).argmin())
        return write(task, min(task.solve(*rows[nearest])))

    return ScriptedLM(answer)


def measured(lm: LM, seed: int, profile: str, *, unmatched: bool = False) -> ScyllaReport:
    tests, rng = TESTS[profile], random.Random(seed + 500_000)
    familiar, unfamiliar = numbers_of(seed)

    def scylla(pool: list[int]) -> Scylla:
        return Scylla(
            [leveled(task) for task in TASKS],
            shots=0,
            tests=tests,
            mode="few-shot",
            pool=pool,
            ask=ask,
            write=write,
            parse=parse,
            max_tokens=18,
            seed=seed,
        )

    known = {task.name: lists(task, familiar, tests, rng) for task in TASKS}
    report = scylla(unfamiliar).run(lm, known)
    if not unmatched:
        return report
    # Unfamiliar lists take the place of the familiar ones, whose partners nobody looks at.
    others = scylla(familiar).run(lm, {task.name: lists(task, unfamiliar, tests, rng) for task in TASKS})
    rows = zip(report.rows, others.rows, strict=True)
    return ScyllaReport(tuple(dataclasses.replace(a, right_ood=b.right_id) for a, b in rows))


def leveled(task: ListTask) -> ListTask:
    return dataclasses.replace(task, level=LEVEL_OF[task.name])


@functools.lru_cache(maxsize=1)
def pretrained() -> TransformersLM:
    return TransformersLM(*smollm(), batch_size=128)


@functools.cache
def proposed(request: str) -> tuple[list[int], list[int], float]:
    """The more and the less likely half of the two-digit numbers after a request for inputs, and the nats between."""
    likelihood = pretrained().score([f"{request}\n["], [[str(number) for number in range(10, 100)]])[0]
    order = sorted(range(90), key=lambda i: -likelihood[i])
    halves = [[i + 10 for i in half] for half in (order[:45], order[45:])]
    apart = float(np.mean([likelihood[i] for i in order[:45]]) - np.mean([likelihood[i] for i in order[45:]]))
    return halves[0], halves[1], apart


def options(task: ListTask, numbers: Any, parameters: Any, rng: random.Random) -> list[tuple[int, ...]]:
    """A right answer, then three wrong ones of the same form; fewer where there are none."""
    right = rng.choice(sorted(task.solve(numbers, parameters)))
    forms = itertools.permutations if task.name == "sort" else itertools.combinations
    others = sorted({some for some in forms(sorted(numbers), len(right)) if not task.check(numbers, parameters, some)})
    return [right, *rng.sample(others, min(3, len(others)))]


def of_use(task: ListTask, numbers: Any) -> bool:
    """Whether a list has four options, as far as nine draws of the parameters tell."""
    drawn = [task.draw(numbers, random.Random(k)) for k in range(9)] if task.admits(numbers) else []
    return bool(drawn) and all(len(options(task, numbers, p, random.Random(0))) == 4 for p in drawn)


def shown(task: ListTask, numbers: Any, parameters: Any) -> str:
    return f"{task.statement.format(**parameters)}\nInput: {', '.join(map(str, numbers))}\nAnswer:"


def chosen(lm: TransformersLM, task: ListTask, lists_: Any, before: str, seed: int) -> tuple[bool | None, ...]:
    """Whether the right option was the likeliest, for each list."""
    rng = random.Random(seed)
    problems = [(numbers, task.draw(numbers, rng)) for numbers in lists_]
    offered = [options(task, *problem, rng) for problem in problems]
    written = [[" " + ", ".join(map(str, answer)) for answer in answers] for answers in offered]
    scores = lm.score([before + shown(task, *problem) for problem in problems], written)
    return tuple(row[0] == max(row) for row in scores)


def measured_pretrained(seed: int, profile: str) -> tuple[ScyllaReport, float]:
    lm, rows, distances = pretrained(), [], []
    for task in map(leveled, TASKS):
        rng, tests = random.Random(f"{seed} {task.name}"), REAL_TESTS[profile] // len(LEVELS[LEVEL_OF[task.name] - 1])
        familiar, unfamiliar, apart = proposed(probe_prompt(task))

        fits = functools.partial(of_use, task)
        known: list[tuple[int, ...]] = []
        while len(known) < tests + 3:
            numbers = tuple(rng.sample(familiar, 4))
            known += [numbers] if fits(numbers) else []
        partners = matched_ood(
            known[3:], familiar, unfamiliar, keep="multiplicity", check=fits, retries=500, seed=seed, name=task.name
        )
        before = ""
        for numbers in known[:3]:
            parameters = task.draw(numbers, rng)
            answer = ", ".join(map(str, options(task, numbers, parameters, rng)[0]))
            before += f"{shown(task, numbers, parameters)} {answer}\n\n"
        sides = [chosen(lm, task, some, before, seed) for some in (known[3:], partners)]
        rows.append(ScyllaScore(task.name, task.level, sides[0], sides[1]))
        distances.append(apart)
    return ScyllaReport(tuple(rows)), float(np.mean(distances))


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    if arm["model"] == "pretrained":
        report, apart = measured_pretrained(seed, profile)
        return {**summary(report), "nats_apart": apart}
    if arm["model"] in MODELS:
        lm: LM = trained(arm["model"], seed, profile)
    else:
        lm = ScriptedLM(solver) if arm["model"] == "exact" else memory(seed)
    if "probes" in arm:
        return probed(lm, seed, arm["probes"])
    return summary(measured(lm, seed, profile, unmatched=arm.get("unmatched", False)))


def summary(report: ScyllaReport) -> dict[str, float]:
    log_figure("accuracy by level", figure(report))
    gaps = {level: 100 * gap.estimate for level, gap in report.gap_curve(signed=True).items()}
    for level, gap in gaps.items():
        log_curve("gap by level", level, gap)
    accuracy = {level: 100 * float(np.mean([r.accuracy_id for r in rows])) for level, rows in report.levels().items()}
    middle = max(gaps[2], gaps[3])
    return {
        **{f"gap_{level}": gap for level, gap in gaps.items()},
        **{f"id_{level}": value for level, value in accuracy.items()},
        "over_lowest": middle - gaps[1],
        "over_highest": middle - gaps[4],
        "critical": float(report.critical_complexity()),
        "largest_gap": max(map(abs, gaps.values())),
        "short_of_accuracy": max(accuracy[level] - gaps[level] for level in gaps),
        "score": 100 * report.score(),
        "parsed": 100 * min(min(row.parsed_id, row.parsed_ood) for row in report.rows),
    }


def probed(lm: LM, seed: int, requests: int) -> dict[str, float]:
    """How much of what the model proposes is really familiar, in percent."""
    familiar, shares, valid = set(numbers_of(seed)[0]), [], []
    for task in TASKS:
        asked, options = f"?{LETTERS[task.name]}", {"requests": requests, "max_tokens": 18, "seed": seed}
        inputs, elements = probe_inputs(lm, task, prompt=asked, **options)  # type: ignore[arg-type]
        shares.append(100 * len(elements & familiar) / max(1, len(elements)))
        valid.append(100 * len(inputs) / requests)
    return {"familiar": float(np.mean(shares)), "valid": float(np.mean(valid))}


def figure(report: ScyllaReport) -> dict[str, Any]:
    values = [
        {"level": level, "accuracy": float(np.mean([getattr(row, name) for row in rows])), "inputs": said}
        for level, rows in report.levels().items()
        for name, said in (("accuracy_id", "familiar"), ("accuracy_ood", "unfamiliar"))
    ]
    return {
        "data": {"values": values},
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": {"field": "level", "type": "ordinal", "title": "level of complexity"},
            "y": {"field": "accuracy", "type": "quantitative", "scale": {"domain": [0, 1]}},
            "color": {"field": "inputs", "type": "nominal", "title": None},
        },
    }


LOWER = (*(f"gap_{level}" for level in LEVEL_OF.values()), "largest_gap", "short_of_accuracy")
HIGHER = (*(f"id_{level}" for level in LEVEL_OF.values()), "over_lowest", "over_highest", "critical", "score", "parsed",
          "familiar", "valid", "nats_apart")  # fmt: skip
METRICS = dict.fromkeys(LOWER, lower_is_better) | dict.fromkeys(
    (*HIGHER, "familiar", "valid", "nats_apart"), higher_is_better
)

study = Study(
    slug="scylla",
    title="Quantifying generalization complexity for large language models",
    arms={
        "small": {"model": "small"},
        "large": {"model": "large"},
        "exact": {"model": "exact"},
        "memory": {"model": "memory"},
        "unmatched": {"model": "large", "unmatched": True},
        "probed": {"model": "large", "probes": 500},
        "SmolLM2": {"model": "pretrained"},
    },
    run=run,
    metrics=METRICS,
    optional=set(METRICS),
    claims=[
        at_least("large", on="over_lowest", value=5.0),
        at_least("large", on="over_highest", value=5.0),
        at_least("small", on="over_lowest", value=5.0),
        at_least("small", on="over_highest", value=5.0),
        better("large", than="small", on="critical"),
        at_least("SmolLM2", on="over_lowest", value=5.0),
        at_least("SmolLM2", on="over_highest", value=5.0),
    ],
    checks=[
        better("large", than="small", on="critical", margin=-0.5),
        at_most("exact", on="largest_gap", value=0.0),
        at_most("memory", on="short_of_accuracy", value=5.0),
        at_least("probed", on="familiar", value=95.0),
        at_least("SmolLM2", on="id_1", value=40.0),
    ],
    seeds={"smoke": 1, "laptop": 4},
    time_limit={"smoke": 180.0, "laptop": 1800.0},
    shared_setup=True,
    needs={"SmolLM2": functools.partial(missing, (SMOL,))},
)
