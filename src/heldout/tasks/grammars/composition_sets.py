"""Core: Four small sets of pairs with splits that hold compositions out, two of them with a word in other letters.

Source: arXiv:2310.17514 (Sun, Williams and Hupkes), section 3, for what is crossed with what; deviation: each set is
drawn from a small grammar, "places" for those that people wrote.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch

from heldout.data import (
    HeldOutSplit,
    SequencePair,
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
from heldout.errors import check_at_least, check_fraction, check_one_of, checked
from heldout.tasks.grammars.place_questions import PLACE_NAMES, place_questions
from heldout.tasks.grammars.scan import ScanGrammar, mini_scan
from heldout.tasks.grammars.sentence_forms import SentenceForms
from heldout.tasks.grammars.string_edits import StringEdits

CompositionSet = Literal["scan", "pcfg", "cogs", "places"]
CompositionSplit = Literal["standard", "length", "template", "mcd"]
HeldOutWordSet = Literal["scan", "cogs"]
LetterStyle = Literal["original", "random", "cvcv"]

COMPOSITION_SETS: tuple[CompositionSet, ...] = ("scan", "pcfg", "cogs", "places")
"""SCAN commands, PCFG string edits, COGS sentences with logical forms, questions on places with queries."""

_SPLITS = ("standard", "length", "template", "mcd")
_FORMS = SentenceForms(depth=1, nesting=0.2)
_VERBS = (
    "jump walk look run swim climb dance crawl hop skip spin kick push pull sing roll march wave bend clap bow dive"
)
_NOUNS = (
    "cat dog cake box girl boy rose table book cup bird hedgehog professor journalist rhinoceros butterfly sandwich "
    "politician hamburger crocodile strawberry governor"
)
_COPIED_SCAN = ScanGrammar({word: word for word in _VERBS.split()}, manners=(), turn=False)
_MORE_FORMS = SentenceForms(nouns=tuple(_NOUNS.split()), depth=1, nesting=0.2)
_REPEATED = {"twice", "thrice"}
_LETTERS = (7, 14)  # of a new word, the paper's short variant
_OTHERS = 9  # pairs of other words for each time that the held-out word stands alone, as in SCAN
_DRAWN = 6  # for each pair that is short enough


@checked
def composition_pairs(name: CompositionSet, n: int, *, seed: int = 0) -> list[SequencePair]:
    """Returns about n different pairs of one of four sets; targets have 20 tokens at most.

    Logical forms and queries stand without brackets, commas and full stops, and forms have 14 tokens at most.

    Args:
        name: "scan" (commands of one or two clauses), "pcfg" (string edits), "cogs" (sentences to logical forms) or
            "places" (questions to queries, in 34 wordings).
        n: pairs to draw; fewer come back where too few are short.
        seed: of the draws.

    Raises:
        ValueError: an unknown set, or more pairs than a grammar has.

    Example:
        >>> composition_pairs("scan", 2, seed=1)[0]
        (('run', 'twice', 'and', 'jump', 'left'), ('I_RUN', 'I_RUN', 'I_TURN_LEFT', 'I_JUMP'))
    """
    check_one_of(COMPOSITION_SETS, name=name)
    check_at_least(1, n=n)
    check_at_least(0, seed=seed)
    if name == "scan":
        return mini_scan().sample(n, seed=seed)
    if name == "pcfg":
        edits = StringEdits(letters=tuple("ABCDEFGH"), max_functions=2, max_letters=3, max_output=9)
        return edits.sample(n, seed=seed)
    if name == "cogs":
        return _brief(_FORMS.sample(4 * n, seed=seed), 14)[:n]
    return _brief(place_questions().sample(n, seed=seed), 20)


@checked
def composition_split(
    name: CompositionSet,
    kind: CompositionSplit,
    pairs: Sequence,
    *,
    seed: int = 0,
    atom_limit: float = 0.02,
) -> HeldOutSplit:
    """Returns a split of pairs of one of the four sets.

    Args:
        name: of the set that the pairs are of, see ``composition_pairs``.
        kind: "standard" (a fifth at random), "length" (the longest three tenths), "template" (no template of the test
            in training: nouns and names, or places, do not tell templates apart) or "mcd" (pairs of words that are new
            in the test, single ones as frequent as in training).
        pairs: of the set.
        seed: of the split.
        atom_limit: of "mcd", see ``mcd_split``.

    Raises:
        ValueError: unknown names, templates of a set without names, or what the split itself refuses.

    Example:
        >>> pairs = composition_pairs("places", 100)
        >>> [len(part) for part in composition_split("places", "standard", pairs)]
        [80, 20]
    """
    check_one_of(COMPOSITION_SETS, name=name)
    check_one_of(_SPLITS, kind=kind)
    check_at_least(0, seed=seed)
    check_fraction(atom_limit=atom_limit)
    known = as_pairs(pairs, "pairs")
    if kind == "length":
        return length_split(known, train_share=0.7)
    if kind == "template":
        return template_split(known, _template(name), seed=seed)
    if kind == "mcd":
        return mcd_split(known, ngrams(1), ngrams(2), atom_limit=atom_limit, seed=seed)
    held_out = torch.zeros(len(known), dtype=torch.bool)
    held_out[random.Random(seed).sample(range(len(known)), len(known) // 5)] = True
    return HeldOutSplit.by(held_out)


class HeldOutWord(NamedTuple):
    """Pairs in letters, and the split in which one word is trained on alone and composed in the test.

    Attributes:
        pairs: of token tuples, a letter a token in words that have letters.
        split: positions in ``pairs``.

    Example:
        >>> word = held_out_word("scan", "original", 40)
        >>> alone = word.pairs[0][0]
        >>> sum(word.pairs[i][0] == alone for i in word.split.train), word.pairs[word.split.test[0]][0] == alone
        (4, False)
    """

    pairs: list[SequencePair]
    split: HeldOutSplit


@checked
def held_out_word(name: HeldOutWordSet, style: LetterStyle, n: int, *, seed: int = 0) -> HeldOutWord:
    """Returns commands that compose "jump", or sentences that compose "cat", the word as it is or in other letters.

    Actions and nouns, 22 of each, are spelled, and written as they are read, so that a network may learn to copy them,
    and other letters make another, longer sequence. Half of the nouns have 8 to 10 letters, so that length alone does
    not tell the new word from all others. Commands repeat nothing. A fifth of the pairs compose the word, which are the
    test (fewer where the grammar has fewer), every word stands alone once, and the held-out one so often that this is
    a tenth of training, as in SCAN: once is too seldom to be learned. Pairs and split are the same for all styles.

    Args:
        name: "scan" or "cogs".
        style: "original", "random" letters, or "cvcv" for consonants and vowels in turn; 7 to 14 of them.
        n: pairs to draw, beside words alone; fewer come back where the grammar has fewer.
        seed: of draws and letters.

    Raises:
        ValueError: unknown names, or so few pairs that none composes the word.

    Source: arXiv:2310.17514, section 5; deviation: an action is called what its command is, and nothing is repeated.

    Example:
        >>> word = held_out_word("scan", "original", 40)
        >>> word.pairs[0], len(word.split.test)
        ((("'j", "'u", "'m", "'p", "'"), ("'j", "'u", "'m", "'p", "'")), 8)
    """
    check_one_of(("scan", "cogs"), name=name)
    check_one_of(("original", "random", "cvcv"), style=style)
    check_at_least(1, n=n)
    check_at_least(0, seed=seed)
    if name == "scan":
        words = list(_COPIED_SCAN.primitives)
        pairs = [pair for pair in _COPIED_SCAN.pairs() if len(pair[0]) > 1 and not _REPEATED & {*pair[0]}]
        alone = as_pairs([(word, word) for word in words])
    else:
        words = list(_MORE_FORMS.nouns)
        pairs = _brief(_MORE_FORMS.sample(_DRAWN * n, seed=seed), 13)
        alone = _brief([_MORE_FORMS.primitive(noun) for noun in words], 13)
    word, rng = words[0], random.Random(seed)
    composed, others = ([pair for pair in pairs if (word in pair[0]) == holds] for holds in (True, False))
    drawn = [rng.sample(part, min(size, len(part))) for part, size in ((composed, n // 5), (others, n - n // 5))]
    again = [alone[0]] * (len(drawn[1]) // _OTHERS)
    pairs = [*alone, *drawn[0], *drawn[1], *again]
    split = primitive_split(pairs, word)
    if style != "original":
        changed = relexicalize(pairs, [word], style, seed=seed, lengths=_LETTERS)
        pairs, words = changed.examples, [changed.words[word], *words[1:]]
    return HeldOutWord(spell_words(pairs, words), split)


def _brief(pairs: Sequence[SequencePair], longest: int) -> list[SequencePair]:
    """Without brackets, full stops and commas in targets, those of at most some tokens."""
    found = [(source, tuple(token for token in target if token not in "().,")) for source, target in pairs]
    return [pair for pair in found if len(pair[1]) <= longest]


def _template(name: str) -> Callable[[SequencePair], SequencePair]:
    kinds: dict[str, Mapping[str, Sequence[str]]] = {
        "cogs": {"noun": _FORMS.nouns, "name": _FORMS.names},
        "places": PLACE_NAMES,
    }
    if name not in kinds:
        raise ValueError(f"kind must not be 'template' for {name!r}, which has no names")
    return anonymizer({word: f"[{kind}]" for kind, words in kinds[name].items() for word in words})
