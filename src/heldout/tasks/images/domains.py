"""Domains of images: shifts as domains, one of them left out, or a sequence of rotations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from heldout.errors import (
    check_at_least,
    check_different,
    check_dimensions,
    check_fraction,
    check_labels,
    check_nonnegative,
    check_same_length,
    checked,
)
from heldout.method import Splits
from heldout.tasks.images.biases import colour_bias, stratified_split
from heldout.tasks.images.checks import _num_classes, check_pair
from heldout.tasks.images.shifts import SHIFTS, rotate
from heldout.tasks.seeds import generator_of


@checked
def domains(
    images: Tensor, labels: Tensor, kind: str = "rotation", *, values: Sequence[float] | None = None, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns images, labels and domain numbers: the examples dealt evenly to domains, each shifted in its own way.

    Args:
        images: ``(n, channels, height, width)`` in [0, 1].
        labels: int64 ``(n,)``.
        kind: "rotation" (a fixed angle for each domain), "colour" (grey images, a correlation of colour and label for
            each domain), or a name in ``SHIFTS`` (a severity for each domain).
        values: the angle in degrees, correlation or severity of each domain; by default 0, 15, .. 75 degrees,
            correlations 0.9, 0.8, -0.9, or severities 0, 0.25, .. 1.

    Raises:
        ValueError: an unknown kind, fewer than 2 values or more than images, images or labels of another form.

    Example:
        >>> from heldout.tasks import digits
        >>> images, labels, domain = domains(*digits(), values=(0, 45, 90))
        >>> domain.bincount().tolist()
        [599, 599, 599]
    """
    check_same_length(images=images, labels=labels)
    check_labels(labels=labels)
    if kind not in SHIFTS and kind != "colour":
        raise ValueError(f"kind must be 'colour' or one of {', '.join(SHIFTS)}, got {kind!r}")
    steps = tuple(values if values is not None else _DOMAIN_VALUES.get(kind, (0, 0.25, 0.5, 0.75, 1)))
    if not 2 <= len(steps) <= len(images):
        raise ValueError(f"domains needs at least 2 values and an image for each, got {len(steps)}")
    check_pair(images, labels)
    (order,) = stratified_split(labels, (len(labels),), seed=seed)
    domain = torch.empty(len(images), dtype=torch.long)
    domain[order] = torch.arange(len(images)) % len(steps)
    channels = 3 if kind == "colour" else images.shape[1]
    shifted_images = images.new_empty(len(images), channels, *images.shape[2:])
    for number, value in enumerate(steps):
        members = domain == number
        if kind == "rotation":
            shifted_images[members] = rotate(images[members], value)
        elif kind == "colour":
            classes = _num_classes(labels, None)
            shifted_images[members] = colour_bias(
                images[members], labels[members], value, num_classes=classes, seed=seed + number
            )
        else:
            shifted_images[members] = SHIFTS[kind](images[members], value, seed=seed + number)
    return shifted_images, labels.clone(), domain


