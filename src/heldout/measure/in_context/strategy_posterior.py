"""When does a model switch strategy? A posterior over strategies of three numbers, fitted to outputs alone.

A strategy's prior falls with the bits of its description, its likelihood with its loss on what was trained on, and
training steps weigh as evidence: ``log w_q = -ln 2 K_q^beta - gamma N^(1 - alpha) L_q`` up to a constant.

Source: arXiv:2506.17859 (Wurgaft et al., NeurIPS 2025), equations 4 to 6.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_fields,
    check_finite,
    check_fraction,
    check_labels,
    check_nonempty,
    check_nonnegative,
    check_one_of,
    check_positive,
    check_values,
    checked,
)
from heldout.losses import check_choices

Loss = Literal["kl", "mse"]
Array = NDArray[np.float64]
Numbers = Mapping[str, float]
PARAMETERS = ("alpha", "beta", "gamma")
PUBLISHED_STARTS = ((0.6, 0.2, 0.85), (0.65, 0.3, 0.01), (0.8, 0.12, 1.5))  # urns, regression, classification
BOUNDS = ((1e-4, 1.0), (1e-4, 2.0), (1e-8, 1e6))


@dataclass(frozen=True, eq=False)
class StrategyCell:
    """A model at one moment of training beside the strategies, on the same inputs.

    Attributes:
        step: N, updates so far, at least 1. Of another batch size they are other evidence.
        tasks: D, tasks of training; says which cells belong together.
        outputs: the model's, probabilities ``(..., classes)`` or numbers.
        predictions: each strategy's, of the same shape, by name; at least 2.
        losses: each strategy's mean loss on what was trained on, as ``strategy_loss`` tells.
        bits: of each strategy's description, as ``BayesPredictor.complexity_bits`` tells.

    Raises:
        ValueError: fewer than 2 strategies, names or shapes that differ, values that are not finite, a step below 1.

    Example:
        >>> m, g = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.5]])
        >>> cell = StrategyCell(100, 4, m, {"M": m, "G": g}, losses={"M": 0.4, "G": 0.7}, bits={"M": 900.0, "G": 80.0})
        >>> cell.step
        100
    """

    step: int
    tasks: int
    outputs: Tensor
    predictions: Mapping[str, Tensor]
    losses: Numbers
    bits: Numbers

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(1, step=self.step, tasks=self.tasks)
        check_values(outputs=self.outputs, predictions=self.predictions)
        _check_strategies(self.losses, self.bits)
        if set(self.predictions) != set(self.losses):
            raise ValueError(f"predictions must be of {sorted(self.losses)}, got {sorted(self.predictions)}")
        for name, each in self.predictions.items():
            if each.shape != self.outputs.shape:
                raise ValueError(
                    f"predictions of {name} must be as outputs, {tuple(self.outputs.shape)}, got {tuple(each.shape)}"
                )


@dataclass(frozen=True)
class StrategyPosterior:
    """The weight of each strategy at each step of training.

    The defaults are where the published fit for urns starts.

    Attributes:
        alpha: how much less than proportionally steps count as evidence; 0 counts each.
        beta: power of the bits in the prior; 0 makes all strategies equally likely beforehand.
        gamma: weight of the evidence; 0 leaves the prior.

    Raises:
        ValueError: numbers that are negative or not finite.

    Source: arXiv:2506.17859. Left out: its optional term of evidence within the context.

    Example:
        >>> posterior = StrategyPosterior()
        >>> losses, bits = {"M": 1.6, "G": 1.8}, {"M": 4000.0, "G": 600.0}
        >>> [round(posterior.weights(step, losses, bits)["M"], 2) for step in (10, 100, 1000)]
        [0.33, 0.48, 0.82]
        >>> round(posterior.log_odds(1000, losses, bits, of="M", against="G"), 2)
        1.54
    """

    alpha: float = 0.6
    beta: float = 0.2
    gamma: float = 0.85

    def __post_init__(self) -> None:
        check_fields(self)
        check_nonnegative(alpha=self.alpha, beta=self.beta, gamma=self.gamma)

    @checked
    def weights(self, step: int, losses: Numbers, bits: Numbers) -> dict[str, float]:
        """Returns the weight of each strategy after ``step`` updates; they sum to 1.

        Args:
            step: N, at least 1.
            losses, bits: of each strategy, by name, as in ``StrategyCell``.

        Raises:
            ValueError: a step below 1, fewer than 2 strategies, names that differ, numbers that are not finite.
        """
        check_at_least(1, step=step)
        _check_strategies(losses, bits)
        evidence = {name: self.gamma * step ** (1 - self.alpha) * loss for name, loss in losses.items()}
        logs = [-math.log(2) * bits[name] ** self.beta - each for name, each in evidence.items()]
        total = float(np.logaddexp.reduce(logs))
        return {name: math.exp(each - total) for name, each in zip(losses, logs, strict=True)}

    @checked
    def log_odds(self, step: int, losses: Numbers, bits: Numbers, *, of: str, against: str) -> float:
        """Returns ``gamma N^(1 - alpha) (L_against - L_of) - ln 2 (K_of^beta - K_against^beta)``, the log odds.

        Args:
            step, losses, bits: as for ``weights``.
            of, against: names of two strategies.

        Raises:
            ValueError: as ``weights``, or a name that is no strategy.
        """
        check_at_least(1, step=step)
        _check_strategies(losses, bits)
        check_one_of(losses, of=of, against=against)
        evidence = self.gamma * step ** (1 - self.alpha) * (losses[against] - losses[of])
        return evidence - math.log(2) * (bits[of] ** self.beta - bits[against] ** self.beta)

    @checked
    def predict(self, step: int, predictions: Mapping[str, Tensor], losses: Numbers, bits: Numbers) -> Tensor:
        """Returns what a model is expected to output after ``step`` updates: the strategies' outputs, weighed.

        Args:
            step, losses, bits: as for ``weights``.
            predictions: each strategy's outputs, by name, of one shape.

        Raises:
            ValueError: as ``weights``, or predictions of other strategies or of different shapes.
        """
        weights = self.weights(step, losses, bits)
        if set(predictions) != set(weights) or len({each.shape for each in predictions.values()}) > 1:
            raise ValueError(f"predictions must be of {sorted(weights)} and of one shape, got {sorted(predictions)}")
        return torch.stack([weight * predictions[name] for name, weight in weights.items()]).sum(0)

    @checked
    def loss(self, cells: Sequence[StrategyCell], distance: Loss = "kl") -> float:
        """Returns the distance of the models' outputs from what is expected of them, averaged over cells.

        Args:
            cells: at least one.
            distance: "kl", ``KL(model || expected)`` in nats a position; or "mse", the mean squared difference.

        Raises:
            ValueError: no cell, cells of different strategies, an expected probability of 0 where the model's is not.
        """
        data = _Cells(cells, distance)
        weights = [self.weights(cell.step, cell.losses, cell.bits) for cell in cells]
        return data.loss_and_slope(np.array([[each[name] for name in data.names] for each in weights]))[0]

    @checked
    def fit(
        self, cells: Sequence[StrategyCell], distance: Loss = "kl", *, fixed: Collection[str] = ()
    ) -> StrategyPosterior:
        """Returns the posterior whose three numbers, the same for all cells, bring it nearest to the models' outputs.

        By L-BFGS-B over the logarithms, from its own numbers and from the three published starts, of which the best
        end counts; alpha is at most 1. Costs about 100 passes over the outputs.

        Args:
            cells: of at least 2 steps; outputs of the same or of different models, contexts and D.
            distance: as for ``loss``; "kl" for probabilities, "mse" for numbers.
            fixed: of "alpha", "beta", "gamma", those that stay as they are: an ablation sets one to 0 and fixes it.

        Raises:
            ValueError: as ``loss``, cells of one step only, unknown names in ``fixed``, or nothing left to fit.

        Source: arXiv:2506.17859, appendix.

        Example:
            >>> m, g = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.4, 0.6]])
            >>> truth, cells = StrategyPosterior(0.5, 0.25, 0.4), []
            >>> for step in (10, 30, 100, 300):
            ...     for tasks in (4, 16, 64):
            ...         known = {"losses": {"M": 1.6, "G": 2.0 - 0.05 * tasks ** 0.5},
            ...                  "bits": {"M": 64.0 * tasks, "G": 80.0}}
            ...         outputs = truth.predict(step, {"M": m, "G": g}, **known)
            ...         cells.append(StrategyCell(step, tasks, outputs, {"M": m, "G": g}, **known))
            >>> StrategyPosterior().fit(cells).loss(cells) < 1e-6
            True
        """
        from scipy.optimize import minimize

        for name in fixed:
            check_one_of(PARAMETERS, fixed=name)
        free = [i for i, name in enumerate(PARAMETERS) if name not in fixed]
        data = _Cells(cells, distance)
        if not free:
            raise ValueError("fixed must leave at least one number to fit")
        if len({cell.step for cell in cells}) < 2:
            raise ValueError("cells must be of at least 2 steps")
        own = (self.alpha, self.beta, self.gamma)

        def at(logs: Array) -> tuple[float, Array]:
            values = np.array(own)
            values[free] = np.exp(logs)
            found, slope = data.loss_and_slope(*data.weights_and_slopes(values))
            return found, (slope * values)[free]

        low, high = np.log(np.array(BOUNDS)[free]).T
        starts = np.log(np.maximum(np.array([own, *PUBLISHED_STARTS])[:, free], 1e-300)).clip(low, high)
        options = {"maxiter": 200, "ftol": 1e-12, "gtol": 1e-9}
        bounds = list(zip(low, high, strict=True))
        ends = [
            minimize(at, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
            for start in np.unique(starts, axis=0)
        ]
        best = min(ends, key=lambda end: end.fun)
        return replace(self, **{PARAMETERS[i]: float(value) for i, value in zip(free, np.exp(best.x), strict=True)})


@checked
def strategy_loss(outputs: Tensor, targets: Tensor, *, groups: int = 8) -> float:
    """Returns a predictor's loss on sequences, by the median of means, which a few odd sequences do not move.

    Args:
        outputs: probabilities ``(n, ..., classes)`` of int64 targets ``(n, ...)``, for the mean negative
            log-likelihood in nats; or numbers of the shape of real targets, for the mean squared error.
        targets: at least ``groups`` sequences.
        groups: of sequences, whose means have the median returned.

    Raises:
        ValueError: shapes that do not fit, too few sequences, a target of probability 0, values that are not finite.

    Source: arXiv:2506.17859, code.

    Example:
        >>> round(strategy_loss(torch.full((8, 5, 2), 0.5), torch.ones(8, 5, dtype=torch.int64)), 4)
        0.6931
    """
    check_at_least(1, groups=groups)
    check_values(outputs=outputs, targets=targets)
    if targets.is_floating_point():
        if outputs.shape != targets.shape:
            raise ValueError(f"outputs must be as targets, {tuple(targets.shape)}, got {tuple(outputs.shape)}")
        losses = (outputs.double() - targets.double()).square()
    else:
        if outputs.shape[:-1] != targets.shape:
            raise ValueError(
                f"outputs must be (n, ..., classes) of targets {tuple(targets.shape)}, got {tuple(outputs.shape)}"
            )
        check_choices(outputs=outputs.flatten(0, -2))
        check_labels(outputs.shape[-1], targets=targets)
        losses = -outputs.double().gather(-1, targets.long().unsqueeze(-1)).squeeze(-1).log()
    if len(losses) < groups:
        raise ValueError(f"targets must be of at least groups={groups} sequences, got {len(losses)}")
    if not bool(losses.isfinite().all()):
        raise ValueError("outputs must not give a target a probability of 0")
    means = torch.stack([part.mean() for part in losses.tensor_split(groups)])
    return float(means.quantile(0.5))


@checked
def hold_out_cells(cells: Sequence[StrategyCell], share: float = 0.8) -> tuple[list[StrategyCell], list[StrategyCell]]:
    """Returns the cells to fit, of the first steps and the smallest D, and all others, later or of more tasks.

    Args:
        cells: of several steps and several D.
        share: of the steps, and of the D, that are fitted, rounded down.

    Raises:
        ValueError: a grid so small that fewer than 2 steps or D are left to fit, or none is held out.

    Source: arXiv:2506.17859, which fits the first 80 %.

    Example:
        >>> m, g = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.5]])
        >>> cells = [
        ...     StrategyCell(step, tasks, m, {"M": m, "G": g}, {"M": 0.4, "G": 0.7}, {"M": 900.0, "G": 80.0})
        ...     for step in range(1, 6) for tasks in (4, 8, 16, 32, 64)
        ... ]
        >>> [len(part) for part in hold_out_cells(cells)]
        [16, 9]
    """
    check_nonempty(cells=cells)
    check_fraction(share=share)
    limits = []
    for name in ("step", "tasks"):
        values = sorted({getattr(cell, name) for cell in cells})
        kept = int(share * len(values) + 1e-9)
        if not 2 <= kept < len(values):
            raise ValueError(
                f"cells must be of so many values of {name} that a share of {share:g} leaves 2 to fit and holds out "
                f"one, got {len(values)}"
            )
        limits.append(values[kept - 1])
    fitted = [cell for cell in cells if cell.step <= limits[0] and cell.tasks <= limits[1]]
    return fitted, [cell for cell in cells if cell.step > limits[0] or cell.tasks > limits[1]]


class _Cells:
    """Cells as tables, and the outputs of each in float64."""

    def __init__(self, cells: Sequence[StrategyCell], distance: Loss) -> None:
        check_nonempty(cells=cells)
        self.names = list(cells[0].losses)
        if any(set(cell.losses) != set(self.names) for cell in cells):
            raise ValueError(f"cells must be of the same strategies, {sorted(self.names)}")
        self.distance = distance
        self.steps = np.array([[float(cell.step)] for cell in cells])
        self.losses, self.bits = (
            np.array([[getattr(cell, table)[name] for name in self.names] for cell in cells], np.float64)
            for table in ("losses", "bits")
        )
        stacked: dict[tuple[int, ...], Tensor] = {}  # cells of one model share the strategies' outputs
        self.pairs = []
        for cell in cells:
            predictions = [cell.predictions[name] for name in self.names]
            key = tuple(map(id, predictions))
            if key not in stacked:
                stacked[key] = torch.stack(predictions).detach().double()
            outputs = cell.outputs.detach().double()
            if distance == "kl":
                for each in (outputs, *stacked[key]):
                    check_choices(cells=each.flatten(0, -2))
                if bool(((stacked[key] == 0).all(0) & (outputs > 0)).any()):
                    raise ValueError("cells must not have outputs that all strategies give a probability of 0")
            self.pairs.append((outputs, stacked[key]))

    def weights_and_slopes(self, values: Array) -> tuple[Array, Array]:
        """Weights ``(cells, strategies)`` of alpha, beta and gamma, and their derivatives by each of the three."""
        alpha, beta, gamma = values
        amount = self.steps ** (1 - alpha)
        evidence, surprise = amount * self.losses, math.log(2) * self.bits**beta
        logs = -surprise - gamma * evidence
        weights = np.exp(logs - np.logaddexp.reduce(logs, axis=1, keepdims=True))
        slopes = np.stack([gamma * np.log(self.steps) * evidence, -surprise * np.log(self.bits), -evidence])
        return weights, weights * (slopes - (weights * slopes).sum(2, keepdims=True))

    def loss_and_slope(self, weights: Array, slopes: Array | None = None) -> tuple[float, Array]:
        """The mean over cells, and its derivatives by what the slopes are of."""
        total, by_weight = 0.0, np.zeros_like(weights)
        for i, (outputs, predictions) in enumerate(self.pairs):
            expected = torch.tensordot(outputs.new_tensor(weights[i]), predictions, 1)
            if self.distance == "mse":
                error = expected - outputs
                count, value, slope = error.numel(), error.square().sum(), 2 * error
            else:
                count = expected[..., 0].numel()
                value = (torch.xlogy(outputs, outputs) - torch.xlogy(outputs, expected)).sum()
                slope = torch.where(outputs > 0, -outputs / expected, 0.0)
            total += float(value) / count
            if slopes is not None:
                by_weight[i] = (predictions.flatten(1) @ slope.flatten()).cpu().numpy() / count
        found = np.zeros(0) if slopes is None else (slopes * by_weight).sum((1, 2)) / len(self.pairs)
        return total / len(self.pairs), found


def _check_strategies(losses: Numbers, bits: Numbers) -> None:
    if len(losses) < 2:
        raise ValueError(f"losses must be of at least 2 strategies, got {len(losses)}")
    if set(losses) != set(bits):
        raise ValueError(f"losses and bits must be of the same strategies, got {sorted(losses)} and {sorted(bits)}")
    check_finite(losses=losses)
    check_positive(bits=list(bits.values()))
