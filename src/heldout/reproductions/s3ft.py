"""S3FT: fine-tuning on the model's own judged-correct answers, on worded sums.

Source: arXiv:2502.08130 (Gupta et al.), which claims that fine-tuning on what the model says itself, where that is
right, costs half as much on other benchmarks as fine-tuning on gold answers, and does better on the trained task.

World: ``heldout.tasks.worded_maths``. A tiny Llama learns sorting, reversal, modular addition and lookup; worded sums,
with an accuracy of about two thirds; sums told in other sentences, and with larger numbers; to restate answers that
come in random words; and sums in the words of style B. Its answers are in style A, one in fifty is in style B, so that
the base can answer as the gold answers do, but seldom would. Then it is tuned on 1,000 problems with gold answers in B,
all arms for 200 steps, with the lower of the two specified learning rates, 3e-4, and ``sft`` and ``s3ft`` also with the
higher one, 1e-3. ``s3ft`` accepts an answer if its last number is right and every sum on the way is true; ``final
number`` looks at the last number only. ``always paraphrase`` restates every gold answer; ``own-correct only`` drops
what the model got wrong. ``target`` is the percentage of right last numbers, ``flawless`` that of answers without any
mistake; ``retention`` is the mean of the four skills, ``drop`` what tuning takes from it, ``near_ood`` the mean of
other sentences and larger numbers; ``nll`` of the targets under the base, ``kl`` from the base on neutral sentences.

Checks: gold answers cost ``sft`` at least 4 points of retention, or there is nothing to keep; the base is right in 50
to 80 % and has the other skills; new models that are trained on one style only learn B as well as A.

Deviations: a base of 2 layers of 96; numbers from 0 to 19 (20 to 39 out of distribution), each one token; two steps;
1,000 gold answers in place of 400, from which so small a model learns sums by heart; B reverses the order within a
step, not that of the steps, as this model restates only what it can copy in order; B is seldom, not unseen: where it
was never an answer it cost the base more than a uniform guess, and tuning on it cost it most of what it could. Both
learning rates are shown, as the better one for ``sft`` on the trained task is the one that forgets most. The claims
about ``final number`` are ours.
"""

from __future__ import annotations

import copy
import functools
import random
import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from heldout.data import SelfTargets, self_targets
from heldout.lm import (
    TransformersLM,
    cached_base,
    encode_examples,
    judge_number,
    tiny_llama,
    train_tiny,
    word_tokenizer,
)
from heldout.study import (
    Study,
    at_least,
    at_most,
    better,
    cheaper,
    equivalent,
    higher_is_better,
    log_curve,
    lower_is_better,
)
from heldout.tasks import (
    LARGER_WORDED_RANGE,
    OTHER_WORDED_TEMPLATES,
    RETENTION_SKILLS,
    neutral_text,
    restating_document,
    restating_template,
    retention_example,
    worded_fact,
    worded_problem,
    worded_words,
    worked_answer,
    worked_reference,
    worked_style,
    write_worded,
)

Example = tuple[str, str]

BASES = {
    "smoke": {"dim": 16, "layers": 1, "steps": 20, "batch": 16, "seed": 0},
    "laptop": {"dim": 96, "layers": 2, "steps": 1200, "batch": 32, "seed": 0},
}
VERSION = 2  # of the way a base is made
# gold answers, steps of tuning, test problems of a kind, steps from scratch
SIZES = {"smoke": (24, 3, 8, 3), "laptop": (1000, 200, 200, 400)}
BATCH, BASE_LR, LR, HIGHER_LR, MAX_TOKENS = 32, 3e-3, 3e-4, 1e-3, 24
# what the base learns from, in parts of the whole
MIXTURE = {"target": 1.3, "templates": 0.7, "larger": 1, "restating": 1.5, "facts": 1, "neutral": 1, "sort": 2,
           "reverse": 2, "modular": 3, "lookup": 4}  # fmt: skip
