import pytest
import torch

from heldout.tasks import (
    QUESTION_OPERATORS,
    SceneAnswer,
    SceneObject,
    SceneQuestion,
    answer_question,
    question_of,
    question_text,
    rule_tokens,
)

RED_A, BLUE_C = SceneObject(0, 0), SceneObject(2, 2)
ANY_C, ANY_RED = SceneObject(None, 2), SceneObject(0, None)


def ask(operator, *objects):
    return SceneQuestion(operator, objects)


def scene_of(**where):
    """A scene of 3 x 4 cells with a red a and a blue c at (row, column)."""
    scene = torch.zeros(3, 4, 2, dtype=torch.int64)
    for name, (row, column) in where.items():
        scene[row, column] = torch.tensor({"red_a": (1, 1), "blue_c": (3, 3), "red_c": (1, 3)}[name])
    return scene


@pytest.mark.parametrize(
    ("question", "kind", "value"),
    [
        (ask("Exist", RED_A), "truth", 1),
        (ask("Exist", SceneObject(0, 2)), "truth", 0),
        (ask("Go", BLUE_C), "cell", 2 * 4 + 3),  # of 4 columns: rows and columns are not taken for each other
        (ask("GetColor", ANY_C), "color", 2),
        (ask("GetShape", ANY_RED), "shape", 0),
        (ask("SumEven", RED_A), "truth", 0),  # 1 + 2
        (ask("SumOdd", RED_A), "truth", 1),
        (ask("ProductEven", BLUE_C), "truth", 1),  # 2 * 3
        (ask("ProductOdd", BLUE_C), "truth", 0),
        (ask("SumEven", RED_A, BLUE_C), "truth", 1),  # 1 + 2 + 2 + 3
        (ask("ProductOdd", RED_A, BLUE_C), "truth", 0),
    ],
)
def test_each_operator_answers_by_where_the_objects_lie(question, kind, value):
    assert answer_question(question, scene_of(red_a=(1, 2), blue_c=(2, 3))) == SceneAnswer(kind, value)


def test_a_product_is_odd_where_all_coordinates_are():
    scene = scene_of(red_a=(1, 1), blue_c=(1, 3))
    assert answer_question(ask("ProductOdd", RED_A, BLUE_C), scene).value == 1
    assert answer_question(ask("ProductEven", RED_A), scene_of(red_a=(0, 1))).value == 1  # counted from 0


@pytest.mark.parametrize(("there", "kind"), [("red_a", "cell"), ("red_c", "color")])
def test_an_if_takes_the_branch_of_its_test_and_asks_no_other(there, kind):
    question = SceneQuestion("IfElse", (), (ask("Exist", RED_A), ask("Go", RED_A), ask("GetColor", ANY_C)))
    assert answer_question(question, scene_of(**{there: (0, 1)})).kind == kind
    assert question.depth == 3


def test_a_question_without_one_answer_is_refused():
    scene = scene_of(red_c=(0, 0), blue_c=(0, 1))
    for question, count in [
        (ask("GetColor", ANY_C), "2 times"),
        (ask("Go", RED_A), "0 times"),
        (ask("SumOdd", RED_A), "0 times"),
    ]:
        with pytest.raises(ValueError, match=count):
            answer_question(question, scene)


@pytest.mark.parametrize(
    "question",
    [
        ask("Fly", RED_A),
        ask("Go"),
        ask("Go", RED_A, BLUE_C),
        ask("GetColor", RED_A),
        ask("GetShape", SceneObject(None, 0)),
        ask("Exist", SceneObject(None, 0)),
        SceneQuestion("IfElse", (), (ask("Exist", RED_A), ask("Go", RED_A))),
        SceneQuestion("Exist", (RED_A,), (ask("Go", RED_A),) * 3),
    ],
)
def test_what_is_no_question_is_refused_by_all_that_read_one(question):
    for read in (question_text, rule_tokens, lambda q: answer_question(q, scene_of(red_a=(0, 0)))):
        with pytest.raises(ValueError, match="question"):
            read(question)


def test_a_test_must_be_true_or_false():
    question = SceneQuestion("IfElse", (), (ask("Go", RED_A), ask("Go", RED_A), ask("Go", RED_A)))
    with pytest.raises(ValueError, match="true or false"):
        answer_question(question, scene_of(red_a=(0, 0)))


def test_tokens_are_read_back_and_what_follows_the_end_is_not():
    inner = SceneQuestion("IfElse", (), (ask("SumOdd", RED_A, BLUE_C), ask("Exist", RED_A), ask("Go", BLUE_C)))
    other = SceneQuestion(
        "IfElse",
        (),
        (ask("Exist", RED_A), ask("GetColor", ANY_C), ask("GetShape", ANY_RED)),
    )
    question = SceneQuestion("IfElse", (), (ask("ProductEven", BLUE_C), inner, other))
    tokens = rule_tokens(question)
    assert tokens.shape == (10 + 1, 8)
    assert question.depth == 5
    assert question_of(torch.cat([tokens, torch.zeros(3, 8, dtype=torch.int64)])) == question
    assert tokens[1, 0] == len(QUESTION_OPERATORS) + 1


def test_tokens_that_are_no_question_are_refused():
    tokens = rule_tokens(ask("Go", RED_A))
    for wrong, words in [
        (tokens[:1], "end"),
        (tokens[1:], "operator"),
        (torch.cat([tokens[:1], tokens]), "one question"),
        (tokens[:, :7], "8 fields"),
    ]:
        with pytest.raises(ValueError, match=words):
            question_of(wrong)


def test_text_names_what_is_asked_for():
    assert (
        question_text(ask("SumOdd", RED_A, BLUE_C)) == "the sum of the coordinates of the red a and the blue c is odd"
    )
    assert question_text(ask("ProductEven", RED_A)) == "the product of the coordinates of the red a is even"
    assert question_text(ask("GetColor", ANY_C)) == "say the color of the c"
