"""Core: Which of several known strategies does a model follow? Weights from its outputs and theirs alone.

Source: arXiv:2506.17859, "relative distance"; for more than two strategies the barycentric weights of its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_fraction, check_values, checked
from heldout.losses import check_choices

Distance = Literal["skl", "mse"]


@checked
def output_distance(a: Tensor, b: Tensor, distance: Distance = "skl", *, floor: float = 0.0) -> float:
    """Returns how far two models' outputs are apart, averaged over sequences and positions.

    Args:
        a, b: probabilities ``(..., classes)`` for "skl", numbers of any shape for "mse".
        distance: "skl", the mean of both Kullback-Leibler divergences, in nats; or "mse", the mean squared difference.
        floor: smallest probability; smaller ones are raised to it and rows rescaled. At 0 none may be 0.

    Raises:
        ValueError: different shapes, rows that are no probabilities, zeros without a floor, values that are not finite.

    Example:
        >>> output_distance(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])) > 0.4
        True
    """
    a, b = _comparable({"a": a, "b": b}, distance, floor).values()
    return float(_distance(a, b, distance))


@checked
def strategy_weights(
    outputs: Tensor,
    predictor_outputs: Mapping[str, Tensor],
    distance: Distance = "skl",
    *,
    floor: float = 0.0,
    least: float = 1e-4,
) -> dict[str, float]:
    """Returns the weight of each strategy in a model's outputs; they sum to 1.

    Of two strategies M and G: ``w_M = (1 + r) / 2`` with the relative distance
    ``r = (d(T, G) - d(T, M)) / d(M, G)``, clipped to [-1, 1], where each d is a mean over sequences and positions. Of
    more: the softmax weights whose mixture of outputs is nearest to the model's, by L-BFGS.

    Args:
        outputs: the model's, as for ``output_distance``.
        predictor_outputs: those of at least 2 strategies on the same inputs, by name, such as a ``BayesPredictor``'s.
        distance: "skl" for probabilities, "mse" for numbers.
        floor: as for ``output_distance``.
        least: smallest distance between two strategies; of nearer ones it cannot be told which is followed.

    Raises:
        ValueError: fewer than 2 strategies, strategies that (nearly) coincide on these inputs, different shapes, rows
            that are no probabilities, zeros without a floor.

    Source: arXiv:2506.17859, section 4.

    Example:
        >>> m, g = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.5]])
        >>> strategy_weights(m, {"memorising": m, "generalising": g})
        {'memorising': 1.0, 'generalising': 0.0}
    """
    check_at_least(0, least=least)
    if len(predictor_outputs) < 2:
        raise ValueError(f"predictor_outputs must be of at least 2 strategies, got {len(predictor_outputs)}")
    named = {"outputs": outputs} | {f"predictor_outputs[{name!r}]": each for name, each in predictor_outputs.items()}
    model, *others = _comparable(named, distance, floor).values()
    names = list(predictor_outputs)
    for i, j in combinations(range(len(names)), 2):
        apart = float(_distance(others[i], others[j], distance))
        if apart <= least:
            raise ValueError(
                f"predictor_outputs of {names[i]} and {names[j]} coincide on these inputs: their distance is "
                f"{apart:.2g}, at most least={least:g}"
            )
    if len(names) == 2:
        first, second = (float(_distance(model, each, distance)) for each in others)
        relative = min(1.0, max(-1.0, (second - first) / apart))
        return {names[0]: (1 + relative) / 2, names[1]: (1 - relative) / 2}
    return dict(zip(names, _barycentric(model, torch.stack(others), distance), strict=True))


def _barycentric(model: Tensor, others: Tensor, distance: Distance) -> list[float]:
    logits = torch.zeros(len(others), dtype=model.dtype, device=model.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _distance(model, torch.tensordot(logits.softmax(0), others, 1), distance)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return logits.detach().softmax(0).tolist()


def _distance(a: Tensor, b: Tensor, distance: Distance) -> Tensor:
    if distance == "mse":
        return (a - b).square().mean()
    return ((a - b) * (a.log() - b.log())).sum(-1).mean() / 2


def _comparable(named: Mapping[str, Tensor], distance: Distance, floor: float) -> dict[str, Tensor]:
    """The tensors in float64, checked to be alike and what the distance compares."""
    check_fraction(floor=floor)
    first = next(iter(named))
    found = {}
    for name, value in named.items():
        check_values(**{name: value})
        if value.shape != named[first].shape:
            raise ValueError(f"{name} must be as {first}, {tuple(named[first].shape)}, got {tuple(value.shape)}")
        value = value.detach().double()
        if distance == "skl":
            if value.ndim < 2:
                raise ValueError(f"{name} must be probabilities (..., classes), got shape {tuple(value.shape)}")
            check_choices(**{name: value.flatten(0, -2)})
            if floor > 0:
                value = value.clamp(min=floor)
                value = value / value.sum(-1, keepdim=True)
            elif bool((value == 0).any()):
                raise ValueError(f"{name} must not hold probabilities of 0: give a floor, such as 1e-6")
        found[name] = value
    return found
