"""Core: Ideal in-context predictors, which know the tasks of training by heart, or the law that tasks come from.

Each answers every position of a batch of sequences from what stands before it, batched and in log space.

Source: arXiv:2506.17859 (urns, classification); arXiv:2306.15063 (ridge regression and discrete MMSE).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.errors import (
    check_at_least,
    check_dimensions,
    check_fraction,
    check_labels,
    check_nonempty,
    check_positive,
    check_values,
    checked,
)
from heldout.losses import check_choices
from heldout.measure.datasets.description_bits import description_bits

_AT_ONCE = 1 << 18  # numbers of a temporary, 2 MB: it stays in the cache, which is three times as fast as 32 MB


@runtime_checkable
class BayesPredictor(Protocol):
    """A strategy: what it predicts, and how long its description is. Any object with these two methods is one.

    Example:
        >>> isinstance(DirichletPredictor(3), BayesPredictor)
        True
    """

    def predict(self, batch: Any) -> Tensor:
        """Returns an output for each position of a batch: probabilities ``(n, positions, categories)``, or numbers."""
        ...

    def complexity_bits(self) -> float:
        """Returns the bits that describe the predictor: those of its prior and those of its program."""
        ...


class DirichletPredictor:
    """Generalises over urns: the posterior predictive of a symmetric Dirichlet prior, ``(n_k + a) / (t + m a)``.

    Args:
        categories: m, at least 2.
        concentration: a of the prior; 1 is uniform over the simplex.

    Raises:
        ValueError: fewer than 2 categories, or a concentration that is not positive.

    Source: arXiv:2506.17859.

    Example:
        >>> DirichletPredictor(2).predict(torch.tensor([[0, 0, 1]]))
        tensor([[[0.5000, 0.5000],
                 [0.6667, 0.3333],
                 [0.7500, 0.2500]]])
    """

    program = "p = (counts + prior) / (counts + prior).sum()"

    @checked
    def __init__(self, categories: int, concentration: float = 1.0) -> None:
        check_at_least(2, categories=categories)
        check_positive(concentration=concentration)
        self.categories = categories
        self.concentration = concentration

    @checked
    def predict(self, batch: Tensor) -> Tensor:
        """Returns the probabilities of each draw before it is seen, float32 ``(n, context, categories)``.

        Args:
            batch: tokens, int64 ``(n, context)``.

        Raises:
            ValueError: another shape, or tokens that are no categories.
        """
        counts = _counts_before(batch, self.categories, torch.float32) + self.concentration
        return counts / counts.sum(-1, keepdim=True)

    def complexity_bits(self) -> float:
        """Returns the bits of the prior's parameters and of the program."""
        prior = torch.full((self.categories,), self.concentration, dtype=torch.float64)
        return description_bits(prior) + description_bits(self.program)


