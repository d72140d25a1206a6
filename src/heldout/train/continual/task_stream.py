"""Core: Continual strategies as Methods: the data of a training set come task after task, and ``fit`` stays as it is.

``fit`` on a ``TaskStream`` without a Method of this file trains on all tasks at once, the upper line; ``in_order()`` is
plain fine-tuning, which forgets; the others keep what they can. All take the same number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset, Sampler, Subset

from heldout.data import all_targets
from heldout.errors import check_at_least, check_between, check_nonnegative, check_positive, checked
from heldout.method import Added, Batch, Method, Run, Splits, why_no_class_labels
from heldout.train.continual.anchored import EWC, RWalk, SynapticIntelligence
from heldout.train.continual.exemplars import ExemplarMemory
from heldout.train.continual.rehearsal import AGEM, LwF
from heldout.train.continual.strategy import Combined, ContinualStrategy
from heldout.train.supervised import squared_error


@dataclass(frozen=True)
class TaskStream(Splits):
    """Splits whose training set comes as a stream of tasks in the order of their numbers.

    Args:
        tasks: int64 ``(len(train),)``, the task of each training example, from 0 and without gaps.

    Raises:
        ValueError: ``tasks`` of another length or with gaps, or fewer than two tasks.

    Example:
        >>> x, y = torch.randn(8, 3), torch.tensor([0, 1] * 4)
        >>> TaskStream(train=(x, y), tasks=torch.tensor([0] * 4 + [1] * 4)).number
        2
    """

    tasks: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tasks is None:
            raise ValueError("tasks must give the task of each training example")
        tasks = torch.as_tensor(self.tasks)
        if tasks.shape != (len(self.train),) or tasks.is_floating_point():  # type: ignore[arg-type]
            raise ValueError(f"tasks must be int64 ({len(self.train)},), got {tasks.dtype} {tuple(tasks.shape)}")  # type: ignore[arg-type]
        numbers = tasks.unique().tolist()
        if numbers != list(range(len(numbers))) or len(numbers) < 2:
            raise ValueError(f"tasks must be numbered from 0 without gaps, at least two of them, got {numbers}")
        object.__setattr__(self, "tasks", tasks.to(torch.int64))

    @property
    def number(self) -> int:
        """The number of tasks."""
        return int(self.tasks.max()) + 1  # type: ignore[union-attr]


class TaskOrder(Sampler):
    """Positions of a stream's training set, task after task, in epochs of one length.

    All epochs together pass over each task as often as there are epochs, in whole batches (at least one), one task at a
    time. With a
    memory a batch holds new examples and, from the second task on, some that are kept of the tasks before.

    Args:
        tasks: int64 ``(examples,)``, the task of each.
        epochs: of the whole training.
        batch_size: examples for each step.
        memory: of positions; None keeps nothing.
        per_new: examples of the memory for each new one.
        seed: of the order.

    Raises:
        ValueError: options out of range.

    Example:
        >>> order = TaskOrder(torch.tensor([0, 0, 1, 1]), epochs=2, batch_size=2)
        >>> [sorted(order) for _ in range(2)]
        [[0, 0, 1, 1], [2, 2, 3, 3]]
    """

    @checked
    def __init__(
        self,
        tasks: Tensor,
        *,
        epochs: int,
        batch_size: int,
        memory: ExemplarMemory | None = None,
        per_new: float = 1.0,
        seed: int = 0,
    ) -> None:
        check_at_least(1, epochs=epochs, batch_size=batch_size)
        check_positive(per_new=per_new)
        self.tasks, self.epochs, self.batch_size = tasks, epochs, batch_size
        self.memory, self.per_new = memory, per_new
        self.generator = torch.Generator().manual_seed(seed)
        self.batches_an_epoch = max(1, len(tasks) // batch_size)
        counts, batches = torch.bincount(tasks), self.batches_an_epoch * epochs
        if batches < len(counts):
            raise ValueError(
                f"{batches} batches in all are too few for {len(counts)} tasks: more epochs, or smaller batches"
            )
        ends = (counts.cumsum(0) * batches / len(tasks)).round().long().tolist()
        for task in range(len(ends)):  # at least one batch each
            ends[task] = max(ends[task], ends[task - 1] + 1 if task else 1)
        for task in reversed(range(len(ends))):
            ends[task] = min(ends[task], batches - (len(ends) - 1 - task))
        self.ends = ends  # of each task, in batches
        self._stream = self._batches()

    def __len__(self) -> int:
        return self.batches_an_epoch * self.batch_size

    def __iter__(self) -> Iterator[int]:
        for _ in range(self.batches_an_epoch):
            yield from next(self._stream).tolist()

    def task_at(self, step: int) -> int:
        """Returns the task of an optimizer step, counted from 0."""
        return next((task for task, end in enumerate(self.ends) if step < end), len(self.ends) - 1)

    def _batches(self) -> Iterator[Tensor]:
        start = 0
        for task, end in enumerate(self.ends):
            own = (self.tasks == task).nonzero().flatten()
            keeps = self.memory is not None and len(self.memory)
            new = max(1, round(self.batch_size / (1 + self.per_new))) if keeps else self.batch_size
            left = own[:0]
            for _ in range(start, end):
                while len(left) < new:
                    left = torch.cat([left, own[torch.randperm(len(own), generator=self.generator)]])
                batch, left = left[:new], left[new:]
                if keeps and new < self.batch_size:
                    kept = self.memory.sample(self.batch_size - new, self.generator)[1]  # type: ignore[union-attr]
                    batch = torch.cat([batch, kept])
                yield batch
            if self.memory is not None:
                self.memory.add((own, own), task)
            start = end


@dataclass(frozen=True)
class ContinualMethod(Method):
    """A Method that sees to the order of tasks, and to what may be seen of them.

    Combined with others of its kind the order is made once. Whatever it is combined with sees the training data that
    are at hand: before training those of the first task, in training those so far, after it those of the last; what
    builds on training data then (a memory, statistics, more units) does not undo the order.

    Args are those of ``Method``, and ``inner``, the Method that sees everything.

    Example:
        >>> type(replay() + ewc()).__name__, type(Method("plain") + ewc()).__name__
        ('ContinualMethod', 'ContinualMethod')
    """

    inner: Method | None = None

    def __add__(self, other: Method) -> Method:
        return NotImplemented if not isinstance(other, Method) else _combined(self, other)

    def __radd__(self, other: Method) -> Method:
        return NotImplemented if not isinstance(other, Method) else _combined(other, self)


def _combined(first: Method, second: Method) -> Method:
    whole = _inner(first) + _inner(second)
    if any(each.data is not None and not isinstance(each, ContinualMethod) for each in (first, second)):
        return whole  # a training set of another kind: the order of tasks is not all of its data stage
    return _continual(whole)


def _inner(method: Method) -> Method:
    known = method.inner if isinstance(method, ContinualMethod) else None
    return method if known is None else known.renamed(method.name)


def _continual(whole: Method) -> ContinualMethod:
    stages: dict[str, Any] = {each.name: getattr(whole, each.name) for each in fields(Method)}
    stages["model"] = _at_hand(whole.model, first=True)
    stages |= {name: _at_hand(stages[name], first=False) for name in ("weights", "predict")}
    stages |= {name: _so_far(stages[name]) for name in ("optimizer", "loss")}
    return ContinualMethod(**stages, inner=whole)


def _at_hand(stage: Callable[[Run, Any], Any] | None, *, first: bool) -> Callable[[Run, Any], Any] | None:
    """A stage that sees one task of a stream: the first one's data, and all again behind it, or the last one's."""
    if stage is None:
        return None

    def act(run: Run, value: Any) -> Any:
        splits, train_set = run.splits, run.train_set
        if isinstance(splits, TaskStream):
            run.splits = _of_task(splits, 0 if first else splits.number - 1)
            run.train_set = run.splits.train
        try:
            return stage(run, value)
        finally:
            if first:
                run.splits, run.train_set = splits, train_set

    return act


def _so_far(stage: Callable[[Run, Any], Any] | None) -> Callable[[Run, Any], Any] | None:
    """A stage of training that reads examples of the task under way and of those before, and no others."""
    if stage is None:
        return None

    def act(run: Run, value: Any) -> Any:
        splits, train_set = run.splits, run.train_set
        if isinstance(splits, TaskStream) and "task_order" in run.state:
            if "so_far" not in run.state:
                run.state["so_far"] = replace(splits, train=_SoFar(splits.train, splits.tasks))
            run.splits = run.state["so_far"]
            run.train_set = run.splits.train
            run.train_set.task = run.state["task_order"].task_at(run.step)  # type: ignore[attr-defined]
        try:
            return stage(run, value)
        finally:
            run.splits, run.train_set = splits, train_set

    return Added(act) if isinstance(stage, Added) else act


class _SoFar(Dataset):
    """A training set whose later tasks cannot be read; positions are those of the whole."""

    def __init__(self, dataset: Any, tasks: Any) -> None:
        self.dataset, self.tasks, self.task = dataset, tasks, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> Any:
        if int(self.tasks[position]) > self.task:
            raise ValueError(
                f"example {position} is of task {int(self.tasks[position])}, which has not come yet at task {self.task}"
            )
        return self.dataset[position]


def _of_task(splits: TaskStream, task: int) -> Splits:
    own = (splits.tasks == task).nonzero().flatten()  # type: ignore[union-attr]
    rows: dict[str, Any] = {
        name: torch.as_tensor(getattr(splits, name))[own] if getattr(splits, name) is not None else None
        for name in ("domains", "groups")
    }
    rest = {name: getattr(splits, name) for name in ("val", "test", "unlabeled", "initial_state")}
    return Splits(train=Subset(splits.train, own.tolist()), **rest, **rows)


@checked
def in_order() -> Method:
    """Trains on one task of a ``TaskStream`` after the other, with nothing against forgetting.

    Example:
        >>> in_order().stages
        ('data',)
    """
    return _continual(Method("in_order", data=_order(), check=_why_no_stream))


@checked
def replay(capacity: int = 200, per_new: float = 1.0) -> Method:
    """Trains on one task after the other, with examples kept of those before in each batch.

    Args:
        capacity: examples that are kept, the same share of each earlier task.
        per_new: examples of the memory for each new one; batches stay as large as they are.

    Raises:
        ValueError: options out of range.

    Source: arXiv:1902.10486.

    Example:
        >>> replay(capacity=50).name
        'replay'
    """
    check_at_least(1, capacity=capacity)
    check_positive(per_new=per_new)
    return _continual(Method("replay", data=_order(capacity, per_new), check=_why_no_stream))


@checked
def ewc(strength: float = 10.0, decay: float | None = None) -> Method:
    """Trains on one task after the other, and holds parameters by their Fisher information on the earlier ones.

    Args:
        strength: of the penalty.
        decay: None for the sum over tasks, a number for online EWC, see ``EWC``.

    Raises:
        ValueError: options out of range.

    Source: arXiv:1612.00796.

    Example:
        >>> ewc().stages
        ('data', 'optimizer')
    """
    check_nonnegative(strength=strength)
    if decay is not None:
        check_between(0, 1, decay=decay)

    def make(run: Run) -> ContinualStrategy:
        plain = run.objective in (F.cross_entropy, squared_error)
        loss = None if plain else partial(_of_each, run.objective)
        return EWC(strength, decay=decay, loss=loss, examples=2000, seed=run.seed)

    return _by_strategy("ewc", make)


def _of_each(objective: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
    """A recipe's own loss of each example ``(batch,)``."""
    return torch.stack([objective(o[None], t[None]) for o, t in zip(outputs, targets, strict=True)])