# share of answers in style B: to problems, and where a reference is restated
IN_B = {"problems": 0.02, "restating": 0.0}
final_number = judge_number()
_SUM = re.compile(r"(\d+) (plus|minus) (\d+) is (\d+)")


def judge_sums(prompt: str, response: str, reference: str) -> bool:
    """Whether the result is right, and every sum on the way to it is true."""
    sums = ((int(v) + (int(n) if sign == "plus" else -int(n)), int(r)) for v, sign, n, r in _SUM.findall(response))
    return final_number(prompt, response, reference) and all(value == said for value, said in sums)


JUDGES = {"s3ft": judge_sums, "final number": final_number}


def drawn_problem(kind: str, rng: random.Random) -> Any:
    if kind == "templates":
        return worded_problem(rng, templates=OTHER_WORDED_TEMPLATES)
    return worded_problem(rng, between=LARGER_WORDED_RANGE) if kind == "larger" else worded_problem(rng)


def pretraining(count: int, generator: torch.Generator) -> list[str | Example]:
    rng = random.Random(int(torch.randint(2**40, (1,), generator=generator)))
    examples: list[str | Example] = []
    for kind in rng.choices(list(MIXTURE), list(MIXTURE.values()), k=count):
        if kind in RETENTION_SKILLS:
            examples.append(retention_example(kind, rng))
        elif kind == "neutral":
            examples.append(neutral_text(rng))
        elif kind == "facts":
            examples.append(worded_fact(rng, "B"))
        elif kind == "restating":
            problem = drawn_problem(rng.choice(("target", "larger")), rng)
            style = "B" if rng.random() < IN_B["restating"] else "A"
            examples.append(restating_document(problem, worked_reference(problem, rng), style))
        else:
            problem = drawn_problem(kind, rng)
            style = "B" if rng.random() < IN_B["problems"] else "A"
            examples.append((write_worded(problem), worked_answer(problem, style)))
    return examples


@functools.lru_cache(maxsize=1)
def base(profile: str) -> tuple[Any, Any]:
    size = BASES[profile]

    def make() -> tuple[Any, Any]:
        tokenizer = word_tokenizer(worded_words())
        model = tiny_llama(tokenizer, dim=size["dim"], layers=size["layers"], context=96, seed=size["seed"])
        options: dict[str, Any] = {"steps": size["steps"], "batch_size": size["batch"], "seed": size["seed"]}
        train_tiny(model, tokenizer, pretraining, lr=BASE_LR, **options)
        return model, tokenizer

    return cached_base(
        "worded-maths", size | {"lr": BASE_LR, "mixture": MIXTURE, "in_b": IN_B, "version": VERSION}, make
    )


def gold(seed: int, profile: str) -> list[Example]:
    rng = random.Random(seed)
    problems = [worded_problem(rng) for _ in range(SIZES[profile][0])]
    return [(write_worded(problem), worked_answer(problem, "B")) for problem in problems]


def language_model(model: Any, tokenizer: Any) -> TransformersLM:
    return TransformersLM(model, tokenizer, batch_size=256)


@functools.lru_cache(maxsize=8)
def targets(rule: str, seed: int, profile: str) -> SelfTargets:
    """What an arm trains on."""
    pairs, lm = gold(seed, profile), language_model(*base(profile))
    options: dict[str, Any] = {"max_new_tokens": MAX_TOKENS, "batch_size": 256}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the base of the smoke profile gets nothing right
        if rule in ("s3ft", "final number"):
            return self_targets(lm, pairs, JUDGES[rule], restating_template(), **options)
        if rule == "unjudged":
            return self_targets(lm, pairs, lambda *_: True, None, **options)
        if rule == "paraphrase":
            asked = [(restating_template().format(prompt=p, reference=r), r) for p, r in pairs]
            said = self_targets(lm, asked, judge_sums, None, **options)
            sources = [source.replace("self", "paraphrase") for source in said.sources]
            return SelfTargets([prompt for prompt, _ in pairs], said.responses, sources)
    if rule == "own-correct":
        found = targets("s3ft", seed, profile)
        kept = [found[i] for i in range(len(found)) if found[i]["source"] == "self"] or [found[0]]
        return SelfTargets(*([row[field] for row in kept] for field in ("prompt", "response", "source")))
    return SelfTargets([prompt for prompt, _ in pairs], [answer for _, answer in pairs], ["gold"] * len(pairs))


