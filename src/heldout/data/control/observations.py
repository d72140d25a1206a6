"""Observations are one tensor, or several by name: what is done to each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from heldout.errors import checked


@checked
def map_observations(function: Callable[..., Tensor], *observations: Any) -> Any:
    """Returns what a function gives for observations: a tensor for tensors, or by name.

    Args:
        function: of one tensor of each of the observations.
        observations: tensors, or mappings of the same names.

    Raises:
        ValueError: no observations.

    Example:
        >>> import torch
        >>> map_observations(lambda seen: seen[:1], {"position": torch.arange(3)})
        {'position': tensor([0])}
    """
    if not observations:
        raise ValueError("observations must not be empty")
    if isinstance(observations[0], Mapping):
        return {name: function(*(each[name] for each in observations)) for name in observations[0]}
    return function(*observations)
