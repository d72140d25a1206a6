"""The scaled noncentral chi-square: fitted to samples, its density, and its lower tail in nats."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Tail = Literal["ncx2", "repo"]
Support = Literal["measured", "extrapolated", "unsupported"]

_SHAPES = (0.26, 0.4999)  # scale * mean / variance: 1/4 where df is 0, 1/2 where nc is 0


class Ncx2(NamedTuple):
    """``scale * ncx2(df, nc)``. Only the law as a whole is identified: df and nc can trade places."""

    df: float
    nc: float
    scale: float


class Fit(NamedTuple):
    """How well the law fits its samples.

    Attributes:
        ks: Kolmogorov-Smirnov distance.
        p: its p-value, too large in so far as the law was fitted to the same samples.
        tail: largest difference in nats between the fitted and the empirical curve, from the sample of rank 10
            (or the lowest 10 %, if that is fewer) up to the median.
    """

    ks: float
    p: float
    tail: float


def _params(values: Array, fitted: Array) -> tuple[Array, Array, Array]:
    """df, nc and scale ``(...)`` from ``(..., 3)``: the shifts of the mean and log deviation in units of the sample's,
    and the shape, scale * mean / variance.

    Mean and variance are well identified by samples and the shape is not, which is why the fit works in them.
    """
    center, spread = values.mean(), values.std()
    mean, variance = center + spread * fitted[..., 0], (spread * np.exp(fitted[..., 1])) ** 2
    shape = fitted[..., 2]
    count = mean**2 / variance
    return count * (2 / shape - 0.5 / shape**2), count * (0.5 / shape**2 - 1 / shape), shape * variance / mean


def _fit(values: Array) -> Array:
    from scipy.optimize import minimize

    least = values.mean() / values.std()
    skew = float((((values - values.mean()) / values.std()) ** 3).mean())
    start = 0.5 - 0.5 * math.sqrt(max(1 - 0.5 * skew * least, 0))  # three moments, where a law has them

    def loss(fitted: Array) -> float:
        return -float(_log_pdf(values, *_params(values, fitted)).mean())

    bounds = [(-min(1.0, 0.9 * least), 1.0), (-1.5, 1.5), _SHAPES]
    first = np.array([0.0, 0.0, min(max(start, 0.3), 0.48)])
    return minimize(loss, first, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60, "ftol": 1e-10}).x


def _one_step(values: Array, fitted: Array, resamples: int, seed: int) -> Array:
    """``(resamples, 3)``: the fit of each resample by one Newton step, kept inside the bounds of the shape."""
    step = np.array([1e-3, 1e-3, 1e-3])
    fitted = np.append(fitted[:2], np.clip(fitted[2], _SHAPES[0] + step[2], _SHAPES[1] - step[2]))

    def log_pdf(shift: Array) -> Array:
        return _log_pdf(values, *_params(values, fitted + shift))

    axes = np.diag(step)
    ahead, behind = [log_pdf(axis) for axis in axes], [log_pdf(-axis) for axis in axes]
    scores = np.stack([(a - b) / (2 * s) for a, b, s in zip(ahead, behind, step, strict=True)], axis=1)
    information = scores.T @ scores / len(values)
    generator = np.random.default_rng(seed)
    chosen = generator.multinomial(len(values), np.full(len(values), 1 / len(values)), size=resamples)
    gradient = chosen @ scores / len(values)  # its mean is 0, or points out of the bounds of the shape
    steps = np.linalg.lstsq(information, gradient.T, rcond=1e-10)[0].T
    shape = np.clip(fitted[2] + steps[:, 2], *_SHAPES) - fitted[2]
    rest = gradient[:, :2] - information[:2, 2] * shape[:, None]  # the best mean and deviation for that shape
    steps = np.column_stack([np.linalg.solve(information[:2, :2], rest.T).T, shape])
    steps[:, 0] = np.maximum(steps[:, 0], -0.9 * values.mean() / values.std() - fitted[0])
    return fitted + steps


def _log_pdf(values: Array, df: Array, nc: Array, scale: Array) -> Array:
    """Log density of scale * ncx2(df, nc), also where scipy's Bessel function underflows."""
    x, order = values / scale, float(df) / 2 - 1
    return (
        -np.log(2 * scale)
        - 0.5 * (np.sqrt(x) - np.sqrt(nc)) ** 2
        + 0.5 * order * np.log(x / nc)
        + _log_ive(order, np.sqrt(nc * x))
    )


