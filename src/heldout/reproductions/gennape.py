"""GENNAPE: does a predictor of architectures carry over to design spaces that it never saw?

Claim. Embeddings of graphs of operations that are learned by the likeness of spectra, and fuzzy heads fitted to one
family, rank the networks of unseen families better than a graph network trained end to end, than FLOPs and than the
number of parameters; labels of a few networks there raise that; one head or a random encoder lose it. Source:
arXiv:2211.17226 (Mills et al., AAAI 2023).

World. ``spearman``: small networks for digits of 16 x 16 pixels, each trained four times (the table of
``measured_architectures``), all with batch normalisation and about 4,000 parameters, for otherwise that one bit or the
size ranks every family; predictors learn from cells as in NAS-Bench-101, and rank chains, two-path, separable,
inception and mixer networks, of which half, by seed, may be labelled and the other half is ranked. A family two of
whose trainings correlate below 0.8 with the other two is left out: ``families`` counts those that are left.
``graphs``, the real cell: NAS-Bench-Graph, 26,206 graph networks, each trained on eight data sets. Predictors learn
from the data sets of three fields, a network on one of them each, without the structures of two of seven spectra;
``data`` ranks other networks of known structure on each data set of the fourth field, ``structure`` those of the
structures left out on known data sets. All its graphs have six nodes and the spectrum does not see operations: the
contrastive target asks for equal embeddings of networks that differ in what makes their accuracy.

Arms. ``k-gnn`` is trained end to end, ``gennape`` contrastively and then with 20 heads on a frozen encoder. With
``+labels``: tuned on the labelled ones; ``scratch``: from those alone. ``target graphs``: the encoder sees the graphs
(no labels) of the families that are ranked, a variant. ``equal heads``: as many heads, each with the same weight
(fuzzifier of 1,000), for far from all clusters the memberships are nearly equal. Trivial rankings: ``nodes``, the
number of operations; ``bag``, a ridge regression on how many there are of each kind, ``scratch bag`` on the labelled
ones alone. ``ceiling`` ranks by two of the trainings, and is judged by the others. Gains of ``ndcg10`` are ranks. In
the real cell no FLOPs are known: ``latency``, as measured.

Settings. Rates of Adam by half decades, by Spearman's correlation on what is held back of what is learned from (thirds
of the cells in turn; a fifth in the real cell), mean of development seeds 1000 and 1001, the best inside the grid but
for those of fuzzy heads, where nothing differs by more than 0.02: of contrastive learning from 1e-5 to 1e-2, and of
fits from 1e-4 to 1e-1. The best rate of contrastive learning is low, and less of it is no better. Rates of tuning and
of ``scratch``: cells with three blocks after those with fewer were learned, seeds 1000 to 1002; in the real cell a
third of the labelled. Epochs were not searched.
Deviations. 20 heads (at most a third of the networks), a temperature of 0.1, tanh layers of the published k-GNN as
encoder (the paper's is not public); 30 labelled networks, not 50, for the table has 60 of a family. Networks by the
hundred, not 50,000, and the same 110 cells with every seed, so that intervals are of the other networks and of training
alone. No ensemble with pairwise classifiers and FLOPs, no search.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from heldout.measure import ArchitecturePredictor, laplacian_spectrum, ndcg, regression_head, standardised
from heldout.nn import CG_OPERATIONS, CGEncoder, FuzzyHeads, computation_graph, shape_maxima
from heldout.sources import NAS, missing
from heldout.statistics import spearman
from heldout.study import Claim, Study, at_least, better, higher_is_better
from heldout.tasks import (
    GRAPH_OPERATIONS,
    NETWORK_FAMILIES,
    GraphBenchmark,
    architecture_graph,
    build_network,
    measured_architectures,
    nas_bench_graph,
)
from heldout.train import seeded

CLUSTERS, LABELLED, RELIABLE = 20, 30, 0.8
FIELDS = {
    "smoke": (("cora",), ("citeseer",)),
    "laptop": (("cora", "citeseer", "pubmed"), ("arxiv",), ("photo", "computers"), ("cs", "physics")),
}


class Rates(NamedTuple):
    """Of Adam: in the fit, in contrastive learning, in tuning with a few labels, and in a fit to those alone."""

    fit: float
    contrastive: float = 0.0
    tuning: float = 0.0
    scratch: float = 0.0


RATES = {
    "cells": {
        "k-gnn": Rates(3e-3, tuning=1e-3, scratch=3e-4),
        "gennape": Rates(3e-3, 3e-5, tuning=1e-3, scratch=1e-3),
        "one head": Rates(1e-3, 3e-5),
        "equal heads": Rates(1e-3, 3e-5),
        "random encoder": Rates(1e-3),
        "target graphs": Rates(3e-2, 3e-5),
    },
    "graphs": {
        "k-gnn": Rates(3e-4, tuning=3e-4, scratch=1e-3),
        "gennape": Rates(1e-3, 1e-4, tuning=3e-4, scratch=1e-4),
        "one head": Rates(1e-3, 3e-5),
        "equal heads": Rates(1e-3, 1e-4),
        "random encoder": Rates(3e-3),
    },
}
CONTRASTIVE = {"cells": 100, "graphs": 20}  # epochs
END_TO_END = {"cells": 100, "graphs": 40}
HEADS = {"cells": 200, "graphs": 40}
TUNING = 100


class Size(NamedTuple):
    cells: int
    networks: int  # of another family
    labelled: int
    learned: int  # of the real cell
    ranked: int
    share: float  # of the epochs


SIZES = {"smoke": Size(6, 5, 3, 24, 12, 0.01), "laptop": Size(110, 60, LABELLED, 600, 500, 1.0)}


class Part(NamedTuple):
    """Graphs of one family or data set, what they reach, and what else can rank them."""

    graphs: list[Any]
    accuracies: Tensor
    scores: dict[str, Tensor]

    def take(self, rows: Any) -> Part:
        rows = torch.as_tensor(rows)
        return Part(
            [self.graphs[i] for i in rows.tolist()], self.accuracies[rows],
            {name: values[rows] for name, values in self.scores.items()},
        )  # fmt: skip


class World(NamedTuple):
    """What is learned from, with the family of each; and, by metric, what is ranked, with what may be labelled."""

    learned: Part
    family: list[str]
    ranked: dict[str, list[tuple[Part, Part]]]


@functools.lru_cache(maxsize=16)
def family_of(name: Any, number: int) -> Part:
    table = measured_architectures(name)
    example = torch.zeros(1, 1, 16, 16)
    graphs = [computation_graph(build_network(design), example) for design in table.designs[:number]]
    first, second = table.by_training[:number].tensor_split(2, 1)
    scores = {
        "flops": torch.tensor([graph.flops for graph in graphs]),
        "parameters": torch.tensor([graph.parameters for graph in graphs]),
        "nodes": torch.tensor([graph.num_nodes for graph in graphs]),
        "ceiling": first.mean(1),
        "other": second.mean(1),
    }
    return Part(graphs, table.accuracies[:number], scores)


UNSEEN: tuple[Any, ...] = NETWORK_FAMILIES[1:]
FAMILIES = tuple(name for name in UNSEEN if measured_architectures(name).reliability >= RELIABLE)


@functools.lru_cache(maxsize=2)
def cells_world(seed: int, profile: str) -> World:
    size, ranked = SIZES[profile], {}
    for name in FAMILIES:
        part = family_of(name, size.networks)
        order = torch.randperm(len(part.graphs), generator=torch.Generator().manual_seed(seed))
        ranked[f"spearman_{name}"] = [(part.take(order[size.labelled :]), part.take(order[: size.labelled]))]
    learned = family_of("cells", size.cells)
    return World(learned, ["cells"] * len(learned.graphs), ranked)


@functools.cache
def table_of(dataset: Any) -> GraphBenchmark:
    return nas_bench_graph(dataset)


@functools.cache
def spectrum_of() -> Tensor:
    """The number of each network's spectrum, which structures may share."""
    links, structure = table_of("cora").links.unique(dim=0, return_inverse=True)
    spectra = torch.stack(
        [laplacian_spectrum(architecture_graph(each, torch.zeros(4, dtype=torch.int64))) for each in links]
    )
    return (spectra * 1e4).round().unique(dim=0, return_inverse=True)[1][structure]


