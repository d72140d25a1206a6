"""Triplets of items for odd-one-out tasks, by what the items are: across the border of clusters, or within one.

Source: arXiv:2409.06509 (AligNet), the sampling of synthetic triplets.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_between, check_dimensions, check_labels, checked

TripletKind = Literal["border", "between", "within", "uniform"]


@checked
def sample_triplets(
    clusters: Tensor, n: int, kind: TripletKind = "border", *, seed: int = 0, groups: Tensor | None = None
) -> Tensor:
    """Returns ``n`` triplets of different items, int64 ``(n, 3)``, whose three places are in random order.

    - "border": two items of one cluster, the third of another. - "between": of three different clusters. - "within":
    all of one cluster. - "uniform": any three items.

    Clusters are drawn in proportion to their size, for "border" only those of at least two items and for "within" of
    at least three; then items uniformly. Triplets may repeat. Costs a few passes over ``(n, 3)`` numbers.

    Args:
        clusters: class or cluster of each item, int64 ``(items,)``.
        n: triplets, at least 1.
        kind: as above.
        seed: of all draws.
        groups: coarser class of each item, ``(items,)``: the clusters of a triplet of "border" or "between" are then of
            one group, as for the border of the classes of a kind.

    Raises:
        ValueError: too few items, or no cluster (in no group) that is large enough.

    Source: arXiv:2409.06509; the published code's ``data.py``.

    Example:
        >>> clusters = torch.tensor([0, 0, 1, 1])
        >>> found = clusters[sample_triplets(clusters, 100)]
        >>> set(found.sum(1).tolist())  # two of one, one of the other
        {1, 2}
    """
    check_at_least(1, n=n)
    check_between(0, 2**63 - 1, seed=seed)
    check_dimensions(1, clusters=clusters, groups=groups)
    check_labels(clusters=clusters)
    if kind not in ("border", "between", "within", "uniform"):
        raise ValueError(f"kind must be border, between, within or uniform, got {kind!r}")
    if groups is not None:
        check_labels(groups=groups)
        if len(groups) != len(clusters):
            raise ValueError(f"groups must have an entry for each of {len(clusters)} items, got {len(groups)}")
    if len(clusters) < 3:
        raise ValueError(f"clusters must hold at least 3 items, got {len(clusters)}")
    generator = torch.Generator().manual_seed(seed)
    clusters = clusters.cpu()
    around = torch.zeros_like(clusters) if groups is None else groups.cpu()
    if kind == "uniform":
        clusters, around, kind = torch.zeros_like(clusters), torch.zeros_like(clusters), "within"
    pool = _Pool(clusters, around)
    first = pool.first(kind, n, generator)
    if kind == "within":
        chosen = pool.same_cluster(first, 3, generator)
    elif kind == "border":
        chosen = torch.cat([pool.same_cluster(first, 2, generator), pool.elsewhere(first[:, None], generator)], 1)
    else:
        second = pool.elsewhere(first[:, None], generator)
        third = pool.elsewhere(torch.cat([first[:, None], second], 1), generator)
        chosen = torch.cat([first[:, None], second, third], 1)
    order = torch.rand(n, 3, generator=generator).argsort(1)
    return chosen.gather(1, order)


class _Pool:
    """Items sorted by group and cluster, so that a cluster is a run of places, and a group a run of clusters."""

    def __init__(self, clusters: Tensor, groups: Tensor) -> None:
        wide = int(clusters.max()) + 1
        key, self.cluster = (groups.long() * wide + clusters).unique(return_inverse=True)  # by group, then cluster
        self.group = (key // wide).unique(return_inverse=True)[1][self.cluster]
        self.order = self.cluster.argsort(stable=True)
        self.place = torch.empty_like(self.order)
        self.place[self.order] = torch.arange(len(self.order))
        self.sizes = self.cluster.bincount()
        self.starts = self.sizes.cumsum(0) - self.sizes
        self.group_sizes = self.group.bincount()
        self.group_starts = self.group_sizes.cumsum(0) - self.group_sizes

    def first(self, kind: TripletKind, n: int, generator: torch.Generator) -> Tensor:
        """Items ``(n,)`` of which a triplet of this kind can be made."""
        own = self.sizes[self.cluster]
        wanted = 3 if kind == "within" else 2
        distinct = torch.zeros_like(self.group_sizes).index_add_(
            0, self.group[self.order[self.starts]], torch.ones_like(self.starts)
        )[self.group]
        possible = {"within": own >= 3, "border": (own >= 2) & (distinct >= 2), "between": distinct >= 3}[kind]
        items = possible.nonzero().flatten()
        if not len(items):
            need = {
                "within": f"a cluster of at least {wanted} items",
                "border": f"a cluster of at least {wanted} items beside another",
                "between": "at least 3",
            }[kind]
            raise ValueError(
                f"clusters need {need} for {kind} triplets, got sizes {sorted(self.sizes.tolist())[-3:]} at most"
            )
        return items[torch.randint(len(items), (n,), generator=generator)]

    def same_cluster(self, first: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """``first`` and others of its cluster, all different, ``(n, count)``."""
        cluster = self.cluster[first]
        chosen = [first]
        for _ in range(count - 1):
            chosen.append(
                self._skipping(self.starts[cluster], self.sizes[cluster], torch.stack(chosen, 1), None, generator)
            )
        return torch.stack(chosen, 1)

    def elsewhere(self, items: Tensor, generator: torch.Generator) -> Tensor:
        """An item of the same group and of none of the clusters of ``items`` ``(n, k)``: ``(n, 1)``."""
        group = self.group[items[:, 0]]
        clusters = self.cluster[items]
        found = self._skipping(
            self.group_starts[group], self.group_sizes[group], items, self.sizes[clusters], generator, clusters
        )
        return found[:, None]

    def _skipping(
        self,
        start: Tensor,
        size: Tensor,
        items: Tensor,
        widths: Tensor | None,
        generator: torch.Generator,
        clusters: Tensor | None = None,
    ) -> Tensor:
        """A uniform draw from the run of places ``[start, start + size)`` without those of items, or their clusters."""
        lows = self.place[items] if clusters is None else self.starts[clusters]
        widths = torch.ones_like(lows) if widths is None else widths
        free = size - widths.sum(1)
        drawn = start + (torch.rand(len(start), generator=generator, dtype=torch.float64) * free).long()
        order = lows.argsort(1)
        for low, width in zip(lows.gather(1, order).T, widths.gather(1, order).T, strict=True):
            drawn = drawn + width * (drawn >= low)
        return self.order[drawn]
