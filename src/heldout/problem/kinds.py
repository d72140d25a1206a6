"""Core: Kinds of problems: what a model's outputs and the targets mean, how they are trained on and measured.

``fit`` knows class indices and real numbers. Every other kind is put into one of these forms without a change of
what is minimised, so that each Method acts where its own check allows:

* *binary*, one logit z: the logits (0, z) of two classes; their cross-entropy is the binary cross-entropy of z;
* *multi-label*: zeros and ones as real numbers, under the binary cross-entropy;
* *tokens*, outputs ``(batch, sequence, classes)``: labels as one-hot rows (rows of zeros where a token does not count),
  under the cross-entropy of the tokens that count.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from heldout.data import TARGET_KEYS, split_target
from heldout.errors import (
    check_dimensions,
    check_fields,
    check_labels,
    check_nonempty,
    check_nonnegative,
    check_one_of,
    check_same_length,
    checked,
)
from heldout.method import forward
from heldout.problem.metrics import CLASSES, LABELS, TOKENS, VALUES, Metric
from heldout.train import squared_error

KindName = Literal["classification", "binary", "multi-label", "regression", "tokens"]
KINDS: tuple[KindName, ...] = ("classification", "binary", "multi-label", "regression", "tokens")
IGNORED = -100
REAL_LOSSES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, F.mse_loss, F.l1_loss, F.smooth_l1_loss)

PLAIN_LOSSES: dict[str, tuple[type[nn.Module], Callable[..., Tensor], dict[str, Any]]] = {
    "classification": (
        nn.CrossEntropyLoss,
        F.cross_entropy,
        {"weight": None, "ignore_index": IGNORED, "label_smoothing": 0.0},  # no label of a class is negative
    ),
    "binary": (nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits, {"weight": None, "pos_weight": None}),
    "regression": (nn.MSELoss, F.mse_loss, {}),
}
"""What ``fit`` minimises, as a module, as a function, and with which options of the module."""


@dataclass(frozen=True)
class Kind:
    """What outputs and targets of a problem mean.

    Attributes:
        name: one of ``KINDS``.
        outputs: the shape of the model's own outputs for one example.
        classes: how many classes, or labels of a multi-label problem; None for regression.
        dtype: of the targets as they were given.
        target: the shape of one target as it was given.
        metrics: the built-in metrics, by name; the first one is the default.

    Example:
        >>> kind = kind_of(torch.zeros(4), torch.tensor([0, 1, 1, 0]))
        >>> kind.name, next(iter(kind.metrics))
        ('binary', 'accuracy')
    """

    name: KindName
    outputs: tuple[int, ...]
    classes: int | None
    dtype: torch.dtype
    target: tuple[int, ...] = ()
    metrics: Mapping[str, Metric] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        tables = {"multi-label": LABELS, "tokens": TOKENS, "regression": VALUES}
        object.__setattr__(self, "metrics", tables.get(self.name, CLASSES))
        check_fields(self)

    @property
    def one_logit(self) -> bool:
        """Whether one output tells two classes apart."""
        return self.name == "binary" and self.outputs in ((), (1,))

    @checked
    def encode(self, targets: Tensor) -> Tensor:
        """Returns a batch of targets as ``fit`` takes them: int64 ``(batch,)``, or real numbers of the outputs' shape.

        The other side of it is ``decode``.
        """
        if self.name in ("classification", "binary"):
            check_nonnegative(targets=targets)
            if bool((targets != targets.long()).any()):
                raise ValueError("targets must be whole numbers: they are labels")
        if self.name == "multi-label":
            return targets.float()
        if self.name == "tokens":
            return (targets.long().unsqueeze(-1) == torch.arange(self.outputs[-1], device=targets.device)).float()
        if self.name == "regression":
            return targets if targets.is_floating_point() else targets.float()
        if targets.ndim == 2 and targets.shape[1] > 1:
            return targets.argmax(1)  # one-hot rows
        return targets.reshape(len(targets)).long()

    @checked
    def decode(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns outputs and encoded targets in the form that the file's own loss and metric know them in."""
        self._check_pair(outputs, targets)
        if self.one_logit:
            outputs = (outputs[:, 1] - outputs[:, 0]).reshape(-1, *self.outputs)
        if self.name == "tokens":
            targets = torch.where(targets.sum(-1) > 0, targets.argmax(-1), IGNORED)
            return outputs, targets.to(self.dtype)
        if self.name == "classification" and self.target and self.target[0] > 1:
            targets = F.one_hot(targets, self.classes or -1)
        return outputs, targets.reshape(len(targets), *self.target).to(self.dtype)

    @property
    def as_given(self) -> bool:
        """Whether targets are in ``fit``'s form already."""
        if self.name == "regression":
            return self.dtype.is_floating_point
        return self.name in ("classification", "binary") and self.dtype == torch.int64 and not self.target

    def data(self, dataset: Any) -> Any:
        """Returns a data set with encoded targets; the same one where nothing changes."""
        return dataset if self.as_given else _encoded(dataset, self.encode)

    @checked
    def module(self, module: nn.Module) -> nn.Module:
        """Returns the module, which answers with two logits from now on where it had one; weights keep their names."""
        if self.one_logit:
            module.register_forward_hook(_two_logits)
        return module

    @checked
    def objective(self, own: Callable[[Tensor, Tensor], Tensor] | None) -> Callable[[Tensor, Tensor], Tensor] | None:
        """Returns the loss for encoded targets, from the file's own if there is one; None is ``fit``'s own.

        Raises:
            ValueError: the file's own takes probabilities, where the model has to give logits.
        """
        if own is F.binary_cross_entropy or isinstance(own, nn.BCELoss):
            raise ValueError(
                "the model must give logits: leave out its sigmoid, and give no loss, or BCEWithLogitsLoss"
            )
        if own is None or self.is_plain(own):
            return {"multi-label": _binary_cross_entropy, "tokens": token_cross_entropy}.get(self.name)
        if self.as_given and not self.one_logit:
            return own
        return functools.partial(_own_loss, self, own)

    @checked
    def is_plain(self, own: Callable[..., Any]) -> bool:
        """Returns whether a file's loss is the one that ``fit`` takes for this kind anyway.

        Told by what it is, not by what it gives: ``nn.CrossEntropyLoss()`` or ``F.cross_entropy`` for classes,
        ``nn.BCEWithLogitsLoss()`` or ``F.binary_cross_entropy_with_logits`` for one logit and for labels,
        ``nn.MSELoss()`` or ``F.mse_loss`` for real numbers of the outputs' shape (of another shape they compare each
        output with each target). Options that change the value, subclasses, partials and functions around them are the
        file's own: no batch can show that they do the same on every other one.

        Example:
            >>> kind = kind_of(torch.zeros(2, 3), torch.tensor([0, 2]))
            >>> kind.is_plain(nn.CrossEntropyLoss()), kind.is_plain(nn.CrossEntropyLoss(label_smoothing=0.1))
            (True, False)
        """
        if self.one_logit or self.name == "multi-label":
            plain = PLAIN_LOSSES["binary"]
        elif self.name in ("classification", "binary"):
            plain = PLAIN_LOSSES["classification"]
        elif self.name == "regression" and self.outputs == self.target:
            plain = PLAIN_LOSSES["regression"]
        else:
            return False
        module, function, options = plain
        if own is function:
            return True
        if type(own) is not module or "forward" in vars(own) or own._forward_hooks or own._forward_pre_hooks:
            return False
        return own.reduction == "mean" and all(getattr(own, name) == value for name, value in options.items())

    @checked
    def loss(self, outputs: Tensor, targets: Tensor) -> float:
        """Returns the kind's own loss of outputs against encoded targets."""
        self._check_pair(outputs, targets)
        outputs = outputs.float()
        chosen = self.objective(None) or (squared_error if self.name == "regression" else F.cross_entropy)
        return chosen(outputs, targets).item()

    @checked
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the kind's own loss of each example, float64 ``(n,)``, of outputs against encoded targets."""
        self._check_pair(outputs, targets)
        outputs, count = outputs.double(), len(targets)
        if self.name == "multi-label":
            each = F.binary_cross_entropy_with_logits(outputs, targets.double(), reduction="none")
            return each.reshape(count, -1).mean(1)
        if self.name == "tokens":
            return -(targets * outputs.log_softmax(-1)).sum((1, 2)) / targets.sum((1, 2)).clamp(min=1)
        if self.name == "regression":
            return (outputs.reshape(targets.shape) - targets).square().reshape(count, -1).mean(1)
        return F.cross_entropy(outputs, targets, reduction="none")

    @checked
    def check(self, targets: Tensor, name: str) -> None:
        """Checks that targets ``(n, ...)`` of another data set, called ``name`` in errors, are of this kind.

        Raises:
            ValueError: they are not.
        """
        check_nonempty(targets=targets)
        outputs, target = self.outputs, tuple(targets.shape[1:])
        if self.name == "tokens" and len(target) == 1:  # sequences of another length have as many labels
            outputs = (*target, self.outputs[-1])
            target = self.target
        if target != self.target or targets.is_floating_point() != self.dtype.is_floating_point:
            raise ValueError(f"targets of {name} must be of the shape and the type of those of train")
        example = torch.empty(1, *outputs, device="meta")
        try:
            kind_of(example, targets, self.name)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    @checked
    def defined(self, metric: str, targets: Tensor) -> bool:
        """Whether a built-in metric is defined on targets ``(n, ...)`` as given: a ranking needs both sides."""
        if metric not in ("auroc", "average_precision"):
            return True
        return self.score(metric, torch.zeros(len(targets), self.classes or 1), self.encode(targets)) >= 0

    @checked
    def score(self, metric: str, outputs: Tensor, targets: Tensor) -> float:
        """Returns a built-in metric, or "loss", of outputs against encoded targets."""
        if metric == "loss":
            return self.loss(outputs, targets)
        check_one_of(self.metrics, metric=metric)
        self._check_pair(outputs, targets)
        outputs = outputs.float()
        if self.name == "tokens":
            counted = targets.sum(-1) > 0
            outputs, targets = outputs[counted], targets[counted].argmax(-1)
        return self.metrics[metric].function(outputs, targets)

    def _check_pair(self, outputs: Tensor, targets: Tensor) -> None:
        """Refuses encoded targets that are not of this kind, or not as many as there are outputs."""
        check_nonempty(outputs=outputs, targets=targets)
        check_same_length(outputs=outputs, targets=targets)
        if self.name in ("classification", "binary"):
            check_dimensions(1, targets=targets)
            check_labels(self.classes, targets=targets)
        if self.name == "classification":
            check_dimensions(2, outputs=outputs)