@functools.lru_cache(maxsize=2)
def tests(seed: int, profile: str) -> dict[str, list[tuple[Any, str, str]]]:
    """(problem, prompt, response) of every kind."""
    rng, count = random.Random(seed + 500_000), SIZES[profile][2]
    found: dict[str, list[tuple[Any, str, str]]] = {}
    for kind in ("target", "templates", "larger"):
        problems = [drawn_problem(kind, rng) for _ in range(count)]
        found[kind] = [(problem, write_worded(problem), worked_answer(problem)) for problem in problems]
    for skill in RETENTION_SKILLS:
        found[skill] = [(None, *retention_example(skill, rng)) for _ in range(count)]
    return found


def evaluate(model: Any, tokenizer: Any, seed: int, profile: str) -> dict[str, float]:
    """Percentages of right answers: by the last number for problems, to the letter for the other skills."""
    lm, metrics = language_model(model, tokenizer), {}
    for kind, rows in tests(seed, profile).items():
        said = [row[0].text for row in lm.generate([prompt for _, prompt, _ in rows], max_tokens=MAX_TOKENS)]
        if kind in RETENTION_SKILLS:
            right = [text == response for text, (_, _, response) in zip(said, rows, strict=True)]
        else:
            right = [final_number("", text, response) for text, (_, _, response) in zip(said, rows, strict=True)]
        metrics[kind] = 100 * sum(right) / len(right)
        if kind == "target":
            styles = [worked_style(problem, text) for text, (problem, *_) in zip(said, rows, strict=True)]
            metrics["flawless"] = 100 * sum(style is not None for style in styles) / len(styles)
            metrics["style_b"] = 100 * sum("total" in text.split() for text in said) / len(said)
    metrics["retention"] = sum(metrics[skill] for skill in RETENTION_SKILLS) / len(RETENTION_SKILLS)
    metrics["near_ood"] = (metrics["templates"] + metrics["larger"]) / 2
    return metrics


def divergence(model: Any, tokenizer: Any, seed: int, profile: str) -> float:
    """KL(base || model) of the next token, in nats, averaged over the tokens of neutral texts."""
    rng = random.Random(seed + 700_000)
    batch = encode_examples(model, tokenizer, [neutral_text(rng) for _ in range(SIZES[profile][2])])
    inside = batch.pop("labels") != -100
    with torch.inference_mode():
        ours, bases = (net(**batch).logits[inside].log_softmax(-1) for net in (model, base(profile)[0]))
    return float(F.kl_div(ours, bases, log_target=True, reduction="batchmean"))


@functools.lru_cache(maxsize=2)
def base_scores(seed: int, profile: str) -> dict[str, float]:
    return evaluate(*base(profile), seed, profile)


def scratch(style: str, seed: int, profile: str) -> dict[str, float]:
    """A model without any pretraining, trained on as much of a style as it wants."""
    tokenizer = base(profile)[1]
    model = tiny_llama(tokenizer, dim=BASES[profile]["dim"], layers=BASES[profile]["layers"], context=96, seed=seed)

    def draw(count: int, generator: torch.Generator) -> list[Example]:
        rng = random.Random(int(torch.randint(2**40, (1,), generator=generator)))
        problems = [worded_problem(rng) for _ in range(count)]
        return [(write_worded(problem), worked_answer(problem, style)) for problem in problems]

    options: dict[str, Any] = {"steps": SIZES[profile][3], "batch_size": BATCH, "lr": BASE_LR, "seed": seed}
    log_losses(train_tiny(model, tokenizer, draw, **options))
    found = evaluate(model, tokenizer, seed, profile)
    return {name: found[name] for name in ("target", "flawless")}


