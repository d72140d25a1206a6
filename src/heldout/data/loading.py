"""Core: Reading data sets in batches: the one place that knows how examples become tensors.

Tensor data and index views of it (``TensorDataset``, ``Subset``) are gathered by one indexing call per
tensor; every other data set goes through PyTorch's own collation, item by item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from heldout.errors import check_at_least, check_labels, checked
from heldout.method import evaluating, forward

TARGET_KEYS = ("labels", "label", "targets", "target")


@checked
def gather(dataset: Dataset, positions: Tensor) -> tuple[Any, Tensor]:
    """Returns ``(inputs, targets)`` of the examples at ``positions``, an int64 tensor ``(batch,)``.

    Inputs are a tensor, a tuple of tensors (examples with more than one input) or a dict (examples that are
    dicts; the target is its ``labels``, ``label``, ``targets`` or ``target`` entry).

    Args:
        dataset: examples that are tuples with the target last, or dicts with one.
        positions: int64 ``(batch,)``.

    Raises:
        TypeError: an example is neither a tuple with a target nor a dict with one.

    Example:
        >>> data = TensorDataset(torch.arange(4.0), torch.arange(4))
        >>> gather(Subset(data, [3, 1]), torch.tensor([0, 1]))
        (tensor([3., 1.]), tensor([3, 1]))
    """
    check_labels(len(dataset), positions=positions)  # type: ignore[arg-type]
    while isinstance(dataset, Subset):
        positions = _indices(dataset)[positions]
        dataset = dataset.dataset
    if isinstance(dataset, TensorDataset):
        return split_target(tuple(tensor[positions] for tensor in dataset.tensors))
    fetch_many = getattr(dataset, "__getitems__", None)
    items = fetch_many(positions.tolist()) if fetch_many else [dataset[i] for i in positions.tolist()]
    return split_target(default_collate([dict(item) if isinstance(item, Mapping) else item for item in items]))


def split_target(example: Any) -> tuple[Any, Tensor]:
    """Returns ``(inputs, target)`` of one example or one collated batch.

    Args:
        example: a tuple or list whose last entry is the target, or a mapping with one of ``TARGET_KEYS``, the first of
            which that it has is the target.

    Returns:
        inputs: what is left: the one entry, a tuple of several, or a dict; and the target as it is.

    Raises:
        TypeError: something else, or without a target.

    Example:
        >>> split_target(("x", 1)), split_target(("x", "y", 1)), split_target({"ids": [3], "label": 1})
        (('x', 1), (('x', 'y'), 1), ({'ids': [3]}, 1))
    """
    if isinstance(example, Mapping):
        for key in TARGET_KEYS:
            if key in example:
                return {k: v for k, v in example.items() if k != key}, example[key]
        raise TypeError(f"a dict example needs one of the entries {', '.join(TARGET_KEYS)}; got {sorted(example)}")
    if isinstance(example, tuple | list) and len(example) >= 2:
        *inputs, target = example
        return (inputs[0] if len(inputs) == 1 else tuple(inputs)), target
    raise TypeError(f"an example must be (inputs, target) or a dict with a target, got {type(example).__name__}")


def _indices(subset: Subset) -> Tensor:
    """The subset's indices as a tensor, converted once and kept on the subset."""
    cached = subset.__dict__.get("_heldout_indices")
    if cached is None or len(cached) != len(subset.indices):
        cached = torch.as_tensor(subset.indices, dtype=torch.int64)
        subset.__dict__["_heldout_indices"] = cached
    return cached


@checked
def sample_ids(dataset: Dataset, base: Dataset) -> Tensor:
    """Returns int64 ``(len(dataset),)``: the position in ``base`` of every example of ``dataset``.

    ``dataset`` is ``base`` itself or ``Subset`` views of it; any other data set counts as new examples and
    keeps its own positions.

    Args:
        dataset: whose examples are asked about.
        base: the data set that it may be a view of.

    Example:
        >>> base = TensorDataset(torch.zeros(5), torch.zeros(5))
        >>> sample_ids(Subset(Subset(base, [4, 2, 2]), [2, 0]), base)
        tensor([2, 4])
    """
    positions = torch.arange(len(dataset))  # type: ignore[arg-type]
    view: Any = dataset
    while isinstance(view, Subset) and view is not base:
        positions = _indices(view)[positions]
        view = view.dataset
    return positions if view is base else torch.arange(len(dataset))  # type: ignore[arg-type]


