"""Differentiable grid search: every combination of hyper-parameters is a cell of a layered graph, the result a path.

Source: arXiv:1903.09900 (sharpDARTS), section 3.2: HyperCuboid, Differentiable Hyperparameter Grid Search.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from heldout.errors import check_at_least, check_length, check_nonempty, checked
from heldout.nn.architecture_search.candidates import ResizablePool, SharpSepConv
from heldout.nn.architecture_search.mixed_op import Weighting, mixing_coefficients, normalised_entropy

Strategy = Literal["longest", "greedy", "greedy_from_end"]
ResizablePrimitive = Callable[[int, int, int, bool], nn.Module]


class PathStep(NamedTuple):
    """One step of a path.

    Attributes:
        step: the step's own value, of the first axis.
        source, target: the nodes that it leads from and to, of the second axis.
        choices: name of each further axis -> the value that was chosen.
        weight: of its module among all modules of the step.

    Example:
        >>> axes = {"layer": [0, 1], "width": [2, 3], "bias": [False, True]}
        >>> cuboid = HyperCuboid(axes, lambda layer, source, target, bias: nn.Linear(source, target, bias))
        >>> one, two = cuboid.best_path()
        >>> one.step, two.step, one.target == two.source, list(one.choices), 0 < one.weight < 1
        (0, 1, True, ['bias'], True)
    """

    step: Any
    source: Any
    target: Any
    choices: dict[str, Any]
    weight: float


class HyperCuboid(nn.Module):
    """A layered graph whose nodes are values of one axis and whose edges are all combinations of the others.

    From layer to layer, each node (a width, say) is reached from every node by one module for each combination of the
    remaining axes. At a step one softmax weighs all modules of that step against each other; what arrives at a node is
    their weighted sum. Modules of a weight of at most ``1 / n^2`` among n are left out, but for the best one into each
    node. Training finds the weights; ``best_path`` reads a plain chain of modules from them.

    Args:
        axes: name -> values. The first is the ordered axis of steps, one value for each (a stride, say); the second
            that of nodes; the others are choices.
        make_op: ``(step, source, target, **choices) -> module`` from the features of a node to those of another, or
            None where the grid has no such edge. Normalisation without weights belongs at its end.
        weighting, detach_max: see ``mixing_coefficients``.
        skip: leave out modules of small weight.

    Raises:
        ValueError: fewer than two axes, an axis without values, one but the first with a value twice, a step without
            any module; at the forward: not one input a node, modules whose outputs differ in shape.

    Source: arXiv:1903.09900, section 3.2. Deviation: the best module into a node is never left out.

    Example:
        >>> axes = {"layer": [0, 1], "width": [2, 3], "op": ["plain", "relu"]}
        >>> def make(layer, source, target, op):
        ...     return nn.Sequential(nn.Linear(source, target), nn.ReLU() if op == "relu" else nn.Identity())
        >>> cuboid = HyperCuboid(axes, make)
        >>> [tuple(each.shape) for each in cuboid([torch.ones(5, 2), torch.ones(5, 3)])]
        [(5, 2), (5, 3)]
        >>> len(cuboid.best_path())
        2
    """

    there: Tensor  # bool, of the shape of the weights: which modules the grid has
    reached: Tensor  # bool, the same: those that features can arrive at

    @checked
    def __init__(
        self,
        axes: Mapping[str, Sequence[Hashable]],
        make_op: Callable[..., nn.Module | None],
        weighting: Weighting = "max_w",
        *,
        detach_max: bool = False,
        skip: bool = True,
    ) -> None:
        super().__init__()
        if len(axes) < 2:
            raise ValueError(f"axes must name the steps and the nodes at least, got {len(axes)}")
        for name, values in axes.items():
            if not len(values):
                raise ValueError(f"axes must have values, {name!r} has none")
        (_, self.steps), (_, self.nodes), *choices = ((name, list(values)) for name, values in axes.items())
        for name, values in list(axes.items())[1:]:
            if len(set(values)) < len(values):
                raise ValueError(f"axes must have each value once, {name!r} has {list(values)}")
        names = [name for name, _ in choices]
        self.choices = [dict(zip(names, each, strict=True)) for each in itertools.product(*(v for _, v in choices))]
        self.weighting: Weighting = weighting
        self.detach_max, self.skip = detach_max, skip
        self.ops = nn.ModuleDict()
        there = torch.zeros(len(self.steps), len(self.nodes), len(self.nodes), len(self.choices), dtype=torch.bool)
        for at in itertools.product(*map(range, there.shape)):
            step, source, target, choice = at
            op = make_op(self.steps[step], self.nodes[source], self.nodes[target], **self.choices[choice])
            if op is not None:
                self.ops[_key(at)] = op
                there[at] = True
        if not there.flatten(1).any(1).all():
            raise ValueError("make_op must give a module at every step, got None for all of one")
        self.alphas = nn.Parameter(torch.zeros(there.shape))
        self.register_buffer("there", there, persistent=False)
        reached, nodes = there.clone(), torch.ones(len(self.nodes), dtype=torch.bool)
        for edges in reached:
            edges &= nodes.view(-1, 1, 1)
            nodes = edges.any(2).any(0)
        self.register_buffer("reached", reached, persistent=False)

    def weights(self) -> Tensor:
        """Returns the softmax of each step over its modules, ``(steps, nodes, nodes, choices)``: from, to, choice."""
        flat = self.alphas.masked_fill(~self.there, -torch.inf).flatten(1)
        return flat.softmax(1).view_as(self.alphas)

    def coefficients(self) -> Tensor:
        """Returns what each module's output is multiplied by, of the shape of the weights."""
        flat = mixing_coefficients(self.weights().flatten(1), self.weighting, detach_max=self.detach_max)
        return flat.view_as(self.alphas).masked_fill(~self.there, 0.0)

    def entropy(self) -> Tensor:
        """Returns the mean over steps of the weights' entropy over its largest value: 1 where all modules are equal."""
        return normalised_entropy(self.weights().detach().flatten(1), self.there.flatten(1).sum(1)).mean()

    @checked
    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """Returns the features of each node after the last step; None of a node that no module leads to.

        Args:
            inputs: one tensor for each node.
        """
        check_length(len(self.nodes), inputs=inputs)
        coefficients, computed = self.coefficients(), self._computed()
        states: list[Tensor | None] = list(inputs)
        for step in range(len(self.steps)):
            sums: list[Tensor | None] = [None] * len(self.nodes)
            for source, target, choice in itertools.product(*map(range, self.alphas.shape[1:])):
                at, state = (step, source, target, choice), states[source]
                if computed[step][source][target][choice] and state is not None:
                    output = self.ops[_key(at)](state)
                    sums[target] = _added(sums[target], coefficients[at], output)
            states = sums
        return states

    @checked
    def along(self, path: Sequence[PathStep], features: Tensor) -> Tensor:
        """Returns what the modules of one path make of the features of its first node: the path with shared weights."""
        for at in self._positions(path):
            features = self.ops[_key(at)](features)
        return features

    @torch.no_grad()
    def _computed(self) -> list[Any]:
        """Which modules a forward computes, as nested lists: one wait for the device."""
        if not self.skip:
            return self.reached.tolist()
        weights = self.weights() * self.reached
        few = self.there.flatten(1).sum(1).view(-1, 1, 1, 1)
        into = weights.amax((1, 3), keepdim=True)
        return (self.reached & ((weights > 1 / few**2) | (weights == into))).tolist()

    @checked
    def best_path(self, strategy: Strategy = "longest") -> tuple[PathStep, ...]:
        """Returns the path that the weights stand for, one step after the other.

        Args:
            strategy: "longest": the largest sum of weights; "greedy": from the first step on, the largest weight that
                leaves the node where the path stands; "greedy_from_end": the same from the last step back.

        Raises:
            ValueError: no path leads through all steps, or alphas that are not finite.
        """
        if not self.alphas.isfinite().all():
            raise ValueError("alphas must be finite")
        table = self.weights().detach().masked_fill(~self.there, -torch.inf).double().cpu()
        best, choice = table.max(3)  # (steps, sources, targets)
        if strategy == "longest":
            nodes = _longest(best.tolist())
        elif strategy == "greedy":
            nodes = _greedy(best)
        else:
            nodes = _greedy(best.flip(0).transpose(1, 2))[::-1]
        positions = [(step, a, b, int(choice[step, a, b])) for step, (a, b) in enumerate(itertools.pairwise(nodes))]
        return tuple(self._step(at, float(table[at])) for at in positions)

    @checked
    def random_path(self, generator: torch.Generator | None = None) -> tuple[PathStep, ...]:
        """Returns a path drawn step by step, evenly among the modules that lead on from where it stands.

        Raises:
            ValueError: it came to a node from which nothing leads on.
        """
        node, steps, weights = None, [], self.weights().detach()
        for step in range(len(self.steps)):
            open_ = [
                (step, *at) for at in self.there[step].nonzero().tolist() if node is None or at[0] == node
            ]  # fmt: skip
            if not open_:
                raise ValueError(f"there is no path on from {self.nodes[node or 0]!r} at step {step}")
            at = open_[int(torch.randint(len(open_), (), generator=generator))]
            node = at[2]
            steps.append(self._step(at, float(weights[tuple(at)])))
        return tuple(steps)

    @checked
    def path_of(self, nodes: Sequence[Hashable], **choices: Hashable) -> tuple[PathStep, ...]:
        """Returns the path through these nodes, one more than there are steps, with the same choices at every step.

        Raises:
            ValueError: a node or choice that the grid does not have.
        """
        check_length(len(self.steps) + 1, nodes=nodes)
        path = [
            PathStep(step, source, target, dict(choices), 0.0)
            for step, (source, target) in zip(self.steps, itertools.pairwise(nodes), strict=True)
        ]
        weights = self.weights().detach()
        return tuple(self._step(at, float(weights[at])) for at in self._positions(path))

    def _step(self, at: Sequence[int], weight: float) -> PathStep:
        step, source, target, choice = at
        return PathStep(self.steps[step], self.nodes[source], self.nodes[target], dict(self.choices[choice]), weight)

    def _positions(self, path: Sequence[PathStep]) -> list[tuple[int, int, int, int]]:
        check_length(len(self.steps), path=path)
        found = []
        for number, step in enumerate(path):
            if step.source not in self.nodes or step.target not in self.nodes or step.choices not in self.choices:
                raise ValueError(f"path has a step that the grid does not have: {step}")
            at = (
                number, self.nodes.index(step.source), self.nodes.index(step.target),
                self.choices.index(step.choices),
            )  # fmt: skip
            if not self.there[at]:
                raise ValueError(f"path has a step that the grid does not have: {step}")
            found.append(at)
        return found


