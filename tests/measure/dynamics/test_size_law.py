"""Laws of model size against the fit of SciPy, the coverage of their intervals, and sizes read without a law."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.stats import linregress

from heldout.measure import SizeLaw, fit_size_law, interpolated_size

SIZES = [16.0, 24.0, 32.0, 48.0, 96.0]


def losses(a=3.0, b=0.4, floor=0.0, sizes=SIZES):
    return [(size / a) ** -b + floor for size in sizes]


@pytest.mark.parametrize(("a", "b"), [(3.0, 0.4), (1e6, 0.076), (0.2, 1.5)])
def test_a_law_without_noise_is_found_again(a, b):
    law = fit_size_law(SIZES, losses(a, b))
    assert (law.a, law.b, law.floor) == pytest.approx((a, b, 0.0), rel=1e-9)
    for size, loss in zip(SIZES, losses(a, b), strict=True):
        assert law.loss(size) == pytest.approx(loss)
        assert law.effective_size(loss) == pytest.approx(size)
        assert law.effective_size(law.loss(size)) == pytest.approx(size)


@pytest.mark.parametrize("floor", [0.0, 0.3, 2.0])
def test_a_floor_is_found_again(floor):
    law = fit_size_law(SIZES, losses(floor=floor), floor=True)
    assert law.floor == pytest.approx(floor, abs=1e-4)
    assert (law.a, law.b) == pytest.approx((3.0, 0.4), rel=1e-3)
    assert law.effective_size(law.loss(30.0)) == pytest.approx(30.0)


def test_noisy_losses_are_fitted_by_least_squares_in_log_loss():
    noise = np.random.default_rng(0).normal(0, 0.03, len(SIZES))
    noisy = np.array(losses()) * np.exp(noise)
    reference = linregress(np.log(SIZES), np.log(noisy))
    law = fit_size_law(SIZES, noisy.tolist())
    assert law.b == pytest.approx(-reference.slope)
    assert law.a == pytest.approx(np.exp(-reference.intercept / reference.slope))
    with_floor = np.log(np.exp(np.log(losses(floor=0.5))) * np.exp(noise / 10))
    found = fit_size_law(SIZES, np.exp(with_floor).tolist(), floor=True)
    (a, b, c), _ = curve_fit(
        lambda size, a, b, c: np.log((size / a) ** -b + c), SIZES, with_floor, p0=(3, 0.4, 0.5), maxfev=20_000
    )
    residual = sum((np.log(found.loss(size)) - y) ** 2 for size, y in zip(SIZES, with_floor, strict=True))
    other = sum((np.log((size / a) ** -b + c) - y) ** 2 for size, y in zip(SIZES, with_floor, strict=True))
    assert residual <= other + 1e-9


def test_beyond_the_fitted_sizes_only_a_request_is_answered():
    law = fit_size_law(SIZES, losses())
    for size in (15.0, 97.0):
        with pytest.raises(ValueError, match=r"loss .* extrapolate"):
            law.effective_size(law.loss(size))
        assert law.effective_size(law.loss(size), extrapolate=True) == pytest.approx(size)
    floored = fit_size_law(SIZES, losses(floor=1.0), floor=True)
    with pytest.raises(ValueError, match="floor"):
        floored.effective_size(0.9, extrapolate=True)


def test_repeats_of_a_size_count_each():
    once, thrice = fit_size_law([1, 2, 4], [3.0, 2.5, 1.8]), fit_size_law([1, 1, 2, 4], [3.0, 3.0, 2.5, 1.8])
    assert abs(thrice.loss(1) - 3.0) < abs(once.loss(1) - 3.0)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    truth = SizeLaw(3.0, 0.4, 0.0, tuple(SIZES), tuple(losses()))
    sizes, loss = [size for size in SIZES for _ in range(2)], truth.loss(30.0)
    generator, covered = np.random.default_rng(1), []
    for _ in range(300):
        noisy = np.array(losses(sizes=sizes)) * np.exp(generator.normal(0, 0.02, len(sizes)))
        law = fit_size_law(sizes, noisy.tolist())
        found = law.effective_size_interval(loss, resamples=300)
        assert found.low <= found.estimate <= found.high
        covered.append(found.low <= 30.0 <= found.high)
    assert 0.86 <= np.mean(covered) <= 0.99
    without_noise = fit_size_law(SIZES, losses()).effective_size_interval(loss)
    assert (without_noise.low, without_noise.high) == pytest.approx((30.0, 30.0))


def test_the_interval_is_that_of_fits_to_resampled_residuals_widened_for_the_parameters():
    sizes, values, loss = [10, 20, 40, 80], [4.0, 3.6, 3.1, 2.8], 3.3
    law, drawn = fit_size_law(sizes, values), []
    fitted = [math.log(law.loss(size)) for size in sizes]
    residuals = [(math.log(value) - log) * math.sqrt(4 / 2) for value, log in zip(values, fitted, strict=True)]
    for picked in np.random.default_rng(0).integers(0, 4, (999, 4)):
        again = [log + residuals[i] for log, i in zip(fitted, picked, strict=True)]
        line = linregress(np.log(sizes), again)
        drawn.append(math.exp((math.log(loss) - line.intercept) / line.slope))
    found = law.effective_size_interval(loss)
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), rel=2e-3)


def test_where_every_fifth_resample_has_no_law_there_is_no_interval():
    found = fit_size_law([10, 20, 40, 80], [3.2, 3.6, 2.9, 3.0]).effective_size_interval(3.2)
    assert found.estimate > 0
    assert (found.low, found.high) == (None, None)


def test_resamples_whose_floor_lies_above_the_loss_are_left_out():
    values = [1.4875, 1.2508, 1.0785, 1.0581, 1.0063, 1.4854, 1.2391, 1.1187, 1.0707, 1.0521]
    law = fit_size_law([10, 20, 40, 80, 160] * 2, values, floor=True)
    found = law.effective_size_interval(law.loss(150), resamples=99)
    assert 0 < found.low < 150 < found.high < math.inf


def test_an_interval_with_a_floor_holds_the_estimate_and_narrows_with_the_noise():
    sizes = SIZES * 2
    widths = []
    for noise in (0.01, 0.001):
        drawn = np.random.default_rng(2).normal(0, noise, len(sizes))
        noisy = np.array(losses(floor=0.5, sizes=sizes)) * np.exp(drawn)
        found = fit_size_law(sizes, noisy.tolist(), floor=True).effective_size_interval(
            float(losses(floor=0.5, sizes=[30.0])[0]), resamples=100
        )
        assert found.low <= found.estimate <= found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 3


@pytest.mark.parametrize(
    ("sizes", "values", "floor", "said"),
    [
        ([4.0, 4.0], [1.0, 2.0], False, "sizes"),
        ([4.0, 8.0], [2.0, 1.0], True, "sizes"),
        ([4.0, 8.0], [1.0, 2.0], False, "losses must fall"),
        ([4.0, 8.0], [2.0, 2.0 - 1e-6], False, "losses must fall"),
        ([4.0, 8.0], [2.0, 0.0], False, "losses"),
        ([4.0, -8.0], [2.0, 1.0], False, "sizes"),
        ([4.0, 8.0], [2.0, float("nan")], False, "losses"),
        ([4.0, 8.0, 9.0], [2.0, 1.0], False, "equally long"),
    ],
)
def test_what_has_no_law_is_refused_by_name(sizes, values, floor, said):
    with pytest.raises(ValueError, match=said):
        fit_size_law(sizes, values, floor=floor)


def test_an_interval_needs_more_models_than_parameters():
    with pytest.raises(ValueError, match="losses must be of at least 3 models"):
        fit_size_law([4.0, 8.0], [2.0, 1.0]).effective_size_interval(1.5)


def naive_size(sizes, losses, loss):
    """The largest size at which the line through the models, log size against loss, is still as bad as ``loss``."""
    means = {size: [] for size in sorted(sizes)}
    for size, value in zip(sizes, losses, strict=True):
        means[size].append(value)
    line = [(size, sum(values) / len(values)) for size, values in means.items()]
    if loss <= line[-1][1]:
        return line[-1][0]
    for (small, high), (large, low) in reversed(list(pairwise(line))):
        if low < loss <= high:
            return math.exp(math.log(large) + (math.log(small) - math.log(large)) * (loss - low) / (high - low))
    return line[0][0]


def test_an_interpolated_size_is_that_of_the_line_through_the_models():
    sizes, values = [8.0, 2.0, 32.0, 2.0, 100.0], [3.0, 4.2, 2.0, 3.8, 1.9]
    assert interpolated_size(sizes, values, 3.5) == pytest.approx(4.0)
    assert interpolated_size(sizes, values, 2.5) == pytest.approx(16.0)
    for loss in np.linspace(1.9, 4.0, 37):
        assert interpolated_size(sizes, values, float(loss)) == pytest.approx(naive_size(sizes, values, loss))
    for size, loss in zip([8.0, 2.0, 32.0, 100.0], [3.0, 4.0, 2.0, 1.9], strict=True):
        assert interpolated_size(sizes, values, loss) == pytest.approx(size)


def test_a_larger_model_that_is_worse_stands_for_the_smaller_ones():
    sizes, values = [1.0, 2.0, 4.0, 8.0], [3.0, 2.2, 2.6, 2.0]
    assert interpolated_size(sizes, values, 2.6) == pytest.approx(4.0)
    assert interpolated_size(sizes, values, 2.3) == pytest.approx(naive_size(sizes, values, 2.3)) == 4 * 2**0.5
    for loss in np.linspace(2.0, 3.0, 21):
        assert interpolated_size(sizes, values, float(loss)) >= 0.999 * naive_size(sizes, values, loss)


def test_the_largest_model_is_worth_its_own_size_even_where_a_smaller_one_is_better():
    assert interpolated_size([1, 2, 4], [3.0, 1.5, 2.0], 2.0) == 4.0
    assert interpolated_size([1, 2, 4], [3.0, 1.5, 2.0], 1.5, beyond="clip") == 4.0


def test_a_loss_beyond_those_measured_is_refused_or_clipped():
    sizes, values = [4.0, 8.0], [2.0, 1.0]
    for loss, end in ((2.1, 4.0), (0.9, 8.0)):
        with pytest.raises(ValueError, match="loss must lie within those measured, from 1 to 2"):
            interpolated_size(sizes, values, loss)
        assert interpolated_size(sizes, values, loss, beyond="clip") == end


@pytest.mark.parametrize(
    ("sizes", "values", "loss", "said"),
    [
        ([4.0, 4.0], [1.0, 2.0], 1.5, "sizes"),
        ([4.0, 8.0], [1.0, 2.0], 1.5, "losses must fall"),
        ([4.0, 8.0], [2.0, 2.0], 2.0, "losses must fall"),
        ([4.0, 0.0], [2.0, 1.0], 1.5, "sizes"),
        ([4.0, 8.0], [2.0, float("nan")], 1.5, "losses"),
        ([4.0, 8.0], [2.0, 1.0], float("nan"), "loss"),
        ([4.0, 8.0, 9.0], [2.0, 1.0], 1.5, "equally long"),
    ],
)
def test_what_cannot_be_interpolated_is_refused_by_name(sizes, values, loss, said):
    with pytest.raises(ValueError, match=said):
        interpolated_size(sizes, values, loss)
    with pytest.raises(ValueError, match="beyond"):
        interpolated_size([4.0, 8.0], [2.0, 1.0], 1.5, beyond="guess")
