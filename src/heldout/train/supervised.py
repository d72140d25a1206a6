"""Core: fit: one small supervised loop in which every stage of a Method has its place.

It is not a framework. Whoever trains with Lightning, transformers' Trainer or a loop of their own uses the
parts directly, or the adapters in ``heldout.train.LightningMethod`` and ``heldout.train.MethodTrainer``.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torch.utils.data import Dataset, Sampler

from heldout.data import all_targets, batches, gather, predict_all, sample_ids, to_device
from heldout.errors import (
    check_between,
    check_class_labels,
    check_error_is_meant,
    check_no_frame,
    check_nonempty,
    check_same_length,
    check_scored,
    check_tensors,
    checked,
)
from heldout.method import Added, Batch, Method, Run, Splits, Task, as_dataset, device_of, evaluating, forward
from heldout.nn import inputs_for

OptimizerFactory = Callable[..., Optimizer]
Schedule = Literal["cosine", "constant"] | Callable[[Optimizer, int], LRScheduler]
Objective = Callable[[Tensor, Tensor], Tensor]

BASELINE = Method("baseline")


@dataclass
class Fitted:
    """A trained model with everything that a Method put around it.

    Attributes:
        module: the trained model, in eval mode.
        predictor: what answers at test time: the module, or the callable of the Method's predict stage.
        history: one dict for each epoch: ``epoch``, ``loss``, ``train_error`` (classification), ``seconds``.
        seconds: wall time of training, all stages included.
        run: the record that the stages saw.

    Example:
        >>> fit(nn.Linear(2, 2), (torch.randn(8, 2), torch.arange(8) % 2), epochs=3).history[-1]["epoch"]
        3.0
    """

    module: nn.Module
    predictor: Callable[[Any], Tensor]
    run: Run
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    @checked
    def predict(self, inputs: Any) -> Tensor:
        """Returns logits (or log-probabilities) ``(batch, classes)``, or values for regression."""
        check_tensors(inputs=inputs)
        inputs = inputs_for(self.module, inputs)
        if isinstance(self.predictor, nn.Module):
            with torch.no_grad():
                return forward(self.predictor, inputs)
        return self.predictor(inputs).detach()

    @checked
    def evaluate(self, dataset: Any, *, batch_size: int = 128) -> dict[str, float]:
        """Returns ``{"accuracy", "loss"}`` on a data set, or ``{"mse", "loss"}`` for regression.

        A predictor with a ``reset()`` starts afresh, so that test sets do not leak into each other. ``loss`` is
        the cross-entropy, or the mean squared error.

        Raises:
            ValueError: the targets cannot be scored so: soft labels, or labels outside of the classes.
        """
        check_nonempty(dataset=dataset)
        check_error_is_meant(self.run.task, self.run.objective)
        outputs, targets = self.outputs(dataset, batch_size=batch_size)
        return score(outputs, targets, self.run.task)

    @checked
    def outputs(self, dataset: Any, *, batch_size: int = 128) -> tuple[Tensor, Tensor]:
        """Returns ``(outputs, targets)`` on the CPU for every example of a data set, in order."""
        check_nonempty(dataset=dataset)
        reset = getattr(self.predictor, "reset", None)
        if callable(reset):
            reset()
        dataset = as_dataset(dataset)
        return predict_all(self.predict, dataset, batch_size)


@checked
def outputs_of(module: nn.Module, dataset: Any) -> tuple[Tensor, Tensor]:
    """Returns ``(outputs, targets)`` on the CPU of a plain module in eval mode, for every example in order."""
    with evaluating(module), torch.no_grad():
        return predict_all(lambda inputs: forward(module, inputs_for(module, inputs)), as_dataset(dataset))


@checked
def score(outputs: Tensor, targets: Tensor, task: Task) -> dict[str, float]:
    """Returns ``{"accuracy", "loss"}`` or, for regression, ``{"mse", "loss"}`` of outputs against targets.

    Example:
        >>> score(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]), "classification")["accuracy"]
        0.5
    """
    check_same_length(outputs=outputs, targets=targets)
    check_scored(task, outputs=outputs, targets=targets)
    if task == "regression":
        error = squared_error(outputs.float(), targets.float()).item()
        return {"mse": error, "loss": error}
    loss = F.cross_entropy(outputs.float(), targets).item()
    return {"accuracy": (outputs.argmax(1) == targets).double().mean().item(), "loss": loss}


@checked
def fit(
    model: nn.Module | Callable[[], nn.Module],
    data: Splits | Any,
    method: Method | None = None,
    *,
    epochs: int = 10,
    batch_size: int = 64,
    optimizer: OptimizerFactory | None = None,
    schedule: Schedule = "cosine",
    loss: Objective | None = None,
    augment: Callable[[Any, torch.Generator], Any] | None = None,
    max_grad_norm: float | None = None,
    autocast: torch.dtype | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    num_workers: int = 0,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> Fitted:
    """Trains a copy of a model under a Method and returns it with what the Method put around it.

    Classification (integer targets) and regression (floating-point targets) are told apart by the data. The
    same seed on the same machine and number of threads gives the same weights. A last batch of a single
    example is left out of its epoch, since batch statistics are undefined on it.

    Args:
        model: the module to copy, or a function that builds one (called under ``seed``).
        data: Splits, or a training set alone.
        method: what to change; None is the plain recipe.
        epochs: passes over the training set.
        batch_size: examples per step.
        optimizer: a torch Optimizer class or a ``functools.partial`` of one (it gets ``module.parameters()``), or
            any function of the module, for several parameter groups. Default: AdamW with learning rate 1e-3.
        schedule: "cosine" to zero, "constant", or ``(optimizer, total_steps) -> scheduler``, stepped every step.
        loss: ``(outputs, targets) -> scalar``; default cross-entropy or mean squared error.
        augment: ``(inputs, generator) -> inputs`` on training batches.
        max_grad_norm: clip the global gradient norm to this before each step.
        autocast: run the forward passes in this data type, for example ``torch.bfloat16``.
        seed: of initialisation, data order, dropout and augmentation.
        device: where to train; default: where the model is.
        num_workers: processes that load data, where it is not tensors already.
        on_epoch: called with each new entry of the history.

    Raises:
        ValueError: the method cannot act on this model or data, or model and targets do not fit.
        FloatingPointError: the loss is no longer finite.

    Example:
        >>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
        >>> data = (x, (x[:, 0] > 0).long())
        >>> sgd = functools.partial(torch.optim.SGD, lr=0.5)
        >>> fitted = fit(lambda: nn.Linear(2, 2), data, optimizer=sgd, epochs=30, seed=0)
        >>> fitted.evaluate(data)["accuracy"] > 0.9
        True
    """
    check_between(0, 2**63 - 1, seed=seed)
    method = method or BASELINE
    recipe = Recipe(epochs, batch_size, optimizer, schedule, loss, augment, max_grad_norm, autocast, num_workers)
    started = time.perf_counter()
    with seeded(seed):
        run, train_set = prepare(model, data, method, recipe, seed, device)
        history = _train(run, train_set, method, recipe, on_epoch=on_epoch)
        fitted = finish(run, method)
    fitted.history, fitted.seconds = history, time.perf_counter() - started
    return fitted


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, whichever Method is put on it: the options of ``fit``."""

    epochs: int = 10
    batch_size: int = 64
    optimizer: OptimizerFactory | None = None
    schedule: Schedule = "cosine"
    loss: Objective | None = None
    augment: Callable[[Any, torch.Generator], Any] | None = None
    max_grad_norm: float | None = None
    autocast: torch.dtype | None = None
    num_workers: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs and batch_size must be at least 1, got {self.epochs} and {self.batch_size}")


