import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from heldout.measure import (
    marchenko_pastur,
    mp_learning_curve,
    optimal_ridge,
    optimal_stopping_time,
    spectral_learning_curve,
    subspace_bound,
)

ALPHAS = [0.1, 0.5, 0.9, 1.0, 1.1, 2.0, 8.0]
TIMES = np.concatenate([[0.0], np.geomspace(0.01, 1000, 30)])


def normal(n, dim, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_spectrum_has_its_mass_and_its_first_two_moments(alpha):
    eigenvalues, weights, zero_mass = marchenko_pastur(alpha)
    assert weights.sum().item() == pytest.approx(min(1.0, alpha), abs=1e-6)
    assert zero_mass == pytest.approx(max(0.0, 1 - alpha))
    assert (weights * eigenvalues).sum().item() == pytest.approx(1.0, abs=1e-8)
    assert (weights * eigenvalues**2).sum().item() == pytest.approx(1 + 1 / alpha, abs=1e-8)


def test_the_spectrum_lies_between_its_edges_and_is_that_of_normal_data():
    eigenvalues, weights, _ = marchenko_pastur(2.0)
    assert (1 - 0.5**0.5) ** 2 < eigenvalues.min() < eigenvalues.max() < (1 + 0.5**0.5) ** 2
    x = normal(2000, 1000)
    measured = torch.linalg.eigvalsh(x.T @ x / 2000)
    assert (weights * (-eigenvalues).exp()).sum().item() == pytest.approx((-measured).exp().mean().item(), rel=3e-3)


@pytest.mark.parametrize("alpha", [0.5, 0.99, 1.0, 1.001, 3.0])
@pytest.mark.parametrize("t", [0.3, 20.0, 3000.0])
def test_the_test_error_is_that_of_adaptive_quadrature(alpha, t):
    low, half = (1 - alpha**-0.5) ** 2, 2 * alpha**-0.5

    def integrand(angle):
        l = low + 2 * half * math.sin(angle / 2) ** 2  # noqa: E741
        density = alpha * (half * math.sin(angle)) ** 2 / (2 * math.pi * l)
        return density * (1.5 * math.exp(-2 * l * t) + 0.2 / alpha * (1 - math.exp(-l * t)) ** 2 / l)

    edges = [1e-12, 1e-4, 1e-3, 0.01, 0.1, 1.0, math.pi]
    pieces = [quad(integrand, a, b, epsabs=1e-13, limit=200)[0] for a, b in itertools.pairwise(edges)]
    expected = sum(pieces) + max(0.0, 1 - alpha) * 1.5 + 0.2
    assert mp_learning_curve(alpha, 5.0, 0.5, np.array([t])).test.item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_errors_start_at_signal_start_and_noise(alpha):
    curve = mp_learning_curve(alpha, 5.0, 0.5, np.array([0.0]))
    assert curve.test.item() == pytest.approx(1.7, rel=1e-9)
    assert curve.train.item() == pytest.approx(1.7, rel=1e-9)


@pytest.mark.parametrize(("alpha", "final"), [(2.0, 0.4), (0.5, 0.9), (4.0, 0.2 * (1 + 1 / 3))])
def test_the_final_test_error_has_its_closed_form(alpha, final):
    curve = mp_learning_curve(alpha, 5.0, t=np.array([1e6]))
    assert curve.final == pytest.approx(final)
    assert curve.test.item() == pytest.approx(final)
    assert curve.overtraining == pytest.approx(final - mp_learning_curve(alpha, 5.0).test.min().item(), abs=1e-4)


def test_the_final_training_error_is_the_noise_that_does_not_fit():
    assert mp_learning_curve(2.0, 5.0, t=np.array([1e6])).train.item() == pytest.approx(0.1)
    assert mp_learning_curve(0.5, 5.0, t=np.array([1e6])).train.item() == pytest.approx(0.0, abs=1e-12)


def test_with_as_many_examples_as_weights_the_error_grows_without_bound():
    curve = mp_learning_curve(1.0, 5.0, t=np.array([1e2, 1e4, 1e6]))
    assert curve.final == curve.overtraining == math.inf
    assert curve.test[2] > 5 * curve.test[1] > 25 * curve.test[0]


def test_without_noise_longer_training_never_hurts():
    curve = mp_learning_curve(0.5, math.inf, t=TIMES)
    assert (curve.test.diff() <= 1e-12).all()
    assert (curve.t_opt, curve.overtraining, curve.final) == (math.inf, 0.0, 0.5)
    assert optimal_ridge(0.5, math.inf) == (0.0, 0.5)


def test_a_better_signal_means_a_smaller_error_at_all_times():
    worse, better = (mp_learning_curve(1.5, snr, t=TIMES).test for snr in (2.0, 4.0))
    assert (better < worse).all()


def test_below_one_the_final_error_grows_by_the_frozen_share_of_the_initial_variance():
    at_zero, large = (mp_learning_curve(0.25, 5.0, inr).final for inr in (0.0, 3.0))
    assert large - at_zero == pytest.approx(0.75 * 3)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 3.0])
