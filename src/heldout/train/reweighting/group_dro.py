"""Group DRO: groups of the training set count the more, the worse the model does on them.

Source: arXiv:1911.08731 (Sagawa et al., ICLR 2020), algorithm 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.data import all_targets
from heldout.errors import check_dimensions, check_labels, check_nonnegative, check_positive, check_same_length, checked
from heldout.method import Batch, Method, Run, Splits, why_no_class_labels


class GroupWeights:
    """Weights of groups, which grow with their losses: exponentiated gradient ascent on the simplex.

    Args:
        groups: number of groups.
        step_size: of the ascent: by how much a loss of 1 changes the logarithm of a weight.
        counts: examples of each group, ``(groups,)``, for ``adjustment``.
        adjustment: added to each group's loss, divided by the square root of its count: rare groups, whose loss on
            new data is larger than it seems, count for more.

    Attributes:
        weights: float64 ``(groups,)``, which sum to 1.

    Raises:
        ValueError: no group, numbers out of range, or an adjustment without counts.

    Example:
        >>> groups = GroupWeights(2, step_size=1.0)
        >>> groups(torch.tensor([0.0, 2.0, 2.0]), torch.tensor([0, 1, 1]))
        tensor(1.7616)
        >>> groups.weights
        tensor([0.1192, 0.8808], dtype=torch.float64)
    """

    @checked
    def __init__(
        self, groups: int, *, step_size: float = 0.01, counts: Tensor | None = None, adjustment: float = 0.0
    ) -> None:
        check_positive(groups=groups, step_size=step_size, counts=counts)
        check_nonnegative(adjustment=adjustment)
        if adjustment and (counts is None or counts.shape != (groups,)):
            raise ValueError(f"an adjustment needs the counts of {groups} groups")
        self.step_size = step_size
        self.weights = torch.full((groups,), 1 / groups, dtype=torch.float64)
        self._added = adjustment / counts.double().sqrt() if adjustment and counts is not None else None

    @checked
    def __call__(self, losses: Tensor, groups: Tensor, update: bool = True) -> Tensor:
        """Returns the weighted sum of the mean losses of the groups in a batch, after it has moved the weights.

        A group that is not in the batch keeps its weight but for the sum, and adds nothing.

        Args:
            losses: ``(batch,)``, of the examples.
            groups: int64 ``(batch,)``, from 0.
            update: whether the weights move.

        Raises:
            ValueError: shapes or groups that do not fit, or no example.
        """
        check_dimensions(1, losses=losses, groups=groups)
        check_same_length(losses=losses, groups=groups)
        if not len(losses):
            raise ValueError("losses must hold an example")
        check_labels(len(self.weights), groups=groups)
        place = groups.to(losses.device, torch.int64)
        count = torch.zeros(len(self.weights), device=losses.device, dtype=losses.dtype)
        count.index_add_(0, place, torch.ones_like(losses))
        means = torch.zeros_like(count).index_add(0, place, losses) / count.clamp(min=1)
        if update:
            seen = means.detach().cpu().double()
            if self._added is not None:
                seen = seen + self._added * (count.cpu() > 0)
            grown = self.weights.log() + self.step_size * seen
            self.weights = grown.softmax(0)
        return (self.weights.to(means) * means).sum()


@checked
def group_dro(step_size: float = 0.01, adjustment: float = 0.0) -> Method:
    """Trains on the groups or domains of the training set by weights that grow with their losses.

    Needs ``Splits(groups=...)``, or ``Splits(domains=...)`` where there are no groups. Batches are drawn as without it;
    the paper draws each group equally often. With weights so strong the regularisation of the recipe matters: the
    paper's gains come with a large weight decay or few epochs.

    Args:
        step_size: of the weights.
        adjustment: C of the paper's group adjustment, which favours small groups.

    Raises:
        ValueError: a step size that is not above 0, or an adjustment below 0.

    Source: arXiv:1911.08731, algorithm 1, section 3.3 for the adjustment.

    Example:
        >>> group_dro(step_size=0.1).stages
        ('loss',)
    """
    check_positive(step_size=step_size)
    check_nonnegative(adjustment=adjustment)

    def loss(run: Run, batch: Batch) -> Tensor:
        if "group_dro" not in run.state:
            given = run.splits.groups if run.splits.groups is not None else run.splits.domains
            _, numbers, counts = torch.as_tensor(given).unique(return_inverse=True, return_counts=True)
            weights = GroupWeights(len(counts), step_size=step_size, counts=counts, adjustment=adjustment)
            run.state["group_dro"] = numbers, weights
        numbers, weights = run.state["group_dro"]
        losses = F.cross_entropy(batch.logits.float(), batch.targets, reduction="none")
        return weights(losses, numbers[batch.index.cpu()], update=run.evaluation == 0)

    return Method("group_dro", loss=loss, check=_why_no_groups)


def _why_no_groups(module: nn.Module, splits: Splits) -> str | None:
    given = splits.groups if splits.groups is not None else splits.domains
    if given is None:
        return "it needs the group or domain of each training example: Splits(..., groups=...)"
    if len(torch.as_tensor(given).unique()) < 2:
        return "it needs at least two groups of training examples"
    targets = all_targets(splits.train)
    if targets.ndim != 1:
        return "it needs one class label for each example"
    return why_no_class_labels(targets)
