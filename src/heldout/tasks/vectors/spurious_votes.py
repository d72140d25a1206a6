"""Linear models that vote with invariant and spurious features: the theory of arXiv:2309.17230, simulated and exact.

An input is a row of features; feature j of class y is the y-th of ``classes`` orthonormal directions, plus noise. An
invariant feature always shows the true class. A spurious one shows it with probability 1 - p, and otherwise a class
drawn uniformly. A model sums, for each class, the projections of the features that it uses.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_fields,
    check_finite,
    check_labels,
    check_same_length,
    check_values,
    checked,
)

_TIE = 1e-6


class Votes(NamedTuple):
    """A group of features that a model uses with the same weight.

    Attributes:
        invariant: number of invariant features.
        spurious: number of spurious features.
        weight: what one feature adds to the class that it shows. Sharing a feature counts it twice in an average of
            outputs, and four times in an average of weights, relative to one that a single member uses.

    Example:
        >>> own, shared = Votes(1, 1), Votes(1, 1, weight=2.0)
        >>> round(exact_accuracy([own, shared], classes=2, flip_rate=0.5), 4)
        0.9688
    """

    invariant: int
    spurious: int
    weight: float = 1.0


@checked
def exact_accuracy(groups: Sequence[Votes | tuple[float, ...]], classes: int, flip_rate: float) -> float:
    """Returns the accuracy of a model whose features vote without noise, ties split evenly, by enumeration.

    Args:
        groups: what the model uses, as ``(invariant, spurious)`` or ``(invariant, spurious, weight)``. The average of
            two models without a common feature is the union of their groups.
        classes: number of classes K.
        flip_rate: probability p that a spurious feature is redrawn uniformly from the K classes.

    Raises:
        ValueError: no features, negative counts, fewer than 2 classes, or ``flip_rate`` outside [0, 1].

    Source: arXiv:2309.17230, section 3 (its example: K = 3, two models of 2 invariant and 3 spurious features).

    Example:
        >>> round(27 * (1 - exact_accuracy([(2, 3)], classes=3, flip_rate=0.5)) / 0.5**3, 6)
        5.0
    """
    votes = [Votes(*group) for group in groups]
    if classes < 2 or not 0 <= flip_rate <= 1:
        raise ValueError(f"expected at least 2 classes and 0 <= flip_rate <= 1, got {classes} and {flip_rate}")
    if any(min(v.invariant, v.spurious) < 0 for v in votes) or not sum(v.invariant + v.spurious for v in votes):
        raise ValueError(f"expected groups with at least one feature in all, got {[tuple(v) for v in votes]}")
    # class 0 is the true one: by symmetry, only how the votes fall on it and the others matters
    tallies: dict[tuple[float, ...], float] = {
        (sum(v.invariant * v.weight for v in votes), *[0.0] * (classes - 1)): 1.0
    }
    for group in votes:
        for _ in range(group.spurious):
            grown: dict[tuple[float, ...], float] = defaultdict(float)
            for tally, probability in tallies.items():
                for place in range(classes):
                    chance = flip_rate / classes + (1 - flip_rate if place == 0 else 0.0)
                    others = list(tally)
                    others[place] = round(others[place] + group.weight, 9)
                    grown[(others[0], *sorted(others[1:]))] += probability * chance
            tallies = grown
    right = 0.0
    for (true, *others), probability in tallies.items():
        if true >= max(others) - _TIE:
            right += probability / (1 + sum(abs(other - true) <= _TIE for other in others))
    return right


@dataclass(frozen=True)
class SpuriousVotes:
    """Samples of inputs and labels of the theory, and the linear models on them.

    Args:
        invariant: number of invariant features in the world.
        spurious: number of spurious features in the world.
        classes: K.
        flip_rate: p.
        dim: length of one feature vector, at least K.
        noise: standard deviation of the Gaussian noise on every coordinate.
        seed: of the directions.

    Example:
        >>> world = SpuriousVotes(invariant=2, spurious=3, flip_rate=0.0)
        >>> x, y = world.sample(5, seed=0)
        >>> tuple(x.shape), world.accuracy(world.logits(x, [1, 1, 1, 1, 1]), y)
        ((5, 5, 64), 1.0)
    """

    invariant: int
    spurious: int
    classes: int = 3
    flip_rate: float = 0.8
    dim: int = 64
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(1, invariant=self.invariant, spurious=self.spurious, classes=self.classes)
        if self.dim < self.classes:
            raise ValueError(f"dim must be at least the number of classes ({self.classes}), got {self.dim}")
        if not 0 <= self.flip_rate <= 1 or not (self.noise >= 0 and math.isfinite(self.noise)):
            raise ValueError(f"expected 0 <= flip_rate <= 1 and noise >= 0, got {self.flip_rate} and {self.noise}")

    @property
    def directions(self) -> Tensor:
        """The orthonormal directions of every feature: ``(features, dim, classes)``, invariant features first."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.linalg.qr(
            torch.randn(self.invariant + self.spurious, self.dim, self.classes, generator=generator)
        )[0]

    @checked
    def sample(self, n: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Returns inputs ``(n, features, dim)`` and labels ``(n,)``."""
        check_at_least(1, n=n)
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, self.classes, (n,), generator=generator)
        shown = labels[:, None].repeat(1, self.invariant + self.spurious)
        redrawn = torch.rand(n, self.spurious, generator=generator) < self.flip_rate
        uniform = torch.randint(0, self.classes, (n, self.spurious), generator=generator)
        shown[:, self.invariant :] = torch.where(redrawn, uniform, shown[:, self.invariant :])
        features = torch.arange(self.invariant + self.spurious)
        x = self.directions.transpose(1, 2)[features, shown]
        return x + self.noise * torch.randn(x.shape, generator=generator) if self.noise else x, labels

    @checked
    def logits(self, x: Tensor, weights: Sequence[float] | Tensor) -> Tensor:
        """Returns the logits ``(n, classes)`` of the linear model that weighs each feature by ``weights``.

        Raises:
            ValueError: x that is not ``(n, features, dim)`` or not finite, or not one weight for each feature.
        """
        check_dimensions(3, x=x)
        check_finite(x=x)
        used = torch.as_tensor(weights, dtype=x.dtype)
        if used.shape != x.shape[1:2]:
            raise ValueError(f"weights needs one number per feature ({x.shape[1]}), got {tuple(used.shape)}")
        return torch.einsum("nfd,fdk,f->nk", x, self.directions, used)

    @checked
    def accuracy(self, logits: Tensor, labels: Tensor) -> float:
        """Returns the accuracy; an example whose true class is tied for the largest logit counts as its share."""
        check_values(logits=logits)
        check_dimensions(2, logits=logits)
        check_same_length(logits=logits, labels=labels)
        check_labels(self.classes, labels=labels)
        tied = logits >= logits.amax(dim=1, keepdim=True) - 1e-4
        right = tied[torch.arange(len(labels)), labels].double() / tied.sum(dim=1)
        return float(right.mean())
