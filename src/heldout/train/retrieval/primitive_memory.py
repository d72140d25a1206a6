"""PrimitiveMemory: features of words and of regions, searched by similarity, by key, and without one's own example.

Source: arXiv:2505.23045 (Li et al., IJCAI 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_finite,
    check_labels,
    check_length,
    check_nonempty,
    check_one_of,
    check_positive,
    check_same_length,
    checked,
)
from heldout.nn import KNNMemory

_SIMILARITIES_AT_ONCE = 1 << 23


class Retrieved(NamedTuple):
    """What a search found, the most similar first.

    Attributes:
        features: ``(n, k, dim)``, as they were added; zeros where fewer than k entries were allowed.
        weights: ``(n, k)``, softmax of cosine similarity / tau: each row sums to 1, or is 0 where nothing was allowed.

    Example:
        >>> found = Retrieved(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[0.75, 0.25]]))
        >>> found.mean
        tensor([[0.7500, 0.2500]])
    """

    features: Tensor
    weights: Tensor

    @property
    def mean(self) -> Tensor:
        """The weighted mean of what was found, ``(n, dim)``."""
        return (self.weights.unsqueeze(2) * self.features).sum(1)


class PrimitiveMemory:
    """A database of primitive features for each modality, each with a key and the example that it is from.

    A full database drops its oldest entries. Search is exact: one matrix product with all entries; beyond some 50,000
    entries a ``KNNMemory`` with faiss is faster, which knows no keys.

    Args:
        dim: length of a feature vector, the same in all modalities.
        capacity: most entries of each database.
        modalities: names of the databases.
        tau: temperature of the weights.
        device: where entries live.

    Raises:
        ValueError: numbers out of range, or no or equal modalities.

    Source: arXiv:2505.23045, the two databases; inferred from its summaries: keys, weights and the capacity.

    Example:
        >>> memory = PrimitiveMemory(dim=2, capacity=100)
        >>> red, blue = 0, 1
        >>> memory.add(torch.eye(2), torch.tensor([red, blue]), "language", samples=torch.tensor([7, 8]))
        >>> query = torch.tensor([[1.0, 0.1]])
        >>> memory.search(query, 1, "language").features[0, 0]
        tensor([1., 0.])
        >>> memory.search(query, 1, "language", exclude=torch.tensor([7])).features[0, 0]
        tensor([0., 1.])
        >>> memory.search(query, 2, "language", keys=torch.tensor([blue])).weights
        tensor([[1., 0.]])
    """

    @checked
    def __init__(
        self,
        dim: int,
        capacity: int,
        modalities: Sequence[str] = ("language", "vision"),
        *,
        tau: float = 0.1,
        device: torch.device | str = "cpu",
    ) -> None:
        check_at_least(1, dim=dim, capacity=capacity)
        check_nonempty(modalities=modalities)
        check_positive(tau=tau)
        if len(set(modalities)) < len(modalities):
            raise ValueError(f"modalities must differ, got {', '.join(modalities)}")
        self.dim, self.capacity, self.modalities, self.tau = dim, capacity, tuple(modalities), tau
        self._device = torch.device(device)
        self.clear()

    def clear(self) -> None:
        """Forgets all entries."""
        # the label of an entry there is its place in the tables here
        self._entries = {name: KNNMemory(self.dim, self.capacity, device=self._device) for name in self.modalities}
        self._added = dict.fromkeys(self.modalities, 0)
        self._lengths = {
            name: torch.zeros(self.capacity, dtype=torch.float32, device=self._device) for name in self.modalities
        }
        self._marks = {
            name: torch.zeros(self.capacity, 2, dtype=torch.int64, device=self._device) for name in self.modalities
        }

    @checked
    def count(self, modality: str) -> int:
        """Returns how many entries a database has.

        Raises:
            ValueError: an unknown modality.
        """
        check_one_of(self.modalities, modality=modality)
        return len(self._entries[modality])

    @checked
    def add(self, features: Tensor, keys: Tensor, modality: str, samples: Tensor | None = None) -> None:
        """Stores features ``(n, dim)``, detached from the graph.

        Args:
            features: finite.
            keys: int64 ``(n,)``, what each one is: entries of one key mean the same in all modalities.
            modality: of which database.
            samples: int64 ``(n,)``, numbers of the examples that they are from; None: from none that is searched for.

        Raises:
            ValueError: wrong shapes, features that are not finite, negative keys or samples, an unknown modality.
        """
        check_one_of(self.modalities, modality=modality)
        check_dimensions(2, features=features)
        check_dimensions(1, keys=keys, samples=samples)
        check_same_length(features=features, keys=keys, samples=samples)
        check_labels(keys=keys)
        check_labels(samples=samples)
        self._check_features(features=features)
        features = features.detach()[-self.capacity :].to(self._device, torch.float32)
        samples = torch.full_like(keys, -1) if samples is None else samples
        marks = torch.stack([keys, samples], 1)[-self.capacity :].to(self._device, torch.int64)
        place = (self._added[modality] + torch.arange(len(marks), device=self._device)) % self.capacity
        self._added[modality] += len(marks)
        self._lengths[modality][place] = features.norm(dim=1)
        self._marks[modality][place] = marks
        self._entries[modality].add(features, place)

    @checked
    def search(
        self,
        query: Tensor,
        k: int,
        modality: str,
        *,
        keys: Tensor | None = None,
        exclude: Tensor | None = None,
    ) -> Retrieved:
        """Returns the k most similar entries of a database by cosine similarity, without gradients.

        Args:
            query: ``(n, dim)``.
            k: how many, at most as many as there are.
            modality: of which database.
            keys: int64 ``(n,)``; only entries of the same key are allowed. None: all.
            exclude: int64 ``(n,)``, examples whose own entries are not allowed. None: all are.

        Raises:
            ValueError: an empty database, k beyond its entries, wrong shapes, or a query that is not finite.
        """
        self._check_search(query, k, modality, keys, exclude)
        entries = self._entries[modality]
        vectors, place = entries.features, entries.labels
        marks, lengths = self._marks[modality][place], self._lengths[modality][place]
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            directions = F.normalize(query.detach().to(vectors), dim=1)
            similarity = vectors.new_full((len(query), k), -torch.inf)
            positions = place.new_zeros(len(query), k)
            wanted = place.new_zeros(len(query)) if keys is None else keys.to(marks)
            present = torch.zeros_like(place) if keys is None else marks[:, 0]
            for key in wanted.unique():
                rows, there = (wanted == key).nonzero().squeeze(1), (present == key).nonzero().squeeze(1)
                allowed, own = vectors[there], marks[there, 1]
                most = min(k, len(allowed))
                for block in rows.split(max(1, _SIMILARITIES_AT_ONCE // max(1, len(allowed)))):
                    product = directions[block] @ allowed.T
                    if exclude is not None:
                        product.masked_fill_(exclude.to(own)[block].unsqueeze(1) == own, -torch.inf)
                    near = product.topk(most, dim=1)
                    similarity[block, :most] = near.values
                    positions[block, :most] = there[near.indices]
        return self._retrieved(query, similarity, vectors[positions] * lengths[positions].unsqueeze(2))

    @checked
    def draw(
        self, query: Tensor, k: int, modality: str, *, exclude: Tensor | None = None, generator: torch.Generator
    ) -> Retrieved:
        """Returns k entries drawn at random for each query, weighted by similarity as those of a search are.

        Args:
            query, k, modality, exclude: as of ``search``.
            generator: draws.

        Raises:
            ValueError: as ``search``.

        Example:
            >>> memory = PrimitiveMemory(dim=2, capacity=10)
            >>> memory.add(torch.rand(5, 2), torch.arange(5), "vision")
            >>> memory.draw(torch.rand(3, 2), 2, "vision", generator=torch.Generator()).features.shape
            torch.Size([3, 2, 2])
        """
        self._check_search(query, k, modality, None, exclude)
        entries = self._entries[modality]
        vectors, place = entries.features, entries.labels
        marks, lengths = self._marks[modality][place], self._lengths[modality][place]
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            positions = torch.randint(len(vectors), (len(query), k), generator=generator).to(self._device)
            similarity = (F.normalize(query.detach().to(vectors), dim=1).unsqueeze(1) * vectors[positions]).sum(2)
            if exclude is not None:
                similarity.masked_fill_(marks[positions, 1] == exclude.to(marks).unsqueeze(1), -torch.inf)
        return self._retrieved(query, similarity, vectors[positions] * lengths[positions].unsqueeze(2))

    def _retrieved(self, query: Tensor, similarity: Tensor, features: Tensor) -> Retrieved:
        weights = (similarity / self.tau).softmax(1).nan_to_num(0.0)  # NaN: nothing is allowed
        features = features * (similarity > -torch.inf).unsqueeze(2)
        return Retrieved(features.to(query), weights.to(query))

    def _check_search(self, query: Tensor, k: int, modality: str, keys: Tensor | None, exclude: Tensor | None) -> None:
        check_one_of(self.modalities, modality=modality)
        check_dimensions(2, query=query)
        check_dimensions(1, keys=keys, exclude=exclude)
        check_length(len(query), keys=keys, exclude=exclude)
        check_labels(keys=keys)
        check_labels(exclude=exclude)
        self._check_features(query=query)
        count = len(self._entries[modality])
        if not count:
            raise ValueError(f"memory is empty: add {modality} features before you search")
        if not 1 <= k <= count:
            raise ValueError(f"k must lie in 1..{count}, the number of {modality} entries, got {k}")

    def _check_features(self, **named: Tensor) -> None:
        ((name, features),) = named.items()
        check_finite(**named)
        if not features.is_floating_point() or features.shape[1] != self.dim:
            raise ValueError(f"{name} must be real numbers (n, {self.dim}), got {features.dtype} "
                             f"{tuple(features.shape)}")  # fmt: skip
