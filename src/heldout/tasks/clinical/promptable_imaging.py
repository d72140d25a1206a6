"""Synthetic clinical pictures in which a text says what is to be found: four tasks, three devices.

Made for arXiv:2303.06580, whose sets may not all be passed on. Shapes, tints and noise are invented cartoons: nothing
that is learnt here holds for patients, and no clinical meaning is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import check_at_least, check_fraction, check_nonempty, check_one_of, checked
from heldout.tasks.detection.prompted import PromptedPictures, cells_of
from heldout.tasks.seeds import Seed, generator_of

_SHAPES, _SIZES = ("round", "irregular", "ring", "square"), ("small", "large")
_HUES = {
    "red": (0.85, 0.2, 0.2),
    "green": (0.2, 0.75, 0.25),
    "blue": (0.25, 0.35, 0.9),
    "yellow": (0.9, 0.85, 0.2),
}
_LOOKS = ("dark", "bright", "raised", *_HUES)
IMAGING_TASKS = {
    "polyp": ("raised", "round"),
    "lesion": ("dark", "irregular"),
    "nodule": ("bright", "round"),
    "cell": ("dark", "ring"),
}
"""Task -> look and shape of what is to be found; each word is shared with other tasks or with ``prompted_shapes``."""
PROMPT_WORDS = ("", *_SIZES, *_LOOKS, *_SHAPES, "spot")
"""The words of prompts; a word's place is its id, 0 is none."""
MOST_TARGETS = 3
_GRID = 3  # cells a side: things lie in different ones
_THINGS = tuple((look, shape) for look in ("dark", "bright", "raised") for shape in _SHAPES[:3])


class _Device(NamedTuple):
    tint: tuple[float, float, float]
    contrast: float
    noise: float
    texture: float  # strength of stripes
    waves: float  # of them over the picture
    blur: bool


IMAGING_DEVICES = {
    "endoscope": _Device((0.72, 0.45, 0.40), 0.7, 0.05, 0.03, 3.0, False),
    "scanner": _Device((0.45, 0.55, 0.52), 0.6, 0.08, 0.03, 9.0, False),
    "microscope": _Device((0.52, 0.45, 0.68), 0.65, 0.06, 0.045, 6.0, False),
}
"""Device -> how it takes pictures: the domains."""
_PLAIN = _Device((0.5, 0.5, 0.5), 1.0, 0.02, 0.0, 1.0, False)


@checked
def promptable_imaging(
    tasks: Sequence[str],
    domains: Sequence[str],
    n: int,
    seed: int = 0,
    *,
    unseen: Sequence[str] = (),
    empty: float = 0.2,
    size: int = 48,
) -> dict[tuple[str, str], PromptedPictures]:
    """Returns pictures of each task as each device takes them, with prompts such as "a small dark irregular spot".

    A picture shows one to three things of one size that the prompt asks for, and one to three others, which differ from
    them in look or shape and are of any size; in a part of the pictures there are only others. Looks are "dark",
    "bright" and "raised" (lit from one side), shapes "round", "irregular" and "ring". Each device has its own tint,
    contrast, noise and stripes.

    Args:
        tasks: of ``IMAGING_TASKS``.
        domains: devices, of ``IMAGING_DEVICES``.
        n: pictures of each task and device, at least 1.
        seed: each task and device draws from one of its own, so that a set does not depend on what else is asked for.
        unseen: tasks whose things are not among the others of a picture either.
        empty: part of the pictures in which there is nothing to be found, in [0, 1].
        size: height and width in pixels, at least 24.

    Returns:
        (task, device) -> images float32 ``(n, 3, size, size)`` in [0, 1], prompts int64 ``(n, 4)`` of places in
        ``PROMPT_WORDS``, and boxes.

    Raises:
        ValueError: an unknown task or device, none at all, numbers out of range.

    Source: the setting of arXiv:2303.06580: (task, domain) sets for one detector with text prompts; the world is made
    for this library.

    Example:
        >>> sets = promptable_imaging(["polyp", "cell"], ["scanner"], 5, seed=1000)
        >>> sets["cell", "scanner"].images.shape, sets["cell", "scanner"].captions[0].split()[2:]
        (torch.Size([5, 3, 48, 48]), ['dark', 'ring', 'spot'])
    """
    check_nonempty(tasks=tasks, domains=domains)
    for task in (*tasks, *unseen):
        check_one_of(IMAGING_TASKS, **{"tasks" if task in tasks else "unseen": task})
    for domain in domains:
        check_one_of(IMAGING_DEVICES, domains=domain)
    _check(n, empty, size)
    hidden = {IMAGING_TASKS[task] for task in unseen}
    found = {}
    for task in tasks:
        for domain in domains:
            place = list(IMAGING_TASKS).index(task) * len(IMAGING_DEVICES) + list(IMAGING_DEVICES).index(domain)
            generator = torch.Generator().manual_seed(1_000_003 * seed + place)
            kinds = [IMAGING_TASKS[task]]
            others = [kind for kind in _THINGS if kind not in hidden]
            found[task, domain] = _pictures(kinds, others, IMAGING_DEVICES[domain], n, empty, size, generator)
    return found


