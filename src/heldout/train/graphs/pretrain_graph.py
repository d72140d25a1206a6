"""Core: Pre-training of a node encoder without labels, on the whole graph or in batches, with rules of when to stop.

Source: arXiv:2406.08310 (Xu et al., 2024), sections on training strategies and stopping.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from heldout.data import NeighbourBatches, SubgraphBatches
from heldout.errors import (
    check_at_least,
    check_fraction,
    check_has,
    check_nonempty,
    check_one_of,
    checked,
)
from heldout.measure import GRAPH_TASKS, GraphTasks
from heldout.train.supervised import seeded

PretrainingStop = Literal["last", "pretext", "classification", "link", "clustering"]
PRETRAINING_STOPS: tuple[PretrainingStop, ...] = ("last", "pretext", *GRAPH_TASKS)


class KeptEpoch(NamedTuple):
    """The epoch that a rule of stopping keeps.

    Attributes:
        epoch: from 1.
        score: by which it was chosen: the pretext loss, or a validation metric; NaN for the last epoch.
        state: the method's ``state_dict``, on its device.

    Example:
        >>> KeptEpoch(20, 0.8, {}).epoch
        20
    """

    epoch: int
    score: float
    state: dict[str, Tensor]


class PretrainingHistory(NamedTuple):
    """What a pre-training went through.

    Attributes:
        records: one for each time it was looked at: ``epoch``, ``loss``, the mean since the last look, and what
            ``GraphTasks.measure`` says where a rule asks for it.
        kept: by the rule of stopping.
        steps: of the optimizer.
        nodes_per_second: that were encoded in steps, by the clock, without what is spent on looking.
        peak_bytes: the most memory allocated on a GPU; None elsewhere.

    Example:
        >>> PretrainingHistory([{"epoch": 1.0, "loss": 0.5}], {}, 1, 1e4, None).steps
        1
    """

    records: list[dict[str, float]]
    kept: dict[PretrainingStop, KeptEpoch]
    steps: int
    nodes_per_second: float
    peak_bytes: int | None


@checked
def pretrain_graph(
    method: nn.Module,
    data: Any,
    epochs: int = 200,
    optimizer: Optimizer | None = None,
    *,
    batch: Literal["full", "node", "subgraph"] | Iterable[Any] = "full",
    size: int = 500,
    stop: PretrainingStop | Sequence[PretrainingStop] = "last",
    tasks: GraphTasks | None = None,
    eval_every: int = 50,
    warmup: float | None = None,
    seed: int = 0,
) -> PretrainingHistory:
    """Minimises a method's loss on a graph in place, and leaves it with the weights that a rule of stopping keeps.

    Rules look at validation alone: at its links, its labels, or how clusters agree with the labels of its nodes.
    Looking does not change the training, so that several rules can be compared on one.

    Args:
        method: a module with ``loss(data, generator)`` and ``embed(data)``: see ``GraphSSL``.
        data: a graph with ``x``, ``edge_index`` and ``num_nodes``; to predict links, with the edges of
            ``heldout.data.split_links(...).edge_index`` alone.
        epochs: an epoch is a step on the whole graph, or one pass over the batches.
        optimizer: of the method's parameters; default: Adam at 0.01 with a weight decay of 1e-5.
        batch: "full"; "node" for ``NeighbourBatches``, "subgraph" for ``SubgraphBatches``; or batches of one's own,
            that can be gone through again, such as a loader of PyG.
        size: nodes of a batch.
        stop: "last"; "pretext", the lowest loss; or the best validation of "classification" (accuracy), "link" (area
            under the ROC curve) or "clustering" (NMI). Of several, the weights are in the end those of the first.
        tasks: what the last three are measured by.
        eval_every: epochs between looks; the last is looked at, too.
        warmup: share of the steps in which the rate rises, after which it falls to 0 as half a cosine; None: constant.
        seed: of dropout, views and batches.

    Raises:
        ValueError: a rule without its task, options out of range, or batches that are empty.
        TypeError: a method without ``loss`` or ``embed``.
        FloatingPointError: the loss is no longer finite.

    Source: arXiv:2406.08310. deviation: the official code chooses a checkpoint by its probe's test accuracy.

    Example:
        >>> from torch_geometric.nn import GCN
        >>> from heldout.tasks import BlockModel
        >>> from heldout.train import CCASSG
        >>> method = CCASSG(GCN(64, 32, 2, 16))
        >>> history = pretrain_graph(method, BlockModel(nodes=100).sample(0), epochs=4, stop="pretext", eval_every=2)
        >>> [record["epoch"] for record in history.records], history.kept["pretext"].epoch in (2, 4)
        ([2.0, 4.0], True)
    """
    check_has("loss", "embed", method=method)
    check_has("x", "edge_index", "num_nodes", data=data)
    check_at_least(1, epochs=epochs, size=size, eval_every=eval_every)
    check_at_least(0, seed=seed)
    check_fraction(warmup=warmup)
    rules: list[PretrainingStop] = [stop] if isinstance(stop, str) else list(stop)  # type: ignore[list-item]
    check_nonempty(stop=rules)
    for rule in rules:
        check_one_of(PRETRAINING_STOPS, stop=rule)
    judged = [rule for rule in rules if rule in GRAPH_TASKS]
    for rule in judged:
        if tasks is None or rule not in tasks.known:
            raise ValueError(f"tasks must hold what {rule!r} is measured by, to stop by it")
    generator = torch.Generator(device=data.x.device).manual_seed(seed)
    batches = _batches(data, batch, size, seed)
    if optimizer is None:
        optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=0.01, weight_decay=1e-5)
    total = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, total, warmup))
    if data.x.is_cuda:
        torch.cuda.reset_peak_memory_stats(data.x.device)
    records, kept = list[dict[str, float]](), dict[PretrainingStop, KeptEpoch]()
    steps, nodes, spent, losses = 0, 0, 0.0, list[Tensor]()
    with seeded(seed):
        for epoch in range(1, epochs + 1):
            begun = time.perf_counter()
            method.train()
            for part in batches:
                optimizer.zero_grad()
                loss = method.loss(part, generator=generator)  # type: ignore[operator]
                loss.backward()
                optimizer.step()
                schedule.step()
                steps, nodes = steps + 1, nodes + len(part.x)
                if callable(after := getattr(method, "after_step", None)):
                    after(min(1.0, steps / total))
                losses.append(loss.detach())
            spent += time.perf_counter() - begun
            if epoch % eval_every and epoch < epochs:
                continue
            if not losses:
                raise ValueError("batch must yield batches, got none")
            record = {"epoch": float(epoch), "loss": float(torch.stack(losses).mean())}
            if not math.isfinite(record["loss"]):
                raise FloatingPointError(f"the loss is {record['loss']} at epoch {epoch}: lower the learning rate")
            losses.clear()
            if judged and tasks is not None:
                record |= tasks.measure(method.embed(data), judged, seed)  # type: ignore[arg-type, operator]
            records.append(record)
            _keep(method, rules, record, kept)
    method.load_state_dict(kept[rules[0]].state)
    method.eval()
    peak = torch.cuda.max_memory_allocated(data.x.device) if data.x.is_cuda else None
    return PretrainingHistory(records, kept, steps, nodes / max(spent, 1e-9), peak)


def _batches(data: Any, batch: Any, size: int, seed: int) -> Any:
    """What is gone through in an epoch."""
    if not isinstance(batch, str):
        check_has("__iter__", "__len__", batch=batch)
        check_nonempty(batch=batch)
        return batch
    check_one_of(("full", "node", "subgraph"), batch=batch)
    if batch == "full":
        return [data]
    kind = NeighbourBatches if batch == "node" else SubgraphBatches
    return kind(data, size, generator=torch.Generator().manual_seed(seed))


def _keep(
    method: nn.Module,
    rules: Sequence[PretrainingStop],
    record: Mapping[str, float],
    kept: dict[PretrainingStop, KeptEpoch],
) -> None:
    """Takes the weights for every rule that likes them better than those it has; of equal ones the first stay."""
    state: dict[str, Tensor] | None = None
    for rule in rules:
        if rule == "last":
            score, better = math.nan, True
        elif rule == "pretext":
            score = record["loss"]
            better = rule not in kept or score < kept[rule].score
        else:
            score = record[f"val_{GRAPH_TASKS[rule]}"]
            better = rule not in kept or score > kept[rule].score
        if better:
            state = state or copy.deepcopy(method.state_dict())
            kept[rule] = KeptEpoch(int(record["epoch"]), score, state)


def _rate(step: int, steps: int, warmup: float | None) -> float:
    """Share of the rate at a step: up to 1 within the warm-up, then down to 0 as half a cosine."""
    if warmup is None:
        return 1.0
    rising = warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    return (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1.0, steps - rising)))) / 2
