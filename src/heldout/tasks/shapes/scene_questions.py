"""Core: Questions about a scene of coloured shapes as trees of operators: answered, worded, and written as tokens.

A scene is a grid of cells, each empty or with one object, a shape in a colour. Rows and columns count from 0, which is
what the operators on parity compute with. Source: arXiv:2401.15030, section 3 (gCOG), after COG, arXiv:1803.06092.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from heldout.errors import check_dimensions, check_labels, check_one_of, checked

BOOLEAN_QUESTIONS = ("Exist", "SumEven", "SumOdd", "ProductEven", "ProductOdd")
QUESTION_OPERATORS = (*BOOLEAN_QUESTIONS, "GetColor", "GetShape", "Go")
SCENE_COLORS = ("red", "green", "blue", "yellow", "orange", "purple", "cyan", "pink", "grey", "white")
SCENE_SHAPES = tuple("abcdefghijklmnopqrstuvwxyz")
RULE_FIELDS = ("operator", "shape1", "color1", "time1", "shape2", "color2", "time2", "end")
_PARITIES = BOOLEAN_QUESTIONS[1:]
_IF_ELSE = len(QUESTION_OPERATORS) + 1


class SceneObject(NamedTuple):
    """A coloured shape, or what is asked for of one.

    Attributes:
        color: position in ``SCENE_COLORS``; None where it is asked for.
        shape: position in ``SCENE_SHAPES``; None where it is asked for.

    Example:
        >>> blue_one = SceneObject(SCENE_COLORS.index("blue"), None)
        >>> question_text(SceneQuestion("GetShape", (blue_one,)))
        'say the shape of the blue object'
    """

    color: int | None
    shape: int | None


class SceneQuestion(NamedTuple):
    """A question: an operator on objects, or IfElse on a test and two further questions.

    Attributes:
        operator: of ``QUESTION_OPERATORS``, or "IfElse".
        objects: one, or for the operators on parity one or two; none for IfElse.
        branches: of IfElse: the test, what is asked where it is true, and what is asked where it is false.

    Example:
        >>> red_a = SceneObject(0, 0)
        >>> SceneQuestion("IfElse", (), (SceneQuestion("Exist", (red_a,)), SceneQuestion("Go", (red_a,)),
        ...     SceneQuestion("GetShape", (SceneObject(2, None),)))).depth
        3
    """

    operator: str
    objects: tuple[SceneObject, ...] = ()
    branches: tuple[SceneQuestion, ...] = ()

    @property
    def depth(self) -> int:
        """How many nodes lie on the longest path: a test, an IfElse and a question make 3."""
        return 2 + max(branch.depth for branch in self.branches[1:]) if self.branches else 1


class SceneAnswer(NamedTuple):
    """What a question about a scene is answered by.

    Attributes:
        kind: what ``value`` counts.
        value: 0 or 1 for false and true; the cell, row by row; a position in ``SCENE_SHAPES`` or ``SCENE_COLORS``.

    Example:
        >>> scene = torch.zeros(3, 3, 2, dtype=torch.int64)
        >>> scene[2, 1] = torch.tensor([3, 2])  # a blue "b"
        >>> answer = answer_question(SceneQuestion("Go", (SceneObject(2, 1),)), scene)
        >>> answer.kind, divmod(answer.value, 3)
        ('cell', (2, 1))
    """

    kind: Literal["truth", "cell", "shape", "color"]
    value: int


@checked
def answer_question(question: SceneQuestion, scene: Tensor) -> SceneAnswer:
    """Returns the answer to a question; only the branch that is taken needs to have one.

    Exist asks whether an object is there, SumEven, SumOdd, ProductEven and ProductOdd whether the sum or product of all
    coordinates of one or two objects is even or odd, GetColor for the colour of a shape, GetShape for the shape in a
    colour, Go for the cell of an object.

    Args:
        question: a tree of operators.
        scene: int64 ``(rows, columns, 2)``, one more than the colour and the shape of each cell; 0 where it is empty.

    Raises:
        ValueError: an unknown operator, or an object (of any operator but Exist) that is not there exactly once.

    Source: arXiv:2401.15030, section 3.

    Example:
        >>> scene = torch.zeros(2, 2, 2, dtype=torch.int64)
        >>> scene[1, 0] = torch.tensor([1, 3])  # a red "c"
        >>> answer_question(SceneQuestion("Go", (SceneObject(0, 2),)), scene)
        SceneAnswer(kind='cell', value=2)
        >>> answer_question(SceneQuestion("GetColor", (SceneObject(None, 2),)), scene)
        SceneAnswer(kind='color', value=0)
        >>> answer_question(SceneQuestion("SumEven", (SceneObject(0, 2),)), scene)
        SceneAnswer(kind='truth', value=0)
    """
    check_dimensions(3, scene=scene)
    check_labels(scene=scene)
    if scene.shape[2] != 2:
        raise ValueError(f"scene must be (rows, columns, 2), got {tuple(scene.shape)}")
    return _answer(question, scene)


@checked
def question_text(question: SceneQuestion) -> str:
    """Returns a question in words.

    Raises:
        ValueError: an unknown operator, or a colour or shape that has no name.

    Example:
        >>> question_text(SceneQuestion("IfElse", (), (SceneQuestion("Exist", (SceneObject(0, 0),)),
        ...     SceneQuestion("Go", (SceneObject(0, 0),)), SceneQuestion("GetShape", (SceneObject(2, None),)))))
        'if the red a exists then go to the red a else say the shape of the blue object'
    """
    _check_question(question)
    if question.branches:
        test, then, otherwise = map(question_text, question.branches)
        return f"if {test} then {then} else {otherwise}"
    names = " and ".join(map(_named, question.objects))
    if question.operator in _PARITIES:
        parity = "even" if question.operator.endswith("Even") else "odd"
        return f"the {question.operator.removesuffix(parity.title()).lower()} of the coordinates of {names} is {parity}"
    return {"Exist": "{} exists", "Go": "go to {}", "GetColor": "say the color of {}",
            "GetShape": "say the shape of {}"}[question.operator].format(names)  # fmt: skip


@checked
def rule_tokens(question: SceneQuestion) -> Tensor:
    """Returns a question as tokens, int64 ``(nodes + 1, 8)``: test, IfElse, true and false branch, and an end.

    The fields are those of ``RULE_FIELDS``: one more than the position in ``QUESTION_OPERATORS`` (9 for IfElse), two
    selectors of one more than a shape and a colour and whether a time is asked for (there is one: 1), and whether it is
    the end. What is not used is 0.

    Args:
        question: a tree of operators.

    Raises:
        ValueError: an unknown operator, or objects that it does not take.

    Source: arXiv:2401.15030, appendix on inputs, and its code (dataset_generator.py).

    Example:
        >>> rule_tokens(SceneQuestion("GetShape", (SceneObject(2, None),)))
        tensor([[7, 0, 3, 1, 0, 0, 0, 0],
                [0, 0, 0, 0, 0, 0, 0, 1]])
    """
    return torch.tensor([*_tokens(question), (0,) * 7 + (1,)])


@checked
def question_of(tokens: Tensor) -> SceneQuestion:
    """Returns the question that tokens were written for: the inverse of ``rule_tokens``.

    Args:
        tokens: int64 ``(length, 8)``; what comes after the end is not read.

    Raises:
        ValueError: tokens that are no question.

    Example:
        >>> question_of(torch.tensor([[7, 0, 3, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1]]))
        SceneQuestion(operator='GetShape', objects=(SceneObject(color=2, shape=None),), branches=())
    """
    check_dimensions(2, tokens=tokens)
    check_labels(tokens=tokens)
    if tokens.shape[1] != len(RULE_FIELDS):
        raise ValueError(f"tokens must have {len(RULE_FIELDS)} fields, got {tokens.shape[1]}")
    rows = [tuple(row) for row in tokens.tolist()]
    ends = [position for position, row in enumerate(rows) if row[7]]
    if not ends:
        raise ValueError("tokens must have an end")
    question, read = _parsed(rows[: ends[0]], 0)
    if read != ends[0]:
        raise ValueError(f"tokens must be one question, got {ends[0] - read} more than it has")
    return question


def _answer(question: SceneQuestion, scene: Tensor) -> SceneAnswer:
    _check_question(question)
    if question.branches:
        test, then, otherwise = question.branches
        found = _answer(test, scene)
        if found.kind != "truth":
            raise ValueError(f"question must test what is true or false, got {test.operator}")
        return _answer(then if found.value else otherwise, scene)
    places = [_places(each, scene) for each in question.objects]
    if question.operator == "Exist":
        return SceneAnswer("truth", int(len(places[0]) > 0))
    for asked, found_at in zip(question.objects, places, strict=True):
        if len(found_at) != 1:
            raise ValueError(f"question must ask for what is there once: {_named(asked)} is {len(found_at)} times")
    row, column = places[0][0].tolist()
    if question.operator == "Go":
        return SceneAnswer("cell", row * scene.shape[1] + column)
    if question.operator == "GetColor":
        return SceneAnswer("color", int(scene[row, column, 0]) - 1)
    if question.operator == "GetShape":
        return SceneAnswer("shape", int(scene[row, column, 1]) - 1)
    coordinates = torch.cat(places).flatten()
    total = coordinates.sum() if question.operator.startswith("Sum") else coordinates.prod()
    return SceneAnswer("truth", int((int(total) % 2 == 0) == question.operator.endswith("Even")))


def _places(asked: SceneObject, scene: Tensor) -> Tensor:
    here = scene[:, :, 0] > 0
    if asked.color is not None:
        here = here & (scene[:, :, 0] == asked.color + 1)
    if asked.shape is not None:
        here = here & (scene[:, :, 1] == asked.shape + 1)
    return here.nonzero()


def _check_question(question: SceneQuestion) -> None:
    check_one_of([*QUESTION_OPERATORS, "IfElse"], question=question.operator)
    if question.operator == "IfElse":
        if len(question.branches) != 3 or question.objects:
            raise ValueError("question must have a test and two branches for IfElse, and no objects")
        return
    most = 2 if question.operator in _PARITIES else 1
    if question.branches or not 1 <= len(question.objects) <= most:
        raise ValueError(f"question must have 1 to {most} objects for {question.operator}, got {len(question.objects)}")
    for each in question.objects:
        asked = {"GetColor": (True, False), "GetShape": (False, True)}.get(question.operator, (False, False))
        if (each.color is None, each.shape is None) != asked:
            raise ValueError(f"question must name what {question.operator} needs and no more, got {each}")


def _named(each: SceneObject) -> str:
    names = []
    if each.color is not None:
        check_labels(len(SCENE_COLORS), question=each.color)
        names.append(SCENE_COLORS[each.color])
    if each.shape is not None:
        check_labels(len(SCENE_SHAPES), question=each.shape)
    return " ".join(["the", *names, "object" if each.shape is None else SCENE_SHAPES[each.shape]])


def _tokens(question: SceneQuestion) -> list[tuple[int, ...]]:
    _check_question(question)
    if question.branches:
        test, then, otherwise = question.branches
        return [*_tokens(test), (_IF_ELSE, *(0,) * 7), *_tokens(then), *_tokens(otherwise)]
    selectors = [
        part
        for each in question.objects
        for part in (0 if each.shape is None else each.shape + 1, 0 if each.color is None else each.color + 1, 1)
    ]
    number = QUESTION_OPERATORS.index(question.operator) + 1
    return [(number, *selectors, *(0,) * (7 - len(selectors)))]


def _parsed(rows: list[tuple[int, ...]], at: int) -> tuple[SceneQuestion, int]:
    """A question that starts at a row, and the row after it."""
    if at >= len(rows) or not 1 <= rows[at][0] < _IF_ELSE:
        raise ValueError(f"tokens must go on with an operator at {at}")
    number, *selectors, _ = rows[at]
    objects = tuple(
        SceneObject(color - 1 if color else None, shape - 1 if shape else None)
        for shape, color, time in (selectors[:3], selectors[3:])
        if time
    )
    question = SceneQuestion(QUESTION_OPERATORS[number - 1], objects)
    _check_question(question)
    if at + 1 >= len(rows) or rows[at + 1][0] != _IF_ELSE:
        return question, at + 1
    then, after = _parsed(rows, at + 2)
    otherwise, after = _parsed(rows, after)
    return SceneQuestion("IfElse", (), (question, then, otherwise)), after
