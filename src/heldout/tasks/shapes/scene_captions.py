"""Core: Captions of scenes of coloured shapes: which of two objects lies left of, right of, above or below the other.

A caption and its false counterpart have the same words, so that no model can tell them apart without the scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from heldout.errors import check_dimensions, check_labels, check_nonempty, check_one_of, checked
from heldout.tasks.seeds import Seed, generator_of
from heldout.tasks.shapes.scene_questions import SCENE_COLORS, SCENE_SHAPES, SceneObject

SCENE_RELATIONS = ("left of", "right of", "above", "below")


class SceneCaption(NamedTuple):
    """What a caption says: where the first object lies, seen from the second.

    Attributes:
        first: with a colour and a shape.
        relation: of ``SCENE_RELATIONS``.
        second: with a colour and a shape.

    Example:
        >>> SceneCaption(SceneObject(0, 0), "above", SceneObject(2, 2)).swapped.first
        SceneObject(color=2, shape=2)
    """

    first: SceneObject
    relation: str
    second: SceneObject

    @property
    def swapped(self) -> SceneCaption:
        """The caption with its objects exchanged: the same words, and true only where this one is not."""
        return SceneCaption(self.second, self.relation, self.first)


@checked
def caption_text(caption: SceneCaption) -> str:
    """Returns a caption in words.

    Raises:
        ValueError: an unknown relation, or an object without a colour or a shape that has a name.

    Example:
        >>> caption_text(SceneCaption(SceneObject(0, 0), "left of", SceneObject(2, 2)))
        'a red a left of a blue c'
    """
    first, second = _named(caption)
    return f"{_with_article(first)} {caption.relation} {_with_article(second)}"


@checked
def caption_question(caption: SceneCaption) -> str:
    """Returns the question whether a caption is true, in words; ``caption_holds`` answers it.

    Raises:
        ValueError: as ``caption_text``.

    Example:
        >>> caption_question(SceneCaption(SceneObject(0, 0), "left of", SceneObject(2, 2)))
        'is the red a left of the blue c?'
    """
    first, second = _named(caption)
    return f"is the {first} {caption.relation} the {second}?"


@checked
def caption_holds(caption: SceneCaption, scene: Tensor) -> bool:
    """Returns whether a caption is true: both objects are there, and some pair of them lies as it says.

    Args:
        caption: of two objects.
        scene: int64 ``(rows, columns, 2)``, one more than the colour and the shape of each cell; 0 where it is empty.

    Raises:
        ValueError: a scene of another shape, or what ``caption_text`` refuses.

    Example:
        >>> scene = torch.zeros(2, 2, 2, dtype=torch.int64)
        >>> scene[0, 0], scene[0, 1] = torch.tensor([1, 1]), torch.tensor([3, 3])
        >>> red_a, blue_c = SceneObject(0, 0), SceneObject(2, 2)
        >>> caption_holds(SceneCaption(red_a, "left of", blue_c), scene)
        True
        >>> caption_holds(SceneCaption(red_a, "above", blue_c), scene)
        False
    """
    _named(caption)
    objects = _objects(scene)
    return any(
        _lies(caption.relation, here, there)
        for here, each in objects
        if each == caption.first
        for there, other in objects
        if other == caption.second
    )


@checked
def scene_captions(scene: Tensor) -> list[SceneCaption]:
    """Returns all true captions of a scene about pairs of objects that are there once, in the order of their cells.

    Args:
        scene: as of ``caption_holds``.

    Raises:
        ValueError: a scene of another shape.

    Example:
        >>> scene = torch.zeros(2, 2, 2, dtype=torch.int64)
        >>> scene[0, 0], scene[0, 1] = torch.tensor([1, 1]), torch.tensor([3, 3])
        >>> [caption_text(each) for each in scene_captions(scene)]
        ['a red a left of a blue c', 'a blue c right of a red a']
    """
    objects = _objects(scene)
    kinds = [each for _, each in objects]
    alone = [(place, each) for place, each in objects if kinds.count(each) == 1]
    return [
        SceneCaption(each, relation, other)
        for here, each in alone
        for there, other in alone
        for relation in SCENE_RELATIONS
        if _lies(relation, here, there)
    ]


@checked
def draw_captions(scenes: Tensor | Sequence[Tensor], *, seed: Seed = 0) -> tuple[list[SceneCaption], Tensor]:
    """Returns a caption for each scene and which are true, bool ``(scenes,)``: each with probability 1/2.

    A false caption is a true one with its objects exchanged.

    Args:
        scenes: int64 ``(batch, rows, columns, 2)``, or a scene each, as of ``caption_holds``.
        seed: of everything.

    Raises:
        ValueError: no scenes, or one without two objects that are there once.

    Example:
        >>> from heldout.tasks import GCOG
        >>> captions, truth = draw_captions(GCOG(grid=5).trials(3, distractors=4, seed=1).scenes)
        >>> len(captions), truth.shape
        (3, torch.Size([3]))
    """
    check_nonempty(scenes=scenes)
    generator = generator_of(seed)
    captions = []
    truth = torch.rand(len(scenes), generator=generator) < 0.5
    for position, (scene, is_true) in enumerate(zip(scenes, truth.tolist(), strict=True)):
        every = scene_captions(scene)
        if not every:
            raise ValueError(f"scenes must have two objects that are there once, scene {position} has not")
        chosen = every[int(torch.randint(len(every), (1,), generator=generator))]
        captions.append(chosen if is_true else chosen.swapped)
    return captions, truth


def _lies(relation: str, here: tuple[int, int], there: tuple[int, int]) -> bool:
    axis = 1 if relation in ("left of", "right of") else 0
    first, second = here[axis], there[axis]
    return first < second if relation in ("left of", "above") else first > second


def _objects(scene: Tensor) -> list[tuple[tuple[int, int], SceneObject]]:
    check_dimensions(3, scene=scene)
    check_labels(scene=scene)
    if scene.shape[2] != 2:
        raise ValueError(f"scene must be (rows, columns, 2), got {tuple(scene.shape)}")
    return [
        ((row, column), SceneObject(color - 1, shape - 1))
        for row, line in enumerate(scene.tolist())
        for column, (color, shape) in enumerate(line)
        if color
    ]


def _named(caption: SceneCaption) -> list[str]:
    check_one_of(SCENE_RELATIONS, caption=caption.relation)
    names = []
    for each in (caption.first, caption.second):
        if each.color is None or each.shape is None:
            raise ValueError(f"caption must name the colour and the shape of its objects, got {each}")
        check_labels(len(SCENE_COLORS), caption=each.color)
        check_labels(len(SCENE_SHAPES), caption=each.shape)
        names.append(f"{SCENE_COLORS[each.color]} {SCENE_SHAPES[each.shape]}")
    return names


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
