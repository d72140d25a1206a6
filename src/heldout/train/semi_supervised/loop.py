"""Core: One step and one loop for all that learn from labelled and unlabelled batches together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from heldout.data import TARGET_KEYS, split_target, to_device
from heldout.errors import check_at_least, check_class_labels, check_fields, checked
from heldout.method import device_of, forward
from heldout.nn import inputs_for
from heldout.train.semi_supervised.unlabelled import inputs_like


@dataclass(frozen=True)
class StepLog:
    """What one step saw; None where it had no such part.

    Attributes:
        labelled_loss: cross-entropy of the labelled batch, before its step.
        unlabelled_loss: what the unlabelled batch added: the cross-entropy to the proposed labels before their step, or
            the value of the loss of ``SemiSupervised``, unweighted.
        reward: of the proposed labels.
        validation_change: validation loss before the step on the proposed labels, less that after it.
        policy_loss: of the policy's step, where there was one.

    Example:
        >>> StepLog(labelled_loss=0.7).reward is None
        True
    """

    labelled_loss: float | None = None
    unlabelled_loss: float | None = None
    reward: float | None = None
    validation_change: float | None = None
    policy_loss: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)


class Trainer(Protocol):
    """What ``fit_batches`` trains: a predictor, and one step on batches of each kind."""

    predictor: nn.Module

    def step(self, labelled: Any, unlabelled: Any, validation: Any = None) -> StepLog: ...


@checked
def fit_batches(
    trainer: Trainer,
    labelled: Iterable[Any],
    unlabelled: Iterable[Any],
    validation: Iterable[Any] | None,
    epochs: int,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Trains, an epoch being one pass over the unlabelled batches, and returns the means of each epoch's logs.

    Labelled and validation batches begin again when they are over. The predictor is in training mode meanwhile, and in
    evaluation mode afterwards.

    Args:
        trainer: with ``predictor`` and ``step``.
        labelled, unlabelled, validation: batches that are there more than once, such as a ``DataLoader`` or a list.
        epochs: at least 1.
        on_epoch: called with the entry of each epoch: ``epoch``, the means of what the steps logged, ``zero_rewards``
            (the share of rewards that are 0) where there are rewards.

    Raises:
        ValueError: no batches, or an iterator that is over after one pass.
        FloatingPointError: a loss is no longer finite.

    Example:
        >>> from heldout.train import PseudoLabelLoss, SemiSupervised
        >>> trainer = SemiSupervised(nn.Linear(2, 2), PseudoLabelLoss(0.6))
        >>> batch = (torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))
        >>> [entry["epoch"] for entry in fit_batches(trainer, [batch], [torch.randn(8, 2)], None, epochs=2)]
        [1.0, 2.0]
    """
    check_at_least(1, epochs=epochs)
    given = {"labelled": labelled, "unlabelled": unlabelled, "validation": validation}
    for name, batches in given.items():
        if batches is None:
            continue
        if iter(batches) is batches:
            raise ValueError(f"the {name} batches must be there more than once: give a DataLoader or a list")
        if next(iter(batches), None) is None:
            argument = "val_loader" if name == "validation" else f"{name}_loader"
            raise ValueError(f"{argument} must hold batches: the {name} data yields no batches")
    labels, checks = _endless(labelled), None if validation is None else _endless(validation)
    history = []
    trainer.predictor.train()
    for epoch in range(1, epochs + 1):
        logs = [trainer.step(next(labels), batch, checks and next(checks)) for batch in unlabelled]
        history.append({"epoch": float(epoch), **_means(logs)})
        if on_epoch:
            on_epoch(history[-1])
            trainer.predictor.train()
    trainer.predictor.eval()
    return history


