"""Core: Splits of a graph by its edges: what is predicted is never among the edges that an encoder is given.

Source: arXiv:2406.08310 (Xu et al., 2024), the protocol of link prediction.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_fraction, check_has, check_labels, check_one_of, checked

Negatives = Literal["uniform", "degree"]


class LinkSplit(NamedTuple):
    """Undirected edges by part, each once, and as many pairs of nodes without an edge.

    Attributes:
        train, val, test: int64 ``(2, n)``, the smaller node of each edge first.
        val_negatives, test_negatives: pairs that are no edges of any part, as many as edges, each once.
        edge_index: what an encoder may be given, int64 ``(2, edges)``, both directions of each edge, sorted.
        num_nodes: of the graph.
        negatives: how pairs without an edge were drawn, and are drawn to train a decoder.

    Example:
        >>> split = split_links(torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]]), val=0.34, test=0.34)
        >>> [part.shape[1] for part in split[:5]], split.edge_index.shape
        ([1, 1, 1, 1, 1], torch.Size([2, 2]))
    """

    train: Tensor
    val: Tensor
    test: Tensor
    val_negatives: Tensor
    test_negatives: Tensor
    edge_index: Tensor
    num_nodes: int
    negatives: Negatives = "uniform"


@checked
def split_links(
    data: Any,
    val: float = 0.05,
    test: float = 0.1,
    seed: int = 0,
    *,
    encode_with: Literal["train", "all"] = "train",
    leave: int = 0,
    negatives: Negatives = "uniform",
) -> LinkSplit:
    """Returns a random split of the undirected edges of a graph.

    Self-loops and copies of an edge are left out. Of n edges ``round(val * n)`` and ``round(test * n)`` are held out.

    Where degrees differ, links between nodes of many are likelier than random pairs, and a node that is left without
    an edge gives away that one was held out: the degree alone can then tell links (in a tree of WordNet's nouns with an
    area under the ROC curve of 0.84). ``leave=1`` and ``negatives="degree"`` keep that out.

    Args:
        data: a graph with ``edge_index`` and ``num_nodes``, such as ``torch_geometric.data.Data``, or its
            ``edge_index`` alone, int64 ``(2, edges)``, with both directions of each edge.
        val, test: shares of the edges, above 0, together below 1.
        seed: of the draw.
        encode_with: "train" for an ``edge_index`` of training edges alone; "all" for one that holds what is predicted,
            as the official evaluation has it: scores are then not those of unseen links.
        leave: edges that stay at each end of a held-out one, among those to train on.
        negatives: "uniform" for pairs of any two nodes, as published; "degree" for two random ends of held-out edges
            of the same part, so that both kinds of pairs have the same degrees.

    Raises:
        ValueError: no edges, a directed graph, nodes that are not there, shares out of range or of no edge, fewer
            edges than asked for that can be held out, or too few pairs without an edge.

    Source: arXiv:2406.08310; official code. deviation: it encodes with all edges.

    Example:
        >>> from heldout.tasks import BlockModel
        >>> split = split_links(BlockModel(nodes=100).sample(0))
        >>> split.train.shape[1], split.val.shape[1], split.test.shape[1], split.edge_index.shape[1]
        (255, 15, 30, 510)
    """
    check_fraction(val=val, test=test)
    check_at_least(0, seed=seed)
    check_at_least(0, leave=leave)
    check_one_of(("train", "all"), encode_with=encode_with)
    check_one_of(("uniform", "degree"), negatives=negatives)
    if isinstance(data, Tensor):
        edges = data
        nodes = int(edges.max()) + 1 if edges.numel() else 0
    else:
        check_has("edge_index", "num_nodes", data=data)
        edges, nodes = data.edge_index, int(data.num_nodes)
    if not isinstance(edges, Tensor) or edges.ndim != 2 or edges.shape[0] != 2 or edges.dtype != torch.int64:
        got = tuple(edges.shape) if isinstance(edges, Tensor) else type(edges).__name__
        raise ValueError(f"data must have an int64 edge_index (2, edges), got {got}")
    check_labels(nodes, data=edges)
    edges = edges[:, edges[0] != edges[1]]
    if not edges.shape[1]:
        raise ValueError("data must have edges between different nodes, got none")
    there, back = (edges[0] * nodes + edges[1]).unique(), (edges[1] * nodes + edges[0]).unique()
    if not torch.equal(there, back):
        raise ValueError("data must hold both directions of each edge: torch_geometric.utils.to_undirected")
    codes = there[there // nodes < there % nodes].cpu()
    sizes = round(val * len(codes)), round(test * len(codes))
    if min(sizes) < 1 or sum(sizes) >= len(codes):
        raise ValueError(
            f"val and test must leave each part an edge: of {len(codes)} they hold out {sizes[0]} and {sizes[1]}"
        )
    generator = torch.Generator().manual_seed(seed)
    codes = codes[torch.randperm(len(codes), generator=generator)]
    held = sum(sizes)
    if leave:
        codes = _that_leave(codes, nodes, held, leave)
    if negatives == "uniform":
        absent = _absent(codes, nodes, held, generator)
    else:
        first = _absent_alike(codes, codes[: sizes[0]], nodes, generator, codes.new_zeros(0))
        absent = torch.cat([first, _absent_alike(codes, codes[sizes[0] : held], nodes, generator, first)])

    def pairs(found: Tensor) -> Tensor:
        return torch.stack([found // nodes, found % nodes]).to(edges.device)

    train = pairs(codes[held:].sort().values)
    shown = train if encode_with == "train" else pairs(codes.sort().values)
    both = torch.cat([shown, shown.flip(0)], 1)
    return LinkSplit(
        train,
        pairs(codes[: sizes[0]]),
        pairs(codes[sizes[0] : held]),
        pairs(absent[: sizes[0]]),
        pairs(absent[sizes[0] :]),
        both[:, (both[0] * nodes + both[1]).argsort()],
        nodes,
        negatives,
    )


def _that_leave(codes: Tensor, nodes: int, wanted: int, leave: int) -> Tensor:
    """The edges in another order, the first of which can be held out."""
    ends = torch.stack([codes // nodes, codes % nodes])
    degree = ends.flatten().bincount(minlength=nodes).tolist()
    first, others = list[int](), list[int]()
    for at, (a, b) in enumerate(ends.T.tolist()):
        if len(first) < wanted and degree[a] > leave and degree[b] > leave:
            first.append(at)
            degree[a], degree[b] = degree[a] - 1, degree[b] - 1
        else:
            others.append(at)
    if len(first) < wanted:
        raise ValueError(f"val and test hold out {wanted} edges, and only {len(first)} leave {leave} at both ends")
    return codes[first + others]


def _absent_alike(edges: Tensor, held: Tensor, nodes: int, generator: torch.Generator, taken: Tensor) -> Tensor:
    """As many codes of pairs without an edge as there are in ``held``, of its ends, none of which is taken."""
    ends, refused, found = torch.cat([held // nodes, held % nodes]), torch.cat([edges, taken]), held.new_zeros(0)
    for _ in range(200):
        drawn = ends[torch.randint(len(ends), (2, 2 * len(held)), generator=generator)].sort(0).values
        codes = (drawn[0] * nodes + drawn[1])[drawn[0] < drawn[1]]
        found = _first_ones(torch.cat([found, codes[~torch.isin(codes, refused)]]))[: len(held)]
        if len(found) == len(held):
            return found
    raise ValueError(
        f"val and test hold out edges whose ends have only {len(found)} of {len(held)} pairs without an edge"
    )


def _absent(edges: Tensor, nodes: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Codes of different pairs, the smaller node first, that are no edges, in the order of drawing."""
    free = nodes * (nodes - 1) // 2 - len(edges)
    if wanted > free:
        raise ValueError(f"val and test need {wanted} pairs without an edge, and data has {free}")
    if free <= 4 * wanted:  # of few pairs, all are looked at
        first, second = torch.triu_indices(nodes, nodes, 1)
        every = first * nodes + second
        every = every[~torch.isin(every, edges)]
        return every[torch.randperm(len(every), generator=generator)[:wanted]]
    found = edges.new_zeros(0)
    while len(found) < wanted:
        ends = torch.randint(nodes, (2, 2 * wanted), generator=generator).sort(0).values
        drawn = (ends[0] * nodes + ends[1])[ends[0] < ends[1]]
        found = _first_ones(torch.cat([found, drawn[~torch.isin(drawn, edges)]]))[:wanted]
    return found


def _first_ones(codes: Tensor) -> Tensor:
    """Each code once, in the order of first occurrence."""
    values, place = codes.unique(return_inverse=True)
    first = torch.full_like(values, len(codes)).scatter_reduce_(0, place, torch.arange(len(codes)), "amin")
    return codes[first.sort().values]
