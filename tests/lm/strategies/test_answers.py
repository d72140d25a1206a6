"""Answers are extracted and judged without ever being evaluated."""

from __future__ import annotations

import pytest

from heldout.lm import (
    ScriptedLM,
    after_marker,
    code_blocks,
    judge_exact,
    judge_llm,
    judge_number,
    judge_python,
    last_number,
    numbers_in,
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
    "response",
    [
        "```bash\npip install x\n```\nthen\n```python\n{}\n```",
        "```Python\n{}\n```",
        "```python3 \n{}\n```",
        "```py\r\n{}\r\n```\r\n",
        "```python\n{}",
        "1. So:\n   ```python\n   {}\n   ```\n",
        "~~~python\n{}\n~~~",
        "````python\n{}\n````",
        "```\n{}\n```",
        '```python title="a.py"\n{}\n```',
        "```{{.python}}\n{}\n```",
        "{}",
    ],
)
def test_the_program_is_taken_out_of_its_fence(response):
    program = "double = lambda x: 2 * x"
    assert judge_python("assert double(4) == 8")("", response.format(program), "")


def test_code_blocks_are_those_of_the_language_as_commonmark_reads_them():
    text = "```js\n1\n```\n````python\n```\n2\n````\n```\n3\n```\n``` a`b\n"
    assert code_blocks(text) == ["```\n2\n"]
    assert code_blocks(text, ["js"]) == ["1\n"]
    assert code_blocks(text, ["rust"]) == ["3\n"]
    assert code_blocks("no fence") == []


@pytest.mark.parametrize(
    "text",
    [
        "> ```python\n> a = 1\n> if a:\n>     b\n> ```",
        ">  > ```python\n> > a = 1\n> > if a:\n> >     b\n> > ```",
        "- ```python\n  a = 1\n  if a:\n      b\n  ```\n- more",
        "2. ```python3.11\n   a = 1\n   if a:\n       b\n   ```",
        "```Python 3.11\na = 1\nif a:\n    b\n```",
        "<think>\n```python\na = 2\n```\n</think>\n```python\na = 1\nif a:\n    b\n```",
        "```python\na = 2\n```\nno.</THINKING>\n```python\na = 1\nif a:\n    b\n```",
        "<think>\n```python\na = 1\nif a:\n    b\n```\n</think>\nThat is it.",
    ],
)
def test_code_stands_in_quotations_lists_and_behind_thoughts(text):
    assert code_blocks(text) == ["a = 1\nif a:\n    b\n"]


def test_what_is_in_the_code_ends_no_thought_and_opens_no_list():
    assert code_blocks("```python\nx = '</think>'\n- ```\n```") == ["x = '</think>'\n- ```\n"]


@pytest.mark.parametrize(
    "response",
    ["raise SystemExit", "import os; os._exit(0)", "class A:\n  def __eq__(s, o): return True\nadd = lambda a, b: A()"],
)
def test_rewards_cannot_be_had_without_an_answer(response):
    assert not judge_python("assert add(1, 2) == 3")("", response, "")


@pytest.mark.parametrize(
    ("response", "reference"),
    [("", "A"), ("-3", "3"), ("-$3", "$3"),
     ("-\u20ac3", "3"), ("1.5", "15"), ("\u22123", "3"), (".5", "5"), ("1/2", "12"), ("10:30", "1030"),
     ("C++", "C"), ("C#", "C"), ("+", "-"), ("vitamin A", "vitamin"), ("A, C", "C"), ("1,5", "15"), ("the", "")],
)  # fmt: skip
def test_exact_judges_keep_letters_signs_and_decimals(response, reference):
    assert not judge_exact()("", response, reference)
    assert not judge_exact()("", reference, response)


@pytest.mark.parametrize(
    ("response", "reference"),
    [("a.", "A"), ("(B)", "b"), ("1,200", "1200"), ("The Dog!", "dog"), ("an apple", "apple"),
     ("well-known", "wellknown"), ("\u22123.", "-3"), ("3 .", "3"), ("in the 90s", "in 90s")],
)  # fmt: skip
def test_exact_judges_still_forgive_what_squad_forgives(response, reference):
    assert judge_exact()("", response, reference)


@pytest.mark.parametrize("mark", ["\u2028", "\u0085", "\x0c", "\x0b"])
def test_lines_of_a_program_end_where_commonmark_ends_them(mark):
    assert code_blocks(f"```python\nS = 'a{mark}b'\n```") == [f"S = 'a{mark}b'\n"]
    assert code_blocks("```python\r\nprint(1)\r\n```\r\n") == code_blocks("```python\nprint(1)\n") == ["print(1)\n"]
