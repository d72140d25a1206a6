"""Questions of three types whose answers come in mixed surface forms, and an oracle that knows what they mean.

Sums told as a story, the last letters of two names, and comparisons of sums with a number. A path reasons in an order
of its own and ends in one of five forms: the bare answer, an alias ("seven", "d-y", "true"), "the answer is ...", with
a unit, or a sentence. ``meaning`` brings any of them to the canonical answer; it is for scoring.

``agreement_replies`` is content of another kind (colours, places, sizes, names) in which several short replies mean
more or less the same: material to teach a model what most replies agree on.
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from heldout.errors import check_at_least, checked

ReasoningKind = Literal["arithmetic", "letters", "comparison"]
REASONING_KINDS: tuple[ReasoningKind, ...] = ("arithmetic", "letters", "comparison")
ANSWER_FORMS = ("bare", "alias", "marked", "unit", "sentence")

NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_LETTERS = ("d", "e", "m", "n", "y")
_STEMS = ("al", "be", "co", "da", "fi", "gu")
_NAMES = tuple(stem + letter for stem in _STEMS for letter in _LETTERS)
_OWNERS, _UNITS = ("tom", "ann", "bob", "sue"), ("pens", "cards", "shells", "coins")
_ASKING = ("did", "you", "see", "near", "old", "garden", "when", "we", "came", "from", *_OWNERS, *_UNITS, "1", "3", "5")
_TRUTH = {"yes": "true", "no": "false"}

# canonical value and its other names
_VALUES = {
    "colour": (("red", "scarlet"), ("blue", "azure"), ("green", "emerald"), ("black", "ebony"), ("white", "ivory")),
    "place": (("home", "house"), ("shop", "store"), ("wood", "forest"), ("town", "city"), ("coast", "shore")),
    "size": (("big", "large"), ("small", "little"), ("tiny", "minute"), ("long", "lengthy"), ("wide", "broad")),
    "name": (("robert", "rob"), ("william", "will"), ("thomas", "tommy"), ("susan", "susie"), ("anna", "annie")),
}
_FORMS = {
    "colour": "so the paint must be {}", "place": "so they went to {}", "size": "so it looks {}",
    "name": "so the child is {}", "number": "so there must be {}", "pair": "so it spells {}", "truth": "so that is {}",
}  # fmt: skip
_THINGS = {"colour": "paint", "place": "area", "size": "thing", "name": "person", "number": "items", "pair": "letters",
           "truth": "indeed"}  # fmt: skip


@dataclass(frozen=True)
class ReasoningQuestion:
    """A question with what it takes to answer it.

    Attributes:
        text: of the question.
        kind: one of ``REASONING_KINDS``.
        answer: the canonical answer: digits, two letters, or "yes" or "no".
        parts: numbers or names, in the order of the text.
        unit: what is counted, in arithmetic.
        bound: number that a comparison is with.

    Example:
        >>> question = reasoning_questions(1, ["letters"], seed=1)[0]
        >>> question.answer == "".join(name[-1] for name in question.parts), question.unit
        (True, '')
    """

    text: str
    kind: ReasoningKind
    answer: str
    parts: tuple[str, ...]
    unit: str = ""
    bound: int = 0


@checked
def reasoning_questions(
    count: int, kinds: Sequence[ReasoningKind] = REASONING_KINDS, *, seed: int = 0
) -> list[ReasoningQuestion]:
    """Returns random questions of the given kinds, in turn.

    Args:
        count: how many, at least 1.
        kinds: of ``REASONING_KINDS``, at least one.
        seed: of the draws.

    Raises:
        ValueError: no question, no kind, or an unknown one.

    Example:
        >>> for question in reasoning_questions(3, seed=1):
        ...     print(question.text, "->", question.answer)
        ann has 3 cards then gets 4 then gets 4 . how many ? -> 11
        last letters of con com ? -> nm
        is 2 plus 4 plus 2 plus 1 more than 6 ? -> yes
    """
    if count < 1 or not kinds:
        raise ValueError(f"questions need a count and kinds, got {count} and {list(kinds)}")
    rng = random.Random(f"reasoning {seed}")
    return [_question(kinds[i % len(kinds)], rng) for i in range(count)]


@checked
def reasoning_path(question: ReasoningQuestion, rng: random.Random, form: str | None = None) -> str:
    """Returns a correct path to the answer, its steps in random order, its answer in one of the forms.

    Args:
        question: to answer.
        rng: draws the order and the form.
        form: one of ``ANSWER_FORMS``; default: drawn.

    Example:
        >>> question = reasoning_questions(1, seed=1)[0]
        >>> reasoning_path(question, random.Random(0), "sentence")
        '3 plus 4 is 7 . 4 plus 7 is 11 . so in all it is eleven cards .'
    """
    parts, steps = list(question.parts), []
    if question.kind == "letters":
        steps = [f"{name} ends in {name[-1]}" for name in parts]
        rng.shuffle(steps)
    else:
        rng.shuffle(parts)
        total = int(parts[0])
        for part in parts[1:]:
            steps.append(" plus ".join(rng.sample([str(total), part], 2)) + f" is {total + int(part)}")
            total += int(part)
        if question.kind == "comparison":
            steps.append(f"{total} is {'more' if total > question.bound else 'not more'} than {question.bound}")
    final = answer_in_form(question, question.answer, form or rng.choice(ANSWER_FORMS))
    return " . ".join([*steps, final]) + " ."


@checked
def answer_in_form(question: ReasoningQuestion, answer: str, form: str) -> str:
    """Returns a canonical answer in one of ``ANSWER_FORMS``, as the question's type has it.

    Args:
        question: of whose kind the answer is.
        answer: as ``ReasoningQuestion.answer`` is written; of a sum at most 20, for larger numbers have no word.
        form: one of ``ANSWER_FORMS``.

    Raises:
        ValueError: an unknown form.

    Example:
        >>> question = reasoning_questions(2)[1]
        >>> [answer_in_form(question, "dy", form) for form in ANSWER_FORMS]
        ['dy', 'd-y', 'the answer is dy', 'letters d-y', 'so they end in d-y']
    """
    if form not in ANSWER_FORMS:
        raise ValueError(f"form must be one of {', '.join(ANSWER_FORMS)}, got {form!r}")
    if form == "bare":
        return answer
    if form == "marked":
        return f"the answer is {answer}"
    if question.kind == "arithmetic":
        word = NUMBER_WORDS[int(answer)]
        return {
            "alias": word,
            "unit": f"{answer} {question.unit}",
            "sentence": f"so in all it is {word} {question.unit}",
        }[form]
    if question.kind == "letters":
        apart = "-".join(answer)
        return {"alias": apart, "unit": f"letters {apart}", "sentence": f"so they end in {apart}"}[form]
    return {"alias": _TRUTH[answer], "unit": f"{answer} indeed", "sentence": f"so this is {_TRUTH[answer]}"}[form]


@checked
def meaning(text: str) -> str | None:
    """Returns the canonical answer that the last sentence of a path states, or None: an oracle, for scoring.

    Example:
        >>> meaning("2 plus 3 is 5 . so in all it is five pens ."), meaning("letters d-y"), meaning("that is true .")
        ('5', 'dy', 'yes')
    """
    sentences = [part.split() for part in text.lower().replace(".", " . ").split(" . ") if part.strip(" .")]
    words = sentences[-1] if sentences else []
    for word in reversed(words):
        if word.isdigit():
            return word
        if word in NUMBER_WORDS:
            return str(NUMBER_WORDS.index(word))
        if word in ("yes", "true"):
            return "yes"
        if word in ("no", "false"):
            return "no"
        pair = word.replace("-", "")
        if len(pair) == 2 and set(pair) <= set(_LETTERS):
            return pair
    return None


@checked
def agreement_replies(rng: random.Random, n: int, *, transfer: float = 0.2) -> tuple[str, list[str], str]:
    """Returns a question about colours, places, sizes or names, ``n`` replies, and what most of them mean.

    The majority is strict. Replies word their value in one of five forms and with either of its names, most of
    them after sentences of random words from all of the world, which mean nothing.

    Args:
        rng: draws everything.
        n: replies, at least 3.
        transfer: share of the examples whose values are numbers, pairs of letters or truth values.

    Raises:
        ValueError: fewer than 3 replies.

    Example:
        >>> question, replies, answer = agreement_replies(random.Random(1), 3, transfer=0.0)
        >>> print(*replies, "->", answer)
        twelve ey my . one d-y susan . so they went to house . the answer is home . wood . -> home
    """
    check_at_least(3, n=n)
    if n < 3:
        raise ValueError(f"a majority among replies needs at least 3, got {n}")
    values: Sequence[tuple[str, str]]
    kind = rng.choice(tuple(_VALUES))
    if rng.random() < transfer:
        kind = rng.choice(("number", "pair", "truth"))
    if kind == "number":
        values = [(str(number), word) for number, word in enumerate(NUMBER_WORDS)]
    elif kind == "pair":
        values = [(a + b, f"{a}-{b}") for a in _LETTERS for b in _LETTERS]
    elif kind == "truth":
        values = list(_TRUTH.items())
    else:
        values = _VALUES[kind]
    some = rng.sample(list(values), min(len(values), rng.randint(2, 4)))
    while True:
        said = [some[0] if rng.random() < 0.45 else rng.choice(some) for _ in range(n)]
        (first, most), *rest = Counter(said).most_common(2)
        if not rest or most > rest[0][1]:
            break
    words, replies = _chatter_words(), []
    for value in said:
        chatter = [" ".join(rng.choices(words, k=rng.randint(3, 5))) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
        sentence = _FORMS[kind].replace("{}", "{1}")
        form = rng.choice(("{0}", "{1}", "the answer is {0}", "{0} " + _THINGS[kind], sentence))
        replies.append(" . ".join([*chatter, form.format(*value)]) + " .")
    asked = rng.choices(_ASKING, k=rng.randint(2, 10))
    return " ".join(["which", kind, *asked, "?"]), replies, first[0]


def reasoning_words() -> list[str]:
    """Returns every word of the questions, paths and replies, for a tokenizer.

    Example:
        >>> {"seven", "7", "dy", "scarlet"} <= set(reasoning_words())
        True
    """
    said = "has then gets how many ? . last letters of is plus more not than ends in the answer so all it they end"
    words = {*said.split(), "this", "yes", "no", "true", "false", "indeed", "which", *_LETTERS}
    words |= {*_ASKING, *_NAMES, *_OWNERS, *_UNITS, *NUMBER_WORDS, *map(str, range(len(NUMBER_WORDS)))}
    words |= {a + dash + b for a in _LETTERS for b in _LETTERS for dash in ("", "-")}
    words |= {*_FORMS, *_THINGS.values(), *(name for values in _VALUES.values() for pair in values for name in pair)}
    words |= {word for form in _FORMS.values() for word in form.split() if word != "{}"}
    return sorted(words)


@functools.cache
def _chatter_words() -> tuple[str, ...]:
    return tuple(word for word in reasoning_words() if word != ".")


def _question(kind: ReasoningKind, rng: random.Random) -> ReasoningQuestion:
    if kind == "letters":
        names = tuple(rng.sample(_NAMES, 2))
        return ReasoningQuestion(f"last letters of {' '.join(names)} ?", kind, "".join(n[-1] for n in names), names)
    numbers = tuple(str(rng.randint(1, 4)) for _ in range(rng.choice((3, 4))))
    total = sum(map(int, numbers))
    if kind == "arithmetic":
        owner, unit = rng.choice(_OWNERS), rng.choice(_UNITS)
        gets = " ".join(f"then gets {number}" for number in numbers[1:])
        return ReasoningQuestion(
            f"{owner} has {numbers[0]} {unit} {gets} . how many ?", kind, str(total), numbers, unit
        )
    if kind != "comparison":
        raise ValueError(f"kind must be one of {', '.join(REASONING_KINDS)}, got {kind!r}")
    bound = max(0, total + rng.choice((-4, -3, -2, -1, 0, 1, 2, 3)))
    text = f"is {' plus '.join(numbers)} more than {bound} ?"
    return ReasoningQuestion(text, kind, "yes" if total > bound else "no", numbers, bound=bound)
