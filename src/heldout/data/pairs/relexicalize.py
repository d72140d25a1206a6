"""Core: The same pairs in other words: does a conclusion depend on which words there are?

Source: arXiv:2310.17514 (Sun, Williams and Hupkes), section 5.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from heldout.data.pairs.tokens import SequencePair, as_pairs
from heldout.errors import check_at_least, check_fields, check_nonempty, checked

WordStyle = Literal["random", "cvcv", "index"]
_VOWELS, _CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwxyz"


@dataclass(frozen=True)
class Relexicalized:
    """Pairs in other words.

    Attributes:
        examples: pairs of token tuples.
        words: old word -> new word, one to one.

    Example:
        >>> found = relexicalize([("jump twice", "JUMP JUMP")], ["jump", "JUMP"], style="index")
        >>> found.restore(found.examples)
        [(('jump', 'twice'), ('JUMP', 'JUMP'))]
    """

    examples: list[SequencePair]
    words: Mapping[str, str]

    def __post_init__(self) -> None:
        check_fields(self)

    @checked
    def restore(self, examples: Sequence) -> list[SequencePair]:
        """Returns pairs (these, or what a model wrote) with the old words in the places of the new ones."""
        return _replaced(as_pairs(examples), {new: old for old, new in self.words.items()})


@checked
def relexicalize(
    examples: Sequence,
    words: Sequence[str],
    style: WordStyle = "random",
    seed: int = 0,
    *,
    lengths: tuple[int, int] = (15, 29),
) -> Relexicalized:
    """Returns pairs with each of some words replaced by a new one, the same in sources and targets.

    Hand over training and test examples together, or apply it to each with the same words and seed: the new words
    depend on nothing else, unless one of them occurs in the examples already.

    Args:
        examples: pairs ``(source, target)`` of texts or token sequences.
        words: tokens to replace, each of which occurs.
        style: "random" letters, "cvcv" for consonants and vowels in turn, or "index" for ``[w_0]``, ``[w_1]`` ...
        seed: of the letters.
        lengths: of the new words in letters, shortest and longest; the paper's short variant is (7, 14).

    Raises:
        ValueError: a word that does not occur, or occurs twice in ``words``; lengths out of order.

    Example:
        >>> relexicalize([("jump twice", "JUMP JUMP")], ["jump"], style="index").examples
        [(('[w_0]', 'twice'), ('JUMP', 'JUMP'))]
    """
    check_nonempty(words=words)
    check_at_least(0, seed=seed)
    check_at_least(1, lengths=lengths)
    if isinstance(words, str):
        raise TypeError(f"words must be a sequence of words, got the text {words!r}")
    if lengths[0] > lengths[1]:
        raise ValueError(f"lengths must be (shortest, longest), got {lengths}")
    pairs = as_pairs(examples)
    known = {token for pair in pairs for side in pair for token in side}
    if missing := [word for word in words if word not in known]:
        raise ValueError(f"words must occur in the examples, got {missing[0]!r}")
    if len(set(words)) < len(words):
        raise ValueError("words must differ from each other")
    rng = random.Random(seed)
    made: dict[str, str] = {}
    for number, word in enumerate(words):
        new = f"[w_{number}]" if style == "index" else _drawn(style, rng, lengths)
        while new in known or new in made.values():
            if style == "index":
                raise ValueError(f"examples must not hold {new!r} already")
            new = _drawn(style, rng, lengths)
        made[word] = new
    return Relexicalized(_replaced(pairs, made), made)


@checked
def spell_words(examples: Sequence, words: Sequence[str]) -> list[SequencePair]:
    """Returns pairs in which some words stand letter by letter, as a vocabulary of parts of words has rare ones.

    A letter is written ``'j``, and ``'`` ends a word, so that no word of the rest is mistaken for a letter.

    Args:
        examples: pairs ``(source, target)`` of texts or token sequences.
        words: tokens to spell, in sources and targets alike.

    Raises:
        ValueError: a word that does not occur, or examples with tokens that begin with an apostrophe.

    Example:
        >>> spell_words([("up twice", "UP UP")], ["up"])
        [(("'u", "'p", "'", 'twice'), ('UP', 'UP'))]
    """
    check_nonempty(words=words)
    if isinstance(words, str):
        raise TypeError(f"words must be a sequence of words, got the text {words!r}")
    pairs = as_pairs(examples)
    known = {token for pair in pairs for side in pair for token in side}
    if missing := [word for word in words if word not in known]:
        raise ValueError(f"words must occur in the examples, got {missing[0]!r}")
    if marked := sorted(token for token in known if token.startswith("'")):
        raise ValueError(f"examples must have no tokens that begin with an apostrophe, got {marked[0]!r}")
    spelled = {word: (*(f"'{letter}" for letter in word), "'") for word in words}
    return [(_spelled(source, spelled), _spelled(target, spelled)) for source, target in pairs]


def _spelled(tokens: Sequence[str], spelled: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(part for token in tokens for part in spelled.get(token, (token,)))


def _drawn(style: str, rng: random.Random, lengths: tuple[int, int]) -> str:
    size = rng.randint(*lengths)
    if style == "random":
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(size))
    return "".join(rng.choice((_CONSONANTS, _VOWELS)[i % 2]) for i in range(size))


def _replaced(pairs: Sequence[SequencePair], made: Mapping[str, str]) -> list[SequencePair]:
    return [
        (tuple(made.get(token, token) for token in source), tuple(made.get(token, token) for token in target))
        for source, target in pairs
    ]
