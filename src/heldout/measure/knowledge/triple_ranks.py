"""Core: Where true triples stand when an end is looked for among all candidates: MRR and Hits, raw and filtered.

Ties count by their mean rank, so that equal scores are no better than chance; a sort would call them good or bad by
the order of the entities. Source: Bordes et al. 2013 (filtering); arXiv:2002.06914 (the mean, or realistic, rank).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_finite,
    check_has,
    check_labels,
    check_nonempty,
    check_values,
    checked,
)


class RankingMetrics(NamedTuple):
    """How well the ends of triples are found.

    Attributes:
        mrr: mean of 1 / rank over both ends of all triples.
        hits_1, hits_3, hits_10: shares of ranks of at most 1, 3 and 10.
        mean_rank: mean of the ranks.
        ranks: float64 ``(triples, 2)``: of the head and of the tail, from 1; halves where scores are tied.

    Example:
        >>> ranking_metrics(torch.tensor([[1.0, 4.0]])).mrr
        0.625
    """

    mrr: float
    hits_1: float
    hits_3: float
    hits_10: float
    mean_rank: float
    ranks: Tensor

    @checked
    def of(self, rows: Tensor) -> RankingMetrics:
        """Returns the metrics of some of the triples: a mask, bool ``(triples,)``, or their places.

        Raises:
            ValueError: no row, or one that is not there.
        """
        if rows.dtype == torch.bool:
            if rows.shape != self.ranks.shape[:1]:
                raise ValueError(f"rows must be a mask of {len(self.ranks)} triples, got shape {tuple(rows.shape)}")
        else:
            check_labels(len(self.ranks), rows=rows)
        chosen = self.ranks[rows.to(self.ranks.device)]
        if not len(chosen):
            raise ValueError("rows must choose at least one triple")
        return ranking_metrics(chosen)


@checked
def ranking_metrics(ranks: Tensor) -> RankingMetrics:
    """Returns MRR, Hits and mean of ranks.

    Args:
        ranks: of at least 1, of any shape; ``(triples, 2)`` where rows are to be chosen later.

    Raises:
        ValueError: no ranks, or some below 1 or not finite.

    Example:
        >>> found = ranking_metrics(torch.tensor([1.0, 2.0, 20.0, 10.0]))
        >>> round(found.mrr, 4), found.hits_10
        (0.4125, 0.75)
    """
    check_values(ranks=ranks)
    check_at_least(1, ranks=ranks)
    exact = ranks.double()
    first, third, tenth = (float((exact <= most).double().mean()) for most in (1, 3, 10))
    return RankingMetrics(float((1 / exact).mean()), first, third, tenth, float(exact.mean()), exact)


@checked
def rank_triples(
    model: Any,
    triples: Tensor,
    entities: Tensor,
    *,
    filter_with: Tensor | None = None,
    candidates: Tensor | None = None,
    batch_size: int = 64,
) -> RankingMetrics:
    """Returns where the head and the tail of each triple stand among the candidates for its place.

    Memory: ``batch_size`` x candidates numbers, whatever the length of the vectors; 100,000 entities stream so.

    Args:
        model: what has ``scores(known, relations, candidates, end)``, as ``heldout.nn.InductiveLinkPredictor``:
            vectors ``(n, dim)``, relations ``(n,)``, vectors ``(c, dim)``, "head" or "tail" -> scores ``(n, c)``.
        triples: int64 ``(n, 3)``: head, relation, tail.
        entities: vectors ``(entities, dim)``, as ``model.embed`` gives them.
        filter_with: true triples ``(m, 3)`` that do not count against others (filtered); default: none (raw).
        candidates: entities that are ranked, int64 ``(c,)``, with all ends of the triples; default: all.
        batch_size: triples at a time.

    Returns:
        metrics, with the ranks of both ends.

    Raises:
        ValueError: no triples, vectors or scores that are not finite, entities that are not there, or an end that is
            no candidate.

    Source: arXiv:2010.03496, section 5.1. deviation: ties share their mean rank; the official code sorts.

    Example:
        >>> from heldout.nn import BagOfWordsEncoder, InductiveLinkPredictor
        >>> model = InductiveLinkPredictor(BagOfWordsEncoder(torch.randn(20, 8)), num_relations=2)
        >>> entities = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
        >>> rank_triples(model, torch.tensor([[0, 1, 2], [3, 0, 5]]), entities).ranks.shape
        torch.Size([2, 2])
    """
    check_has("scores", model=model)
    check_dimensions(2, entities=entities)
    check_values(entities=entities)
    check_at_least(1, batch_size=batch_size)
    check_nonempty(triples=triples)
    _check_triples(len(entities), triples=triples)
    known = triples[:0] if filter_with is None else filter_with.to(triples)
    _check_triples(len(entities), filter_with=known)
    if candidates is None:
        candidates = torch.arange(len(entities))
    check_labels(len(entities), candidates=candidates)
    check_dimensions(1, candidates=candidates)
    chosen = candidates.to(entities.device).unique()
    place = torch.full((len(entities),), -1, dtype=torch.int64, device=entities.device)
    place[chosen] = torch.arange(len(chosen), device=entities.device)
    triples, known = triples.to(entities.device), known.to(entities.device)
    if bool((place[triples[:, [0, 2]]] < 0).any()):
        raise ValueError("candidates must hold both ends of each triple")
    columns = []
    with torch.no_grad():
        for end, given, wanted in (("head", 2, 0), ("tail", 0, 2)):
            true = _Known(known, given, wanted, place)
            found = [
                _ranks(
                    model.scores(entities[rows[:, given]], rows[:, 1], entities[chosen], end),
                    place[rows[:, wanted]],
                    true.of(rows),
                )
                for rows in triples.split(batch_size)
            ]
            columns.append(torch.cat(found))
    return ranking_metrics(torch.stack(columns, 1))


@checked
def new_ends(triples: Tensor, new: Tensor) -> dict[str, Tensor]:
    """Returns which triples have a new entity at their head alone, at their tail alone, or at both: masks by name.

    Args:
        triples: int64 ``(n, 3)``: head, relation, tail.
        new: entities that were not trained on, int64 ``(m,)``.

    Raises:
        ValueError: triples of another shape, or labels that are no integers.

    Example:
        >>> new_ends(torch.tensor([[0, 0, 1], [1, 0, 2], [2, 0, 3]]), torch.tensor([2, 3]))["both"]
        tensor([False, False,  True])
    """
    _check_triples(None, triples=triples)
    check_labels(new=new)
    head, tail = torch.isin(triples[:, [0, 2]], new.to(triples)).unbind(1)
    return {"head": head & ~tail, "tail": tail & ~head, "both": head & tail}


class _Known:
    """The other right answers of rows: for each question (given end, relation) a stretch of sorted triples."""

    def __init__(self, known: Tensor, given: int, wanted: int, place: Tensor) -> None:
        self.relations = int(known[:, 1].max()) + 1 if len(known) else 0
        code = known[:, given] * self.relations + known[:, 1]
        order = code.argsort()
        self.code, self.answers, self.given = code[order], place[known[order, wanted]], given

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and places of the candidates that are right."""
        code = rows[:, self.given] * self.relations + rows[:, 1]
        code = code.masked_fill(rows[:, 1] >= self.relations, -1)
        first = torch.searchsorted(self.code, code)
        counts = torch.searchsorted(self.code, code, right=True) - first
        row = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)
        start = first - (counts.cumsum(0) - counts)
        answers = self.answers[torch.arange(len(row), device=rows.device) + start[row]]
        return row[answers >= 0], answers[answers >= 0]


def _ranks(scores: Tensor, own: Tensor, others: tuple[Tensor, Tensor]) -> Tensor:
    check_finite(scores=scores)
    mine = scores.gather(1, own[:, None])
    better, equal = scores > mine, scores == mine
    better[others] = False
    equal[others] = False
    equal[torch.arange(len(own), device=own.device), own] = False
    return 1 + better.sum(1).double() + equal.sum(1).double() / 2


def _check_triples(entities: int | None, **named: Tensor) -> None:
    for name, triples in named.items():
        if triples.ndim != 2 or triples.shape[1] != 3:
            raise ValueError(f"{name} must be (n, 3), got shape {tuple(triples.shape)}")
        check_labels(**{name: triples})
        check_labels(entities, **{name: triples[:, [0, 2]]})