def measured_on(dataset: str, rows: Tensor) -> Part:
    table = table_of(dataset)
    graphs = [architecture_graph(table.links[i], table.operations[i]) for i in rows]
    scores = {"parameters": table.parameters[rows], "latency": table.latency[rows]}
    return Part(graphs, table.test[rows], scores)


@functools.lru_cache(maxsize=2)
def graphs_world(seed: int, profile: str) -> World:
    size, generator = SIZES[profile], torch.Generator().manual_seed(seed)
    fields = FIELDS[profile]
    unseen = fields[seed % len(fields)]
    known = [name for field in fields if field != unseen for name in field]
    held_out = torch.isin(spectrum_of(), torch.randperm(int(spectrum_of().max()) + 1, generator=generator)[:2])

    def drawn(rows: Tensor, number: int) -> Tensor:
        return rows[torch.randperm(len(rows), generator=generator)[:number]]

    rows = drawn((~held_out).nonzero().flatten(), size.learned + size.ranked + size.labelled)
    learned, labelled, others = rows.split([size.learned, size.labelled, size.ranked])
    shifted = drawn(held_out.nonzero().flatten(), size.ranked + size.labelled)
    parts = [measured_on(name, learned[place :: len(known)]) for place, name in enumerate(known)]
    together = Part(
        [graph for part in parts for graph in part.graphs], torch.cat([part.accuracies for part in parts]),
        {name: torch.cat([part.scores[name] for part in parts]) for name in parts[0].scores},
    )  # fmt: skip
    family = [name for name, part in zip(known, parts, strict=True) for _ in part.graphs]
    ranked = {
        "data": [(measured_on(name, others), measured_on(name, labelled)) for name in unseen],
        "structure": [
            (measured_on(name, shifted[size.labelled :]), measured_on(name, shifted[: size.labelled])) for name in known
        ],
    }
    return World(together, family, ranked)


