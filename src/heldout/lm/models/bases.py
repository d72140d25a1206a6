"""Core: A small base model of source code, trained here once and kept in the user's cache folder.

python -m heldout.lm.models.bases      # makes the default base, unless it is there, and prints its folder
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from heldout.errors import check_fields, checked
from heldout.lm.models.trained_once import base_folder, cached_base
from heldout.measure import token_blocks
from heldout.tasks import stdlib_code, stdlib_digest

_VERSION = 1  # raised when the way a base is made changes
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


if __name__ == "__main__":
    stdlib_llama()
    print(base_folder("stdlib-llama", recipe(LlamaBase())))
