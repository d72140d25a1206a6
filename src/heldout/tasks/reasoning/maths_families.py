"""The maths-families world: templated word problems of 24 skill families, with an editor that writes new ones.

A problem starts from a digit and applies operations to it, all results modulo 10. What a solver must be able to do
depends on its family: an ordered pair of operations (12 of 36 are families, the others are held out) and a group of
templates: stories tell the operations in order, nested phrases the last one first. Names, things and frames of the
sentence are surface: they are drawn independently of the family. The editor takes a problem and changes its digits, its
surface, or one step of its skill, so that a family is reached from another one only by way of those between.

The world of the prismatic reproduction, see arXiv:2505.20161.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

from heldout.errors import check_at_least, checked

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: (a + b) % 10,
    "-": lambda a, b: (a - b) % 10,
    "*": lambda a, b: (a * b) % 10,
    "max": max,
    "min": min,
    "gap": lambda a, b: abs(a - b),
}
GROUPS = ("story", "nested")
MATHS_NAMES = ("mia", "tom", "ada", "ben", "eva", "leo", "ida", "kim", "zoe", "jan", "lina", "omar")
MATHS_THINGS = (
    "apples",
    "coins",
    "books",
    "shells",
    "stamps",
    "cards",
    "pens",
    "nuts",
    "beads",
    "kites",
    "cups",
    "figs",
)

_PHRASES = {
    "story": {
        "+": "finds {} more",
        "-": "loses {} again",
        "*": "gets {} times that",
        "max": "keeps at least {}",
        "min": "keeps at most {}",
        "gap": "compares with {}",
    },
    "nested": {
        "+": "{} added to",
        "-": "{} taken from",
        "*": "{} multiplied with",
        "max": "the larger of {} and",
        "min": "the smaller of {} and",
        "gap": "the distance of {} from",
    },
}
_KEYS = {
    "story": {"finds": "+", "loses": "-", "gets": "*", "least": "max", "most": "min", "compares": "gap"},
    "nested": {"added": "+", "taken": "-", "multiplied": "*", "larger": "max", "smaller": "min", "distance": "gap"},
}
_FRAMES = {
    "story": (
        "{name} has {problem} . how many {things} ?",
        "today {name} counts {things} : {problem} . the end ?",
        "{things} of {name} : {problem} . say the number",
        "once {name} took {problem} {things} . result ?",
        "we ask {name} who owns {problem} of the {things}",
        "a box of {things} holds {problem} says {name}",
        # never trained on
        "how many {things} ? {name} has {problem}",
        "the end : {name} counts {problem} {things} today",
        "say who owns {things} : {name} took {problem}",
    ),
    "nested": (
        "{name} asks for {problem} . how many {things} ?",
        "today the {things} are {problem} . thanks {name}",
        "{things} for {name} : {problem} . say the number",
        "tell {name} what {problem} {things} is",
        "value of {problem} in {things} wanted by {name}",
        "a sheet of {name} shows {problem} {things}",
        # never trained on
        "how many {things} ? {name} wanted {problem}",
        "thanks {name} today shows {problem} of {things}",
        "say what {things} are : {problem} asks {name}",
    ),
}
MATHS_FRAMES, MATHS_TEST_FRAMES, ALL_MATHS_FRAMES = range(6), range(6, 9), range(9)
_DIGITS = tuple("0123456789")


class MathsFamily(NamedTuple):
    """A skill: an ordered pair of operations, told by a group of templates.

    Attributes:
        first, second: keys of ``OPERATIONS``, in the order of calculation.
        group: "story" or "nested".

    Example:
        >>> family = MathsFamily("+", "max", "story")
        >>> family in MATHS_FAMILIES, family in HELD_OUT_FAMILIES, len(MATHS_FAMILIES)
        (False, True, 24)
    """

    first: str
    second: str
    group: str


class MathsProblem(NamedTuple):
    """A problem before it is written out.

    Attributes:
        start: digit.
        steps: pairs (operation, digit), in the order of calculation.
        group: "story" or "nested".
        frame: number of the sentence around it; the last three are meant for tests.
        name, thing: who and what.

    Example:
        >>> problem = MathsProblem(7, (("-", 9), ("gap", 4)), "story")
        >>> maths_solution(problem)  # digits are counted modulo 10
        '7 - 9 = 8 gap 4 = 4'
    """

    start: int
    steps: tuple[tuple[str, int], ...]
    group: str
    frame: int = 0
    name: str = MATHS_NAMES[0]
    thing: str = MATHS_THINGS[0]


def _pairs(offsets: Sequence[int]) -> list[tuple[str, str]]:
    names = list(OPERATIONS)
    return [(first, names[(i + offset) % len(names)]) for i, first in enumerate(names) for offset in offsets]


MATHS_FAMILIES = tuple(MathsFamily(*pair, group) for group in GROUPS for pair in _pairs((1, 2)))
HELD_OUT_FAMILIES = tuple(MathsFamily(*pair, group) for group in GROUPS for pair in _pairs((0, 3, 4, 5)))


@checked
def sample_problem(
    family: MathsFamily | None = None,
    *,
    depth: int = 2,
    names: Sequence[str] = MATHS_NAMES,
    things: Sequence[str] = MATHS_THINGS,
    frames: Sequence[int] = MATHS_FRAMES,
    generator: np.random.Generator,
) -> MathsProblem:
    """Returns a random problem of a family, or of random operations and a random group where none is given.

    Args:
        family: its operations are the first two; further ones are random.
        depth: number of operations, at least 1.
        names, things, frames: the surface to draw from.
        generator: of numpy.

    Raises:
        ValueError: a depth below 1, or an empty surface.

    Example:
        >>> problem = sample_problem(MATHS_FAMILIES[0], generator=np.random.default_rng(0))
        >>> maths_family(problem) == MATHS_FAMILIES[0]
        True
    """
    if depth < 1:
        raise ValueError(f"a problem needs at least 1 operation, got depth {depth}")
    if not (len(names) and len(things) and len(frames)):
        raise ValueError("names, things and frames must not be empty")
    group = family.group if family else GROUPS[generator.integers(len(GROUPS))]
    operations = [family.first, family.second][:depth] if family else []
    operations += [list(OPERATIONS)[i] for i in generator.integers(len(OPERATIONS), size=depth - len(operations))]
    digits = generator.integers(10, size=depth + 1).tolist()
    return MathsProblem(
        digits[0],
        tuple(zip(operations, digits[1:], strict=True)),
        group,
        frames[int(generator.integers(len(frames)))],
        names[int(generator.integers(len(names)))],
        things[int(generator.integers(len(things)))],
    )


@checked
def maths_family(problem: MathsProblem) -> MathsFamily:
    """Returns the first two operations and the group of a problem, whether they are one of the 24 or held out.

    Raises:
        ValueError: a problem with one operation only.

    Example:
        >>> maths_family(MathsProblem(7, (("+", 5), ("max", 4), ("-", 1)), "nested"))
        MathsFamily(first='+', second='max', group='nested')
    """
    if len(problem.steps) < 2:
        raise ValueError("a problem with one operation has no family")
    return MathsFamily(problem.steps[0][0], problem.steps[1][0], problem.group)


@checked
def write_problem(problem: MathsProblem, *, signs: Collection[str] = ()) -> str:
    """Returns the text of a problem: words and digits with single spaces between them.

    Args:
        problem: what to write.
        signs: operations that are written as signs in place of words.

    Example:
        >>> write_problem(MathsProblem(7, (("+", 5), ("max", 4)), "story"))
        'mia has 7 finds 5 more keeps at least 4 . how many apples ?'
        >>> write_problem(MathsProblem(7, (("+", 5), ("max", 4)), "nested"))
        'mia asks for the larger of 4 and 5 added to 7 . how many apples ?'
        >>> write_problem(MathsProblem(7, (("+", 5), ("max", 4)), "nested"), signs=["max"])
        'mia asks for max 4 5 added to 7 . how many apples ?'
    """
    phrases = _PHRASES[problem.group]
    said = [f"{op} {digit}" if op in signs else phrases[op].format(digit) for op, digit in problem.steps]
    ordered = [str(problem.start), *said] if problem.group == "story" else [*reversed(said), str(problem.start)]
    frame = _FRAMES[problem.group][problem.frame]
    return frame.format(name=problem.name, things=problem.thing, problem=" ".join(ordered))


@checked
def read_problem(text: str) -> MathsProblem:
    """Returns the problem that a text states, the inverse of ``write_problem``.

    Raises:
        ValueError: a text that this world does not write.

    Example:
        >>> read_problem("mia has 7 finds 5 more keeps at least 4 . how many apples ?").steps
        (('+', 5), ('max', 4))
    """
    words = text.split()
    digits = [int(word) for word in words if word in _DIGITS]
    name, thing = (next((word for word in words if word in known), None) for known in (MATHS_NAMES, MATHS_THINGS))
    for group, keys in _KEYS.items() if name and thing else ():
        operations = [keys[word] for word in words if word in keys]
        if not operations or len(digits) != len(operations) + 1:
            continue
        if group == "nested":
            operations.reverse()
            digits.reverse()
        steps = tuple(zip(operations, digits[1:], strict=True))
        for frame in ALL_MATHS_FRAMES:
            problem = MathsProblem(digits[0], steps, group, frame, name, thing)  # type: ignore[arg-type]
            if write_problem(problem) == text:
                return problem
    raise ValueError(f"not a problem of this world: {text!r}")


@checked
def maths_solution(problem: MathsProblem) -> str:
    """Returns the worked maths_solution, of which the last word is the answer.

    Example:
        >>> maths_solution(MathsProblem(7, (("+", 5), ("max", 4)), "story"))
        '7 + 5 = 2 max 4 = 4'
    """
    value, words = problem.start, [str(problem.start)]
    for operation, digit in problem.steps:
        value = OPERATIONS[operation](value, digit)
        words += [operation, str(digit), "=", str(value)]
    return " ".join(words)


def maths_words() -> list[str]:
    """Returns texts with every word of problems and solutions, for a tokenizer.

    Example:
        >>> any("kites" in text.split() for text in maths_words())
        True
    """
    surface = [*MATHS_NAMES, *MATHS_THINGS, *_DIGITS, *OPERATIONS, "="]
    said = [phrase.format("") for phrases in _PHRASES.values() for phrase in phrases.values()]
    frames = [frame.format(name="", things="", problem="") for frames in _FRAMES.values() for frame in frames]
    return [*surface, *said, *frames]


def answer_of(response: str) -> str:
    """Returns the last word of a maths_solution, "" where there is none."""
    return response.split()[-1] if response.split() else ""


@checked
def noisy_maths_solutions(text: str, count: int, *, noise: float = 0.15, generator: np.random.Generator) -> list[str]:
    """Returns solutions of a problem, each with a wrong last digit with probability ``noise``.

    Args:
        text: of a problem, as ``write_problem`` writes it.
        count: solutions.
        noise: probability, in [0, 1].
        generator: of numpy.

    Raises:
        ValueError: a text that this world does not write, or a negative count.

    Example:
        >>> text = "mia has 7 finds 5 more . how many apples ?"
        >>> noisy_maths_solutions(text, 2, noise=0, generator=np.random.default_rng(0))
        ['7 + 5 = 2', '7 + 5 = 2']
    """
    check_at_least(0, count=count)
    right = maths_solution(read_problem(text))
    kept, answer = right[:-1], int(right[-1])
    wrong = (generator.random(count) < noise) * generator.integers(1, 10, size=count)
    return [f"{kept}{(answer + shift) % 10}" for shift in wrong.tolist()]


@checked
def edit_problem(
    problem: MathsProblem,
    *,
    operation: float = 0.15,
    group: float = 0.05,
    surface: float = 0.3,
    generator: np.random.Generator,
) -> MathsProblem:
    """Returns a problem near to a given one: new digits, and perhaps another surface or one step of another skill.

    A step of skill is one operation exchanged, or the group; the result is one of the 24 families if the given problem
    is, so that held-out pairs are never written.

    Args:
        problem: with two operations; of more the first two are looked at, and two are returned.
        operation: probability that one operation is exchanged; each family has one neighbour for each of the two.
        group: probability that the other group tells the problem.
        surface: probability of another name, thing and frame.
        generator: of numpy.

    Raises:
        ValueError: a problem that is of none of the 24 families.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> problem = sample_problem(MATHS_FAMILIES[0], generator=rng)
        >>> edited = edit_problem(problem, operation=1.0, group=0.0, surface=0.0, generator=rng)
        >>> sum(a != b for a, b in zip(maths_family(problem), maths_family(edited)))
        1
        >>> edited.name == problem.name, maths_family(edited) in MATHS_FAMILIES
        (True, True)
    """
    family = maths_family(problem)
    if family not in MATHS_FAMILIES:
        raise ValueError(f"the editor knows the 24 families, got a problem of {tuple(family)}")
    if generator.random() < operation:
        place = int(generator.integers(2))
        near = [
            f for f in MATHS_FAMILIES if f != family and f.group == family.group and f[1 - place] == family[1 - place]
        ]
        family = near[generator.integers(len(near))]
    if generator.random() < group:
        family = family._replace(group=GROUPS[1 - GROUPS.index(family.group)])
    edited = sample_problem(family, generator=generator)
    if generator.random() < surface:
        return edited
    return edited._replace(frame=problem.frame, name=problem.name, thing=problem.thing)
