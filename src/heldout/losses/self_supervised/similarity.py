"""Core: Embeddings compared row by row: with a target (BGRL), with all other rows (GRACE), with what was masked.

Sources: arXiv:2102.06514 (Thakoor et al., ICLR 2022: BGRL); arXiv:2006.04131 (Zhu et al.: GRACE); arXiv:2205.10803 (Hou
et al., KDD 2022: GraphMAE).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import check_at_least, check_dimensions, check_nonempty, check_positive, checked


@checked
def bootstrap_loss(predicted1: Tensor, target2: Tensor, predicted2: Tensor, target1: Tensor) -> Tensor:
    """Returns ``2 - cos(predicted1, target2) - cos(predicted2, target1)``, the mean over rows, in [0, 4].

    No gradient reaches the targets.

    Args:
        predicted1, predicted2: ``(n, dim)``, what is predicted from the first and from the second view.
        target2, target1: ``(n, dim)``, embeddings of the second and of the first view.

    Raises:
        ValueError: shapes that differ, or no rows.

    Source: arXiv:2102.06514, equation 1, symmetrised, plus the constant 2.

    Example:
        >>> z = torch.tensor([[3.0, 0.0]])
        >>> bootstrap_loss(z, 2 * z, z, -z).item()
        2.0
    """
    _check_alike(predicted1=predicted1, target2=target2)
    _check_alike(predicted2=predicted2, target1=target1)
    first = F.cosine_similarity(predicted1, target2.detach(), dim=1).mean()
    return 2 - first - F.cosine_similarity(predicted2, target1.detach(), dim=1).mean()


@checked
def two_view_info_nce(z1: Tensor, z2: Tensor, temperature: float = 0.5) -> Tensor:
    """Returns InfoNCE in which a row's negatives are all other rows of both views, the mean of both directions.

    ``-log(exp(cos(a_i, b_i)/t) / (sum_j exp(cos(a_i, b_j)/t) + sum_{j != i} exp(cos(a_i, a_j)/t)))``. Costs three
    ``(n, n)`` products; draw rows where n is large.

    Args:
        z1, z2: ``(n, dim)``, row i of both from the same example; n at least 2.
        temperature: above 0.

    Raises:
        ValueError: shapes that differ, fewer than 2 rows, or a temperature that is not positive.

    Source: arXiv:2006.04131, equation 1.

    Example:
        >>> round(two_view_info_nce(torch.eye(2), torch.eye(2), temperature=1.0).item(), 4)
        0.5514
    """
    check_positive(temperature=temperature)
    _check_alike(z1=z1, z2=z2)
    if len(z1) < 2:
        raise ValueError(f"z1 and z2 must have at least 2 rows, got {len(z1)}")
    first, second = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    between = first @ second.T / temperature
    itself = torch.eye(len(first), dtype=torch.bool, device=first.device)
    total = between.new_zeros(())
    for own, across in ((first, between), (second, between.T)):
        within = (own @ own.T / temperature).masked_fill(itself, -torch.inf)
        total = total + (torch.cat([across, within], 1).logsumexp(1) - across.diagonal()).mean()
    return total / 2


@checked
def scaled_cosine_error(outputs: Tensor, targets: Tensor, alpha: float = 2.0) -> Tensor:
    """Returns the mean over rows of ``(1 - cos(output, target))^alpha``: 0 where they are parallel.

    Args:
        outputs, targets: ``(n, features)``, such as those of masked nodes.
        alpha: the larger, the less the rows that are nearly right count; at least 1.

    Raises:
        ValueError: shapes that differ, no rows, or an alpha below 1.

    Source: arXiv:2205.10803, equation 2.

    Example:
        >>> scaled_cosine_error(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])).item()
        0.5
    """
    check_at_least(1, alpha=alpha)
    _check_alike(outputs=outputs, targets=targets)
    return (1 - F.cosine_similarity(outputs, targets, dim=1)).clamp(min=0).pow(alpha).mean()


def _check_alike(**named: Tensor) -> None:
    check_dimensions(2, **named)
    check_nonempty(**named)
    first, second = named.values()
    if first.shape != second.shape:
        names, shapes = " and ".join(named), " and ".join(str(tuple(each.shape)) for each in named.values())
        raise ValueError(f"{names} must have the same shape, got {shapes}")
