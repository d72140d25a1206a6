"""Families of small image classifiers, each drawn from a design space of its own and written as plain data.

Inputs are ``(batch, 1, size, size)``, outputs ``(batch, 10)``. A design is a dict of numbers, texts and lists, so that
it can be kept as JSON beside what the network reached.

Source: the design spaces follow those of arXiv:2211.17226 (NAS-Bench-101 cells, OFA, two-path, inception) in small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Literal

import torch
from torch import Tensor, nn

from heldout.errors import check_at_least, check_one_of, checked

NETWORK_FAMILIES = ("cells", "chains", "two_path", "separable", "inception", "mixer")
NetworkFamily = Literal["cells", "chains", "two_path", "separable", "inception", "mixer"]

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "relu6": nn.ReLU6, "swish": nn.SiLU}
_CLASSES = 10


@checked
def draw_network(family: NetworkFamily, seed: int) -> dict[str, Any]:
    """Returns the design of a network of a family, for ``build_network``.

    - ``cells``: one to three equal cells after a stem, as in NAS-Bench-101: up to three operations (convolution 3 x 3
      or 1 x 1, max-pooling) on a random directed acyclic graph, sums within and a concatenation at the end.
    - ``chains``: two to five convolutions in a row, kernels of 1 to 5.
    - ``two_path``: two paths of residual blocks side by side, joined.
    - ``separable``: inverted residual blocks with depthwise convolutions.
    - ``inception``: blocks of parallel convolutions and pooling, concatenated.
    - ``mixer``: linear layers over patches and over channels in turn.

    Args:
        family: one of ``NETWORK_FAMILIES``.
        seed: of the draw; the same design for ever.

    Raises:
        ValueError: another family, a negative seed.

    Example:
        >>> draw_network("chains", 1)["family"]
        'chains'
        >>> draw_network("chains", 1) == draw_network("chains", 1)
        True
    """
    check_one_of(NETWORK_FAMILIES, family=family)
    check_at_least(0, seed=seed)
    return {"family": family, **_DRAWS[family](Random(f"{family} {seed}"))}


@checked
def build_network(design: dict[str, Any]) -> nn.Module:
    """Returns the untrained network of a design; weights are drawn from torch's own generator, as in its layers.

    Args:
        design: of ``draw_network``, or changed by hand.

    Raises:
        ValueError: another family, or a design that lacks an entry of its family.

    Example:
        >>> build_network(draw_network("mixer", 0))(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 10])
    """
    family = design.get("family")
    if family not in NETWORK_FAMILIES:
        raise ValueError(f"design must have a family of {', '.join(NETWORK_FAMILIES)}, got {family!r}")
    try:
        return _BUILDERS[family](design)
    except KeyError as error:
        raise ValueError(f"design of the family {family} must have the entry {error}") from None


@checked
def resize_network(design: dict[str, Any], parameters: int) -> dict[str, Any]:
    """Returns a design with all widths scaled by one factor, so that it has about a given number of parameters.

    What is left to differ among networks of one size is how they are built. Widths are whole numbers of 2 at least:
    how near the number is depends on the design.

    Args:
        design: of ``draw_network``; it stays as it is.
        parameters: to come near to.

    Raises:
        ValueError: fewer than 1 parameter, or what ``build_network`` refuses.

    Example:
        >>> small = resize_network(draw_network("chains", 1), 2000)
        >>> sum(p.numel() for p in build_network(small).parameters())
        2005
    """
    check_at_least(1, parameters=parameters)
    build_network(design)

    def size(factor: float) -> int:
        return sum(p.numel() for p in build_network(_scaled(design, factor)).parameters())

    low, high = 0.05, 1.0
    while size(high) < parameters:
        low, high = high, 2 * high
    for _ in range(20):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if size(middle) < parameters else (low, middle)
    return _scaled(design, min((low, high), key=lambda factor: abs(size(factor) - parameters)))


def _scaled(design: dict[str, Any], factor: float) -> dict[str, Any]:
    def wide(width: int) -> int:
        return max(2, round(width * factor))

    scaled: dict[str, Any] = {name: wide(design[name]) for name in ("width", "tokens", "hidden") if name in design}
    if design.get("family") == "chains":
        scaled["layers"] = [[wide(width), *rest] for width, *rest in design["layers"]]
    if design.get("family") == "separable":
        scaled["blocks"] = [[wide(width), *rest] for width, *rest in design["blocks"]]
    if design.get("family") == "inception":
        scaled["blocks"] = [[[kind, wide(width)] for kind, width in branches] for branches in design["blocks"]]
    return design | scaled


def _conv(source: int, target: int, kernel: int, design: dict[str, Any], stride: int = 1, groups: int = 1) -> nn.Module:
    """Convolution, normalisation where the design has one, activation."""
    norm = design["norm"]
    layers: list[nn.Module] = [
        nn.Conv2d(source, target, kernel, stride, kernel // 2, groups=groups, bias=not norm),
        *([nn.BatchNorm2d(target)] if norm else []),
        _ACTIVATIONS[design["activation"]](),
    ]
    return nn.Sequential(*layers)


class _Head(nn.Sequential):
    def __init__(self, channels: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, _CLASSES))


class _Cell(nn.Module):
    """Operations on a directed acyclic graph; node 0 is the input, the last the output."""

    def __init__(self, design: dict[str, Any], width: int) -> None:
        super().__init__()
        self.links = [tuple(link) for link in design["links"]]
        self.operations = nn.ModuleList(
            nn.MaxPool2d(3, 1, 1) if each == "pool" else _conv(width, width, int(each), design)
            for each in design["operations"]
        )
        self.leaves = [source for source, target in self.links if target == len(self.operations) + 1]
        self.join = _conv(width * len(self.leaves), width, 1, design) if len(self.leaves) > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for number, operation in enumerate(self.operations, 1):
            taken = [values[source] for source, target in self.links if target == number]
            values.append(operation(sum(taken[1:], start=taken[0])))
        found = [values[leaf] for leaf in self.leaves]
        return self.join(torch.cat(found, 1) if len(found) > 1 else found[0])


class _Residual(nn.Module):
    def __init__(self, body: nn.Module, add: bool = True) -> None:
        super().__init__()
        self.body, self.add = body, add

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.add else self.body(x)


class _Parallel(nn.Module):
    """Branches side by side, concatenated or added."""

    def __init__(self, branches: Sequence[nn.Module], join: str) -> None:
        super().__init__()
        self.branches, self.join = nn.ModuleList(branches), join

    def forward(self, x: Tensor) -> Tensor:
        found = [branch(x) for branch in self.branches]
        return torch.cat(found, 1) if self.join == "concat" else sum(found[1:], start=found[0])


class _Transposed(nn.Module):
    """A layer over the second axis from the last instead of the last one."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.transpose(1, 2)).transpose(1, 2)


