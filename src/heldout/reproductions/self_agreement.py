"""Self-agreement: can the model itself say which answer its reasoning paths agree on?

Source: arXiv:2311.08154 (Lin et al.), which claims that one more call, in which the model reads its own paths and gives
the answer that most of them agree on, does as well as self-consistency with a parser where type and format of the
answer are known, and better than what is left of it where they are not.

Here: sums told as stories, last letters of two names, and comparisons; each path ends in one of five forms. One tiny
Llama per seed learns, in turn, to reason in mixed forms and to say what 3 to 7 short replies about colours, places,
sizes and names agree on; a fifth of those replies are about numbers, letters or truth, never after one of the
questions. The paper uses what a large model can do already; this model had to be taught, and to read its own paths is
transfer. It reads the last sentence of each path, as the method does where the context is short: it has learned from
short replies, and ``whole paths`` shows what it makes of longer ones. The last prompt leaves out the question, which so
small a model would begin to solve. ``skill`` is the percentage of new short replies whose majority it says.

The arms share the paths of a seed. ``consistency`` parses with the oracle that also scores; ``consistency-20`` spends
on paths about what ``agreement-10`` spends on reading; ``digits``, ``letters`` and ``truth`` parse one format and take
the first path where nothing of it is found; ``strings`` counts equal last sentences; ``semantic`` takes the middle of
the largest cluster of last sentences, by TF-IDF of character n-grams in place of a sentence encoder, which would have
to be downloaded. ``outside`` is the percentage of answers that no path gives, ``first`` and ``last`` that of minority
answers taken from the first or last path. All accuracies are by meaning.
"""

from __future__ import annotations

import functools
import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from heldout.lm import (
    Agreement,
    Completion,
    TransformersLM,
    Usage,
    character_ngrams,
    last_number,
    last_sentences,
    sample_paths,
    self_agreement,
    self_consistency,
    semantic_vote,
    tiny_llama,
    train_tiny,
    usage_of,
    word_tokenizer,
)
from heldout.measure import agreement_point
from heldout.study import Study, at_least, better, equivalent, higher_is_better, log_curve, lower_is_better
from heldout.tasks import (
    REASONING_KINDS,
    ReasoningQuestion,
    agreement_replies,
    meaning,
    reasoning_path,
    reasoning_questions,
    reasoning_words,
)

# width, steps, questions, paths
SIZES = {"smoke": (16, 6, 6, 20), "laptop": (64, 1500, 300, 20)}
TURNS = 3  # one batch of paths, then two of agreements
BATCH, LR, TEMPERATURE, MAX_TOKENS = 32, 3e-3, 0.7, 30
Row = tuple[str, ...]


def template(question: str, paths: Sequence[str]) -> str:
    return f"replies : {' ; '.join(path.removesuffix(' .') for path in paths)} ; agreed :"


@functools.lru_cache(maxsize=1)
def tokenizer() -> Any:
    return word_tokenizer([*reasoning_words(), "replies : ; agreed"])


def solving(count: int, rng: random.Random) -> list[tuple[str, str]]:
    kinds = rng.sample(REASONING_KINDS, len(REASONING_KINDS))
    questions = reasoning_questions(count, kinds, seed=rng.randrange(2**40))
    return [(f"{question.text} :", reasoning_path(question, rng)) for question in questions]


def agreeing(count: int, rng: random.Random) -> list[tuple[str, str]]:
    drawn = [agreement_replies(rng, rng.randint(3, 7)) for _ in range(count)]
    return [(template(question, replies), answer) for question, replies, answer in drawn]


