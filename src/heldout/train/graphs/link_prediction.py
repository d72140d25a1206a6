"""Core: Training of a link predictor on the descriptions of entities, each encoded once a batch.

Source: arXiv:2010.03496 (Daza, Cochez, Groth, WWW 2021), section 4, and the official code's ``train.py``.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from heldout.data import in_batch_corruptions
from heldout.errors import (
    check_at_least,
    check_fraction,
    check_has,
    check_labels,
    check_nonempty,
    check_positive,
    check_same_length,
    checked,
)
from heldout.measure import rank_triples


@checked
def fit_link_predictor(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    triples: Tensor,
    *,
    val: Tensor | None = None,
    candidates: Tensor | None = None,
    epochs: int = 40,
    batch_size: int = 64,
    num_negatives: int = 64,
    lr: float = 2e-5,
    warmup: float | None = 0.2,
    optimizer: torch.optim.Optimizer | None = None,
    pieces: int = 1,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Trains a link predictor in place by Adam, with corruptions from the batch, and returns a record of each epoch.

    With ``val`` the model ends with the weights of the epoch with the best raw validation MRR. Floor of a step: a
    forward and a backward pass over the different entities of a batch, at most twice its triples.

    Args:
        model: ``heldout.nn.InductiveLinkPredictor``; parameters without ``requires_grad`` stay.
        ids, mask: descriptions of all entities, ``(entities, length)``, or hidden states with a further axis; new
            entities' are looked at for ``val`` alone.
        triples: to train on, int64 ``(n, 3)``: head, relation, tail; at least 2.
        val: triples to choose the epoch by; default: the last epoch stays.
        candidates: entities that ``val`` is ranked among, int64; default: all.
        epochs, batch_size, num_negatives, lr: of the training. A last batch of one triple is left out.
        optimizer: in the place of Adam at ``lr``, for parameters with rates of their own.
        warmup: share of the steps in which the rate rises, after which it falls to 0, both linearly; None: constant.
        pieces: parts, by length, in which the descriptions of a batch are encoded, so that less is padding.
        seed: of order and corruptions; dropout follows torch's own state.

    Returns:
        ``{"epoch", "loss"}`` and, with ``val``, ``"mrr"``, for each epoch from 1.

    Raises:
        ValueError: fewer than 2 triples, entities without a description, options out of range, or a loss that is not
            finite.

    Source: arXiv:2010.03496, section 5.1: 2e-5 with 20 % warm-up for BERT, 1e-4 without a schedule for the others.

    Example:
        >>> from heldout.nn import BagOfWordsEncoder, InductiveLinkPredictor
        >>> ids = torch.arange(1, 7)[:, None] + torch.arange(3)
        >>> triples = torch.tensor([[i, 0, (i + 1) % 6] for i in range(6)])
        >>> model = InductiveLinkPredictor(BagOfWordsEncoder(torch.randn(9, 4)), num_relations=1)
        >>> history = fit_link_predictor(model, ids, torch.ones(6, 3), triples, epochs=2, num_negatives=3, lr=0.1)
        >>> [record["epoch"] for record in history]
        [1.0, 2.0]
    """
    check_has("encode", "loss_of_vectors", "scores", model=model)
    check_at_least(1, epochs=epochs, num_negatives=num_negatives, pieces=pieces)
    check_at_least(2, batch_size=batch_size)
    check_positive(lr=lr)
    check_fraction(warmup=warmup)
    check_nonempty(ids=ids)
    check_same_length(ids=ids, mask=mask)
    for name, part in (("triples", triples), ("val", triples if val is None else val)):
        if part.ndim != 2 or part.shape[1] != 3 or len(part) < (2 if name == "triples" else 1):
            raise ValueError(
                f"{name} must be at least {2 if name == 'triples' else 1} rows of 3, got {tuple(part.shape)}"
            )
        check_labels(**{name: part})
        check_labels(len(ids), **{name: part[:, [0, 2]]})
    if optimizer is None:
        optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=lr)
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * _steps(len(triples), batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps, warmup))
    history, best, kept = list[dict[str, float]](), -math.inf, None
    for epoch in range(1, epochs + 1):
        model.train()
        losses = []
        for rows in torch.randperm(len(triples), generator=generator).split(batch_size):
            if len(rows) < 2:
                continue
            batch = triples[rows.to(triples.device)].to(ids.device)
            corrupted = in_batch_corruptions(len(batch), num_negatives, generator).to(ids.device)
            ends = _encoded(model, ids, mask, batch[:, [0, 2]], pieces)
            loss = model.loss_of_vectors(ends, batch[:, 1], corrupted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        record = {"epoch": float(epoch), "loss": float(torch.stack(losses).mean())}
        if not math.isfinite(record["loss"]):
            raise ValueError(f"lr must be lower: the loss is {record['loss']} in epoch {epoch}, got {lr}")
        if val is not None:
            vectors = embed_entities(model, ids, mask)
            record["mrr"] = rank_triples(model, val, vectors, candidates=candidates).mrr
            if record["mrr"] > best:
                best, kept = record["mrr"], copy.deepcopy(model.state_dict())
        history.append(record)
    if kept is not None:
        model.load_state_dict(kept)
    model.eval()
    return history


@checked
def embed_entities(model: Any, ids: Tensor, mask: Tensor, *, batch_size: int = 64) -> Tensor:
    """Returns the vectors of all entities ``(entities, dim)`` by ``model.embed``, encoded by length, in their order.

    Args:
        model: ``heldout.nn.InductiveLinkPredictor``.
        ids, mask: descriptions, ``(entities, length)``, or hidden states with a further axis.
        batch_size: descriptions at a time.

    Raises:
        ValueError: no descriptions, or an empty one.

    Example:
        >>> from heldout.nn import BagOfWordsEncoder, InductiveLinkPredictor
        >>> model = InductiveLinkPredictor(BagOfWordsEncoder(torch.randn(9, 4)), num_relations=1)
        >>> embed_entities(model, torch.ones(5, 3, dtype=torch.int64), torch.ones(5, 3)).shape
        torch.Size([5, 4])
    """
    check_has("embed", model=model)
    check_nonempty(ids=ids)
    check_same_length(ids=ids, mask=mask)
    check_at_least(1, batch_size=batch_size)
    order = mask.sum(1).argsort(stable=True)
    vectors = model.embed([(ids[rows], mask[rows]) for rows in order.split(batch_size)])
    return vectors[order.argsort()]


def _encoded(model: Any, ids: Tensor, mask: Tensor, ends: Tensor, pieces: int) -> Tensor:
    """Vectors of both ends of triples ``(B, 2, dim)``, each entity encoded once, entities of like length together."""
    entities, place = ends.unique(return_inverse=True)
    if pieces == 1:
        return model.encode(ids[entities], mask[entities])[place]
    order = mask[entities].sum(1).argsort(stable=True)
    parts = [
        model.encode(ids[entities[rows]], mask[entities[rows]]) for rows in order.tensor_split(pieces) if len(rows)
    ]
    return torch.cat(parts)[order.argsort()][place]


def _steps(triples: int, batch_size: int) -> int:
    return triples // batch_size + (triples % batch_size > 1)


def _rate(step: int, steps: int, warmup: float | None) -> float:
    """Share of the rate at a step: up to 1 within the warm-up, then down to 0."""
    if warmup is None:
        return 1.0
    rising = warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    return max(0.0, (steps - step) / max(1.0, steps - rising))
