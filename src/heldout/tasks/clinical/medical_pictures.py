"""Synthetic medical pictures: five ways of imaging, five organs, four questions, in every combination.

Made for arXiv:2412.20070, most of whose data may not be passed on. The shapes are cartoons of textbooks, the numbers
are invented: nothing learnt here holds for patients.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import check_at_least, check_nonnegative, check_one_of, checked
from heldout.tasks.seeds import Seed, generator_of

IMAGING = ("attenuation", "resonance", "ultrasound", "projection", "endoscopy")
ORGANS = ("round", "paired", "band", "ring", "wedge")
FINDINGS = {
    "mass": ("no mass", "smooth mass", "spiculated mass"),
    "fluid": ("no fluid", "little fluid", "much fluid"),
    "nodules": ("no nodules", "one nodule", "four nodules"),
    "side": ("left denser", "right denser"),
}
"""Question -> its answers, the classes of a data set in order."""


class MedicalPictures(NamedTuple):
    """Pictures of one way of imaging, one organ and one question.

    Attributes:
        images: float32 ``(n, 1, size, size)``, mean 0 and standard deviation 1 each.
        labels: int64 ``(n,)``, places in ``FINDINGS[finding]``; equally many of each but for one.
        organs: bool ``(n, size, size)``, where the organ is.

    Example:
        >>> pictures = medical_pictures("attenuation", "round", "fluid", 3, size=16)
        >>> bool((pictures.images.mean((1, 2, 3)).abs() < 1e-5).all()), pictures.organs.shape
        (True, torch.Size([3, 16, 16]))
        >>> sorted(FINDINGS["fluid"][label] for label in pictures.labels)
        ['little fluid', 'much fluid', 'no fluid']
    """

    images: Tensor
    labels: Tensor
    organs: Tensor


@checked
def medical_pictures(
    imaging: str, organ: str, finding: str, n: int, *, noise: float = 1.0, size: int = 24, seed: Seed = 0
) -> MedicalPictures:
    """Returns pictures of an organ as one way of imaging shows it, with a finding that answers one question.

    A map of tissue (background 0, organ about 0.5, findings denser) is made first: organs vary in size, place and
    texture; a mass, fluid, nodules or a denser side lie within the organ. Imaging then shows the map: "attenuation" as
    it is, with noise; "resonance" inverted within the body, under a smooth bias; "ultrasound" with multiplicative
    speckle, in a sector, weaker with depth; "projection" blurred, under ribs that lie over it; "endoscopy" as a lit
    surface, whose edges show and whose light falls off. The answer is independent of organ and imaging.

    Args:
        imaging: one of ``IMAGING``.
        organ: one of ``ORGANS``.
        finding: the question, a key of ``FINDINGS``.
        n: pictures, at least 1.
        noise: of the imaging, as a multiple of its own.
        size: height and width in pixels, at least 16.
        seed: an int, or a ``torch.Generator`` to draw from.

    Raises:
        ValueError: an unknown imaging, organ or question, options out of range.

    Source: the setting of arXiv:2412.20070, section 3: triplets of modality, anatomical area and task.

    Example:
        >>> pictures = medical_pictures("ultrasound", "paired", "nodules", 6)
        >>> pictures.images.shape, pictures.labels.bincount().tolist()
        (torch.Size([6, 1, 24, 24]), [2, 2, 2])
    """
    check_one_of(IMAGING, imaging=imaging)
    check_one_of(ORGANS, organ=organ)
    check_one_of(FINDINGS, finding=finding)
    check_at_least(1, n=n)
    check_nonnegative(noise=noise)
    check_at_least(16, size=size)
    generator = generator_of(seed)
    classes = len(FINDINGS[finding])
    labels = (torch.arange(n) + int(torch.randint(classes, (1,), generator=generator))) % classes
    labels = labels[torch.randperm(n, generator=generator)]
    where = _Organs(organ, n, size, generator)
    tissue = 0.5 * where.mask + _FINDERS[finding](labels, where, generator)
    tissue = (tissue + 0.06 * _smooth(n, size, 5, generator) * where.mask).clamp(0, 1.5)
    shown = _IMAGERS[imaging](tissue, where, noise, generator)
    shown = (shown - shown.mean((1, 2), keepdim=True)) / shown.std((1, 2), keepdim=True).clamp(min=1e-6)
    return MedicalPictures(shown.unsqueeze(1), labels, where.mask > 0.5)


def _smooth(n: int, size: int, coarse: int, generator: torch.Generator) -> Tensor:
    """Smooth random fields ``(n, size, size)`` of about unit deviation."""
    field = torch.randn(n, 1, coarse, coarse, generator=generator)
    return F.interpolate(field, (size, size), mode="bicubic", align_corners=True).squeeze(1)


class _Organs:
    """Where organs are: masks ``(n, size, size)`` with soft edges, and coordinates relative to their centres."""

    def __init__(self, organ: str, n: int, size: int, generator: torch.Generator) -> None:
        def draw(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(n, 1, 1, generator=generator)

        self.n, self.size = n, size
        line = torch.linspace(-1, 1, size)
        y, x = torch.meshgrid(line, line, indexing="ij")
        self.x, self.y = x - draw(-0.12, 0.12), y - draw(-0.12, 0.12)  # right and down of the centre
        wide, high = draw(0.62, 0.8), draw(0.62, 0.8)
        x, y = self.x, self.y
        match organ:
            case "round":
                inside = 1 - (x / wide) ** 2 - (y / high) ** 2
            case "paired":
                apart = draw(0.42, 0.5)
                inside = 1 - ((x.abs() - apart) / 0.4) ** 2 - (y / high) ** 2
            case "band":
                inside = 1 - (x / 0.92) ** 4 - (y / draw(0.42, 0.52)) ** 4
            case "ring":
                radius = ((x / wide) ** 2 + (y / high) ** 2).sqrt()
                inside = 1 - ((radius - 0.72) / 0.42) ** 2
            case _:
                reach = (y + 0.75) / 1.5  # 0 at the top, 1 at the bottom
                inside = torch.minimum(1.2 * (0.25 + 0.75 * reach) * wide - x.abs(), 0.75 - y.abs()) * 3
        self.mask = torch.sigmoid(inside * 8)

    def spots(self, count: int, apart: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Coordinates ``(n, count)`` of pixels well inside of each organ, ``apart`` from each other where possible."""
        inside = self.mask * (F.avg_pool2d(self.mask.unsqueeze(1), 3, 1, 1).squeeze(1) > 0.8)
        chance = inside.flatten(1) + 1e-6
        xs, ys = [], []
        for _ in range(count):
            at = torch.multinomial(chance, 1, generator=generator)
            xs.append(self.x.flatten(1).gather(1, at))
            ys.append(self.y.flatten(1).gather(1, at))
            far = (self.x - xs[-1].unsqueeze(2)) ** 2 + (self.y - ys[-1].unsqueeze(2)) ** 2 > apart**2
            chance = chance * (far.flatten(1) + 1e-4)
        return torch.cat(xs, 1), torch.cat(ys, 1)