@checked
def batches(
    dataset: Dataset, batch_size: int, order: Tensor | None = None, *, num_workers: int = 0
) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """Yields ``(inputs, targets, positions)`` in the given order of positions (default: as they stand).

    Args:
        dataset: any data set with targets, see ``gather``.
        batch_size: examples at once, at least 1; the last batch may be smaller.
        order: int64 positions, which may be some, or some several times.
        num_workers: processes that read; tensor data needs none, and has none.

    Raises:
        ValueError: numbers out of range, when the first batch is asked for.

    Example:
        >>> data = TensorDataset(torch.arange(3.0), torch.tensor([5, 6, 7]))
        >>> for inputs, targets, positions in batches(data, 2, torch.tensor([2, 0, 1])):
        ...     print(inputs.tolist(), targets.tolist(), positions.tolist())
        [2.0, 0.0] [7, 5] [2, 0]
        [1.0] [6] [1]
    """
    check_at_least(0, num_workers=num_workers)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = torch.arange(len(dataset)) if order is None else order  # type: ignore[arg-type]
    chunks = order.split(batch_size)
    if num_workers == 0 or is_tensor_data(dataset):
        for positions in chunks:
            yield (*gather(dataset, positions), positions)
        return
    loader = torch.utils.data.DataLoader(
        _Chunks(dataset, chunks), batch_size=None, num_workers=num_workers, prefetch_factor=2
    )
    for chunk, positions in zip(loader, chunks, strict=True):
        yield (*chunk, positions)


class _Chunks(Dataset):
    """One item per batch, so that workers gather whole batches."""

    def __init__(self, dataset: Dataset, chunks: tuple[Tensor, ...]) -> None:
        self.dataset, self.chunks = dataset, chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, position: int) -> tuple[Any, Tensor]:
        return gather(self.dataset, self.chunks[position])


def is_tensor_data(dataset: Dataset) -> bool:
    """Returns whether the data set is a ``TensorDataset`` or an index view of one.

    Example:
        >>> is_tensor_data(TensorDataset(torch.zeros(2, 3))), is_tensor_data([1, 2])
        (True, False)
    """
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return isinstance(dataset, TensorDataset)


@checked
def all_targets(dataset: Dataset) -> Tensor:
    """Returns the targets ``(n, ...)`` of every example, in order.

    Example:
        >>> all_targets([(torch.zeros(2), 1), (torch.ones(2), 0)])
        tensor([1, 0])
    """
    if is_tensor_data(dataset):
        return gather(dataset, torch.arange(len(dataset)))[1]  # type: ignore[arg-type]
    return torch.cat([torch.as_tensor(targets) for _, targets, _ in batches(dataset, 256)])


@checked
def to_device(value: Any, device: torch.device | str | None) -> Any:
    """Returns tensors (also inside tuples, lists and mappings) on ``device``; None leaves them where they are.

    Args:
        value: lists come back as tuples, mappings as dicts, and what is no tensor as it is.
        device: a name or a ``torch.device``; with None the value itself comes back.

    Example:
        >>> moved = to_device({"ids": [torch.ones(2)], "name": "a"}, "cpu")
        >>> moved["ids"][0].device.type, type(moved["ids"]).__name__, moved["name"]
        ('cpu', 'tuple', 'a')
    """
    if device is None:
        return value
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(to_device(item, device) for item in value)
    return value


@checked
def predict_all(
    function: Callable[..., Any], dataset: Dataset, batch_size: int = 512, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """Returns ``(outputs, targets)`` on the CPU for every example, in order.

    A module is put in eval mode for the call and back afterwards, and runs without gradients. Any other callable
    (a test-time adapter, which may need gradients) gets the inputs of a batch as one argument.

    Args:
        function: a module, or any callable from the inputs of a batch to outputs ``(batch, ...)``.
        dataset: with targets, see ``gather``.
        batch_size: examples at once.
        device: where the inputs are put; None leaves them where they are.

    Raises:
        ValueError: an empty data set, or a batch size below 1.

    Example:
        >>> data = TensorDataset(torch.eye(3), torch.arange(3))
        >>> outputs, targets = predict_all(nn.Identity(), data)
        >>> outputs.argmax(1).equal(targets)
        True
    """
    if len(dataset) == 0:  # type: ignore[arg-type]
        raise ValueError("the data set is empty: nothing to predict")
    if isinstance(function, nn.Module):
        module = function
        with evaluating(module), torch.no_grad():
            return predict_all(lambda inputs: forward(module, inputs), dataset, batch_size, device)
    outputs, targets = [], []
    for inputs, target, _ in batches(dataset, batch_size):
        outputs.append(function(to_device(inputs, device)).detach().cpu())
        targets.append(torch.as_tensor(target).cpu())
    return torch.cat(outputs), torch.cat(targets)