def test_the_best_time_is_the_minimum_and_lies_between_those_of_the_extreme_modes(alpha):
    best = optimal_stopping_time(alpha, 5.0, 0.5)
    around = mp_learning_curve(alpha, 5.0, 0.5, best * np.array([0.9, 1.0, 1.1])).test
    assert around[1] < around[0]
    assert around[1] < around[2]
    eigenvalues, _, _ = marchenko_pastur(alpha)
    own = (1 + eigenvalues * alpha * 5.0 * 1.5).log() / eigenvalues
    assert own.min() < best < own.max()


def test_a_single_mode_is_best_stopped_at_its_closed_form():
    dim, n, noise = 10, 40, 0.3
    q, _ = torch.linalg.qr(normal(n, dim))
    x = q * (n * 0.7) ** 0.5  # all eigenvalues of X^T X / n are 0.7
    expected = math.log(1 + 0.7 * (n / dim) * 1.5 / noise) / 0.7
    assert spectral_learning_curve(x, None, noise, 0.5).t_opt == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("alpha", [0.3, 0.9, 1.0, 2.0])
def test_early_stopping_is_nearly_as_good_as_the_best_ridge_which_is_better(alpha):
    curve, ridge = mp_learning_curve(alpha, 5.0, t=np.geomspace(0.1, 100, 400)), optimal_ridge(alpha, 5.0)
    assert ridge.test < curve.test.min() < 1.05 * ridge.test


def test_the_best_ridge_is_the_minimum_over_penalties():
    eigenvalues, weights, zero_mass = marchenko_pastur(0.6)

    def error(penalty):
        modes = (penalty**2 + eigenvalues / (0.6 * 5.0)) / (eigenvalues + penalty) ** 2
        return (weights * modes).sum().item() + zero_mass + 0.2

    best = optimal_ridge(0.6, 5.0)
    assert best.test == pytest.approx(error(best.penalty), rel=1e-8)
    assert best.test < min(error(0.9 * best.penalty), error(1.1 * best.penalty))


@pytest.mark.parametrize(("n", "dim"), [(30, 12), (12, 30)])
@pytest.mark.parametrize("given", [True, False])
def test_the_spectral_curve_is_the_mean_of_simulations(n, dim, given):
    x, draws, noise, init, lr, steps = normal(n, dim), 4000, 0.4, 0.5, 0.02, 150
    root = normal(dim, dim, 5) / dim**0.5
    covariance = root @ root.T + torch.eye(dim)
    fixed = normal(dim, 1, 3) / dim**0.5
    w_bar = fixed.expand(dim, draws) if given else (2 / dim) ** 0.5 * normal(dim, draws, 4)
    w = (init / dim) ** 0.5 * normal(dim, draws, 1)
    errors = noise**0.5 * normal(n, draws, 2)
    for _ in range(steps):
        w = w - lr * x.T @ (x @ (w - w_bar) - errors) / n
    test = ((w - w_bar) * (covariance @ (w - w_bar))).sum(0).mean() + noise
    train = (x @ (w - w_bar) - errors).square().mean()
    options = {"signal_var": 2.0, "covariance": covariance, "lr": lr}
    t = torch.tensor([0.0, lr * steps])
    curve = spectral_learning_curve(x, fixed[:, 0] if given else None, noise, init, t, **options)
    assert curve.test[1].item() == pytest.approx(test.item(), rel=0.03)
    assert curve.train[1].item() == pytest.approx(train.item(), rel=0.03)
    initial = fixed[:, 0] @ covariance @ fixed[:, 0] if given else 2 * covariance.trace() / dim
    assert curve.test[0].item() == pytest.approx((initial + init * covariance.trace() / dim + noise).item())


