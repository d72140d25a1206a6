"""Core: tuning of what the last block of a causal model makes of each token alone, over states computed once."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import check_at_least, check_dimensions, check_nonempty, checked


class LastMLP(nn.Module):
    """The MLP of a causal model's last block, the norms around it and the head, on the states that enter it.

    Attention and all blocks below stay what they are, so that a step costs the MLP and the head, at those tokens alone
    that count. The MLP and the norms are copies, to be tuned; the head is a buffer.

    Args:
        model: of transformers, with ``model.layers``, ``model.norm`` and ``lm_head``: Llama, Qwen, Mistral and alike.
        tokens: int64, the tokens that the head knows, in the order of the logits; default: all.

    Raises:
        ValueError: a model without these parts, or no tokens.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> model, ids = tiny_llama(word_tokenizer(["a b c"]), dim=16, layers=2), torch.tensor([[4, 5, 6]])
        >>> logits = LastMLP(model)(last_mlp_states(model, ids))
        >>> torch.allclose(logits, model(ids).logits, atol=1e-5)
        True
    """

    head: Tensor

    @checked
    def __init__(self, model: Any, tokens: Tensor | None = None) -> None:
        super().__init__()
        block = _last_block(model)
        self.before, self.mlp = copy.deepcopy(block.post_attention_layernorm), copy.deepcopy(block.mlp)
        self.norm = copy.deepcopy(model.model.norm)
        weight = model.lm_head.weight.detach()
        if tokens is not None:
            check_nonempty(tokens=tokens)
            weight = weight[tokens.to(weight.device)]
        self.register_buffer("head", weight.clone())

    def forward(self, states: Tensor) -> Tensor:
        """Returns logits ``(..., tokens)`` for states ``(..., dim)``."""
        return F.linear(self.norm(states + self.mlp(self.before(states))), self.head)


@checked
def last_mlp_states(model: Any, ids: Tensor, *, batch_size: int = 32) -> Tensor:
    """Returns what enters the MLP of a causal model's last block, with the residual stream: ``(rows, length, dim)``.

    Args:
        model: as for ``LastMLP``.
        ids: int64 ``(rows, length)``, padded behind.
        batch_size: rows at once.

    Raises:
        ValueError: a model of another form, or ids of another shape.
    """
    check_dimensions(2, ids=ids)
    check_nonempty(ids=ids)
    check_at_least(1, batch_size=batch_size)
    kept: list[Tensor] = []
    norm = _last_block(model).post_attention_layernorm
    handle = norm.register_forward_hook(lambda module, inputs, output: kept.append(inputs[0]))
    try:
        with torch.inference_mode():
            for part in ids.split(batch_size):
                model.model(part, use_cache=False)
    finally:
        handle.remove()
    return torch.cat(kept).clone()


def _last_block(model: Any) -> Any:
    inner = getattr(model, "model", None)
    blocks = getattr(inner, "layers", None)
    block = blocks[-1] if isinstance(blocks, nn.ModuleList) and len(blocks) else None
    wanted = [(block, "post_attention_layernorm"), (block, "mlp"), (inner, "norm"), (model, "lm_head")]
    if not all(hasattr(owner, name) for owner, name in wanted):
        raise ValueError(
            "model must have model.layers with post_attention_layernorm and mlp, model.norm and lm_head, "
            f"got {type(model).__name__}"
        )
    return block
