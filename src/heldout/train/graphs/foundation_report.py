"""Core: One fixed protocol over ways to embed the nodes of graphs: methods x graphs x seeds, one row for each number.

Source: arXiv:2406.08310 (Xu et al., 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from heldout.data import split_links
from heldout.errors import check_has, check_labels, check_nonempty, checked
from heldout.measure import GRAPH_TASKS, GraphTasks

Embed = Callable[[Any, int], Tensor]


@checked
def foundation_report(
    methods: Mapping[str, Embed],
    graphs: Mapping[str, Any],
    seeds: Sequence[int],
    *,
    val: float = 0.05,
    test: float = 0.1,
    encode_with: Literal["train", "all"] = "train",
    leave: int = 0,
    negatives: Literal["uniform", "degree"] = "uniform",
    **protocol: Any,
) -> list[dict[str, Any]]:
    """Returns what each method's embeddings of each graph serve for, in long format: ``pandas.DataFrame(rows)``.

    Args:
        methods: ``(graph, seed) -> embeddings (nodes, dim)``, by name. The graph has the training edges of
            ``split_links`` alone; embeddings may be looked up rather than computed.
        graphs: with ``x``, ``edge_index``, ``y``, ``train_mask``, ``val_mask`` and ``test_mask``, such as
            ``heldout.tasks.split_nodes`` gives, by name; or functions of a seed that return one.
        seeds: of links that are held out, of the methods, and of the probes.
        val, test, encode_with, leave, negatives: as for ``split_links``; where degrees differ, take ``leave=1`` and
            ``negatives="degree"``.
        protocol: options of ``GraphTasks``: ``node_epochs``, ``link_epochs``, ``link_width``, ``decoder``,
            ``restarts``, ``scaling``.

    Returns:
        rows ``{"method", "graph", "seed", "task", "metric", "value"}``: of ``accuracy``, ``auc``, ``ap``, ``nmi``,
        ``ari``, and the validation's ``val_accuracy``, ``val_auc``, ``val_nmi``. ``heldout.measure.mean_ranks`` ranks
        methods over them.

    Raises:
        ValueError: nothing to compare, embeddings that are not finite or not of the graph's nodes.
        TypeError: a graph without one of its attributes, or an unknown option.

    Example:
        >>> from heldout.tasks import BlockModel, split_nodes
        >>> graph = split_nodes(BlockModel(nodes=200, classes=3).sample(0), 10, 50)
        >>> methods = {"features": lambda graph, seed: graph.x, "two": lambda graph, seed: graph.x[:, :2]}
        >>> rows = foundation_report(methods, {"blocks": graph}, [0], link_epochs=2, node_epochs=5, restarts=1)
        >>> len(rows), rows[0]["method"], rows[0]["task"], rows[0]["metric"]
        (16, 'features', 'classification', 'accuracy')
    """
    check_nonempty(methods=methods, graphs=graphs, seeds=seeds)
    check_labels(seeds=seeds)
    links = {"val": val, "test": test, "encode_with": encode_with, "leave": leave, "negatives": negatives}
    return [
        row
        for graph, source in graphs.items()
        for seed in seeds
        for row in _rows(methods, graph, source, seed, links, protocol)
    ]


def _rows(
    methods: Mapping[str, Embed], graph: str, source: Any, seed: int, links: dict[str, Any], protocol: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    data = source if hasattr(source, "edge_index") or not callable(source) else source(seed)  # Data is callable
    check_has("x", "edge_index", "y", "train_mask", "val_mask", "test_mask", "clone", graphs=data)
    split = split_links(data, seed=seed, **links)
    tasks = GraphTasks(data.y, (data.train_mask, data.val_mask, data.test_mask), split, **protocol)
    shown = data.clone()
    shown.edge_index = split.edge_index
    for method, embed in methods.items():
        h = embed(shown, seed)
        if not isinstance(h, Tensor) or h.ndim != 2 or len(h) != split.num_nodes:
            got = tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__
            raise ValueError(f"methods must give ({split.num_nodes}, dim) for each graph, and {method} gave {got}")
        for task in GRAPH_TASKS:
            for metric, value in tasks.measure(h, [task], seed).items():
                yield {
                    "method": method,
                    "graph": graph,
                    "seed": seed,
                    "task": task,
                    "metric": metric,
                    "value": value,
                }
