"""Core: The error of a classifier on data without labels, from its probabilities alone.

Each estimate is a fraction of examples. None of them can be right under every shift: where a model is wrong and sure of
it, all of them are too low.

Source: average confidence, arXiv:1610.02136 (Hendrycks and Gimpel); average thresholded confidence (ATC),
arXiv:2201.04234 (Garg et al., ICLR 2022), equations 1 and 2; difference of confidences (DoC), arXiv:2107.03315
(Guillory et al., ICCV 2021); disagreement, arXiv:2106.13799 (Jiang et al., ICLR 2022).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from heldout.errors import checked

Certainty = Literal["confidence", "entropy"]


@checked
def average_confidence(probs: Tensor) -> float:
    """Returns the mean of the largest probability: the accuracy of a classifier that is calibrated.

    Args:
        probs: probabilities ``(n, classes)``.

    Raises:
        ValueError: not probabilities, or no examples.

    Example:
        >>> average_confidence(torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
        0.625
    """
    return _probabilities(probs).amax(1).mean().item()


@checked
def average_entropy(probs: Tensor) -> float:
    """Returns the mean entropy of the predictions in nats, from 0 to log(classes).

    Raises:
        ValueError: as ``average_confidence``.

    Example:
        >>> round(average_entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]])), 4)
        0.3466
    """
    return -_negative_entropy(_probabilities(probs)).mean().item()


@checked
def atc_error(source_probs: Tensor, source_labels: Tensor, probs: Tensor, certainty: Certainty = "confidence") -> float:
    """Returns the error that average thresholded confidence (ATC) estimates: the share less certain than a limit.

    The limit is the certainty below which as many labelled examples lie as are wrong there. Where several examples have
    exactly that certainty, they lie above it.

    Args:
        source_probs: probabilities ``(m, classes)`` of labelled examples that the model was not trained on.
        source_labels: their class indices ``(m,)``.
        probs: probabilities ``(n, classes)`` of the examples without labels.
        certainty: "confidence" is the largest probability, "entropy" the negative entropy of all.

    Raises:
        ValueError: not probabilities, no examples, labels outside the classes, or other classes than the source's.

    Example:
        >>> source = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])
        >>> atc_error(source, torch.tensor([0, 0, 1, 1]), torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
        0.5
    """
    known, labels, unknown = _both(source_probs, source_labels, probs)
    score = _CERTAINTY[certainty]
    wrong = int((known.argmax(1) != labels).sum())
    if wrong == len(known):
        return 1.0
    limit = score(known).sort().values[wrong]
    return (score(unknown) < limit).double().mean().item()


@checked
def doc_error(source_probs: Tensor, source_labels: Tensor, probs: Tensor) -> float:
    """Returns the error on labelled examples, plus how much confidence is lost between them and the others (DoC).

    It is cut to [0, 1]. Args and errors are those of ``atc_error``.

    Example:
        >>> source = torch.tensor([[0.9, 0.1], [0.7, 0.3]])
        >>> round(doc_error(source, torch.tensor([0, 0]), torch.tensor([[0.6, 0.4]])), 6)
        0.2
    """
    known, labels, unknown = _both(source_probs, source_labels, probs)
    error = (known.argmax(1) != labels).double().mean().item()
    return min(1.0, max(0.0, error + known.amax(1).mean().item() - unknown.amax(1).mean().item()))


@checked
def disagreement(first: Tensor, second: Tensor) -> float:
    """Returns how often two classifiers decide differently, an estimate of the error of either.

    It is one where both were trained alike, on different data or from different first weights, and together are
    calibrated. Equal probabilities decide for the first class.

    Args:
        first, second: probabilities ``(n, classes)`` of the same examples in the same order.

    Raises:
        ValueError: not probabilities, no examples, or shapes that differ.

    Example:
        >>> disagreement(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([[0.6, 0.4], [0.7, 0.3]]))
        0.5
    """
    one, other = _probabilities(first, "first"), _probabilities(second, "second")
    if one.shape != other.shape:
        raise ValueError(f"first and second must be of one shape, got {tuple(one.shape)} and {tuple(other.shape)}")
    return (one.argmax(1) != other.argmax(1)).double().mean().item()


def _negative_entropy(probs: Tensor) -> Tensor:
    return torch.special.xlogy(probs, probs).sum(1)


_CERTAINTY = {"confidence": lambda probs: probs.amax(1), "entropy": _negative_entropy}


def _probabilities(probs: Any, name: str = "probs") -> Tensor:
    probs = torch.as_tensor(probs).detach().to("cpu", torch.float64)
    if probs.ndim != 2 or not probs.numel():
        raise ValueError(f"{name} must be probabilities (n, classes), got shape {tuple(probs.shape)}")
    if not ((probs >= 0).all() and ((probs.sum(1) - 1).abs() < 1e-2).all()):
        raise ValueError(f"each row of {name} must be non-negative and sum to 1: apply softmax to logits first")
    return probs


def _both(source_probs: Any, source_labels: Any, probs: Any) -> tuple[Tensor, Tensor, Tensor]:
    known, unknown = _probabilities(source_probs, "source_probs"), _probabilities(probs)
    labels = torch.as_tensor(source_labels).detach().cpu()
    if labels.shape != known.shape[:1] or labels.is_floating_point():
        raise ValueError(f"source_labels must be {len(known)} class indices, got shape {tuple(labels.shape)}")
    if int(labels.min()) < 0 or int(labels.max()) >= known.shape[1]:
        raise ValueError(f"source_labels must be class indices in 0..{known.shape[1] - 1}")
    if known.shape[1] != unknown.shape[1]:
        raise ValueError(f"probs must have the {known.shape[1]} classes of source_probs, got {unknown.shape[1]}")
    return known, labels, unknown
