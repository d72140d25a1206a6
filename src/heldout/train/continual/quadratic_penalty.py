"""Core: What it costs to move parameters away from where earlier tasks ended.

Source: arXiv:1612.00796 (Kirkpatrick et al.), equation 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from heldout.errors import check_nonempty, check_nonnegative, check_values, checked
from heldout.method import device_of


class QuadraticPenalty:
    """What it costs to leave where earlier tasks ended: ``sum_i importance_i (theta_i - anchor_i)^2``.

    Penalties of several tasks are added up exactly in the two buffers of one: the sum of parabolas is a parabola around
    their weighted mean, plus a constant. Parameters without an importance are free. Its gradient,
    ``2 importance (theta - anchor)``, needs no backward pass.

    Attributes:
        importance: by parameter name; empty before the first task.
        anchor: by parameter name, the weighted mean of the ends of the tasks.
        constant: what the penalty is at the anchor: 0 after one task.

    Example:
        >>> model, penalty = nn.Linear(1, 1, bias=False), QuadraticPenalty()
        >>> penalty.add({"weight": torch.tensor([[3.0]])}, {"weight": torch.tensor([[1.0]])})
        >>> penalty.add({"weight": torch.tensor([[1.0]])}, {"weight": torch.tensor([[5.0]])})
        >>> with torch.no_grad():
        ...     _ = model.weight.fill_(2.0)
        >>> round(penalty.value(model).item(), 4), penalty.gradient(model)["weight"]  # 3 (2 - 1)^2 + (2 - 5)^2
        (12.0, tensor([[0.]]))
    """

    def __init__(self) -> None:
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.constant = 0.0

    @checked
    def add(self, importance: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> None:
        """Adds the penalty of one more task.

        Args:
            importance: by parameter name, at least 0, of the parameter's shape.
            anchor: by parameter name, where the task ended.

        Raises:
            ValueError: names or shapes that do not fit, importances below 0, values that are not finite.
        """
        _check_terms(importance, anchor)
        for name, added in importance.items():
            end = anchor[name].detach()
            if name not in self.importance:
                self.importance[name], self.anchor[name] = added.detach().clone(), end.clone()
                continue
            old = self.importance[name]
            if old.shape != added.shape:
                raise ValueError(f"importance of {name} must be {tuple(old.shape)}, got {tuple(added.shape)}")
            total = old + added
            away = end - self.anchor[name]
            share = torch.where(total > 0, added / total.clamp(min=torch.finfo(total.dtype).tiny), 1.0)
            self.constant += float((old * share * away.square()).double().sum())
            self.anchor[name] = self.anchor[name] + share * away
            self.importance[name] = total

    @checked
    def replace(self, importance: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> None:
        """Puts one penalty in the place of all before; arguments and errors as ``add``."""
        _check_terms(importance, anchor)
        self.importance = {name: value.detach().clone() for name, value in importance.items()}
        self.anchor = {name: anchor[name].detach().clone() for name in importance}
        self.constant = 0.0

    @checked
    def value(self, model: nn.Module) -> Tensor:
        """Returns the penalty at the model's parameters, with its graph.

        Raises:
            ValueError: a parameter is missing in the model or has another shape than the one that is remembered.
        """
        terms = [
            (self.importance[name] * (parameter - self.anchor[name]).square()).sum()
            for name, parameter in self._parameters(model).items()
        ]
        return sum(terms, torch.as_tensor(self.constant, device=device_of(model)))

    @checked
    def gradient(self, model: nn.Module) -> dict[str, Tensor]:
        """Returns the penalty's gradient by parameter name; errors as ``value``."""
        parameters = self._parameters(model)
        if not parameters:
            return {}
        with torch.no_grad():
            away = torch._foreach_sub(list(parameters.values()), [self.anchor[name] for name in parameters])
            torch._foreach_mul_(away, [self.importance[name] for name in parameters])
            torch._foreach_mul_(away, 2.0)
        return dict(zip(parameters, away, strict=True))

    def _parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        own = dict(model.named_parameters())
        for name, value in self.importance.items():
            if name not in own:
                raise ValueError(f"the model lacks the parameter {name}, which an earlier task had")
            if own[name].shape != value.shape:
                raise ValueError(
                    f"parameter {name} is {tuple(own[name].shape)}, and was {tuple(value.shape)} in earlier tasks: "
                    "give the model all its outputs from the start"
                )
            if value.device != own[name].device:
                self.importance[name] = value.to(own[name].device)
                self.anchor[name] = self.anchor[name].to(own[name].device)
        return {name: own[name] for name in self.importance}

    def state_dict(self) -> dict[str, Any]:
        """Returns what a restart needs: importances, anchors and the constant."""
        return {"importance": dict(self.importance), "anchor": dict(self.anchor), "constant": self.constant}

    @checked
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what ``state_dict`` returned; errors as ``add``."""
        if state["importance"]:
            self.replace(state["importance"], state["anchor"])
        else:
            self.importance, self.anchor = {}, {}
        self.constant = float(state["constant"])


def _check_terms(importance: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> None:
    check_nonempty(importance=importance)
    for name, value in importance.items():
        if name not in anchor:
            raise ValueError(f"anchor lacks {name}, which importance has")
        if anchor[name].shape != value.shape:
            raise ValueError(
                f"anchor of {name} must be {tuple(value.shape)} as its importance, got {tuple(anchor[name].shape)}"
            )
        check_nonnegative(**{f"importance[{name!r}]": value})
        check_values(**{f"anchor[{name!r}]": anchor[name]})
