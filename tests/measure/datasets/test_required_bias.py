import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_ndtr
from scipy.stats import kstest, ncx2
from torch import nn

from heldout.measure import (
    gram,
    inductive_bias,
    kernel_error_law,
    kernel_error_samples,
    kernel_inductive_bias,
    model_error_samples,
    rbf_kernel,
    required_inductive_bias,
)
from heldout.measure.datasets.noncentral_chi2 import _log_pdf, _saddle_point, _sankaran

LAWS = [(3, 1, 0.1), (30, 50, 0.01), (104, 0.01, 1e-5), (400, 300, 1.0), (1.0, 8, 1.0), (3000, 5, 1.0)]


def points(n=40, m=25, dim=3, outputs=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n + m, dim, generator=generator, dtype=torch.float64)
    y = torch.sin(x @ torch.randn(dim, outputs, generator=generator, dtype=torch.float64))
    return x[:n], y[:n], x[n:], y[n:]


def naive_posterior(x_train, y_train, x_test, kernel, jitter=1e-6):
    inverse = (kernel(x_train, x_train) + jitter * torch.eye(len(x_train), dtype=torch.float64)).inverse()
    across = kernel(x_test, x_train)
    return across @ inverse @ y_train, kernel(x_test, x_test) - across @ inverse @ across.T


@pytest.mark.parametrize(("df", "nc", "scale"), LAWS)
def test_the_tail_of_a_known_law_is_found_within_five_percent(df, nc, scale):
    errors = scale * ncx2.rvs(df, nc, size=10_000, random_state=0)
    found = required_inductive_bias(errors, scale * ncx2.ppf(1e-3, df, nc), bootstrap=50)
    assert found.nats == pytest.approx(math.log(1000), rel=0.05)
    assert found.empirical == pytest.approx(math.log(1000), abs=0.7)
    assert found.ci[0] <= found.nats <= found.ci[1]
    assert found.gof.p > 0.01
    assert found.support == "measured"
    assert found.bits == pytest.approx(found.nats / math.log(2))


def test_the_fit_is_as_likely_as_that_of_scipy():
    errors = 0.01 * ncx2.rvs(20, 30, size=1000, random_state=0)
    ours = required_inductive_bias(errors, 0.3).params
    theirs = ncx2.fit(errors, floc=0)
    assert _log_pdf(errors, *ours).sum() >= ncx2.logpdf(errors, *theirs).sum() - 0.05


@pytest.mark.parametrize(("df", "nc"), [(3, 1), (104, 0.01), (400, 300), (0.5, 8), (2000, 50)])
def test_the_log_density_is_that_of_scipy(df, nc):
    x = ncx2.rvs(df, nc, size=20, random_state=0)
    assert np.allclose(_log_pdf(x, df, nc, 1.0), np.log(ncx2.pdf(x, df, nc)), atol=1e-6)


@pytest.mark.parametrize(("df", "nc"), [(30, 50), (104, 0.01), (400, 300), (3000, 5)])
def test_saddle_point_and_sankaran_agree_with_the_exact_tail(df, nc):
    x = ncx2.ppf(3e-7, df, nc)[None]  # five standard deviations of a normal
    exact = -ncx2.logcdf(x, df, nc)
    assert _saddle_point(x, df, nc) == pytest.approx(exact, rel=1e-3)
    assert -log_ndtr(-np.sqrt(2 * _sankaran(x, df, nc))) == pytest.approx(exact, rel=0.05)


def test_the_deep_tail_goes_on_where_the_probability_underflows():
    errors = ncx2.rvs(3000, 5, size=2000, random_state=0) / 3000
    found = required_inductive_bias(errors, 0.3, bootstrap=20)
    curve = found.curve(np.geomspace(1e-6, 2.0, 200))
    assert np.isfinite(curve).all()
    assert (np.diff(curve) <= 0).all()
    assert curve[0] > 5000
    assert curve[-1] == 0
    assert found.support == "extrapolated"
    assert found.empirical == math.inf
    assert found.nats > 300


def test_the_repo_tail_takes_sankaran_where_the_probability_underflows():
    errors = ncx2.rvs(3000, 5, size=2000, random_state=0) / 3000
    saddle, repo = (required_inductive_bias(errors, 0.2, tail=tail, bootstrap=20) for tail in ("ncx2", "repo"))
    assert repo.nats == pytest.approx(saddle.nats, rel=0.1)
    assert repo.nats != saddle.nats
    assert required_inductive_bias(errors, 0.9, tail="repo").nats == required_inductive_bias(errors, 0.9).nats


