"""Core: KNNMemory: labelled feature vectors that are searched by similarity.

Shared by retrieval classifiers, kNN losses, prototypes and out-of-distribution scores. A memory holds the
features of real examples: treat it as you would treat the data themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_finite,
    check_labels,
    check_same_length,
    checked,
)

Metric = Literal["cosine", "dot", "euclidean"]

_SIMILARITIES_AT_ONCE = 1 << 25  # 128 MB of float32


class KNNMemory:
    """Features with labels, their nearest neighbours, and the neighbours' vote.

    Entries lie in one buffer that doubles when it is full, so appending costs amortised O(1) per entry. A query
    costs one matrix product with all entries and one top-k. With a capacity the oldest entry is replaced first;
    ``protect()`` exempts the entries that are present when it is called.

    Args:
        dim: length of a feature vector.
        capacity: most entries to hold; None is no limit.
        metric: "cosine" (features are normalised on the way in), "dot", or "euclidean" (similarity is the
            negative squared distance).
        backend: "torch", or "faiss" for its blocked exact search on the CPU (extra ``retrieval``).
        dtype: storage, ``torch.float32`` or ``torch.float16`` (half the bytes; similarities stay float32).
        device: where entries live.

    Example:
        >>> memory = KNNMemory(dim=2)
        >>> memory.add(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 1]))
        >>> similarity, labels = memory.query(torch.tensor([[2.0, 0.0]]), k=2)
        >>> labels
        tensor([[0, 0]])
        >>> memory.vote(torch.tensor([[1.0, 1.0]]), k=3, tau=1e6, num_classes=2)
        tensor([[0.6667, 0.3333]])
    """

    @checked
    def __init__(
        self,
        dim: int,
        capacity: int | None = None,
        metric: Metric = "cosine",
        backend: Literal["torch", "faiss"] = "torch",
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        if capacity is not None and capacity < 1:
            raise ValueError(f"capacity must be at least 1 or None, got {capacity}")
        if metric not in ("cosine", "dot", "euclidean"):
            raise ValueError(f'metric must be "cosine", "dot" or "euclidean", got {metric!r}')
        if backend not in ("torch", "faiss"):
            raise ValueError(f'backend must be "torch" or "faiss", got {backend!r}')
        if dtype not in (torch.float32, torch.float16):
            raise ValueError(f"dtype must be torch.float32 or torch.float16, got {dtype}")
        if backend == "faiss" and (dtype != torch.float32 or torch.device(device).type != "cpu"):
            raise ValueError(f"backend 'faiss' searches float32 entries on the CPU, got {dtype} on {device}")
        self.dim, self.capacity, self.metric, self.backend = dim, capacity, metric, backend
        self.protected = 0
        self._features = torch.empty(0, dim, dtype=dtype, device=device)
        self._labels = torch.empty(0, dtype=torch.int64, device=device)
        self._size = 0
        self._oldest = 0  # offset of the oldest replaceable entry behind the protected ones

    def __len__(self) -> int:
        return self._size

    @property
    def features(self) -> Tensor:
        """The stored features ``(entries, dim)``: a view, normalised where the metric is cosine."""
        return self._features[: self._size]

    @property
    def labels(self) -> Tensor:
        """The stored labels ``(entries,)``: a view."""
        return self._labels[: self._size]

    @checked
    def add(self, z: Tensor, y: Tensor) -> None:
        """Stores features ``(batch, dim)`` with labels ``(batch,)``; a full memory drops its oldest entries.

        Raises:
            ValueError: wrong shapes, features that are not finite, or labels that are not class indices.
        """
        check_dimensions(2, z=z)
        check_finite(z=z)
        check_same_length(z=z, y=y)
        check_dimensions(1, y=y)
        check_labels(y=y)
        z = self._check(z).detach()
        if y.shape != z.shape[:1] or y.is_floating_point() or (len(y) and int(y.min()) < 0):
            raise ValueError(f"labels must be {len(z)} class indices from 0, got {y.dtype} {tuple(y.shape)}")
        z = (F.normalize(z, dim=1) if self.metric == "cosine" else z).to(self._features)
        y = y.to(self._labels)
        grow = len(z)
        if self.capacity is not None:
            room = self.capacity - self.protected
            z, y = z[max(0, len(z) - room) :], y[max(0, len(y) - room) :]
            grow = min(len(z), self.capacity - self._size)
        self._reserve(self._size + grow)
        self._features[self._size : self._size + grow] = z[:grow]
        self._labels[self._size : self._size + grow] = y[:grow]
        self._size += grow
        replaced = len(z) - grow
        if replaced:
            offsets = torch.arange(self._oldest, self._oldest + replaced, device=z.device)
            positions = self.protected + offsets % room
            self._features[positions], self._labels[positions] = z[grow:], y[grow:]
            self._oldest = (self._oldest + replaced) % room

    @checked
    def query(self, z: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Returns ``(similarity, labels)`` of the k most similar entries, both ``(batch, k)``, best first.

        Similarities carry gradients to ``z``, at the cost of the k neighbours and not of the whole memory.

        Raises:
            ValueError: k exceeds the entries, or features of a wrong shape or not finite.
        """
        check_dimensions(2, z=z)
        check_finite(z=z)
        z = self._check(z)
        if not 1 <= k <= self._size:
            raise ValueError(f"k must lie in 1..{self._size}, the number of entries in memory, got {k}")
        z = F.normalize(z, dim=1) if self.metric == "cosine" else z
        with torch.no_grad():
            similarity, positions = self._search(z.detach(), k)
        if z.requires_grad and torch.is_grad_enabled():
            neighbours = self._features[positions].to(z.dtype)
            if self.metric == "euclidean":
                similarity = -(neighbours - z.unsqueeze(1)).square().sum(2)
            else:
                similarity = (neighbours @ z.unsqueeze(2)).squeeze(2)
        return similarity, self._labels[positions]

    @checked
    def vote(self, z: Tensor, k: int, tau: float, num_classes: int) -> Tensor:
        """Returns class probabilities ``(batch, num_classes)``: the k neighbours vote with softmax(similarity / tau).

        Each row sums to 1; classes without a neighbour get exactly 0.

        Raises:
            ValueError: as ``query``; tau not positive; a stored label outside the classes.
        """
        check_dimensions(2, z=z)
        check_finite(z=z)
        check_at_least(1, num_classes=num_classes)
        similarity, labels = self.query(z, k)
        return _weighted_vote(similarity, labels, tau, num_classes)

    @checked
    def vote_within(self, z: Tensor, radius: float, tau: float, num_classes: int) -> Tensor:
        """Returns class probabilities ``(batch, num_classes)`` from all entries of similarity at least ``radius``.

        A row without any such entry is all zero.
        """
        z = self._check(z)
        z = F.normalize(z, dim=1) if self.metric == "cosine" else z
        votes = []
        for block in z.split(max(1, _SIMILARITIES_AT_ONCE // max(1, self._size))):
            similarity = self._similarity(block)
            similarity = similarity.masked_fill(similarity < radius, float("-inf"))
            votes.append(_weighted_vote(similarity, self.labels.expand(len(block), -1), tau, num_classes).nan_to_num(0))
        return torch.cat(votes)

    @checked
    def protect(self, max_added: int | None = None) -> None:
        """Keeps the present entries for good; of later ones only the newest ``max_added`` stay (None: all).

        Raises:
            ValueError: ``max_added`` is negative.
        """
        if max_added is not None and max_added < 0:
            raise ValueError(f"max_added must be at least 0 or None, got {max_added}")
        self._sort_by_age()
        self.protected = self._size
        self.capacity = None if max_added is None else self._size + max_added

    @checked
    def truncate(self, n: int) -> None:
        """Keeps the first ``n`` entries (protected ones, then the oldest) and forgets the rest.

        Raises:
            ValueError: n is negative or exceeds the entries.
        """
        if not 0 <= n <= self._size:
            raise ValueError(f"n must lie in 0..{self._size}, the number of entries in memory, got {n}")
        if n > self.protected:
            self._sort_by_age()
        self._size, self._oldest = n, 0
        self.protected = min(self.protected, n)

    def state_dict(self) -> dict[str, Any]:
        """Returns copies of the entries, oldest first, with the limits of the memory."""
        self._sort_by_age()
        return {
            "features": self.features.clone(),
            "labels": self.labels.clone(),
            "protected": self.protected,
            "capacity": self.capacity,
        }

    @checked
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces all entries by those of a ``state_dict()``.

        Raises:
            ValueError: features of another length.
        """
        features, labels = state["features"], state["labels"]
        if features.ndim != 2 or features.shape[1] != self.dim or labels.shape != features.shape[:1]:
            raise ValueError(f"expected features (entries, {self.dim}) and labels, got {tuple(features.shape)}")
        self._features = features.to(self._features, copy=True)
        self._labels = labels.to(self._labels, copy=True)
        self._size, self._oldest = len(labels), 0
        self.protected, self.capacity = state["protected"], state["capacity"]

    def _check(self, z: Tensor) -> Tensor:
        if z.ndim != 2 or z.shape[1] != self.dim:
            raise ValueError(f"features must be (batch, {self.dim}), got {tuple(z.shape)}")
        z = z if z.dtype == torch.float32 else z.float()
        if not z.isfinite().all():
            raise ValueError("features contain NaN or infinity")
        return z.to(self._features.device)

    def _reserve(self, entries: int) -> None:
        if entries <= len(self._features):
            return
        size = max(entries, 2 * len(self._features), 256)
        size = size if self.capacity is None else min(size, self.capacity)
        for name in ("_features", "_labels"):
            old = getattr(self, name)
            new = old.new_empty(size, *old.shape[1:])
            new[: self._size] = old[: self._size]
            setattr(self, name, new)

    def _sort_by_age(self) -> None:
        if self._oldest:
            for part in (self._features, self._labels):
                ring = part[self.protected : self._size]
                ring.copy_(ring.roll(-self._oldest, 0))
            self._oldest = 0

    def _search(self, z: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if self.backend == "faiss":
            return _faiss_search(z, self.features, k, self.metric)
        rows = max(1, _SIMILARITIES_AT_ONCE // self._size)
        found = [self._similarity(block).topk(k, dim=1) for block in z.split(rows)]
        if len(found) == 1:
            return found[0].values, found[0].indices
        return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])

    def _similarity(self, z: Tensor) -> Tensor:
        entries = self.features.to(z.dtype)
        if self.metric == "euclidean":
            return -torch.cdist(z, entries).square()
        return z @ entries.T


def _weighted_vote(similarity: Tensor, labels: Tensor, tau: float, num_classes: int) -> Tensor:
    if not tau > 0:
        raise ValueError(f"tau must be positive, got {tau}")
    if labels.numel() and int(labels.max()) >= num_classes:
        raise ValueError(f"memory holds label {int(labels.max())}, outside the {num_classes} classes")
    weights = (similarity / tau).softmax(dim=1)
    return weights.new_zeros(len(weights), num_classes).scatter_add(1, labels, weights)


def _faiss_search(z: Tensor, features: Tensor, k: int, metric: Metric) -> tuple[Tensor, Tensor]:
    try:
        import faiss
    except ImportError as error:
        raise ImportError("KNNMemory(backend='faiss') needs faiss: pip install 'heldout[retrieval]'") from error
    kind = faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT
    found = faiss.knn(z.contiguous().numpy(), features.numpy(), k, metric=kind)
    similarity, positions = (torch.from_numpy(part) for part in found)
    return (-similarity if metric == "euclidean" else similarity), positions
