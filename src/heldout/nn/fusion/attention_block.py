"""Core: A self-attention block with normalisation after each part, and what all blocks on masked tokens need.

Source: arXiv:2401.15030, section 2, and its code; arXiv:1706.03762 for the block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heldout.errors import check_at_least, check_dimensions, checked


class AttentionBlock(nn.Module):
    """Self-attention and a perceptron, each added to its input and normalised after.

    Without positions of its own: tokens that are given in another order come back in that order.

    Args:
        d: of tokens, a multiple of ``heads``. The perceptron has ``d`` units in both layers.
        heads: of the attention.

    Raises:
        ValueError: sizes out of range, or that do not divide.

    Source: arXiv:2401.15030, its code (models/transformer.py).

    Example:
        >>> AttentionBlock(8)(torch.zeros(2, 3, 8)).shape
        torch.Size([2, 3, 8])
    """

    @checked
    def __init__(self, d: int, heads: int = 1) -> None:
        check_heads(d, heads)
        super().__init__()
        self.attention = nn.MultiheadAttention(d, heads, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.perceptron = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d), nn.ReLU())

    @checked
    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns tokens ``(batch, length, d)``.

        Args:
            tokens: ``(batch, length, d)``.
            mask: bool ``(batch, length)``, what is a token; nothing else has an influence on tokens. None: all are.

        Raises:
            ValueError: shapes that do not match, or a row without a token.
        """
        tokens, mask = masked_tokens(self.norm1.normalized_shape[0], tokens=tokens, mask=mask)
        hidden = self.norm1(tokens + attended(self.attention, tokens, tokens, mask))
        return self.norm2(hidden + self.perceptron(hidden))


def check_heads(d: int, heads: int) -> None:
    """Refuses a width that cannot be split into heads."""
    check_at_least(1, d=d, heads=heads)
    if d % heads:
        raise ValueError(f"d must be a multiple of heads, got {d} and {heads}")


def masked_tokens(d: int, /, **named: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Returns tokens ``(batch, length, d)``, 0 where they are masked, and their mask; refuses shapes that do not match.

    Args:
        d: of tokens.
        named: the tokens, and the bool mask ``(batch, length)`` of what is a token, or None.
    """
    (name, tokens), (mask_name, mask) = named.items()
    check_dimensions(3, **{name: tokens})
    assert tokens is not None
    if tokens.shape[2] != d or not tokens.shape[1]:
        raise ValueError(f"{name} must be (batch, length, {d}), got {tuple(tokens.shape)}")
    if mask is None:
        return tokens, None
    if mask.dtype != torch.bool or mask.shape != tokens.shape[:2]:
        raise ValueError(f"{mask_name} must be bool {tuple(tokens.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}")
    if not mask.any(1).all():
        raise ValueError(f"{mask_name} must have a token in each row")
    return tokens.masked_fill(~mask.unsqueeze(2), 0.0), mask


def attended(attention: nn.MultiheadAttention, queries: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Returns what queries ``(batch, n, d)`` find in tokens."""
    hidden = None if mask is None or not len(mask) else ~mask  # an empty batch cannot be masked there
    return attention(queries, tokens, tokens, key_padding_mask=hidden, need_weights=False)[0]


def last_token(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the last token ``(batch, d)`` of each row that is not masked."""
    if mask is None:
        return tokens[:, -1]
    places = torch.arange(mask.shape[1], device=mask.device)
    last = (mask * places).argmax(1)
    return tokens[torch.arange(len(tokens), device=tokens.device), last]
