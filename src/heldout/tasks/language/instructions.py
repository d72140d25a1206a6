"""Core: Tasks that come with instructions: their schema, the published files, and splits by task.

Source: Mishra et al., "Cross-task generalization via natural language crowdsourcing instructions" (arXiv:2104.08773),
section 3 for the schema and section 5.1 for the splits; Wang et al. (arXiv:2204.07705) for the second version's files.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from heldout.errors import check_fields, checked


@dataclass(frozen=True)
class InstructionExample:
    """An example in an instruction: right (positive) or wrong (negative), with the reason why.

    Attributes:
        input, output: texts.
        reason: why the output is right or wrong; empty if none is given.
        suggestion: how a wrong output could be mended; empty if none is given.

    Example:
        >>> wrong = InstructionExample("a b", "a b", reason="the list is not reversed", suggestion="begin at the end")
        >>> task = InstructionTask("reverse", "transform", "reverse the list", negative=[wrong])
        >>> task.negative[0].suggestion
        'begin at the end'
    """

    input: str
    output: str
    reason: str = ""
    suggestion: str = ""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Instance:
    """An input of a task, with all outputs that are right for it.

    Attributes:
        input: a text.
        outputs: right ones, in a tuple.

    Raises:
        ValueError: fields of other types.

    Example:
        >>> Instance("name a vowel", ("a", "e", "i", "o", "u")).outputs[:2]
        ('a', 'e')
    """

    input: str
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class InstructionTask:
    """A task, its instructions and its instances.

    Attributes:
        name: unique among the tasks of a collection.
        category: the kind of task, such as "classification".
        definition: what is to be done.
        prompt: a short form of it, which stands right before an input.
        avoid, emphasis: what must not, and what must be kept in mind; empty if nothing.
        positive, negative: examples of right and wrong outputs.
        instances: what a model is trained or tested on.
        source: the data set that the instances come from.

    Example:
        >>> task = InstructionTask("reverse", "transform", "reverse the list", instances=[Instance("a b", ("b a",))])
        >>> task.instances[0].outputs
        ('b a',)
    """

    name: str
    category: str
    definition: str
    prompt: str = ""
    avoid: str = ""
    emphasis: str = ""
    positive: Sequence[InstructionExample] = ()
    negative: Sequence[InstructionExample] = ()
    instances: Sequence[Instance] = ()
    source: str = ""

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    @checked
    def from_json(
        cls,
        file: str | Path | Mapping[str, Any],
        *,
        name: str | None = None,
        category: str | None = None,
        source: str | None = None,
    ) -> InstructionTask:
        """Returns the task in a file of Natural Instructions, of version 1 or 2.

        Version 1 keeps examples under "Examples", with "reason" and "suggestion", and names neither category nor
        source; version 2 has "Positive Examples" with "explanation", and lists of definitions, which are joined, and of
        categories and sources, of which the first counts. A field "-" is absent.

        Args:
            file: path of a JSON file, or what it holds.
            name, category, source: take precedence over the file's; the name is otherwise the file's stem, or "Title".

        Raises:
            ValueError: a field that every task has is missing or malformed; no instance, or one without outputs.

        Example:
            >>> task = InstructionTask.from_json({
            ...     "Title": "Count", "Definition": ["Count the words."], "Categories": ["Counting"], "Source": ["own"],
            ...     "Positive Examples": [{"input": "a b", "output": "2", "explanation": "a and b"}],
            ...     "Negative Examples": [], "Instances": [{"id": "1", "input": "a", "output": ["1"]}]})
            >>> task.category, task.positive[0].reason, task.instances[0].outputs
            ('Counting', 'a and b', ('1',))
        """
        if isinstance(file, Mapping):
            data, found = file, str(file.get("Title", ""))
        else:
            path = Path(file)
            data, found = json.loads(path.read_text("utf-8")), path.stem
        where = name or found or "the task"
        if not isinstance(data, Mapping):
            raise ValueError(f"{where} must be a JSON object, got {type(data).__name__}")
        for key in ("Definition", "Instances"):
            if key not in data:
                raise ValueError(f"{where} has no field {key!r}; there are {', '.join(map(repr, data))}")
        examples = data.get("Examples", data)
        instances = [_instance(row, number, where) for number, row in enumerate(data["Instances"])]
        if not instances:
            raise ValueError(f"{where} has no instances")
        return cls(
            name=name or found,
            category=category if category is not None else _first(data.get("Categories", "")),
            definition=_text(data["Definition"]),
            prompt=_text(data.get("Prompt", "")),
            avoid=_text(data.get("Things to Avoid", "")),
            emphasis=_text(data.get("Emphasis & Caution", "")),
            positive=_examples(examples.get("Positive Examples", ()), where),
            negative=_examples(examples.get("Negative Examples", ()), where),
            instances=instances,
            source=source if source is not None else _first(data.get("Source", "")),
        )

    @checked
    def parts(self, *, reserve: int = 60, most: int = 100) -> tuple[InstructionTask, InstructionTask]:
        """Returns the task with its first ``reserve`` instances, and with at most ``most`` of the others.

        The paper evaluates on the second part, taken at regular spacing, and keeps the first for further examples.

        Raises:
            ValueError: when no instance is left for one of the parts.

        Example:
            >>> task = InstructionTask("t", "c", "d", instances=[Instance(str(i), ("x",)) for i in range(10)])
            >>> [instance.input for instance in task.parts(reserve=4, most=3)[1].instances]
            ['4', '6', '8']
        """
        if not 0 < reserve < len(self.instances) or most < 1:
            raise ValueError(
                f"{self.name} has {len(self.instances)} instances: reserve={reserve}, most={most} leave none"
            )
        others = self.instances[reserve:]
        spaced = others[:: max(1, len(others) // most)][:most]
        return replace(self, instances=self.instances[:reserve]), replace(self, instances=spaced)


How = Literal["random", "category", "source", "task"]


@checked
def task_split(
    tasks: Sequence[InstructionTask],
    how: How = "random",
    held_out: float | str | Collection[str] = 12,
    *,
    seed: int = 0,
) -> tuple[list[InstructionTask], list[InstructionTask]]:
    """Returns the tasks to train on and the tasks to test on; no task is in both.

    Args:
        tasks: with unique names.
        how: "random" draws the test tasks; "category", "source" and "task" hold out all tasks whose category, source or
            name is in ``held_out``.
        held_out: for "random" the number of test tasks, or their share if below 1; otherwise a name or several.
        seed: of "random".

    Raises:
        ValueError: names that occur twice, or that no task has; a split without tasks on one side.

    Example:
        >>> tasks = [InstructionTask(name, kind, "d") for name, kind in (("a", "x"), ("b", "y"), ("c", "y"))]
        >>> [task.name for task in task_split(tasks, "category", "y")[0]]
        ['a']
    """
    names = [task.name for task in tasks]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"tasks need unique names, got {twice!r} {names.count(twice)} times")
    if how == "random":
        if isinstance(held_out, bool) or not isinstance(held_out, int | float):
            raise ValueError(f"a random split needs the number of test tasks, got {held_out!r}")
        count = round(held_out * len(names)) if held_out < 1 else int(held_out)
        if not 0 < count < len(names):
            raise ValueError(f"held_out must leave tasks to train on and to test on, got {held_out} of {len(names)}")
        chosen = set(random.Random(seed).sample(names, count))
        test = [task.name in chosen for task in tasks]
    elif how in ("category", "source", "task"):
        attribute = "name" if how == "task" else how
        if isinstance(held_out, int | float):
            raise ValueError(f"a split by {how} needs the name of what is held out, got {held_out!r}")
        wanted = {held_out} if isinstance(held_out, str) else set(held_out)
        there = {getattr(task, attribute) for task in tasks}
        if missing := sorted(wanted - there):
            raise ValueError(f"no task has the {how} {missing[0]!r}; there are {', '.join(sorted(map(repr, there)))}")
        test = [getattr(task, attribute) in wanted for task in tasks]
        if all(test) or not any(test):
            raise ValueError(f"held_out must leave tasks to train on and to test on, got {sum(test)} of {len(names)}")
    else:
        raise ValueError(f"how must be 'random', 'category', 'source' or 'task', got {how!r}")
    pairs = list(zip(tasks, test, strict=True))
    return [task for task, out in pairs if not out], [task for task, out in pairs if out]


def _text(value: Any) -> str:
    text = "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return "" if text.strip() == "-" else text.strip()


def _first(value: Any) -> str:
    return _text(value[0] if isinstance(value, list | tuple) and value else value or "")


def _examples(rows: Any, where: str) -> tuple[InstructionExample, ...]:
    """Version 1 writes ["-"] or [] where there are none."""
    kept = [row for row in rows if row != "-"] if isinstance(rows, list | tuple) else []
    for number, row in enumerate(kept):
        if not isinstance(row, Mapping) or "input" not in row or "output" not in row:
            raise ValueError(f"{where}: example {number} must have 'input' and 'output'")
    return tuple(
        InstructionExample(
            _text(row["input"]),
            _first(row["output"]),
            _text(row.get("reason", row.get("explanation", ""))),
            _text(row.get("suggestion", "")),
        )
        for row in kept
    )


def _instance(row: Any, number: int, where: str) -> Instance:
    if not isinstance(row, Mapping) or "input" not in row or not row.get("output"):
        raise ValueError(f"{where}: instance {number} must have 'input' and at least one 'output'")
    outputs = row["output"]
    return Instance(str(row["input"]), (outputs,) if isinstance(outputs, str) else tuple(map(str, outputs)))
