"""How a classifier bears what does not belong: patches of other images, missing and shuffled patches, occluders.

Each curve is the accuracy on the images' own labels, by what was asked for; what is asked for twice is measured once.
Source: arXiv:2306.17848, sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from heldout.data import derangement, patch_cells, patch_mask, split_target
from heldout.errors import (
    check_at_least,
    check_class_labels,
    check_dimensions,
    check_finite,
    check_fraction,
    check_nonempty,
    check_same_length,
    check_values,
    checked,
)
from heldout.measure.probes.rise import Contrast, contrastive_rise, patch_selectivity
from heldout.method import evaluating, forward

Model = nn.Module | Callable[[Tensor], Any]
Corruption = Callable[[Tensor, torch.Generator], Tensor]


@checked
def patch_replacement_curve(
    model: Model,
    loader: Iterable[Any],
    *,
    grid: int = 7,
    fractions: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    donors: Literal["other-class", "any"] = "other-class",
    generator: torch.Generator | None = None,
) -> dict[float, float]:
    """Returns the accuracy by the fraction of patches that are replaced by those of one other image, at their places.

    The patches of a larger fraction include those of a smaller one. One forward pass per fraction and image.

    Args:
        model: an image classifier: a module, put in eval mode for the call, or a function; from images
            ``(batch, channels, height, width)`` to logits ``(batch, classes)`` or an output with ``.logits``.
        loader: batches ``(images, labels)``, or dicts with ``pixel_values`` and ``labels``: a DataLoader, a list.
        grid: number of patches along each side; it must divide the images.
        fractions: of the patches, in [0, 1]; rounded to whole patches.
        donors: where the patches come from: an image of another class in the same batch, or any other one, which
            flatters the model.
        generator: source of the patches and donors; seeded with 0 by default.

    Raises:
        ValueError: a grid that does not fit, a fraction out of range, no batches, a batch of one class or one image
            only (shuffle the data), images or logits that are not finite.

    Source: arXiv:2306.17848, section 4.1.

    Example:
        >>> images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
        >>> bright = lambda x: torch.stack([1 - x.mean((1, 2, 3)), x.mean((1, 2, 3))], 1)
        >>> patch_replacement_curve(bright, [(images, torch.tensor([0, 1]))], grid=2, fractions=[0.25, 0.75])
        {0.25: 1.0, 0.75: 0.0}
    """

    def corruptions(images: Tensor, labels: Tensor, generator: torch.Generator) -> Iterable[tuple[float, Tensor]]:
        partner = _other_class(labels, generator) if donors == "other-class" else _any_other(labels, generator)
        other, scores = images[partner.to(images.device)], _scores(images, grid, generator)
        for fraction in _different(fractions):
            yield fraction, torch.where(_masks(scores, fraction, images), other, images)

    check_nonempty(fractions=fractions)
    check_fraction(fractions=fractions)
    return _accuracies(model, loader, fractions, corruptions, generator)


@checked
def patch_drop_curve(
    model: Model,
    loader: Iterable[Any],
    *,
    grid: int = 7,
    fractions: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    fill: float = 0.0,
    generator: torch.Generator | None = None,
) -> dict[float, float]:
    """Returns the accuracy by the fraction of patches whose pixels are all set to ``fill``.

    Args:
        model, loader, grid, fractions, generator: as for ``patch_replacement_curve``.
        fill: value of the dropped pixels: 0 is the mean of standardised images; 0.5 is grey in [0, 1].

    Raises:
        ValueError: as ``patch_replacement_curve`` does, but for classes and donors; a fill that is not finite.

    Source: arXiv:2306.17848, section 4.3.

    Example:
        >>> images = torch.ones(2, 1, 4, 4)
        >>> bright = lambda x: torch.stack([0.6 - x.mean((1, 2, 3)), x.mean((1, 2, 3)) - 0.6], 1)
        >>> patch_drop_curve(bright, [(images, torch.tensor([1, 1]))], grid=2, fractions=[0.25, 0.5])
        {0.25: 1.0, 0.5: 0.0}
    """

    def corruptions(images: Tensor, labels: Tensor, generator: torch.Generator) -> Iterable[tuple[float, Tensor]]:
        scores = _scores(images, grid, generator)
        for fraction in _different(fractions):
            yield fraction, images.masked_fill(_masks(scores, fraction, images), fill)

    check_nonempty(fractions=fractions)
    check_fraction(fractions=fractions)
    check_finite(fill=fill)
    return _accuracies(model, loader, fractions, corruptions, generator)


@checked
def patch_shuffle_curve(
    model: Model,
    loader: Iterable[Any],
    *,
    grids: Sequence[int] = (2, 4, 7, 14),
    generator: torch.Generator | None = None,
) -> dict[int, float]:
    """Returns the accuracy by the number of tiles along each side when the tiles are shuffled, each image by itself.

    Args:
        model, loader, generator: as for ``patch_replacement_curve``.
        grids: numbers of tiles along each side; each must divide the images. 1 leaves them as they are.

    Raises:
        ValueError: as ``patch_replacement_curve`` does, but for classes and donors.

    Source: arXiv:2306.17848, section 4.2.

    Example:
        >>> batch = torch.rand(2, 1, 4, 4), torch.tensor([0, 0])
        >>> patch_shuffle_curve(lambda x: x.mean((2, 3)) @ torch.tensor([[1.0, 0.0]]), [batch], grids=[1, 2])
        {1: 1.0, 2: 1.0}
    """

    def corruptions(images: Tensor, labels: Tensor, generator: torch.Generator) -> Iterable[tuple[int, Tensor]]:
        for grid in _different(grids):
            yield grid, shuffle_patches(images, grid, generator=generator)

    check_nonempty(grids=grids)
    check_at_least(1, grids=grids)
    return _accuracies(model, loader, grids, corruptions, generator)


@checked
def shuffle_patches(images: Tensor, grid: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Returns the images with their tiles in a random order, each image's its own.

    Args:
        images: ``(batch, channels, height, width)``.
        grid: number of tiles along each side; it must divide the images.
        generator: source of the orders, a CPU one.

    Raises:
        ValueError: a grid that does not divide the images.

    Example:
        >>> shuffle_patches(torch.arange(4.0).view(1, 1, 2, 2), 2).flatten().sort().values.tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    check_dimensions(4, images=images)
    batch, channels, height, width = images.shape
    patch_cells(height, width, grid=grid)
    h, w = height // grid, width // grid
    tiles = images.reshape(batch, channels, grid, h, grid, w).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = torch.rand(batch, grid * grid, generator=generator).argsort(1).to(images.device)
    tiles = tiles[torch.arange(batch, device=images.device).unsqueeze(1), order]
    return tiles.view(batch, grid, grid, channels, h, w).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


@checked
def occlusion_accuracy(
    model: Model,
    loader: Iterable[Any],
    occluders: Callable[[float], Corruption],
    levels: Sequence[float] = (0.1, 0.2, 0.3, 0.4),
    *,
    generator: torch.Generator | None = None,
) -> dict[float, float]:
    """Returns the accuracy by the part of each image that foreign objects cover.

    Args:
        model, loader, generator: as for ``patch_replacement_curve``.
        occluders: from a level to the function ``(images, generator) -> images`` that occludes, such as
            ``functools.partial(heldout.tasks.occluders, "letters")``.
        levels: parts of the image, in [0, 1].

    Raises:
        ValueError: a level out of range, no batches, images or logits that are not finite.

    Source: arXiv:2306.17848, section 4.4: superimposed objects from outside of the classes.

    Example:
        >>> def grey(level):
        ...     return lambda images, generator: images.lerp(torch.full_like(images, 0.5), level)
        >>> images, labels = torch.ones(2, 1, 4, 4), torch.tensor([1, 1])
        >>> bright = lambda x: torch.stack([0.8 - x.mean((1, 2, 3)), x.mean((1, 2, 3)) - 0.8], 1)
        >>> occlusion_accuracy(bright, [(images, labels)], grey, [0.2, 0.6])
        {0.2: 1.0, 0.6: 0.0}
    """
    check_nonempty(levels=levels)
    check_fraction(levels=levels)
    made = {level: occluders(level) for level in _different(levels)}

    def corruptions(images: Tensor, labels: Tensor, generator: torch.Generator) -> Iterable[tuple[float, Tensor]]:
        for level, occlude in made.items():
            yield level, occlude(images, generator)

    return _accuracies(model, loader, levels, corruptions, generator)


@checked
def replaced_patch_selectivity(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    grid: int = 7,
    fraction: float = 0.5,
    contrast: Contrast = "max",
    n_masks: int = 2000,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Returns how much more the answer rests on each image's own patches than on those of another class, ``(batch,)``.

    A fraction of the patches is replaced as by ``patch_replacement_curve``. The result is the ``patch_selectivity`` of
    the contrastive RISE map, in standard deviations of the map, so that a confident model compares with one that is
    not; 0 for a map without any. ``n_masks`` forward passes an image. Experimental, as ``contrastive_rise`` is.

    Args:
        model: an image classifier, as for ``contrastive_rise``; with a softmax at its end as in the paper.
        images: ``(batch, channels, height, width)``, of at least two classes.
        labels: int64 ``(batch,)``.
        grid: number of patches along each side, and cells of a mask; it must divide the images.
        fraction: of the patches to replace: some and not all.
        contrast, n_masks: as for ``contrastive_rise``.
        generator: source of patches, donors and masks; seeded with 0 by default.

    Raises:
        ValueError: a grid that does not fit, a fraction that replaces no patch or all, images of one class, images or
            scores that are not finite.

    Source: arXiv:2306.17848, section 5; the form of the number is ours.

    Example:
        >>> images = torch.tensor([0.1, 0.9]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
        >>> bright = lambda x: torch.stack([(x == 0.1).sum((1, 2, 3)), (x == 0.9).sum((1, 2, 3))], 1).float()
        >>> found = replaced_patch_selectivity(bright, images, torch.tensor([0, 1]), grid=4, n_masks=500)
        >>> bool((found > 1).all())
        True
    """
    images, labels = images_and_labels((images, labels))
    check_fraction(fraction=fraction)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    partner = _other_class(labels, generator).to(images.device)
    masks = _masks(_scores(images, grid, generator), fraction, images)
    if not masks.any() or masks.all():
        raise ValueError(f"fraction must replace some of the {grid} x {grid} patches and leave some, got {fraction}")
    found = []
    for image, label, mask in zip(torch.where(masks, images[partner], images), labels.tolist(), masks, strict=True):
        saliency = contrastive_rise(
            model, image, label, contrast=contrast, n_masks=n_masks, cells=grid, generator=generator
        )
        spread = float(saliency.std())
        varies = spread > 1e-6 * float(saliency.abs().max())
        found.append(patch_selectivity(saliency, mask[0]) / spread if varies else 0.0)
    return torch.tensor(found)


