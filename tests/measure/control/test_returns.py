"""Returns put together, against sorted lists and redrawn arrays."""

import numpy as np
import pytest

from heldout.measure import generalization_gap, iqm, normalised_return, stratified_interval
from heldout.statistics import Interval


def test_normalised_returns_are_0_and_1_at_the_bounds_by_task():
    scores = np.array([[1.0, 10.0], [3.0, 30.0], [2.0, 15.0]])
    found = normalised_return(scores, [1.0, 10.0], [3.0, 30.0])
    assert found.tolist() == [[0, 0], [1, 1], [0.5, 0.25]]
    for low, high in ((1.0, 1.0), (2.0, 1.0), ([0.0, 1.0], [1.0, 1.0])):
        with pytest.raises(ValueError, match="high"):
            normalised_return(scores, low, high)
    with pytest.raises(ValueError, match="returns"):
        normalised_return([np.nan], 0.0, 1.0)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 11, 100])
def test_the_iqm_is_the_mean_of_what_is_left_without_a_quarter_at_each_end(count):
    scores = np.random.default_rng(count).normal(size=count) ** 3
    cut = count // 4
    assert iqm(scores) == pytest.approx(float(np.mean(sorted(scores)[cut : count - cut])))
    assert iqm(scores.reshape(1, -1)) == iqm(scores)


def test_the_iqm_of_runs_and_tasks_is_of_all_of_them_together():
    scores = np.array([[0.0, 100.0], [1.0, 3.0]])
    assert iqm(scores) == 2.0
    assert iqm([1.0, 2.0, 3.0, 1e9]) == 2.5
    for bad in ([], [np.inf]):
        with pytest.raises(ValueError, match="scores"):
            iqm(bad)


def test_runs_are_redrawn_within_each_task():
    scores = np.column_stack([np.arange(6.0), 1000 + np.arange(6.0)])
    seen = []

    def note(values):
        seen.append(values.copy())
        return float(values.mean())

    found = stratified_interval(scores, note, resamples=300, seed=1)
    assert found.estimate == scores.mean()
    drawn = np.array(seen[1:])
    assert drawn.shape == (300, 6, 2)
    assert set(np.unique(drawn[..., 0])) == set(scores[:, 0])
    assert set(np.unique(drawn[..., 1])) == set(scores[:, 1])
    apart = drawn[..., 0] != drawn[..., 1] - 1000
    assert apart.mean() > 0.7  # each task has draws of its own
    means = drawn.mean((1, 2))
    assert found.low == pytest.approx(np.quantile(means, 0.025))
    assert found.high == pytest.approx(np.quantile(means, 0.975))


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        scores = rng.normal(loc=[0.0, 5.0, -3.0, 1.0], size=(15, 4))
        found = stratified_interval(scores, np.mean, resamples=200, seed=trial)
        hits += found.low <= 0.75 <= found.high
    assert 176 <= hits <= 198


def test_the_spread_between_tasks_does_not_widen_the_interval():
    scores = np.tile([0.0, 50.0, 100.0], (5, 1))
    assert stratified_interval(scores) == Interval(50.0, 50.0, 50.0)
    assert stratified_interval(scores[:1]).low is None
    with pytest.raises(ValueError, match="scores"):
        stratified_interval(np.ones(3))


def test_the_gap_is_train_less_test():
    assert generalization_gap([1.0, 0.0, 1.0, 1.0], [0.5]) == 0.25
    assert generalization_gap([0.2], [[0.4, 0.6]]) == pytest.approx(-0.3)
    with pytest.raises(ValueError, match="test"):
        generalization_gap([1.0], [])
