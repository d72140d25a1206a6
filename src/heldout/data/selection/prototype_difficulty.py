"""Core: How far an example is from the nearest prototype, and training sets of chosen difficulty.

Source: arXiv:2206.14486 (Sorscher et al.), section 5: the difficulty; arXiv:2311.04420, section 5: the mixtures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_finite,
    check_labels,
    check_nonempty,
    check_same_length,
    checked,
)


@checked
def prototype_difficulty(embeddings: Tensor, k: int, *, n_init: int = 10, seed: int = 0) -> Tensor:
    """Returns each example's Euclidean distance to the nearest of k centroids of all: large is unusual, or hard.

    Args:
        embeddings: ``(n, dim)``, of a sentence encoder for example.
        k: clusters of k-means, from 1 to n.
        n_init: runs of k-means, of which the best is kept.
        seed: of k-means.

    Returns:
        float64 ``(n,)``, on the CPU.

    Raises:
        ValueError: values that are not finite, or k out of range.

    Source: arXiv:2206.14486, section 5; arXiv:2311.04420, section 5.2.

    Example:
        >>> prototype_difficulty(torch.tensor([[0.0], [2.0], [10.0], [10.0]]), 2).tolist()
        [1.0, 1.0, 0.0, 0.0]
    """
    check_nonempty(embeddings=embeddings)
    check_finite(embeddings=embeddings)
    check_dimensions(2, embeddings=embeddings)
    check_at_least(1, k=k, n_init=n_init)
    check_at_least(0, seed=seed)
    if k > len(embeddings):
        raise ValueError(f"k must be at most {len(embeddings)}, the number of examples, got {k}")
    from sklearn.cluster import KMeans

    points = embeddings.detach().double().cpu()
    centres = torch.from_numpy(KMeans(k, n_init=n_init, random_state=seed).fit(points.numpy()).cluster_centers_)
    return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").amin(1)


@checked
def difficulty_quantiles(scores: Tensor, of: int = 4) -> Tensor:
    """Returns int64 ``(n,)``: in which part of equal size a score lies, 0 for the lowest; parts differ by 1 at most.

    Equal scores are told apart by their position.

    Args:
        scores: ``(n,)``.
        of: how many parts, at most n.

    Raises:
        ValueError: scores that are not ``(n,)`` or not finite, or more parts than scores.

    Example:
        >>> difficulty_quantiles(torch.tensor([0.3, 0.1, 0.2, 0.9]), of=2).tolist()
        [1, 0, 0, 1]
    """
    check_nonempty(scores=scores)
    check_finite(scores=scores)
    check_dimensions(1, scores=scores)
    check_at_least(1, of=of)
    if of > len(scores):
        raise ValueError(f"of must be at most {len(scores)}, the number of scores, got {of}")
    ranks = scores.argsort(stable=True).argsort()
    return ranks * of // len(scores)


@checked
def difficulty_subset(
    dataset: Dataset, scores: Tensor, quantiles: Sequence[int], *, of: int = 4, size: int | None = None, seed: int = 0
) -> Subset:
    """Returns a view of examples of chosen difficulty: one part of the scores, or a mixture of several in equal shares.

    Args:
        dataset: n examples.
        scores: ``(n,)``, their difficulty, such as ``prototype_difficulty`` or the length of a target.
        quantiles: which parts, counted from 0 for the easiest: ``[0]`` for the easiest quarter, ``[0, 3]`` for half of
            the easiest and half of the hardest.
        of: how many parts there are; 4 in the paper.
        size: examples to draw, from each part equally many (one more from the first ones where it does not divide);
            None takes all of these parts.
        seed: of the draw.

    Raises:
        ValueError: a part that there is not, or more examples than a part has.

    Source: arXiv:2311.04420, section 5.2.

    Example:
        >>> list(difficulty_subset(range(8), torch.arange(8.0), [3]))
        [6, 7]
        >>> len(difficulty_subset(range(8), torch.arange(8.0), [0, 3], size=2))
        2
    """
    check_nonempty(dataset=dataset, quantiles=quantiles)
    check_same_length(dataset=dataset, scores=scores)
    check_at_least(1, of=of, size=size)
    check_labels(of, quantiles=quantiles)
    check_at_least(0, seed=seed)
    if len(set(quantiles)) < len(quantiles):
        raise ValueError(f"quantiles must differ, got {list(quantiles)}")
    part = difficulty_quantiles(scores, of)
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for number, quantile in enumerate(quantiles):
        members = (part == quantile).nonzero().squeeze(1).cpu()
        if size is not None:
            wanted = size // len(quantiles) + (number < size % len(quantiles))
            if wanted > len(members):
                raise ValueError(f"size must be at most {len(members)} for part {quantile}, got {wanted} of it")
            members = members[torch.randperm(len(members), generator=generator)[:wanted]]
        chosen.append(members)
    return Subset(dataset, torch.cat(chosen).sort().values.tolist())
