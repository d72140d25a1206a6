"""Core: What a linear classifier reads off frozen vectors, with its strength chosen on a part of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from heldout.errors import (
    check_dimensions,
    check_labels,
    check_length,
    check_nonempty,
    check_positive,
    check_same_length,
    check_values,
    checked,
)


class EntityProbe(NamedTuple):
    """How well classes are told from vectors.

    Attributes:
        accuracy: on the test part.
        balanced_accuracy: mean over the test part's classes of the share that is right.
        C: inverse strength of the L2 penalty that was chosen.
        majority: accuracy on the test part of always saying the most frequent class of the others.

    Example:
        >>> EntityProbe(0.9, 0.8, 1.0, 0.5).balanced_accuracy
        0.8
    """

    accuracy: float
    balanced_accuracy: float
    C: float
    majority: float


@checked
def probe_entities(
    vectors: Tensor,
    labels: Tensor,
    splits: Sequence[Tensor],
    *,
    strengths: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
) -> EntityProbe:
    """Returns how well a multinomial logistic regression tells the classes of new entities from their vectors.

    C is the one with the best accuracy on the second part after fitting to the first; it is then fitted to both. On a
    tie the strongest penalty is chosen. The vectors are taken as they are.

    Args:
        vectors: frozen, ``(entities, dim)``.
        labels: classes, int64 ``(entities,)``.
        splits: places of entities to train on, to choose by and to be tested on, int64; without overlap.
        strengths: values of C.

    Raises:
        ValueError: vectors that are not finite, a part that is empty or overlaps another, places that are not there,
            one class only, or a strength that is not above 0.

    Source: arXiv:2010.03496, section 6 (C from 10^-4 to 10).

    Example:
        >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0], [-1.5], [1.5], [-3.0], [3.0]])
        >>> parts = torch.tensor([0, 1, 2, 3]), torch.tensor([4, 5]), torch.tensor([6, 7])
        >>> probe_entities(x, torch.tensor([0, 0, 1, 1, 0, 1, 0, 1]), parts).balanced_accuracy
        1.0
    """
    from sklearn.linear_model import LogisticRegression

    check_dimensions(2, vectors=vectors)
    check_values(vectors=vectors)
    check_dimensions(1, labels=labels)
    check_labels(labels=labels)
    check_same_length(vectors=vectors, labels=labels)
    check_length(3, splits=splits)
    check_nonempty(strengths=strengths)
    check_positive(strengths=strengths)
    for part in splits:
        check_nonempty(splits=part)
        check_dimensions(1, splits=part)
        check_labels(len(labels), splits=part)
    if len(torch.cat(list(splits)).unique()) < sum(map(len, splits)):
        raise ValueError("splits must not overlap")
    x, y = vectors.detach().double().cpu().numpy(), labels.cpu().numpy()
    train, val, test = (part.cpu().numpy() for part in splits)
    if len(np.unique(y[train])) < 2:
        raise ValueError("labels must hold at least 2 classes in the first of the splits")

    def fitted(rows: np.ndarray, C: float) -> LogisticRegression:
        return LogisticRegression(C=C, max_iter=2000).fit(x[rows], y[rows])

    chosen = max(sorted(strengths), key=lambda C: float(fitted(train, C).score(x[val], y[val])))
    both = np.concatenate([train, val])
    right = fitted(both, chosen).predict(x[test]) == y[test]
    of_classes = [right[y[test] == label].mean() for label in np.unique(y[test])]
    usual = np.bincount(y[both]).argmax()
    return EntityProbe(float(right.mean()), float(np.mean(of_classes)), float(chosen), float((y[test] == usual).mean()))
