"""Core: Strategies that pull parameters back to where they were, the more the more they matter: EWC, SI, RWalk.

Sources: arXiv:1612.00796 (EWC), arXiv:1805.06370 (online EWC), arXiv:1703.04200 (SI), arXiv:1801.10112 (RWalk).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from heldout.errors import (
    check_at_least,
    check_between,
    check_nonnegative,
    check_one_of,
    check_positive,
    checked,
)
from heldout.measure import FisherKind, fisher_diagonal
from heldout.method import as_dataset
from heldout.train.continual.quadratic_penalty import QuadraticPenalty
from heldout.train.continual.strategy import ContinualStrategy, trainable

ExampleLoss = Callable[[Tensor, Tensor], Tensor]


class _Anchored(ContinualStrategy):
    """A strategy that pulls parameters back to where they were, the more the more important they are."""

    keeps = ("penalty",)

    def __init__(self, strength: float) -> None:
        super().__init__()
        check_nonnegative(strength=strength)
        self.strength = strength
        self.penalty = QuadraticPenalty()

    def before_step(self, model: nn.Module) -> None:
        """Adds the penalty's gradient, which costs a few passes over the parameters and no backward pass."""
        if not self.strength or not self.penalty.importance:
            return
        own = trainable(model)
        pull = {name: value for name, value in self.penalty.gradient(model).items() if name in own}
        for name in [name for name in pull if own[name].grad is None]:
            own[name].grad = torch.zeros_like(own[name])
        grads: list[Any] = [own[name].grad for name in pull]
        torch._foreach_add_(grads, list(pull.values()), alpha=self.strength)

    def anchor(self, importance: Mapping[str, Tensor], model: nn.Module) -> None:
        """Puts penalties around the model's parameters in the place of those before; others stay (of frozen ones)."""
        own = dict(model.named_parameters())
        ends = {name: own[name].detach() for name in importance}
        known = self.penalty
        self.penalty.replace({**known.importance, **importance}, {**known.anchor, **ends})


class EWC(_Anchored):
    """Elastic weight consolidation: ``strength / 2 * sum_i F_i (theta_i - theta*_i)^2`` for each earlier task.

    F is the diagonal of the Fisher information on the task's data at its end.

    Args:
        strength: of the penalty, at least 0. What is right depends on the scale of the Fisher information: search it on
            a grid of powers of ten. Where ``strength * F`` times the learning rate exceeds 2, plain steps diverge.
        decay: None adds up the penalties of all tasks (in the memory of one); a number gamma in [0, 1] keeps one
            penalty around the newest end, with ``F <- gamma F + F_t`` (online EWC).
        loss: ``(outputs, targets) -> (batch,)`` of each example, see ``fisher_diagonal``.
        kind: of the Fisher information, "empirical" or "model".
        examples: most examples of a task that the Fisher information is taken over; default: all.
        batch_size: examples at once for it.
        seed: of the choice of examples, and of drawn labels.

    Raises:
        ValueError: options out of range.

    Source: arXiv:1612.00796, equation 3; online: arXiv:1805.06370, section 4.

    Example:
        >>> model, strategy = nn.Linear(2, 2), EWC(strength=2.0)
        >>> strategy.end_task(model, (torch.ones(4, 2), torch.tensor([0, 1, 0, 1])))
        >>> sorted(strategy.penalty.importance), strategy.penalty.value(model).item()
        (['bias', 'weight'], 0.0)
    """

    name = "ewc"

    @checked
    def __init__(
        self,
        strength: float = 10.0,
        *,
        decay: float | None = None,
        loss: ExampleLoss | None = None,
        kind: FisherKind = "empirical",
        examples: int | None = None,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(strength / 2 if strength >= 0 else strength)
        check_one_of(("empirical", "model"), kind=kind)
        check_at_least(1, batch_size=batch_size)
        if decay is not None:
            check_between(0, 1, decay=decay)
        if examples is not None:
            check_at_least(1, examples=examples)
        self.decay, self.loss, self.kind = decay, loss, kind
        self.examples, self.batch_size, self.seed = examples, batch_size, seed

    @checked
    def end_task(self, model: nn.Module, data: Any) -> None:
        """Adds the task's penalty."""
        dataset = as_dataset(data, "data")
        if self.examples is not None and len(dataset) > self.examples:
            order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(self.seed + self.tasks_done))
            dataset = torch.utils.data.Subset(dataset, order[: self.examples].tolist())
        fisher = fisher_diagonal(
            model,
            dataset,
            self.loss,
            kind=self.kind,
            batch_size=self.batch_size,
            seed=self.seed,
        )
        if self.decay is None:
            self.penalty.add(fisher, {name: value.detach() for name, value in trainable(model).items()})
        else:
            old = self.penalty.importance
            self.anchor({n: f + self.decay * old[n] if n in old else f for n, f in fisher.items()}, model)
        super().end_task(model, data)


