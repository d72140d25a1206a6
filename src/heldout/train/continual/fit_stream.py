"""Core: fit_stream: one task after the other under a strategy, with every task measured after each.

A task is trained for a number of steps that does not depend on the strategy, with batches of one size, so that
strategies are compared at one cost in examples. Whoever has a step or a Trainer of their own hands it in as ``train``.
"""

from __future__ import annotations

import copy
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heldout.data import gather, to_device
from heldout.errors import check_at_least, check_between, check_nonempty, check_same_length, checked
from heldout.measure import StreamMatrix, default_example_loss
from heldout.method import as_dataset, device_of, forward
from heldout.nn import inputs_for
from heldout.train.continual.exemplars import ExemplarMemory
from heldout.train.continual.strategy import ContinualStrategy
from heldout.train.supervised import OptimizerFactory, make_optimizer, outputs_of, seeded

Objective = Callable[[Tensor, Tensor], Tensor]
TrainTask = Callable[[nn.Module, Any, ContinualStrategy], None]


@dataclass(frozen=True)
class StreamResult:
    """What a stream has made of a model.

    Attributes:
        module: the model after the last task.
        matrix: scores after each task on each task, with those before the first one.
        strategy: the strategy, with what it keeps.
        seconds: of training, by task.
        steps: optimizer steps, by task; 0 where ``train`` was given.
    """

    module: nn.Module
    matrix: StreamMatrix
    strategy: ContinualStrategy
    seconds: list[float]
    steps: list[int]


