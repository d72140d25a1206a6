"""Core: Pairs of token sequences: what they are, and the numbers that a network reads in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from heldout.annotations import short
from heldout.errors import check_dimensions, check_labels, check_nonempty, checked

PAD, START, END = 0, 1, 2
"""Ids of what fills up a row, of what stands before a target, and of what ends one."""

SequencePair = tuple[tuple[str, ...], tuple[str, ...]]
"""Source tokens and target tokens."""


def as_tokens(text: str | Sequence[str], name: str = "text") -> tuple[str, ...]:
    """Returns the tokens of a sequence; those of a text are its words.

    Args:
        text: a text, or a sequence of tokens.
        name: what messages call it.

    Raises:
        TypeError: it is neither.

    Example:
        >>> as_tokens("jump twice"), as_tokens(["jump"])
        (('jump', 'twice'), ('jump',))
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be text, got {short(name)}")
    if isinstance(text, str):
        return tuple(text.split())
    if not isinstance(text, Sequence) or not all(isinstance(token, str) for token in text):
        raise TypeError(f"{name} must be text or a sequence of tokens, got {short(text)}")
    return tuple(text)


@checked
def as_pairs(examples: Sequence, name: str = "examples") -> list[SequencePair]:
    """Returns examples ``(source, target)``, of texts or of token sequences, as pairs of token tuples.

    Args:
        examples: the pairs.
        name: what messages call them.

    Raises:
        ValueError: no examples, or one that is no pair.
        TypeError: a source or target that is neither text nor a sequence of texts.

    Example:
        >>> as_pairs([("jump twice", ["JUMP", "JUMP"])])
        [(('jump', 'twice'), ('JUMP', 'JUMP'))]
    """
    check_nonempty(**{name: examples})
    for position, example in enumerate(examples):
        if isinstance(example, str) or not isinstance(example, Sequence) or len(example) != 2:
            raise ValueError(f"{name} must be pairs (source, target), got {short(example)} at {position}")
    return [(as_tokens(source, name), as_tokens(target, name)) for source, target in examples]


class PairTensors(NamedTuple):
    """Pairs as rows of ids, filled up with ``PAD`` at the right.

    Attributes:
        source: int64 ``(n, longest source)``.
        target_in: int64 ``(n, longest target + 1)``, ``START`` and the target: what a decoder reads.
        target: int64, of the same shape, the target and ``END``: what it is to write.

    Example:
        >>> pairs = [("jump", "JUMP"), ("jump twice", "JUMP JUMP")]
        >>> rows = TokenVocabulary.of(pairs).encode_pairs(pairs)
        >>> rows.target_in.tolist(), rows.target.tolist()
        ([[1, 4, 0], [1, 4, 4]], [[4, 2, 0], [4, 4, 2]])
    """

    source: Tensor
    target_in: Tensor
    target: Tensor


class TokenVocabulary:
    """The tokens of sources and targets, each with a number; 0, 1 and 2 are ``PAD``, ``START`` and ``END``.

    Sources and targets share their numbers, so that a network can copy.

    Args:
        tokens: those that it knows; each counts once, their order is kept.

    Raises:
        ValueError: no tokens.

    Example:
        >>> vocabulary = TokenVocabulary.of([("jump twice", "JUMP JUMP")])
        >>> len(vocabulary), vocabulary.encode(["jump twice"]).tolist(), vocabulary.decode(torch.tensor([[5, 5, 2, 0]]))
        (6, [[3, 4]], [('JUMP', 'JUMP')])
    """

    @checked
    def __init__(self, tokens: Sequence[str]) -> None:
        check_nonempty(tokens=tokens)
        self.tokens = ("<pad>", "<start>", "<end>", *dict.fromkeys(tokens))
        self.ids = {token: number for number, token in enumerate(self.tokens)}

    @classmethod
    @checked
    def of(cls, *sets: Sequence) -> TokenVocabulary:
        """Returns the vocabulary of one or several sets of pairs, in the order in which tokens occur."""
        check_nonempty(sets=sets)
        return cls([token for pairs in sets for pair in as_pairs(pairs, "sets") for side in pair for token in side])

    def __len__(self) -> int:
        return len(self.tokens)

    @checked
    def encode(self, sequences: Sequence) -> Tensor:
        """Returns int64 ``(n, longest)``, the tokens' numbers of texts or token sequences, filled up with ``PAD``.

        Raises:
            ValueError: no sequences, an empty one, or a token that it does not know.
        """
        check_nonempty(sequences=sequences)
        rows = [self._numbers(as_tokens(sequence, "sequences")) for sequence in sequences]
        if not all(rows):
            raise ValueError("sequences must not be empty")
        return _filled(rows)

    @checked
    def encode_pairs(self, pairs: Sequence) -> PairTensors:
        """Returns pairs as tensors; targets may be empty, sources may not.

        Raises:
            ValueError: no pairs, an empty source, or a token that it does not know.
        """
        sides = as_pairs(pairs, "pairs")
        targets = [self._numbers(target) for _, target in sides]
        source = self.encode([source for source, _ in sides])
        return PairTensors(
            source, _filled([[START, *row] for row in targets]), _filled([[*row, END] for row in targets])
        )

    @checked
    def decode(self, ids: Tensor) -> list[tuple[str, ...]]:
        """Returns the tokens of each row of ``(n, length)`` up to its first ``END``, without ``PAD`` and ``START``."""
        check_dimensions(2, ids=ids)
        check_labels(len(self), ids=ids)
        found = []
        for row in ids.tolist():
            kept = row[: row.index(END)] if END in row else row
            found.append(tuple(self.tokens[number] for number in kept if number not in (PAD, START)))
        return found

    def _numbers(self, tokens: tuple[str, ...]) -> list[int]:
        try:
            return [self.ids[token] for token in tokens]
        except KeyError as error:
            raise ValueError(f"the vocabulary has no token {error.args[0]!r}") from None


def _filled(rows: list[list[int]]) -> Tensor:
    filled = torch.full((len(rows), max(map(len, rows))), PAD)
    lengths = torch.tensor([len(row) for row in rows])
    filled[torch.arange(filled.shape[1]) < lengths.unsqueeze(1)] = torch.tensor([n for row in rows for n in row])
    return filled