def world_of(cell: str, seed: int, profile: str) -> World:
    return {"cells": cells_world, "graphs": graphs_world}[cell](seed, profile)


# clusters, fuzzifier, whether the encoder learns by contrast
KINDS = {
    "k-gnn": (0, 0.0, False), "gennape": (CLUSTERS, 2.0, True), "one head": (1, 2.0, True),
    "equal heads": (CLUSTERS, 1000.0, True), "random encoder": (CLUSTERS, 2.0, False),
    "target graphs": (CLUSTERS, 2.0, True),
}  # fmt: skip


def new_predictor(kind: str, cell: str, learned: Part, seed: int) -> ArchitecturePredictor:
    """With a k-GNN's head where there are no clusters."""
    clusters, m, _ = KINDS[kind]
    real = cell == "graphs"
    vocab = {"vocab": len(GRAPH_OPERATIONS) + 2} if real else {"maxima": shape_maxima(learned.graphs)}
    with seeded(seed):
        encoder = CGEncoder(**vocab)  # type: ignore[arg-type]
        number = min(clusters, len(learned.graphs) // 3)
        heads = FuzzyHeads(encoder.width, number, m=m) if clusters else regression_head(encoder.width)
    return ArchitecturePredictor(encoder, heads, seed=seed)


def epochs(number: int, profile: str) -> int:
    return max(1, round(number * SIZES[profile].share))


def fitted(
    kind: str, cell: str, learned: Part, family: list[str], rate: float, seed: int, profile: str, further: Any = ()
) -> ArchitecturePredictor:
    clusters, _, contrast = KINDS[kind]
    predictor = new_predictor(kind, cell, learned, seed)
    if contrast:
        number, lr = epochs(CONTRASTIVE[cell], profile), RATES[cell][kind].contrastive
        predictor.pretrain([*learned.graphs, *further], epochs=number, lr=lr)
    number = epochs((HEADS if clusters else END_TO_END)[cell], profile)
    return predictor.fit(learned.graphs, learned.accuracies, family, epochs=number, lr=rate, train_encoder=not clusters)


def bag_scores(learned: Part, family: list[str], part: Part) -> Tensor:
    """What a ridge regression on the numbers of operations of each kind makes of networks."""

    def counts(graphs: list[Any]) -> np.ndarray:
        return torch.stack([graph.op.bincount(minlength=len(CG_OPERATIONS)) for graph in graphs]).double().numpy()

    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 13)))
    model.fit(counts(learned.graphs), standardised(learned.accuracies, family).double().numpy())
    return torch.from_numpy(model.predict(counts(part.graphs)))


@functools.lru_cache(maxsize=8)
def zero_shot(kind: str, cell: str, seed: int, profile: str) -> ArchitecturePredictor:
    world = world_of(cell, seed, profile)
    unlabelled = [graph for pairs in world.ranked.values() for part, _ in pairs for graph in part.graphs]
    further = unlabelled if kind == "target graphs" else []
    return fitted(kind, cell, world.learned, world.family, RATES[cell][kind].fit, seed, profile, further)


def scores_of(arm: dict[str, Any], part: Part, labelled: Part, seed: int, profile: str) -> Tensor:
    kind, cell = arm["kind"], arm["cell"]
    if kind in part.scores:
        return part.scores[kind].double()
    alone, family = arm["labels"] == "alone", [""] * len(labelled.graphs)
    if kind == "bag":
        world = world_of(cell, seed, profile)
        return bag_scores(labelled, family, part) if alone else bag_scores(world.learned, world.family, part)
    if alone:
        return fitted(kind, cell, labelled, family, RATES[cell][kind].scratch, seed, profile).predict(part.graphs)
    predictor = zero_shot(kind, cell, seed, profile)
    if arm["labels"] == "tuned":
        predictor = predictor.finetune(
            labelled.graphs, labelled.accuracies, epochs=epochs(TUNING, profile), lr=RATES[cell][kind].tuning,
            train_encoder=not KINDS[kind][0],
        )  # fmt: skip
    return predictor.predict(part.graphs)