@checked
def fit_stream(
    model: nn.Module,
    tasks: Sequence[Any],
    strategy: ContinualStrategy | None = None,
    *,
    tests: Sequence[Any] | None = None,
    evaluate: Callable[[nn.Module, int], float] | None = None,
    loss: Objective | None = None,
    optimizer: OptimizerFactory | None = None,
    steps: int | None = None,
    epochs: int = 1,
    batch_size: int = 32,
    max_grad_norm: float | None = None,
    train: TrainTask | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    on_task: Callable[[int, list[float]], None] | None = None,
) -> StreamResult:
    """Trains a copy of a model on one task after the other, and returns it with the scores after each task.

    Every task starts with a new optimizer. Batches hold ``batch_size`` examples, of which the strategy may take some
    from its memory; without a last, smaller batch: the order of a task's examples starts over within one.

    Args:
        model: any module; for a model of transformers examples are dicts with "labels".
        tasks: the training set of each task, in order: a data set or a pair of tensors.
        strategy: what keeps earlier tasks; None is plain fine-tuning. It must be new: it keeps state.
        tests: the test set of each task; scored by accuracy, or by minus the mean squared error for real targets.
        evaluate: ``(model, task) -> score`` in place of ``tests``, higher is better; the model is in eval mode.
        loss: ``(outputs, targets) -> scalar``; default: cross-entropy, over the next tokens for causal language models,
            or squared error.
        optimizer: as in ``fit``.
        steps: optimizer steps for each task; default: those of ``epochs`` passes over its data.
        epochs: where there is no ``steps``, as many steps as passes over the task's own data take; a strategy that
            brings examples of a memory, or of earlier tasks, sees so many fewer new ones.
        batch_size: examples for each step.
        max_grad_norm: clip the gradient of the loss to this norm, before the strategy changes it.
        train: ``(model, data, strategy)``, trains the model in place on one task and calls the strategy's ``mix``,
            ``attach`` and ``extra_loss`` by itself; ``begin_task`` and ``end_task`` are called here.
        checkpoint: a file, written after each task; a stream that was killed goes on with the task after it. Told apart
            are streams by their first weights, strategy, options and sizes of tasks, not by functions. What ``train``
            keeps from task to task is in it where it has ``state_dict`` and ``load_state_dict``.
        seed: of data order and dropout.
        on_task: called after each task with its number and the scores on all tasks.

    Raises:
        ValueError: no task, neither ``tests`` nor ``evaluate``, options out of range, a checkpoint of another stream.
        FloatingPointError: a loss that is not finite.

    Example:
        >>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
        >>> tasks = [(x + shift, (x[:, 0] > 0).long()) for shift in (0.0, 3.0)]
        >>> result = fit_stream(nn.Linear(2, 2), tasks, tests=tasks, steps=50)
        >>> result.matrix.scores.shape, result.steps
        ((2, 2), [50, 50])
    """
    check_nonempty(tasks=tasks)
    check_at_least(1, epochs=epochs, batch_size=batch_size)
    check_between(0, 2**62, seed=seed)
    if steps is not None:
        check_at_least(1, steps=steps)
    if (tests is None) == (evaluate is None):
        raise ValueError("give the tests of the tasks, or evaluate(model, task), one of the two")
    if tests is not None:
        check_same_length(tasks=tasks, tests=tests)
    sets = [as_dataset(task, f"tasks[{number}]") for number, task in enumerate(tasks)]
    for number, data in enumerate(sets):
        check_nonempty(**{f"tasks[{number}]": data})
    strategy = strategy or ContinualStrategy()
    if strategy.tasks_done:
        raise ValueError(f"strategy has seen {strategy.tasks_done} tasks already: give a new one")
    measured = evaluate or _accuracy_on(tests)  # type: ignore[arg-type]
    module = copy.deepcopy(model)
    recipe = _Recipe(loss, optimizer, batch_size, max_grad_norm, seed)
    mark = _mark(module, strategy, [steps, epochs, batch_size, max_grad_norm, seed, *map(len, sets)])
    kept = {"strategy": strategy, **({"train": train} if hasattr(train, "state_dict") else {})}
    progress = _resume(checkpoint, module, kept, mark)
    if progress is None:
        progress = {"initial": _scores(module, measured, len(sets)), "scores": [], "seconds": [], "steps": []}
    for number, data in enumerate(sets):
        whole = strategy.task_data(data)
        if number < len(progress["scores"]):
            continue
        started = time.perf_counter()
        with seeded(seed + number):
            strategy.begin_task(module, whole)
            if train is not None:
                train(module, whole, strategy)
                made = 0
            else:
                made = steps or -(-len(data) * epochs // batch_size)
                _train_task(module, whole, strategy, recipe, number, made)
            strategy.end_task(module, data)
        progress["seconds"].append(time.perf_counter() - started)
        progress["steps"].append(made)
        progress["scores"].append(_scores(module, measured, len(sets)))
        if checkpoint is not None:
            _write(checkpoint, module, kept, progress, mark)
        if on_task:
            on_task(number, progress["scores"][-1])
    module.eval()
    matrix = StreamMatrix(progress["scores"], progress["initial"])
    return StreamResult(module, matrix, strategy, progress["seconds"], progress["steps"])


@dataclass(frozen=True)
class _Recipe:
    loss: Objective | None
    optimizer: OptimizerFactory | None
    batch_size: int
    max_grad_norm: float | None
    seed: int


def _train_task(
    module: nn.Module, data: Any, strategy: ContinualStrategy, recipe: _Recipe, number: int, steps: int
) -> None:
    generator = torch.Generator().manual_seed(recipe.seed + number)
    fresh = max(1, round(recipe.batch_size * strategy.new_share()))
    default = default_example_loss(module)
    objective = recipe.loss or (lambda outputs, targets: default(outputs, targets).mean())
    optimizer = make_optimizer(recipe.optimizer, module)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device = device_of(module)
    module.train()
    with strategy.attach(optimizer, module):
        for step, positions in zip(range(steps), _cycled(len(data), fresh, generator)):
            inputs, targets = strategy.mix(*gather(data, positions))
            inputs, targets = inputs_for(module, inputs), to_device(targets, device)
            outputs = forward(module, inputs)
            value = objective(outputs, targets) + strategy.extra_loss(module, inputs, outputs)
            if not value.isfinite():
                raise FloatingPointError(
                    f"the loss is {value.item()} at step {step} of task {number}: lower the learning rate or the "
                    "strategy's strength"
                )
            optimizer.zero_grad()
            value.backward()
            if recipe.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
            optimizer.step()


def _cycled(examples: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Positions of batches without end; each pass over the examples has an order of its own."""
    left = torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < batch:
            left = torch.cat([left, torch.randperm(examples, generator=generator)])
        yield left[:batch]
        left = left[batch:]


def _scores(module: nn.Module, measured: Callable[[nn.Module, int], float], tasks: int) -> list[float]:
    module.eval()
    with torch.no_grad():
        return [float(measured(module, task)) for task in range(tasks)]


def _accuracy_on(tests: Sequence[Any]) -> Callable[[nn.Module, int], float]:
    def measured(module: nn.Module, task: int) -> float:
        outputs, targets = outputs_of(module, tests[task])
        if targets.is_floating_point():
            return -float((outputs - targets.reshape(outputs.shape)).square().mean())
        if targets.ndim != 1:
            raise ValueError("tests are scored by class labels or real targets; for tokens give evaluate(model, task)")
        return float((outputs.argmax(1) == targets).double().mean())

    return measured


def _mark(module: nn.Module, strategy: ContinualStrategy, options: list[Any]) -> dict[str, Any]:
    """What tells one stream from another: where it starts, its strategy with its settings, and the options."""
    start = hashlib.sha256()
    for name, value in module.state_dict().items():
        start.update(name.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return {"strategy": _settings(strategy), "options": options, "start": start.hexdigest()}


def _settings(strategy: ContinualStrategy) -> list[Any]:
    own = vars(strategy)
    plain = {k: v for k, v in own.items() if isinstance(v, int | float | str | bool | None)}
    parts = [each for each in own.values() if isinstance(each, ContinualStrategy)]
    inner = [_settings(each) for each in (*parts, *getattr(strategy, "strategies", ()))]
    memories = [each for each in own.values() if isinstance(each, ExemplarMemory)]
    kept = [[each.capacity, each.policy, each.generator.initial_seed()] for each in memories]
    return [strategy.name, plain, kept, inner]


def _write(
    checkpoint: str | Path, module: nn.Module, kept: dict[str, Any], progress: dict[str, Any], mark: Any
) -> None:
    path = Path(checkpoint)
    part = path.with_name(path.name + ".part")
    states = {name: each.state_dict() for name, each in kept.items()}
    torch.save({"model": module.state_dict(), **states, "mark": mark, "progress": progress}, part)
    os.replace(part, path)


def _resume(checkpoint: str | Path | None, module: nn.Module, kept: dict[str, Any], mark: Any) -> dict[str, Any] | None:
    if checkpoint is None or not Path(checkpoint).exists():
        return None
    state = torch.load(checkpoint, weights_only=True)
    for name, own in mark.items():
        if state["mark"][name] != own:
            raise ValueError(
                f"checkpoint {checkpoint} is of another stream: {name} {state['mark'][name]}, not {own}; give each "
                "stream a file of its own"
            )
    module.load_state_dict(state["model"])
    for name, each in kept.items():
        if name not in state:
            raise ValueError(f"checkpoint {checkpoint} is of another stream: it lacks the state of {name}")
        each.load_state_dict(state[name])
    return state["progress"]
