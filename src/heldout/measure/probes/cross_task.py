"""Cross-task generalization: how well a model does tasks that it was not trained on, averaged over tasks.

Source: Mishra et al. (arXiv:2104.08773), section 5: ROUGE-L, its mean over the instances of a task, then over tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heldout.errors import check_at_least, check_fields, checked
from heldout.language_model import LM
from heldout.measure.metrics.text import exact_match, rouge_l
from heldout.study import interval

Metric = Callable[[str, Sequence[str]], float]


@dataclass(frozen=True)
class TaskScore:
    """The score of one task.

    Attributes:
        task, category, source: of the task.
        score: mean of the metric over its instances.
        count: number of instances.
        predictions: what the model wrote for each.

    Example:
        >>> from types import SimpleNamespace as Task
        >>> task = Task(name="copy", category="transform", source="own", instances=[Task(input="a", outputs=("a",))])
        >>> row = cross_task(lambda prompts: ["a"], [task], lambda task, instance: instance.input).rows[0]
        >>> row.score, row.count, row.predictions
        (1.0, 1, ('a',))
    """

    task: str
    category: str
    source: str
    score: float
    count: int
    predictions: tuple[str, ...]

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class CrossTask:
    """Scores by task, and their mean.

    Attributes:
        rows: one for each task.
        mean: of the tasks' scores: every task counts the same, however many instances it has.
        low, high: the 95 % interval of the mean over tasks; None for one task.

    Example:
        >>> one = TaskScore("sort", "transform", "own", score=0.5, count=1, predictions=("a",))
        >>> other = TaskScore("tell", "answer", "own", score=1.0, count=9, predictions=())
        >>> CrossTask((one, other), mean=0.75, low=0.5, high=1.0).by_category()
        {'answer': 1.0, 'transform': 0.5}
    """

    rows: tuple[TaskScore, ...]
    mean: float
    low: float | None
    high: float | None

    def __post_init__(self) -> None:
        check_fields(self)

    def by_category(self) -> dict[str, float]:
        """Returns the mean over the tasks of each category."""
        found: dict[str, list[float]] = {}
        for row in self.rows:
            found.setdefault(row.category, []).append(row.score)
        return {category: math.fsum(scores) / len(scores) for category, scores in sorted(found.items())}


@checked
def cross_task(
    model: LM | Callable[[list[str]], Sequence[str]],
    tasks: Sequence[Any],
    encode: Callable[[Any, Any], str],
    metric: Metric = rouge_l,
    *,
    max_tokens: int = 32,
) -> CrossTask:
    """Returns the scores of a model on tasks, by task and averaged over tasks.

    Args:
        model: a language model, decoded greedily (``heldout.lm.TransformersLM(model, tokenizer)`` makes one of a
            transformers model); or a function from a list of prompts to a list of texts.
        tasks: ``heldout.tasks.InstructionTask``, or objects with name, category, source and instances, these with input
            and outputs. ``task.parts()[1]`` has the instances that the paper evaluates on.
        encode: ``(task, instance) -> prompt``, such as ``heldout.data.encode_instruction``.
        metric: ``(prediction, references) -> score``, higher being better.
        max_tokens: longest output of a language model.

    Raises:
        ValueError: no task; a task without instances, or an instance without references, by name; a model that returns
            another number of texts than it got prompts.

    Example:
        >>> from types import SimpleNamespace as Task
        >>> instances = [Task(input="a b", outputs=("b a",)), Task(input="c", outputs=("c",))]
        >>> task = Task(name="reverse", category="transform", source="own", instances=instances)
        >>> echo = lambda prompts: prompts
        >>> cross_task(echo, [task], lambda task, instance: instance.input).mean
        0.75
    """
    check_at_least(1, max_tokens=max_tokens)
    if not tasks:
        raise ValueError("cross_task needs at least one task, got none")
    for task in tasks:
        if not task.instances:
            raise ValueError(f"the task {task.name!r} has no instances")
        for number, instance in enumerate(task.instances):
            if not instance.outputs:
                raise ValueError(f"instance {number} of the task {task.name!r} has no references")
    prompts = [encode(task, instance) for task in tasks for instance in task.instances]
    if isinstance(model, LM):
        texts = [completions[0].text for completions in model.generate(prompts, max_tokens=max_tokens)]
    elif callable(model):
        texts = list(model(prompts))
    else:
        raise TypeError(f"model must be an LM or a function of prompts, got {type(model).__name__}")
    if len(texts) != len(prompts):
        raise ValueError(f"the model returned {len(texts)} texts for {len(prompts)} prompts")
    rows, start = [], 0
    for task in tasks:
        end = start + len(task.instances)
        pairs = zip(texts[start:end], task.instances, strict=True)
        scores = [float(metric(text, instance.outputs)) for text, instance in pairs]
        mean = math.fsum(scores) / len(scores)
        rows.append(TaskScore(task.name, task.category, task.source, mean, len(scores), tuple(texts[start:end])))
        start = end
    found = interval([np.array([row.score for row in rows])])
    return CrossTask(tuple(rows), found.estimate, found.low, found.high)


Strategy = Callable[[Any], str]


@checked
def best_constant(task: Any, metric: Metric = exact_match, strategies: Sequence[Strategy] = ()) -> float:
    """Returns the score on a task of the best strategy that reads no instruction, chosen by the right answers.

    The strategies: one and the same output for all instances, any that is right for one of them; a copy of the input;
    its first word; its last word; and those given.

    Args:
        task: as for ``cross_task``.
        metric: ``(prediction, references) -> score``.
        strategies: further ones, ``instance -> answer``, such as the first of its options.

    Raises:
        ValueError: a task without instances, or an instance without references.

    Example:
        >>> from types import SimpleNamespace as Task
        >>> instances = [Task(input="a b", outputs=("yes",)), Task(input="c", outputs=("no",))]
        >>> best_constant(Task(name="check", instances=instances))
        0.5
    """
    if not task.instances or not all(instance.outputs for instance in task.instances):
        raise ValueError(f"the task {task.name!r} needs instances, and each of them references")
    known: list[Strategy] = [lambda i: i.input, lambda i: i.input.split()[0], lambda i: i.input.split()[-1]]
    constants = dict.fromkeys(output for instance in task.instances for output in instance.outputs)
    known += [lambda _, output=output: output for output in constants]  # type: ignore[misc]
    return max(
        math.fsum(metric(answer(instance), instance.outputs) for instance in task.instances) / len(task.instances)
        for answer in [*known, *strategies]
    )


@checked
def beyond_constant(
    scores: CrossTask, tasks: Sequence[Any], metric: Metric = exact_match, strategies: Sequence[Strategy] = ()
) -> float:
    """Returns how far a model gets from the best constant strategy of each task to a perfect score, over all tasks.

    ``sum(score - constant) / sum(1 - constant)``, summed over tasks: 1 for a model without error, 0 for one that is as
    good as the strategies that ignore the instruction and were chosen by the right answers, below 0 for a worse one. A
    task that a constant nearly solves counts little, one that it solves can only be lost.

    Args:
        scores: of ``cross_task`` on the same tasks, with the same metric.
        tasks: the tasks.
        metric: ``(prediction, references) -> score`` in [0, 1].
        strategies: further ones of ``best_constant``.

    Raises:
        ValueError: scores of other tasks; tasks that constants solve, all of them.

    Example:
        >>> from types import SimpleNamespace as Task
        >>> instances = [Task(input=text, outputs=(out,)) for text, out in (("a", "yes"), ("b", "no"), ("c", "no"))]
        >>> task = Task(name="check", category="verify", source="own", instances=instances)
        >>> prompt = lambda task, instance: instance.input
        >>> right = lambda prompts: ["yes", "no", "no"]
        >>> beyond_constant(cross_task(right, [task], prompt, exact_match), [task])
        1.0
    """
    if [row.task for row in scores.rows] != [task.name for task in tasks]:
        raise ValueError("beyond_constant needs the scores of the same tasks, in their order")
    constants = [best_constant(task, metric, strategies) for task in tasks]
    left = math.fsum(1 - constant for constant in constants)
    if left <= 0:
        raise ValueError("every task is solved by a constant strategy")
    return math.fsum(row.score - constant for row, constant in zip(scores.rows, constants, strict=True)) / left
