"""Dominoes: images with one cue above another, which agree in a chosen share of the examples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from heldout.errors import check_length, checked
from heldout.tasks.images.checks import check_pair
from heldout.tasks.seeds import Seed, generator_of


class Dominoes(NamedTuple):
    """Images and the two labels that can be read from them.

    Attributes:
        images: ``(n, channels, top height + bottom height, width)``.
        labels: int64 ``(n,)``, the classes of the bottom images: the true cue.
        spurious: int64 ``(n,)``, the classes of the top images.

    Example:
        >>> images, labels = torch.arange(2.0).reshape(2, 1, 1, 1), torch.arange(2)
        >>> never = dominoes((images, labels), (images, labels), agreement=0.0, n=4)
        >>> upper, lower = never.images[:, 0, :, 0].T  # the one pixel of each half is its class
        >>> upper.equal(never.spurious.float()), lower.equal(never.labels.float()), bool((upper == lower).any())
        (True, True, False)
    """

    images: Tensor
    labels: Tensor
    spurious: Tensor


@checked
def dominoes(
    top: tuple[Tensor, Tensor], bottom: tuple[Tensor, Tensor], agreement: float, n: int, *, seed: Seed = 0
) -> Dominoes:
    """Returns images of two halves whose classes agree in ``round(agreement * n)`` of the n examples, within 1 a class.

    Bottom classes are equally frequent. Where the halves disagree, the top class is uniform over the others. An image
    is used again only when all of its class have been used.

    Args:
        top: images ``(m, channels, height, width)`` and their labels 0, 1, ..: the spurious cue.
        bottom: the same with the same classes, channels and width: the true cue.
        agreement: share of examples in [0, 1] in which the halves are of the same class; 1 is complete correlation,
            1 / classes independence, 0 never.
        n: number of examples.
        seed: an int, or a ``torch.Generator`` to draw from.

    Raises:
        ValueError: a share outside of [0, 1], images or classes that do not match, or fewer than 2 classes.

    Source: the domino data sets of arXiv:2202.04414 and arXiv:2312.16313.

    Example:
        >>> images, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 2
        >>> pairs = dominoes((images, labels), (images, labels), agreement=0.25, n=8)
        >>> pairs.images.shape, (pairs.labels == pairs.spurious).float().mean().item()
        (torch.Size([8, 1, 16, 8]), 0.25)
    """
    check_length(2, top=top, bottom=bottom)
    check_agreement(agreement, n)
    check_pair(*top)
    check_pair(*bottom)
    classes = max(2, int(torch.cat([top[1], bottom[1]]).max()) + 1)
    for name, (_, half) in {"top": top, "bottom": bottom}.items():
        if half.unique().tolist() != list(range(classes)):
            raise ValueError(
                f"{name} needs images of each of the classes 0..{classes - 1}, got {half.unique().tolist()}"
            )
    if top[0].shape[1] != bottom[0].shape[1] or top[0].shape[3] != bottom[0].shape[3]:
        raise ValueError(
            f"the halves must have the same channels and width, got {tuple(top[0].shape[1:])} above "
            f"{tuple(bottom[0].shape[1:])}"
        )
    generator = generator_of(seed)
    labels = torch.arange(n) % classes
    agree = agreeing(labels, agreement)
    other = (labels + torch.randint(1, classes, (n,), generator=generator)) % classes
    spurious = torch.where(agree, labels, other)
    order = torch.randperm(n, generator=generator)
    labels, spurious = labels[order], spurious[order]
    halves = [_drawn(*half, classes_of, generator) for half, classes_of in ((top, spurious), (bottom, labels))]
    return Dominoes(torch.cat(halves, dim=2), labels, spurious)


def agreeing(labels: Tensor, agreement: float) -> Tensor:
    """A bool mask of ``round(agreement * n)`` examples, spread evenly over the classes; the first ones of each."""
    mask = torch.zeros(len(labels), dtype=torch.bool)
    seen = taken = 0
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        seen += len(members)
        count = round(agreement * seen) - taken
        mask[members[:count]] = True
        taken += count
    return mask


def check_agreement(agreement: float, n: int) -> None:
    """Raises ValueError unless the share lies in [0, 1] and n is positive."""
    if not 0 <= agreement <= 1:
        raise ValueError(f"agreement must be in [0, 1], got {agreement}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")


def _drawn(images: Tensor, labels: Tensor, wanted: Tensor, generator: torch.Generator) -> Tensor:
    """Images of the wanted classes, each used again only when all of its class have been used."""
    chosen = torch.empty(len(wanted), dtype=torch.long)
    for label in wanted.unique():
        pool, places = (labels == label).nonzero().squeeze(1), (wanted == label).nonzero().squeeze(1)
        rounds = -(-len(places) // len(pool))
        order = torch.cat([torch.randperm(len(pool), generator=generator) for _ in range(rounds)])
        chosen[places] = pool[order[: len(places)]]
    return images[chosen]
