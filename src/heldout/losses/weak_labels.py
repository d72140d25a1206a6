"""Losses for a strong student that learns from a weak supervisor's soft labels.

Both let the student's own prediction into the target, so that it need not imitate errors that it is sure are errors.
Source: arXiv:2312.09390 (Burns et al., ICML 2024), section 4.3 and appendix A.4; variants of the published code.
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from heldout.data import soft_labels
from heldout.errors import (
    check_dimensions,
    check_finite,
    check_fraction,
    check_labels,
    check_nonnegative,
    check_same_length,
    checked,
)
from heldout.losses.soft_targets import soft_cross_entropy


class ConfidenceLoss(nn.Module):
    """Cross-entropy to weak labels, mixed with cross-entropy to the student's own hardened predictions.

    ``(1 - alpha) CE(f, weak) + alpha CE(f, hardened f)``; targets are constants. Alpha grows with training, since at
    first the student knows nothing.

    Args:
        alpha_max: weight of the student's own predictions after the ramp, in [0, 1]; the paper: 0.75 for its largest
            students, else 0.5.
        warmup: share of training that the ramp takes, in [0, 1].
        balance: "batch": each class is predicted as often as the weak labels of the batch have it, see ``harden``; use
            batches of at least 32. None: the most probable class.
        ramp: "linear" from 0 to alpha_max over the warm-up; "repo" is the published code's: ``alpha_max * progress`` in
            the warm-up, then alpha_max at once (there with warmup 0.1).

    Raises:
        ValueError: options or progress out of range, logits and weak labels of different shapes, weak labels that are
            no probabilities.

    Example:
        >>> loss = ConfidenceLoss(alpha_max=0.5, warmup=0.2)
        >>> loss.alpha(0.1), loss.alpha(0.8)
        (0.25, 0.5)
        >>> logits, weak = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.4, 0.6], [0.6, 0.4]])
        >>> loss(logits, weak, progress=1.0) < loss(logits, weak, progress=0.0)
        tensor(True)

    Source: arXiv:2312.09390, eq. 1 and appendix A.4. deviation: the hardened batch is balanced by count, not by a
    quantile, so that ties cannot unbalance it.
    """

    @checked
    def __init__(
        self,
        alpha_max: float = 0.5,
        warmup: float = 0.2,
        balance: Literal["batch"] | None = "batch",
        ramp: Literal["linear", "repo"] = "linear",
    ) -> None:
        super().__init__()
        check_fraction(alpha_max=alpha_max, warmup=warmup)
        if balance not in ("batch", None):
            raise ValueError(f'balance must be "batch" or None, got {balance!r}')
        if ramp not in ("linear", "repo"):
            raise ValueError(f'ramp must be "linear" or "repo", got {ramp!r}')
        self.alpha_max, self.warmup, self.balance, self.ramp = alpha_max, warmup, balance, ramp

    @checked
    def alpha(self, progress: float) -> float:
        """Returns the weight of the student's own predictions at a share of training, in [0, 1].

        Example:
            >>> ConfidenceLoss(0.5, warmup=0.1, ramp="repo").alpha(0.1)
            0.05
        """
        check_fraction(progress=progress)
        if self.ramp == "repo":
            return self.alpha_max * (progress if progress <= self.warmup else 1.0)
        return self.alpha_max * (min(1.0, progress / self.warmup) if self.warmup else 1.0)

    @checked
    def forward(self, logits: Tensor, weak_probs: Tensor, progress: float) -> Tensor:
        """Returns the mean loss of a batch.

        Args:
            logits: of the student, ``(batch, classes)``.
            weak_probs: class probabilities of the supervisor, ``(batch, classes)``; class indices ``(batch,)`` are made
                one-hot, with a warning.
            progress: steps taken over all steps, in [0, 1].
        """
        alpha, weak = self.alpha(progress), as_weak_probs(logits, weak_probs)
        if alpha == 0:
            return soft_cross_entropy(logits, weak)
        own = harden(logits, weak if self.balance else None)
        return soft_cross_entropy(logits, torch.lerp(weak, soft_labels(own, logits.shape[1]).to(weak), alpha))

    def extra_repr(self) -> str:
        return f"{self.alpha_max}, warmup={self.warmup}, balance={self.balance!r}, ramp={self.ramp!r}"


class ProductLoss(nn.Module):
    """Cross-entropy to the normalised product of the student's own prediction and the weak label.

    The target is ``f(x)^beta * weak^alpha`` over its sum, a constant. Beta 0 with alpha 1 is cross-entropy to the weak
    labels; where they are uniform and beta is 1, there is no gradient.

    Args:
        alpha: power of the weak labels, at least 0.
        beta: power of the student's prediction, at least 0.

    Raises:
        ValueError: powers that are negative or both 0, logits and weak labels of different shapes, weak labels that are
            no probabilities.

    Example:
        >>> logits, weak = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.25, 0.75]])
        >>> torch.allclose(ProductLoss(alpha=1, beta=0)(logits, weak), soft_cross_entropy(logits, weak))
        True

    Source: the published code of arXiv:2312.09390; the paper does not report it.
    """

    @checked
    def __init__(self, alpha: float = 1.0, beta: float = 1.0) -> None:
        super().__init__()
        check_nonnegative(alpha=alpha, beta=beta)
        if alpha == beta == 0:
            raise ValueError("alpha or beta must be above 0: else every target is uniform")
        self.alpha, self.beta = alpha, beta

    @checked
    def forward(self, logits: Tensor, weak_probs: Tensor) -> Tensor:
        """Returns the mean loss of a batch: logits ``(batch, classes)``, weak labels as for ``ConfidenceLoss``."""
        weak = as_weak_probs(logits, weak_probs)
        powers = self.beta * logits.detach().log_softmax(1)
        if self.alpha:  # 0 * log(0) would not be a number
            powers = powers + self.alpha * weak.log()
        return soft_cross_entropy(logits, powers.softmax(1))

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}"


@checked
def as_weak_probs(logits: Tensor, weak_probs: Tensor) -> Tensor:
    """Returns weak labels as constant class probabilities like ``logits``, class indices as one-hot with a warning.

    Args:
        logits: ``(batch, classes)``.
        weak_probs: ``(batch, classes)``, or class indices ``(batch,)``.

    Raises:
        ValueError: another shape, an empty batch, NaN or infinite logits, a negative entry, or a row that does not sum
            to 1.

    Example:
        >>> as_weak_probs(torch.zeros(1, 2), torch.tensor([[0.25, 0.75]]))
        tensor([[0.2500, 0.7500]])
    """
    check_dimensions(2, logits=logits)
    check_finite(logits=logits)
    check_same_length(logits=logits, weak_probs=weak_probs)
    if not weak_probs.is_floating_point() and weak_probs.ndim == 1:
        check_labels(logits.shape[1], weak_probs=weak_probs)
        warnings.warn("weak_probs are class indices, which are made one-hot: soft weak labels say more", stacklevel=3)
        weak_probs = soft_labels(weak_probs.long(), logits.shape[1])
    if weak_probs.shape != logits.shape or not len(logits):
        raise ValueError(
            f"weak_probs must have the shape of logits {tuple(logits.shape)}, and examples, got "
            f"{tuple(weak_probs.shape)}"
        )
    weak = weak_probs.detach().to(logits.device, logits.dtype)
    tolerance = 1e-3 if weak.element_size() > 2 else 2e-2
    off = torch.maximum((weak.sum(1) - 1).abs().amax() - tolerance, -weak.amin())
    if not bool(off <= 0):
        raise ValueError("each row of weak_probs must be non-negative and sum to 1: apply softmax to logits first")
    return weak


@checked
def harden(logits: Tensor, weak_probs: Tensor | None = None) -> Tensor:
    """Returns a class for each example, int64 ``(batch,)``: the most probable, or balanced as weak labels are.

    Two classes: as many examples as the mean weak probability of class 1 says (rounded) are put into class 1, the
    most probable first; of equals, the first. More classes: the wanted shares in whole examples, and of all such ways
    the one of the greatest likelihood, an assignment problem (the largest of ``logits + b`` for some offsets ``b`` of
    classes). It is solved on the CPU: about 1 ms for 128 examples, a tenth of a second for 1,000.

    Args:
        logits: ``(batch, classes)``.
        weak_probs: ``(batch, classes)``; None: the most probable class.

    Raises:
        ValueError: shapes that differ, weak labels that are no probabilities, NaN or infinite logits.

    Example:
        >>> logits = torch.tensor([[0.0, 3.0], [0.0, 2.0], [0.0, 1.0]])
        >>> harden(logits).tolist(), harden(logits, torch.full((3, 2), 0.5)).tolist()
        ([1, 1, 1], [1, 1, 0])

    Source: arXiv:2312.09390, appendix A.4, for two classes; deviation: for more, the paper takes the most probable.
    """
    check_dimensions(2, logits=logits)
    check_finite(logits=logits)
    scores = logits.detach()
    if weak_probs is None:
        return scores.argmax(1)
    wanted = as_weak_probs(logits, weak_probs).mean(0)
    if logits.shape[1] == 2:
        order = (scores[:, 1] - scores[:, 0]).argsort(descending=True, stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        return (rank < (wanted[1] * len(order)).round()).long()
    counts = _whole_counts(wanted.double() * len(scores))
    places = torch.arange(logits.shape[1]).repeat_interleave(counts)
    cost = -scores.double().log_softmax(1).cpu()[:, places]
    chosen = linear_sum_assignment(cost.numpy())[1]  # rows come back in their order
    return places[torch.from_numpy(chosen)].to(logits.device)


def _whole_counts(wanted: Tensor) -> Tensor:
    """Whole numbers with the sum of the wanted ones: rounded down, and one more where the most was lost."""
    wanted = wanted.cpu()
    counts = wanted.floor().long()
    left = round(float(wanted.sum())) - int(counts.sum())
    counts[(wanted - counts).argsort(descending=True, stable=True)[:left]] += 1
    return counts
