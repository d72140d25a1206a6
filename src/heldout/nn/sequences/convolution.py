"""Core: Convolutions that read and write, with attention in every layer. Source: arXiv:1705.03122."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.data import PAD
from heldout.errors import check_at_least, checked
from heldout.nn.sequences.seq2seq import Memory, Seq2Seq, SinusoidalPositions


class ConvSeq2Seq(Seq2Seq):
    """Writes a sequence for a sequence by gated convolutions, which see both sides when reading, the past when writing.

    Args:
        vocab_size: ids from 0, see ``TokenVocabulary``.
        dim: of hidden states, even.
        layers: of the encoder, and of the decoder.
        width: tokens that a convolution sees, odd.
        dropout: after embeddings and before each convolution, in [0, 1].
        copy: whether tokens of the source may be copied, see ``Seq2Seq``.

    Raises:
        ValueError: sizes out of range.

    Source: arXiv:1705.03122, section 3; deviation: sinusoidal positions, so that none is untrained.

    Example:
        >>> model = ConvSeq2Seq(vocab_size=10, dim=16)
        >>> model(torch.tensor([[3, 4, 0], [5, 6, 7]]), torch.tensor([[1, 8], [1, 9]])).shape
        torch.Size([2, 2, 10])
    """

    @checked
    def __init__(
        self,
        vocab_size: int,
        dim: int = 64,
        layers: int = 2,
        width: int = 3,
        dropout: float = 0.1,
        *,
        copy: bool = False,
    ) -> None:
        check_at_least(1, layers=layers, width=width)
        super().__init__(vocab_size, dim, dropout, copy)
        if width % 2 == 0:
            raise ValueError(f"width must be odd, got {width}")
        self.width = width
        self.positions = SinusoidalPositions(dim)
        self.encoder = nn.ModuleList(nn.Conv1d(dim, 2 * dim, width) for _ in range(layers))
        self.decoder = nn.ModuleList(nn.Conv1d(dim, 2 * dim, width) for _ in range(layers))
        self.queries = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))
        self.attended = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))

    def encode(self, source: Tensor) -> Memory:
        mask = source != PAD
        kept = mask.unsqueeze(2)
        embedded = self._embedded(self.source_embedding, source)
        states = embedded
        for convolution in self.encoder:
            padded = F.pad(self.dropout(states * kept).transpose(1, 2), (self.width // 2, self.width // 2))
            states = _halved(states + F.glu(convolution(padded), 1).transpose(1, 2))
        return Memory(states, mask, source, (embedded.unsqueeze(0),))

    def decode(self, memory: Memory, target_in: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        whole = target_in if state is None else torch.cat([state, target_in], 1)
        embedded = self._embedded(self.target_embedding, whole)
        values = _halved(memory.states + memory.final[0][0])  # type: ignore[index]
        hidden = embedded
        for convolution, query, attended in zip(self.decoder, self.queries, self.attended, strict=True):
            padded = F.pad(self.dropout(hidden).transpose(1, 2), (self.width - 1, 0))
            gated = F.glu(convolution(padded), 1).transpose(1, 2)
            scores = _halved(query(gated) + embedded) @ memory.states.transpose(1, 2) / math.sqrt(self.dim)
            weights = scores.masked_fill(~memory.mask.unsqueeze(1), -torch.inf).softmax(2)
            hidden = _halved(hidden + _halved(gated + attended(weights @ values)))
        return self.dropout(hidden[:, whole.shape[1] - target_in.shape[1] :]), whole

    def rows_of(self, state: Tensor, kept: Tensor) -> Tensor:
        return state[kept]

    def _embedded(self, embedding: nn.Embedding, ids: Tensor) -> Tensor:
        return self.dropout(self.positions(embedding(ids) * math.sqrt(self.dim)))


def _halved(sum_of_two: Tensor) -> Tensor:
    """A sum scaled so that its variance is that of its terms."""
    return sum_of_two * math.sqrt(0.5)