def test_a_target_above_all_errors_needs_nothing():
    errors = ncx2.rvs(50, 10, size=500, random_state=0)
    assert required_inductive_bias(errors, 1.5 * errors.max()).nats == pytest.approx(0, abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.6, 500), st.floats(0, 500), st.integers(0, 99), st.floats(1e-6, 1e6))
def test_the_curve_never_rises_and_units_do_not_matter(df, nc, seed, unit):
    errors = ncx2.rvs(df, nc, size=100, random_state=seed)
    found = required_inductive_bias(errors, float(np.quantile(errors, 0.1)), bootstrap=20)
    assert (np.diff(found.curve(np.linspace(0.05, 3, 60) * errors.mean())) <= 1e-9).all()
    scaled = required_inductive_bias(unit * errors, unit * found.target, bootstrap=20)
    assert scaled.nats == pytest.approx(found.nats, rel=0.02, abs=0.02)


def test_few_samples_far_from_the_target_are_flagged():
    errors = 1 + 0.01 * np.random.default_rng(0).standard_normal(200)
    assert required_inductive_bias(errors[:99], 0.9).support == "unsupported"
    assert required_inductive_bias(errors, 0.9).support == "extrapolated"
    assert required_inductive_bias(errors[:99], 0.95).support == "extrapolated"


def test_the_interval_narrows_with_samples():
    errors = ncx2.rvs(100, 50, size=5000, random_state=0) / 150
    many, few = (required_inductive_bias(errors[:n], 0.8).standard_error for n in (5000, 200))
    assert 2.5 < few / many < 10  # 5 where all three parameters were identified


def test_the_bootstrap_covers_the_truth():
    target, hits = ncx2.ppf(1e-3, 100, 0.5), 0
    for seed in range(20):
        low, high = required_inductive_bias(ncx2.rvs(100, 0.5, size=200, random_state=seed), target).ci
        hits += low <= math.log(1000) <= high
    assert hits >= 16


def test_kernel_errors_have_the_moments_of_the_posterior():
    x_train, y_train, x_test, y_test = points()
    mean, covariance = naive_posterior(x_train, y_train, x_test, rbf_kernel())
    law = kernel_error_law(x_train, y_train, x_test, y_test)
    bias, count = (mean - y_test).square().sum(), y_test.numel()
    assert law.mean == pytest.approx(float(bias / count + covariance.trace() / len(x_test)), rel=1e-6)
    expected = 2 * y_test.shape[1] * covariance.square().sum() / count**2
    expected += 4 * ((mean - y_test).T @ covariance @ (mean - y_test)).trace() / count**2
    assert law.variance == pytest.approx(float(expected), rel=1e-5)
    errors = law.sample(20_000)
    assert errors.mean() == pytest.approx(law.mean, abs=5 * math.sqrt(law.variance / 20_000))
    assert errors.var() == pytest.approx(law.variance, rel=0.1)


def test_kernel_errors_are_those_of_posterior_draws():
    x_train, y_train, x_test, y_test = points(outputs=1)
    mean, covariance = naive_posterior(x_train, y_train, x_test, rbf_kernel())
    root = torch.linalg.cholesky(covariance + 1e-9 * torch.eye(len(x_test)))
    draws = mean[:, 0] + torch.randn(4000, len(x_test), generator=torch.Generator().manual_seed(7)).double() @ root.T
    naive = (draws - y_test[:, 0]).square().mean(1).numpy()
    assert kstest(naive, kernel_error_samples(x_train, y_train, x_test, y_test, n_samples=4000)).pvalue > 0.01


def test_a_test_point_that_is_a_training_point_has_no_variance():
    x_train, y_train, _, _ = points()
    law = kernel_error_law(x_train, y_train, x_train[:5], y_train[:5])
    assert law.mean < 1e-5
    assert law.variances.sum() < 1e-5


