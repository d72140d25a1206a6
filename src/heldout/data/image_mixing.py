"""Core: Mixing each image of a batch with another one, and their labels: pairing, shares, soft targets.

``Mixup`` blends whole images, ``CutMix`` pastes one rectangle, ``PatchMix`` (``heldout.data.patch_mixing``) scattered
patches; ``MixingChoice`` draws one of several for each batch. Each is a plain function of ``(images, labels)`` that
keeps no state. Sources: arXiv:1710.09412, arXiv:1905.04899, arXiv:2306.17848.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heldout.data.mixing import beta_weight, mix, soft_labels
from heldout.errors import (
    check_at_least,
    check_between,
    check_dimensions,
    check_fields,
    check_finite,
    check_fraction,
    check_labels,
    check_nonnegative,
    check_same_length,
    checked,
)


@checked
def derangement(size: int, generator: torch.Generator | None = None) -> Tensor:
    """Returns a random partner for each of ``size`` examples that is never the example itself: int64 ``(size,)``.

    Uniform over the permutations without a fixed point: permutations are drawn until one has none, 2.7 times on
    average.

    Args:
        size: number of examples, at least 2.
        generator: source of randomness, a CPU one.

    Raises:
        ValueError: fewer than 2 examples, which have no such partner.

    Example:
        >>> derangement(2).tolist()
        [1, 0]
    """
    check_at_least(2, size=size)
    own = torch.arange(size)
    while True:
        partner = torch.randperm(size, generator=generator)
        if not (partner == own).any():
            return partner


@checked
def blend_targets(targets: Tensor, partner: Tensor, share: float | Tensor) -> Tensor:
    """Returns the targets ``(batch, classes)`` of mixed examples: ``(1 - share) y + share y[partner]``.

    Args:
        targets: class probabilities ``(batch, classes)``.
        partner: positions of the partners in the batch, int64 ``(batch,)``.
        share: of the partner in each example, in [0, 1]: one number, or ``(batch,)``.

    Raises:
        ValueError: shapes that do not fit, a share outside of [0, 1], a partner outside of the batch.

    Source: arXiv:1905.04899, eq. 1, with the share of the partner.

    Example:
        >>> blend_targets(torch.eye(2), torch.tensor([1, 0]), torch.tensor([0.25, 0.0])).tolist()
        [[0.75, 0.25], [0.0, 1.0]]
    """
    check_dimensions(2, targets=targets)
    check_dimensions(1, partner=partner)
    check_same_length(targets=targets, partner=partner)
    check_labels(len(targets), partner=partner)
    check_finite(targets=targets)
    check_fraction(share=share)
    weight = torch.as_tensor(share, dtype=targets.dtype, device=targets.device)
    if weight.ndim and weight.shape != targets.shape[:1]:
        raise ValueError(f"share must be one number or ({len(targets)},), got {tuple(weight.shape)}")
    weight = weight.reshape(-1, 1)
    return (1 - weight) * targets + weight * targets[partner.to(targets.device)]


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """What all mixing of images shares; a subclass says by ``combine`` how an image and its partner become one.

    Called with images ``(batch, channels, height, width)`` and labels, it returns ``(images, soft_targets)``: new
    images of the same shape, and class probabilities ``(batch, classes)``. A part of each partner that its image
    holds, measured in pixels, is the part that the partner's label has in the target.

    Args:
        label_smoothing: share of each target that is spread over all classes, in [0, 1). Once, after blending.
        prob: probability that a batch is mixed at all; otherwise its images come back as they are.

    Raises:
        ValueError: a share outside of its range.

    Example:
        >>> class Lower(Mixing):
        ...     def combine(self, images, partner, generator):
        ...         half = images.shape[2] // 2
        ...         return torch.cat([images[:, :, :half], images[partner][:, :, half:]], 2), 0.5
        >>> images, targets = Lower()(torch.arange(2.0).reshape(2, 1, 1, 1).expand(2, 1, 2, 1), torch.tensor([0, 1]), 2)
        >>> images.flatten(1).tolist(), targets.tolist()
        ([[0.0, 1.0], [1.0, 0.0]], [[0.5, 0.5], [0.5, 0.5]])
    """

    label_smoothing: float = 0.0
    prob: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_fraction(prob=self.prob)
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")

    @checked
    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        num_classes: int | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the mixed images and their soft targets ``(batch, classes)``.

        Args:
            images: floating point, ``(batch, channels, height, width)``, at least 2 of them.
            labels: class indices ``(batch,)``, or class probabilities ``(batch, classes)``.
            num_classes: number of classes; needed with class indices.
            generator: source of randomness, a CPU one.

        Raises:
            TypeError: images that are not floating point.
            ValueError: images of another shape or not finite, a batch of one, labels that do not fit.
        """
        check_mixable(images)
        check_same_length(images=images, labels=labels)
        targets = _probabilities(labels, num_classes, self.label_smoothing).to(images.device)
        if self.prob < 1 and float(torch.rand((), generator=generator)) >= self.prob:
            return images, targets
        partner = derangement(len(images), generator)
        mixed, share = self.combine(images, partner, generator)
        return mixed, blend_targets(targets, partner, share)

    def combine(
        self, images: Tensor, partner: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, float | Tensor]:
        """Returns each image mixed with its partner, and the partner's share: one number, or ``(batch,)``."""
        raise NotImplementedError

    def why_not(self, height: int, width: int) -> str | None:
        """Returns why images of this size cannot be mixed, or None."""
        return None


