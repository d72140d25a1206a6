"""LeBeD: can a graph network's error on graphs without labels be ranked by how far its own answers take it?

Claim. Trained again from its first weights on its own answers, until its embeddings fit the edges as before, a network
ends further from its trained weights where it is more wrong: better than its confidence, entropy and ATC tell; another
start or a fixed number of epochs lose that. Source: arXiv:2403.09953 (Zheng et al., ICLR 2024).

World. ``blocks``: graphs of 400 nodes, five communities, bags of words; one to train on (labels of 60 % of its nodes,
the others serve ATC), and 10 new ones along each of four axes: noise and masking of features as published, homophily
from 0.8 to 0.4, priors with degree. ``calls``, the real cell: functions of Python packages and their calls; which
return a value? Features are identifiers and kinds of syntax but ``return`` and ``yield``; that there is no other
statement tells some. One of four packages, by seed, is trained on; 21 others of this Python's library and of what
heldout needs, as installed, are ranked.

Arms. GCN, GAT, GIN and MLP, two layers and a linear head. ``noise`` etc. is Spearman's correlation of error and score
within an axis, ``features`` the mean of noise and masking, ``pooled`` that of all graphs; means over the networks,
alone as ``noise_mlp``. ``fixed epochs`` is the mean stop of a network. Of the baselines, the best of the three on each
seed is to be beaten. An axis of growing severity makes many scores monotone: ``pooled`` is the limit.

Settings. One rate and margin for all networks and both cells, chosen by the stop alone, without labels: of 1e-3, 3e-3,
1e-2 and 0.003, 0.01, 0.03, 0.1, 0.3 the pair with which the largest share of three graphs of each axis of ``blocks`` on
seed 1000 stops after the first epoch allowed and before the last. ``within`` tells that share: where it is low the stop
decides nothing. ATC's certainty, of two, has the better ``features`` there; the words' signal was set by errors alone.
Deviations. Not 600 nodes and 500 epochs but 400 and 100, for time.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.measure import LebedResult, atc_error, average_confidence, average_entropy, lebed_score, rank_correlation
from heldout.nn import NodeClassifier
from heldout.study import Study, at_least, at_most, better, higher_is_better, lower_is_better
from heldout.tasks import BLOCK_SHIFTS, BlockModel, block_shifts, call_graph
from heldout.train import full_batch, seeded

BACKBONES = ("gcn", "gat", "gin", "mlp")
BASELINES = ("confidence", "entropy", "atc")
SCORES = ("lebed", "fresh start", "fixed epochs", *BASELINES)
LABELLED = 0.6  # of the source's nodes
FIRST = 5  # epoch at which a graph may stop
LR, MARGIN = 1e-2, 0.01
ATC: Any = "confidence"
SOURCES = ("asyncio", "aiohttp", "fsspec", "rich")
LIBRARY = "wsgiref xmlrpc collections email http importlib logging multiprocessing unittest urllib xml"
TARGETS = (*LIBRARY.split(), *["jinja2", "joblib", "markdown_it", "packaging", "pygments", "requests", "typer"])
TESTS = ("tests", "test", "testing")  # folders that are no part of a package


class Size(NamedTuple):
    nodes: int
    graphs: int  # of an axis
    steps: int
    epochs: int
    packages: int


SIZES = {"smoke": Size(60, 2, 3, 6, 2), "laptop": Size(400, 10, 120, 100, len(TARGETS) + len(SOURCES) - 1)}


def network_for(backbone: Any, source: Any) -> NodeClassifier:
    return NodeClassifier(backbone, source.x.shape[1], int(source.y.max()) + 1, hidden=64, embedding=16)


class World(NamedTuple):
    """A graph to train on, which of its nodes have labels, and graphs without labels by the axis of their shift."""

    source: Any
    labelled: Tensor
    axes: dict[str, list[Any]]


def blocks(seed: int, size: Size) -> World:
    model = BlockModel(nodes=size.nodes, kind="words", signal=0.25, world=seed)
    generator = torch.Generator().manual_seed(seed)
    source, labelled = model.sample(generator), torch.rand(size.nodes, generator=generator) < LABELLED
    return World(source, labelled, block_shifts(model, size.graphs, generator))


@functools.cache
def package_graph(name: str) -> Any:
    return call_graph(name, skip=TESTS)


def calls(seed: int, size: Size) -> World:
    own = SOURCES[seed % len(SOURCES)]
    source = package_graph(own)
    labelled = torch.rand(len(source.y), generator=torch.Generator().manual_seed(seed)) < LABELLED
    others = [name for name in (*TARGETS, *SOURCES) if name != own][: size.packages]
    return World(source, labelled, {"packages": [package_graph(name) for name in others]})


@functools.lru_cache(maxsize=2)
def world_of(cell: str, seed: int, profile: str) -> World:
    return {"blocks": blocks, "calls": calls}[cell](seed, SIZES[profile])


class Trained(NamedTuple):
    model: nn.Module
    initial: dict[str, Tensor]
    known: Tensor  # probabilities of the source's nodes whose labels were held back
    labels: Tensor


@functools.lru_cache(maxsize=8)
def trained(backbone: str, cell: str, seed: int, profile: str) -> Trained:
    world = world_of(cell, seed, profile)
    source, labelled = world.source, world.labelled
    with seeded(seed):
        model = network_for(backbone, source)
    initial = copy.deepcopy(model.state_dict())
    steps = SIZES[profile].steps
    recipe: dict[str, Any] = {"steps": steps, "every": steps, "lr": 0.01, "weight_decay": 0.05}
    recipe["loss"] = lambda logits, labels: F.cross_entropy(logits[labelled], labels[labelled])
    for _ in full_batch(model, (source.x, source.edge_index), source.y, **recipe):
        pass
    return Trained(model.eval(), initial, probabilities(model, source)[~labelled], source.y[~labelled])


def probabilities(model: nn.Module, graph: Any) -> Tensor:
    with torch.no_grad():
        return model(graph.x, graph.edge_index).softmax(1)


def error(probs: Tensor, graph: Any) -> float:
    return (probs.argmax(1) != graph.y).double().mean().item()


@functools.lru_cache(maxsize=16)
def learned(score: str, backbone: str, cell: str, seed: int, profile: str) -> dict[str, list[LebedResult]]:
    """LeBeD's score of each graph, or that of one of its ablations, by axis."""
    model, initial, *_ = trained(backbone, cell, seed, profile)
    world, least, most = world_of(cell, seed, profile), FIRST, SIZES[profile].epochs
    if score == "fresh start":
        with seeded(seed + 500_000):
            initial = network_for(backbone, world.source).state_dict()
    if score == "fixed epochs":
        usual = learned("lebed", backbone, cell, seed, profile)
        least = most = round(float(np.mean([each.epoch for found in usual.values() for each in found])))
    return {
        axis: [
            lebed_score(
                model, initial, graph, head="head", lr=LR, margin=MARGIN, min_epochs=least, max_epochs=most, seed=seed
            )
            for graph in graphs
        ]
        for axis, graphs in world.axes.items()
    }


