"""Fine-tuning data whose solutions name the skill of each step.

Source: Chen et al., "Skills-in-Context Prompting" (arXiv:2308.00304): tuned on easy problems that are solved in this
form, models solve harder ones without examples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from heldout.errors import checked

Problem = TypeVar("Problem")
SkillTrace = tuple[Sequence[tuple[str, str]], str]


@checked
def skic_traces(
    problems: Sequence[Problem],
    solver_trace: Callable[[Problem], SkillTrace],
    *,
    question: Callable[[Problem], str] = str,
    skills: str = "",
    step_template: str = "{number}. Using the skill {name}: {text}",
    step_separator: str = "\n",
    answer_template: str = "The answer is {answer}.",
    max_depth: int | None = None,
) -> list[dict[str, str]]:
    """Returns rows for ``heldout.train.sft``: each prompt a problem, each completion its steps and the answer.

    Args:
        problems: easy ones.
        solver_trace: problem -> ([(name of the skill, what the step does and finds), ...], answer).
        question: problem -> its text.
        skills: text before each problem, such as the block of skills; default none.
        step_template: with ``{number}``, ``{name}`` and ``{text}``; without ``{name}``, plain chains of thought.
        step_separator: between the steps, and before the answer.
        answer_template: with ``{answer}``.
        max_depth: most steps of a problem.

    Raises:
        ValueError: no problem; a problem without steps, or with more than ``max_depth``.

    Example:
        >>> def solve(n):
        ...     return [("Double", f"{n} becomes {2 * n}.")], str(2 * n)
        >>> (row,) = skic_traces([3], solve, question="Double {}.".format)
        >>> row["prompt"], row["completion"]
        ('Double 3.', '1. Using the skill Double: 3 becomes 6.\\nThe answer is 6.')
    """
    if not problems:
        raise ValueError("skic_traces needs at least one problem")
    rows = []
    for index, problem in enumerate(problems):
        steps, answer = solver_trace(problem)
        if not steps or (max_depth is not None and len(steps) > max_depth):
            raise ValueError(f"problem {index} needs 1 to {max_depth or 'any number of'} steps, got {len(steps)}")
        written = [
            _filled(step_template, number=str(number), name=name, text=text)
            for number, (name, text) in enumerate(steps, 1)
        ]
        completion = step_separator.join([*written, _filled(answer_template, answer=answer)])
        prompt = question(problem) if not skills else f"{skills}\n\n{question(problem)}"
        rows.append({"prompt": prompt, "completion": completion})
    return rows


def _filled(template: str, **fields: str) -> str:
    return re.sub(r"\{(" + "|".join(fields) + r")\}", lambda match: fields[match.group(1)], template)