def _key(at: Sequence[int]) -> str:
    return "_".join(map(str, at))


def _added(total: Tensor | None, coefficient: Tensor, output: Tensor) -> Tensor:
    if total is None:
        return coefficient * output
    if total.shape != output.shape:
        raise ValueError(
            "make_op must give modules whose outputs for one node have one shape, got "
            f"{tuple(total.shape)} and {tuple(output.shape)}"
        )
    return torch.addcmul(total, coefficient, output)


def _longest(best: list[list[list[float]]]) -> list[int]:
    """The nodes of the path with the largest sum of weights ``best[step][source][target]``."""
    reach = [0.0] * len(best[0])
    came_from = []
    for edges in best:
        from_each = [[reach[a] + edges[a][b] for a in range(len(reach))] for b in range(len(reach))]
        came_from.append([max(range(len(each)), key=each.__getitem__) for each in from_each])
        reach = [max(each) for each in from_each]
    node = max(range(len(reach)), key=reach.__getitem__)
    if reach[node] == -torch.inf:
        raise ValueError("there is no path through all steps")
    nodes = [node]
    for previous in reversed(came_from):
        nodes.append(previous[nodes[-1]])
    return nodes[::-1]


def _greedy(best: Tensor) -> list[int]:
    first = int(best[0].argmax())
    nodes = [first // best.shape[2]]
    for edges in best:
        if not edges[nodes[-1]].isfinite().any():
            raise ValueError("there is no path through all steps that this strategy finds")
        nodes.append(int(edges[nodes[-1]].argmax()))
    return nodes


def _sharp(source: int, target: int, stride: int, affine: bool) -> nn.Module:
    return SharpSepConv(source, target, stride=stride, affine=affine)


def _pool(source: int, target: int, stride: int, affine: bool) -> nn.Module:
    return ResizablePool(source, target, stride=stride, affine=affine)


RESIZABLE_PRIMITIVES: dict[str, ResizablePrimitive] = {"sep_conv": _sharp, "pool": _pool}


class MultiChannelNetwork(nn.Module):
    """The paper's grid for images: strides are the steps, widths the nodes, primitives the choice.

    A stem for each width, a ``HyperCuboid``, and from each width a SharpSepConv to a common one, whose sum is averaged
    over positions and classified: ``(batch, in_channels, h, w)`` becomes ``(batch, num_classes)``.

    Args:
        num_classes: outputs.
        channels: the widths.
        strides: of the steps, one after the other; the paper alternates 1 and 2.
        primitives: name -> ``(source, target, stride, affine) -> module``; default: a SharpSepConv and a ResizablePool.
        in_channels: of the images.
        final_channels: the common width; default: the largest.
        weighting, detach_max, skip: see ``HyperCuboid``.

    Raises:
        ValueError: as ``HyperCuboid``; numbers below 1.

    Source: arXiv:1903.09900, section 3.2.

    Example:
        >>> network = MultiChannelNetwork(10, channels=(4, 8), strides=(1, 2), in_channels=1)
        >>> network(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
        >>> [step.choices["primitive"] for step in network.cuboid.path_of([4, 4, 8], primitive="pool")]
        ['pool', 'pool']
    """

    @checked
    def __init__(
        self,
        num_classes: int,
        *,
        channels: Sequence[int] = (32, 64, 128, 256),
        strides: Sequence[int] = (1, 2, 1, 2),
        primitives: Mapping[str, ResizablePrimitive] | None = None,
        in_channels: int = 3,
        final_channels: int | None = None,
        weighting: Weighting = "max_w",
        detach_max: bool = False,
        skip: bool = True,
    ) -> None:
        check_nonempty(channels=channels, strides=strides)
        check_at_least(1, num_classes=num_classes, in_channels=in_channels, final_channels=final_channels)
        check_at_least(1, channels=channels, strides=strides)
        super().__init__()
        known = RESIZABLE_PRIMITIVES if primitives is None else dict(primitives)
        check_nonempty(primitives=known)
        common = final_channels or max(channels)

        def make(stride: int, source: int, target: int, primitive: str) -> nn.Module:
            return known[primitive](source, target, stride, False)

        self.stems = nn.ModuleList(_stem(in_channels, width, affine=False) for width in channels)
        axes: dict[str, list[Any]] = {"stride": list(strides), "channels": list(channels), "primitive": list(known)}
        self.cuboid = HyperCuboid(axes, make, weighting, detach_max=detach_max, skip=skip)
        self.finals = nn.ModuleList(SharpSepConv(width, common, affine=False) for width in channels)
        self.classifier = nn.Linear(common, num_classes)

    @checked
    def forward(self, inputs: Tensor, path: Sequence[PathStep] | None = None) -> Tensor:
        """Returns logits ``(batch, num_classes)`` of the whole grid, or of one path through it with its weights."""
        if path is not None:
            check_nonempty(path=path)
            first, last = (self.cuboid.nodes.index(each) for each in (path[0].source, path[-1].target))
            total = self.finals[last](self.cuboid.along(path, self.stems[first](inputs)))
        else:
            features = self.cuboid([stem(inputs) for stem in self.stems])
            widths = [final(each) for final, each in zip(self.finals, features, strict=True) if each is not None]
            total = sum(widths[1:], widths[0])
        return self.classifier(total.mean((2, 3)))


@checked
def build_from_path(
    path: Sequence[PathStep],
    num_classes: int,
    *,
    in_channels: int = 3,
    final_channels: int | None = None,
    primitives: Mapping[str, ResizablePrimitive] | None = None,
) -> nn.Sequential:
    """Returns the plain network of a path through a ``MultiChannelNetwork``, to be trained from scratch.

    Args:
        path: of ``best_path``, ``random_path`` or ``path_of`` of its ``cuboid``.
        num_classes, in_channels, primitives: as for the ``MultiChannelNetwork``.
        final_channels: the common width; default: that of the path's last node.

    Raises:
        ValueError: an empty path, steps that do not join, a primitive that is not known.

    Source: arXiv:1903.09900, section 3.2.

    Example:
        >>> path = [PathStep(2, 4, 8, {"primitive": "sep_conv"}, 0.5)]
        >>> build_from_path(path, 10, in_channels=1)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    check_nonempty(path=path)
    check_at_least(1, num_classes=num_classes, in_channels=in_channels, final_channels=final_channels)
    known = RESIZABLE_PRIMITIVES if primitives is None else dict(primitives)
    if any(one.target != two.source for one, two in itertools.pairwise(path)):
        raise ValueError("path must have steps of which each starts where the one before ends")
    layers = [_stem(in_channels, path[0].source, affine=True)]
    for step in path:
        name = step.choices.get("primitive")
        if name not in known:
            raise ValueError(f"path has the primitive {name!r}, which is not among {', '.join(known)}")
        layers.append(known[name](step.source, step.target, step.step, True))
    common = final_channels or path[-1].target
    layers.append(SharpSepConv(path[-1].target, common))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(common, num_classes))


def _stem(in_channels: int, width: int, *, affine: bool) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width, affine=affine))
