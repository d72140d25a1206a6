"""data4comp: does a training set with more words, fewer repetitions or shorter examples teach a network to compose?

Claim. A Transformer that fails on a word which it has only seen alone ("jump") succeeds where the training set has more
words for the same slot; part of the gain comes from fewer repetitions of each example; indexed copies of all tokens
(AugZero) help as well; short examples generalize better than long ones. Source: arXiv:2311.04420 (Zhou, Jiang and
Bansal, EMNLP 2023).

World. mini-SCAN: one or two clauses of a primitive, a direction and a number of repetitions, 12 actions at most; 3
primitives that are composed and "jump", which is not. ``ood`` is the exact match on 300 commands in each of which
"jump" has a modifier and the command a conjunction; ``id`` is that on 300 commands without "jump" that are left out of
every training set. Accuracy by the length of the target is kept as a curve; ``ood_jumps`` is the share of commands for
which "I_JUMP" is written as often as it is due. Nothing is claimed of these.

Arms. All take 1,500 steps of one recipe with "jump" alone as a tenth of each batch. The last step counts: nothing is
selected, neither on a development set of the distribution nor, as in the paper, on a tenth of the test (its "good
dev"). ``x1`` has 1,185 commands; ``x20`` has 20 words for each primitive and 20 versions of each command;
``small-pool`` as many of these as ``x1`` has; ``augzero`` the commands of ``x1`` in 20 copies, and so "jump" alone in
20. ``short`` and ``long`` draw from the shorter and the longer half of ``x20``'s commands, with as many tokens in the
pool and in a batch.

Deviations. Two layers of 64 units instead of three of 256; greedy decoding instead of beams; AdamW with a cosine
instead of Noam's schedule; no dropout, with which a network knows less than 95 % of its own distribution after so few
steps. The paper's SCAN, GeoQuery, ATIS and SMCalFlow, and its mixtures of difficulty on natural language, are not here;
``difficulty_subset`` makes them of one's own data. Rate, dropout and steps were chosen by ``id``; the second layer, and
that ``x1`` has each primitive alone, on development seeds 1000 and 1001 with ``ood`` of ``x20`` in view. So ``x20``,
``augzero`` and ``short`` have every word alone; ``small-pool``, drawn at random, about a twentieth of them; ``long``
none but "jump".
"""

from __future__ import annotations

import functools
import random
from typing import Any, NamedTuple

import torch

from heldout.data import (
    SequencePair,
    ShareSampler,
    TokenVocabulary,
    augzero,
    difficulty_subset,
    expand_primitives,
)
from heldout.measure import match_by_length, repetition, sequences_match
from heldout.method import Batch, Method, Run
from heldout.nn import Seq2SeqTransformer
from heldout.study import Study, at_least, better, higher_is_better, log_curve, lower_is_better
from heldout.tasks import SCAN_PRIMITIVES, mini_scan
from heldout.train import fit_pairs

SLOTS = {word: action for word, action in SCAN_PRIMITIVES.items() if word != "jump"}
ALONE: SequencePair = (("jump",), ("I_JUMP",))
SHARE = 0.1  # of "jump" alone in each batch
BATCH = 40


class Size(NamedTuple):
    steps: int
    tested: int
    copies: int
    commands: int


SIZES = {"smoke": Size(10, 20, 3, 100), "laptop": Size(1500, 300, 20, 1185)}


def composed(source: tuple[str, ...]) -> bool:
    """Whether "jump" has a modifier of its own, in a command with a conjunction."""
    if "jump" not in source or not {"and", "after"} & set(source):
        return False
    at = source.index("jump")
    return at + 1 < len(source) and source[at + 1] not in ("and", "after")


def tokens(pairs: list[SequencePair]) -> float:
    return sum(len(source) + len(target) for source, target in pairs) / len(pairs)