@checked
def si(strength: float = 0.1, xi: float = 0.1) -> Method:
    """Trains on one task after the other, and holds parameters by how much their paths lowered the loss.

    Args:
        strength: of the penalty.
        xi: see ``SynapticIntelligence``.

    Raises:
        ValueError: options out of range.

    Source: arXiv:1703.04200.

    Example:
        >>> si().name
        'si'
    """
    check_nonnegative(strength=strength)
    check_positive(xi=xi)
    return _by_strategy("si", lambda run: SynapticIntelligence(strength, xi=xi))


@checked
def rwalk(strength: float = 1.0) -> Method:
    """Trains on one task after the other, and holds parameters by an online Fisher information and their paths.

    Args:
        strength: of the penalty.

    Raises:
        ValueError: a strength below 0.

    Source: arXiv:1801.10112.

    Example:
        >>> rwalk().name
        'rwalk'
    """
    check_nonnegative(strength=strength)
    return _by_strategy("rwalk", lambda run: RWalk(strength))


@checked
def agem(capacity: int = 200) -> Method:
    """Trains on one task after the other, by steps that do not raise the loss on a memory of the earlier ones.

    Args:
        capacity: examples that are kept.

    Raises:
        ValueError: a capacity below 1.

    Source: arXiv:1812.00420.

    Example:
        >>> agem().name
        'agem'
    """
    check_at_least(1, capacity=capacity)
    return _by_strategy("agem", lambda run: AGEM(capacity, loss=run.objective, seed=run.seed))


