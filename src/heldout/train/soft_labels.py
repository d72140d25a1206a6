"""Core: Training on soft labels: disjoint parts of a data set, labels from a model, and a fit that takes them.

For weak-to-strong training, distillation and semi-supervised methods. The data of a labeller and of its student must
not overlap: ``disjoint_splits`` makes parts that do not, ``check_disjoint`` refuses those that do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from heldout.data import TARGET_KEYS, all_targets, gather, is_tensor_data, sample_ids
from heldout.errors import check_nonempty, check_same_length, checked
from heldout.losses import soft_cross_entropy
from heldout.method import Batch, Method, Run, as_dataset
from heldout.tasks import stratified_split
from heldout.train.supervised import Fitted, fit, outputs_of


@checked
def disjoint_splits(data: Any, sizes: Sequence[int | float] = (0.5, 0.5), *, seed: int = 0) -> list[Subset]:
    """Returns parts of a data set that share no example, in each of which the classes are as frequent as in all of it.

    Args:
        data: a data set with class labels, or a pair of tensors.
        sizes: of each part, as a count (int) or a fraction of all examples (float).
        seed: of the dealing.

    Raises:
        ValueError: labels that are no class indices, or sizes that do not fit.

    Example:
        >>> a, b = disjoint_splits((torch.zeros(10, 2), torch.arange(10) % 2))
        >>> len(a), len(b), set(a.indices) & set(b.indices)
        (5, 5, set())
    """
    dataset = as_dataset(data, "data")
    check_nonempty(data=dataset)
    return [Subset(dataset, part.tolist()) for part in stratified_split(all_targets(dataset), sizes, seed=seed)]


@checked
def check_disjoint(**named: Any) -> None:
    """Refuses data sets that are seen to share examples: views of one data set, or slices of one tensor.

    Copies cannot be seen to be copies.

    Raises:
        ValueError: two of them share examples; the message says which, and how many.

    Example:
        >>> x, y = torch.zeros(10, 2), torch.arange(10) % 2
        >>> check_disjoint(train=(x[:6], y[:6]), test=(x[5:], y[5:]))
        Traceback (most recent call last):
        ValueError: train and test must be disjoint, they share 1 example
    """
    places = {name: _places(as_dataset(data, name)) for name, data in named.items()}
    for (first, (base, own)), (second, (other_base, other)) in combinations(places.items(), 2):
        shared = int(torch.isin(own.unique(), other).sum()) if base == other_base else 0
        if shared:
            raise ValueError(
                f"{first} and {second} must be disjoint, they share {shared} example{'s' if shared > 1 else ''}"
            )


def _places(dataset: Any) -> tuple[Any, Tensor]:
    """What holds the examples, and where they are in it."""
    base = dataset
    while isinstance(base, Subset):
        base = base.dataset
    positions = sample_ids(dataset, base)
    if isinstance(base, TensorDataset) and base.tensors[0].ndim and base.tensors[0].stride(0) > 0:
        rows = base.tensors[0]
        starts = int(rows.storage_offset()) + rows.stride(0) * positions
        return (rows.untyped_storage().data_ptr(), rows.dtype), starts
    return id(base), positions


class Relabelled(Dataset):
    """The examples of a data set with other targets.

    Args:
        dataset: its examples are ``(inputs, ..., target)`` or dicts with a ``labels``, ``label``, ``targets`` or
            ``target`` entry.
        targets: one for each example, ``(n, ...)``.

    Raises:
        ValueError: more or fewer targets than examples.
        TypeError: an example that is neither.

    Example:
        >>> Relabelled([(torch.zeros(2), 1)], torch.tensor([[0.3, 0.7]]))[0][1]
        tensor([0.3000, 0.7000])
    """

    @checked
    def __init__(self, dataset: Any, targets: Tensor) -> None:
        check_same_length(dataset=dataset, targets=targets)
        self.dataset, self.targets = dataset, targets

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> Any:
        example, target = self.dataset[position], self.targets[position]
        if isinstance(example, Mapping):
            key = next((key for key in TARGET_KEYS if key in example), None)
            if key is None:
                raise TypeError(f"a dict example needs one of {', '.join(TARGET_KEYS)}, got {sorted(example)}")
            return {**example, key: target}
        if isinstance(example, tuple | list) and len(example) >= 2:
            return (*example[:-1], target)
        raise TypeError(f"an example must be (inputs, target) or a dict with a target, got {type(example).__name__}")


@checked
def relabelled(data: Any, targets: Tensor) -> Dataset:
    """Returns a data set with other targets; tensor data stay tensor data, so that batches are gathered at once.

    Args:
        data: a data set, or a pair of tensors.
        targets: one for each example, ``(n, ...)``.

    Raises:
        ValueError: more or fewer targets than examples.

    Example:
        >>> relabelled((torch.zeros(2, 3), torch.tensor([0, 1])), torch.eye(2))[1]
        (tensor([0., 0., 0.]), tensor([0., 1.]))
    """
    dataset = as_dataset(data, "data")
    if not is_tensor_data(dataset):
        return Relabelled(dataset, targets)
    check_same_length(data=dataset, targets=targets)
    inputs, _ = gather(dataset, torch.arange(len(dataset)))
    return TensorDataset(*(inputs if isinstance(inputs, tuple) else (inputs,)), targets)


@checked
def label_with(model: nn.Module, data: Any, soft: bool = True) -> Dataset:
    """Returns the data set, in its order, with a model's predictions as targets. One forward pass an example.

    The model predicts in evaluation mode without gradients, and is put back into the mode it was in.

    Args:
        model: a classifier: any ``nn.Module``, or a transformers model whose output has ``.logits``.
        data: a data set, or a pair of tensors; its own targets are not looked at.
        soft: targets are class probabilities ``(classes,)``; False: class indices.

    Raises:
        ValueError: no examples, outputs that are not ``(batch, classes)``, or not finite.

    Example:
        >>> labelled = label_with(nn.Linear(2, 3), (torch.zeros(4, 2), torch.zeros(4).long()))
        >>> round(labelled[0][1].sum().item(), 4)
        1.0
    """
    probs = class_probabilities(model, data)
    return relabelled(data, probs if soft else probs.argmax(1))


@checked
def class_probabilities(model: nn.Module, data: Any) -> Tensor:
    """Returns a model's class probabilities ``(n, classes)`` for each example in order, on the CPU in float32.

    Raises:
        ValueError: no examples, outputs that are not ``(batch, classes)``, or not finite.

    Example:
        >>> class_probabilities(nn.Linear(2, 3), (torch.zeros(4, 2), torch.zeros(4).long())).shape
        torch.Size([4, 3])
    """
    dataset = as_dataset(data, "data")
    check_nonempty(data=dataset)
    outputs, _ = outputs_of(model, dataset)
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise ValueError(f"model must give (batch, classes) with at least 2 classes, got {tuple(outputs.shape)}")
    if not outputs.isfinite().all():
        raise ValueError("model gives outputs that are not finite")
    return outputs.float().softmax(1)


@checked
def fit_soft_labels(
    model: nn.Module | Callable[[], nn.Module],
    data: Any,
    loss: Callable[..., Tensor] | None = None,
    **recipe: Any,
) -> Fitted:
    """Returns a copy of a model trained on soft labels by ``heldout.fit``.

    ``fitted.outputs(data)`` gives logits; ``fitted.evaluate`` has no score for soft labels.

    Args:
        model: as for ``heldout.fit``.
        data: a training set whose targets are class probabilities ``(classes,)``, or class indices.
        loss: ``(logits, targets) -> scalar``, or ``(logits, targets, progress) -> scalar`` with the share of the steps
            that are taken, such as ``heldout.losses.ConfidenceLoss``. Default: cross-entropy.
        recipe: further arguments of ``heldout.fit``.

    Raises:
        ValueError: soft labels that are no probabilities, or of another number of classes than the model's outputs.
        FloatingPointError: the loss is no longer finite.

    Example:
        >>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
        >>> soft = torch.stack([(-4 * x[:, 0]).sigmoid(), (4 * x[:, 0]).sigmoid()], 1)
        >>> adam = lambda module: torch.optim.Adam(module.parameters(), lr=0.1)
        >>> fitted = fit_soft_labels(lambda: nn.Linear(2, 2), (x, soft), optimizer=adam, epochs=30)
        >>> bool((fitted.predict(x).argmax(1) == (x[:, 0] > 0)).double().mean() > 0.9)
        True
    """
    dataset = as_dataset(data, "data")
    check_nonempty(data=dataset)
    targets = all_targets(dataset)
    soft = targets.is_floating_point()
    if soft and not (
        targets.ndim == 2 and bool((targets >= 0).all()) and bool(((targets.sum(1) - 1).abs() < 1e-2).all())
    ):
        raise ValueError("the targets of data must be class probabilities (n, classes), each row summing to 1")
    objective: Callable[..., Tensor] = loss or (soft_cross_entropy if soft else F.cross_entropy)
    if not reads_progress(objective):
        return fit(model, dataset, loss=objective, **recipe)

    def stage(run: Run, batch: Batch) -> Tensor:
        taken = run.step * run.batch_size / (run.epochs * len(run.train_set))
        return objective(batch.logits, batch.targets, progress=min(1.0, taken))

    return fit(model, dataset, Method("soft_labels", loss=stage), **recipe)


@checked
def reads_progress(loss: Callable[..., Any]) -> bool:
    """Returns whether a loss takes the share of training that is done as ``progress``.

    Example:
        >>> reads_progress(soft_cross_entropy)
        False
    """
    called = loss.forward if isinstance(loss, nn.Module) else loss
    return "progress" in inspect.signature(called).parameters
