"""Core: Compositional splits of one's own sequence pairs: by length, by template, by a word; and what leaks in them.

Source: arXiv:2310.17514 (Sun, Williams and Hupkes) for the collection; arXiv:1711.00350 for length and held-out words;
Finegan-Dollak et al., arXiv:1806.09029, for templates.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from heldout.data.pairs.tokens import SequencePair, as_pairs, as_tokens
from heldout.errors import check_at_least, check_dimensions, check_labels, check_nonempty, checked

Side = Literal["source", "target"]


class HeldOutSplit(NamedTuple):
    """Positions of what is trained on and of what is held out.

    Attributes:
        train: int64 ``(n,)``, in rising order.
        test: int64 ``(m,)``, in rising order.

    Example:
        >>> split = HeldOutSplit.by(torch.tensor([False, True, False]))
        >>> split.train.tolist(), split.test.tolist()
        ([0, 2], [1])
    """

    train: Tensor
    test: Tensor

    @classmethod
    def by(cls, held_out: Tensor) -> HeldOutSplit:
        """Returns the split of a mask: bool ``(n,)``, what is held out."""
        return cls((~held_out).nonzero().squeeze(1), held_out.nonzero().squeeze(1))


@checked
def length_split(
    examples: Sequence, *, side: Side = "target", train_share: float = 0.5, longest: int | None = None
) -> HeldOutSplit:
    """Returns a split in which every training example is shorter than every held-out one.

    Args:
        examples: pairs ``(source, target)`` of texts or token sequences.
        side: whose length counts, in tokens.
        train_share: of the examples; the nearest share is taken at which examples of one length stay together.
        longest: length of the longest training examples, instead of a share.

    Raises:
        ValueError: all examples are of one length, a share outside of (0, 1), or ``longest`` leaves a part empty.

    Source: arXiv:1711.00350, experiment 2.

    Example:
        >>> length_split([("a", "A"), ("b c d", "B C D"), ("e f", "E F")], longest=2)
        HeldOutSplit(train=tensor([0, 2]), test=tensor([1]))
    """
    lengths = torch.tensor([len(pair[side == "target"]) for pair in as_pairs(examples)])
    if not 0 < train_share < 1:
        raise ValueError(f"train_share must lie in (0, 1), got {train_share}")
    values, counts = lengths.unique(return_counts=True)
    if longest is None:
        if len(values) == 1:
            raise ValueError(f"examples must differ in length, got {len(lengths)} of length {int(values[0])}")
        shares = counts.cumsum(0)[:-1] / len(lengths)
        longest = int(values[(shares - train_share).abs().argmin()])
    if not int(values[0]) <= longest < int(values[-1]):
        raise ValueError(f"longest must be from {int(values[0])} to {int(values[-1]) - 1}, got {longest}")
    return HeldOutSplit.by(lengths > longest)


@checked
def template_split(
    examples: Sequence,
    anonymize: Callable[[SequencePair], Hashable],
    *,
    test_share: float = 0.2,
    seed: int = 0,
) -> HeldOutSplit:
    """Returns a split in which no held-out template occurs in training.

    Templates are held out in random order until they make up the share, or until one is left.

    Args:
        examples: pairs ``(source, target)`` of texts or token sequences.
        anonymize: the template of a pair of token tuples: the same for pairs that differ in names and values only. See
            ``anonymizer``.
        test_share: of the examples, at least; less where the templates but the last drawn have less.
        seed: of the choice of templates.

    Raises:
        ValueError: one template only, or a share outside of (0, 1).

    Source: arXiv:1806.09029, section 4: the query split.

    Example:
        >>> pairs = [("see cat", "SEE CAT"), ("see dog", "SEE DOG"), ("cat ran", "RAN CAT"), ("dog ran", "RAN DOG")]
        >>> split = template_split(pairs, anonymizer({"cat": "N", "dog": "N", "CAT": "N", "DOG": "N"}), test_share=0.5)
        >>> sorted([split.train.tolist(), split.test.tolist()])
        [[0, 1], [2, 3]]
    """
    check_at_least(0, seed=seed)
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must lie in (0, 1), got {test_share}")
    members: dict[Hashable, list[int]] = {}
    pairs = as_pairs(examples)
    for position, pair in enumerate(pairs):
        members.setdefault(_template(anonymize, pair), []).append(position)
    if len(members) < 2:
        raise ValueError("anonymize must give 2 templates at least, got the same for all examples")
    held_out = torch.zeros(len(pairs), dtype=torch.bool)
    for template in random.Random(seed).sample(list(members), len(members) - 1):
        held_out[members[template]] = True
        if int(held_out.sum()) >= test_share * len(pairs):
            break
    return HeldOutSplit.by(held_out)


@checked
def anonymizer(classes: Mapping[str, str]) -> Callable[[SequencePair], SequencePair]:
    """Returns a function that writes the class of a token in its place, in both sides: the templates of pairs.

    Args:
        classes: token -> what it is replaced by.

    Example:
        >>> anonymizer({"cat": "N", "CAT": "N"})((("see", "cat"), ("SEE", "CAT")))
        (('see', 'N'), ('SEE', 'N'))
    """
    check_nonempty(classes=classes)

    def anonymize(pair: SequencePair) -> SequencePair:
        source, target = pair
        return tuple(classes.get(token, token) for token in source), tuple(
            classes.get(token, token) for token in target
        )

    return anonymize


@checked
def primitive_split(examples: Sequence, word: str) -> HeldOutSplit:
    """Returns a split in which a word is trained on alone, and every example that composes it is held out.

    Args:
        examples: pairs ``(source, target)`` of texts or token sequences.
        word: of sources; several tokens with spaces between them ("turn left") are one phrase.

    Raises:
        ValueError: the word does not occur, never alone, or never in composition.

    Source: arXiv:1711.00350, experiment 3.

    Example:
        >>> primitive_split([("jump", "JUMP"), ("jump twice", "JUMP JUMP"), ("walk", "WALK")], "jump")
        HeldOutSplit(train=tensor([0, 2]), test=tensor([1]))
    """
    phrase = _phrase(word)
    sources = [source for source, _ in as_pairs(examples)]
    alone = [source == phrase for source in sources]
    composed = torch.tensor([_composes(source, phrase) for source in sources])
    if not any(alone) and not composed.any():
        raise ValueError(f"word must occur in the sources, got {word!r}")
    if not any(alone):
        raise ValueError(f"word must occur alone, or it is never trained on: add an example of {word!r} alone")
    if not composed.any():
        raise ValueError(f"word must occur in composition, or nothing is held out: {word!r} occurs only alone")
    return HeldOutSplit.by(composed)


class SplitLeaks(NamedTuple):
    """What a split of pairs lets through; each entry holds positions, int64, in rising order.

    Attributes:
        overlap: in training and test alike.
        pairs: test positions whose pair is also trained on.
        sources: test positions whose source is also trained on, with whatever target.
        word: training positions that compose the held-out word.
        templates: test positions whose template is also trained on.
        lengths: test positions that are not longer than the longest training example.

    Example:
        >>> pairs = [("jump", "JUMP"), ("jump", "LEAP"), ("walk twice", "WALK WALK")]
        >>> leaks = split_leaks(pairs, torch.tensor([0, 2]), torch.tensor([1]), longer="source")
        >>> leaks.sources.tolist(), leaks.pairs.tolist(), leaks.lengths.tolist(), leaks.total
        ([1], [], [1], 2)
    """

    overlap: Tensor
    pairs: Tensor
    sources: Tensor
    word: Tensor
    templates: Tensor
    lengths: Tensor

    @property
    def total(self) -> int:
        """How many positions leak, each counted once for each way; 0 is what a split should have."""
        return sum(map(len, self))


@checked
def split_leaks(
    examples: Sequence,
    train: Tensor,
    test: Tensor,
    *,
    word: str | None = None,
    anonymize: Callable[[SequencePair], Hashable] | None = None,
    longer: Side | None = None,
) -> SplitLeaks:
    """Returns what a split lets through: repeated pairs, and whatever else the split is to keep apart.

    Args:
        examples: pairs ``(source, target)`` of texts or token sequences.
        train: int64 ``(n,)``, positions of what is trained on.
        test: int64 ``(m,)``, positions of what is held out.
        word: looks for it in composition in training, as ``primitive_split`` means it.
        anonymize: looks for templates in both parts, as ``template_split`` means it.
        longer: looks for test examples that are no longer than training examples, on that side.

    Raises:
        ValueError: an empty part, or positions that the examples do not have.

    Example:
        >>> pairs = [("jump", "JUMP"), ("jump twice", "JUMP JUMP"), ("walk", "WALK"), ("jump twice", "JUMP JUMP")]
        >>> leaks = split_leaks(pairs, torch.tensor([0, 1, 2]), torch.tensor([3]), word="jump")
        >>> leaks.pairs.tolist(), leaks.word.tolist(), leaks.total
        ([3], [1], 3)
    """
    pairs = as_pairs(examples)
    check_positions(len(pairs), train=train, test=test)
    trained, tested = sorted(set(train.tolist())), sorted(set(test.tolist()))
    known, sources = {pairs[i] for i in trained}, {pairs[i][0] for i in trained}
    found: dict[str, list[int]] = {
        "overlap": sorted(set(trained) & set(tested)),
        "pairs": [i for i in tested if pairs[i] in known],
        "sources": [i for i in tested if pairs[i][0] in sources],
    }
    if word is not None:
        phrase = _phrase(word)
        found["word"] = [i for i in trained if _composes(pairs[i][0], phrase)]
    if anonymize is not None:
        templates = {_template(anonymize, pairs[i]) for i in trained}
        found["templates"] = [i for i in tested if _template(anonymize, pairs[i]) in templates]
    if longer is not None:
        side = int(longer == "target")
        most = max(len(pairs[i][side]) for i in trained)
        found["lengths"] = [i for i in tested if len(pairs[i][side]) <= most]
    return SplitLeaks(*(torch.tensor(found.get(name, []), dtype=torch.int64) for name in SplitLeaks._fields))


def check_positions(size: int, **parts: Tensor) -> None:
    """Raises unless each part of a split holds positions of ``size`` examples; a mask holds none."""
    check_nonempty(**parts)
    check_dimensions(1, **parts)
    for name, part in parts.items():
        if part.dtype == torch.bool:
            raise ValueError(f"{name} must be positions, got a mask: {name}.nonzero().squeeze(1) has them")
    check_labels(size, **parts)


def _phrase(word: str) -> tuple[str, ...]:
    if not (phrase := as_tokens(word)):
        raise ValueError("word must not be empty")
    return phrase


def _composes(source: tuple[str, ...], phrase: tuple[str, ...]) -> bool:
    """Whether the phrase stands in the source, with something beside it."""
    size = len(phrase)
    return len(source) > size and any(source[i : i + size] == phrase for i in range(len(source) - size + 1))


def _template(anonymize: Callable[[Any], Any], pair: SequencePair) -> Hashable:
    template = anonymize(pair)
    if not isinstance(template, Hashable):
        raise TypeError(f"anonymize must return something hashable, got {type(template).__name__}: a tuple of it")
    return template
