"""Core: Weight decay of another strength than the recipe's: the plainest regularizer to compare with."""

from __future__ import annotations

from torch.optim import Optimizer

from heldout.errors import check_nonnegative, checked
from heldout.method import Method, Run


@checked
def weight_decay(value: float = 0.1) -> Method:
    """Returns the Method that sets the optimizer's weight decay, of every parameter group that decays already.

    Groups that the recipe exempts (norms and biases, usually) stay exempt, unless it decays nothing at all: then all
    groups decay. What a value means is the optimizer's own: AdamW decouples it from the gradient, SGD and Adam do not.

    Args:
        value: at least 0; AdamW's default is 0.01.

    Raises:
        ValueError: a negative or infinite value; at the start of training: an optimizer without weight decay.

    Source: arXiv:1711.05101.

    Example:
        >>> weight_decay(0.05).stages
        ('optimizer',)
    """
    check_nonnegative(value=value)

    def optimizer(run: Run, base: Optimizer) -> Optimizer:
        groups = [group for group in base.param_groups if "weight_decay" in group]
        if not groups:
            raise ValueError(f"weight_decay needs an optimizer that has one, got {type(base).__name__}")
        for group in [group for group in groups if group["weight_decay"] > 0] or groups:
            group["weight_decay"] = value
        return base

    return Method("weight_decay", optimizer=optimizer)
