"""Link prediction from descriptions: an encoder of entities, a vector for each relation, and a score of triples.

Trained so, an encoder gives useful vectors to entities that no triple of the training graph has.
Source: arXiv:2010.03496 (Daza, Cochez, Groth, "Inductive Entity Representations from Text via Link Prediction").
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heldout.errors import check_at_least, check_dimensions, check_labels, check_nonnegative, check_one_of, checked
from heldout.method import device_of, evaluating
from heldout.nn.knowledge.scorers import SCORERS, End, Scorer, candidate_scores


class InductiveLinkPredictor(nn.Module):
    """An encoder of descriptions with relation vectors and a scorer, trained to tell triples from corrupted ones.

    Args:
        encoder: from ``(ids, mask)`` to ``(n, dim)``: ``TextEntityEncoder``, ``BagOfWordsEncoder``, or one's own.
        num_relations: how many there are.
        dim: length of the vectors; default: ``encoder.dim``.
        scorer: "transe" (entities are brought to length 1 first), "distmult", "complex" or "simple".
        loss: "margin", the mean of ``max(0, 1 - s_pos + s_neg)``, or "nll", ``(mean softplus(-s_pos) + mean
            softplus(s_neg)) / 2``.
        l2: strength of the mean squared entry of heads, tails and relations, averaged over the three.

    Raises:
        ValueError: no relations, a dim below 1 or (of "complex" and "simple") odd, another scorer or loss, a negative
            l2, or an encoder that does not tell its dim.

    Source: arXiv:2010.03496, section 4; official code, ``LinkPrediction``. deviation: l2 looks at the ends of the
        triples, the official code at those of their corruptions.

    Example:
        >>> from heldout.data import in_batch_corruptions
        >>> from heldout.nn import BagOfWordsEncoder
        >>> model = InductiveLinkPredictor(BagOfWordsEncoder(torch.randn(20, 8)), num_relations=2)
        >>> ids, mask = torch.randint(20, (4, 2, 5)), torch.ones(4, 2, 5)
        >>> corrupted = in_batch_corruptions(4, 3, torch.Generator().manual_seed(0))
        >>> model.loss(ids, mask, torch.tensor([0, 1, 1, 0]), corrupted).shape
        torch.Size([])
        >>> model.embed([(ids[:, 0], mask[:, 0])]).shape
        torch.Size([4, 8])
    """

    @checked
    def __init__(
        self,
        encoder: nn.Module,
        num_relations: int,
        dim: int | None = None,
        *,
        scorer: Scorer = "transe",
        loss: Literal["margin", "nll"] = "margin",
        l2: float = 0.0,
    ) -> None:
        super().__init__()
        dim = getattr(encoder, "dim", None) if dim is None else dim
        if dim is None:
            raise ValueError("dim must be given: the encoder does not tell it")
        check_at_least(1, num_relations=num_relations, dim=dim)
        check_one_of(SCORERS, scorer=scorer)
        check_one_of(("margin", "nll"), loss=loss)
        check_nonnegative(l2=l2)
        if scorer in ("complex", "simple") and dim % 2:
            raise ValueError(f"dim must be even for {scorer}, whose vectors have two halves, got {dim}")
        self.encoder, self.scorer, self.kind, self.l2, self.dim = encoder, scorer, loss, l2, dim
        self.relations = nn.Embedding(num_relations, dim)
        nn.init.xavier_uniform_(self.relations.weight)

    @checked
    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Returns the vectors of entities ``(n, dim)``, with gradients; at length 1 for "transe".

        Args:
            ids, mask: as the encoder takes them, a row for each entity.

        Raises:
            ValueError: the encoder's vectors are not ``(n, dim)``.
        """
        vectors = self.encoder(ids, mask)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ValueError(f"dim must be that of the encoder's vectors, {tuple(vectors.shape)}, got {self.dim}")
        return F.normalize(vectors, dim=1) if self.scorer == "transe" else vectors

    @checked
    def loss(self, ids: Tensor, mask: Tensor, rels: Tensor, neg_idx: Tensor) -> Tensor:
        """Returns the loss of a batch of triples, a scalar; one pass of the encoder over the 2B descriptions.

        Args:
            ids: descriptions of heads and tails, ``(B, 2, length)`` or, of hidden states, ``(B, 2, length, width)``.
            mask: ``(B, 2, length)``.
            rels: relations, int64 ``(B,)``.
            neg_idx: int64 ``(B, n, 2)`` of ``heldout.data.in_batch_corruptions``.

        Raises:
            ValueError: shapes that do not fit, relations or places that are not there.
        """
        if ids.ndim < 3 or mask.ndim != 3 or ids.shape[1] != 2 or ids.shape[:3] != mask.shape:
            raise ValueError(
                f"ids and mask must be (batch, 2, length), got shapes {tuple(ids.shape)} and {tuple(mask.shape)}"
            )
        ends = self.encode(ids.flatten(0, 1), mask.flatten(0, 1))
        return self.loss_of_vectors(ends.unflatten(0, (-1, 2)), rels, neg_idx)

    @checked
    def loss_of_vectors(self, ends: Tensor, rels: Tensor, neg_idx: Tensor) -> Tensor:
        """Returns the loss of triples whose ends are encoded already, so that each entity is encoded once a batch.

        Args:
            ends: heads and tails, ``(B, 2, dim)``.
            rels, neg_idx: as for ``loss``.

        Raises:
            ValueError: shapes that do not fit, relations or places that are not there.
        """
        check_dimensions(3, ends=ends, neg_idx=neg_idx)
        if ends.shape[1:] != (2, self.dim):
            raise ValueError(f"ends must be (batch, 2, {self.dim}), got {tuple(ends.shape)}")
        if rels.shape != ends.shape[:1] or neg_idx.shape[::2] != (len(ends), 2):
            raise ValueError(
                f"rels and neg_idx must be ({len(ends)},) and ({len(ends)}, n, 2), got {tuple(rels.shape)} and "
                f"{tuple(neg_idx.shape)}"
            )
        check_labels(self.relations.num_embeddings, rels=rels)
        check_labels(2 * len(ends), neg_idx=neg_idx)
        score, r = SCORERS[self.scorer], self.relations(rels)
        corrupted = ends.flatten(0, 1)[neg_idx]
        positive = score(ends[:, 0], r, ends[:, 1])[:, None]
        negative = score(corrupted[:, :, 0], r[:, None], corrupted[:, :, 1])
        if self.kind == "margin":
            value = (1 - positive + negative).clamp(min=0).mean()
        else:
            value = (F.softplus(-positive).mean() + F.softplus(negative).mean()) / 2
        if self.l2:
            value = value + self.l2 * (ends[:, 0].square().mean() + ends[:, 1].square().mean() + r.square().mean()) / 3
        return value

    @checked
    def embed(self, loader: Iterable[Any]) -> Tensor:
        """Returns the vectors of all entities ``(n, dim)``, in evaluation mode and without gradients.

        Args:
            loader: pairs ``(ids, mask)``, in the order of the entities; they are moved to the model's device.

        Raises:
            ValueError: nothing in the loader.
        """
        place, found = device_of(self), list[Tensor]()
        with evaluating(self), torch.no_grad():
            for batch in loader:
                if not isinstance(batch, tuple | list) or len(batch) != 2:
                    raise TypeError(f"loader must give pairs (ids, mask), got {type(batch).__name__}")
                found.append(self.encode(*(part.to(place) for part in batch)))
        if not found:
            raise ValueError("loader must give at least one batch")
        return torch.cat(found)

    @checked
    def scores(self, known: Tensor, rels: Tensor, candidates: Tensor, end: End) -> Tensor:
        """Returns the scores of triples with each candidate in the place of an end, ``(n, candidates)``.

        Args:
            known: vectors of the other ends, ``(n, dim)``, as ``embed`` gives them.
            rels: relations, int64 ``(n,)``.
            candidates: vectors, ``(candidates, dim)``.
            end: "head" or "tail".
        """
        check_labels(self.relations.num_embeddings, rels=rels)
        return candidate_scores(self.scorer, known, self.relations(rels), candidates, end)
