"""TEDDY: may edges between hubs go, and does one training with a teacher find tickets as good as iterative pruning?

Claim. Edges with the smallest product of inverse degrees, those between hubs whose neighbours are hubs, can go: a graph
network loses less than without random edges, and less still than without the edges of low degree. With all but the
largest weights set to zero after each step, and a dense teacher on all nodes, one training finds sparse networks at
least as good as iterative pruning of learned masks (UGS). Source: arXiv:2402.01261 (Seo, Yun, Yang, ICLR 2024), on
citation graphs; its abstract gives no figures.

World. Communities of 1,500 nodes in 6 classes, mean degree 6 with a Pareto tail (exponent 2), homophily 0.8 whatever
the degree, bags of 200 words of which a share of 0.3 are topical (an MLP reaches about 60 %); 20 nodes of each class to
train on, 500 to choose the epoch by, the others are tested on. Cells: ``gcn`` and ``gin``, two layers of 64 on this
graph, GIN with batch normalisation in its layers, which carry the verdict; ``hubs``, a GCN where edges drawn from the
tenth of the nodes of highest expected degree have a homophily of 0.5, so that degree carries signal (exploratory);
``wordnet``, a GCN on a connected region of 2,000 nouns of WordNet, joined to what they are kinds of, with the 500 most
frequent words of their glosses, whose class is the file of lexicographers that wrote them (rare files are one class
together), 10 of each to train on: judged apart.

Arms. ``dense``; ``random``, ``reverse`` (the edges that TEDDY would keep longest go first) and ``teddy``, without a
teacher; ``random with teacher`` and ``teddy with teacher``, the method; ``ugs``, masks on edges and weights with an L1
penalty, 5 rounds, weights rewound to their start. ``accuracy`` is the mean over 20, 40 and 60 % of the edges gone, with
dense weights, and ``at_20`` ... one of them; ``sparse`` the same mean with 80 % of the weights at zero; ``ticket`` that
with 40 % of the edges gone, where ``ugs`` is tried, for it costs six trainings; ``steps`` those that an optimizer took
for it, a teacher of its own included: two trainings against six by construction, hence a check in the place of the wall
time that the specification claims. Of ``dense`` all accuracies are that of the whole graph.

Settings. By validation accuracy on development seed 1000 with 40 % of the edges gone (arms that have them: the mean of
dense and sparse weights; ``ugs``: the ticket): the rate from 0.003, 0.01 and 0.03 (``ugs``: 0.01 and 0.03), extended by
steps of three until the best lay inside; for each of the teacher's weights 0.1, 1 and 10, the paper's grid, anew; the
penalties of ``ugs`` 0.1, 1 and 10 times the published ones, at its best rate, and 0.01 where 0.1 was best. The
teacher's best weight is the largest of its grid but once. ``hubs`` has the settings of ``gcn``.

Deviations. 100 epochs for 150 (200 in the paper), for the time. Pairs of nodes are counted where the official code
counts directed edges. Masks of ``ugs`` multiply messages, so that GIN takes them; it prunes weights with two axes where
the projection has biases among its weights, too. A tree of kinds, as WordNet nearly is, falls apart with the first
edges that go.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from heldout.data import edge_degree_scores
from heldout.sources import WORDNET, missing
from heldout.study import Claim, Study, better, cheaper, higher_is_better, lower_is_better
from heldout.tasks import BlockModel, split_nodes, wordnet_graph
from heldout.train import SparseResult, graph_ticket, seeded, train_sparse_gnn

EDGES, WEIGHTS, HIDDEN = (0.2, 0.4, 0.6), (0.0, 0.8), 64
TICKET = (0.4, 0.8)  # sparsities of edges and weights at which the iterative masks are tried: they cost six trainings
CELLS = ("gcn", "gin", "wordnet")
METRICS = ("accuracy", "at_20", "at_40", "at_60", "sparse", "ticket")
SPARSE = ("random with teacher", "teddy", "teddy with teacher")  # tried with few weights, too


class Size(NamedTuple):
    nodes: int
    real: int  # nodes of the real graph
    val: int
    epochs: int
    rounds: int


class Setting(NamedTuple):
    lr: float
    distill: float = 0.0
    l1: float = 1.0  # times the published strengths of both penalties


SIZES = {"smoke": Size(300, 400, 60, 2, 1), "laptop": Size(1500, 2000, 500, 100, 5)}
NAMES = ("dense", "random", "random with teacher", "reverse", "ugs", "teddy", "teddy with teacher")
TUNED: dict[str, dict[str, Setting]] = {
    "gcn": {
        "dense": Setting(0.003),
        "random": Setting(0.03),
        "random with teacher": Setting(0.09, 10.0),
        "reverse": Setting(0.03),
        "ugs": Setting(0.03),
        "teddy": Setting(0.01),
        "teddy with teacher": Setting(0.03, 10.0),
    },
    "gin": {
        "dense": Setting(0.09),
        "random": Setting(0.09),
        "random with teacher": Setting(0.01, 10.0),
        "reverse": Setting(0.09),
        "ugs": Setting(0.09),
        "teddy": Setting(0.09),
        "teddy with teacher": Setting(0.09, 10.0),
    },
    "wordnet": {
        "dense": Setting(0.01),
        "random": Setting(0.01),
        "random with teacher": Setting(0.09, 10.0),
        "reverse": Setting(0.003),
        "ugs": Setting(0.03, l1=0.1),
        "teddy": Setting(0.03),
        "teddy with teacher": Setting(0.09, 1.0),
    },
}


def reverse(data: Any) -> Tensor:
    """Scores that prune first what TEDDY prunes last."""
    return -edge_degree_scores(data.edge_index, data.num_nodes)


SCORES: dict[str, Any] = {"random": "random", "reverse": reverse, "teddy": "edge_degree"}


@functools.lru_cache(maxsize=4)
def graph_of(cell: str, seed: int, profile: str) -> Any:
    size = SIZES[profile]
    if cell == "wordnet":
        return split_nodes(wordnet_graph(size.real, least=60 * size.real // 2000, seed=seed), 10, size.val, seed=seed)
    world = BlockModel(
        size.nodes, 6, tail=2.0, homophily=0.8, hub_homophily=0.5 if cell == "hubs" else None,
        features=200, kind="words", signal=0.3, world=seed,
    )  # fmt: skip
    return split_nodes(world.sample(seed), 20 if profile == "laptop" else 5, size.val, seed=seed)


def network(cell: str, data: Any, seed: int) -> nn.Module:
    from torch_geometric.nn import GCN, GIN

    sizes = (data.x.shape[1], HIDDEN, 2, int(data.y.max()) + 1)
    with seeded(seed):
        if cell == "gin":
            return GIN(*sizes, dropout=0.5, norm="batch_norm")
        return GCN(*sizes, dropout=0.5, cached=True)


def setting(cell: str, name: str) -> Setting:
    return TUNED["gcn" if cell == "hubs" else cell][name]


def trained(
    cell: str, name: str, edges: float, weights: float, seed: int, profile: str, chosen: Setting
) -> tuple[SparseResult, int]:
    """One training, with the steps that it took, those of its teacher included."""
    data, size = graph_of(cell, seed, profile), SIZES[profile]
    teacher, steps = dense(cell, seed, profile) if chosen.distill else (None, 0)

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1

    def adam(parameters: Iterable[Any]) -> torch.optim.Optimizer:
        made = torch.optim.Adam(parameters, lr=chosen.lr, weight_decay=5e-4)
        made.register_step_post_hook(count)
        return made

    if name == "ugs":
        found = graph_ticket(
            network(cell, data, seed), data, edges, weights, rounds=size.rounds, epochs=size.epochs,
            edge_l1=1e-6 * chosen.l1, weight_l1=1e-5 * chosen.l1, optimizer=adam, seed=seed,
        )  # fmt: skip
    else:
        found = train_sparse_gnn(
            network(cell, data, seed), data, edges, weights, chosen.distill, teacher, size.epochs,
            adam, score=SCORES.get(name.split()[0], "edge_degree"), seed=seed,
        )  # fmt: skip
    return found, steps


@functools.lru_cache(maxsize=8)
def dense(cell: str, seed: int, profile: str) -> tuple[Tensor, int]:
    """Logits of the dense network, and the steps of its training."""
    found, steps = trained(cell, "dense", 0.0, 0.0, seed, profile, setting(cell, "dense"))
    return found.logits, steps


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    cell, name = arm["cell"], arm["name"]
    chosen = setting(cell, name)
    if name == "dense":
        found, _ = trained(cell, name, 0.0, 0.0, seed, profile, chosen)
        return dict.fromkeys(("accuracy", "at_20", "at_40", "at_60"), tested(found))
    asked = [TICKET] if name == "ugs" else [(e, 0.0) for e in EDGES]
    if name in SPARSE and cell != "hubs":
        asked = [(e, w) for e in EDGES for w in WEIGHTS]
    runs = {each: trained(cell, name, *each, seed, profile, chosen) for each in asked}
    accuracy = {each: tested(found) for each, (found, _) in runs.items()}
    scores = {f"at_{round(100 * e)}": accuracy[e, 0.0] for e in EDGES if (e, 0.0) in accuracy}
    if scores:
        scores["accuracy"] = fmean(scores.values())
    if (EDGES[0], 0.8) in accuracy:
        scores["sparse"] = fmean(accuracy[e, 0.8] for e in EDGES)
    if TICKET in asked:
        scores["ticket"], scores["steps"] = accuracy[TICKET], runs[TICKET][1]
    return scores


def tested(found: SparseResult) -> float:
    assert found.test_accuracy is not None
    return found.test_accuracy


def claims(cell: str) -> list[Claim]:
    """Those of one network and graph."""
    teddy, taught = f"{cell} teddy", f"{cell} teddy with teacher"
    return [
        better(teddy, than=f"{cell} random", on="accuracy", margin=0.01),
        better(teddy, than=f"{cell} reverse", on="accuracy", margin=0.02),
        better(f"{cell} random", than=f"{cell} reverse", on="accuracy"),
        better(taught, than=f"{cell} random with teacher", on="accuracy", margin=0.01),
        better(taught, than=f"{cell} ugs", on="ticket", margin=0.005),
        better(taught, than=teddy, on="sparse", margin=0.01),
        better(
            taught, than=f"{cell} dense", on="at_20", margin=-0.01,
            text=f"{taught} is within 0.01 of {cell} dense, or better, with a fifth of the edges gone",
        ),
    ]  # fmt: skip


ARMS = {f"{cell} {name}": {"cell": cell, "name": name} for cell in CELLS for name in NAMES}
ARMS |= {f"hubs {name}": {"cell": "hubs", "name": name} for name in ("dense", "random", "reverse", "teddy")}

study = Study(
    slug="teddy",
    title="TEDDY: Trimming Edges with Degree-based Discrimination strategY",
    arms=ARMS,
    run=run,
    metrics=dict.fromkeys(METRICS, higher_is_better) | {"steps": lower_is_better},
    optional={*METRICS, "steps"},
    needs={arm: functools.partial(missing, [WORDNET]) for arm in ARMS if arm.startswith("wordnet")},
    shared_setup=True,
    claims=[
        *(claim for cell in CELLS for claim in claims(cell)),
        *(
            better("hubs teddy", than=f"hubs {other}", on="accuracy", margin=margin, text="exploratory: where edges of "
                   f"hubs mislead, teddy beats {other} by more than {margin}")
            for other, margin in (("random", 0.01), ("reverse", 0.02))
        ),
    ],
    checks=[
        cheaper(f"{cell} teddy with teacher", than=f"{cell} ugs", on="steps", ratio=1 / 3) for cell in CELLS
    ],
    seeds={"smoke": 1, "laptop": 3},
)  # fmt: skip
