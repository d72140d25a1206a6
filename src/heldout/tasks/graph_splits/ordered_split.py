"""Core: Nodes to train on where a number is low, and to be tested on where it is high: by degree, time, any other.

Source: arXiv:2206.08452 (Gui, Li, Wang and Ji, NeurIPS 2022), the degree and time shifts of node classification.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from heldout.errors import check_dimensions, check_finite, check_fraction, check_has, check_same_length, checked
from heldout.tasks.seeds import Seed, generator_of


@checked
def split_nodes_by(
    graph: Any,
    values: Tensor | Literal["degree"],
    low: float = 0.5,
    high: float = 0.25,
    *,
    val: float = 0.2,
    seed: Seed = 0,
) -> Any:
    """Returns a copy of a graph with ``train_mask`` and ``val_mask`` where values are low and ``test_mask`` where high.

    ``same_mask`` is of as many low nodes as ``val_mask``, to be tested on without a shift. Among nodes of one value
    chance decides; those between low and high are in no mask. Edges stay as they are, so that nodes to be tested on are
    neighbours in training; ``graph.subgraph(~graph.test_mask)`` is the graph without them.

    Args:
        graph: ``torch_geometric.data.Data``; it stays as it is.
        values: real numbers ``(nodes,)``, such as the year of each node; "degree" is the number of edges that leave it.
        low: share of the nodes with the lowest values, from which those to train on and to choose by are drawn.
        high: share of the nodes with the highest values.
        val: share of the low ones to choose by, and as many for ``same_mask``.
        seed: number or generator.

    Raises:
        ValueError: values of another length or not finite, shares outside of [0, 1], of more than 1 in sum, or so small
            that a mask has no node.

    Example:
        >>> from heldout.tasks import BlockModel
        >>> graph = split_nodes_by(BlockModel(nodes=400, tail=2.0).sample(0), "degree")
        >>> [int(graph[f"{part}_mask"].sum()) for part in ("train", "val", "same", "test")]
        [120, 40, 40, 100]
    """
    check_has("edge_index", "num_nodes", "clone", graph=graph)
    check_fraction(low=low, high=high, val=val)
    if low + high > 1:
        raise ValueError(f"low and high must sum to at most 1, got {low} and {high}")
    nodes, device = int(graph.num_nodes), graph.edge_index.device
    if isinstance(values, str):
        values = torch.bincount(graph.edge_index[0], minlength=nodes)
    check_dimensions(1, values=values)
    check_finite(values=values)
    check_same_length(values=values, nodes=range(nodes))
    generator = generator_of(seed)
    known, tested = low_and_high(values.cpu(), low, high, generator)
    held = round(val * len(known))
    parts = {
        "train": known[2 * held :],
        "val": known[:held],
        "same": known[held : 2 * held],
        "test": tested,
    }
    split = graph.clone()
    for name, part in parts.items():
        if not len(part):
            raise ValueError(f"low, high and val must leave nodes for each mask: {nodes} nodes give no {name}_mask")
        mask = torch.zeros(nodes, dtype=torch.bool).index_fill_(0, part, True)
        split[f"{name}_mask"] = mask.to(device)
    return split


def low_and_high(values: Tensor, low: float, high: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns the positions of a share of the lowest values, in random order, and of a share of the highest.

    Among equal values chance decides, and where both shares are rounded up the lowest have the one that is left.
    """
    mixed = torch.randperm(len(values), generator=generator)
    order = mixed[values[mixed].argsort(stable=True)]
    few = round(low * len(values))
    many = min(round(high * len(values)), len(values) - few)
    return order[:few][torch.randperm(few, generator=generator)], order[len(values) - many :]
