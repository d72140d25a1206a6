"""The cell space of DARTS: a network whose cells mix candidates on every edge, and the network of what was found.

Source: arXiv:1806.09055 (DARTS), sections 2.1 and 2.4; arXiv:1903.09900 (sharpDARTS), section 3.4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from heldout.errors import check_at_least, check_dimensions, check_fields, check_nonempty, check_same_length, checked
from heldout.nn.architecture_search.candidates import PRIMITIVES, FactorizedReduce, Primitive
from heldout.nn.architecture_search.mixed_op import MixedOp, Weighting

_SEARCHED = (
    "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect",
    "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
)  # fmt: skip


class GenotypeEdge(NamedTuple):
    """One edge that was kept.

    Attributes:
        primitive: name of what is on it.
        source: the state that it comes from: 0 and 1 are the two cells before, 2 is node 0, and so on.

    Example:
        >>> first = (GenotypeEdge("skip_connect", 0), GenotypeEdge("skip_connect", 1))
        >>> second = (GenotypeEdge("max_pool_3x3", 0), GenotypeEdge("skip_connect", source=2))  # reads node 0
        >>> Genotype(first + second, first + second).nodes
        2
    """

    primitive: str
    source: int


@dataclass(frozen=True)
class Genotype:
    """The two cells that a search has found: for each node its two edges, node by node.

    Args:
        normal, reduction: ``2 * nodes`` edges each.

    Raises:
        ValueError: an odd number of edges, different numbers, an edge from a state that comes later.

    Example:
        >>> edges = (GenotypeEdge("skip_connect", 0), GenotypeEdge("sep_conv_3x3", 1))
        >>> Genotype(normal=edges, reduction=edges).nodes
        1
    """

    normal: tuple[GenotypeEdge, ...]
    reduction: tuple[GenotypeEdge, ...]

    def __post_init__(self) -> None:
        check_fields(self)
        check_nonempty(normal=self.normal, reduction=self.reduction)
        check_same_length(normal=self.normal, reduction=self.reduction)
        for name in ("normal", "reduction"):
            edges = tuple(GenotypeEdge(*edge) for edge in getattr(self, name))
            object.__setattr__(self, name, edges)
            if len(edges) % 2:
                raise ValueError(f"{name} must have two edges for each node, got {len(edges)}")
            for position, edge in enumerate(edges):
                if not 0 <= edge.source < position // 2 + 2:
                    raise ValueError(
                        f"{name} has an edge from state {edge.source} to node {position // 2}, which sees those below "
                        f"{position // 2 + 2}"
                    )

    @property
    def nodes(self) -> int:
        """How many nodes a cell has."""
        return len(self.normal) // 2


@checked
def extract_edges(alphas: Tensor, primitives: Sequence[str], nodes: int) -> tuple[GenotypeEdge, ...]:
    """Returns for each node its two edges with the largest weight of a primitive, and on each the best primitive.

    "none" is not looked at, for the choice of the edges nor on them.

    Args:
        alphas: ``(edges, primitives)``, the edges into node 0 first (from states 0 and 1), then those into node 1.
        primitives: their names.
        nodes: of the cell; node i has ``i + 2`` edges.

    Raises:
        ValueError: alphas of another shape, or none but "none" to choose.

    Source: arXiv:1806.09055, section 2.4.

    Example:
        >>> extract_edges(torch.tensor([[9.0, 1.0, 0.0], [0.0, 1.0, 2.0]]), ["none", "a", "b"], nodes=1)
        (GenotypeEdge(primitive='a', source=0), GenotypeEdge(primitive='b', source=1))
    """
    check_at_least(1, nodes=nodes)
    check_nonempty(primitives=primitives)
    expected = (sum(node + 2 for node in range(nodes)), len(primitives))
    if alphas.shape != expected:
        raise ValueError(f"alphas must be {expected} for {nodes} nodes and these primitives, got {tuple(alphas.shape)}")
    if not alphas.isfinite().all():
        raise ValueError("alphas must be finite")
    allowed = [position for position, name in enumerate(primitives) if name != "none"]
    if not allowed:
        raise ValueError("primitives must hold another one than 'none'")
    best, choice = alphas.detach().softmax(1)[:, allowed].max(1)
    found, first = [], 0
    for node in range(nodes):
        strongest = best[first : first + node + 2].topk(2).indices.sort().values.tolist()
        found += [GenotypeEdge(primitives[allowed[int(choice[first + source])]], source) for source in strongest]
        first += node + 2
    return tuple(found)


class SearchCell(nn.Module):
    """A cell whose every edge mixes all candidates; its output is that of all nodes side by side.

    Inputs are the outputs of the two cells before, ``(batch, c, h, w)``; the output is ``(batch, nodes * channels, h,
    w)``, of half the size in a reduction cell. A node is the sum over all edges into it.

    Args:
        before, last: widths of the two inputs.
        channels: width of a node.
        alphas: one parameter ``(primitives,)`` for each edge, shared between cells; default: own ones.
        primitives: name -> ``(channels, stride, affine) -> module``; default: those of DARTS.
        nodes: intermediate nodes.
        reduction: this cell halves the size.
        after_reduction: the last cell did, so that ``before`` is twice as large.
        weighting, detach_max: see ``MixedOp``.

    Raises:
        ValueError: no primitives, not one alpha for each edge, widths below 1.

    Source: arXiv:1806.09055, section 2.1.

    Example:
        >>> cell = SearchCell(3, 6, 4, nodes=2, reduction=True)
        >>> cell(torch.zeros(2, 3, 8, 8), torch.zeros(2, 6, 8, 8)).shape
        torch.Size([2, 8, 4, 4])
    """

    @checked
    def __init__(
        self,
        before: int,
        last: int,
        channels: int,
        alphas: Sequence[nn.Parameter] | None = None,
        *,
        primitives: Mapping[str, Primitive] | None = None,
        nodes: int = 4,
        reduction: bool = False,
        after_reduction: bool = False,
        weighting: Weighting = "max_w",
        detach_max: bool = False,
    ) -> None:
        check_at_least(1, before=before, last=last, channels=channels, nodes=nodes)
        primitives = _primitives(primitives)
        edges = sum(node + 2 for node in range(nodes))
        if alphas is not None and len(alphas) != edges:
            raise ValueError(f"alphas must be one for each of the {edges} edges, got {len(alphas)}")
        super().__init__()
        self.nodes = nodes
        self.inputs = _match_inputs(before, last, channels, after_reduction, affine=False)
        self.edges = nn.ModuleList()
        for node in range(nodes):
            for source in range(node + 2):
                stride = 2 if reduction and source < 2 else 1
                ops = [make(channels, stride, False) for make in primitives.values()]
                shared = alphas[len(self.edges)] if alphas is not None else None
                self.edges.append(MixedOp(ops, weighting, detach_max=detach_max, alphas=shared))

    @checked
    def forward(self, before: Tensor, last: Tensor) -> Tensor:
        check_dimensions(4, before=before, last=last)
        states, first = [self.inputs[0](before), self.inputs[1](last)], 0
        for _ in range(self.nodes):
            arriving = [self.edges[first + source](state) for source, state in enumerate(states)]
            first += len(states)
            states.append(sum(arriving[1:], arriving[0]))
        return torch.cat(states[2:], dim=1)


class _FoundCell(nn.Module):
    """A cell of a genotype: two edges into each node."""

    def __init__(
        self,
        edges: Sequence[GenotypeEdge],
        before: int,
        last: int,
        channels: int,
        *,
        primitives: Mapping[str, Primitive],
        reduction: bool,
        after_reduction: bool,
    ) -> None:
        super().__init__()
        self.inputs = _match_inputs(before, last, channels, after_reduction, affine=True)
        self.sources = [edge.source for edge in edges]
        self.edges = nn.ModuleList(
            primitives[edge.primitive](channels, 2 if reduction and edge.source < 2 else 1, True) for edge in edges
        )

    def forward(self, before: Tensor, last: Tensor) -> Tensor:
        states = [self.inputs[0](before), self.inputs[1](last)]
        for first in range(0, len(self.sources), 2):
            one, two = (self.edges[each](states[self.sources[each]]) for each in (first, first + 1))
            states.append(one + two)
        return torch.cat(states[2:], dim=1)


class _CellNetwork(nn.Module):
    """Stem, cells and classifier. ``make_cell(before, last, channels, reduction, after_reduction)`` gives a cell."""

    def __init__(
        self,
        make_cell: Callable[[int, int, int, bool, bool], nn.Module],
        nodes: int,
        num_classes: int,
        in_channels: int,
        channels: int,
        layers: int,
    ) -> None:
        super().__init__()
        stem = 3 * channels
        self.stem = nn.Sequential(nn.Conv2d(in_channels, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem))
        self.cells = nn.ModuleList()
        before, last, after_reduction = stem, stem, False
        for layer in range(layers):
            reduction = layer in (layers // 3, 2 * layers // 3)
            channels = 2 * channels if reduction else channels
            self.cells.append(make_cell(before, last, channels, reduction, after_reduction))
            before, last, after_reduction = last, nodes * channels, reduction
        self.classifier = nn.Linear(last, num_classes)

    @checked
    def forward(self, inputs: Tensor) -> Tensor:
        check_dimensions(4, inputs=inputs)
        before = last = self.stem(inputs)
        for cell in self.cells:
            before, last = last, cell(before, last)
        return self.classifier(last.mean((2, 3)))


class SearchNetwork(_CellNetwork):
    """A network of search cells for images ``(batch, in_channels, h, w)``; its output is ``(batch, num_classes)``.

    All normal cells share one set of architecture parameters, all reduction cells another. Cells at a third and at two
    thirds of the depth halve the size and double the width. The memory and time of a pass are those of all candidates
    together. Train it with ``heldout.train.DifferentiableSearch``.

    Args:
        num_classes: outputs.
        primitives: some names of ``PRIMITIVES``, or one's own: name -> ``(channels, stride, affine) -> module``; the
            name "none" is never part of a genotype. Default: the eight of DARTS.
        in_channels: of the images.
        channels: width of a node in the first cell.
        layers: cells.
        nodes: of a cell.
        weighting, detach_max: see ``MixedOp``.

    Raises:
        ValueError: unknown primitives, none but "none", numbers below 1.

    Source: arXiv:1806.09055, sections 2.1 and 3.1.1.

    Example:
        >>> network = SearchNetwork(10, ["none", "skip_connect", "sep_conv_3x3"], in_channels=1, channels=4, layers=3,
        ...                         nodes=2)
        >>> network(torch.zeros(2, 1, 16, 16)).shape, len(network.genotype().normal)
        (torch.Size([2, 10]), 4)
    """

    @checked
    def __init__(
        self,
        num_classes: int,
        primitives: Mapping[str, Primitive] | Sequence[str] | None = None,
        *,
        in_channels: int = 3,
        channels: int = 16,
        layers: int = 8,
        nodes: int = 4,
        weighting: Weighting = "max_w",
        detach_max: bool = False,
    ) -> None:
        check_at_least(1, num_classes=num_classes, in_channels=in_channels, channels=channels)
        check_at_least(1, layers=layers, nodes=nodes)
        found = _primitives(primitives)
        edges = sum(node + 2 for node in range(nodes))
        normal, reduced = (nn.ParameterList(torch.zeros(len(found)) for _ in range(edges)) for _ in range(2))

        def make(before: int, last: int, width: int, reduction: bool, after_reduction: bool) -> nn.Module:
            return SearchCell(
                before, last, width, list(reduced if reduction else normal), primitives=found, nodes=nodes,
                reduction=reduction, after_reduction=after_reduction, weighting=weighting, detach_max=detach_max,
            )  # fmt: skip

        super().__init__(make, nodes, num_classes, in_channels, channels, layers)
        self.primitives, self.nodes = tuple(found), nodes
        self.normal_alphas, self.reduction_alphas = normal, reduced

    def genotype(self) -> Genotype:
        """Returns the cells that the architecture parameters stand for now; see ``extract_edges``."""
        kinds = (self.normal_alphas, self.reduction_alphas)
        return Genotype(*(extract_edges(torch.stack(list(each)), self.primitives, self.nodes) for each in kinds))


@checked
def build_from_genotype(
    genotype: Genotype,
    num_classes: int,
    *,
    in_channels: int = 3,
    channels: int = 16,
    layers: int = 8,
    primitives: Mapping[str, Primitive] | None = None,
) -> nn.Module:
    """Returns a fresh network of the cells of a genotype, to be trained from scratch; BatchNorms have their weights.

    Deviation: no drop-path and no auxiliary classifier.

    Args:
        genotype: of ``SearchNetwork.genotype``.
        num_classes, in_channels, channels, layers: as for ``SearchNetwork``; the final network may be wider and deeper.
        primitives: what the names stand for; default: ``PRIMITIVES``.

    Raises:
        ValueError: a primitive that is not known, numbers below 1.

    Source: arXiv:1806.09055, section 3.2.

    Example:
        >>> edges = (GenotypeEdge("skip_connect", 0), GenotypeEdge("sep_conv_3x3", 1))
        >>> network = build_from_genotype(Genotype(edges, edges), 10, in_channels=1, channels=4, layers=3)
        >>> network(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 10])
    """
    check_at_least(1, num_classes=num_classes, in_channels=in_channels, channels=channels, layers=layers)
    known = PRIMITIVES if primitives is None else primitives
    if unknown := sorted({edge.primitive for edge in (*genotype.normal, *genotype.reduction)} - set(known)):
        raise ValueError(f"primitives must hold those of the genotype, {unknown[0]!r} is not among {', '.join(known)}")

    def make(before: int, last: int, width: int, reduction: bool, after_reduction: bool) -> nn.Module:
        edges = genotype.reduction if reduction else genotype.normal
        return _FoundCell(
            edges, before, last, width, primitives=known, reduction=reduction, after_reduction=after_reduction
        )

    return _CellNetwork(make, genotype.nodes, num_classes, in_channels, channels, layers)


def _match_inputs(before: int, last: int, channels: int, after_reduction: bool, *, affine: bool) -> nn.ModuleList:
    """What brings both inputs of a cell to its width, and the first to the size of the second."""

    def pointwise(width: int) -> nn.Module:
        norm = nn.BatchNorm2d(channels, affine=affine)
        return nn.Sequential(nn.ReLU(), nn.Conv2d(width, channels, 1, bias=False), norm)

    first = FactorizedReduce(before, channels, affine=affine) if after_reduction else pointwise(before)
    return nn.ModuleList([first, pointwise(last)])


def _primitives(chosen: Mapping[str, Primitive] | Sequence[str] | None) -> dict[str, Primitive]:
    if isinstance(chosen, Mapping):
        found = dict(chosen)
    else:
        names = _SEARCHED if chosen is None else list(chosen)
        if unknown := [name for name in names if name not in PRIMITIVES]:
            raise ValueError(f"primitives must be names of PRIMITIVES ({', '.join(PRIMITIVES)}), got {unknown[0]!r}")
        found = {name: PRIMITIVES[name] for name in names}
    if not set(found) - {"none"}:
        raise ValueError("primitives must hold another one than 'none'")
    return found
