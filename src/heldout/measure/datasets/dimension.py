"""Core: The geometry of a data set: distances to neighbours, intrinsic dimension, and the margin between classes.

Source: arXiv:2305.01034 (Boopathy et al.); the dimension is the estimate of Levina and Bickel (2004), with the mean
over neighbours and points taken before it is inverted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from heldout.data import batches
from heldout.errors import check_at_least, check_values, checked
from heldout.method import as_dataset

Margin = Literal["sample", "evt"]

_DISTANCES_AT_ONCE = 1 << 22
_NEAREST = 0.0005  # share of the sampled pairs that the tail is fitted to, as 2,000 of 4,000,000


class Dimension(NamedTuple):
    """An intrinsic dimension and the 95 % interval of its bootstrap over points.

    Attributes:
        estimate: the dimension, not rounded.
        low, high: ends of the interval, which does not hold the bias of too few points.

    Example:
        >>> line = torch.rand(500, 1, generator=torch.Generator().manual_seed(0)) * torch.ones(4)
        >>> found = intrinsic_dimension(line)
        >>> round(found.estimate), found.low < found.estimate < found.high
        (1, True)
    """

    estimate: float
    low: float
    high: float


@checked
def knn_distances(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """Returns the distances ``(queries, k)`` to the k nearest points, ascending, in float64.

    Floor: the products of all queries with all points, in chunks.

    Args:
        queries: ``(queries, ...)``, flattened.
        points: ``(points, ...)``, flattened; a query that is among them finds itself.
        k: at most the number of points.

    Raises:
        ValueError: k outside of 1 to the number of points, no points, or values that are not finite.

    Example:
        >>> knn_distances(torch.tensor([[0.0]]), torch.tensor([[3.0], [1.0], [7.0]]), k=2)
        tensor([[1., 3.]], dtype=torch.float64)
    """
    check_values(queries=queries, points=points)
    if not 1 <= k <= len(points):
        raise ValueError(f"k must lie in 1..{len(points)}, the number of points, got {k}")
    return torch.cat([d.topk(k, dim=1, largest=False).values for _, d in _distances(queries, points)])


@checked
def intrinsic_dimension(x: Any, k: int = 5, n_query: int = 10_000, *, seed: int = 0) -> Dimension:
    """Returns the maximum likelihood estimate of the intrinsic dimension, with its bootstrap interval.

    It compares the distance of a point's k-th neighbour with those of nearer ones. Points at distance 0 (duplicates)
    are no neighbours. It falls short of dimensions that the number of points cannot fill: compare data sets of equal
    size.

    Args:
        x: ``(n, ...)``, an array, a tensor, or a data set whose targets are ignored.
        k: neighbours, at least 2.
        n_query: at most this many points, drawn at random, are asked for their neighbours among all.
        seed: of that draw and of the bootstrap.

    Raises:
        ValueError: fewer than ``k + 1`` distinct points, or values that are not finite.

    Example:
        >>> plane = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0)) @ torch.randn(2, 10)
        >>> round(intrinsic_dimension(plane).estimate)
        2

    Source: arXiv:2305.01034; Levina and Bickel (NIPS 2004), eq. 9.
    """
    check_at_least(0, seed=seed)
    if k < 2:
        raise ValueError(f"k must be at least 2, got {k}")
    if n_query < 1:
        raise ValueError(f"n_query must be at least 1, got {n_query}")
    points = _points(x).unique(dim=0)
    if len(points) < k + 1:
        raise ValueError(f"intrinsic_dimension needs at least k + 1 = {k + 1} distinct points, got {len(points)}")
    generator = np.random.default_rng(seed)
    chosen = torch.from_numpy(generator.permutation(len(points))[:n_query])
    nearest = knn_distances(points[chosen], points, k + 1)[:, 1:].log()
    ratios = (nearest[:, -1:] - nearest[:, :-1]).mean(1).numpy()
    resampled = [ratios[generator.integers(len(ratios), size=len(ratios))].mean() for _ in range(200)]
    low, high = np.quantile(1 / np.array(resampled), [0.025, 0.975])
    return Dimension(float(1 / ratios.mean()), float(low), float(high))


@checked
def class_margin(
    x: Any,
    y: Any = None,
    method: Margin = "evt",
    *,
    min_distance: float = 0.0,
    n_sample: int = 30_000,
    n_pairs: int = 4_000_000,
    seed: int = 0,
) -> float:
    """Returns the smallest distance between differently labelled points, measured or extrapolated.

    Args:
        x: ``(n, ...)``, an array, a tensor, or a data set (then without ``y``).
        y: ``(n,)`` class labels.
        method: "sample" is the minimum over all pairs among at most ``n_sample`` points; "evt" fits the tail of the
            inverse distances of random pairs and extrapolates to all pairs, and is never above the smallest one seen.
        min_distance: shorter distances are left out; the released code leaves out those below 1 on raw images.
        n_sample: points of "sample", drawn at random.
        n_pairs: pairs of "evt", drawn with replacement; the nearest 0.05 % of them, at least 20, make the tail. Where
            there are fewer pairs than this, all are used, and the result is that of "sample".
        seed: of the draw.

    Raises:
        ValueError: one class only; equal points with different labels (a margin of 0), unless ``min_distance`` leaves
            them out; no pair above ``min_distance``; values that are not finite.

    Example:
        >>> class_margin(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 1]), "sample")
        2.0

    Source: arXiv:2305.01034; the tail index is that of Dekkers, Einmahl and de Haan (1989).
    """
    check_at_least(0, seed=seed)
    if method not in ("sample", "evt"):
        raise ValueError(f'method must be "sample" or "evt", got {method!r}')
    if n_sample < 2 or n_pairs < 40:
        raise ValueError(f"n_sample must be at least 2 and n_pairs at least 40, got {n_sample} and {n_pairs}")
    points, labels = labelled_points(x, y)
    generator = np.random.default_rng(seed)
    pairs = float(len(labels) ** 2 - labels.bincount().double().square().sum()) / 2
    if method == "sample":
        chosen = torch.from_numpy(generator.permutation(len(labels))[:n_sample])
        return _checked_margin(_smallest(points[chosen], labels[chosen], min_distance))
    if pairs <= n_pairs:
        return _checked_margin(_smallest(points, labels, min_distance))
    first, second = (torch.from_numpy(generator.integers(len(labels), size=int(1.2 * n_pairs))) for _ in range(2))
    differ = labels[first] != labels[second]
    first, second = first[differ][:n_pairs], second[differ][:n_pairs]
    rows = max(1, _DISTANCES_AT_ONCE // points.shape[1])
    distances = torch.cat(
        [(points[a] - points[b]).norm(dim=1) for a, b in zip(first.split(rows), second.split(rows), strict=True)]
    )
    distances = distances[distances >= min_distance]
    k = max(20, round(_NEAREST * len(distances)))
    if len(distances) <= k:
        raise ValueError(f"the tail needs more than {k} pairs of different labels, got {len(distances)}")
    nearest = distances.topk(k + 1, largest=False).values
    smallest = _checked_margin(float(nearest[0]))
    return min(smallest, _extrapolated(nearest.numpy(), pairs / len(distances)))


def _extrapolated(nearest: np.ndarray, repeats: float) -> float:
    """The smallest of ``repeats`` times as many distances, from the k + 1 smallest ones in ascending order."""
    inverse, threshold = 1 / nearest[:-1], 1 / nearest[-1]
    excess = np.log(inverse / threshold)
    first, second = excess.mean(), np.square(excess).mean()
    if second == 0:
        return math.inf
    ratio = first**2 / second
    if ratio == 1:
        return math.inf
    index = first + 1 - 0.5 / (1 - ratio)
    growth = math.log(len(excess) * repeats)
    factor = math.expm1(index * growth) / index if index else growth
    return float(1 / (threshold * (1 + first * factor)))


def _smallest(points: Tensor, labels: Tensor, min_distance: float) -> float:
    smallest, pair = math.inf, (0, 0)
    for rows, distances in _distances(points, points):
        same = labels[rows][:, None] == labels
        distances.masked_fill_(same | (distances < min_distance), math.inf)
        row, column = divmod(int(distances.argmin()), len(points))
        if distances[row, column] < smallest:
            smallest, pair = float(distances[row, column]), (rows.start + row, column)
    return float((points[pair[0]] - points[pair[1]]).norm()) if math.isfinite(smallest) else smallest


def _checked_margin(margin: float) -> float:
    if margin == 0:
        raise ValueError("equal points have different labels, so the margin is 0: clean them, or set min_distance")
    if not math.isfinite(margin):
        raise ValueError("no two differently labelled points lie further apart than min_distance")
    return margin


def _distances(queries: Tensor, points: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of rows of the distance matrix, by one product in float64 each: exact to about 1e-7 of the radius."""
    queries, points = queries.flatten(1).double(), points.flatten(1).double()
    centre = points.mean(0)
    queries, points = queries - centre, points - centre
    rows = max(1, _DISTANCES_AT_ONCE // len(points))
    for start in range(0, len(queries), rows):
        chunk = slice(start, min(start + rows, len(queries)))
        yield chunk, torch.cdist(queries[chunk], points, compute_mode="use_mm_for_euclid_dist")


def labelled_points(x: Any, y: Any = None) -> tuple[Tensor, Tensor]:
    """Returns float64 points ``(n, dim)`` and int64 labels 0.. ``(n,)`` of arrays, tensors or a data set."""
    if y is None:
        gathered = [(inputs, targets) for inputs, targets, _ in batches(as_dataset(x), 1024)]
        x, y = torch.cat([inputs for inputs, _ in gathered]), torch.cat([targets for _, targets in gathered])
    points, labels = _points(x), torch.as_tensor(y).flatten()
    if len(points) != len(labels):
        raise ValueError(f"x has {len(points)} points but y has {len(labels)} labels")
    classes, labels = labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"a margin between classes needs at least 2 classes, got {len(classes)}")
    return points, labels


def _points(x: Any) -> Tensor:
    if isinstance(x, Dataset):
        x = torch.cat([inputs for inputs, _, _ in batches(x, 1024)])
    points = torch.as_tensor(x)
    if points.ndim < 2 or len(points) == 0:
        raise ValueError(f"x must hold points (n, ...), got the shape {tuple(points.shape)}")
    points = points.flatten(1).double().cpu()
    if not points.isfinite().all():
        raise ValueError(f"x is not finite at point {int((~points.isfinite()).any(1).nonzero()[0])}")
    return points