class SynapticIntelligence(_Anchored):
    """Synaptic intelligence: parameters matter by how much of the loss their own paths have lowered.

    Along a task ``omega_i`` adds up ``-g_i * change_i`` with g the gradient of the loss without the penalty; at its end
    ``Omega_i += omega_i / (Delta_i^2 + xi)`` with Delta_i the way from the task's start. The penalty is
    ``strength * sum_i Omega_i (theta_i - theta*_i)^2``. Gradients are taken as the optimizer gets them: where a loop
    clips them first, the clipped ones. A parameter whose omega is below 0 (its path has raised the loss) counts as 0.

    Args:
        strength: c of the paper, at least 0.
        xi: above 0, keeps the importance of parameters that hardly moved small.

    Raises:
        ValueError: options out of range.

    Source: arXiv:1703.04200, equations 3 to 5.

    Example:
        >>> SynapticIntelligence(0.1).name
        'si'
    """

    name = "si"

    @checked
    def __init__(self, strength: float = 0.1, *, xi: float = 0.1) -> None:
        super().__init__(strength)
        check_positive(xi=xi)
        self.xi = xi
        self._path: dict[str, Tensor] = {}
        self._before: dict[str, tuple[Tensor, Tensor]] = {}

    def begin_task(self, model: nn.Module, data: Any) -> None:
        """Remembers where the task starts."""
        own = trainable(model)
        self._start = {name: value.detach().clone() for name, value in own.items()}
        self._before = {}
        self._path = {name: torch.zeros_like(value) for name, value in own.items()}

    def read_gradients(self, model: nn.Module) -> None:
        """Keeps the gradient of the loss at the weights that the step leaves."""
        self._before = self._before or _snapshot(model)  # not those where SAM evaluates the loss again

    def after_step(self, model: nn.Module) -> None:
        """Adds the step to the path integral."""
        for name, decrease in _decreases(model, self._before).items():
            if name not in self._path:  # it was frozen when the task began
                self._path[name] = torch.zeros_like(decrease)
                self._start[name] = self._before[name][0]
            self._path[name] += decrease
        self._before = {}

    def end_task(self, model: nn.Module, data: Any) -> None:
        """Turns the path integral into importances."""
        own = dict(model.named_parameters())
        if not self._path:
            raise ValueError("end_task needs begin_task before it")
        gained = {
            name: (path / ((own[name].detach() - self._start[name]).square() + self.xi)).clamp(min=0)
            for name, path in self._path.items()
        }
        old = self.penalty.importance
        self.anchor({name: old[name] + value if name in old else value for name, value in gained.items()}, model)
        self._path = {}
        super().end_task(model, data)


