"""TENT: test-time adaptation by entropy minimisation.

Source: arXiv:2006.10726 (Wang et al.).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from heldout.adapt.protocol import Stream, TestTimeAdapter, batch_size_of, entropy, outside_inference, sparing
from heldout.data import gather
from heldout.errors import check_at_least, check_nonnegative, checked
from heldout.method import Method, Run, Splits, forward, why_no_class_labels

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_NORMS = (
    *_BATCH_NORMS,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)


class Tent(TestTimeAdapter):
    """Minimises the entropy of predictions over the scale and shift of normalisation layers.

    BatchNorm layers use the statistics of the batch (deviation: the running ones for a batch of a single example);
    LayerNorm, RMSNorm, GroupNorm and InstanceNorm layers, and those that a model brings along, compute as ever. A batch
    is predicted before the step that it causes. Works on a copy of the model; everything but normalisation stays in
    eval mode (deviation: the released code leaves dropout on). One forward and one backward pass per step.

    Args:
        module: a classifier with normalisation layers.
        lr: learning rate of Adam.
        steps: gradient steps per batch; with more than one, predictions come from the last.

    Raises:
        ValueError: the model has no normalisation layer with scale and shift.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        >>> tent = Tent(model, lr=1e-3)
        >>> tent.probabilities(torch.randn(16, 4)).shape
        torch.Size([16, 3])
        >>> sorted(tent.last_change)
        ['entropy', 'parameter_change']
    """

    @outside_inference
    @checked
    def __init__(self, module: nn.Module, *, lr: float = 1e-3, steps: int = 1) -> None:
        check_nonnegative(lr=lr)
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.lr, self.steps = lr, steps
        self.last_change: dict[str, Any] = {}
        norms = [m for m in self.module.modules() if is_norm(m)]
        self._parameters = [p for m in norms for p in m.parameters(recurse=False)]
        if not self._parameters:
            raise ValueError("tent needs normalisation layers with scale and shift, the model has none")
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        self._batch_norms = [m for m in norms if isinstance(m, _BATCH_NORMS)]
        for norm in self._batch_norms:
            norm.track_running_stats = False  # in training mode: neither read nor update the running statistics
        self._start = [p.detach().clone() for p in self._parameters]
        self.reset()

    @sparing
    def __call__(self, inputs: Any) -> Tensor:
        for _ in range(self.steps):
            with torch.enable_grad():
                log_probabilities = self._forward(inputs).log_softmax(1)
                loss = entropy(log_probabilities).mean()
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
            before = [p.detach().clone() for p in self._parameters]
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = gradient
            self._optimizer.step()
            self._optimizer.zero_grad()
        change = torch.stack([(p.detach() - b).square().sum() for p, b in zip(self._parameters, before, strict=True)])
        self.last_change = {"entropy": loss.item(), "parameter_change": change.sum().sqrt().item()}
        return log_probabilities.detach()

    def _forward(self, inputs: Any) -> Tensor:
        for norm in self._batch_norms:
            norm.training = batch_size_of(inputs) > 1
        return forward(self.module, inputs)

    @outside_inference
    def reset(self) -> None:
        with torch.no_grad():
            for parameter, start in zip(self._parameters, self._start, strict=True):
                parameter.copy_(start)
        self._optimizer = torch.optim.Adam(self._parameters, lr=self.lr)
        self.last_change = {}

    def state_dict(self) -> dict[str, Any]:
        return copy.deepcopy(
            {"parameters": [p.detach() for p in self._parameters], "optimizer": self._optimizer.state_dict()}
        )

    @checked
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


def is_norm(module: nn.Module) -> bool:
    """Tells whether a module is a normalisation layer: torch's own, or one that a model brings along.

    Of the latter it is asked what a normalisation does: it has no submodules and only vectors for parameters, and
    answers the same to an input and to three times that input.

    Example:
        >>> class RMSNorm(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.ones(4))
        ...     def forward(self, x):
        ...         return self.weight * x / x.square().mean(-1, keepdim=True).sqrt()
        >>> is_norm(RMSNorm()), is_norm(nn.LayerNorm(4)), is_norm(nn.PReLU(4))
        (True, True, False)
    """
    if isinstance(module, _NORMS):
        return True
    weight = getattr(module, "weight", None)
    own = list(module.parameters(recurse=False))
    if not isinstance(weight, Tensor) or any(p.ndim != 1 for p in own) or any(True for _ in module.children()):
        return False
    x = torch.linspace(-10, 17, 3 * len(weight), dtype=weight.dtype, device=weight.device).view(3, -1)
    try:
        with torch.no_grad():
            one, three = module(x), module(3 * x)
    except (RuntimeError, TypeError, ValueError):  # takes something else than rows of vectors
        return False
    return (
        isinstance(one, Tensor) and bool(one.any()) and torch.allclose(one.float(), three.float(), rtol=1e-2, atol=1e-3)
    )


@checked
def tent(lr: float = 1e-3, *, steps: int = 1, batch_size: int = 64) -> Method:
    """Adapts normalisation layers to unlabelled test batches of ``batch_size`` by minimising their entropy.

    Args:
        lr, steps: as for ``Tent``.
        batch_size: of the test batches.

    Raises:
        ValueError: a negative ``lr``, or steps or a batch size below 1.

    Source: arXiv:2006.10726.

    Example:
        >>> tent(lr=1e-3).name
        'tent'
    """
    check_nonnegative(lr=lr)
    check_at_least(1, steps=steps, batch_size=batch_size)

    def predict(run: Run, module: nn.Module) -> Stream:
        return Stream(Tent(module, lr=lr, steps=steps), batch_size)

    return Method("tent", predict=predict, check=_check)


def _check(module: nn.Module, splits: Splits) -> str | None:
    _, targets = gather(splits.train, torch.arange(1))
    if reason := why_no_class_labels(targets):
        return reason
    if not any(True for m in module.modules() if is_norm(m) for _ in m.parameters(recurse=False)):
        return "the model has no normalisation layer with scale and shift"
    return None