def expected_errors(score: str, backbone: str, cell: str, seed: int, profile: str) -> dict[str, list[float]]:
    """What a score says of each graph, by axis: the larger, the more wrong."""
    if score not in BASELINES:
        return {
            axis: [each.score for each in found]
            for axis, found in learned(score, backbone, cell, seed, profile).items()
        }
    model, _, known, labels = trained(backbone, cell, seed, profile)
    says = {
        "confidence": lambda probs: 1 - average_confidence(probs),
        "entropy": average_entropy,
        "atc": lambda probs: atc_error(known, labels, probs, ATC),
    }[score]
    axes = world_of(cell, seed, profile).axes
    return {axis: [says(probabilities(model, graph)) for graph in graphs] for axis, graphs in axes.items()}


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    score, cell = arm["score"], arm["cell"]
    rows = {}
    for backbone in BACKBONES:
        model, world = trained(backbone, cell, seed, profile).model, world_of(cell, seed, profile)
        expected = expected_errors(score, backbone, cell, seed, profile)
        probs = {axis: [probabilities(model, graph) for graph in graphs] for axis, graphs in world.axes.items()}
        errors = {axis: [*map(error, probs[axis], graphs)] for axis, graphs in world.axes.items()}
        row = {axis: rank_correlation(errors[axis], expected[axis]).spearman for axis in errors if cell == "blocks"}
        if cell == "blocks":
            row["features"] = (row["noise"] + row["masking"]) / 2
        everything = [*chain(*errors.values())]
        row |= zip(("pooled", "r2"), rank_correlation(everything, [*chain(*expected.values())]), strict=True)
        if score == "lebed":
            found = [*chain(*learned(score, backbone, cell, seed, profile).values())]
            row |= {"lowest": min(everything), "highest": max(everything)}
            row["epochs"] = float(np.mean([each.epoch for each in found]))
            row["within"] = float(np.mean([each.stopped and each.epoch > FIRST for each in found]))
            axis = next(iter(errors))
            sure = float(np.mean([average_confidence(each) for each in probs[axis]]))
            row["overconfidence"] = sure - 1 + float(np.mean(errors[axis]))
        rows[backbone] = row
    means = {name: float(np.mean([row[name] for row in rows.values()])) for name in rows["gcn"]}
    return means | {f"{name}_{backbone}": value for backbone, row in rows.items() for name, value in row.items()}


