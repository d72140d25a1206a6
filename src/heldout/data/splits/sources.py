"""A split by novel compositions, told apart by where their parts come from: words, what is seen, or one of each.

Source: arXiv:2505.23045 (Li et al., IJCAI 2025), which builds GQA-MSCG so. For one's own questions and pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from heldout.data.splits.combinations import combination_leaks
from heldout.errors import check_nonempty, check_one_of, checked

PAIR_SOURCES = ("LL", "VV", "LV")
"""Both parts are words, both are seen, one is a word and one is seen."""
Pair = tuple[Hashable, ...]
PairsOf = Callable[[Any], Iterable[tuple[Pair, str]]]


class SourceSplit(NamedTuple):
    """Positions of what is trained on, and of what has a held-out pair, by its source.

    Attributes:
        train: int64 ``(n,)``: no held-out pair is there, from whatever source.
        tests: int64 positions by source; an example with several is in the test of each.
        sources: for each example the sources of its held-out pairs; none for those that are trained on.

    Example:
        >>> new = ("blue", "disc")
        >>> asked = [[(("red", "disc"), "LL")], [(("blue", "ring"), "VV")], [(new, "LL"), (new, "VV")]]
        >>> split = source_split(asked, lambda each: each, [new])
        >>> {source: at.tolist() for source, at in split.tests.items()}, split.sources[0]
        ({'LL': [2], 'VV': [2], 'LV': []}, frozenset())
    """

    train: Tensor
    tests: dict[str, Tensor]
    sources: list[frozenset[str]]


@checked
def source_split(examples: Sequence[Any], pairs: PairsOf, held_out: Collection[Pair]) -> SourceSplit:
    """Returns a split in which held-out pairs are in no training example, while each of their parts is.

    Args:
        examples: anything.
        pairs: from an example to all the pairs it has in its question, its picture and its answer, each with its
            source of ``PAIR_SOURCES``. A pair is a tuple of values that says the same whatever the source.
        held_out: pairs.

    Raises:
        ValueError: no examples or pairs, a held-out pair that no example has, a part of one that no training example
            has, another source, or pairs of different lengths.

    Source: arXiv:2505.23045: a composition is novel if both primitives are in training and the two never together,
        in any modality.

    Example:
        >>> asked = [[(("red", "disc"), "LL")], [(("red", "ring"), "VV")], [(("blue", "disc"), "LV")],
        ...          [(("blue", "ring"), "LV"), (("red", "disc"), "VV")]]
        >>> split = source_split(asked, lambda each: each, {("blue", "ring")})
        >>> split.train.tolist(), split.tests["LV"].tolist(), split.sources[3]
        ([0, 1, 2], [3], frozenset({'LV'}))
    """
    check_nonempty(examples=examples, held_out=held_out)
    unseen = {tuple(each) for each in held_out}
    sources, known, met = [], set[Pair](), set[Pair]()
    for example in examples:
        every = [(tuple(pair), source) for pair, source in pairs(example)]
        for _, source in every:
            check_one_of(PAIR_SOURCES, pairs=source)
        found = frozenset(source for pair, source in every if pair in unseen)
        sources.append(found)
        met |= {pair for pair, _ in every}
        if not found:
            known |= {pair for pair, _ in every}
    if missing := sorted(map(repr, unseen - met)):
        raise ValueError(f"held_out must be pairs that occur, got {missing[0]}")
    if not known:
        raise ValueError("held_out must leave examples to train on")
    order = sorted(unseen, key=repr)
    lost = combination_leaks(sorted(known, key=repr), order).values
    if len(lost):
        raise ValueError(f"held_out must have parts that are trained on, which {order[int(lost[0])]!r} has not")
    mask = torch.tensor([not each for each in sources])
    tests = {
        source: torch.tensor([i for i, each in enumerate(sources) if source in each], dtype=torch.int64)
        for source in PAIR_SOURCES
    }
    return SourceSplit(mask.nonzero().squeeze(1), tests, sources)
