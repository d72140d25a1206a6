"""Questions about scenes of a few objects, by words or by what is seen, for each pair of a colour and a shape alone.

Source: arXiv:2505.23045 (Li et al., IJCAI 2025), whose questions about photographs these stand for.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_between,
    check_dimensions,
    check_fields,
    check_labels,
    check_nonempty,
    check_one_of,
    check_same_length,
    checked,
)
from heldout.tasks.seeds import Seed, generator_of
from heldout.tasks.shapes.letter_scenes import render_scene
from heldout.tasks.shapes.scene_captions import SCENE_RELATIONS
from heldout.tasks.shapes.scene_questions import SCENE_COLORS, SCENE_SHAPES

OBJECT_QUESTIONS = ("exist", "color", "shape", "color at", "shape at", "count")
_GRID = 4
_FRAME_WORDS = ["is", "there", "any", "what", "color", "shape", "the", "thing", "how", "many", "things"]
_Object = tuple[int, int]


class ObjectExamples(NamedTuple):
    """Questions about scenes, and what they are made of; a slot without an object has -1, and zeros for its box.

    Attributes:
        words: int64 ``(n, length)``, positions in ``ObjectQuestions.vocabulary``, filled up with 0.
        objects: int64 ``(n, most, 3)``, colour, shape and texture.
        boxes: float32 ``(n, most, 4)``, left, top, right and bottom, in [0, 1].
        answers: int64 ``(n,)``, positions in ``ObjectQuestions.answers``.
        kinds: int64 ``(n,)``, positions in ``OBJECT_QUESTIONS``.
        asked: int64 ``(n, 2)``, the colour and the shape that are asked for: -1 where a count has only one of them.
        named: int64 ``(n, most)``, by how many of its two parts the question names an object.

    Example:
        >>> ObjectQuestions().draw(4, ["count"]).asked.amin(1).tolist()
        [-1, -1, -1, -1]
    """

    words: Tensor
    objects: Tensor
    boxes: Tensor
    answers: Tensor
    kinds: Tensor
    asked: Tensor
    named: Tensor

    @checked
    def at(self, positions: Tensor) -> ObjectExamples:
        """Returns some of the examples.

        Raises:
            ValueError: no such examples.
        """
        check_dimensions(1, positions=positions)
        check_labels(len(self.answers), positions=positions)
        return ObjectExamples(*(column[positions] for column in self))

    @checked
    def sourced_pairs(self, index: int) -> list[tuple[_Object, str]]:
        """Returns the pairs of colour and shape that an example has, each with where its parts come from.

        "LL": both are words of the question. "VV": both are in the picture only. "LV": a question names an object by
        one of them.

        Raises:
            ValueError: no such example.

        Example:
            >>> examples = ObjectQuestions().draw(1, ["exist"], seed=1)
            >>> examples.sourced_pairs(0)[0] == (tuple(examples.asked[0].tolist()), "LL")
            True
        """
        check_labels(len(self.answers), index=index)
        seen = zip(self.objects[index, :, :2].tolist(), self.named[index].tolist(), strict=True)
        found = [((color, shape), ("VV", "LV")[named]) for (color, shape), named in seen if color >= 0 and named < 2]
        if OBJECT_QUESTIONS[int(self.kinds[index])] == "exist":
            found.insert(0, (tuple(self.asked[index].tolist()), "LL"))
        return found

    @property
    def constant_accuracy(self) -> float:
        """What one answer to each kind of question gets right, the best one."""
        kinds = self.kinds.unique()
        return sum(int(self.answers[self.kinds == kind].bincount().max()) for kind in kinds) / len(self.answers)


@dataclass(frozen=True)
class ObjectQuestions:
    """A world of scenes with a few coloured shapes on a grid of 4 x 4, and six kinds of questions about them.

    "exist" asks whether there is "any red c": half of the time there is, and there always is something red, and a "c",
    as many of either whatever the answer, so that only an object which is both tells. "color" and "shape" ask for one
    part of an object that they name by the other, which it alone has. "color at" and "shape at" ask for a part of the
    only object in a relation to another, which they name by a part that it alone has: nothing in the question tells
    either part of the object asked for.
    "count" asks how many, 0 to 3, have one part.

    Args:
        colors, shapes: names; as many as wanted, at least 3 of each.
        textures: that objects may have, 1 to 3. No question asks for them.
        objects: the fewest and the most in a scene, 2 to 8; a count of 3 has 3 at least.

    Raises:
        ValueError: too few names, or numbers out of range.

    Source: arXiv:2505.23045, for the three sources of a composition.

    Example:
        >>> world = ObjectQuestions()
        >>> examples = world.draw(100, ["color at"], seed=1)
        >>> world.text(examples.words[0]), world.answers[examples.answers[0]]
        ('what color is the thing below the d', 'blue')
        >>> examples.objects.shape, examples.sourced_pairs(0)
        (torch.Size([100, 4, 3]), [((1, 4), 'VV'), ((0, 3), 'LV'), ((2, 4), 'VV')])
    """

    colors: Sequence[str] = SCENE_COLORS[:6]
    shapes: Sequence[str] = SCENE_SHAPES[:6]
    textures: int = 3
    objects: tuple[int, int] = (2, 4)

    def __post_init__(self) -> None:
        check_fields(self)
        check_nonempty(colors=self.colors, shapes=self.shapes)
        check_at_least(3, colors=len(self.colors), shapes=len(self.shapes))
        check_between(1, 3, textures=self.textures)
        check_between(2, 8, objects=list(self.objects))
        check_at_least(max(3, self.objects[0]), objects=self.objects[1])
        if len(set(self.vocabulary)) < len(self.vocabulary):
            raise ValueError("colors and shapes must differ from each other and from the other words of questions")

    @property
    def answers(self) -> tuple[str, ...]:
        """What may be answered, by class."""
        return ("no", "yes", "0", "1", "2", "3", *self.colors, *self.shapes)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Words by number; 0 is none."""
        return ("", *self.colors, *self.shapes, *SCENE_RELATIONS, *_FRAME_WORDS)

    @checked
    def text(self, words: Tensor) -> str:
        """Returns a question in words.

        Args:
            words: int64 ``(length,)``.

        Raises:
            ValueError: numbers of no word.
        """
        check_dimensions(1, words=words)
        check_labels(len(self.vocabulary), words=words)
        return " ".join(self.vocabulary[number] for number in words.tolist() if number)

    @checked
    def primitives(self, words: Tensor, objects: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns what words and objects stand for a colour, a shape or a relation: rows, positions, keys, modalities.

        Each int64 ``(primitives,)``. Words come first, objects after all of them, each twice: by colour and by shape.
        A key is the same for a word and for what is seen; modalities are 0 for words, 1 for objects.

        Args:
            words: int64 ``(n, length)``.
            objects: int64 ``(n, most, 3)``, as of ``ObjectExamples``.

        Raises:
            ValueError: numbers of no word, or not as many rows.

        Example:
            >>> world = ObjectQuestions()
            >>> examples = world.draw(1, ["color"], seed=1)
            >>> rows, positions, keys, modalities = world.primitives(examples.words, examples.objects)
            >>> world.text(examples.words[0]), world.vocabulary[keys[0] + 1], int(positions[0])
            ('what color is the a', 'a', 4)
        """
        check_dimensions(2, words=words)
        check_dimensions(3, objects=objects)
        check_same_length(words=words, objects=objects)
        check_labels(len(self.vocabulary), words=words)
        last = len(self.colors) + len(self.shapes) + len(SCENE_RELATIONS)
        rows, places = ((words > 0) & (words <= last)).nonzero().unbind(1)
        seen, slots = (objects[:, :, 0] >= 0).nonzero().unbind(1)
        color, shape = objects[seen, slots, 0], objects[seen, slots, 1] + len(self.colors)
        slots = slots + words.shape[1]
        return (
            torch.cat([rows, seen, seen]),
            torch.cat([places, slots, slots]),
            torch.cat([words[rows, places] - 1, color, shape]),
            torch.cat([torch.zeros_like(rows), torch.ones_like(seen), torch.ones_like(seen)]),
        )

    @checked
    def held_out_pairs(self, count: int, *, seed: Seed = 0) -> Tensor:
        """Returns pairs to hold out, bool ``(colors, shapes)``, spread over colours and shapes as evenly as can be.

        Raises:
            ValueError: more pairs than leave each colour and each shape two others.

        Example:
            >>> held = ObjectQuestions().held_out_pairs(8)
            >>> sorted(held.sum(0).tolist()), sorted(held.sum(1).tolist())
            ([1, 1, 1, 1, 2, 2], [1, 1, 1, 1, 2, 2])
        """
        check_at_least(1, count=count)
        generator = generator_of(seed)
        held = torch.zeros(len(self.colors), len(self.shapes), dtype=torch.bool)
        for _ in range(min(count, held.numel())):
            tie = 0.5 * torch.rand(held.shape, generator=generator)
            used = held.sum(1, keepdim=True) + held.sum(0, keepdim=True) + tie
            held.view(-1)[used.masked_fill(held, torch.inf).argmin()] = True
        if int(held.sum()) < count or int((~held).sum(0).min()) < 2 or int((~held).sum(1).min()) < 2:
            raise ValueError(f"count must leave each colour and shape two others at least, got {count}")
        return held

    @checked
    def draw(
        self,
        count: int,
        kinds: Sequence[str] = OBJECT_QUESTIONS,
        *,
        allowed: Tensor | None = None,
        asked: Tensor | None = None,
        seed: Seed = 0,
    ) -> ObjectExamples:
        """Returns questions, each kind as often as the others.

        Args:
            count: of questions.
            kinds: of ``OBJECT_QUESTIONS``.
            allowed: bool ``(colors, shapes)``, pairs that an object may have that is not asked for; None is all.
            asked: the same of what is asked for; None is ``allowed``. A count asks for no pair.
            seed: of everything.

        Raises:
            ValueError: unknown kinds, masks of another shape, or that leave a colour or shape fewer than two others.

        Example:
            >>> world = ObjectQuestions()
            >>> held = world.held_out_pairs(8)
            >>> examples = world.draw(50, ["color"], allowed=~held, asked=held)
            >>> held[examples.asked[:, 0], examples.asked[:, 1]].all().item()
            True
        """
        check_at_least(1, count=count)
        check_nonempty(kinds=kinds)
        for kind in kinds:
            check_one_of(OBJECT_QUESTIONS, kinds=kind)
        shape = (len(self.colors), len(self.shapes))
        allowed = torch.ones(shape, dtype=torch.bool) if allowed is None else allowed
        asked = allowed if asked is None else asked
        for name, mask in (("allowed", allowed), ("asked", asked)):
            if mask.dtype != torch.bool or mask.shape != shape:
                raise ValueError(f"{name} must be bool {shape}, got {mask.dtype} {tuple(mask.shape)}")
        if int(allowed.sum(0).min()) < 2 or int(allowed.sum(1).min()) < 2:
            raise ValueError("allowed must leave each colour and each shape two others at least")
        if not asked.any():
            raise ValueError("asked must have a pair")
        rng = random.Random(int(torch.randint(2**31, (1,), generator=generator_of(seed))))
        drawer = _Drawer(self, allowed, asked, rng)
        order = [kinds[number % len(kinds)] for number in range(count)]
        rng.shuffle(order)
        return _stacked([drawer.example(kind) for kind in order], self.objects[1])


@checked
def render_objects(objects: Tensor, *, noise: float = 0.1, seed: Seed = 0) -> Tensor:
    """Returns a picture of each object on its own, float32 ``(n, most, 3, 12, 12)``; zeros where there is none.

    Letters of 10 x 10 pixels at a place that varies by two, lit to 60 % or more, plain, striped or dotted.

    Args:
        objects: int64 ``(n, most, 3)`` as of ``ObjectExamples``: of ``SCENE_COLORS``, ``SCENE_SHAPES``, and 0 to 2.
        noise: standard deviation of what is added to each pixel, at least 0.
        seed: of places, light and noise.

    Raises:
        ValueError: objects that have no picture, or noise below 0.

    Example:
        >>> render_objects(torch.tensor([[[0, 2, 1], [-1, -1, -1]]])).shape
        torch.Size([1, 2, 3, 12, 12])
    """
    check_dimensions(3, objects=objects)
    check_at_least(0, noise=noise)
    if objects.shape[2] != 3:
        raise ValueError(f"objects must be (n, most, 3), got {tuple(objects.shape)}")
    here = (objects >= 0).all(2)
    for part, count in enumerate((len(SCENE_COLORS), len(SCENE_SHAPES), 3)):
        check_labels(count, objects=objects[here][:, part])
    if (objects[~here] != -1).any():
        raise ValueError("objects must have a colour, a shape and a texture, or -1 for each")
    generator = generator_of(seed)
    kinds = objects[here]
    count = len(kinds)
    letters = render_scene(kinds[:, None, None, :2] + 1, cell=12)
    line = torch.arange(12)
    row, column = line.view(-1, 1) // 2 % 2, line // 2 % 2
    full = torch.ones(12, 12)
    textures = torch.stack([full, (full * row) * 0.6 + 0.4, (row ^ column).float() * 0.6 + 0.4])
    light = 0.6 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator)
    drawn = letters * textures[kinds[:, 2]].unsqueeze(1) * light
    down, right = torch.randint(0, 3, (2, count, 1, 1), generator=generator)
    rows = ((line.view(1, -1, 1) - down) % 12).expand(-1, 12, 12).unsqueeze(1).expand(-1, 3, -1, -1)
    columns = ((line.view(1, 1, -1) - right) % 12).expand(-1, 12, 12).unsqueeze(1).expand(-1, 3, -1, -1)
    drawn = drawn.gather(2, rows).gather(3, columns)
    pictures = torch.zeros(*objects.shape[:2], 3, 12, 12)
    pictures[here] = drawn + noise * torch.randn(drawn.shape, generator=generator)
    return pictures


@checked
def joined_examples(parts: Sequence[ObjectExamples]) -> ObjectExamples:
    """Returns the examples of several drawings one after the other, all with as many words and slots as the largest.

    Raises:
        ValueError: no parts.

    Example:
        >>> world = ObjectQuestions()
        >>> len(joined_examples([world.draw(3), world.draw(2, ["exist"])]).answers)
        5
    """
    check_nonempty(parts=parts)
    length = max(part.words.shape[1] for part in parts)
    most = max(part.objects.shape[1] for part in parts)
    filling = {"words": (length, 0), "objects": (most, -1), "boxes": (most, 0), "named": (most, 0)}
    columns = []
    for name, every in zip(ObjectExamples._fields, zip(*parts, strict=True), strict=True):
        if name in filling:
            size, value = filling[name]
            every = tuple(torch.cat([each, each.new_full((len(each), size - each.shape[1], *each.shape[2:]), value)], 1)
                          for each in every)  # fmt: skip
        columns.append(torch.cat(every))
    check_same_length(**dict(zip(ObjectExamples._fields, columns, strict=True)))
    return ObjectExamples(*columns)


class _Example(NamedTuple):
    words: list[int]
    objects: list[_Object]
    textures: list[int]
    boxes: list[tuple[float, float, float, float]]
    answer: int
    kind: int
    asked: _Object
    named: list[int]


class _Drawer:
    """Draws one example after the other."""

    def __init__(self, world: ObjectQuestions, allowed: Tensor, asked: Tensor, rng: random.Random) -> None:
        self.world, self.rng = world, rng
        self.pairs = [tuple(pair) for pair in allowed.nonzero().tolist()]
        self.targets = [tuple(pair) for pair in asked.nonzero().tolist()]
        self.number = {word: number for number, word in enumerate(world.vocabulary)}
        self.class_of = {word: number for number, word in enumerate(world.answers)}

    def example(self, kind: str) -> _Example:
        if kind == "count":
            return self._count()
        target = self.rng.choice(self.targets)
        if kind == "exist":
            return self._exist(target)
        return self._placed(kind, target) if kind.endswith("at") else self._part(kind, target)

    def _exist(self, target: _Object) -> _Example:
        there = self.rng.random() < 0.5
        if there:
            objects = [target, self._other(lambda each: each[0] != target[0] and each[1] != target[1])]
        else:
            objects = [self._other(lambda each: each[0] == target[0] and each != target)]
            objects.append(self._other(lambda each: each[1] == target[1] and each != target))
        objects += [self._other(lambda each: each != target) for _ in range(self._size() - 2)]
        words = f"is there any {self._name(target)}"
        named = [2 * (each == target) for each in objects]
        return self._made(words, objects, named, ("no", "yes")[there], "exist", target)

    def _part(self, kind: str, target: _Object) -> _Example:
        part = int(kind == "color")  # by which the object is named
        objects = [target]
        objects += [self._other(lambda each: each[part] != target[part]) for _ in range(self._size() - 1)]
        words = f"what {kind} is {self._named(target, part)}"
        return self._made(words, objects, [1] + [0] * (len(objects) - 1), self._value(target, 1 - part), kind, target)

    def _placed(self, kind: str, target: _Object) -> _Example:
        part = self.rng.randrange(2)
        other = self._other(lambda each: each[part] != target[part])
        objects = [target, other]
        objects += [self._other(lambda each: each[part] != other[part]) for _ in range(self._size() - 2)]
        while True:
            cells, relation = self._cells(len(objects)), self.rng.choice(SCENE_RELATIONS)
            related = [_related(relation, cell, cells[1]) for cell in cells]
            if related[0] and sum(related) == 1:
                break
        asked_part = int(kind.startswith("shape"))
        words = f"what {('color', 'shape')[asked_part]} is the thing {relation} {self._named(other, part)}"
        named = [0, 1] + [0] * (len(objects) - 2)
        return self._made(words, objects, named, self._value(target, asked_part), kind, target, cells)

    def _count(self) -> _Example:
        part, number = self.rng.randrange(2), self.rng.randrange(4)
        value = self.rng.choice(self.pairs)[part]
        size = max(self._size(), number)
        objects = [self._other(lambda each: each[part] == value) for _ in range(number)]
        objects += [self._other(lambda each: each[part] != value) for _ in range(size - number)]
        asked = (value, -1) if part == 0 else (-1, value)
        name = (self.world.colors, self.world.shapes)[part][value]
        named = [1] * number + [0] * (size - number)
        return self._made(f"how many {name} things", objects, named, str(number), "count", asked)

    def _made(
        self, words: str, objects: list[_Object], named: list[int], answer: str, kind: str, asked: _Object,
        cells: list[tuple[int, int]] | None = None,
    ) -> _Example:  # fmt: skip
        cells = self._cells(len(objects)) if cells is None else cells
        order = self.rng.sample(range(len(objects)), len(objects))
        return _Example(
            [self.number[word] for word in _words_of(words)],
            [objects[i] for i in order],
            [self.rng.randrange(self.world.textures) for _ in order],
            [self._box(cells[i]) for i in order],
            self.class_of[answer], OBJECT_QUESTIONS.index(kind), asked, [named[i] for i in order],
        )  # fmt: skip

    def _other(self, fits: Any) -> _Object:
        for _ in range(20):  # faster than to look at all
            if fits(found := self.rng.choice(self.pairs)):
                return found
        fitting = [each for each in self.pairs if fits(each)]
        if not fitting:
            raise ValueError("allowed must have other pairs for what is asked: too few are left")
        return self.rng.choice(fitting)

    def _size(self) -> int:
        return self.rng.randint(*self.world.objects)

    def _cells(self, count: int) -> list[tuple[int, int]]:
        return [divmod(place, _GRID) for place in self.rng.sample(range(_GRID**2), count)]

    def _box(self, cell: tuple[int, int]) -> tuple[float, float, float, float]:
        """A box of 0.2 within a cell of 0.25."""
        top, left = ((each + 0.2 * self.rng.random()) / _GRID for each in cell)
        return left, top, left + 0.8 / _GRID, top + 0.8 / _GRID

    def _value(self, each: _Object, part: int) -> str:
        return (self.world.colors, self.world.shapes)[part][each[part]]

    def _name(self, each: _Object) -> str:
        return f"{self._value(each, 0)} {self._value(each, 1)}"

    def _named(self, each: _Object, part: int) -> str:
        return f"the {self._value(each, part)}" + ("" if part else " thing")


def _words_of(text: str) -> list[str]:
    """Words, of which a relation is one."""
    for relation in SCENE_RELATIONS:
        text = text.replace(relation, relation.replace(" ", "_"))
    return [word.replace("_", " ") for word in text.split()]


def _related(relation: str, here: tuple[int, int], there: tuple[int, int]) -> bool:
    axis = 1 if relation in ("left of", "right of") else 0
    return here[axis] < there[axis] if relation in ("left of", "above") else here[axis] > there[axis]


def _stacked(examples: list[_Example], most: int) -> ObjectExamples:
    length = max(len(each.words) for each in examples)
    return ObjectExamples(
        torch.tensor([each.words + [0] * (length - len(each.words)) for each in examples]),
        torch.tensor([
            [(*pair, texture) for pair, texture in zip(each.objects, each.textures, strict=True)]
            + [(-1, -1, -1)] * (most - len(each.objects))
            for each in examples
        ]),
        torch.tensor([each.boxes + [(0.0, 0.0, 0.0, 0.0)] * (most - len(each.boxes)) for each in examples]),
        torch.tensor([each.answer for each in examples]),
        torch.tensor([each.kind for each in examples]),
        torch.tensor([each.asked for each in examples]),
        torch.tensor([each.named + [0] * (most - len(each.named)) for each in examples]),
    )  # fmt: skip
