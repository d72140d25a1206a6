"""Shapes with a hierarchy: a faint part tells the kind (superordinate), the outline the basic class, colour the item.

A network that learns the basic classes has no reason to make much of the kinds; judges whose similarity does are
simulated by ``judged_choices``. Source: the world of the levels of abstraction in arXiv:2409.06509, at small scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_between,
    check_dimensions,
    check_labels,
    check_nonnegative,
    check_positive,
    check_same_length,
    check_values,
    checked,
)

SHAPE_KINDS = ("wheels", "leaves", "windows", "ears")
_HARMONICS = 4
# Of the two parts of each kind: how far aside and how low they are, width, height, and whether they are square.
_PARTS = ((0.3, 0.62, 1.0, 1.0, 0), (0.2, -0.66, 0.7, 1.6, 0), (0.18, 0.0, 1.0, 1.0, 1), (0.64, 0.0, 1.6, 0.7, 0))


class ShapeItems(NamedTuple):
    """Items of a hierarchy and their pictures.

    Attributes:
        images: ``(n, 3, size, size)`` in [0, 1].
        classes: basic class, int64 ``(n,)``.
        kinds: superordinate, number in ``SHAPE_KINDS``: ``classes // classes_per_kind``.
        features: hue as a point on the circle, pose and size, ``(n, 4)``: what tells items of a class apart.
        parts: what the kind's two parts look like, ``(n, 5)``: how far aside and how low, width, height, square or not.

    Example:
        >>> items = shape_hierarchy([0, 1, 6], 2, size=16)
        >>> bool((items.kinds == items.classes // 6).all()), [SHAPE_KINDS[kind] for kind in items.kinds[::2]]
        (True, ['wheels', 'wheels', 'leaves'])
        >>> bool((items.parts[0] == items.parts[2]).all()), bool((items.parts[0] == items.parts[4]).all())
        (True, False)
    """

    images: Tensor
    classes: Tensor
    kinds: Tensor
    features: Tensor
    parts: Tensor


@checked
def shape_hierarchy(
    classes: Sequence[int],
    per_class: int,
    *,
    classes_per_kind: int = 6,
    outline: float = 0.0,
    part_contrast: float = 0.5,
    size: int = 28,
    seed: int = 0,
) -> ShapeItems:
    """Returns items of some basic classes, ``per_class`` of each in order of the classes.

    A class is an outline (four harmonics of a radius, the same for each seed), drawn in a random colour, turned by up
    to 0.3 radians, at a random size, with noise. Its kind is shown by two small grey parts only: wheels below, leaves
    above, windows inside, ears at the sides. Another style draws bright lines around fainter bodies.

    Args:
        classes: basic classes, 0 up to ``len(SHAPE_KINDS) * classes_per_kind - 1``.
        per_class: items of each.
        classes_per_kind: class c is of kind ``c // classes_per_kind``.
        outline: style, from 0 (filled) to 1 (lines around bodies of less than half the brightness).
        part_contrast: how much the parts cover what lies behind, in [0, 1]; 0 hides the kinds.
        size: height and width in pixels, at least 16.
        seed: of colours, poses, sizes and noise.

    Raises:
        ValueError: no classes, options out of range.

    Example:
        >>> items = shape_hierarchy([0, 7], 3)
        >>> items.images.shape, items.classes.tolist(), items.kinds.tolist()
        (torch.Size([6, 3, 28, 28]), [0, 0, 0, 7, 7, 7], [0, 0, 0, 1, 1, 1])
    """
    check_at_least(1, per_class=per_class, classes_per_kind=classes_per_kind)
    check_at_least(16, size=size)
    check_between(0, 1, part_contrast=part_contrast, outline=outline)
    check_between(0, 2**63 - 1, seed=seed)
    if not classes:
        raise ValueError("classes must not be empty")
    check_labels(len(SHAPE_KINDS) * classes_per_kind, classes=list(classes))
    generator = torch.Generator().manual_seed(seed)
    label = torch.as_tensor(list(classes)).repeat_interleave(per_class)
    n = len(label)
    hue, turn, scale = (torch.rand(n, generator=generator) for _ in range(3))
    turn, scale = 0.6 * (turn - 0.5), 0.95 + 0.25 * scale
    body, line, part = _masks(label, label // classes_per_kind, classes_per_kind, turn, scale, size)
    colour = _hues(hue)[:, :, None, None]
    ground = 0.25 * torch.rand(n, 1, 1, 1, generator=generator)
    images = ground + (colour - ground) * torch.lerp(body, torch.maximum(line, 0.4 * body), outline)
    images = images + part_contrast * part * (0.9 - images)
    images = images + 0.05 * torch.randn(images.shape, generator=generator)
    angle = 2 * math.pi * hue
    features = torch.stack([angle.cos(), angle.sin(), turn / 0.3, (scale - 1.075) / 0.125], 1)
    kinds = label // classes_per_kind
    return ShapeItems(images.clamp(0, 1), label, kinds, features, torch.tensor(_PARTS)[kinds])


@checked
def judged_similarity(
    classes: Tensor, kinds: Tensor, features: Tensor, *, kind: float = 2.0, basic: float = 2.0, feature: float = 0.5
) -> Tensor:
    """Returns what simulated judges hold of each pair, ``(n, n)``: a sum of shared kind, shared class and features.

    Args:
        classes, kinds: of each item, int64 ``(n,)``.
        features: ``(n, k)``, compared by their cosine.
        kind, basic, feature: weights, at least 0.

    Raises:
        ValueError: lengths that differ, labels that are none, a negative weight.

    Example:
        >>> judged_similarity(torch.tensor([0, 0, 1]), torch.zeros(3).long(), torch.ones(3, 2))[0].tolist()
        [4.5, 4.5, 2.5]
    """
    check_same_length(classes=classes, kinds=kinds, features=features)
    check_dimensions(1, classes=classes, kinds=kinds)
    check_dimensions(2, features=features)
    check_labels(classes=classes, kinds=kinds)
    check_values(features=features)
    check_nonnegative(kind=kind, basic=basic, feature=feature)
    unit = torch.nn.functional.normalize(features, dim=1)
    found = feature * (unit @ unit.T)
    for weight, label in ((kind, kinds), (basic, classes)):
        found = found + weight * (label[:, None] == label[None]).to(found)
    return found


@checked
def judged_choices(similarity: Tensor, triplets: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Returns the probability of each pair (0, 1), (0, 2), (1, 2) to be chosen as the most similar, ``(n, 3)``.

    Args:
        similarity: of all pairs of items, ``(items, items)``.
        triplets: int64 ``(n, 3)``.
        temperature: of the softmax, above 0.

    Raises:
        ValueError: shapes that do not fit, positions out of range.

    Example:
        >>> judged_choices(torch.eye(3), torch.tensor([[0, 1, 2]]))
        tensor([[0.3333, 0.3333, 0.3333]])
    """
    check_dimensions(2, similarity=similarity, triplets=triplets)
    check_values(similarity=similarity)
    check_positive(temperature=temperature)
    check_labels(len(similarity), triplets=triplets)
    if triplets.shape[1] != 3 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"triplets must be (n, 3) and similarity square, got {tuple(triplets.shape)}")
    first, second, third = triplets.long().T
    pairs = [similarity[first, second], similarity[first, third], similarity[second, third]]
    return (torch.stack(pairs, 1) / temperature).softmax(1)


def _masks(
    label: Tensor, kind: Tensor, classes_per_kind: int, turn: Tensor, scale: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Soft masks ``(n, 1, size, size)`` of the bodies, of their outlines, and of the parts."""
    shapes = torch.Generator().manual_seed(20240906)
    amplitude = torch.randn(len(SHAPE_KINDS) * classes_per_kind, _HARMONICS, 2, generator=shapes)
    amplitude = 0.12 * amplitude / torch.arange(2, _HARMONICS + 2).sqrt()[:, None]
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    x, y = x.expand(len(label), size, size), y.expand(len(label), size, size)
    cos, sin = turn.cos()[:, None, None], turn.sin()[:, None, None]
    x, y = (x * cos + y * sin) / scale[:, None, None], (y * cos - x * sin) / scale[:, None, None]
    angle, radius = torch.atan2(y, x), (x.square() + y.square()).sqrt()
    edge = torch.full_like(radius, 0.62)
    for number in range(_HARMONICS):
        wave = (number + 2) * angle
        first, second = amplitude[label, number].T[:, :, None, None]
        edge = edge + first * wave.cos() + second * wave.sin()
    sharp = size * 0.5
    body = ((edge - radius) * sharp).sigmoid()
    line = ((0.05 - (edge - radius).abs()) * sharp).sigmoid()
    aside, low, width, height, square = torch.tensor(_PARTS)[kind].T[:, :, None, None]
    part = torch.zeros_like(body)
    for side in (-1, 1):
        dx, dy = (x - side * aside) / width, (y - low) / height
        distance = torch.where(square > 0, torch.maximum(dx.abs(), dy.abs()) * 1.1, (dx.square() + dy.square()).sqrt())
        part = torch.maximum(part, ((0.15 - distance) * sharp).sigmoid())
    return body[:, None], line[:, None], part[:, None]


def _hues(hue: Tensor) -> Tensor:
    """Bright colours ``(n, 3)``."""
    offsets = torch.tensor([0.0, 1 / 3, 2 / 3])
    return 0.6 + 0.35 * (2 * math.pi * (hue[:, None] + offsets)).cos()
