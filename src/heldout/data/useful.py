"""USEFUL: show the examples that a network has not yet learned early in training twice, and train again.

A network learns a fast, simple feature first. Examples that lack it, or have it weakly, are told by their outputs after
a few epochs: in each class they make up the one of two clusters that has the higher loss. Showing them twice lets the
network learn its features at more equal speed, which improves accuracy on the same distribution.
Source: arXiv:2404.17768.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, Subset, SubsetRandomSampler

from heldout.data.loading import gather, predict_all
from heldout.errors import check_at_least, check_labels, check_nonempty, checked
from heldout.method import Method, Run, Splits


@checked
def early_output_clusters(
    outputs: Tensor, losses: Tensor, labels: Tensor, *, n_init: int = 10, seed: int = 0
) -> Tensor:
    """Returns a bool mask ``(n,)`` of the slow-learnable examples: in each class, the cluster with the higher loss.

    The outputs of each class are split by k-means into two clusters. A class with fewer than two examples, or with
    equal outputs, has no clusters: it gets a warning and no marked example. Mislabelled examples have high losses too:
    clean the labels before, or expect them among the marked ones.

    Args:
        outputs: ``(n, outputs)`` of a network after a few epochs, in eval mode and without augmentation; logits (the
            default of this module) or probabilities.
        losses: ``(n,)``, the training loss of each example.
        labels: int64 ``(n,)``.
        n_init: k-means runs, of which the best is kept.
        seed: of k-means.

    Raises:
        ValueError: shapes that do not match, or values that are not finite.

    Example:
        >>> outputs = torch.tensor([[4.0, 0.0], [4.1, 0.0], [0.1, 0.0], [0.0, 5.0], [0.0, 0.2]])
        >>> labels = torch.tensor([0, 0, 0, 1, 1])
        >>> early_output_clusters(outputs, F.cross_entropy(outputs, labels, reduction="none"), labels)
        tensor([False, False,  True, False,  True])

    Source: arXiv:2404.17768, algorithm 1.
    """
    check_at_least(0, seed=seed)
    check_labels(labels=labels)
    from sklearn.cluster import KMeans

    if outputs.ndim != 2 or losses.shape != labels.shape or labels.shape != outputs.shape[:1]:
        raise ValueError(
            "needs outputs (n, outputs), losses (n,) and labels (n,), got "
            f"{tuple(outputs.shape)}, {tuple(losses.shape)} and {tuple(labels.shape)}"
        )
    if not (outputs.isfinite().all() and losses.isfinite().all()):
        raise ValueError("outputs and losses must be finite: the network diverged in its early epochs")
    outputs, losses, labels = outputs.detach().double().cpu(), losses.detach().cpu(), labels.cpu()
    slow = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        rows = outputs[members]
        if (rows == rows[0]).all():
            warnings.warn(
                f"class {int(label)} has {len(members)} example(s) with one and the same output: none is marked",
                stacklevel=2,
            )
            continue
        clusters = KMeans(2, n_init=n_init, random_state=seed).fit_predict(rows.numpy())
        second = torch.from_numpy(clusters) == 1
        second_is_slow = losses[members[second]].mean() > losses[members[~second]].mean()
        slow[members[second == second_is_slow]] = True
    return slow


@checked
def separating_epoch(train_error: Sequence[float]) -> int:
    """Returns the epoch, counted from 1, at which the fall of the training error starts to slow: the curve's knee.

    That is the point farthest below the chord from the first to the last value of the running minimum.

    Args:
        train_error: the training error after each epoch, at least 3 values.

    Raises:
        ValueError: fewer than 3 values, or some that are not finite.

    Example:
        >>> separating_epoch([0.9, 0.6, 0.3, 0.28, 0.26, 0.24])
        3

    Deviation: the paper reads the epoch off the curve by eye; this rule is ours.
    """
    check_nonempty(train_error=train_error)
    if len(train_error) < 3:
        raise ValueError(f"the knee of a curve needs at least 3 epochs, got {len(train_error)}")
    errors = torch.tensor(list(train_error), dtype=torch.float64)
    if not errors.isfinite().all():
        raise ValueError("train_error must be finite")
    lowest = errors.cummin(0).values
    chord = torch.linspace(float(lowest[0]), float(lowest[-1]), len(lowest), dtype=torch.float64)
    return int((chord - lowest).argmax()) + 1


@checked
def upsample(dataset: Dataset, mask: Tensor, factor: int = 2) -> Subset:
    """Returns a view of the data set in which every marked example occurs ``factor`` times; no data is copied.

    Args:
        dataset: n examples.
        mask: bool ``(n,)``.
        factor: at least 1, which repeats nothing.

    Raises:
        ValueError: a mask that is not bool ``(n,)``, or a factor below 1.

    Example:
        >>> data = torch.utils.data.TensorDataset(torch.tensor([5, 6, 7]))
        >>> [int(x) for x, in upsample(data, torch.tensor([False, True, False]))]
        [5, 6, 7, 6]
    """
    if mask.dtype != torch.bool or mask.shape != (len(dataset),):  # type: ignore[arg-type]
        raise ValueError(
            f"mask must be bool with one entry for each of {len(dataset)} examples, "  # type: ignore[arg-type]
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
    return Subset(dataset, _upsampled_indices(mask, factor))


@checked
def upsample_sampler(mask: Tensor, factor: int = 2, *, seed: int = 0) -> SubsetRandomSampler:
    """Returns a shuffling sampler for a DataLoader: every position once, every marked one ``factor`` times.

    Args:
        mask: bool ``(n,)``.
        factor: at least 1, which repeats nothing.
        seed: of the order.

    Raises:
        ValueError: a factor below 1.

    Example:
        >>> sorted(upsample_sampler(torch.tensor([True, False]), factor=3))
        [0, 0, 0, 1]
    """
    return SubsetRandomSampler(_upsampled_indices(mask, factor), generator=torch.Generator().manual_seed(seed))


def _upsampled_indices(mask: Tensor, factor: int) -> list[int]:
    if factor < 1:
        raise ValueError(f"factor must be at least 1, got {factor}")
    slow = mask.nonzero().squeeze(1)
    return torch.cat([torch.arange(len(mask)), slow.repeat(factor - 1)]).tolist()


class UsefulSplit(NamedTuple):
    """What ``useful_split`` found.

    Attributes:
        mask: bool ``(n,)``, the slow-learnable examples.
        epoch: the separating epoch.
        per_class: share of slow-learnable examples in each class.
    """

    mask: Tensor
    epoch: int
    per_class: dict[int, float]


@checked
def useful_split(
    train: Callable[[Any, int], tuple[nn.Module, Sequence[float]]],
    dataset: Dataset,
    *,
    epoch: int | None = None,
    search_epochs: int = 10,
    n_init: int = 10,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> UsefulSplit:
    """Returns the slow-learnable examples of a data set for a model and a training recipe of one's own.

    Costs ``search_epochs`` (where no epoch is given) plus ``epoch`` epochs of training and one pass over the data.

    Args:
        train: ``(dataset, epochs) -> (model, training error after each epoch)``, trains a fresh model with the usual
            recipe and returns it, or any callable from inputs to logits.
        dataset: what to split; examples are ``(inputs, label)`` or dicts with labels.
        epoch: the separating epoch; by default the knee of the training error over ``search_epochs``.
        search_epochs: at least 3; about a tenth to a quarter of the whole training.
        n_init: k-means runs for each class.
        seed: of k-means.
        device: where the model takes its inputs.

    Raises:
        ValueError: an epoch below 1, fewer than 3 errors to find it by, and as ``early_output_clusters``.

    Example:
        >>> inputs = torch.tensor([[2.0], [2.1], [-2.0], [-2.1], [0.1], [-0.1]])
        >>> data = torch.utils.data.TensorDataset(inputs, torch.tensor([1, 1, 0, 0, 1, 0]))
        >>> def train(dataset, epochs):
        ...     return (lambda x: torch.cat([-x, x], dim=1)), [0.5, 0.1, 0.1][:epochs]
        >>> split = useful_split(train, data, search_epochs=3)
        >>> split.mask.tolist(), split.epoch
        ([False, False, False, False, True, True], 2)

    Source: arXiv:2404.17768, algorithm 1, lines 1-5.
    """
    if epoch is None:
        model, errors = train(dataset, search_epochs)
        epoch = separating_epoch(errors)
        if epoch < search_epochs:
            model, _ = train(dataset, epoch)
    elif epoch >= 1:
        model, _ = train(dataset, epoch)
    else:
        raise ValueError(f"the separating epoch must be at least 1, got {epoch}")
    outputs, labels = predict_all(model, dataset, device=device)
    losses = F.cross_entropy(outputs.float(), labels, reduction="none")
    mask = early_output_clusters(outputs, losses, labels, n_init=n_init, seed=seed)
    per_class = {int(label): mask[labels == label].double().mean().item() for label in labels.unique()}
    return UsefulSplit(mask, epoch, per_class)


@checked
def useful(separating_epoch: int | None = None, factor: int = 2) -> Method:
    """Returns the Method that trains briefly, repeats the examples not yet learned, and starts again.

    Training costs the early epochs on top, and the share of repeated examples more in each epoch.

    Args:
        separating_epoch: when to look; by default the knee of the training error in the first quarter of the epochs.
            Set to the last epoch or beyond, it is the last.
        factor: how often a slow-learnable example occurs; 2 is best in the paper.

    Raises:
        ValueError: a factor or an epoch below 1.

    Source: arXiv:2404.17768.

    Example:
        >>> useful(separating_epoch=2).name
        'useful'
    """
    if factor < 1 or (separating_epoch is not None and separating_epoch < 1):
        raise ValueError(f"useful needs factor >= 1 and separating_epoch >= 1, got {factor} and {separating_epoch}")

    def data(run: Run, train_set: Any) -> Subset:
        if isinstance(train_set, Sampler):
            raise TypeError("useful repeats examples of a data set, got a sampler: write useful before that method")
        search = max(3, math.ceil(run.epochs / 4))
        epoch = min(separating_epoch, run.epochs) if separating_epoch else None
        if run.epochs < search:
            epoch = epoch or 1
        split = useful_split(
            run.train_plain, train_set, epoch=epoch, search_epochs=search, seed=run.seed, device=run.device
        )
        return upsample(train_set, split.mask, factor)

    def check(module: nn.Module, splits: Splits) -> str | None:
        _, target = gather(splits.train, torch.tensor([0]))
        if target.is_floating_point() or target.ndim != 1:
            return "useful clusters the outputs of each class: it needs one class index per example as the target"
        return None

    return Method("useful", data=data, check=check)
