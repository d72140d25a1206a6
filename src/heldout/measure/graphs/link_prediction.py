"""Core: How well links that were held out are told from pairs without one, by a decoder on frozen embeddings.

Source: arXiv:2406.08310 (Xu et al., 2024), the protocol of link prediction.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.data import LinkSplit
from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_nonnegative,
    check_one_of,
    check_positive,
    check_values,
    checked,
)


class LinkProbe(NamedTuple):
    """How well links are told from pairs without one.

    Attributes:
        auc: area under the ROC curve on the links to test on, at the epoch below.
        ap: average precision on them.
        val_auc: the best area on the links to choose by.
        epoch: that has it, the first of those that do; 0 without a training.

    Example:
        >>> LinkProbe(0.9, 0.88, 0.91, 30).auc
        0.9
    """

    auc: float
    ap: float
    val_auc: float
    epoch: int


@checked
def probe_link_prediction(
    h: Tensor,
    split: LinkSplit,
    seed: int = 0,
    *,
    decoder: Literal["mlp", "dot"] = "mlp",
    epochs: int = 300,
    width: int = 256,
    dropout: float = 0.5,
    lr: float = 0.01,
    weight_decay: float = 0.0,
    batch_size: int = 65_536,
) -> LinkProbe:
    """Returns how well a decoder of ``h_u * h_v`` tells held-out links from as many pairs without one.

    The decoder has two layers, and is trained by Adam on the training edges and as many random pairs, drawn anew for
    each batch, of any nodes or of ends of training edges as the split's ``negatives`` say; gradients are clipped at a
    norm of 1. "dot" sums ``h_u * h_v`` and trains nothing. What ``h`` was made with is the caller's: an encoder that
    saw ``split.edge_index`` alone knows no held-out link.

    Args:
        h: embeddings, ``(nodes, dim)``, made by whatever model, taken as they are.
        split: of ``heldout.data.split_links``.
        seed: of weights, dropout, order and random pairs.
        decoder: "mlp" or "dot".
        epochs, width, dropout, lr, weight_decay, batch_size: of the training; a batch counts edges.

    Raises:
        ValueError: embeddings that are not finite or not of the split's nodes, or options out of range.

    Source: arXiv:2406.08310; official code.

    Example:
        >>> from heldout.data import split_links
        >>> from heldout.tasks import BlockModel
        >>> graph = BlockModel(nodes=200, degree=10.0).sample(0)
        >>> split = split_links(graph)
        >>> h = torch.nn.functional.one_hot(graph.y).float()
        >>> probe_link_prediction(h, split, decoder="dot").auc > 0.8
        True
    """
    check_dimensions(2, h=h)
    check_values(h=h)
    check_one_of(("mlp", "dot"), decoder=decoder)
    check_at_least(1, epochs=epochs, width=width, batch_size=batch_size)
    check_at_least(0, seed=seed)
    check_positive(lr=lr)
    check_nonnegative(weight_decay=weight_decay)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    if len(h) != split.num_nodes:
        raise ValueError(f"h must have a row for each of {split.num_nodes} nodes of split, got {len(h)}")
    x = h.detach().float()
    held = {
        name: [_products(x, pairs) for pairs in parts]
        for name, parts in (("val", (split.val, split.val_negatives)), ("test", (split.test, split.test_negatives)))
    }
    if decoder == "dot":
        scores = {name: [each.sum(1) for each in both] for name, both in held.items()}
        return LinkProbe(_auc(*scores["test"]), _ap(*scores["test"]), _auc(*scores["val"]), 0)
    generator = torch.Generator(device=x.device).manual_seed(seed)
    weights = _layer(x.shape[1], width, generator) + _layer(width, 1, generator)
    optimizer = torch.optim.Adam(weights, lr=lr, weight_decay=weight_decay)
    best, kept = (-1.0, 0), [each.detach().clone() for each in weights]
    train = split.train.to(x.device)
    with torch.enable_grad():
        for epoch in range(1, epochs + 1):
            order = torch.randperm(train.shape[1], generator=generator, device=x.device)
            for rows in order.split(batch_size):
                alike = train.flatten() if split.negatives == "degree" else None
                pairs = _random_pairs(len(rows), len(x), generator, alike)
                inputs = torch.cat([_products(x, train[:, rows]), _products(x, pairs)])
                wanted = torch.cat([torch.ones_like(rows), torch.zeros_like(rows)]).float()
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(_decoded(inputs, weights, dropout, generator), wanted).backward()
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
            with torch.no_grad():
                auc = _auc(*(_decoded(each, weights) for each in held["val"]))
            if auc > best[0]:
                best, kept = (auc, epoch), [each.detach().clone() for each in weights]
    found = [_decoded(each, kept) for each in held["test"]]
    return LinkProbe(_auc(*found), _ap(*found), *best)


def _products(x: Tensor, pairs: Tensor) -> Tensor:
    first, second = pairs.to(x.device)
    return x[first] * x[second]


def _random_pairs(count: int, nodes: int, generator: torch.Generator, ends: Tensor | None = None) -> Tensor:
    """Pairs of different nodes, or of random ends; few of many are links."""
    if ends is not None:
        return ends[torch.randint(len(ends), (2, count), generator=generator, device=generator.device)]
    first = torch.randint(nodes, (count,), generator=generator, device=generator.device)
    step = torch.randint(1, max(nodes, 2), (count,), generator=generator, device=generator.device)
    return torch.stack([first, (first + step) % nodes])


def _layer(inputs: int, outputs: int, generator: torch.Generator) -> list[Tensor]:
    def drawn(*shape: int) -> Tensor:
        uniform = torch.rand(*shape, generator=generator, device=generator.device)
        return ((2 * uniform - 1) / math.sqrt(inputs)).requires_grad_()

    return [drawn(inputs, outputs), drawn(outputs)]


def _decoded(
    inputs: Tensor, weights: list[Tensor], dropout: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    hidden = (inputs @ weights[0] + weights[1]).relu()
    if dropout:
        kept = torch.rand(hidden.shape, generator=generator, device=hidden.device) >= dropout
        hidden = hidden * kept / (1 - dropout)
    return (hidden @ weights[2] + weights[3])[:, 0]


def _auc(positive: Tensor, negative: Tensor) -> float:
    """Share of the pairs of a link and no link that are in order; ties count half."""
    ordered = negative.double().sort().values
    scores = positive.double().contiguous()
    below = torch.searchsorted(ordered, scores) + torch.searchsorted(ordered, scores, right=True)
    return float(below.double().mean() / (2 * len(ordered)))


def _ap(positive: Tensor, negative: Tensor) -> float:
    from sklearn.metrics import average_precision_score

    labels = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).numpy()
    return float(average_precision_score(labels, torch.cat([positive, negative]).cpu().double().numpy()))