def _accuracies(
    model: Model,
    loader: Iterable[Any],
    keys: Sequence[Any],
    corruptions: Callable[[Tensor, Tensor, torch.Generator], Iterable[tuple[Any, Tensor]]],
    generator: torch.Generator | None,
) -> dict[Any, float]:
    """Accuracy on every corruption of every batch, by the corruption's key."""
    if isinstance(model, nn.Module):
        module = model
        with evaluating(module), torch.no_grad():
            return _accuracies(lambda images: forward(module, images), loader, keys, corruptions, generator)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    right, seen = dict.fromkeys(_different(keys), 0), 0
    for batch in loader:
        images, labels = images_and_labels(batch)
        for key, corrupted in corruptions(images, labels, generator):
            logits = forward(model, corrupted)
            check_same_length(logits=logits, labels=labels)
            check_finite(logits=logits)
            check_class_labels(logits.shape[-1], labels=labels)
            right[key] += int((logits.argmax(1) == labels.to(logits.device)).sum())
        seen += len(labels)
    if not seen:
        raise ValueError("loader must give at least one batch, it gave none")
    return {key: count / seen for key, count in right.items()}


def _different(values: Sequence[Any]) -> list[Any]:
    """The numbers of a sequence or tensor, each once."""
    return list(dict.fromkeys(values.tolist() if isinstance(values, Tensor) else values))


