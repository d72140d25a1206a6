"""Synthetic patients with and without glaucoma: maps of the nerve fibre layer around the optic disc, by hospital.

Made for arXiv:2308.13411, whose data may not be passed on; the shapes are those of textbooks, the numbers are invented.
Nothing learnt here holds for patients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import check_at_least, check_fraction, check_labels, check_nonempty, checked
from heldout.tasks.seeds import Seed, generator_of

VISUAL_FIELD_POINTS = 52
_VESSELS = 4
_SUPERIOR, _INFERIOR = math.radians(75), math.radians(-75)  # the two bundles, where the layer is thickest


class GlaucomaMaps(NamedTuple):
    """Patients, one row each.

    Attributes:
        maps: float32 ``(n, 1, size, size)``, thickness of the layer; about 1 where it is thickest in health, 0 in the
            disc.
        labels: int64 ``(n,)``, 1 for glaucoma.
        hospitals: int64 ``(n,)``, where the map was taken.
        age: float32 ``(n,)``, years.
        sex: int64 ``(n,)``, 0 or 1.
        visual_field: float32 ``(n, 52)``, total deviations in decibels, near 0 in health.
        severity: float32 ``(n,)``, share of the layer that is lost where most is lost; 0 in health.

    Example:
        >>> patients = glaucoma_maps(50, size=8)
        >>> ill = patients.labels == 1
        >>> patients.severity[~ill].max().item(), 0.6 <= patients.severity[ill].min().item()
        (0.0, True)
    """

    maps: Tensor
    labels: Tensor
    hospitals: Tensor
    age: Tensor
    sex: Tensor
    visual_field: Tensor
    severity: Tensor


class _Patients(NamedTuple):
    """Where and how deep the layer is thinned, ``(n,)`` each; angles in radians."""

    labels: Tensor
    severity: Tensor
    angle: Tensor
    width: Tensor


@checked
def glaucoma_maps(
    n: int, hospitals: Sequence[int] = (0,), shift: float = 1.0, seed: Seed = 0, *, size: int = 24
) -> GlaucomaMaps:
    """Returns patients of some hospitals: maps with two thick bundles, of which glaucoma thins an arc.

    The profile around the disc has two humps, whose heights and places differ from person to person and shrink with
    age. Glaucoma takes away a share of the layer along an arc that begins near one of them and bends. In anybody four
    vessels, straight and narrow, may throw shadows anywhere, and the layer seems thicker here and thinner there. Few
    labelled patients do not tell the one from the other.
    Hospitals differ in the gain and the noise of their device, the size of the disc and how frequent glaucoma is;
    hospital 0 is the reference, where half of the patients have it.

    Args:
        n: patients, at least 2.
        hospitals: numbers, each equally often; what a number stands for is the same for every seed.
        shift: how much other hospitals than 0 differ from it, in [0, 1].
        seed: an int, or a ``torch.Generator`` to draw from.
        size: height and width of a map in pixels, at least 8.

    Raises:
        ValueError: options out of range.

    Source: the setting of arXiv:2308.13411, section 3.

    Example:
        >>> patients = glaucoma_maps(100, hospitals=(0, 3), seed=0)
        >>> patients.maps.shape, sorted(set(patients.hospitals.tolist()))
        (torch.Size([100, 1, 24, 24]), [0, 3])
        >>> ill = patients.labels == 1
        >>> bool(patients.maps[ill].mean() < patients.maps[~ill].mean())
        True
    """
    check_at_least(2, n=n)
    check_nonempty(hospitals=hospitals)
    check_labels(hospitals=hospitals)
    check_fraction(shift=shift)
    check_at_least(8, size=size)
    generator = generator_of(seed)
    where = torch.tensor(list(hospitals))[torch.arange(n) % len(hospitals)]
    gain, noise, disc, prevalence = _devices(where, shift).unbind(1)
    labels = (torch.rand(n, generator=generator) < prevalence).long()
    age = (60 + 4 * labels + 11 * torch.randn(n, generator=generator)).clamp(30, 95)
    sex = torch.randint(0, 2, (n,), generator=generator)
    upper = torch.rand(n, generator=generator) < 0.4
    severity = labels * (0.6 + 0.35 * torch.rand(n, generator=generator))
    angle = torch.where(upper, _SUPERIOR, _INFERIOR) + math.radians(30) * torch.randn(n, generator=generator)
    width = torch.deg2rad(8 + 12 * torch.rand(n, generator=generator))
    patients = _Patients(labels, severity, angle, width)
    maps = _thickness(patients, age, sex, disc, size, generator)
    coarse = F.interpolate(torch.randn(n, 1, 6, 6, generator=generator), (size, size), mode="bicubic").squeeze(1)
    maps = maps * (gain[:, None, None] + 0.1 * coarse)
    maps = maps + noise[:, None, None] * torch.randn(maps.shape, generator=generator)
    return GlaucomaMaps(maps.unsqueeze(1), labels, where, age, sex, _visual_field(patients, generator), severity)


def _devices(hospitals: Tensor, shift: float) -> Tensor:
    """Gain, noise, radius of the disc and frequency of glaucoma ``(n, 4)`` of each patient's hospital."""
    found = {}
    for hospital in hospitals.unique().tolist():
        drawn = torch.rand(4, generator=torch.Generator().manual_seed(hospital))
        signs = torch.where(torch.rand(4, generator=torch.Generator().manual_seed(hospital + 1000)) < 0.5, -1.0, 1.0)
        by = shift * (0.5 + 0.5 * drawn) * signs * (hospital != 0)
        found[hospital] = torch.stack(
            [1 + 0.3 * by[0], 0.08 * (1 + 0.5 * by[1]), 0.25 + 0.08 * by[2], 0.5 + 0.2 * by[3]]
        )
    return torch.stack([found[hospital] for hospital in hospitals.tolist()])


