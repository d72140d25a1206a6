"""How a language model is used: interfaces, small models that are made here, and their cache."""

from heldout.language_model import LM, Completion, Prompt
from heldout.lm.answers import (
    Judge,
    after_marker,
    judge_exact,
    judge_llm,
    judge_number,
    judge_python,
    last_number,
    numbers_in,
)
from heldout.lm.bases import LlamaBase, stdlib_llama
from heldout.lm.cache import base_folder, cached_base
from heldout.lm.cached import CachedLM
from heldout.lm.encoding import context_of, ids_of_prompt
from heldout.lm.endpoint import BudgetError, EndpointError, EndpointLM
from heldout.lm.generation import generate_ids
from heldout.lm.local import TransformersLM
from heldout.lm.sandbox import PythonResult, run_python
from heldout.lm.scripted import ScriptedLM
from heldout.lm.stopping import stop_at
from heldout.lm.tiny import character_tokenizer, encode_examples, tiny_bart, tiny_llama, train_tiny, word_tokenizer

__all__ = [
    "LM",
    "BudgetError",
    "CachedLM",
    "Completion",
    "EndpointError",
    "EndpointLM",
    "Judge",
    "LlamaBase",
    "Prompt",
    "PythonResult",
    "ScriptedLM",
    "TransformersLM",
    "after_marker",
    "base_folder",
    "cached_base",
    "character_tokenizer",
    "context_of",
    "encode_examples",
    "generate_ids",
    "ids_of_prompt",
    "judge_exact",
    "judge_llm",
    "judge_number",
    "judge_python",
    "last_number",
    "numbers_in",
    "run_python",
    "stdlib_llama",
    "stop_at",
    "tiny_bart",
    "tiny_llama",
    "train_tiny",
    "word_tokenizer",
]
