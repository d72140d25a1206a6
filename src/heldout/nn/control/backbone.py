"""Core: A decoder of transformers as the body of a policy or forecaster: read by embeddings, adapted by LoRA."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_fraction,
    check_has,
    check_nonempty,
    check_positive,
    checked,
    require,
)
from heldout.method import evaluating
from heldout.nn.language.position_offsets import position_limit


@checked
def lora_backbone(lm: nn.Module, *, rank: int = 16, alpha: float = 32.0, dropout: float = 0.05) -> Any:
    """Returns a decoder with peft's LoRA on its query and value maps; nothing else of it is trained.

    The model is changed in place, by the names that peft knows for its class (GPT-2 has query, key and value in
    one map).

    Args:
        lm: a decoder of transformers, with or without a head.
        rank, alpha, dropout: of LoRA.

    Raises:
        MissingExtraError: peft is not installed.
        ValueError: options out of range, or a class whose names peft does not know.

    Source: arXiv:2402.02338, section 4.3 (rank 128, alpha 32, dropout 0.05 of its code).

    Example:
        >>> from transformers import LlamaConfig, LlamaModel
        >>> config = LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> lm = lora_backbone(LlamaModel(config), rank=2)
        >>> sum(p.numel() for p in lm.parameters() if p.requires_grad)
        128
    """
    check_at_least(1, rank=rank)
    check_positive(alpha=alpha)
    check_fraction(dropout=dropout)
    check_has("config", lm=lm)
    peft = require("peft")
    lm.requires_grad_(False)
    return peft.get_peft_model(lm, peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout))


@checked
def decoder_body(lm: nn.Module) -> Any:
    """Returns the part of a decoder that makes hidden states, without its head; adapters inside it stay.

    Args:
        lm: of transformers, with or without a head, or such a model within peft's.

    Raises:
        ValueError: a model with an encoder, prompt tuning, one that cannot be called with ``inputs_embeds``, whose
            states are of another width than these, or know later tokens (tried on two).

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> type(decoder_body(GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2)))).__name__
        'GPT2Model'
    """
    check_has("config", lm=lm)
    inner: Any = lm
    if hasattr(lm, "get_base_model"):
        if getattr(getattr(lm, "active_peft_config", None), "is_prompt_learning", False):
            raise ValueError("lm must have its adapters inside (LoRA), got prompt tuning")
        inner = lm.get_base_model()  # type: ignore[operator]
    if getattr(inner.config, "is_encoder_decoder", False):
        raise ValueError(f"lm must be a decoder, got {type(inner).__name__}")
    body = inner.base_model if hasattr(inner, "base_model") else inner
    if "inputs_embeds" not in inspect.signature(body.forward).parameters:
        raise ValueError(f"lm must be callable with inputs_embeds, and {type(body).__name__} is not")
    states, width = int(body.config.hidden_size), getattr(body.get_input_embeddings(), "embedding_dim", None)
    if width not in (None, states):
        raise ValueError(f"lm must read embeddings as wide as its {states} states, and reads {width}")
    if not _is_causal(body, states):
        raise ValueError(f"lm must be causal, and states of {type(body).__name__} know the tokens after them")
    return body


def keeps_keys(body: nn.Module) -> bool:
    """Whether a decoder goes on from a cache of keys and values; others are read anew."""
    return "past_key_values" in inspect.signature(body.forward).parameters


@checked
def check_context(body: nn.Module, /, **tokens: int) -> None:
    """Raises ValueError where more tokens are asked for than a decoder has positions.

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> body = GPT2Model(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2, n_positions=16))
        >>> check_context(body, window=17)
        Traceback (most recent call last):
        ValueError: window must need at most the model's 16 positions, got 17 tokens
    """
    limit = position_limit(body)
    for name, count in tokens.items():
        if limit is not None and count > limit:
            raise ValueError(f"{name} must need at most the model's {limit} positions, got {count} tokens")


@checked
def decoder_states(body: nn.Module, embeddings: Tensor, cache: Any = None) -> Tensor:
    """Returns the hidden states after the last norm, ``(batch, tokens, width)``, in the embeddings' type.

    Args:
        body: from ``decoder_body``; its weights may be of lower precision than the embeddings.
        embeddings: ``(batch, tokens, width)``.
        cache: of transformers (``DynamicCache``): keys and values of the tokens before, to which these are added.

    Raises:
        ValueError: embeddings of another form.

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> body = GPT2Model(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2))
        >>> import torch
        >>> decoder_states(body, torch.zeros(2, 3, 8)).shape
        torch.Size([2, 3, 8])
    """
    check_dimensions(3, embeddings=embeddings)
    check_nonempty(embeddings=embeddings)
    dtype = next((p.dtype for p in body.parameters() if p.is_floating_point()), embeddings.dtype)
    found = body(inputs_embeds=embeddings.to(dtype), past_key_values=cache, use_cache=cache is not None)
    return found[0].to(embeddings.dtype)


@torch.no_grad()
def _is_causal(body: Any, width: int) -> bool:
    """Whether the state of a first token stays as it is when the second one changes."""
    weight = next((p for p in body.parameters() if p.is_floating_point()), None)
    if weight is None or weight.device.type == "meta":
        return True
    tokens = torch.linspace(-1, 1, width, device=weight.device).repeat(2, 2, 1)
    tokens[1, 1] = -10 * tokens[1, 1].flip(0) ** 3
    with evaluating(body):
        first, other = decoder_states(body, tokens)[:, 0].float()
    return bool((first - other).abs().max() <= 2e-6 * first.abs().max())  # both are rounded alike, in one batch
