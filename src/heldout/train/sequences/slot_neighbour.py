"""Core: Answers a source as its nearest training example does, with the words that fill the same slots exchanged.

Which words are exchangeable is learned from examples that differ in one word alone. Source of the principle:
arXiv:1904.09545 (Andreas): what occurs in one common environment can stand for each other in all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from heldout.data import SequencePair, as_pairs, as_tokens
from heldout.errors import check_fields, check_nonempty, checked

Tokens = tuple[str, ...]


class SlotWord(NamedTuple):
    """A word that others can stand for.

    Attributes:
        slot: number of the words that can stand for each other.
        target: what stands for it in targets; "" where nothing does, as of a word with the same meaning as another.

    Example:
        >>> slot_neighbour([("see cat", "SEE CAT"), ("see dog", "SEE DOG")]).words["dog"]
        SlotWord(slot=0, target='DOG')
    """

    slot: int
    target: str


@dataclass(frozen=True)
class SlotNeighbour:
    """Training examples, and the words that can stand for each other in them: a model without a network.

    Attributes:
        pairs: the examples, as pairs of token tuples.
        words: source word -> slot and target word.

    Example:
        >>> known = [("walk", "WALK"), ("jump", "JUMP"), ("walk twice", "WALK WALK")]
        >>> slot_neighbour(known).predict(["jump twice"])
        [('JUMP', 'JUMP')]
    """

    pairs: Sequence[SequencePair]
    words: Mapping[str, SlotWord]

    def __post_init__(self) -> None:
        check_fields(self)
        check_nonempty(pairs=self.pairs)
        by_template: dict[tuple, list[SequencePair]] = defaultdict(list)
        for pair in as_pairs(self.pairs):
            by_template[self._template(pair[0])].append(pair)
        object.__setattr__(self, "_by_template", dict(by_template))
        object.__setattr__(self, "_rows", _Rows(list(by_template)))

    @checked
    def predict(self, sources: Sequence) -> list[Tokens]:
        """Returns the target of the nearest example for each source, its slots filled with the source's words.

        Nearest is what has the same words outside of slots, or the fewest insertions, deletions and replacements of
        them; among examples of one template that whose words are most often the source's. Ties go to the first.

        Args:
            sources: texts or token sequences.

        Raises:
            ValueError: no sources.
        """
        check_nonempty(sources=sources)
        return [self._answer(as_tokens(source, "sources")) for source in sources]

    def _template(self, source: Tokens) -> tuple:
        return tuple(self.words[token].slot if token in self.words else token for token in source)

    def _answer(self, source: Tokens) -> Tokens:
        template = self._template(source)
        known: dict[tuple, list[SequencePair]] = self._by_template  # type: ignore[attr-defined]
        if template not in known:
            template = self._rows.nearest(template)  # type: ignore[attr-defined]
        found = [(self._filled(pair, source), _same(pair[0], source)) for pair in known[template]]
        filled = [(target, same) for target, same in found if target is not None]
        if filled:
            return max(filled, key=lambda each: each[1])[0]
        return max(known[template], key=lambda pair: _same(pair[0], source))[1]

    def _filled(self, pair: SequencePair, source: Tokens) -> Tokens | None:
        """The pair's target with the source's words in place of its own; None where the places do not tell them."""
        old = [token for token in pair[0] if token in self.words]
        new = [token for token in source if token in self.words]
        if [self.words[token].slot for token in old] != [self.words[token].slot for token in new]:
            return None
        exchanged: dict[str, str] = {}
        for before, after in zip(old, new, strict=True):
            first, second = self.words[before].target, self.words[after].target
            if exchanged.setdefault(first, second) != second or (not first) != (not second):
                return None
        return tuple(exchanged.get(token, token) for token in pair[1])


@checked
def slot_neighbour(pairs: Sequence) -> SlotNeighbour:
    """Returns the nearest-neighbour model of some pairs, with the slots that they show.

    Two words are exchangeable if more than half of the examples that differ in them alone, and have different targets,
    have targets that differ in the same two words, wherever these occur, and more than half as many as have the same
    targets; or if all have the same targets. What is exchangeable with the same word shares a slot. A word's target is
    the one that most of these examples show. Costs one pass over all words of all sources.

    Args:
        pairs: ``(source, target)`` of texts or token sequences.

    Raises:
        ValueError: no pairs.

    Source: arXiv:1904.09545, section 3, for single words; deviation: it answers, and makes no data.

    Example:
        >>> known = [("see cat", "SEE CAT"), ("see dog", "SEE DOG"), ("pet cat", "PET CAT")]
        >>> model = slot_neighbour(known)
        >>> model.words["dog"].target, model.predict(["pet dog"])
        ('DOG', [('PET', 'DOG')])
    """
    known = as_pairs(pairs)
    places: dict[tuple[Tokens, Tokens], dict[str, Tokens]] = defaultdict(dict)
    for source, target in known:
        for place, token in enumerate(source):
            places[source[:place], source[place + 1 :]].setdefault(token, target)
    shown: dict[frozenset, Counter[tuple[str, str] | None]] = defaultdict(Counter)
    for filled in places.values():
        (first, target), *others = filled.items()
        for token, other in others:
            low, high = sorted((first, token))
            exchanged = _exchanged(target, other)
            in_order = exchanged if first == low or exchanged is None else exchanged[::-1]
            shown[frozenset((low, high))][in_order] += 1
    told: dict[str, Counter[str]] = defaultdict(Counter)
    root: dict[str, str] = {}

    def found(word: str) -> str:
        while root.setdefault(word, word) != word:
            word = root[word]
        return word

    for both, counts in shown.items():
        silent = counts.pop(("", ""), 0)
        exchanged, count = counts.most_common(1)[0] if counts else (("", ""), silent)
        if exchanged is None or 2 * count <= max(counts.total(), silent):
            continue
        low, high = sorted(both)
        told[low][exchanged[0]] += count
        told[high][exchanged[1]] += count
        root[found(high)] = found(low)
    numbers = {word: number for number, word in enumerate(dict.fromkeys(found(word) for word in told))}
    words = {}
    for word, means in told.items():
        named = {target_word: count for target_word, count in means.items() if target_word}
        words[word] = SlotWord(numbers[found(word)], max(named, key=named.__getitem__) if named else "")
    return SlotNeighbour(known, words)


def _exchanged(target: Tokens, other: Tokens) -> tuple[str, str] | None:
    """What stands in one target where another word stands in the other; "" twice for equal targets, None for more."""
    if len(target) != len(other):
        return None
    differing = {pair for pair in zip(target, other, strict=True) if pair[0] != pair[1]}
    if len(differing) > 1:
        return None
    return differing.pop() if differing else ("", "")


def _same(known: Tokens, source: Tokens) -> int:
    return sum(a == b for a, b in zip(known, source, strict=False))


class _Rows:
    """Templates as rows of numbers, to find the nearest of all by one pass of the edit distance."""

    def __init__(self, templates: list[tuple]) -> None:
        self.templates = templates
        self.numbers: dict[object, int] = {}
        self.lengths = np.array([len(template) for template in templates])
        self.rows = np.zeros((len(templates), max(1, int(self.lengths.max()))), dtype=int)
        for row, template in zip(self.rows, templates, strict=True):
            row[: len(template)] = [self.numbers.setdefault(token, len(self.numbers) + 1) for token in template]

    def nearest(self, template: tuple) -> tuple:
        steps = np.arange(self.rows.shape[1] + 1)
        distances = np.tile(steps, (len(self.rows), 1))
        for token in template:
            replaced = distances[:, :-1] + (self.rows != self.numbers.get(token, -1))
            best = np.minimum(replaced, distances[:, 1:] + 1)
            best = np.concatenate([distances[:, :1] + 1, best], 1)
            distances = np.minimum.accumulate(best - steps, 1) + steps  # insertions, from left to right
        return self.templates[int(distances[np.arange(len(self.rows)), self.lengths].argmin())]
