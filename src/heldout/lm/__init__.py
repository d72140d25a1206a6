"""How a language model is used: interfaces, small models that are made here, and their cache."""

from heldout.language_model import LM, Completion, Prompt
from heldout.lm.bases import LlamaBase, stdlib_llama
from heldout.lm.cache import base_folder, cached_base
from heldout.lm.stopping import stop_at
from heldout.lm.tiny import character_tokenizer, encode_examples, tiny_bart, tiny_llama, train_tiny, word_tokenizer

__all__ = [
    "LM",
    "Completion",
    "LlamaBase",
    "Prompt",
    "base_folder",
    "cached_base",
    "character_tokenizer",
    "encode_examples",
    "stdlib_llama",
    "stop_at",
    "tiny_bart",
    "tiny_llama",
    "train_tiny",
    "word_tokenizer",
]
