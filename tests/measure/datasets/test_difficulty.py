import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import binom, gamma
from torch.utils.data import TensorDataset

from heldout.measure import (
    classification_difficulty,
    fewshot_difficulty,
    mdp_difficulty,
    pomdp_difficulty,
    task_difficulty,
)
from heldout.measure.datasets import difficulty as module
from heldout.measure.datasets.difficulty import _harmonics

# n, dim, radius, classes, margin, error of the released script, and the bits that its formula gives for them
PUBLISHED = {
    "mnist": (60_000, 14, 17.179045827183984, 10, 2.3987084824335305, 0.001, 1.485e16),
    "svhn": (73_257, 19, 53.86932485133339, 10, 1.5766998174969105, 0.01, 1.213e31),
    "cifar10": (50_000, 27, 54.9156786783691, 10, 2.7506414616587023, 0.01, 3.438e32),
    "imagenet": (1_280_901, 48, 943.5923, 1000, 65.0, 0.1, 3.583e41),
}


def direct(n, dim, radius, classes, margin, error, out_dim=None, bound=1.0):
    """The formula in plain floats, with scipy's binomials."""
    out_dim = classes - 1 if out_dim is None else out_dim
    top = 2 * np.pi * radius / margin
    degree = (np.sqrt((dim - 1) ** 2 + 4 * top**2) - (dim - 1)) / 2
    functions = binom(dim + degree, dim) + binom(dim + degree - 1, dim)
    left = 2 * out_dim * classes * functions - n * out_dim
    surface = 2 * np.pi ** ((dim + 1) / 2) / gamma((dim + 1) / 2)
    transport = np.sqrt(dim / 6) * radius * (classes * surface / n) ** (1 / dim)
    return left * np.log2(bound * np.sqrt(out_dim * classes) / error * degree * np.sqrt(out_dim) / radius * transport)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_papers_constants_give_its_difficulties(name):
    *constants, bits = PUBLISHED[name]
    found = task_difficulty(*constants)
    assert found.bits == pytest.approx(bits, rel=1e-3)
    assert found.log2_bits == pytest.approx(math.log2(bits), abs=1e-2)


def test_the_papers_order_of_data_sets():
    bits = [task_difficulty(*row[:-1]).bits for row in PUBLISHED.values()]
    assert bits == sorted(bits)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(10, 1e6), st.floats(1, 40), st.floats(0.1, 50), st.integers(2, 20), st.floats(0.05, 1), st.floats(1e-4, 1)
)
def test_log_space_equals_the_formula_in_floats(n, dim, radius, classes, share, error):
    found = task_difficulty(n, dim, radius, classes, share * radius, error)
    expected = direct(n, dim, radius, classes, share * radius, error)
    assert found.bits == pytest.approx(expected, rel=1e-6, abs=1e-3)
    assert found.determined == (found.bits <= 0)


@pytest.mark.parametrize("degree", [1, 2, 5, 20])
def test_harmonics_of_the_sphere_in_three_dimensions_number_k_plus_one_squared(degree):
    found, log_count = _harmonics(2, math.sqrt(degree * (degree + 1)))
    assert found == pytest.approx(degree)
    assert math.exp(log_count) == pytest.approx((degree + 1) ** 2)


@pytest.mark.parametrize("dim", [3, 4, 7])
def test_harmonics_are_the_sum_of_the_dimensions_of_each_degree(dim):
    degree = 6
    by_degree = [binom(dim + k, dim) - (binom(dim + k - 2, dim) if k >= 2 else 0) for k in range(degree + 1)]
    _, log_count = _harmonics(dim, math.sqrt(degree * (degree + dim - 1)))
    assert math.exp(log_count) == pytest.approx(sum(by_degree))


def test_dimensions_whose_count_overflows_a_float_have_a_finite_logarithm():
    found = task_difficulty(1e6, 2000, 1.0, 10, 0.001, 0.01)
    assert found.bits == math.inf
    assert 1023 < found.log2_bits < math.inf


@pytest.mark.parametrize("dim", [1, 2])
def test_more_data_than_degrees_of_freedom_is_flagged_and_no_error(dim):
    found = task_difficulty(1000, dim, 1.0, 2, 0.5, 0.01)
    assert found.determined
    assert found.bits < 0
    assert found.degrees_left < 0
    assert math.isnan(found.log2_bits)


@pytest.mark.parametrize(("dim", "bits"), [(3, 1.7e4), (4, 8.3e4), (6, 5.8e5), (8, 2.1e6)])
def test_difficulty_grows_with_the_dimension(dim, bits):
    assert task_difficulty(1000, dim, 1.0, 2, 0.5, 0.01).bits == pytest.approx(bits, rel=0.03)


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-3, 1e3))
def test_the_scale_of_the_inputs_does_not_matter(scale):
    one, other = task_difficulty(1000, 5, 1.0, 3, 0.3, 0.01), task_difficulty(1000, 5, scale, 3, 0.3 * scale, 0.01)
    assert other.log2_bits == pytest.approx(one.log2_bits)


