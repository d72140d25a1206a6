"""Core: Odd-one-out triplets: how probable each pair is to be the most similar one, and a loss to soft choices.

Pairs are in the order (0, 1), (0, 2), (1, 2): where that pair is the most similar, item 2, 1 or 0 is the odd one.
Source: arXiv:2409.06509 (Muttenthaler et al., AligNet); the choice model is that of VICE and THINGS.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import check_dimensions, check_nonempty, check_positive, checked


@checked
def pair_similarities(z: Tensor, *, normalize: bool = False) -> Tensor:
    """Returns the similarities ``(..., 3)`` of the pairs (0, 1), (0, 2), (1, 2) of each triplet: inner products.

    Args:
        z: the three items of each triplet, ``(..., 3, dim)``.
        normalize: True: of vectors scaled to length 1, so cosines.

    Raises:
        ValueError: another shape.

    Example:
        >>> pair_similarities(torch.tensor([[[1.0, 0.0], [2.0, 1.0], [0.0, 1.0]]]))
        tensor([[2., 0., 1.]])
    """
    if z.ndim < 2 or z.shape[-2] != 3:
        raise ValueError(f"z must be (..., 3, dim), the three items of each triplet, got {tuple(z.shape)}")
    if normalize:
        z = F.normalize(z, dim=-1)
    first, second, third = z.unbind(-2)
    return torch.stack([(first * second).sum(-1), (first * third).sum(-1), (second * third).sum(-1)], -1)


@checked
def triplet_soft(
    z: Tensor,
    target: Tensor,
    tau: float = 100.0,
    *,
    divergence: Literal["js", "kl"] = "js",
    normalize: bool = False,
) -> Tensor:
    """Returns the mean divergence of a model's odd-one-out choices from soft ones.

    The model's choice is ``p = softmax(similarities / tau)``. "js" is the Jensen-Shannon divergence ``(KL(p||m) +
    KL(q||m)) / 2`` with ``m = (p + q) / 2``, in nats, at most ln 2; "kl" is ``KL(q||p)``, of which the gradient is that
    of the cross-entropy. The targets are constants. Embed the different images of a batch once, and index: ``z =
    embedded[place]`` with ``images, place = triplets.unique(return_inverse=True)``.

    Args:
        z: embeddings of the three items, ``(batch, 3, dim)``.
        target: probability q of each pair to be the most similar, ``(batch, 3)``.
        tau: temperature, above 0. 100 is published for inner products of 1,024 numbers; with ``normalize`` take 0.1
            to 1.
        divergence: "js" or "kl".
        normalize: similarities are cosines.

    Raises:
        ValueError: other shapes, an empty batch, targets that are no probabilities, tau not above 0.

    Example:
        >>> z = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
        >>> q = torch.tensor([[1.0, 0.0, 0.0]]).softmax(1)
        >>> round(triplet_soft(z, q, tau=1.0).item(), 4), round(triplet_soft(z, q, tau=0.1).item(), 2)
        (0.0, 0.18)

    Source: arXiv:2409.06509; the published code's losses.
    """
    check_positive(tau=tau)
    check_dimensions(3, z=z)
    check_nonempty(z=z)
    if divergence not in ("js", "kl"):
        raise ValueError(f'divergence must be "js" or "kl", got {divergence!r}')
    if target.shape != (*z.shape[:1], 3):
        raise ValueError(f"target must be (batch, 3) for z {tuple(z.shape)}, got {tuple(target.shape)}")
    check_choices(target=target)
    log_p = (pair_similarities(z, normalize=normalize) / tau).log_softmax(1)
    q = target.detach().to(log_p)
    if divergence == "kl":
        return (torch.xlogy(q, q) - q * log_p).sum(1).mean()
    p = log_p.exp()
    middle = (p + q) / 2
    log_m = middle.clamp(min=torch.finfo(middle.dtype).tiny).log()
    return ((p * (log_p - log_m) + torch.xlogy(q, q) - q * log_m).sum(1) / 2).mean()


@checked
def check_choices(**named: Tensor) -> None:
    """Refuses rows that are no probabilities of choices: negative, or of another sum than 1. NaN passes.

    Example:
        >>> check_choices(responses=torch.tensor([[0.5, 0.25, 0.25]]))
        >>> check_choices(responses=torch.tensor([[2.0, 1.0, 0.0]]))
        Traceback (most recent call last):
        ValueError: each row of responses must be non-negative and sum to 1: divide counts by their sum
    """
    for name, value in named.items():
        check_dimensions(2, **{name: value})
        if value.shape[1] < 2 or not value.is_floating_point():
            raise ValueError(f"{name} must be probabilities (n, choices), got {tuple(value.shape)} of {value.dtype}")
        tolerance = 1e-3 if value.element_size() > 2 else 2e-2
        if bool((value < 0).any()) or bool(((value.sum(1) - 1).abs() > tolerance).any()):
            raise ValueError(f"each row of {name} must be non-negative and sum to 1: divide counts by their sum")