@pytest.mark.parametrize("quantile", [1e-3, 0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dim", [1, 2, 4])
def test_the_saddle_point_is_the_share_of_samples_below(dim, quantile):
    law = kernel_error_law(*points(dim=dim, n=15))
    target = float(np.quantile(law.sample(100_000), quantile))
    assert law.nats(target) == pytest.approx(-math.log(quantile), rel=0.03, abs=0.08)


def test_the_saddle_point_is_smooth_at_the_mean_and_monotone():
    law = kernel_error_law(*points())
    targets = law.mean * np.array([1e-3, 0.1, 0.5, 1 - 1e-5, 1, 1 + 1e-5, 2, 10])
    nats = np.array([law.nats(float(target)) for target in targets])
    assert (np.diff(nats) <= 0).all()
    assert nats[3] - nats[5] < 1e-3
    with pytest.raises(ValueError, match="target must be positive"):
        law.nats(0.0)


def test_an_error_that_no_hypothesis_reaches_needs_infinitely_much():
    x = torch.tensor([[0.0], [1.0]])
    law = kernel_error_law(x, x, torch.cat([x, x]), torch.tensor([[1.0], [1.0], [0.0], [1.0]]), jitter=0.0)
    law = law._replace(variances=law.variances * (law.variances > 1e-9))
    assert law.nats(0.1) == math.inf
    assert law.nats(1.0) == 0


def test_order_and_repetition_of_test_points_keep_the_mean():
    x_train, y_train, x_test, y_test = points()
    law = kernel_error_law(x_train, y_train, x_test, y_test)
    order = torch.randperm(len(x_test), generator=torch.Generator().manual_seed(0))
    moved = kernel_error_law(x_train, y_train[:, [1, 0]], x_test[order], y_test[order][:, [1, 0]])
    twice = kernel_error_law(x_train, y_train, torch.cat([x_test, x_test]), torch.cat([y_test, y_test]))
    assert moved.mean == pytest.approx(law.mean)
    assert moved.nats(0.5 * law.mean) == pytest.approx(law.nats(0.5 * law.mean), rel=1e-6)
    assert twice.mean == pytest.approx(law.mean)
    assert twice.nats(0.5 * law.mean) == pytest.approx(law.nats(0.5 * law.mean), rel=1e-4)


def test_any_callable_is_a_kernel():
    class Lazy:
        def __init__(self, matrix):
            self.matrix = matrix

        def to_dense(self):
            return self.matrix

    data = points()
    expected = kernel_error_law(*data).mean
    rbf = rbf_kernel()
    assert kernel_error_law(*data, lambda a, b: Lazy(rbf(a, b))).mean == pytest.approx(expected)
    assert kernel_error_law(*data, lambda a, b: rbf(a, b).numpy()).mean == pytest.approx(expected)
    assert kernel_error_law(*(x.numpy() for x in data)).mean == pytest.approx(expected)
    assert kernel_error_law(*data, lambda a, b: rbf(a, b).float(), jitter=1e-4).mean == pytest.approx(expected, rel=0.1)


def test_kernel_inductive_bias_by_samples_and_by_saddle_point():
    data = points(dim=4)
    law = kernel_error_law(*data)
    target = float(np.quantile(law.sample(), 0.02))
    fitted = kernel_inductive_bias(*data, target, n_samples=5000)
    exact = kernel_inductive_bias(*data, target, method="saddlepoint")
    assert fitted == pytest.approx(exact, abs=0.5)
    assert exact == law.nats(target)


def line(seed):
    return nn.Linear(1, 1)


def fit(model, seed):
    with torch.no_grad():
        model.weight.mul_(0.5)


def error(model):
    return model.weight.square().item()


def test_models_are_seeded_and_the_global_state_is_kept():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two = (model_error_samples(line, fit, error, 25) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert (one == two).all()
    assert len(set(one)) == 25
    assert (model_error_samples(line, fit, error, 20, seed=5) == one[5:]).all()


def test_models_that_do_not_fit_are_left_out():
    all_of_them = model_error_samples(line, fit, error, 30)
    kept = model_error_samples(line, fit, error, 30, fits=lambda model: error(model) < 0.1)
    assert (kept == all_of_them[all_of_them < 0.1]).all()
    with pytest.raises(ValueError, match="none of 3 models fits"):
        model_error_samples(line, fit, error, 3, fits=lambda model: False)


def test_fit_may_return_another_model():
    replaced = model_error_samples(line, lambda model, seed: nn.Linear(1, 1), error, 5)
    assert (replaced != model_error_samples(line, fit, error, 5)).all()


def test_one_call_gives_the_number_of_a_users_models():
    found = inductive_bias(line, fit, error, target=0.01, n_trials=40)
    errors = model_error_samples(line, fit, error, 40)
    assert found == required_inductive_bias(errors, 0.01)
    assert found.n_samples == 40


@pytest.mark.parametrize(
    ("errors", "target", "message"),
    [
        (np.ones(19), 0.5, "at least 20 samples"),
        (np.ones((20, 2)), 0.5, "at least 20 samples"),
        (np.ones(30), 0.5, "errors must vary"),
        (np.arange(30.0), 0.5, "errors must be positive"),
        (np.append(np.arange(1, 30.0), np.nan), 0.5, "errors must be positive"),
        (np.arange(1, 31.0), 0.0, "target must be positive"),
        (np.arange(1, 31.0), math.nan, "target must be a number"),
    ],
)
def test_bad_samples_and_targets_are_refused(errors, target, message):
    with pytest.raises(ValueError, match=message):
        required_inductive_bias(errors, target)


def test_bad_options_are_refused():
    errors = np.arange(1, 31.0)
    with pytest.raises(ValueError, match="tail must be"):
        required_inductive_bias(errors, 1.0, tail="normal")
    with pytest.raises(ValueError, match="bootstrap must be at least 20"):
        required_inductive_bias(errors, 1.0, bootstrap=1)
    with pytest.raises(ValueError, match="targets must be positive"):
        required_inductive_bias(errors, 1.0).curve([0.0, 1.0])
    with pytest.raises(ValueError, match="evaluate returned nan"):
        model_error_samples(line, fit, lambda model: math.nan, 3)
    with pytest.raises(ValueError, match="n_trials must be at least 1"):
        model_error_samples(line, fit, error, 0)
    with pytest.raises(ValueError, match="n_samples must be at least 1"):
        kernel_error_samples(*points(), n_samples=0)
    with pytest.raises(ValueError, match="method must be"):
        kernel_inductive_bias(*points(), 0.1, method="exact")


def test_bad_kernels_and_shapes_are_refused():
    x_train, y_train, x_test, y_test = points()
    with pytest.raises(ValueError, match="not positive semi-definite beyond the jitter"):
        kernel_error_law(x_train, y_train, x_test, y_test, lambda a, b: -(a @ b.T))
    with pytest.raises(ValueError, match="must be symmetric"):
        kernel_error_law(x_train, y_train, x_test, y_test, lambda a, b: a @ (b + 1).T)
    with pytest.raises(ValueError, match=r"must return a matrix \(40, 40\)"):
        kernel_error_law(x_train, y_train, x_test, y_test, lambda a, b: a)
    with pytest.raises(ValueError, match="finite values"):
        kernel_error_law(x_train, y_train, x_test, y_test, lambda a, b: (a @ b.T) / 0)
    with pytest.raises(ValueError, match="callable or 'rbf'"):
        gram("linear", x_train, x_train)
    with pytest.raises(ValueError, match="sigma and variance"):
        rbf_kernel(0.0)
    with pytest.raises(ValueError, match="jitter must be at least 0"):
        kernel_error_law(x_train, y_train, x_test, y_test, jitter=-1.0)
    with pytest.raises(
        ValueError, match=r"y_train must be \(40,\) or \(40, outputs\)|x_train and y_train must be equally long"
    ):
        kernel_error_law(x_train, y_train[:-1], x_test, y_test)
    with pytest.raises(ValueError, match="y_test must be finite"):
        kernel_error_law(x_train, y_train, x_test, y_test / 0)
    with pytest.raises(ValueError, match="equal outputs"):
        kernel_error_law(x_train, y_train, x_test, y_test[:, :1])


def test_a_repeated_training_point_is_carried_by_the_jitter():
    x_train, y_train, x_test, y_test = points()
    twice = kernel_error_law(torch.cat([x_train, x_train[:1]]), torch.cat([y_train, y_train[:1]]), x_test, y_test)
    assert twice.mean == pytest.approx(kernel_error_law(x_train, y_train, x_test, y_test).mean, rel=1e-3)
    with pytest.raises(ValueError, match="raise jitter"):
        kernel_error_law(torch.ones(3, 1), torch.ones(3), x_test[:, :1], y_test[:, 0], jitter=0.0)
