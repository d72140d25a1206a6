"""Core: What a continual strategy does at each place of a training loop.

A strategy is a handful of hooks. ``fit_stream`` calls them, and so can any loop: ``attach`` puts what concerns
gradients into the optimizer, so that a loop of one's own adds four lines (see ``ContinualStrategy``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import ConcatDataset

from heldout.errors import check_nonempty, check_steps_alone, checked
from heldout.method import as_dataset

ExampleLoss = Callable[[Tensor, Tensor], Tensor]
Objective = Callable[[Tensor, Tensor], Tensor]


class ContinualStrategy:
    """Fine-tuning on one task after the other, and the base of all strategies: every hook does nothing.

    Example:
        >>> from heldout.train import EWC
        >>> model, strategy = nn.Linear(2, 3), EWC(strength=10.0)
        >>> tasks = [(torch.randn(8, 2), torch.full((8,), label)) for label in range(3)]
        >>> for data in tasks:
        ...     strategy.begin_task(model, data)
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     with strategy.attach(optimizer, model):
        ...         inputs, targets = strategy.mix(*data)
        ...         outputs = model(inputs)
        ...         loss = nn.functional.cross_entropy(outputs, targets) + strategy.extra_loss(model, inputs, outputs)
        ...         loss.backward()
        ...         optimizer.step()
        ...     strategy.end_task(model, data)
        >>> strategy.tasks_done
        3
    """

    name = "finetune"
    keeps: tuple[str, ...] = ()
    """Attributes that have a state of their own, which a restart needs."""

    def __init__(self) -> None:
        self.tasks_done = 0
        self._handles: list[Any] = []
        self._saw_step = False

    def task_data(self, data: Any) -> Any:
        """Returns what a task is trained on, given its own data."""
        return data

    def begin_task(self, model: nn.Module, data: Any) -> None:
        """Called before the first step on a task's data."""

    def mix(self, inputs: Any, targets: Tensor) -> tuple[Any, Tensor]:
        """Returns the batch to train on, given one of the task."""
        return inputs, targets

    def new_share(self) -> float:
        """Returns the share of a mixed batch that is the task's own."""
        return 1.0

    def extra_loss(self, model: nn.Module, inputs: Any, outputs: Tensor) -> Tensor | float:
        """Returns what is added to the loss of a batch."""
        return 0.0

    def read_gradients(self, model: nn.Module) -> None:
        """Called when the gradients of the loss are there, before any strategy changes them."""

    def before_step(self, model: nn.Module) -> None:
        """Called after ``read_gradients``; may change the gradients."""

    def after_step(self, model: nn.Module) -> None:
        """Called when the step is made."""

    def end_task(self, model: nn.Module, data: Any) -> None:
        """Called after the last step on a task's data."""
        self.tasks_done += 1

    @contextmanager
    def attach(self, optimizer: Optimizer, model: nn.Module) -> Iterator[None]:
        """Makes an optimizer call ``read_gradients``, ``before_step`` and ``after_step`` around its steps in the block.

        An optimizer that is given a closure has the gradients changed after each evaluation of it.

        Raises:
            ValueError: at the end, where an optimizer of two calls a step (SAM) was stepped past its ``step``.
        """
        handles = self.hook(optimizer, model)
        first = next((p.detach().clone() for p in model.parameters() if p.requires_grad), None)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        moved = first is not None and not torch.equal(first, next(p for p in model.parameters() if p.requires_grad))
        if hasattr(optimizer, "second_step") and moved and not self._saw_step:
            raise ValueError(f"{self.name} has seen no step: call optimizer.step(closure), not first_step, second_step")

    def hook(self, optimizer: Optimizer, model: nn.Module) -> list[Any]:
        """As ``attach``, until the handles that it returns are removed.

        Raises:
            TypeError: an optimizer that evaluates the loss as often as it likes (LBFGS).
            ValueError: a second optimizer while another is attached; at a step: gradients that a GradScaler has scaled,
                and the optimizer would unscale by itself.
        """
        check_steps_alone(optimizer, f"the strategy {self.name}")
        if any(_is_attached(handle) for handle in self._handles):
            raise ValueError(
                f"the strategy {self.name} is attached to an optimizer already: give the parameters of both to one, in "
                "groups"
            )
        self._saw_step = False

        def before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self._saw_step = True
            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            if getattr(optimizer, "grad_scale", None) is not None:
                raise ValueError(
                    "gradients are still scaled: call scaler.unscale_(optimizer) before scaler.step(optimizer), or use "
                    "an optimizer without fused=True"
                )
            if closure is None:
                self.read_gradients(model)
                self.before_step(model)
                return None

            def with_changed_gradients() -> Any:
                loss = closure()
                self.read_gradients(model)
                self.before_step(model)
                return loss

            return (args[0], with_changed_gradients, *args[2:]), {k: v for k, v in kwargs.items() if k != "closure"}

        def after(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.after_step(model)

        self._handles = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
        return self._handles

    def state_dict(self) -> dict[str, Any]:
        """Returns what a restart between two tasks needs; ``torch.save`` it, load it with ``weights_only=True``."""
        return {"tasks_done": self.tasks_done, **{name: getattr(self, name).state_dict() for name in self.keeps}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what ``state_dict`` returned."""
        self.tasks_done = int(state["tasks_done"])
        for name in self.keeps:
            getattr(self, name).load_state_dict(state[name])


def _is_attached(handle: Any) -> bool:
    hooks = handle.hooks_dict_ref()
    return hooks is not None and handle.id in hooks


class Cumulative(ContinualStrategy):
    """Trains on all data so far at each task: the upper line, which keeps everything.

    Example:
        >>> strategy = Cumulative()
        >>> for label in range(2):
        ...     data = (torch.zeros(4, 2), torch.full((4,), label))
        ...     size = len(strategy.task_data(data))
        >>> size
        8
    """

    name = "cumulative"

    def __init__(self) -> None:
        super().__init__()
        self._sets: list[Any] = []

    @checked
    def task_data(self, data: Any) -> Any:
        """Returns the union of all data sets that were handed in."""
        self._sets.append(as_dataset(data, "data"))
        return self._sets[0] if len(self._sets) == 1 else ConcatDataset(self._sets)


class Combined(ContinualStrategy):
    """Several strategies at once, each hook in the order given.

    Raises:
        ValueError: none is given.

    Example:
        >>> from heldout.train import EWC, Replay
        >>> Combined(Replay(100), EWC(10.0)).name
        'replay+ewc'
    """

    @checked
    def __init__(self, *strategies: ContinualStrategy) -> None:
        super().__init__()
        check_nonempty(strategies=strategies)
        self.strategies: list[ContinualStrategy] = list(strategies)
        self.name = "+".join(strategy.name for strategy in strategies)

    @checked
    def add(self, strategy: ContinualStrategy) -> None:
        """Takes in one more strategy, before the first task."""
        self.strategies.append(strategy)
        self.name += f"+{strategy.name}"

    def task_data(self, data: Any) -> Any:
        """Returns what the last of them makes of it."""
        for strategy in self.strategies:
            data = strategy.task_data(data)
        return data

    def begin_task(self, model: nn.Module, data: Any) -> None:
        """Calls that of each."""
        for strategy in self.strategies:
            strategy.begin_task(model, data)

    def mix(self, inputs: Any, targets: Tensor) -> tuple[Any, Tensor]:
        """Returns the batch after each."""
        for strategy in self.strategies:
            inputs, targets = strategy.mix(inputs, targets)
        return inputs, targets

    def new_share(self) -> float:
        """Returns the product of the shares."""
        share = 1.0
        for strategy in self.strategies:
            share *= strategy.new_share()
        return share

    def extra_loss(self, model: nn.Module, inputs: Any, outputs: Tensor) -> Tensor | float:
        """Returns the sum over them."""
        return sum((strategy.extra_loss(model, inputs, outputs) for strategy in self.strategies), 0.0)

    def read_gradients(self, model: nn.Module) -> None:
        """Calls that of each."""
        for strategy in self.strategies:
            strategy.read_gradients(model)

    def before_step(self, model: nn.Module) -> None:
        """Calls that of each."""
        for strategy in self.strategies:
            strategy.before_step(model)

    def after_step(self, model: nn.Module) -> None:
        """Calls that of each."""
        for strategy in self.strategies:
            strategy.after_step(model)

    def end_task(self, model: nn.Module, data: Any) -> None:
        """Calls that of each."""
        for strategy in self.strategies:
            strategy.end_task(model, data)
        super().end_task(model, data)

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of all."""
        return {**super().state_dict(), "strategies": [strategy.state_dict() for strategy in self.strategies]}

    @checked
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what ``state_dict`` returned.

        Raises:
            ValueError: the state of another number of strategies.
        """
        if len(state["strategies"]) != len(self.strategies):
            raise ValueError(f"state is of {len(state['strategies'])} strategies, these are {len(self.strategies)}")
        super().load_state_dict(state)
        for strategy, own in zip(self.strategies, state["strategies"], strict=True):
            strategy.load_state_dict(own)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters that require a gradient, by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}
