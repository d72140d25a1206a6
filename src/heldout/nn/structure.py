"""The parts of a module by name, so that a module can be given the parts that a Method put into another one like it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from heldout.errors import checked
from heldout.method import device_of
from heldout.nn.anytime import AnytimeMLP
from heldout.nn.ghost_batch_norm import (
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    convert_ghost_batchnorm,
)
from heldout.nn.graphs.virtual_node import PART, VirtualNode, add_virtual_node
from heldout.nn.heads import MultiHead

Structure = Mapping[str, tuple[str, Any] | list[Any]]

_GHOSTS = (GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d)


@checked
def structure_of(module: nn.Module) -> dict[str, list[Any]]:
    """Returns ``[class name, settings]`` of every part of a module by its name, as JSON takes it.

    Settings are told of the parts that heldout's own Methods put in: ``nn.Linear``, ``nn.Identity``, ``AnytimeMLP``,
    ghost batch norm, ``MultiHead`` and ``VirtualNode``; they are None for all others.

    Example:
        >>> structure_of(nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU()))["0"]
        ['Linear', {'in_features': 2, 'out_features': 3, 'bias': False}]
    """
    return {name: [type(part).__qualname__, _settings(part)] for name, part in module.named_modules()}


@checked
def rebuilt(module: nn.Module, structure: Structure) -> nn.Module:
    """Returns a module with the parts of a structure: heads and layers that a Method had put in are put in again.

    Args:
        module: as it was before the Method; it may be changed in place.
        structure: from ``structure_of``, of the module as it was after.

    Raises:
        ValueError: the structure holds a part that is neither in the module nor one of heldout's own.

    Example:
        >>> plain, wanted = nn.Sequential(nn.BatchNorm1d(3)), nn.Sequential(GhostBatchNorm1d(3, ghost_size=8))
        >>> rebuilt(plain, structure_of(wanted))[0].ghost_size
        8
    """
    kind, settings = structure.get("", (None, None))
    if kind == "MultiHead" and settings and not isinstance(module, MultiHead):
        module = MultiHead(module, **settings)
    for name, (kind, settings) in structure.items():
        part = _part(module, name)
        if part is None and (name, kind) in _ADDED:
            module = _ADDED[name, kind](module, settings)
            continue
        if part is None or kind not in _BUILDERS or [type(part).__qualname__, _settings(part)] == [kind, settings]:
            continue
        new = _BUILDERS[kind](part, settings)
        if name:
            module.set_submodule(name, new)
        else:
            module = new
    own, wanted = structure_of(module), {name: list(entry) for name, entry in structure.items()}
    if own != wanted:
        name = next(name for name in [*wanted, *own] if own.get(name) != wanted.get(name))
        has, asked = (entry.get(name, ["nothing"])[0] for entry in (own, wanted))
        raise ValueError(f"the module has another structure: at {name or 'its root'!r} it holds {has}, not {asked}")
    return module


def _part(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def _settings(part: nn.Module) -> dict[str, Any] | None:
    if type(part) is nn.Linear:
        bias = part.bias is not None
        return {"in_features": part.in_features, "out_features": part.out_features, "bias": bias}
    if type(part) is nn.Identity:
        return {}
    if type(part) is AnytimeMLP:
        return {
            "in_features": part.hidden.in_features,
            "out_features": part.output.out_features,
            "groups": part.groups,
            "units_per_group": part.units_per_group,
            "activation": part.activation,
        }
    if type(part) is VirtualNode:
        return {"features": part.features}
    if isinstance(part, _GHOSTS):
        return {"ghost_size": part.ghost_size}
    if type(part) is MultiHead and all(type(head) is nn.Linear for head in part.heads.heads):
        heads = part.heads
        classes = heads.heads[0].out_features
        count, shared = heads.num_domains, heads.shared
        return {"num_heads": count, "num_classes": classes, "in_dim": heads.in_dim, "shared": shared}
    return None


# parts that the module did not have, by name
_ADDED: dict[tuple[str, str], Callable[[nn.Module, dict[str, Any]], nn.Module]] = {
    (PART, "VirtualNode"): lambda module, settings: add_virtual_node(
        module, VirtualNode(**settings).to(device_of(module))
    ),
}
_BUILDERS: dict[str, Callable[[nn.Module, dict[str, Any]], nn.Module]] = {
    "Linear": lambda part, settings: nn.Linear(**settings),
    "Identity": lambda part, settings: nn.Identity(),
    "AnytimeMLP": lambda part, settings: AnytimeMLP(**settings),
    **{kind.__qualname__: lambda part, settings: convert_ghost_batchnorm(part, **settings) for kind in _GHOSTS},
}
