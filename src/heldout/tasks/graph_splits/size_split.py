"""Core: Small graphs to train on and large ones to be tested on.

Source: arXiv:2103.05045 (Bevilacqua, Zhou and Ribeiro, ICML 2021), the size shift of graph classification; also the
size shift of arXiv:2312.12475.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_fraction, check_has, checked
from heldout.tasks.graph_splits.ordered_split import low_and_high
from heldout.tasks.seeds import Seed, generator_of


class SizeSplit(NamedTuple):
    """Positions of small graphs to train on and to choose by, and of large ones.

    Attributes:
        train, val, test: int64, positions in what was split, in rising order.
        sizes: int64 ``(graphs,)``, nodes of each graph.

    Example:
        >>> from types import SimpleNamespace
        >>> split = split_by_size([SimpleNamespace(num_nodes=n) for n in (9, 3, 5, 7)], 0.5, 0.25, val=0.5)
        >>> split.sizes.tolist(), sorted([*split.train.tolist(), *split.val.tolist()]), split.test.tolist()
        ([9, 3, 5, 7], [1, 2], [0])
    """

    train: Tensor
    val: Tensor
    test: Tensor
    sizes: Tensor


@checked
def split_by_size(
    graphs: Sequence[Any], small: float = 0.5, large: float = 0.1, *, val: float = 0.1, seed: Seed = 0
) -> SizeSplit:
    """Returns which graphs to train on, the small ones, and which to be tested on, the largest, class by class.

    Shares are those of each class of ``y``, so that classes are as frequent in all parts; of all graphs where there is
    no ``y``, or it is a real number. Among graphs of one size chance decides. Graphs between small and large are left
    out.

    Args:
        graphs: ``torch_geometric.data.Data`` each, or a data set of them; size is the number of nodes.
        small: share of the smallest graphs, to train on and to choose by.
        large: share of the largest ones.
        val: share of the small ones to choose by, drawn at random.
        seed: number or generator.

    Raises:
        ValueError: no graphs, shares outside of [0, 1] or of more than 1 in sum, a part of a class without a graph.

    Source: arXiv:2103.05045, section 5: half and a tenth.

    Example:
        >>> from heldout.tasks import motif_graphs
        >>> graphs = motif_graphs(60)
        >>> split = split_by_size(graphs)
        >>> [len(part) for part in split[:3]], bool(split.sizes[split.train].max() <= split.sizes[split.test].min())
        ([26, 4, 6], True)
    """
    check_at_least(1, graphs=len(graphs))
    check_fraction(small=small, large=large, val=val)
    if small + large > 1:
        raise ValueError(f"small and large must sum to at most 1, got {small} and {large}")
    for graph in graphs:
        check_has("num_nodes", graphs=graph)
    sizes = torch.tensor([int(graph.num_nodes) for graph in graphs])
    known = [getattr(graph, "y", None) for graph in graphs]
    if any(label is not None and torch.as_tensor(label).numel() != 1 for label in known):
        raise ValueError("graphs must have one class y each, or none")
    if any(label is not None and not float(label).is_integer() for label in known):
        known = [None] * len(known)  # real numbers are no classes
    labels = torch.tensor([-1 if label is None else int(label) for label in known])
    generator = generator_of(seed)
    parts: dict[str, list[Tensor]] = {"train": [], "val": [], "test": []}
    for label in labels.unique():
        own = (labels == label).nonzero()[:, 0]
        first, last = low_and_high(sizes[own], small, large, generator)
        held = round(val * len(first))
        found = {"train": own[first[held:]], "val": own[first[:held]], "test": own[last]}
        for name, wanted in (("train", small), ("val", val), ("test", large)):
            if wanted and not len(found[name]):
                raise ValueError(
                    f"graphs must give each part one of each class: {len(own)} of {int(label)} give no {name}"
                )
            parts[name].append(found[name])
    joined = {name: torch.cat(each).sort().values for name, each in parts.items()}
    return SizeSplit(joined["train"], joined["val"], joined["test"], sizes)
