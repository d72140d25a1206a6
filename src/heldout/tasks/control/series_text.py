"""Series of vectors as text, and back: what a language model reads and writes where it has no head of its own.

Source: arXiv:2402.02338, section 2 (answers token by token, of which some are not valid).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_between,
    check_dimensions,
    check_length,
    check_nonempty,
    check_values,
    checked,
)


@checked
def series_text(samples: Tensor) -> str:
    """Returns samples in [-1, 1] as whole percents, numbered: ``1: -3 40 17; 2: -3 41 19;``.

    The numbers tell a small model how many samples it has written.

    Args:
        samples: ``(steps, dim)``.

    Raises:
        ValueError: no samples, values outside of [-1, 1] or not finite.

    Example:
        >>> series_text(torch.tensor([[-0.03, 0.4], [0.0, 1.0]]))
        '1: -3 40; 2: 0 100;'
    """
    check_dimensions(2, samples=samples)
    check_nonempty(samples=samples)
    check_between(-1, 1, samples=samples)
    rows = (100 * samples.double()).round().long().tolist()
    return " ".join(f"{number}: {' '.join(map(str, row))};" for number, row in enumerate(rows, 1))


@checked
def read_series(text: str, steps: int, dim: int) -> Tensor | None:
    """Returns the samples of a text of ``series_text``, float32 ``(steps, dim)``; None where it is no valid answer.

    Valid are that many samples of that many whole numbers from -100 to 100, in the form of ``series_text``, and nothing
    else but white space. Samples count in their order, whatever number each was given.

    Args:
        text: what was written.
        steps, dim: of the samples that are asked for.

    Raises:
        ValueError: sizes below 1.

    Example:
        >>> read_series(" 1: -50 40; 2: 0 100;", 2, 2)[:, 0].tolist()
        [-0.5, 0.0]
        >>> read_series("1: -3 40; 2: 0", 2, 2) is None
        True
    """
    check_at_least(1, steps=steps, dim=dim)
    sample = r"\s+".join([r"(-?\d{1,3})"] * dim)
    found = re.fullmatch(r"\s*" + r"\s*".join([rf"\d+:\s*{sample};"] * steps) + r"\s*", text, re.ASCII)
    if found is None:
        return None
    numbers = torch.tensor([int(number) for number in found.groups()]).view(steps, dim) / 100
    return numbers if bool((numbers.abs() <= 1).all()) else None


@checked
def salvage_series(text: str, steps: int, dim: int) -> Tensor | None:
    """Returns the samples that a reader who forgives all he can finds in a text; None where there are too few numbers.

    The first ``steps * dim`` whole numbers count, whatever stands between and behind them, but for those with a colon,
    which number the samples; what lies outside of [-100, 100] is moved to its ends.

    Args:
        text: what was written.
        steps, dim: of the samples that are asked for.

    Raises:
        ValueError: sizes below 1.

    Example:
        >>> salvage_series("1: -50 40, 2: 0 120 and 7", 2, 2).tolist()
        [[-0.5, 0.4000000059604645], [0.0, 1.0]]
        >>> salvage_series("1: -50 40; 2: 0", 2, 2) is None
        True
    """
    check_at_least(1, steps=steps, dim=dim)
    found = re.findall(r"-?\d+", re.sub(r"\d+\s*:", " ", text, flags=re.ASCII), re.ASCII)
    if len(found) < steps * dim:
        return None
    numbers = torch.tensor([max(-100, min(100, int(number[:9]))) for number in found[: steps * dim]])
    return numbers.view(steps, dim) / 100


class ToldSeries(NamedTuple):
    """What texts that should tell samples are worth.

    Attributes:
        valid: share in the form of ``series_text``, and nothing else.
        salvaged: share in which ``salvage_series`` finds enough numbers.
        mae: mean absolute error of the salvaged ones; NaN where there is none.

    Example:
        >>> ToldSeries(0.5, 1.0, 0.1).salvaged
        1.0
    """

    valid: float
    salvaged: float
    mae: float


@checked
def judge_texts(texts: Sequence[str], series: Tensor) -> ToldSeries:
    """Returns how many texts tell samples, by a strict and by a forgiving reader, and how far off they are.

    Args:
        texts: one for each series.
        series: what should have been told, ``(texts, steps, dim)``.

    Raises:
        ValueError: no texts, or another number of series.

    Source: arXiv:2402.02338, section 2 (answers of a language model that are not valid).

    Example:
        >>> judge_texts(["1: 50; 2: 0;", "1: 50, 0", "none"], torch.zeros(3, 2, 1))
        ToldSeries(valid=0.3333333333333333, salvaged=0.6666666666666666, mae=0.25)
    """
    check_dimensions(3, series=series)
    check_values(series=series)
    check_length(len(series), texts=texts)
    steps, dim = series.shape[1:]
    valid = sum(read_series(text, steps, dim) is not None for text in texts)
    told = [(salvage_series(text, steps, dim), right) for text, right in zip(texts, series, strict=True)]
    errors = [float((found - right.to(found)).abs().mean()) for found, right in told if found is not None]
    mae = sum(errors) / len(errors) if errors else float("nan")
    return ToldSeries(valid / len(texts), len(errors) / len(texts), mae)
