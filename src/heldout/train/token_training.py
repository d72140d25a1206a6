"""Core: Long training of a small language model on rows of tokens, which may be killed and goes on where it stood.

Grokking takes many times the steps that memorising takes; this is the loop for it, with records on the way.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_labels,
    check_nonempty,
    check_nonnegative,
    check_same_length,
    checked,
)
from heldout.method import evaluating, forward
from heldout.train.supervised import seeded

_FORMAT = 1
Rows = tuple[Tensor, Tensor]


@checked
def train_tokens(
    model: nn.Module,
    rows: Rows,
    *,
    steps: int,
    batch_size: int = 512,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.98),
    warmup: int = 0,
    every: int = 100,
    evaluate: Mapping[str, Rows] | None = None,
    measure: Callable[[nn.Module], Mapping[str, float]] | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
) -> Iterator[dict[str, float]]:
    """Trains a causal model in place by AdamW at a constant rate, and yields a record every few steps.

    With ``checkpoint`` a run that was killed goes on from its last record when it is called again, and gives the same
    numbers as one that was not: the records of before come first. Leave the ``for`` loop to stop early. A step is one
    forward and one backward pass over ``batch_size`` rows without their last token.

    Args:
        model: token ids ``(batch, length)`` -> logits ``(batch, length, vocabulary)``, or an output with ``logits``.
        rows: token ids, int64 ``(rows, length)``, and which of them count, bool ``(rows, length)``; the others are read
            but not asked for. Each epoch has an order of its own.
        steps: most steps to make.
        weight_decay: of AdamW, on all parameters.
        warmup: steps in which the rate grows.
        every: steps between records; the last step is recorded, too.
        evaluate: rows by name, whose accuracy is recorded: of the first token of a row that counts.
        measure: from the model in eval mode to further entries of the record.
        checkpoint: a file, which is written at every record.
        seed: of the order of the rows, and of dropout.

    Yields:
        ``{"step": steps made, "loss": of the last of them, name: accuracy, ...}``.

    Raises:
        ValueError: rows without tokens that count, options out of range, a loss that is not finite, or a checkpoint of
            other rows or options, or of more steps.

    Example:
        >>> from heldout.tasks import composition_facts
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> world = composition_facts(6, 2, 2, phi=1.0)
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=len(world.vocab), n_embd=32, n_layer=1, n_head=2))
        >>> records = list(train_tokens(model, world.train, steps=60, lr=0.01, evaluate={"train": world.train}))
        >>> records[-1]["step"], records[-1]["train"] > 0.9
        (60, True)
    """
    check_at_least(1, steps=steps, batch_size=batch_size, every=every)
    check_at_least(0, warmup=warmup)
    check_nonnegative(lr=lr, weight_decay=weight_decay, betas=betas)
    sets = dict(evaluate or {})
    if reserved := {"step", "loss"} & set(sets):
        raise ValueError(f"an evaluation set cannot be named {reserved.pop()!r}: the record has that entry already")
    for name, part in {"rows": rows, **{f"evaluate[{name!r}]": part for name, part in sets.items()}}.items():
        _check_rows(name, part)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    check_nonempty(**{"model.parameters()": parameters})
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
    told = {
        "rows": [hashlib.sha256(part.cpu().numpy().tobytes()).hexdigest() for part in rows],
        "options": [batch_size, lr, weight_decay, *betas, warmup, every, seed],
    }
    records = _resume(checkpoint, model, optimizer, told)
    start = int(records[-1]["step"]) if records else 0
    if start > steps:
        raise ValueError(f"steps must be at least {start}, where checkpoint {checkpoint} stands, got {steps}")
    yield from records
    ids, targets = rows[0][:, :-1], torch.where(rows[1], rows[0], -100)[:, 1:]
    order = _Order(len(ids), seed)
    while start < steps:
        end = min(start - start % every + every, steps)
        model.train()
        with seeded(seed):
            for step in range(start, end):
                torch.manual_seed(_mixed(seed, step))  # a step does not depend on where the run was taken up
                for group in optimizer.param_groups:
                    group["lr"] = lr * min(1.0, (step + 1) / max(1, warmup))
                chosen = order.rows(step * batch_size, batch_size).to(ids.device)
                optimizer.zero_grad()
                logits = forward(model, ids[chosen])
                loss = F.cross_entropy(logits.flatten(0, 1), targets[chosen].flatten())
                loss.backward()
                optimizer.step()
        value = loss.item()
        if not math.isfinite(value):
            raise ValueError(f"the loss is {value} at step {end}: lower lr ({lr})")
        record = {"step": end, "loss": value} | {name: answer_accuracy(model, part) for name, part in sets.items()}
        if measure is not None:
            with evaluating(model):
                record |= {name: float(entry) for name, entry in measure(model).items()}
        records.append(record)
        start = end
        if checkpoint is not None:
            _write(Path(checkpoint), model, optimizer, told, records)
        yield record


@checked
def answer_accuracy(model: nn.Module, rows: Rows, *, batch_size: int = 4096) -> float:
    """Returns the share of rows whose first token that counts is the model's first choice.

    Args:
        model: token ids -> logits, as for ``train_tokens``; in eval mode meanwhile.
        rows: token ids and which of them count.
        batch_size: rows at a time.

    Raises:
        ValueError: no rows, or rows without a token that counts.

    Example:
        >>> says_next = nn.Embedding.from_pretrained(torch.eye(4).roll(1, 1))
        >>> answer_accuracy(says_next, (torch.tensor([[0, 1], [1, 3]]), torch.tensor([[False, True]] * 2)))
        0.5
    """
    _check_rows("rows", rows)
    check_at_least(1, batch_size=batch_size)
    right = 0
    with evaluating(model), torch.no_grad():
        for ids, counts in zip(rows[0].split(batch_size), rows[1].split(batch_size), strict=True):
            place = counts.long().argmax(1, keepdim=True)
            said = forward(model, ids[:, :-1]).argmax(-1).gather(1, place - 1)
            right += int((said == ids.gather(1, place)).sum())
    return right / len(rows[0])


class _Order:
    """Rows in the order in which training sees them: all of them in one random order, then in another."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self.epoch, self.permuted = -1, torch.empty(0)

    def rows(self, first: int, count: int) -> Tensor:
        taken = []
        while count:
            epoch, at = divmod(first, self.count)
            if epoch != self.epoch:
                generator = torch.Generator().manual_seed(_mixed(self.seed, epoch))
                self.epoch, self.permuted = epoch, torch.randperm(self.count, generator=generator)
            taken.append(self.permuted[at : at + count])
            first, count = first + len(taken[-1]), count - len(taken[-1])
        return torch.cat(taken)


