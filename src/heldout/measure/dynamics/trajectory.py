"""Core: How training moves through weight space: the distance from the start and the law of its growth.

Source: arXiv:1705.08741, section 3: in the first phase of training the distance grows like the logarithm of the
number of updates, an "ultra-slow diffusion".
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from heldout.errors import checked


class DiffusionFit(NamedTuple):
    """How well laws of growth describe a distance.

    Attributes:
        log_r2: R^2 of ``a + b log t``.
        sqrt_r2: R^2 of ``a + b sqrt(t)``.
        exponent: c of the power law ``a t^c`` that fits ``log distance`` best.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> distance = WeightDistance(model)
        >>> for doublings in range(6):
        ...     _ = nn.init.constant_(model.weight, 1.0 + doublings)
        ...     _ = distance.record(2**doublings)
        >>> found = distance.fit()
        >>> round(found.log_r2, 6), found.sqrt_r2 < found.log_r2
        (1.0, True)
    """

    log_r2: float
    sqrt_r2: float
    exponent: float


class WeightDistance:
    """Records ``||w_t - w_0||`` of a model's parameters, in total and by parameter.

    One pass over the parameters per record and one copy of them. Weight decay makes the distance saturate: to study
    diffusion, measure early in the phase of constant learning rate.

    Args:
        model: the model; its parameters now are w_0.

    Attributes:
        steps: the recorded steps.
        distances: L2 distance over all parameters at each of them.
        by_parameter: the same for each parameter, by name.

    Raises:
        ValueError: if the model has no parameters.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> distance = WeightDistance(model)
        >>> for step in range(1, 9):
        ...     with torch.no_grad():
        ...         _ = model.weight.add_(1.0)
        ...     _ = distance.record(step)
        >>> distance.distances[:3], round(distance.fit().exponent, 3)
        ([1.0, 2.0, 3.0], 1.0)
    """

    @checked
    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters())
        if not self._parameters:
            raise ValueError(f"{type(model).__name__} has no parameters whose distance could be measured")
        self._start: list[Tensor] = [parameter.detach().clone() for parameter in self._parameters.values()]
        self.steps: list[int] = []
        self.distances: list[float] = []
        self.by_parameter: dict[str, list[float]] = {name: [] for name in self._parameters}

    @torch.no_grad()
    @checked
    def record(self, step: int) -> float:
        """Returns the distance now, and keeps it with the number of updates made; steps must increase.

        Raises:
            ValueError: a negative step, or one that is not above the last.
        """
        if step < 0 or (self.steps and step <= self.steps[-1]):
            raise ValueError(f"steps must not be negative and must increase, got {step} after {self.steps[-1:]}")
        now = [parameter.detach() for parameter in self._parameters.values()]
        norms = torch.stack([norm.float() for norm in torch._foreach_norm(torch._foreach_sub(now, self._start))])
        for name, norm in zip(self._parameters, norms.tolist(), strict=True):
            self.by_parameter[name].append(norm)
        self.steps.append(step)
        self.distances.append(float(norms.norm()))
        return self.distances[-1]

    def fit(self) -> DiffusionFit:
        """Returns how well logarithm, square root and power describe the distance over the recorded steps > 0.

        Record at steps that are evenly spaced in their logarithm, so that each scale of time counts alike.

        Raises:
            ValueError: with fewer than 3 records after step 0, or a distance that does not change, is 0 or is not
                finite.
        """
        steps = np.array([step for step in self.steps if step > 0], dtype=float)
        distances = np.array([d for step, d in zip(self.steps, self.distances, strict=True) if step > 0])
        if len(steps) < 3:
            raise ValueError(f"a fit of the distance needs at least 3 records after step 0, got {len(steps)}")
        if not np.isfinite(distances).all() or (distances <= 0).any() or np.ptp(distances) == 0:
            raise ValueError("a fit of the distance needs distances that are positive, finite and not all the same")
        return DiffusionFit(
            log_r2=_r2(np.log(steps), distances),
            sqrt_r2=_r2(np.sqrt(steps), distances),
            exponent=float(np.polyfit(np.log(steps), np.log(distances), 1)[0]),
        )


def _r2(x: np.ndarray, y: np.ndarray) -> float:
    """R^2 of the least-squares line of y on x."""
    return float(np.corrcoef(x, y)[0, 1] ** 2)
