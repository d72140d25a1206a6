"""Core: What all networks from sequence to sequence have in common: reading, writing greedily, and copying.

Ids are those of ``heldout.data.TokenVocabulary``: 0 fills up rows at the right, 1 starts and 2 ends a target. What is
written never depends on how far rows are filled up.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.data import END, PAD, START
from heldout.errors import check_at_least, check_dimensions, check_fraction, check_labels, checked
from heldout.method import evaluating


class Memory(NamedTuple):
    """A source that was read.

    Attributes:
        states: ``(batch, length, dim)``.
        mask: bool ``(batch, length)``, what is no filling.
        source: int64 ``(batch, length)``.
        final: what else a decoder starts from, with the batch as the second axis; None for most.

    Example:
        >>> source = torch.tensor([[3, 2], [4, 0]])
        >>> memory = Memory(torch.zeros(2, 2, 8), source != PAD, source)
        >>> memory.rows(torch.tensor([1])).mask
        tensor([[ True, False]])
    """

    states: Tensor
    mask: Tensor
    source: Tensor
    final: tuple[Tensor, ...] | None = None

    @checked
    def rows(self, kept: Tensor) -> Memory:
        """Returns some rows of the batch."""
        final = None if self.final is None else tuple(part[:, kept] for part in self.final)
        return Memory(self.states[kept], self.mask[kept], self.source[kept], final)


class Seq2Seq(nn.Module):
    """An encoder, a decoder and a head; subclasses say how sources are read and targets written.

    ``encode(source)`` returns the ``Memory`` of a source; ``decode(memory, target_in, state)`` the hidden states of the
    given target tokens ``(batch, length, dim)``, and a state with which the next ones are written without writing the
    earlier ones again. A state that is None is that of a target's beginning.

    Args:
        vocab_size: ids from 0; those of sources and targets are one vocabulary.
        dim: of hidden states.
        dropout: after embeddings and within layers, in [0, 1).
        copy: whether each token is written by a mixture of the head and of a pointer to the source's tokens
            (arXiv:1704.04368, equations 8 and 9); outputs are log-probabilities then.

    Raises:
        ValueError: sizes out of range.

    Example:
        >>> class Same(Seq2Seq):
        ...     def encode(self, source):
        ...         return Memory(self.source_embedding(source), source != PAD, source)
        ...     def decode(self, memory, target_in, state=None):
        ...         start = state or 0
        ...         stop = start + target_in.shape[1]
        ...         return memory.states[:, start:stop], stop
        ...     def rows_of(self, state, kept):
        ...         return state
        >>> Same(5, 8, 0.0, False)(torch.tensor([[3, 4, 2]]), torch.tensor([[1, 3]])).shape
        torch.Size([1, 2, 5])
    """

    def __init__(self, vocab_size: int, dim: int, dropout: float, copy: bool) -> None:
        check_at_least(4, vocab_size=vocab_size)
        check_at_least(1, dim=dim)
        check_fraction(dropout=dropout)
        super().__init__()
        self.vocab_size, self.dim = vocab_size, dim
        self.source_embedding = nn.Embedding(vocab_size, dim, padding_idx=PAD)
        self.target_embedding = nn.Embedding(vocab_size, dim, padding_idx=PAD)
        for embedding in (self.source_embedding, self.target_embedding):
            nn.init.normal_(embedding.weight, std=dim**-0.5)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(dim, vocab_size)
        self.pointer = nn.Linear(dim, dim, bias=False) if copy else None
        self.gate = nn.Linear(dim, 1) if copy else None

    def encode(self, source: Tensor) -> Memory:
        """Returns a read source."""
        raise NotImplementedError

    def decode(self, memory: Memory, target_in: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Returns hidden states for target tokens, and the state after them."""
        raise NotImplementedError

    def rows_of(self, state: Any, kept: Tensor) -> Any:
        """Returns the state of some rows of the batch."""
        raise NotImplementedError

    @checked
    def forward(self, source: Tensor, target_in: Tensor) -> Tensor:
        """Returns logits ``(batch, target length, vocab_size)`` of the token after each given target token.

        Args:
            source: int64 ``(batch, length)``, rows filled up with 0 at the right; none is empty.
            target_in: int64 ``(batch, target length)``, 1 and the target, filled up with 0. Columns of nothing but 0
                are not computed: their logits are 0.

        Raises:
            ValueError: ids out of range, an empty source, or batches of different sizes.
        """
        check_dimensions(2, source=source, target_in=target_in)
        check_labels(self.vocab_size, source=source, target_in=target_in)
        if len(source) != len(target_in):
            raise ValueError(f"source and target_in must be equally long, got {len(source)} and {len(target_in)}")
        used, memory = _used(target_in), self._read(source)
        hidden, _ = self.decode(memory, target_in[:, :used])
        logits = self.written(hidden, memory)
        return F.pad(logits, (0, 0, 0, target_in.shape[1] - used))

    @checked
    @torch.no_grad()
    def generate(self, source: Tensor, max_length: int) -> Tensor:
        """Returns the most likely next token again and again, int64 ``(batch, at most max_length)``; in eval mode.

        A row ends with 2 (``END``), unless it is cut off, and is filled up with 0. Rows that have ended are not
        computed any more.

        Args:
            source: int64 ``(batch, length)``, rows filled up with 0 at the right; none is empty.
            max_length: tokens at most, ``END`` included.

        Raises:
            ValueError: ids out of range, an empty source, or ``max_length`` below 1.
        """
        check_dimensions(2, source=source)
        check_labels(self.vocab_size, source=source)
        check_at_least(1, max_length=max_length)
        with evaluating(self):
            memory, state = self._read(source), None
            written = torch.full((len(source), max_length), PAD, device=source.device)
            rows = torch.arange(len(source), device=source.device)
            token = torch.full((len(source), 1), START, device=source.device)
            for position in range(max_length):
                hidden, state = self.decode(memory, token, state)
                scores = self.written(hidden, memory)[:, -1]
                scores[:, [PAD, START]] = -torch.inf
                token = scores.argmax(1, keepdim=True)
                written[rows, position] = token[:, 0]
                going = token[:, 0] != END
                if not going.all():
                    if not going.any():
                        return written[:, : position + 1]
                    rows, token = rows[going], token[going]
                    memory, state = memory.rows(going), self.rows_of(state, going)
        return written

    def written(self, hidden: Tensor, memory: Memory) -> Tensor:
        """Returns logits (or, with copying, log-probabilities) for hidden states ``(batch, length, dim)``."""
        logits = self.head(hidden)
        if self.pointer is None or self.gate is None:
            return logits
        scores = self.pointer(hidden) @ memory.states.transpose(1, 2) / math.sqrt(self.dim)
        pointed = scores.masked_fill(~memory.mask.unsqueeze(1), -torch.inf).softmax(2)
        gate = self.gate(hidden).sigmoid()
        copied = torch.zeros_like(logits).scatter_add_(
            2, memory.source.unsqueeze(1).expand(-1, logits.shape[1], -1), pointed
        )
        return ((1 - gate) * logits.softmax(2) + gate * copied).clamp(min=torch.finfo(logits.dtype).tiny).log()

    def _read(self, source: Tensor) -> Memory:
        if not (source[:, 0] != PAD).all():
            raise ValueError("source must have a token in each row")
        return self.encode(source[:, : _used(source)])