def _mixed(seed: int, number: int) -> int:
    return (seed * 1_000_003 + number) % 2**62


def _check_rows(name: str, rows: Rows) -> None:
    ids, counts = rows
    check_labels(**{name: ids})
    check_dimensions(2, **{name: ids})
    check_nonempty(**{name: ids})
    check_same_length(**{f"{name}[0]": ids, f"{name}[1]": counts})
    if counts.shape != ids.shape or counts.dtype != torch.bool:
        raise ValueError(f"{name} must tell for each token whether it counts, as bool {tuple(ids.shape)}")
    if not bool((counts.any(1) & ~counts[:, 0]).all()):
        raise ValueError(f"{name} must have a token that counts in every row, and not the first")


def _resume(
    file: str | Path | None, model: nn.Module, optimizer: torch.optim.Optimizer, told: dict[str, Any]
) -> list[dict[str, float]]:
    if file is None or not Path(file).is_file():
        return []
    kept = torch.load(file, weights_only=True)
    if not isinstance(kept, dict) or kept.get("format") != _FORMAT:
        raise ValueError(f"checkpoint {file} is not one of train_tokens")
    if differing := [name for name, value in told.items() if kept["told"][name] != value]:
        raise ValueError(f"checkpoint {file} is of a run with other {' and '.join(differing)}")
    model.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    return kept["records"]


def _write(
    file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, told: dict[str, Any], records: list[Any]
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    kept = {"format": _FORMAT, "told": told, "records": records}
    torch.save(kept | {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, partial)
    partial.replace(file)
