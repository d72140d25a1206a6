"""What an average of models corrects, and whether its members are balanced. Source: arXiv:2309.17230."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from heldout.errors import check_fields, check_labels, check_values, checked


@checked
def ensemble_logits(logits: Sequence[Tensor], temperatures: Sequence[float] | None = None) -> Tensor:
    """Returns the mean over members of ``logits / temperature``: ``(n, classes)``.

    Args:
        logits: ``(n, classes)`` of each member.
        temperatures: one for each member, 1 by default; ``balance_temperatures`` finds those that balance them.

    Raises:
        ValueError: no members, different shapes, logits that are not finite, or temperatures that are not positive or
            do not fit.

    Example:
        >>> ensemble_logits([torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 8.0]])], [1.0, 4.0])
        tensor([[1., 1.]])
    """
    check_values(logits=logits)
    _check(logits)
    factors = [1.0] * len(logits) if temperatures is None else list(temperatures)
    if len(factors) != len(logits) or not all(factor > 0 and math.isfinite(factor) for factor in factors):
        raise ValueError(f"temperatures needs {len(logits)} positive numbers, got {factors}")
    return torch.stack([member / factor for member, factor in zip(logits, factors, strict=True)]).mean(dim=0)


@checked
def balance_temperatures(logits: Sequence[Tensor], target: float | Literal["min"] = "min") -> list[float]:
    """Returns the temperature of each member at which its mean confidence is ``target``.

    A louder member decides an average of logits; at these temperatures all members speak equally loud. Multiplying a
    member's logits by a constant multiplies its temperature by it.

    Args:
        logits: ``(n, classes)`` of each member, on data of any kind; labels are not needed.
        target: mean of the largest softmax probability, between 1 / classes and 1; "min" is that of the least
            confident member, which keeps temperature 1.

    Raises:
        ValueError: no members, different shapes, a target out of range, or a member whose logits are all equal or
            not finite.

    Source: arXiv:2309.17230, section 5.

    Example:
        >>> quiet = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> [round(t, 3) for t in balance_temperatures([quiet, 5 * quiet])]
        [1.0, 5.0]
    """
    check_values(logits=logits)
    _check(logits)
    classes = logits[0].shape[1]
    wanted = min(map(_confidence, logits)) if target == "min" else float(target)
    if not 1 / classes < wanted < 1:
        raise ValueError(f"the target confidence must lie between 1/{classes} and 1, got {wanted}")
    return [_temperature(member.detach().double(), wanted) for member in logits]


def _temperature(logits: Tensor, wanted: float) -> float:
    size = float(logits.std())
    if not (size > 0 and math.isfinite(size)):
        raise ValueError("a member's logits are all equal or not finite: no temperature changes its confidence")
    scaled, low, high = logits / size, -30.0, 30.0  # of the logarithm
    if not _confidence(scaled / math.exp(low)) > wanted > _confidence(scaled / math.exp(high)):
        raise ValueError(f"no temperature gives a member the mean confidence {wanted}: too many of its logits are tied")
    for _ in range(60):
        middle = (low + high) / 2
        if _confidence(scaled / math.exp(middle)) > wanted:
            low = middle
        else:
            high = middle
    return size * math.exp((low + high) / 2)


@checked
def confidence_gap(logits: Tensor, reference: Tensor) -> float:
    """Returns the mean largest softmax probability of ``logits`` minus that of ``reference``, both ``(n, classes)``.

    For WiSE-FT: of the fine-tuned and of the pretrained model, on data of the new distribution.

    Raises:
        ValueError: different shapes, no examples, or logits that are not finite.

    Example:
        >>> round(confidence_gap(torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 0.0]])), 3)
        0.5
    """
    check_values(logits=logits, reference=reference)
    _check([logits, reference])
    return _confidence(logits) - _confidence(reference)


@dataclass(frozen=True)
class CorrectionTable:
    """How often two members and their average are right (T) or wrong (F).

    Attributes:
        counts: examples by ``"TTT"``, ``"TTF"``, ..., ``"FFF"``: first member, second member, average.

    Example:
        >>> table = CorrectionTable({"TTT": 6, "TTF": 0, "TFT": 1, "TFF": 1, "FTT": 0, "FTF": 0, "FFT": 1, "FFF": 1})
        >>> table.share("FF?"), table.false_false_true, round(table.agreement_by_chance, 6)
        (0.2, 0.1, 0.16)
    """

    counts: dict[str, int]

    def __post_init__(self) -> None:
        check_fields(self)

    @checked
    def share(self, pattern: str) -> float:
        """Returns the share of the examples in one cell; ``"?"`` stands for T or F."""
        cells = [
            count
            for cell, count in self.counts.items()
            if all(a in (b, "?") for a, b in zip(pattern, cell, strict=True))
        ]
        return sum(cells) / sum(self.counts.values())

    @property
    def false_false_true(self) -> float:
        """Share that the average gets right where both members are wrong."""
        return self.share("FFT")

    @property
    def true_true_false(self) -> float:
        """Share that the average gets wrong where both members are right."""
        return self.share("TTF")

    @property
    def agreement_by_chance(self) -> float:
        """What ``false_false_true`` would be, were the average right independently of its members.

        The share of the examples that both members get wrong times the accuracy of the average: that of a third model
        of the same accuracy that has nothing to do with the members. It is no bar for an average, which is made from
        its members and right less often where they are wrong than elsewhere: an average below it still corrects.
        """
        return self.share("FF?") * self.share("??T")


@checked
def correction_table(pred_a: Tensor, pred_b: Tensor, pred_average: Tensor, labels: Tensor) -> CorrectionTable:
    """Returns the eight cells of right and wrong of two members and their average.

    Args:
        pred_a: predicted classes ``(n,)`` of the first member, such as the pretrained model.
        pred_b: those of the second member, such as the fine-tuned model.
        pred_average: those of their average, in weight or in output space.
        labels: class indices ``(n,)``.

    Raises:
        ValueError: shapes differ, or no examples.

    Source: arXiv:2309.17230, section 2.

    Example:
        >>> labels = torch.tensor([0, 1, 2])
        >>> table = correction_table(torch.tensor([0, 0, 0]), torch.tensor([0, 2, 1]), labels, labels)
        >>> table.counts["TTT"], table.counts["FFT"]
        (1, 2)
    """
    check_labels(labels=labels, pred_a=pred_a, pred_b=pred_b, pred_average=pred_average)
    predictions = (pred_a, pred_b, pred_average)
    if labels.ndim != 1 or not len(labels) or any(prediction.shape != labels.shape for prediction in predictions):
        shapes = ", ".join(str(tuple(part.shape)) for part in (*predictions, labels))
        raise ValueError(f"correction_table needs predictions and labels of one shape (n,), n > 0, got {shapes}")
    wrong = [(prediction != labels).long() for prediction in predictions]
    counts = (4 * wrong[0] + 2 * wrong[1] + wrong[2]).bincount(minlength=8).tolist()
    cells = ("".join(cell) for cell in itertools.product("TF", repeat=3))
    return CorrectionTable(dict(zip(cells, counts, strict=True)))


def _confidence(logits: Tensor) -> float:
    return float(logits.detach().double().softmax(dim=1).amax(dim=1).mean())


def _check(logits: Sequence[Tensor]) -> None:
    if not logits:
        raise ValueError("an ensemble needs at least one member, got 0")
    if any(member.shape != logits[0].shape or member.ndim != 2 or not len(member) for member in logits):
        shapes = ", ".join(str(tuple(member.shape)) for member in logits)
        raise ValueError(f"members need logits of one shape (n, classes), n > 0, got {shapes}")
