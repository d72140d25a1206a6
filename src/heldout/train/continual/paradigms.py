"""How should one model learn many sets: a model of its own for each, all at once, or one after the other?

Each way starts from the same weights and takes the same number of optimizer steps and of examples in all, so that what
differs is the way alone. Source: arXiv:2303.06580 (specialised, joint and continual training of one medical model).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset

from heldout.data import gather
from heldout.errors import (
    check_at_least,
    check_between,
    check_fraction,
    check_nonempty,
    check_one_of,
    check_positive,
    checked,
)
from heldout.measure import StreamMatrix, default_example_loss
from heldout.method import as_dataset
from heldout.train.continual.anchored import EWC
from heldout.train.continual.fit_stream import fit_stream
from heldout.train.continual.rehearsal import Replay
from heldout.train.continual.strategy import ContinualStrategy
from heldout.train.supervised import OptimizerFactory

ExampleLoss = Callable[[Tensor, Tensor], Tensor]
Paradigm = str | Callable[[], ContinualStrategy]


class ShareReplay(Replay):
    """Keeps a share of each set that came, chosen at random, and trains on it beside the set that is there.

    Where ``Replay`` divides a memory of one size among all tasks, this one grows with each, and of larger sets more is
    kept and drawn. What is kept are examples as they are: those of patients, for one, may often not be kept.

    Args:
        share: of each set's examples, in (0, 1], rounded, at least one.
        per_new: examples of the memory for each new one in a batch.
        seed: of what is chosen and drawn.

    Raises:
        ValueError: options out of range.

    Source: arXiv:2303.06580 (rehearsal of a few samples of each past set).

    Example:
        >>> strategy = ShareReplay(0.25)
        >>> for label in range(2):
        ...     strategy.end_task(nn.Linear(1, 2), (torch.zeros(8, 1), torch.full((8,), label)))
        >>> strategy.memory.targets.tolist()
        [0, 0, 1, 1]
    """

    name = "rehearsal"

    @checked
    def __init__(self, share: float = 0.05, *, per_new: float = 1.0, seed: int = 0) -> None:
        check_positive(share=share)
        check_fraction(share=share)
        check_between(0, 2**62, seed=seed)
        super().__init__(1, per_new=per_new, seed=seed)
        self.share, self.seed = share, seed

    @checked
    def end_task(self, model: nn.Module, data: Any) -> None:
        """Takes up the share of the set's examples."""
        dataset = as_dataset(data, "data")
        check_nonempty(data=dataset)
        generator = torch.Generator().manual_seed(self.seed + self.tasks_done)
        count = max(1, round(self.share * len(dataset)))
        chosen = torch.randperm(len(dataset), generator=generator)[:count]
        self.memory.capacity = len(self.memory) + count
        super().end_task(model, Subset(dataset, chosen.tolist()))


@dataclass(frozen=True)
class ParadigmRun:
    """What one way of training has made.

    Attributes:
        models: the model; of "specialised" set -> its own model.
        steps: optimizer steps in all.
        examples: that these steps were made on, in all, as counted where the loss is taken.
        start: SHA-256 of the weights at the beginning.
        matrix: scores after each set on each set, where sets came one after the other and ``evaluate`` was given.
        strategy: what was used there, with what it keeps.

    Example:
        >>> data = {name: (torch.randn(8, 2), torch.arange(8) % 2) for name in "ab"}
        >>> runs = compare_paradigms(nn.Linear(2, 2), data, steps=4, batch_size=4)
        >>> runs["joint"].examples, runs["rehearsal"].examples, runs["joint"].start == runs["rehearsal"].start
        (16, 16, True)
    """

    models: nn.Module | dict[str, nn.Module]
    steps: int
    examples: int
    start: str
    matrix: StreamMatrix | None = None
    strategy: ContinualStrategy = field(default_factory=ContinualStrategy)