@checked
def class_logits(outputs: Tensor) -> Tensor:
    """Returns logits ``(batch, classes)``; one output for each example, the log-odds of class 1, becomes ``(0, z)``.

    Softmax and cross-entropy of these are sigmoid and binary cross-entropy of the one.

    Raises:
        ValueError: outputs that are neither ``(batch,)`` nor ``(batch, classes)``.

    Example:
        >>> class_logits(torch.tensor([2.0, -1.0])).tolist()
        [[0.0, 2.0], [0.0, -1.0]]
    """
    if outputs.ndim == 2 and outputs.shape[1] >= 2:
        return outputs
    if outputs.ndim == 1 or (outputs.ndim == 2 and outputs.shape[1] == 1):
        odds = outputs.reshape(-1)
        return torch.stack([torch.zeros_like(odds), odds], 1)
    raise ValueError(f"a classifier must give logits (batch,) or (batch, classes), got {tuple(outputs.shape)}")


@checked
def logits_of(module: nn.Module, inputs: Any) -> Tensor:
    """Returns a classifier's logits ``(batch, classes)`` in single precision at least, in the mode that it is in.

    Example:
        >>> logits_of(nn.Linear(3, 1), torch.zeros(2, 3)).shape
        torch.Size([2, 2])
    """
    outputs = class_logits(forward(module, inputs_for(module, inputs)))
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


@checked
def labelled_batch(module: nn.Module, batch: Any) -> tuple[Any, Tensor]:
    """Returns ``(inputs, class indices)`` of a labelled batch on a module's device; 0.0 and 1.0 count as classes.

    Raises:
        ValueError: an empty batch, or labels that are no class indices.

    Example:
        >>> labelled_batch(nn.Linear(1, 1), (torch.zeros(2, 1), torch.tensor([[0.0], [1.0]])))[1]
        tensor([0, 1])
    """
    inputs, labels = split_target(batch)
    labels = to_device(torch.as_tensor(labels), device_of(module))
    labels = labels.squeeze(1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim != 1 or not len(labels):
        raise ValueError(f"labels must be class indices (batch,) of at least one example, got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        if not ((labels == 0) | (labels == 1)).all():
            raise ValueError("labels must be class indices, or 0.0 and 1.0, got other real numbers")
        labels = labels.long()
    return inputs, labels


@checked
def unlabelled_batch(batch: Any, like: Any = None) -> Any:
    """Returns the inputs of an unlabelled batch, without what comes behind them.

    Args:
        batch: a tensor, a tuple or list that begins with inputs, or a dict.
        like: labelled inputs whose form they must have; None takes the first of a tuple, and all of a dict but labels.

    Raises:
        ValueError: another form than ``like``.

    Example:
        >>> unlabelled_batch([torch.zeros(3, 2), torch.zeros(3)]).shape
        torch.Size([3, 2])
    """
    if isinstance(batch, Mapping):
        names = [name for name in batch if name not in TARGET_KEYS] if like is None else list(like)
        if like is not None and (not isinstance(like, Mapping) or not set(like) <= set(batch)):
            raise ValueError("unlabelled batches must have the form of labelled ones, got a dict of others")
        return {name: batch[name] for name in names}  # texts differ in length from batch to batch
    if like is not None:
        return inputs_like(batch, like)
    return batch[0] if isinstance(batch, tuple | list) else batch


@checked
def check_in_classes(labels: Tensor, classes: int, name: str) -> None:
    """Refuses labels that a model with so many classes does not know.

    Example:
        >>> check_in_classes(torch.tensor([0, 2]), 2, "labels")
        Traceback (most recent call last):
        ValueError: labels must lie in 0..1, got 0..2
    """
    check_class_labels(classes, **{name: labels})


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from batches


def _means(logs: list[StepLog]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in (each.name for each in fields(StepLog)):
        values = [value for log in logs if (value := asdict(log)[name]) is not None]
        if values:
            found[name] = sum(values) / len(values)
    rewards = [log.reward for log in logs if log.reward is not None]
    if rewards:
        found["zero_rewards"] = sum(reward == 0 for reward in rewards) / len(rewards)
    return found
