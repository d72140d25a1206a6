"""Core: SCAN commands in an order in which their trees are projective, with these trees.

Source: arXiv:2210.01603, as the official code has it: "around left" becomes "left around". That a parser can build the
trees then, and how many arguments a word takes, is knowledge of the domain.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Literal, NamedTuple

from heldout.data import SequencePair, as_tokens
from heldout.errors import check_at_least, check_nonempty, check_one_of, checked
from heldout.tasks.grammars.scan import mini_scan

_MANNERS = ("opposite", "around")
_TURNS = ("left", "right")
_CONJUNCTIONS = ("and", "after")
_LONGEST, _TRAINED = 24, 8  # actions of a target, and of one that is trained on
_CHANGES = (*_MANNERS, *_TURNS, "twice", "thrice")

SCAN_ARITIES: Mapping[str, int] = MappingProxyType(
    {**dict.fromkeys(_CHANGES, 1), **dict.fromkeys(_CONJUNCTIONS, 2), "turn": 0}
)
"""How many arguments each of SCAN's own words takes; a primitive takes none."""


def projective_command(source: str | Sequence[str]) -> tuple[str, ...]:
    """Returns a SCAN command with each manner behind its direction, so that no arcs of its tree cross.

    Args:
        source: of ``ScanGrammar``.

    Raises:
        ValueError: no words, or a manner without a direction behind it.

    Source: arXiv:2210.01603, official code.

    Example:
        >>> " ".join(projective_command("jump around left twice and walk"))
        'jump left around twice and walk'
    """
    words = list(as_tokens(source, "source"))
    check_nonempty(source=words)
    for position, word in enumerate(words):
        if word in _MANNERS and words[position - 1] not in _TURNS:
            if words[position + 1 : position + 2] not in ([turn] for turn in _TURNS):
                raise ValueError(f"source must have a direction behind {word!r}, got {' '.join(words)!r}")
            words[position], words[position + 1] = words[position + 1], word
    return tuple(words)


def command_heads(words: str | Sequence[str]) -> tuple[int, ...]:
    """Returns the tree of a command in projective order: the position of each word's head, -1 for the root.

    Each word changes what is before it in its clause; a conjunction joins its two clauses.

    Args:
        words: see ``projective_command``.

    Raises:
        ValueError: no words, an empty clause, or two conjunctions.

    Example:
        >>> command_heads("jump left around and walk")
        (1, 2, 3, -1, 3)
    """
    tokens = as_tokens(words, "words")
    joined = [position for position, word in enumerate(tokens) if word in _CONJUNCTIONS]
    bounds = [-1, *joined, len(tokens)]
    if len(joined) > 1 or any(stop - start < 2 for start, stop in pairwise(bounds)):
        raise ValueError(f"words must be one clause, or two with a conjunction, got {' '.join(tokens)!r}")
    heads = [position + 1 for position in range(len(tokens))]
    for end in bounds[1:]:
        heads[end - 1] = joined[0] if joined else -1
    if joined:
        heads[joined[0]] = -1
    return tuple(heads)


class CommandSplit(NamedTuple):
    """Commands in projective order with their actions, to learn from and to be tested on.

    Attributes:
        train: all single clauses that the split allows, then drawn pairs of clauses.
        test: drawn; none is in ``train``.

    Example:
        >>> split = projective_split("jump", train=100, test=50)
        >>> sum("jump" in source for source, _ in split.train), all("jump" in source for source, _ in split.test)
        (1, True)
    """

    train: list[SequencePair]
    test: list[SequencePair]


@checked
def projective_split(
    kind: Literal["length", "jump"], *, train: int = 500, test: int = 300, seed: int = 0
) -> CommandSplit:
    """Returns a split of mini-SCAN with opposite and around, of targets of at most 24 actions.

    Args:
        kind: "length" trains on at most 8 actions and tests on more; "jump" trains on "jump" alone and on commands
            without it, and tests on those that compose it.
        train: commands to learn from; at least the single clauses, which are 60 and 64.
        test: commands to be tested on.
        seed: of the draws.

    Raises:
        ValueError: an unknown split, or numbers that its commands do not allow.

    Source: arXiv:1711.00350, experiments 2 and 3.

    Example:
        >>> split = projective_split("length", train=70, test=5)
        >>> max(len(target) for _, target in split.train), min(len(target) for _, target in split.test) > 8
        (8, True)
    """
    check_one_of(("length", "jump"), kind=kind)
    check_at_least(1, train=train, test=test)
    check_at_least(0, seed=seed)
    grammar = mini_scan(manners=_MANNERS)
    pairs = [(projective_command(source), target) for source, target in grammar.pairs() if len(target) <= _LONGEST]
    if kind == "length":
        held_out = [len(target) > _TRAINED for _, target in pairs]
    else:
        held_out = ["jump" in source and len(source) > 1 for source, _ in pairs]
    kept = [pair for pair, out in zip(pairs, held_out, strict=True) if not out]
    left = [pair for pair, out in zip(pairs, held_out, strict=True) if out]
    clauses = [pair for pair in kept if not set(_CONJUNCTIONS) & set(pair[0])]
    joined = [pair for pair in kept if set(_CONJUNCTIONS) & set(pair[0])]
    if not len(clauses) <= train <= len(kept):
        raise ValueError(f"train must be from {len(clauses)} to {len(kept)} for this split, got {train}")
    if test > len(left):
        raise ValueError(f"test must be at most {len(left)} for this split, got {test}")
    rng = random.Random(seed)
    return CommandSplit(clauses + rng.sample(joined, train - len(clauses)), rng.sample(left, test))