@checked
def prepare(
    model: nn.Module | Callable[[], nn.Module],
    data: Splits | Any,
    method: Method,
    recipe: Recipe,
    seed: int,
    device: torch.device | str | None = None,
) -> tuple[Run, Any]:
    """Returns the run and its training set (or sampler) after a Method's data and model stages.

    The adapters to other engines start here, too; call it inside ``seeded(seed)``.
    """
    splits = data if isinstance(data, Splits) else Splits(train=data)
    module = copy.deepcopy(model) if isinstance(model, nn.Module) else model()
    module = module.to(device_of(module) if device is None else device)
    task, num_classes = problem_of(module, splits.train)
    reason = method.check(module, splits) if method.check else None
    if reason:
        raise ValueError(f"{method.name} cannot act here: {reason}")
    run = Run(
        module=module,
        splits=splits,
        train_set=splits.train,
        objective=recipe.loss or (squared_error if task == "regression" else F.cross_entropy),
        initial_state=splits.initial_state or _cpu_state(module),
        task=task,
        num_classes=num_classes,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        seed=seed,
        device=device_of(module),
        generator=torch.Generator().manual_seed(seed),
    )
    run.train_plain = functools.partial(_train_plain, run, copy.deepcopy(module) if method.data else module, recipe)
    train_set = method.data(run, splits.train) if method.data else splits.train
    if method.model:
        run.module = method.model(run, module).to(run.device)
    return run, train_set