@checked
def kind_of(
    outputs: Tensor, targets: Tensor, asked: str | None = None, *, loss: Any = None, metric: Any = None
) -> Kind:
    """Returns the kind of a problem, told by the model's outputs for a few examples and all targets.

    Args:
        outputs: ``(few, ...)``.
        targets: ``(n, ...)``.
        asked: the kind that the file names; None lets outputs and targets tell.
        loss: the file's own loss: a squared or absolute error says that zeros and ones are real numbers.
        metric: the file's own metric; "mse", "rmse", "mae" or "r2" say so, too.

    Raises:
        ValueError: outputs and targets fit no kind, or not the one that was asked for.

    Example:
        >>> kind_of(torch.zeros(2, 3), torch.tensor([[0, 1, 1], [1, 0, 1]])).name
        'multi-label'
        >>> kind_of(torch.zeros(2, 5, 3), torch.zeros(2, 5, dtype=torch.int64)).name
        'tokens'
        >>> kind_of(torch.zeros(2, 1), torch.tensor([0.3, 1.0])).name
        'regression'
    """
    check_nonempty(targets=targets)
    if asked is not None and asked not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {asked!r}")
    shape, target = tuple(outputs.shape[1:]), tuple(targets.shape[1:])
    name = asked or _told(shape, targets, _real(loss, metric))
    two_valued = bool(((targets == 0) | (targets == 1)).all())
    found, given = _shape(shape), _shape(target)
    if name == "tokens":
        if len(shape) != 2 or target != shape[:1] or targets.is_floating_point():
            raise ValueError(
                f"tokens need outputs (batch, sequence, classes) and integer labels (batch, sequence), got {found} and "
                f"{given}" + " real numbers" * targets.is_floating_point()
            )
        counted = targets[targets != IGNORED]
        if not len(counted) or int(counted.min()) < 0 or int(counted.max()) >= shape[1]:
            raise ValueError(
                f"labels of tokens must lie in 0..{shape[1] - 1} for a model with {shape[1]} classes, or be {IGNORED} "
                f"where a token does not count, got "
                + (f"{int(counted.min())}..{int(counted.max())}" if len(counted) else "none that counts")
            )
        return Kind("tokens", shape, shape[1], targets.dtype, target)
    if name == "multi-label":
        if len(shape) != 1 or target != shape or not two_valued:
            raise ValueError(
                f"multi-label problems need outputs (batch, labels) and targets (batch, labels) of zeros and ones, got "
                f"{found} and {given}" + (", with other values" if not two_valued else "")
            )
        return Kind("multi-label", shape, shape[0], targets.dtype, target)
    if name == "binary":
        if shape not in ((), (1,), (2,)) or target not in ((), (1,)) or not two_valued:
            raise ValueError(
                "binary problems need one logit (batch,) or (batch, 1), or two (batch, 2), and targets (batch,) of "
                f"zeros and ones, got {found} and {given}"
                + (f" from {targets.min().item():g} to {targets.max().item():g}" if not two_valued else "")
            )
        return Kind("binary", shape, 2, targets.dtype, target)
    if name == "regression":
        whole = targets.is_floating_point() and bool((targets == targets.round()).all())
        if asked is None and loss is None and whole and len(shape) == 1 and shape[0] > 1 and target in ((), (1,)):
            raise ValueError(
                f"the model gives {shape[0]} values for an example, the target is one real number: if targets are "
                "classes, give them as integers (targets.long())"
            )
        return Kind("regression", shape, None, targets.dtype, target)
    return _classification(shape, targets)


