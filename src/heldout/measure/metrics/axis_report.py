"""Core: How a model does along several axes of generalization, and for each kind of question on each of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Dataset

from heldout.data import predict_all
from heldout.errors import check_at_least, check_fields, check_finite, check_nonempty, check_scored, checked
from heldout.statistics import Interval, wilson

Groups = Mapping[str, Sequence[Hashable]]


@dataclass(frozen=True)
class AxisAccuracy:
    """Accuracy on one axis, each with a 95 % interval.

    Attributes:
        accuracy: share of right answers.
        balanced: by the name of a factor, the mean of the accuracies of its values, each weighing the same.
        by: by the name of a factor and by its values, the accuracy on the examples that have it.
        count: of examples.

    Example:
        >>> AxisAccuracy(wilson(3, 4), {}, {}, 4).accuracy.estimate
        0.75
    """

    accuracy: Interval
    balanced: dict[str, Interval]
    by: dict[str, dict[Hashable, Interval]]
    count: int

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(1, count=self.count)


@checked
def axis_report(
    model: nn.Module | Callable[[Any], Tensor],
    splits: Mapping[str, Dataset],
    groups: Mapping[str, Groups] | None = None,
    *,
    batch_size: int = 512,
) -> dict[str, AxisAccuracy]:
    """Returns a classifier's accuracy on each test set ("axis"), in all and by factors such as operator and depth.

    Where one kind of question has many more answers than another, accuracy in all says little: ``balanced`` weighs the
    values of a factor alike. Intervals are Wilson's, those of balanced accuracies are combined of them.

    Args:
        model: from the inputs of a batch to logits ``(batch, classes)``; a module is put in eval mode for the call.
        splits: test sets ``(inputs, label)`` by name.
        groups: by the name of a test set, and of a factor, its value for each example. By default what a test set says
            of itself by an attribute ``groups``, as those of ``heldout.tasks.gcog_split`` do.
        batch_size: of evaluation.

    Raises:
        ValueError: no or empty test sets, groups that are empty or of other names or lengths, labels or logits that
            cannot be scored.

    Source: arXiv:2401.15030, section 4. Combined intervals: G. Y. Zou and A. Donner, Statistics in Medicine 27 (2008).

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> report = axis_report(nn.Identity(), {"iid": TensorDataset(torch.eye(3), torch.tensor([0, 1, 1]))},
        ...     {"iid": {"depth": [1, 1, 3]}})
        >>> report["iid"].by["depth"][1].estimate, report["iid"].balanced["depth"].estimate
        (1.0, 0.5)
    """
    check_nonempty(splits=splits)
    if groups is not None:
        check_nonempty(groups=groups)
    check_at_least(1, batch_size=batch_size)
    if groups is not None and (unknown := sorted(map(str, set(groups) - set(splits)))):
        raise ValueError(f"groups must be of the splits, got {unknown[0]}")
    found = {}
    for name, data in splits.items():
        outputs, labels = predict_all(model, data, batch_size)
        if outputs.ndim != 2:
            raise ValueError(f"model must return logits (batch, classes), got {tuple(outputs.shape)}")
        check_finite(**{"outputs of the model": outputs})
        check_scored("classification", outputs=outputs, targets=labels)
        right = (outputs.argmax(1) == labels).numpy()
        told: Groups = getattr(data, "groups", {}) if groups is None else groups.get(name, {})
        by: dict[str, dict[Hashable, Interval]] = {}
        for factor, values in told.items():
            values = values.tolist() if hasattr(values, "tolist") else list(values)
            if len(values) != len(right):
                raise ValueError(f"groups must have a value for each of {len(right)} examples of {name}: {factor} has "
                                 f"{len(values)}")  # fmt: skip
            by[factor] = _by_value(values, right)
        balanced = {factor: _mean_of(list(each.values())) for factor, each in by.items()}
        found[name] = AxisAccuracy(wilson(int(right.sum()), len(right)), balanced, by, len(right))
    return found


def _by_value(values: list[Hashable], right: np.ndarray) -> dict[Hashable, Interval]:
    positions: dict[Hashable, list[int]] = {}
    for position, value in enumerate(values):
        if value is None or value != value:
            raise ValueError(f"groups must have a value for each example, got {value}")
        positions.setdefault(value, []).append(position)
    order = sorted(positions, key=lambda value: (str(type(value)), value))  # type: ignore[arg-type,return-value]
    return {value: wilson(int(right[positions[value]].sum()), len(positions[value])) for value in order}


def _mean_of(parts: list[Interval]) -> Interval:
    """The mean of independent proportions: distances to the ends of their intervals add up as squares (MOVER)."""
    middle = np.array([part.estimate for part in parts])
    low, high = np.array([part.low for part in parts]), np.array([part.high for part in parts])
    below, above = np.sqrt(((middle - low) ** 2).sum()), np.sqrt(((high - middle) ** 2).sum())
    mean = float(middle.mean())
    return Interval(mean, float(mean - below / len(parts)), float(mean + above / len(parts)))
