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
fifths of the examples. ``real``: five
sets of real questions, of two aims (common sense and science: CommonsenseQA, OpenBookQA, SIQA; yes or no by a passage:
BoolQ, PubMedQA), over eight pretrained models: WordLlama's vectors cut to 16, 64 and 256 numbers and MiniLM with 2, 4
and all layers (cosine of question and option, of question and passage), and SmolLM2 with 20 and all 30 layers
(likelihood of each option by letter, of "yes" against "no"). Measured are exact match, accuracy, and for yes and no the
area under the ROC curve. The two runs of a pretrained model are two halves of the questions.

Arms. One for each split, with the mean exact match of each approach. A split whose approaches differ less than their
runs do (in variance) has ``informative`` 0 and is left out of the table. ``concurrence`` is the whole table: ``tau`` of
all pairs of runs, ``tau_of_halves`` of one run here and one there, ``ceiling`` of one run and the other of the same
split (what ``tau_of_halves`` can be compared with; its share is ``share_of_ceiling``), and ``null``, the 97.5th
percentile of one tau where skills are unrelated. ``same_group`` and ``other_group`` are the two means of C2, in
``real`` those of sets of one aim and of two. ``written_gain`` is exploratory: whether ``places`` agrees more with the
others than these among themselves (the paper's claim ii asks for two sets that people wrote). ``words-...``: in
``scan`` the word jump, in ``cogs`` cat is trained on alone and tested in composition, as it is or as a string of 7 to
14 random letters, or of consonants and vowels in turn; actions, nouns and what stands for them are spelled, a letter a
token. ``change`` is the largest difference of an approach's means, ``change_of_runs`` that of its two runs.

Deviations. No pretrained network among the six; 240 steps with 32 examples (200 in letters), width 48; logical forms
and queries without brackets, of at most 14 tokens; no ``standard`` splits, which all approaches are to solve. Rates of
AdamW are those that did best on a standard split of ``scan`` alone, of 3e-3 to 2e-2, not all tried for each network.
``real`` draws from one pool of questions, so that intervals
are over questions, not over models.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from heldout.data import (
    HeldOutSplit,
    SequencePair,
    TokenVocabulary,
    anonymizer,
    as_pairs,
    length_split,
    mcd_split,
    ngrams,
    primitive_split,
    relexicalize,
    spell_words,
    template_split,
)
from heldout.lm import small_models
from heldout.measure import ConcurrenceMatrix, concurrence_matrix, sequences_match
from heldout.nn import ConvSeq2Seq, Seq2SeqLSTM, Seq2SeqTransformer
from heldout.sources import MINI, QA, SMOL, WORD, missing
from heldout.study import Study, at_least, at_most, higher_is_better, lower_is_better
from heldout.tasks import (
    PLACE_NAMES,
    ScanGrammar,
    SentenceForms,
    StringEdits,
    choice_questions,
    mini_scan,
    place_questions,
)
from heldout.train import fit_pairs, slot_neighbour

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
    "smoke": Setting(60, 4, 2, 8, 3, 0.9, (12, 20), ()),
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


def scores(pairs: list[SequencePair], parts: HeldOutSplit, seed: int, setting: Setting) -> dict[str, list[float]]:
    """Exact match of each approach in each of its runs."""
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
                    rounds=1,
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
    setting = SETTINGS[profile]
    pairs = drawn(name, setting.pairs, seed)
    return scores(pairs, split(name, kind, pairs, seed, setting.atom_limit), seed, setting)


@functools.lru_cache(maxsize=8)
def of_words(name: str, style: str, seed: int, profile: str) -> dict[str, list[float]]:
    """Of what composes a word that is known alone, in letters, with that word as it is or in other letters."""
    setting = SETTINGS[profile]._replace(steps=SETTINGS[profile].steps * 5 // 6)
    if name == "scan":
        pairs = [pair for pair in SHORT_SCAN.pairs() if len(pair[0]) <= 5 and len(pair[1]) <= 4]
        alone = list(SHORT_SCAN.primitives.items())
        held_out, spelled = ["jump", "JUMP"], [token for pair in alone for token in pair]
    else:
        pairs = brief(FORMS.sample(6 * setting.pairs, seed=seed), 13)
        alone = brief([FORMS.primitive(noun) for noun in FORMS.nouns], 13)  # type: ignore[assignment]
        held_out, spelled = ["cat"], list(FORMS.nouns)
    pairs = random.Random(seed).sample(pairs, min(setting.pairs, len(pairs)))
    pairs = list(dict.fromkeys([*as_pairs(alone), *pairs]))
    parts = primitive_split(pairs, held_out[0])
    if style != "original":
        changed = relexicalize(pairs, held_out, style, seed=seed, lengths=(7, 14))  # type: ignore[arg-type]
        pairs, spelled = changed.examples, [changed.words.get(word, word) for word in spelled]
    return scores(spell_words(pairs, spelled), parts, seed, setting)


def compared(tables: Mapping[str, Mapping[str, Sequence[float]]]) -> ConcurrenceMatrix:
    """Of benchmark -> approach -> runs."""
    rows = [
        {"model": model, "benchmark": benchmark, "seed": number, "score": score}
        for benchmark, table in tables.items()
        for model, runs in table.items()
        for number, score in enumerate(runs)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scores that are all the same
        return concurrence_matrix(rows, resamples=1)


def told(matrix: ConcurrenceMatrix) -> list[str]:
    """The benchmarks that tell approaches apart."""
    return [name for name, is_told in matrix.informative().items() if is_told]


def summary(matrix: ConcurrenceMatrix, groups: Mapping[str, str], kinds: Any, seed: int) -> dict[str, float]:
    """Agreement over all pairs of informative benchmarks, and within groups against between them."""
    names = told(matrix)
    found = {"informative": float(len(names))}
    if len(names) < 2:
        return found
    kept = matrix.only(names)
    of_all = kept.summary(seed=seed)
    found |= {
        "tau": of_all.value,
        "tau_of_halves": of_all.halves,
        "ceiling": of_all.ceiling,
        "share_of_ceiling": of_all.share,
        "null": of_all.null,
    }
    try:
        tested = kept.by_group(groups, against=kinds, seed=seed)
    except ValueError:  # too few are informative
        return found
    names_of_means = ("same_group", "other_group", "same_group_gain", "p_value")
    return found | dict(zip(names_of_means, tested[:4], strict=True))


def whole_table(seed: int, profile: str) -> dict[str, float]:
    where = {f"{name}-{kind}": (name, kind) for name, kinds in SPLITS.items() for kind in kinds}
    matrix = compared({benchmark: of_split(*at, seed, profile) for benchmark, at in where.items()})
    groups, kinds = ({benchmark: at[i] for benchmark, at in where.items()} for i in (0, 1))
    found = summary(matrix, groups, kinds, seed)
    pairs = [(a, b) for a, b in itertools.combinations(told(matrix), 2) if groups[a] != groups[b]]
    agreeing: dict[bool, list[float]] = {True: [], False: []}
    for a, b in pairs:
        agreeing["places" in (groups[a], groups[b])].append(matrix.value(a, b))
    if all(agreeing.values()):
        found["written_gain"] = float(np.mean(agreeing[True]) - np.mean(agreeing[False]))
    return found


def other_words(name: str, style: str, seed: int, profile: str) -> dict[str, float]:
    tables = {each: of_words(name, each, seed, profile) for each in ("original", style)}
    before, after = tables.values()
    found = {
        "change": max(abs(float(np.mean(before[model]) - np.mean(after[model]))) for model in APPROACHES),
        "change_of_runs": max(abs(before[model][0] - before[model][1]) for model in APPROACHES),
    }
    matrix = compared(tables)
    if len(told(matrix)) == 2:
        of_pair = matrix.summary(seed=seed)
        found |= {
            "tau": of_pair.value,
            "tau_of_halves": of_pair.halves,
            "ceiling": of_pair.ceiling,
            "null": of_pair.null,
            "below_ceiling": of_pair.ceiling - of_pair.halves,
        }
    return found


@functools.lru_cache(maxsize=1)
def answered(profile: str) -> dict[str, tuple[dict[str, np.ndarray], np.ndarray]]:
    """For each set: whether each model is right, or how much it says yes, by model; and whether the answer is yes."""
    setting, found = SETTINGS[profile], {}
    models = small_models(setting.layers)
    for name, aim in AIMS.items():
        asked = [q._replace(options=q.options[:2]) if aim == "yes-no" else q for q in choice_questions(name)]
        asked = [question for question in asked if question.answer < len(question.options)]  # PubMedQA has "maybe"
        asked = random.Random(0).sample(asked, setting.questions[aim == "yes-no"])
        answers = np.array([question.answer for question in asked])
        said = {model: choose(asked) for model, choose in models.items()}
        if aim == "choice":
            judged = {model: np.array([np.argmax(row) for row in rows]) == answers for model, rows in said.items()}
        else:
            judged = {model: np.array([yes - no for no, yes in rows]) for model, rows in said.items()}
        found[name] = judged, answers == 1
    return found


def real(seed: int, profile: str) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    tables: dict[str, dict[str, list[float]]] = {}
    for name, (judged, yes) in answered(profile).items():
        order = np.random.default_rng(seed).permutation(len(yes))[: 4 * len(yes) // 5]
        parts = np.array_split(order, RUNS)
        if AIMS[name] == "choice":
            tables[name] = {model: [float(right[part].mean()) for part in parts] for model, right in judged.items()}
        else:
            tables[name] = {
                model: [
                    float(roc_auc_score(yes[part], score[part])) if len({*yes[part]}) > 1 else 0.5 for part in parts
                ]
                for model, score in judged.items()
            }
    return summary(compared(tables), AIMS, None, seed)


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    if arm["what"] == "split":
        found = of_split(arm["data"], arm["kind"], seed, profile)
        is_told = compared({"one": found, "two": found}).informative()["one"]
        metrics = {name: float(np.mean(runs)) for name, runs in found.items()} | {"informative": float(is_told)}
    elif arm["what"] == "words":
        metrics = other_words(arm["data"], arm["style"], seed, profile)
    else:
        metrics = (whole_table if arm["what"] == "table" else real)(seed, profile)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


ARMS: dict[str, dict[str, Any]] = {
    f"{name}-{kind}": {"what": "split", "data": name, "kind": kind} for name, kinds in SPLITS.items() for kind in kinds
}
ARMS["concurrence"] = {"what": "table"}
WORD_ARMS = {f"words-{name}-{style}": {"what": "words", "data": name, "style": style} for name, style in WORDS.items()}
ARMS |= WORD_ARMS | {"real": {"what": "real"}}
METRICS = dict.fromkeys(
    (
        *(*APPROACHES, "informative", "tau", "tau_of_halves", "ceiling", "null", "same_group", "other_group"),
        *("same_group_gain", "written_gain", "change", "change_of_runs", "below_ceiling"),
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
        at_least("concurrence", on="same_group_gain", value=0.1),
        at_most("concurrence", on="p_value", value=0.05),
        *(at_least(arm, on=metric, value=0.1) for arm in WORD_ARMS for metric in ("change", "below_ceiling")),
        at_most("real", on="share_of_ceiling", value=0.7),
    ],
    checks=[at_least("concurrence", on="informative", value=4, text="at least 4 of 8 splits tell approaches apart")],
    seeds={"smoke": 1, "laptop": 3},
)