def _mass(labels: Tensor, where: _Organs, generator: torch.Generator) -> Tensor:
    xs, ys = where.spots(1, 0.0, generator)
    dx, dy = where.x - xs.unsqueeze(2), where.y - ys.unsqueeze(2)
    turn = 2 * math.pi * torch.rand(where.n, 1, 1, generator=generator)
    radius = 0.3 + 0.06 * torch.rand(where.n, 1, 1, generator=generator)
    spikes = 0.5 * torch.cos(5 * torch.atan2(dy, dx) + turn)
    edge = radius * (1 + spikes * (labels == 2)[:, None, None])
    mass = torch.sigmoid((edge - (dx**2 + dy**2).sqrt()) * 40)
    return 0.5 * mass * where.mask * (labels > 0)[:, None, None]


def _fluid(labels: Tensor, where: _Organs, generator: torch.Generator) -> Tensor:
    inside = where.mask > 0.5
    low = where.y.masked_fill(~inside, -9).amax((1, 2), keepdim=True)
    high = where.y.masked_fill(~inside, 9).amin((1, 2), keepdim=True)
    share = torch.tensor([0.0, 0.28, 0.62])[labels][:, None, None]
    share = share + (0.08 * torch.rand(where.n, 1, 1, generator=generator) - 0.04) * (share > 0)
    level = low - share * (low - high)
    return 0.45 * torch.sigmoid((where.y - level) * 25) * where.mask * (share > 0)


