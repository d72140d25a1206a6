from collections import Counter

import pytest

from heldout.sources import QA, missing
from heldout.tasks import QUESTION_CATEGORIES, ChoiceQuestion, OptionInstance, question_tasks


def made(name):
    """60 questions whose right option says so; of every fourth the passage is too long."""

    def question(i):
        passage = "word " * (70 if i % 4 == 3 else 3)
        if name in ("boolq", "privacy-policy"):
            return ChoiceQuestion(f"{name} question {i} ?", ("no", "yes"), i % 2, passage)
        return ChoiceQuestion(f"{name} question {i} ?", ("bad", f"right {i}", "worse"), 1, passage)

    return [question(i) for i in range(60)]


@pytest.fixture(scope="module")
def tasks():
    return question_tasks(10, seed=3, read=made)


def by_category(tasks, category):
    return [task for task in tasks if task.category == category]


def test_every_task_has_its_category_definition_and_instances(tasks):
    assert {task.category for task in tasks} == set(QUESTION_CATEGORIES)
    assert len({task.name for task in tasks}) == len(tasks) == 13
    assert all(len(task.instances) == 10 and task.definition for task in tasks)
    instances = [instance for task in tasks for instance in task.instances]
    assert all(isinstance(each, OptionInstance) and each.outputs[0] in each.options for each in instances)
    assert all(len(each.input.split()) < 70 for each in instances)


def test_outputs_are_right_wrong_or_a_verdict_by_category(tasks):
    for task in by_category(tasks, "answer"):
        assert all(each.outputs[0].startswith("right") and len(each.options) == 3 for each in task.instances)
    for task in by_category(tasks, "wrong"):
        assert all(each.outputs[0] in ("bad", "worse") and len(each.options) == 2 for each in task.instances)
        assert all(any(option.startswith("right") for option in each.options) for each in task.instances)
    for task in by_category(tasks, "verify"):
        for each in task.instances:
            assert each.options == ("no", "yes")
            if "proposed answer: " in each.input:
                number = each.input.split(" question ")[1].split()[0]
                proposed = each.input.partition("proposed answer: ")[2]
                assert (proposed == f"right {number}") is (each.outputs[0] == "yes")
                assert proposed in (f"right {number}", "bad", "worse")


def test_no_question_is_in_two_tasks_and_options_change_places(tasks):
    questions = [each.input.partition(" question ")[2].split()[0] + task.source
                 for task in tasks for each in task.instances]  # fmt: skip
    assert max(Counter(questions).values()) == 1
    places = {each.options.index(each.outputs[0]) for task in by_category(tasks, "answer") for each in task.instances}
    assert places == {0, 1, 2}
    wanted = {each.outputs[0] for task in by_category(tasks, "verify") for each in task.instances}
    assert wanted == {"no", "yes"}


def test_they_follow_the_seed(tasks):
    assert question_tasks(10, seed=3, read=made) == tasks != question_tasks(10, seed=4, read=made)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        question_tasks(0, read=made)
    with pytest.raises(ValueError, match="commonsenseqa has 45 short questions, 48 are needed"):
        question_tasks(16, read=made)


def test_the_real_questions_are_there():
    if reason := missing([QA]):
        pytest.skip(reason)
    tasks = question_tasks(12)
    assert {len(task.instances) for task in tasks} == {12}
    commonsense = next(task for task in tasks if task.name == "commonsenseqa-answer")
    assert {len(each.options) for each in commonsense.instances} == {5}
