import pytest
from scipy.stats import rankdata

from heldout.measure import mean_ranks

SCORES = {"a": [0.9, 0.2, 0.5], "b": [0.8, 0.4, 0.5], "c": [0.1, 0.3, 0.7]}


def test_ranks_are_those_of_scipy_averaged_with_ties_shared():
    wanted = [sum(rankdata([-SCORES[m][at] for m in SCORES])[row] for at in range(3)) / 3 for row in range(3)]
    assert list(mean_ranks(SCORES).values()) == pytest.approx(wanted)
    assert mean_ranks(SCORES)["a"] == pytest.approx((1 + 3 + 2.5) / 3)


def test_costs_are_ranked_the_other_way_round():
    found = mean_ranks(SCORES, higher_is_better=False)
    assert found["a"] == pytest.approx((3 + 1 + 1.5) / 3)


@pytest.mark.parametrize("scores", [{}, {"a": []}, {"a": [1.0], "b": [1.0, 2.0]}, {"a": [float("nan")]}])
def test_bad_input_is_refused(scores):
    with pytest.raises(ValueError, match="scores"):
        mean_ranks(scores)
