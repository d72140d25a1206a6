"""Concurrence: do benchmarks that claim to test composition rank the same approaches in the same way?

Claim. C1: over pairs of different splits, the mean concurrence (Kendall's tau of all pairs of runs) is at most 0.7 of
the noise ceiling, that of a split with itself. C2: two splits of one data set agree more, by 0.1 at least, than splits
of one kind of two data sets, with p < 0.05 where labels of data sets are permuted. C3: other letters of what is held
out change the mean exact match of some approach by 0.1 at least, and the ranks: tau of the original with the modified
set lies more than 0.1 below the ceiling. Source: arXiv:2310.17514 (Sun, Williams and Hupkes, CoNLL 2023).

World. Four data sets, drawn anew for each seed (``composition_pairs``): ``scan``, ``pcfg``, ``cogs`` and ``places``,
which stands for what people wrote; two splits of each (``length``, ``template`` or ``mcd``), and six approaches
(``approach_scores``): two LSTMs, two transformers, convolutions, and ``slots``, which stands for grammars. Two runs of
each. ``real``: three sets of real questions of one aim, common sense (CommonsenseQA, OpenBookQA, SIQA), over seven
pretrained models (``small_models``): WordLlama's vectors cut to 16, 64 and 256 numbers, MiniLM with 2, 4 and 6 layers,
SmolLM2. Measured are exact match and accuracy. The two runs of a pretrained model are two halves of the questions,
which are drawn anew for each seed: intervals are over questions, not over models.

Arms. One for each split, with the mean exact match of each approach. A split whose approaches differ less than their
runs do (in variance) has ``informative`` 0 and is left out of the table. ``concurrence`` is the whole table: ``tau`` of
all pairs of runs, ``tau_of_halves`` of one run here and one there, ``ceiling`` of one run and the other of the same
split (what ``tau_of_halves`` can be compared with; its share is ``share_of_ceiling``), and ``null``, the 97.5th
percentile of one tau where skills are unrelated. ``same_group`` and ``other_group`` are the two means of C2.
``written_gain`` is exploratory: whether ``places`` agrees more with the others than these among themselves (the paper's
claim ii asks for two sets that people wrote). ``words-...``: a word is trained on alone and tested in composition, as
it is (the approaches' scores) or in 7 to 14 random letters, or of consonants and vowels in turn (``held_out_word``).
``change`` is the largest of a network, since ``slots`` compares words of as many letters and no others; so that noise
does not make it, it is found in one run and read in the other (``largest_change``). It is left out where no network has
0.1 with either word.

Deviations. No pretrained network among the six; 240 steps with 32 examples, width 48; logical forms and queries without
brackets, of at most 14 tokens; commands of the word arm repeat nothing; no ``standard`` splits in the table, which tell
what was learned, not what composes. The rates of the networks are those of ``APPROACH_RATES``, found on such splits.

Limits. ``below_ceiling`` is not judged where the word, as it is or in other letters, is composed by none or by all,
which tells no approaches apart: networks of this size come near to both. ``p_value`` has few labels to permute where
splits are left out. ``real`` is of one aim: BoolQ and PubMedQA (yes or no by a passage) are not judged, since in a
pilot with 60 questions of each they told no models apart, and hundreds do not fit into the time; OpenBookQA may be left
out of its table for the same reason.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from heldout.data import HeldOutSplit, SequencePair
from heldout.lm import small_models
from heldout.measure import ConcurrenceMatrix, concurrence_matrix, largest_change
from heldout.sources import MINI, QA, SMOL, WORD, missing
from heldout.study import Study, at_least, at_most, higher_is_better, lower_is_better
from heldout.tasks import choice_questions, composition_pairs, composition_split, held_out_word
from heldout.train import APPROACH_RATES, SEQUENCE_APPROACHES, approach_scores

RUNS = 2
CHANGE = 0.1
Scores = Mapping[str, Sequence[float]]  # of each approach, one for each run


class Setting(NamedTuple):
    pairs: int
    tested: int
    steps: int
    width: int
    longest: int  # tokens that are written
    atom_limit: float
    questions: int  # of each real set
    layers: tuple[int, ...]  # of SmolLM2


SETTINGS = {
    "smoke": Setting(60, 4, 2, 8, 3, 0.9, 12, ()),
    "laptop": Setting(1200, 200, 240, 48, 72, 0.02, 120, (30,)),
}
SPLITS = {
    "scan": ("length", "mcd"),
    "pcfg": ("length", "mcd"),
    "cogs": ("template", "mcd"),
    "places": ("template", "mcd"),
}
WORDS = {"scan": "random", "cogs": "cvcv"}
REAL = ("commonsenseqa", "openbookqa", "siqa")


def scores(pairs: list[SequencePair], split: HeldOutSplit, seed: int, setting: Setting) -> Scores:
    """Exact match of each approach in each of its runs."""
    train, test = ([pairs[i] for i in part.tolist()] for part in split)
    test = random.Random(seed).sample(test, min(setting.tested, len(test)))
    steps, width, longest = setting.steps, setting.width, setting.longest
    return approach_scores(train, test, runs=RUNS, steps=steps, width=width, longest=longest, seed=seed)


@functools.lru_cache(maxsize=16)
def of_split(name: str, kind: str, seed: int, profile: str) -> Scores:
    setting = SETTINGS[profile]
    pairs = composition_pairs(name, setting.pairs, seed=seed)  # type: ignore[arg-type]
    split = composition_split(name, kind, pairs, seed=seed, atom_limit=setting.atom_limit)  # type: ignore[arg-type]
    return scores(pairs, split, seed, setting)


@functools.lru_cache(maxsize=1)
def of_questions(seed: int, profile: str) -> dict[str, Scores]:
    """Of each pretrained model on two halves of the questions of each set, in which answers are equally frequent."""
    setting = SETTINGS[profile]
    found: dict[str, Scores] = {}
    models = small_models(setting.layers)
    for name in REAL:
        questions = choice_questions(name)
        asked = random.Random(seed).sample(questions, min(setting.questions, len(questions)))
        asked.sort(key=lambda question: question.answer)
        answers = np.array([question.answer for question in asked])
        right = {model: np.array([np.argmax(row) for row in said(asked)]) == answers for model, said in models.items()}
        found[name] = {model: [float(each[half::RUNS].mean()) for half in range(RUNS)] for model, each in right.items()}
    return found


def compared(tables: Mapping[str, Scores]) -> ConcurrenceMatrix:
    """Of benchmark -> approach -> runs."""
    rows = [
        {"model": model, "benchmark": benchmark, "seed": number, "score": score}
        for benchmark, table in tables.items()
        for model, runs in table.items()
        for number, score in enumerate(runs)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scores that are all the same
        return concurrence_matrix(rows, resamples=0)


def told(matrix: ConcurrenceMatrix) -> list[str]:
    """The benchmarks that tell approaches apart."""
    return [name for name, is_told in matrix.informative().items() if is_told]


def agreement(matrix: ConcurrenceMatrix, seed: int) -> dict[str, float]:
    """Over all pairs of informative benchmarks; nothing where there are fewer than two."""
    names = told(matrix)
    if len(names) < 2:
        return {}
    found = matrix.only(names).summary(seed=seed)
    shown = ("tau", "tau_of_halves", "ceiling", "share_of_ceiling", "null")
    return dict(zip(shown, found[:5], strict=True))


def whole_table(seed: int, profile: str) -> dict[str, float]:
    where = {f"{name}-{kind}": (name, kind) for name, kinds in SPLITS.items() for kind in kinds}
    matrix = compared({benchmark: of_split(*at, seed, profile) for benchmark, at in where.items()})
    groups, kinds = ({benchmark: at[i] for benchmark, at in where.items()} for i in (0, 1))
    names = told(matrix)
    found = {"informative": float(len(names))} | agreement(matrix, seed)
    with contextlib.suppress(ValueError):  # too few are informative
        tested = matrix.only(names).by_group(groups, against=kinds, seed=seed)
        found |= dict(zip(("same_group", "other_group", "same_group_gain", "p_value"), tested[:4], strict=True))
    agreeing: dict[bool, list[float]] = {True: [], False: []}
    for a, b in itertools.combinations(names, 2):
        if groups[a] != groups[b]:
            agreeing["places" in (groups[a], groups[b])].append(matrix.value(a, b))
    if all(agreeing.values()):
        found["written_gain"] = float(np.mean(agreeing[True]) - np.mean(agreeing[False]))
    return found


def other_words(name: str, style: str, seed: int, profile: str) -> dict[str, float]:
    tables = {}
    for each in ("original", style):
        pairs, split = held_out_word(name, each, SETTINGS[profile].pairs, seed=seed)  # type: ignore[arg-type]
        tables[each] = scores(pairs, split, seed, SETTINGS[profile])
    found = agreement(compared(tables), seed)
    before, after = ({name: table[name] for name in APPROACH_RATES} for table in tables.values())
    if max(float(np.mean(runs)) for table in (before, after) for runs in table.values()) >= CHANGE:
        found["change"] = largest_change(before, after)
    if "ceiling" in found:
        found["below_ceiling"] = found["ceiling"] - found["tau_of_halves"]
    return found | {model: float(np.mean(runs)) for model, runs in tables["original"].items()}


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    if arm["what"] == "split":
        found = of_split(arm["data"], arm["kind"], seed, profile)
        is_told = compared({"one": found, "two": found}).informative()["one"]
        metrics = {name: float(np.mean(runs)) for name, runs in found.items()} | {"informative": float(is_told)}
    elif arm["what"] == "words":
        metrics = other_words(arm["data"], arm["style"], seed, profile)
    elif arm["what"] == "table":
        metrics = whole_table(seed, profile)
    else:
        matrix = compared(of_questions(seed, profile))
        metrics = {"informative": float(len(told(matrix)))} | agreement(matrix, seed)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


ARMS: dict[str, dict[str, Any]] = {
    f"{name}-{kind}": {"what": "split", "data": name, "kind": kind} for name, kinds in SPLITS.items() for kind in kinds
}
ARMS["concurrence"] = {"what": "table"}
WORD_ARMS = {f"words-{name}-{style}": {"what": "words", "data": name, "style": style} for name, style in WORDS.items()}
ARMS |= WORD_ARMS | {"real": {"what": "real"}}
METRICS = dict.fromkeys(
    (
        *(*SEQUENCE_APPROACHES, "informative", "tau", "tau_of_halves", "ceiling", "null", "same_group", "other_group"),
        *("same_group_gain", "written_gain", "change", "below_ceiling"),
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
        *(at_least(arm, on=metric, value=CHANGE) for arm in WORD_ARMS for metric in ("change", "below_ceiling")),
        at_most("real", on="share_of_ceiling", value=0.7),
    ],
    checks=[at_least("concurrence", on="informative", value=4, text="at least 4 of 8 splits tell approaches apart")],
    seeds={"smoke": 1, "laptop": 3},
)