@checked
def finish(run: Run, method: Method) -> Fitted:
    """Returns the trained model after a Method's weights and predict stages."""
    if method.weights:
        run.module = method.weights(run, run.module)
    run.module.eval()
    return Fitted(run.module, method.predict(run, run.module) if method.predict else run.module, run)


def _train_plain(
    run: Run, untrained: nn.Module, recipe: Recipe, dataset: Any, epochs: int
) -> tuple[nn.Module, list[float]]:
    """The user's recipe without a method on a copy of the untrained module, stopped after some of its epochs."""
    plain = copy.copy(run)
    plain.module, plain.state = copy.deepcopy(untrained), {}
    with seeded(run.seed):
        history = _train(plain, dataset, BASELINE, recipe, stop_after=epochs)
    return plain.module, [entry.get("train_error", entry["loss"]) for entry in history]


def _train(
    run: Run,
    train_set: Any,
    method: Method,
    recipe: Recipe,
    *,
    stop_after: int | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    sampler = train_set if isinstance(train_set, Sampler) else None
    run.train_set = run.splits.train if sampler is not None else train_set
    if len(run.train_set) == 0:
        raise ValueError("the training set is empty")
    torch.manual_seed(run.seed)  # whatever building the model has drawn
    ids = sample_ids(run.train_set, run.splits.train)
    order_generator = torch.Generator().manual_seed(run.seed)
    augment_generator = torch.Generator().manual_seed(run.seed + 1)
    epoch_length = len(sampler) if sampler is not None else len(run.train_set)  # type: ignore[arg-type]
    steps_per_epoch = _num_batches(epoch_length, recipe.batch_size)

    optimizer = make_optimizer(recipe.optimizer, run.module)
    if method.optimizer:
        optimizer = method.optimizer(run, optimizer)
    scheduler = make_schedule(recipe.schedule, optimizer, steps_per_epoch * recipe.epochs)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    precision = torch.autocast(run.device.type, recipe.autocast) if recipe.autocast else nullcontext()

    history: list[dict[str, float]] = []
    for run.epoch in range(1, (stop_after or recipe.epochs) + 1):
        started = time.perf_counter()
        run.module.train()
        if sampler is not None:
            order = torch.as_tensor(list(sampler), dtype=torch.int64)
        else:
            order = torch.randperm(epoch_length, generator=order_generator)
        order = order[: steps_per_epoch * recipe.batch_size]
        if len(order) > 1 and len(order) % recipe.batch_size == 1:
            order = order[:-1]
        total = torch.zeros((), device=run.device)
        wrong, seen = torch.zeros((), device=run.device), 0
        for inputs, targets, positions in batches(
            run.train_set, recipe.batch_size, order, num_workers=recipe.num_workers
        ):
            inputs = recipe.augment(inputs, augment_generator) if recipe.augment else inputs
            inputs = inputs_for(run.module, inputs)
            targets = to_device(targets, run.device)
            index = ids[positions]
            evaluated: list[tuple[Batch, Tensor]] = []
            run.evaluation = -1

            def closure(
                inputs: Any = inputs,
                targets: Tensor = targets,
                index: Tensor = index,
                evaluated: list[tuple[Batch, Tensor]] = evaluated,
            ) -> Tensor:
                run.evaluation += 1
                batch = Batch(run.module, inputs, targets, index)
                optimizer.zero_grad()
                with torch.enable_grad(), precision:
                    loss = objective(run, batch, method)
                loss.backward()
                if recipe.max_grad_norm is not None:
                    nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
                if not evaluated:
                    evaluated.append((batch, loss.detach()))
                return loss

            optimizer.step(closure)  # type: ignore[arg-type]  # torch types the closure as () -> float
            if scheduler is not None:
                scheduler.step()
            run.step += 1
            batch, loss = evaluated[0]
            total += loss * len(targets)
            if run.task == "classification" and batch.cached_logits is not None:
                wrong += (batch.cached_logits.detach().argmax(1) != targets).sum()
                seen += len(targets)
        mean_loss = total.item() / len(order)
        if not math.isfinite(mean_loss):
            raise FloatingPointError(
                f"the training loss is {mean_loss} in epoch {run.epoch}: look for NaN inputs or lower the learning rate"
            )
        entry = {"epoch": float(run.epoch), "loss": mean_loss, "seconds": time.perf_counter() - started}
        if seen:
            entry["train_error"] = wrong.item() / seen
        history.append(entry)
        if on_epoch:
            on_epoch(entry)
    return history


@checked
def objective(run: Run, batch: Batch, method: Method) -> Tensor:
    """Returns the training objective of a batch: the user's loss, replaced or extended by the method's loss stage."""
    if method.loss is None:
        return run.objective(batch.logits, batch.targets)
    if isinstance(method.loss, Added):
        return run.objective(batch.logits, batch.targets) + method.loss(run, batch)
    return method.loss(run, batch)


def _num_batches(examples: int, batch_size: int) -> int:
    full, rest = divmod(examples, batch_size)
    return full + (rest > 1 or (rest == 1 and full == 0))


@checked
def make_optimizer(factory: OptimizerFactory | None, module: nn.Module) -> Optimizer:
    """Returns the optimizer that a factory gives for a module; None is AdamW with learning rate 1e-3."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("the model has no parameter that requires a gradient")
    if factory is None:
        return torch.optim.AdamW(trainable, lr=1e-3)
    target = factory.func if isinstance(factory, functools.partial) else factory
    takes_parameters = isinstance(target, type) and issubclass(target, Optimizer)
    optimizer = factory(trainable if takes_parameters else module)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must give a torch Optimizer, got {type(optimizer).__name__}")
    return optimizer


@checked
def scaled_optimizer(factory: OptimizerFactory | None, factor: float) -> OptimizerFactory:
    """Returns the factory of the same optimizer with every learning rate multiplied by ``factor``.

    Raises:
        ValueError: ``factor`` is not a positive number.

    Example:
        >>> faster = scaled_optimizer(functools.partial(torch.optim.SGD, lr=0.1), 3)
        >>> round(faster(nn.Linear(2, 2)).param_groups[0]["lr"], 3)
        0.3
    """
    if not 0 < factor < float("inf"):
        raise ValueError(f"factor must be a positive number, got {factor!r}")

    def make(module: nn.Module) -> Optimizer:
        optimizer = make_optimizer(factory, module)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor
        return optimizer

    return make


@checked
def make_schedule(schedule: Schedule, optimizer: Optimizer, total_steps: int) -> LRScheduler | None:
    """Returns the scheduler of a named or user-given schedule, None for "constant"."""
    if schedule == "constant":
        return None
    if schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=max(total_steps, 1))
    if callable(schedule):
        return schedule(optimizer, total_steps)
    raise ValueError(f'schedule must be "cosine", "constant" or a function, got {schedule!r}')


@checked
def problem_of(module: nn.Module, dataset: Dataset) -> tuple[Task, int | None]:
    """Returns the task and the number of classes, and checks that model and targets fit each other.

    Raises:
        ValueError: an empty set, NaN inputs or targets, outputs that do not fit the targets, labels outside the
            classes, fewer than two classes.

    Example:
        >>> problem_of(nn.Linear(2, 3), as_dataset((torch.randn(4, 2), torch.tensor([0, 1, 2, 0]))))
        ('classification', 3)
    """
    check_tensors(train=dataset if isinstance(dataset, tuple) else ())
    check_no_frame(train=dataset)
    if len(dataset) == 0:  # type: ignore[arg-type]
        raise ValueError("the training set is empty")
    inputs, _ = gather(dataset, torch.arange(min(2, len(dataset))))  # type: ignore[arg-type]
    with evaluating(module), torch.no_grad():
        outputs = forward(module, inputs_for(module, inputs))
    targets = all_targets(dataset)
    if targets.is_floating_point():
        if not targets.isfinite().all():
            position = int((~targets.isfinite()).reshape(len(targets), -1).any(1).nonzero()[0])
            raise ValueError(f"the target of training example {position} is not finite")
        if outputs[0].numel() != targets[0].numel():
            raise ValueError(
                f"the model gives {outputs[0].numel()} values for an example, the targets have {targets[0].numel()}"
            )
        return "regression", None
    if outputs.ndim < 2 or outputs.shape[1] < 2:
        raise ValueError(
            f"classification needs outputs (batch, classes) with at least 2 classes, got {tuple(outputs.shape)}"
        )
    classes = outputs.shape[1]
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1} for a model with {classes} outputs, got {low}..{high}")
    check_class_labels(targets=targets)
    return "classification", classes


@checked
def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean squared error; ``(batch,)`` targets match ``(batch, 1)`` outputs, nothing else broadcasts.

    Example:
        >>> squared_error(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0])).item()
        2.0
    """
    if outputs.numel() != targets.numel():
        raise ValueError(f"outputs {tuple(outputs.shape)} do not match targets {tuple(targets.shape)}")
    return F.mse_loss(outputs, targets.reshape(outputs.shape).to(outputs.dtype))


@contextmanager
@checked
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's global generators inside the block and puts their state back afterwards."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _cpu_state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}
