"""Labelled examples as single-choice questions: an instruction, a few options, the place of the right one.

Source: arXiv:2412.20070 (Cai et al.), section 3: how its data sets of pictures become questions.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch

from heldout.errors import check_at_least, check_nonempty, checked


class MultipleChoice(NamedTuple):
    """Questions, one for each example.

    Attributes:
        questions: the instruction of each.
        options: the options of each, in the order in which they are shown.
        answers: place of the right option among them.

    Example:
        >>> made = to_multiple_choice([0, 1, 2], ["Which?", "What?"], max_options=3)
        >>> [options[answer] for options, answer in zip(made.options, made.answers)], sorted(set(made.questions))
        ([0, 1, 2], ['What?', 'Which?'])
    """

    questions: list[str]
    options: list[tuple[Any, ...]]
    answers: list[int]


@checked
def to_multiple_choice(
    labels: Sequence, instructions: Sequence[str], *, max_options: int = 4, seed: int = 0
) -> MultipleChoice:
    """Returns a question for each label of a data set; wrong options are other labels of the same data set.

    Each place is the right one equally often in expectation, and each instruction is used equally often, so that
    neither tells the answer.

    Args:
        labels: one for each example, a tensor ``(n,)`` or hashable values; at least two different ones.
        instructions: wordings of the question, one of which is drawn for each example.
        max_options: options of a question, at least 2; fewer where there are fewer labels.
        seed: of the draws.

    Raises:
        ValueError: no labels or instructions, fewer than two different labels, NaN, ``max_options`` below 2.
        TypeError: labels that are not hashable.

    Deviation: pictures stay with the caller, in the order of the labels; only the questions are made.

    Example:
        >>> made = to_multiple_choice(["cyst", "tumour", "cyst"], ["What is it?"])
        >>> sorted(made.options[0]), made.options[1][made.answers[1]]
        (['cyst', 'tumour'], 'tumour')
    """
    check_nonempty(labels=labels, instructions=instructions)
    check_at_least(2, max_options=max_options)
    if isinstance(labels, torch.Tensor):
        labels = labels.tolist()
    for label in labels:
        if isinstance(label, torch.Tensor) or not isinstance(label, Hashable):
            raise TypeError(f"labels must hold hashable values, got {type(label).__name__}")
        if label != label:
            raise ValueError("labels must not be NaN")
    known = list(dict.fromkeys(labels))
    if len(known) < 2:
        raise ValueError(f"labels must be of at least two kinds, got {known[0]!r} alone")
    rng = random.Random(seed)
    wordings = [instructions[i % len(instructions)] for i in range(len(labels))]
    rng.shuffle(wordings)
    options, answers = [], []
    for label in labels:
        shown = [label, *rng.sample([other for other in known if other != label], min(max_options, len(known)) - 1)]
        rng.shuffle(shown)
        options.append(tuple(shown))
        answers.append(shown.index(label))
    return MultipleChoice(wordings, options, answers)
