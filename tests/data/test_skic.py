import pytest

from heldout.data import skic_traces
from heldout.lm import tiny_llama, word_tokenizer
from heldout.train import sft


def solve(text):
    digits = text.split()
    steps = [("digit", f"{digit} read .") for digit in digits]
    return steps, digits[-1]


def test_each_completion_has_the_numbered_steps_with_their_skills_then_the_answer():
    rows = skic_traces(["1 2", "3"], solve)
    assert rows[0] == {
        "prompt": "1 2",
        "completion": "1. Using the skill digit: 1 read .\n2. Using the skill digit: 2 read .\nThe answer is 2.",
    }
    assert len(rows) == 2


def test_without_the_name_a_trace_is_a_plain_chain_of_thought():
    (row,) = skic_traces(["1 2"], solve, step_template="{text}", step_separator=" ", answer_template="= {answer}")
    assert row["completion"] == "1 read . 2 read . = 2"


def test_skills_may_stand_before_each_problem():
    assert skic_traces(["1"], solve, skills="Skill 1: digit.")[0]["prompt"] == "Skill 1: digit.\n\n1"


def test_braces_in_a_step_are_text():
    (row,) = skic_traces(["x"], lambda p: ([("{text}", "{name}")], "{number}"))
    assert row["completion"] == "1. Using the skill {text}: {name}\nThe answer is {number}."


def test_the_rows_can_be_trained_on():
    rows = skic_traces(["1 2", "3"], solve)
    tokenizer = word_tokenizer([row[part] for row in rows for part in row])
    tuned = sft(tiny_llama(tokenizer, dim=16, layers=1), tokenizer, rows, steps=2)
    assert tuned.history


def test_bad_problems_are_named():
    with pytest.raises(ValueError, match="at least one problem"):
        skic_traces([], solve)
    with pytest.raises(ValueError, match="problem 1 needs 1 to 1 steps, got 2"):
        skic_traces(["1", "1 2"], solve, max_depth=1)
    with pytest.raises(ValueError, match="problem 0 needs 1 to any number of steps, got 0"):
        skic_traces([""], lambda p: ([], "7"))
