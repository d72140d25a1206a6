"""Core: Six approaches that answer a sequence by a sequence, five networks and a nearest neighbour: a small population.

Source: arXiv:2310.17514 (Sun, Williams and Hupkes), section 3, compares six; deviation: none is pretrained.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from heldout.data import TokenVocabulary, as_pairs
from heldout.errors import check_at_least, check_nonempty, check_one_of, check_positive, checked
from heldout.measure import sequences_match
from heldout.method import Method, Run
from heldout.nn import ConvSeq2Seq, Seq2SeqLSTM, Seq2SeqTransformer
from heldout.train.sequences.fit_pairs import fit_pairs
from heldout.train.sequences.slot_neighbour import slot_neighbour


def _transformer(size: int, width: int, **options: Any) -> nn.Module:
    return Seq2SeqTransformer(size, dim=width, heads=4, layers=2, feedforward=2 * width, dropout=0.0, **options)


_NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "lstm": functools.partial(Seq2SeqLSTM, dropout=0.0),
    "bilstm": functools.partial(Seq2SeqLSTM, dropout=0.0, bidirectional=True),
    "transformer": _transformer,
    "relative-copy": functools.partial(_transformer, positions="relative", copy=True),
    "convolutions": functools.partial(ConvSeq2Seq, dropout=0.0),
}
SEQUENCE_APPROACHES = (*_NETWORKS, "slots")
"""LSTM, bidirectional LSTM, transformer, one with relative positions that may copy, convolutions, slot neighbour."""

APPROACH_RATES: Mapping[str, float] = MappingProxyType(
    {"lstm": 4e-2, "bilstm": 2e-2, "transformer": 5e-3, "relative-copy": 1e-2, "convolutions": 5e-3}
)
"""Rates of AdamW: each network's best on standard splits of the four ``COMPOSITION_SETS``, mean exact match after the
default steps, of 2.5e-3, 5e-3, 1e-2, 2e-2 and 4e-2, and 8e-2 for the one whose best was the last."""


@checked
def approach_scores(
    train: Sequence,
    test: Sequence,
    approaches: Sequence[str] = SEQUENCE_APPROACHES,
    *,
    runs: int = 2,
    steps: int = 240,
    width: int = 48,
    batch_size: int = 32,
    warmup: int = 30,
    longest: int = 72,
    rates: Mapping[str, float] = APPROACH_RATES,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Returns name -> the exact match on held-out pairs in each run of an approach, for ``concurrence_matrix``.

    The networks begin anew in each run, and take AdamW with a cosine for a number of steps; with the default width and
    100 words each has less than 0.3 million parameters. "slots" (see ``slot_neighbour``) sees another four fifths of
    the training pairs in each run.

    Args:
        train, test: ``(source, target)`` of texts or token sequences.
        approaches: which of ``SEQUENCE_APPROACHES``.
        runs: of each approach.
        steps: of a network's optimizer.
        width: of a network's hidden states, a multiple of 4.
        batch_size: pairs in a step.
        warmup: steps in which the rate rises.
        longest: tokens that are written at most; no more than the longest target has.
        rates: of AdamW, by network.
        seed: of the first run; each run has its own.

    Raises:
        ValueError: no pairs, unknown approaches, one without a rate, or numbers out of range.

    Source: arXiv:2310.17514, section 3.

    Example:
        >>> known = [("see cat", "SEE CAT"), ("see dog", "SEE DOG"), ("pet cat", "PET CAT")] * 2
        >>> approach_scores(known, [("pet dog", "PET DOG")], ["slots"])
        {'slots': [1.0, 1.0]}
    """
    check_nonempty(train=train, test=test, approaches=approaches, rates=rates)
    for name in approaches:
        check_one_of(SEQUENCE_APPROACHES, approaches=name)
        if name in _NETWORKS and name not in rates:
            raise ValueError(f"rates must be of all networks, {name} has none")
    check_at_least(1, runs=runs, steps=steps, width=width, longest=longest)
    check_at_least(2, batch_size=batch_size)
    check_at_least(0, seed=seed, warmup=warmup)
    for name, rate in rates.items():
        check_positive(**{f"rates[{name!r}]": rate})
    known, asked = as_pairs(train, "train"), as_pairs(test, "test")
    vocabulary = TokenVocabulary.of([*known, *asked])
    sources, targets = ([pair[side] for pair in asked] for side in (0, 1))
    length = min(longest, max(len(target) for target in targets) + 1)

    def written(name: str, seed: int) -> list[tuple[str, ...]]:
        if name == "slots":
            seen = random.Random(seed).sample(known, max(1, 4 * len(known) // 5))
            return slot_neighbour(seen).predict(sources)
        fitted = fit_pairs(
            lambda size: _NETWORKS[name](size, width),
            known,
            Method("fused", optimizer=_fused),
            vocabulary=vocabulary,
            steps=steps,
            rounds=1,
            batch_size=batch_size,
            learning_rate=rates[name],
            warmup=warmup,
            seed=seed,
        )
        return fitted.predict(sources, max_length=length)

    return {
        name: [
            sequences_match(written(name, 10 * seed + number), targets).double().mean().item() for number in range(runs)
        ]
        for name in approaches
    }


def _fused(run: Run, optimizer: Optimizer) -> Optimizer:
    """One kernel for all parameters: with networks so small, a tenth of the time."""
    for group in optimizer.param_groups:
        group["fused"] = True
    return optimizer
