"""Core: A procedural language of few regularities and much chance, whose sequences repeat parts of themselves.

What follows a token is drawn, so most of a sequence can only be guessed at or learned by heart; where a part comes
again, a model that copies from its context knows it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_fields, check_fraction, check_positive, checked
from heldout.tasks.seeds import Seed, generator_of


@dataclass(frozen=True, eq=False)
class CopyingLanguage:
    """A Markov source of order 1 whose sequences repeat a part of themselves.

    Attributes:
        transitions: float64 ``(vocabulary, vocabulary)``, rows sum to 1: the probabilities of the next token.

    Example:
        >>> language = copying_language(vocab=64, seed=0)
        >>> language.sample(3, seed=1).shape, 3.3 < language.entropy < 3.7
        (torch.Size([3, 64]), True)
    """

    transitions: Tensor

    def __post_init__(self) -> None:
        check_fields(self)
        rows = self.transitions
        if rows.ndim != 2 or rows.shape[0] != rows.shape[1] or not len(rows):
            raise ValueError(f"transitions must be square, got {tuple(rows.shape)}")
        if not bool((rows >= 0).all() and torch.allclose(rows.sum(1), torch.ones_like(rows.sum(1)))):
            raise ValueError("transitions must be probabilities whose rows sum to 1")

    @property
    def stationary(self) -> Tensor:
        """How often each token occurs in the long run, float64 ``(vocabulary,)``."""
        return torch.linalg.matrix_power(self.transitions.double(), 2**20)[0]

    @property
    def entropy(self) -> float:
        """Nats of a token, given the one before it: what the best model without copying loses."""
        return float((self.stationary * torch.special.entr(self.transitions.double()).sum(1)).sum())

    @checked
    def sample(
        self,
        count: int,
        length: int = 64,
        *,
        copy: float = 0.5,
        least: int = 6,
        most: int = 12,
        seed: Seed = 0,
    ) -> Tensor:
        """Returns new sequences, int64 ``(count, length)``.

        Args:
            count: sequences.
            length: tokens of each, at least ``2 * most``.
            copy: probability that a part of a sequence comes again later in it; the source goes on behind the copy.
            least: tokens of the shortest part.
            most: tokens of the longest part.
            seed: of the sequences.

        Raises:
            ValueError: parts that do not fit twice, or a probability outside of [0, 1].
        """
        check_at_least(1, count=count, least=least)
        check_fraction(copy=copy)
        check_at_least(least, most=most)
        check_at_least(2 * most, length=length)
        generator = generator_of(seed)

        def draw(low: Tensor, high: Tensor) -> Tensor:  # high is drawn, too
            return low + (torch.rand(count, generator=generator) * (high - low + 1)).long()

        size = torch.randint(least, most + 1, (count,), generator=generator)
        source = draw(torch.zeros_like(size), length - 2 * size)
        target = draw(source + size, length - size)
        target = torch.where(torch.rand(count, generator=generator) < copy, target, length)
        bounds = self.transitions.double().cumsum(1)[:, :-1].contiguous()
        rows = torch.empty(count, length, dtype=torch.long)
        rows[:, 0] = torch.multinomial(self.stationary, count, replacement=True, generator=generator)
        uniform = torch.rand(length, count, 1, generator=generator, dtype=torch.float64)
        for place in range(1, length):
            drawn = torch.searchsorted(bounds[rows[:, place - 1]], uniform[place], right=True)[:, 0]
            copied = (target <= place) & (place < target + size)
            earlier = (place - target + source).clamp(0, place - 1)
            rows[:, place] = torch.where(copied, rows.gather(1, earlier[:, None])[:, 0], drawn)
        return rows


@checked
def copying_language(vocab: int = 64, rank: int = 8, *, concentration: float = 0.2, seed: Seed = 0) -> CopyingLanguage:
    """Returns a language whose table of transitions is random and of low rank.

    A token belongs to few of ``rank`` hidden kinds, and each kind goes before few tokens.

    Args:
        vocab: tokens; 64 of them at rank 8 have about 3.5 nats each, given the one before.
        rank: of the table.
        concentration: of the Dirichlet distributions that the kinds of a token and the tokens of a kind are drawn from;
            0.07 makes about 2.5 nats.
        seed: of the language.

    Raises:
        ValueError: a number below 1, more kinds than tokens, or a concentration that is not positive.

    Example:
        >>> torch.linalg.matrix_rank(copying_language(32, 4).transitions).item()
        4
    """
    check_at_least(1, vocab=vocab, rank=rank)
    check_at_least(rank, vocab=vocab)
    check_positive(concentration=concentration)
    generator = generator_of(seed)

    def rows(*shape: int) -> Tensor:
        drawn = torch._standard_gamma(torch.full(shape, concentration, dtype=torch.float64), generator=generator)
        return drawn / drawn.sum(1, keepdim=True)

    return CopyingLanguage(rows(vocab, rank) @ rows(rank, vocab))
