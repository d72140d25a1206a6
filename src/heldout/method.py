"""Method: a published idea bound to the stages of a model's life; Splits: the data it is tried on.

A Method is a frozen record of plain functions, one for each stage that it changes. A stage that is left
out is the identity, and ``a + b`` composes stage by stage in the order written, the way gradient
transformations compose in optax. This module is the ground floor: it imports no room of the house.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from heldout.errors import check_fields, checked

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.utils.data import Dataset, Sampler

    Data = Dataset | Sequence[Any]  # a pair of tensors is a sequence, too

Task = Literal["classification", "regression"]


@dataclass(frozen=True)
class Splits:
    """The data of one problem: a training set, validation data, named test sets, and what may come with them.

    A data set is anything with ``__len__`` and ``__getitem__`` that returns ``(inputs, target)`` or a dict
    with a ``"labels"`` entry; a pair of tensors ``(inputs, targets)`` is wrapped for you.

    Args:
        train: the training set.
        val: what methods are selected on: one data set, or named ones whose scores are averaged.
        test: test sets by name. The first one is the given distribution, the others are shifts of it.
        domains: int64 ``(len(train),)``, the domain of each training example.
        groups: int64 ``(len(train),)``, the subgroup of each training example.
        unlabeled: inputs from the target distribution, without labels.
        initial_state: the state dict before training, where the model was pretrained.

    Example:
        >>> x, y = torch.randn(8, 3), torch.randint(0, 2, (8,))
        >>> splits = Splits(train=(x[:6], y[:6]), test={"iid": (x[6:], y[6:])})
        >>> len(splits.train), list(splits.test)
        (6, ['iid'])
    """

    train: Dataset
    val: Dataset | Mapping[str, Dataset] | None = None
    test: Mapping[str, Dataset] = field(default_factory=dict)
    domains: Tensor | None = None
    groups: Tensor | None = None
    unlabeled: Dataset | None = None
    initial_state: Mapping[str, Tensor] | None = None

    if TYPE_CHECKING:  # what it takes is wider than what it holds

        def __init__(
            self,
            train: Data,
            val: Data | Mapping[str, Data] | None = None,
            test: Mapping[str, Data] = ...,
            domains: Tensor | None = None,
            groups: Tensor | None = None,
            unlabeled: Data | None = None,
            initial_state: Mapping[str, Tensor] | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "train", as_dataset(self.train, "train"))
        object.__setattr__(self, "val", _as_datasets(self.val, "val"))
        if not isinstance(self.test, Mapping):
            raise TypeError(f"test must map names to data sets, got {type(self.test).__name__}")
        object.__setattr__(self, "test", _as_datasets(dict(self.test), "test"))
        for name in ("domains", "groups"):
            labels = getattr(self, name)
            if labels is not None and len(labels) != len(self.train):  # type: ignore[arg-type]
                raise ValueError(
                    f"{name} needs one entry per training example ({len(self.train)}), got {len(labels)}"  # type: ignore[arg-type]
                )


@checked
def as_dataset(data: Any, name: str = "train") -> Any:
    """Returns a data set as it is, and a pair of tensors ``(inputs, targets)`` as a TensorDataset.

    Raises:
        ValueError: inputs and targets differ in length; the message calls the data ``name``.
        TypeError: the data has no ``__len__`` and ``__getitem__``.

    Example:
        >>> len(as_dataset((torch.zeros(3, 2), torch.zeros(3))))
        3
    """
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, torch.Tensor) for part in data):
        if len(data[0]) != len(data[1]):
            raise ValueError(f"{name} has {len(data[0])} inputs but {len(data[1])} targets")
        return torch.utils.data.TensorDataset(*data)
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise TypeError(f"{name} must have __len__ and __getitem__, got {type(data).__name__}")
    return data


def _as_datasets(data: Any, name: str) -> Any:
    if data is None:
        return None
    if isinstance(data, Mapping):
        return {key: as_dataset(value, f"{name}[{key!r}]") for key, value in data.items()}
    return as_dataset(data, name)


@checked
def forward(module: Callable[..., Any], inputs: Any) -> Tensor:
    """Returns the model's output tensor for tensor, tuple or dict inputs, taking ``.logits`` of a dataclass output.

    Args:
        module: called with the tensor, with the parts of a tuple or list, or with a mapping as keyword arguments.
        inputs: of a batch.

    Raises:
        TypeError: the output is no tensor and has no tensor of logits.

    Example:
        >>> forward(lambda x: {"logits": 2 * x}, torch.ones(1))
        tensor([2.])
    """
    if isinstance(inputs, Mapping):
        output = module(**inputs)
    elif isinstance(inputs, tuple | list):
        output = module(*inputs)
    else:
        output = module(inputs)
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    logits = getattr(output, "logits", None)
    if isinstance(logits, torch.Tensor):
        return logits
    raise TypeError(f"the model must return a tensor or an output with .logits, got {type(output).__name__}")


@checked
def device_of(module: torch.nn.Module) -> torch.device:
    """Returns the device of a module's parameters, the CPU where it has none.

    Example:
        >>> device_of(torch.nn.Linear(1, 1))
        device(type='cpu')
    """
    return next((p.device for p in module.parameters()), torch.device("cpu"))


@checked
def why_no_class_labels(targets: torch.Tensor) -> str | None:
    """Returns why a method that needs class labels cannot use these targets, or None.

    Example:
        >>> why_no_class_labels(torch.tensor([0.5, 1.5])), why_no_class_labels(torch.tensor([0, 1]))
        ('it needs class labels, the targets are real numbers', None)
    """
    return "it needs class labels, the targets are real numbers" if targets.is_floating_point() else None


@checked
@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a module and its parts into eval mode inside the block, and each part's own mode back afterwards.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())
        >>> with evaluating(model):
        ...     [part.training for part in model]
        [False, False]
        >>> [part.training for part in model]
        [True, False]
    """
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


