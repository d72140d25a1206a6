"""How bad a finding is: one ladder for all of them, with thresholds that the report explains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heldout.report import number

SERIOUS, NOTABLE, OPEN, FINE, INFORMATION = "serious", "notable", "open", "fine", "for information"
LADDER = (SERIOUS, NOTABLE, OPEN, FINE, INFORMATION)
DRAWS = 400  # of outcomes under perfect calibration


@dataclass(frozen=True)
class Threshold:
    """From where on a value is notable, and from where on serious.

    Args:
        notable: the nearer limit.
        serious: the farther one.
        why: what the limits are, in words: how they were chosen and in which unit.
        low_is_bad: whether a value below the limits is the bad one.

    Example:
        >>> limit = Threshold(0.03, 0.1, "3 and 10 points of accuracy")
        >>> limit.severity(0.2), limit.severity(0.2, 0.05, 0.35), limit.severity(0.05, -0.01, 0.1), limit.severity(0.0)
        ('serious', 'notable', 'open', 'fine')
    """

    notable: float
    serious: float
    why: str
    low_is_bad: bool = False

    def severity(self, value: float, low: float | None = None, high: float | None = None) -> str:
        """Returns how bad a value is, by the end of its interval that speaks for it.

        It is serious or notable where the whole interval lies beyond the limit, open where only the value lies
        beyond the nearer one, and fine otherwise.
        """
        sign = -1.0 if self.low_is_bad else 1.0
        end = high if self.low_is_bad else low
        value, sure = sign * value, sign * (value if end is None else end)
        if sure >= sign * self.serious:
            return SERIOUS
        if sure >= sign * self.notable:
            return NOTABLE
        return OPEN if value >= sign * self.notable else FINE

    def weight(self, value: float) -> float:
        """Returns how far a value is on the way from fine to serious: 0 at the nearer limit, 1 at the farther one."""
        return (value - self.notable) / ((self.serious - self.notable) or 1.0)

    def text(self) -> str:
        """Returns the limits in words."""
        side = "up to" if self.low_is_bad else "from"
        return f"notable {side} {number(self.notable, 3)}, serious {side} {number(self.serious, 3)}: {self.why}"


def ranked(findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns findings, the worst first: by severity, then by how far they lie beyond their limits.

    Args:
        findings: ``{"severity", "weight", ...}``, as ``Audit.finding`` makes them.
    """
    return sorted(findings, key=lambda entry: (LADDER.index(entry["severity"]), -entry["weight"]))


def chance_calibration_error(confidence: Tensor, *, bins: int = 10, seed: int = 0) -> float:
    """Returns the calibration error that a perfectly calibrated model exceeds by chance once in twenty times.

    Outcomes are drawn from the confidences themselves. A calibration error below it shows nothing.

    Args:
        confidence: float ``(n,)``, the probability of each example's predicted class.
        bins: of equal width, as in ``heldout.measure.expected_calibration_error``.
        seed: of the draws.

    Example:
        >>> chance_calibration_error(torch.ones(10))
        0.0

    Source: consistency resampling, Broecker and Smith, Weather and Forecasting 22 (2007).
    """
    confidence = confidence.double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    member = torch.bucketize(confidence, edges[1:-1])
    uniform = torch.rand(DRAWS, len(confidence), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    surplus = (uniform < confidence).double() - confidence  # (draws, n)
    by_bin = torch.zeros(DRAWS, bins, dtype=torch.float64).index_add_(1, member, surplus)
    return float((by_bin.abs().sum(1) / len(confidence)).quantile(0.95))
