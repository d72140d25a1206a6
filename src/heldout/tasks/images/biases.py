"""What a training set may be told wrongly: biased attributes and colours, imbalance, label noise; and fair splits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_labels,
    check_nonempty,
    check_nonnegative,
    check_same_length,
    checked,
)
from heldout.tasks.images.checks import _num_classes, check_images
from heldout.tasks.seeds import Seed, generator_of


@checked
def stratified_split(labels: Tensor, sizes: Sequence[int | float], *, seed: Seed = 0) -> list[Tensor]:
    """Returns disjoint index tensors, in each of which the classes are as frequent as in ``labels``.

    Args:
        labels: int64 ``(n,)``.
        sizes: the size of each part, as a count (int) or as a fraction of n (float).
        seed: an int, or a ``torch.Generator`` to draw from.

    Raises:
        ValueError: no labels, negative sizes, or sizes of more than n in sum.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
        >>> train, test = stratified_split(labels, (3, 0.5))
        >>> labels[train].tolist().count(1), labels[test].tolist().count(1)
        (1, 1)
    """
    check_nonempty(labels=labels)
    check_dimensions(1, labels=labels)
    check_labels(labels=labels)
    check_nonnegative(sizes=sizes)
    n = len(labels)
    ends = np.cumsum([0.0, *(size * n if isinstance(size, float) else size for size in sizes)])
    counts = np.diff(np.floor(ends + 0.5 - 1e-9)).astype(int).tolist()  # cumulative, so that fractions of 1 fit in n
    if min(counts, default=0) < 0 or sum(counts) > n:
        raise ValueError(f"cannot take parts of {list(sizes)} from {n} examples")
    order = torch.randperm(n, generator=generator_of(seed))
    place = torch.empty(n, dtype=torch.float64)
    for label in labels.unique():
        members = order[labels[order] == label]
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    spread = order[place[order].argsort(stable=True)]
    return list(spread[: sum(counts)].split(counts))


@checked
def biased_attribute(labels: Tensor, correlation: float, *, num_classes: int | None = None, seed: Seed = 0) -> Tensor:
    """Returns an attribute of each example, one of ``num_classes`` values, that is correlated with its label.

    With probability |correlation| it is the label (positive correlation) or the label's successor (negative, so
    that what was learned at a positive correlation misleads); otherwise it is uniform over all values.

    Args:
        labels: int64 ``(n,)``.
        correlation: in [-1, 1]; 0 makes the attribute independent of the label.
        num_classes: by default the largest label + 1.
        seed: an int, or a ``torch.Generator`` to draw from.

    Returns:
        int64 ``(n,)``.

    Raises:
        ValueError: a correlation outside of [-1, 1], or labels that are not in 0 .. num_classes - 1.

    Example:
        >>> labels = torch.tensor([0, 1, 2])
        >>> biased_attribute(labels, 1.0).tolist(), biased_attribute(labels, -1.0).tolist()
        ([0, 1, 2], [1, 2, 0])
    """
    check_at_least(1, num_classes=num_classes)
    check_labels(num_classes, labels=labels)
    if not -1 <= correlation <= 1:
        raise ValueError(f"correlation must be in [-1, 1], got {correlation}")
    classes = _num_classes(labels, num_classes)
    generator = generator_of(seed)
    free = torch.rand(len(labels), generator=generator) >= abs(correlation)
    uniform = torch.randint(0, classes, (len(labels),), generator=generator)
    own = labels if correlation > 0 else (labels + 1) % classes
    return torch.where(free.to(labels.device), uniform.to(labels.device), own)


@checked
def colourise(images: Tensor, colours: Tensor, num_colours: int) -> Tensor:
    """Returns grey images painted in colours, ``(n, 3, h, w)``: hues that lie evenly around the circle, from red.

    Args:
        images: ``(n, 1, h, w)``; their values are the brightness.
        colours: int64 ``(n,)``, the number of each image's hue, 0 to ``num_colours - 1``.
        num_colours: hues that there are, at least 1.

    Raises:
        ValueError: images of another form or with more than one channel, or colours that there are not.

    Example:
        >>> colourise(torch.full((2, 1, 1, 1), 0.5), torch.tensor([0, 2]), 3).flatten(1)  # red, blue
        tensor([[0.5000, 0.0000, 0.0000],
                [0.0000, 0.0000, 0.5000]])
    """
    check_same_length(images=images, colours=colours)
    check_at_least(1, num_colours=num_colours)
    check_labels(num_colours, colours=colours)
    check_images(images)
    if images.shape[1] != 1:
        raise ValueError(f"only images with 1 channel can be coloured, got {images.shape[1]} channels")
    if len(colours) != len(images) or (
        len(colours) and not 0 <= int(colours.min()) <= int(colours.max()) < num_colours
    ):
        raise ValueError(f"colours must be {len(images)} values in 0..{num_colours - 1}")
    hue = torch.arange(num_colours, dtype=images.dtype) / num_colours * 6
    offsets = torch.tensor([0.0, 4.0, 2.0], dtype=images.dtype)
    palette = (((hue[:, None] + offsets) % 6 - 3).abs() - 1).clamp(0, 1).to(images.device)
    return images * palette[colours][:, :, None, None]


@checked
def colour_bias(
    images: Tensor, labels: Tensor, correlation: float, *, num_classes: int | None = None, seed: Seed = 0
) -> Tensor:
    """Returns grey images painted ``(n, 3, h, w)`` in colours correlated with the labels, see ``biased_attribute``.

    Args:
        images: grey, ``(n, 1, h, w)``.
        labels: int64 ``(n,)``, at least one.
        correlation: in [-1, 1].
        num_classes: and number of hues; by default the largest label + 1.
        seed: an int, or a ``torch.Generator`` to draw from.

    Raises:
        ValueError: as ``biased_attribute`` and ``colourise``; no labels, or lengths that differ.

    Example:
        >>> from heldout.tasks import digits
        >>> images, labels = digits()
        >>> train = colour_bias(images, labels, correlation=0.9)
        >>> test = colour_bias(images, labels, correlation=0.0, seed=1)
        >>> tuple(test.shape)
        (1797, 3, 8, 8)
    """
    check_nonempty(labels=labels)
    check_same_length(images=images, labels=labels)
    check_labels(labels=labels)
    classes = _num_classes(labels, num_classes)
    return colourise(images, biased_attribute(labels, correlation, num_classes=classes, seed=seed), classes)


@checked
def imbalance(labels: Tensor, ratio: float, *, seed: Seed = 0) -> Tensor:
    """Returns sorted indices of a long-tailed subset: class sizes fall geometrically from the first class to the last.

    The first class keeps as many examples as the rarest class has; every class keeps at least one.

    Args:
        labels: int64 ``(n,)``.
        ratio: size of the first class over size of the last, at least 1.

    Raises:
        ValueError: a ratio below 1 or not finite, or no labels.

    Example:
        >>> labels = torch.arange(3).repeat(100)
        >>> labels[imbalance(labels, 100)].bincount().tolist()
        [100, 10, 1]
    """
    check_nonempty(labels=labels)
    check_labels(labels=labels)
    if not (math.isfinite(ratio) and ratio >= 1):
        raise ValueError(f"ratio must be at least 1, got {ratio}")
    classes, counts = labels.unique(return_counts=True)
    if not len(classes):
        raise ValueError("imbalance needs labels, got an empty tensor")
    generator = generator_of(seed)
    kept = []
    for rank, label in enumerate(classes):
        members = (labels == label).nonzero().squeeze(1)
        size = int(counts.min()) * ratio ** (-rank / max(1, len(classes) - 1))
        kept.append(members[torch.randperm(len(members), generator=generator)[: max(1, round(size))]])
    return torch.cat(kept).sort().values


@checked
def label_noise(labels: Tensor, rate: float, num_classes: int, *, seed: Seed = 0) -> tuple[Tensor, Tensor]:
    """Returns noisy labels and a bool mask of the wrong ones: ``round(rate * n)`` labels, moved to other classes.

    Args:
        labels: int64 ``(n,)``.
        rate: share of wrong labels, in [0, 1]; each is uniform over the other classes.
        num_classes: at least 2.

    Raises:
        ValueError: a rate outside of [0, 1], fewer than 2 classes, or labels that are not ``(n,)`` class indices.

    Example:
        >>> noisy, wrong = label_noise(torch.zeros(10, dtype=torch.long), 0.2, 10)
        >>> int(wrong.sum()), bool((noisy[wrong] != 0).all())
        (2, True)
    """
    check_dimensions(1, labels=labels)
    check_at_least(2, num_classes=num_classes)
    check_labels(num_classes, labels=labels)
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be in [0, 1], got {rate}")
    if _num_classes(labels, num_classes) < 2:
        raise ValueError(f"label_noise needs at least 2 classes, got {num_classes}")
    generator = generator_of(seed)
    chosen = torch.randperm(len(labels), generator=generator)[: round(rate * len(labels))].to(labels.device)
    step = torch.randint(1, num_classes, (len(chosen),), generator=generator).to(labels.device)
    noisy = labels.clone()
    noisy[chosen] = (labels[chosen] + step) % num_classes
    wrong = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    wrong[chosen] = True
    return noisy, wrong