def _log_ive(order: float, x: Array) -> Array:
    """``log(I_order(x)) - x``: by scipy, and by the first terms of the uniform expansion for orders above 50."""
    from scipy.special import ive

    if order < 50:
        return np.log(np.maximum(ive(order, x), 1e-300))
    z = x / order
    root = np.sqrt(1 + z * z)
    p = 1 / root
    second = (3 * p - 5 * p**3) / 24 / order
    third = (81 * p**2 - 462 * p**4 + 385 * p**6) / 1152 / order**2
    exponent = order * (1 / (root + z) + np.log(z / (1 + root)))  # order * (root - z) + ..., without cancellation
    return exponent - 0.5 * np.log(2 * np.pi * order) - 0.5 * np.log(root) + np.log1p(second + third)


def _nats(target: ArrayLike, df: ArrayLike, nc: ArrayLike, scale: ArrayLike, tail: Tail) -> Array:
    from scipy.stats import ncx2

    x, df, nc = np.broadcast_arrays(np.asarray(target) / np.asarray(scale), np.asarray(df), np.asarray(nc))
    with np.errstate(all="ignore"):
        found = np.asarray(-ncx2.logcdf(x, df, nc))
    deep = ~(found < 600)  # close to underflow, or beyond it
    if deep.any():
        rule = _saddle_point if tail == "ncx2" else _sankaran
        found[deep] = rule(x[deep], df[deep], nc[deep])
    return np.maximum(found, 0.0)


def _saddle_point(x: Array, df: Array, nc: Array) -> Array:
    """``-log P(ncx2(df, nc) <= x)`` for x below the mean: the saddle point, which has a closed form here."""
    from scipy.special import log_ndtr

    x = np.maximum(x, 1e-290)
    q = (df + np.sqrt(df**2 + 4 * x * nc)) / (2 * x)  # 1 - 2 t
    ratio = 0.5 / q - 0.5  # t / q
    log_mean, squared = nc * ratio - 0.5 * df * np.log(q), 2 * df + 4 * nc / q
    skew = (8 * df + 24 * nc / q) / squared**1.5
    return -log_ndtr(_signed_root(0.5 * (1 - q) * x - log_mean, ratio * np.sqrt(squared), skew))


def _sankaran(x: Array, df: Array, nc: Array) -> Array:
    """z^2 / 2 of Sankaran's normal approximation, as the released code has it; for x far below the mean only."""
    h = 1 - 2 / 3 * (df + nc) * (df + 3 * nc) / (df + 2 * nc) ** 2
    p = (df + 2 * nc) / (df + nc) ** 2
    m = (h - 1) * (1 - 3 * h)
    center = 1 + h * p * (h - 1 - 0.5 * (2 - h) * m * p)
    z = ((x / (df + nc)) ** h - center) / (h * np.sqrt(2 * p) * (1 + 0.5 * m * p))
    return 0.5 * z**2


def _signed_root(exponent: Any, u: Any, skew: Any) -> Any:
    """The normal quantile of P(X <= x) from the saddle point t of x: r + log(u / r) / r, and its limit at t = 0.

    ``exponent`` is t x - log E[exp(t X)], ``u`` is t times the deviation of the tilted law, ``skew`` its skewness.
    """
    root = np.sign(u) * np.sqrt(np.maximum(2 * exponent, 0))
    near = np.abs(root) < 1e-3
    safe = np.where(near, 1.0, root)
    return np.where(near, root + skew / 6, root + np.log(np.where(near, 1.0, u / safe)) / safe)


def _goodness(values: Array, params: Ncx2) -> Fit:
    from scipy.stats import kstest, ncx2

    law = ncx2(params.df, params.nc, scale=params.scale)
    ordered = np.sort(values)
    test = kstest(ordered, law.cdf)
    ranks = np.arange(min(10, max(1, len(values) // 10)), len(values) // 2 + 1)
    fitted = _nats(ordered[ranks - 1], *params, "ncx2")
    return Fit(float(test.statistic), float(test.pvalue), float(np.abs(fitted + np.log(ranks / len(values))).max()))