def _nodules(labels: Tensor, where: _Organs, generator: torch.Generator) -> Tensor:
    xs, ys = where.spots(4, 0.4, generator)
    dx, dy = where.x.unsqueeze(1) - xs[:, :, None, None], where.y.unsqueeze(1) - ys[:, :, None, None]
    each = torch.exp(-(dx**2 + dy**2) / (2 * 0.1**2))
    there = torch.arange(4) < torch.tensor([0, 1, 4])[labels].unsqueeze(1)
    return 0.9 * (each * there[:, :, None, None]).amax(1)


def _side(labels: Tensor, where: _Organs, generator: torch.Generator) -> Tensor:
    right = (2 * labels - 1)[:, None, None]
    bend = 0.1 * torch.randn(where.n, 1, 1, generator=generator)
    return 0.3 * torch.sigmoid((where.x + bend * where.y) * right * 12) * where.mask


_FINDERS = {"mass": _mass, "fluid": _fluid, "nodules": _nodules, "side": _side}


def _attenuation(tissue: Tensor, where: _Organs, noise: float, generator: torch.Generator) -> Tensor:
    return tissue + 0.1 * noise * torch.randn(tissue.shape, generator=generator)


def _resonance(tissue: Tensor, where: _Organs, noise: float, generator: torch.Generator) -> Tensor:
    body = 0.15 + 0.85 * torch.sigmoid((0.95 - (where.x**2 + where.y**2).sqrt()) * 15)
    bias = (0.25 * _smooth(where.n, where.size, 3, generator)).exp()
    signal = body * torch.exp(-1.6 * tissue) * bias
    return (signal + 0.05 * noise * torch.randn(tissue.shape, generator=generator)).abs()


def _ultrasound(tissue: Tensor, where: _Organs, noise: float, generator: torch.Generator) -> Tensor:
    line = torch.linspace(0, 1, where.size)
    depth, across = line[:, None], torch.linspace(-1, 1, where.size)[None, :]
    sector = torch.sigmoid((0.35 + 0.75 * depth - across.abs()) * 25)
    speckle = torch.randn(2, *tissue.shape, generator=generator).square().sum(0).div(2).sqrt()  # Rayleigh
    echo = (0.12 + tissue) * (1 + noise * 0.35 * (speckle - 0.89)) * torch.exp(-0.7 * depth)
    return (echo.clamp(min=0) * sector + 0.15).log()


def _projection(tissue: Tensor, where: _Organs, noise: float, generator: torch.Generator) -> Tensor:
    phase = 2 * math.pi * torch.rand(where.n, 1, 1, generator=generator)
    ribs = torch.sigmoid(6 * torch.cos(11 * (where.y + 0.25 * where.x**2) + phase) - 3)
    blurred = F.avg_pool2d(F.pad(tissue.unsqueeze(1), (1, 1, 1, 1), mode="replicate"), 3, 1).squeeze(1)
    passed = torch.exp(-1.2 * blurred - 0.25 * ribs - 0.15 * _smooth(where.n, where.size, 4, generator))
    return passed + 0.03 * noise * torch.randn(tissue.shape, generator=generator)


def _endoscopy(tissue: Tensor, where: _Organs, noise: float, generator: torch.Generator) -> Tensor:
    lit_x, lit_y = (0.5 * torch.rand(where.n, 1, 1, generator=generator) - 0.25 for _ in range(2))
    light = torch.exp(-((where.x - lit_x) ** 2 + (where.y - lit_y) ** 2) * 0.7)
    padded = F.pad(tissue.unsqueeze(1), (1, 1, 1, 1), mode="replicate").squeeze(1)
    slope = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2] + padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    shown = light * (0.9 - 0.45 * tissue + 0.8 * slope)
    return shown + 0.04 * noise * torch.randn(tissue.shape, generator=generator)


_IMAGERS = {
    "attenuation": _attenuation,
    "resonance": _resonance,
    "ultrasound": _ultrasound,
    "projection": _projection,
    "endoscopy": _endoscopy,
}
