"""Core: A small decoder whose positions are learned, rotary or linear biases: the only thing in which they differ.

Called as causal models of transformers are: token ids and ``position_ids``, and a cache. As there, a place where
``position_ids`` do not go on by one begins another sequence of a packed row, which sees nothing of the one before.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import check_at_least, check_dimensions, check_labels, check_one_of, checked

Cache = tuple[tuple[Tensor, Tensor, Tensor], ...]
POSITIONS = ("learned", "rotary", "alibi")


class CausalOutput(NamedTuple):
    """What a decoder says.

    Attributes:
        logits: ``(batch, length, vocabulary)`` of the token after each.
        past_key_values: keys, values and positions of each block, with which the next tokens are read; or None.

    Example:
        >>> model = CausalTransformer(7, dim=16, layers=1, heads=2)
        >>> ids = torch.tensor([[1, 3, 4]])
        >>> read = model(ids[:, :2], use_cache=True)
        >>> last = model(ids[:, 2:], past_key_values=read.past_key_values)
        >>> torch.allclose(last.logits[:, 0], model(ids).logits[:, 2], atol=1e-6), last.past_key_values is None
        (True, True)
    """

    logits: Tensor
    past_key_values: Cache | None = None


class CausalTransformer(nn.Module):
    """A decoder of pre-norm blocks with four times as wide feed-forward layers and a head that is its embedding.

    Args:
        vocab_size: ids from 0.
        dim: of hidden states, a multiple of ``heads``; with rotary positions, of twice as much.
        layers: blocks.
        heads: of attention.
        max_positions: positions that it has; relative ones end there, too, so that all kinds are asked the same.
        positions: "learned" absolute embeddings; "rotary" ones of base 10,000 in queries and keys; "alibi", biases that
            fall linearly with distance, with slopes ``2 ** (-8 h / heads)``.

    Raises:
        ValueError: sizes out of range or that do not divide.

    Source: arXiv:2310.16028, appendix (learned); arXiv:2104.09864 (rotary); arXiv:2108.12409 (alibi).

    Example:
        >>> model = CausalTransformer(7, dim=16, layers=1, heads=2, positions="rotary")
        >>> model(torch.tensor([[1, 3, 4]])).logits.shape
        torch.Size([1, 3, 7])
    """

    @checked
    def __init__(
        self,
        vocab_size: int,
        *,
        dim: int = 64,
        layers: int = 2,
        heads: int = 4,
        max_positions: int = 128,
        positions: Literal["learned", "rotary", "alibi"] = "learned",
    ) -> None:
        check_at_least(1, vocab_size=vocab_size, dim=dim, layers=layers, heads=heads, max_positions=max_positions)
        check_one_of(POSITIONS, positions=positions)
        parts = heads * (2 if positions == "rotary" else 1)
        if dim % parts:
            raise ValueError(f"dim must be a multiple of {parts}, got {dim}")
        super().__init__()
        self.max_positions, self.positions, self.heads = max_positions, positions, heads
        self.embedding = nn.Embedding(vocab_size, dim)
        self.places = nn.Embedding(max_positions, dim) if positions == "learned" else None
        self.blocks = nn.ModuleList(_Block(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.5 * dim**-0.5)  # that of GPT-2 at its width, 0.02 at 768
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @checked
    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
    ) -> CausalOutput:
        """Returns logits of the token after each given one, and with ``use_cache`` what the next tokens need.

        Args:
            input_ids: int64 ``(batch, length)``; with a cache those that it does not hold.
            position_ids: of the same shape; default: from 0, or from where the cache ends.
            past_key_values: of the tokens before, which must be of one sequence a row.
            use_cache: whether to return keys and values.

        Raises:
            ValueError: ids or positions out of range.
        """
        check_dimensions(2, input_ids=input_ids)
        check_labels(self.embedding.num_embeddings, input_ids=input_ids)
        held = 0 if past_key_values is None else past_key_values[0][0].shape[2]
        batch, length = input_ids.shape
        if position_ids is None:
            first = 0 if past_key_values is None else past_key_values[0][2][:, -1:] + 1
            position_ids = (torch.arange(length, device=input_ids.device) + first).expand(batch, length)
        if position_ids.shape != input_ids.shape or not 0 <= int(position_ids.min()) <= int(position_ids.max()):
            raise ValueError(f"position_ids must be at least 0 and {tuple(input_ids.shape)}, one for each token")
        if int(position_ids.max()) >= self.max_positions:
            raise ValueError(
                f"position_ids must be below max_positions, {self.max_positions}, got {int(position_ids.max())}: a "
                "longer input needs a model of more positions"
            )
        hidden = self.embedding(input_ids)
        if self.places is not None:
            hidden = hidden + self.places(position_ids)
        known = position_ids if past_key_values is None else torch.cat([past_key_values[0][2], position_ids], 1)
        sequence = (known.diff(dim=1, prepend=known[:, :1] - 1) != 1).cumsum(1)
        mask = (sequence[:, held:, None] == sequence[:, None]).tril(held)[:, None]
        if self.positions == "alibi":
            slopes = 2.0 ** (-8.0 / self.heads * torch.arange(1, self.heads + 1, device=known.device))
            biases = -slopes[:, None, None] * (position_ids[:, :, None] - known[:, None])[:, None]
            mask = biases.masked_fill(~mask, -torch.inf).to(hidden.dtype)
        angles = self._angles(position_ids) if self.positions == "rotary" else None
        kept = []
        for number, block in enumerate(self.blocks):
            before = None if past_key_values is None else past_key_values[number]
            hidden, keys, values = block(hidden, mask, angles, before)
            kept.append((keys, values, known))
        logits = F.linear(self.norm(hidden), self.embedding.weight)
        return CausalOutput(logits, tuple(kept) if use_cache else None)

    def _angles(self, position_ids: Tensor) -> Tensor:
        """``(batch, 1, length, head / 2)`` in single precision, whatever that of the weights is."""
        size = self.embedding.embedding_dim // self.heads
        shares = torch.arange(0, size, 2, device=position_ids.device) / size
        return position_ids[:, None, :, None] * 10_000.0**-shares


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_feed_forward = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.projections, self.mixed = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor,
        angles: Tensor | None,
        before: tuple[Tensor, Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, dim = hidden.shape
        parts = self.projections(self.before_attention(hidden)).view(batch, length, 3, self.heads, -1)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        if angles is not None:
            queries, keys = _rotated(queries, angles), _rotated(keys, angles)
        if before is not None:
            keys, values = torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        hidden = hidden + self.mixed(found.transpose(1, 2).reshape(batch, length, dim))
        return hidden + self.feed_forward(self.before_feed_forward(hidden)), keys, values


def _rotated(states: Tensor, angles: Tensor) -> Tensor:
    """States whose first and second halves are turned by the angles of their positions."""
    cos, sin = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
    first, second = states.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)
