"""More bits for the layers that need them: what each layer loses at each width, and the best choice within a budget.

Source: arXiv:2503.22698 (GEM) for the idea of bits by sensitivity; it gives no rule. Ours (deviation): the loss that
quantising one layer alone adds, and the assignment that minimises their sum, found by integer programming
(scipy's HiGHS) to a millionth of that sum. That the losses of layers add up is an assumption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import nn

from heldout.errors import check_between, check_finite, check_nonempty, check_positive, checked
from heldout.weights.quantization.quantize import QTensor, check_layers, linears, rtn, weight_of


@checked
def layer_sensitivity(
    model: nn.Module,
    loss: Callable[[nn.Module], float],
    bits: Sequence[int] = (2, 3, 4, 8),
    group_size: int = 128,
    *,
    symmetric: bool = False,
    layers: Mapping[str, nn.Module] | None = None,
) -> dict[str, dict[int, float]]:
    """Returns what the loss rises by when one layer alone is rounded to so many bits; the model stays as it was.

    It costs one call of ``loss`` for each layer and number of bits, and one more.

    Args:
        model: any module.
        loss: of the model on data that the choice may see, such as validation data; lower is better.
        bits: widths to try, 2 to 8.
        group_size, symmetric: as for ``rtn``.
        layers: the layers by name; default: ``linears(model)``.

    Returns:
        layer -> bits -> rise of the loss, which may be negative.

    Raises:
        ValueError: as ``rtn``, or a loss that is not finite.

    Example:
        >>> import torch
        >>> model, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), torch.randn(16, 8)
        >>> y = model(x).detach()
        >>> found = layer_sensitivity(model, lambda m: float((m(x) - y).square().mean()), bits=(2, 8), group_size=8)
        >>> found["0"][2] > found["0"][8] > 0
        True
    """
    check_nonempty(bits=bits)
    for width in bits:
        check_between(2, 8, bits=width)
    chosen = linears(model) if layers is None else layers
    check_layers(chosen, group_size)
    before = float(loss(model))
    check_finite(loss=before)
    found: dict[str, dict[int, float]] = {}
    for name, layer in chosen.items():
        kept, found[name] = weight_of(layer).clone(), {}
        for width in bits:
            try:
                rtn(model, width, group_size, symmetric=symmetric, layers={name: layer})
                after = float(loss(model))
            finally:
                weight_of(layer).copy_(kept)
            check_finite(loss=after)
            found[name][width] = after - before
    return found


@checked
def assign_bits(
    sensitivity: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int], budget: float
) -> dict[str, int]:
    """Returns the bits of each layer whose losses sum to the least, with at most ``budget`` bits a weight on average.

    Args:
        sensitivity: layer -> bits -> what the loss rises by, of ``layer_sensitivity``.
        sizes: layer -> number of weights.
        budget: mean bits of a weight.

    Raises:
        ValueError: no layer, layers without size, values that are not finite, or a budget below the smallest widths.

    Example:
        >>> losses = {"a": {2: 9.0, 4: 1.0}, "b": {2: 0.5, 4: 0.4}}
        >>> assign_bits(losses, {"a": 100, "b": 100}, budget=3)
        {'a': 4, 'b': 2}
    """
    check_nonempty(sensitivity=sensitivity)
    check_positive(budget=budget)
    for name, row in sensitivity.items():
        if name not in sizes:
            raise ValueError(f"sizes must have every layer of sensitivity, {name!r} is missing")
        check_nonempty(**{f"sensitivity[{name!r}]": row})
        check_finite(**{f"sensitivity[{name!r}]": list(row.values())})
        check_positive(**{f"sizes[{name!r}]": sizes[name]})
    total = sum(sizes[name] for name in sensitivity)
    least = sum(min(row) * sizes[name] for name, row in sensitivity.items()) / total
    if budget < least:
        raise ValueError(f"budget must be at least {least:g} bits, what the smallest widths take; got {budget:g}")
    # What each choice costs above the best of its layer, in units of the dearest: the solver's tolerances are absolute.
    over = {(name, bits): row[bits] - min(row.values()) for name, row in sensitivity.items() for bits in row}
    while True:
        found = _cheapest(over, {name: sizes[name] / total for name in sensitivity}, budget)
        sum_of_best = sum(over[choice] for choice in found.items())
        kept = {choice: cost for choice, cost in over.items() if cost <= sum_of_best}
        if len(kept) == len(over):
            return found
        over = kept  # a choice that costs more than all of these together is in no better assignment


def _cheapest(costs: Mapping[tuple[str, int], float], shares: Mapping[str, float], budget: float) -> dict[str, int]:
    """The choice of a width for each layer whose costs, none below 0, sum to the least within a mean width."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    choices, unit = list(costs), max(costs.values()) or 1.0
    spent = np.array([[bits * shares[name] for name, bits in choices]])
    once = np.array([[float(name == layer) for name, _ in choices] for layer in shares])
    limits = [LinearConstraint(spent, ub=budget + 1e-9), LinearConstraint(once, 1, 1)]
    cost = np.array([costs[choice] / unit for choice in choices])
    found = milp(cost, integrality=np.ones(len(cost)), bounds=Bounds(0, 1), constraints=limits)
    if found.x is None:
        raise RuntimeError(f"no assignment was found: {found.message}")
    return {name: bits for (name, bits), taken in zip(choices, found.x, strict=True) if taken > 0.5}


@checked
def mixed_precision(
    model: nn.Module, bits: Mapping[str, int], group_size: int = 128, *, symmetric: bool = False
) -> dict[str, QTensor]:
    """Rounds the weights of linear layers in place, each to its own number of bits; returns the quantised weights.

    Args:
        model: any module.
        bits: layer -> bits, of ``assign_bits``.
        group_size, symmetric: as for ``rtn``.

    Raises:
        ValueError: a layer that the model does not have, or as ``rtn``. No weight has changed then.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        >>> found = mixed_precision(model, {"0": 2, "1": 8}, group_size=4)
        >>> len(model[0].weight[0].unique()) <= 4, found["1"].bits
        (True, 8)
    """
    check_nonempty(bits=bits)
    known = linears(model, skip=())
    for name, width in bits.items():
        if name not in known:
            raise ValueError(f"bits names {name!r}, which is no linear layer of the model with weights of its own")
        check_between(2, 8, **{f"bits[{name!r}]": width})
    check_layers({name: known[name] for name in bits}, group_size)
    return {
        name: rtn(model, width, group_size, symmetric=symmetric, layers={name: known[name]})[name]
        for name, width in bits.items()
    }
