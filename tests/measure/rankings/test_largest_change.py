"""The largest change of a model's score."""

import numpy as np
import pytest

from heldout.measure import largest_change


def test_it_is_the_change_of_one_model_whichever_way_it_goes():
    still = {"a": [0.5, 0.5, 0.5], "b": [0.1, 0.1, 0.1]}
    for change in (-0.3, 0.4):
        moved = still | {"b": [0.1 + change] * 3}
        assert largest_change(still, moved) == pytest.approx(abs(change))
    assert largest_change(still, still) == 0


def test_the_model_is_found_in_the_other_runs_and_read_in_one():
    before = {"a": [0.0, 0.0, 0.0], "b": [0.0, 0.0, 0.0]}
    after = {"a": [0.6, -0.1, 0.2], "b": [-0.2, -0.2, 0.25]}
    # elsewhere, run by run: a 0.1, b 0.05 -> a, up; a 0.8 -> a, up; a 0.5, b -0.4 -> a, up
    assert largest_change(before, after) == pytest.approx((0.6 - 0.1 + 0.2) / 3)
    down = {"a": [-0.6, -0.1, -0.2], "b": [0.0, 0.0, 0.0]}
    assert largest_change(before, down) == pytest.approx(0.3)


def test_noise_alone_has_no_change_on_average_where_a_maximum_has_one():
    rng = np.random.default_rng(0)
    found, naive = [], []
    for _ in range(2000):
        before, after = ({m: 0.5 + 0.1 * rng.standard_normal(2) for m in "abcdef"} for _ in range(2))
        found.append(largest_change(before, after))
        naive.append(max(abs(np.mean(before[m]) - np.mean(after[m])) for m in before))
    assert abs(np.mean(found)) < 4 * np.std(found) / 2000**0.5
    assert np.mean(naive) > 0.15


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({}, {"a": [1.0, 1.0]}, "before must not be empty"),
        ({"a": [1.0, 1.0]}, {"b": [1.0, 1.0]}, "'a' is of one alone"),
        ({"a": [1.0]}, {"a": [1.0]}, "2 at least"),
        ({"a": [1.0, 2.0]}, {"a": [1.0, 2.0, 3.0]}, "equally many runs"),
        ({"a": [1.0, float("nan")]}, {"a": [1.0, 2.0]}, r"before\['a'\] must be finite"),
    ],
)
def test_errors_name_the_argument(before, after, message):
    with pytest.raises(ValueError, match=message):
        largest_change(before, after)
