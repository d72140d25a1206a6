"""Core: A few-shot stream: classes to begin with, tasks of a few examples of new ones, and classes that never come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_between, check_dimensions, check_labels, check_nonempty, checked


class FewShotStream(NamedTuple):
    """Rows of a data set, by what they are for.

    Attributes:
        base: int64 ``(n,)``, all examples of the base classes.
        support: for each task int64 ``(ways * shots,)``, what is shown, ordered by class.
        test: for each task int64 ``(ways * tests,)``, other examples of its classes.
        held_out: int64 ``(m,)``, all examples of the classes that never come.

    Example:
        >>> y = torch.arange(4).repeat_interleave(5)
        >>> stream = fewshot_stream(y, base=[0], tasks=[[2, 1]], held_out=[3], shots=2, tests=3)
        >>> y[stream.support[0]].tolist(), set(stream.support[0].tolist()) & set(stream.test[0].tolist())
        ([2, 2, 1, 1], set())
    """

    base: Tensor
    support: tuple[Tensor, ...]
    test: tuple[Tensor, ...]
    held_out: Tensor


@checked
def fewshot_stream(
    y: Tensor,
    *,
    base: Sequence[int],
    tasks: Sequence[Sequence[int]],
    held_out: Sequence[int],
    shots: int,
    tests: int,
    pool: Tensor | None = None,
    query: Tensor | None = None,
    seed: int = 0,
) -> FewShotStream:
    """Deals the examples of a data set into a few-shot stream; no class is in two parts of it.

    What is drawn of a class depends on the seed and the class alone, not on the order of the tasks; and the examples
    that are shown at few shots are among those at more.

    Args:
        y: classes, int64 ``(examples,)``.
        base: classes to begin with, which may be none.
        tasks: the classes of each task, in order.
        held_out: classes for episodes, which may be none.
        shots: examples of each class that a task shows.
        tests: others of the same class that it is tested on.
        pool, query: rows that may be shown and tested, int64; a row in both is never shown and tested at once. Default:
            all.
        seed: of the draws.

    Raises:
        ValueError: a class in two parts, twice in one or without examples, a class of a task with fewer examples than
            ``shots + tests``, no task or an empty one, rows out of range.

    Example:
        >>> y = torch.arange(6).repeat_interleave(4)
        >>> stream = fewshot_stream(y, base=[0, 1], tasks=[[2, 3], [4]], held_out=[5], shots=1, tests=2)
        >>> y[stream.support[0]].tolist(), y[stream.test[1]].tolist(), len(stream.base)
        ([2, 3], [4, 4], 8)
    """
    check_dimensions(1, y=y, pool=pool, query=query)
    check_nonempty(y=y, tasks=tasks)
    check_labels(y=y)
    check_at_least(1, shots=shots, tests=tests)
    check_between(0, 2**62, seed=seed)
    for number, classes in enumerate(tasks):
        check_nonempty(**{f"tasks[{number}]": classes})
    rows = torch.arange(len(y))
    pool = rows if pool is None else pool
    query = rows if query is None else query
    check_labels(len(y), pool=pool, query=query)
    _check_disjoint(y, {"base": base, **{f"tasks[{i}]": task for i, task in enumerate(tasks)}, "held_out": held_out})
    drawn = [[_drawn(y, each, pool, query, shots, tests, seed) for each in classes] for classes in tasks]
    return FewShotStream(
        torch.isin(y, torch.tensor(list(base), dtype=torch.int64)).nonzero().flatten(),
        tuple(torch.cat([support for support, _ in task]) for task in drawn),
        tuple(torch.cat([test for _, test in task]) for task in drawn),
        torch.isin(y, torch.tensor(list(held_out), dtype=torch.int64)).nonzero().flatten(),
    )


def _drawn(
    y: Tensor, each: int, pool: Tensor, query: Tensor, shots: int, tests: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Rows of one class to show and to test."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + each) % 2**63)
    own = pool[y[pool] == each]
    support = own[torch.randperm(len(own), generator=generator)][:shots]
    others = query[y[query] == each]
    others = others[torch.randperm(len(others), generator=generator)]
    test = others[~torch.isin(others, support)][:tests]
    if len(support) < shots or len(test) < tests:
        raise ValueError(
            f"class {each} of tasks must have {shots} examples to show and {tests} others to test, "
            f"got {len(own)} in pool and {len(test)} left in query"
        )
    return support, test


def _check_disjoint(y: Tensor, parts: dict[str, Sequence[int]]) -> None:
    there = set(y.tolist())
    owner: dict[int, str] = {}
    for name, classes in parts.items():
        for each in classes:
            if each in owner:
                raise ValueError(f"class {each} of {name} must be in one part alone, and is in {owner[each]}, too")
            if each not in there:
                raise ValueError(f"{name} must hold classes of y, got {each}")
            owner[each] = name
