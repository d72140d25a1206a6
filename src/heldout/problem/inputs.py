"""Data in the forms that people have it in, as data sets of tensors: arrays, frames, and Hugging Face data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
    default_convert,
)

from heldout.data import TARGET_KEYS
from heldout.errors import checked

MOST_READ = 200_000  # examples of a stream that has no length


@checked
def as_examples(data: Any, name: str = "train", *, epoch_length: int | None = None) -> Any:
    """Returns a data set of tensors from what a file gave to ``Splits``; torch data sets are returned as they are.

    Args:
        data: ``(inputs, targets)`` or ``[inputs, targets]`` of NumPy arrays, pandas frames and series, or tensors; a
            pandas frame with a column ``labels``, ``label``, ``targets`` or ``target``; a Hugging Face data set
            (columns of text are left out); a torch data set; a DataLoader, whose data set is taken (one with a
            ``collate_fn`` of its own: what that makes of all examples at once); or examples to iterate over, which are
            read once into memory.
        name: how errors call it.
        epoch_length: how many examples of a stream make an epoch; default: all of them, or its length.

    Raises:
        ValueError: lengths differ, a column holds no numbers, or there is no column of targets; the message says what
            to do.

    Example:
        >>> len(as_examples([np.zeros((3, 2)), np.array([0, 1, 0])]))
        3
    """
    if isinstance(data, DataLoader):
        return _loaded(data, name, epoch_length)
    if _is_stream(data):
        return _examples(data, name, epoch_length)
    if isinstance(data, tuple | list) and len(data) >= 2 and all(_is_array(part) for part in data):
        lengths = [len(part) for part in data]
        if len(set(lengths)) > 1:
            raise ValueError(f"{name} has {lengths[0]} inputs but {lengths[-1]} targets")
        return TensorDataset(*(_tensor(part, name) for part in data))
    if _is_frame(data):
        target = next((key for key in TARGET_KEYS if key in data.columns), None)
        if target is None:
            raise ValueError(
                f"{name} is a frame without a column {', '.join(TARGET_KEYS)}: rename that of the targets, or give "
                "(inputs, targets)"
            )
        return TensorDataset(_tensor(data.drop(columns=target), name), _tensor(data[target], name))
    if callable(getattr(data, "with_format", None)) and getattr(data, "features", None) is not None:
        numbers = [key for key, value in data[0].items() if not _is_text(value)] if len(data) else data.column_names
        return data.with_format("torch", columns=numbers)
    return data


def sampler_of(data: Any) -> Sampler | None:
    """Returns the sampler of a DataLoader, where it is not one of those that take every example once; else None.

    Raises:
        ValueError: it samples whole batches.
    """
    if not isinstance(data, DataLoader) or isinstance(data.dataset, IterableDataset):
        return None
    if type(data.batch_sampler) is not BatchSampler:
        raise ValueError(
            "train is a DataLoader with a batch_sampler of its own: give its data set, and name a sampler of "
            "examples, sampler(train) -> Sampler"
        )
    sampler: Any = data.sampler
    every_one = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == len(data.dataset)  # type: ignore[arg-type]
    )
    return None if every_one else sampler


def _loaded(loader: DataLoader, name: str, epoch_length: int | None) -> Any:
    dataset: Any = loader.dataset
    if loader.collate_fn in (default_collate, default_convert):
        return as_examples(dataset, name, epoch_length=epoch_length)
    if _is_stream(dataset):
        dataset = _examples(dataset, name, epoch_length)
    count = len(dataset)
    batch = loader.collate_fn([dataset[i] for i in range(count)])
    parts = list(batch.values()) if hasattr(batch, "values") else batch
    if not isinstance(parts, tuple | list) or not all(isinstance(p, Tensor) and len(p) == count for p in parts):
        raise ValueError(
            f"{name} is a DataLoader whose collate_fn does not give tensors with one entry per example: give a data "
            "set of examples instead"
        )
    if hasattr(batch, "values"):
        return _Columns(dict(batch))
    return TensorDataset(*parts)


class _Columns:
    """A data set of dicts from a dict of tensors with one entry per example."""

    def __init__(self, columns: dict[str, Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return {key: value[position] for key, value in self.columns.items()}


def _is_stream(data: Any) -> bool:
    indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    return isinstance(data, IterableDataset) or (hasattr(data, "__iter__") and not indexed)


def _examples(stream: Any, name: str, epoch_length: int | None) -> list[Any]:
    wanted = epoch_length or (len(stream) if hasattr(stream, "__len__") else None)
    examples: list[Any] = []
    for example in stream:
        if wanted is None and len(examples) == MOST_READ:
            raise ValueError(
                f"{name} is a stream of more than {MOST_READ:,} examples without a length: say how many make an epoch, "
                "epoch_length = N"
            )
        if isinstance(example, Mapping):
            example = {key: default_convert(value) for key, value in example.items() if not _is_text(value)}
            example = {key: torch.as_tensor(v) if isinstance(v, list) else v for key, v in example.items()}
        examples.append(example)
        if len(examples) == wanted:
            break
    return examples


def _is_frame(data: Any) -> bool:
    return hasattr(data, "columns") and hasattr(data, "to_numpy") and hasattr(data, "drop")


def _is_array(part: Any) -> bool:
    return (isinstance(part, Tensor | np.ndarray) and part.ndim > 0) or hasattr(part, "to_numpy")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and isinstance(value[0], str))


def _tensor(part: Any, name: str) -> Tensor:
    if isinstance(part, Tensor):
        return part
    array = part.to_numpy() if hasattr(part, "to_numpy") else part
    if array.dtype == object or array.dtype.kind not in "biuf":
        raise ValueError(
            f"{name} holds values of type {array.dtype}, not numbers: encode them first (pandas: get_dummies, "
            "category codes; scikit-learn: OrdinalEncoder)"
        )
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    return torch.from_numpy(np.array(array))  # a copy, which torch may write to
