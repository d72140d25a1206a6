"""Core: Nodes of a graph to train on, a few of each class, to choose by, and to be tested on.

Source: arXiv:1603.08861 (Yang et al.), the split of citation graphs: 20 nodes a class, 500 to choose by.
"""

from __future__ import annotations

from typing import Any

import torch

from heldout.errors import check_at_least, check_class_labels, check_has, checked
from heldout.tasks.seeds import Seed, generator_of


@checked
def split_nodes(graph: Any, per_class: int = 20, val: int = 500, seed: Seed = 0) -> Any:
    """Returns a copy of a graph with random ``train_mask``, ``val_mask`` and ``test_mask``, bool ``(nodes,)``.

    Args:
        graph: ``torch_geometric.data.Data`` with class indices ``y`` ``(nodes,)``; it stays as it is.
        per_class: nodes of each class to train on.
        val: other nodes to choose by; all that are left are tested on.
        seed: number or generator.

    Raises:
        ValueError: a class with fewer nodes, or no node that is left for the test.

    Example:
        >>> from heldout.tasks import BlockModel
        >>> graph = split_nodes(BlockModel(nodes=400, classes=4).sample(0), per_class=10, val=100)
        >>> [int(graph[f"{part}_mask"].sum()) for part in ("train", "val", "test")]
        [40, 100, 260]
    """
    check_has("y", "clone", graph=graph)
    check_at_least(1, per_class=per_class, val=val)
    check_class_labels(y=graph.y)
    sizes = torch.bincount(graph.y)
    if bool((sizes[sizes > 0] < per_class).any()):
        raise ValueError(f"per_class must be at most the size of the smallest class, {int(sizes[sizes > 0].min())}")
    order = torch.randperm(len(graph.y), generator=generator_of(seed)).to(graph.y.device)
    labels = graph.y[order]
    chosen = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    for label in sizes.nonzero()[:, 0]:
        chosen[(labels == label).nonzero()[:per_class, 0]] = True
    rest = order[~chosen]
    if len(rest) <= val:
        raise ValueError(f"val must leave nodes to test on: {len(rest)} are not trained on, got {val}")
    split = graph.clone()
    for name, part in (("train_mask", order[chosen]), ("val_mask", rest[:val]), ("test_mask", rest[val:])):
        split[name] = torch.zeros(len(order), dtype=torch.bool, device=order.device).index_fill_(0, part, True)
    return split