class TaskMixturePredictor:
    """Knows the urns of training by heart: it weighs them by the draws so far and predicts their mixture.

    ``log pi_j = sum_k n_k log theta_jk`` up to a constant, one product of matrices, in float64 whatever the tasks are,
    so that contexts may be long. Costs O(n context D m) operations, 2^18 numbers at a time.

    Args:
        tasks: ``(D, categories)``, probabilities.
        floor: smallest probability; smaller ones are raised to it and rows rescaled. At 0 none may be 0, for a draw
            that is impossible in all tasks has no posterior.

    Raises:
        ValueError: rows that are no probabilities, or zeros without a floor.

    Source: arXiv:2506.17859.

    Example:
        >>> known = TaskMixturePredictor(torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
        >>> known.predict(torch.tensor([[0, 0]]))
        tensor([[[0.5000, 0.5000],
                 [0.8200, 0.1800]]])
    """

    program = "w = softmax(counts @ log(tasks).T)\np = w @ tasks"

    @checked
    def __init__(self, tasks: Tensor, *, floor: float = 0.0) -> None:
        check_values(tasks=tasks)
        check_choices(tasks=tasks)
        check_fraction(floor=floor)
        if floor == 0 and bool((tasks == 0).any()):
            raise ValueError("tasks must not hold probabilities of 0: give a floor, such as 1e-6")
        if floor > 0:
            tasks = tasks.clamp(min=floor)
            tasks = tasks / tasks.sum(1, keepdim=True)
        self.tasks = tasks

    @checked
    def predict(self, batch: Tensor) -> Tensor:
        """Returns the probabilities of each draw before it is seen, ``(n, context, categories)``, of the tasks' type.

        Args:
            batch: tokens, int64 ``(n, context)``.

        Raises:
            ValueError: another shape, or tokens that are no categories.
        """
        tasks = self.tasks.double().to(batch.device)
        log_tasks = tasks.log().T
        counts = _counts_before(batch, tasks.shape[1], torch.float64)
        parts = [(rows @ log_tasks).softmax(-1) @ tasks for (rows,) in _chunked(len(tasks), counts)]
        return torch.cat(parts).to(self.tasks.dtype)

    def complexity_bits(self) -> float:
        """Returns the bits of the tasks, in their data type, and of the program."""
        return description_bits(self.tasks) + description_bits(self.program)


