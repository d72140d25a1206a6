"""Core: PrototypeClassifier: a class is the mean of its embeddings; it learns a new one without a gradient.

Sources: arXiv:1703.05175 (Snell et al., prototypes), arXiv:1804.09458 (Gidaris and Komodakis, cosine logits).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import (
    check_dimensions,
    check_finite,
    check_labels,
    check_nonempty,
    check_positive,
    check_same_length,
    checked,
)


class PrototypeClassifier:
    """Logits ``scale * cos(z, prototype_c)``, where the prototype of a class is the mean of its normalised embeddings.

    Holds a sum and a count for each class and no embedding of any example. It is no module: nothing in it is trained,
    and gradients flow through the embeddings alone.

    Args:
        scale: above 0, of the cosines: the inverse temperature.

    Attributes:
        counts: int64 ``(classes,)``, embeddings that were taken in by class; a class without any has logit -inf.

    Raises:
        ValueError: a scale that is not above 0.

    Source: arXiv:1703.05175, equation 1, of embeddings of length 1; arXiv:1804.09458, section 3.2.

    Example:
        >>> classifier = PrototypeClassifier(scale=10.0)
        >>> classifier.update(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1]))
        >>> classifier.logits(torch.tensor([[5.0, 0.0]]))
        tensor([[10.,  0.]])
    """

    @checked
    def __init__(self, scale: float = 10.0) -> None:
        check_positive(scale=scale)
        self.scale = scale
        self.counts = torch.zeros(0, dtype=torch.int64)
        self._sums = torch.zeros(0, 0)

    @property
    def prototypes(self) -> Tensor:
        """Mean of the normalised embeddings of each class, ``(classes, dim)``; 0 for a class without any."""
        return self._sums / self.counts.clamp(min=1).unsqueeze(1)

    @checked
    def update(self, z: Tensor, y: Tensor) -> None:
        """Takes embeddings ``(batch, dim)`` of classes ``(batch,)`` into the means; classes may be new.

        Raises:
            ValueError: shapes that do not fit, no embedding, values that are not finite, labels below 0.
        """
        sums, counts = self._totals(z.detach(), y)
        classes = len(counts)
        if len(self.counts) < classes:
            more = classes - len(self.counts)
            self._sums = torch.cat([self._sums.reshape(-1, z.shape[1]).to(z.device), sums.new_zeros(more, z.shape[1])])
            self.counts = torch.cat([self.counts.to(z.device), counts.new_zeros(more)])
        self._sums[:classes] += sums.to(self._sums)
        self.counts[:classes] += counts

    @checked
    def logits(self, z: Tensor, *, fresh: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Returns logits ``(batch, classes)``, with the gradient of z.

        Args:
            z: embeddings, ``(batch, dim)``; their length does not matter.
            fresh: embeddings and classes, as of ``update``, from which the prototypes of those classes are computed in
                the place of what is kept, with their gradient; nothing is kept of them.

        Raises:
            ValueError: shapes that do not fit, no class at all, values in ``fresh`` that are not finite.
        """
        prototypes, counts = self.prototypes, self.counts
        if fresh is not None:
            prototypes, counts = self._with(*fresh)
        check_dimensions(2, z=z)
        if not len(counts):
            raise ValueError("update must come before logits: there is no class yet")
        if z.shape[1] != prototypes.shape[1]:
            raise ValueError(f"z must hold {prototypes.shape[1]} numbers for each example, got {z.shape[1]}")
        cosines = F.normalize(z, dim=1) @ F.normalize(prototypes.to(z), dim=1).T
        return (self.scale * cosines).masked_fill(counts.to(z.device) == 0, -torch.inf)

    @checked
    def predict(self, z: Tensor) -> Tensor:
        """Returns the nearest prototype's class of each embedding, int64 ``(batch,)``; errors as ``logits``."""
        return self.logits(z).argmax(1)

    @checked
    def forget(self, classes: Tensor) -> None:
        """Forgets what was taken in of some classes, int64 ``(classes,)``; of those that are not known there is none.

        Raises:
            ValueError: class numbers below 0.
        """
        check_labels(classes=classes)
        known = classes[classes < len(self.counts)].to(self.counts.device)
        self.counts[known] = 0
        self._sums[known] = 0

    def state_dict(self) -> dict[str, Any]:
        """Returns what a restart needs."""
        return {"counts": self.counts, "sums": self._sums}

    @checked
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what ``state_dict`` returned."""
        self.counts, self._sums = state["counts"].clone(), state["sums"].clone()

    def _totals(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of normalised embeddings and counts, by class."""
        check_dimensions(2, z=z)
        check_same_length(z=z, y=y)
        check_dimensions(1, y=y)
        check_nonempty(z=z)
        check_finite(z=z)
        check_labels(y=y)
        if len(self.counts) and z.shape[1] != self._sums.shape[1]:
            raise ValueError(f"z must hold {self._sums.shape[1]} numbers for each example, got {z.shape[1]}")
        if int(y.max()) > _MOST_CLASSES:
            raise ValueError(f"y must be class numbers up to {_MOST_CLASSES}, got {int(y.max())}")
        counts = torch.bincount(y.to(z.device))
        zeros = z.new_zeros(len(counts), z.shape[1])
        return zeros.index_add(0, y.to(z.device), F.normalize(z, dim=1)), counts

    def _with(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        sums, counts = self._totals(z, y)
        classes = max(len(counts), len(self.counts))
        counts = F.pad(counts, (0, classes - len(counts)))
        fresh = F.pad(sums, (0, 0, 0, classes - len(sums))) / counts.clamp(min=1).unsqueeze(1)
        kept = F.pad(self.prototypes.reshape(-1, z.shape[1]).to(z), (0, 0, 0, classes - len(self.counts)))
        kept_counts = F.pad(self.counts.to(z.device), (0, classes - len(self.counts)))
        return torch.where(counts.unsqueeze(1) > 0, fresh, kept), torch.where(counts > 0, counts, kept_counts)


_MOST_CLASSES = 100_000
