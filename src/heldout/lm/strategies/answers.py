"""Core: What a language model's answer says, and whether it is right: extraction, and judges.

A judge is a function ``(prompt, response, reference) -> bool``. Text is never evaluated here: numbers are parsed, and
programs run in processes of their own behind a boundary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from heldout.errors import checked
from heldout.language_model import LM
from heldout.lm.programs.sandbox import run_tests
from heldout.lm.strategies.quantities import final_quantity, same_quantity
from heldout.measure import normalise_answer

Judge = Callable[[str, str, str], bool]

_NUMBER = re.compile(r"[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d{1,3})?%?")
_LINE_END = re.compile(r"\r\n|\n|\r")  # of CommonMark: no form feed, no separator of paragraphs
_FENCE = re.compile(r"((?:[ \t]*>)*[ \t]*)((?:[-*+]|\d{1,9}[.)])[ \t]+)?(`{3,}|~{3,})(.*)$")
_VERSION = re.compile(r"(?<=[a-z])[ \-=]?\d+(?:\.\d+)+$")
_THOUGHT_END = re.compile(r"</think(?:ing)?>[ \t]*$", re.IGNORECASE | re.MULTILINE)
EQUIVALENT = (
    "Question:\n{prompt}\n\nReference answer:\n{reference}\n\nProposed answer:\n{response}\n\n"
    "Does the proposed answer say the same as the reference answer? Reply with yes or no."
)


@checked
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


@checked
def last_number(text: str) -> float | None:
    """Returns the last number of a text, or None.

    Example:
        >>> last_number("3 + 4 = 7, so the answer is 7.")
        7.0
    """
    found = numbers_in(text)
    return found[-1] if found else None


@checked
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


@checked
def judge_exact(normalise: Callable[[str], str] = normalise_answer) -> Judge:
    """Returns a judge of whether response and reference are the same once normalised.

    Example:
        >>> judge_exact()("", "The Dog.", "dog")
        True
    """
    return lambda prompt, response, reference: normalise(response) == normalise(reference)


@checked
def judge_number(tolerance: float = 1e-6) -> Judge:
    """Returns a judge of whether response and reference give the same number as their answer.

    The answer is what stands in the last ``\\boxed{...}``, else behind the last "####" or "answer is", else the last
    expression. Expressions are compared whole, by value: ``\\frac{3}{2}``, "1 1/2" and "1.5" are equal, and so are
    "6.02 x 10^23" and "6.02e23"; "12%" is 0.12. Different units ("5 km", "5 m") are not; a missing unit is no fault.

    Args:
        tolerance: relative; what is an integer in the reference is compared exactly.

    Raises:
        ValueError: if the tolerance is negative or not finite; when judging, if the reference has no number.

    Example:
        >>> judge = judge_number()
        >>> judge("", "It costs 1,200.0 in all", "1200"), judge("", "3/2", "1/2")
        (True, False)
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be finite and at least 0, got {tolerance!r}")

    def judge(prompt: str, response: str, reference: str) -> bool:
        expected = final_quantity(reference)
        if expected is None:
            raise ValueError(f"the reference has no number: {reference[:80]!r}; judge_exact compares texts")
        found = final_quantity(response)
        return found is not None and same_quantity(found, expected, tolerance)

    return judge


@checked
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


@checked
def code_blocks(text: str, languages: Sequence[str] = ("python", "python3", "py", "py3")) -> list[str]:
    """Returns the fenced blocks of code in a text that are in one of the languages; if none is, those without a name.

    Fences are read as CommonMark says: three or more backticks or tildes, indented or not, closed by as many of the
    same kind, or by the end of the text; one may stand in a quotation or begin an item of a list. The name of the
    language may be in any case, with a version behind it ("python3.11"). Blocks before the last ``</think>`` count
    only where none is behind it.

    Example:
        >>> code_blocks("Install:\\n```bash\\npip install x\\n```\\nthen\\n```Python\\nprint(1)\\n```")
        ['print(1)\\n']
    """
    *_, after = _THOUGHT_END.split(text)
    if after != text and (said := code_blocks(after, languages)):
        return said
    found: list[tuple[str, str]] = []
    fence = None
    for line in _LINE_END.split(text.removesuffix("\n")):
        match = _FENCE.match(line)
        if fence is None:
            if match and not (match[3][0] == "`" and "`" in match[4]):
                fence = match
                words = match[4].split()
                found.append((_VERSION.sub("", words[0].strip("{}.").lower()) if words else "", ""))
        elif match and not match[2] and match[3].startswith(fence[3]) and not match[4].strip():
            fence = None
        else:
            language, code = found[-1]
            found[-1] = language, code + _inside(line, fence) + "\n"
    named = [code for language, code in found if language in languages]
    return named or [code for language, code in found if not language]


def _inside(line: str, fence: re.Match[str]) -> str:
    """Returns a line of a block as code: without the marks of the quotation and the indent that its fence has."""
    quoted, indent = fence[1].count(">"), len(fence[1].rpartition(">")[2]) + len(fence[2] or "")
    for _ in range(quoted):
        line = re.sub(r"^[ \t]*>", "", line, count=1)
    return line[min(len(line) - len(line.lstrip(" \t")), indent) :]


@checked
def judge_python(tests: str | None = None, **options: Any) -> Judge:
    """Returns a judge that runs a response as a Python program and tests what it defines.

    Program and tests run apart from each other in ``run_tests``: a program passes only when the tests ran to their
    end, and its answers are compared as plain values, so that ending early, objects that are equal to everything or
    built-in functions that it replaces do not help it. The program is what stands in the response's ``code_blocks``;
    without any fence it is the whole response.

    Args:
        tests: source with assertions; default: the reference is the tests.
        options: of ``run_tests``.

    Raises:
        IsolationError: when judging, if the system cannot isolate a program.
        ValueError: when judging, if the tests are no Python program.

    Example:
        >>> judge = judge_python("assert double(4) == 8")
        >>> judge("", "def double(x):\\n    return 2 * x", ""), judge("", "raise SystemExit", "")
        (True, False)
    """

    def judge(prompt: str, response: str, reference: str) -> bool:
        fenced = any(_FENCE.match(line) for line in _LINE_END.split(response))
        program = "\n".join(code_blocks(response)) if fenced else response
        return run_tests(program, reference if tests is None else tests, **options).ok

    return judge


def _number(written: str) -> float | None:
    percent = written.endswith("%")
    try:
        value = Decimal(written.rstrip("%").replace(",", "").replace("\u2212", "-"))
    except InvalidOperation:
        return None
    return float(value / 100 if percent else value)
