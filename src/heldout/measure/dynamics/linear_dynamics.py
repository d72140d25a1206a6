"""Exact learning curves of gradient descent on high-dimensional linear regression, and when to stop it.

The model: ``y = <w_bar, x> + noise`` with n examples in dim dimensions, ``alpha = n / dim``, trained on the loss
``||X w - y||^2 / (2 n)`` by gradient flow; n steps of gradient descent of a small learning rate are the time
``t = lr * n``. Along each eigenvector of ``X^T X / n`` the error decays like ``exp(-l t)`` and the noise enters like
``(1 - exp(-l t)) / sqrt(l)``: modes of small eigenvalue l learn the noise last and worst, those of eigenvalue 0 never
learn. Errors are mean squared errors, the noise of the tested label included.

Source: arXiv:1710.03667 (Advani, Saxe). Convention: the entries of x have variance 1. Where the paper scales them by
``1 / sqrt(dim)``, its eigenvalues are alpha times ours and its times shorter by that factor.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from heldout.errors import check_at_least, check_values, checked

Array = np.ndarray
_AT_ONCE = 1 << 17  # exponentials that are held in memory: what fits the cache


class LearningCurve(NamedTuple):
    """Errors over time, in units of mean squared error.

    Attributes:
        t: times, float64 ``(times,)``.
        train: error on the noisy training labels, ``(times,)``.
        test: error on new noisy labels, ``(times,)``.
        t_opt: the time of least test error; ``inf`` where training longer never hurts, 0 where it only hurts.
        overtraining: what the limit of long training loses over stopping at ``t_opt``.
        final: test error in the limit of long training; ``inf`` for noisy labels at alpha = 1.

    Example:
        >>> curve = mp_learning_curve(alpha=0.5, snr=math.inf, t=torch.tensor([0.0]))  # half as many examples, no noise
        >>> round(curve.test.item(), 6), curve.final, curve.t_opt, curve.overtraining
        (1.0, 0.5, inf, 0.0)
    """

    t: Tensor
    train: Tensor
    test: Tensor
    t_opt: float
    overtraining: float
    final: float


class OptimalRidge(NamedTuple):
    """The best L2 penalty, and what it reaches.

    Attributes:
        penalty: lambda of ``||X w - y||^2 / (2 n) + lambda / 2 ||w||^2``.
        test: its test error: no estimator that knows X and y has a smaller one.

    Example:
        >>> curve = mp_learning_curve(alpha=2.0, snr=5.0)
        >>> optimal_ridge(alpha=2.0, snr=5.0).test < curve.final - curve.overtraining  # than early stopping
        True
    """

    penalty: float
    test: float


@checked
def marchenko_pastur(alpha: float, n: int = 200) -> tuple[Tensor, Tensor, float]:
    """Returns ``(eigenvalues, weights, zero_mass)``, a quadrature of the spectrum of ``X^T X / n`` in high dimension.

    ``sum(weights * f(eigenvalues)) + zero_mass * f(0)`` is the mean of f over the spectrum of standard normal data.
    The cosine substitution takes the square roots out of both ends: 200 nodes give a smooth f to 1e-8 unless alpha is
    within a few percent of 1 and f has a pole at 0.

    Args:
        alpha: examples per dimension.
        n: nodes.

    Raises:
        ValueError: alpha not positive and finite, or n below 1.

    Source: arXiv:1710.03667, section 2.

    Example:
        >>> eigenvalues, weights, zero_mass = marchenko_pastur(0.5)
        >>> round(weights.sum().item(), 6), zero_mass, round((weights * eigenvalues).sum().item(), 6)
        (0.5, 0.5, 1.0)
    """
    check_at_least(1, n=n)
    _check(alpha)
    if n < 1:
        raise ValueError(f"marchenko_pastur needs at least 1 node, got {n}")
    angles = (np.arange(n) + 0.5) * (math.pi / n)
    eigenvalues, weights = _spectrum(alpha, angles, np.full(n, math.pi / n))
    return torch.from_numpy(eigenvalues), torch.from_numpy(weights), max(0.0, 1.0 - alpha)


@checked
def mp_learning_curve(alpha: float, snr: float, inr: float = 0.0, t: Tensor | Array | None = None) -> LearningCurve:
    """Returns the learning curve in the limit of high dimension, where it is the same for almost all data.

    In units of the signal: ``w_bar`` has entries of variance 1 / dim, the noise the variance 1 / snr, the initial
    weights entries of variance inr / dim. Floor: one exponential for each time and node; nodes are as dense as the
    smallest eigenvalues need, a few hundred.

    Args:
        alpha: examples per dimension, n / dim.
        snr: variance of the signal over that of the noise; ``inf`` for no noise.
        inr: variance of the initial weights over that of ``w_bar``.
        t: times ``lr * steps``, ascending, ``(times,)``; by default 0 and 240 from 0.01 to 10,000.

    Raises:
        ValueError: alpha or snr not positive, a negative inr, or times that are negative or not in order.

    Source: arXiv:1710.03667, section 2; the training error is derived in the same way.

    Example:
        >>> curve = mp_learning_curve(alpha=2.0, snr=5.0, t=torch.tensor([0.0, 1.0, 1000.0]))
        >>> [round(error, 3) for error in curve.test.tolist()], [round(error, 3) for error in curve.train.tolist()]
        ([1.2, 0.5, 0.4], [1.2, 0.246, 0.1])
        >>> round(curve.t_opt, 2), round(curve.overtraining, 4)
        (4.79, 0.0459)
    """
    _check(alpha, snr, inr)
    times = _times(t)
    modes = _Modes.of_marchenko_pastur(alpha, snr, inr, float(times[-1]))
    if snr == math.inf:
        final = max(0.0, 1 - alpha) * (1 + inr)
    elif alpha == 1:
        final = math.inf
    else:
        final = max(0.0, 1 - alpha) * (1 + inr) + (1 + min(alpha, 1) / abs(1 - alpha)) / snr
    return modes.curve(times, final)


@checked
def optimal_stopping_time(alpha: float, snr: float, inr: float = 0.0) -> float:
    """Returns the time ``lr * steps`` at which the test error of ``mp_learning_curve`` is least.

    A single mode of eigenvalue l is best stopped at ``log(1 + l alpha snr (1 + inr)) / l``: sooner the larger l. The
    optimum over all lies between those of the largest and the smallest. For the data at hand, see
    ``spectral_learning_curve``.

    Raises:
        ValueError: alpha or snr not positive, or a negative inr.

    Source: arXiv:1710.03667, section 2.

    Example:
        >>> round(optimal_stopping_time(alpha=1.0, snr=5.0), 2), optimal_stopping_time(alpha=1.0, snr=float("inf"))
        (3.07, inf)
    """
    _check(alpha, snr, inr)
    return _Modes.of_marchenko_pastur(alpha, snr, inr).t_opt()


@checked
def optimal_ridge(alpha: float, snr: float) -> OptimalRidge:
    """Returns the L2 penalty of least test error in the limit of high dimension, and that error.

    In units of the signal, as ``mp_learning_curve``. The estimate is the posterior mean of ``w_bar``: what early
    stopping can at best come near.

    Raises:
        ValueError: alpha or snr not positive.

    Source: arXiv:1710.03667, section 2.

    Example:
        >>> ridge = optimal_ridge(alpha=2.0, snr=5.0)
        >>> ridge.penalty, round(ridge.test, 4)
        (0.1, 0.3483)
    """
    _check(alpha, snr)
    if snr == math.inf:
        return OptimalRidge(0.0, max(0.0, 1 - alpha))
    penalty = 1 / (alpha * snr)
    eigenvalues, weights = _graded_spectrum(alpha, 1 / penalty)
    modes = float((weights * (penalty / (eigenvalues + penalty))).sum())
    return OptimalRidge(penalty, modes + max(0.0, 1 - alpha) + 1 / snr)


@checked
def spectral_learning_curve(
    x: Tensor | Array,
    w_bar: Tensor | Array | None,
    noise_var: float,
    init_var: float = 0.0,
    t: Tensor | Array | None = None,
    *,
    signal_var: float = 1.0,
    covariance: Tensor | Array | None = None,
    lr: float | None = None,
    tol: float = 1e-10,
) -> LearningCurve:
    """Returns the learning curve on features at hand: the mean over noise and initial weights, X fixed.

    For random features, or frozen embeddings under a linear probe. Floor: one eigendecomposition of
    ``min(n, dim)``, and one exponential for each time and eigenvalue.

    Args:
        x: features ``(n, dim)``, used as they are: centre them, or add a column of ones, if the regression does.
        w_bar: true weights ``(dim,)`` or ``(dim, outputs)``, for the mean over outputs. None for random ones with
            entries of variance ``signal_var / dim``.
        noise_var: variance of the noise of a label.
        init_var: the initial weights have entries of variance ``init_var / dim``.
        t: times ``lr * steps``, ascending; by default 0 and 240 from 0.01 to 10,000.
        signal_var: see ``w_bar``; ignored when that is given.
        covariance: second moment ``(dim, dim)`` of the features on which is tested; the identity by default, which is
            right for independent features of variance 1 only. Estimate it on held-out features.
        lr: the learning rate, for gradient descent in discrete steps; by default gradient flow, its limit of small lr.
        tol: eigenvalues at most this share of the largest count as 0.

    Warns:
        RuntimeWarning: lr is above 2 over the largest eigenvalue: gradient descent diverges.

    Raises:
        ValueError: negative variances, times that are negative or not in order, shapes that do not fit, or features
            that are not finite.

    Source: arXiv:1710.03667, section 2.

    Example:
        >>> x = torch.randn(400, 200, generator=torch.Generator().manual_seed(0))
        >>> times = torch.tensor([0.0, 1.0, 1000.0])
        >>> curve = spectral_learning_curve(x, None, noise_var=0.2, t=times)
        >>> theory = mp_learning_curve(alpha=2.0, snr=5.0, t=times)
        >>> bool(((curve.test - theory.test).abs() < 0.01).all())
        True
    """
    times, x = _times(t), _matrix(x, "x")
    n, dim = x.shape
    for name, value in (("noise_var", noise_var), ("init_var", init_var), ("signal_var", signal_var)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and not negative, got {value}")
    eigenvalues, vectors = _eigen(x, tol)
    if lr is not None:
        if not lr > 0:
            raise ValueError(f"lr must be positive, got {lr}")
        if len(eigenvalues) and lr > 2 / eigenvalues[0]:
            warnings.warn(
                f"gradient descent diverges: lr = {lr:g} is above {2 / eigenvalues[0]:g}, 2 over the largest "
                "eigenvalue of the features",
                RuntimeWarning,
                stacklevel=2,
            )
    second = None if covariance is None else _matrix(covariance, "covariance")
    if second is not None and second.shape != (dim, dim):
        raise ValueError(f"covariance must be ({dim}, {dim}), as wide as x, got {second.shape}")
    inner = None if second is None else vectors.T @ second @ vectors
    tested = np.ones(len(eigenvalues)) if inner is None else inner.diagonal().copy()  # v_i^T C v_i
    total = float(dim if second is None else second.trace())
    random_var = init_var + (signal_var if w_bar is None else 0.0)
    modes = _Modes(
        eigenvalues,
        error=tested * random_var / dim,
        noise=tested * noise_var / n / eigenvalues,
        fit=eigenvalues * random_var / dim + noise_var / n,
        frozen=random_var * max(0.0, total - float(tested.sum())) / dim + noise_var,
        unfit=noise_var * (1 - len(eigenvalues) / n),
        lr=lr,
    )
    if w_bar is not None:
        modes = modes.with_weights(_weights(w_bar, dim), vectors, inner, second)
    return modes.curve(times, modes.limit())


@checked
def subspace_bound(features: Tensor | Array, change: Tensor | Array, *, tol: float = 1e-10) -> float:
    """Returns a bound on the Rademacher complexity of the linear functions that training could have reached.

    Experimental. It is ``B sqrt(tr(X^T X / n) / n)`` with B the length of the weights' change outside of the frozen
    subspace, the only part of them that training has moved: initial weights do not count, however large. It bounds
    the gap of test and training error up to the constants of the loss, and tells in which order models overfit.

    Args:
        features: ``(n, dim)``.
        change: weights after training minus those before, ``(dim,)`` or ``(dim, outputs)``.
        tol: eigenvalues at most this share of the largest count as 0.

    Raises:
        ValueError: shapes that do not fit, or features that are not finite.

    Source: arXiv:1710.03667, section on generalization bounds.

    Example:
        >>> subspace_bound(torch.tensor([[2.0, 0.0]]), torch.tensor([3.0, 100.0]))
        6.0
    """
    check_values(change=change)
    x = _matrix(features, "features")
    moved = _weights(change, x.shape[1])
    _, vectors = _eigen(x, tol)
    return float(np.linalg.norm(vectors.T @ moved) * np.linalg.norm(x) / len(x))


class _Modes:
    """Sums over modes: of ``error d^2 + noise (1 - d)^2`` for the test error, of ``fit d^2`` for the training error.

    d is the share of a mode's initial error that is left at time t; ``frozen`` and ``unfit`` are what never changes.
    Where the test data's covariance mixes modes, ``cross`` and ``still`` add ``d^T cross d + still^T d``.
    """

    def __init__(
        self,
        eigenvalues: Array,
        *,
        error: Array,
        noise: Array,
        fit: Array,
        frozen: float,
        unfit: float,
        lr: float | None = None,
        cross: Array | None = None,
        still: Array | None = None,
    ) -> None:
        self.eigenvalues, self.error, self.noise, self.fit = eigenvalues, error, noise, fit
        self.frozen, self.unfit, self.lr, self.cross, self.still = frozen, unfit, lr, cross, still

    @classmethod
    def of_marchenko_pastur(cls, alpha: float, snr: float, inr: float, longest: float = 1.0) -> _Modes:
        signal, noise = 1 + inr, 1 / snr
        latest = alpha * signal / noise if noise else 0.0  # the best time of a mode of eigenvalue 0
        eigenvalues, weights = _graded_spectrum(alpha, max(longest, latest, 1.0))
        return cls(
            eigenvalues,
            error=weights * signal,
            noise=weights * (noise / alpha) / eigenvalues,
            fit=weights * (eigenvalues * signal + noise / alpha),
            frozen=max(0.0, 1 - alpha) * signal + noise,
            unfit=max(0.0, 1 - 1 / alpha) * noise,
        )

    def with_weights(self, w_bar: Array, vectors: Array, inner: Array | None, second: Array | None) -> _Modes:
        """The same with the error of known weights added to that of random ones."""
        known = vectors.T @ w_bar  # (modes, outputs)
        outputs = w_bar.shape[1]
        squares = (known**2).mean(1)
        out = w_bar - vectors @ known  # what lies in the frozen subspace
        if inner is None or second is None:
            error, cross, still = self.error + squares, None, None
            frozen = float((out**2).sum() / outputs)
        else:
            error = self.error
            cross = inner * (known @ known.T) / outputs
            still = 2 * (known * (vectors.T @ second @ out)).mean(1)
            frozen = float((out * (second @ out)).sum() / outputs)
        return _Modes(
            self.eigenvalues,
            error=error,
            noise=self.noise,
            fit=self.fit + self.eigenvalues * squares,
            frozen=self.frozen + frozen,
            unfit=self.unfit,
            lr=self.lr,
            cross=cross,
            still=still,
        )

    def decay(self, times: Array) -> Array:
        """The share of each mode's initial error that is left, ``(times, modes)``."""
        if self.lr is None:
            exponent = np.multiply.outer(times, -self.eigenvalues)
            return np.exp(exponent, out=exponent)
        steps = np.rint(times / self.lr)[:, None]
        factor = 1 - self.lr * self.eigenvalues
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            size = np.exp(np.where(steps == 0, 0.0, steps * np.log(np.abs(factor))))
        return np.where((factor < 0) & (steps % 2 == 1), -size, size)

    def errors(self, times: Array) -> tuple[Array, Array]:
        """Training and test error at each time."""
        train, test = np.empty(len(times)), np.empty(len(times))
        rows = max(1, _AT_ONCE // max(1, len(self.eigenvalues)))
        squared = np.stack([self.fit, self.error], axis=1)
        for start in range(0, len(times), rows):
            part = slice(start, start + rows)
            decay = self.decay(times[part])
            learned = 1 - decay
            test[part] = (learned * learned) @ self.noise
            if self.cross is not None:
                test[part] += ((decay @ self.cross) * decay).sum(1) + decay @ self.still
            decay *= decay
            train[part], squares = (decay @ squared).T
            test[part] += squares
        return train + self.unfit, test + self.frozen

    def limit(self) -> float:
        """Test error in the limit of long training."""
        if self.lr is not None and len(self.eigenvalues) and self.lr * self.eigenvalues.max() >= 2:
            return math.inf
        return float(self.frozen + self.noise.sum())

    def t_opt(self) -> float:
        """The time of least test error."""
        if self.cross is None:
            if not self.noise.any():
                return math.inf if self.error.any() else 0.0
            # Each mode is best at its own time; the optimum over all lies between the first and the last of them.
            own = np.log1p(self.error / self.noise) / self.eigenvalues
            low, high = max(float(own.min()), 1e-6 * float(own.max())), float(own.max())
        else:  # modes that a covariance mixes have no such bracket
            low, high = 1e-3 / float(self.eigenvalues.max()), 1e2 / float(self.eigenvalues.min())
        if high == 0:
            return 0.0
        for _ in range(7):  # each round keeps a sixteenth, in the logarithm
            grid = np.geomspace(low, high, 33)
            best = int(self.errors(grid)[1].argmin())
            low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, 32)])
        return math.sqrt(low * high)

    def curve(self, times: Array, final: float) -> LearningCurve:
        train, test = self.errors(times)
        t_opt = self.t_opt() if len(self.eigenvalues) else 0.0
        first, best = (float(error) for error in self.errors(np.array([0.0, min(t_opt, 1e300)]))[1])
        if t_opt == math.inf or (self.cross is not None and final <= best + 1e-12 * first):
            t_opt, best = math.inf, final
        t, train_error, test_error = (torch.from_numpy(array) for array in (times, train, test))
        return LearningCurve(t, train_error, test_error, t_opt, max(0.0, final - best), final)