@checked
def leave_one_domain_out(
    images: Tensor,
    labels: Tensor,
    domain: Tensor,
    held_out: int,
    *,
    val: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
) -> Splits:
    """Returns Splits whose train, val and test["iid"] come from the other domains, and test["held_out"] from this one.

    Args:
        images: ``(n, channels, height, width)``.
        labels: int64 ``(n,)``.
        domain: int64 ``(n,)``.
        held_out: the domain never seen in training or selection.
        val: share of the other domains' examples for validation, stratified by domain and class.
        test: the same for test["iid"].

    Raises:
        ValueError: a domain that is not there or the only one, shares outside of [0, 1] or of more than 1 in sum, or
            lengths that differ.

    Example:
        >>> from heldout.tasks import digits
        >>> splits = leave_one_domain_out(*domains(*digits()), held_out=5)
        >>> len(splits.train), len(splits.val), list(splits.test), splits.domains.unique().tolist()
        (1198, 150, ['iid', 'held_out'], [0, 1, 2, 3, 4])
    """
    check_same_length(images=images, labels=labels, domain=domain)
    check_labels(labels=labels)
    check_dimensions(1, domain=domain)
    check_fraction(val=val, test=test)
    check_pair(images, labels)
    inside = (domain != held_out).nonzero().squeeze(1)
    outside = (domain == held_out).nonzero().squeeze(1)
    if not len(inside) or not len(outside):
        raise ValueError(f"held_out must be one of several domains {domain.unique().tolist()}, got {held_out}")
    counts = [round(val * len(inside)), round(test * len(inside))]
    strata = labels[inside] * (int(domain.max()) + 1) + domain[inside]
    parts = stratified_split(strata, (len(inside) - sum(counts), *counts), seed=seed)
    train, val_part, iid = (inside[part] for part in parts)
    return Splits(
        train=TensorDataset(images[train], labels[train]),
        val=TensorDataset(images[val_part], labels[val_part]),
        test={
            "iid": TensorDataset(images[iid], labels[iid]),
            "held_out": TensorDataset(images[outside], labels[outside]),
        },
        domains=domain[train],
    )


@checked
def rotation_sequence(
    images: Tensor,
    labels: Tensor,
    *,
    degrees: Sequence[float] = (15, 30, 45, 60, 75, 90),
    train_size: int = 2000,
    val_size: int = 500,
    domain_size: int = 500,
    jitter: float = 5.0,
    seed: int = 0,
) -> Splits:
    """Returns Splits for successive adaptation: upright source images, then test domains that turn step by step.

    ``train``, ``val`` and ``test["0"]`` are the source: upright, with a random jitter. ``test`` then holds one domain
    per angle, in stream order. No test image is a source image; the domains share images only when there are too few.

    Args:
        images: ``(n, channels, height, width)`` in [0, 1].
        labels: int64 ``(n,)``.
        degrees: the angle of each domain after the source, which names it: different ones, and none of them 0.
        train_size: number of source training images.
        val_size: number of source validation images.
        domain_size: number of images in each test domain.
        jitter: source images are turned by uniform angles within +- this many degrees.

    Raises:
        ValueError: fewer images than the source and one test domain need, numbers out of range, lengths that differ.

    Example:
        >>> from heldout.tasks import digits
        >>> splits = rotation_sequence(*digits(), train_size=900, val_size=200, degrees=(30, 60))
        >>> len(splits.train), {name: len(domain) for name, domain in splits.test.items()}
        (900, {'0': 500, '30': 500, '60': 500})
    """
    check_same_length(images=images, labels=labels)
    check_labels(labels=labels)
    check_at_least(1, train_size=train_size, domain_size=domain_size)
    check_at_least(0, val_size=val_size)
    check_nonnegative(jitter=jitter)
    check_different(degrees=[0, *degrees])
    check_pair(images, labels)
    rest = len(images) - train_size - val_size
    if domain_size > rest:
        raise ValueError(f"{len(images)} images leave {rest} for the test domains, which need {domain_size}")
    train, val, pool = stratified_split(labels, (train_size, val_size, rest), seed=seed)
    generator = generator_of(seed)

    def source(index: Tensor) -> TensorDataset:
        angle = (torch.rand(len(index), generator=generator) * 2 - 1) * jitter
        return TensorDataset(rotate(images[index], angle), labels[index])

    parts = [pool[(torch.arange(domain_size) + i * domain_size) % rest] for i in range(len(degrees) + 1)]
    turned = {f"{angle:g}": TensorDataset(rotate(images[i], angle), labels[i]) for angle, i in zip(degrees, parts[1:])}
    return Splits(train=source(train), val=source(val), test={"0": source(parts[0]), **turned})


_DOMAIN_VALUES: dict[str, tuple[float, ...]] = {"rotation": (0, 15, 30, 45, 60, 75), "colour": (0.9, 0.8, -0.9)}
