"""Core: Task vectors: what fine-tuning added to a model. Source: arXiv:2212.04089, and arXiv:2109.01903 (WiSE-FT)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from heldout.errors import checked

State = Mapping[str, Tensor]
Target = TypeVar("Target", nn.Module, dict[str, Tensor])


class TaskVector:
    """The difference of two models with the same parameters; task vectors add, subtract and scale.

    Floating-point entries only (running statistics of normalizations included), kept in at least float32;
    integer and boolean buffers have no difference and are never changed. Weights tied in both models share one
    difference, which norms and thresholds count once.

    Args:
        pre: the model, or its state dict, before fine-tuning.
        ft: the same after it.

    Raises:
        ValueError: if names or shapes differ, or a difference is not finite.

    Example:
        >>> pre, ft = {"weight": torch.zeros(2)}, {"weight": torch.tensor([1.0, 2.0])}
        >>> vector = TaskVector(pre, ft)
        >>> (2 * vector - vector).apply_to(pre, scale=0.5)["weight"]
        tensor([0.5000, 1.0000])
    """

    @checked
    def __init__(self, pre: nn.Module | State, ft: nn.Module | State) -> None:
        start, end = state_of(pre), state_of(ft)
        check_same_parameters({"pre": start, "ft": end})
        with torch.no_grad():
            self.delta: dict[str, Tensor] = {}
            first, tied = aliases(end), aliases(start)
            for name, value in end.items():
                if not value.is_floating_point():
                    continue
                if first[name] in self.delta and tied[name] == tied[first[name]]:
                    self.delta[name] = self.delta[first[name]]
                    continue
                difference = wide(value) - wide(start[name]).to(value.device)
                if not _is_finite(difference):
                    if not torch.equal(start[name], value.to(start[name].device)):  # -inf in a mask is no difference
                        raise ValueError(f"the task vector is not finite in {name!r}")
                    difference = torch.zeros_like(difference)
                self.delta[name] = difference

    @classmethod
    @checked
    def from_delta(cls, delta: Mapping[str, Tensor]) -> TaskVector:
        """Returns the task vector with these differences by parameter name."""
        vector = cls.__new__(cls)
        vector.delta = dict(delta)
        return vector

    @checked
    def apply_to(self, target: Target, scale: float | Mapping[str, float] = 1.0) -> Target:
        """Returns the target with the scaled differences added: a module is changed in place, a state dict copied.

        Tied weights of the target stay tied.

        Args:
            target: the model or state dict to start from; it may hold more entries than this vector.
            scale: one factor, or a factor for every name in the vector.

        Raises:
            ValueError: if the target lacks a parameter of this vector or has it in another shape, or ``scale``
                lacks a name.
        """
        state = state_of(target)
        check_same_parameters(
            {"the task vector": self.delta, "the target": {name: state[name] for name in self.delta if name in state}}
        )
        factor = _factors(scale, self.delta)
        names = aliases(state)
        result: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, value in state.items():
                if name != names[name]:
                    result[name] = result[names[name]]
                elif name not in self.delta:
                    result[name] = value if isinstance(target, nn.Module) else value.clone()
                else:
                    moved = torch.add(wide(value), self.delta[name].to(value.device), alpha=factor(name))
                    result[name] = moved.to(value.dtype)
        if isinstance(target, nn.Module):
            target.load_state_dict(result)
            return target
        return result

    def l1_norm(self) -> float:
        """The sum of the magnitudes of all differences."""
        return math.fsum(float(part.abs().sum(dtype=torch.float64)) for part in self.distinct())

    def distinct(self) -> list[Tensor]:
        """The differences, those of tied weights once."""
        return [self.delta[name] for name, first in aliases(self.delta).items() if name == first]

    def __add__(self, other: TaskVector) -> TaskVector:
        if not isinstance(other, TaskVector):
            return NotImplemented
        return combine([self, other], [1.0, 1.0])

    def __sub__(self, other: TaskVector) -> TaskVector:
        if not isinstance(other, TaskVector):
            return NotImplemented
        return combine([self, other], [1.0, -1.0])

    def __mul__(self, factor: float) -> TaskVector:
        return TaskVector.from_delta({name: part * factor for name, part in self.delta.items()})

    __rmul__ = __mul__

    def __neg__(self) -> TaskVector:
        return self * -1.0


def combine(vectors: Iterable[TaskVector], coefficients: Iterable[float]) -> TaskVector:
    """Returns the linear combination of task vectors, in one pass over each."""
    (first, start), *rest = zip(vectors, coefficients, strict=True)
    check_same_parameters(
        {"task vector 1": first.delta, **{f"task vector {n}": v.delta for n, (v, _) in enumerate(rest, start=2)}}
    )
    names = tied_names([first, *(vector for vector, _ in rest)])
    own = [name for name in names if names[name] == name]
    total = [first.delta[name] * start for name in own]
    for vector, coefficient in rest:
        torch._foreach_add_(total, [vector.delta[name] for name in own], alpha=coefficient)
    merged = dict(zip(own, total, strict=True))
    return TaskVector.from_delta({name: merged[names[name]] for name in names})


def tied_names(vectors: Sequence[TaskVector]) -> dict[str, str]:
    """Returns, for every name, the first name that shares its difference in all of the task vectors."""
    tied = [aliases(vector.delta) for vector in vectors]
    first: dict[tuple[str, ...], str] = {}
    return {name: first.setdefault(tuple(names[name] for names in tied), name) for name in vectors[0].delta}


@checked
def interpolate(
    pre: nn.Module | State,
    ft: nn.Module | State,
    weight: float | Mapping[str, float],
    *,
    allow_extrapolation: bool = False,
) -> dict[str, Tensor]:
    """Returns the state dict ``pre + weight * (ft - pre)`` (WiSE-FT); exact at weights 0 and 1.

    One read of each model and one write. Integer and boolean buffers are those of ``ft``; weights tied in ``ft``
    stay tied; half precision is computed in float32.

    Args:
        pre: the model, or its state dict, before fine-tuning.
        ft: the same after it.
        weight: one weight, or one for every floating-point name. Source: arXiv:2109.01903, eq. 1.
        allow_extrapolation: accept weights outside [0, 1].

    Raises:
        ValueError: if names or shapes differ, ``weight`` lacks a name or is outside [0, 1], or the result is not
            finite.

    Example:
        >>> interpolate({"weight": torch.zeros(1)}, {"weight": torch.full((1,), 4.0)}, 0.25)
        {'weight': tensor([1.])}
    """
    start, end = state_of(pre), state_of(ft)
    check_same_parameters({"pre": start, "ft": end})
    factor = _factors(weight, [name for name in end if end[name].is_floating_point()])
    given = weight.values() if isinstance(weight, Mapping) else [weight]
    if not allow_extrapolation and (beyond := [value for value in given if not 0 <= value <= 1]):
        raise ValueError(f"weight must lie in [0, 1], got {beyond[0]}: allow_extrapolation=True goes beyond the models")
    names = aliases(end)
    result: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, value in end.items():
            if name != names[name]:
                result[name] = result[names[name]]
            elif not value.is_floating_point():
                result[name] = value.clone()
            else:
                begin = start[name].to(value.device)
                mixed = torch.lerp(wide(begin), wide(value), factor(name)).to(value.dtype)
                if not _is_finite(mixed):
                    if not torch.equal(begin, value):
                        raise ValueError(f"the interpolation is not finite in {name!r}")
                    mixed = value.clone()
                result[name] = mixed
    return result


def state_of(model: nn.Module | State) -> State:
    """Returns the state dict of a module, or the state dict itself."""
    if isinstance(model, nn.Module):
        return model.state_dict()
    if isinstance(model, Mapping) and all(isinstance(value, Tensor) for value in model.values()):
        return model
    raise TypeError(f"expected a module or a state dict of tensors, got {type(model).__name__}")


def check_same_parameters(models: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ValueError, naming the first few, where the models differ from the first in names or shapes."""
    (first, reference), *others = models.items()
    if not reference:
        raise ValueError(f"{first} holds no parameters")
    for label, state in others:
        shapes = [
            f"{name} {tuple(reference[name].shape)} and {tuple(state[name].shape)}"
            for name in reference.keys() & state.keys()
            if tuple(reference[name].shape) != tuple(state[name].shape)
        ]
        differences = {
            f"only in {first}": reference.keys() - state.keys(),
            f"only in {label}": state.keys() - reference.keys(),
            "different shapes": shapes,
        }
        if found := "; ".join(f"{kind}: {_some(sorted(names))}" for kind, names in differences.items() if names):
            raise ValueError(f"{first} and {label} do not hold the same parameters: {found}")


def aliases(state: State) -> dict[str, str]:
    """Returns, for every name, the first name that shares its memory (tied weights); most names are their own."""
    first: dict[Any, str] = {}
    names = {}
    for name, value in state.items():
        key = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else name
        names[name] = first.setdefault(key, name)
    return names


def _some(items: list[str], shown: int = 3) -> str:
    return ", ".join(items[:shown]) + (f" and {len(items) - shown} more" if len(items) > shown else "")


def wide(value: Tensor) -> Tensor:
    """Returns a tensor in at least float32."""
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def _is_finite(value: Tensor) -> bool:
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())


def _factors(scale: float | Mapping[str, float], names: Iterable[str]) -> Any:
    if not isinstance(scale, Mapping):
        if not math.isfinite(scale):
            raise ValueError(f"the scale must be finite, got {scale}")
        return lambda name: float(scale)
    if missing := sorted(set(names) - scale.keys()):
        raise ValueError(f"the scales lack {_some(missing)}")
    return lambda name: float(scale[name])
