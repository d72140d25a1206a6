"""Coloured images whose colour means one label in some domains and the other label in others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heldout.errors import check_fraction, check_labels, check_same_length, checked
from heldout.tasks.images.biases import biased_attribute, colourise, label_noise, stratified_split
from heldout.tasks.images.checks import check_pair


@checked
def coloured_conflict(
    images: Tensor,
    labels: Tensor,
    *,
    agreement: Sequence[float] = (0.9, 0.8, 0.1),
    noise: float = 0.25,
    tint: bool = True,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns red and cyan images ``(n, 3, h, w)``, binary labels and domain numbers: colour and label agree by domain.

    The label is the class's half (0 for the lower classes), wrong with probability ``noise``; the colour is the
    label's with the probability ``agreement`` of the domain, the other one otherwise. So the shape is right with
    probability ``1 - noise`` everywhere; who knows the domain gains by following its colour rule, and over all
    domains evenly mixed the colour is right with their mean agreement. The examples are dealt evenly to the domains.

    Args:
        images: grey, ``(n, 1, h, w)`` in [0, 1].
        labels: int64 ``(n,)``, at least two classes.
        agreement: of each domain, in [0, 1].
        noise: share of wrong labels.
        tint: colour the background by the domain, so that the domain is visible.
        seed: of dealing, noise and colours.

    Raises:
        ValueError: images that are not grey, fewer than two domains, or shares outside [0, 1].

    Example:
        >>> from heldout.tasks import digits
        >>> images, labels, domain = coloured_conflict(*digits())
        >>> tuple(images.shape), domain.bincount().tolist()
        ((1797, 3, 8, 8), [599, 599, 599])
    """
    check_same_length(images=images, labels=labels)
    check_labels(labels=labels)
    check_fraction(noise=noise)
    check_pair(images, labels)
    if not 2 <= len(agreement) <= len(images) or not all(0 <= a <= 1 for a in agreement):
        raise ValueError(f"agreement needs at least 2 domains and values in [0, 1], got {tuple(agreement)}")
    classes = int(labels.max()) + 1
    if classes < 2:
        raise ValueError("coloured_conflict needs labels of at least 2 classes, got 1")
    (order,) = stratified_split(labels, (len(labels),), seed=seed)
    domain = torch.empty(len(images), dtype=torch.long)
    domain[order] = torch.arange(len(images)) % len(agreement)
    binary = (2 * labels >= classes).long()
    painted = images.new_empty(len(images), 3, *images.shape[2:])
    backgrounds = colourise(images.new_ones(len(agreement), 1, 1, 1), torch.arange(len(agreement)), len(agreement))
    for number, share in enumerate(agreement):
        mine = domain == number
        binary[mine], _ = label_noise(binary[mine], noise, 2, seed=seed + 2 * number)
        colour = biased_attribute(binary[mine], 2 * share - 1, num_classes=2, seed=seed + 2 * number + 1)
        coloured = colourise(images[mine], colour, 2)
        background = (1 - images[mine]) * backgrounds[number] * 0.3 if tint else 0.0
        painted[mine] = coloured + background
    return painted, binary, domain
