"""Repeated data: is there a worst number of repeats, and does it cost more of copying than of the loss?

Claim. Where a small part of the data is repeated and the rest is unique, the test loss has a peak at an intermediate
number of repeats: an 800M model falls to one of half its size. Copying and induction heads suffer more than the loss.
Source: arXiv:2205.10487 (Hernandez et al.). Restated: the worst of 10 to 1,000 repeats has a test loss above those of 1
and of 10,000 repeats by 0.01 nat; it is worth at most 0.8 of its size; its strongest induction head matches at most 0.8
of what that of unique data does; half-way through its training the repeated part is being learned by heart: its loss
has gone 20 to 80 % of the way to zero; and at 10,000 repeats copying is worth less than the loss is, by 0.01 of the
size. The way to zero begins at the loss on new data at the same step: from the first step on, learning the language
alone would count as a part of it.

World. ``copying_language``: 64 tokens of 3.5 nats, in sequences of 32, each of which copies 8 to 15 tokens of itself.
And, judged by itself, the bytes of Python's standard library, without docstrings, in blocks of 32; whole modules are
held out. Tests never hold what is repeated: they are other samples, or other modules without the blocks that training
has as well, about one of a hundred.

Arms. All see the same number of tokens, half of them from the repeated part: 1, 10, 100, 1,000 or 10,000 times (as
near as whole sequences come to it, ``repeats``: three of them 10,667 times, two blocks of code 8,000 times). At 1 all
data are unique. ``peak`` is the worst of 10, 100 and 1,000 on validation sequences, judged on the test sequences. A
size is that of the blocks. What a loss is worth is read between networks of four widths, trained on unique data with
the same seed; the last of them is ``1x``, worth 1 by construction. Nothing is extrapolated: a loss above the smallest
network's has the worth of that one, an upper bound. Where the loss and copying are both beyond the same end, which is
worth less is open: so it may be at the peak, and copying is judged at 10,000 repeats, where the harm is smaller.

Deviations. 55,000 parameters and 2 million tokens, one of code. So that networks of this size copy within the budget:
Llama's blocks with rotary positions, a warm-up and four times the rate, shorter sequences that all hold a copy, of a
language with a nat more a token. No arm repeats a tenth of the tokens, the paper's main share: 100 times did no harm on
a development seed. Copying is that of a text, as in the paper, given twice: on random tokens a network that knows the
language and does not copy is worse the better it knows it. No power law: learning to copy is a jump. No transfer to a
second domain and no network of one layer. Brown's corpus is no installed source.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from heldout.data import RepeatSchedule
from heldout.measure import copying_loss, interpolated_size, prefix_matching, token_blocks
from heldout.method import evaluating
from heldout.study import Study, at_least, at_most, better, cheaper, higher_is_better, log_curve, lower_is_better
from heldout.tasks import copying_language, stdlib_code
from heldout.train import seeded

LENGTH, BATCH, WIDTH, LADDER = 32, 64, 48, (16, 24, 32, 48)
UNIFORM = sum(1 / seen for seen in range(LENGTH // 2 + 1, LENGTH + 1)) / (LENGTH // 2)  # attention, as it is matched
RECORDS = 32  # evaluations on the way
WARMUP = 50  # steps
# steps on the language (half of them on code), sequences of validation, of the test, of an evaluation on the way
SIZES = {"smoke": (6, 20, 40, 8), "laptop": (1000, 1000, 3000, 128)}


class World(NamedTuple):
    """Tokens ``(sequences, length)``: the pool that training draws from, validation and test."""

    train: Tensor
    val: Tensor
    test: Tensor
    vocab: int


def steps_of(cell: str, profile: str) -> int:
    return SIZES[profile][0] // (2 if cell == "code" else 1)


@functools.lru_cache(maxsize=2)
def world(cell: str, seed: int, profile: str) -> World:
    steps, (_, val, test, _) = steps_of(cell, profile), SIZES[profile]
    generator = torch.Generator().manual_seed(seed)
    if cell == "language":
        language = copying_language(seed=generator)
        parts = [
            language.sample(count, LENGTH, copy=1.0, least=8, most=15, seed=generator)
            for count in (steps * BATCH, val, test)
        ]
        return World(*parts, vocab=64)  # type: ignore[arg-type, misc]
    pools: list[Tensor] = []
    for part, count in (("train", steps * BATCH), ("calibration", val), ("eval", test)):
        blocks = token_blocks(stdlib_code(part), lambda text: list(text.encode()), LENGTH)  # type: ignore[arg-type]
        blocks = blocks[torch.randperm(len(blocks), generator=generator)[: 2 * count]]
        trained_on = {tuple(row) for row in pools[0].tolist()} if pools else set()
        pools.append(blocks[[i for i, row in enumerate(blocks.tolist()) if tuple(row) not in trained_on][:count]])
    return World(*pools, vocab=256)  # type: ignore[arg-type, misc]


def network(width: int, vocab: int, seed: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=round(width / 3) * 8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        initializer_range=0.08,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    with seeded(seed):
        return LlamaForCausalLM(config)


def loss_of(model: nn.Module, rows: Tensor) -> Tensor:
    return F.cross_entropy(model(rows).logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def mean_loss(model: nn.Module, rows: Tensor) -> float:
    with evaluating(model):
        return sum(loss_of(model, part).item() * len(part) for part in rows.split(128)) / len(rows)


class Trained(NamedTuple):
    """What was measured of one network, and its course: step, loss on the repeated part, loss on new sequences."""

    size: float
    repeats: float
    val: float
    test: float
    copying: float
    matching: float
    course: tuple[tuple[int, float, float], ...]


@functools.lru_cache(maxsize=32)
def trained(cell: str, repeats: int, fraction: float, width: int, seed: int, profile: str) -> Trained:
    data, steps, looked_at = world(cell, seed, profile), steps_of(cell, profile), SIZES[profile][3]
    draws = round(fraction * steps * BATCH)
    schedule = RepeatSchedule(data.train, steps * BATCH, fraction, min(repeats, draws), seed=seed)  # type: ignore[arg-type]
    repeated, fresh = data.train[schedule.subset[:looked_at]], data.val[:looked_at]
    model = network(width, data.vocab, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    schedule_lr = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, (1 + math.cos(math.pi * step / steps)) / 2)
    )
    course, every = [], max(1, steps // RECORDS)
    for step, rows in enumerate(data.train[list(schedule)].split(BATCH), 1):
        optimizer.zero_grad()
        loss_of(model, rows).backward()
        optimizer.step()
        schedule_lr.step()
        if step % every == 0:
            course.append((step, mean_loss(model, repeated), mean_loss(model, fresh)))
    return Trained(
        size=float(sum(parameter.numel() for parameter in model.model.layers.parameters())),
        repeats=float(schedule.summary()["repeats"]),
        val=mean_loss(model, data.val),
        test=mean_loss(model, data.test),
        copying=copying_loss(model, data.test[:300, : LENGTH // 2], copies=2, batch_size=100),
        matching=float(prefix_matching(model, seq_len=LENGTH // 2, batch=32, seed=seed).max()),
        course=tuple(course),
    )


def worth(ladder: list[Trained], losses: list[float], loss: float) -> float | None:
    """The share of the largest size that a loss is worth, at least that of the smallest; None where no size helps."""
    sizes = [each.size for each in ladder]
    try:
        return interpolated_size(sizes, losses, loss, beyond="clip") / max(sizes)
    except ValueError:
        return None


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    cell = arm["cell"]
    found = {
        repeats: trained(cell, repeats, arm["fraction"], WIDTH, seed, profile)
        for repeats in (arm["repeats"] if isinstance(arm["repeats"], list) else [arm["repeats"]])
    }
    this = max(found.values(), key=lambda each: each.val)
    for step, repeated, fresh in this.course:
        log_curve("loss_on_repeated", step, repeated)
        log_curve("loss_on_new", step, fresh)
    _, repeated, fresh = this.course[len(this.course) // 2 - 1]
    scores = {"test_loss": this.test, "learned_by_heart": 1 - repeated / fresh, "repeats": this.repeats}
    if cell == "code":
        return scores
    scores |= {"copying_loss": this.copying, "prefix_matching": this.matching}
    ladder = [trained(cell, 1, 0.5, width, seed, profile) for width in LADDER]
    size = worth(ladder, [each.test for each in ladder], this.test)
    copying = worth(ladder, [each.copying for each in ladder], this.copying)
    scores |= {} if size is None else {"size_worth": size}
    scores |= {} if copying is None else {"copying_worth": copying}
    return scores | ({} if None in (size, copying) or size == copying else {"copying_lag": size - copying})  # type: ignore[operator]


REPEATS = (1, 10, 100, 1000, 10_000)
study = Study(
    slug="repeated-data",
    title="Scaling Laws and Interpretability of Learning from Repeated Data",
    arms={
        **{f"{e}x": {"cell": "language", "repeats": e, "fraction": 0.5} for e in REPEATS},
        "peak": {"cell": "language", "repeats": [10, 100, 1000], "fraction": 0.5},
        **{f"code {e}x": {"cell": "code", "repeats": e, "fraction": 0.5} for e in REPEATS},
        "code peak": {"cell": "code", "repeats": [10, 100, 1000], "fraction": 0.5},
    },
    run=run,
    metrics={
        "test_loss": lower_is_better,
        "copying_loss": lower_is_better,
        "prefix_matching": higher_is_better,
        "size_worth": higher_is_better,
        "copying_worth": higher_is_better,
        "copying_lag": lower_is_better,
        "learned_by_heart": lower_is_better,
        "repeats": lower_is_better,
    },
    optional=("copying_loss", "prefix_matching", "size_worth", "copying_worth", "copying_lag"),
    claims=[
        *(
            better(f"{cell}{other}x", than=f"{cell}peak", on="test_loss", margin=0.01)
            for cell in ("", "code ")
            for other in (1, 10_000)
        ),
        at_most("peak", on="size_worth", value=0.8),
        at_least("10000x", on="copying_lag", value=0.01),
        cheaper(
            "peak", than="1x", on="prefix_matching", ratio=0.8, text="peak has at most 0.8 x the prefix_matching of 1x"
        ),
        at_least("peak", on="learned_by_heart", value=0.2),
        at_most("peak", on="learned_by_heart", value=0.8),
    ],
    checks=[
        at_least(
            "1x",
            on="prefix_matching",
            value=3 * UNIFORM,
            text="the strongest head of 1x matches prefixes three times as well as uniform attention",
        )
    ],
    seeds={"smoke": 1, "laptop": 4},
    time_limit={"laptop": 900.0},
    shared_setup=True,
)
