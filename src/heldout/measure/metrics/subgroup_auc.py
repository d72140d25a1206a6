"""Core: The area under the ROC curve in each subgroup: whether a classifier ranks as well for all.

Source: arXiv:2308.13411, whose results are told apart by sex and race.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from heldout.errors import check_dimensions, check_finite, check_labels, check_nonempty, check_same_length, checked


class SubgroupAUC(NamedTuple):
    """Areas under the ROC curve.

    Attributes:
        overall: of all examples.
        by_group: of the examples of each group, which are ranked among themselves; NaN where a group has one class.
        gap: the largest less the smallest of them, NaN where fewer than two groups have one.

    Example:
        >>> SubgroupAUC(0.8, {0: 0.9, 1: 0.7}, 0.2).by_group[1]
        0.7
    """

    overall: float
    by_group: dict[int, float]
    gap: float


@checked
def subgroup_auc(scores: Tensor, labels: Tensor, groups: Tensor) -> SubgroupAUC:
    """Returns the area under the ROC curve of all examples, and of each subgroup.

    Args:
        scores: ``(n,)``, larger where label 1 is more probable: probabilities or logits.
        labels: 0 and 1, ``(n,)``.
        groups: int64 ``(n,)``, for example by sex or by hospital.

    Raises:
        ValueError: no example, lengths that differ, scores that are not finite, labels other than 0 and 1.

    Source: arXiv:2308.13411, section 5.

    Example:
        >>> scores, labels = torch.tensor([0.1, 0.9, 0.8, 0.2]), torch.tensor([0, 1, 0, 1])
        >>> found = subgroup_auc(scores, labels, groups=torch.tensor([5, 5, 7, 7]))
        >>> found.by_group, found.gap
        ({5: 1.0, 7: 0.0}, 1.0)
    """
    check_nonempty(scores=scores)
    check_dimensions(1, scores=scores, labels=labels, groups=groups)
    check_same_length(scores=scores, labels=labels, groups=groups)
    check_finite(scores=scores)
    check_labels(2, labels=labels)
    check_labels(groups=groups)
    scores, labels, groups = scores.detach().double().cpu(), labels.cpu(), groups.cpu()
    by_group = {int(group): _auc(scores[groups == group], labels[groups == group]) for group in groups.unique()}
    known = [area for area in by_group.values() if not math.isnan(area)]
    return SubgroupAUC(_auc(scores, labels), by_group, max(known) - min(known) if len(known) > 1 else math.nan)


def _auc(scores: Tensor, labels: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    if len(torch.unique(labels)) < 2:
        return math.nan
    return float(roc_auc_score(labels.numpy(), scores.numpy()))