@dataclass(frozen=True, kw_only=True)
class Mixup(Mixing):
    """Mixup: every image becomes a weighted mean of itself and its partner, by one weight a batch.

    Deviation: a partner is never the image itself, as everywhere here; ``heldout.data.mixup`` takes any permutation.

    Args:
        alpha: of the Beta(alpha, alpha) distribution of the weight; 0 mixes nothing.
        label_smoothing, prob: as for all mixing.

    Raises:
        ValueError: a negative or infinite alpha, a share outside of [0, 1].

    Source: arXiv:1710.09412, eq. 2.

    Example:
        >>> images, targets = Mixup(alpha=1.0)(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]), 3)
        >>> images.shape, targets.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 3]))
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_nonnegative(alpha=self.alpha)

    def combine(self, images: Tensor, partner: Tensor, generator: torch.Generator | None) -> tuple[Tensor, float]:
        weight = beta_weight(self.alpha, generator)
        return mix(images, partner, weight), 1 - weight


@dataclass(frozen=True, kw_only=True)
class CutMix(Mixing):
    """CutMix: one rectangle, the same in every image of a batch, is taken from the partner.

    Its sides are ``sqrt(1 - weight)`` of the image's, with the weight drawn from Beta(alpha, alpha), and its centre is
    anywhere; what lies outside is cut off, and the labels are blended by the area that is left.

    Args:
        alpha: of the Beta distribution; 0 mixes nothing.
        label_smoothing, prob: as for all mixing.

    Raises:
        ValueError: a negative or infinite alpha, a share outside of [0, 1].

    Source: arXiv:1905.04899, eq. 1 and 2.

    Example:
        >>> images, targets = CutMix()(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]), 3)
        >>> images.shape, targets.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 3]))
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_nonnegative(alpha=self.alpha)

    def combine(self, images: Tensor, partner: Tensor, generator: torch.Generator | None) -> tuple[Tensor, float]:
        height, width = images.shape[-2:]
        side = math.sqrt(1 - beta_weight(self.alpha, generator))
        rows, columns = (_interval(length, side, generator) for length in (height, width))
        mixed = images.clone()
        mixed[..., rows, columns] = images[..., rows, columns][partner.to(images.device)]
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return mixed, area / (height * width)


