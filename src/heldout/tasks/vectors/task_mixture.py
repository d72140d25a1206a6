"""Core: Mixtures of in-context tasks: D tasks drawn once, each sequence is of one of them, or of a fresh one.

A sequence model that is trained on few tasks may learn them by heart, one that is trained on many may infer the task
from its context. Three worlds: urns (tokens), linear regression and noisy classification (vectors with targets).

Source: arXiv:2506.17859 (Wurgaft et al., NeurIPS 2025); linear regression: arXiv:2306.15063; noisy classification:
arXiv:2412.00104.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_fields,
    check_finite,
    check_nonempty,
    check_one_of,
    check_positive,
    checked,
)
from heldout.tasks.seeds import Seed, generator_of

S = TypeVar("S")


class ContextPairs(NamedTuple):
    """Sequences of inputs and their targets.

    Attributes:
        x: ``(n, context, dim)``.
        y: ``(n, context)``, real numbers in regression, int64 labels in classification; the last one is the query's.

    Example:
        >>> pairs = noisy_classification(dim=2, tasks=4, context=3).sample(1)
        >>> bool((pairs.y[0, :-1] == pairs.y[0, -1]).any())  # the context shows the query's item, with its label
        True
    """

    x: Tensor
    y: Tensor


@dataclass(frozen=True, eq=False)
class TaskMixture(Generic[S]):
    """Tasks of training, and how sequences are made of a task; any prior and any sequences, besides the worlds here.

    Attributes:
        tasks: ``(D, ...)``, one row for each task that training draws from, uniformly.
        prior: ``(count, generator) -> (count, ...)``, fresh tasks.
        sequences: ``(tasks (n, ...), generator) -> sequences``, one for each row.
        shown: how many tasks a sequence mixes, where that is more than one: ``sequences`` gets ``(n, shown, ...)``.

    Raises:
        ValueError: no task, or ``shown`` below 1.

    Source: arXiv:2506.17859, section 2.

    Example:
        >>> coins = TaskMixture(
        ...     tasks=torch.tensor([[0.5], [0.9]]),
        ...     prior=lambda count, generator: torch.rand(count, 1, generator=generator),
        ...     sequences=lambda tasks, generator: torch.bernoulli(tasks.expand(-1, 6), generator=generator),
        ... )
        >>> coins.sample(3, "ood", seed=1).shape
        torch.Size([3, 6])
    """

    tasks: Tensor
    prior: Callable[[int, torch.Generator], Tensor]
    sequences: Callable[[Tensor, torch.Generator], S]
    shown: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_nonempty(tasks=self.tasks)
        check_finite(tasks=self.tasks)
        check_at_least(1, shown=self.shown)

    @checked
    def sample(self, n: int, split: Literal["train", "ood"] = "train", *, seed: Seed = 0) -> S:
        """Returns ``n`` sequences.

        Args:
            n: at least 1.
            split: "train" gives each sequence one of ``tasks``; "ood" a fresh task of the prior.
            seed: an int, or a ``torch.Generator`` to draw from, which makes an endless stream.

        Raises:
            ValueError: no sequence, or an unknown split.
        """
        check_at_least(1, n=n)
        check_one_of(("train", "ood"), split=split)
        generator = generator_of(seed)
        count = n * (self.shown or 1)
        if split == "ood":
            drawn = self.prior(count, generator)
        else:
            drawn = self.tasks[torch.randint(0, len(self.tasks), (count,), generator=generator)]
        return self.sequences(drawn if self.shown is None else drawn.unflatten(0, (n, self.shown)), generator)


@checked
def urns(categories: int = 8, tasks: int = 64, context: int = 64, *, seed: Seed = 0) -> TaskMixture[Tensor]:
    """Returns a mixture of urns: a task is a distribution over categories, a sequence draws from it independently.

    Tasks are uniform over the simplex, ``Dirichlet(1, ..., 1)``; samples are int64 ``(n, context)``. A language model
    that predicts the first draw, too, reads them behind a start token: ``F.pad(tokens, (1, 0), value=categories)``.

    Args:
        categories: at least 2.
        tasks: D, how many there are in training; ``tasks`` of the result is float64 ``(D, categories)``.
        context: draws in a sequence.
        seed: of the tasks.

    Raises:
        ValueError: fewer than 2 categories, no task, no context.

    Source: arXiv:2506.17859, "balls and urns".

    Example:
        >>> world = urns(categories=3, tasks=4, context=5)
        >>> world.tasks.shape, world.sample(2).shape
        (torch.Size([4, 3]), torch.Size([2, 5]))
    """
    check_at_least(2, categories=categories)
    check_at_least(1, tasks=tasks, context=context)

    def prior(count: int, generator: torch.Generator) -> Tensor:
        spacings = torch.empty(count, categories, dtype=torch.float64).exponential_(generator=generator)
        return spacings / spacings.sum(1, keepdim=True)

    def sequences(chances: Tensor, generator: torch.Generator) -> Tensor:
        return torch.multinomial(chances, context, replacement=True, generator=generator)

    return TaskMixture(prior(tasks, generator_of(seed)), prior, sequences)


@checked
def linear_regression(
    dim: int = 8, tasks: int = 64, context: int = 16, *, noise_var: float | None = None, seed: Seed = 0
) -> TaskMixture[ContextPairs]:
    """Returns a mixture of linear regressions: a task is a vector w, a sequence pairs of x and ``<w, x>`` plus noise.

    Entries of w and x are standard normal. ``interleaved`` makes tokens of the pairs.

    Args:
        dim: of x.
        tasks: D, how many there are in training; ``tasks`` of the result is float64 ``(D, dim)``.
        context: pairs in a sequence.
        noise_var: variance of the noise; ``dim / 256`` by default.
        seed: of the tasks.

    Raises:
        ValueError: no dimension, task or context, or noise that is not positive.

    Source: arXiv:2306.15063 (Raventos et al.); arXiv:2506.17859.

    Example:
        >>> x, y = linear_regression(dim=4, tasks=2, context=6).sample(5)
        >>> x.shape, y.shape
        (torch.Size([5, 6, 4]), torch.Size([5, 6]))
    """
    check_at_least(1, dim=dim, tasks=tasks, context=context)
    check_positive(noise_var=noise_var)
    noise = math.sqrt(dim / 256 if noise_var is None else noise_var)

    def prior(count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, dim, generator=generator, dtype=torch.float64)

    def sequences(weights: Tensor, generator: torch.Generator) -> ContextPairs:
        x = torch.randn(len(weights), context, dim, generator=generator)
        y = (x @ weights.float().unsqueeze(2)).squeeze(2)
        return ContextPairs(x, y + noise * torch.randn(y.shape, generator=generator))

    return TaskMixture(prior(tasks, generator_of(seed)), prior, sequences)


@checked
def interleaved(pairs: ContextPairs) -> Tensor:
    """Returns tokens ``(n, 2 context, dim + 1)``: x with a last entry of 0, then zeros with y as the last entry.

    A causal model's output at token ``2 t`` is its prediction of the target t.

    Raises:
        ValueError: shapes that do not fit.

    Source: arXiv:2306.15063, appendix.

    Example:
        >>> interleaved(ContextPairs(torch.ones(1, 1, 2), torch.tensor([[5.0]])))
        tensor([[[1., 1., 0.],
                 [0., 0., 5.]]])
    """
    x, y = pairs
    if x.ndim != 3 or y.shape != x.shape[:2]:
        raise ValueError(f"pairs must be (n, context, dim) and (n, context), got {tuple(x.shape)} and {tuple(y.shape)}")
    tokens = x.new_zeros(len(x), x.shape[1], 2, x.shape[2] + 1)
    tokens[:, :, 0, :-1] = x
    tokens[:, :, 1, -1] = y.to(x.dtype)
    return tokens.flatten(1, 2)


@checked
def noisy_classification(
    dim: int = 8, tasks: int = 64, context: int = 16, *, noise_var: float = 0.5, seed: Seed = 0
) -> TaskMixture[ContextPairs]:
    """Returns a mixture of labelled items: a sequence shows noisy copies with labels, the last copy is the query.

    Items are normal of variance ``1 / dim`` in each entry, labels 0 or 1. A copy is
    ``(item + sqrt(noise_var) noise) / sqrt(1 + noise_var)`` with noise of the items' law. The query is another copy of
    an item that the context shows, so that copying its label answers, and so does knowing the items by heart.

    Args:
        dim: of an item.
        tasks: D, how many items there are in training; ``tasks`` of the result is float64 ``(D, dim + 1)``, items with
            their label as last entry.
        context: copies in a sequence, with the query, at least 2.
        noise_var: within a class.
        seed: of the items.

    Raises:
        ValueError: no dimension or task, a context below 2, or noise that is not positive.

    Source: arXiv:2412.00104 (Nguyen and Reddy); arXiv:2506.17859. The specification does not say which items a
    sequence shows: here each is drawn by itself; out of distribution each is a fresh item.

    Example:
        >>> x, y = noisy_classification(dim=4, tasks=8, context=6).sample(5, "ood")
        >>> x.shape, y.dtype
        (torch.Size([5, 6, 4]), torch.int64)
    """
    check_at_least(1, dim=dim, tasks=tasks)
    check_at_least(2, context=context)
    check_positive(noise_var=noise_var)

    def items(count: int, generator: torch.Generator) -> Tensor:
        vectors = torch.randn(count, dim, generator=generator, dtype=torch.float64) / math.sqrt(dim)
        labels = torch.randint(0, 2, (count, 1), generator=generator)
        return torch.cat([vectors, labels.to(vectors.dtype)], 1)

    def sequences(shown: Tensor, generator: torch.Generator) -> ContextPairs:
        query = torch.randint(0, context - 1, (len(shown),), generator=generator)
        shown = torch.cat([shown, shown[torch.arange(len(shown)), query].unsqueeze(1)], 1).float()
        vectors, labels = shown[..., :-1], shown[..., -1]
        noise = math.sqrt(noise_var / dim) * torch.randn(vectors.shape, generator=generator)
        return ContextPairs((vectors + noise) / math.sqrt(1 + noise_var), labels.long())

    return TaskMixture(items(tasks, generator_of(seed)), items, sequences, shown=context - 1)
