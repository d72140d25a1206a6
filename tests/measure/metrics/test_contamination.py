import numpy as np
import pytest

from heldout.measure import divergences, min_k_probability


def test_divergences_are_zero_for_equal_samples_symmetric_and_bounded():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=60), rng.normal(3, 0.5, size=60)
    assert divergences(a, a) == (0, 0)
    assert divergences(a, b)[1] == pytest.approx(divergences(b, a)[1])
    assert 0.3 < divergences(a, b)[1] <= np.log(2)
    assert divergences(a, b, normalise=False)[0] != pytest.approx(divergences(a, b)[0])
    with pytest.raises(ValueError, match="two different"):
        divergences([1.0, 1.0], a)


def test_min_k_is_the_geometric_mean_of_the_least_likely():
    values = np.log([0.5, 0.1, 0.4, 0.9, 0.2])
    assert min_k_probability(values, 40) == pytest.approx((0.1 * 0.2) ** 0.5)
    assert min_k_probability(values, 100) == pytest.approx(np.exp(values.mean()))
    with pytest.raises(ValueError, match=r"needs tokens|log_probabilities must not be empty"):
        min_k_probability([])
