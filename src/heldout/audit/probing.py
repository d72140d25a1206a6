"""What each layer of a transformers model knows: of the next token in a language model, of the label in a classifier.

Source: logit lens and induction heads as arXiv:2405.15071 and 2209.11895 use them; linear probes, arXiv:1610.01644.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from heldout.audit.judging import Threshold
from heldout.audit.work import PROBED, Audit, NotApplicableError
from heldout.data import gather
from heldout.measure import hidden_states, linear_probe, logit_lens, mean_reciprocal_rank, prefix_matching
from heldout.nn import decoder_parts
from heldout.problem import Texts
from heldout.statistics import newcombe, wilson

READ = 64  # texts that the logit lens reads
DECIDED = 0.9  # of the last layer's mean reciprocal rank
LEAST = 40  # training examples of a linear classifier
REPEATED = 24  # tokens that are read twice over, by which heads are told that continue what they have seen


def probes(work: Audit) -> None:
    """Adds what is known at each layer of a decoder of transformers."""
    module = work.differentiated()
    if not hasattr(module, "get_input_embeddings") or not hasattr(module, "config"):
        raise NotApplicableError("it looks into the blocks of a model of transformers")
    try:
        blocks = len(decoder_parts(module).blocks)
    except ValueError as error:
        raise NotApplicableError(f"it looks into the blocks of a decoder: {error}") from error
    if work.problem.kind.name == "language":
        _next_token(work, module, blocks)
    else:
        _label(work, module, blocks)


def _next_token(work: Audit, module: Any, blocks: int) -> None:
    texts, ranks = work.problem.splits.test[work.given], []
    if not isinstance(texts, Texts):
        raise NotApplicableError("it reads texts")
    for row in texts.encoded[:READ]:
        where = int((row["labels"][1:] >= 0).nonzero()[0]) if bool((row["labels"][1:] >= 0).any()) else None
        if where is not None:
            ids = row["input_ids"][None, : where + 1].to(next(module.parameters()).device)
            ranks.append(logit_lens(module, ids, row["labels"][where + 1][None].to(ids.device), -1).ranks)
    if not ranks:
        raise NotApplicableError(f"no token of {work.given} counts")
    found = mean_reciprocal_rank(torch.cat(ranks, 1)).tolist()
    decided = next(layer for layer, value in enumerate(found) if value >= DECIDED * found[-1])
    try:
        induction = float(prefix_matching(module, seq_len=REPEATED, batch=8, seed=work.seed).max())
    except ValueError:  # a model without attention weights, or with too few tokens
        induction = math.nan
    work.document["probes"] = {
        "what": "mean reciprocal rank of the first token that counts",
        "layers": found,
        "decided": decided,
        "induction": None if math.isnan(induction) else induction,
        "examples": len(ranks),
    }
    reading = (
        f"layer of {blocks} from which on the first token of the answer stands nearly where the model puts it at the "
        f"end, over {len(ranks)} texts of {work.given}: what comes behind can often be left out, or adapted alone"
    )
    work.finding("layer at which the answer is decided", float(decided), reading)
    if not math.isnan(induction):
        uniform = sum(1 / (REPEATED + place + 1) for place in range(REPEATED)) / REPEATED
        reading = (
            f"attention of its best head to what followed the same token before; heads that look everywhere alike have "
            f"{uniform:.2f}. It is what answers by example in the prompt rest on"
        )
        work.finding("copying from the context (prefix matching)", induction, reading)


def _label(work: Audit, module: Any, blocks: int) -> None:
    if work.problem.task != "classification":
        raise NotApplicableError(f"it needs classes, this is {work.problem.kind.name}")
    known, labels = _ids(work.probed())
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(work.seed))
    read, kept = chosen[len(labels) // 4 :], chosen[: len(labels) // 4]
    if len(labels) < LEAST or len(labels[read].unique()) < 2:
        raise NotApplicableError(f"it needs {LEAST} training examples, of two classes at least")
    shares = []
    for layer in range(blocks + 1):
        states = hidden_states(module, known, layer, pool="mean").float()
        shares.append(linear_probe(states[read], labels[read], states[kept], labels[kept]))
    best = max(range(len(shares)), key=shares.__getitem__)
    features = hidden_states(module, known, best, pool="mean").float()
    table: dict[str, Any] = {}
    for name in work.looked_at():
        dataset = work.problem.splits.test[name]
        ids, targets = _ids(Subset(dataset, range(min(PROBED, len(dataset)))))  # type: ignore[arg-type]
        share = linear_probe(features, labels, hidden_states(module, ids, best, pool="mean").float(), targets)
        right = work.of(name)[0][: len(ids)].argmax(1) == work.of(name)[1][: len(ids)]
        probe, own = (wilson(round(value * len(ids)), len(ids)) for value in (share, float(right.double().mean())))
        table[name] = {"probe": share, "model": own.estimate, "examples": len(ids)}
        gain = newcombe(probe, own)
        reading = (
            f"how much better a linear classifier of layer {best} of {blocks} is on {name} than the model itself "
            f"({share:.1%}; it learned from {len(labels)} training examples, of which it chose the layer): the "
            "layers behind it lose what the label needs"
        )
        work.finding(
            f"linear probe against the model on {name}", gain.estimate, reading, low=gain.low, high=gain.high,
            limits=Threshold(0.03, 0.1, "3 and 10 points of accuracy"),
            remedy=f"train a new head on layer {best}, or less of the layers before it",
        )  # fmt: skip
    what = "accuracy of a linear classifier on held-out training examples"
    work.document["probes"] = {"what": what, "layers": shares, "sets": table}


def _ids(dataset: Any) -> tuple[list[list[int]], Tensor]:
    """Token ids without padding, and targets."""
    inputs, targets = gather(dataset, torch.arange(len(dataset)))
    given: Mapping[str, Any] = inputs if isinstance(inputs, Mapping) else {"input_ids": inputs}
    inputs, mask = given.get("input_ids"), given.get("attention_mask")
    if not isinstance(inputs, Tensor) or inputs.is_floating_point() or inputs.ndim != 2:
        raise NotApplicableError("it reads token ids")
    kept = torch.ones_like(inputs, dtype=torch.bool) if mask is None else mask.bool()
    return [row[keep].tolist() for row, keep in zip(inputs, kept, strict=True)], targets
