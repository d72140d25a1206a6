"""Core: Data sets whose examples know their position, for methods that remember something about each example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import Dataset

from heldout.errors import checked


class IndexedDataset(Dataset):
    """Yields each example of a data set with its position: tuples grow by one int, dicts by the entry "index".

    For training loops of one's own; ``heldout.fit`` tells a loss the positions without it (``Batch.index``). A view of
    it, such as ``torch.utils.data.Subset``, keeps the positions of the original.

    Args:
        dataset: its examples are tuples (or lists) such as ``(inputs, target)``, or dicts.

    Raises:
        TypeError: when an example is neither.

    Example:
        >>> import torch
        >>> data = torch.utils.data.TensorDataset(torch.arange(3.0), torch.tensor([1, 0, 1]))
        >>> IndexedDataset(data)[2]
        (tensor(2.), tensor(1), 2)
        >>> torch.utils.data.Subset(IndexedDataset(data), [2])[0][-1]
        2
    """

    @checked
    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, position: int) -> Any:
        example = self.dataset[position]
        if position < 0:
            position += len(self)
        if isinstance(example, Mapping):
            return {**example, "index": position}
        if isinstance(example, tuple | list):
            return (*example, position)
        raise TypeError(f"an example must be a tuple or a dict, got {type(example).__name__}")
