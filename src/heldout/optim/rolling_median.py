"""Steps along the coordinate-wise median of three mini-batch gradients: directions of few examples are outvoted.

Source: arXiv:2203.10036 (Chatterjee, Zielinski); RM3 and M3 are from arXiv:2003.07422.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Optimizer

from heldout.errors import checked
from heldout.method import Method, Run, Splits
from heldout.optim.sam import SAM


class RM3(Optimizer):
    """Descends along the coordinate-wise median of the last three gradients; the first two steps change nothing.

    A direction that one mini-batch alone supports is outvoted, so that labels which contradict the others are learned
    late or never. There is no momentum: it would blend those directions back in. Costs one backward pass a step and
    two copies of the weights.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        weight_decay: this times the parameter is added to each gradient before the median.

    Raises:
        ValueError: a learning rate or weight decay that is negative or not finite; at a step: a sparse gradient.

    Example:
        >>> w = nn.Parameter(torch.zeros(1))
        >>> optimizer = RM3([w], lr=1.0)
        >>> for gradient in (1.0, 50.0, 2.0):
        ...     w.grad = torch.tensor([gradient])
        ...     optimizer.step()
        >>> w.item()
        -2.0

    Source: arXiv:2003.07422.
    """

    _kept = 2  # gradients that the next step uses again

    @checked
    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0.0) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {value}")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    @checked
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Returns the closure's loss, if there is a closure, after a step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    recent = self.state[p].setdefault("recent", [])
                    median = _next_median(recent, _dense(p).add(p, alpha=group["weight_decay"]), self._kept)
                    if median is not None:
                        p.add_(median, alpha=-group["lr"])
        return loss


class M3(RM3):
    """Descends at every third step, along the coordinate-wise median of three fresh gradients.

    Args:
        params, lr, weight_decay: as ``RM3``. For as many updates it needs three times the data.

    Example:
        >>> w = nn.Parameter(torch.zeros(1))
        >>> optimizer, path = M3([w], lr=1.0), []
        >>> for gradient in (1.0, 50.0, 2.0, 3.0, 3.0, 3.0):
        ...     w.grad = torch.tensor([gradient])
        ...     optimizer.step()
        ...     path.append(w.item())
        >>> path
        [0.0, 0.0, -2.0, -2.0, -2.0, -5.0]

    Source: arXiv:2003.07422.
    """

    _kept = 0


@checked
def rolling_median(optimizer: Optimizer) -> Optimizer:
    """Makes an optimizer see the coordinate-wise median of the last three gradients, and returns it.

    Its first two steps change nothing. What it does with a gradient stays its own: weight decay is added to the median,
    and momentum or moving averages blend in what the median has dropped. The last gradients are no part of its state
    dict. Under SAM the medians are of the gradients at the perturbed weights.

    Raises:
        TypeError: an LBFGS, which evaluates its closure many times a step.
        ValueError: at a step: a sparse gradient.

    Example:
        >>> layer = nn.Linear(3, 1)
        >>> optimizer = rolling_median(torch.optim.AdamW(layer.parameters(), lr=0.01))
    """
    if isinstance(optimizer, SAM):
        rolling_median(optimizer.base_optimizer)
        return optimizer
    if isinstance(optimizer, LBFGS):
        raise TypeError("rolling_median needs one gradient a step, LBFGS evaluates its closure many times")
    recent: defaultdict[Tensor, list[Tensor]] = defaultdict(list)

    def replace() -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad = _next_median(recent[p], _dense(p).clone(), RM3._kept)

    def before(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            replace()
            return None

        def evaluated() -> Any:
            loss = closure()
            replace()
            return loss

        return (optimizer, evaluated), {}

    optimizer.register_step_pre_hook(before)
    return optimizer


@torch.no_grad()
def _next_median(recent: list[Tensor], gradient: Tensor, kept: int) -> Tensor | None:
    """Adds a gradient to the recent ones, of which ``kept`` remain after a median of three."""
    recent.append(gradient)
    if len(recent) < 3:
        return None
    a, b, c = recent
    del recent[: 3 - kept]
    return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))


def _dense(p: Tensor) -> Tensor:
    assert p.grad is not None
    if p.grad.is_sparse:
        raise ValueError("the median of gradients needs dense ones, got a sparse one: use an Embedding without sparse")
    return p.grad


def rm3() -> Method:
    """Returns the Method that feeds the optimizer the rolling median of the last three gradients.

    SGD's momentum is switched off, and its learning rate divided by ``1 - momentum``, so that steps keep their length:
    without weight decay this is ``RM3``. Another optimizer keeps its moving averages, see ``rolling_median``.
    Deviation: weight decay is added after the median.

    Source: arXiv:2003.07422.

    Example:
        >>> run, base = None, SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        >>> group = rm3().optimizer(run, base).param_groups[0]
        >>> round(group["lr"], 6), group["momentum"]
        (1.0, 0)
    """

    def optimizer(run: Run, base: Optimizer) -> Optimizer:
        inner = base.base_optimizer if isinstance(base, SAM) else base
        if isinstance(inner, SGD):
            for group in inner.param_groups:
                group["lr"] /= 1 - group["momentum"]
                group.update(momentum=0, nesterov=False)
        return rolling_median(base)

    def check(module: nn.Module, splits: Splits) -> str | None:
        if any(isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse for m in module.modules()):
            return "the median of gradients needs dense ones and the model has an Embedding with sparse=True"
        return None

    return Method("rm3", optimizer=optimizer, check=check)
