"""A consistency loss that learns to pull a network the way its main loss does.

Source: arXiv:2304.04494 (Chen et al., ITTA, CVPR 2023), section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from heldout.errors import check_at_least, check_nonempty, check_same_length, checked
from heldout.nn import AffineChain

Normalise = Literal["standardise", "unit"]


class LearnedConsistency(nn.Module):
    """Mean square of a learned weighting of the difference between two views' features.

    The weighting is a chain of element-wise affine layers with ReLU between them. New, it is ReLU itself (for a depth
    of 2 or more): it counts what the second view adds to a feature, and not what it takes away.

    Args:
        dim: length of a feature vector.
        depth: affine layers; 0 is the plain mean squared difference, with nothing to learn.

    Example:
        >>> loss = LearnedConsistency(3)
        >>> loss(torch.tensor([[1.0, -1.0, 0.0]])).item()
        0.3333...
    """

    @checked
    def __init__(self, dim: int, depth: int = 10) -> None:
        check_at_least(1, dim=dim)
        super().__init__()
        self.weighting = AffineChain((dim,), depth)

    @checked
    def forward(self, difference: Tensor) -> Tensor:
        """Returns the loss of ``difference = second_view - first_view``, ``(batch, dim)``."""
        return self.weighting(difference).square().mean()


@checked
def gradient_distance(
    gradients: Iterable[Tensor | None], goal: Iterable[Tensor | None], normalise: Normalise = "standardise"
) -> Tensor:
    """Returns the mean squared difference of two gradients, each flattened to one vector and normalised.

    What normalises (mean, standard deviation or length) is a constant: no gradient flows through it, and none into
    ``goal``. Scaling either gradient by a positive factor changes nothing.

    Args:
        gradients: one tensor for each parameter; None stands for zeros wherever ``goal`` has a tensor.
        goal: the same of the loss to agree with.
        normalise: "standardise" to mean 0 and standard deviation 1, or "unit" to length 1.

    Raises:
        ValueError: no gradient at all, or an unknown normalisation.

    Example:
        >>> g = torch.tensor([1.0, 2.0, 4.0])
        >>> gradient_distance([g], [3 * g]).item() < 1e-12
        True
    """
    check_nonempty(gradients=gradients, goal=goal)
    check_same_length(gradients=gradients, goal=goal)
    if normalise not in ("standardise", "unit"):
        raise ValueError(f'normalise must be "standardise" or "unit", got {normalise!r}')
    pairs = [(a, b) for a, b in zip(gradients, goal, strict=True) if a is not None or b is not None]
    if not pairs:
        raise ValueError("neither loss depends on the parameters")
    first = torch.cat([torch.zeros_like(b).flatten() if a is None else a.flatten() for a, b in pairs])  # type: ignore[arg-type]
    second = torch.cat([torch.zeros_like(a).flatten() if b is None else b.flatten() for a, b in pairs])  # type: ignore[arg-type]
    return (_normalised(first, normalise) - _normalised(second.detach(), normalise)).square().mean()


@checked
def gradient_alignment_loss(
    loss: Tensor, goal: Tensor, parameters: Sequence[Tensor], normalise: Normalise = "standardise"
) -> Tensor:
    """Returns how far the gradient of ``loss`` is from that of ``goal``, as a loss for what shapes ``loss``.

    The gradient of ``loss`` keeps its graph, that of ``goal`` is a constant; both graphs stay. Costs one backward pass
    for each, and one more as dear for the gradient of the result. See ``gradient_distance``.

    Args:
        loss: a scalar.
        goal: a scalar.
        parameters: with respect to which the gradients are taken.
        normalise: "standardise" to mean 0 and standard deviation 1, or "unit" to length 1.

    Example:
        >>> w = torch.tensor([1.0, 2.0, -1.0], requires_grad=True)
        >>> weighting = torch.ones(3, requires_grad=True)
        >>> distance = gradient_alignment_loss((weighting * w).square().sum(), w.sum().square(), [w])
        >>> torch.autograd.grad(distance, weighting)[0].shape
        torch.Size([3])
    """
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    goals = torch.autograd.grad(goal, parameters, retain_graph=True, allow_unused=True)
    return gradient_distance(gradients, goals, normalise)


def _normalised(vector: Tensor, normalise: Normalise) -> Tensor:
    constant = vector.detach()
    tiny = torch.finfo(vector.dtype).tiny
    if normalise == "unit":
        return vector / constant.norm().clamp(min=tiny)
    return (vector - constant.mean()) / constant.std(correction=0).clamp(min=tiny)
