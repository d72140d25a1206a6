"""The schema of instruction tasks, the published files, and splits by task."""

import json

import pytest

from heldout.tasks import Instance, InstructionExample, InstructionTask, task_split

VERSION_1 = {
    "Title": "Count words",
    "Prompt": "How many words?",
    "Definition": "Count the words of a text.",
    "Things to Avoid": "-",
    "Emphasis & Caution": "Write digits.",
    "Examples": {
        "Positive Examples": [{"input": "a b", "output": "2", "reason": "a and b", "suggestion": "-"}],
        "Negative Examples": [{"input": "a", "output": "one", "reason": "a word", "suggestion": "write 1"}],
    },
    "Instances": [{"input": "a b c", "output": ["3", "three"]}],
}
VERSION_2 = {
    "Contributors": ["someone"],
    "Source": ["own", "other"],
    "Categories": ["Counting"],
    "Definition": ["Count the words.", "Write digits."],
    "Positive Examples": [{"input": "a b", "output": "2", "explanation": "a and b"}],
    "Negative Examples": [],
    "Instances": [{"id": "task1-0", "input": "a b c", "output": ["3"]}, {"id": "task1-1", "input": "a", "output": "1"}],
}


def named(*names, category="c", source="s"):
    return [InstructionTask(name, category, "d", source=source) for name in names]


def test_a_file_of_version_1_is_read(tmp_path):
    file = tmp_path / "subtask001_count.json"
    file.write_text(json.dumps(VERSION_1))
    task = InstructionTask.from_json(file, category="counting")
    assert (task.name, task.category, task.source) == ("subtask001_count", "counting", "")
    assert (task.definition, task.prompt, task.avoid) == ("Count the words of a text.", "How many words?", "")
    assert task.emphasis == "Write digits."
    assert task.positive == (InstructionExample("a b", "2", "a and b"),)
    assert task.negative == (InstructionExample("a", "one", "a word", "write 1"),)
    assert task.instances == [Instance("a b c", ("3", "three"))]


def test_version_1_marks_a_task_without_negative_examples_by_a_dash():
    examples = {**VERSION_1["Examples"], "Negative Examples": ["-"]}
    assert InstructionTask.from_json({**VERSION_1, "Examples": examples}).negative == ()


def test_a_file_of_version_2_is_read():
    task = InstructionTask.from_json(VERSION_2, name="task1")
    assert (task.name, task.category, task.source) == ("task1", "Counting", "own")
    assert task.definition == "Count the words.\nWrite digits."
    assert (task.prompt, task.avoid, task.emphasis, task.negative) == ("", "", "", ())
    assert task.positive == (InstructionExample("a b", "2", "a and b"),)
    assert [instance.outputs for instance in task.instances] == [("3",), ("1",)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Instances": []}, "has no instances"),
        ({"Instances": [{"input": "a", "output": []}]}, "instance 0 must have 'input' and at least one 'output'"),
        ({"Positive Examples": [{"input": "a"}]}, "example 0 must have 'input' and 'output'"),
    ],
)
def test_malformed_files_are_named(change, message):
    with pytest.raises(ValueError, match=f"task1.*{message}"):
        InstructionTask.from_json({**VERSION_2, **change}, name="task1")


def test_a_missing_field_is_named():
    with pytest.raises(ValueError, match="has no field 'Definition'"):
        InstructionTask.from_json({"Instances": []})


def test_parts_reserve_the_first_instances_and_space_the_others():
    task = InstructionTask("t", "c", "d", instances=[Instance(str(i), ("x",)) for i in range(260)])
    reserve, rest = task.parts()
    assert [int(instance.input) for instance in reserve.instances] == list(range(60))
    assert [int(instance.input) for instance in rest.instances] == list(range(60, 260, 2))
    with pytest.raises(ValueError, match="t has 260 instances"):
        task.parts(reserve=260)


@pytest.mark.parametrize("seed", range(5))
def test_a_random_split_is_disjoint_complete_and_repeatable(seed):
    tasks = named(*map(str, range(61)))
    train, test = task_split(tasks, "random", 12, seed=seed)
    assert len(test) == 12
    assert sorted(task.name for task in train + test) == sorted(task.name for task in tasks)
    assert task_split(tasks, "random", 12, seed=seed) == (train, test)
    assert task_split(tasks, "random", 12, seed=seed + 1) != (train, test)
    assert len(task_split(tasks, "random", 0.25)[1]) == 15


@pytest.mark.parametrize("how", ["category", "source", "task"])
def test_what_is_held_out_is_in_no_training_task(how):
    tasks = [
        InstructionTask(f"{category}{source}", category, "d", source=source) for category in "abc" for source in "xyz"
    ]
    attribute, value = {"category": ("category", "b"), "source": ("source", "y"), "task": ("name", "bz")}[how]
    train, test = task_split(tasks, how, value)
    assert {getattr(task, attribute) for task in test} == {value}
    assert value not in {getattr(task, attribute) for task in train}
    assert len(train) + len(test) == 9


def test_several_may_be_held_out():
    tasks = named("a", "b", "c")
    assert [task.name for task in task_split(tasks, "task", ["a", "c"])[1]] == ["a", "c"]


def test_splits_that_cannot_be_made_say_why():
    tasks = named("a", "b")
    with pytest.raises(ValueError, match="no task has the category 'x'; there are 'c'"):
        task_split(tasks, "category", "x")
    with pytest.raises(ValueError, match="leave tasks to train on and to test on, got 2 of 2"):
        task_split(tasks, "category", "c")
    with pytest.raises(ValueError, match="got 2 of 2"):
        task_split(tasks, "random", 2)
    with pytest.raises(ValueError, match="needs the number of test tasks, got 'a'"):
        task_split(tasks, "random", "a")
    with pytest.raises(ValueError, match="needs the name of what is held out, got 12"):
        task_split(tasks, "source")
    with pytest.raises(ValueError, match="unique names, got 'a' 2 times"):
        task_split(named("a", "a"), "random", 1)
    with pytest.raises(ValueError, match="how must be"):
        task_split(tasks, "fold", 1)
