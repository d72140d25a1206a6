"""Gradient coherence: how many training examples a step on one of them helps.

Source: arXiv:2203.10036 (Chatterjee, Zielinski).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from heldout.errors import check_nonempty, checked
from heldout.measure.gradients.layer_gradients import ExampleLoss
from heldout.measure.gradients.per_example import gradient_sums
from heldout.method import evaluating


@dataclass(frozen=True)
class Coherence:
    """How far the gradients of the examples agree.

    Attributes:
        alpha: squared length of the mean gradient over the mean squared length, in [0, 1]: what one common step gains,
            relative to a step of its own for each example. NaN where all gradients are zero.
        examples: number m of examples.
        by_layer: the same for the parameters of each module, by its name, where ``per_layer`` was asked for.
        energy: share of each module in the sum of squared lengths; ``alpha`` is the mean of ``by_layer`` under it.

    Example:
        >>> Coherence(alpha=0.25, examples=4).m_coherence  # a step on one example helps itself alone
        1.0
    """

    alpha: float
    examples: int
    by_layer: Mapping[str, float] = field(default_factory=dict)
    energy: Mapping[str, float] = field(default_factory=dict)

    @property
    def m_coherence(self) -> float:
        """How many of the m examples, itself included, a small step on one of them helps: 1 if none, m if all."""
        return self.alpha * self.examples


@checked
def gradient_coherence(
    model: nn.Module,
    data: Any,
    loss: ExampleLoss | None = None,
    *,
    params: Callable[[str], bool] | None = None,
    per_layer: bool = False,
    batch_size: int = 64,
) -> Coherence:
    """Returns the coherence of the examples' gradients at the model's present weights.

    High values mean that examples support each other. Random labels give values near 1 early in training, and later
    higher ones: coherence also comes about by memorisation, so it is no guarantee. Compare runs on equally many
    examples, without augmentation, at the same point of training.

    Args:
        model: any module, used in eval mode; a BatchNorm must be in eval mode already.
        data: a fixed subset of the training set: a data set, a pair of tensors or a DataLoader.
        loss: ``(outputs, targets) -> (batch,)``, not reduced; see ``per_example_grads`` for the default.
        params: which parameters, by name; default: all.
        per_layer: give ``by_layer`` and ``energy``.
        batch_size: examples at once.

    Raises:
        ValueError: fewer than 2 examples, gradients that are not finite, and as ``per_example_grads``.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> found = gradient_coherence(nn.Linear(2, 1, bias=False), (x, torch.ones(3, 1)))
        >>> found.examples, found.alpha < 1
        (3, True)

    Source: arXiv:2203.10036, section 2.
    """
    check_nonempty(data=data)
    sums = gradient_sums(model, data, loss, params=params, batch_size=batch_size)
    if sums.examples < 2:
        raise ValueError(f"gradient_coherence needs at least 2 examples, got {sums.examples}")
    together = {name: float(gradient.double().square().sum()) for name, gradient in sums.gradient.items()}
    alpha = _alpha(sum(together.values()), sum(sums.squared.values()), sums.examples)
    if not math.isfinite(sum(sums.squared.values())):
        raise ValueError("the gradients are not finite: look for NaN in the inputs, or for weights that have diverged")
    if math.isnan(alpha):
        warnings.warn("the gradients of all examples are zero: their coherence is undefined", stacklevel=2)
    if not per_layer:
        return Coherence(alpha, sums.examples)
    layers: dict[str, list[str]] = {}
    for name in together:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    alone = {layer: sum(sums.squared[name] for name in names) for layer, names in layers.items()}
    total = sum(alone.values())
    return Coherence(
        alpha,
        sums.examples,
        {k: _alpha(sum(together[name] for name in names), alone[k], sums.examples) for k, names in layers.items()},
        {layer: value / total if total else math.nan for layer, value in alone.items()},
    )


def _alpha(together: float, alone: float, examples: int) -> float:
    return together / (examples * alone) if alone > 0 else math.nan


class CoherenceTracker:
    """Measures the coherence of a fixed set of examples as training goes on.

    Args:
        model, data, loss: as ``gradient_coherence``.
        every: measure at every so many calls of ``step``, the first included.

    Attributes:
        history: ``(step, Coherence)`` of each measurement.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 2)
        >>> tracker = CoherenceTracker(model, (torch.rand(8, 2), torch.randint(0, 2, (8,))), every=10)
        >>> for step in range(25):
        ...     tracker.step()
        >>> [step for step, _ in tracker.history]
        [0, 10, 20]
    """

    @checked
    def __init__(self, model: nn.Module, data: Any, loss: ExampleLoss | None = None, *, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.model, self.data, self.loss, self.every = model, data, loss, every
        self.history: list[tuple[int, Coherence]] = []
        self._steps = 0

    def step(self) -> None:
        """Counts a training step; measures in eval mode, so with a BatchNorm's running statistics."""
        if self._steps % self.every == 0:
            with evaluating(self.model):
                self.history.append((self._steps, gradient_coherence(self.model, self.data, self.loss)))
        self._steps += 1