def _used(ids: Tensor) -> int:
    """How many columns there are up to the last that is not filling alone."""
    used = (ids != PAD).any(0).nonzero()
    return int(used[-1]) + 1 if len(used) else 1


class SinusoidalPositions(nn.Module):
    """Adds sines and cosines of positions to embeddings; no position is too large. Source: arXiv:1706.03762, 3.5.

    Args:
        dim: even.

    Example:
        >>> SinusoidalPositions(4)(torch.zeros(1, 2, 4))[0, 0].tolist()
        [0.0, 1.0, 0.0, 1.0]
    """

    @checked
    def __init__(self, dim: int) -> None:
        super().__init__()
        check_at_least(2, dim=dim)
        if dim % 2:
            raise ValueError(f"dim must be even, got {dim}")
        self.dim = dim

    @checked
    def forward(self, embedded: Tensor, start: int = 0) -> Tensor:
        """Returns embeddings ``(batch, length, dim)`` of the positions from ``start``, with their positions added."""
        check_at_least(0, start=start)
        even = torch.arange(0, self.dim, 2, dtype=torch.float64, device=embedded.device)
        rates = torch.exp(even * (-math.log(10_000.0) / self.dim))  # no buffer: half precision would round it
        positions = torch.arange(start, start + embedded.shape[1], device=embedded.device).unsqueeze(1)
        angles = positions * rates
        return embedded + torch.stack([angles.sin(), angles.cos()], 2).flatten(1).to(embedded.dtype)
