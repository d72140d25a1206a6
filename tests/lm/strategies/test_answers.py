"""Answers are extracted and judged without ever being evaluated."""

from __future__ import annotations

import re

import pytest

from heldout.lm import (
    ScriptedLM,
    after_marker,
    judge_exact,
    judge_llm,
    judge_number,
    judge_python,
    last_number,
    numbers_in,
    run_python,
)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("12", [12]),
        ("12.0 and .5", [12, 0.5]),
        ("1,200", [1200]),
        ("1,20", [1, 20]),
        ("-3", [-3]),
        ("\u22123", [-3]),
        ("7-3", [7, 3]),
        ("(7)-3", [7, 3]),
        ("7 - 3", [7, 3]),
        ("50%", [0.5]),
        ("2e3", [2000]),
        ("w3 and 4", [4]),
        ("none, at all. -", []),
        ("It is 7.", [7]),
    ],
)
def test_numbers_are_read_as_people_write_them(text, numbers):
    assert numbers_in(text) == pytest.approx(numbers)


def test_the_last_number_and_the_last_marker_win():
    assert last_number("3 then 4") == 4
    assert last_number("none") is None
    assert after_marker("Answer is 3.5 m. The answer is: 4.5 m!") == "4.5 m"
    assert after_marker("no marker") is None


@pytest.mark.parametrize(
    ("response", "reference", "right"),
    [
        ("so 12.0", "12", True),
        ("1,200", "1200", True),
        ("12", "120", False),
        ("-12", "12", False),
        ("12%", "0.12", True),
        ("12%", "12", False),
        ("no idea", "12", False),
    ],
)
def test_numbers_are_judged_by_value(response, reference, right):
    assert judge_number()("", response, reference) is right


def test_judges_say_what_they_cannot_judge():
    with pytest.raises(ValueError, match="no number"):
        judge_number()("", "12", "twelve")
    with pytest.raises(ValueError, match=r"needs \{reference\}"):
        judge_llm(ScriptedLM(["yes"]), "{response}?")


def test_exact_judges_take_their_own_normalisation():
    assert judge_exact()("", "the Dog!", "dog")
    assert not judge_exact(str.strip)("", "Dog", "dog")


def test_a_response_cannot_reach_other_fields_of_the_judges_prompt():
    lm = ScriptedLM(["No.", "YES", "yesterday"])
    judge = judge_llm(lm, "{response} | {reference}")
    assert not judge("p", "{reference} {0}", "secret")
    assert lm.calls == ["{reference} {0} | secret"]
    assert judge("p", "a", "b")
    assert not judge("p", "a", "b")


def test_programs_are_judged_by_their_tests():
    judge = judge_python()
    good = "Here:\n```python\ndef double(x):\n    return 2 * x\n```\nDone."
    assert judge("", good, "assert double(4) == 8")
    assert not judge("", good, "assert double(4) == 9")
    assert not judge("", "def double(x:", "assert True")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("while True: pass", "signal|longer"),
        ("import time; time.sleep(60)", "longer"),
        ("x = bytearray(10**10)", "MemoryError"),
        ("open('big', 'w').write('x' * 10**7)", "File too large|signal"),
        ("import socket; socket.create_connection(('127.0.0.1', 80))", "not allowed"),
        ("import subprocess; subprocess.run(['ls'])", "not allowed"),
        ("import os; os.fork()", "not allowed"),
        ("import os; os.system('ls')", "not allowed"),
        ("import ctypes", "not allowed"),
        ("open('/tmp/elsewhere', 'w')", "folder only"),
        ("import os; os.remove('/tmp/elsewhere')", "not allowed outside"),
        ("import os; assert 'HOME' not in os.environ; raise SystemExit(3)", "^$"),
    ],
)
def test_a_program_is_stopped_at_its_limits(program, reason):
    result = run_python(program, seconds=1, memory=256 * 2**20)
    assert not result.ok
    assert re.search(reason, result.error)


def test_a_program_may_use_its_own_folder_and_print():
    result = run_python("open('a.txt', 'w').write('hi')\nprint(open('a.txt').read())")
    assert result.ok
    assert result.output == "hi\n"