@checked
def compare_paradigms(
    model: nn.Module,
    sets: Mapping[str, Any],
    paradigms: Mapping[str, Paradigm] | None = None,
    *,
    steps: int,
    batch_size: int = 32,
    loss: ExampleLoss | None = None,
    optimizer: OptimizerFactory | Mapping[str, OptimizerFactory] | None = None,
    evaluate: Callable[[nn.Module, str], float] | None = None,
    seed: int = 0,
) -> dict[str, ParadigmRun]:
    """Trains copies of a model on several sets in each of several ways, at one cost in steps and examples.

    "specialised" trains a model for each set, with an equal part of the steps each. "joint" trains one on the union,
    which shows examples of each set equally often, however large it is. All others see the sets one after the other,
    in the order given, with an equal part of the steps each, under a strategy. Passes that a strategy makes of its own
    (the Fisher information of EWC) come on top; they are no steps.

    Args:
        model: any module; it stays as it is, and every way starts from its weights.
        sets: name -> data set, or pair of tensors, in the order in which they come; at least 2, of one form.
        paradigms: name -> "specialised", "joint", or a function that gives a new strategy. Default: these two,
            "sequential" (``ContinualStrategy``), "ewc" (``EWC`` of its default strength, with the Fisher information of
            200 examples of each set) and "rehearsal" (``ShareReplay`` of 5 %).
        steps: optimizer steps in all, a multiple of the number of sets.
        batch_size: examples for each step. It must divide as a strategy with a memory asks: by 2 for half and half.
        loss: ``(outputs, targets) -> (batch,)`` of each example; default: as in ``fit_stream``.
        optimizer: as in ``fit``, for all or by name of the way; each set, and each model, starts with a new one.
        evaluate: ``(model, set) -> score``, higher is better, for the matrix of the ways that see one set after the
            other.
        seed: of the order of examples and dropout.

    Raises:
        ValueError: fewer than 2 sets, sets that are empty or whose examples are of another form than the first's, an
            unknown way, steps that are no multiple, a batch that cannot be divided, options out of range.
        FloatingPointError: a loss that is not finite.

    Source: arXiv:2303.06580.

    Example:
        >>> x = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
        >>> sets = {"left": (x - 2, (x[:, 0] > 0).long()), "right": (x + 2, (x[:, 0] > 0).long())}
        >>> runs = compare_paradigms(nn.Linear(2, 2), sets, steps=8, batch_size=8)
        >>> sorted(runs["specialised"].models), {run.steps for run in runs.values()}
        (['left', 'right'], {8})
    """
    data = _checked_sets(sets)
    check_at_least(1, steps=steps, batch_size=batch_size)
    check_between(0, 2**62, seed=seed)
    if steps % len(data):
        raise ValueError(f"steps must be a multiple of the number of sets, {len(data)}, got {steps}")
    ways = _default(loss, seed) if paradigms is None else dict(paradigms)
    check_nonempty(paradigms=ways)
    factories = optimizer if isinstance(optimizer, Mapping) else dict.fromkeys(ways, optimizer)
    if lacking := [name for name in ways if name not in factories]:
        raise ValueError(f"optimizer must have one for each of paradigms, {lacking[0]!r} has none")
    runs = {}
    for name, way in ways.items():
        start, counted = _digest(model), _Counted(loss, model)
        common: dict[str, Any] = {"loss": counted, "optimizer": factories[name], "batch_size": batch_size, "seed": seed}
        if way == "joint":
            union = {name: _union(list(data.values()))}
            joint = fit_stream(model, list(union.values()), evaluate=_nothing, steps=steps, **common)
            runs[name] = ParadigmRun(joint.module, sum(joint.steps), counted.examples, start)
        elif way == "specialised":
            own, part = {}, steps // len(data)
            made = 0
            for which, each in data.items():
                fitted = fit_stream(model, [each], evaluate=_nothing, steps=part, **common)
                own[which] = fitted.module
                made += sum(fitted.steps)
            runs[name] = ParadigmRun(own, made, counted.examples, start)
        elif callable(way):
            strategy = way()
            _check_division(strategy, batch_size)
            judged = partial(_judged, evaluate, list(data)) if evaluate else _nothing
            stream = fit_stream(
                model, list(data.values()), strategy, evaluate=judged, steps=steps // len(data), **common
            )
            matrix = stream.matrix if evaluate else None
            runs[name] = ParadigmRun(stream.module, sum(stream.steps), counted.examples, start, matrix, strategy)
        else:
            raise ValueError(f'paradigms[{name!r}] must be "specialised", "joint" or make a strategy, got {way!r}')
    return runs