class _Tokens(nn.Module):
    """Patches as tokens ``(batch, tokens, width)``, at the end their mean."""

    def __init__(self, patches: nn.Module, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.patches, self.body, self.head = patches, body, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def _cells(design: dict[str, Any]) -> nn.Module:
    width, layers = design["width"], list[nn.Module]()
    layers.append(_conv(1, width, 3, design, design["stride"]))
    for number in range(design["cells"]):
        if number:
            layers += [nn.MaxPool2d(2), _conv(width, width * 2, 1, design)]
            width *= 2
        layers.append(_Cell(design, width))
    return nn.Sequential(*layers, _Head(width))


def _chains(design: dict[str, Any]) -> nn.Module:
    layers, source = list[nn.Module](), 1
    for width, kernel, stride in design["layers"]:
        layers.append(_conv(source, width, kernel, design, stride))
        source = width
    return nn.Sequential(*layers, _Head(source))


def _two_path(design: dict[str, Any]) -> nn.Module:
    width = design["width"]
    paths = []
    for blocks in design["paths"]:
        layers = [
            _Residual(nn.Sequential(*(_conv(width, width, kernel, design) for kernel in kernels)), design["residual"])
            for kernels in blocks
        ]
        middle = [_conv(width, width, 3, design, 2)] if design["reduce"] else []
        paths.append(nn.Sequential(*layers[:1], *middle, *layers[1:]))
    stem = _conv(1, width, 3, design, 2)
    return nn.Sequential(
        stem, _Parallel(paths, design["join"]), _Head(width * 2 if design["join"] == "concat" else width)
    )


def _separable(design: dict[str, Any]) -> nn.Module:
    source = design["width"]
    layers: list[nn.Module] = [_conv(1, source, 3, design, design["stride"])]
    for width, kernel, expansion, stride in design["blocks"]:
        inner = source * expansion
        body = nn.Sequential(
            *([_conv(source, inner, 1, design)] if expansion > 1 else []),
            _conv(inner, inner, kernel, design, stride, groups=inner),
            nn.Conv2d(inner, width, 1, bias=not design["norm"]),
            *([nn.BatchNorm2d(width)] if design["norm"] else []),
        )
        layers.append(_Residual(body, stride == 1 and source == width))
        source = width
    return nn.Sequential(*layers, _Head(source))


def _inception(design: dict[str, Any]) -> nn.Module:
    source, layers = design["width"], list[nn.Module]()
    layers.append(_conv(1, source, 3, design, design["stride"]))
    for number, branches in enumerate(design["blocks"]):
        if number:
            layers.append(nn.AvgPool2d(2))
        made = list[nn.Module]()
        for kind, width in branches:
            if kind == "pool":
                made.append(nn.Sequential(nn.AvgPool2d(3, 1, 1), _conv(source, width, 1, design)))
            elif kind == "1":
                made.append(_conv(source, width, 1, design))
            else:
                reduced = max(2, width // 2)
                made.append(nn.Sequential(_conv(source, reduced, 1, design), _conv(reduced, width, int(kind), design)))
        layers.append(_Parallel(made, "concat"))
        source = sum(width for _, width in branches)
    return nn.Sequential(*layers, _Head(source))


def _mixer(design: dict[str, Any]) -> nn.Module:
    patch, width, activation = design["patch"], design["width"], nn.GELU
    tokens = (16 // patch) ** 2
    layers = list[nn.Module]()
    for _ in range(design["blocks"]):
        over_tokens = [nn.Linear(tokens, design["tokens"]), activation(), nn.Linear(design["tokens"], tokens)]
        over_width = [nn.Linear(width, design["hidden"]), activation(), nn.Linear(design["hidden"], width)]
        norms = [[nn.BatchNorm1d(width)] if design["norm"] else [] for _ in range(2)]
        layers.append(_Residual(_Transposed(nn.Sequential(*over_tokens)), design["residual"]))
        layers += [_Transposed(norm[0]) for norm in norms[:1] if norm]
        layers.append(_Residual(nn.Sequential(*over_width), design["residual"]))
        layers += [_Transposed(norm[0]) for norm in norms[1:] if norm]
    return _Tokens(nn.Conv2d(1, width, patch, patch), nn.Sequential(*layers), nn.Linear(width, _CLASSES))


_BUILDERS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "cells": _cells, "chains": _chains, "two_path": _two_path, "separable": _separable, "inception": _inception,
    "mixer": _mixer,
}  # fmt: skip


def _draw_cells(random: Random) -> dict[str, Any]:
    operations = [random.choice(("3", "3", "1", "pool")) for _ in range(random.randint(1, 3))]
    last = len(operations) + 1
    links = {(source, target) for target in range(1, last + 1) for source in range(target) if random.random() < 0.4}
    for node in range(1, last + 1):  # every operation is fed, and feeds
        if not any(target == node for _, target in links):
            links.add((random.randrange(node), node))
    for node in range(last):
        if not any(source == node for source, _ in links):
            links.add((node, random.randint(node + 1, last)))
    return {
        "operations": operations, "links": sorted(map(list, links)), "cells": random.randint(1, 3),
        "width": random.choice((4, 6, 8, 12)), "stride": random.choice((2, 2, 4)), "norm": random.random() < 0.6,
        "activation": random.choice(("relu", "relu", "tanh", "sigmoid")),
    }  # fmt: skip


def _draw_chains(random: Random) -> dict[str, Any]:
    depth = random.randint(2, 5)
    strides = [2, *(random.choice((1, 1, 2)) for _ in range(depth - 1))]
    layers = [[random.choice((4, 8, 16)), random.choice((1, 3, 3, 5)), strides[number]] for number in range(depth)]
    return {
        "layers": layers, "norm": random.random() < 0.6, "activation": random.choice(("relu", "relu", "tanh", "swish"))
    }  # fmt: skip


def _draw_two_path(random: Random) -> dict[str, Any]:
    paths = [
        [[random.choice((1, 3, 5)) for _ in range(random.randint(1, 2))] for _ in range(random.randint(1, 3))]
        for _ in range(2)
    ]
    return {
        "paths": paths, "width": random.choice((3, 6, 9, 12)), "join": random.choice(("add", "concat")),
        "reduce": random.random() < 0.5, "residual": random.random() < 0.5, "norm": random.random() < 0.6,
        "activation": random.choice(("relu", "relu", "tanh", "relu6")),
    }  # fmt: skip


def _draw_separable(random: Random) -> dict[str, Any]:
    blocks = [
        [random.choice((6, 12, 18)), random.choice((3, 5)), random.choice((1, 2, 3)), random.choice((1, 1, 2))]
        for _ in range(random.randint(1, 4))
    ]
    return {
        "blocks": blocks, "width": random.choice((4, 8, 12)), "stride": random.choice((2, 2, 4)),
        "norm": random.random() < 0.6, "activation": random.choice(("relu6", "relu6", "swish", "relu")),
    }  # fmt: skip


def _draw_inception(random: Random) -> dict[str, Any]:
    def branches() -> list[list[Any]]:
        kinds = random.sample(("1", "3", "5", "pool"), random.randint(2, 4))
        return [[kind, random.choice((2, 4, 8))] for kind in kinds]

    return {
        "blocks": [branches() for _ in range(random.randint(1, 3))], "width": random.choice((4, 8)),
        "stride": random.choice((2, 2, 4)), "norm": random.random() < 0.6,
        "activation": random.choice(("relu", "relu", "tanh", "swish")),
    }  # fmt: skip


def _draw_mixer(random: Random) -> dict[str, Any]:
    return {
        "patch": random.choice((2, 4, 8)), "width": random.choice((8, 16, 32)), "blocks": random.randint(1, 4),
        "tokens": random.choice((4, 16, 48)), "hidden": random.choice((8, 32, 64)),
        "residual": random.random() < 0.6, "norm": random.random() < 0.5,
    }  # fmt: skip


_DRAWS: dict[str, Callable[[Random], dict[str, Any]]] = {
    "cells": _draw_cells, "chains": _draw_chains, "two_path": _draw_two_path, "separable": _draw_separable,
    "inception": _draw_inception, "mixer": _draw_mixer,
}  # fmt: skip
