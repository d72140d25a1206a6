"""Core: Small base models of source code, trained here once and kept in the user's cache folder.

python -m heldout.lm.models.bases      # makes the default base, unless it is there, and prints its folder
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from heldout.errors import check_at_least, check_fields, check_nonempty, check_positive, checked
from heldout.lm.models.tiny import code_tokenizer
from heldout.lm.models.trained_once import base_folder, cached_base
from heldout.measure import token_blocks
from heldout.tasks import stdlib_code, stdlib_digest

_VERSION = 1  # raised when the way a base is made changes
_CODE_VERSION = 1  # the same, of ``code_gpt2``
_TOKENIZER_CHARACTERS = 20_000  # of each module: more changes nothing but the time


@dataclass(frozen=True)
class LlamaBase:
    """Size and training of a tiny Llama on the source code of Python's standard library.

    Attributes:
        hidden, layers, heads, intermediate: of the model; attention is not grouped.
        vocabulary: tokens of its byte-level BPE tokenizer.
        length: tokens of a training block.
        batch: blocks in a step.
        steps: training steps of AdamW, one cycle of the learning rate.
        learning_rate: the highest.
        seed: of the first weights and the order of the blocks.

    Example:
        >>> base = LlamaBase()
        >>> base.steps * base.batch * base.length  # tokens that it is trained on
        184320
    """

    hidden: int = 96
    layers: int = 3
    heads: int = 4
    intermediate: int = 256
    vocabulary: int = 512
    length: int = 64
    batch: int = 8
    steps: int = 360
    learning_rate: float = 4e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(1, hidden=self.hidden, layers=self.layers, heads=self.heads, intermediate=self.intermediate)
        check_at_least(1, length=self.length, batch=self.batch, steps=self.steps)
        check_at_least(257, vocabulary=self.vocabulary)
        check_positive(learning_rate=self.learning_rate)


@checked
def stdlib_llama(base: LlamaBase | None = None) -> tuple[Any, Any]:
    """Returns a tiny Llama and its tokenizer, trained on the standard library's source code, from the cache or anew.

    Training the default takes about half a minute on one core. The training part of ``heldout.tasks.stdlib_code`` is
    all that the model and the tokenizer have seen.

    Args:
        base: size and training; default: ``LlamaBase()``.

    Returns:
        a ``LlamaForCausalLM`` in evaluation mode, and a ``PreTrainedTokenizerFast``.

    Example:
        >>> model, tokenizer = stdlib_llama()  # doctest: +SKIP
        >>> ids = tokenizer("import os\\ndef", return_tensors="pt").input_ids  # doctest: +SKIP
        >>> tokenizer.decode(model.generate(ids, max_new_tokens=20)[0])  # doctest: +SKIP
    """
    base = base or LlamaBase()
    return cached_base("stdlib-llama", recipe(base), lambda: _train(base))


def recipe(base: LlamaBase) -> list[Any]:
    """Returns what the base depends on: its configuration, and the text that it learns from."""
    return [_VERSION, asdict(base), stdlib_digest("train")]


def _train(base: LlamaBase) -> tuple[Any, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    texts = stdlib_code("train")
    tokenizer = _tokenizer([text[:_TOKENIZER_CHARACTERS] for text in texts], base.vocabulary)
    generator = torch.Generator().manual_seed(base.seed)
    order = [texts[i] for i in torch.randperm(len(texts), generator=generator).tolist()]
    blocks = token_blocks(order, tokenizer, base.length, limit=base.batch * base.steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(base.seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=base.hidden,
                intermediate_size=base.intermediate,
                num_hidden_layers=base.layers,
                num_attention_heads=base.heads,
                max_position_embeddings=2 * base.length,
                tie_word_embeddings=True,
                bos_token_id=tokenizer.eos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                initializer_range=0.04,
            )
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=base.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, base.learning_rate, base.steps, cycle_momentum=False)
    model.train()
    for step in range(base.steps):
        if step * base.batch % len(blocks) < base.batch:
            blocks = blocks[torch.randperm(len(blocks), generator=generator)]
        batch = blocks[torch.arange(step * base.batch, (step + 1) * base.batch) % len(blocks)]
        loss = model(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer


def _tokenizer(texts: list[str], vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


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
    return cached_base("code-gpt2", [_CODE_VERSION, asdict(base), told], lambda: _trained_on(texts, base))


def _trained_on(texts: Sequence[str], base: CodeBase) -> tuple[Any, Any]:
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
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, base.steps + 1, pct_start=0.1, cycle_momentum=False)
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


if __name__ == "__main__":
    stdlib_llama()
    print(base_folder("stdlib-llama", recipe(LlamaBase())))
