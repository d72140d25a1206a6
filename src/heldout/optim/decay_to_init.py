"""Core: Decay towards the initial weights instead of zero (L2-SP), decoupled from the gradient as in AdamW.

What was pretrained stays near where it was found. Source: arXiv:1802.01483 (L2-SP); decoupled: arXiv:1711.05101, and
the fine-tuning of arXiv:2409.06509.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from heldout.errors import check_nonnegative, check_same_length, checked
from heldout.method import Method, Run, Splits
from heldout.optim.sam import SAM


class DecayToInit:
    """Pulls weights towards their initial values at each step: ``w <- w - lr * weight_decay * (w - w_0)``, then steps.

    It acts inside the optimizer's own ``step``, with each group's learning rate at that time; whatever else the
    optimizer does stays, its own weight decay (towards 0) too: set that to 0. Where a ``GradScaler`` skips a step, so
    does the pull. Costs a copy of the weights, and one pass over them a step.

    Args:
        optimizer: any that steps on gradients; of a ``SAM`` the one that it wraps. A group's entry ``decay_to_init``
            is its own strength, in place of ``weight_decay``.
        weight_decay: strength, at least 0; 1 is published for fine-tuning at a learning rate of 3e-5.
        initial: the values to be pulled to, one for each parameter in the order of the groups, None for a parameter
            that is left alone; default: what the parameters hold now. Pass them where training is resumed.

    Raises:
        ValueError: a negative weight_decay, initial values of another number or shape; at a step: a group without lr,
            or with a negative strength of its own.

    Source: arXiv:1802.01483, eq. 2; arXiv:1711.05101, algorithm 2, with ``w - w_0`` in place of ``w``.

    Example:
        >>> w = nn.Parameter(torch.tensor([1.0]))
        >>> sgd = torch.optim.SGD([w], lr=0.1)
        >>> decay = DecayToInit(sgd, weight_decay=0.5)
        >>> w.data += 2
        >>> w.grad = torch.zeros(1)
        >>> _ = sgd.step()
        >>> round(w.item(), 4)  # 3 - 0.1 * 0.5 * (3 - 1)
        2.9
        >>> decay.remove()
    """

    @checked
    def __init__(
        self, optimizer: Optimizer, weight_decay: float = 1.0, *, initial: Sequence[Tensor | None] | None = None
    ) -> None:
        check_nonnegative(weight_decay=weight_decay)
        self.optimizer = optimizer.base_optimizer if isinstance(optimizer, SAM) else optimizer
        self.weight_decay = weight_decay
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        values: Sequence[Tensor | None] = parameters if initial is None else initial
        check_same_length(parameters=parameters, initial=values)
        self._initial: dict[Tensor, Tensor] = {}
        for number, (parameter, value) in enumerate(zip(parameters, values, strict=True)):
            if value is None:
                continue
            if value.shape != parameter.shape:
                raise ValueError(
                    f"initial must have the shapes of the parameters, got {tuple(value.shape)} for "
                    f"{tuple(parameter.shape)} at {number}"
                )
            self._initial[parameter] = value.detach().to(parameter.device, parameter.dtype, copy=True)
        self._handle = self.optimizer.register_step_pre_hook(self._pull)

    @checked
    def remove(self) -> None:
        """Ends the pull; the optimizer is as before."""
        self._handle.remove()

    @torch.no_grad()
    def _pull(self, optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            strength = group.get("decay_to_init", self.weight_decay)
            check_nonnegative(decay_to_init=strength)
            pulled = [p for p in group["params"] if p in self._initial and p.grad is not None]
            if not strength or not pulled:
                continue
            if "lr" not in group:
                raise ValueError(f"optimizer must have a learning rate lr, {type(optimizer).__name__} has none")
            torch._foreach_lerp_(pulled, [self._initial[p] for p in pulled], float(group["lr"] * strength))


@checked
def l2_sp(weight_decay: float = 1.0) -> Method:
    """Returns the Method that fine-tunes with decay towards the pretrained weights in place of decay towards zero.

    The data must come with the pretrained state, ``Splits(initial_state=...)``. Parameters that it lacks, such as a new
    head, keep the weight decay of the recipe. The plain comparison for every way to fine-tune.

    Args:
        weight_decay: strength, times the learning rate; at least 0.

    Raises:
        ValueError: a negative weight_decay.

    Source: arXiv:1802.01483. deviation: decoupled from the gradient, as AdamW decouples its decay.

    Example:
        >>> l2_sp(0.1).stages
        ('optimizer',)
    """
    check_nonnegative(weight_decay=weight_decay)

    def optimizer(run: Run, base: Optimizer) -> Optimizer:
        name_of = {parameter: name for name, parameter in run.module.named_parameters()}
        _keep_apart(base, {p for p, name in name_of.items() if name in run.initial_state})
        parameters = [p for group in base.param_groups for p in group["params"]]
        DecayToInit(base, weight_decay, initial=[run.initial_state.get(name_of.get(p, "")) for p in parameters])
        return base

    def check(module: nn.Module, splits: Splits) -> str | None:
        if splits.initial_state is None:
            return "it decays towards a pretrained state, which must come in Splits(initial_state=...)"
        own = dict(module.named_parameters())
        shared = sorted(own.keys() & splits.initial_state.keys())
        if not shared:
            return "the pretrained state holds none of this model's parameters"
        if other := [name for name in shared if own[name].shape != splits.initial_state[name].shape]:
            return f"the pretrained state has {other[0]} in another shape"
        return None

    return Method("l2_sp", optimizer=optimizer, check=check)


def _keep_apart(optimizer: Optimizer, pretrained: set[Tensor]) -> None:
    """Divides each group that decays into what was pretrained, which decays to zero no longer, and the rest."""
    inner = optimizer.base_optimizer if isinstance(optimizer, SAM) else optimizer
    for group in list(inner.param_groups):
        if not group.get("weight_decay"):
            continue
        rest = [p for p in group["params"] if p not in pretrained]
        if len(rest) == len(group["params"]):
            continue
        options = {name: value for name, value in group.items() if name != "params"}
        group["params"] = [p for p in group["params"] if p in pretrained]
        group["weight_decay"] = 0.0
        if rest:
            inner.add_param_group({**options, "params": rest})
