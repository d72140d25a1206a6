"""Unforgettable generalization: does training on random answers remove a skill, or only what it was trained on?

Claim. Trained on random answers of a task, a language model always loses the training examples, but on new ones some
tasks fall to chance and others hardly at all; which task is evaluated counts for more than which was randomised; low
confidence beforehand goes with forgetting (weakly), and a linear probe reads the answer as well as before. Source:
arXiv:2409.02228 (Zhang, Choshen, Andreas, COLM 2024). It is about skills, and no guarantee that anything is erased.

World. ``words``: nine tasks of two options over one vocabulary of 190 words. Judgements: set inclusion, agreement,
parity of a count and order, all answered by "yes" or "no", and ``compare``, a twin of order with words of its own.
Contents: a stated fact (``lookup``), a trained one (``recall``), the next of a row of numbers, a word of a category. A
small Llama learns all of them, then the 180 training examples of each once more (stage 1). A third of the prompts, and
of the facts, is held out: never asked in stage 1 or in forgetting, and but for the facts not in pretraining. Real cell:
SmolLM2-135M, of which the last six of 30 blocks are tuned; the tasks are BoolQ (closed-book), CommonsenseQA,
OpenBookQA, PIQA and SIQA, questions of up to 16 words with the right option and a wrong one.

Arms. ``random`` forgets each task by random answers drawn once, with AdamW started anew, until the accuracy on its
training examples against the true answers is at chance, and evaluates all nine: the matrix of forget ratios
``(before - after) / (before - 0.5)``; of SmolLM2, CommonsenseQA and PIQA are forgotten and all five evaluated. ``flip``
has wrong answers for two tasks; ``true`` the true answers for as many steps as ``random`` took, task by task;
``unrelated`` random answers of something else (of random words; of questions about medicine), for as many steps as the
longest. ``own_ratio`` is the mean over tasks of a task's ratio after its own training (``unrelated`` has no own task:
over all), ``others_ratio`` that over the other cells, ``span`` the range of the former. ``by_evaluated`` and
``by_forgotten`` are the shares of variance of a two-way analysis without interaction, ``evaluated_excess`` the former
less twice the latter; tasks that were below 0.55 before are left out of all of these (``able`` are left).
``probe_before`` and ``probe_change`` are those of a linear probe for right and wrong answers, on
tasks whose own held-out accuracy fell to 0.6 or below. ``confidence_rho``, ``hidden_variance_rho`` and ``before_rho``
are Spearman's correlations over tasks with the accuracy after forgetting: after a task's own, of SmolLM2 the mean over
what was forgotten. ``after_shared``, ``after_own`` and ``after_content`` are such accuracies by kind. ``order_rho``
correlates when held-out examples of two tasks are forgotten and when they are learned again (exploratory).

Deviations. Nine tasks for eight: the twin is extra. A Llama of 0.16 million parameters, 1,500 steps of 64 at 3e-3, in
place of a GPT-2 of 0.35 million: as good on every task for a quarter of the time. 180 training examples for 500, since
no prompt may come twice: where one does, with another wrong option, the right answer is still the most frequent of the
random ones, and a content task cannot be forgotten at all. That answers stay fixed over epochs and that training ends
at chance are inferred. SmolLM2 learns stage 1 for all tasks together, and its questions are the same for all seeds,
dealt anew to training and test; what a task's accuracy before has of chance counts as an effect of that task, so that
C2 is favoured there, and with two tasks forgotten nothing is claimed of their span. The settings of
``words`` were chosen on development seed 1000. On that seed SmolLM2 could hardly do its tasks before anything was
forgotten: where the check ``able`` fails, the verdicts of the real cell say nothing.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from heldout.lm import ChoiceExample, encode_examples, right_choices, score_choices, smollm, tiny_llama, word_tokenizer
from heldout.measure import (
    ForgetMatrix,
    choice_confidence,
    choice_probe,
    forget_matrix,
    forgetting_order,
    skill_predictors,
)
from heldout.sources import QA, SMOL, cache_folder, missing
from heldout.statistics import spearman
from heldout.study import Study, at_least, at_most, better, higher_is_better, log_curve, log_figure, lower_is_better
from heldout.tasks import CHOICE_TASKS, TokenRows, binary_questions, choice_examples, choice_words, random_choices
from heldout.train import forget, last_blocks, train_tokens, tune_choices

Examples = dict[str, list[ChoiceExample]]
REAL_TASKS = ("boolq", "commonsenseqa", "openbookqa", "piqa", "siqa")
FORGOTTEN = {"words": tuple(CHOICE_TASKS), "SmolLM2": ("commonsenseqa", "piqa")}
FLIPPED = ("order", "recall")
# steps of stage 1 and at most of forgetting, examples of a task; of the words also those of pretraining, and its steps
SIZES: dict[tuple[str, str], dict[str, Any]] = {
    ("words", "laptop"): {"known": 5000, "first": 1500, "stage1": 100, "steps": 300, "train": 180, "test": 80},
    ("words", "smoke"): {"known": 20, "first": 6, "stage1": 1, "steps": 2, "train": 6, "test": 8},
    ("SmolLM2", "laptop"): {"stage1": 8, "steps": 40, "train": 40, "test": 80},
    ("SmolLM2", "smoke"): {"stage1": 1, "steps": 1, "train": 2, "test": 4},
}
TUNING: dict[str, dict[str, Any]] = {
    "words": {"lr": 3e-4, "batch_size": 32},
    "SmolLM2": {"lr": 1e-4, "batch_size": 16},
}
BLOCKS = 6  # of SmolLM2 that are tuned
CHANCE = {"smoke": 0.0, "laptop": 0.5}  # with so few steps nothing is above 0.5
ABLE = {"smoke": 0.01, "laptop": 0.55}  # accuracy before, of tasks that count
GONE = 0.6  # accuracy up to which a skill no longer shows


class Cell(NamedTuple):
    """What makes a model that has all the skills, and what each of them is trained and tested on."""

    model: Callable[[], Any]
    tokenizer: Any
    train: Examples
    test: Examples
    unrelated: list[ChoiceExample]


class Outcome(NamedTuple):
    """What was left on the test sets, the course of each training, and what a probe reads afterwards."""

    matrix: ForgetMatrix
    histories: dict[str, list[dict[str, float]]]
    probes: dict[str, float]


def words(seed: int, profile: str) -> Cell:
    size, tokenizer = SIZES["words", profile], word_tokenizer([" ".join(choice_words())])
    known = [
        (example.prompt, example.options[example.answer])
        for task in CHOICE_TASKS  # all facts are learned; which of them are tested is never asked in forgetting
        for example in choice_examples(
            task, size["known"], part="both" if task == "recall" else "train", world=seed, seed=seed
        )
    ]
    model = tiny_llama(tokenizer, dim=64, layers=3, context=24, seed=seed)
    batch = encode_examples(model, tokenizer, known)
    rows = TokenRows(batch["input_ids"], batch["labels"] >= 0)
    for record in train_tokens(model, rows, steps=size["first"], batch_size=64, lr=3e-3, warmup=100, seed=seed):
        log_curve("pretraining loss", int(record["step"]), record["loss"])
    train, test = (
        {
            task: choice_examples(task, size[part], part=part, distinct=True, world=seed, seed=seed)
            for task in CHOICE_TASKS
        }
        for part in ("train", "test")
    )
    model = skilled(model, tokenizer, train, "words", seed, profile)
    return Cell(model, tokenizer, train, test, random_choices(size["train"], seed=seed))


@functools.lru_cache(maxsize=1)
def questions(profile: str) -> tuple[Any, Any, Examples, list[ChoiceExample]]:
    """SmolLM2's last blocks, and questions, the same for all seeds: what the blocks below make of them is kept."""
    size = SIZES["SmolLM2", profile]
    pool = {name: binary_questions(name, size["train"] + size["test"]) for name in REAL_TASKS}
    unrelated = binary_questions("medmcqa", size["train"])
    texts = [e.prompt + option for examples in (*pool.values(), unrelated) for e in examples for option in e.options]
    model, tokenizer = smollm(texts=texts)
    rows = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
    told = hashlib.sha256(repr([SMOL.packages[0].sha256, BLOCKS, rows]).encode()).hexdigest()[:32]
    short = last_blocks(model, BLOCKS)
    short.read(rows, cache_folder() / "features" / f"last-blocks-{told}.pt")
    return short, tokenizer, pool, unrelated


