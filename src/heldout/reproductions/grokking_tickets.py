"""Grokking tickets: does the sparse subnetwork of a generalised model generalise at once, from the same start?

Source: arXiv:2310.19470 (Minegishi, Iwasawa, Matsuo), which finds that tickets taken after generalisation shorten
grokking drastically, and that neither their smaller norm nor sparsity as such explains it: dense networks of the same
norm, tickets taken before generalisation and pruning at initialisation do not help.

Here: addition modulo 67 on unordered pairs, 60 % of them to train on; the paper's network without biases, full-batch
AdamW (learning rate 3e-3, weight decay 1). ``t_mem`` and ``t_gen`` are the first steps with 95 % training and test
accuracy; a run that does not get there within the 1,600 steps of the budget counts as the budget. Tickets are the
largest weights of the dense network 400 steps after its ``t_gen`` (``ticket-mem``: at its ``t_mem``), rewound to the
same initial weights. ``dense-l1`` and ``dense-l2`` start from all initial weights scaled to the norm of ``ticket-0.4``;
the ``*-init`` arms keep 40 % of the weights by a score of the untrained network.

All arms of a seed share initial weights and data; training draws nothing. The densities were set beforehand.

Deviations: 60 % of the pairs instead of 40 %, and three times the learning rate, so that the dense network generalises
within a thousand steps and all seeds take minutes; float32 cross-entropy; GraSP without the temperature of its authors.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from heldout.measure import delay, steps_to
from heldout.nn import TokenSumMLP
from heldout.study import Study, better, cheaper, higher_is_better, log_curve, lower_is_better
from heldout.tasks import modular
from heldout.train import full_batch, seeded
from heldout.weights import apply_mask, make_mask, match_norm, prune_scores, rewind_ticket, state_norm

# modulus, width of the embedding, most steps, steps from generalisation to the ticket, steps between evaluations
SIZES = {"smoke": (13, 32, 60, 20, 10), "laptop": (67, 500, 1600, 400, 10)}
State = dict[str, Tensor]


def network(seed: int, profile: str) -> TokenSumMLP:
    p, dim, *_ = SIZES[profile]
    with seeded(seed):
        return TokenSumMLP(p, dim)


def copied(model: nn.Module) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def world(seed: int, profile: str) -> dict[str, tuple[Tensor, Tensor]]:
    split = modular("add", SIZES[profile][0], 0.6, unordered=True, seed=seed)
    return {"train": (split.x_train, split.y_train), "test": (split.x_test, split.y_test)}


def train(model: nn.Module, seed: int, profile: str, wd: float, after: int) -> tuple[list[dict[str, float]], State]:
    """The history up to some steps after generalisation, and the state at memorisation (or at the end)."""
    _, _, budget, _, every = SIZES[profile]
    sets = world(seed, profile)
    history: list[dict[str, float]] = []
    memorised: State | None = None
    options: dict[str, Any] = {"steps": budget, "every": every, "lr": 3e-3, "weight_decay": wd, "evaluate": sets}
    for record in full_batch(model, *sets["train"], **options):
        history.append(record)
        if memorised is None and record["train"] >= 0.95:
            memorised = copied(model)
        generalised = steps_to(history, "test", 0.95)
        if generalised is not None and record["step"] >= generalised + after:
            break
    return history, memorised or copied(model)


class Dense(NamedTuple):
    """What the arms of a seed share: the dense run, and its states at the start, at memorisation and at the end."""

    history: list[dict[str, float]]
    start: State
    memorised: State
    end: State


@functools.lru_cache(maxsize=2)
def dense(seed: int, profile: str) -> Dense:
    model = network(seed, profile)
    start = copied(model)
    history, memorised = train(model, seed, profile, 1.0, after=SIZES[profile][3])
    return Dense(history, start, memorised, copied(model))


def prepared(arm: dict[str, Any], seed: int, profile: str) -> TokenSumMLP:
    """The network as it starts in an arm."""
    model, shared = network(seed, profile), dense(seed, profile)
    if arm["kind"] == "ticket":
        rewind_ticket(model, shared.start, getattr(shared, arm["source"]), arm["density"])
    elif arm["kind"] == "norm":
        mask = make_mask({name: weight.abs() for name, weight in shared.end.items()}, arm["density"])
        target = state_norm({name: weight * mask[name] for name, weight in shared.start.items()}, arm["p"])
        model.load_state_dict(match_norm(shared.start, target, arm["p"]))
    else:
        batches = [world(seed, profile)["train"]]
        scores = prune_scores(model, arm["score"], loss_fn=F.cross_entropy, batches=batches, seed=seed)
        apply_mask(model, make_mask(scores, arm["density"]))
    return model


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    budget = SIZES[profile][2]
    if arm["kind"] == "dense":
        history = dense(seed, profile).history
    else:
        history, _ = train(prepared(arm, seed, profile), seed, profile, arm["wd"], after=100)
    for record in history:
        log_curve("train_accuracy", int(record["step"]), record["train"])
        log_curve("test_accuracy", int(record["step"]), record["test"])
    times = {name: steps_to(history, name, 0.95, budget=budget) for name in ("train", "test")}
    between = delay(history, budget=budget)
    best = max(record["test"] for record in history)
    return {"t_mem": times["train"], "t_gen": times["test"], "delay": between, "best_test": best}  # type: ignore[dict-item]


def ticket(density: float, source: str = "end", wd: float = 1.0) -> dict[str, Any]:
    return {"kind": "ticket", "density": density, "source": source, "wd": wd}


def norm(p: int) -> dict[str, Any]:
    return {"kind": "norm", "density": 0.4, "p": p, "wd": 1.0}


def at_init(score: str) -> dict[str, Any]:
    return {"kind": "init", "density": 0.4, "score": score, "wd": 1.0}


study = Study(
    slug="grokking-tickets",
    title="Grokking Tickets: Lottery Tickets Accelerate Grokking",
    arms={
        "dense": {"kind": "dense"},
        "ticket-0.7": ticket(0.7),
        "ticket-0.4": ticket(0.4),
        "ticket-0.2": ticket(0.2),
        "ticket-0.1": ticket(0.1),
        "ticket-0.4-wd0": ticket(0.4, wd=0.0),
        "ticket-mem": ticket(0.4, source="memorised"),
        "dense-l1": norm(1),
        "dense-l2": norm(2),
        "random-init": at_init("random"),
        "magnitude-init": at_init("magnitude"),
        "snip-init": at_init("snip"),
        "grasp-init": at_init("grasp"),
        "synflow-init": at_init("synflow"),
    },
    run=run,
    metrics={
        "t_mem": lower_is_better,
        "t_gen": lower_is_better,
        "delay": lower_is_better,
        "best_test": higher_is_better,
    },
    claims=[
        cheaper("ticket-0.4", than="dense", on="t_gen", ratio=0.5),
        cheaper("ticket-0.4", than="dense-l1", on="t_gen", ratio=0.5),
        cheaper("ticket-0.4", than="dense-l2", on="t_gen", ratio=0.5),
        cheaper("ticket-0.4", than="ticket-mem", on="t_gen", ratio=0.5),
        better("dense", than="random-init", on="t_gen"),
        better("dense", than="magnitude-init", on="t_gen"),
        cheaper("ticket-0.4-wd0", than="dense", on="t_gen", ratio=0.5),
    ],
    seeds={"smoke": 1, "laptop": 3},
    shared_setup=True,
)
