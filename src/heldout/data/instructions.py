"""Prompts from instructions: the chosen fields of a task's schema, its examples, and one input.

Source: Mishra et al. (arXiv:2104.08773), section 4 and the order of fields of the authors' code.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from heldout.errors import check_at_least, checked

FIELDS = {
    "definition": "Definition",
    "prompt": "Prompt",
    "avoid": "Things to Avoid",
    "emphasis": "Emphasis & Caution",
    "negative": "Negative Examples",
    "positive": "Positive Examples",
}
NO_INSTRUCTION: tuple[str, ...] = ()
PROMPT = ("prompt",)
DEFINITION = ("definition",)
FULL = tuple(FIELDS)


def count_words(text: str) -> int:
    """Returns the number of words: what spaces and line ends separate.

    Example:
        >>> count_words("input: a b")
        3
    """
    return len(text.split())


@checked
def encode_instruction(
    task: Any,
    instance: Any,
    fields: Sequence[str] = FULL,
    n_positive: int = 2,
    n_negative: int = 1,
    explanations: bool = True,
    *,
    limit: int | None = None,
    length: Callable[[str], int] = count_words,
) -> str:
    """Returns the prompt for one instance: the fields in the order given, each on its lines, then input and "output:".

    Fields that are empty or "-" are left out. A prompt that is longer than the limit loses its negative examples, then
    its positive ones, the last ones first, and then whole fields from the last one on; never any of the input.

    Args:
        task: a ``heldout.tasks.InstructionTask``, or any object with the attributes that are named in ``fields``.
        instance: its input: a text, or an object with the attribute ``input``.
        fields: some of "definition", "prompt", "avoid", "emphasis", "negative", "positive"; ``FULL`` has them all,
            ``DEFINITION`` and ``PROMPT`` one, ``NO_INSTRUCTION`` none.
        n_positive, n_negative: number of examples; fewer, with a warning, where the task has fewer.
        explanations: whether examples have their reasons and suggestions; without them, positive examples are only
            lines of input and output.
        limit: highest length.
        length: of a text; give ``lambda text: len(tokenizer(text).input_ids)`` to count a model's tokens.

    Raises:
        ValueError: an unknown field; a negative number of examples; an input that is longer than the limit.

    Example:
        >>> from types import SimpleNamespace
        >>> task = SimpleNamespace(definition="Reverse the list.", avoid="-")
        >>> print(encode_instruction(task, "a b", ("definition", "avoid")))
        Definition: Reverse the list.
        input: a b
        output:

    Source: arXiv:2104.08773, section 4. Deviation: in the authors' code a suggestion follows its reason without a
        space, and further examples are taken from the instances where the task has too few.
    """
    check_at_least(0, n_positive=n_positive, n_negative=n_negative)
    if unknown := [name for name in fields if name not in FIELDS]:
        raise ValueError(f"fields must be among {', '.join(FIELDS)}, got {unknown[0]!r}")
    if min(n_positive, n_negative) < 0:
        raise ValueError(f"the number of examples must be at least 0, got {min(n_positive, n_negative)}")
    counts = {name: _available(task, name, count) for name, count in
              (("positive", n_positive), ("negative", n_negative)) if name in fields}  # fmt: skip
    end = f"input: {getattr(instance, 'input', instance)}\noutput:"
    kept = list(fields)
    while True:
        prompt = "\n".join([*_lines(task, kept, counts, explanations), end])
        if limit is None or length(prompt) <= limit:
            return prompt
        if counts.get("negative"):
            counts["negative"] -= 1
        elif counts.get("positive"):
            counts["positive"] -= 1
        elif kept:
            kept.pop()
        else:
            raise ValueError(f"the input alone has length {length(prompt)}, more than the limit of {limit}")


def _available(task: Any, name: str, count: int) -> int:
    there = len(getattr(task, name))
    if count > there and there:  # a task without any is like a field that is absent
        warnings.warn(f"{getattr(task, 'name', 'the task')} has {there} {name} examples, not {count}", stacklevel=3)
    return min(count, there)


def _lines(task: Any, fields: Sequence[str], counts: dict[str, int], explanations: bool) -> list[str]:
    lines = []
    for name in fields:
        if name in counts:
            for number, example in enumerate(getattr(task, name)[: counts[name]], 1):
                if explanations or name == "negative":
                    lines.append(f"{name.capitalize()} Example{number}-")
                lines += [f"input: {example.input}", f"output: {example.output}"]
                if explanations:
                    texts = (("reason", example.reason), ("suggestion", example.suggestion))
                    lines += [f"{label}: {text}" for label, text in texts if _is_given(text)]
        elif _is_given(text := getattr(task, name)):
            lines.append(f"{FIELDS[name]}: {text.strip()}")
    return lines


def _is_given(text: str) -> bool:
    return text.strip() not in ("", "-")
