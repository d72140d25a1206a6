"""What is particular to graphs: neighbours of other classes, few neighbours, over-smoothing, graphs without labels."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from heldout.audit.judging import Threshold
from heldout.audit.work import Audit, NotApplicableError, named_validation
from heldout.measure import (
    atc_error,
    average_confidence,
    dirichlet_energy,
    doc_error,
    lebed_score,
    rank_correlation,
)
from heldout.method import evaluating
from heldout.problem import Graphs, Nodes, call_on_graph
from heldout.report import number
from heldout.statistics import newcombe, wilson

LEAST = 10  # nodes or graphs on each side of a comparison
RANKED = 4  # graphs with labels by which estimates of the error are judged
STEPS = 100  # of LeBeD's training on each graph
THIRDS = (1 / 3, 2 / 3)


def neighbours(work: Audit) -> None:
    """How much worse nodes do most of whose neighbours have another label."""
    rows, found = _nodes(work), dict[str, dict[str, Any]]()
    for name, each in rows.items():
        alike, known = _share_alike(each)
        right = work.of(name)[0].argmax(1).cpu() == work.of(name)[1].cpu()
        among = {"like": right[known & (alike >= 0.5)], "others": right[known & (alike < 0.5)]}
        found[name] = {
            "homophily": float(alike[known].mean()) if known.any() else None,
            "among_like": _accuracy(among["like"]),
            "among_others": _accuracy(among["others"]),
        }
        if name == work.given and min(len(part) for part in among.values()) >= LEAST:
            like, others = (wilson(float(part.sum()), len(part)) for part in (among["like"], among["others"]))
            gap = newcombe(like, others)
            reading = (
                f"what it costs when most neighbours have another label, as {len(among['others'])} of "
                f"{int(known.sum())} nodes of {name} with neighbours have"
            )
            work.finding(
                f"accuracy: nodes among their like against nodes among others, {name}", gap.estimate, reading,
                low=gap.low, high=gap.high, limits=Threshold(0.1, 0.25, "10 and 25 points of accuracy"), aim="shift",
                methods=("drop_edge", "group_dro"),
                remedy="keep a node's own features apart from its neighbours', as SAGEConv does or a skip connection",
            )  # fmt: skip
    work.document["homophily"] = found
    seen = _share_alike(work.problem.splits.train)
    base = float(seen[0][seen[1]].mean()) if seen[1].any() else None
    shares = {name: alike[known] for name, each in rows.items() for alike, known in [_share_alike(each)]}
    shares = {name: values for name, values in shares.items() if len(values) >= LEAST}
    if base is None or not shares:
        return
    changes = {name: float(values.mean()) - base for name, values in shares.items()}
    worst = max(changes, key=lambda name: abs(changes[name]))
    apart = 1.96 * sum(float(v.var()) / len(v) for v in (shares[worst], seen[0][seen[1]])) ** 0.5
    reading = (
        f"by how much the share of neighbours with the same label, {base:.2f} in training, differs in {worst}: a "
        "network that averages over neighbours relies on it"
    )
    limits = Threshold(0.1, 0.25, "10 and 25 hundredths of the neighbours")
    value = abs(changes[worst])
    work.finding(
        "change of homophily", value, reading, low=max(0.0, value - apart), high=value + apart, limits=limits,
        methods=("drop_edge",), aim="shift",
    )  # fmt: skip


def sizes(work: Audit) -> None:
    """Whether nodes with few neighbours, or small graphs, do worse than others."""
    data = work.problem.splits.test[work.given]
    size = _degrees(data) if isinstance(data, Nodes) else _graph_sizes(data)
    what = "neighbours" if isinstance(data, Nodes) else "nodes"
    right = work.of(work.given)[0].argmax(1).cpu() == work.of(work.given)[1].cpu()
    limits = sorted({float(size.double().quantile(share)) for share in THIRDS})
    member = torch.bucketize(size.double(), torch.tensor(limits, dtype=torch.float64))
    parts = [part for part in member.unique().tolist() if int((member == part).sum()) >= LEAST]
    if len(parts) < 2:
        raise NotApplicableError(f"{work.given} has too few examples, or all of them have equally many {what}")
    rows = list[dict[str, Any]]()
    for part in parts:
        chosen = member == part
        share = wilson(float(right[chosen].sum()), int(chosen.sum()), 1 - 0.05 / len(parts))
        group = f"{int(size[chosen].min())} to {int(size[chosen].max())} {what}"
        rows.append(
            {"group": group, "n": int(chosen.sum()), "accuracy": share.estimate, "low": share.low, "high": share.high}
        )
    work.document["sizes"] = rows
    worst, whole = min(rows, key=lambda row: row["accuracy"]), float(right.double().mean())
    reading = f"how far the accuracy of the {worst['n']} examples with {worst['group']} is below that of all"
    work.finding(
        f"bias by number of {what} on {work.given}", whole - worst["accuracy"], reading, low=whole - worst["high"],
        high=whole - worst["low"], limits=Threshold(0.05, 0.15, "5 and 15 points below the accuracy of all"),
        methods=("group_dro",), remedy=f"give domains by the number of {what}, so that improve can weigh them",
    )  # fmt: skip


def smoothing(work: Audit) -> None:
    """How much the features of neighbours still differ after each layer that passes messages."""
    graph = next(iter(_nodes(work).values())).graph
    energies = layer_energies(work.differentiated(), graph)
    if not energies:
        raise NotApplicableError("no layer passes messages along edges, or none gives one vector for each node")
    if not bool((graph.edge_index[0] != graph.edge_index[1]).any()):
        raise NotApplicableError("the graph has no edges between different nodes")
    if not graph.y.is_floating_point() and graph.y.numel() == len(graph.x) and _unlike(graph) < 0.01:
        raise NotApplicableError("nodes that are joined have the same labels, so that like outputs are right")
    start = _energy(graph.x.float().reshape(len(graph.x), -1), graph)
    work.document["energies"] = {"features": start, **energies}
    last = list(energies.values())[-1]
    told = ", ".join(f"{name} {number(value, 2)}" for name, value in energies.items())
    reading = (
        f"Dirichlet energy after the last of {len(energies)} layers that pass messages, {number(start, 2)} before the "
        f"first ({told}): near 0 all nodes that are joined have become the same, and further layers only take away"
    )
    limits = Threshold(0.01, 0.001, "hundredths and thousandths of the squared features differ", low_is_bad=True)
    remedy = "fewer layers, or skip connections between them"
    work.finding("over-smoothing", last, reading, limits=limits, methods=("drop_edge",), remedy=remedy)


def layer_energies(module: nn.Module, graph: Any) -> dict[str, float]:
    """Returns the Dirichlet energy of what each layer that passes messages gives for a graph, in the order of calls.

    Args:
        module: with layers that have ``propagate``, as those of PyTorch Geometric.
        graph: with ``x`` and ``edge_index``.
    """
    found: dict[str, float] = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(layer: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim >= 2 and len(output) == len(graph.x):
                found.pop(name, None)  # one that is called again is the last
                found[name] = _energy(output.float().reshape(len(output), -1), graph)

        return hook

    layers = {name: layer for name, layer in module.named_modules() if name and hasattr(layer, "propagate")}
    hooks = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        with evaluating(module), torch.no_grad():
            call_on_graph(module, graph)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _energy(rows: Tensor, graph: Any) -> float:
    """The smaller of both energies: averaging ends in rows that go with the degree, or in equal ones."""
    edges = graph.edge_index.to(rows.device)
    return min(dirichlet_energy(rows, edges, by_degree=scaled) for scaled in (True, False))


def without_labels(work: Audit) -> None:
    """How wrong the model seems to be on graphs without labels, and how far such estimates were right on the tests."""
    unlabeled, tests = getattr(work.problem, "unlabeled", {}), _whole_graphs(work)
    if not unlabeled and len(tests) < RANKED:
        raise NotApplicableError(
            f"the file gives no graphs as Splits(unlabeled=...), and fewer than {RANKED} to test on"
        )
    source = list(named_validation(work.problem)) or [work.given]
    known = torch.cat([work.of(name)[0] for name in source]).double().softmax(1)
    labels = torch.cat([work.of(name)[1] for name in source])
    initial = None
    if work.document.get("weights") is None and not work.problem.own_train:
        initial = work.problem.model(work.seed).state_dict()
    module, rows = work.differentiated(), {}
    for name, graph in {**{name: data.graph for name, data in tests.items()}, **unlabeled}.items():
        probs = _answers(work, module, graph).double().softmax(1).cpu()
        mine = probs[tests[name].nodes.cpu()] if name in tests else probs
        row: dict[str, Any] = {
            "nodes": len(mine), "atc": atc_error(known.cpu(), labels.cpu(), mine),
            "doc": doc_error(known.cpu(), labels.cpu(), mine), "doubt": 1 - average_confidence(mine),
        }  # fmt: skip
        if initial is not None and time.monotonic() < work.deadline:
            row["lebed"] = _lebed(module, initial, graph, work.seed)
        if name in tests:
            outputs, targets = work.of(name)
            row["error"] = float((outputs.argmax(1) != targets).double().mean())
        rows[name] = row
    names = [
        name for name in ("atc", "doc", "doubt", "lebed") if all(row.get(name) is not None for row in rows.values())
    ]
    trust = {}
    if len(tests) >= RANKED:
        errors = [rows[name]["error"] for name in tests]
        trust = {each: rank_correlation(errors, [rows[name][each] for name in tests]).spearman for each in names}
    work.document["without_labels"] = {"graphs": rows, "rank_correlation": trust}
    judged = (
        f"on {len(tests)} graphs with labels their order goes with that of the true errors by "
        + ", ".join(f"{value:.2f} ({_ESTIMATES[name]})" for name, value in trust.items())
        if trust else f"how far to trust it cannot be told with fewer than {RANKED} graphs with labels"
    )  # fmt: skip
    if unlabeled:
        order = sorted(unlabeled, key=lambda name: -rows[name]["atc"])
        told = ", ".join(f"{name} {number(rows[name]['atc'], 2)}" for name in order)
        reading = f"by {_ESTIMATES['atc']}, the most doubtful first: {told}; {judged}"
        work.finding("error on graphs without labels", fmean(rows[name]["atc"] for name in unlabeled), reading)
    elif trust:
        reading = f"estimates of the error without labels: {judged}; from -1 to 1, at 0 they tell nothing"
        work.finding("can errors be told without labels", trust["atc"], reading)  # fixed: the best of four flatters


def _answers(work: Audit, module: nn.Module, graph: Any) -> Tensor:
    """Outputs for all nodes of a graph, of what answers."""
    if work.predictor is not None:
        found = work.problem.answers(work.predictor, graph)
        if found is not None:
            return found
    with evaluating(module), torch.no_grad():
        return call_on_graph(module, graph)


_ESTIMATES = {
    "atc": "average thresholded confidence", "doc": "difference of confidences", "doubt": "mean doubt",
    "lebed": "LeBeD",
}  # fmt: skip


def _lebed(module: nn.Module, initial: dict[str, Tensor], graph: Any, seed: int) -> float | None:
    try:
        return lebed_score(module, initial, graph, max_epochs=STEPS, forward=call_on_graph, seed=seed).score
    except ValueError:  # a network or a graph of a kind that has no such score
        return None


def _nodes(work: Audit) -> dict[str, Nodes]:
    found = {name: data for name, data in work.problem.splits.test.items() if isinstance(data, Nodes)}
    if not found:
        raise NotApplicableError("its examples are whole graphs")
    return found


def _whole_graphs(work: Audit) -> dict[str, Nodes]:
    """Test sets that lie in a graph of their own."""
    if not isinstance(work.problem.splits.train, Nodes):
        return {}
    return {name: data for name, data in _nodes(work).items() if data.graph is not work.problem.splits.train.graph}


def _share_alike(data: Any) -> tuple[Tensor, Tensor]:
    """For each node of a set, the share of what comes in that has its label, and whether anything does."""
    source, target, labels = _known_edges(data.graph)
    alike = torch.zeros(len(labels), dtype=torch.float64)
    alike.index_add_(0, target, (labels[source] == labels[target]).double())
    count = torch.bincount(target, minlength=len(labels))
    chosen = data.nodes.cpu()
    return (alike / count.clamp(min=1))[chosen], (count > 0)[chosen]


def _unlike(graph: Any) -> float:
    """The share of edges whose ends have other labels, NaN where none are known."""
    source, target, labels = _known_edges(graph)
    return float((labels[source] != labels[target]).double().mean())


def _known_edges(graph: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Both ends of edges between different nodes whose labels are known (those below 0 are not), and all labels."""
    labels = graph.y.cpu().reshape(-1)
    source, target = graph.edge_index.cpu()
    known = (source != target) & (labels[source] >= 0) & (labels[target] >= 0)
    return source[known], target[known], labels


def _degrees(data: Nodes) -> Tensor:
    source, target = data.graph.edge_index.cpu()
    return torch.bincount(target[source != target], minlength=len(data.graph.x))[data.nodes.cpu()]


def _graph_sizes(data: Any) -> Tensor:
    if not isinstance(data, Graphs):
        raise NotApplicableError("it is told of whole sets of nodes or graphs")
    return torch.tensor([len(data.graphs[number].x) for number in range(len(data))])


def _accuracy(right: Tensor) -> dict[str, Any] | None:
    if not len(right):
        return None
    share = wilson(float(right.sum()), len(right))
    return {"n": len(right), "accuracy": share.estimate, "low": share.low, "high": share.high}


GRAPH_PARTS: tuple[tuple[str, Callable[[Audit], None], bool], ...] = (
    ("neighbours with other labels", neighbours, True),
    ("bias by size", sizes, True),
    ("over-smoothing", smoothing, False),
    ("graphs without labels", without_labels, True),
)
OF_GRAPHS = tuple(part for _, part, _ in GRAPH_PARTS)
