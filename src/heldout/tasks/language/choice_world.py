"""Nine tasks of two options over one small vocabulary: judgements, four of them in the same two words, and contents.

A judgement is answered "yes" or "no", but that of ``compare``, a twin of ``order``, "more" or "less"; a content task by
a word of the prompt (``lookup``, ``category``) or one that must be known (``recall``, ``next``). Every option is one
word, so that no length decides.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable
from types import MappingProxyType
from typing import Literal

from heldout.errors import check_at_least, check_one_of, checked
from heldout.language_model import ChoiceExample

ChoiceKind = Literal["shared words", "own words", "content"]
_Draw = tuple[str, str, str]  # prompt, right option, wrong one

_LETTERS = [f"l{k}" for k in range(10)]
_NOUNS = ["dog", "cat", "bird", "horse", "child", "king", "star", "tree"]
_VERBS = ["run", "sing", "fall", "shine", "wait", "grow"]
_NUMBERS = [f"n{k}" for k in range(30)]
_NAMES = [
    *("ann", "bob", "eve", "dan", "ida", "max", "joe", "amy", "tom", "liz", "sam", "kim"),
    *("leo", "zoe", "ben", "fay", "gus", "ivy", "jim", "lea", "ned", "pia", "ron", "sue"),
]
_KINDS = {
    "fruit": ["plum", "pear", "fig", "lime", "date", "kiwi"],
    "tool": ["saw", "file", "nail", "drill", "rake", "axe"],
    "cloth": ["hat", "coat", "sock", "scarf", "shoe", "belt"],
    "dish": ["cup", "bowl", "plate", "fork", "jug", "pan"],
}
_VALUES = {
    "colour": ["red", "blue", "green", "grey", "pink", "white"],
    "city": ["rome", "oslo", "lima", "paris", "cairo", "delhi"],
    "game": ["chess", "darts", "cards", "golf", "tennis", "polo"],
    "month": ["march", "april", "may", "june", "july", "august"],
}
_VERBS_OF_FACTS = ["likes", "has", "from"]
_GLUE = "does hold ? the near s right tick hum tock is below with compare : has then pick of likes what even from"
_ANSWERS = ["no", "yes", "less", "more"]

CHOICE_TASKS: MappingProxyType[str, ChoiceKind] = MappingProxyType(
    {
        "inclusion": "shared words",
        "agreement": "shared words",
        "parity": "shared words",
        "order": "shared words",
        "compare": "own words",
        "lookup": "content",
        "recall": "content",
        "next": "content",
        "category": "content",
    }
)
"""The tasks of ``choice_examples``, each with what it is answered with."""


def choice_words() -> list[str]:
    """Returns all words of the prompts and the options.

    Example:
        >>> len(choice_words()) < 200
        True
    """
    groups = [_LETTERS, _NOUNS, _VERBS, _NUMBERS, _NAMES, *_KINDS.values(), *_VALUES.values(), _ANSWERS]
    return sorted({*_GLUE.split(), *_KINDS, *_VALUES, *(word for group in groups for word in group)})


@checked
def choice_examples(
    task: str,
    n: int,
    *,
    part: Literal["train", "test", "both"] = "train",
    distinct: bool = False,
    world: int = 0,
    seed: int = 0,
) -> list[ChoiceExample]:
    """Returns ``n`` examples of a task, the right option first in about half of them.

    A third of the prompts, chosen by their digest, are the part "test" and never in "train"; of ``recall``, which asks
    for facts that differ between worlds, it is a third of the facts. Judgements have each answer equally often on
    average, and their options always in the same order.

    Args:
        task: one of ``CHOICE_TASKS``.
        n: examples, at least 1.
        part: which prompts.
        distinct: no prompt comes twice. Otherwise it may, with another wrong option: of random answers the right one is
            then still the most frequent, and nothing is forgotten by them.
        world: number of the world: which facts hold, and which prompts are held out.
        seed: of the drawing.

    Raises:
        ValueError: an unknown task or part, n below 1 or more than there are distinct prompts, or a negative seed.

    Example:
        >>> choice_examples("next", 1, seed=3)[0].prompt
        'n25 n26 n27 n28 then'
    """
    check_one_of(CHOICE_TASKS, task=task)
    check_one_of(("train", "test", "both"), part=part)
    check_at_least(1, n=n)
    check_at_least(0, world=world, seed=seed)
    rng = random.Random(f"{task} {part} {world} {seed}")
    draw = functools.partial(_recall, _facts(world)) if task == "recall" else _DRAWS[task]
    found: list[ChoiceExample] = []
    seen: set[str] = set()
    draws = 0
    while len(found) < n:
        prompt, right, wrong = draw(rng)
        draws += 1
        if draws > 1000 + 100 * n:
            raise ValueError(f"n must be at most {len(found)} for distinct prompts of {task} in {part}, got {n}")
        if distinct and prompt in seen:
            continue
        if part != "both" and _held_out(prompt, world) != (part == "test"):
            continue
        seen.add(prompt)
        options = [right, wrong]
        if CHOICE_TASKS[task] == "content":
            rng.shuffle(options)
        else:
            options.sort(key=_ANSWERS.index)
        found.append(ChoiceExample(prompt, [f" {option}" for option in options], options.index(right)))
    return found


@checked
def random_choices(n: int, *, seed: int = 0) -> list[ChoiceExample]:
    """Returns ``n`` prompts of six random words, with two others as options: of no task, and with no right answer.

    Args:
        n: examples, at least 1; the first option is called right.
        seed: of the drawing.

    Raises:
        ValueError: n below 1, or a negative seed.

    Example:
        >>> len(random_choices(3)[0].prompt.split())
        6
    """
    check_at_least(1, n=n)
    check_at_least(0, seed=seed)
    rng, words = random.Random(f"random {seed}"), choice_words()
    drawn = [rng.sample(words, 8) for _ in range(n)]
    return [ChoiceExample(" ".join(some[:6]), [f" {word}" for word in some[6:]], 0) for some in drawn]


def _held_out(prompt: str, world: int) -> bool:
    return hashlib.sha256(f"{world} {prompt}".encode()).digest()[0] % 3 == 0


def _facts(world: int) -> dict[tuple[str, str, str], str]:
    rng = random.Random(f"facts {world}")
    pairs = [(kind, verb) for kind in _VALUES for verb in _VERBS_OF_FACTS]
    return {(kind, verb, name): rng.choice(_VALUES[kind]) for kind, verb in pairs for name in _NAMES}


def _judged(prompt: str, holds: bool, words: tuple[str, str] = ("no", "yes")) -> _Draw:
    return prompt, words[holds], words[not holds]


def _inclusion(rng: random.Random) -> _Draw:
    letters = rng.sample(_LETTERS, 4)
    holds = rng.random() < 0.5
    return _judged(f"does {' '.join(letters[:3])} hold {letters[rng.randrange(3) if holds else 3]} ?", holds)


def _agreement(rng: random.Random) -> _Draw:
    subject, other = rng.sample(_NOUNS, 2)
    many, holds = rng.random() < 0.5, rng.random() < 0.5
    ending = " s" if many != holds else ""
    other += " s" if rng.random() < 0.5 else ""
    return _judged(f"the {subject}{' s' if many else ''} near the {other} {rng.choice(_VERBS)}{ending} right ?", holds)


def _parity(rng: random.Random) -> _Draw:
    count = rng.randrange(4)
    words = ["tick"] * count + rng.choices(["hum", "tock"], k=6 - count)
    rng.shuffle(words)
    return _judged(f"{' '.join(words)} even ?", count % 2 == 0)


def _order(rng: random.Random) -> _Draw:
    first, second = rng.sample(range(len(_NUMBERS)), 2)
    return _judged(f"is {_NUMBERS[first]} below {_NUMBERS[second]} ?", first < second)


def _compare(rng: random.Random) -> _Draw:
    first, second = rng.sample(range(len(_NUMBERS)), 2)
    return _judged(f"compare {_NUMBERS[first]} with {_NUMBERS[second]} :", first > second, ("less", "more"))


def _lookup(rng: random.Random) -> _Draw:
    kinds = rng.choice(list(_KINDS)), rng.choice(list(_VALUES))
    words = rng.choice(_KINDS[kinds[0]]), rng.choice(_VALUES[kinds[1]])
    asked = rng.randrange(2)
    other = rng.choice([word for word in {**_KINDS, **_VALUES}[kinds[asked]] if word != words[asked]])
    return f"{rng.choice(_NAMES)} has {words[0]} likes {words[1]} : what {kinds[asked]}", words[asked], other


def _recall(facts: dict[tuple[str, str, str], str], rng: random.Random) -> _Draw:
    (kind, verb, name), value = rng.choice(list(facts.items()))
    other = rng.choice([word for word in _VALUES[kind] if word != value])
    return f"what {kind} {verb} {name} :", value, other


def _next(rng: random.Random) -> _Draw:
    step, length = rng.randint(1, 5), rng.randint(2, 4)
    start = rng.randrange(len(_NUMBERS) - step * length)
    row = list(range(start, start + step * (length + 1), step))
    wrong = rng.choice([word for word in _NUMBERS if word != _NUMBERS[row[-1]]])
    return f"{' '.join(_NUMBERS[k] for k in row[:-1])} then", _NUMBERS[row[-1]], wrong


def _category(rng: random.Random) -> _Draw:
    kinds = rng.sample(list(_KINDS), 3)
    words = [rng.choice(_KINDS[kind]) for kind in kinds]
    listed = list(words)
    rng.shuffle(listed)
    return f"pick {kinds[0]} from {' '.join(listed)} :", words[0], rng.choice(words[1:])


_DRAWS: dict[str, Callable[[random.Random], _Draw]] = {
    "inclusion": _inclusion,
    "agreement": _agreement,
    "parity": _parity,
    "order": _order,
    "compare": _compare,
    "lookup": _lookup,
    "next": _next,
    "category": _category,
}
