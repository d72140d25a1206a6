"""Verbalizers: the words that stand for the classes of a task, and training data in which they keep changing.

Natural words agree with what a model expects, neutral ones mean nothing, and unnatural ones are natural words with
their classes exchanged.

Source: Li et al., "Instruction-following evaluation through verbalizer manipulation" (arXiv:2307.10558). The words of
the paper's data sets are not published in code; sets are built here from the words that the user has.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from heldout.errors import check_at_least, check_fields, check_nonempty, checked

VerbalizerKind = Literal["natural", "neutral", "unnatural"]
VERBALIZER_KINDS: tuple[VerbalizerKind, ...] = ("natural", "neutral", "unnatural")
NONSENSE = (
    "foo",
    "bar",
    "baz",
    "sfo",
    "dpo",
    "qux",
    "zib",
    "wug",
    "lorp",
    "dax",
    "fep",
    "mib",
    "tove",
    "glorp",
    "snarf",
)


VerbalizerTemplate = Callable[[str, Sequence[tuple[str, str]]], str]


@dataclass(frozen=True)
class Verbalizer:
    """Which word stands for which class.

    Attributes:
        words: one for each class, in their order.
        kind: "natural", "neutral" or "unnatural".
        name: default: the words joined by "|".

    Raises:
        ValueError: fewer than two words, an empty one, or one that occurs twice in whatever case.

    Example:
        >>> Verbalizer(("negative", "positive")).name
        'negative|positive'
    """

    words: tuple[str, ...]
    kind: VerbalizerKind = "natural"
    name: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "words", tuple(self.words))
        if not self.name:
            object.__setattr__(self, "name", "|".join(self.words))
        if self.kind not in VERBALIZER_KINDS:
            raise ValueError(f"kind must be one of {', '.join(VERBALIZER_KINDS)}, got {self.kind!r}")
        if len(self.words) < 2 or not all(word.strip() for word in self.words):
            raise ValueError(f"a verbalizer needs a word for each of at least two classes, got {self.words}")
        if len({word.lower() for word in self.words}) < len(self.words):
            raise ValueError(f"a verbalizer needs a word of its own for each class, got {self.words}")


@checked
def verbalizer_sets(
    natural: Sequence[Sequence[str]],
    *,
    n_neutral: int | None = None,
    nonsense: Sequence[str] = NONSENSE,
    vocabulary: Iterable[str] = (),
    seed: int = 0,
) -> list[Verbalizer]:
    """Returns natural, neutral and unnatural verbalizers of a task.

    Unnatural ones are the natural ones with their words moved on by one class. Neutral ones come in pairs: the same
    nonsense words in one order and in another, as "foo|bar" and "bar|foo".

    Args:
        natural: word sets that agree with the classes, such as ``[["negative", "positive"], ["no", "yes"]]``.
        n_neutral: neutral sets; default as many as natural ones.
        nonsense: words that neutral sets are drawn from. For scores of unequal length, give words with as many tokens
            each.
        vocabulary: words of the task, none of which a neutral set uses.
        seed: of the drawing.

    Raises:
        ValueError: no natural set, sets of different sizes, or too few nonsense words.

    Example:
        >>> [v.name for v in verbalizer_sets([["bad", "good"]], n_neutral=2, nonsense=["foo", "bar"], seed=1)]
        ['bad|good', 'bar|foo', 'foo|bar', 'good|bad']
    """
    check_at_least(0, n_neutral=n_neutral)
    sets = [tuple(words) for words in natural]
    if not sets or len({len(words) for words in sets}) != 1:
        raise ValueError("natural needs at least one set of words, and as many words in each set as classes")
    taken = {word.lower() for word in vocabulary} | {word.lower() for words in sets for word in words}
    free = [word for word in nonsense if word.lower() not in taken]
    classes, wanted = len(sets[0]), len(sets) if n_neutral is None else n_neutral
    draw = random.Random(seed)
    draw.shuffle(free)
    if len(free) < classes * -(-wanted // 2):
        raise ValueError(f"{wanted} neutral sets need {classes * -(-wanted // 2)} nonsense words, got {len(free)}")
    neutral: list[tuple[str, ...]] = []
    for start in range(0, classes * -(-wanted // 2), classes):
        words = tuple(free[start : start + classes])
        neutral += [words, shifted_words(words)]
    return [
        *(Verbalizer(words, "natural") for words in sets),
        *(Verbalizer(words, "neutral") for words in neutral[:wanted]),
        *(Verbalizer(shifted_words(words), "unnatural") for words in sets),
    ]


@checked
def verbalizer_instruction(text: str, mapping: Sequence[tuple[str, str]]) -> str:
    """Returns the default prompt: which word to output for which description, then the text.

    Args:
        text: to classify.
        mapping: pairs (word, description), in the order in which they are told; at least one.

    Raises:
        ValueError: no pairs.

    Example:
        >>> print(verbalizer_instruction("I like it.", [("foo", "positive"), ("bar", "negative")]))
        Output 'foo' if the sentence is positive; output 'bar' if the sentence is negative.
        Sentence: I like it.
        Output:
    """
    check_nonempty(mapping=mapping)
    rules = "; ".join(f"output '{word}' if the sentence is {description}" for word, description in mapping)
    return f"{rules[0].upper()}{rules[1:]}.\nSentence: {text}\nOutput:"


@checked
def emphasised_instruction(text: str, mapping: Sequence[tuple[str, str]]) -> str:
    """Returns the default prompt, which also says that the words' usual meaning does not matter.

    Args:
        text: to classify.
        mapping: pairs (word, description), in the order in which they are told; at least one.

    Raises:
        ValueError: no pairs.

    Example:
        >>> print(emphasised_instruction("I like it.", [("bad", "positive"), ("good", "negative")]))
        Ignore the usual meaning of the output words, and follow these rules.
        Output 'bad' if the sentence is positive; output 'good' if the sentence is negative.
        Sentence: I like it.
        Output:
    """
    rule = "Ignore the usual meaning of the output words, and follow these rules."
    return f"{rule}\n{verbalizer_instruction(text, mapping)}"


@checked
def randomize_verbalizers(
    texts: Sequence[str],
    labels: Sequence[int],
    descriptions: Sequence[str],
    natural: Sequence[Sequence[str]],
    *,
    kinds: Sequence[VerbalizerKind] = VERBALIZER_KINDS,
    nonsense: Sequence[str] = NONSENSE,
    holdout_words: Iterable[str] = (),
    template: VerbalizerTemplate = verbalizer_instruction,
    lead: str = " ",
    seed: int = 0,
) -> list[dict[str, str]]:
    """Returns instruction data in which the words that stand for the classes are drawn anew for each text.

    Tuned on it, a model cannot do without reading which word stands for what. The kinds are equally frequent.

    Args:
        texts, labels, descriptions: as for ``heldout.measure.VerbalizerManipulation``.
        natural: word sets that agree with the classes.
        kinds: of verbalizers that are drawn from.
        nonsense: words of neutral sets, drawn for each text.
        holdout_words: words that no set uses; sets that hold one are left out, so that they can be tested on.
        template: ``(text, [(word, description), ...]) -> prompt``; the order of the pairs is drawn too.
        lead: what stands between prompt and word.
        seed: of all drawing.

    Returns:
        one row for each text, with ``prompt`` and ``completion``, as ``heldout.train.sft`` takes them.

    Raises:
        ValueError: labels that do not fit, or a kind for which no words are left.

    Example:
        >>> rows = randomize_verbalizers(["I like it."], [1], ["negative", "positive"], [["bad", "good"]], seed=3)
        >>> rows[0]["completion"].strip() in rows[0]["prompt"]
        True
    """
    check_nonempty(kinds=kinds)
    classes = len(descriptions)
    if len(texts) != len(labels) or not all(0 <= label < classes for label in labels):
        raise ValueError(f"each text needs a label from 0 to {classes - 1}")
    held = {word.lower() for word in holdout_words}
    sets = [tuple(words) for words in natural if not held & {word.lower() for word in words}]
    used = {word.lower() for words in sets for word in words}
    free = [word for word in nonsense if word.lower() not in held | used]
    if {"natural", "unnatural"} & set(kinds) and not sets:
        raise ValueError("no natural set is left without the held-out words")
    if "neutral" in kinds and len(free) < classes:
        raise ValueError(f"neutral sets need {classes} nonsense words that are not held out, got {len(free)}")
    draw = random.Random(seed)
    rows = []
    for text, label in zip(texts, labels, strict=True):
        kind = draw.choice(kinds)
        words = tuple(draw.sample(free, classes)) if kind == "neutral" else draw.choice(sets)
        words = shifted_words(words) if kind == "unnatural" else words
        pairs = list(zip(words, descriptions, strict=True))
        draw.shuffle(pairs)
        rows.append({"prompt": template(text, pairs), "completion": lead + words[label]})
    return rows


@checked
def shifted_words(words: Sequence[str], by: int = 1) -> tuple[str, ...]:
    """Returns the words, each standing where the one before it stood; the first ones stand at the end.

    Args:
        words: at least one.
        by: places by which each moves to the front.

    Raises:
        ValueError: no words.

    Example:
        >>> shifted_words(["bad", "neutral", "good"])
        ('neutral', 'good', 'bad')
    """
    check_nonempty(words=words)
    return tuple(words[(i + by) % len(words)] for i in range(len(words)))