def ranked_well(truth: Tensor, scores: Tensor) -> tuple[float, float]:
    """Spearman's correlation, 0 where all scores are equal, and NDCG@10 with ranks as gains."""
    gains, given = truth.double().numpy(), scores.double().numpy()
    found = spearman(gains, given)
    return float(np.nan_to_num(found)), ndcg(gains.argsort().argsort(), given, 10)


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    rows = {}
    for metric, pairs in world_of(arm["cell"], seed, profile).ranked.items():
        found = []
        for part, labelled in pairs:
            truth = part.scores["other"] if arm["kind"] == "ceiling" else part.accuracies
            found.append(ranked_well(truth, scores_of(arm, part, labelled, seed, profile)))
        rows[metric] = tuple(float(np.mean(each)) for each in zip(*found, strict=True))
    metrics = {name: row[0] for name, row in rows.items()}
    if arm["cell"] == "graphs":
        return metrics | {f"{name}_ndcg10": row[1] for name, row in rows.items()}
    metrics |= {"spearman": float(np.mean([row[0] for row in rows.values()]))}
    metrics |= {"ndcg10": float(np.mean([row[1] for row in rows.values()])), "families": float(len(FAMILIES))}
    return metrics | {"below": float(np.mean([row[0] < 0.7 for row in rows.values()]))}


def nas_missing() -> str:
    return missing([NAS])


def arm_of(cell: str, kind: str, labels: str = "none") -> dict[str, Any]:
    return {"cell": cell, "kind": kind, "labels": labels}


LEARNERS = {
    **{kind: (kind, "none") for kind in KINDS},
    "k-gnn+labels": ("k-gnn", "tuned"),
    "gennape+labels": ("gennape", "tuned"),
    "scratch k-gnn": ("k-gnn", "alone"),
    "scratch gennape": ("gennape", "alone"),
    "bag": ("bag", "none"),
    "scratch bag": ("bag", "alone"),
}
REAL = {f"graphs: {name}": arm_of("graphs", *of) for name, of in LEARNERS.items() if name != "target graphs"}
REAL |= {f"graphs: {name}": arm_of("graphs", name) for name in ("parameters", "latency")}
METRICS = (
    "spearman", "ndcg10", *(f"spearman_{name}" for name in FAMILIES), "families", "below", "data", "structure",
    "data_ndcg10", "structure_ndcg10",
)  # fmt: skip


def claims(on: str, proxies: tuple[str, ...], prefix: str = "") -> list[Claim]:
    def arms(*names: str) -> tuple[str, ...]:
        return tuple(prefix + name for name in names)

    gennape, labelled = arms("gennape", "gennape+labels")
    return [
        better(gennape, than=arms("k-gnn"), on=on, margin=0.05),
        better(gennape, than=arms(*proxies), on=on, margin=0.0),
        better(gennape, than=arms("bag"), on=on, margin=0.0),
        better(labelled, than=gennape, on=on, margin=0.05),
        better(labelled, than=arms("scratch k-gnn", "scratch gennape", "scratch bag"), on=on, margin=0.0),
        better(gennape, than=arms("one head"), on=on, margin=0.0),
        better(gennape, than=arms("equal heads"), on=on, margin=0.0),
        better(gennape, than=arms("random encoder"), on=on, margin=0.0),
    ]


study = Study(
    slug="gennape",
    title="GENNAPE: Towards Generalized Neural Architecture Performance Estimators",
    arms={
        **{name: arm_of("cells", name) for name in ("flops", "parameters", "nodes", "ceiling")},
        **{name: arm_of("cells", *of) for name, of in LEARNERS.items()},
        **REAL,
    },
    run=run,
    metrics=dict.fromkeys(METRICS, higher_is_better),
    optional=set(METRICS),
    needs=dict.fromkeys(REAL, nas_missing),
    source=["../tasks/graphs/measured_architectures.json"],
    claims=[
        *claims("spearman", ("flops", "parameters")),
        better("gennape", than="k-gnn", on="ndcg10", margin=0.05),
        better("gennape", than=("flops", "parameters"), on="ndcg10", margin=0.0),
        *claims("data", ("parameters", "latency"), "graphs: "),
        *claims("structure", ("parameters", "latency"), "graphs: "),
    ],
    checks=[
        at_least("ceiling", on="families", value=3, text="the labels of at least 3 families are reliable"),
        at_least("parameters", on="below", value=0.6, text="parameters alone order at most 40 % of the families"),
        better("gennape", than="nodes", on="spearman", margin=0.0, text="the number of operations tells less"),
    ],
    seeds={"smoke": 1, "laptop": 5},
    shared_setup=True,
    time_limit=900,
)
