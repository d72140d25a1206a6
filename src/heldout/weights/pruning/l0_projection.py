"""Core: Projection of weights onto those with few that are not zero, after every step of an optimizer.

It is no mask: a weight that was set to zero gets gradients, moves, and stays where it has become one of the largest.

Source: arXiv:2402.01261 (Seo, Yun and Yang, ICLR 2024), algorithm of the training with projected gradient descent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from heldout.errors import check_one_of, checked


class L0Projection:
    """Sets the smallest weights to zero: the nearest point at which at most ``k`` weights are not.

    Of P weights ``ceil(sparsity * P)`` are zero afterwards (more where more were); of equal ones, those that come
    first. Only parameters that are trained count, tied ones once. The state of an optimizer is not touched: weight
    decay and momentum go on acting on weights that are zero. Costs a selection over all weights, in the time of a few
    passes over them.

    Args:
        params_or_module: a module, tensors, or pairs of name and tensor.
        sparsity: share of the weights to set to zero, in [0, 1); at 0 nothing changes.
        scope: "global" for one choice among all weights, "layer" for one in each parameter.
        exclude: ``(name, parameter) -> bool``, parameters to leave alone, such as biases; they do not count. Tensors
            without names are called by their place.

    Raises:
        ValueError: a sparsity outside [0, 1), or nothing that is trained and not excluded.

    Source: arXiv:2402.01261, section 4.

    Example:
        >>> layer = nn.Linear(4, 1, bias=False)
        >>> with torch.no_grad(): _ = layer.weight.copy_(torch.tensor([[0.1, -3.0, 2.0, -0.2]]))
        >>> projection = L0Projection(layer, 0.5)
        >>> projection.project_()
        >>> layer.weight.tolist(), projection.sparsity()
        ([[0.0, -3.0, 2.0, 0.0]], 0.5)
        >>> optimizer = torch.optim.Adam(layer.parameters())
        >>> handle = optimizer.register_step_post_hook(projection)  # from now on after every step
    """

    @checked
    def __init__(
        self,
        params_or_module: nn.Module | Iterable[Any],
        sparsity: float,
        scope: Literal["global", "layer"] = "global",
        exclude: Callable[[str, Tensor], bool] | None = None,
    ) -> None:
        if not 0 <= sparsity < 1:
            raise ValueError(f"sparsity, the share of weights to set to zero, must lie in [0, 1), got {sparsity}")
        check_one_of(("global", "layer"), scope=scope)
        self.target, self.scope = sparsity, scope
        self._parameters: list[Tensor] = []
        for name, parameter in _named(params_or_module):
            known = any(parameter is other for other in self._parameters)
            if (
                parameter.requires_grad
                and parameter.numel()
                and not known
                and not (exclude and exclude(name, parameter))
            ):
                self._parameters.append(parameter)
        if not self._parameters:
            raise ValueError("params_or_module must hold a parameter that is trained and not excluded, got none")

    @torch.no_grad()
    def project_(self) -> None:
        """Sets the smallest weights to zero, in place.

        Raises:
            FloatingPointError: a weight is NaN: which are the smallest cannot be told.
        """
        groups = [self._parameters] if self.scope == "global" else [[each] for each in self._parameters]
        for group in groups:
            count = math.ceil(self.target * sum(each.numel() for each in group) - 1e-9)
            if count < 1:
                continue
            place = group[0].device
            sizes = torch.cat([each.abs().flatten().to(place) for each in group])  # in the widest of their types
            if bool(sizes.isnan().any()):
                raise FloatingPointError("the weights hold nan: training has diverged")
            limit = sizes.kthvalue(count).values
            gone = sizes < limit
            tied = (sizes == limit).nonzero()[:, 0]
            gone[tied[: count - int(gone.sum())]] = True
            for each, part in zip(group, gone.split([each.numel() for each in group]), strict=True):
                each.masked_fill_(part.view(each.shape).to(each.device), 0.0)

    def sparsity(self) -> float:
        """Returns the share of the weights that are zero."""
        return sum(int((each == 0).sum()) for each in self._parameters) / sum(each.numel() for each in self._parameters)

    def __call__(self, *_: Any) -> None:
        """Projects: the form in which an optimizer calls its hooks."""
        self.project_()


def _named(given: Any) -> Iterable[tuple[str, Tensor]]:
    if isinstance(given, nn.Module):
        yield from given.named_parameters()
        return
    for place, each in enumerate([given] if isinstance(given, Tensor) else given):
        name, parameter = each if isinstance(each, tuple) else (str(place), each)
        if not isinstance(parameter, Tensor):
            raise TypeError(f"params_or_module must be a module or hold tensors, got {type(parameter).__name__}")
        yield name, parameter