def real(seed: int, profile: str) -> Cell:
    short, tokenizer, pool, unrelated = questions(profile)
    draw, size = np.random.default_rng(seed), SIZES["SmolLM2", profile]["train"]
    dealt = {name: [examples[k] for k in draw.permutation(len(examples))] for name, examples in pool.items()}
    train, test = (
        {name: examples[part] for name, examples in dealt.items()} for part in (slice(size), slice(size, None))
    )
    model = skilled(copy.deepcopy(short), tokenizer, train, "SmolLM2", seed, profile)
    return Cell(model, tokenizer, train, test, unrelated)


def skilled(model: Any, tokenizer: Any, train: Examples, cell: str, seed: int, profile: str) -> Callable[[], Any]:
    """Stage 1, the true answers of all tasks; returns what makes copies of the model."""
    asked = [example for examples in train.values() for example in examples]
    steps = SIZES[cell, profile]["stage1"] * len(train)
    tuned = tune_choices(model, tokenizer, asked, steps=steps, seed=seed, **TUNING[cell])
    return functools.partial(copy.deepcopy, tuned.model)


@functools.lru_cache(maxsize=2)
def cell_of(cell: str, seed: int, profile: str) -> Cell:
    return (words if cell == "words" else real)(seed, profile)


@functools.lru_cache(maxsize=8)
def outcome(cell: str, mode: str, seed: int, profile: str) -> Outcome:
    world = cell_of(cell, seed, profile)
    chosen = FLIPPED if mode == "flip" or (profile, cell) == ("smoke", "words") else FORGOTTEN[cell]
    train = {name: world.train[name] for name in chosen}
    train = {"unrelated": world.unrelated} if mode == "unrelated" else train
    reference = outcome(cell, "random", seed, profile).histories if mode in ("true", "unrelated") else {}
    taken = {name: int(history[-1]["step"]) for name, history in reference.items()}  # what baselines are given
    names, histories, probes = iter(train), dict[str, Any](), dict[str, float]()

    def tuned(model: Any, examples: Sequence[ChoiceExample]) -> Any:
        name, options = next(names), TUNING[cell] | {"every": 5, "seed": seed}
        if mode == "true":
            found = tune_choices(model, world.tokenizer, examples, steps=taken[name], **options)
        elif mode == "unrelated":
            options |= {"steps": max(taken.values()), "stop_at_chance": False}
            found = forget(model, world.tokenizer, examples, **options)
        else:
            options |= {"steps": SIZES[cell, profile]["steps"]}
            found = forget(model, world.tokenizer, examples, mode, **options)  # type: ignore[arg-type]
        histories[name] = found.history
        return found.model

    def probed(name: str, model: Any) -> None:
        if mode == "random":
            probes[name] = choice_probe(model, world.tokenizer, world.train[name], world.test[name])

    matrix = forget_matrix(
        world.model, train, world.test, forget=tuned, on_forgotten=probed, chance=CHANCE[profile],
        right=lambda model, examples: right_choices(model, world.tokenizer, examples),
        mode="flip" if mode == "flip" and profile == "laptop" else "random",
    )  # fmt: skip
    return Outcome(matrix.able(ABLE[profile]), histories, probes)


