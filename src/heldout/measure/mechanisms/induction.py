"""Core: Induction heads: which attention heads look at what followed the last time?

Source: arXiv:2209.11895 (Olsson et al.), the prefix-matching score on repeated random tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from heldout.errors import check_at_least, check_dimensions, check_labels, check_values, checked
from heldout.measure.mechanisms.residual import decoder_embedding, residual_stream
from heldout.method import device_of
from heldout.nn import decoder_parts


@checked
def attention_patterns(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None, *, blocks: str | None = None
) -> Tensor:
    """Returns the attention weights of every head: ``(layers, batch, heads, query, key)``.

    They are computed by transformers' eager attention, and the model's own implementation is put back afterwards.
    (``output_attentions=True`` would give them, too, but leaves hooks in the model.)

    Args:
        model: of transformers; left as it was.
        input_ids: int64 ``(batch, length)``.
        attention_mask: as the model takes it, ``(batch, length)``.
        blocks: name of the list of blocks; default: found.

    Raises:
        ValueError: a model that gives no attention weights, or ids that it has not.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=7, n_embd=8, n_layer=3, n_head=2))
        >>> attention_patterns(model, torch.tensor([[1, 2, 3, 4]])).shape
        torch.Size([3, 1, 2, 4, 4])
    """
    asked: Any = model
    before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if not hasattr(model, "set_attn_implementation") or before is None:
        raise ValueError(
            f"model must be one of transformers, which gives attention weights, got {type(model).__name__}"
        )
    seen: dict[int, Tensor] = {}  # by the number of the call: a block may stand in several places
    handles: list[Any] = []
    calls, shape = itertools.count(), (len(input_ids), input_ids.shape[1], input_ids.shape[1])
    number = -1

    def enter(*_: Any) -> None:
        nonlocal number
        number = next(calls)

    def note(_: nn.Module, __: Any, output: Any) -> None:
        for part in output if isinstance(output, tuple) else ():
            if isinstance(part, Tensor) and part.ndim == 4 and (len(part), *part.shape[2:]) == shape:
                seen.setdefault(number, part)

    places = decoder_parts(model, blocks=blocks).blocks
    try:
        for block in dict.fromkeys(places):
            handles.append(block.register_forward_pre_hook(enter))
            handles += [part.register_forward_hook(note) for part in block.modules()]
        asked.set_attn_implementation("eager")
        residual_stream(model, input_ids, attention_mask, blocks=blocks)
    finally:
        asked.set_attn_implementation(before)
        for handle in handles:
            handle.remove()
    if len(seen) < len(places):
        raise ValueError(
            f"model must give attention weights in each of its {len(places)} blocks, {type(model).__name__} gives them "
            f"in {len(seen)}"
        )
    return torch.stack([seen[number] for number in sorted(seen)])


@checked
def induction_score(attentions: Tensor, input_ids: Tensor) -> Tensor:
    """Returns the mean attention that each head pays to the token after the last occurrence of the present one.

    Args:
        attentions: ``(layers, batch, heads, length, length)``, rows sum to 1.
        input_ids: int64 ``(batch, length)``; tokens that occur for the first time do not count.

    Returns:
        ``(layers, heads)``, between 0 and 1.

    Raises:
        ValueError: no token occurs twice, or shapes that differ.

    Example:
        >>> uniform = torch.full((1, 1, 1, 4, 4), 0.25)
        >>> induction_score(uniform, torch.tensor([[0, 1, 0, 1]]))
        tensor([[0.2500]])
    """
    check_dimensions(5, attentions=attentions)
    check_dimensions(2, input_ids=input_ids)
    check_values(attentions=attentions)
    check_labels(input_ids=input_ids)
    batch, length = input_ids.shape
    if attentions.shape[1] != batch or attentions.shape[3:] != (length, length):
        raise ValueError(f"attentions must be of ids {(batch, length)}, got {tuple(attentions.shape)}")
    same = (input_ids[:, :, None] == input_ids[:, None, :]).tril(-1)
    after = torch.where(same, torch.arange(1, length + 1, device=input_ids.device), 0).amax(-1)  # 0: never before
    counts = after > 0
    if not bool(counts.any()):
        raise ValueError("input_ids must hold a token that occurs twice in its row")
    paid = attentions.gather(-1, after[None, :, None, :, None].expand(*attentions.shape[:-1], 1))[..., 0]
    return (paid * counts[:, None]).sum((1, 3)) / counts.sum()


@checked
def prefix_matching(
    model: nn.Module,
    seq_len: int = 50,
    batch: int = 16,
    vocab: int | Sequence[int] | None = None,
    *,
    seed: int = 0,
) -> Tensor:
    """Returns how much each attention head is an induction head, ``(layers, heads)``, between 0 and 1.

    Random tokens are read twice over. In the second half a head scores what it pays to the token after the first
    occurrence of the present one. Uniform attention has the mean of ``1 / t`` over the second half.

    Args:
        model: of transformers; left as it was, eager attention is used meanwhile.
        seq_len: tokens, each another, that are repeated once.
        batch: sequences.
        vocab: tokens to draw from, or how many of the first; default: all that the model has.
        seed: of the tokens.

    Raises:
        ValueError: fewer tokens than ``seq_len``, or a model without attention weights.

    Source: arXiv:2209.11895, appendix.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=8, n_layer=3, n_head=2))
        >>> prefix_matching(model, seq_len=20, batch=4).shape
        torch.Size([3, 2])
    """
    check_at_least(1, seq_len=seq_len, batch=batch)
    if vocab is None:
        embedding = decoder_embedding(model)
        if embedding is None:
            raise ValueError("vocab must be given: the model tells no embedding of its tokens")
        vocab = embedding.num_embeddings
    check_labels(vocab=vocab)
    tokens = torch.arange(vocab) if isinstance(vocab, int) else torch.as_tensor(list(vocab), dtype=torch.long).unique()
    if len(tokens) < seq_len:
        raise ValueError(f"vocab must hold at least seq_len = {seq_len} tokens, got {len(tokens)}")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([tokens[torch.randperm(len(tokens), generator=generator)[:seq_len]] for _ in range(batch)])
    ids = drawn.repeat(1, 2).to(device_of(model))
    return induction_score(attention_patterns(model, ids), ids)
