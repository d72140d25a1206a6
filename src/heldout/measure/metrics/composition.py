"""Core: How a model does on combinations of factors that it has seen in training, and on those that it has not."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heldout.data import same_factors
from heldout.errors import check_fields, check_same_length, checked
from heldout.statistics import Interval, newcombe, wilson

Combination = tuple[Hashable, ...]


@dataclass(frozen=True)
class CompositionReport:
    """Accuracy by whether the combination of an example's values, and each value, was trained on.

    Attributes:
        seen: accuracy where the combination was trained on; None where there is no such example.
        unseen: where it was not, and each value was.
        unknown: where a value was not.
        gap: ``seen - unseen``; None where one of them is missing.
        counts: how many test examples are seen, unseen and unknown.
        by_combination: the unseen combinations that were tested, the worst first, with the accuracy on each.

    Example:
        >>> correct = torch.tensor([True, True, False])
        >>> report = composition_report([("disc", "red"), ("ring", "blue")],
        ...     [("disc", "red"), ("ring", "blue"), ("disc", "blue")], correct)
        >>> report.seen.estimate, report.unseen.estimate, report.gap.estimate, report.unknown
        (1.0, 0.0, 1.0, None)
    """

    seen: Interval | None
    unseen: Interval | None
    unknown: Interval | None
    gap: Interval | None
    counts: dict[str, int]
    by_combination: dict[Combination, Interval]

    def __post_init__(self) -> None:
        check_fields(self)


@checked
def composition_report(factors_train: Any, factors_test: Any, correct: Tensor | Sequence[bool]) -> CompositionReport:
    """Returns a model's accuracy on seen and unseen combinations of factors, each with a 95 % interval.

    Intervals are Wilson's, that of the gap is Newcombe's.

    Args:
        factors_train: of the training examples: columns by name (a mapping, a frame), or a table ``(n, factors)``.
        factors_test: the same factors of the test examples.
        correct: bool ``(m,)``, whether the model was right.

    Raises:
        ValueError: different factors, lengths that do not match, or ``correct`` that is not of two values.

    Example:
        >>> report = composition_report({"a": [0, 1], "b": [0, 1]}, {"a": [0, 0], "b": [0, 1]}, [True, False])
        >>> report.counts
        {'seen': 1, 'unseen': 1, 'unknown': 0}
    """
    known, rows = same_factors(factors_train, factors_test)
    right = torch.as_tensor(correct)
    if right.dtype != torch.bool or right.ndim != 1:
        raise TypeError(f"correct must be bool (n,), got {right.dtype} {tuple(right.shape)}")
    check_same_length(factors_test=rows, correct=right)
    combinations = set(known)
    values = [set(column) for column in zip(*known, strict=True)]
    kinds = [
        "unknown" if any(v not in c for v, c in zip(row, values, strict=True))
        else "seen" if row in combinations else "unseen"
        for row in rows
    ]  # fmt: skip
    members = {kind: torch.tensor([each == kind for each in kinds]) for kind in ("seen", "unseen", "unknown")}
    shares = {kind: _share(right, mask) for kind, mask in members.items()}
    both = shares["seen"], shares["unseen"]
    unseen: dict[Combination, list[int]] = {}
    for position, (row, kind) in enumerate(zip(rows, kinds, strict=True)):
        if kind == "unseen":
            unseen.setdefault(row, []).append(position)
    each = {row: wilson(int(right[positions].sum()), len(positions)) for row, positions in unseen.items()}
    return CompositionReport(
        **shares,
        gap=newcombe(*both) if both[0] is not None and both[1] is not None else None,
        counts={kind: int(mask.sum()) for kind, mask in members.items()},
        by_combination=dict(sorted(each.items(), key=lambda item: item[1].estimate)),
    )


def _share(right: Tensor, mask: Tensor) -> Interval | None:
    return wilson(int(right[mask].sum()), int(mask.sum())) if mask.any() else None
