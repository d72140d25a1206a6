"""Concurrence: do benchmarks that claim to test composition rank the same approaches in the same way?

Claim. C1: over pairs of different splits, the mean concurrence (Kendall's tau of all pairs of seeds) is at most 0.7 of
the noise ceiling, that of a split with itself. C2: two splits of one data set agree more, by 0.1 at least, than splits
of one kind of two data sets, with p < 0.05 where labels of data sets are permuted. C3: other words for what is held out
change the mean exact match of some approach by 0.1 at least, and the ranks: tau of the original with the modified set
lies more than 0.1 below the ceiling. Source: arXiv:2310.17514 (Sun, Williams and Hupkes, CoNLL 2023).

World. Four data sets, drawn anew for each seed: ``scan`` (commands of one or two clauses), ``cogs`` (sentences to
logical forms), ``pcfg`` (string edits) and ``places`` (questions to queries, 34 wordings; stands for what people
wrote). Splits: ``length``, ``template`` (no test template in training), ``mcd`` (new pairs of words), two of them for
each data set. Six approaches: an LSTM, one that reads in both directions, a transformer, one with relative positions
that may copy, convolutions, and ``slots``, the nearest training example with its slots filled anew, which stands for
grammars; each network has less than 0.3 million parameters. Two runs for each: networks begin anew, ``slots`` sees four
fifths of the examples. ``real``: five sets of real questions, of two aims (common sense and science: CommonsenseQA,
OpenBookQA, SIQA; yes or no by a passage: BoolQ, PubMedQA), over eight pretrained models: WordLlama's vectors cut to 16,
64 and 256 numbers and MiniLM with 2, 4 and all layers (cosine of question and option, of question and passage), and
SmolLM2 with 20 and all 30 layers (likelihood by letter, of "yes" against "no"). Exact match; accuracy, for yes and no
the area under the ROC curve. The two "runs" of a pretrained model are two halves of the questions.

Arms. One for each split, with the mean exact match of each approach; ``concurrence`` for the whole table. A split whose
approaches differ less than their runs do (in variance) is not informative: it is left out of the table, and its arm has
``informative`` 0. ``tau``, ``ceiling`` (halves of the runs) and ``null`` (97.5th percentile of tau for approaches of
unrelated skill) stand side by side, ``tau_of_means`` is that of mean scores. ``same_dataset`` and ``same_split`` are the
two means of C2. ``written_gain`` is exploratory: whether ``places`` agrees more with the rest than these do among
themselves (the paper's claim ii asks for two sets that people wrote). ``words-...``: in ``scan`` the word jump, in
``cogs`` cat is trained on alone and tested in composition, as it is or as a string of 7 to 14 random letters
(``random``) or of consonants and vowels in turn (``cvcv``); actions, nouns and what stands for them are spelled, one
letter a token.

Deviations. No pretrained network among the six; 300 steps with 32 examples, width 48; logical forms and queries without
brackets; splits ``standard`` are left out (all networks are to be ranked by what they do not know). ``real`` draws from
one pool of questions: intervals are over questions, not over models.
"""

from __future__ import annotations

import functools
import math
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from heldout.data import (
    HeldOutSplit,
    SequencePair,
    TokenVocabulary,
    anonymizer,
    length_split,
    mcd_split,
    ngrams,
    primitive_split,
    relexicalize,
    template_split,
)
from heldout.lm import TransformersLM, minilm, option_scores, smollm, text_features, word_vectors
from heldout.measure import ConcurrenceMatrix, concurrence_matrix, sequences_match
from heldout.nn import ConvSeq2Seq, Seq2SeqLSTM, Seq2SeqTransformer
from heldout.sources import MINI, QA, SMOL, WORD, missing
from heldout.study import Study, at_least, at_most, higher_is_better, lower_is_better
from heldout.tasks import (
    PLACE_NAMES,
    ChoiceQuestion,
    ScanGrammar,
    SentenceForms,
    StringEdits,
    choice_questions,
    mini_scan,
    place_questions,
)
from heldout.train import fit_pairs, slot_neighbour

Rows = list[dict[str, Any]]
RUNS = 2


class Setting(NamedTuple):
    pairs: int
    tested: int
    steps: int
    width: int
    longest: int  # tokens that are written
    atom_limit: float
    questions: tuple[int, int]  # of each set with options, and with yes and no
    layers: tuple[int, ...]  # of SmolLM2


