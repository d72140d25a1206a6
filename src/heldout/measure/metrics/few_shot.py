"""How well do embeddings serve for classes that nothing was trained on? Ridge classifiers and prototypes of a few.

Sources: few-shot linear probes, as in arXiv:2409.06509 (AligNet), there of frozen embeddings of new classes; episodes
of the nearest prototype, arXiv:1703.05175.
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
from heldout.statistics import Interval, interval


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


@checked
def prototype_episodes(
    z: Tensor,
    y: Tensor,
    *,
    ways: int = 5,
    shots: int = 5,
    queries: int = 15,
    episodes: int = 200,
    pool: Tensor | None = None,
    query: Tensor | None = None,
    seed: int = 0,
) -> Interval:
    """Returns the mean accuracy of the nearest prototype over few-shot episodes, with its 95 % interval over them.

    An episode draws classes, some examples of each to show and others to ask; a class is the mean of its normalised
    embeddings, and the cosine decides. All episodes are drawn and judged at once, without a loop. The same seed draws
    the same examples whatever the embeddings are, so that two encoders are compared on the same episodes. The interval
    is over episodes of the given items alone: other items of the same classes vary more, much more where they are few.

    Args:
        z: embeddings, ``(items, dim)``.
        y: classes, int64 ``(items,)``.
        ways: classes of an episode, at least 2.
        shots, queries: examples of each class to show, and others to ask.
        episodes: at least 1.
        pool, query: rows that may be shown and asked, int64, each row once; a row in both is never shown and asked at
            once. Default: all.
        seed: of the draws.

    Raises:
        ValueError: fewer classes than ways, a class with fewer than ``shots`` rows in pool or ``queries`` others in
            query, options or rows out of range, values that are not finite.

    Source: arXiv:1703.05175, section 2.5 and its evaluation; of embeddings of length 1.

    Example:
        >>> y = torch.arange(6).repeat_interleave(4)
        >>> prototype_episodes(torch.eye(6)[y], y, ways=5, shots=1, queries=3, episodes=20).estimate
        1.0
    """
    rows = torch.arange(len(z), device=z.device)
    pool = rows if pool is None else pool
    query = rows if query is None else query
    _check(z, y, pool=pool, query=query)
    check_at_least(2, ways=ways)
    check_at_least(1, shots=shots, queries=queries, episodes=episodes)
    check_between(0, 2**62, seed=seed)
    shown, asked = torch.zeros(2, len(z), dtype=torch.bool)
    shown[pool.cpu()], asked[query.cpu()] = True, True
    classes, numbers = y.cpu().unique(return_inverse=True)
    if len(classes) < ways:
        raise ValueError(f"ways must be at most the number of classes in y, {len(classes)}, got {ways}")
    # row k of a table holds the places of class k's items, and then, for its width, places that are never drawn
    counts = torch.bincount(numbers)
    column = torch.arange(int(counts.max()))
    starts = (counts.cumsum(0) - counts).unsqueeze(1)
    table = numbers.argsort(stable=True)[(starts + column).clamp(max=len(z) - 1)]
    there = column < counts.unsqueeze(1)
    shown, asked = there & shown[table], there & asked[table]
    both = (shown & asked).sum(1).clamp(max=shots)
    for name, flag, taken, least in (("shots", shown, 0, shots), ("queries", asked, both, queries)):
        left = flag.sum(1) - taken
        if (left < least).any():
            short = int(left.argmin())
            raise ValueError(f"{name} must be at most {int(left[short])}, what class {int(classes[short])} has left")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(episodes, len(classes), generator=generator).argsort(1)[:, :ways]  # (episodes, ways)
    keys = torch.rand(2, episodes, ways, len(column), generator=generator)
    support = keys[0].masked_fill(~shown[drawn], 2.0).topk(shots, dim=2, largest=False).indices
    free = keys[1].masked_fill(~asked[drawn], 2.0).scatter(2, support, 2.0)
    targets = free.topk(queries, dim=2, largest=False).indices
    support, targets = (table[drawn].gather(2, places) for places in (support, targets))
    targets = targets.flatten(1).to(z.device)
    rows_of = F.normalize(z, dim=1)
    prototypes = F.normalize(rows_of[support.to(z.device)].mean(2), dim=2)  # (episodes, ways, dim)
    found = torch.bmm(rows_of[targets], prototypes.transpose(1, 2)).argmax(2)
    wanted = torch.arange(ways, device=z.device).repeat_interleave(queries)
    return interval([(found == wanted).double().mean(1).cpu().numpy()])
