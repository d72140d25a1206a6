"""Core: A memory of a few examples of earlier tasks.

Sources: Vitter, ACM Transactions on Mathematical Software 11 (1985), algorithm R (reservoir sampling); arXiv:1611.07725
(Rebuffi et al., iCaRL), algorithms 4 and 5 (herding, and how an exemplar set is reduced).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from heldout.data import gather, to_device
from heldout.errors import (
    check_at_least,
    check_between,
    check_dimensions,
    check_nonempty,
    check_one_of,
    check_same_length,
    check_values,
    checked,
)
from heldout.method import as_dataset

MemoryPolicy = Literal["task", "class", "reservoir"]


@checked
def herding_order(features: Tensor, count: int | None = None) -> Tensor:
    """Returns the order of rows in which the mean of the first k stays nearest to the mean of all: int64 ``(count,)``.

    Rows are scaled to length 1 first. Each further row costs one product of the rows with a vector.

    Args:
        features: ``(items, dim)``.
        count: how many rows to choose; default: all.

    Raises:
        ValueError: no rows, values that are not finite, a count beyond the rows.

    Source: arXiv:1611.07725, algorithm 4.

    Example:
        >>> herding_order(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), 1)
        tensor([1])
    """
    check_dimensions(2, features=features)
    check_nonempty(features=features)
    check_values(features=features)
    count = len(features) if count is None else count
    check_between(1, len(features), count=count)
    rows = normalize(features.detach().double(), dim=1)
    mean, total = rows.mean(0), torch.zeros_like(rows[0])
    free, order = torch.ones(len(rows), dtype=torch.bool, device=rows.device), []
    for k in range(1, count + 1):
        # argmin |mean - (total + row) / k|^2 over the free rows, without the terms that all share
        wanted = k * mean - total
        scores = (rows @ wanted).mul_(2).sub_(rows.square().sum(1)).masked_fill_(~free, -torch.inf)
        best = scores.argmax()
        free[best], total = False, total + rows[best]
        order.append(best)
    return torch.stack(order)


class ExemplarMemory:
    """Keeps at most ``capacity`` examples of a stream.

    "task" and "class" give each task or class so far the same share, to within one example where it has that many, and
    hold an order within each: those that come first stay as shares shrink. The order is random, so that a class that
    comes in several tasks is kept from all of them, by their sizes; or that of herding where features are given, those
    of several tasks side by side. "reservoir" keeps a uniform sample of all examples that passed, without knowing where
    a task ends.

    Args:
        capacity: most examples, at least 1.
        policy: what is balanced.
        seed: of all that is drawn.

    Attributes:
        inputs: what is kept, collated: a tensor ``(kept, ...)``, a tuple or a dict of them, on the CPU; None while
            empty.
        targets: ``(kept, ...)``.
        tasks: int64 ``(kept,)``, the task of each.

    Raises:
        ValueError: a capacity below 1, or an unknown policy.

    Example:
        >>> memory = ExemplarMemory(4)
        >>> memory.add((torch.arange(6.0), torch.zeros(6).long()), task=0)
        >>> memory.add((torch.arange(6.0), torch.ones(6).long()), task=1)
        >>> len(memory), memory.targets.tolist()
        (4, [0, 0, 1, 1])
    """

    @checked
    def __init__(self, capacity: int, policy: MemoryPolicy = "task", *, seed: int = 0) -> None:
        check_at_least(1, capacity=capacity)
        check_one_of(("task", "class", "reservoir"), policy=policy)
        self.capacity, self.policy = capacity, policy
        self.generator = torch.Generator().manual_seed(seed)
        self.inputs: Any = None
        self.targets: Tensor = torch.empty(0)
        self.tasks: Tensor = torch.empty(0, dtype=torch.int64)
        self.places = torch.empty(0)  # in the order of its group, from 0 to 1
        self.seen = 0

    def __len__(self) -> int:
        return len(self.tasks)

    @checked
    def add(self, data: Any, task: int = 0, *, features: Tensor | None = None) -> None:
        """Takes up a task's examples, or some of them.

        Args:
            data: a data set, or a pair of tensors.
            task: its number.
            features: ``(len(data), dim)``, for the order of herding; not with a reservoir.

        Raises:
            ValueError: no example; a task below 0; features of another length, or for a reservoir; inputs of another
                form than those that are kept; class shares of targets that are not class labels.
        """
        dataset = as_dataset(data, "data")
        check_nonempty(data=dataset)
        check_at_least(0, task=task)
        if features is not None:
            check_same_length(data=dataset, features=features)
            if self.policy == "reservoir":
                raise ValueError("a reservoir keeps a uniform sample: it takes no features")
        if self.policy == "reservoir":
            self._add_to_reservoir(dataset, task)
            return
        new_groups = self._groups(dataset, task)
        offered, places = [], []
        for group in new_groups.unique():
            own = (new_groups == group).nonzero().flatten()
            order, place = self._ordered(own, features)
            offered.append(order)
            places.append(place)
        rows = torch.cat(offered)
        inputs, targets = to_device(gather(dataset, rows), "cpu")
        self._put(inputs, targets, torch.full((len(rows),), task), torch.cat(places))
        groups = self.tasks if self.policy == "task" else self.targets
        self._keep(_balanced(groups, self.places, self.capacity, self.generator))

    def _groups(self, dataset: Any, task: int) -> Tensor:
        if self.policy == "task":
            return torch.full((len(dataset),), task)
        targets = gather(dataset, torch.arange(len(dataset)))[1]
        if targets.ndim != 1 or targets.is_floating_point():
            raise ValueError('policy "class" needs one class label for each example of data')
        return targets

    def _ordered(self, rows: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """The first of a group's rows, at most as many as the memory holds, and their places from 0 to 1."""
        most = min(len(rows), self.capacity)
        if features is None:
            places, order = torch.rand(len(rows), generator=self.generator).sort()
            return rows[order[:most]], places[:most]
        order = herding_order(features[rows.to(features.device)], most).cpu()
        return rows[order], (torch.arange(most) + 0.5) / len(rows)

    def _add_to_reservoir(self, dataset: Any, task: int) -> None:
        places: dict[int, int] = {}
        for position in range(len(dataset)):
            self.seen += 1
            if self.seen <= self.capacity:
                place = self.seen - 1
            else:
                place = int(torch.randint(self.seen, (), generator=self.generator))
            if place < self.capacity:
                places[place] = position
        if not places:
            return
        inputs, targets = to_device(gather(dataset, torch.tensor(list(places.values()))), "cpu")
        old = len(self)
        self._put(inputs, targets, torch.full((len(places),), task), torch.zeros(len(places)))
        chosen = torch.arange(max(old, max(places) + 1))
        chosen[torch.tensor(list(places))] = old + torch.arange(len(places))
        self._keep(chosen)

    def _put(self, inputs: Any, targets: Tensor, tasks: Tensor, places: Tensor) -> None:
        if self.inputs is None:
            self.inputs, self.targets, self.tasks, self.places = inputs, targets, tasks, places
            return
        self.inputs = joined(self.inputs, inputs)
        self.targets = joined(self.targets, targets)
        self.tasks, self.places = torch.cat([self.tasks, tasks]), torch.cat([self.places, places])

    def _keep(self, rows: Tensor) -> None:
        self.inputs = _each(lambda value: value[rows], self.inputs)
        self.targets, self.tasks, self.places = self.targets[rows], self.tasks[rows], self.places[rows]

    @checked
    def sample(self, count: int, generator: torch.Generator | None = None) -> tuple[Any, Tensor]:
        """Returns ``(inputs, targets)`` of examples drawn uniformly, without one twice where there are as many.

        Raises:
            ValueError: the memory is empty, or a count below 1.
        """
        check_at_least(1, count=count)
        if not len(self):
            raise ValueError("the memory is empty: nothing to sample")
        draw = generator or self.generator
        rounds = -(-count // len(self))
        rows = torch.cat([torch.randperm(len(self), generator=draw) for _ in range(rounds)])[:count]
        return _each(lambda value: value[rows], self.inputs), self.targets[rows]

    def state_dict(self) -> dict[str, Any]:
        """Returns what a restart needs; ``torch.save`` it, and load it with ``weights_only=True``."""
        return {
            "inputs": self.inputs,
            "targets": self.targets,
            "tasks": self.tasks,
            "places": self.places,
            "seen": self.seen,
            "generator": self.generator.get_state(),
        }

    @checked
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what ``state_dict`` returned.

        Raises:
            ValueError: more examples than the capacity.
        """
        if len(state["tasks"]) > self.capacity:
            raise ValueError(f"state holds {len(state['tasks'])} examples, capacity is {self.capacity}")
        self.inputs, self.targets, self.tasks = state["inputs"], state["targets"], state["tasks"]
        self.places, self.seen = state["places"], state["seen"]
        self.generator.set_state(state["generator"])


def _balanced(groups: Tensor, places: Tensor, capacity: int, generator: torch.Generator) -> Tensor:
    """Rows to keep, group by group: the first in each group's order, as many of each as fill the capacity evenly."""
    names, numbers, counts = groups.unique(return_inverse=True, return_counts=True)
    share = torch.zeros_like(counts)
    left = capacity
    while left > 0 and (open_groups := (share < counts).nonzero().flatten()).numel():
        each = left // len(open_groups)
        if each == 0:  # who gets one more is drawn
            share[open_groups[torch.randperm(len(open_groups), generator=generator)[:left]]] += 1
            break
        share[open_groups] += each
        over = (share - counts).clamp(min=0)
        share -= over
        left = capacity - int(share.sum())
    kept = []
    for number in range(len(names)):
        own = (numbers == number).nonzero().flatten()
        kept.append(own[places[own].argsort(stable=True)][: int(share[number])])
    return torch.cat(kept)


def joined(first: Any, second: Any) -> Any:
    """Returns two batches of one form as one: tensors, tuples or dicts of tensors, the second's on the first's device.

    Raises:
        ValueError: batches of different forms, shapes or types.
    """
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.shape[1:] != second.shape[1:] or first.dtype != second.dtype:
            raise ValueError(
                f"examples must be of one shape and type to be joined, got {first.dtype} {tuple(first.shape[1:])} and "
                f"{second.dtype} {tuple(second.shape[1:])}"
            )
        return torch.cat([first, second.to(first.device)])
    if isinstance(first, Mapping) and isinstance(second, Mapping) and set(first) == set(second):
        return {key: joined(first[key], second[key]) for key in first}
    if isinstance(first, tuple | list) and isinstance(second, tuple | list) and len(first) == len(second):
        return tuple(joined(a, b) for a, b in zip(first, second, strict=True))
    raise ValueError("examples must be of one form to be joined: tensors, tuples of as many, or dicts of the same keys")


def _each(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _each(function, item) for key, item in value.items()}
    return tuple(_each(function, item) for item in value)
