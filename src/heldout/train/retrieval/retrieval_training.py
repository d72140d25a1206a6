"""Training beside retrieved primitives: words and regions that mean the same are mixed in, and the answer stays.

Source: arXiv:2505.23045 (Li et al., IJCAI 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.data import split_target
from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_has,
    check_labels,
    check_nonnegative,
    check_one_of,
    check_same_length,
    checked,
)
from heldout.method import evaluating
from heldout.train.retrieval.primitive_memory import PrimitiveMemory


class PrimitiveSet(NamedTuple):
    """Which positions of a batch hold a primitive: an entity, an attribute or a relation. A position may hold several.

    Attributes:
        rows, positions: int64 ``(primitives,)``, of the features ``(batch, length, dim)``.
        keys: int64 ``(primitives,)``, what each one is; the same number for the word and for what is seen.
        modalities: int64 ``(primitives,)``, positions in the memory's modalities.
        samples: int64 ``(batch,)``, numbers of the examples.

    Example:
        >>> rows, words, key = torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([7, 7])
        >>> found = PrimitiveSet(rows, positions=torch.tensor([2, 0]), keys=key, modalities=words, samples=rows)
        >>> torch.arange(6.0).view(2, 3, 1)[found.rows, found.positions]
        tensor([[2.],
                [3.]])
    """

    rows: Tensor
    positions: Tensor
    keys: Tensor
    modalities: Tensor
    samples: Tensor


class RetrievalAugmentedTraining:
    """The loss of a model on its features and on the same features with retrieved ones mixed in.

    For each primitive feature ``f`` the k most similar entries of its key are taken from each database, but for those
    of the same example; ``r`` is the mean over the databases of their weighted means, and
    ``f' = (1 - mix) f + mix r`` stands in its place. The loss is ``loss(f) + weight loss(f') + consistency
    KL(p(f) || p(f'))``; what was retrieved is a constant. At inference the model is used as it is.

    A position that holds several primitives takes the mean of what they retrieve; one for which nothing is there stays
    as it is. Costs one more pass of ``answer``, and the search.

    Args:
        model: has ``encode(batch)``, which returns what enters the fusion of words and regions ``(batch, length,
            dim)``, and ``answer(features, batch)``, which returns logits or an output that has them as ``logits``;
            ``EmbeddingReplacement`` makes one of a transformers model.
        memory: the databases.
        primitives: from a batch to what it holds.
        mix: of what is retrieved, in [0, 1]; at 0 the loss is the model's own.
        weight: of the loss on mixed features.
        k: entries from each database; fewer while there are fewer.
        databases: "all", or only that of the primitive's "own" modality.
        retrieval: "key" takes the most similar entries of the same key, "similarity" the most similar ones of any, and
            "random" some entries, with means rescaled to the length that those of "key" have: the control.
        consistency: of the Kullback-Leibler term.
        warm_up: steps at the start that only fill the databases.
        queue: whether each step adds its features. False: call ``refresh`` before each epoch.
        objective: ``(outputs, batch) -> scalar``; None is the model's own ``objective``, or else cross-entropy with
            the batch's target.
        seed: of random retrieval.

    Raises:
        ValueError: a model without the two parts, or numbers out of range.

    Source: arXiv:2505.23045; the equations are inferred from its summaries. Deviations: no gradient flows into the
    weights; a queue of features as they were, without a momentum encoder; the first loss alone while ``warm_up``.

    Example:
        >>> class Sums(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.words, self.out = torch.nn.Embedding(5, 4), torch.nn.Linear(4, 2)
        ...     def encode(self, batch):
        ...         return self.words(batch[0])
        ...     def answer(self, features, batch):
        ...         return self.out(features.sum(1))
        >>> def primitives(batch):
        ...     rows, positions = (batch[0] > 0).nonzero().unbind(1)
        ...     return PrimitiveSet(rows, positions, batch[0][rows, positions], torch.zeros_like(rows), batch[1])
        >>> batch = torch.tensor([[1, 2], [2, 3]]), torch.tensor([10, 11]), torch.tensor([0, 1])
        >>> training = RetrievalAugmentedTraining(Sums(), PrimitiveMemory(4, 100, ["language"]), primitives)
        >>> for _ in range(2):
        ...     training.step(batch).backward()
        >>> training.memory.count("language")
        8
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        memory: PrimitiveMemory,
        primitives: Callable[[Any], PrimitiveSet],
        mix: float = 0.3,
        weight: float = 1.0,
        *,
        k: int = 8,
        databases: Literal["all", "own"] = "all",
        retrieval: Literal["key", "similarity", "random"] = "key",
        consistency: float = 0.0,
        warm_up: int = 0,
        queue: bool = True,
        objective: Callable[[Any, Any], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        check_has("encode", "answer", model=model)
        check_nonnegative(weight=weight, consistency=consistency)
        check_at_least(1, k=k)
        check_at_least(0, warm_up=warm_up, seed=seed)
        check_one_of(("all", "own"), databases=databases)
        check_one_of(("key", "similarity", "random"), retrieval=retrieval)
        if not 0 <= mix <= 1:
            raise ValueError(f"mix must lie in [0, 1], got {mix}")
        self.model: Any = model
        self.memory, self.primitives, self.mix, self.weight = memory, primitives, mix, weight
        self.k, self.databases, self.retrieval, self.consistency = k, databases, retrieval, consistency
        self.warm_up, self.queue, self.steps = warm_up, queue, 0
        self.objective = objective or getattr(model, "objective", None) or _cross_entropy
        self._generator = torch.Generator().manual_seed(seed)

    @checked
    def step(self, batch: Any) -> Tensor:
        """Returns the loss of a batch, with gradients to the model, and stores the batch's primitives.

        Raises:
            ValueError: primitives out of range, or a loss that is no scalar.
            FloatingPointError: a loss that is not finite.
        """
        features = self.model.encode(batch)
        outputs = self.model.answer(features, batch)
        loss = self.objective(outputs, batch)
        found = self._checked_primitives(batch, features)
        self.steps += 1
        if self.mix and self.steps > self.warm_up and any(map(self.memory.count, self.memory.modalities)):
            mixed = self.model.answer(self.mixed(features, found), batch)
            loss = loss + self.weight * self.objective(mixed, batch)
            if self.consistency:
                loss = loss + self.consistency * _divergence(_logits(outputs), _logits(mixed))
        if self.queue:
            self._store(features, found)
        if not torch.isfinite(loss).all():
            raise FloatingPointError(f"the loss is {loss.detach()} in step {self.steps}")
        return loss

    @checked
    def mixed(self, features: Tensor, found: PrimitiveSet) -> Tensor:
        """Returns the features with what is retrieved for their primitives mixed in, ``(batch, length, dim)``.

        Args:
            features: as of the model's ``encode``.
            found: their primitives.

        Raises:
            ValueError: primitives out of range, or an empty memory.
        """
        self._check_set(features, found)
        if not any(map(self.memory.count, self.memory.modalities)):
            raise ValueError("memory is empty: call step or refresh before you mix")
        query = features.detach()[found.rows, found.positions]
        retrieved, filled = self._retrieved(query, found)
        batch, length, dim = features.shape
        place = found.rows * length + found.positions
        total = query.new_zeros(batch * length, dim).index_add_(0, place, retrieved)
        count = query.new_zeros(batch * length).index_add_(0, place, filled.to(query)).unsqueeze(1)
        mean = (total / count.clamp(min=1)).view_as(features)
        share = self.mix * (count > 0).to(query).view(batch, length, 1)
        return (1 - share) * features + share * mean

    @checked
    def refresh(self, batches: Iterable[Any]) -> None:
        """Empties the databases and fills them with the primitives of batches, as the model encodes them now.

        Args:
            batches: of the training set; the model is in evaluation mode meanwhile.

        Raises:
            ValueError: primitives out of range.
        """
        self.memory.clear()
        with evaluating(self.model), torch.no_grad():
            for batch in batches:
                features = self.model.encode(batch)
                self._store(features, self._checked_primitives(batch, features))

    def _retrieved(self, query: Tensor, found: PrimitiveSet) -> tuple[Tensor, Tensor]:
        """For each primitive the mean over databases ``(primitives, dim)``, and whether there is one."""
        total, parts = torch.zeros_like(query), query.new_zeros(len(query))
        exclude = found.samples[found.rows]
        for number, modality in enumerate(self.memory.modalities):
            if not self.memory.count(modality):
                continue
            chosen = found.modalities == number if self.databases == "own" else torch.ones_like(found.rows).bool()
            k = min(self.k, self.memory.count(modality))
            near = self.memory.search(
                query[chosen], k, modality, exclude=exclude[chosen],
                keys=None if self.retrieval == "similarity" else found.keys[chosen],
            )  # fmt: skip
            mean = near.mean
            if self.retrieval == "random":
                drawn = self.memory.draw(
                    query[chosen], k, modality, exclude=exclude[chosen], generator=self._generator
                ).mean
                mean = F.normalize(drawn, dim=1) * mean.norm(dim=1, keepdim=True)
            total[chosen] += mean
            parts[chosen] += near.weights.sum(1).round()
        return total / parts.clamp(min=1).unsqueeze(1), parts > 0

    def _store(self, features: Tensor, found: PrimitiveSet) -> None:
        for number, modality in enumerate(self.memory.modalities):
            own = found.modalities == number
            if own.any():
                rows = found.rows[own]
                self.memory.add(
                    features.detach()[rows, found.positions[own]], found.keys[own], modality, found.samples[rows]
                )

    def _checked_primitives(self, batch: Any, features: Tensor) -> PrimitiveSet:
        found = self.primitives(batch)
        self._check_set(features, found)
        return found

    def _check_set(self, features: Tensor, found: PrimitiveSet) -> None:
        check_dimensions(3, features=features)
        batch, length, _ = features.shape
        if not isinstance(found, PrimitiveSet):
            raise TypeError(f"primitives must return a PrimitiveSet, got {type(found).__name__}")
        check_dimensions(1, rows=found.rows, positions=found.positions, keys=found.keys, modalities=found.modalities)
        check_same_length(rows=found.rows, positions=found.positions, keys=found.keys, modalities=found.modalities)
        check_same_length(samples=found.samples, features=features)
        check_labels(batch, rows=found.rows)
        check_labels(length, positions=found.positions)
        check_labels(len(self.memory.modalities), modalities=found.modalities)
        check_labels(keys=found.keys)
        check_labels(samples=found.samples)


def _cross_entropy(outputs: Any, batch: Any) -> Tensor:
    return F.cross_entropy(_logits(outputs), split_target(batch)[1])


def _logits(outputs: Any) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs.logits


def _divergence(own: Tensor, mixed: Tensor) -> Tensor:
    """KL(p(own) || p(mixed)), the mean over all but the last axis."""
    before, after = own.log_softmax(-1), mixed.log_softmax(-1)
    return (before.exp() * (before - after)).sum(-1).mean()
