import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from heldout.statistics import (
    Interval,
    _jackknife,
    bca,
    bootstrap_distribution,
    mean,
    newcombe,
    pearson,
    percentile,
    ratio_of_means,
    spearman,
    wilson,
)
from heldout.study import effect_size, interval

numbers = st.lists(st.floats(-100, 100), min_size=2, max_size=12).map(np.array)


def paired(n, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.normal(1.0, 0.3, n)
    return x, 2.0 + 0.8 * x + 0.1 * generator.normal(size=n)


CASES = [
    (lambda x, y: [x], mean, lambda x, axis: np.mean(x, axis=axis)),
    (lambda x, y: [x, y], ratio_of_means, lambda x, y, axis: np.mean(x, axis=axis) / np.mean(y, axis=axis)),
    (lambda x, y: [x, y], pearson, lambda x, y, axis: scipy.stats.pearsonr(x, y, axis=axis)[0]),
]


@pytest.mark.parametrize("n", [6, 20])
@pytest.mark.parametrize(("samples", "ours", "theirs"), CASES, ids=["mean", "ratio", "pearson"])
@pytest.mark.parametrize("method", ["BCa", "percentile"])
def test_intervals_agree_with_scipy_on_the_same_resamples(n, samples, ours, theirs, method):
    data = samples(*paired(n))
    # Rounded, so that reordered samples tie with the estimate in scipy as well.
    resampled = bootstrap_distribution(data, ours, resamples=2000, seed=3).round(12)
    estimate = float(ours(*data))
    if method == "BCa":
        found = bca(resampled, estimate, _jackknife(data, ours))
    else:
        found = percentile(resampled)
    expected = scipy.stats.bootstrap(
        data,
        lambda *samples, axis=-1: np.round(theirs(*samples, axis), 12),
        n_resamples=0,
        bootstrap_result=_Resamples(resampled),
        method=method,
        paired=True,
        vectorized=True,
    ).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), rel=1e-9)


class _Resamples:
    """The one attribute that scipy.stats.bootstrap reads from an earlier result."""

    def __init__(self, resampled):
        self.bootstrap_distribution = resampled


def test_the_hull_agrees_with_scipys_own_resampling_where_bca_is_wider():
    x = np.random.default_rng(1).exponential(size=60)
    found = interval([x])
    expected = scipy.stats.bootstrap((x,), np.mean, random_state=0).confidence_interval
    t = scipy.stats.t.interval(0.95, len(x) - 1, x.mean(), scipy.stats.sem(x))
    assert found.high == pytest.approx(max(expected.high, t[1]), rel=0.02)
    assert found.low == pytest.approx(min(expected.low, t[0]), rel=0.02)


def test_the_interval_of_a_mean_contains_the_student_t_interval():
    x, _ = paired(5)
    low, high = scipy.stats.t.interval(0.95, 4, x.mean(), scipy.stats.sem(x))
    found = interval([x])
    assert found.low <= low + 1e-12
    assert found.high >= high - 1e-12


def test_coverage_with_five_seeds_is_near_the_nominal_one():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        found = interval([generator.normal(size=5)])
        hits += found.low <= 0 <= found.high
    assert hits / 200 >= 0.91


def test_correlations_agree_with_scipy():
    x, y = paired(15)
    assert pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
    x[3] = x[4]
    assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert np.isnan(pearson(np.ones(5), x[:5]))


def test_one_value_has_no_interval_and_equal_values_have_one_of_width_zero():
    assert interval([np.array([3.0])]).low is None
    found = interval([np.array([0.2, 0.2, 0.2])])
    assert (found.low, found.high) == (found.estimate, found.estimate)


@given(numbers)
def test_the_estimate_lies_within_its_interval(x):
    found = interval([x])
    assert found.low <= found.estimate <= found.high


@given(numbers, st.floats(0.1, 10), st.floats(-50, 50))
def test_intervals_move_and_scale_with_the_values(x, scale, shift):
    before, after = interval([x]), interval([scale * x + shift])
    assert after.low == pytest.approx(scale * before.low + shift, abs=1e-6)
    assert after.high == pytest.approx(scale * before.high + shift, abs=1e-6)


@pytest.mark.parametrize("unit", [1e-115, 1e-40, 1e100])
def test_the_interval_of_tiny_and_huge_values_is_that_of_the_same_values_in_another_unit(unit):
    x = np.array([0.0, 0.0, 2.7])
    tiny, plain = interval([unit * x]), interval([x])
    assert np.array([tiny.low, tiny.high]) / unit == pytest.approx([plain.low, plain.high])


def test_the_same_values_always_give_the_same_interval():
    x, _ = paired(5)
    assert interval([x]) == interval([x.copy()])


def test_effect_size_is_mean_over_deviation_of_the_differences():
    x = np.array([0.1, 0.3, 0.2])
    assert effect_size(x) == pytest.approx(2.0)
    assert effect_size(np.array([0.1])) is None
    assert effect_size(np.array([0.7 - 0.5, 0.2, 0.2])) is None


def test_samples_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="one length"):
        interval([np.zeros(3), np.zeros(4)], ratio_of_means)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    # The method's paper, table II, method 10: 56/70 - 48/80, 9/10 - 3/10, 10/10 - 0/20, 10/10 - 0/10.
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090),
     ((10, 10), (0, 20), 0.6791, 1.0), ((10, 10), (0, 10), 0.6075, 1.0)],
)  # fmt: skip
def test_newcombes_interval_is_that_of_his_paper(first, second, low, high):
    found = newcombe(wilson(*first), wilson(*second))
    assert found.estimate == pytest.approx(first[0] / first[1] - second[0] / second[1])
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_newcombes_interval_keeps_its_width_where_both_proportions_are_zero():
    found = newcombe(wilson(0, 20), wilson(0, 20))
    edge = wilson(0, 20).high
    assert (found.low, found.estimate, found.high) == pytest.approx((-edge, 0, edge))
    with pytest.raises(ValueError, match="with intervals"):
        newcombe(wilson(1, 2), Interval(0.5, None, None))
