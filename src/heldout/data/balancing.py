"""Core: Training sets whose classes are of unequal size: how unequal they are, and drawing them equally often."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, WeightedRandomSampler

from heldout.data.loading import all_targets
from heldout.errors import check_at_least, check_labels, check_nonempty, checked
from heldout.method import Method, Run, Splits, why_no_class_labels

NEARLY_EQUAL = 1.25  # the largest class over the smallest, below which balancing changes next to nothing


@checked
def class_counts(dataset: Dataset, num_classes: int) -> Tensor:
    """Returns how many examples each class has, int64 ``(num_classes,)``.

    Args:
        dataset: with class indices as targets.
        num_classes: K; classes without an example count 0.

    Raises:
        ValueError: an empty data set, or targets that are no class indices below ``num_classes``.

    Example:
        >>> import torch
        >>> class_counts(torch.utils.data.TensorDataset(torch.zeros(3, 1), torch.tensor([0, 2, 2])), 3).tolist()
        [1, 0, 2]
    """
    check_nonempty(dataset=dataset)
    check_at_least(1, num_classes=num_classes)
    targets = all_targets(dataset)
    check_labels(num_classes, targets=targets)
    return targets.flatten().bincount(minlength=num_classes)


@checked
def why_balanced(module: nn.Module, splits: Splits) -> str | None:
    """Returns why a method for unequal classes has nothing to act on, or None: the ``check`` of all of them.

    Classes of which the largest is less than 1.25 times the smallest are nearly equal.

    Args:
        module: not looked at.
        splits: with the training data.

    Example:
        >>> import torch
        >>> equal = Splits(train=(torch.zeros(4, 1), torch.tensor([0, 1, 0, 1])))
        >>> why_balanced(nn.Linear(1, 2), equal)
        'it acts on classes of unequal size, those of the training set are equal (2 to 2 examples)'
    """
    if getattr(splits, "tasks", None) is not None:  # a TaskStream
        return "it counts the classes of the whole training set, which come task after task"
    targets = all_targets(splits.train)
    if (reason := why_no_class_labels(targets)) or targets.ndim != 1:
        return reason or "it needs one class index per example as the target"
    counts = targets.bincount()
    fewest, most = int(counts[counts > 0].min()), int(counts.max())
    if most >= NEARLY_EQUAL * fewest:
        return None
    how = "equal" if most == fewest else "nearly equal"
    return f"it acts on classes of unequal size, those of the training set are {how} ({fewest} to {most} examples)"


@checked
def balanced_sampling() -> Method:
    """Returns the Method that draws training examples with replacement, each class equally often.

    An epoch is as long as before; rare examples repeat in it, and some common ones are left out.

    Source: Japkowicz, The class imbalance problem, IC-AI 2000 (random oversampling); the usual comparison.

    Example:
        >>> balanced_sampling().stages
        ('data',)
    """

    def data(run: Run, train_set: Any) -> Sampler:
        if isinstance(train_set, Sampler) or len(train_set) != len(run.splits.train):  # type: ignore[arg-type]
            raise TypeError("balanced_sampling draws from the training set as given: write it without that method")
        targets = all_targets(train_set)
        weights = 1.0 / targets.bincount().double()[targets]
        return WeightedRandomSampler(weights.tolist(), len(targets), replacement=True, generator=run.generator)

    return Method("balanced_sampling", data=data, check=why_balanced)
