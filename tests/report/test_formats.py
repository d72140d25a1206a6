"""How numbers are written: for people, and in one place."""

import re
from pathlib import Path

import pytest

import heldout
from heldout.report import Scale, duration, number, with_interval


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.123456, "0.1235"),
        (2.78e-17, "0"),
        (-1.39e-17, "0"),
        (-0.0, "0"),
        (1e-9, "1e-09"),
        (12345.6, "1.235e+04"),
    ],
)
def test_numbers_are_for_people(value, text):
    assert number(value) == text


def test_what_rounding_leaves_of_a_zero_is_zero_with_a_sign_too():
    assert number(-4e-17, signed=True) == number(0.0, signed=True) == "0"
    assert number(0.25, signed=True) == "+0.25"
    assert with_interval(0.0, 1.39e-17, 0.138) == "0 [0, 0.138]"


def test_shares_are_in_percent_and_points_and_other_metrics_as_they_are():
    entry = {"gain": 0.02134, "low": -0.0004, "high": 0.04}
    assert Scale("accuracy").with_interval(entry) == "+2.1 [0.0, +4.0]"
    assert Scale("accuracy").score(0.98765) == "98.8 %"
    assert Scale("token_accuracy").with_interval(entry) == Scale("balanced_accuracy").with_interval(entry)
    assert Scale("balanced accuracy").score(0.5) == "50.0 %"
    assert Scale("mse").with_interval(entry) == "+0.021 [0.000, +0.040]"
    assert Scale("mse").score(0.98765) == "0.9877"
    assert Scale("mse").with_interval({"tuned_gain": 1.0, "tuned_low": None, "tuned_high": None}, "tuned_") == "+1"
    assert [Scale(name).unit for name in ("accuracy", "mse")] == [100, 1]


@pytest.mark.parametrize(
    ("gain", "low", "high", "text"),
    [
        (0.000143, -8.71e-05, 0.000429, "+0.00014 [-0.00009, +0.00043]"),
        (2.67, -0.36, 5.7, "+2.7 [-0.4, +5.7]"),
        (123.4, 60.0, 187.0, "+123 [+60, +187]"),
        (0.5, 0.5, 0.5, "+0.5 [+0.5, +0.5]"),
        (2.5e-7, 1.2e-7, 3.7e-7, "+2.5e-07 [+1.2e-07, +3.7e-07]"),
        (-0.2, -0.4, 1e-9, "-0.20 [-0.40, 0.00]"),
    ],
)
def test_a_gain_has_the_decimals_that_its_interval_tells(gain, low, high, text):
    assert Scale("mae").with_interval({"gain": gain, "low": low, "high": high}) == text


def test_durations_are_for_people():
    assert (duration(0.5), duration(61), duration(3 * 3600)) == ("0.5 s", "1 min 1 s", "3 h 0 min")


def test_pages_and_tables_write_no_numbers_of_their_own():
    """Significant digits are chosen in ``formats.py`` alone."""
    source = Path(heldout.__file__).parent
    files = [*(source / "report").rglob("*.*"), *(source / "audit").glob("*.py"), source / "improve" / "report.py"]
    own = {
        file.name for file in files if file.suffix in (".py", ".jinja") and re.search(r":[+]?\.\dg", file.read_text())
    }
    assert own == set()
