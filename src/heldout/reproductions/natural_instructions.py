"""Natural Instructions: do written instructions let a model do tasks that it was never trained on?

Source: Mishra, Khashabi, Baral, Hajishirzi (ACL 2022; arXiv:2104.08773). The paper claims that a BART tuned on many
tasks gains 19 points of ROUGE-L on unseen tasks when their instructions are encoded, more with more training tasks,
and that a model trained on the tasks themselves is still far better.

Here: 180 procedural tasks on lists of words (``InstructionWorld``), 140 to train on and 40 to test on, or one category
of 30 held out; a BART of 2 + 2 layers, first trained to fill in facts about words and lists, then tuned for the same
number of steps in every arm. Scores are percentages: the mean over the instances of a task, then over the test tasks.

``none`` sees inputs only, of the same mixture of tasks; ``definition`` and ``examples`` see one field; ``full`` sees
definition, prompt, avoidance, emphasis, a negative and two positive examples; ``upper`` sees the same, and is trained
on other instances of the test tasks. ``constant`` answers each test task with the one text, or the copy, first or last
word of the input, that scores best on it. ``gain`` is the score over that of ``none`` on the same split; the curves
have 20, 40, 80 and 140 training tasks: ``trend`` is Spearman's correlation of the score with their number, ``rise``
the difference between the largest and the smallest.

At this scale instructions help by 10 to 14 points over ``none``, 12 in the mean, which three seeds do not put beyond
the margin of 10. One definition, or two examples, does as much as the full instruction, and all of the gain is within
the categories that were trained on: on the category that was left out nothing is left of it, which is why the gap
between the splits is so wide. Training on the tasks themselves gives twice the score. The score rises with the number
of tasks on every seed, but so does that of ``none`` (by 1 to 6 points), which learns what outputs look like.
``constant``, which chooses its strategy by the right answers, is above all models that did not see the test tasks: a
copy of the list is most of the right answer where a list is asked for. ROUGE-L is therefore to be read with exact
match. (A first recording had 200 steps: 9.5 points over ``none``, and the rise with tasks open.)

Deviations: one ``upper`` for all test tasks, which tells them apart by their instruction; examples without
explanations, for time; the base fills in spans and ends of facts, where BART restores whole texts.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import Any

from heldout.data import DEFINITION, FULL, NO_INSTRUCTION, encode_instruction
from heldout.lm import TransformersLM, cached_base, tiny_bart, train_tiny, word_tokenizer
from heldout.measure import CrossTask, cross_task, exact_match, rouge_l
from heldout.study import Study, at_least, at_most, better, higher_is_better, log_curve, log_figure
from heldout.tasks import InstructionTask, InstructionWorld, list_facts, task_split

# width, steps of the base, steps of tuning, tasks, test tasks, evaluated instances of each, numbers of training tasks
SIZES: dict[str, tuple[int, int, int, int, int, int, tuple[int, ...]]] = {
    "smoke": (16, 20, 4, 24, 8, 2, (4, 8, 16)),
    "laptop": (96, 1200, 300, 180, 40, 20, (20, 40, 80, 140)),
}
FIELDS = {"none": NO_INSTRUCTION, "definition": DEFINITION, "examples": ("positive",), "full": FULL}
HELD_OUT, RESERVE, BATCH, LR = "answer", 60, 32, 3e-3
LABELS = (
    "Definition: Prompt: Things to Avoid: Emphasis & Caution: Negative Positive Example1- Example2- "
    "input: output: reason: suggestion: _"
)


def base(profile: str) -> tuple[Any, Any]:
    """A model that fills in facts: their end in four of five cases, or a span of one to three words."""
    dim, steps, *_ = SIZES[profile]

    def make() -> tuple[Any, Any]:
        tokenizer, rng = word_tokenizer([*world(0, "smoke").texts, LABELS]), random.Random(0)
        facts = [masked(fact, rng) for fact in list_facts(64 * steps)]
        model = tiny_bart(tokenizer, dim=dim)
        train_tiny(model, tokenizer, facts, steps=steps, batch_size=64, lr=3e-3)
        return model, tokenizer

    return cached_base("list-facts", {"dim": dim, "steps": steps, "version": 1}, make)


def masked(fact: str, rng: random.Random) -> tuple[str, str]:
    before, _, after = fact.rpartition(" is ")
    if rng.random() < 0.8:
        return f"{before} is _", after
    words = fact.split()
    start = rng.randrange(len(words))
    end = min(len(words), start + rng.randint(1, 3))
    return " ".join([*words[:start], "_", *words[end:]]), " ".join(words[start:end])


@functools.lru_cache(maxsize=2)
def world(seed: int, profile: str) -> InstructionWorld:
    _, _, _, n_tasks, _, evaluated, _ = SIZES[profile]
    return InstructionWorld(n_tasks, seed=seed, n_instances=RESERVE + evaluated)


def split(how: str, seed: int, profile: str) -> tuple[list[InstructionTask], list[InstructionTask]]:
    held_out: int | str = SIZES[profile][4] if how == "random" else HELD_OUT
    return task_split(world(seed, profile).tasks, how, held_out, seed=seed)  # type: ignore[arg-type]


def evaluated(tasks: Sequence[InstructionTask], profile: str) -> list[InstructionTask]:
    return [task.parts(reserve=RESERVE, most=SIZES[profile][5])[1] for task in tasks]


@functools.cache
def tuned(kind: str, how: str, count: int, seed: int, profile: str) -> tuple[CrossTask, float]:
    """Scores on the test tasks after training on ``count`` tasks, and the exact matches."""
    train, test = split(how, seed, profile)
    tasks = test if kind == "upper" else train[:count]
    fields = FIELDS["full" if kind == "upper" else kind]

    def encode(task: InstructionTask, instance: Any) -> str:
        return encode_instruction(task, instance, fields, explanations=False)

    rng = random.Random(seed)
    rows = [(encode(task, i), rng.choice(i.outputs)) for task in tasks for i in task.instances[:RESERVE]]
    model, tokenizer = base(profile)
    train_tiny(model, tokenizer, rows, steps=SIZES[profile][2], batch_size=BATCH, lr=LR, seed=seed)
    chosen = evaluated(test, profile)
    found = cross_task(TransformersLM(model, tokenizer, batch_size=128), chosen, encode, max_tokens=16)
    written = [text for row in found.rows for text in row.predictions]
    return found, 100 * cross_task(lambda prompts: written, chosen, encode, exact_match).mean


def constant(seed: int, profile: str) -> dict[str, float]:
    """The best of the strategies that do not look at the instruction, chosen for each task by its score."""
    _, test = split("random", seed, profile)
    totals = dict.fromkeys(("rouge_l", "exact_match"), 0.0)
    for task in evaluated(test, profile):
        answers: list[Callable[[str], str]] = [str, lambda text: text.split()[0], lambda text: text.split()[-1]]
        answers += [lambda _, output=i.outputs[0]: output for i in task.instances]  # type: ignore[misc]
        for name, metric in (("rouge_l", rouge_l), ("exact_match", exact_match)):
            scores = [sum(metric(answer(i.input), i.outputs) for i in task.instances) for answer in answers]
            totals[name] += 100 * max(scores) / len(task.instances) / len(test)
    return totals


def curve(kind: str, seed: int, profile: str) -> dict[str, float]:
    from scipy.stats import spearmanr

    counts = SIZES[profile][-1]
    runs = [tuned(kind, "random", count, seed, profile) for count in counts]
    scores = [100 * found.mean for found, _ in runs]
    for count, score in zip(counts, scores, strict=True):
        log_curve("rouge_l by training tasks", count, score)
    trend = float(spearmanr(counts, scores).statistic) if len(set(scores)) > 1 else 0.0
    return {"rouge_l": scores[-1], "exact_match": runs[-1][1], "trend": trend, "rise": scores[-1] - scores[0]}


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    kind, how = arm["kind"], arm.get("split", "random")
    if kind == "constant":
        return constant(seed, profile)
    if arm.get("curve"):
        return curve(kind, seed, profile)
    count = SIZES[profile][-1][-1] if how == "random" else len(split(how, seed, profile)[0])
    found, exact = tuned(kind, how, count, seed, profile)
    without, _ = tuned("none", how, count, seed, profile)
    if kind != "none":
        log_figure("score by category", bars({"none": without, kind: found}))
    return {"rouge_l": 100 * found.mean, "exact_match": exact, "gain": 100 * (found.mean - without.mean)}


def bars(results: dict[str, CrossTask]) -> dict[str, Any]:
    rows = [
        {"instruction": name, "category": category, "ROUGE-L": 100 * score}
        for name, found in results.items()
        for category, score in [*found.by_category().items(), ("all tasks", found.mean)]
    ]
    return {
        "data": {"values": rows},
        "mark": "bar",
        "encoding": {
            "x": {"field": "category", "type": "nominal", "sort": None, "title": None},
            "xOffset": {"field": "instruction", "sort": None},
            "y": {"field": "ROUGE-L", "type": "quantitative", "scale": {"domain": [0, 100]}},
            "color": {"field": "instruction", "type": "nominal", "sort": None},
        },
    }


study = Study(
    slug="natural-instructions",
    title="Cross-Task Generalization via Natural Language Crowdsourcing Instructions",
    arms={
        "constant": {"kind": "constant"},
        "none": {"kind": "none"},
        "definition": {"kind": "definition"},
        "examples": {"kind": "examples"},
        "full": {"kind": "full"},
        "upper": {"kind": "upper"},
        "none-category": {"kind": "none", "split": "category"},
        "full-category": {"kind": "full", "split": "category"},
        "none-curve": {"kind": "none", "curve": True},
        "full-curve": {"kind": "full", "curve": True},
    },
    run=run,
    metrics=dict.fromkeys(("rouge_l", "exact_match", "gain", "trend", "rise"), higher_is_better),
    optional={"gain", "trend", "rise"},
    claims=[
        better("full", than="none", on="rouge_l", margin=10),
        better("full", than="constant", on="rouge_l"),
        better("full", than="full-category", on="gain", margin=3),
        at_least("full-curve", on="trend", value=0.8),
        at_most("none-curve", on="rise", value=3),
        better("upper", than="full", on="rouge_l", margin=10),
    ],
    seeds={"smoke": 1, "laptop": 3},
    time_limit={"laptop": 1800.0},
    shared_setup=True,
)