class RWalk(_Anchored):
    """Riemannian walk: an online Fisher information and a score of the path, both scaled to [0, 1].

    ``F <- rate g^2 + (1 - rate) F`` at every step, with g the gradient of the batch; every few steps the score of a
    parameter grows by the loss that it has lowered, over ``F_i change_i^2 / 2``, where that is positive. At the end of
    a task scores are averaged with those of before, and the penalty is
    ``strength * sum_i (F_i + s_i) (theta_i - theta*_i)^2``.

    Args:
        strength: lambda of the paper, at least 0.
        rate: alpha of the moving average, in (0, 1].
        every: steps between two updates of the score, at least 1.
        epsilon: added to the denominator, above 0.

    Raises:
        ValueError: options out of range.

    Source: arXiv:1801.10112, sections 4.2 to 4.4. Its exemplars are those of ``Replay``: use ``Combined``.

    Example:
        >>> RWalk(strength=1.0).name
        'rwalk'
    """

    name = "rwalk"

    @checked
    def __init__(self, strength: float = 1.0, *, rate: float = 0.9, every: int = 10, epsilon: float = 1e-3) -> None:
        super().__init__(strength)
        check_positive(rate=rate, epsilon=epsilon)
        check_between(0, 1, rate=rate)
        check_at_least(1, every=every)
        self.rate, self.every, self.epsilon = rate, every, epsilon
        self._fisher: dict[str, Tensor] = {}
        self._score: dict[str, Tensor] = {}
        self._before: dict[str, tuple[Tensor, Tensor]] = {}
        self._steps = 0

    def begin_task(self, model: nn.Module, data: Any) -> None:
        """Starts the task's own score."""
        own = trainable(model)
        self._gain = {name: torch.zeros_like(value) for name, value in own.items()}
        self._lowered = {name: torch.zeros_like(value) for name, value in own.items()}
        self._last = {name: value.detach().clone() for name, value in own.items()}
        self._before = {}
        self._steps = 0

    def read_gradients(self, model: nn.Module) -> None:
        """Updates the Fisher information with the gradient of the loss."""
        if not self._before:  # not where SAM evaluates the loss again
            self._before = _snapshot(model)
            for name, (_, grad) in self._before.items():
                square = grad.square()
                known = self._fisher.get(name)
                self._fisher[name] = square if known is None else known.lerp(square, self.rate)

    def after_step(self, model: nn.Module) -> None:
        """Adds the step to what was lowered, and every few steps that to the score."""
        for name, decrease in _decreases(model, self._before).items():
            if name not in self._last:  # it was frozen when the task began
                self._gain[name], self._lowered[name] = torch.zeros_like(decrease), torch.zeros_like(decrease)
                self._last[name] = self._before[name][0]
            self._lowered[name] += decrease
        self._before = {}
        self._steps += 1
        if self._steps % self.every == 0:
            self._score_path(model)

    def _score_path(self, model: nn.Module) -> None:
        for name, value in trainable(model).items():
            if name not in self._fisher or name not in self._last:
                continue
            moved = value.detach() - self._last[name]
            cost = 0.5 * self._fisher[name] * moved.square() + self.epsilon
            self._gain[name] += (self._lowered[name] / cost).clamp(min=0)
            self._last[name] = value.detach().clone()
            self._lowered[name].zero_()

    def end_task(self, model: nn.Module, data: Any) -> None:
        """Turns Fisher information and scores into importances."""
        if not self._fisher:
            raise ValueError("end_task needs a step before it")
        if self._steps % self.every:
            self._score_path(model)
        old = self._score
        new = {name: (old[name] + gain) / 2 if name in old else gain for name, gain in self._gain.items()}
        self._score = {**old, **new}
        fisher, score = _scaled(self._fisher), _scaled(self._score)
        self.anchor({name: fisher[name] + score[name] for name in fisher if name in score}, model)
        super().end_task(model, data)

    def state_dict(self) -> dict[str, Any]:
        """Returns the online Fisher information and the scores, too."""
        return {**super().state_dict(), "fisher": dict(self._fisher), "score": dict(self._score)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what ``state_dict`` returned."""
        super().load_state_dict(state)
        self._fisher, self._score = dict(state["fisher"]), dict(state["score"])


def _snapshot(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Values and gradients of the parameters that have a gradient, copied."""
    return {
        name: (value.detach().clone(), value.grad.detach().clone())
        for name, value in trainable(model).items()
        if value.grad is not None and value.grad.isfinite().all()  # not where a GradScaler skips the step
    }


def _decreases(model: nn.Module, before: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """By how much each parameter has lowered the loss in a step, to first order: ``-g * change``."""
    own = dict(model.named_parameters())
    return {name: -grad * (own[name].detach() - value) for name, (value, grad) in before.items()}


def _scaled(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values scaled to [0, 1] over all parameters together."""
    low = min(float(value.min()) for value in values.values())
    high = max(float(value.max()) for value in values.values())
    span = high - low
    return {name: (value - low) / span if span > 0 else torch.zeros_like(value) for name, value in values.items()}