class Batch:
    """One training batch as a loss stage sees it; ``logits`` are computed on first use.

    Attributes:
        inputs: a tensor ``(batch, ...)``, a tuple of them, or a dict of keyword arguments for the model.
        targets: ``(batch,)`` class indices, or ``(batch, ...)`` values for regression.
        index: int64 ``(batch,)``, positions in the original training set (stable under resampling).

    Example:
        >>> batch = Batch(torch.nn.Linear(2, 3), torch.randn(4, 2), torch.tensor([0, 1, 2, 0]), torch.arange(4))
        >>> batch.logits.shape, batch.logits is batch.logits
        (torch.Size([4, 3]), True)
        >>> batch.with_inputs(2 * batch.inputs).logits is batch.logits
        False
    """

    def __init__(self, module: nn.Module, inputs: Any, targets: Tensor, index: Tensor) -> None:
        self.module, self.inputs, self.targets, self.index = module, inputs, targets, index
        self.cached_logits: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """The model's output ``(batch, classes)`` for these inputs, with its graph."""
        if self.cached_logits is None:
            self.cached_logits = forward(self.module, self.inputs)
        return self.cached_logits

    def with_inputs(self, inputs: Any) -> Batch:
        """Returns this batch with other inputs (a mixed or shifted copy) and its own forward pass."""
        return Batch(self.module, inputs, self.targets, self.index)


@dataclass
class Run:
    """What a stage may need to know about the training run that it is part of.

    Attributes:
        module: the model being trained, on ``device``.
        splits: the data that ``fit`` was given.
        train_set: the training set after the data stages.
        objective: the user's loss, ``(outputs, targets) -> scalar``.
        initial_state: CPU copy of the parameters and buffers before training (or the pretrained state).
        train_plain: ``(data_set, epochs) -> (module, training error per epoch)``: the user's own recipe,
            without any method, on a copy of the model; to be called in the data or model stage, for later the model
            has learnt.
        num_classes: number of classes, None for regression.
        epoch: the epoch under way, counted from 1; 0 before training.
        step: optimizer steps finished.
        evaluation: 0 at the first evaluation of the objective in a step, 1 at SAM's second one, and so on.
        generator: the run's own randomness (CPU).
        state: what a Method keeps between its stages or steps, under its own name.

    Example:
        >>> import heldout
        >>> def watch(run: Run, module: torch.nn.Module) -> torch.nn.Module:
        ...     print(run.task, run.num_classes, run.epochs, run.epoch)
        ...     return module
        >>> data = (torch.randn(8, 2), torch.arange(8) % 2)
        >>> _ = heldout.fit(torch.nn.Linear(2, 2), data, Method("watch", model=watch, weights=watch), epochs=3)
        classification 2 3 0
        classification 2 3 3
    """

    module: nn.Module
    splits: Splits
    train_set: Any
    objective: Callable[[Tensor, Tensor], Tensor]
    initial_state: Mapping[str, Tensor]
    task: Task
    num_classes: int | None
    epochs: int
    batch_size: int
    seed: int
    device: torch.device
    generator: torch.Generator
    epoch: int = 0
    step: int = 0
    evaluation: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    train_plain: Callable[[Any, int], tuple[nn.Module, list[float]]] = field(init=False, repr=False)


