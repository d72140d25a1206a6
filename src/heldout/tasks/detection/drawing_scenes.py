"""Real things on real grounds, of which a text asks for one: drawings pasted on photographs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_between,
    check_dimensions,
    check_fraction,
    check_labels,
    check_nonempty,
    check_one_of,
    check_same_length,
    check_values,
    checked,
)
from heldout.tasks.detection.prompted import PromptedPictures, cells_of
from heldout.tasks.images.biases import stratified_split
from heldout.tasks.images.drawing_features import first_drawings
from heldout.tasks.images.drawings import DRAWING_STYLES, drawing_tags, drawings
from heldout.tasks.seeds import Seed, generator_of
from heldout.tasks.video.real_scenes import cut_out, photo_crops, photographs

_GRID, _MOST = 3, 2


class DrawingThings(NamedTuple):
    """Things cut out of drawings in several styles, and what people wrote of each.

    Attributes:
        sprites: ``(styles, things, 4, size, size)`` in [0, 1]: red, green, blue and alpha.
        labels: int64 ``(things,)``, places in ``classes``.
        classes: what the numbers mean.
        captions: of each thing its name, and its name with its keywords.

    Example:
        >>> one = DrawingThings(torch.ones(4, 1, 4, 8, 8), torch.tensor([0]), ("bird",), [["owl", "owl, wise"]])
        >>> one.classes[one.labels[0]], one.captions[0][1]
        ('bird', 'owl, wise')
    """

    sprites: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    captions: list[list[str]]


@checked
def drawing_things(each: int = 30, *, size: int = 64) -> DrawingThings:
    """Returns the first things of each of ``DRAWING_CLASSES`` as sprites in all styles, with texts of Unicode's table.

    Args:
        each: things of a class, at least 1.
        size: height and width in pixels, at least 8.

    Raises:
        SourceError: a package is not there, or is another; the message names the command.
        ValueError: numbers out of range.

    Example:
        >>> drawing_things(30).sprites.shape  # doctest: +SKIP
        torch.Size([4, 360, 4, 64, 64])
    """
    check_at_least(1, each=each)
    whole = drawings(size=size)
    pictures = first_drawings(whole, each)
    own = pictures.domains == 0
    names = [whole.names[thing] for thing in pictures.things[own]]
    tags = drawing_tags(names)
    captions = [[tags[name].label, ", ".join([tags[name].label, *tags[name].keywords])] for name in names]
    sprites = cut_out(pictures.images.float() / 255).unflatten(0, (len(DRAWING_STYLES), len(names)))
    return DrawingThings(sprites, pictures.labels[own], pictures.classes, captions)


@checked
def drawing_scenes(
    sprites: Tensor,
    captions: Sequence[Sequence[str]],
    vectors: Sequence[Tensor],
    grounds: Tensor,
    n: int,
    *,
    asked: Tensor,
    beside: Tensor | None = None,
    others: int = 2,
    empty: float = 0.2,
    seed: Seed = 0,
) -> PromptedPictures:
    """Returns pictures of one or two copies of a thing and of one or more other things, with a text that asks for it.

    In a part of the pictures the thing that the text asks for is not there. Things lie in different cells of a grid of
    3 x 3, and take 0.75 to 1 of a cell's side.

    Args:
        sprites: ``(things, 4, height, width)`` in [0, 1]: red, green, blue and alpha, such as ``cut_out`` gives.
        captions: of each thing, the texts of which one asks for it.
        vectors: of each thing, a vector of each of its texts, ``(texts, width)``.
        grounds: ``(k, 3, size, size)`` in [0, 1], such as ``photo_crops`` gives; one is drawn for each picture.
        n: pictures, at least 1.
        asked: rows of things that are asked for.
        beside: rows of things that may lie beside; default: those that are asked for.
        others: how many of these in a picture at most, from 1 to 7. The fewer there are, the further gets a detector
            that finds things without reading what is asked for.
        empty: part of the pictures in which there is nothing to be found, in [0, 1].
        seed: an int, or a ``torch.Generator`` to draw from.

    Returns:
        images ``(n, 3, size, size)``, prompts ``(n, width)``, boxes ``(n, 2, 4)`` of what is visible, and captions.

    Raises:
        ValueError: shapes or lengths that do not match, sprites without a visible pixel, fewer than 2 things beside,
            rows or numbers out of range.

    Example:
        >>> sprites, grounds = torch.ones(3, 4, 8, 8), torch.zeros(2, 3, 24, 24)
        >>> words, vectors = [["owl"], ["cat"], ["dog"]], list(torch.eye(3)[:, None])
        >>> made = drawing_scenes(sprites, words, vectors, grounds, 4, asked=torch.tensor([0, 1, 2]))
        >>> made.images.shape, made.prompts.shape, made.captions[0] in ("owl", "cat", "dog")
        (torch.Size([4, 3, 24, 24]), torch.Size([4, 3]), True)
    """
    beside = asked if beside is None else beside
    _check(sprites, captions, vectors, grounds, asked=asked, beside=beside)
    check_at_least(1, n=n)
    check_fraction(empty=empty)
    check_between(1, _GRID**2 - _MOST, others=others)
    generator = generator_of(seed)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    size, side = grounds.shape[2], grounds.shape[2] // _GRID
    images = grounds[draw(0, len(grounds), n)].clone()
    boxes, texts, rows = torch.zeros(n, _MOST, 4), [], []
    things = asked[draw(0, len(asked), n)]
    copies = draw(1, _MOST + 1, n) * (torch.rand(n, generator=generator) >= empty)
    cells = cells_of(n, _MOST + others, _GRID, seed=generator)
    lengths = (side * (0.75 + 0.25 * torch.rand(n, _MOST + others, generator=generator))).round().long()
    places = torch.rand(n, _MOST + others, 2, generator=generator)
    for picture, thing in enumerate(things.tolist()):
        text = int(draw(0, len(captions[thing]), 1))
        texts.append(captions[thing][text])
        rows.append(vectors[thing][text])
        rest = beside[beside != thing]
        count = int(copies[picture])
        more = rest[torch.randperm(len(rest), generator=generator)[: int(draw(1, others + 1, 1))]]
        for slot, which in enumerate([thing] * count + more.tolist()):
            length = int(lengths[picture, slot])
            corner = cells[picture, slot] * side + (places[picture, slot] * (side - length)).long()
            box = _paste(images[picture], sprites[which], corner.tolist(), length)
            if slot < count:
                boxes[picture, slot] = box / size
    return PromptedPictures(images, torch.stack(rows), boxes, tuple(texts))


@checked
def styled_scenes(
    things: DrawingThings,
    vectors: Sequence[Tensor],
    style: str,
    n: int,
    *,
    asked: Sequence[str],
    beside: Sequence[str],
    half: Literal["train", "test"] = "train",
    others: int = 4,
    size: int = 128,
    seed: Seed = 0,
) -> PromptedPictures:
    """Returns ``drawing_scenes`` of some classes in one style, to train on or to test on.

    The two share nothing: each class's things are dealt into halves, always alike, and the grounds to train on lie on
    the left of the photographs, those to test on on the right.

    Args:
        things: of ``drawing_things``.
        vectors: of each thing, a vector of each of its texts, ``(texts, width)``.
        style: one of ``DRAWING_STYLES``.
        n: pictures, at least 1.
        asked: classes whose things are asked for.
        beside: classes whose things may lie beside.
        half: of the things and of the photographs.
        others: things beside in a picture at most, from 1 to 7.
        size: height and width in pixels, at least 24 and at most 210.
        seed: an int, or a ``torch.Generator`` to draw from.

    Raises:
        ValueError: an unknown style or class, a half without a thing that is asked for, and what ``drawing_scenes``
            refuses.
        MissingExtraError: Pillow, which reads the photographs, is not installed.

    Example:
        >>> two = DrawingThings(torch.ones(4, 4, 4, 8, 8), torch.zeros(4).long(), ("bird",), [["owl"]] * 4)
        >>> made = styled_scenes(two, [torch.ones(1, 3)] * 4, "noto", 2, asked=["bird"], beside=["bird"], size=32)
        >>> made.images.shape
        torch.Size([2, 3, 32, 32])
    """
    check_one_of(DRAWING_STYLES, style=style)
    check_between(8 * _GRID, 210, size=size)
    for name, classes in (("asked", asked), ("beside", beside)):
        check_nonempty(**{name: classes})
        for each in classes:
            check_one_of(things.classes, **{name: each})
    generator = generator_of(seed)
    test = half == "test"
    mine = stratified_split(things.labels, (0.5, 0.5))[test]

    def rows(classes: Sequence[str]) -> Tensor:
        return mine[torch.isin(things.labels[mine], torch.tensor([things.classes.index(each) for each in classes]))]

    photos = [photo[..., 430:] if test else photo[..., :420] for photo in photographs().values()]
    grounds = torch.cat([photo_crops(photo, 40, size=size, seed=generator) for photo in photos])
    sprites = things.sprites[DRAWING_STYLES.index(style)]
    options: dict[str, Any] = {"asked": rows(asked), "beside": rows(beside), "others": others, "seed": generator}
    return drawing_scenes(sprites, things.captions, vectors, grounds, n, **options)


def _paste(image: Tensor, sprite: Tensor, corner: Sequence[int], length: int) -> Tensor:
    """Draws a sprite on a picture; returns the box of what is visible, in pixels."""
    top, left = corner
    small = F.interpolate(sprite[None], (length, length), mode="bilinear", antialias=True, align_corners=False)[0]
    colour, alpha = small[:3], small[3:]
    part = image[:, top : top + length, left : left + length]
    part.copy_(part * (1 - alpha) + colour * alpha)
    visible = (alpha[0] >= min(0.5, float(alpha.max()))).nonzero()
    (y0, x0), (y1, x1) = visible.amin(0).tolist(), visible.amax(0).tolist()
    return torch.tensor([left + x0, top + y0, left + x1 + 1, top + y1 + 1], dtype=torch.float32)


def _check(
    sprites: Tensor, captions: Sequence[Any], vectors: Sequence[Tensor], grounds: Tensor, **rows: Tensor
) -> None:
    check_dimensions(4, sprites=sprites, grounds=grounds)
    check_values(sprites=sprites, grounds=grounds)
    check_between(0, 1, sprites=sprites, grounds=grounds)
    if sprites.shape[1] != 4:
        raise ValueError(f"sprites must be (things, 4, height, width), got {tuple(sprites.shape)}")
    if not (sprites[:, 3] > 0.5).flatten(1).any(1).all():
        raise ValueError("sprites must have a visible pixel each: alpha above 0.5")
    if grounds.shape[1] != 3 or grounds.shape[2] != grounds.shape[3]:
        raise ValueError(f"grounds must be (k, 3, size, size), got {tuple(grounds.shape)}")
    check_at_least(8 * _GRID, **{"size of grounds": grounds.shape[2]})
    check_same_length(sprites=sprites, captions=captions, vectors=vectors)
    for name, each in rows.items():
        check_dimensions(1, **{name: each})
        check_nonempty(**{name: each})
        check_labels(len(sprites), **{name: each})
    if len(rows["beside"].unique()) < 2:
        raise ValueError("beside must hold at least 2 things")
    for thing in rows["asked"].unique().tolist():
        check_nonempty(**{f"captions[{thing}]": captions[thing]})
        check_same_length(**{f"captions[{thing}]": captions[thing], f"vectors[{thing}]": vectors[thing]})
        check_values(**{f"vectors[{thing}]": vectors[thing]})
