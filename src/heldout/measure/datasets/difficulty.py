"""Generalization difficulty: the bits of inductive bias that a task needs beyond its training data.

Source: arXiv:2305.01034 (Boopathy et al., ICML 2023). The numbers are upper bounds and astronomically large: compare
them in log scale, for the same target error and the same preprocessing. A change of the intrinsic dimension by one
moves them by orders of magnitude.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from heldout.errors import checked
from heldout.measure.datasets.dimension import Margin, class_margin, intrinsic_dimension, labelled_points

_LOG2 = math.log(2)


@dataclass(frozen=True)
class Difficulty:
    """How much inductive bias a task needs.

    Attributes:
        bits: the difficulty; infinite where a float cannot hold it. At or below 0, by this bound, the training data
            alone determine a hypothesis that generalises.
        log2_bits: log2 of ``bits``, always finite for positive ones; NaN at or below 0.
        log2_dof: log2 of the degrees of freedom of the hypothesis space.
        degrees_left: those that the training data leave, infinite where a float cannot hold them.
        log_ratio: bits needed for each of them: how much wider the hypothesis space is than the target error.

    Example:
        >>> found = pomdp_difficulty(2, n=1e4)
        >>> found.determined, math.isclose(2**found.log2_bits, found.degrees_left * found.log_ratio)
        (False, True)
    """

    bits: float
    log2_bits: float
    log2_dof: float
    degrees_left: float
    log_ratio: float

    @property
    def determined(self) -> bool:
        """Whether the training data alone suffice by this bound."""
        return self.bits <= 0


@dataclass(frozen=True)
class ClassificationDifficulty(Difficulty):
    """The difficulty of a labelled data set, and what it was computed from.

    Attributes:
        n, dim, radius, classes, margin: as ``task_difficulty``; ``dim`` is rounded where it was estimated.
        low, high: ``log2_bits`` at the rounded ends of the dimension's 95 % interval; equal if ``dim`` was given.

    Example:
        >>> import torch
        >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
        >>> found = classification_difficulty(x, (x[:, 0] > 0).long(), dim=3.0, margin=0.1)
        >>> found.n, found.classes, found.low == found.log2_bits == found.high
        (100, 2, True)
    """

    n: int
    dim: float
    radius: float
    classes: int
    margin: float
    low: float
    high: float


@checked
def task_difficulty(
    n: float,
    dim: float,
    radius: float,
    classes: int,
    margin: float,
    error: float,
    out_dim: float | None = None,
    bound: float = 1.0,
) -> Difficulty:
    """Returns the difficulty of a task whose inputs fill a sphere of each class.

    Hypotheses are the functions on the sphere ``S^dim`` whose frequency suffices to tell points ``margin`` apart; the
    difficulty is the number of their degrees of freedom that n examples leave, times the bits for each.

    Args:
        n: training examples.
        dim: intrinsic dimension of the inputs.
        radius: greatest norm of an input.
        classes: number of combinations of discrete features; for classification the classes.
        margin: least distance between differently labelled inputs.
        error: target error as a share of the loss's Lipschitz constant, in (0, 1].
        out_dim: dimension of the output; default ``classes - 1``.
        bound: greatest absolute value of an output.

    Raises:
        ValueError: a quantity that is not positive and finite, or an error outside (0, 1].

    Example:
        The constants that the paper gives for MNIST:

        >>> mnist = task_difficulty(60_000, 14, 17.179, 10, 2.3987, error=0.001)
        >>> f"{mnist.bits:.1e}"
        '1.5e+16'

    Source: arXiv:2305.01034, section 4 and the released constants.
    """
    out_dim = classes - 1 if out_dim is None else out_dim
    _check(n=n, dim=dim, radius=radius, classes=classes, margin=margin, out_dim=out_dim, bound=bound)
    _check_error(error)
    degree, log_harmonics = _harmonics(dim, 2 * math.pi * radius / margin)
    log_dof = math.log(2 * out_dim * classes) + log_harmonics
    lipschitz = degree * math.sqrt(out_dim) / radius
    log_surface = math.log(2) + (dim + 1) / 2 * math.log(math.pi) - math.lgamma((dim + 1) / 2)
    log_transport = (
        0.5 * math.log(dim / 6) + (log_surface + math.log(classes)) / dim + math.log(radius) - math.log(n) / dim
    )
    log_ratio = (
        math.log(bound)
        + 0.5 * math.log(out_dim)
        + 0.5 * math.log(classes)
        - math.log(error)
        + math.log(lipschitz)
        + log_transport
    )
    return Difficulty(*_bits(log_dof, n * out_dim, log_ratio / _LOG2))


@checked
def classification_difficulty(
    x: Any,
    y: Any = None,
    error: float = 0.01,
    *,
    dim: float | None = None,
    margin: Margin | float = "evt",
    seed: int = 0,
) -> ClassificationDifficulty:
    """Returns the difficulty of a labelled data set at a target error; no model is trained.

    The radius is the greatest norm of an input, the margin and the intrinsic dimension are estimated: see
    ``class_margin`` and ``intrinsic_dimension``. Wrong labels drive the margin to 0 and the difficulty up.

    Args:
        x: ``(n, ...)``, an array, a tensor, or a data set (then without ``y``).
        y: ``(n,)`` class labels.
        error: target error, in (0, 1].
        dim: intrinsic dimension, if it is known.
        margin: "evt", "sample", or the margin itself.
        seed: of the estimates.

    Raises:
        ValueError: as ``task_difficulty``, ``class_margin`` and ``intrinsic_dimension``.

    Example:
        >>> from heldout.tasks import digits
        >>> images, labels = digits()
        >>> found = classification_difficulty(images, labels, error=0.01)
        >>> found.dim, found.low <= found.log2_bits <= found.high
        (8, True)

    Source: arXiv:2305.01034. Deviation: the radius is that of the flattened input.
    """
    _check_error(error)
    points, labels = labelled_points(x, y)
    radius, classes = float(points.norm(dim=1).max()), int(labels.max()) + 1
    width = class_margin(points, labels, margin, seed=seed) if isinstance(margin, str) else margin
    dims: tuple[float, ...] = (dim, dim, dim) if dim is not None else _rounded(points, seed)
    at, low, high = (task_difficulty(len(points), d, radius, classes, width, error) for d in dims)
    return ClassificationDifficulty(
        **vars(at),
        n=len(points),
        dim=dims[0],
        radius=radius,
        classes=classes,
        margin=width,
        low=low.log2_bits,
        high=high.log2_bits,
    )


@checked
def mdp_difficulty(obs_dim: int, act_dim: int, n: float, margin: float = 0.001, error: float = 0.001) -> Difficulty:
    """Returns the difficulty of finding the policy of a fully observed decision process with continuous actions.

    Args:
        obs_dim: dimensions of an observation, each on a circle.
        act_dim: dimensions of an action.
        n: time steps seen.
        margin: resolution of an observation, in radians.
        error: target distance from the best action, in (0, 1].

    Raises:
        ValueError: a quantity that is not positive and finite, or an error outside (0, 1].

    Example:
        >>> mdp_difficulty(6, 2, n=1e6).log2_bits < mdp_difficulty(15, 4, n=1e6).log2_bits
        True

    Source: arXiv:2305.01034, the released formula for MuJoCo.
    """
    _check(obs_dim=obs_dim, act_dim=act_dim, n=n, margin=margin)
    _check_error(error)
    ratio = math.log(4 * math.pi**2 / math.sqrt(6)) + math.log(act_dim) + 0.5 * math.log(obs_dim)
    ratio -= math.log(margin) + math.log(n) / obs_dim + math.log(error)
    log_dof = math.log(act_dim) + _log_ball(obs_dim, 2 * math.pi / margin)
    return Difficulty(*_bits(log_dof, act_dim * n, ratio / _LOG2))


@checked
def pomdp_difficulty(history: int, n: float, margin: float = 0.001, error: float = 0.001) -> Difficulty:
    """Returns the difficulty of balancing a pole from the last observations of its angle, of which a few suffice.

    Args:
        history: number T of observations that the policy sees, two dimensions each.
        n, margin, error: as ``mdp_difficulty``.

    Raises:
        ValueError: a quantity that is not positive and finite, or an error outside (0, 1].

    Example:
        >>> pomdp_difficulty(1, n=1e4).log2_bits < pomdp_difficulty(2, n=1e4).log2_bits
        True

    Source: arXiv:2305.01034, the released formula for cartpole.
    """
    _check(history=history, n=n, margin=margin)
    _check_error(error)
    ratio = math.log(4 * math.pi**2 / math.sqrt(3)) + 0.5 * math.log(history)
    ratio -= math.log(margin) + math.log(n) / (2 * history) + math.log(error)
    return Difficulty(*_bits(_log_ball(2 * history, 2 * math.pi / margin), n, ratio / _LOG2))


@checked
def fewshot_difficulty(
    n: float, dim_within: float, dim_across: float, radius: float, margin: float, error: float, ways: int = 20
) -> Difficulty:
    """Returns the difficulty of learning to classify from one example of each of several new classes.

    The input is a set of ``ways`` images, one for each class, the output a classifier of images.

    Args:
        n: training sets of ``ways`` images.
        dim_within: intrinsic dimension of the images of one alphabet.
        dim_across: intrinsic dimension of the images of all alphabets.
        radius: greatest norm of an image.
        margin: least distance between images of different classes.
        error: target error, in (0, 1].
        ways: classes of a set, at least 2.

    Raises:
        ValueError: a quantity that is not positive and finite, fewer than 2 ways, or an error outside (0, 1].

    Example:
        >>> omniglot = fewshot_difficulty(1e50, 22, 29, radius=49.4, margin=5.48, error=0.01)
        >>> omniglot.log2_bits > 100
        True

    Source: arXiv:2305.01034, the released formula for 20-way Omniglot.
    """
    if ways < 2:
        raise ValueError(f"ways must be at least 2, got {ways}")
    _check(n=n, dim_within=dim_within, dim_across=dim_across, radius=radius, margin=margin)
    _, log_harmonics = _harmonics(dim_within, 2 * math.pi * radius / margin)
    out_dim = 2 * ways * (ways - 1) * math.exp(log_harmonics)
    dim = dim_across + (ways - 1) * dim_within
    return task_difficulty(
        n, dim, radius * math.sqrt(ways), 1, margin, error, out_dim, bound=math.sqrt(ways * (ways - 1))
    )


def _harmonics(dim: float, frequency: float) -> tuple[float, float]:
    """The degree K with K (K + dim - 1) = frequency^2, and the log number of spherical harmonics up to it."""
    degree = (math.hypot(dim - 1, 2 * frequency) - (dim - 1)) / 2
    return degree, float(_log_add(_log_binomial(dim + degree, dim), _log_binomial(dim + degree - 1, dim)))


def _log_binomial(a: float, b: float) -> float:
    """log of binom(a, b) for a > b - 1, by gamma functions; -inf at a = b - 1."""
    if a - b + 1 <= 0:
        return -math.inf
    return math.lgamma(a + 1) - math.lgamma(b + 1) - math.lgamma(a - b + 1)


def _log_add(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    return high + math.log1p(math.exp(low - high))


def _log_ball(dim: float, radius: float) -> float:
    """log of twice the volume of a ball."""
    return math.log(2) + dim * math.log(radius) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2 + 1)


def _bits(log_dof: float, constraints: float, log_ratio: float) -> tuple[float, float, float, float, float]:
    """The fields of a Difficulty; degrees of freedom and constraints may be too large for a float."""
    gap = math.log(constraints) - log_dof
    share = -math.expm1(gap) if gap < 700 else -math.inf
    degrees_left = share * math.exp(log_dof) if log_dof < 700 else math.copysign(math.inf, share)
    product = share * log_ratio
    if product <= 0:
        return degrees_left * log_ratio, math.nan, log_dof / _LOG2, degrees_left, log_ratio
    log2_bits = log_dof / _LOG2 + math.log2(abs(share)) + math.log2(abs(log_ratio))
    return 2.0**log2_bits if log2_bits < 1023 else math.inf, log2_bits, log_dof / _LOG2, degrees_left, log_ratio


def _rounded(points: Tensor, seed: int) -> tuple[int, ...]:
    return tuple(max(1, round(value)) for value in intrinsic_dimension(points, seed=seed))


def _check(**quantities: float) -> None:
    for name, value in quantities.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")


def _check_error(error: float) -> None:
    if not 0 < error <= 1:
        raise ValueError(f"error must be in (0, 1], got {error}")