@dataclass(frozen=True)
class Added:
    """A loss stage whose value is added to the objective instead of replacing it.

    Args:
        penalty: ``(run, batch) -> scalar``.

    Example:
        >>> small = Method("small", loss=Added(lambda run, batch: 0.01 * batch.logits.square().mean()))
        >>> sure = Method("sure", loss=Added(lambda run, batch: -batch.logits.softmax(1).amax(1).mean()))
        >>> (small + sure).name  # two that replace the loss cannot be combined
        'small+sure'
    """

    penalty: Callable[[Run, Batch], Tensor]

    def __call__(self, run: Run, batch: Batch) -> Tensor:
        return self.penalty(run, batch)


_STAGES = ("data", "model", "optimizer", "loss", "weights", "predict")
_CHAINED = ("data", "model", "optimizer", "weights")


@dataclass(frozen=True)
class Method:
    """A change to one or more stages of how a model is made.

    Args:
        name: how tables and errors call it.
        data: ``(run, train_set) -> train_set`` or a ``Sampler`` over it, before training.
        model: ``(run, module) -> module``, surgery before training.
        optimizer: ``(run, optimizer) -> optimizer``, wrap it.
        loss: ``(run, batch) -> scalar`` replaces the objective; ``Added(fn)`` adds to it.
        weights: ``(run, module) -> module``, after training.
        predict: ``(run, module) -> callable`` from inputs to logits (or log-probabilities), at test time.
            A ``reset()`` on the callable is called before each data set that is evaluated.
        check: ``(module, splits) -> reason`` why the method cannot act on this model and data, or None.

    Example:
        >>> smooth = Method("smooth", loss=lambda run, batch: torch.nn.functional.cross_entropy(
        ...     batch.logits, batch.targets, label_smoothing=0.1))
        >>> (smooth + Method("decay", weights=lambda run, module: module)).name
        'smooth+decay'
        >>> smooth + smooth
        Traceback (most recent call last):
        ValueError: smooth and smooth cannot be combined: both replace the loss
    """

    name: str
    data: Callable[[Run, Any], Dataset | Sampler] | None = None
    model: Callable[[Run, nn.Module], nn.Module] | None = None
    optimizer: Callable[[Run, Optimizer], Optimizer] | None = None
    loss: Callable[[Run, Batch], Tensor] | None = None
    weights: Callable[[Run, nn.Module], nn.Module] | None = None
    predict: Callable[[Run, nn.Module], Callable[[Any], Tensor]] | None = None
    check: Callable[[nn.Module, Splits], str | None] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for stage in (*_STAGES, "check"):
            function = getattr(self, stage)
            if function is not None and not callable(function):
                raise TypeError(
                    f"stage {stage!r} of method {self.name!r} must be a function, got {type(function).__name__}"
                )

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages that this method changes."""
        return tuple(stage for stage in _STAGES if getattr(self, stage) is not None)

    def __add__(self, other: Method) -> Method:
        if not isinstance(other, Method):
            return NotImplemented
        chained = {stage: _chain(getattr(self, stage), getattr(other, stage)) for stage in _CHAINED}
        if self.predict is not None and other.predict is not None:
            raise ValueError(f"{self.name} and {other.name} cannot be combined: both replace the prediction")
        return Method(
            name=f"{self.name}+{other.name}",
            loss=_combine_losses(self, other),
            predict=self.predict or other.predict,
            check=_first_reason(self.check, other.check),
            **chained,
        )

    def renamed(self, name: str) -> Method:
        """Returns this method under another name."""
        return replace(self, name=name)


def _chain(first: Callable | None, second: Callable | None) -> Callable | None:
    if first is None or second is None:
        return first or second
    return lambda run, value: second(run, first(run, value))


def _combine_losses(a: Method, b: Method) -> Callable | None:
    if a.loss is None or b.loss is None:
        return a.loss or b.loss
    first, second = a.loss, b.loss
    if isinstance(first, Added) and isinstance(second, Added):
        return Added(lambda run, batch: first(run, batch) + second(run, batch))
    if isinstance(first, Added) or isinstance(second, Added):
        return lambda run, batch: first(run, batch) + second(run, batch)
    raise ValueError(f"{a.name} and {b.name} cannot be combined: both replace the loss")


def _first_reason(a: Callable | None, b: Callable | None) -> Callable | None:
    if a is None or b is None:
        return a or b
    return lambda module, splits: a(module, splits) or b(module, splits)
