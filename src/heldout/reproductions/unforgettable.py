"""Unforgettable generalization: does training on random answers remove a skill, or only what it was trained on?

TO BE WRITTEN
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from heldout.lm import ChoiceExample, right_choices, score_choices, smollm, tiny_llama, word_tokenizer
from heldout.measure import (
    ForgetMatrix,
    choice_confidence,
    first_learned,
    forget_matrix,
    hidden_states,
    linear_probe,
    skill_layer,
    skill_predictors,
)
from heldout.sources import QA, SMOL, cache_folder, missing
from heldout.statistics import spearman
from heldout.study import Study, at_least, at_most, better, higher_is_better, log_curve, log_figure, lower_is_better
from heldout.tasks import CHOICE_TASKS, TokenRows, binary_questions, choice_examples, choice_words
from heldout.train import Tuned, forget, last_blocks, seeded, train_tokens, tune_choices

Examples = dict[str, list[ChoiceExample]]
REAL_TASKS = ("boolq", "commonsenseqa", "openbookqa", "piqa", "siqa")
SMOKE = {"rows": 40, "pretrain": 12, "train": 16, "test": 16, "steps": 4, "chance": 0.0, "blocks": 6}
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "words": {
        "smoke": SMOKE | {"per_task": 1},
        "laptop": {
            "rows": 5000,
            "pretrain": 2000,
            "per_task": 100,
            "train": 500,
            "test": 300,
            "steps": 200,
            "chance": 0.5,
        },
    },
    "SmolLM2": {
        "smoke": SMOKE | {"train": 4, "test": 4, "per_task": 1},
        "laptop": {"per_task": 12, "train": 60, "test": 120, "steps": 60, "chance": 0.5, "blocks": 6},
    },
}
TUNING: dict[str, dict[str, Any]] = {
    "words": {"lr": 3e-4, "batch_size": 32},
    "SmolLM2": {"lr": 1e-4, "batch_size": 16},
}
FLIPPED = {"words": ("order", "recall"), "SmolLM2": ("commonsenseqa", "piqa")}
GONE = 0.6  # accuracy below which a skill no longer shows


class Cell(NamedTuple):
    """A model that has the skills, made anew at each call, and what each skill is trained and tested on."""

    model: Callable[[], Any]
    tokenizer: Any
    train: Examples
    test: Examples
    unrelated: list[ChoiceExample]


class Outcome(NamedTuple):
    """What forgetting did: on the test sets, in training, and what a probe reads of each forgotten task."""

    matrix: ForgetMatrix
    histories: dict[str, list[dict[str, float]]]
    probes: dict[str, float]


@functools.lru_cache(maxsize=1)
def words_cell(seed: int, profile: str) -> Cell:
    size = SIZES["words"][profile]
    tokenizer = word_tokenizer([" ".join(choice_words())])
    options = {"world": seed, "seed": seed}
    known = [
        example
        for task in CHOICE_TASKS  # facts must be known before one can forget how to say them
        for example in choice_examples(task, size["rows"], part="both" if task == "recall" else "train", **options)
    ]
    encoded = tokenizer([e.prompt + e.options[e.answer] for e in known])["input_ids"]
    lengths = torch.tensor([len(ids) for ids in encoded])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor([*ids, tokenizer.eos_token_id]) for ids in encoded], True)
    place = torch.arange(ids.shape[1])
    counts = (place >= lengths[:, None] - 1) & (place <= lengths[:, None])
    model = tiny_llama(tokenizer, dim=64, layers=3, context=24, seed=seed)
    for record in train_tokens(
        model, TokenRows(ids, counts), steps=size["pretrain"], batch_size=64, lr=3e-3, warmup=100, seed=seed
    ):
        log_curve("pretraining loss", int(record["step"]), record["loss"])
    train, test = (
        {task: choice_examples(task, size[part], part=part, world=seed, seed=seed + 1) for task in CHOICE_TASKS}
        for part in ("train", "test")
    )
    generator = np.random.default_rng(seed)
    unrelated = [
        ChoiceExample(" ".join(words[:6]), [f" {word}" for word in words[6:]], 0)
        for words in (generator.choice(choice_words(), 8, replace=False).tolist() for _ in range(size["train"]))
    ]
    return Cell(*learned(model, tokenizer, train, "words", seed, profile), train, test, unrelated)


@functools.lru_cache(maxsize=1)
def real_model(profile: str) -> tuple[Any, Any, Examples, list[ChoiceExample]]:
    """SmolLM2's last blocks, with what those below make of the questions, which are the same for all seeds."""
    size = SIZES["SmolLM2"][profile]
    pool = {name: binary_questions(name, size["train"] + size["test"]) for name in REAL_TASKS}
    unrelated = binary_questions("proverbs", size["train"], longest=60)
    asked = [example for examples in (*pool.values(), unrelated) for example in examples]
    texts = [example.prompt + option for example in asked for option in example.options]
    model, tokenizer = smollm(texts=texts)
    rows = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
    told = hashlib.sha256(repr([SMOL.packages[0].sha256, size["blocks"], rows]).encode()).hexdigest()[:32]
    short = last_blocks(model, size["blocks"])
    short.read(rows, cache_folder() / "features" / f"unforgettable-{told}.pt")
    return short, tokenizer, pool, unrelated


