"""Core: An encoder-decoder Transformer with sinusoidal positions, relative ones, or both; with or without copying.

Source: arXiv:1706.03762; relative positions: arXiv:1803.02155.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.data import PAD
from heldout.errors import check_at_least, checked
from heldout.nn.sequences.seq2seq import Memory, Seq2Seq, SinusoidalPositions

Positions = Literal["absolute", "relative", "both"]


class Seq2SeqTransformer(Seq2Seq):
    """Writes a sequence for a sequence by attention; each sublayer is normalised before and added to its input.

    The default has about 0.1 million parameters and a vocabulary's embeddings.

    Args:
        vocab_size: ids from 0, see ``TokenVocabulary``.
        dim: of hidden states, a multiple of ``heads`` (and even, for absolute positions).
        heads: of each attention.
        layers: of the encoder, and of the decoder.
        feedforward: hidden units of the perceptron in each layer.
        dropout: after embeddings, attention weights included, in [0, 1].
        positions: "absolute" for sines and cosines, "relative" for learned vectors that keys get by their distance to
            the query, or "both".
        max_distance: beyond which all relative positions are one.
        copy: whether tokens of the source may be copied, see ``Seq2Seq``.

    Raises:
        ValueError: sizes out of range, or that do not divide.

    Source: arXiv:1706.03762; relative positions arXiv:1803.02155, equation 4 (keys only); copying arXiv:1704.04368.

    Example:
        >>> model = Seq2SeqTransformer(vocab_size=10, dim=16, heads=2)
        >>> source, target_in = torch.tensor([[3, 4, 0], [5, 6, 7]]), torch.tensor([[1, 8], [1, 9]])
        >>> model(source, target_in).shape, model.generate(source, max_length=4).shape[0]
        (torch.Size([2, 2, 10]), 2)
    """

    @checked
    def __init__(
        self,
        vocab_size: int,
        dim: int = 64,
        heads: int = 4,
        layers: int = 1,
        feedforward: int = 128,
        dropout: float = 0.1,
        *,
        positions: Positions = "absolute",
        max_distance: int = 20,
        copy: bool = False,
    ) -> None:
        check_at_least(1, heads=heads, layers=layers, feedforward=feedforward, max_distance=max_distance)
        super().__init__(vocab_size, dim, dropout, copy)
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got {dim} and {heads}")
        self.positions = SinusoidalPositions(dim) if positions != "relative" else None
        distance = max_distance if positions != "absolute" else None
        sizes = dim, heads, feedforward, dropout, distance
        self.encoder = nn.ModuleList(_Layer(*sizes, crossed=False) for _ in range(layers))
        self.decoder = nn.ModuleList(_Layer(*sizes, crossed=True) for _ in range(layers))
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def encode(self, source: Tensor) -> Memory:
        states, mask = self._embedded(self.source_embedding, source, 0), source != PAD
        for layer in self.encoder:
            states, _ = layer(states, mask[:, None, None], None, None)
        return Memory(self.encoder_norm(states), mask, source)

    def decode(self, memory: Memory, target_in: Tensor, state: list[_Kept] | None = None) -> tuple[Tensor, list[_Kept]]:
        start = state[0].keys.shape[2] if state else 0
        hidden, kept = self._embedded(self.target_embedding, target_in, start), []
        length = target_in.shape[1]
        causal = torch.ones(length, start + length, dtype=torch.bool, device=hidden.device).tril(start)
        for number, layer in enumerate(self.decoder):
            hidden, now = layer(hidden, causal, memory, state[number] if state else None)
            kept.append(now)
        return self.decoder_norm(hidden), kept

    def rows_of(self, state: list[_Kept], kept: Tensor) -> list[_Kept]:
        return [_Kept(*(part[kept] for part in layer)) for layer in state]

    def _embedded(self, embedding: nn.Embedding, ids: Tensor, start: int) -> Tensor:
        embedded = embedding(ids) * math.sqrt(self.dim)
        return self.dropout(self.positions(embedded, start) if self.positions is not None else embedded)


class _Kept(NamedTuple):
    """Keys and values ``(batch, heads, length, dim of a head)`` of the target so far, and of the source."""

    keys: Tensor
    values: Tensor
    source_keys: Tensor
    source_values: Tensor


class _Layer(nn.Module):
    def __init__(
        self, dim: int, heads: int, feedforward: int, dropout: float, max_distance: int | None, *, crossed: bool
    ) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), _Attention(dim, heads, dropout, max_distance)
        self.norm2 = nn.LayerNorm(dim) if crossed else None
        self.cross = _Attention(dim, heads, dropout, None) if crossed else None
        self.norm3 = nn.LayerNorm(dim)
        self.perceptron = nn.Sequential(
            nn.Linear(dim, feedforward), nn.ReLU(), nn.Dropout(dropout), nn.Linear(feedforward, dim)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, hidden: Tensor, mask: Tensor, memory: Memory | None, kept: _Kept | None
    ) -> tuple[Tensor, _Kept | None]:
        normed = self.norm1(hidden)
        keys, values = self.attention.keys_and_values(normed)
        if kept is not None:
            keys, values = torch.cat([kept.keys, keys], 2), torch.cat([kept.values, values], 2)
        hidden = hidden + self.dropout(self.attention(normed, keys, values, mask))
        now = None
        if memory is not None and self.cross is not None and self.norm2 is not None:
            source = self.cross.keys_and_values(memory.states) if kept is None else kept[2:]
            now = _Kept(keys, values, *source)
            hidden = hidden + self.dropout(self.cross(self.norm2(hidden), *source, memory.mask[:, None, None]))
        return hidden + self.dropout(self.perceptron(self.norm3(hidden))), now


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float, max_distance: int | None) -> None:
        super().__init__()
        self.heads, self.rate, self.max_distance = heads, dropout, max_distance
        self.query, self.output = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        if max_distance is not None:
            self.distances = nn.Parameter(torch.randn(2 * max_distance + 1, dim // heads) * (dim // heads) ** -0.5)

    def keys_and_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.key_value(states).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return keys, values

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """The last query stands at the place of the last key."""
        query = self.query(queries).unflatten(2, (self.heads, -1)).transpose(1, 2)
        bias = mask
        if self.max_distance is not None:
            length, size = keys.shape[2], query.shape[2]
            places = torch.arange(length, device=keys.device)
            distance = (places - places[length - size :, None]).clamp(-self.max_distance, self.max_distance)
            by_distance = query @ self.distances.T / math.sqrt(query.shape[3])  # (batch, heads, queries, distances)
            index = (distance + self.max_distance).expand(*by_distance.shape[:2], -1, -1)
            bias = by_distance.gather(3, index).masked_fill(~mask, -torch.inf)
        rate = self.rate if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, dropout_p=rate)
        return self.output(attended.transpose(1, 2).flatten(2))
