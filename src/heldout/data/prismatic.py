"""Prismatic synthesis: write training examples where the gradients of a data set are sparse.

Examples whose gradients point the same way teach a model the same thing. So the pool is clustered by gradient
direction, a generator is prompted with examples of the small clusters, and what it writes is kept only if its own
gradient falls into a small cluster. Any features can stand in for gradients, see ``heldout.measure.gradient_features``.

Source: arXiv:2505.20161.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import check_at_least, checked

Example = tuple[str, str]
"""A problem and the response to it."""


class Clusters(NamedTuple):
    """What ``spherical_kmeans`` found.

    Attributes:
        centroids: ``(k, d)`` of length 1.
        labels: int64 ``(n,)``, the cluster of each row: the centroid of the largest cosine.
        sizes: int64 ``(k,)``.

    Example:
        >>> found = spherical_kmeans(torch.tensor([[3.0, 0.0], [5.0, 0.0], [0.0, 2.0]]), 2)
        >>> found.centroids[found.labels].round().tolist()  # of each row its direction
        [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    """

    centroids: Tensor
    labels: Tensor
    sizes: Tensor


@checked
def spherical_kmeans(features: Tensor, k: int, *, n_init: int = 4, seed: int = 0) -> Clusters:
    """Returns clusters of directions: k-means of the rows, scaled to length 1.

    Args:
        features: ``(n, d)``, no row of zeros.
        k: clusters; fewer where there are fewer different rows.
        n_init: runs, of which the best is kept.
        seed: of k-means.

    Raises:
        ValueError: wrong shapes, k below 1, values that are not finite, or a row of zeros.

    Example:
        >>> spherical_kmeans(torch.tensor([[1.0, 0.0], [5.0, 0.0], [0.0, 1.0]]), 2).sizes.sort().values
        tensor([1, 2])
    """
    check_at_least(0, seed=seed)
    from sklearn.cluster import KMeans

    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    rows = _unit_rows(features)
    k = min(k, len(rows.unique(dim=0)))
    found = KMeans(k, n_init=n_init, random_state=seed).fit(rows.numpy()).cluster_centers_
    centroids = F.normalize(torch.from_numpy(found), dim=1)
    labels = (rows @ centroids.T).argmax(1)
    return Clusters(centroids, labels, torch.bincount(labels, minlength=k))


@checked
def sparse_select(features: Tensor, n: int, k: int | None = None, *, seed: int = 0) -> Tensor:
    """Returns the indices ``(n,)``, sorted, of a subset that takes as evenly as it can from clusters of directions.

    Small clusters are taken whole, and the large ones are cut to one size, at random. It is the variant of prismatic
    synthesis for a pool that cannot grow.

    Args:
        features: ``(pool, d)``, such as ``heldout.measure.gradient_features``.
        n: how many, at most the pool.
        k: clusters; default ``max(8, sqrt(pool))``.
        seed: of k-means and of what is taken.

    Raises:
        ValueError: n out of range, and as ``spherical_kmeans``.

    Example:
        >>> features = torch.tensor([[1.0, 0.0]] * 6 + [[0.0, 1.0]] * 2)
        >>> len(set(sparse_select(features, 4, 2).tolist()) & {6, 7})
        2
    """
    check_at_least(0, seed=seed)
    if not 1 <= n <= len(features):
        raise ValueError(f"n must lie in 1..{len(features)}, the size of the pool, got {n}")
    labels = spherical_kmeans(features, k or default_clusters(len(features)), seed=seed).labels.tolist()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    seen: Counter[int] = Counter()
    rank = {}
    for index in order:
        rank[index] = seen[labels[index]]
        seen[labels[index]] += 1
    return torch.tensor(sorted(sorted(order, key=rank.__getitem__)[:n]))


def default_clusters(n: int) -> int:
    """Returns the number of clusters for a pool of n examples: ``max(8, round(sqrt(n)))``, at most n."""
    return min(n, max(8, round(math.sqrt(n))))


class SynthesisRound(NamedTuple):
    """What became of the problems of one round. Those that came when it was full are counted as written alone.

    Attributes:
        written: by the generator.
        duplicates: dropped since they are in the pool already, or nearly.
        unsolved: dropped without a clear majority, or by the judge.
        dense: dropped since they fell into a large cluster.
        kept: joined the pool.

    Example:
        >>> def features(examples):
        ...     return torch.tensor([[float("+" in p), float("-" in p)] for p, _ in examples])
        >>> new = lambda shots: ["9 - 5", "8 + 8", "7 - 3"]
        >>> grow = PrismaticSynthesizer(features, new, lambda problem, n: ["?"] * n, k=2)
        >>> _ = grow.run([("5 + 5", "10"), ("6 + 6", "12"), ("9 - 5", "4")], 1, 1)
        >>> grow.history
        [SynthesisRound(written=3, duplicates=1, unsolved=0, dense=1, kept=1)]
    """

    written: int
    duplicates: int
    unsolved: int
    dense: int
    kept: int


class PrismaticSynthesizer:
    """Grows a pool of examples in the sparse regions of a feature space.

    A round clusters the pool and marks the smallest clusters. The generator is prompted with examples of these. A new
    problem is dropped if it repeats one, if its solutions have no clear majority, or if the features of the example
    (they need the response) fall into a cluster that is not marked. With ``sparse_fraction=1`` nothing is dropped for
    its features: that is ordinary few-shot synthesis.

    Args:
        features: ``examples -> (n, d)``, no row of zeros; for the paper's method projected gradients of the response
            under a fixed small proxy. It sees the pool once in each ``run`` and each new example once.
        generate: ``few-shot examples -> new problems``, usually a prompted language model.
        solve: ``(problem, n) -> n responses``.
        judge: ``(problem, response) -> whether to keep it``, after the vote.
        answer: ``response -> what is voted on``; default: the whole response.
        k: clusters; default ``max(8, sqrt(pool))``, anew in each round.
        sparse_fraction: share of the clusters that is marked, the smallest ones, in (0, 1].
        votes: solutions of each problem; more than half of them must agree.
        shots: few-shot examples of a prompt.
        overlap: a problem whose word trigrams have this Jaccard similarity with a problem of the pool is a duplicate.
        patience: calls of the generator in a row without a kept example after which a round ends.
        seed: of k-means and of the few-shot examples.

    Attributes:
        history: a ``SynthesisRound`` for each round.

    Raises:
        ValueError: options out of range.

    Example:
        >>> def features(examples):
        ...     return torch.tensor([[float("+" in p), float("-" in p)] for p, _ in examples])
        >>> numbers = iter(range(100))
        >>> def generate(shots):
        ...     return [f"{next(numbers)} + 1", f"{next(numbers)} - 1"]
        >>> grow = PrismaticSynthesizer(features, generate, lambda problem, n: ["?"] * n, k=2)
        >>> pool = grow.run([("5 + 5", "10"), ("6 + 6", "12"), ("7 + 7", "14"), ("9 - 5", "4")], 1, 2)
        >>> [problem for problem, _ in pool[4:]]
        ['1 - 1', '3 - 1']

    Source: arXiv:2505.20161. Which clusters count as sparse, how many there are and the test for duplicates are ours.
    """

    @checked
    def __init__(
        self,
        features: Callable[[Sequence[Example]], Tensor],
        generate: Callable[[Sequence[Example]], list[str]],
        solve: Callable[[str, int], list[str]],
        judge: Callable[[str, str], bool] | None = None,
        *,
        answer: Callable[[str], str] | None = None,
        k: int | None = None,
        sparse_fraction: float = 0.5,
        votes: int = 5,
        shots: int = 4,
        overlap: float = 0.9,
        patience: int = 50,
        seed: int = 0,
    ) -> None:
        if not 0 < sparse_fraction <= 1:
            raise ValueError(f"sparse_fraction must lie in (0, 1], got {sparse_fraction}")
        if not 0 < overlap <= 1:
            raise ValueError(f"overlap must lie in (0, 1], got {overlap}")
        for name, value in {"votes": votes, "shots": shots, "patience": patience, "k": 1 if k is None else k}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.features, self.generate, self.solve, self.judge = features, generate, solve, judge
        self.answer, self.k, self.sparse_fraction, self.votes = answer, k, sparse_fraction, votes
        self.shots, self.overlap, self.patience = shots, overlap, patience
        self.history: list[SynthesisRound] = []
        self._generator = torch.Generator().manual_seed(seed)
        self._seed = seed

    @checked
    def run(self, pool: Sequence[Example], rounds: int, per_round: int) -> list[Example]:
        """Returns the pool with up to ``rounds * per_round`` new examples after those that were given.

        A round in which the generator finds nothing more that is kept ends early with a warning, and the run with it.

        Args:
            pool: the seed examples.
            rounds: how often to cluster anew.
            per_round: new examples to keep in each.

        Raises:
            ValueError: an empty pool, counts below 1, or features of another length than the examples.
        """
        if not pool:
            raise ValueError("prismatic synthesis needs at least one example in its pool")
        if rounds < 1 or per_round < 1:
            raise ValueError(f"rounds and per_round must be at least 1, got {rounds} and {per_round}")
        grown, found = list(pool), self._features(pool)
        known = _Trigrams([problem for problem, _ in pool])
        for number in range(rounds):
            new, rows = self._round(grown, found, known, per_round)
            grown += new
            found = torch.cat([found, *rows])
            if len(new) < per_round:
                warnings.warn(
                    f"synthesis stopped in round {number + 1} of {rounds} with {len(new)} of {per_round} new examples: "
                    f"the generator was called {self.patience} times in a row and nothing was kept "
                    f"({self.history[-1]})",
                    stacklevel=2,
                )
                break
        return grown

    def _round(
        self, pool: list[Example], features: Tensor, known: _Trigrams, wanted: int
    ) -> tuple[list[Example], list[Tensor]]:
        clusters = spherical_kmeans(features, self.k or default_clusters(len(pool)), seed=self._seed)
        sparse = sparse_clusters(clusters.sizes, self.sparse_fraction)
        sources = sparse[clusters.labels].nonzero().flatten()
        new: list[Example] = []
        rows: list[Tensor] = []
        written = duplicates = unsolved = dense = idle = 0
        while len(new) < wanted and idle < self.patience:
            picked = torch.randperm(len(sources), generator=self._generator)[: self.shots]
            problems = self.generate([pool[i] for i in sources[picked].tolist()])
            written += len(problems)
            fresh = [problem for problem in dict.fromkeys(problems) if not known.near(problem, self.overlap)]
            duplicates += len(problems) - len(fresh)
            solved = [(problem, answer) for problem in fresh if (answer := self._majority(problem)) is not None]
            unsolved += len(fresh) - len(solved)
            idle += 1
            if not solved:
                continue
            found = self._features(solved)
            kept = sparse[(_unit_rows(found) @ clusters.centroids.T).argmax(1)].tolist()
            for example, row, keep in zip(solved, found.split(1), kept, strict=True):
                if not keep:
                    dense += 1
                elif len(new) == wanted:
                    break
                elif known.near(example[0], self.overlap):
                    duplicates += 1
                else:
                    known.add(example[0])
                    new.append(example)
                    rows.append(row)
                    idle = 0
        self.history.append(SynthesisRound(written, duplicates, unsolved, dense, len(new)))
        return new, rows

    def _majority(self, problem: str) -> str | None:
        """The first response with the answer that more than half of the solutions give."""
        responses = self.solve(problem, self.votes)
        answers = [self.answer(response) if self.answer else response for response in responses]
        if not answers:
            return None
        answer, count = Counter(answers).most_common(1)[0]
        response = responses[answers.index(answer)]
        agreed = 2 * count > self.votes and (self.judge is None or self.judge(problem, response))
        return response if agreed else None

    def _features(self, examples: Sequence[Example]) -> Tensor:
        found = self.features(examples)
        if found.ndim != 2 or len(found) != len(examples):
            raise ValueError(f"features must return (n, d) for {len(examples)} examples, got {tuple(found.shape)}")
        return found.detach().cpu()


def sparse_clusters(sizes: Tensor, fraction: float = 0.5) -> Tensor:
    """Returns a bool mask ``(k,)`` of the smallest clusters, ``fraction`` of them rounded up; ties go by number.

    Example:
        >>> sparse_clusters(torch.tensor([5, 1, 3]))
        tensor([False,  True,  True])
    """
    marked = torch.zeros(len(sizes), dtype=torch.bool)
    marked[sizes.argsort(stable=True)[: math.ceil(fraction * len(sizes) - 1e-9)]] = True
    return marked


class _Trigrams:
    """The word trigrams of texts, to find near duplicates without comparing all pairs."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.sizes: list[int] = []
        self.texts: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        grams = _trigrams(text)
        for gram in grams:
            self.texts[gram].append(len(self.sizes))
        self.sizes.append(len(grams))

    def near(self, text: str, overlap: float) -> bool:
        grams = _trigrams(text)
        shared = Counter(number for gram in grams for number in self.texts.get(gram, ()))
        return any(n >= overlap * (len(grams) + self.sizes[number] - n) for number, n in shared.items())


def _trigrams(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def _unit_rows(features: Tensor) -> Tensor:
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features must be (n, d) with n and d at least 1, got {tuple(features.shape)}")
    rows = features.detach().double().cpu()
    if bad := (~rows.isfinite().all(1)).nonzero().flatten().tolist():
        raise ValueError(f"the features of example {bad[0]} are not finite")
    lengths = rows.norm(dim=1, keepdim=True)
    if bad := (lengths.flatten() == 0).nonzero().flatten().tolist():
        raise ValueError(f"the features of example {bad[0]} are all zero: it has no direction")
    return rows / lengths
