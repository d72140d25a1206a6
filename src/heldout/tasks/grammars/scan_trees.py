"""Core: SCAN commands in an order in which their trees are projective, with these trees.

Source: arXiv:2210.01603, as the official code has it: "around left" becomes "left around". That a parser can build the
trees then, and how many arguments a word takes, is knowledge of the domain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType

from heldout.data import as_tokens
from heldout.errors import check_nonempty

_MANNERS = ("opposite", "around")
_TURNS = ("left", "right")
_CONJUNCTIONS = ("and", "after")
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
