"""GraphFM: does one way to pre-train a graph network serve classification, links and clusters, and when to stop it?

Claim. No method is first in all tasks; rankings by classification and by links differ; the checkpoint that a task's
own validation chooses beats the last one and that of the lowest pretext loss, and one chosen for classification costs
links; batches of subgraphs change the order of methods and cost little; without labels all methods beat raw features
where neighbours are alike. Source: arXiv:2406.08310 (Xu et al., 2024), a benchmark; methods as ``heldout.train`` cites.

World. ``blocks``: two graphs of 2,000 nodes, 7 communities and bags of 128 words: ``homophilous``, where 70 % of the
edges stay within a community, and ``tailed``, where 50 % do and degrees have a heavy tail. ``wordnet``, the real cell:
2,000 nouns and what they are kinds of, words of their glosses, and the lexicographers' files as classes; almost a tree.
20 nodes of a class to train on, 500 to choose by; 5 and 10 % of the edges are held out, and no encoder sees them; each
of their ends keeps one, and pairs without an edge have ends of the same degrees, which alone would tell links.

Arms. Five methods over one GCN of widths 128 and 64 with batch normalisation, without which BGRL and GraphMAE learn
little but the degree; 100 epochs, looked at every 20, each task at the checkpoint that its validation likes; ``raw
features``, a ``random encoder``, and ``supervised``, the same GCN trained on the labels. Before the probes columns have
variance 1 and rows length 1, for all arms: nodes without neighbours would be clusters of their own. ``degree_auc``: how
well the larger degree of both ends tells links.
``stop ...`` are means over the methods, ``matched`` the stop that the task's own validation chooses, ``pretext`` the
lowest loss, which mostly is the last epoch (``pretext_is_last``). ``twin``: a second training from other weights.
``subgraph``: trained on subgraphs of up to 500 nodes in as many steps, to the last one, as ``stop last`` is.
``ranks``: ``tau``, Kendall's correlation of the rankings of methods by classification and by links; ``reliability``, of
those by two trainings; ``most_wins``, of the graphs and tasks, the most in which one method is first, which copies of
one method share, too; ``gap``, what the best method of each graph and task has over the one with the best mean rank,
both chosen by the validation of one training, in the other one. ``swaps`` counts pairs of methods in another order than
in the first training, by more than 0.01 before and after. ``mlp``: a network on the features alone.

Settings. By the mean of validation accuracy, AUC and NMI on development seed 1000, looked at after 50 and 100 epochs:
the rate by half decades from 3e-4 to 3e-2 at a strength of 0.3, then the strength (with which edges and columns, or
nodes of GraphMAE, are dropped or masked) of 0.1, 0.3, 0.5 and 0.7, until none is better. ``tailed`` takes what is best
on ``homophilous``; ``subgraph`` and ``twin`` what is best on the whole graph. Scaling columns and rows was best for raw
features and a random encoder among four; it was not searched for the others. The worlds' homophily and the signal of
words were set on seed 1000 so that features alone do not do.

Deviations. 100 epochs for 200, for time. Each seed is ranked, not the mean over seeds. Subgraphs are those of random
walks. Probes are shorter than published (100 epochs for classes, 30 for links at width 32). All rates are constant,
that of BGRL, too. Throughput is left to ``benchmarks/graphfm.py``: a clock is not of a seed.
"""

from __future__ import annotations

import functools
from statistics import fmean
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor, nn

from heldout.data import graph_view, split_links
from heldout.measure import GRAPH_TASKS, GraphTasks, mean_ranks
from heldout.method import evaluating
from heldout.sources import WORDNET, missing
from heldout.study import Claim, Study, at_least, at_most, better, higher_is_better, lower_is_better
from heldout.tasks import BlockModel, split_nodes, wordnet_graph
from heldout.train import (
    BGRL,
    CCASSG,
    GRACE,
    PRETRAINING_STOPS,
    GraphBarlowTwins,
    GraphMAE,
    pretrain_graph,
    seeded,
)