CORRELATIONS = (*BLOCK_SHIFTS, "features", "pooled", "r2")
FACTS = ("lowest", "highest", "epochs", "within", "overconfidence")
METRICS = {
    f"{name}{of}": lower_is_better if name in FACTS else higher_is_better
    for name in (*CORRELATIONS, *FACTS)
    for of in ("", *(f"_{backbone}" for backbone in BACKBONES))
}


def packages_missing() -> str:
    """Why the graphs of calls cannot be had here, or an empty text."""
    absent = [name for name in (*TARGETS, *SOURCES) if importlib.util.find_spec(name) is None]
    return f"not here: the packages {', '.join(absent)}" if absent else ""


CELLS = {"blocks": "", "calls": "calls: "}
study = Study(
    slug="lebed",
    title="Online GNN Evaluation Under Test-time Graph Distribution Shifts",
    arms={f"{CELLS[cell]}{score}": {"cell": cell, "score": score} for cell in CELLS for score in SCORES},
    run=run,
    metrics=METRICS,
    optional=set(METRICS),
    needs={f"calls: {score}": packages_missing for score in SCORES},
    claims=[
        at_least("lebed", on="noise", value=0.65),
        at_least("lebed", on="masking", value=0.65),
        better("lebed", than=BASELINES, on="noise_mlp", margin=0.05),
        better("lebed", than=BASELINES, on="features_gcn", margin=0.05),
        better("lebed", than="fresh start", on="features", margin=0.3),
        better("lebed", than="fixed epochs", on="features", margin=0.05),
        at_least("lebed", on="pooled", value=0.65, text="the limit: lebed has pooled, over all axes, of at least 0.65"),
        better("lebed", than=BASELINES, on="pooled", margin=0.05),
        at_least("calls: lebed", on="pooled", value=0.65),
        better("calls: lebed", than=[f"calls: {name}" for name in BASELINES], on="pooled", margin=0.05),
        better("calls: lebed", than="calls: fresh start", on="pooled", margin=0.3),
        better("calls: lebed", than="calls: fixed epochs", on="pooled", margin=0.05),
    ],
    checks=[
        at_most("lebed", on="lowest_gcn", value=0.1, text="the errors of gcn begin below 0.1"),
        at_least("lebed", on="highest_gcn", value=0.4, text="the errors of gcn reach 0.4"),
        at_least("lebed", on="within", value=0.5, text="the stop decides on at least half of the graphs"),
        at_least("calls: lebed", on="within", value=0.5, text="calls: the stop decides on at least half of the graphs"),
        at_least("lebed", on="overconfidence_mlp", value=0.05, text="mlp is too sure of itself under noise"),
    ],
    seeds={"smoke": 1, "laptop": 8},
    shared_setup=True,
    time_limit=900,
)