def test_the_identity_covariance_is_the_default():
    x, w = normal(20, 30), normal(30, 2, 1)
    plain, given = (spectral_learning_curve(x, w, 0.3, 0.1, TIMES, covariance=c) for c in (None, torch.eye(30)))
    torch.testing.assert_close(plain.test, given.test)
    assert plain.t_opt == pytest.approx(given.t_opt, rel=1e-3)


def test_without_noise_the_best_time_is_never_whatever_the_covariance():
    curve = spectral_learning_curve(normal(40, 10), normal(10, 1, 1), 0.0, covariance=torch.eye(10) + 0.5)
    assert (curve.t_opt, curve.overtraining) == (math.inf, 0.0)


def test_the_limit_is_that_of_the_curve():
    curve = spectral_learning_curve(normal(20, 30), normal(30, 1, 1), 0.3, t=np.array([1e7]))
    assert curve.final == pytest.approx(curve.test.item())
    assert curve.train.item() == pytest.approx(0.0, abs=1e-12)


def test_descent_in_small_steps_follows_the_flow():
    x = normal(60, 40)
    times = np.arange(1, 20, dtype=float)
    flow = spectral_learning_curve(x, None, 0.2, t=times)
    differences = [
        (spectral_learning_curve(x, None, 0.2, t=times, lr=lr).test - flow.test).abs().max() for lr in (0.1, 0.01)
    ]
    assert differences[1] < 0.15 * differences[0] < 0.01


def test_too_large_a_learning_rate_is_warned_of_and_diverges():
    with pytest.warns(RuntimeWarning, match="diverges"):
        curve = spectral_learning_curve(normal(60, 40), None, 0.2, t=np.array([0.0, 300.0]), lr=3.0)
    assert curve.final == math.inf
    assert curve.test[1] > 1e6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spectral_learning_curve(normal(60, 40), None, 0.2, lr=0.1)


def test_the_bound_ignores_the_frozen_subspace_and_grows_with_the_change():
    x, change = normal(20, 30), normal(30, 1, 1)[:, 0]
    _, _, right = torch.linalg.svd(x, full_matrices=True)
    frozen = right[20:].T @ normal(10, 1, 2)[:, 0]
    assert subspace_bound(x, change + 100 * frozen) == pytest.approx(subspace_bound(x, change))
    assert subspace_bound(x, 3 * change) == pytest.approx(3 * subspace_bound(x, change))
    assert subspace_bound(x, frozen) == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mp_learning_curve(0.0, 5.0), "alpha"),
        (lambda: mp_learning_curve(math.inf, 5.0), "alpha"),
        (lambda: mp_learning_curve(1.0, 0.0), "snr"),
        (lambda: mp_learning_curve(1.0, math.nan), "snr"),
        (lambda: mp_learning_curve(1.0, 5.0, -0.1), "inr"),
        (lambda: mp_learning_curve(1.0, 5.0, t=np.array([1.0, 0.5])), "ascending"),
        (lambda: mp_learning_curve(1.0, 5.0, t=np.array([-1.0])), "not negative"),
        (lambda: mp_learning_curve(1.0, 5.0, t=np.array([])), "at least one"),
        (lambda: marchenko_pastur(1.0, 0), r"node|n must be at least 1"),
        (lambda: optimal_ridge(-1.0, 1.0), "alpha"),
        (lambda: spectral_learning_curve(torch.zeros(3), None, 0.1), "matrix"),
        (lambda: spectral_learning_curve(torch.full((2, 2), math.nan), None, 0.1), "finite"),
        (lambda: spectral_learning_curve(torch.eye(3), None, -0.1), "noise_var"),
        (lambda: spectral_learning_curve(torch.eye(3), None, 0.1, -1.0), "init_var"),
        (lambda: spectral_learning_curve(torch.eye(3), None, 0.1, signal_var=-1.0), "signal_var"),
        (lambda: spectral_learning_curve(torch.eye(3), torch.zeros(4), 0.1), r"\(3,\)"),
        (lambda: spectral_learning_curve(torch.eye(3), None, 0.1, covariance=torch.eye(4)), "covariance"),
        (lambda: spectral_learning_curve(torch.eye(3), None, 0.1, lr=0.0), "lr"),
        (lambda: subspace_bound(torch.eye(3), torch.zeros(4)), r"\(3,\)"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_features_of_zeros_teach_nothing():
    curve = spectral_learning_curve(torch.zeros(4, 3), None, 0.2, t=np.array([0.0, 10.0]))
    assert curve.test.tolist() == pytest.approx([1.2, 1.2])
    assert curve.train.tolist() == pytest.approx([0.2, 0.2])
