"""Shifted copies of validation data, where a file gives none: what methods are selected on for robustness.

Up to three kinds of shift, none of which a test set is named after, are made of each form of inputs:

* images ``(1 or 3, height, width)``, also ``(height, width)`` of equal sides, also as "pixel_values": noise, contrast,
  blur, rotation, occlusion, as ``heldout.tasks.SHIFTS`` has them for pictures in [0, 1]. Where values lie elsewhere,
  black and white are learned from the data: of values from 0 on 0 and the largest, else (normalised pictures) the
  smallest and the largest of each channel, 0 and 255 of bytes; the picture is shifted between them and put back.
* series ``(channels, length)``, where the longer axis is taken for time: noise, drift, missing stretches, gain, time
  shift, in units of each channel's spread over the data.
* vectors: noise in units of each column's spread; missing columns, set to their means; a subgroup, drawn again from the
  same examples with more of those that lie far along the first principal direction of the standardised columns; missing
  values.
* token ids ``(tokens,)``: typos (tokens of other texts) and truncation. Prompts: typos, lower case without punctuation,
  and truncation, which takes words from their beginning, so that what asks for the answer stays.

Each kind has three strengths, half, once and one and a half times its middle one; a third of the examples has each. All
randomness comes from the seed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from heldout.data import gather, to_device
from heldout.errors import checked
from heldout.problem import Texts
from heldout.tasks import SHIFTS

STRENGTHS = (0.5, 1.0, 1.5)  # times the middle one
MOST_MADE = 3
LARGEST = 20_000  # examples of which shifts are made
LEAST_LETTERS = 4  # of a word in a test set's name that tells a kind of shift: "typo", "blur"
SMALLEST_PICTURE = 8  # pixels along a side, where there is no axis of channels
PICTURES = {"gaussian_noise": 0.4, "contrast": 0.5, "blur": 0.5, "rotation": 0.3, "occlusion": 0.4}  # middle severities
NOISE, DRIFT, GAIN = 0.5, 1.0, 0.5  # standard deviations of a column or channel; those at the end; a factor less 1
MISSING, LAG = 0.2, 0.1  # shares of columns, values or time; of time
TILT = 1.0  # by how much the logarithm of a row's chance grows for a standard deviation along the first direction
TYPOS, TRUNCATED, CUT = 0.1, 0.5, 0.25  # shares of tokens or words; of tokens cut off; of a prompt's words cut off
Shift = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@checked
def made_shifts(dataset: Any, avoid: list[str], *, seed: int = 0) -> dict[str, Dataset]:
    """Returns shifted copies of a data set by name, "made" first in each name; none for inputs of another kind,
    nor one of prompts that it would leave as they are.

    Args:
        dataset: with inputs ``(channels, height, width)``, ``(height, width)``, ``(channels, length)`` or
            ``(features,)``, or int64 token ids ``(tokens,)``, also as "input_ids" of a dict with an "attention_mask";
            or texts with prompts. What is made of each: ``heldout.improve.shifts``.
        avoid: names of test sets: no kind is made that one is named after, however it is written.
        seed: of all that is drawn.

    Example:
        >>> vectors = TensorDataset(torch.randn(8, 5), torch.arange(8) % 2)
        >>> list(made_shifts(vectors, avoid=["noise"]))
        ['made: missing columns', 'made: subgroup', 'made: missing values']
    """
    taken = [re.findall(r"[^\W_]+", name.lower()) for name in avoid]

    def free(kind: str) -> bool:
        """Whether no name holds the kind, in one word or several, and no word of a name is of it."""
        letters = re.sub(r"[ _]", "", kind)
        words = [word for name in taken for word in name if len(word) >= LEAST_LETTERS]
        return not any(letters in "".join(name) for name in taken) and not any(word in letters for word in words)

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    if (texts := _texts(dataset)) is not None:
        prompts = {kind: change(generator()) for kind, change in PROMPTS.items() if free(kind)}
        copies = {kind: texts.with_prompts(change) for kind, change in prompts.items()}
        return {f"made: {kind}": new for kind, new in copies.items() if new is not None and new.rows != texts.rows}
    inputs, targets = to_device(gather(dataset, torch.arange(min(len(dataset), LARGEST))), "cpu")
    key = next((k for k in ("input_ids", "pixel_values") if isinstance(inputs, Mapping) and k in inputs), None)
    values = inputs[key] if key else inputs
    rest = inputs if isinstance(inputs, Mapping) else {}
    if not isinstance(values, Tensor) or len(values) == 0:
        return {}
    if values.dtype in (torch.int64, torch.int32) and values.ndim == 2:
        makers: dict[str, Callable[[], Any]] = {
            "typos": lambda: {"input_ids": _typos(values, rest.get("attention_mask"), generator())},
            "truncation": lambda: _truncated(values, rest, targets),
        }
        made = {kind: make() for kind, make in makers.items() if free(kind)}
        return {f"made: {kind}": _dataset(inputs, each, targets) for kind, each in made.items() if each}
    kinds = _kinds(values, seed)
    chosen = [kind for kind in kinds if free(kind)][:MOST_MADE]
    strengths = torch.tensor(STRENGTHS)[torch.arange(len(values)) % len(STRENGTHS)]
    found: dict[str, Dataset] = {}
    for kind in chosen:
        if kind == "subgroup":
            rows = _subgroup(values, generator())
            found["made: subgroup"] = TensorDataset(values[rows], targets[rows])
        else:
            changed = kinds[kind](values, strengths, generator())
            found[f"made: {kind.replace('_', ' ')}"] = _dataset(inputs, {key or "input_ids": changed}, targets)
    return found


def _kinds(values: Tensor, seed: int) -> dict[str, Shift]:
    """What can be made of inputs that are no tokens, by name."""
    shape = tuple(values.shape[1:])
    picture = len(shape) == 3 and shape[0] in (1, 3)
    flat = len(shape) == 2 and shape[0] == shape[1] and shape[0] >= SMALLEST_PICTURE
    if (picture or flat) and (values.is_floating_point() or values.dtype == torch.uint8):
        return {kind: _of_pictures(kind, seed) for kind in PICTURES}
    if not values.is_floating_point():
        return {}
    if len(shape) == 2 and min(shape) > 0 and max(shape) > 1:
        return SERIES
    if len(shape) == 1 and shape[0] > 0:
        several = shape[0] > 1
        varied = bool((values.std(0, correction=0) > 0).any()) and len(values) > 2
        return {
            kind: make
            for kind, make in VECTORS.items()
            if (several or kind != "missing columns") and (varied or kind != "subgroup")
        }
    return {}


def _of_pictures(kind: str, seed: int) -> Shift:
    def shift(values: Tensor, strengths: Tensor, generator: torch.Generator) -> Tensor:
        images = values if values.ndim == 4 else values.unsqueeze(1)
        low, span = _black_and_span(images)
        unit = ((images.to(low.dtype) - low) / span).clamp(0, 1)
        shifted = unit.clone()
        for place, strength in enumerate(STRENGTHS[: len(images)]):
            part = slice(place, None, len(STRENGTHS))
            shifted[part] = SHIFTS[kind](unit[part], strength * PICTURES[kind], seed=seed + place)
        back = shifted * span + low
        back = back if values.is_floating_point() else back.round().clamp(0, 255)
        return back.to(values.dtype).reshape(values.shape)

    return shift


def _black_and_span(images: Tensor) -> tuple[Tensor, Tensor]:
    """Black, and white less black, ``(1, channels or 1, 1, 1)``, as the data show them."""
    dtype = images.dtype if images.is_floating_point() else torch.float32
    low, high = images.to(dtype).amin((0, 2, 3), keepdim=True), images.to(dtype).amax((0, 2, 3), keepdim=True)
    if images.dtype == torch.uint8:
        return torch.zeros_like(low), torch.full_like(low, 255.0)
    if float(low.min()) >= 0:
        white = 1.0 if float(high.max()) <= 1 else float(high.max())
        return torch.zeros_like(low), torch.full_like(low, white)
    return low, torch.where(high > low, high - low, torch.ones_like(low))


def _over_time(shift: Shift) -> Shift:
    """A shift of ``(n, channels, length)`` for series whose longer axis is time, whichever it is."""

    def shifted(values: Tensor, strengths: Tensor, generator: torch.Generator) -> Tensor:
        if values.shape[1] <= values.shape[2]:
            return shift(values, strengths.to(values)[:, None, None], generator)
        return shift(values.mT, strengths.to(values)[:, None, None], generator).mT.contiguous()

    return shifted


def _spread(values: Tensor) -> Tensor:
    """The standard deviation of each channel over examples and time, ``(1, channels, 1)``."""
    return values.std((0, 2), correction=0, keepdim=True)


def _normal(values: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(values.shape, generator=generator).to(values)


def _signs(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, size, generator=generator) * 2 - 1


def _noisy_series(values: Tensor, strengths: Tensor, generator: torch.Generator) -> Tensor:
    return values + NOISE * strengths * _spread(values) * _normal(values, generator)


def _drift(values: Tensor, strengths: Tensor, generator: torch.Generator) -> Tensor:
    """Each channel rises or falls from its beginning to its end."""
    ramp = torch.linspace(0, 1, values.shape[2]).to(values) * _signs((*values.shape[:2], 1), generator).to(values)
    return values + DRIFT * strengths * _spread(values) * ramp


def _missing_stretches(values: Tensor, strengths: Tensor, generator: torch.Generator) -> Tensor:
    """A stretch of each series, the same in all channels, is the mean of its channel over the data."""
    count, _, length = values.shape
    size = (MISSING * strengths[:, :, 0] * length).round().long().clamp(1, max(1, length - 1))
    start = (torch.rand(count, 1, generator=generator).to(values) * (length - size + 1)).long()
    time = torch.arange(length)
    hit = ((time >= start) & (time < start + size)).unsqueeze(1)
    return torch.where(hit, values.mean((0, 2), keepdim=True), values)


def _gain(values: Tensor, strengths: Tensor, generator: torch.Generator) -> Tensor:
    """Each series is stretched or shrunk about the means of its channels."""
    middle = values.mean((0, 2), keepdim=True)
    factor = (1 + GAIN * strengths) ** _signs((len(values), 1, 1), generator).to(values)
    return middle + factor * (values - middle)


def _time_shift(values: Tensor, strengths: Tensor, generator: torch.Generator) -> Tensor:
    """Each series is early or late; its first or last value fills the gap."""
    count, channels, length = values.shape
    lag = (LAG * strengths[:, 0, 0] * length).round().long().clamp(min=1) * _signs((count,), generator)
    source = (torch.arange(length) - lag[:, None]).clamp(0, length - 1)
    return values.gather(2, source.unsqueeze(1).expand(count, channels, length))


SERIES: dict[str, Shift] = {
    "noise": _over_time(_noisy_series),
    "drift": _over_time(_drift),
    "missing stretches": _over_time(_missing_stretches),
    "gain": _over_time(_gain),
    "time shift": _over_time(_time_shift),
}


def _noisy_columns(values: Tensor, strengths: Tensor, generator: torch.Generator) -> Tensor:
    return values + NOISE * strengths[:, None].to(values) * values.std(0, correction=0) * _normal(values, generator)


def _missing_columns(values: Tensor, strengths: Tensor, generator: torch.Generator) -> Tensor:
    """The same columns everywhere, the more of them the stronger, are their means; one column stays at least."""
    width = values.shape[1]
    rank = torch.rand(width, generator=generator).argsort().argsort()
    count = (MISSING * strengths * width).round().clamp(1, width - 1)
    return torch.where(rank < count[:, None], values.mean(0), values)


def _missing_values(values: Tensor, strengths: Tensor, generator: torch.Generator) -> Tensor:
    hit = torch.rand(values.shape, generator=generator) < MISSING * strengths[:, None]
    return torch.where(hit, values.mean(0), values)


def _subgroup(values: Tensor, generator: torch.Generator) -> Tensor:
    """Positions of as many examples, drawn with more of those that lie far along the first principal direction."""
    score = _normal_scores(_first_direction(values.double(), generator))
    rows = torch.empty(len(values), dtype=torch.int64)
    for place, strength in enumerate(STRENGTHS):
        part = rows[place :: len(STRENGTHS)]
        part.copy_(torch.multinomial((TILT * strength * score).exp(), len(part), replacement=True, generator=generator))
    return rows


def _first_direction(values: Tensor, generator: torch.Generator, steps: int = 50) -> Tensor:
    """Coordinates ``(n,)`` along the first principal direction of standardised columns, by power iteration.

    The direction points to where its largest component is positive.
    """
    spread = values.std(0, correction=0)
    columns = ((values - values.mean(0)) / spread)[:, spread > 0]
    direction = torch.randn(columns.shape[1], generator=generator, dtype=columns.dtype)
    for _ in range(steps):
        direction = columns.T @ (columns @ direction)
        direction = direction / direction.norm()
    return columns @ (direction * direction[direction.abs().argmax()].sign())


def _normal_scores(values: Tensor) -> Tensor:
    """Values put on a normal distribution by their ranks, equal ones alike, so that none outweighs all others."""
    rounded = (1e6 * values / values.abs().max().clamp(min=1e-12)).round()
    _, inverse, counts = rounded.unique(return_inverse=True, return_counts=True)
    return torch.special.ndtri(((counts.cumsum(0) - counts / 2) / len(values)).double())[inverse]


VECTORS: dict[str, Any] = {
    "noise": _noisy_columns,
    "missing columns": _missing_columns,
    "subgroup": None,  # draws examples again, targets too
    "missing values": _missing_values,
}


def _texts(dataset: Any) -> Texts | None:
    """The texts that a data set is made of, at most ``LARGEST``, or None."""
    places = range(min(len(dataset), LARGEST))
    while isinstance(dataset, Subset):
        places, dataset = [dataset.indices[place] for place in places], dataset.dataset  # type: ignore[assignment]
    if not isinstance(dataset, Texts):
        return None
    return dataset.with_rows([dataset.rows[int(place)] for place in places])


def _misspelt(generator: torch.Generator) -> Callable[[str], str]:
    """In a tenth of the words of four letters and more, two neighbouring inner letters change places."""
    strengths = itertools.cycle(STRENGTHS)

    def misspelt(text: str) -> str:
        share = TYPOS * next(strengths)

        def swapped(found: re.Match[str]) -> str:
            word = found[0]
            if float(torch.rand((), generator=generator)) >= share:
                return word
            at = int(torch.randint(1, len(word) - 2, (), generator=generator))
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]

        return re.sub(r"[^\W\d_]{4,}", swapped, text)

    return misspelt


def _lower_case(text: str) -> str:
    """Small letters, and no mark behind a word but at the end of a line."""
    return re.sub(r"(?<=\w)[,;:.!?]+(?= )", "", text.lower())


def _cut_prompt(generator: torch.Generator) -> Callable[[str], str]:
    """A quarter of the words, at least one of several, is missing at the beginning."""
    strengths = itertools.cycle(STRENGTHS)

    def cut(text: str) -> str:
        words = [found.start() for found in re.finditer(r"\S+", text)]
        gone = max(1, round(CUT * next(strengths) * len(words)))
        return text[words[gone] :] if gone < len(words) else text

    return cut


PROMPTS: dict[str, Callable[[torch.Generator], Callable[[str], str]]] = {
    "typos": _misspelt,
    "lower case": lambda generator: _lower_case,
    "truncation": _cut_prompt,
}


def _typos(tokens: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """A tenth of the tokens, each replaced by the one that another text has at that place; padding comes nowhere."""
    share = TYPOS * torch.tensor(STRENGTHS)[torch.arange(len(tokens)) % len(STRENGTHS)]
    others = torch.stack([torch.randperm(len(tokens), generator=generator) for _ in range(tokens.shape[1])], 1)
    hit = torch.rand(tokens.shape, generator=generator) < share[:, None]
    if mask is not None:
        hit &= (mask > 0) & (mask.gather(0, others) > 0)
    return torch.where(hit, tokens.gather(0, others), tokens)


def _truncated(tokens: Tensor, rest: Mapping[str, Any], targets: Tensor) -> dict[str, Any]:
    """The first half or so of each text, where a mask tells its length and each text has one target."""
    mask = rest.get("attention_mask")
    if not isinstance(mask, Tensor) or targets.ndim != 1:
        return {}
    kept = 1 - TRUNCATED * torch.tensor(STRENGTHS)[torch.arange(len(tokens)) % len(STRENGTHS)]
    lengths = (kept * mask.sum(1)).ceil().long().clamp(min=1)
    return {"input_ids": tokens, "attention_mask": mask * (mask.cumsum(1) <= lengths[:, None])}


def _dataset(inputs: Any, changed: Mapping[str, Tensor], targets: Tensor) -> Dataset:
    return (
        _Rows({**inputs, **changed}, targets)
        if isinstance(inputs, Mapping)
        else TensorDataset(*changed.values(), targets)
    )


class _Rows(Dataset):
    """Examples as dicts with their labels."""

    def __init__(self, inputs: Mapping[str, Tensor], targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return {**{name: value[position] for name, value in self.inputs.items()}, "labels": self.targets[position]}