SETTINGS = {
    "smoke": Setting(60, 4, 2, 8, 3, 0.9, (12, 8), (1,)),
    "laptop": Setting(1200, 200, 240, 48, 72, 0.02, (200, 100), (20, 30)),
}
NETWORKS: dict[str, tuple[Callable[[int, int], nn.Module], float]] = {  # and the rate of AdamW
    "lstm": (lambda size, width: Seq2SeqLSTM(size, width, dropout=0.0), 1e-2),
    "bilstm": (lambda size, width: Seq2SeqLSTM(size, width, dropout=0.0, bidirectional=True), 1e-2),
    "transformer": (lambda size, width: transformer(size, width), 5e-3),
    "relative-copy": (lambda size, width: transformer(size, width, positions="relative", copy=True), 5e-3),
    "convolutions": (lambda size, width: ConvSeq2Seq(size, width, dropout=0.0), 5e-3),
}
APPROACHES = (*NETWORKS, "slots")
FORMS = SentenceForms(depth=1, nesting=0.2)
SHORT_SCAN = ScanGrammar({word: word.upper() for word in ("walk", "look", "run", "jump")}, manners=(), turn=False)
SPLITS = {
    "scan": ("length", "mcd"),
    "pcfg": ("length", "mcd"),
    "cogs": ("template", "mcd"),
    "places": ("template", "mcd"),
}
WORDS = {"scan": "random", "cogs": "cvcv"}
AIMS = {
    "commonsenseqa": "choice",
    "openbookqa": "choice",
    "siqa": "choice",
    "boolq": "yes-no",
    "pubmedqa": "yes-no",
}


def transformer(size: int, width: int, **options: Any) -> nn.Module:
    return Seq2SeqTransformer(size, dim=width, heads=4, layers=2, feedforward=2 * width, dropout=0.0, **options)


def brief(pairs: Sequence[SequencePair], longest: int) -> list[SequencePair]:
    """Without brackets, full stops and commas in targets, those of at most some tokens."""
    found = [(source, tuple(token for token in target if token not in "().,")) for source, target in pairs]
    return [pair for pair in found if len(pair[1]) <= longest]


def drawn(name: str, count: int, seed: int) -> list[SequencePair]:
    if name == "scan":
        return mini_scan().sample(count, seed=seed)
    if name == "cogs":
        return brief(FORMS.sample(4 * count, seed=seed), 14)[:count]
    if name == "pcfg":
        edits = StringEdits(letters=tuple("ABCDEFGH"), max_functions=2, max_letters=3, max_output=9)
        return edits.sample(count, seed=seed)
    return brief(place_questions().sample(count, seed=seed), 20)


def template(name: str) -> Callable[[SequencePair], SequencePair]:
    """What is the same but for names: of nouns in sentences, of places in questions."""
    kinds = {"noun": FORMS.nouns, "name": FORMS.names} if name == "cogs" else PLACE_NAMES
    return anonymizer({word: f"[{kind}]" for kind, words in kinds.items() for word in words})


def split(name: str, kind: str, pairs: list[SequencePair], seed: int, limit: float) -> HeldOutSplit:
    if kind == "length":
        return length_split(pairs, train_share=0.7)
    if kind == "template":
        return template_split(pairs, template(name), seed=seed)
    return mcd_split(pairs, ngrams(1), ngrams(2), atom_limit=limit, seed=seed)


