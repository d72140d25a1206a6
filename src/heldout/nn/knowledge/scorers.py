"""Core: Scores of triples (head, relation, tail) from their vectors: TransE, DistMult, ComplEx and SimplE.

The larger a score, the likelier the triple. ``candidate_scores`` scores one end against very many entities: one matrix
product, of TransE one matrix of L1 distances; a tensor of rows x candidates x dim is never made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from heldout.errors import check_dimensions, check_nonempty, check_one_of, check_same_length, checked

Scorer = Literal["transe", "distmult", "complex", "simple"]
End = Literal["head", "tail"]


@checked
def score_transe(h: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """Returns ``-||h + r - t||_1`` of vectors ``(..., dim)`` that broadcast, ``(...)``; 0 is the best.

    Args:
        h, r, t: heads, relations and tails; entities are brought to length 1 first by who trains them.

    Raises:
        ValueError: vectors of different lengths.

    Source: Bordes et al. 2013; arXiv:2010.03496, table 1 (with the L1 norm, as in its code).

    Example:
        >>> score_transe(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.5]))
        tensor(-0.5000)
    """
    _check_vectors(h, r, t)
    return -(h + r - t).abs().sum(-1)


@checked
def score_distmult(h: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """Returns ``sum(h * r * t)`` of vectors ``(..., dim)`` that broadcast, ``(...)``: the same for either direction.

    Args:
        h, r, t: heads, relations and tails.

    Raises:
        ValueError: vectors of different lengths.

    Source: Yang et al. (arXiv:1412.6575).

    Example:
        >>> score_distmult(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0]), torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
        tensor([5., 2.])
    """
    _check_vectors(h, r, t)
    return (h * r * t).sum(-1)


@checked
def score_complex(h: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """Returns ``Re(sum(h * r * conj(t)))`` of vectors ``(..., dim)``, whose halves are real and imaginary parts.

    Args:
        h, r, t: heads, relations and tails, which broadcast.

    Raises:
        ValueError: vectors of different or odd lengths.

    Source: Trouillon et al. (arXiv:1606.06357), eq. 11.

    Example:
        >>> i = torch.tensor([0.0, 1.0])
        >>> one = torch.tensor([1.0, 0.0])
        >>> score_complex(one, i, i), score_complex(i, i, one)
        (tensor(1.), tensor(-1.))
    """
    _check_halves(h, r, t)
    (h_re, h_im), (r_re, r_im), (t_re, t_im) = (each.chunk(2, -1) for each in (h, r, t))
    return (r_re * (h_re * t_re + h_im * t_im) + r_im * (h_re * t_im - h_im * t_re)).sum(-1)


@checked
def score_simple(h: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """Returns SimplE's score of vectors ``(..., dim)``: halves are the entity as a head and as a tail.

    The mean of two DistMults: ``sum(h_head * r_forward * t_tail)`` and ``sum(t_head * r_backward * h_tail)``.

    Args:
        h, r, t: heads, relations and tails, which broadcast.

    Raises:
        ValueError: vectors of different or odd lengths.

    Source: Kazemi, Poole (arXiv:1802.04868).

    Example:
        >>> h, r, t = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0]), torch.tensor([7.0, 11.0])
        >>> score_simple(h, r, t)  # (1 * 3 * 11 + 7 * 5 * 2) / 2
        tensor(51.5000)
    """
    _check_halves(h, r, t)
    (h_head, h_tail), (forth, back), (t_head, t_tail) = (each.chunk(2, -1) for each in (h, r, t))
    return (h_head * forth * t_tail + t_head * back * h_tail).sum(-1) / 2


SCORERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "transe": score_transe,
    "distmult": score_distmult,
    "complex": score_complex,
    "simple": score_simple,
}
"""The scorers by name; each takes heads, relations and tails."""


@checked
def candidate_scores(scorer: Scorer, known: Tensor, relations: Tensor, candidates: Tensor, end: End) -> Tensor:
    """Returns the scores of triples with every candidate in the place of an end, ``(n, candidates)``.

    The scores of the functions above but for rounding. Memory: the answer, and no more than the vectors.

    Args:
        scorer: "transe", "distmult", "complex" or "simple".
        known: the other end's vectors, ``(n, dim)``.
        relations: their vectors, ``(n, dim)``.
        candidates: ``(candidates, dim)``.
        end: which one is looked for, "head" or "tail".

    Raises:
        ValueError: another scorer or end, shapes that do not fit, an odd dim for "complex" or "simple".

    Example:
        >>> h, r, entities = torch.randn(2, 4), torch.randn(2, 4), torch.randn(5, 4)
        >>> found = candidate_scores("complex", h, r, entities, "tail")
        >>> torch.allclose(found, score_complex(h[:, None], r[:, None], entities), atol=1e-5)
        True
    """
    check_one_of(SCORERS, scorer=scorer)
    check_one_of(("head", "tail"), end=end)
    check_dimensions(2, known=known, relations=relations, candidates=candidates)
    check_same_length(known=known, relations=relations)
    if not known.shape[1] == relations.shape[1] == candidates.shape[1]:
        widths = [each.shape[1] for each in (known, relations, candidates)]
        raise ValueError(f"known, relations and candidates must have vectors of one length, got {widths}")
    if scorer == "transe":
        wanted = known + relations if end == "tail" else known - relations
        return -torch.cdist(wanted, candidates, p=1)
    return _query(scorer, known, relations, end) @ candidates.T


def _query(scorer: Scorer, known: Tensor, relations: Tensor, end: End) -> Tensor:
    """The vector whose inner product with a candidate is its score: all but TransE are linear in each end."""
    if scorer == "distmult":
        return known * relations
    _check_halves(known, relations, known)
    (a, b), (p, q) = known.chunk(2, -1), relations.chunk(2, -1)
    if scorer == "simple":
        return torch.cat([q * b, p * a] if end == "tail" else [p * b, q * a], -1) / 2
    if end == "tail":
        return torch.cat([p * a - q * b, p * b + q * a], -1)
    return torch.cat([p * a + q * b, p * b - q * a], -1)


def _check_vectors(h: Tensor, r: Tensor, t: Tensor) -> None:
    check_dimensions(*range(1, 9), h=h, r=r, t=t)
    check_nonempty(h=h, r=r, t=t)
    if not h.shape[-1] == r.shape[-1] == t.shape[-1]:
        raise ValueError(f"h, r and t must have vectors of one length, got {[x.shape[-1] for x in (h, r, t)]}")


def _check_halves(h: Tensor, r: Tensor, t: Tensor) -> None:
    _check_vectors(h, r, t)
    if h.shape[-1] % 2:
        raise ValueError(f"h, r and t must have vectors of even length, with two halves, got {h.shape[-1]}")
