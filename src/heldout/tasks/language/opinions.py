"""Opinions: sentences with a sentiment, or with a fact or an opinion, to be classified by instruction.

A grammar with intensifiers and negation makes them, so that their class is not one word's. The last quarter of the
opinion words appears in held-out sentences only: a model must have learned from other text what they mean.
"""

from __future__ import annotations

import random
from typing import Literal

from heldout.errors import checked

POSITIVE_WORDS = [
    "good", "great", "fine", "lovely", "superb", "pleasant", "charming", "clever", "bright", "warm", "fresh",
    "funny", "tender", "moving", "rich", "graceful", "vivid", "elegant", "gentle", "sweet", "brilliant", "honest",
    "lively", "witty", "calm", "kind", "neat", "proud", "wise", "brave", "splendid", "joyful", "radiant",
    "cheerful", "delightful", "noble", "thrilling", "generous", "tasty", "smooth",
]  # fmt: skip
NEGATIVE_WORDS = [
    "bad", "poor", "dull", "awful", "boring", "ugly", "cold", "stale", "clumsy", "weak", "noisy", "bitter", "cruel",
    "dreary", "empty", "flat", "grim", "harsh", "lazy", "mean", "messy", "nasty", "painful", "rude", "sad",
    "shallow", "silly", "slow", "sour", "tired", "terrible", "gloomy", "hollow", "jarring", "lifeless", "vulgar",
    "wooden", "tedious", "rotten", "crude",
]  # fmt: skip
SUBJECTS = ["film", "book", "song", "play", "meal", "hotel", "story", "concert", "garden", "speech", "album", "novel"]
PLACES = ["paris", "rome", "oslo", "cairo", "lima", "delhi", "quito", "tunis"]
PARTS = ["scenes", "rooms", "words", "notes", "pages", "views", "chairs", "doors"]
INTENSIFIERS = ["very", "really", "quite", "truly", "rather", "so"]
NUMBERS = ["two", "three", "four", "five", "six", "seven", "eight", "nine"]
Task = Literal["sentiment", "subjectivity"]
OPINION_CLASSES = {"sentiment": ("negative", "positive"), "subjectivity": ("factual", "personal")}


def opinion_words() -> list[str]:
    """Returns all words of the sentences, sorted: the vocabulary of a tokenizer for them.

    Example:
        >>> words = opinion_words()
        >>> set(SUBJECTS) <= set(words), len(words) == len(set(words))
        (True, True)
    """
    glue = [
    "the", "was", "were", "and", "it", "has", "had", "in", "with", "not", "i", "think", "opened", "there", "a",
    "of", "to", "me", "seemed", "felt", ",", ".",
]  # fmt: skip
    return sorted({*POSITIVE_WORDS, *NEGATIVE_WORDS, *SUBJECTS, *PLACES, *PARTS, *INTENSIFIERS, *NUMBERS, *glue})


@checked
def opinions(n: int, *, task: Task = "sentiment", held_out: bool = False, seed: int = 0) -> tuple[list[str], list[int]]:
    """Returns ``n`` sentences and their classes, equally many of each, in random order.

    Args:
        n: number of sentences.
        task: "sentiment": negative (0) or positive (1), where "not" turns a sentence round; "subjectivity": a fact (0)
            or somebody's opinion (1).
        held_out: sentences with the last quarter of the opinion words, which the others never have.
        seed: of all drawing.

    Raises:
        ValueError: for no sentences or another task.

    Example:
        >>> texts, labels = opinions(4, seed=1)
        >>> len(texts), sorted(labels)
        (4, [0, 0, 1, 1])
    """
    if n < 1 or task not in OPINION_CLASSES:
        raise ValueError(f"opinions needs n >= 1 and one of {', '.join(OPINION_CLASSES)}, got {n} and {task!r}")
    draw = random.Random(seed)
    labels = [i % 2 for i in range(n)]
    draw.shuffle(labels)
    make = _sentiment if task == "sentiment" else _subjectivity
    return [make(draw, label, held_out) for label in labels], labels


def _sentiment(draw: random.Random, label: int, held_out: bool) -> str:
    negated = draw.random() < 0.25
    words = _known(POSITIVE_WORDS if label != negated else NEGATIVE_WORDS, held_out)
    first, second = draw.sample(words, 2)
    subject, part = draw.choice(SUBJECTS), draw.choice(PARTS)
    grade = f"{draw.choice(INTENSIFIERS)} " if draw.random() < 0.5 else ""
    if negated:
        return draw.choice(
            (f"the {subject} was not {grade}{first} .", f"i think the {subject} was not {first} to me .")
        )
    return draw.choice(
        (
            f"the {subject} was {grade}{first} .",
            f"the {subject} was {grade}{first} and {second} .",
            f"i think the {subject} seemed {grade}{first} .",
            f"the {subject} has {draw.choice(NUMBERS)} {grade}{first} {part} .",
            f"the {part} of the {subject} were {first} and {second} .",
        )
    )


def _subjectivity(draw: random.Random, label: int, held_out: bool) -> str:
    subject, part, number = draw.choice(SUBJECTS), draw.choice(PARTS), draw.choice(NUMBERS)
    if label == 1:
        return _sentiment(draw, draw.randrange(2), held_out)
    place = draw.choice(PLACES)
    return draw.choice(
        (
            f"the {subject} opened in {place} .",
            f"the {subject} has {number} {part} .",
            f"there were {number} {part} in the {subject} .",
            f"the {subject} had {number} {part} and a {draw.choice(SUBJECTS)} in {place} .",
        )
    )


def _known(words: list[str], held_out: bool) -> list[str]:
    cut = len(words) * 3 // 4
    return words[cut:] if held_out else words[:cut]
