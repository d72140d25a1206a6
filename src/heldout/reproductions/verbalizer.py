"""Verbalizer manipulation: does a model follow the words that an instruction gives, or its priors?

Source: arXiv:2307.10558 (Li et al.), which claims that models are told apart mainly by unnatural verbalizers, where
even strong ones fall to chance or below, because they answer with the word that they expect.

World: tiny Llamas learn natural remarks after sentences ("... this is positive"), and to repeat words, nonsense ones
included; then the mapping instructions, with equal data and 500 steps in every arm. Evaluation: 200 sentences with
opinion words that tuning never saw, 12 verbalizers, by the likelihood of the words; ``generated_unnatural`` is by
greedy decoding. ``shuffled_natural`` puts the instruction before another sentence: it must be at chance. And, judged by
itself, SmolLM2-135M-Instruct, not tuned: is a question about medicine (MedMCQA) or about money (FiQA)? 64 short
questions, half of each, 12 verbalizers with the paper's neutral words, by the calibrated likelihood of the words. All
metrics are percentages.

Arms: ``natural`` is tuned with natural words only, ``neutral`` with natural and nonsense words, ``randomised`` with
natural, nonsense and exchanged words. Half of the natural pairs are exchanged in training, the other half at test,
where nonsense words are new too. ``longer`` is ``natural`` with twice the steps, ``shorter`` with a quarter of them,
``bigger`` with one and a half times the width; ``family`` holds the spread over these four. ``SmolLM2`` reads the rule,
then the question, as a user's turn; ``SmolLM2, emphasised`` is told, for the unnatural words, to ignore their usual
meaning; ``SmolLM2, no rule`` reads the question alone, so that what it answers is its prior: the rule is read as far as
exchanged and neutral words do better with it.

Deviations: models of 0.11 and 0.24 M parameters (the specification: 0.25 to 0.35 M), a base of 1,000 steps (400).
Four pairs are tested and four others exchanged in training, so that no tested pair was ever seen exchanged; the
specification says neither how many nor which. Subjectivity is not tested. The spread over models is compared as a
difference, unnatural less twice natural. Of the paper's nine data sets none is in a package: two sets of questions
stand for them, 64 texts where the paper has 100. SmolLM2 says one word of a pair nearly always, whatever it reads, so
the mean score of a word over the texts is taken away (batch calibration, arXiv:2309.17249), which the paper does not
do. Its scores are per token, as some neutral words have more than one.
"""

from __future__ import annotations

import copy
import functools
import random
from typing import Any

import numpy as np

from heldout.data import VERBALIZER_KINDS, Verbalizer, randomize_verbalizers, verbalizer_sets
from heldout.lm import TransformersLM, smollm, tiny_llama, train_tiny, word_tokenizer
from heldout.measure import VerbalizerManipulation, VerbalizerReport
from heldout.sources import QA, SMOL, missing
from heldout.study import Study, at_least, at_most, better, higher_is_better, log_figure, lower_is_better
from heldout.tasks import OPINION_CLASSES, choice_questions, open_questions, opinion_words, opinions

# width, layers, steps of the base, steps of tuning, sentences of tuning, sentences of the test
SIZES = {"smoke": (16, 1, 10, 8, 64, 16), "laptop": (64, 2, 1000, 500, 12_000, 200)}
BATCH, LR, TUNING_LR = 32, 2e-3, 5e-4
TESTED = [["negative", "positive"], ["bad", "good"], ["no", "yes"], ["zero", "one"]]
EXCHANGED = [["poor", "great"], ["awful", "fine"], ["minus", "plus"], ["down", "up"]]
NONSENSE = [first + rest for first in ("b", "d", "f", "g", "k", "l", "m", "p", "s", "t", "v", "z")
            for rest in ("ax", "ep", "im", "ock")]  # fmt: skip
HELD_OUT = NONSENSE[::6]
WORDS = [word for pair in TESTED + EXCHANGED for word in pair]