def images_and_labels(batch: Any) -> tuple[Tensor, Tensor]:
    """Returns the images and class labels of one batch of a loader, checked."""
    images, labels = split_target(batch)
    images = images.get("pixel_values") if isinstance(images, Mapping) else images
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        raise TypeError(f"loader must give batches of images and labels, got {type(images).__name__}")
    check_dimensions(4, images=images)
    check_dimensions(1, labels=labels)
    check_same_length(images=images, labels=labels)
    check_values(images=images)
    return images, labels


def _scores(images: Tensor, grid: int, generator: torch.Generator) -> Tensor:
    rows, columns = patch_cells(*images.shape[-2:], grid=grid)
    return torch.rand(len(images), rows, columns, generator=generator)


def _masks(scores: Tensor, fraction: float, images: Tensor) -> Tensor:
    return patch_mask(scores, fraction, *images.shape[-2:]).unsqueeze(1).to(images.device)


def _any_other(labels: Tensor, generator: torch.Generator) -> Tensor:
    if len(labels) < 2:
        raise ValueError("loader must give batches of at least two images, for patches of another one")
    return derangement(len(labels), generator)


def _other_class(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A random position of another class for each label, on the CPU."""
    labels = labels.cpu()
    other = labels.unsqueeze(1) != labels
    if not other.any(1).all():
        raise ValueError("loader must give batches of at least two classes, for patches of another class: shuffle it")
    return torch.multinomial(other.double(), 1, generator=generator).squeeze(1)
