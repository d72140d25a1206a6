"""Core: Calibration and confidence ranking of a classifier's probabilities.

All functions take probabilities ``(n, classes)`` and class indices ``(n,)``, compute in float64, and do not depend
on the order of the examples: equal confidences are treated as one group. Values are fractions, where papers often
print percent (ECE) or thousandths (AURC).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import checked

Scheme = Literal["width", "mass"]


@dataclass(frozen=True)
class ReliabilityBin:
    """One row of a reliability table: examples whose confidence lies in ``(lower, upper]``.

    Attributes:
        lower, upper: edges of the bin, in [0, 1].
        count: examples in it, at least 1.
        confidence: mean of their largest probabilities.
        accuracy: share of them that are right.

    Example:
        >>> row = reliability_table(torch.tensor([[0.25, 0.75], [0.25, 0.75]]), torch.tensor([0, 1]), bins=2)[0]
        >>> row
        ReliabilityBin(lower=0.5, upper=1.0, count=2, confidence=0.75, accuracy=0.5)
    """

    lower: float
    upper: float
    count: int
    confidence: float
    accuracy: float


@checked
def expected_calibration_error(probs: Tensor, labels: Tensor, bins: int = 10, scheme: Scheme = "width") -> float:
    """Returns the mean of |accuracy - confidence| over bins of the largest probability, weighted by their counts.

    Args:
        probs: probabilities ``(n, classes)``.
        labels: class indices ``(n,)``.
        bins: number of bins.
        scheme: "width" for equal-width bins ``(lower, upper]``, "mass" for bins with equally many examples.

    Raises:
        ValueError: not probabilities, labels outside the classes, no examples, bins below 1.

    Example:
        >>> probs = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.0, 1.0]])
        >>> expected_calibration_error(probs, torch.tensor([0, 1, 1]))
        0.1666...
    """
    table = reliability_table(probs, labels, bins, scheme)
    return sum(row.count * abs(row.accuracy - row.confidence) for row in table) / sum(row.count for row in table)


@checked
def reliability_table(probs: Tensor, labels: Tensor, bins: int = 10, scheme: Scheme = "width") -> list[ReliabilityBin]:
    """Returns the bins that hold at least one example, by rising confidence.

    A bin is ``(lower, upper]``; confidence 0 belongs to the first. With scheme "mass" the edges are quantiles of
    the confidences, and bins that ties make empty are left out.

    Args:
        probs, labels, bins, scheme: as ``expected_calibration_error``.

    Raises:
        ValueError: as ``expected_calibration_error``.

    Example:
        >>> probs = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.0, 1.0]])
        >>> [(row.count, row.confidence, row.accuracy) for row in reliability_table(probs, torch.tensor([0, 1, 1]))]
        [(2, 0.75, 0.5), (1, 1.0, 1.0)]
    """
    confidence, correct = _confidence_and_correctness(probs, labels)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if scheme == "width":
        edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    elif scheme == "mass":
        ends = torch.arange(1, bins) * len(confidence) // bins - 1
        quantiles = confidence.sort().values[ends.clamp(min=0)]
        edges = torch.cat([quantiles.new_zeros(1), quantiles, quantiles.new_ones(1)])
    else:
        raise ValueError(f'scheme must be "width" or "mass", got {scheme!r}')
    member = torch.bucketize(confidence, edges[1:-1])
    counts = member.bincount(minlength=bins)
    confidences = member.bincount(confidence, minlength=bins) / counts
    accuracies = member.bincount(correct, minlength=bins) / counts
    return [
        ReliabilityBin(
            edges[b].item(), edges[b + 1].item(), int(counts[b]), confidences[b].item(), accuracies[b].item()
        )
        for b in range(bins)
        if counts[b]
    ]


@checked
def risk_coverage_curve(probs: Tensor, labels: Tensor) -> Tensor:
    """Returns float64 ``(n,)``: the error rate among the j+1 most confident examples.

    Within a group of equal confidence it is the expectation over all orders of the group.

    Args:
        probs: probabilities ``(n, classes)``.
        labels: class indices ``(n,)``.

    Raises:
        ValueError: not probabilities, labels outside the classes, no examples.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]])
        >>> risk_coverage_curve(probs, torch.tensor([1, 0, 0]))  # the most confident one is wrong
        tensor([1.0000, 0.5000, 0.3333], dtype=torch.float64)
    """
    confidence, correct = _confidence_and_correctness(probs, labels)
    _, group, counts = (-confidence).unique(return_inverse=True, return_counts=True)
    error_rate = group.bincount(1 - correct) / counts
    errors = error_rate.repeat_interleave(counts).cumsum(0)
    return errors / torch.arange(1, len(errors) + 1)


@checked
def aurc(probs: Tensor, labels: Tensor) -> float:
    """Returns the area under the risk-coverage curve: the mean error rate over all coverages 1/n, ..., 1.

    Args:
        probs: probabilities ``(n, classes)``.
        labels: class indices ``(n,)``.

    Source: Geifman et al., arXiv:1805.08206.

    Raises:
        ValueError: not probabilities, labels outside the classes, no examples.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
        >>> aurc(probs, torch.tensor([0, 0])), eaurc(probs, torch.tensor([0, 0]))
        (0.25, 0.0)
    """
    return risk_coverage_curve(probs, labels).mean().item()


@checked
def eaurc(probs: Tensor, labels: Tensor) -> float:
    """Returns the excess AURC: AURC minus that of the best ranking of the same predictions, which errs last.

    Args:
        probs: probabilities ``(n, classes)``.
        labels: class indices ``(n,)``.

    Source: Geifman et al., arXiv:1805.08206, with the exact optimum instead of its integral approximation.

    Raises:
        ValueError: not probabilities, labels outside the classes, no examples.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
        >>> aurc(probs, torch.tensor([1, 0])), eaurc(probs, torch.tensor([1, 0]))  # the best order reaches 0.25
        (0.75, 0.5)
    """
    _, correct = _confidence_and_correctness(probs, labels)
    n, errors = len(correct), int(len(correct) - correct.sum())
    j = torch.arange(1, errors + 1, dtype=torch.float64)
    optimum = (j / (n - errors + j)).sum().item() / n
    return max(aurc(probs, labels) - optimum, 0.0)


@checked
def nll(probs: Tensor, labels: Tensor) -> float:
    """Returns the mean negative log-likelihood of the labels, in nats; infinite where a label has probability 0.

    Args:
        probs: probabilities ``(n, classes)``.
        labels: class indices ``(n,)``.

    Raises:
        ValueError: not probabilities, labels outside the classes, no examples.

    Example:
        >>> nll(torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
        0.6931...
    """
    probs, labels = _validated(probs, labels)
    return -probs.gather(1, labels.unsqueeze(1)).log().mean().item()


@checked
def brier(probs: Tensor, labels: Tensor) -> float:
    """Returns the mean squared distance between probabilities and one-hot labels, between 0 and 2.

    Args:
        probs: probabilities ``(n, classes)``.
        labels: class indices ``(n,)``.

    Raises:
        ValueError: not probabilities, labels outside the classes, no examples.

    Example:
        >>> brier(torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
        0.5
    """
    probs, labels = _validated(probs, labels)
    return (probs - F.one_hot(labels, probs.shape[1])).square().sum(1).mean().item()


def _confidence_and_correctness(probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    probs, labels = _validated(probs, labels)
    confidence, predicted = probs.max(1)
    return confidence, (predicted == labels).double()


def _validated(probs: Any, labels: Any) -> tuple[Tensor, Tensor]:
    probs = torch.as_tensor(probs).detach().to("cpu", torch.float64)
    labels = torch.as_tensor(labels).detach().cpu()
    if probs.ndim != 2 or labels.shape != probs.shape[:1] or not len(probs):
        raise ValueError(
            f"expected probabilities (n, classes) and labels (n,), got {tuple(probs.shape)} and {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or int(labels.min()) < 0 or int(labels.max()) >= probs.shape[1]:
        raise ValueError(f"labels must be class indices in 0..{probs.shape[1] - 1}")
    if not ((probs >= 0).all() and ((probs.sum(1) - 1).abs() < 1e-2).all()):
        raise ValueError("each row of probs must be non-negative and sum to 1: apply softmax to logits first")
    return probs, labels.long()
