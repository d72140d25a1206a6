"""Core: Graphs split by their scaffold: what is left of a molecule, or of any graph, without its branches.

Source: Bemis and Murcko, Journal of Medicinal Chemistry 39 (1996); groups in order of size as in arXiv:1703.00564 (Wu
et al.) and arXiv:2005.00687 (Hu et al.). deviation: without a chemistry library; two scaffolds are told apart by the
Weisfeiler-Lehman hash of their nodes and edges, and double bonds to atoms outside of a ring go with their branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_fraction, check_has, check_labels, checked


class ScaffoldSplit(NamedTuple):
    """Positions of graphs, no scaffold in two parts, and the scaffolds.

    Attributes:
        train, val, test: int64, positions in what was split, in rising order.
        scaffolds: the hash of each graph's scaffold, as ``graph_scaffold`` gives it; "" without rings.

    Example:
        >>> from types import SimpleNamespace
        >>> nodes = torch.arange(5)
        >>> ring = SimpleNamespace(edge_index=torch.stack([nodes, nodes.roll(1)]), num_nodes=5)
        >>> chain = SimpleNamespace(edge_index=torch.tensor([[0, 1], [1, 2]]), num_nodes=3)
        >>> split = split_by_scaffold([ring, chain, ring, ring], train=0.75)
        >>> split.train.tolist(), split.test.tolist(), split.scaffolds[1]
        ([0, 2, 3], [1], '')
    """

    train: Tensor
    val: Tensor
    test: Tensor
    scaffolds: list[str]


@checked
def graph_scaffold(graph: Any, *, rounds: int = 3, features: Sequence[int] | None = None) -> str:
    """Returns a hash of a graph without its branches: rings, with their nodes' features, and the paths between them.

    Nodes with a single neighbour are taken away until there are none. Graphs of one hash are the same for ``rounds`` of
    the Weisfeiler-Lehman test; the order of nodes does not matter.

    Args:
        graph: ``torch_geometric.data.Data`` with ``edge_index``, and perhaps ``x`` and ``edge_attr`` of whole numbers
            or categories; taken as undirected.
        rounds: of the test; neighbourhoods of this radius are told apart.
        features: columns of ``x`` that tell nodes apart; default: all. Columns that branches change, such as the degree
            or the number of hydrogens, make scaffolds of their own: for OGB and MoleculeNet take (0,), the element.

    Raises:
        ValueError: columns that ``x`` has not.

    Returns:
        32 characters, or "" for a graph without rings.

    Example:
        >>> from types import SimpleNamespace
        >>> ring = torch.tensor([[0, 1, 2, 0, 3], [1, 2, 0, 3, 4]])  # a triangle with a tail
        >>> graph_scaffold(SimpleNamespace(edge_index=ring, num_nodes=5)) == graph_scaffold(
        ...     SimpleNamespace(edge_index=ring[:, :3], num_nodes=3))
        True
        >>> graph_scaffold(SimpleNamespace(edge_index=ring[:, 3:], num_nodes=5))
        ''
    """
    import networkx

    check_has("edge_index", "num_nodes", graph=graph)
    check_at_least(1, rounds=rounds)
    x, attributes = getattr(graph, "x", None), getattr(graph, "edge_attr", None)
    if features is not None:
        columns = torch.zeros(0, 0) if x is None else x.reshape(len(x), -1)
        check_labels(columns.shape[1], features=list(features))
        x = columns[:, list(features)]
    known = networkx.Graph()
    for number, (source, target) in enumerate(graph.edge_index.T.tolist()):
        if source != target:
            kind = "" if attributes is None else str(attributes[number].tolist())
            known.add_edge(source, target, kind=kind)
    left = networkx.k_core(known, 2)
    if not len(left):
        return ""
    for node in left:
        left.nodes[node]["kind"] = "" if x is None else str(x[node].tolist())
    return networkx.weisfeiler_lehman_graph_hash(left, edge_attr="kind", node_attr="kind", iterations=rounds)


@checked
def split_by_scaffold(
    graphs: Sequence[Any],
    train: float = 0.8,
    val: float = 0.1,
    *,
    rounds: int = 3,
    features: Sequence[int] | None = None,
) -> ScaffoldSplit:
    """Returns which graphs to train on, those of common scaffolds, and which to be tested on, those of rare ones.

    Groups of one scaffold go from the largest to the smallest, among equals from the first in ``graphs``, each into
    training while it fits, then into validation while it fits, else into the test. Nothing is drawn.

    Args:
        graphs: ``torch_geometric.data.Data`` each, or a data set of them.
        train: share to train on, at most.
        val: share to choose by, at most.
        rounds, features: as for ``graph_scaffold``.

    Raises:
        ValueError: no graphs, or shares outside of [0, 1] or of more than 1 in sum.

    Source: arXiv:2005.00687, section 5. deviation: there validation fills up to the sum of both shares.

    Example:
        >>> from types import SimpleNamespace
        >>> def ring(size):
        ...     nodes = torch.arange(size)
        ...     return SimpleNamespace(edge_index=torch.stack([nodes, nodes.roll(1)]), num_nodes=size)
        >>> split = split_by_scaffold([ring(size) for size in (5, 6, 6, 6, 5, 7)], train=0.5, val=0.34)
        >>> [part.tolist() for part in split[:3]]
        [[1, 2, 3], [0, 4], [5]]
    """
    check_at_least(1, graphs=len(graphs))
    check_fraction(train=train, val=val)
    if train + val > 1:
        raise ValueError(f"train and val must sum to at most 1, got {train} and {val}")
    scaffolds = [graph_scaffold(graphs[at], rounds=rounds, features=features) for at in range(len(graphs))]
    groups: dict[str, list[int]] = {}
    for number, scaffold in enumerate(scaffolds):
        groups.setdefault(scaffold, []).append(number)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for group in sorted(groups.values(), key=len, reverse=True):
        if len(parts[0]) + len(group) <= train * len(graphs) + 1e-9:
            parts[0].extend(group)
        elif len(parts[1]) + len(group) <= val * len(graphs) + 1e-9:
            parts[1].extend(group)
        else:
            parts[2].extend(group)
    first, second, third = (torch.tensor(sorted(part), dtype=torch.int64) for part in parts)
    return ScaffoldSplit(first, second, third, scaffolds)