def labelled(n=300, seed=0):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] > 0).long()


def test_a_labelled_data_set_is_measured_in_any_container():
    x, y = labelled()
    found = classification_difficulty(x, y, margin="sample")
    assert (found.n, found.dim, found.classes) == (300, 3, 2)
    assert found.radius == pytest.approx(float(x.norm(dim=1).max()))
    assert found.low <= found.log2_bits <= found.high
    assert classification_difficulty(x.numpy(), y.numpy(), margin="sample") == found
    assert classification_difficulty(TensorDataset(x, y), margin="sample") == found
    given_all = classification_difficulty(x, y, dim=3, margin=found.margin)
    assert given_all.bits == found.bits
    assert given_all.low == given_all.high == given_all.log2_bits


def test_scaling_the_inputs_leaves_the_measured_difficulty():
    x, y = labelled()
    one, other = (classification_difficulty(c * x, y, margin="sample") for c in (1.0, 37.0))
    assert other.margin == pytest.approx(37 * one.margin, rel=1e-5)
    assert other.log2_bits == pytest.approx(one.log2_bits, rel=1e-5)


@pytest.mark.parametrize("history", [1, 2, 3])
def test_pomdp_difficulty_is_the_released_formula(history):
    n, margin, error = 10_000, 0.001, 0.001
    dof = 2 * (2 * np.pi / margin) ** (2 * history) * np.pi**history / gamma(history + 1)
    ratio = np.log2(4 * np.pi**2 / np.sqrt(3)) + 0.5 * np.log2(history) - np.log2(margin) - np.log2(error)
    expected = (dof - n) * (ratio - np.log2(n) / (2 * history))
    assert pomdp_difficulty(history, n, margin, error).bits == pytest.approx(expected)


@pytest.mark.parametrize(("obs_dim", "act_dim"), [(6, 2), (15, 4), (17, 6)])
def test_mdp_difficulty_is_the_released_formula(obs_dim, act_dim):
    n, margin, error = 1_000_000, 0.001, 0.001
    dof = 2 * (2 * np.pi / margin) ** obs_dim * np.pi ** (obs_dim / 2) / gamma(obs_dim / 2 + 1)
    ratio = np.log2(4 * np.pi**2 / np.sqrt(6)) + np.log2(act_dim) + 0.5 * np.log2(obs_dim) - np.log2(margin)
    expected = act_dim * (dof - n) * (ratio - np.log2(n) / obs_dim - np.log2(error))
    assert mdp_difficulty(obs_dim, act_dim, n, margin, error).bits == pytest.approx(expected)


def test_longer_histories_are_harder():
    bits = [pomdp_difficulty(history, 10_000).log2_bits for history in range(1, 6)]
    assert bits == sorted(bits)


def test_fewshot_difficulty_is_that_of_the_map_from_sets_to_classifiers():
    _, log_count = _harmonics(3, 2 * math.pi * 1.5 / 0.5)
    dims = 2 * 4 * 3 * math.exp(log_count)
    expected = direct(1e5, 2 + 3 * 3, 1.5 * 2, 1, 0.5, 0.01, dims, math.sqrt(12))
    assert fewshot_difficulty(1e5, 3, 2, 1.5, 0.5, 0.01, ways=4).bits == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("error", [0, -0.1, 1.1, float("nan")])
def test_errors_outside_0_to_1_are_refused(error):
    with pytest.raises(ValueError, match=r"error must be in \(0, 1\]|error must be a number"):
        task_difficulty(100, 2, 1.0, 2, 0.1, error)
    with pytest.raises(ValueError, match=r"error must be in \(0, 1\]|error must be a number"):
        classification_difficulty(*labelled(), error=error)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"margin": 0.0}, "margin must be positive"), ({"n": -1}, "n must be positive"), ({"classes": 1}, "out_dim must")],
)
def test_quantities_that_are_not_positive_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        task_difficulty(**{"n": 100, "dim": 2, "radius": 1.0, "classes": 2, "margin": 0.1, "error": 0.1} | change)


def test_the_range_is_that_of_the_dimensions_interval_and_the_seed_reaches_its_estimate(monkeypatch):
    seeds = []

    def estimated(points, seed):
        seeds.append(seed)
        return 4.2, 2.6, 5.4  # estimate, low, high

    monkeypatch.setattr(module, "intrinsic_dimension", estimated)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 6, generator=generator), torch.arange(40) % 2
    found = classification_difficulty(x, y, margin=0.3, seed=7)
    at = [task_difficulty(40, dim, found.radius, 2, 0.3, 0.01).log2_bits for dim in (4, 3, 5)]
    assert [found.log2_bits, found.low, found.high] == at
    assert found.low < found.log2_bits < found.high
    assert seeds == [7]