CELLS = {"blocks": ("homophilous", "tailed"), "wordnet": ("wordnet",)}
METHODS = ("cca-ssg", "gbt", "bgrl", "graphmae", "grace")
BASELINES = ("raw features", "random encoder", "supervised")
RULES = ("last", "pretext", "classification", "matched")
METRICS = tuple(GRAPH_TASKS.values())
WIDTH, EMBEDDING, SWAPPED, TWIN = 128, 64, 0.01, 1_000_000


class Size(NamedTuple):
    nodes: int
    per_class: int
    val: int
    epochs: int
    every: int
    batch: int
    node_epochs: int
    link_epochs: int


class Setting(NamedTuple):
    lr: float = 0.01
    strength: float = 0.3  # of edges, columns or nodes: the probability that each goes
    scaling: Any = "both"  # of embeddings, before they are probed


SIZES = {"smoke": Size(280, 5, 60, 2, 1, 100, 5, 2), "laptop": Size(2000, 20, 500, 100, 20, 500, 100, 30)}
_BLOCKS = {
    "supervised": Setting(0.001, 0.1), "cca-ssg": Setting(0.01, 0.3), "gbt": Setting(0.003, 0.3),
    "bgrl": Setting(0.003, 0.5), "graphmae": Setting(0.01, 0.5), "grace": Setting(0.01, 0.3),
}  # fmt: skip
TUNED = {
    "homophilous": _BLOCKS,
    "tailed": _BLOCKS,
    "wordnet": {
        "supervised": Setting(0.003, 0.5), "cca-ssg": Setting(0.003, 0.1), "gbt": Setting(0.01, 0.3),
        "bgrl": Setting(0.003, 0.3), "graphmae": Setting(0.01, 0.7), "grace": Setting(0.003, 0.3),
    },
}  # fmt: skip


class Supervised(nn.Module):
    """The encoder trained on labels, with edges dropped and columns masked as for the methods."""

    def __init__(self, encoder: nn.Module, classes: int, strength: float) -> None:
        super().__init__()
        self.encoder, self.head, self.strength = encoder, nn.Linear(EMBEDDING, classes), strength

    def loss(self, data: Any, generator: torch.Generator | None = None) -> Tensor:
        view = graph_view(data.x, data.edge_index, self.strength, self.strength, generator)
        rows = data.train_mask
        return F.cross_entropy(self.head(self.encoder(*view)[rows]), data.y[rows])

    @torch.no_grad()
    def embed(self, data: Any) -> Tensor:
        with evaluating(self.encoder):
            return self.encoder(data.x, data.edge_index)


