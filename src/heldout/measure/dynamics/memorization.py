"""When each sample is memorised and each test item generalised, and which groups of them belong together.

Source: arXiv:2506.21551 (Li, Fan, Zhou): grokking in pretraining is local, groups of samples are learned at times of
their own. What stands for convergence, and the cost of a match, is reconstructed: no code of the paper is public.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from heldout.errors import check_dimensions, check_fraction, check_length, check_values, checked


@checked
def memorization_steps(losses: Tensor, eps: float = 0.1) -> Tensor:
    """Returns the checkpoint from which each sample's loss has converged for good, int64 ``(samples,)``; -1 for never.

    Converged is what is at most ``eps`` of the whole way down above the last checkpoint's loss; a relapse starts the
    count anew. A loss that ends no lower than it began never converged, and whether one that did is low is not asked.

    Args:
        losses: of each sample at each checkpoint, ``(checkpoints, samples)``.
        eps: share of a sample's drop from the first checkpoint to the last, in [0, 1].

    Raises:
        ValueError: no losses, or some that are not finite; ``eps`` out of range.

    Source: arXiv:2506.21551, section 3; deviation: the share of the drop, for an absolute change.

    Example:
        >>> losses = torch.tensor([[4.0, 4.0, 1.0], [0.2, 3.0, 1.0], [0.1, 0.0, 1.0], [0.0, 0.1, 1.0]])
        >>> memorization_steps(losses).tolist()
        [1, 2, -1]
    """
    check_dimensions(2, losses=losses)
    check_values(losses=losses)
    check_fraction(eps=eps)
    values = losses.detach().double()
    drop = values[0] - values[-1]
    steps = _from_then_on(values <= values[-1] + eps * drop)
    return torch.where(drop > 0, steps, -1)


@checked
def generalization_steps(correct: Tensor) -> Tensor:
    """Returns the checkpoint from which each item is right for good, int64 ``(items,)``; -1 where the last is wrong.

    Args:
        correct: whether each item is right at each checkpoint, bool ``(checkpoints, items)``.

    Raises:
        ValueError: nothing, or what is not bool.

    Source: arXiv:2506.21551, section 3.

    Example:
        >>> generalization_steps(torch.tensor([[True, False, True], [False, True, True], [True, True, False]])).tolist()
        [2, 1, -1]
    """
    check_dimensions(2, correct=correct)
    check_values(correct=correct)
    if correct.dtype != torch.bool:
        raise ValueError(f"correct must be bool, got {correct.dtype}")
    return torch.where(correct[-1], _from_then_on(correct), -1)


@checked
def match_groups(cost: Tensor) -> list[tuple[int, int]]:
    """Returns the one-to-one pairs of a row and a column whose costs have the lowest sum, by row (Hungarian algorithm).

    Where there are more groups on one side, those that fit worst stay without a match.

    Args:
        cost: of matching each group of memorised samples with each group of test items, ``(groups, groups)``, for
            example the mean distance of their embeddings.

    Raises:
        ValueError: no costs, or some that are not finite.

    Source: arXiv:2506.21551, section 3; deviation: the paper's cost is not public.

    Example:
        >>> match_groups(torch.tensor([[1.0, 0.0, 5.0], [0.0, 0.5, 5.0]]))
        [(0, 1), (1, 0)]
    """
    check_dimensions(2, cost=cost)
    check_values(cost=cost)
    rows, columns = linear_sum_assignment(cost.detach().double().cpu().numpy())
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


@checked
def matched_lags(distances: Tensor, memorized: Tensor, generalized: Tensor) -> list[tuple[int, int]]:
    """Returns, for each match of a group of samples and one of test items, when these were memorised and generalised.

    A group is what was memorised, or generalised, at the same checkpoint; groups are matched by ``match_groups``, at
    the cost of the mean distance between their members. The difference of a pair is the lag of the later skill.

    Args:
        distances: between samples and test items, of their embeddings, say: ``(samples, items)``.
        memorized: checkpoint of each sample, integers ``(samples,)``, from ``memorization_steps``; -1 is a group, too.
        generalized: checkpoint of each item, integers ``(items,)``, from ``generalization_steps``.

    Returns:
        ``(memorised, generalised)`` checkpoints of the matches, by the first.

    Raises:
        ValueError: distances that are not finite, or of other shapes, or checkpoints that are no integers.

    Source: arXiv:2506.21551, section 3; deviation: the paper's cost is not public.

    Example:
        >>> near = torch.tensor([[0.0, 9.0], [0.1, 9.0], [9.0, 0.0]])
        >>> matched_lags(near, torch.tensor([1, 1, 2]), torch.tensor([5, 3]))
        [(1, 5), (2, 3)]
    """
    check_dimensions(2, distances=distances)
    check_values(distances=distances)
    sides = {"memorized": (memorized, len(distances)), "generalized": (generalized, distances.shape[1])}
    for name, (values, length) in sides.items():
        check_dimensions(1, **{name: values})
        check_length(length, **{name: values})
        if values.is_floating_point() or values.dtype == torch.bool:
            raise ValueError(f"{name} must be checkpoints, as integers, got {values.dtype}")
    early, late = memorized.unique(), generalized.unique()
    of_early, of_late = (
        (values.unsqueeze(0) == groups.unsqueeze(1)).to(distances.device, torch.float64)
        for values, groups in ((memorized, early), (generalized, late))
    )
    members = of_early.sum(1, keepdim=True) * of_late.sum(1)
    cost = of_early @ distances.detach().double() @ of_late.T / members
    return [(int(early[row]), int(late[column])) for row, column in match_groups(cost)]


def _from_then_on(reached: Tensor) -> Tensor:
    """The first checkpoint behind the last one that is not there yet."""
    places = torch.arange(1, len(reached) + 1, device=reached.device).unsqueeze(1)
    return torch.where(reached, 0, places).amax(0)
