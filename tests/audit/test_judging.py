"""The ladder of severities, and what chance does to a calibration error."""

import pytest
import torch

from heldout.audit.judging import FINE, NOTABLE, OPEN, SERIOUS, Threshold, chance_calibration_error, ranked
from heldout.measure import expected_calibration_error

HIGH = Threshold(0.03, 0.1, "points of accuracy")
LOW = Threshold(0.1, 0.02, "nothing learned", low_is_bad=True)


@pytest.mark.parametrize(
    ("limits", "value", "low", "high", "severity"),
    [
        (HIGH, 0.1, None, None, SERIOUS),
        (HIGH, 0.099, None, None, NOTABLE),
        (HIGH, 0.029, None, None, FINE),
        (HIGH, 0.5, 0.1, 0.9, SERIOUS),
        (HIGH, 0.5, 0.03, 0.9, NOTABLE),
        (HIGH, 0.5, 0.029, 0.9, OPEN),
        (HIGH, 0.02, -0.1, 0.9, FINE),
        (HIGH, -1.0, -2.0, -0.5, FINE),
        (LOW, 0.02, None, None, SERIOUS),
        (LOW, 0.01, 0.0, 0.019, SERIOUS),
        (LOW, 0.01, 0.0, 0.09, NOTABLE),
        (LOW, 0.05, 0.0, 0.2, OPEN),
        (LOW, 0.3, 0.2, 0.4, FINE),
    ],
)
def test_a_severity_is_claimed_only_where_the_whole_interval_lies_beyond_the_limit(limits, value, low, high, severity):
    assert limits.severity(value, low, high) == severity


def test_weights_go_from_zero_at_the_nearer_limit_to_one_at_the_farther():
    assert [HIGH.weight(0.03), HIGH.weight(0.1)] == [0, pytest.approx(1)]
    assert [LOW.weight(0.1), LOW.weight(0.02)] == [0, pytest.approx(1)]
    assert LOW.weight(-0.5) > LOW.weight(0.0) > 1


def test_limits_are_told_in_words():
    assert HIGH.text() == "notable from 0.03, serious from 0.1: points of accuracy"
    assert LOW.text() == "notable up to 0.1, serious up to 0.02: nothing learned"


def test_findings_are_ranked_by_severity_and_then_by_weight():
    found = [("a", "fine", 5.0), ("b", "serious", 1.5), ("c", "for information", 0.0), ("d", "serious", 9.0)]
    rows = [{"name": name, "severity": word, "weight": weight} for name, word, weight in found]
    assert "".join(row["name"] for row in ranked(rows)) == "dbac"


def test_chance_alone_reaches_the_error_that_draws_from_the_model_itself_do():
    """A naive count: labels drawn from the probabilities, and the measure that the audit uses."""
    generator = torch.Generator().manual_seed(0)
    confidence = 0.5 + 0.5 * torch.rand(80, generator=generator, dtype=torch.float64)
    probs = torch.stack([confidence, 1 - confidence], 1)
    errors = []
    for _ in range(2000):
        labels = (torch.rand(80, generator=generator, dtype=torch.float64) >= confidence).long()
        errors.append(expected_calibration_error(probs, labels))
    assert chance_calibration_error(confidence) == pytest.approx(sorted(errors)[1900], rel=0.1)


def test_chance_shrinks_with_the_square_root_of_the_examples():
    few, many = (chance_calibration_error(torch.full((n,), 0.7)) for n in (100, 10_000))
    assert few / many == pytest.approx(10, rel=0.25)
