"""Core: Ways to bring two streams of tokens together: attention across, latents, one stream, two streams, a GRU.

Each takes tokens of one width, from any two encoders, which also give them their positions
(``SinusoidalPositions``), and returns one vector for each pair. Source: arXiv:2401.15030, section 2.3, and its code
(models/transformer.py).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from heldout.errors import check_at_least, check_same_length, checked
from heldout.nn.fusion.attention_block import AttentionBlock, attended, check_heads, last_token, masked_tokens

Pair = tuple[Tensor, Tensor | None, Tensor, Tensor | None]


class _Fusion(nn.Module):
    """Two streams and the blocks that each passes first; ``width`` is that of what comes out."""

    def __init__(self, d: int, heads: int, blocks: int, *, width: int | None = None) -> None:
        check_heads(d, heads)
        check_at_least(0, blocks=blocks)
        super().__init__()
        self.d, self.width = d, d if width is None else width
        self.blocks_a = nn.ModuleList(AttentionBlock(d, heads) for _ in range(blocks))
        self.blocks_b = nn.ModuleList(AttentionBlock(d, heads) for _ in range(blocks))

    @checked
    def forward(
        self, tokens_a: Tensor, tokens_b: Tensor, mask_a: Tensor | None = None, mask_b: Tensor | None = None
    ) -> Tensor:
        """Returns one vector for each pair of rows, ``(batch, width)``; the width is mostly ``d``.

        Args:
            tokens_a: ``(batch, length, d)``, the instruction.
            tokens_b: ``(batch, other length, d)``, the scene.
            mask_a: bool ``(batch, length)``, what is a token; nothing else has an influence. None: all are.
            mask_b: the same of ``tokens_b``.

        Raises:
            ValueError: shapes that do not match, or a row without a token.
        """
        a, mask_a = masked_tokens(self.d, tokens_a=tokens_a, mask_a=mask_a)
        b, mask_b = masked_tokens(self.d, tokens_b=tokens_b, mask_b=mask_b)
        check_same_length(tokens_a=tokens_a, tokens_b=tokens_b)
        for block in self.blocks_a:
            a = block(a, mask_a)
        for block in self.blocks_b:
            b = block(b, mask_b)
        return self.fused((a, mask_a, b, mask_b))

    def fused(self, pair: Pair) -> Tensor:
        """Returns the vectors of encoded streams and their masks."""
        raise NotImplementedError


class CrossAttentionFusion(_Fusion):
    """Lets a query attend to the instruction, and what it found there to the scene.

    Args:
        d: of tokens, a multiple of ``heads``.
        heads: of each attention.
        latents: queries, of which the last one's vector is returned. Without a start of their own they are equal.
        blocks: self-attention blocks that each stream passes before, each its own.
        learned: whether the queries start from learned vectors, and not from zeros as in the paper.

    Raises:
        ValueError: sizes out of range, or several latents that all start from zeros.

    Source: arXiv:2401.15030, "cross-attention transformer"; both crossings are added to the query and normalised by the
    same LayerNorm, as in its code.

    Example:
        >>> fusion = CrossAttentionFusion(8)
        >>> fusion(torch.zeros(2, 3, 8), torch.zeros(2, 5, 8)).shape
        torch.Size([2, 8])
    """

    @checked
    def __init__(self, d: int, heads: int = 1, latents: int = 1, *, blocks: int = 1, learned: bool = False) -> None:
        check_at_least(1, latents=latents)
        if latents > 1 and not learned:
            raise ValueError(f"latents must be 1 unless they are learned: {latents} that start from zeros stay equal")
        super().__init__(d, heads, blocks)
        start = 0.02 * torch.randn(1, latents, d) if learned else torch.zeros(1, latents, d)
        self.latents = nn.Parameter(start, requires_grad=learned)
        self.cross_a = nn.MultiheadAttention(d, heads, batch_first=True)
        self.cross_b = nn.MultiheadAttention(d, heads, batch_first=True)
        self.norm = nn.LayerNorm(d)

    def fused(self, pair: Pair) -> Tensor:
        a, mask_a, b, mask_b = pair
        latents = self.latents.expand(len(a), -1, -1)
        latents = self.norm(latents + attended(self.cross_a, latents, a, mask_a))
        return self.norm(latents + attended(self.cross_b, latents, b, mask_b))[:, -1]


class PerceiverFusion(_Fusion):
    """Lets latents attend to the instruction, to each other, to the scene, and to each other again.

    Args:
        d: of tokens, a multiple of ``heads``.
        heads: of each attention.
        latents: of which the last one's vector is returned.
        blocks: self-attention blocks that each stream passes before, each its own.
        learned: whether latents start from learned vectors. False: from zeros as in the paper's code, where they are
            copies of each other throughout, as good as one.

    Raises:
        ValueError: sizes out of range, or that do not divide.

    Source: arXiv:2401.15030, "Perceiver", after arXiv:2107.14795; deviation: ``learned``.

    Example:
        >>> fusion = PerceiverFusion(8, latents=4)
        >>> fusion(torch.zeros(2, 3, 8), torch.zeros(2, 5, 8)).shape
        torch.Size([2, 8])
    """

    @checked
    def __init__(self, d: int, heads: int = 1, latents: int = 10, *, blocks: int = 1, learned: bool = True) -> None:
        check_at_least(1, latents=latents)
        super().__init__(d, heads, blocks)
        start = 0.02 * torch.randn(1, latents, d) if learned else torch.zeros(1, latents, d)
        self.latents = nn.Parameter(start, requires_grad=learned)
        self.cross_a = nn.MultiheadAttention(d, heads, batch_first=True)
        self.cross_b = nn.MultiheadAttention(d, heads, batch_first=True)
        self.between = nn.MultiheadAttention(d, heads, batch_first=True)
        self.norm_a, self.norm_b, self.norm = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)
        self.perceptron_a, self.perceptron_b, self.output = (
            nn.Sequential(nn.Linear(d, d), nn.ReLU()) for _ in range(3)
        )

    def fused(self, pair: Pair) -> Tensor:
        a, mask_a, b, mask_b = pair
        latents = self.latents.expand(len(a), -1, -1)
        for cross, norm, perceptron, tokens, mask in (
            (self.cross_a, self.norm_a, self.perceptron_a, a, mask_a),
            (self.cross_b, self.norm_b, self.perceptron_b, b, mask_b),
        ):
            found = norm(attended(cross, latents, tokens, mask))
            latents = self.norm(latents + found + perceptron(found))
            latents = self.norm(latents + attended(self.between, latents, latents, None))
        return self.output(latents)[:, -1]


class SingleStreamFusion(_Fusion):
    """Puts the scene's tokens behind the instruction's, in one stream of self-attention blocks; reads the last token.

    Args:
        d: of tokens, a multiple of ``heads``.
        heads: of each attention.
        blocks: of the one stream, at least 1.

    Raises:
        ValueError: sizes out of range, or that do not divide.

    Source: arXiv:2401.15030, "single-stream transformer". What is said there of features filled up with zeros is a
    linear map for each stream, which is the encoders' here.

    Example:
        >>> SingleStreamFusion(8, blocks=2)(torch.zeros(2, 3, 8), torch.zeros(2, 5, 8)).shape
        torch.Size([2, 8])
    """

    @checked
    def __init__(self, d: int, heads: int = 1, *, blocks: int = 1) -> None:
        check_at_least(1, blocks=blocks)
        super().__init__(d, heads, 0)
        self.blocks = nn.ModuleList(AttentionBlock(d, heads) for _ in range(blocks))
        self.perceptron = _perceptron(d)

    def fused(self, pair: Pair) -> Tensor:
        a, mask_a, b, mask_b = pair
        tokens, mask = torch.cat([a, b], 1), None
        if mask_a is not None or mask_b is not None:
            whole = [
                t.new_ones(t.shape[:2], dtype=torch.bool) if m is None else m for t, m in ((a, mask_a), (b, mask_b))
            ]
            mask = torch.cat(whole, 1)
        for block in self.blocks:
            tokens = block(tokens, mask)
        return self.perceptron(last_token(tokens, mask))


class DualStreamFusion(_Fusion):
    """Reads each stream by its own self-attention blocks and adds up what their last tokens say.

    Args:
        d: of tokens, a multiple of ``heads``.
        heads: of each attention.
        blocks: of each stream.

    Raises:
        ValueError: sizes out of range, or that do not divide.

    Source: arXiv:2401.15030, "dual-stream transformer".

    Example:
        >>> DualStreamFusion(8)(torch.zeros(2, 3, 8), torch.zeros(2, 5, 8)).shape
        torch.Size([2, 8])
    """

    @checked
    def __init__(self, d: int, heads: int = 1, *, blocks: int = 1) -> None:
        super().__init__(d, heads, blocks)
        self.read_a, self.read_b = (nn.Sequential(nn.Linear(d, d), nn.ReLU()) for _ in range(2))
        self.norm, self.perceptron = nn.LayerNorm(d), _perceptron(d)

    def fused(self, pair: Pair) -> Tensor:
        a, mask_a, b, mask_b = pair
        return self.perceptron(self.norm(self.read_a(last_token(a, mask_a)) + self.read_b(last_token(b, mask_b))))


class RecurrentFusion(_Fusion):
    """Reads the instruction token by token with a GRU that sees the whole scene beside each token.

    Args:
        d: of tokens.
        length: of the second stream, always the same.
        hidden: units of the GRU, the width of what is returned. Default: ``d``.

    Raises:
        ValueError: sizes out of range; in the call, a second stream of another length.

    Source: arXiv:2401.15030, "GRU", and its code (models/rnn.py): the last state, normalised. There the tokens are
    raw features; here they come from encoders, whose ``d`` sets how many inputs the scene is.

    Example:
        >>> RecurrentFusion(8, length=5, hidden=16)(torch.zeros(2, 3, 8), torch.zeros(2, 5, 8)).shape
        torch.Size([2, 16])
    """

    @checked
    def __init__(self, d: int, length: int, hidden: int | None = None) -> None:
        check_at_least(1, length=length)
        if hidden is not None:
            check_at_least(1, hidden=hidden)
        super().__init__(d, 1, 0, width=hidden)
        self.length = length
        self.gru = nn.GRU(d * (1 + length), self.width, batch_first=True)
        self.norm = nn.LayerNorm(self.width)

    def fused(self, pair: Pair) -> Tensor:
        a, mask_a, b, _ = pair
        if b.shape[1] != self.length:
            raise ValueError(f"tokens_b must be {self.length} tokens, got {b.shape[1]}")
        last = torch.full((len(a),), a.shape[1] - 1, device=a.device)
        if mask_a is not None:  # what is no token comes last, and the state before it is read
            a = a.gather(1, (~mask_a).int().argsort(dim=1, stable=True)[:, :, None].expand_as(a))
            last = mask_a.sum(1) - 1
        states, _ = self.gru(torch.cat([a, b.flatten(1)[:, None].expand(-1, a.shape[1], -1)], 2))
        return self.norm(states[torch.arange(len(a), device=a.device), last])


def _perceptron(d: int) -> nn.Sequential:
    layers = [part for n, m in pairwise((d, 2 * d, 2 * d, d)) for part in (nn.Linear(n, m), nn.ReLU())]
    return nn.Sequential(*layers, nn.LayerNorm(d))