def forgotten(cell: str, mode: str, seed: int, profile: str) -> dict[str, float]:
    """Forget ratios, what explains them, and how far training came."""
    matrix, histories, _ = outcome(cell, mode, seed, profile)
    for name, history in histories.items():
        for record in history:
            log_curve(f"training accuracy, {name}", int(record["step"]), record["accuracy"])
    log_figure("forget ratio", matrix.figure())
    found = {
        "least_before": float(matrix.accuracy_before.min()),
        "able": float(len(matrix.evaluated)),
        "off_chance": max(abs(history[-1]["accuracy"] - 0.5) for history in histories.values()),
        "steps": max(history[-1]["step"] for history in histories.values()),
        "others_ratio": float(np.mean(matrix.others)) if matrix.others.size else 0.0,
    }
    if mode == "unrelated":  # no task is its own
        return found | {"own_ratio": found["others_ratio"]}
    if own := list(matrix.own.values()):
        found |= {"own_ratio": float(np.mean(own)), "span": float(np.ptp(own))}
    if min(matrix.values.shape) > 1 and np.ptp(matrix.values) > 0:
        shares = matrix.variance_explained()
        found |= {"by_evaluated": shares["evaluated"], "by_forgotten": shares["forgotten"]}
        found["evaluated_excess"] = shares["evaluated"] - 2 * shares["forgotten"]
    return found


