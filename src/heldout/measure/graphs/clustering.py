"""Core: How well k-means of frozen embeddings finds the classes of nodes, without a label.

Source: arXiv:2406.08310 (Xu et al., 2024), the protocol of clustering.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_dimensions, check_labels, check_same_length, check_values, checked


class ClusterProbe(NamedTuple):
    """How clusters agree with classes.

    Attributes:
        nmi: normalised mutual information, by the arithmetic mean of entropies, in [0, 1].
        ari: adjusted Rand index, 0 for chance, 1 for the same partition.
        clusters: of all nodes, int64 ``(nodes,)``.

    Example:
        >>> ClusterProbe(0.5, 0.4, torch.tensor([0, 1])).nmi
        0.5
    """

    nmi: float
    ari: float
    clusters: Tensor


@checked
def probe_clustering(
    h: Tensor, y: Tensor, k: int | None = None, seed: int = 0, *, nodes: Tensor | None = None, restarts: int = 10
) -> ClusterProbe:
    """Returns how well clusters by k-means agree with classes.

    Args:
        h: embeddings, ``(nodes, dim)``, made by whatever model, taken as they are.
        y: classes, int64 ``(nodes,)``; no label is used to cluster.
        k: clusters; default: as many as ``y`` has classes.
        seed: of the first centres.
        nodes: bool ``(nodes,)``, which are compared; all are clustered. Default: all.
        restarts: of k-means, of which the one with the smallest distances counts.

    Raises:
        ValueError: embeddings that are not finite, lengths that differ, k above the number of nodes, no node to
            compare, or options out of range.

    Source: arXiv:2406.08310. deviation: no "accuracy" of clusters, which there compares numbers of clusters with labels
    as they are.

    Example:
        >>> h = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
        >>> probe_clustering(h, torch.tensor([1, 1, 0, 0])).ari
        1.0
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    check_dimensions(2, h=h)
    check_values(h=h)
    check_dimensions(1, y=y)
    check_labels(y=y)
    check_same_length(h=h, y=y)
    check_at_least(1, restarts=restarts, k=k)
    check_at_least(0, seed=seed)
    if k is None:
        k = len(y.unique())
    if k > len(h):
        raise ValueError(f"k must be at most the number of nodes, {len(h)}, got {k}")
    if nodes is not None and (nodes.dtype != torch.bool or nodes.shape != y.shape or not bool(nodes.any())):
        raise ValueError(f"nodes must be bool, one entry for each of {len(y)} nodes, and hold a node")
    clusters = KMeans(k, n_init=restarts, random_state=seed).fit_predict(h.detach().float().cpu().numpy())
    found, classes = clusters, y.cpu().numpy()
    if nodes is not None:
        found, classes = found[nodes.cpu().numpy()], classes[nodes.cpu().numpy()]
    nmi, ari = normalized_mutual_info_score(classes, found), adjusted_rand_score(classes, found)
    return ClusterProbe(float(nmi), float(ari), torch.from_numpy(clusters).long().to(h.device))
