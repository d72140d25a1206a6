"""Synthetic discharge notes of several hospitals, and whether the patient came back within 30 days.

Made after arXiv:2402.10965 (Rahman et al.), whose notes may not be passed on: the hospitals' wordings, a tail that is
cut off, a weaker signal in the elderly and a later period are mechanisms of which each has a strength that may be zero.
All numbers are invented; nothing learnt here holds for patients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_fields, check_fraction, check_nonempty, check_nonnegative, checked
from heldout.tasks.seeds import Seed, generator_of

READMISSION_LIMIT = 40  # words of a note that a reader is meant to see
PAD, UNKNOWN, MASK = 0, 1, 2  # numbers of words that no note holds
_FILLERS, _FILLING = 60, 2  # neutral words, and how many follow each finding
_DISEASES, _MOST_DISEASES = 8, 6
# section -> finding -> what its values add to the logit of coming back
_SECTIONS: dict[str, dict[str, tuple[float, ...]]] = {
    "reason": {"severity": (-0.9, 0.0, 0.9), "laboratory": (-0.5, 0.5)},
    "history": {},  # the diseases
    "course": {"stay": (-0.7, 0.0, 0.7)},
    "social": {"household": (-0.4, 0.4), "adherence": (-0.5, 0.5)},
    "plan": {"follow-up": (-0.8, 0.8), "transport": (-0.3, 0.3)},
}
_DISEASE, _BASE = 0.15, -1.1


@dataclass(frozen=True)
class HospitalShift:
    """What makes hospitals, patients and periods differ; each is 0 where it is not to.

    Attributes:
        dialect: share of findings and diseases that a hospital words in its own way, in [0, 1].
        order: share of notes in the hospital's own order of sections, in [0, 1]; the plan is last in all.
        coefficient: how far the coefficient of the length of stay moves at the last hospital, in units of itself: with
            2 it is reversed.
        length: further words for each disease, which drive the plan beyond what a reader sees.
        noise: how much weaker the findings tell the outcome of patients over 60, and of those of comorbidity level 4:
            logits are divided by 1 + noise * (how many of the two hold).
        drift: share of findings that are worded by new abbreviations in the later period, in [0, 1], and what that
            period adds to the logit of everybody.

    Raises:
        ValueError: a strength out of range.

    Example:
        >>> HospitalShift(noise=0.0).dialect, HospitalShift.none() == HospitalShift(0, 0, 0, 0, 0, 0)
        (0.8, True)
    """

    dialect: float = 0.8
    order: float = 1.0
    coefficient: float = 2.0
    length: int = 6
    noise: float = 0.6
    drift: float = 0.3

    def __post_init__(self) -> None:
        check_fields(self)
        check_fraction(dialect=self.dialect, order=self.order, drift=self.drift)
        check_nonnegative(coefficient=self.coefficient, length=self.length, noise=self.noise)

    @classmethod
    def none(cls) -> HospitalShift:
        """Returns the shift of a world in which hospitals and periods are the same."""
        return cls(0.0, 0.0, 0.0, 0, 0.0, 0.0)


class DischargeNotes(NamedTuple):
    """Notes, one row each.

    Attributes:
        tokens: int64 ``(n, longest)``, numbers of words, 0 behind a note's end; whole notes, however long.
        labels: int64 ``(n,)``, 1 where the patient came back.
        probability: float64 ``(n,)``, with which the label was drawn: what no model can beat.
        hospitals: int64 ``(n,)``, from 1.
        patients: int64 ``(n,)``; one may have several notes.
        age: int64 ``(n,)``, years.
        comorbidity: int64 ``(n,)``, level from 1 (no disease) to 4 (three and more).
        insurance: int64 ``(n,)``: 0 private, 1 government, 2 unspecified.
        borough: int64 ``(n,)``, from 0 to 4, of no consequence.
        sex: int64 ``(n,)``, 0 or 1, of no consequence.
        words: int64 ``(n,)``, of the note.

    Example:
        >>> notes = readmission((30, 20), tests=10).train
        >>> notes.words.equal((notes.tokens > 0).sum(1)), notes.hospitals.bincount().tolist()
        (True, [0, 30, 20])
    """

    tokens: Tensor
    labels: Tensor
    probability: Tensor
    hospitals: Tensor
    patients: Tensor
    age: Tensor
    comorbidity: Tensor
    insurance: Tensor
    borough: Tensor
    sex: Tensor
    words: Tensor


class Readmission(NamedTuple):
    """Notes to learn from and two tests; no patient is in two of them.

    Attributes:
        train: of the early period.
        random_test: of the same period.
        temporal_test: of the later one.
        vocabulary: the word of each number in ``tokens``.

    Example:
        >>> world = readmission((30, 20), tests=10)
        >>> " ".join(world.vocabulary[i] for i in world.train.tokens[0, :3])  # doctest: +ELLIPSIS
        '...'
        >>> bool(world.train.patients.max() < world.random_test.patients.min())
        True
    """

    train: DischargeNotes
    random_test: DischargeNotes
    temporal_test: DischargeNotes
    vocabulary: tuple[str, ...]


@checked
def readmission(
    n_per_hospital: Sequence[int] = (8000, 3000, 1200, 300),
    shift: HospitalShift | None = None,
    seed: Seed = 0,
    *,
    tests: int = 1000,
) -> Readmission:
    """Returns discharge notes of several hospitals with whether the patient was readmitted.

    A note tells seven findings and up to six diseases in five sections, each by a word that is followed by neutral
    ones. How probable it is that the patient comes back follows from the findings, the number of diseases and nothing
    else; the follow-up plan, which tells much, stands last, where ``READMISSION_LIMIT`` words of a long note do not
    reach. Patients are alike in all hospitals. A fifth of the notes are of a patient who was there before.

    Args:
        n_per_hospital: notes to learn from of hospital 1, 2, ...; each at least 2.
        shift: strengths of what differs; default ``HospitalShift()``.
        seed: an int, or a ``torch.Generator`` to draw from.
        tests: notes of each hospital in each test.

    Raises:
        ValueError: no hospital, or numbers out of range.

    Source: the setting of arXiv:2402.10965; the mechanisms are ours.

    Example:
        >>> world = readmission((200, 50), tests=100)
        >>> world.train.tokens.shape[0], world.random_test.labels.shape, len(world.vocabulary)
        (250, torch.Size([200]), 159)
        >>> even = readmission((200, 50), HospitalShift.none(), tests=100)
        >>> int(even.train.words.max()) <= READMISSION_LIMIT < int(world.train.words.max())
        True
    """
    check_nonempty(n_per_hospital=n_per_hospital)
    check_at_least(2, n_per_hospital=n_per_hospital, tests=tests)
    shift, generator = shift or HospitalShift(), generator_of(seed)
    words = _Words(len(n_per_hospital))
    parts, first = [], 0
    asked = [tests] * len(n_per_hospital)
    for counts, later in ((n_per_hospital, False), (asked, False), (asked, True)):
        parts.append(_notes(counts, shift, words, later, first, generator))
        first = int(parts[-1].patients.max()) + 1
    train, random, temporal = parts
    return Readmission(train, random, temporal, words.vocabulary)


class _Words:
    """Numbers of words: neutral ones, and for each concept the common word, that of each hospital and the new one."""

    def __init__(self, hospitals: int) -> None:
        self.hospitals = hospitals
        names = [f"disease-{number}" for number in range(_DISEASES)]
        self.first: dict[str, int] = {"disease": 0}
        for section in _SECTIONS.values():
            for finding, effects in section.items():
                self.first[finding] = len(names)
                names += [f"{finding}-{value}" for value in range(len(effects))]
        kinds = ["", *(f"@{number + 1}" for number in range(hospitals)), "@new"]
        self.vocabulary = (
            *("[pad]", "[unknown]", "[mask]"),
            *(f"word-{number}" for number in range(_FILLERS)),
            *(name + kind for name in names for kind in kinds),
        )

    def of(
        self,
        finding: str,
        values: Tensor,
        hospitals: Tensor,
        shift: HospitalShift,
        later: bool,
        generator: torch.Generator,
    ) -> Tensor:
        """The words for the values of a finding, ``(n,)``."""
        own = torch.rand(len(values), generator=generator) < shift.dialect
        kind = torch.where(own, hospitals, 0)
        new = torch.rand(len(values), generator=generator) < shift.drift * later
        kind = torch.where(new, self.hospitals + 1, kind)
        return 3 + _FILLERS + (self.first[finding] + values) * (self.hospitals + 2) + kind


def _notes(
    counts: Sequence[int], shift: HospitalShift, words: _Words, later: bool, first: int, generator: torch.Generator
) -> DischargeNotes:
    hospitals = torch.cat([torch.full((count,), number + 1) for number, count in enumerate(counts)])
    n = len(hospitals)

    def draw(high: int, size: tuple[int, ...] = (n,)) -> Tensor:
        return torch.randint(high, size, generator=generator)

    def chance(probability: Tensor | float) -> Tensor:
        return torch.rand(n, generator=generator) < probability

    begins = chance(0.8) | (hospitals != hospitals.roll(1))
    begins[0] = True
    patient = begins.cumsum(0) - 1  # what is drawn for each note is read at that of the patient's number
    age = draw(95)[patient] + 1
    share = torch.rand(n, generator=generator)[patient]
    rate = 0.5 + age / 50
    steps = torch.stack([torch.exp(-rate) * rate**k / math.factorial(k) for k in range(_MOST_DISEASES)], 1).cumsum(1)
    diseases = (share[:, None] > steps).sum(1)  # Poisson, at most six
    level = diseases.clamp(max=3) + 1
    draws = torch.rand(n, generator=generator)[patient]
    insurance = torch.where(draws < 0.15, 2, (draws < torch.where(age > 60, 0.75, 0.35)).long())
    borough, sex = draw(5)[patient], draw(2)[patient]

    logit = _DISEASE * (diseases - 1.5)
    blocks: dict[str, list[Tensor]] = {}
    for section, findings in _SECTIONS.items():
        blocks[section] = []
        for finding, effects in findings.items():
            value = draw(len(effects))
            effect = torch.tensor(effects)[value]
            if finding == "stay":
                effect = torch.where(hospitals == len(counts), (1 - shift.coefficient) * effect, effect)
            logit = logit + effect
            blocks[section].append(words.of(finding, value, hospitals, shift, later, generator)[:, None])
            blocks[section].append(3 + draw(_FILLERS, (n, _FILLING)))
    which = torch.rand(n, _DISEASES, generator=generator)[patient].argsort(1)
    for number in range(_MOST_DISEASES):
        said = words.of("disease", which[:, number], hospitals, shift, later, generator)[:, None]
        block = torch.cat([said, 3 + draw(_FILLERS, (n, shift.length))], 1)
        blocks["history"].append(torch.where((diseases > number)[:, None], block, PAD))
    weaker = 1 + shift.noise * ((age > 60).double() + (level == 4).double())
    probability = torch.sigmoid(_BASE + shift.drift * later + logit.double() / weaker)
    labels = (torch.rand(n, generator=generator, dtype=torch.float64) < probability).long()
    tokens = _in_order(blocks, torch.where(chance(shift.order), hospitals, 0))
    return DischargeNotes(
        tokens,
        labels,
        probability,
        hospitals,
        patient + first,
        age,
        level,
        insurance,
        borough,
        sex,
        (tokens > 0).sum(1),
    )


def _in_order(blocks: dict[str, list[Tensor]], orders: Tensor) -> Tensor:
    """Sections in the order of each note, and what is absent behind the end: ``(n, longest)``."""
    joined = {section: torch.cat(parts, 1) for section, parts in blocks.items()}
    tokens = torch.empty(len(orders), sum(part.shape[1] for part in joined.values()), dtype=torch.long)
    for order in orders.unique().tolist():
        *names, last = joined
        if order:  # the order of a hospital is the same for every seed
            names = [
                names[i] for i in torch.randperm(len(names), generator=torch.Generator().manual_seed(order)).tolist()
            ]
        rows = orders == order
        tokens[rows] = torch.cat([joined[name][rows] for name in (*names, last)], 1)
    tokens = tokens.gather(1, (tokens == PAD).long().argsort(dim=1, stable=True))
    return tokens[:, : int((tokens > 0).sum(1).max())]
