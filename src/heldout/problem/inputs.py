"""Data in the forms that people have it in, as data sets of tensors: arrays, frames, and Hugging Face data sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from heldout.data import TARGET_KEYS
from heldout.errors import checked


@checked
def as_examples(data: Any, name: str = "train") -> Any:
    """Returns a data set of tensors from what a file gave to ``Splits``; torch data sets are returned as they are.

    Args:
        data: ``(inputs, targets)`` or ``[inputs, targets]`` of NumPy arrays, pandas frames and series, or tensors; a
            pandas frame with a column ``labels``, ``label``, ``targets`` or ``target``; a Hugging Face data set
            (columns of text are left out); or a torch data set.
        name: how errors call it.

    Raises:
        ValueError: lengths differ, a column holds no numbers, or there is no column of targets; the message says what
            to do.

    Example:
        >>> len(as_examples([np.zeros((3, 2)), np.array([0, 1, 0])]))
        3
    """
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