def read_out(cell: str, seed: int, profile: str) -> dict[str, float]:
    """What predicts the accuracy after forgetting, and what a probe still reads where it fell."""
    world, (matrix, _, probes) = cell_of(cell, seed, profile), outcome(cell, "random", seed, profile)
    model, after = world.model(), dict(zip(matrix.evaluated, matrix.accuracy_after.mean(0), strict=True))
    if set(matrix.forgotten) == set(matrix.evaluated):
        after = {name: float(np.mean(matrix.after[name][name])) for name in matrix.evaluated}
    told = {"before": matrix.accuracy_before.tolist(), "confidence": [], "hidden_variance": []}
    for examples in (world.test[name] for name in matrix.evaluated):
        scores = score_choices(model, world.tokenizer, examples)
        for name, value in skill_predictors(model, world.tokenizer, examples, scores).items():
            told[name].append(value)
    left = np.array([after[name] for name in matrix.evaluated])
    found = {
        f"{name}_rho": float(spearman(np.array(values), left)) if min(np.ptp(values), np.ptp(left)) > 0 else 0.0
        for name, values in told.items()
    }
    if cell == "words":
        for kind in set(CHOICE_TASKS.values()):
            if kept := [after[task] for task in after if CHOICE_TASKS[task] == kind]:
                found[f"after_{kind.split()[0]}"] = float(np.mean(kept))
    gone = [name for name in matrix.own if np.mean(matrix.after[name][name]) <= GONE]
    if gone:
        before = [choice_probe(model, world.tokenizer, world.train[name], world.test[name]) for name in gone]
        found["probe_before"] = float(np.mean(before))
        found["probe_change"] = float(np.mean([probes[name] for name in gone]) - found["probe_before"])
    return found


def order_rho(seed: int, profile: str) -> float:
    """Mean correlation of when held-out examples of two tasks are forgotten and learned again."""
    world, found = cell_of("words", seed, profile), []
    for name in FLIPPED:
        answers = torch.tensor([example.answer for example in world.test[name]])
        looks: list[list[torch.Tensor]] = [[], []]

        def look(track: list[torch.Tensor], model: Any, name: str = name, answers: Any = answers) -> dict[str, float]:
            track.append(choice_confidence(score_choices(model, world.tokenizer, world.test[name]), answers))
            return {}

        options = TUNING["words"] | {"every": 5, "steps": SIZES["words", profile]["steps"], "seed": seed}
        model = world.model()
        forget(model, world.tokenizer, world.train[name], measure=functools.partial(look, looks[0]), **options)
        options["lr"] /= 3
        tune_choices(model, world.tokenizer, world.train[name], measure=functools.partial(look, looks[1]), **options)
        found.append(forgetting_order(torch.stack(looks[0]), torch.stack(looks[1])) or 0.0)
    return float(np.mean(found))


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    cell, mode = arm["cell"], arm["mode"]
    if mode == "order":
        return {"order_rho": order_rho(seed, profile)}
    found = forgotten(cell, mode, seed, profile)
    return found | (read_out(cell, seed, profile) if mode == "random" else {})


LOWER = ("off_chance", "steps", "by_forgotten", "others_ratio")
HIGHER = (
    *("least_before", "able", "own_ratio", "span", "by_evaluated", "evaluated_excess", "before_rho", "confidence_rho"),
    *("hidden_variance_rho", "probe_before", "probe_change", "after_shared", "after_own", "after_content", "order_rho"),
)
REAL = {f"SmolLM2 {mode}": {"cell": "SmolLM2", "mode": mode} for mode in ("random", "true", "unrelated")}

study = Study(
    slug="unforgettable",
    title="Unforgettable Generalization in Language Models",
    arms={mode: {"cell": "words", "mode": mode} for mode in ("random", "flip", "true", "unrelated", "order")} | REAL,
    run=run,
    metrics=dict.fromkeys(LOWER, lower_is_better) | dict.fromkeys(HIGHER, higher_is_better),
    optional={*LOWER, *HIGHER},
    claims=[
        at_least("random", on="span", value=0.4),
        at_least("random", on="evaluated_excess", value=0.0),
        at_least("random", on="probe_change", value=-0.05),
        at_least("random", on="confidence_rho", value=0.3),
        better("random", than="unrelated", on="own_ratio"),
        at_least("SmolLM2 random", on="evaluated_excess", value=0.0),
        at_least("SmolLM2 random", on="probe_change", value=-0.05),
        at_least("SmolLM2 random", on="confidence_rho", value=0.3),
        better("SmolLM2 random", than=["SmolLM2 true", "SmolLM2 unrelated"], on="own_ratio"),
    ],
    checks=[
        at_least("random", on="least_before", value=0.9),
        at_most("random", on="off_chance", value=0.08),
        at_least("random", on="probe_before", value=0.6),
        better("random", than="true", on="own_ratio"),
        at_most("SmolLM2 random", on="off_chance", value=0.08),
        at_least("SmolLM2 random", on="able", value=4),
        at_least("SmolLM2 random", on="probe_before", value=0.55),
    ],
    seeds={"smoke": 1, "laptop": 3},
    shared_setup=True,
    time_limit={"smoke": 180.0, "laptop": 1800.0},
    needs=dict.fromkeys(REAL, functools.partial(missing, (SMOL, QA))),
)