def _graded_spectrum(alpha: float, longest: float) -> tuple[Array, Array]:
    """Quadrature of the spectrum for times up to ``longest``: its panels halve towards the lower end.

    They do so down to the scale of the density's pole, ``|log(alpha)| / 2`` off the real angles; at alpha = 1, which
    has none, to that of ``exp(-l t)``.
    """
    pole = abs(math.log(alpha)) / 16
    width = pole if pole > 1e-9 else 1 / (6 * math.sqrt(longest))
    edges = [0.0, *(math.pi / 2.0**k for k in range(max(0, math.ceil(math.log2(math.pi / width))), -1, -1))]
    nodes, weights = np.polynomial.legendre.leggauss(20)
    starts, sizes = np.array(edges[:-1])[:, None], np.diff(edges)[:, None]
    angles = starts + sizes * (nodes + 1) / 2
    return _spectrum(alpha, angles.ravel(), (sizes * weights / 2).ravel())


def _spectrum(alpha: float, angles: Array, weights: Array) -> tuple[Array, Array]:
    """Eigenvalues ``lower + 2 half sin^2(angle / 2)`` and the density's weights at angles in (0, pi)."""
    root = math.sqrt(alpha)
    lower, half = ((root - 1) / root) ** 2, 2 / root
    eigenvalues = lower + 2 * half * np.sin(angles / 2) ** 2
    return eigenvalues, weights * alpha * (half * np.sin(angles)) ** 2 / (2 * math.pi * eigenvalues)