@dataclass(frozen=True, init=False)
class MixingChoice:
    """One of several ways of mixing, drawn anew for each batch: a training recipe's mixture of augmentations.

    Called as each of them is. To mix only some batches, give the choices a ``prob`` below 1.

    Args:
        choices: ``Mixup(...)``, ``CutMix(...)``, ``PatchMix(...)``, or any function called as they are.
        probs: of each choice; not negative, summing to 1. Default: all equal.

    Raises:
        ValueError: no choices, or probs that do not fit them.

    Source: arXiv:2306.17848, the training recipe, in which Patch Mixing joins Mixup and CutMix.

    Example:
        >>> choice = MixingChoice([Mixup(alpha=0.8), CutMix()], [0.25, 0.75])
        >>> images, targets = choice(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 1, 0]), 2)
        >>> targets.sum(1)
        tensor([1., 1., 1., 1.])
    """

    choices: tuple[Any, ...]
    probs: tuple[float, ...]

    @checked
    def __init__(self, choices: Sequence[Any], probs: Sequence[float] | None = None) -> None:
        if not choices or not all(map(callable, choices)):
            raise ValueError(f"choices must be at least one way of mixing, such as CutMix(), got {choices!r}")
        probs = [1 / len(choices)] * len(choices) if probs is None else list(probs)
        check_same_length(choices=choices, probs=probs)
        check_fraction(probs=probs)
        if abs(sum(probs) - 1) > 1e-6:
            raise ValueError(f"probs must sum to 1, got {probs}")
        object.__setattr__(self, "choices", tuple(choices))
        object.__setattr__(self, "probs", tuple(probs))

    @checked
    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        num_classes: int | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns ``(images, soft_targets)`` of the choice that is drawn; see ``Mixing``."""
        drawn = int(torch.multinomial(torch.tensor(self.probs), 1, generator=generator))
        return self.choices[drawn](images, labels, num_classes, generator=generator)

    def why_not(self, height: int, width: int) -> str | None:
        """Returns why images of this size cannot be mixed by one of the choices, or None."""
        reasons = (each.why_not(height, width) for each in self.choices if hasattr(each, "why_not"))
        return next(filter(None, reasons), None)


def check_mixable(images: Tensor) -> None:
    """Refuses what is no batch of at least two floating-point images with finite values."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be floating point to be mixed, got {kind}: images.float() / 255")
    check_dimensions(4, images=images)
    if len(images) < 2:
        raise ValueError(f"images must be at least 2 to be mixed with each other, got {len(images)}")
    check_finite(images=images)


def _probabilities(labels: Tensor, num_classes: int | None, smoothing: float) -> Tensor:
    if labels.ndim == 1:
        if num_classes is None:
            raise ValueError("num_classes must be given with labels that are class indices")
        check_at_least(1, num_classes=num_classes)
        check_labels(num_classes, labels=labels)
        return soft_labels(labels, num_classes, smoothing=smoothing)
    if labels.ndim != 2 or not labels.is_floating_point() or labels.shape[1] != (num_classes or labels.shape[1]):
        classes = "classes" if num_classes is None else num_classes
        raise ValueError(
            f"labels must be class indices (batch,) or class probabilities (batch, {classes}), "
            f"got {tuple(labels.shape)} of {labels.dtype}"
        )
    check_between(0, 1, labels=labels)
    if not torch.allclose(labels.sum(1), labels.new_ones(()), atol=1e-2 if labels.dtype.itemsize < 4 else 1e-4):
        raise ValueError("labels must be class probabilities: each row must sum to 1")
    return (1 - smoothing) * labels + smoothing / labels.shape[1]


def _interval(length: int, side: float, generator: torch.Generator | None) -> slice:
    """Pixels of a stretch of ``side * length`` about a random centre, cut off at both ends of the line."""
    cut = int(length * side)
    centre = int(torch.randint(length, (), generator=generator))
    start = centre - cut // 2
    return slice(max(start, 0), min(start + cut, length))