def of_length(pairs: list[SequencePair], half: int, seed: int) -> list[SequencePair]:
    """The shorter (0) or longer half of the commands by their targets, cut to equally many tokens."""
    lengths = torch.tensor([float(len(target)) for _, target in pairs])
    halves = [list(difficulty_subset(pairs, lengths, [part], of=2)) for part in (0, 1)]  # type: ignore[arg-type, call-overload]
    fewest = min(tokens(part) * len(part) for part in halves)
    return random.Random(seed).sample(halves[half], int(fewest / tokens(halves[half])))


def training_set(arm: dict[str, Any], base: list[SequencePair], size: Size, seed: int) -> list[SequencePair]:
    if arm["data"] == "x1":
        return base
    if arm["data"] == "augzero":
        return augzero(base, size.copies)
    expanded = expand_primitives(base, SLOTS, size.copies, per_pair=size.copies, seed=seed)
    if arm["data"] == "small-pool":
        return random.Random(seed).sample(expanded, len(base))
    return expanded if arm["data"] == "x20" else of_length(expanded, arm["half"], seed)


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    size = SIZES[profile]
    grammar = mini_scan(SLOTS)
    known = grammar.sample(size.tested + size.commands - len(SLOTS), seed=seed, keep=lambda source: len(source) > 1)
    base = [*known[size.tested :], *(((word,), (action,)) for word, action in SLOTS.items())]
    pool = training_set(arm, base, size, seed)
    batch_size = BATCH if "half" not in arm else round(BATCH * tokens(base) / tokens(pool))
    alone = augzero([ALONE], size.copies) if arm["data"] == "augzero" else [ALONE]
    shown: list[int] = []

    def data(run: Run, train_set: Any) -> ShareSampler:
        mask = torch.arange(len(train_set)) >= len(pool)
        return ShareSampler(mask, SHARE, draws=len(train_set), seed=seed)

    def loss(run: Run, batch: Batch) -> torch.Tensor:
        shown.extend(batch.index.tolist())
        return run.objective(batch.logits, batch.targets)

    tests = {"id": known[: size.tested], "ood": mini_scan().sample(size.tested, seed=seed, keep=composed)}
    trained = fit_pairs(
        functools.partial(Seq2SeqTransformer, dim=64, heads=4, layers=2, dropout=0.0, positions="both"),
        [*pool, *alone],
        Method("shares", data=data, loss=loss),
        vocabulary=TokenVocabulary.of([*pool, *alone], *tests.values()),
        steps=size.steps,
        batch_size=batch_size,
        learning_rate=3e-3,
        warmup=100,
        seed=seed,
    )
    scores = {"repeats": repetition(i for i in shown if i < len(pool)).mean}
    for name, pairs in tests.items():
        written = trained.predict([source for source, _ in pairs], max_length=16)
        correct = sequences_match(written, [target for _, target in pairs])
        scores[name] = correct.double().mean().item()
        if name == "ood":
            due = [target.count("I_JUMP") for _, target in pairs]
            scores["ood_jumps"] = sum(row.count("I_JUMP") == n for row, n in zip(written, due, strict=True)) / len(due)
        for length, share in match_by_length(correct, torch.tensor([len(target) for _, target in pairs])).items():
            log_curve(f"{name}_by_length", length, share.estimate)
    return scores


study = Study(
    slug="data4comp",
    title="Data Factors for Better Compositional Generalization",
    arms={
        "x1": {"data": "x1"},
        "x20": {"data": "x20"},
        "small-pool": {"data": "small-pool"},
        "augzero": {"data": "augzero"},
        "short": {"data": "length", "half": 0},
        "long": {"data": "length", "half": 1},
    },
    run=run,
    metrics={
        "ood": higher_is_better,
        "ood_jumps": higher_is_better,
        "id": higher_is_better,
        "repeats": lower_is_better,
    },
    claims=[
        better("x20", than="x1", on="ood", margin=0.2),
        better("x20", than="small-pool", on="ood", margin=0.05),
        better("augzero", than="x1", on="ood", margin=0.05),
        better("short", than="long", on="ood", margin=0.05),
    ],
    checks=[at_least(arm, on="id", value=0.95) for arm in ("x1", "x20", "small-pool", "augzero")],
    seeds={"smoke": 1, "laptop": 5},
)
