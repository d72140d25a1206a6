"""Core: One step of an exponential moving average of weights, at one rate or at a rate for every single weight."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from heldout.errors import check_finite, check_fraction, checked
from heldout.weights.task_vector import State, check_same_parameters, state_of


@checked
def ema_step(slow: nn.Module | State, fast: nn.Module | State, rate: float | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state dict ``slow + rate * (fast - slow)``: neither model is changed.

    ``interpolate`` has one rate for all of a parameter; here each weight may have its own. Exact at the rates 0 and 1.
    Integer and boolean buffers are those of ``fast``; half precision is computed in float32. Costs one read of each
    model and one write.

    Args:
        slow: the average so far, or its state dict.
        fast: the model that it moves towards.
        rate: one number in [0, 1], or by parameter name a tensor of the parameter's shape (or one that broadcasts to
            it).

    Raises:
        ValueError: names or shapes differ, a rate outside of [0, 1], none for a floating-point entry, or one of another
            shape; values that are not finite.

    Example:
        >>> rate = {"weight": torch.tensor([0.0, 0.5, 1.0])}
        >>> ema_step({"weight": torch.zeros(3)}, {"weight": torch.full((3,), 4.0)}, rate)
        {'weight': tensor([0., 2., 4.])}
    """
    start, end = state_of(slow), state_of(fast)
    check_same_parameters({"slow": start, "fast": end})
    if isinstance(rate, Mapping):
        for name, own in rate.items():
            check_fraction(**{f"rate[{name!r}]": own})
    else:
        check_fraction(rate=rate)
    result: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, value in end.items():
            old = start[name]
            if not value.is_floating_point():
                result[name] = value.clone()
                continue
            check_finite(**{f"fast[{name!r}]": value, f"slow[{name!r}]": old})
            weight = _rate_of(name, value, rate)
            wide = torch.promote_types(value.dtype, torch.float32)
            moved = torch.lerp(old.to(wide), value.to(old.device, wide), weight.to(old.device, wide))
            # lerp rounds: at 0 and 1 the ends themselves
            moved = torch.where(weight.to(old.device) == 1, value.to(old.device, wide), moved)
            result[name] = torch.where(weight.to(old.device) == 0, old.to(wide), moved).to(old.dtype)
    return result


def _rate_of(name: str, value: Tensor, rate: float | Mapping[str, Tensor]) -> Tensor:
    if not isinstance(rate, Mapping):
        return torch.tensor(float(rate), dtype=torch.float64)
    if name not in rate:
        raise ValueError(f"rate lacks {name}")
    try:
        return rate[name].detach().expand(value.shape)
    except RuntimeError:
        raise ValueError(
            f"rate of {name} must be of its shape {tuple(value.shape)}, got {tuple(rate[name].shape)}"
        ) from None
