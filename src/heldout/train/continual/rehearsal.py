"""Core: Strategies that keep examples of earlier tasks, or what the model said before: replay, A-GEM, LwF.

Sources: arXiv:1902.10486 (replay of a tiny memory), arXiv:1812.00420 (A-GEM), arXiv:1606.09282 (LwF).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from heldout.data import to_device
from heldout.errors import (
    check_at_least,
    check_nonnegative,
    check_positive,
    check_same_length,
    checked,
)
from heldout.losses import distillation_loss
from heldout.measure import default_example_loss
from heldout.method import as_dataset, device_of, evaluating, forward
from heldout.nn import inputs_for
from heldout.train.continual.exemplars import ExemplarMemory, MemoryPolicy, joined
from heldout.train.continual.strategy import ContinualStrategy, trainable

Objective = Callable[[Tensor, Tensor], Tensor]


class Replay(ContinualStrategy):
    """Trains on examples of earlier tasks beside those of the task.

    Args:
        capacity: examples that are kept, at least 1.
        per_new: examples of the memory for each new one in a batch, above 0; 1 gives half and half.
        policy: of the memory, see ``ExemplarMemory``.
        features: ``(model, data) -> (len(data), dim)``; with it the memory is chosen by herding.
        seed: of the memory and its draws.

    Attributes:
        memory: the ``ExemplarMemory``.

    Raises:
        ValueError: options out of range.

    Source: arXiv:1902.10486.

    Example:
        >>> strategy = Replay(4)
        >>> strategy.end_task(nn.Linear(1, 2), (torch.zeros(6, 1), torch.zeros(6).long()))
        >>> inputs, targets = strategy.mix(torch.ones(3, 1), torch.ones(3).long())
        >>> targets.tolist()
        [1, 1, 1, 0, 0, 0]
    """

    name = "replay"
    keeps = ("memory",)

    @checked
    def __init__(
        self,
        capacity: int,
        *,
        per_new: float = 1.0,
        policy: MemoryPolicy = "task",
        features: Callable[[nn.Module, Any], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_positive(per_new=per_new)
        self.per_new, self.features = per_new, features
        self.memory = ExemplarMemory(capacity, policy, seed=seed)

    def new_share(self) -> float:
        """Returns 1 while the memory is empty, then ``1 / (1 + per_new)``."""
        return 1 / (1 + self.per_new) if len(self.memory) else 1.0

    @checked
    def mix(self, inputs: Any, targets: Tensor) -> tuple[Any, Tensor]:
        """Returns the batch followed by ``per_new`` times as many examples of the memory, at least one.

        Raises:
            ValueError: inputs and targets of different lengths, or of another form than those of the memory.
        """
        check_same_length(inputs=inputs if isinstance(inputs, Tensor) else None, targets=targets)
        if not len(self.memory):
            return inputs, targets
        old_inputs, old_targets = self.memory.sample(max(1, round(self.per_new * len(targets))))
        return joined(inputs, old_inputs), joined(targets, old_targets)

    @checked
    def end_task(self, model: nn.Module, data: Any) -> None:
        """Takes up examples of the task's data."""
        features = self.features(model, as_dataset(data, "data")) if self.features else None
        self.memory.add(data, self.tasks_done, features=features)
        super().end_task(model, data)


class AGEM(ContinualStrategy):
    """Averaged gradient episodic memory: a step may not raise the loss on the memory, to first order.

    Where the gradient g points against that of a batch of the memory, r, it becomes ``g - (g.r / r.r) r``. Each step
    costs one more forward and backward pass. The memory's pass is in eval mode, so that running statistics stay.

    Args:
        capacity: examples that are kept, at least 1.
        batch_size: of the memory's batch.
        loss: ``(outputs, targets) -> scalar``; default: that of ``fit_stream``.
        policy: of the memory, see ``ExemplarMemory``.
        seed: of the memory and its draws.

    Raises:
        ValueError: options out of range.

    Source: arXiv:1812.00420, equation 11.

    Example:
        >>> AGEM(10).name
        'agem'
    """

    name = "agem"
    keeps = ("memory",)

    @checked
    def __init__(
        self,
        capacity: int,
        *,
        batch_size: int = 64,
        loss: Objective | None = None,
        policy: MemoryPolicy = "task",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_at_least(1, batch_size=batch_size)
        self.batch_size, self.loss = batch_size, loss
        self.memory = ExemplarMemory(capacity, policy, seed=seed)

    def before_step(self, model: nn.Module) -> None:
        """Projects the gradient where it would raise the loss on a batch of the memory."""
        if not len(self.memory):
            return
        inputs, targets = self.memory.sample(min(self.batch_size, len(self.memory)))
        targets = to_device(targets, device_of(model))
        own = [value for value in trainable(model).values() if value.grad is not None]
        default = default_example_loss(model)
        loss = self.loss or (lambda outputs, targets: default(outputs, targets).mean())
        with evaluating(model), torch.enable_grad():
            value = loss(forward(model, inputs_for(model, inputs)), targets)
            reference = torch.autograd.grad(value, own, allow_unused=True)
        pairs: list[tuple[Any, Tensor]] = [(p.grad, r) for p, r in zip(own, reference, strict=True) if r is not None]
        dot = sum(((g * r).sum() for g, r in pairs), torch.zeros((), device=device_of(model)))  # type: ignore[operator]
        if dot >= 0:
            return
        length = sum((r.square().sum() for _, r in pairs), torch.zeros_like(dot))
        share = -dot / length
        for gradient, along in pairs:
            gradient.add_(along * share)

    @checked
    def end_task(self, model: nn.Module, data: Any) -> None:
        """Takes up examples of the task's data."""
        self.memory.add(data, self.tasks_done)
        super().end_task(model, data)


class LwF(ContinualStrategy):
    """Learning without forgetting: on the new data the model keeps saying what it said before the task.

    Adds ``strength T^2 KL(before || now)`` over all outputs, at temperature T, with the model as it was at the end of
    the task before. Each step costs one more forward pass.

    Args:
        strength: of the distillation, at least 0.
        temperature: above 0.

    Raises:
        ValueError: options out of range.

    Source: arXiv:1606.09282, equation 2, with one output for all tasks.

    Example:
        >>> LwF(strength=1.0).name
        'lwf'
    """

    name = "lwf"

    @checked
    def __init__(self, strength: float = 1.0, *, temperature: float = 2.0) -> None:
        super().__init__()
        check_nonnegative(strength=strength)
        check_positive(temperature=temperature)
        self.strength, self.temperature = strength, temperature
        self._before: nn.Module | None = None

    def begin_task(self, model: nn.Module, data: Any) -> None:
        """Keeps a copy of the model, once a task was learnt."""
        self._before = copy.deepcopy(model).eval().requires_grad_(False) if self.tasks_done else None

    @checked
    def extra_loss(self, model: nn.Module, inputs: Any, outputs: Tensor) -> Tensor | float:
        """Returns the distillation of the model as it was before the task.

        Raises:
            ValueError: outputs of a single number, whose softmax is always 1.
        """
        if self._before is None or not self.strength:
            return 0.0
        if outputs.shape[-1] < 2:
            raise ValueError(f"lwf distils the probabilities of classes, the outputs are {tuple(outputs.shape)}")
        with torch.no_grad():
            before = forward(self._before, inputs)
        return self.strength * distillation_loss(outputs, before, self.temperature)
