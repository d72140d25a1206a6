"""Core: language models of a laptop's size: tokenizers, random transformers models, and a training loop.

Worlds are written with few words, so a tokenizer has a token per word or per character. The models are the classes of
transformers in small configurations: what works on them works on larger ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_fraction, check_nonempty, check_nonnegative, checked

Example = str | tuple[str, str]
_IGNORED = -100


@checked
def word_tokenizer(texts: Iterable[str]) -> Any:
    """Returns a tokenizer with a token for each word of the texts, words being what spaces separate.

    Its special tokens are ``<pad>``, ``<s>``, ``</s>`` and ``<unk>``; none is added to a text. Decoding joins words
    with spaces, so a text with single spaces comes back as it was.

    Example:
        >>> tokenizer = word_tokenizer(["sort a b", "a ."])
        >>> tokenizer.decode(tokenizer("sort b a .")["input_ids"])
        'sort b a .'
    """
    words = sorted({word for text in texts for word in text.split()})
    return _level_tokenizer(words, split=" ")


@checked
def character_tokenizer(alphabet: str | Iterable[str]) -> Any:
    """Returns a tokenizer with a token for each character of the alphabet, and the special tokens of word_tokenizer.

    Example:
        >>> tokenizer = character_tokenizer("0123456789+=")
        >>> tokenizer("12+3")["input_ids"], tokenizer.decode(tokenizer("12+3")["input_ids"])
        ([6, 7, 4, 8], '12+3')
    """
    return _level_tokenizer(sorted({letter for text in alphabet for letter in text}), split="")


@checked
def tiny_llama(
    tokenizer: Any, *, dim: int = 96, layers: int = 3, heads: int = 4, context: int = 256, seed: int = 0
) -> Any:
    """Returns a ``LlamaForCausalLM`` with random weights, for the tokenizer's vocabulary.

    Args:
        tokenizer: with ``pad``, ``bos`` and ``eos`` tokens.
        dim: of the hidden states; the feed-forward layers have ``8 / 3`` of it, rounded to 8.
        layers, heads: of attention.
        context: tokens of the longest sequence.
        seed: of the weights.

    Example:
        >>> model = tiny_llama(word_tokenizer(["a b"]), dim=16, layers=1)
        >>> model(torch.tensor([[4, 5]])).logits.shape
        torch.Size([1, 2, 6])
    """
    check_at_least(1, dim=dim, layers=layers, heads=heads, context=context)
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=dim,
        intermediate_size=round(dim / 3) * 8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        initializer_range=0.04,
        **_special_ids(tokenizer),
    )
    return _seeded(lambda: LlamaForCausalLM(config), seed)


@checked
def tiny_bart(
    tokenizer: Any, *, dim: int = 96, layers: int = 2, heads: int = 4, context: int = 256, seed: int = 0
) -> Any:
    """Returns a ``BartForConditionalGeneration`` with random weights: as many layers in the encoder as in the decoder.

    Args:
        tokenizer, dim, heads, context, seed: as for ``tiny_llama``; the feed-forward layers have ``4 dim``.
        layers: of each half.

    Example:
        >>> model = tiny_bart(word_tokenizer(["a b"]), dim=16, layers=1)
        >>> model(torch.tensor([[4, 5]]), labels=torch.tensor([[5, 2]])).logits.shape
        torch.Size([1, 2, 6])
    """
    check_at_least(1, dim=dim, layers=layers, heads=heads, context=context)
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=dim,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * dim,
        decoder_ffn_dim=4 * dim,
        max_position_embeddings=context,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
        dropout=0.0,
        init_std=0.04,
        **_special_ids(tokenizer),
    )
    return _seeded(lambda: BartForConditionalGeneration(config), seed)


@checked
def train_tiny(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example] | Callable[[int, torch.Generator], Sequence[Example]],
    *,
    steps: int,
    batch_size: int = 32,
    lr: float = 2e-3,
    weight_decay: float = 0.1,
    warmup: float = 0.1,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Trains a small language model in place and returns the loss of each step.

    AdamW with a linear warm-up and a linear decay to zero, gradients clipped to norm 1. It is the plain loop for bases
    that are made here; ``heldout.train.sft`` tunes users' models.

    Args:
        model: a causal or a sequence-to-sequence model of transformers; left in evaluation mode.
        tokenizer: its tokenizer.
        examples: texts, where every token counts, or pairs (prompt, response), where the response does; or a function
            ``(count, generator) -> examples`` that draws new ones. An end token follows each text and response.
        steps, batch_size, lr, weight_decay: of AdamW.
        warmup: share of the steps in which the learning rate grows.
        seed: of the order of the examples, and of dropout.
        on_step: called with the number of each step, from 1, and its loss.

    Raises:
        ValueError: without examples, or when one is longer than the model's context.

    Example:
        >>> tokenizer = word_tokenizer(["a b c"])
        >>> losses = train_tiny(tiny_llama(tokenizer, dim=16, layers=1), tokenizer, [("a b", "c")], steps=60, lr=0.02)
        >>> losses[-1] < 0.1 < losses[0]
        True
    """
    check_at_least(0, steps=steps)
    check_at_least(1, batch_size=batch_size)
    check_nonnegative(lr=lr, weight_decay=weight_decay)
    check_fraction(warmup=warmup)
    check_nonempty(examples=None if callable(examples) else examples)
    generator = torch.Generator().manual_seed(seed)
    draw = examples if callable(examples) else _shuffler(examples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    rise = max(1, round(warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, (steps - step) / max(1, steps - rise))
    )
    losses = []
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(1, steps + 1):
            loss = model(**encode_examples(model, tokenizer, draw(batch_size, generator))).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if on_step:
                on_step(step, losses[-1])
    model.eval()
    return losses


@checked
def encode_examples(model: Any, tokenizer: Any, examples: Sequence[Example]) -> dict[str, Tensor]:
    """Returns a batch for ``model(**batch)``: ids, attention mask and labels, padded on the right.

    Labels are -100 on prompts and padding. For a sequence-to-sequence model the prompt goes to the encoder, the
    response to the decoder, and an example must be a pair.

    Raises:
        ValueError: without examples, or when one is longer than the model's context; its number is named.

    Example:
        >>> tokenizer = word_tokenizer(["a b c"])
        >>> batch = encode_examples(tiny_llama(tokenizer, dim=16, layers=1), tokenizer, [("a b", "c"), "a"])
        >>> batch["input_ids"].tolist(), batch["labels"].tolist()
        ([[4, 5, 6, 2], [4, 2, 0, 0]], [[-100, -100, 6, 2], [4, 2, -100, -100]])
    """
    if not examples:
        raise ValueError("a batch needs at least one example")
    limit = getattr(model.config, "max_position_embeddings", None)
    end, separate = [tokenizer.eos_token_id], bool(model.config.is_encoder_decoder)
    inputs, labels = [], []
    for number, example in enumerate(examples):
        if separate and isinstance(example, str):
            raise ValueError(f"example {number} must be a pair (prompt, response) for a sequence-to-sequence model")
        prompt, response = ("", example) if isinstance(example, str) else example
        read = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        written = tokenizer(response, add_special_tokens=False)["input_ids"] + end
        inputs.append(read if separate else read + written)
        labels.append(written if separate else [_IGNORED] * len(read) + written)
        if limit is not None and max(len(inputs[-1]), len(labels[-1])) > limit:
            raise ValueError(f"example {number} has {len(inputs[-1])} tokens, more than the model's {limit}")
    ids = _padded(inputs, tokenizer.pad_token_id)
    lengths = torch.tensor([len(row) for row in inputs])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": _padded(labels, _IGNORED)}


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def _shuffler(examples: Sequence[Example]) -> Callable[[int, torch.Generator], list[Example]]:
    """Draws from a fixed list: all of it in random order, then all of it in another."""
    if not examples:
        raise ValueError("train_tiny needs at least one example")
    order: list[int] = []

    def draw(count: int, generator: torch.Generator) -> list[Example]:
        while len(order) < count:
            order.extend(torch.randperm(len(examples), generator=generator).tolist())
        taken, order[:count] = order[:count], []
        return [examples[i] for i in taken]

    return draw


def _level_tokenizer(tokens: Sequence[str], split: str) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {token: i for i, token in enumerate([*special, *(t for t in tokens if t not in special)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    if split:
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def _special_ids(tokenizer: Any) -> dict[str, Any]:
    return {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _seeded(build: Callable[[], Any], seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


# words of identifiers with a space before them, digits, an opening bracket alone, other signs, indentation
_PIECES = r" ?[A-Z]?[a-z]+| ?[A-Z]+(?![a-z])| ?[0-9]+|_+|\(| ?[^\sA-Za-z0-9_(]+|\n *| +|\s+"


@checked
def code_tokenizer(texts: Sequence[str], vocabulary: int = 1024) -> Any:
    """Returns a ``PreTrainedTokenizerFast`` trained on source code: no token goes beyond a word of an identifier.

    ``assertEqual`` and ``read_text`` are two words each, and an opening bracket is a token of its own. Any text can be
    written, by bytes if need be. Train it on what a model is pretrained on: new names must not be known to it.

    Args:
        texts: of programs.
        vocabulary: tokens at most, at least 257: the bytes and "<|endoftext|>", which ends and pads.

    Raises:
        ValueError: no texts, or a vocabulary that is too small.

    Example:
        >>> tokenizer = code_tokenizer(["def read_text(path):\\n    return path.readText()"] * 2, 300)
        >>> tokenizer.tokenize("readText()")
        ['read', 'Text', '(', ')']
    """
    check_nonempty(texts=texts)
    check_at_least(257, vocabulary=vocabulary)
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_PIECES), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