def _told(shape: tuple[int, ...], targets: Tensor, real: bool) -> str:
    target = tuple(targets.shape[1:])
    if targets.is_floating_point():
        zeros_and_ones = bool(((targets == 0) | (targets == 1)).all())
        if real or not zeros_and_ones:
            return "regression"
        if shape in ((), (1,)) and target in ((), (1,)):
            return "binary"
        if len(shape) == 1 and target == shape:
            return "classification" if bool((targets.sum(1) == 1).all()) else "multi-label"
        return "regression"
    if len(shape) == 2 and target == shape[:1]:
        return "tokens"
    if len(shape) == 1 and shape[0] > 1 and target == shape:
        return "multi-label"
    low, high = int(targets.min()), int(targets.max())
    if shape in ((), (1,)) and target in ((), (1,)) and low >= 0 and high <= 1:
        return "binary"
    return "classification"


def _real(loss: Any, metric: Any) -> bool:
    return (isinstance(metric, str) and metric in VALUES) or any(
        loss is each or (isinstance(each, type) and isinstance(loss, each)) for each in REAL_LOSSES
    )


def _classification(shape: tuple[int, ...], targets: Tensor) -> Kind:
    target = tuple(targets.shape[1:])
    if len(shape) != 1 or shape[0] < 2:
        raise ValueError(
            "classification needs outputs (batch, classes) with at least 2 classes (one logit tells 0 from 1; labels "
            f"of tokens have shape (batch, sequence)), got outputs {_shape(shape)} and labels {_shape(target)}"
        )
    one_hot = target == shape and bool(((targets == 0) | (targets == 1)).all() and (targets.sum(1) == 1).all())
    if target not in ((), (1,)) and not one_hot:
        raise ValueError(
            f"classification needs class indices (batch,), or one-hot rows (batch, {shape[0]}), got {_shape(target)}"
        )
    if targets.is_floating_point() and not one_hot and bool((targets != targets.round()).any()):
        raise ValueError("classification needs class indices, got real numbers")
    low, high = (0, 0) if one_hot else (int(targets.min()), int(targets.max()))
    if low < 0 or high >= shape[0]:
        raise ValueError(f"labels must lie in 0..{shape[0] - 1} for a model with {shape[0]} outputs, got {low}..{high}")
    return Kind("classification", shape, shape[0], targets.dtype, target)


