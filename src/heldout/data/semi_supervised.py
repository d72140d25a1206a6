"""Core: A data set with few labels: a labelled part, a validation part, and the rest without its labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from heldout.data.loading import all_targets, split_target
from heldout.errors import check_at_least, check_between, check_class_labels, check_dimensions, check_nonempty, checked
from heldout.method import as_dataset


class InputsOnly(Dataset):
    """A data set without its targets: each example is its inputs.

    Args:
        dataset: with examples ``(inputs, target)`` or dicts with a ``"labels"`` entry; it stays reachable as
            ``dataset``, for an evaluation that knows the truth.

    Example:
        >>> InputsOnly([(torch.zeros(2), 1), (torch.ones(2), 0)])[1]
        tensor([1., 1.])
    """

    @checked
    def __init__(self, dataset: Any) -> None:
        self.dataset = as_dataset(dataset, "dataset")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> Any:
        return split_target(self.dataset[position])[0]

    def __getitems__(self, positions: list[int]) -> list[Any]:
        fetch_many = getattr(self.dataset, "__getitems__", None)
        items = fetch_many(positions) if fetch_many else [self.dataset[position] for position in positions]
        return [split_target(item)[0] for item in items]


class SemiSupervisedSplit(NamedTuple):
    """Three parts of a data set that share no example.

    Attributes:
        labelled: examples with their labels.
        unlabelled: the rest, inputs only; ``unlabelled.dataset`` knows the labels.
        val: examples with their labels, of size 0 where none were asked for.

    Example:
        >>> split = semi_supervised_split((torch.arange(6.0), torch.arange(6) % 2), 2)
        >>> inputs = split.unlabelled[0]  # no target
        >>> inputs.shape, len(split.val), sorted(int(label) for _, label in split.unlabelled.dataset)
        (torch.Size([]), 0, [0, 0, 1, 1])
    """

    labelled: Subset
    unlabelled: InputsOnly
    val: Subset


@checked
def semi_supervised_split(dataset: Any, n_labelled: int, n_val: int = 0, *, seed: int = 0) -> SemiSupervisedSplit:
    """Returns a labelled part, a validation part and the rest without labels; in each the classes are as frequent.

    What is unlabelled is a data set of its own: no target stands for "none".

    Args:
        dataset: with class labels, as for ``heldout.fit``.
        n_labelled: examples with labels, at least one for each class.
        n_val: examples with labels to validate on, 0 or at least one for each class.
        seed: of the choice.

    Raises:
        ValueError: fewer examples than are asked for (each part needs one of each class), labels that are no class
            indices, a class with too few examples.

    Example:
        >>> split = semi_supervised_split((torch.randn(40, 2), torch.arange(40) % 4), 8, 4)
        >>> len(split.labelled), len(split.unlabelled), len(split.val)
        (8, 28, 4)
        >>> sorted(int(label) for _, label in split.labelled)
        [0, 0, 1, 1, 2, 2, 3, 3]
    """
    dataset = as_dataset(dataset, "dataset")
    check_nonempty(dataset=dataset)
    check_between(0, 2**32 - 1, seed=seed)
    check_at_least(1, n_labelled=n_labelled)
    check_at_least(0, n_val=n_val)
    targets = all_targets(dataset)
    check_dimensions(1, targets=targets)
    if targets.is_floating_point():
        raise ValueError(f"dataset must have class labels, got targets of {targets.dtype}")
    check_class_labels(targets=targets)
    if n_labelled + n_val >= len(targets):
        raise ValueError(
            f"n_labelled and n_val must leave unlabelled examples of {len(targets)}, got {n_labelled} and {n_val}"
        )
    labelled, rest = _stratified(torch.arange(len(targets)), targets, n_labelled, seed, "n_labelled")
    val, unlabelled = _stratified(rest, targets, n_val, seed, "n_val") if n_val else (rest[:0], rest)
    return SemiSupervisedSplit(
        Subset(dataset, labelled.tolist()),
        InputsOnly(Subset(dataset, unlabelled.tolist())),
        Subset(dataset, val.tolist()),
    )


def _stratified(positions: Tensor, targets: Tensor, size: int, seed: int, name: str) -> tuple[Tensor, Tensor]:
    from sklearn.model_selection import train_test_split

    own = targets[positions].numpy()
    try:
        part, rest = train_test_split(positions.numpy(), train_size=size, stratify=own, random_state=seed)
    except ValueError as error:
        raise ValueError(f"{name} of {size} is too few or too many to have every class in each part: {error}") from None
    return torch.from_numpy(part).sort().values, torch.from_numpy(rest).sort().values
