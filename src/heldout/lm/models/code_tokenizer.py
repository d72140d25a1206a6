"""Core: A byte-level BPE tokenizer for source code, which splits identifiers into their words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from heldout.errors import check_at_least, check_nonempty, checked

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