QUESTIONS = {"smoke": 4, "laptop": 64}
REAL_CLASSES = ("about medicine", "about money")
REAL_WORDS = [["medicine", "money"], ["health", "finance"], ["doctor", "bank"], ["hospital", "business"]]
REAL_NEUTRAL = [("foo", "bar"), ("bar", "foo"), ("sfo", "dpo"), ("dpo", "sfo")]


def template(text: str, mapping: Any) -> str:
    rules = " ; ".join(f"output {word} if the sentence is {description}" for word, description in mapping)
    return f"{rules} . sentence : {text} output :"


def corpus(count: int, seed: int) -> list[tuple[str, str]]:
    """Text to learn language from: natural remarks after sentences, and repetitions of words."""
    rng = random.Random(seed)
    words = [*WORDS, *NONSENSE]
    known, held_out = (zip(*opinions(count, held_out=held, seed=seed), strict=True) for held in (False, True))
    texts = []
    for _ in range(count):
        if rng.random() < 0.6:
            text, label = next(held_out if rng.random() < 0.25 else known)
            texts.append((text, f"this is {rng.choice(TESTED + EXCHANGED)[label]} ."))
        else:
            some = " ".join(rng.choices(words, k=rng.randint(1, 5)))
            texts.append((f"repeat {some} :", some))
    return texts


@functools.lru_cache(maxsize=1)
def tokenizer() -> Any:
    return word_tokenizer([*opinion_words(), *WORDS, *NONSENSE, template("", [("", "")]), "; this repeat ."])


@functools.lru_cache(maxsize=2)
def base(seed: int, profile: str, width: int) -> Any:
    _, layers, steps, *_ = SIZES[profile]
    model = tiny_llama(tokenizer(), dim=width, layers=layers, context=96, seed=seed)
    train_tiny(model, tokenizer(), corpus(16 * steps, seed), steps=steps, batch_size=BATCH, lr=LR, seed=seed)
    return model


def data(kind: str, seed: int, profile: str) -> list[tuple[str, str]]:
    """Instructions with natural words, and as many more with the kinds of the arm; always as many sentences."""
    texts, labels = opinions(SIZES[profile][4], seed=seed)
    parts = {"natural": ["natural"], "neutral": ["natural", "neutral"]}.get(kind, ["natural", "neutral", "unnatural"])
    rows = []
    for k, part in enumerate(parts):
        rows += randomize_verbalizers(
            texts[k :: len(parts)],
            labels[k :: len(parts)],
            OPINION_CLASSES["sentiment"],
            TESTED + EXCHANGED if part == "natural" else EXCHANGED,
            kinds=[part],  # type: ignore[list-item]
            nonsense=NONSENSE,
            holdout_words=HELD_OUT,
            template=template,
            lead="",
            seed=seed + k,
        )
    return [(row["prompt"], row["completion"]) for row in rows]