class RidgePredictor:
    """Generalises over linear regressions: the posterior mean of normal weights, ``(X'X + lambda I)^-1 X'y``.

    ``lambda`` is the variance of the noise over that of a weight.

    Args:
        noise_var: variance of the noise, positive.
        prior_var: variance of each weight under the prior.

    Raises:
        ValueError: variances that are not positive.

    Source: arXiv:2306.15063, equation 3.

    Example:
        >>> x = torch.tensor([[[1.0], [1.0]]])
        >>> RidgePredictor(noise_var=0.5).predict((x, torch.tensor([[3.0, 0.0]])))
        tensor([[0., 2.]])
    """

    program = "w = solve(X.T @ X + noise / prior * eye(d), X.T @ y)\np = x @ w"

    @checked
    def __init__(self, noise_var: float, *, prior_var: float = 1.0) -> None:
        check_positive(noise_var=noise_var, prior_var=prior_var)
        self.noise_var = noise_var
        self.prior_var = prior_var

    @checked
    def predict(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the expected target of each position from the pairs before it, ``(n, context)``, of x's type.

        Args:
            batch: x ``(n, context, dim)`` and y ``(n, context)``; the last y is not used.

        Raises:
            ValueError: shapes that do not fit, or values that are not finite.
        """
        x, y = _pairs(batch)
        ridge = self.noise_var / self.prior_var * torch.eye(x.shape[2], dtype=x.dtype, device=x.device)
        parts = []
        for inputs, targets in _chunked(x.shape[2] ** 2, x, y):
            squares = _before(inputs.unsqueeze(3) * inputs.unsqueeze(2)) + ridge
            products = _before(inputs * targets.unsqueeze(2))
            weights = torch.linalg.solve(squares, products.unsqueeze(3)).squeeze(3)
            parts.append((weights * inputs).sum(2))
        return torch.cat(parts).to(batch[0].dtype)

    def complexity_bits(self) -> float:
        """Returns the bits of the prior's parameters and of the program."""
        return description_bits([self.noise_var, self.prior_var]) + description_bits(self.program)


class DiscreteMMSE:
    """Knows the regressions of training by heart: the mean of their weights, each weighed by how well it fits so far.

    ``log pi_j = -SSE_j / (2 noise_var)`` up to a constant, in float64, so that contexts may be long.

    Args:
        tasks: ``(D, dim)``, weight vectors.
        noise_var: variance of the noise, positive.

    Raises:
        ValueError: no tasks, values that are not finite, a variance that is not positive.

    Source: arXiv:2306.15063, equation 2.

    Example:
        >>> known = DiscreteMMSE(torch.tensor([[1.0], [-1.0]]), noise_var=0.1)
        >>> x = torch.ones(1, 2, 1)
        >>> known.predict((x, torch.tensor([[1.0, 0.0]])))
        tensor([[0., 1.]])
    """

    program = "w = softmax(-((y - X @ tasks.T) ** 2).sum(0) / (2 * noise)) @ tasks\np = x @ w"

    @checked
    def __init__(self, tasks: Tensor, noise_var: float) -> None:
        check_dimensions(2, tasks=tasks)
        check_values(tasks=tasks)
        check_positive(noise_var=noise_var)
        self.tasks = tasks
        self.noise_var = noise_var

    @checked
    def predict(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the expected target of each position from the pairs before it, ``(n, context)``, of x's type.

        Args:
            batch: x ``(n, context, dim)`` and y ``(n, context)``; the last y is not used.

        Raises:
            ValueError: shapes that do not fit, or values that are not finite.
        """
        x, y = _pairs(batch)
        tasks = self.tasks.double().to(x.device)
        if x.shape[2] != tasks.shape[1]:
            raise ValueError(f"batch must have x of the tasks' {tasks.shape[1]} entries, got {x.shape[2]}")
        parts = []
        for inputs, targets in _chunked(len(tasks), x, y):
            answers = inputs @ tasks.T
            squares = _before((targets.unsqueeze(2) - answers).square())
            parts.append(((-squares / (2 * self.noise_var)).softmax(2) * answers).sum(2))
        return torch.cat(parts).to(batch[0].dtype)

    def complexity_bits(self) -> float:
        """Returns the bits of the tasks, in their data type, and of the program."""
        return description_bits(self.tasks) + description_bits(self.program)


class ContextCopyPredictor:
    """Generalises over noisy classification: copies labels of the context, by how likely the query is of the same item.

    Two copies of one item of variance ``1 / dim`` have correlation ``rho = 1 / (1 + noise_var)``, so that an item of
    the context weighs ``exp(-dim |query - rho x|^2 / (2 (1 - rho^2)))``.

    Args:
        noise_var: of the copies, as in ``heldout.tasks.noisy_classification``.
        classes: number of labels.

    Raises:
        ValueError: a variance that is not positive, or fewer than 2 classes.

    Source: arXiv:2506.17859; the paper weighs by a Gaussian kernel, here it is the one of Bayes' rule.

    Example:
        >>> x = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [1.0, 0.1]]])
        >>> ContextCopyPredictor(0.1).predict((x, torch.tensor([[1, 0, 1]]))).round(decimals=3)
        tensor([[0., 1.]])
    """

    program = "w = softmax(-d * ((query - rho * X) ** 2).sum(1) / (2 * (1 - rho ** 2)))\np = w @ onehot(y)"

    @checked
    def __init__(self, noise_var: float = 0.5, *, classes: int = 2) -> None:
        check_positive(noise_var=noise_var)
        check_at_least(2, classes=classes)
        self.noise_var = noise_var
        self.classes = classes

    @checked
    def predict(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the probabilities of the query's label, ``(n, classes)``, of x's type.

        Args:
            batch: x ``(n, context, dim)`` and labels ``(n, context)``; the last x is the query, its label is not used.

        Raises:
            ValueError: shapes that do not fit, a context without a labelled item, values that are not finite.
        """
        x, _ = _pairs(batch)
        check_labels(self.classes, batch=batch[1])
        if x.shape[1] < 2:
            raise ValueError("batch must have at least one labelled item before the query")
        rho = 1 / (1 + self.noise_var)
        squares = (x[:, -1:] - rho * x[:, :-1]).square().sum(2)
        weights = (-x.shape[2] * squares / (2 * (1 - rho**2))).softmax(1)
        labels = F.one_hot(batch[1][:, :-1].long(), self.classes).double()
        return (weights.unsqueeze(1) @ labels).squeeze(1).to(batch[0].dtype)

    def complexity_bits(self) -> float:
        """Returns the bits of the noise and of the program."""
        return description_bits([self.noise_var]) + description_bits(self.program)