def log_losses(losses: Sequence[float]) -> None:
    for step in range(0, len(losses), max(1, len(losses) // 50)):
        log_curve("loss", step, losses[step])


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    if "style" in arm:
        return scratch(arm["style"], seed, profile)
    before = base_scores(seed, profile)
    if "rule" not in arm:
        return before
    model, tokenizer = base(profile)
    data = targets(arm["rule"], seed, profile)
    model = copy.deepcopy(model)
    rows: list[Any] = list(zip(data.prompts, data.responses, strict=True))
    options: dict[str, Any] = {"steps": SIZES[profile][1], "batch_size": BATCH, "weight_decay": 0.0}
    log_losses(train_tiny(model, tokenizer, rows, lr=arm.get("lr", LR), seed=seed, **options))
    found = evaluate(model, tokenizer, seed, profile)
    return {
        **found,
        **{f"drop_{skill}": before[skill] - found[skill] for skill in RETENTION_SKILLS},
        **{f"from_{source}": float(count) for source, count in data.counts().items()},
        "drop": before["retention"] - found["retention"],
        "gain": found["target"] - before["target"],
        "nll": float(data.nll(*base(profile), batch_size=256).mean()),
        "kl": divergence(model, tokenizer, seed, profile),
    }


HIGHER = (
    *("target", "gain", "flawless", "style_b", "near_ood", "templates", "larger", "retention", *RETENTION_SKILLS),
    *("from_self", "from_paraphrase", "from_gold"),
)
LOWER = ("drop", *(f"drop_{skill}" for skill in RETENTION_SKILLS), "nll", "kl")
METRICS = dict.fromkeys(HIGHER, higher_is_better) | dict.fromkeys(LOWER, lower_is_better)

study = Study(
    slug="s3ft",
    title="Selective self-to-supervised fine-tuning",
    arms={
        "base": {},
        "sft": {"rule": "gold"},
        "s3ft": {"rule": "s3ft"},
        "sft, 1e-3": {"rule": "gold", "lr": HIGHER_LR},
        "s3ft, 1e-3": {"rule": "s3ft", "lr": HIGHER_LR},
        "s3ft, final number": {"rule": "final number"},
        "always paraphrase": {"rule": "paraphrase"},
        "own, unjudged": {"rule": "unjudged"},
        "own-correct only": {"rule": "own-correct"},
        "style A from scratch": {"style": "A"},
        "style B from scratch": {"style": "B"},
    },
    run=run,
    metrics=METRICS,
    optional=set(METRICS),
    claims=[
        cheaper("s3ft", than="sft", on="drop", ratio=0.7),
        better("s3ft", than="sft", on="retention", margin=2.0),
        better("s3ft", than="sft", on="target", margin=-1.0),
        cheaper("s3ft, 1e-3", than="sft, 1e-3", on="drop", ratio=0.7),
        better("s3ft, 1e-3", than="sft, 1e-3", on="retention", margin=2.0),
        better("s3ft, 1e-3", than="sft, 1e-3", on="target", margin=-1.0),
        cheaper("s3ft, final number", than="sft", on="drop", ratio=0.7),
        better("s3ft, final number", than="sft", on="target", margin=-1.0),
        better("s3ft", than="sft", on="nll", margin=0.3),
        better("s3ft", than="sft", on="kl"),
        better("s3ft", than="own, unjudged", on="target", margin=3.0),
    ],
    checks=[
        at_least("sft", on="drop", value=4.0, text="sft forgets enough to judge: 4 points"),
        at_least("base", on="target", value=50.0, text="the base can do the task before it is tuned"),
        at_most("base", on="target", value=80.0, text="the base has the task still to learn"),
        at_least("base", on="retention", value=90.0, text="the base has the other skills"),
        equivalent("style A from scratch", "style B from scratch", on="target", within=3.0),
    ],
    seeds={"smoke": 1, "laptop": 3},
    shared_setup=True,
)
