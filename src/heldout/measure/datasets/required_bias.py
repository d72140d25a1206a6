"""How much a task needs to be told: the inductive bias that is required beyond the hypothesis space and training data.

``I(eps) = -log P(test error <= eps | hypotheses that fit the training data)``, in nats. A hypothesis space is given by
samples of test errors: of a Gaussian process with any kernel, of networks trained from independent seeds, or of any
other sampler. A scaled noncentral chi-square is fitted to the samples and gives the tail beyond them.

Such a tail is an extrapolation: orders of magnitude matter, digits do not. For kernels the law of the error is known
exactly, and its saddle point gives the tail without samples.

Source: arXiv:2406.15941 (Boopathy, Yue, Hwang, Iyer, Fiete; IJCAI 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from heldout.errors import check_at_least, check_same_length, check_values, checked
from heldout.measure.datasets.gram import Kernel, gram, gram_cholesky
from heldout.measure.datasets.noncentral_chi2 import (
    Array,
    Fit,
    Ncx2,
    Support,
    Tail,
    _fit,
    _goodness,
    _nats,
    _one_step,
    _params,
    _signed_root,
)

_AT_ONCE = 1 << 22  # normal draws


@dataclass(frozen=True)
class BiasEstimate:
    """The inductive bias that a target error requires.

    Attributes:
        nats: ``-log P(error <= target)``.
        ci: its 95 % interval, by bootstrap over samples.
        standard_error: of the same bootstrap.
        target: the error that was asked for.
        params: the fitted law.
        empirical: ``-log`` of the share of samples at or below the target, infinite if there are none.
        gof: how well the law fits the samples.
        support: "measured" where some sample reaches the target; "extrapolated" where none does; "unsupported" where
            the target lies over 8 standard deviations below the mean of fewer than 100 samples: no number to rely on.
        n_samples: how many there were.
        tail: the rule of the deep tail.

    Example:
        >>> errors = np.random.default_rng(0).chisquare(10, size=500) / 10
        >>> found = required_inductive_bias(errors, target=0.01, bootstrap=20)
        >>> found.support, found.empirical, found.ci[0] < found.nats < found.ci[1]
        ('extrapolated', inf, True)
    """

    nats: float
    ci: tuple[float, float]
    standard_error: float
    target: float
    params: Ncx2
    empirical: float
    gof: Fit
    support: Support
    n_samples: int
    tail: Tail = "ncx2"

    @property
    def bits(self) -> float:
        """The same in bits."""
        return self.nats / math.log(2)

    @checked
    def curve(self, targets: ArrayLike) -> Array:
        """Returns the nats that each of the targets requires, by the fitted law.

        Raises:
            ValueError: targets that are not positive.
        """
        wanted = np.asarray(targets, dtype=np.float64)
        if not (wanted > 0).all():
            raise ValueError("targets must be positive")
        return _nats(wanted, *self.params, self.tail)


@checked
def required_inductive_bias(
    errors: ArrayLike, target: float, *, tail: Tail = "ncx2", bootstrap: int = 200, seed: int = 0
) -> BiasEstimate:
    """Returns the inductive bias that is required for a test error of at most ``target``.

    The law ``scale * ncx2(df, nc)`` is fitted by maximum likelihood. The bootstrap takes one Newton step of that fit
    for each resample, so that it costs a fraction of the fit itself.

    Args:
        errors: ``(samples,)`` test errors of hypotheses that fit the training data, at least 20.
        target: the error to reach, in the same units.
        tail: where the law's cumulative probability underflows, "ncx2" takes its saddle point and "repo" ``z^2 / 2``
            of Sankaran's normal approximation, as the authors' code does. That one is bounded as the target goes to 0.
        bootstrap: resamples, at least 20.
        seed: of the bootstrap.

    Raises:
        ValueError: fewer than 20 samples, samples or a target that are not positive and finite, equal samples.

    Example:
        >>> errors = np.random.default_rng(0).chisquare(30, size=2000) / 30
        >>> found = required_inductive_bias(errors, target=0.5)
        >>> round(found.nats), round(found.bits), found.support
        (5, 7, 'measured')

    Deviation: the released code keeps Sankaran's approximation in the deep tail; the saddle point is closer there.
    Source: arXiv:2406.15941; M. Sankaran (1959); O. Barndorff-Nielsen (1990) for the saddle point.
    """
    check_at_least(0, seed=seed)
    values = np.asarray(errors, dtype=np.float64)
    if values.ndim != 1 or len(values) < 20:
        raise ValueError(f"errors must be at least 20 samples (samples,), got shape {values.shape}")
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError("errors must be positive and finite")
    if not (math.isfinite(target) and target > 0):
        raise ValueError(f"target must be positive and finite, got {target}")
    if tail not in ("ncx2", "repo"):
        raise ValueError(f'tail must be "ncx2" or "repo", got {tail!r}')
    if bootstrap < 20:
        raise ValueError(f"bootstrap must be at least 20 resamples, got {bootstrap}")
    if values.std() <= 1e-5 * values.mean():
        raise ValueError(f"errors must vary, got {len(values)} samples of {values.mean():g} up to rounding")
    fitted = _fit(values)
    params = Ncx2(*(float(p) for p in _params(values, fitted)))
    resampled = _nats(target, *_params(values, _one_step(values, fitted, bootstrap, seed)), tail)
    low, high = np.quantile(resampled, [0.025, 0.975])
    nats = float(_nats(target, *params, tail))
    reached = int((values <= target).sum())
    support: Support = "measured" if reached else "extrapolated"
    if len(values) < 100 and values.mean() - target > 8 * values.std():
        support = "unsupported"
    return BiasEstimate(
        nats=nats,
        ci=(min(float(low), nats), max(float(high), nats)),
        standard_error=float(resampled.std(ddof=1)),
        target=float(target),
        params=params,
        empirical=-math.log(reached / len(values)) if reached else math.inf,
        gof=_goodness(values, params),
        support=support,
        n_samples=len(values),
        tail=tail,
    )


class ErrorLaw(NamedTuple):
    """The exact law of a Gaussian process's mean squared test error, ``sum_ij (sqrt(w_i) z_ij + b_ij)^2``.

    Attributes:
        variances: ``(test,)``, the w: eigenvalues of the posterior covariance over test points times outputs.
        offsets: ``(test, outputs)``, the b: errors of the posterior mean in the same basis and units.

    Example:
        >>> law = ErrorLaw(torch.tensor([0.5, 0.5]).double(), torch.zeros(2, 1).double())  # exponential, of mean 1
        >>> law.mean, law.variance, abs(law.nats(0.1) + math.log(1 - math.exp(-0.1))) < 0.02
        (1.0, 1.0, True)
    """

    variances: Tensor
    offsets: Tensor

    @property
    def mean(self) -> float:
        """Of the error."""
        return float(self.variances.sum() * self.offsets.shape[1] + self.offsets.square().sum())

    @property
    def variance(self) -> float:
        """Of the error."""
        w, outputs = self.variances, self.offsets.shape[1]
        return float(2 * outputs * w.square().sum() + 4 * (w[:, None] * self.offsets.square()).sum())

    @checked
    def sample(self, n_samples: int = 10_000, *, seed: int = 0) -> Array:
        """Returns errors ``(n_samples,)``.

        Raises:
            ValueError: fewer than 1 sample.
        """
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, got {n_samples}")
        generator = torch.Generator().manual_seed(seed)
        spread, parts = self.variances.sqrt()[:, None], []
        chunk = max(1, _AT_ONCE // self.offsets.numel())
        for start in range(0, n_samples, chunk):
            size = (min(chunk, n_samples - start), *self.offsets.shape)
            draws = torch.randn(size, generator=generator, dtype=torch.float64)
            parts.append(draws.mul_(spread).add_(self.offsets).square_().sum((1, 2)))
        return torch.cat(parts).numpy()

    @checked
    def nats(self, target: float) -> float:
        """Returns ``-log P(error <= target)`` by the saddle point; infinite where no hypothesis gets there.

        Raises:
            ValueError: a target that is not positive and finite.

        Source: O. Barndorff-Nielsen (1990), the r* form of the Lugannani-Rice formula.
        """
        from scipy.optimize import brentq
        from scipy.special import log_ndtr

        if not (math.isfinite(target) and target > 0):
            raise ValueError(f"target must be positive and finite, got {target}")
        mean = self.mean
        w, outputs = self.variances.numpy() / mean, self.offsets.shape[1]
        b, x = self.offsets.square().sum(1).numpy() / mean, target / mean  # in units of the mean
        if not w.any():
            return 0.0 if x >= 1 else math.inf
        if x <= b[w == 0].sum():
            return math.inf

        def slope(t: float) -> float:
            q = 1 - 2 * w * t
            return float((outputs * w / q + b / q**2).sum()) - x

        low, high = -1.0, 0.0
        if slope(0.0) < 0:  # above the mean
            low, high = 0.0, 1 / (2 * w.max())
            gap = 0.5
            while slope(high * (1 - gap)) < 0:
                gap /= 2
            high *= 1 - gap
        while slope(low) > 0:
            low *= 2
        t = float(brentq(slope, low, high, xtol=1e-14 * max(1.0, -low), rtol=1e-14))
        q = 1 - 2 * w * t
        log_mean = float((-0.5 * outputs * np.log(q) + b * t / q).sum())
        deviation = math.sqrt((2 * outputs * w**2 / q**2 + 4 * b * w / q**3).sum())
        skew = float((8 * outputs * w**3 / q**3 + 24 * b * w**2 / q**4).sum()) / deviation**3
        return float(-log_ndtr(_signed_root(t * x - log_mean, t * deviation, skew)))


@checked
def kernel_error_law(
    x_train: Any, y_train: Any, x_test: Any, y_test: Any, kernel: Kernel = "rbf", *, jitter: float = 1e-6
) -> ErrorLaw:
    """Returns the law of the test error of a Gaussian process that interpolates the training data.

    Floor: a Cholesky factor of the training Gram matrix and the eigenvalues of the posterior covariance, that is cubic
    in the number of training and of test points; a few thousand of each.

    Args:
        x_train: ``(train, ...)``, given to the kernel as it is.
        y_train: ``(train,)`` or ``(train, outputs)``; one-hot for classes.
        x_test: ``(test, ...)``.
        y_test: as ``y_train``.
        kernel: see ``heldout.measure.gram``.
        jitter: added to the diagonal of the training Gram matrix, relative to its mean.

    Raises:
        ValueError: shapes that do not match, values that are not finite, a Gram matrix that is not positive
            semi-definite beyond the jitter.

    Example:
        >>> x = torch.linspace(-2, 2, 20)[:, None]
        >>> law = kernel_error_law(x[::2], x[::2].sin(), x[1::2], x[1::2].sin())
        >>> law.mean < 1e-3
        True

    Source: arXiv:2406.15941, section 4.
    """
    check_values(x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    check_same_length(x_train=x_train, y_train=y_train)
    check_same_length(x_test=x_test, y_test=y_test)
    train, test = _targets(x_train, y_train, "train"), _targets(x_test, y_test, "test")
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"y_train and y_test must have equal outputs, got {train.shape[1]} and {test.shape[1]}")
    factor = gram_cholesky(gram(kernel, x_train, x_train), jitter)
    across = torch.linalg.solve_triangular(factor, gram(kernel, x_train, x_test), upper=False)
    mean = across.T @ torch.linalg.solve_triangular(factor, train, upper=False)
    prior = gram(kernel, x_test, x_test)
    values, vectors = torch.linalg.eigh(prior - across.T @ across)
    if values[0] < -0.01 * prior.diagonal().mean():
        raise ValueError(
            f"the posterior covariance has an eigenvalue of {values[0].item():.3g}: the kernel is not positive "
            "semi-definite, or too large a number of training points for its precision; raise jitter"
        )
    count = test.numel()
    return ErrorLaw(values.clamp(min=0) / count, vectors.T @ (mean - test) / math.sqrt(count))


@checked
def kernel_error_samples(
    x_train: Any,
    y_train: Any,
    x_test: Any,
    y_test: Any,
    kernel: Kernel = "rbf",
    n_samples: int = 10_000,
    jitter: float = 1e-6,
    *,
    seed: int = 0,
) -> Array:
    """Returns mean squared test errors ``(n_samples,)`` of Gaussian process draws that interpolate the training data.

    Arguments and errors are those of ``kernel_error_law``, whose law is drawn from.

    Example:
        >>> x = torch.linspace(-2, 2, 20)[:, None]
        >>> kernel_error_samples(x[::2], x[::2].sin(), x[1::2], x[1::2].sin(), n_samples=50).shape
        (50,)

    Source: arXiv:2406.15941, section 4.
    """
    check_values(x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    check_same_length(x_train=x_train, y_train=y_train)
    check_same_length(x_test=x_test, y_test=y_test)
    return kernel_error_law(x_train, y_train, x_test, y_test, kernel, jitter=jitter).sample(n_samples, seed=seed)


@checked
def kernel_inductive_bias(
    x_train: Any,
    y_train: Any,
    x_test: Any,
    y_test: Any,
    target: float,
    kernel: Kernel = "rbf",
    *,
    method: Literal["fit", "saddlepoint"] = "fit",
    n_samples: int = 10_000,
    jitter: float = 1e-6,
    seed: int = 0,
) -> float:
    """Returns the nats that a Gaussian process lacks for a mean squared test error of at most ``target``.

    "fit" is the paper's estimate from samples; "saddlepoint" approximates the exact law, needs no samples, and is the
    one to believe where the two differ: the fitted law has one weight for all eigenvalues of the covariance. Other
    arguments and errors are those of ``kernel_error_law``.

    Raises:
        ValueError: an unknown method, a target that is not positive, and as ``kernel_error_law``.

    Example:
        >>> x = torch.linspace(-2, 2, 12)[:, None]
        >>> data = x[::2], (3 * x[::2]).sin(), x[1::2], (3 * x[1::2]).sin()
        >>> [round(kernel_inductive_bias(*data, 0.02, method=method)) for method in ("fit", "saddlepoint")]
        [2, 2]

    Source: arXiv:2406.15941; the saddle point is an addition.
    """
    check_values(x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    check_same_length(x_train=x_train, y_train=y_train)
    check_same_length(x_test=x_test, y_test=y_test)
    if method not in ("fit", "saddlepoint"):
        raise ValueError(f'method must be "fit" or "saddlepoint", got {method!r}')
    law = kernel_error_law(x_train, y_train, x_test, y_test, kernel, jitter=jitter)
    if method == "saddlepoint":
        return law.nats(target)
    return required_inductive_bias(law.sample(n_samples, seed=seed), target, seed=seed).nats


@checked
def model_error_samples(
    make_model: Callable[[int], nn.Module],
    fit: Callable[[nn.Module, int], nn.Module | None],
    evaluate: Callable[[nn.Module], float],
    n_trials: int = 100,
    *,
    fits: Callable[[nn.Module], bool] | None = None,
    seed: int = 0,
) -> Array:
    """Returns test errors ``(kept trials,)`` of models that were trained independently, in the user's own loop.

    Every trial runs with torch's global generator seeded by its number, whose state is put back afterwards.

    Args:
        make_model: trial seed -> untrained model.
        fit: (model, trial seed) -> the trained model, or None if it was trained in place.
        evaluate: trained model -> test error.
        n_trials: number of models.
        fits: trained model -> whether it fits the training data; models that do not are left out. By default all stay.
        seed: of the first trial; the others follow.

    Raises:
        ValueError: an error that is not finite; no model that fits.

    Example:
        >>> def fit(model, seed):
        ...     nn.init.normal_(model.weight)
        >>> model_error_samples(lambda seed: nn.Linear(1, 1), fit, lambda m: m.weight.item() ** 2, n_trials=3).shape
        (3,)
    """
    if n_trials < 1:
        raise ValueError(f"n_trials must be at least 1, got {n_trials}")
    errors = []
    for trial in range(seed, seed + n_trials):
        with torch.random.fork_rng():
            torch.manual_seed(trial)
            model = make_model(trial)
            trained = fit(model, trial)
            model = model if trained is None else trained
            if fits is None or fits(model):
                errors.append(float(evaluate(model)))
        if errors and not math.isfinite(errors[-1]):
            raise ValueError(f"evaluate returned {errors[-1]} for the model of seed {trial}; errors must be finite")
    if not errors:
        raise ValueError(f"none of {n_trials} models fits the training data: train longer, or loosen fits")
    return np.array(errors)


@checked
def inductive_bias(
    make_model: Callable[[int], nn.Module],
    fit: Callable[[nn.Module, int], nn.Module | None],
    evaluate: Callable[[nn.Module], float],
    target: float,
    n_trials: int = 100,
    *,
    fits: Callable[[nn.Module], bool] | None = None,
    tail: Tail = "ncx2",
    bootstrap: int = 200,
    seed: int = 0,
) -> BiasEstimate:
    """Returns the inductive bias that models of one kind, trained as the user trains them, lack for a target error.

    Arguments are those of ``model_error_samples`` and ``required_inductive_bias``.

    Example:
        >>> x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
        >>> y = x[:, :1]
        >>> def fit(model, seed):
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     for _ in range(20):
        ...         optimizer.zero_grad()
        ...         (model(x[:30]) - y[:30]).square().mean().backward()
        ...         optimizer.step()
        >>> def error(model):
        ...     with torch.no_grad():
        ...         return (model(x[30:]) - y[30:]).square().mean()
        >>> found = inductive_bias(lambda seed: nn.Linear(5, 1), fit, error, target=0.01, n_trials=30)
        >>> found.nats > 0, found.n_samples
        (True, 30)

    Source: arXiv:2406.15941.
    """
    errors = model_error_samples(make_model, fit, evaluate, n_trials, fits=fits, seed=seed)
    return required_inductive_bias(errors, target, tail=tail, bootstrap=bootstrap, seed=seed)


def _targets(x: Any, y: Any, name: str) -> Tensor:
    targets = torch.as_tensor(y).double()
    targets = targets[:, None] if targets.ndim == 1 else targets
    if targets.ndim != 2 or len(targets) != len(x) or not targets.numel():
        raise ValueError(f"y_{name} must be ({len(x)},) or ({len(x)}, outputs), got {tuple(targets.shape)}")
    if not targets.isfinite().all():
        raise ValueError(f"y_{name} must be finite, got NaN or infinity")
    return targets
