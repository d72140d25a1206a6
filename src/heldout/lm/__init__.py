"""How a language model is used: base models that are made here, and cached."""

from heldout.lm.bases import LlamaBase, base_folder, stdlib_llama

__all__ = ["LlamaBase", "base_folder", "stdlib_llama"]
