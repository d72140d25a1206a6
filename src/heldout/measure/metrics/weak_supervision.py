"""What a student recovers of the gap between its weak supervisor and full supervision, and whose errors it makes.

Source: arXiv:2312.09390 (Burns et al., ICML 2024), sections 3 and 5.1.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor

from heldout.errors import check_dimensions, check_finite, check_labels, check_nonempty, check_positive, checked
from heldout.statistics import CONFIDENCE, RESAMPLES, Interval, percentile


@checked
def performance_gap_recovered(weak: float, student: float, ceiling: float, min_gap: float = 0.01) -> float:
    """Returns ``(student - weak) / (ceiling - weak)``: 0 for a student as good as its supervisor, 1 at the ceiling.

    Args:
        weak: performance of the weak supervisor, such as its accuracy.
        student: of the strong model trained on the supervisor's labels.
        ceiling: of the same strong model trained on as many true labels.
        min_gap: least ``ceiling - weak`` for which the ratio means something; below it NaN, with a warning.

    Raises:
        ValueError: a performance that is not finite, min_gap not above 0.

    Source: arXiv:2312.09390, section 3.

    Example:
        >>> round(performance_gap_recovered(weak=0.6, student=0.7, ceiling=0.8), 6)
        0.5
    """
    check_finite(weak=weak, student=student, ceiling=ceiling)
    check_positive(min_gap=min_gap)
    gap = ceiling - weak
    if gap < min_gap:
        warnings.warn(
            f"the ceiling is {gap:.4g} above the weak supervisor, less than min_gap {min_gap:g}: no gap to recover",
            stacklevel=2,
        )
        return math.nan
    return (student - weak) / gap


@checked
def gap_recovered_interval(
    weak: Tensor,
    student: Tensor,
    ceiling: Tensor,
    *,
    min_gap: float = 0.01,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Returns the performance gap recovered with a bootstrap interval over test examples, resampled jointly.

    It says how far the test set decides, for these trained models; how far training decides takes several seeds.

    Args:
        weak, student, ceiling: whether each example is answered rightly, bool ``(n,)``, of the same examples.
        min_gap: see ``performance_gap_recovered``; where the estimate or more than half of the resamples have a smaller
            gap there is no interval.
        confidence: of the interval.
        seed: of the resampling.

    Raises:
        ValueError: not bool ``(n,)`` of one length, no examples, options out of range.

    Example:
        >>> weak, student = torch.arange(100) < 60, torch.arange(100) < 70
        >>> found = gap_recovered_interval(weak, student, torch.arange(100) < 80)
        >>> found.low < 0.5 < found.high
        True
    """
    named = {"weak": weak, "student": student, "ceiling": ceiling}
    for name, right in named.items():
        if right.dtype != torch.bool or right.ndim != 1 or not len(right) or len(right) != len(weak):
            raise ValueError(
                f"{name} must be bool (n,), like the others and not empty, got {right.dtype} {tuple(right.shape)}"
            )
    check_positive(min_gap=min_gap)
    code = sum(right.cpu().long() << place for place, right in enumerate(named.values()))
    counts = np.bincount(code, minlength=8)  # type: ignore[arg-type]
    patterns = np.array([[pattern >> place & 1 for place in range(3)] for pattern in range(8)])
    weak_mean, student_mean, ceiling_mean = (counts @ patterns / len(weak)).tolist()
    estimate = performance_gap_recovered(weak_mean, student_mean, ceiling_mean, min_gap)
    drawn = np.random.default_rng(seed).multinomial(len(weak), counts / len(weak), RESAMPLES) @ patterns / len(weak)
    kept = drawn[drawn[:, 2] - drawn[:, 0] >= min_gap]
    if math.isnan(estimate) or 2 * len(kept) < RESAMPLES:
        return Interval(estimate, None, None)
    return Interval(estimate, *percentile((kept[:, 1] - kept[:, 0]) / (kept[:, 2] - kept[:, 0]), confidence))


@checked
def supervisor_agreement(student_probs: Tensor, weak_probs: Tensor, labels: Tensor) -> dict[str, float]:
    """Returns how far a student agrees with its weak supervisor, apart where that is right and where it errs.

    Agreement is that of the most probable classes. A student that learns the task agrees where the supervisor is right
    and not where it is wrong; one that learns the supervisor agrees on both.

    Args:
        student_probs: probabilities (or logits) of the student, ``(n, classes)``.
        weak_probs: of the supervisor, ``(n, classes)``.
        labels: true class indices ``(n,)``.

    Returns:
        shares in [0, 1]: ``agreement``; ``agreement_where_right`` and ``agreement_where_wrong``, among the examples on
        which the supervisor is right or wrong; ``student_accuracy_where_wrong``, the share of the supervisor's errors
        that the student mends; ``weak_accuracy`` and ``student_accuracy``. NaN where there are no such examples.

    Raises:
        ValueError: shapes that do not fit, NaN, no examples, labels outside the classes.

    Source: arXiv:2312.09390, section 5.1.3.

    Example:
        >>> student, weak = torch.eye(2)[[0, 1, 1, 0]], torch.eye(2)[[0, 1, 0, 1]]
        >>> found = supervisor_agreement(student, weak, torch.tensor([0, 1, 1, 1]))
        >>> found["agreement_where_right"], found["agreement_where_wrong"], found["student_accuracy"]
        (0.66..., 0.0, 0.75)
    """
    check_nonempty(labels=labels)
    check_dimensions(2, student_probs=student_probs, weak_probs=weak_probs)
    check_dimensions(1, labels=labels)
    check_finite(student_probs=student_probs, weak_probs=weak_probs)
    check_labels(weak_probs.shape[1], labels=labels)
    if student_probs.shape != weak_probs.shape or len(labels) != len(weak_probs):
        raise ValueError(
            f"student_probs and weak_probs must be (n, classes) of the same classes, and labels (n,), got "
            f"{tuple(student_probs.shape)}, {tuple(weak_probs.shape)} and {tuple(labels.shape)}"
        )
    student, weak, labels = student_probs.argmax(1).cpu(), weak_probs.argmax(1).cpu(), labels.cpu()
    same, right, solved = student == weak, weak == labels, student == labels
    return {
        "agreement": _share(same),
        "agreement_where_right": _share(same[right]),
        "agreement_where_wrong": _share(same[~right]),
        "student_accuracy_where_wrong": _share(solved[~right]),
        "weak_accuracy": _share(right),
        "student_accuracy": _share(solved),
    }


def _share(mask: Tensor) -> float:
    return mask.double().mean().item() if len(mask) else math.nan
