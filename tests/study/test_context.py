from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heldout.study import log_curve, log_figure
from heldout.study.context import MAX_POINTS, Curve, recording


def test_logging_outside_of_a_run_does_nothing():
    log_curve("loss", 0, 1.0)
    log_figure("chart", {"mark": "bar"})


def test_points_are_kept_in_order_with_gaps_where_they_are_not_finite():
    with recording() as record:
        log_curve("loss", 1, 0.5)
        log_curve("loss", 2, float("nan"))
        log_curve("error", 1.5, 2)
    assert record.points() == {"loss": [[1, 0.5], [2, None]], "error": [[1.5, 2.0]]}


@given(st.integers(1, 20_000))
def test_a_curve_of_any_length_keeps_its_ends_evenly_thinned(length):
    curve = Curve()
    for step in range(length):
        curve.add(step, float(step))
    steps = [point[0] for point in curve.points()]
    assert steps[0] == 0
    assert steps[-1] == length - 1
    assert min(length, MAX_POINTS // 2) <= len(steps) <= MAX_POINTS
    assert len({b - a for a, b in pairwise(steps[:-1])}) <= 1


def test_a_figure_is_a_chart_or_a_vega_lite_dictionary():
    altair = pytest.importorskip("altair")
    chart = altair.Chart(altair.Data(values=[{"x": 1}])).mark_bar().encode(x="x:Q")
    with recording() as record:
        log_figure("chart", chart)
        log_figure("plain", {"mark": "line"})
        log_figure("numbers", {"values": np.array([1.0, np.nan]), "width": np.float32(2)})
        with pytest.raises(TypeError, match="altair chart or a Vega-Lite dict"):
            log_figure("wrong", 3)
    assert record.figures["chart"]["mark"]["type"] == "bar"
    assert record.figures["plain"] == {"mark": "line"}
    assert record.figures["numbers"] == {"values": [1.0, None], "width": 2.0}


def test_a_step_must_be_finite():
    with recording(), pytest.raises((ValueError, TypeError), match="step must be a number, got nan"):
        log_curve("loss", float("nan"), 1.0)