def token_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean cross-entropy of the tokens that count; both ``(batch, sequence, classes)``, targets one-hot.

    A row of zeros is a token that does not count; where none does, the loss is zero.

    Example:
        >>> logits, labels = torch.randn(2, 3, 4), torch.tensor([[0, 3, -100], [1, -100, -100]])
        >>> one_hot = (labels.unsqueeze(-1) == torch.arange(4)).float()
        >>> plain = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        >>> torch.isclose(token_cross_entropy(logits, one_hot), plain).item()
        True
    """
    return -(targets * outputs.log_softmax(-1)).sum() / targets.sum().clamp(min=1)


def _binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))


def _own_loss(kind: Kind, own: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
    outputs, targets = kind.decode(outputs, targets)
    if isinstance(own, nn.BCEWithLogitsLoss):
        targets = targets.reshape(outputs.shape).to(outputs.dtype)
    return own(outputs, targets)


def _two_logits(module: nn.Module, inputs: Any, output: Any) -> Tensor:
    logit = forward(lambda: output, ())
    return F.pad(logit.reshape(-1, 1), (1, 0))


def _shape(shape: tuple[int, ...]) -> str:
    return f"(batch{''.join(f', {size}' for size in shape)})"


def _encoded(dataset: Any, encode: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(dataset, Subset):
        return Subset(_encoded(dataset.dataset, encode), dataset.indices)
    if isinstance(dataset, TensorDataset):
        *inputs, targets = dataset.tensors
        return TensorDataset(*inputs, encode(targets))
    return _Encoded(dataset, encode)


class _Encoded(Dataset):
    """Another data set's examples with their targets encoded."""

    def __init__(self, dataset: Any, encode: Callable[[Tensor], Tensor]) -> None:
        self.dataset, self.encode = dataset, encode

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> Any:
        return self._one(self.dataset[position])

    def __getitems__(self, positions: list[int]) -> list[Any]:
        fetch = getattr(self.dataset, "__getitems__", None)
        return [self._one(each) for each in (fetch(positions) if fetch else map(self.dataset.__getitem__, positions))]

    def _one(self, example: Any) -> Any:
        inputs, target = split_target(example)
        encoded = self.encode(torch.as_tensor(target).unsqueeze(0))[0]
        if isinstance(example, Mapping):
            key = next(key for key in TARGET_KEYS if key in example)
            return {**example, key: encoded}
        return (*inputs, encoded) if isinstance(inputs, tuple) else (inputs, encoded)
