"""Core: What a language model's answer says, and whether it is right: extraction, and judges.

A judge is a function ``(prompt, response, reference) -> bool``. Text is never evaluated here: numbers are parsed, and
programs run in a process of their own with limits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

from heldout.language_model import LM
from heldout.lm.programs.sandbox import run_python
from heldout.measure import normalise_answer

Judge = Callable[[str, str, str], bool]

_NUMBER = re.compile(r"[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d{1,3})?%?")
EQUIVALENT = (
    "Question:\n{prompt}\n\nReference answer:\n{reference}\n\nProposed answer:\n{response}\n\n"
    "Does the proposed answer say the same as the reference answer? Reply with yes or no."
)


def numbers_in(text: str) -> list[float]:
    """Returns the numbers that are written in digits, in order; "50%" is 0.5 and "1,200" is 1200.

    A sign belongs to a number unless a letter, a digit or a bracket stands before it, as in "7-3".

    Example:
        >>> numbers_in("From 1,200 to -3.5, up 50%")
        [1200.0, -3.5, 0.5]
    """
    found = []
    for match in _NUMBER.finditer(text):
        written = match.group()
        if not any(letter.isdigit() for letter in written):
            continue
        before = text[match.start() - 1] if match.start() else " "
        if written[0] in "+-\u2212" and (before.isalnum() or before in ")]"):
            written = written[1:]
        elif before.isalpha():
            continue  # part of a name: "w3"
        value = _number(written)
        if value is not None:
            found.append(value)
    return found


def last_number(text: str) -> float | None:
    """Returns the last number of a text, or None.

    Example:
        >>> last_number("3 + 4 = 7, so the answer is 7.")
        7.0
    """
    found = numbers_in(text)
    return found[-1] if found else None


def after_marker(text: str, marker: str = "answer is") -> str | None:
    """Returns what stands after the last marker, up to the end of its line or sentence; None without marker.

    Example:
        >>> after_marker("The answer is 3. No: the answer is Paris.")
        'Paris'
    """
    place = text.lower().rfind(marker.lower())
    if place < 0:
        return None
    rest = text[place + len(marker) :].lstrip(" :").split("\n")[0]
    return re.split(r"[.!?](?:\s|$)", rest)[0].strip()


def judge_exact(normalise: Callable[[str], str] = normalise_answer) -> Judge:
    """Returns a judge of whether response and reference are the same once normalised.

    Example:
        >>> judge_exact()("", "The Dog.", "dog")
        True
    """
    return lambda prompt, response, reference: normalise(response) == normalise(reference)


def judge_number(tolerance: float = 1e-6) -> Judge:
    """Returns a judge of whether the last numbers of response and reference are equal, to a relative tolerance.

    Raises:
        ValueError: when judging, if the reference has no number.

    Example:
        >>> judge = judge_number()
        >>> judge("", "It costs 1,200.0 in all", "1200"), judge("", "120", "12")
        (True, False)
    """

    def judge(prompt: str, response: str, reference: str) -> bool:
        expected = last_number(reference)
        if expected is None:
            raise ValueError(f"the reference has no number: {reference[:80]!r}")
        found = last_number(response)
        return found is not None and math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance)

    return judge


def judge_llm(lm: LM, template: str = EQUIVALENT) -> Judge:
    """Returns a judge that asks a language model, whose answer must begin with yes.

    Args:
        lm: the language model.
        template: with the fields ``{prompt}``, ``{response}`` and ``{reference}``.

    Raises:
        ValueError: if the template lacks a field.

    Example:
        >>> from heldout.lm import ScriptedLM
        >>> judge_llm(ScriptedLM(["Yes, it does."]))("Capital?", "It is Paris", "Paris")
        True
    """
    for field in ("{response}", "{reference}"):
        if field not in template:
            raise ValueError(f"the template needs {field}")

    def judge(prompt: str, response: str, reference: str) -> bool:
        # Not str.format: a response may hold braces, and must not reach other fields.
        parts = {"{prompt}": prompt, "{response}": response, "{reference}": reference}
        asked = re.sub(r"\{prompt\}|\{response\}|\{reference\}", lambda match: parts[match.group()], template)
        said = lm.generate([asked], max_tokens=8)[0][0].text
        return re.match(r"\W*yes\b", said, re.IGNORECASE) is not None

    return judge


def judge_python(tests: str | None = None, **limits: Any) -> Judge:
    """Returns a judge that runs a response as a Python program, followed by tests that raise where it is wrong.

    The program runs in ``run_python``. A fenced block of code is taken out of the text around it.

    Args:
        tests: source with assertions; default: the reference is the tests.
        limits: of ``run_python``.

    Example:
        >>> judge_python("assert double(4) == 8")("", "def double(x):\\n    return 2 * x", "")
        True
    """

    def judge(prompt: str, response: str, reference: str) -> bool:
        blocks = re.findall(r"```(?:python|py)?\n(.*?)```", response, re.DOTALL)
        program = "\n".join(blocks) if blocks else response
        return run_python(f"{program}\n\n{reference if tests is None else tests}\n", **limits).ok

    return judge


def _number(written: str) -> float | None:
    percent = written.endswith("%")
    try:
        value = Decimal(written.rstrip("%").replace(",", "").replace("\u2212", "-"))
    except InvalidOperation:
        return None
    return float(value / 100 if percent else value)
