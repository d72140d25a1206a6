"""Core: Losses that make several hypotheses, all right on the labelled data, differ on unlabelled data.

Source: arXiv:2202.03418 (DivDis, Lee et al., ICLR 2023) and arXiv:2202.04414 (D-BAT, Pagliardini et al., ICLR 2023),
the two methods that arXiv:2312.16313 studies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from heldout.errors import checked

_EPS = 1e-7
_TOLERANCE = 1e-3


@checked
def divdis_mi(probs: Tensor) -> Tensor:
    """Returns the mutual information between the predictions of two hypotheses, in nats, averaged over the pairs.

    The joint distribution of a pair is the batch mean of the outer products of their probabilities; hypotheses that
    are independent over the batch give 0, equal ones that are certain and uniform over C classes ln C. The estimate
    is biased upwards for batches below about 64. One product of ``(K C, batch)`` with its transpose.
    deviation: the mean over the K (K - 1) / 2 pairs, as in the authors' code, not the paper's sum over ordered pairs,
    so that a weight means the same for every K.

    Args:
        probs: probabilities ``(batch, hypotheses, classes)`` with at least 2 hypotheses, on unlabelled data.

    Raises:
        ValueError: another shape, an empty batch, fewer than 2 hypotheses, or values that are no probabilities.

    Source: arXiv:2202.03418, the mutual information loss.

    Example:
        >>> certain = torch.eye(2).repeat(8, 1)
        >>> round(divdis_mi(torch.stack([certain, certain], dim=1)).item(), 4)
        0.6931
    """
    _check_hypotheses(probs, "probs")
    batch, hypotheses, classes = probs.shape
    flat = probs.reshape(batch, hypotheses * classes)
    joint = (flat.T @ flat / batch).view(hypotheses, classes, hypotheses, classes)
    marginal = probs.mean(0)
    first, second = torch.triu_indices(hypotheses, hypotheses, 1, device=probs.device)
    joint = joint[first, :, second, :]
    independent = marginal[first].unsqueeze(2) * marginal[second].unsqueeze(1)
    return (joint * (_log(joint) - _log(independent))).sum(dim=(1, 2)).mean()


@checked
def prior_match(probs: Tensor, prior: Tensor | None = None) -> Tensor:
    """Returns ``sum_k KL(batch mean of hypothesis k || prior)``, in nats: no hypothesis may become constant.

    Args:
        probs: probabilities ``(batch, hypotheses, classes)``, on unlabelled data.
        prior: class frequencies ``(classes,)``, those of the labelled data; uniform by default.

    Raises:
        ValueError: shapes that do not match, an empty batch, or values that are no probabilities.

    Source: arXiv:2202.03418, the regularization loss.

    Example:
        >>> round(prior_match(torch.tensor([[[1.0, 0.0]]])).item(), 4)
        0.6931
    """
    _check_hypotheses(probs, "probs", at_least=1)
    classes = probs.shape[2]
    if prior is None:
        prior = probs.new_full((classes,), 1 / classes)
    if prior.shape != (classes,):
        raise ValueError(f"prior must have one entry for each of the {classes} classes, got {tuple(prior.shape)}")
    _check_probabilities(prior, "prior")
    marginal = probs.mean(0)
    return (marginal * (_log(marginal) - _log(prior.to(marginal)))).sum()


@checked
def dbat_disagreement(p_new: Tensor, p_old: Tensor) -> Tensor:
    """Returns how much a new hypothesis agrees with the earlier ones, ``-log P(disagree)``, averaged over all.

    With c the class that an earlier hypothesis predicts and p its probability for each, the two disagree on c with
    probability ``p_old (1 - p_new) + p_new (1 - p_old)``; 1e-7 is added inside the logarithm. No gradient goes to the
    earlier hypotheses. 0 where they disagree for certain, ln 2 where either is at 1/2, 16.1 where they agree.

    Args:
        p_new: probabilities ``(batch, classes)`` of the hypothesis being trained, on unlabelled data.
        p_old: probabilities ``(batch, earlier hypotheses, classes)``.

    Raises:
        ValueError: shapes that do not match, an empty batch, or values that are no probabilities.

    Source: arXiv:2202.04414, and its form for several classes in the authors' code.

    Example:
        >>> old = torch.tensor([[[1.0, 0.0]]])
        >>> [round(dbat_disagreement(torch.tensor([[p, 1 - p]]), old).item(), 2) for p in (0.1, 0.5, 1.0)]
        [0.11, 0.69, 16.12]
    """
    _check_hypotheses(p_old, "p_old", at_least=1)
    if p_new.shape != (p_old.shape[0], p_old.shape[2]):
        raise ValueError(
            f"p_new must be (batch, classes) = {(p_old.shape[0], p_old.shape[2])} for p_old of shape "
            f"{tuple(p_old.shape)}, got {tuple(p_new.shape)}"
        )
    _check_probabilities(p_new, "p_new")
    old, predicted = p_old.detach().max(2)
    new = p_new.gather(1, predicted)
    return -(old * (1 - new) + new * (1 - old) + _EPS).log().mean()


def _log(values: Tensor) -> Tensor:
    return values.clamp(min=torch.finfo(values.dtype).tiny).log()


def _check_hypotheses(probs: Tensor, name: str, at_least: int = 2) -> None:
    if probs.ndim != 3 or not len(probs) or probs.shape[2] < 2:
        raise ValueError(
            f"{name} must be (batch, hypotheses, classes), not empty and with 2 or more classes, "
            f"got {tuple(probs.shape)}"
        )
    if probs.shape[1] < at_least:
        raise ValueError(f"{name} must hold at least {at_least} hypotheses, got {probs.shape[1]}")
    _check_probabilities(probs, name)


def _check_probabilities(probs: Tensor, name: str) -> None:
    with torch.no_grad():
        total = probs.sum(-1)
        low, off = probs.amin(), (total - 1).abs().amax()
        if not (low >= -_TOLERANCE and off <= _TOLERANCE):
            raise ValueError(
                f"{name} must hold probabilities that sum to one over the last axis, got values from {low.item():.3g} "
                f"and sums up to {off.item():.3g} away from one: softmax the logits first"
            )