@functools.lru_cache(maxsize=2)
def language_model(seed: int, profile: str) -> TransformersLM:
    width, steps, *_ = SIZES[profile]
    model = tiny_llama(tokenizer(), dim=width, layers=2, context=400, seed=seed)
    turn = 0

    def draw(count: int, generator: torch.Generator) -> list[tuple[str, str]]:
        nonlocal turn
        turn += 1  # batches take turns: an agreement has one token, and would drown among those of paths
        rng = random.Random(int(torch.randint(2**40, (1,), generator=generator)))
        return (solving if turn % TURNS == 1 else agreeing)(count, rng)

    losses = train_tiny(model, tokenizer(), draw, steps=steps, batch_size=BATCH, lr=LR, seed=seed)
    for step in range(0, steps - 1, TURNS * max(1, steps // 40 // TURNS)):
        log_curve("loss of paths", step, losses[step])
        log_curve("loss of agreement", step, losses[step + 1])
    return TransformersLM(model, tokenizer(), batch_size=512)


def questions(seed: int, profile: str) -> list[ReasoningQuestion]:
    return reasoning_questions(SIZES[profile][2], seed=seed + 500_000)


@functools.lru_cache(maxsize=2)
def sampled(seed: int, profile: str) -> list[list[Completion]]:
    asked = [f"{question.text} :" for question in questions(seed, profile)]
    options: dict[str, Any] = {"temperature": TEMPERATURE, "max_tokens": MAX_TOKENS, "seed": seed}
    return sample_paths(language_model(seed, profile), asked, SIZES[profile][3], **options)


def text_of(completion: Completion) -> str:
    return completion.text or "."


def skill(seed: int, profile: str) -> float:
    examples = agreeing(SIZES[profile][2], random.Random(seed + 500_000))
    said = language_model(seed, profile).generate([prompt for prompt, _ in examples], max_tokens=4)
    return 100 * sum(row[0].text == answer for row, (_, answer) in zip(said, examples, strict=True)) / len(examples)


def in_digits(path: str) -> str | None:
    number = last_number(last_sentences(path))
    return None if number is None else str(round(number))


def in_letters(path: str) -> str | None:
    found = re.search(r"\b([a-z])-?([a-z]) \.$", path)
    return found and "".join(found.groups())


def in_truth(path: str) -> str | None:
    found = re.findall(r"\b(yes|true|no|false)\b", last_sentences(path))
    return {"yes": "yes", "true": "yes", "no": "no", "false": "no"}[found[-1]] if found else None


PARSERS = {"digits": in_digits, "letters": in_letters, "truth": in_truth}


def voted(rule: str, paths: Row) -> str | None:
    """The canonical answer by a vote that asks nobody."""
    finals = [last_sentences(path) for path in paths]
    if rule == "consistency":
        return self_consistency(paths, meaning).answer
    if rule in PARSERS:  # where it finds nothing, the first path has to do
        return self_consistency(paths, PARSERS[rule]).answer or meaning(paths[0])
    if rule == "strings":
        return meaning(Counter(finals).most_common(1)[0][0])
    return meaning(semantic_vote(finals, character_ngrams, 0.5))


def agreed(arm: dict[str, Any], paths: list[Row], seed: int, profile: str) -> list[Agreement]:
    return self_agreement(
        language_model(seed, profile),
        [question.text for question in questions(seed, profile)],
        paths=paths,
        template=template,
        shuffle=arm.get("shuffle", True),
        max_path_tokens=None if arm.get("whole") else 1,
        max_tokens=4,
        seed=seed,
    )


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    asked, n = questions(seed, profile), arm.get("n", 1)
    rule, extra = arm["rule"], {}
    if rule == "greedy":
        prompts = [f"{question.text} :" for question in asked]
        completions = language_model(seed, profile).generate(prompts, max_tokens=MAX_TOKENS)
    else:
        completions = [row[:n] for row in sampled(seed, profile)]
    paths: list[Row] = [tuple(text_of(completion) for completion in row) for row in completions]
    usage = sum((usage_of(row) for row in completions), Usage())
    if rule == "agreement":
        found = agreed(arm, paths, seed, profile)
        chosen, paths = [meaning(row.answer) for row in found], [row.paths for row in found]
        usage = sum((row.usage for row in found), usage)
        extra = {"skill": skill(seed, profile)}
    elif n == 1:
        chosen = [meaning(row[0]) for row in paths]
    else:
        chosen = [voted(rule, row) for row in paths]
    right = [question.answer for question in asked]
    point = agreement_point([[meaning(path) for path in row] for row in paths], chosen, right)
    names = ("accuracy", "majority", "any_correct", "agreement", "first", "last", "outside")
    metrics = {name: 100 * getattr(point, name) for name in names}
    for kind in REASONING_KINDS:
        hits = [c == q.answer for c, q in zip(chosen, asked, strict=True) if q.kind == kind]
        metrics[kind] = 100 * sum(hits) / len(hits)
    costs = {"calls": usage.calls, "prompt_tokens": usage.prompt_tokens, "written_tokens": usage.tokens}
    return metrics | {name: value / len(asked) for name, value in costs.items()} | extra


HIGHER = ("accuracy", *REASONING_KINDS, "majority", "any_correct", "agreement", "skill")
LOWER = ("outside", "first", "last", "calls", "prompt_tokens", "written_tokens")

study = Study(
    slug="self-agreement",
    title="Just ask one more time: self-agreement",
    arms={
        "greedy": {"rule": "greedy"},
        "sample": {"rule": "sample"},
        "consistency": {"rule": "consistency", "n": 10},
        "consistency-20": {"rule": "consistency", "n": 20},
        "strings": {"rule": "strings", "n": 10},
        **{name: {"rule": name, "n": 10} for name in PARSERS},
        "semantic": {"rule": "semantic", "n": 10},
        "agreement-5": {"rule": "agreement", "n": 5},
        "agreement-10": {"rule": "agreement", "n": 10},
        "agreement-10, in order": {"rule": "agreement", "n": 10, "shuffle": False},
        "agreement-5, whole paths": {"rule": "agreement", "n": 5, "whole": True},
        "agreement-10, whole paths": {"rule": "agreement", "n": 10, "whole": True},
    },
    run=run,
    metrics=dict.fromkeys(HIGHER, higher_is_better) | dict.fromkeys(LOWER, lower_is_better),
    optional={"skill"},
    claims=[
        at_least("sample", on="accuracy", value=55.0),
        at_least("agreement-10", on="skill", value=90.0),
        equivalent("agreement-10", "consistency", on="accuracy", within=3.0),
        better("agreement-10", than="greedy", on="accuracy", margin=5.0),
        better("agreement-10", than="strings", on="accuracy", margin=10.0),
        *(better("agreement-10", than=name, on="accuracy", margin=5.0) for name in PARSERS),
        better("agreement-5", than="sample", on="accuracy", margin=-2.0),
        better("agreement-10", than="agreement-5", on="accuracy", margin=-2.0),
    ],
    seeds={"smoke": 1, "laptop": 3},
    shared_setup=True,
)
