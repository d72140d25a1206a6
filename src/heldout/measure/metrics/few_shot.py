"""How well do embeddings serve for classes that nothing was trained on? Ridge classifiers of a few examples.

Source: few-shot linear probes, as in arXiv:2409.06509 (AligNet), there of frozen embeddings of new classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_between,
    check_dimensions,
    check_labels,
    check_nonempty,
    check_positive,
    check_same_length,
    check_values,
    checked,
)


@checked
def ridge_probe(z: Tensor, y: Tensor, support: Tensor, query: Tensor, *, alpha: float = 1.0) -> float:
    """Returns the accuracy of a ridge classifier (scikit-learn's) that some rows of z taught, on others.

    Args:
        z: embeddings, ``(items, dim)``.
        y: classes, int64 ``(items,)``.
        support, query: rows to fit and to test, int64 ``(n,)`` and ``(m,)``.
        alpha: strength of the ridge, above 0.

    Raises:
        ValueError: rows out of range, no rows, a support of one class, values that are not finite.

    Example:
        >>> z = torch.tensor([[0.0], [1.0], [0.1], [0.9]])
        >>> ridge_probe(z, torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1]), torch.tensor([2, 3]))
        1.0
    """
    from sklearn.linear_model import RidgeClassifier

    _check(z, y, support=support, query=query)
    check_positive(alpha=alpha)
    if len(y[support].unique()) < 2:
        raise ValueError("support must hold at least 2 classes")
    fitted = RidgeClassifier(alpha).fit(z[support].cpu().numpy(), y[support].cpu().numpy())
    return float(fitted.score(z[query].cpu().numpy(), y[query].cpu().numpy()))


@checked
def few_shot_accuracy(
    z: Tensor,
    y: Tensor,
    shots: int,
    *,
    pool: Tensor,
    query: Tensor,
    things: Tensor | None = None,
    alpha: float = 1.0,
    draws: int = 10,
    seed: int = 0,
) -> float:
    """Returns the mean accuracy of ``ridge_probe`` over draws of a few examples of each class.

    A class with fewer examples in the pool shows those it has. Query rows of classes that the pool lacks, and of things
    that are shown, are not asked.

    Args:
        z: embeddings, ``(items, dim)``.
        y: classes, int64 ``(items,)``.
        shots: examples of each class, at least 1.
        pool, query: rows to show and to ask; they may be the same.
        things: of each row, int64 ``(items,)``, where several show the same thing; default: each its own.
        alpha: strength of the ridge, above 0.
        draws: number of draws, at least 1.
        seed: of the draws; draw i is that of ``seed + i``.

    Raises:
        ValueError: rows or options out of range, fewer than two classes, nothing left to ask.

    Source: arXiv:2409.06509, few-shot evaluation, at small scale.

    Example:
        >>> z = torch.tensor([[0.0], [1.0], [0.1], [0.9]])
        >>> few_shot_accuracy(z, torch.tensor([0, 1, 0, 1]), 1, pool=torch.arange(4), query=torch.arange(4))
        1.0
    """
    _check(z, y, pool=pool, query=query)
    check_at_least(1, shots=shots, draws=draws)
    check_between(0, 2**62, seed=seed)
    things = torch.arange(len(z), device=z.device) if things is None else things
    check_same_length(z=z, things=things)
    check_dimensions(1, things=things)
    scores = []
    for draw in range(draws):
        order = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed + draw))]
        seen = F.one_hot(y[order].unique(return_inverse=True)[1])
        support = order[seen.cumsum(0)[seen.bool()] <= shots]
        asked = query[~torch.isin(things[query], things[support]) & torch.isin(y[query], y[support])]
        if not len(asked):
            raise ValueError("query must hold things that are not shown")
        scores.append(ridge_probe(z, y, support, asked, alpha=alpha))
    return sum(scores) / len(scores)


def _check(z: Tensor, y: Tensor, **rows: Tensor) -> None:
    check_dimensions(2, z=z)
    check_values(z=z)
    check_same_length(z=z, y=y)
    check_dimensions(1, y=y, **rows)
    check_labels(y=y)
    check_nonempty(**rows)
    check_labels(len(z), **rows)