@functools.lru_cache(maxsize=8)
def tuned(kind: str, seed: int, profile: str, stretch: float, wide: bool) -> TransformersLM:
    width, _, _, steps, *_ = SIZES[profile]
    model = copy.deepcopy(base(seed, profile, width * 3 // 2 if wide else width))
    steps = max(1, round(stretch * steps))
    train_tiny(model, tokenizer(), data(kind, seed, profile), steps=steps, batch_size=BATCH, lr=TUNING_LR, seed=seed)
    return TransformersLM(model, tokenizer(), batch_size=256)


def verbalizers() -> list[Verbalizer]:
    return verbalizer_sets(TESTED, nonsense=HELD_OUT, seed=0)


def evaluate(
    lm: TransformersLM, seed: int, profile: str, kinds: Any = VERBALIZER_KINDS, **options: Any
) -> VerbalizerReport:
    texts, labels = opinions(SIZES[profile][5], held_out=True, seed=seed + 500_000)
    if options.pop("shuffled", False):
        texts = texts[1:] + texts[:1]
    sets = [verbalizer for verbalizer in verbalizers() if verbalizer.kind in kinds]
    words = OPINION_CLASSES["sentiment"]
    return VerbalizerManipulation(texts, labels, words, sets, template=template, seed=seed, **options).run(lm)


@functools.lru_cache(maxsize=8)
def scored(kind: str, seed: int, profile: str, stretch: float, wide: bool) -> VerbalizerReport:
    return evaluate(tuned(kind, seed, profile, stretch, wide), seed, profile, mode="score", lead="")


@functools.lru_cache(maxsize=1)
def pretrained() -> TransformersLM:
    return TransformersLM(*smollm())


def question_prompt(text: str, mapping: Any, emphasis: str = "", rule: bool = True) -> str:
    """The rule, then the question, as SmolLM2's chat template writes a user's turn."""
    if not rule:
        return f"<|im_start|>user\nQuestion: {text}<|im_end|>\n<|im_start|>assistant\n"
    rules = "; ".join(f"output '{word}' if the question is {description}" for word, description in mapping)
    asked = f"{emphasis}{rules[0].upper()}{rules[1:]}.\nQuestion: {text}"
    return f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"


def real(seed: int, profile: str, emphasised: bool, rule: bool) -> VerbalizerReport:
    """Short questions drawn anew for each seed, as many of each class; with emphasis only the unnatural words."""
    rng, half = random.Random(seed), QUESTIONS[profile] // 2
    pools = [[q.question for q in choice_questions("medmcqa")], [q.question for q in open_questions("fiqa")]]
    short = [[text for text in pool if 4 <= len(text.split()) <= 20] for pool in pools]
    sets = [v for v in verbalizer_sets(REAL_WORDS, n_neutral=0) if v.kind == "unnatural" or not emphasised]
    sets += [] if emphasised else [Verbalizer(words, "neutral") for words in REAL_NEUTRAL]
    lm = pretrained()
    return VerbalizerManipulation(
        [text for pool in short for text in rng.sample(pool, half)],
        [label for label in (0, 1) for _ in range(half)],
        REAL_CLASSES,
        sets,
        template=functools.partial(
            question_prompt,
            emphasis="Ignore the usual meaning of the output words. " if emphasised else "",
            rule=rule,
        ),
        mode="score",
        lead="",
        length=lambda word: len(lm.tokenizer(word)["input_ids"]),
        calibrate=True,
        seed=seed,
    ).run(lm)


def measured(report: VerbalizerReport) -> dict[str, float]:
    means = {kind: 100 * report.accuracy(kind).estimate for kind in VERBALIZER_KINDS}
    return {
        **means,  # type: ignore[dict-item]
        "natural_over_neutral": means["natural"] - means["neutral"],
        "neutral_over_unnatural": means["neutral"] - means["unnatural"],
        "gap": 100 * report.gap.estimate,
    }


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    if "family" in arm:
        means = [measured(scored("natural", seed, profile, *member)) for member in arm["family"]]
        spread = {kind: float(np.std([row[kind] for row in means], ddof=1)) for kind in VERBALIZER_KINDS}
        return {
            "natural_spread": spread["natural"],
            "unnatural_spread": spread["unnatural"],
            "spread_excess": spread["unnatural"] - 2 * spread["natural"],
        }
    if "real" in arm:
        report = real(seed, profile, arm["emphasised"], arm["rule"])
        results = {"unnatural": 100 * float(report.accuracy("unnatural").estimate or 0.0)}
        results |= {} if arm["emphasised"] else measured(report)
    else:
        model = arm["kind"], seed, profile, arm["stretch"], arm["wide"]
        report, lm = scored(*model), tuned(*model)
        generated = evaluate(lm, seed, profile, ["unnatural"], max_tokens=2)
        results = {
            **measured(report),
            "generated_unnatural": 100 * float(generated.accuracy("unnatural").estimate or 0.0),
            "off_format": 100 * max(row.off_format for row in generated.rows),
        }
        if arm.get("shuffled"):
            shuffled = evaluate(lm, seed, profile, ["natural"], mode="score", lead="", shuffled=True)
            results["shuffled_natural"] = 100 * float(shuffled.accuracy("natural").estimate or 0.0)
    log_figure("accuracy by verbalizer", figure(report))
    return {**results, "prior_following": 100 * (report.prior_following or 0.0)}


def figure(report: VerbalizerReport) -> dict[str, Any]:
    """Accuracy with its interval for each set of words."""
    order = [row.verbalizer.name for row in report.rows]
    shared = {
        "y": {"field": "verbalizer", "type": "nominal", "sort": order, "title": None},
        "color": {"field": "kind", "type": "nominal", "title": None},
    }
    x = {"type": "quantitative", "scale": {"domain": [0, 1]}, "title": "accuracy"}
    return {
        "data": {"values": report.table()},
        "layer": [
            {"mark": "rule", "encoding": {**shared, "x": {**x, "field": "low"}, "x2": {"field": "high"}}},
            {"mark": {"type": "point", "filled": True}, "encoding": {**shared, "x": {**x, "field": "accuracy"}}},
        ],
    }


def tuned_on(kind: str, stretch: float = 1.0, wide: bool = False) -> dict[str, Any]:
    return {"kind": kind, "stretch": stretch, "wide": wide}


HIGHER = (*VERBALIZER_KINDS, "natural_over_neutral", "neutral_over_unnatural", "generated_unnatural", "spread_excess")
LOWER = ("gap", "off_format", "prior_following", "shuffled_natural", "natural_spread", "unnatural_spread")
METRICS = dict.fromkeys(HIGHER, higher_is_better) | dict.fromkeys(LOWER, lower_is_better)

REAL_ARMS: dict[str, dict[str, Any]] = {
    "SmolLM2": {"real": "questions", "emphasised": False, "rule": True},
    "SmolLM2, emphasised": {"real": "questions", "emphasised": True, "rule": True},
    "SmolLM2, no rule": {"real": "questions", "emphasised": False, "rule": False},
}

study = Study(
    slug="verbalizer",
    title="Instruction-following evaluation through verbalizer manipulation",
    arms={
        "natural": tuned_on("natural") | {"shuffled": True},
        "neutral": tuned_on("neutral"),
        "randomised": tuned_on("randomised"),
        "shorter": tuned_on("natural", stretch=0.25),
        "longer": tuned_on("natural", stretch=2.0),
        "bigger": tuned_on("natural", wide=True),
        "family": {"family": ((0.25, False), (1.0, False), (2.0, False), (1.0, True))},
        **REAL_ARMS,
    },
    run=run,
    metrics=METRICS,
    optional=set(METRICS),
    claims=[
        at_least("natural", on="natural_over_neutral", value=0.0),
        at_least("natural", on="neutral_over_unnatural", value=0.0),
        at_least("natural", on="gap", value=25.0),
        at_most("natural", on="unnatural", value=45.0),
        better("randomised", than="natural", on="unnatural", margin=20.0),
        better("randomised", than="natural", on="natural", margin=-3.0),
        at_least("family", on="spread_excess", value=0.0),
        at_least("SmolLM2", on="natural_over_neutral", value=0.0),
        at_least("SmolLM2", on="neutral_over_unnatural", value=0.0),
        at_least("SmolLM2", on="gap", value=25.0),
        at_most("SmolLM2", on="unnatural", value=45.0),
        better("SmolLM2", than="SmolLM2, no rule", on="unnatural"),
        better("SmolLM2", than="SmolLM2, no rule", on="neutral"),
    ],
    checks=[
        at_least("natural", on="natural", value=90.0),
        at_most("natural", on="shuffled_natural", value=58.0),
        at_least("SmolLM2", on="natural", value=55.0),
    ],
    seeds={"smoke": 1, "laptop": 6},
    shared_setup=True,
    time_limit={"smoke": 180.0, "laptop": 900.0},
    needs=dict.fromkeys(REAL_ARMS, functools.partial(missing, (SMOL, QA))),
)