@functools.lru_cache(maxsize=4)
def world_of(graph: str, seed: int, profile: str) -> tuple[Any, Any]:
    """The graph with its training edges alone, and what is held out."""
    size = SIZES[profile]
    if graph == "wordnet":
        data = wordnet_graph(size.nodes, least=size.nodes * 60 // 2000, seed=seed)
    else:
        shape: dict[str, Any] = {"homophily": 0.7} if graph == "homophilous" else {"homophily": 0.5, "tail": 2.0}
        world = BlockModel(size.nodes, 7, degree=5.0, features=128, kind="words", signal=0.2, world=seed, **shape)
        data = world.sample(seed)
    data = split_nodes(data, size.per_class, size.val, seed=seed)
    split = split_links(data, seed=seed, leave=1, negatives="degree")
    data.edge_index = split.edge_index
    return data, split


def built(name: str, data: Any, strength: float, seed: int) -> nn.Module:
    from torch_geometric.nn import GCN

    features, both = data.x.shape[1], (strength, strength)
    with seeded(seed):
        encoder = GCN(features, WIDTH, 2, EMBEDDING, act="prelu", norm="batch_norm")
        if name == "supervised":
            return Supervised(encoder, int(data.y.max()) + 1, strength)
        if name == "graphmae":
            return GraphMAE(encoder, features, EMBEDDING, mask_rate=strength)
        if name == "bgrl":
            return BGRL(encoder, EMBEDDING, drop_edge=both, mask_feature=both)
        if name == "grace":
            return GRACE(encoder, EMBEDDING, anchors=500, drop_edge=both, mask_feature=both)
        kind = {"gbt": GraphBarlowTwins}.get(name, CCASSG)  # of a random encoder, the encoder alone counts
        return kind(encoder, drop_edge=both, mask_feature=both)


def looked_at(name: str, graph: str, batch: str, seed: int, profile: str, setting: Setting) -> list[dict[str, float]]:
    """What was measured, and the pretext loss, at each look; once of what is not trained."""
    data, split = world_of(graph, seed, profile)
    size = SIZES[profile]
    masks = (data.train_mask, data.val_mask, data.test_mask)
    tasks = GraphTasks(
        data.y, masks, split, node_epochs=size.node_epochs, link_epochs=size.link_epochs, link_width=32, restarts=3,
        scaling=setting.scaling,
    )  # fmt: skip
    if name == "raw features":
        return [tasks.measure(data.x, seed=seed)]
    weights = seed + TWIN if batch == "twin" else seed
    method: Any = built(name, data, setting.strength, weights)
    if name == "random encoder":
        return [tasks.measure(method.embed(data), seed=seed)]
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], setting.lr, weight_decay=1e-5)
    how: dict[str, Any] = {"epochs": size.epochs, "eval_every": size.every}
    if batch == "subgraph":  # as many steps; the last epoch alone is asked for
        passes = max(1, size.epochs * size.batch // size.nodes)
        how = {"epochs": passes, "eval_every": passes, "batch": batch, "size": size.batch}
    stops = {"stop": PRETRAINING_STOPS, "tasks": tasks}
    return pretrain_graph(method, data, optimizer=optimizer, seed=weights, **stops, **how).records  # type: ignore[arg-type]


@functools.lru_cache(maxsize=64)
def measured(name: str, graph: str, batch: str, seed: int, profile: str) -> list[dict[str, float]]:
    return looked_at(name, graph, batch, seed, profile, TUNED[graph].get(name, Setting()))


def chosen(records: list[dict[str, float]], rule: str) -> dict[str, float]:
    """The metrics of each task, and their ``val_``, at the look that a rule chooses for it."""
    found = {}  # type: ignore[var-annotated]
    for task, metric in GRAPH_TASKS.items():
        on = f"val_{GRAPH_TASKS[task if rule == 'matched' else 'classification']}"
        if rule == "last":
            look = records[-1]
        elif rule == "pretext":
            look = min(records, key=lambda record: record["loss"])
        else:
            look = max(records, key=lambda record: record[on])
        found |= {metric: look[metric], f"val_{metric}": look[f"val_{metric}"]}
    return found


def averaged(rows: list[dict[str, float]]) -> dict[str, float]:
    means = {metric: fmean(row[metric] for row in rows) for metric in METRICS}
    return means | {"score": fmean(means.values())}


def tau(first: list[float], second: list[float]) -> float:
    from scipy.stats import kendalltau

    found = float(kendalltau(first, second).statistic)
    return found if found == found else 0.0  # all equal: nothing is ranked


Scores = dict[tuple[str, str], dict[str, float]]  # of (method, graph)


def ranks(trainings: tuple[Scores, Scores], graphs: tuple[str, ...]) -> dict[str, float]:
    """How alike methods are ranked by tasks, and by two trainings."""
    places = [(graph, metric) for graph in graphs for metric in METRICS]

    def column(scores: Scores, graph: str, metric: str) -> list[float]:
        return [scores[method, graph][metric] for method in METHODS]

    def wins(scores: Scores) -> int:
        columns = [column(scores, *place) for place in places]
        return max(sum(each[at] == max(each) for each in columns) for at in range(len(METHODS)))

    first, second = trainings
    agreement = fmean(tau(column(first, *place), column(second, *place)) for place in places)
    across = fmean(tau(column(s, graph, "accuracy"), column(s, graph, "auc")) for s in trainings for graph in graphs)
    return {
        "most_wins": fmean(float(wins(scores)) for scores in trainings),
        "tau": across,
        "reliability": agreement,
        "tau_below": agreement - across,
        "gap": fmean([gain(first, second, places), gain(second, first, places)]),
    }


def gain(seen: Scores, other: Scores, places: list[tuple[str, str]]) -> float:
    """What the best method of each place has over the one for all in one training, chosen by another's validation."""
    by_validation = {m: [seen[m, graph][f"val_{metric}"] for graph, metric in places] for m in METHODS}
    mean_rank = mean_ranks(by_validation)
    for_all = min(METHODS, key=lambda method: mean_rank[method])
    each = [max(METHODS, key=lambda method, at=at: by_validation[method][at]) for at in range(len(places))]  # type: ignore[misc]
    return fmean(other[m, graph][on] - other[for_all, graph][on] for m, (graph, on) in zip(each, places, strict=True))


def degree_auc(graph: str, seed: int, profile: str) -> float:
    """The area under the ROC curve of the larger degree of both ends, among training edges."""
    _, split = world_of(graph, seed, profile)
    degree = split.edge_index[0].bincount(minlength=split.num_nodes)
    links, others = (degree[pairs].amax(0) for pairs in (split.test, split.test_negatives))
    labels = torch.cat([torch.ones_like(links), torch.zeros_like(others)])
    return float(roc_auc_score(labels, torch.cat([links, others])))


def mlp(graph: str, seed: int, profile: str) -> float:
    """Test accuracy of a network on the features alone."""
    data, _ = world_of(graph, seed, profile)
    model = MLPClassifier(64, max_iter=200, random_state=seed).fit(data.x[data.train_mask], data.y[data.train_mask])
    return float(model.score(data.x[data.test_mask], data.y[data.test_mask]))


def swaps(full: list[dict[str, float]], batched: list[dict[str, float]]) -> int:
    """Pairs of methods that stand in another order on some metric, clearly so before and after."""
    return sum(
        (full[i][on] - full[j][on] > SWAPPED and batched[j][on] - batched[i][on] > SWAPPED)
        for on in METRICS
        for i in range(len(full))
        for j in range(len(full))
    )


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    name, graphs = arm["name"], CELLS[arm["cell"]]

    def found(method: str, graph: str, rule: str, batch: str = "full") -> dict[str, float]:
        return chosen(measured(method, graph, batch, seed, profile), rule)

    def scores(batch: str) -> Scores:
        return {(m, graph): found(m, graph, "matched", batch) for m in METHODS for graph in graphs}

    if name == "ranks":
        known = fmean(degree_auc(graph, seed, profile) for graph in graphs)
        full = [measured(m, graph, "full", seed, profile) for m in METHODS for graph in graphs]
        same = fmean(float(chosen(records, "pretext") == chosen(records, "last")) for records in full)
        about = {"degree_auc": known, "pretext_is_last": same, "mlp": mlp(graphs[0], seed, profile)}
        return ranks((scores("full"), scores("twin")), graphs) | about
    if name in ("subgraph", "twin"):
        others = {graph: [found(m, graph, "last", name) for m in METHODS] for graph in graphs}
        changed = sum(swaps([found(m, graph, "last") for m in METHODS], others[graph]) for graph in graphs)
        return averaged([row for rows in others.values() for row in rows]) | {"swaps": float(changed)}
    if name.startswith("stop "):
        return averaged([found(m, graph, name.removeprefix("stop ")) for m in METHODS for graph in graphs])
    rows = {graph: found(name, graph, "matched") for graph in graphs}
    if len(graphs) == 1:
        return averaged([*rows.values()])
    return averaged([*rows.values()]) | {f"{on}_{graph}": row[on] for graph, row in rows.items() for on in METRICS}


def claims(cell: str) -> list[Claim]:
    places = len(CELLS[cell]) * len(METRICS)
    homophilous = "accuracy_homophilous" if cell == "blocks" else "accuracy"
    matched = f"{cell}: stop matched"
    return [
        at_most(f"{cell}: ranks", on="tau", value=0.5),
        at_least(f"{cell}: ranks", on="tau_below", value=0.0,
                 text=f"{cell}: rankings by classification and by links agree less than two trainings do"),
        at_least(f"{cell}: ranks", on="gap", value=0.01,
                 text=f"{cell}: a method for each graph and task gains at least 0.01 over one for all"),
        *(better(matched, than=f"{cell}: stop last", on=on, margin=0.01) for on in METRICS),
        better(matched, than=f"{cell}: stop classification", on="auc", margin=0.01),
        better(f"{cell}: subgraph", than=f"{cell}: twin", on="swaps", margin=1.0,
               text=f"{cell}: subgraphs change the order of at least one pair of methods more than a second training"),
        better(f"{cell}: subgraph", than=f"{cell}: stop last", on="score", margin=-0.05,
               text=f"{cell}: subgraphs lose at most 0.05 of the score"),
        *(better(f"{cell}: {method}", than=f"{cell}: raw features", on=homophilous, margin=0.03) for method in METHODS),
        at_most(f"{cell}: ranks", on="most_wins", value=places - 1,
                text=f"exploratory: {cell}: no method is first in all {places} of the graphs and tasks"),
        *(better(matched, than=f"{cell}: stop pretext", on=on, margin=0.01,
                 text=f"exploratory: {cell}: the matched stop has a better {on} than lowest loss") for on in METRICS),
        *(better(f"{cell}: {method}", than=f"{cell}: random encoder", on="score",
                 text=f"exploratory: {cell}: {method} has a better score than a random encoder") for method in METHODS),
    ]  # fmt: skip


NAMES = (*BASELINES, *METHODS, *(f"stop {rule}" for rule in RULES), "subgraph", "twin", "ranks")
ARMS = {f"{cell}: {name}": {"cell": cell, "name": name} for cell in CELLS for name in NAMES}
MEASURED = {
    **dict.fromkeys([*METRICS, "score"], higher_is_better),
    **{f"{on}_{graph}": higher_is_better for on in METRICS for graph in CELLS["blocks"]},
    "most_wins": lower_is_better,
    "tau": lower_is_better,
    "gap": higher_is_better,
    "swaps": higher_is_better,
    "reliability": higher_is_better,
    "tau_below": higher_is_better,
    "pretext_is_last": lower_is_better,
    "mlp": lower_is_better,
    "degree_auc": lower_is_better,
}
study = Study(
    slug="graphfm",
    title="GraphFM: A Comprehensive Benchmark for Graph Foundation Model",
    arms=ARMS,
    run=run,
    metrics=MEASURED,
    optional=set(MEASURED),
    needs={arm: functools.partial(missing, [WORDNET]) for arm in ARMS if arm.startswith("wordnet")},
    shared_setup=True,
    claims=[claim for cell in CELLS for claim in claims(cell)],
    checks=[
        at_most("blocks: ranks", on="mlp", value=0.6, text="features alone do not solve it"),
        *(
            at_most(f"{cell}: ranks", on="degree_auc", value=0.6, text=f"{cell}: degrees tell no links")
            for cell in CELLS
        ),
        *(
            at_least(f"{cell}: ranks", on="reliability", value=0.5, text=f"{cell}: two trainings rank methods alike")
            for cell in CELLS
        ),
    ],
    seeds={"smoke": 1, "laptop": 3},
    time_limit=900,
)