class StoredItemsPredictor:
    """Knows the items of training by heart: the labels of those that the query may be a copy of.

    Args:
        tasks: ``(D, dim + 1)``, items with their label as last entry.
        noise_var: of the copies, as in ``heldout.tasks.noisy_classification``.
        classes: number of labels.

    Raises:
        ValueError: no items, labels that are no classes, a variance that is not positive.

    Source: arXiv:2506.17859.

    Example:
        >>> known = StoredItemsPredictor(torch.tensor([[1.0, 0.0, 1.0], [-1.0, 0.0, 0.0]]), noise_var=0.1)
        >>> known.predict((torch.tensor([[[0.9, 0.1]]]), torch.tensor([[0]]))).round(decimals=3)
        tensor([[0., 1.]])
    """

    program = "w = softmax(-d * ((query - items / s) ** 2).sum(1) * (1 + v) / (2 * v))\np = w @ onehot(labels)"

    @checked
    def __init__(self, tasks: Tensor, noise_var: float = 0.5, *, classes: int = 2) -> None:
        check_dimensions(2, tasks=tasks)
        check_values(tasks=tasks)
        check_positive(noise_var=noise_var)
        check_at_least(2, classes=classes)
        labels = tasks[:, -1].long()
        if tasks.shape[1] < 2 or bool((labels != tasks[:, -1]).any()):
            raise ValueError("tasks must be items with a whole number as last entry, their label")
        check_labels(classes, tasks=labels)
        self.tasks = tasks
        self.noise_var = noise_var
        self.classes = classes

    @checked
    def predict(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the probabilities of the query's label, ``(n, classes)``, of x's type.

        Args:
            batch: x ``(n, context, dim)`` and labels ``(n, context)``; only the last x is used.

        Raises:
            ValueError: shapes that do not fit, values that are not finite.
        """
        x, _ = _pairs(batch)
        tasks = self.tasks.double().to(x.device)
        items, labels = tasks[:, :-1] / math.sqrt(1 + self.noise_var), F.one_hot(tasks[:, -1].long(), self.classes)
        if x.shape[2] != items.shape[1]:
            raise ValueError(f"batch must have x of the items' {items.shape[1]} entries, got {x.shape[2]}")
        squares = torch.cdist(x[:, -1], items, compute_mode="donot_use_mm_for_euclid_dist").square()
        weights = (-x.shape[2] * squares * (1 + self.noise_var) / (2 * self.noise_var)).softmax(1)
        return (weights @ labels.double()).to(batch[0].dtype)

    def complexity_bits(self) -> float:
        """Returns the bits of the items, in their data type, and of the program."""
        return description_bits(self.tasks) + description_bits(self.program)


def _before(values: Tensor) -> Tensor:
    """Sums over the earlier positions, dimension 1."""
    return values.cumsum(1) - values


def _counts_before(batch: Tensor, categories: int, dtype: torch.dtype) -> Tensor:
    check_dimensions(2, batch=batch)
    check_nonempty(batch=batch)
    check_labels(categories, batch=batch)
    return _before(F.one_hot(batch.long(), categories).to(dtype))


def _pairs(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Inputs and targets, checked, in float64."""
    x, y = batch
    if x.ndim != 3 or y.shape != x.shape[:2]:
        raise ValueError(f"batch must be (n, context, dim) and (n, context), got {tuple(x.shape)} and {tuple(y.shape)}")
    check_values(batch=[x, y])
    return x.double(), y.double()


def _chunked(numbers: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors ``(n, positions, ...)`` by rows, so many that temporaries with ``numbers`` a position stay small."""
    rows = max(1, _AT_ONCE // (numbers * tensors[0].shape[1]))
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)