@checked
def prompted_shapes(n: int, *, empty: float = 0.2, size: int = 48, seed: Seed = 0) -> PromptedPictures:
    """Returns pictures of coloured shapes on plain grounds, with prompts of the same words: to begin with.

    Shapes of ``promptable_imaging`` and squares, in its looks and in four colours, but in no combination of look and
    shape that is a task there.

    Args:
        n: pictures, at least 1.
        empty: part of the pictures in which there is nothing to be found, in [0, 1].
        size: height and width in pixels, at least 24.
        seed: an int, or a ``torch.Generator`` to draw from.

    Raises:
        ValueError: numbers out of range.

    Source: the generic pretraining of arXiv:2303.06580's detector, at small scale; made for this library.

    Example:
        >>> made = prompted_shapes(100)
        >>> [any(words in caption for caption in made.captions) for words in ("dark ring", "ring")]
        [False, True]
    """
    _check(n, empty, size)
    tasks = set(IMAGING_TASKS.values())
    kinds = [(look, shape) for look in _LOOKS for shape in _SHAPES if (look, shape) not in tasks]
    return _pictures(kinds, kinds, _PLAIN, n, empty, size, generator_of(seed))


def _check(n: int, empty: float, size: int) -> None:
    check_at_least(1, n=n)
    check_fraction(empty=empty)
    check_at_least(24, size=size)


def _pictures(
    kinds: Sequence[tuple[str, str]],
    others: Sequence[tuple[str, str]],
    device: _Device,
    n: int,
    empty: float,
    size: int,
    generator: torch.Generator,
) -> PromptedPictures:
    def draw(count: int, *shape: int) -> Tensor:
        return torch.randint(count, shape, generator=generator)

    def of(values: Sequence[tuple[str, str]]) -> Tensor:
        return torch.tensor([[_LOOKS.index(look), _SHAPES.index(shape)] for look, shape in values])

    asked = of(kinds)[draw(len(kinds), n)]  # (n, 2): look and shape
    large = draw(2, n)
    targets = (1 + draw(MOST_TARGETS, n)) * (torch.rand(n, generator=generator) >= empty)
    beside = 1 + draw(3, n)
    slots = MOST_TARGETS + 3
    number = torch.arange(slots)
    wanted = number < targets[:, None]
    shown = wanted | ((number >= MOST_TARGETS) & (number < MOST_TARGETS + beside[:, None]))
    rest = of(others)
    allowed = (rest[None] != asked[:, None]).any(2)  # (n, others)
    chosen = torch.multinomial(allowed.float(), slots, replacement=True, generator=generator)
    things = torch.where(wanted[..., None], asked[:, None], rest[chosen])  # (n, slots, 2)
    big = torch.where(wanted, large[:, None], draw(2, n, slots))
    canvas = _Canvas(device, n, size, generator)
    cells = cells_of(n, slots, _GRID, seed=generator)
    boxes = torch.zeros(n, MOST_TARGETS, 4)
    for slot in range(slots):
        box = canvas.add(things[:, slot], big[:, slot], cells[:, slot], shown[:, slot])
        if slot < MOST_TARGETS:
            boxes[:, slot] = box * wanted[:, slot, None]
    size_ids, look_ids, shape_ids = 1 + large, 3 + asked[:, 0], 3 + len(_LOOKS) + asked[:, 1]
    prompts = torch.stack([size_ids, look_ids, shape_ids, torch.full((n,), len(PROMPT_WORDS) - 1)], 1)
    captions = tuple("a " + " ".join(PROMPT_WORDS[word] for word in row) for row in prompts.tolist())
    return PromptedPictures(canvas.taken(), prompts, boxes, captions)