@checked
def lwf(strength: float = 1.0, temperature: float = 2.0) -> Method:
    """Trains on one task after the other, while the model keeps saying on new data what it said before them.

    Args:
        strength: of the distillation.
        temperature: of it.

    Raises:
        ValueError: options out of range.

    Source: arXiv:1606.09282.

    Example:
        >>> lwf().stages
        ('data', 'optimizer', 'loss')
    """
    check_nonnegative(strength=strength)
    check_positive(temperature=temperature)

    def extra(run: Run, batch: Batch) -> Tensor:
        return torch.as_tensor(run.state["lwf"].extra_loss(run.module, batch.inputs, batch.logits))

    return _by_strategy("lwf", lambda run: LwF(strength, temperature=temperature), Added(extra), classes=True)


def _order(capacity: int | None = None, per_new: float = 1.0) -> Callable[[Run, Any], Sampler]:
    def data(run: Run, train_set: Any) -> Sampler:
        if isinstance(train_set, TaskOrder) and capacity is None:  # of a Method before this one
            return train_set
        if train_set is not run.splits.train and not isinstance(train_set, TaskOrder):
            raise TypeError("the tasks of a stream are taken in order: no Method before this may choose the examples")
        memory = None if capacity is None else ExemplarMemory(capacity, seed=run.seed)
        run.state["task_order"] = TaskOrder(
            run.splits.tasks,  # type: ignore[attr-defined]
            epochs=run.epochs,
            batch_size=run.batch_size,
            memory=memory,
            per_new=per_new,
            seed=run.seed,
        )
        return run.state["task_order"]

    return data


