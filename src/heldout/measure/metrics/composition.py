"""Core: How a model does on combinations of factors that it has seen in training, and on those that it has not."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heldout.data import combination_leaks, same_factors
from heldout.errors import check_fields, check_nonempty, check_same_length, checked
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
    known, rows = same_factors(factors_train, factors_test, ("factors_train", "factors_test"))
    right = torch.as_tensor(correct)
    if right.dtype != torch.bool or right.ndim != 1:
        raise TypeError(f"correct must be bool (n,), got {right.dtype} {tuple(right.shape)}")
    check_same_length(factors_test=rows, correct=right)
    leaks = combination_leaks(known, rows)
    members = {kind: torch.zeros(len(rows), dtype=torch.bool) for kind in ("seen", "unseen", "unknown")}
    members["seen"][leaks.combinations] = True
    members["unknown"][leaks.values] = True
    members["unseen"] = ~(members["seen"] | members["unknown"])
    shares = {kind: _share(right, mask) for kind, mask in members.items()}
    seen, unseen_share = shares["seen"], shares["unseen"]
    unseen: dict[Combination, list[int]] = {}
    for position in members["unseen"].nonzero().squeeze(1).tolist():
        unseen.setdefault(rows[position], []).append(position)
    each = {row: wilson(int(right[positions].sum()), len(positions)) for row, positions in unseen.items()}
    return CompositionReport(
        **shares,
        gap=newcombe(seen, unseen_share) if seen and unseen_share else None,
        counts={kind: int(mask.sum()) for kind, mask in members.items()},
        by_combination=dict(sorted(each.items(), key=lambda item: item[1].estimate)),
    )


@dataclass(frozen=True)
class SourceReport:
    """Accuracy by where the parts of a novel composition come from; no average over sources, which move differently.

    Attributes:
        seen: accuracy on examples without a novel composition; None where there is none.
        by_source: accuracy on the examples that have one of this source, whatever else they have.
        by_sources: accuracy by exactly these sources, such as "LL" and "LL+VV".
        gaps: by source, ``seen`` less the accuracy there; empty without ``seen``.
        counts: examples by exactly these sources, "seen" for none.

    Example:
        >>> report = source_report([True, True, False], [(), ("LL",), ("LL", "VV")])
        >>> report.seen.estimate, report.by_source["LL"].estimate, report.by_sources["LL+VV"].estimate
        (1.0, 0.5, 0.0)
    """

    seen: Interval | None
    by_source: dict[str, Interval]
    by_sources: dict[str, Interval]
    gaps: dict[str, Interval]
    counts: dict[str, int]

    def __post_init__(self) -> None:
        check_fields(self)


@checked
def source_report(correct: Tensor | Sequence[bool], sources: Sequence[Collection[str]]) -> SourceReport:
    """Returns a model's accuracy by source of the novel compositions, and by which sources are there together.

    Intervals are Wilson's, those of gaps are Newcombe's.

    Args:
        correct: bool ``(n,)``, whether the model was right.
        sources: of each example those of its novel compositions, as ``heldout.data.source_split`` tells them; none
            where all are seen.

    Raises:
        ValueError: no examples, or lengths that do not match.
        TypeError: ``correct`` that is not of two values, a text where sources should be.

    Source: arXiv:2505.23045, its GQA-MSCG.

    Example:
        >>> report = source_report([True, False, True, False], [(), ("LV",), ("LV",), ("VV",)])
        >>> report.gaps["LV"].estimate, report.counts
        (0.5, {'seen': 1, 'LV': 2, 'VV': 1})
    """
    check_nonempty(sources=sources)
    right = torch.as_tensor(correct)
    if right.dtype != torch.bool or right.ndim != 1:
        raise TypeError(f"correct must be bool (n,), got {right.dtype} {tuple(right.shape)}")
    check_same_length(sources=sources, correct=right)
    if any(isinstance(each, str) for each in sources):
        raise TypeError("sources must be a collection of them for each example, got a text")
    together = ["+".join(sorted(set(each))) or "seen" for each in sources]
    names = sorted({name for each in sources for name in each})
    exactly = {name: torch.tensor([each == name for each in together]) for name in sorted(set(together))}
    having = {name: torch.tensor([name in each for each in sources]) for name in names}
    seen = _share(right, exactly["seen"]) if "seen" in exactly else None
    by_source = {name: wilson(int(right[mask].sum()), int(mask.sum())) for name, mask in having.items()}
    order = [*(["seen"] if seen else []), *(name for name in exactly if name != "seen")]
    return SourceReport(
        seen=seen,
        by_source=by_source,
        by_sources={name: wilson(int(right[exactly[name]].sum()), int(exactly[name].sum()))
                    for name in order if name != "seen"},
        gaps={name: newcombe(seen, found) for name, found in by_source.items()} if seen else {},
        counts={name: int(exactly[name].sum()) for name in order},
    )  # fmt: skip


def _share(right: Tensor, mask: Tensor) -> Interval | None:
    return wilson(int(right[mask].sum()), int(mask.sum())) if mask.any() else None