def scores(pairs: list[SequencePair], parts: HeldOutSplit, seed: int, profile: str) -> dict[str, list[float]]:
    """Exact match of each approach in each of its runs."""
    setting = SETTINGS[profile]
    train, test = ([pairs[i] for i in part.tolist()] for part in parts)
    test = random.Random(seed).sample(test, min(setting.tested, len(test)))
    vocabulary = TokenVocabulary.of(pairs)
    sources, targets = ([pair[side] for pair in test] for side in (0, 1))
    found: dict[str, list[float]] = {}
    for name in APPROACHES:
        for number in range(RUNS):
            if name == "slots":
                seen = random.Random(10 * seed + number).sample(train, max(1, 4 * len(train) // 5))
                written = slot_neighbour(seen).predict(sources)
            else:
                network, rate = NETWORKS[name]
                fitted = fit_pairs(
                    functools.partial(lambda make, size: make(size, setting.width), network),
                    train,
                    vocabulary=vocabulary,
                    steps=setting.steps,
                    rounds=2,
                    batch_size=32,
                    learning_rate=rate,
                    warmup=30,
                    seed=10 * seed + number,
                )
                longest = max(len(target) for target in targets) + 1
                written = fitted.predict(sources, max_length=min(longest, setting.longest))
            found.setdefault(name, []).append(sequences_match(written, targets).double().mean().item())
    return found


@functools.lru_cache(maxsize=16)
def of_split(name: str, kind: str, seed: int, profile: str) -> dict[str, list[float]]:
    pairs = drawn(name, SETTINGS[profile].pairs, seed)
    return scores(pairs, split(name, kind, pairs, seed, SETTINGS[profile].atom_limit), seed, profile)


@functools.lru_cache(maxsize=8)
def of_words(name: str, style: str, seed: int, profile: str) -> dict[str, list[float]]:
    """Of what composes a word that is known alone, in letters, with that word as it is or in other letters."""
    setting = SETTINGS[profile]
    if name == "scan":
        pairs = [pair for pair in SHORT_SCAN.pairs() if len(pair[0]) <= 5 and len(pair[1]) <= 4]
        pairs = random.Random(seed).sample(pairs, min(setting.pairs, len(pairs)))
        alone, renamed = [(word,) for word in SHORT_SCAN.primitives], ["jump", "JUMP"]
        pairs = [(word, (word[0].upper(),)) for word in alone] + [pair for pair in pairs if pair[0] not in alone]
        spelled = {token for word in SHORT_SCAN.primitives for token in (word, word.upper())}
    else:
        pairs = brief(FORMS.sample(6 * setting.pairs, seed=seed), 13)[: setting.pairs]
        pairs += [
            (source, tuple(t for t in target if t not in "().")) for source, target in map(FORMS.primitive, FORMS.nouns)
        ]
        renamed, spelled = ["cat"], set(FORMS.nouns)
    parts = primitive_split(pairs, renamed[0])
    if style != "original":
        changed = relexicalize(pairs, renamed, style, seed=seed, lengths=(7, 14))  # type: ignore[arg-type]
        pairs, spelled = changed.examples, spelled | set(changed.words.values())
    return scores([(letters(a, spelled), letters(b, spelled)) for a, b in pairs], parts, seed, profile)


def letters(tokens: Sequence[str], spelled: set[str]) -> tuple[str, ...]:
    """With some words as their letters, told apart from words by a mark, and an end."""
    return tuple(part for t in tokens for part in ([f"'{letter}" for letter in t] + ["'"] if t in spelled else [t]))


def rows_of(benchmark: str, found: Mapping[str, Sequence[float]]) -> Rows:
    return [
        {"model": model, "benchmark": benchmark, "seed": number, "score": score}
        for model, runs in found.items()
        for number, score in enumerate(runs)
    ]


def compared(rows: Rows, pairing: Any = "crossed") -> ConcurrenceMatrix:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scores that are all the same
        return concurrence_matrix(rows, pairing=pairing, resamples=1)


def informative(rows: Rows) -> Rows:
    """Those of benchmarks that tell approaches apart."""
    known = compared(rows).informative()
    return [row for row in rows if known[row["benchmark"]]]


def summary(rows: Rows, groups: Mapping[str, str], kinds: Mapping[str, str] | None, seed: int) -> dict[str, float]:
    """Agreement over all pairs of informative benchmarks, and within groups against between them."""
    rows = informative(rows)
    names = list(dict.fromkeys(row["benchmark"] for row in rows))
    found = {"informative": float(len(names))}
    if len(names) < 2:
        return found
    matrix, means = compared(rows), compared(rows, "mean")
    pairs = np.triu_indices(len(names), 1)
    ceiling = float(np.mean(list(matrix.ceiling(draws=20, seed=seed).values())))
    tau = float(np.mean(matrix.values[pairs]))
    found |= {
        "tau": tau,
        "ceiling": ceiling,
        "null": float(np.nanquantile(matrix.null("unrelated", seed=seed), 0.975)),
        "tau_of_means": float(np.mean(means.values[pairs])),
    }
    if ceiling > 0:
        found["share_of_ceiling"] = tau / ceiling
    try:
        tested = matrix.by_group(groups, against=kinds, seed=seed)
    except ValueError:  # too few are informative
        return found
    return found | {
        "same_dataset": tested.within,
        "same_split": tested.between,
        "same_dataset_gain": tested.difference,
        "p_value": tested.p_value,
    }


def whole_table(seed: int, profile: str) -> dict[str, float]:
    rows, groups, kinds = [], {}, {}
    for name, chosen in SPLITS.items():
        for kind in chosen:
            benchmark = f"{name}-{kind}"
            rows += rows_of(benchmark, of_split(name, kind, seed, profile))
            groups[benchmark], kinds[benchmark] = name, kind
    found = summary(rows, groups, kinds, seed)
    kept = informative(rows)
    if len({row["benchmark"] for row in kept}) > 1:
        matrix = compared(kept)
        across = {
            (a, b): matrix.value(a, b) for a in matrix.benchmarks for b in matrix.benchmarks if groups[a] < groups[b]
        }
        written = [value for pair, value in across.items() if "places" in (groups[pair[0]], groups[pair[1]])]
        others = [value for pair, value in across.items() if "places" not in (groups[pair[0]], groups[pair[1]])]
        if written and others:
            found["written_gain"] = float(np.mean(written) - np.mean(others))
    return found


def other_words(name: str, style: str, seed: int, profile: str) -> dict[str, float]:
    before, after = (of_words(name, each, seed, profile) for each in ("original", style))
    changes = [abs(float(np.mean(before[model]) - np.mean(after[model]))) for model in APPROACHES]
    noise = [abs(before[model][0] - before[model][1]) for model in APPROACHES]
    found = {"change": max(changes), "change_of_runs": max(noise)}
    rows = rows_of("original", before) + rows_of(style, after)
    if len(informative(rows)) == len(rows):
        matrix = compared(rows)
        tau, ceiling = matrix.value("original", style), float(np.mean(list(matrix.ceiling(seed=seed).values())))
        null = float(np.nanquantile(matrix.null("unrelated", seed=seed), 0.975))
        found |= {"tau": tau, "ceiling": ceiling, "null": null, "below_ceiling": ceiling - tau}
    return found


@functools.lru_cache(maxsize=1)
def answered(profile: str) -> dict[str, dict[str, tuple[list[float], list[int]]]]:
    """For each set and model: whether it is right, or how much it says yes; and the answers."""
    setting, found = SETTINGS[profile], {}
    encoder, tokenizer = minilm()
    languages = {f"smollm-{layers}": TransformersLM(*smollm(layers=layers)) for layers in setting.layers}
    for name, aim in AIMS.items():
        asked = [q for q in choice_questions(name) if aim == "choice" or q.options[q.answer] in ("yes", "no")]
        asked = random.Random(0).sample(asked, setting.questions[aim == "yes-no"])
        found[name] = {}
        for model in ("word-16", "word-64", "word-256", "minilm-2", "minilm-4", "minilm-6"):
            kind, size = model.split("-")
            if kind == "minilm":
                kept, encoder.encoder.layer = encoder.encoder.layer, encoder.encoder.layer[: int(size)]
                alike = similarities(asked, aim, lambda texts: text_features(encoder, tokenizer, texts, max_length=128))
                encoder.encoder.layer = kept
            else:
                alike = similarities(asked, aim, functools.partial(word_vectors, dim=int(size)))
            found[name][model] = judged(asked, aim, alike)
        for model, lm in languages.items():
            prompts = [prompt(question, aim) for question in asked]
            options = [[" yes", " no"] if aim == "yes-no" else [f" {each}" for each in q.options] for q in asked]
            said = option_scores(lm, prompts, options)
            lengths = [[len(each) if aim == "choice" else 1 for each in row] for row in options]
            found[name][model] = judged(
                asked, aim, [[a / n for a, n in zip(*each, strict=True)] for each in zip(said, lengths, strict=True)]
            )
    return found


def prompt(question: ChoiceQuestion, aim: str) -> str:
    passage = " ".join(question.passage.split()[:60])
    return f"{passage} Question: {question.question} Answer:".strip()


def similarities(
    asked: list[ChoiceQuestion], aim: str, vectors: Callable[[list[str]], torch.Tensor]
) -> list[list[float]]:
    """Cosines of questions with their options; of questions with their passages, as a "yes", against nothing."""
    others = [q.options if aim == "choice" else (" ".join(q.passage.split()[:60]),) for q in asked]
    questions = vectors([q.question if aim == "yes-no" else f"{q.passage} {q.question}".strip() for q in asked])
    options = vectors([text for row in others for text in row]).split([len(row) for row in others])
    found = [(row @ question).tolist() for question, row in zip(questions, options, strict=True)]
    return found if aim == "choice" else [[row[0], 0.0] for row in found]


def judged(asked: list[ChoiceQuestion], aim: str, said: list[list[float]]) -> tuple[list[float], list[int]]:
    if aim == "choice":
        return [float(int(np.argmax(row)) == q.answer) for row, q in zip(said, asked, strict=True)], [1] * len(asked)
    return [row[0] - row[1] for row in said], [int(q.options[q.answer] == "yes") for q in asked]


def real(seed: int, profile: str) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    rows = []
    for name, models in answered(profile).items():
        count = len(next(iter(models.values()))[0])
        order = np.random.default_rng(seed).permutation(count)[: 4 * count // 5]
        for model, (values, labels) in models.items():
            parts = [(np.array(values)[part], np.array(labels)[part]) for part in np.array_split(order, RUNS)]
            if AIMS[name] == "choice":
                runs = [float(part.mean()) for part, _ in parts]
            else:
                runs = [float(roc_auc_score(truth, part)) if 0 < truth.mean() < 1 else 0.5 for part, truth in parts]
            rows += rows_of(name, {model: runs})
    found = summary(rows, AIMS, None, seed)
    renamed = {"same_dataset": "same_aim", "same_split": "other_aim", "same_dataset_gain": "same_aim_gain"}
    return {renamed.get(name, name): value for name, value in found.items()}


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    if arm["what"] == "split":
        found = of_split(arm["data"], arm["kind"], seed, profile)
        told = compared([*rows_of("one", found), *rows_of("two", found)]).informative()["one"]
        metrics = {name: float(np.mean(runs)) for name, runs in found.items()} | {"informative": float(told)}
    elif arm["what"] == "words":
        metrics = other_words(arm["data"], arm["style"], seed, profile)
    else:
        metrics = (whole_table if arm["what"] == "table" else real)(seed, profile)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


ARMS: dict[str, dict[str, Any]] = {
    f"{name}-{kind}": {"what": "split", "data": name, "kind": kind} for name, kinds in SPLITS.items() for kind in kinds
}
ARMS["concurrence"] = {"what": "table"}
WORD_ARMS = {
    f"words-{name}-{style}": {"what": "words", "data": name, "style": style} for name, style in WORDS.items()
}
ARMS |= WORD_ARMS | {"real": {"what": "real"}}
METRICS = dict.fromkeys(
    (
        *(*APPROACHES, "informative", "tau", "ceiling", "null", "tau_of_means", "same_dataset", "same_split"),
        *("same_dataset_gain", "written_gain", "same_aim", "other_aim", "same_aim_gain", "change", "change_of_runs"),
        "below_ceiling",
    ),
    higher_is_better,
) | dict.fromkeys(("share_of_ceiling", "p_value"), lower_is_better)

study = Study(
    slug="concurrence",
    title="The Validity of Evaluation Results: Assessing Concurrence Across Compositionality Benchmarks",
    arms=ARMS,
    run=run,
    metrics=METRICS,
    optional=set(METRICS),
    needs={"real": functools.partial(missing, [QA, MINI, WORD, SMOL])},
    shared_setup=True,
    claims=[
        at_most("concurrence", on="share_of_ceiling", value=0.7),
        at_least("concurrence", on="same_dataset_gain", value=0.1),
        at_most("concurrence", on="p_value", value=0.05),
        *(at_least(arm, on=metric, value=0.1) for arm in WORD_ARMS for metric in ("change", "below_ceiling")),
        at_most("real", on="share_of_ceiling", value=0.7),
    ],
    checks=[at_least("concurrence", on="informative", value=4, text="at least 4 of 8 splits tell approaches apart")],
    seeds={"smoke": 1, "laptop": 3},
)