def _eigen(x: Array, tol: float) -> tuple[Array, Array]:
    """Nonzero eigenvalues of ``X^T X / n``, descending, and their eigenvectors ``(dim, modes)``."""
    n, dim = x.shape
    if dim <= n:
        values, vectors = np.linalg.eigh(x.T @ x / n)
    else:
        values, left = np.linalg.eigh(x @ x.T / n)
    kept = np.flatnonzero(values > tol * max(values[-1], 0.0))[::-1]
    values = values[kept]
    if dim <= n:
        return values, vectors[:, kept]
    return values, x.T @ (left[:, kept] / np.sqrt(n * values))


def _check(alpha: float, snr: float = 1.0, inr: float = 0.0) -> None:
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha, examples per dimension, must be positive and finite, got {alpha}")
    if not snr > 0:
        raise ValueError(f"snr must be positive (inf for no noise), got {snr}")
    if not 0 <= inr < math.inf:
        raise ValueError(f"inr must be finite and not negative, got {inr}")


def _times(t: Tensor | Array | None) -> Array:
    if t is None:
        return np.concatenate([[0.0], np.geomspace(1e-2, 1e4, 240)])
    times = np.array(t.detach().cpu() if isinstance(t, Tensor) else t, dtype=np.float64)
    if times.ndim != 1 or not len(times):
        raise ValueError(f"t must be a vector of at least one time, got shape {times.shape}")
    if not (np.isfinite(times).all() and times[0] >= 0 and (np.diff(times) >= 0).all()):
        raise ValueError("t must be finite, not negative and in ascending order")
    return times


def _matrix(x: Tensor | Array, name: str) -> Array:
    array = np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name} must be a matrix with at least one row and column, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite")
    return array


def _weights(w: Tensor | Array, dim: int) -> Array:
    array = np.asarray(w.detach().cpu() if isinstance(w, Tensor) else w, dtype=np.float64)
    if array.ndim not in (1, 2) or len(array) != dim or not np.isfinite(array).all():
        raise ValueError(f"weights must be finite, ({dim},) or ({dim}, outputs), got shape {array.shape}")
    return array.reshape(dim, -1)