@functools.lru_cache(maxsize=1)
def real_cell(seed: int, profile: str) -> Cell:
    short, tokenizer, pool, unrelated = real_model(profile)
    size, generator = SIZES["SmolLM2"][profile], np.random.default_rng(seed)
    dealt = {name: [examples[k] for k in generator.permutation(len(examples))] for name, examples in pool.items()}
    train = {name: examples[: size["train"]] for name, examples in dealt.items()}
    test = {name: examples[size["train"] :] for name, examples in dealt.items()}
    tuned = learned(copy.deepcopy(short), tokenizer, train, "SmolLM2", seed, profile)
    return Cell(*tuned, train, test, unrelated)


def learned(
    model: Any, tokenizer: Any, train: Examples, cell: str, seed: int, profile: str
) -> tuple[Callable[[], Any], Any]:
    """Stage 1: true answers of all tasks; returns what makes copies of the model."""
    asked = [example for examples in train.values() for example in examples]
    steps = SIZES[cell][profile]["per_task"] * len(train)
    tuned = tune_choices(model, tokenizer, asked, steps=steps, seed=seed, **TUNING[cell])
    return functools.partial(copy.deepcopy, tuned.model), tokenizer


CELLS: dict[str, Callable[[int, str], Cell]] = {"words": words_cell, "SmolLM2": real_cell}


def readable(world: Cell, model: Any, task: str) -> float:
    """Held-out accuracy of a linear probe that tells right from wrong answers by the state at their last token."""

    def read(examples: Sequence[ChoiceExample]) -> tuple[torch.Tensor, torch.Tensor]:
        texts = [example.prompt + option for example in examples for option in example.options]
        right = [int(k == example.answer) for example in examples for k in range(2)]
        return hidden_states(model, texts, skill_layer(model), tokenizer=world.tokenizer), torch.tensor(right)

    return linear_probe(*read(world.train[task][:300]), *read(world.test[task]), C=0.1)


@functools.lru_cache(maxsize=8)
def outcome(cell: str, mode: str, seed: int, profile: str) -> Outcome:
    world, size = CELLS[cell](seed, profile), SIZES[cell][profile]
    names = FLIPPED[cell] if mode == "flip" or cell == "SmolLM2" else tuple(world.train)
    train = {name: world.train[name] for name in names} if mode != "unrelated" else {"unrelated": world.unrelated}
    budget = {} if mode in ("random", "flip") else outcome(cell, "random", seed, profile).histories
    histories: dict[str, list[dict[str, float]]] = {}
    probes: dict[str, float] = {}
    order = list(train)

    def tuned(model: Any, examples: Sequence[ChoiceExample]) -> Any:
        name = order[len(histories)]
        options = TUNING[cell] | {"seed": seed, "every": 5}
        if mode == "true":
            steps = int(budget[name][-1]["step"])
            found: Tuned = tune_choices(model, world.tokenizer, examples, **(options | {"steps": steps}))
        elif mode == "unrelated":
            steps = max(int(history[-1]["step"]) for history in budget.values())
            found = forget(model, world.tokenizer, examples, steps=steps, stop_at_chance=False, **options)
        else:
            found = forget(model, world.tokenizer, examples, mode, steps=size["steps"], **options)  # type: ignore[arg-type]
        histories[name] = found.history
        return found.model

    def probed(name: str, model: Any) -> None:
        if mode == "random":
            probes[name] = readable(world, model, name)

    matrix = forget_matrix(
        world.model, train, world.test, forget=tuned, on_forgotten=probed, chance=size["chance"],
        right=lambda model, examples: right_choices(model, world.tokenizer, examples, NORMALIZE[cell]),
        mode="random" if mode != "flip" or profile == "smoke" else "flip",
    )  # fmt: skip
    return Outcome(matrix, histories, probes)
