import numpy as np
import pytest

from heldout.measure import cost_frontier


def test_the_frontier_is_what_no_other_point_beats():
    rng = np.random.default_rng(0)
    points = [tuple(point) for point in rng.random((60, 2))]
    found = cost_frontier(points)
    best = [p for p in points if not any((q[0] <= p[0] and q[1] >= p[1]) and q != p for q in points)]
    assert list(found.points) == sorted(best)
    assert [points[int(name)] for name in found.names] == list(found.points)


def test_the_area_is_the_mean_of_the_best_affordable_score():
    points = [tuple(point) for point in np.random.default_rng(1).random((20, 2))]
    found = cost_frontier(points)
    budgets = np.linspace(0, found.max_cost, 200_001)
    affordable = [max((s for c, s in points if c <= budget), default=0.0) for budget in budgets[::100]]
    assert found.area == pytest.approx(np.mean(affordable), abs=2e-3)


def test_areas_reach_to_the_cost_that_is_given():
    assert cost_frontier([(1.0, 0.5)], max_cost=2.0).area == 0.25
    assert cost_frontier([(1.0, 0.5), (9.0, 1.0)], max_cost=2.0).area == 0.25
    assert cost_frontier([(1.0, 0.5)]).area == 0.0
    assert cost_frontier([(3.0, 0.5)], max_cost=2.0).area == 0.0


def test_what_costs_nothing_counts_from_the_start():
    assert cost_frontier({"free": (0.0, 0.4)}).area == 0.4
    assert cost_frontier({"free": (0.0, 0.4), "dear": (2.0, 0.8)}, max_cost=4.0).area == pytest.approx(0.6)


def test_of_two_equal_points_one_is_kept():
    assert cost_frontier({"a": (1.0, 0.4), "b": (1.0, 0.4), "c": (1.0, 0.3)}).names == ("a",)


def test_bad_points_are_refused():
    with pytest.raises(ValueError, match="at least one point"):
        cost_frontier([])
    for bad in ((-1.0, 0.5), (1.0, float("nan")), (1.0,)):
        with pytest.raises((ValueError, TypeError), match=r"point small must be|points must be"):
            cost_frontier({"small": bad})
    with pytest.raises(ValueError, match="max_cost"):
        cost_frontier([(1.0, 0.5)], max_cost=-1.0)
