"""Worded sums: word problems whose worked answers have several valid forms, and other skills that tuning may cost.

A problem tells a start and some additions and subtractions; names, things and sentence are surface. Its steps may be
taken in either order (all results stay in the range), and be worded in several ways. Styles A and B need the same sums
and about as many words, but have no word in common, and within a step B has the two numbers the other way round.

The other skills: sorting, reversal, addition modulo 13, and finding an item of a list. Neutral texts use the words of
style B, and facts are its steps one by one, so that a style that no problem was answered in need not be gibberish.

The world of the s3ft reproduction, see arXiv:2502.08130.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from heldout.errors import check_length, check_one_of, checked
from heldout.tasks.reasoning.maths_families import MATHS_NAMES, MATHS_THINGS

WORDED_STYLES = ("A", "B", "C")
RETENTION_SKILLS = ("sort", "reverse", "modular", "lookup")
WORDED_TEMPLATES, OTHER_WORDED_TEMPLATES = range(4), range(4, 6)
WORDED_RANGE, LARGER_WORDED_RANGE = (0, 19), (20, 39)
MODULUS = 13

# sentence, what is said of an addition, and of a subtraction
_TEMPLATES = (
    ("{name} has {start} {things} , {steps} . how many ?", "finds {}", "loses {}"),
    ("once {name} had {start} {things} , {steps} . say how many", "got {}", "gave {}"),
    ("a box of {name} holds {start} {things} , {steps} . result ?", "gains {}", "drops {}"),
    ("{things} of {name} : {start} , {steps} . how many now ?", "wins {}", "sells {}"),
    ("how many {things} has {name} ? at first {start} , {steps} .", "buys {}", "spends {}"),
    ("count the {things} : {name} took {start} , {steps} .", "picks {}", "returns {}"),
)
# before, an addition, a subtraction, between, after
_STYLES = {
    "A": ("first", "{v} plus {n} is {r}", "{v} minus {n} is {r}", "then", "so {r}"),
    "B": ("", "giving {n} to {v} leaves {r}", "taking {n} from {v} leaves {r}", ";", "total {r}"),
}
_STYLES["C"] = _STYLES["A"]
# for references: verbs of addition and of subtraction, words before the result, between the steps and at the end
_ADDING, _SUBTRACTING = ("add", "join", "put", "raise", "+"), ("subtract", "drop", "cut", "lower", "-")
_PATTERNS = ("verb {n} on {v}", "verb {v} by {n}", "{v} verb {n}")
_BECOMES, _NEXT, _LAST = ("gives", "makes", ":", "="), ("and", "next", ",", "."), ("answer", "result", "end", "thus")
_NEUTRAL = (
    "{name} is giving {things} to {other}",
    "{name} leaves the {things} and takes a box from {other}",
    "the total of {name} ; {other} is taking {things}",
    "{name} and {other} are taking {things} to the box",
    "first {name} is giving {things} then {other} leaves",
    "{other} took {things} from {name} ; the result leaves a box",
)
_RESTATING = "question : {prompt} reference : {reference} restated :"


class WordedProblem(NamedTuple):
    """A problem before it is written out.

    Attributes:
        start: number.
        steps: pairs ("+" or "-", number), in the order told.
        template: number of the sentence; the last two are not those of the trained skill.
        name, thing: who and what.

    Example:
        >>> problem = WordedProblem(7, (("+", 5), ("-", 3)), name="tom", thing="coins")
        >>> write_worded(problem), problem.result
        ('tom has 7 coins , finds 5 and loses 3 . how many ?', 9)
    """

    start: int
    steps: tuple[tuple[str, int], ...]
    template: int = 0
    name: str = MATHS_NAMES[0]
    thing: str = MATHS_THINGS[0]

    @property
    def result(self) -> int:
        """What the steps come to."""
        return self.start + sum(_signed(step) for step in self.steps)


@checked
def worded_problem(
    rng: random.Random,
    *,
    between: tuple[int, int] = WORDED_RANGE,
    depth: int = 2,
    templates: Sequence[int] = WORDED_TEMPLATES,
) -> WordedProblem:
    """Returns a random problem whose numbers stay in a range, whether its steps are taken forwards or backwards.

    Args:
        rng: what to draw from.
        between: least and greatest of the start and all results, at least 9 apart; the steps are 1 to 9.
        depth: number of steps, at least 1.
        templates: sentences to draw from.

    Raises:
        ValueError: options out of range.

    Example:
        >>> problem = worded_problem(random.Random(0), depth=3)
        >>> len(problem.steps), 0 <= problem.result <= 19
        (3, True)
    """
    low, high = between
    if depth < 1 or not templates:
        raise ValueError(f"a problem needs a template and at least 1 step, got depth {depth}")
    if low < 0 or high - low < 9:
        raise ValueError(f"numbers must stay between two that are at least 9 apart and not negative, got {between}")
    while True:
        start = rng.randint(low, high)
        steps = tuple((rng.choice("+-"), rng.randint(1, 9)) for _ in range(depth))
        if all(low <= value <= high for order in (steps, steps[::-1]) for value in _values(start, order)):
            break
    return WordedProblem(start, steps, rng.choice(templates), rng.choice(MATHS_NAMES), rng.choice(MATHS_THINGS))


@checked
def write_worded(problem: WordedProblem) -> str:
    """Returns the text of a problem: words and numbers with single spaces between them.

    Example:
        >>> write_worded(WordedProblem(7, (("+", 5), ("-", 3))))
        'mia has 7 apples , finds 5 and loses 3 . how many ?'
    """
    sentence, addition, subtraction = _TEMPLATES[problem.template]
    steps = [(addition if sign == "+" else subtraction).format(n) for sign, n in problem.steps]
    return sentence.format(name=problem.name, things=problem.thing, start=problem.start, steps=" and ".join(steps))


@checked
def worked_answer(problem: WordedProblem, style: str = "A") -> str:
    """Returns the worked answer in a style; its last number is the result.

    In B the number of a step comes before what it is applied to; C has the words of A, and takes the last step first.

    Args:
        problem: to be solved.
        style: one of ``WORDED_STYLES``.

    Raises:
        ValueError: an unknown style.

    Example:
        >>> problem = WordedProblem(7, (("+", 5), ("-", 3)))
        >>> worked_answer(problem)
        'first 7 plus 5 is 12 then 12 minus 3 is 9 so 9'
        >>> worked_answer(problem, "B")
        'giving 5 to 7 leaves 12 ; taking 3 from 12 leaves 9 total 9'
    """
    if style not in _STYLES:
        raise ValueError(f"style must be one of {', '.join(_STYLES)}, got {style!r}")
    return _worked(problem, _STYLES[style], style == "C")


@checked
def worded_fact(rng: random.Random, style: str = "B", between: tuple[int, int] = WORDED_RANGE) -> str:
    """Returns a true sum, worded as a step of a worked answer in a style.

    Args:
        rng: what to draw from.
        style: one of ``WORDED_STYLES``.
        between: least and greatest number, as for ``worded_problem``.

    Raises:
        ValueError: an unknown style, numbers out of range.

    Example:
        >>> worded_fact(random.Random(0))
        'taking 1 from 12 leaves 11'
    """
    check_length(2, between=between)
    check_one_of(_STYLES, style=style)
    problem = worded_problem(rng, between=between, depth=1)
    words = _STYLES[style][2 if problem.steps[0][0] == "-" else 1]
    return words.format(v=problem.start, n=problem.steps[0][1], r=problem.result)


@checked
def worked_style(problem: WordedProblem, response: str) -> str | None:
    """Returns the style in which a response is a worked answer without any mistake, or None.

    Args:
        problem: that was to be solved.
        response: any text; how its words are spaced does not matter.

    Example:
        >>> problem = WordedProblem(7, (("+", 5), ("-", 3)))
        >>> worked_style(problem, "first 7 plus 5 is 12 then 12 minus 3 is 9 so 9")
        'A'
        >>> worked_style(problem, "first 7 plus 5 is 13 then 13 minus 3 is 9 so 9") is None
        True
    """
    words = " ".join(response.split())
    return next((style for style in WORDED_STYLES if worked_answer(problem, style) == words), None)


@checked
def worked_reference(problem: WordedProblem, rng: random.Random) -> str:
    """Returns a worked answer in words that are drawn at random, none of them those of styles A and B.

    Args:
        problem: to be solved.
        rng: draws the words.

    Example:
        >>> worked_reference(WordedProblem(7, (("+", 5), ("-", 3))), random.Random(0))
        'add 7 by 5 = 12 . cut 12 by 3 = 9 thus 9'
    """
    pattern, becomes = rng.choice(_PATTERNS), rng.choice(_BECOMES)
    addition, subtraction = (
        f"{pattern.replace('verb', rng.choice(verbs))} {becomes} {{r}}" for verbs in (_ADDING, _SUBTRACTING)
    )
    return _worked(problem, ("", addition, subtraction, rng.choice(_NEXT), f"{rng.choice(_LAST)} {{r}}"))


@checked
def restating_document(problem: WordedProblem, reference: str, style: str = "A") -> tuple[str, str]:
    """Returns a prompt with a problem and an answer to it, and that answer restated in a style.

    Args:
        problem: what is asked.
        reference: an answer in other words, such as ``worked_reference`` gives.
        style: of the answer, one of ``WORDED_STYLES``.

    Raises:
        ValueError: an unknown style.

    Example:
        >>> restating_document(WordedProblem(7, (("+", 5),)), "add 5 on 7 = 12 answer 12")[0]
        'question : mia has 7 apples , finds 5 . how many ? reference : add 5 on 7 = 12 answer 12 restated :'
    """
    return _RESTATING.format(prompt=write_worded(problem), reference=reference), worked_answer(problem, style)


def restating_template() -> str:
    """Returns the prompt of restating documents, with the fields ``{prompt}`` and ``{reference}``.

    Example:
        >>> restating_template().format(prompt="mia has 7 apples . how many ?", reference="it is 7")
        'question : mia has 7 apples . how many ? reference : it is 7 restated :'
    """
    return _RESTATING


@checked
def retention_example(skill: str, rng: random.Random) -> tuple[str, str]:
    """Returns a prompt and the response to it, of a skill that has nothing to do with worded sums.

    Args:
        skill: "sort" four digits, "reverse" four words, add two numbers "modular" 13, or "lookup" an item of four.
        rng: what to draw from.

    Raises:
        ValueError: an unknown skill.

    Example:
        >>> retention_example("sort", random.Random(0))
        ('sort 6 9 0 2 :', '0 2 6 9')
    """
    if skill == "sort":
        digits = rng.sample(range(10), 4)
        return f"sort {_joined(digits)} :", _joined(sorted(digits))
    if skill == "modular":
        a, b = rng.randrange(MODULUS), rng.randrange(MODULUS)
        return f"clock {a} {b} :", str((a + b) % MODULUS)
    words = rng.sample(MATHS_THINGS, 4)
    if skill == "reverse":
        return f"reverse {_joined(words)} :", _joined(words[::-1])
    if skill == "lookup":
        place = rng.randrange(4)
        return f"item {place} of {_joined(words)} :", words[place]
    raise ValueError(f"skill must be one of {', '.join(RETENTION_SKILLS)}, got {skill!r}")


@checked
def neutral_text(rng: random.Random) -> str:
    """Returns a sentence that asks for nothing.

    Example:
        >>> neutral_text(random.Random(1))
        'ada is giving stamps to jan'
    """
    name, other = rng.sample(MATHS_NAMES, 2)
    return rng.choice(_NEUTRAL).format(name=name, other=other, things=rng.choice(MATHS_THINGS))


def worded_words() -> list[str]:
    """Returns texts with every word of this world, for a tokenizer.

    Example:
        >>> any("leaves" in text.split() for text in worded_words())
        True
    """
    fields = {"name": "", "things": "", "other": "", "start": "", "steps": "and"}
    said = [text.format("", **fields) for template in _TEMPLATES for text in template]
    said += [text.format(v="", n="", r="") for texts in _STYLES.values() for text in texts]
    said += [text.format(**fields) for text in _NEUTRAL]
    numbers = [str(n) for n in range(LARGER_WORDED_RANGE[1] + 1)]
    return [
        *(*MATHS_NAMES, *MATHS_THINGS, *numbers, *said, *_ADDING, *_SUBTRACTING, *_BECOMES, *_NEXT, *_LAST),
        _RESTATING.format(prompt="", reference=""),
        "sort reverse clock item of : ; on by",
    ]


def _worked(problem: WordedProblem, words: tuple[str, ...], reverse: bool = False) -> str:
    before, addition, subtraction, joint, after = words
    value, said = problem.start, []
    for sign, n in problem.steps[::-1] if reverse else problem.steps:
        result = value + _signed((sign, n))
        said.append((addition if sign == "+" else subtraction).format(v=value, n=n, r=result))
        value = result
    return " ".join(filter(None, [before, f" {joint} ".join(said), after.format(r=value)]))


def _signed(step: tuple[str, int]) -> int:
    return step[1] if step[0] == "+" else -step[1]


def _values(start: int, steps: Sequence[tuple[str, int]]) -> list[int]:
    values = [start]
    for step in steps:
        values.append(values[-1] + _signed(step))
    return values


def _joined(items: Sequence[object]) -> str:
    return " ".join(map(str, items))
