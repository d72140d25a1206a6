import pytest
from hypothesis import given
from hypothesis import strategies as st

from heldout.measure import sweet_spot


def test_a_peak_inside_has_the_width_of_its_interpolated_flanks():
    found = sweet_spot([0.0, 0.5, 1.0], [0.7, 0.8, 0.6], drop=0.05)
    assert found.best == 0.5
    assert found.low == pytest.approx(0.25)
    assert found.high == pytest.approx(0.625)
    assert found.width == pytest.approx(0.375)


def test_a_plateau_is_as_wide_as_the_axis():
    assert sweet_spot([0, 1, 2], [0.8, 0.8, 0.8]).width == 2
    assert sweet_spot([0, 1, 2], [0.8, 0.8, 0.8]).best == 0


def test_a_second_peak_beyond_a_dip_does_not_count():
    assert sweet_spot([0, 1, 2, 3], [0.9, 0.5, 0.9, 0.9]).high < 1


def test_runs_are_averaged_and_positions_sorted():
    assert sweet_spot([1.0, 0.0], [[0.5, 0.9], [0.7, 0.7]]).best == 0.0
    assert sweet_spot([1.0, 0.0], [[0.5, 0.9], [0.7, 0.7]]).score == pytest.approx(0.8)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.floats(0.01, 0.5))
def test_the_stretch_holds_the_peak_and_stays_on_the_axis(scores, drop):
    found = sweet_spot(range(len(scores)), scores, drop)
    assert 0 <= found.low <= found.best <= found.high <= len(scores) - 1
    assert found.score == max(scores)
    assert sweet_spot(range(len(scores)), scores, 2 * drop).width >= found.width - 1e-9


@pytest.mark.parametrize(
    ("positions", "scores", "drop", "message"),
    [
        ([0.0], [1.0], 0.05, "at least 2 positions"),
        ([0.0, 1.0], [1.0], 0.05, "a score for each"),
        ([0.0, 0.0], [1.0, 1.0], 0.05, "differ from each other"),
        ([0.0, 1.0], [1.0, float("nan")], 0.05, "finite"),
        ([0.0, 1.0], [1.0, 1.0], 0.0, "drop must be positive"),
    ],
)
def test_bad_input_is_refused(positions, scores, drop, message):
    with pytest.raises(ValueError, match=message):
        sweet_spot(positions, scores, drop)
