"""Core: Mixup as a Method: training on convex combinations of pairs of examples. Source: arXiv:1710.09412."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.data import beta_weight, gather, mix, mixup, permutation
from heldout.errors import check_nonnegative, checked
from heldout.losses.soft_targets import soft_cross_entropy
from heldout.method import Batch, Method, Run, Splits


@checked
def mixup_method(alpha: float = 0.2) -> Method:
    """Returns the Method that trains on each batch mixed with a permutation of itself (``heldout.data.mixup``).

    Classification: cross-entropy with the mixed labels; of a loss of your own, its value for both labels, weighted
    likewise. Regression: your own loss against the mixed targets. A second evaluation within one step (SAM) sees the
    same mixture. It costs next to nothing.

    Args:
        alpha: of the Beta(alpha, alpha) distribution that the weight is drawn from; 0 mixes nothing.

    Raises:
        ValueError: a negative or infinite ``alpha``.

    Source: arXiv:1710.09412, eq. 2.

    Example:
        >>> mixup_method(alpha=0.4).name
        'mixup'
    """
    check_nonnegative(alpha=alpha)

    def loss(run: Run, batch: Batch) -> Tensor:
        if run.evaluation <= 0:  # SAM's second evaluation in a step is of the same mixture
            run.state["mixup"] = run.generator.get_state()
        else:
            run.generator.set_state(run.state["mixup"])
        if run.num_classes is not None:
            mixed = mixup(batch.inputs, batch.targets, run.num_classes, alpha=alpha, generator=run.generator)
            outputs = batch.with_inputs(mixed.inputs).logits
            if run.objective is F.cross_entropy:
                return soft_cross_entropy(outputs, mixed.targets)
            other = batch.targets[mixed.partner.to(batch.targets.device)]
            return mixed.weight * run.objective(outputs, batch.targets) + (1 - mixed.weight) * run.objective(
                outputs, other
            )
        weight, partner = beta_weight(alpha, run.generator), permutation(len(batch.targets), run.generator)
        outputs = batch.with_inputs(mix(batch.inputs, partner, weight)).logits
        return run.objective(outputs, mix(batch.targets, partner, weight))

    def check(module: nn.Module, splits: Splits) -> str | None:
        inputs, targets = gather(splits.train, torch.arange(1))
        try:
            mix(inputs, torch.zeros(1, dtype=torch.int64), 0.5)
        except TypeError:
            return "only floating-point inputs can be mixed"
        if not targets.is_floating_point() and targets.ndim != 1:
            return "it needs one class index per example as the target"
        return None

    return Method("mixup", loss=loss, check=check)