@checked
def set_order(
    keys: Sequence[tuple[str, str]], *, by: Literal["task", "domain"] = "task", seed: int = 0
) -> list[tuple[str, str]]:
    """Returns (task, domain) sets in an order in which they may come: tasks and domains each in an order of the seed.

    Args:
        keys: (task, domain) of each set.
        by: "task": all domains of one task, then the next one (task-incremental); "domain": all tasks of one domain,
            then the next one (domain-incremental).
        seed: of the two orders.

    Raises:
        ValueError: no sets, an unknown ``by``.

    Source: arXiv:2303.06580 (orders by task and by domain).

    Example:
        >>> order = set_order([(task, domain) for task in "ab" for domain in "12"], by="domain")
        >>> order[0][1] == order[1][1] != order[2][1] == order[3][1]
        True
    """
    check_nonempty(keys=keys)
    check_one_of(("task", "domain"), by=by)
    check_between(0, 2**62, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    ranks = []
    for place in (0, 1):
        names = list(dict.fromkeys(key[place] for key in keys))
        ranks.append(dict(zip(names, torch.randperm(len(names), generator=generator).tolist(), strict=True)))
    first, second = (0, 1) if by == "task" else (1, 0)
    return sorted(keys, key=lambda key: (ranks[first][key[first]], ranks[second][key[second]]))


def _default(loss: ExampleLoss | None, seed: int) -> dict[str, Paradigm]:
    return {
        "specialised": "specialised",
        "joint": "joint",
        "sequential": ContinualStrategy,
        "ewc": lambda: EWC(loss=loss, examples=200, seed=seed),
        "rehearsal": lambda: ShareReplay(seed=seed),
    }


class _Counted:
    """The mean loss of a batch, and how many examples have passed."""

    def __init__(self, loss: ExampleLoss | None, model: nn.Module) -> None:
        self.loss, self.examples = loss or default_example_loss(model), 0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = self.loss(outputs, targets)
        if losses.shape != (len(targets),):
            raise ValueError(
                f"loss must give one number for each of {len(targets)} examples, got {tuple(losses.shape)}"
            )
        self.examples += len(targets)
        return losses.mean()


def _judged(evaluate: Callable[[nn.Module, str], float], names: list[str], module: nn.Module, task: int) -> float:
    return evaluate(module, names[task])


def _nothing(module: nn.Module, task: int) -> float:
    return 0.0


def _checked_sets(sets: Mapping[str, Any]) -> dict[str, Any]:
    check_at_least(2, **{"number of sets": len(sets)})
    data = {name: as_dataset(each, f"sets[{name!r}]") for name, each in sets.items()}
    first = None
    for name, each in data.items():
        check_nonempty(**{f"sets[{name!r}]": each})
        form = _form(gather(each, torch.zeros(1, dtype=torch.int64)))
        first = first or form
        if form != first:
            raise ValueError(f"sets[{name!r}] must have examples of the form of the first set's, {first}, got {form}")
    return data


def _form(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape[1:])}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_form(item)}" for name, item in sorted(value.items())) + "}"
    return "(" + ", ".join(map(_form, value)) + ")"


def _union(sets: list[Any]) -> Subset:
    """All sets, of which each comes equally often: the examples of smaller ones several times."""
    longest, places, start = max(map(len, sets)), [], 0
    for each in sets:
        places.append(start + torch.arange(longest) % len(each))
        start += len(each)
    return Subset(ConcatDataset(sets), torch.cat(places).tolist())


def _check_division(strategy: ContinualStrategy, batch_size: int) -> None:
    """A strategy with a memory fills each batch to its size, so that all ways see as many examples."""
    parts = [strategy, *getattr(strategy, "strategies", ())]
    for per_new in (part.per_new for part in parts if isinstance(part, Replay)):
        new = max(1, round(batch_size / (1 + per_new)))
        if new + max(1, round(per_new * new)) != batch_size:
            raise ValueError(
                f"batch_size must divide into new examples and {per_new:g} kept ones each, got {batch_size}"
            )


def _digest(model: nn.Module) -> str:
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
