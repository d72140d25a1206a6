"""Core: LSTMs that read and write, with attention. Source: arXiv:1409.0473 and arXiv:1508.04025 (global, general)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from heldout.data import PAD
from heldout.errors import check_at_least, checked
from heldout.nn.sequences.seq2seq import Memory, Seq2Seq


class Seq2SeqLSTM(Seq2Seq):
    """Writes a sequence for a sequence by an LSTM that starts from the source's last states and attends to all of them.

    The decoder reads the target's tokens alone, not what was attended to before, so that a whole target is one call.

    Args:
        vocab_size: ids from 0, see ``TokenVocabulary``.
        dim: of hidden states; even, where both directions are read.
        layers: of the encoder, and of the decoder.
        dropout: after embeddings, between layers and before the head, in [0, 1].
        bidirectional: whether the source is read in both directions, each with ``dim / 2`` units.
        copy: whether tokens of the source may be copied, see ``Seq2Seq``.

    Raises:
        ValueError: sizes out of range.

    Source: arXiv:1508.04025, equations 5 to 8, "general" scores; deviation: no input feeding.

    Example:
        >>> model = Seq2SeqLSTM(vocab_size=10, dim=16, bidirectional=True)
        >>> model(torch.tensor([[3, 4, 0], [5, 6, 7]]), torch.tensor([[1, 8], [1, 9]])).shape
        torch.Size([2, 2, 10])
    """

    @checked
    def __init__(
        self,
        vocab_size: int,
        dim: int = 64,
        layers: int = 1,
        dropout: float = 0.1,
        *,
        bidirectional: bool = False,
        copy: bool = False,
    ) -> None:
        check_at_least(1, layers=layers)
        super().__init__(vocab_size, dim, dropout, copy)
        if bidirectional and dim % 2:
            raise ValueError(f"dim must be even to be read in both directions, got {dim}")
        between = dropout if layers > 1 else 0.0
        units = dim // 2 if bidirectional else dim
        self.encoder = nn.LSTM(dim, units, layers, batch_first=True, dropout=between, bidirectional=bidirectional)
        self.decoder = nn.LSTM(dim, dim, layers, batch_first=True, dropout=between)
        self.score = nn.Linear(dim, dim, bias=False)
        self.combine = nn.Linear(2 * dim, dim)

    def encode(self, source: Tensor) -> Memory:
        mask = source != PAD
        embedded = self.dropout(self.source_embedding(source))
        packed = pack_padded_sequence(embedded, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        states, final = self.encoder(packed)
        states, _ = pad_packed_sequence(states, batch_first=True, total_length=source.shape[1])
        if self.encoder.bidirectional:  # (layers * 2, batch, dim / 2), the two directions of a layer beside each other
            final = tuple(part.unflatten(0, (-1, 2)).transpose(1, 2).flatten(2) for part in final)
        return Memory(states, mask, source, final)

    def decode(
        self, memory: Memory, target_in: Tensor, state: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        embedded = self.dropout(self.target_embedding(target_in))
        started = tuple(part.contiguous() for part in (state or memory.final or ()))
        hidden, state = self.decoder(embedded, started)
        scores = self.score(hidden) @ memory.states.transpose(1, 2) / math.sqrt(self.dim)
        weights = scores.masked_fill(~memory.mask.unsqueeze(1), -torch.inf).softmax(2)
        attended = torch.cat([weights @ memory.states, hidden], 2)
        return self.dropout(self.combine(attended).tanh()), state  # type: ignore[return-value]

    def rows_of(self, state: tuple[Tensor, ...], kept: Tensor) -> tuple[Tensor, ...]:
        return tuple(part[:, kept] for part in state)
