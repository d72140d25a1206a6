"""Core: A small GPT-2 of given programs, trained here once and kept in the user's cache folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from heldout.errors import check_at_least, check_fields, check_nonempty, check_positive, checked
from heldout.lm.models.tiny import code_tokenizer
from heldout.lm.models.trained_once import cached_base
from heldout.measure import token_blocks

_VERSION = 1  # raised when the way a base is made changes


@dataclass(frozen=True)
class CodeBase:
    """Size and training of a small GPT-2 of programs.

    Attributes:
        dim, layers, heads: of the model; there is no dropout.
        vocabulary: tokens of its tokenizer, see ``code_tokenizer``.
        length: tokens of a training block, and the longest context.
        batch: blocks in a step.
        steps: of AdamW, one cycle of the learning rate.
        learning_rate: the highest.
        seed: of the first weights and of the draws of blocks.

    Raises:
        ValueError: options out of range.

    Example:
        >>> CodeBase(layers=4).dim
        128
    """

    dim: int = 128
    layers: int = 2
    heads: int = 4
    vocabulary: int = 2048
    length: int = 64
    batch: int = 16
    steps: int = 2500
    learning_rate: float = 3e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(1, dim=self.dim, layers=self.layers, heads=self.heads, batch=self.batch, steps=self.steps)
        check_at_least(2, length=self.length)
        check_at_least(257, vocabulary=self.vocabulary)
        check_positive(learning_rate=self.learning_rate)
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads, got {self.dim} and {self.heads}")


@checked
def code_gpt2(texts: Sequence[str], base: CodeBase | None = None) -> tuple[Any, Any]:
    """Returns a small GPT-2 and its tokenizer, trained on programs and on nothing else, from the cache or anew.

    What is kept is told apart by the texts and the options. Training the default takes a few minutes on one core.

    Args:
        texts: of programs.
        base: size and training; default: ``CodeBase()``.

    Returns:
        a ``GPT2LMHeadModel`` in evaluation mode, and a ``PreTrainedTokenizerFast``.

    Raises:
        ValueError: no texts, or so few that they do not fill a block.

    Example:
        >>> model, tokenizer = code_gpt2(["def f(x): return x"] * 99)  # doctest: +SKIP
    """
    check_nonempty(texts=texts)
    base = base or CodeBase()
    told = hashlib.sha256("\0".join(texts).encode("utf-8", "replace")).hexdigest()
    return cached_base("code-gpt2", [_VERSION, asdict(base), told], lambda: _trained(texts, base))


def _trained(texts: Sequence[str], base: CodeBase) -> tuple[Any, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = code_tokenizer(texts, base.vocabulary)
    blocks = token_blocks(texts, tokenizer, base.length)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=base.length,
        n_embd=base.dim,
        n_layer=base.layers,
        n_head=base.heads,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(base.seed)
        model = GPT2LMHeadModel(config)
    rate = base.learning_rate
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    cycle = {"max_lr": rate, "total_steps": base.steps + 1, "pct_start": 0.1, "cycle_momentum": False}
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, **cycle)
    generator = torch.Generator().manual_seed(base.seed)
    model.train()
    for _ in range(base.steps):
        batch = blocks[torch.randint(len(blocks), (base.batch,), generator=generator)]
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval(), tokenizer