def _thickness(
    patients: _Patients, age: Tensor, sex: Tensor, disc: Tensor, size: int, generator: torch.Generator
) -> Tensor:
    n = len(age)

    def person(scale: float) -> Tensor:
        return scale * torch.randn(n, 1, 1, generator=generator)

    line = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(-line, line, indexing="ij")
    x, y = x - person(0.06), y - person(0.06)
    radius, theta = (x**2 + y**2).sqrt(), torch.atan2(y, x)
    profile = torch.full_like(radius, 0.3)
    for centre in (_SUPERIOR, _INFERIOR):
        profile = profile + (0.7 + person(0.2)) * torch.exp(5 * (torch.cos(theta - centre - person(0.25)) - 1))
    edge = disc[:, None, None] * (1 + person(0.08))
    beyond = (radius - edge).clamp(min=0)
    thickness = profile * torch.exp(-beyond / 0.8) * torch.sigmoid((radius - edge) / 0.04)
    thickness = thickness * (1 - 0.004 * (age - 60) + 0.02 * sex)[:, None, None] * (1 + person(0.06))
    bend = 0.5 * torch.sign(patients.angle)[:, None, None]  # arcs run to the side where the fovea is
    lost = _along(theta + bend * beyond, patients.angle, patients.width)
    kept = 1 - patients.severity[:, None, None] * lost
    for _ in range(_VESSELS):
        where = math.pi * (2 * torch.rand(n, generator=generator) - 1)
        shadow = _along(theta, where, torch.deg2rad(4 + 4 * torch.rand(n, generator=generator)))
        kept = kept * (1 - 0.6 * torch.rand(n, 1, 1, generator=generator) * shadow)
    return thickness * kept


def _visual_field(patients: _Patients, generator: torch.Generator) -> Tensor:
    """Total deviations: a point sees worse where the fibres that serve it are lost."""
    n = len(patients.labels)
    served = torch.linspace(-math.pi, math.pi, VISUAL_FIELD_POINTS + 1)[:-1].expand(n, 1, -1)
    lost = _along(served, patients.angle, patients.width).squeeze(1)
    return 1.5 * torch.randn(n, VISUAL_FIELD_POINTS, generator=generator) - 15 * patients.severity[:, None] * lost


def _along(theta: Tensor, centre: Tensor, width: Tensor) -> Tensor:
    """A bump of height 1 over angles ``(n, h, w)``, the short way round."""
    away = torch.remainder(theta - centre[:, None, None] + math.pi, 2 * math.pi) - math.pi
    return torch.exp(-(away**2) / (2 * width[:, None, None] ** 2))
