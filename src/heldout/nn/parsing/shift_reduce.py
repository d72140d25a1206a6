"""Core: A neural shift-reduce parser, trained on trees, that can also draw them. Source: arXiv:2210.01603."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.errors import (
    check_at_least,
    check_fraction,
    check_labels,
    check_nonempty,
    check_positive,
    check_same_length,
    checked,
)
from heldout.nn.parsing.transitions import FEATURES, ParseState, check_heads, oracle_steps


class Parse(NamedTuple):
    """A sentence with its tree.

    Attributes:
        symbols: of the sentence.
        heads: position of each symbol's head, -1 for the root.
        log_probability: of its transitions; 0 where they were not drawn.

    Example:
        >>> parse = Parse(symbols=(3, 10, 4), heads=(1, -1, 1))
        >>> parse.symbols[parse.heads.index(-1)], parse.log_probability  # the root
        (10, 0.0)
    """

    symbols: tuple[int, ...]
    heads: tuple[int, ...]
    log_probability: float = 0.0


class ShiftReduceParser(nn.Module):
    """Builds a dependency tree by arc-standard transitions that a perceptron chooses by the 18 symbols around.

    The features of a state are read in Python; all sentences of a call go through the network together, so that n
    sentences of length l cost ``2 l - 1`` forward passes.

    Args:
        vocab_size: symbols are 0 to ``vocab_size - 1``.
        arities: how many children each symbol takes, ``(vocab_size,)``; then other trees are built only where there is
            no choice. None knows nothing of this, as in the published code.
        embed: units of a symbol's embedding.
        hidden: units of the hidden layer.
        dropout: of hidden units when it is trained.
        lr: of Adam (amsgrad), whose state is kept from one ``fit`` to the next.

    Raises:
        ValueError: sizes out of range, or arities of another number than symbols.

    Source: arXiv:2210.01603, section 3.1 and the official code.

    Example:
        >>> torch.manual_seed(0) and None
        >>> parser = ShiftReduceParser(3, embed=8, hidden=16, lr=0.01)
        >>> _ = parser.fit([Parse((0, 1, 0), (1, -1, 1)), Parse((0, 2), (1, -1))], steps=60)
        >>> parser.parse([[0, 1, 0], [0, 2]])[0].heads
        (1, -1, 1)
    """

    @checked
    def __init__(
        self,
        vocab_size: int,
        arities: Sequence[int] | None = None,
        embed: int = 50,
        hidden: int = 200,
        *,
        dropout: float = 0.5,
        lr: float = 1e-4,
    ) -> None:
        check_at_least(1, vocab_size=vocab_size, embed=embed, hidden=hidden)
        check_fraction(dropout=dropout)
        check_positive(lr=lr)
        if arities is not None:
            check_labels(arities=arities)
            if len(arities) != vocab_size:
                raise ValueError(f"arities must be one for each of {vocab_size} symbols, got {len(arities)}")
        super().__init__()
        self.vocab_size, self.dropout = vocab_size, dropout
        self.arities = None if arities is None else list(arities)
        self.embedding = nn.Embedding(vocab_size + 1, embed)  # the last is that of no symbol
        self.hidden = nn.Linear(FEATURES * embed, hidden)
        self.head = nn.Linear(hidden, 3)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr, amsgrad=True)

    @checked
    def forward(self, features: Tensor, kept: Tensor | None = None) -> Tensor:
        """Returns logits ``(batch, 3)`` of left, right and shift.

        Args:
            features: int64 ``(batch, 18)``, see ``ParseState.features``; ``vocab_size`` where there is no symbol.
            kept: ``(batch, hidden)``, what hidden units are multiplied by; None for 1.

        Raises:
            ValueError: symbols out of range.
        """
        check_labels(self.vocab_size + 1, features=features)
        hidden = self.hidden(self.embedding(features).flatten(1)).relu()
        return self.head(hidden if kept is None else hidden * kept)

    def _kept(self, rows: int, generator: torch.Generator | None) -> Tensor:
        """What hidden units are multiplied by: 0 for a share of them, and for the others what keeps the mean."""
        uniform = torch.rand(rows, self.hidden.out_features, generator=generator)
        return ((uniform >= self.dropout) / max(1 - self.dropout, 1e-12)).to(self.head.weight)

    @checked
    @torch.no_grad()
    def parse(
        self, sentences: Sequence[Sequence[int]], sample: bool = False, *, generator: torch.Generator | None = None
    ) -> list[Parse]:
        """Returns a tree for each sentence, made of the likeliest transitions or of drawn ones.

        Args:
            sentences: of symbols; none is empty.
            sample: whether transitions are drawn by their probabilities, illegal ones left out, with dropout, as in the
                published code: a parser that has seen few kinds of sentences tries others yet.
            generator: of the draws; None takes torch's own.

        Raises:
            ValueError: no sentences, an empty one, or a symbol out of range.
        """
        check_nonempty(sentences=sentences)
        check_labels(self.vocab_size, sentences=sentences)
        if not all(len(sentence) for sentence in sentences):
            raise ValueError("sentences must not hold an empty one")
        states = [ParseState(sentence, self.arities) for sentence in sentences]
        total = [0.0] * len(states)
        going = list(range(len(states)))
        while going := [each for each in going if not states[each].finished]:
            device = self.head.weight.device
            features = torch.tensor([states[each].features(self.vocab_size) for each in going], device=device)
            legal = torch.tensor([states[each].legal() for each in going], device=device)
            kept = self._kept(len(going), generator) if sample else None
            scores = self.forward(features, kept).masked_fill(~legal, -torch.inf).log_softmax(1)
            if sample:
                moves = torch.multinomial(scores.exp(), 1, generator=generator).squeeze(1)
            else:
                moves = scores.argmax(1)
            taken = scores.gather(1, moves[:, None]).squeeze(1)
            for each, move, score in zip(going, moves.tolist(), taken.tolist(), strict=True):
                states[each].advance(move)
                total[each] += score
        return [
            Parse(tuple(state.symbols), tuple(state.heads), score) for state, score in zip(states, total, strict=True)
        ]

    @checked
    def fit(self, parses: Sequence[Parse], *, steps: int = 100, batch_size: int = 1024, seed: int = 0) -> list[float]:
        """Trains on the transitions that make the given trees; returns the loss of each step.

        Args:
            parses: with projective trees; sentences of one symbol teach nothing and are passed over.
            steps: of the optimizer, at least one pass over all transitions is not promised.
            batch_size: transitions in a step, drawn with replacement.
            seed: of batches and dropout.

        Raises:
            ValueError: no tree of two symbols, heads that are no projective tree, or numbers out of range.
        """
        check_nonempty(parses=parses)
        check_at_least(1, steps=steps, batch_size=batch_size)
        check_at_least(0, seed=seed)
        check_labels(self.vocab_size, parses=[parse.symbols for parse in parses])
        counted: dict[tuple, list] = {}
        for parse in parses:
            check_same_length(symbols=parse.symbols, heads=parse.heads)
            if len(parse.symbols) > 1:
                counted.setdefault((tuple(parse.symbols), tuple(parse.heads)), [0])[0] += 1
        if not counted:
            raise ValueError("parses must hold a tree of two symbols at least")
        found = [
            (step.features, step.transition, times)
            for (symbols, heads), (times,) in counted.items()
            for step in oracle_steps(symbols, heads, self.vocab_size)
        ]
        device = self.head.weight.device
        generator = torch.Generator().manual_seed(seed)
        features = torch.tensor([each[0] for each in found], device=device)
        targets = torch.tensor([each[1] for each in found], device=device)
        weights = torch.tensor([float(each[2]) for each in found])
        losses = []
        for _ in range(steps):
            drawn = torch.multinomial(weights, batch_size, replacement=True, generator=generator).to(device)
            logits = self.forward(features[drawn], self._kept(batch_size, generator))
            loss = F.cross_entropy(logits, targets[drawn])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses


class RuleParser:
    """A parser that is given: trees come from a function, and nothing is learned.

    Args:
        heads_of: from the symbols of a sentence to the position of each symbol's head, -1 for the root.

    Example:
        >>> RuleParser(lambda symbols: [*range(1, len(symbols)), -1]).parse([[4, 5, 6]])[0].heads
        (1, 2, -1)
    """

    @checked
    def __init__(self, heads_of: Callable[[Sequence[int]], Sequence[int]]) -> None:
        self.heads_of = heads_of

    @checked
    def parse(
        self, sentences: Sequence[Sequence[int]], sample: bool = False, *, generator: torch.Generator | None = None
    ) -> list[Parse]:
        """Returns the tree of each sentence; nothing is drawn.

        Raises:
            ValueError: no sentences, or heads that are no tree.
        """
        check_nonempty(sentences=sentences)
        found = []
        for sentence in sentences:
            heads = self.heads_of(sentence)
            check_heads(len(sentence), heads)
            found.append(Parse(tuple(sentence), tuple(heads)))
        return found