class _Canvas:
    """Pictures ``(n, 3, size, size)`` on which things are drawn, one of each at a time."""

    def __init__(self, device: _Device, n: int, size: int, generator: torch.Generator) -> None:
        self.device, self.n, self.size, self.generator = device, n, size, generator
        self.y, self.x = torch.meshgrid(*2 * [(torch.arange(size) + 0.5) / size], indexing="ij")
        coarse = torch.randn(n, 1, 4, 4, generator=generator)
        smooth = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)
        turn, phase = (2 * math.pi * self._uniform(0, 1) for _ in range(2))
        along = self.x * turn.cos() + self.y * turn.sin()
        stripes = torch.sin(2 * math.pi * device.waves * along + phase)
        light = 1 + 0.12 * smooth[:, 0] + 2 * device.texture * stripes
        self.pictures = torch.tensor(device.tint).view(3, 1, 1) * light[:, None]

    def _uniform(self, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(self.n, 1, 1, generator=self.generator)

    def add(self, things: Tensor, large: Tensor, cells: Tensor, shown: Tensor) -> Tensor:
        """Draws one thing on each picture where it is shown; returns its box ``(n, 4)``."""
        cell = 1 / _GRID
        radius = torch.where(large.bool()[:, None, None], self._uniform(0.125, 0.155), self._uniform(0.075, 0.1))
        room = cell / 2 - radius
        at_y, at_x = (cell * (cells[:, i, None, None] + 0.5) + room * self._uniform(-1, 1) for i in (0, 1))
        dx, dy = self.x - at_x, self.y - at_y
        angle, far = torch.atan2(dy, dx), (dx**2 + dy**2).sqrt()
        edge = radius.expand(-1, self.size, self.size)
        bumps = 0.8 + sum(
            0.1 * self._uniform(0.6, 1.4) * torch.cos(wave * angle + 2 * math.pi * self._uniform(0, 1))
            for wave in (3, 5)
        )
        shape = things[:, 1, None, None]
        edge = torch.where(shape == _SHAPES.index("irregular"), edge * bumps, edge)
        far = torch.where(shape == _SHAPES.index("square"), torch.maximum(dx.abs(), dy.abs()) / 0.9, far)
        soft = 1.5 * self.size
        mask = torch.sigmoid((edge - far) * soft)
        outer = mask
        hole = torch.sigmoid((0.55 * edge - far) * soft)
        mask = torch.where(shape == _SHAPES.index("ring"), mask * (1 - hole), mask)
        mask = mask * shown[:, None, None]
        look = things[:, 0, None, None]
        lit = self._uniform(0, 1) * 2 * math.pi
        slope = ((dx * lit.cos() + dy * lit.sin()) / radius).clamp(-1, 1)
        change: Any = torch.where(look == _LOOKS.index("dark"), -0.3, 0.0)
        change = change + torch.where(look == _LOOKS.index("bright"), 0.28, 0.0)
        change = change + torch.where(look == _LOOKS.index("raised"), 0.3 * slope, torch.zeros_like(slope))
        strength = self.device.contrast * self._uniform(0.8, 1.2)
        drawn = self.pictures + (strength * change * mask)[:, None]
        hue = torch.tensor([(0.0, 0.0, 0.0)] * 3 + list(_HUES.values()))[things[:, 0]][:, :, None, None]
        coloured = (look >= 3)[:, None] * mask[:, None]
        self.pictures = drawn * (1 - coloured) + hue * coloured
        return self._box(outer)

    def _box(self, mask: Tensor) -> Tensor:
        inside = mask > 0.5
        found = []
        for axis, line in ((1, self.x[0]), (2, self.y[:, 0])):
            there = inside.any(axis)
            half = 0.5 / self.size
            low = line.where(there, torch.tensor(2.0)).amin(1) - half
            high = line.where(there, torch.tensor(-1.0)).amax(1) + half
            found.append((low, high))
        (left, right), (top, bottom) = found
        return torch.stack([left, top, right, bottom], 1).clamp(0, 1)

    def taken(self) -> Tensor:
        """The pictures as the device takes them."""
        found = self.pictures
        if self.device.blur:
            found = F.avg_pool2d(F.pad(found, (1, 1, 1, 1), mode="replicate"), 3, 1)
        noise = torch.randn(self.n, 1, self.size, self.size, generator=self.generator)
        colour = torch.randn(found.shape, generator=self.generator)
        return (found + self.device.noise * (noise + 0.3 * colour)).clamp(0, 1)