class _Guided:
    """Tells a strategy when a task of the run ends, since steps alone are seen."""

    def __init__(self, run: Run, strategy: Combined, optimizer: Optimizer) -> None:
        self.run, self.strategy, self.optimizer, self.task = run, strategy, optimizer, -1

    def begin_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        task = self.run.state["task_order"].task_at(self.run.step)
        while self.task < task:
            if self.task >= 0:
                self.strategy.end_task(self.run.module, self._data(self.task))
            self.task += 1
            self.strategy.begin_task(self.run.module, self._data(self.task))
        self.run.module.train()

    def _data(self, task: int) -> Subset:
        own = (self.run.splits.tasks == task).nonzero().flatten()  # type: ignore[attr-defined]
        return Subset(self.run.splits.train, own.tolist())


def _by_strategy(
    name: str, make: Callable[[Run], ContinualStrategy], loss: Any = None, *, classes: bool = False
) -> Method:
    def optimizer(run: Run, optimizer: Optimizer) -> Optimizer:
        strategy = run.state[name] = make(run)
        guided = run.state.get("guided")
        if guided is not None and guided.optimizer is optimizer:
            guided.strategy.add(strategy)  # so that all read the gradient before one changes it
            return optimizer
        guided = run.state["guided"] = _Guided(run, Combined(strategy), optimizer)
        optimizer.register_step_pre_hook(guided.begin_step)
        guided.strategy.hook(optimizer, run.module)
        return optimizer

    def check(module: nn.Module, splits: Splits) -> str | None:
        reason = _why_no_stream(module, splits)
        return why_no_class_labels(all_targets(splits.train)) if reason is None and classes else reason

    return _continual(Method(name, data=_order(), optimizer=optimizer, loss=loss, check=check))


def _why_no_stream(module: nn.Module, splits: Splits) -> str | None:
    if not isinstance(splits, TaskStream):
        return "it needs training data that come in tasks: heldout.train.TaskStream(..., tasks=...)"
    return None
