import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from heldout.measure import checkpoint_correlations


def drifting(count=12, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {"step": 10 * n, "accuracy": n + rng.normal(), "loss": -n + 2 * rng.normal(), "flat": 2.0} for n in range(count)
    ]


def test_correlations_are_those_of_scipy():
    records = drifting()
    found = checkpoint_correlations(records, ["loss", "accuracy"], target="accuracy")
    step, accuracy, loss = (np.array([record[name] for record in records]) for name in ("step", "accuracy", "loss"))
    assert found["loss"].target == pytest.approx(spearmanr(loss, accuracy).statistic)
    assert found["loss"].step == pytest.approx(spearmanr(loss, step).statistic)
    assert found["loss"].differences == pytest.approx(spearmanr(np.diff(loss), np.diff(accuracy)).statistic)
    assert found["accuracy"].target == found["accuracy"].differences == 1
    assert list(found) == ["loss", "accuracy"]


def test_what_does_not_move_or_is_too_short_has_no_correlation():
    assert all(map(math.isnan, checkpoint_correlations(drifting(), ["flat"], target="accuracy")["flat"]))
    short = checkpoint_correlations(drifting(5), ["loss"], target="accuracy")["loss"]
    assert not math.isnan(short.target)
    assert math.isnan(short.differences)
    assert all(map(math.isnan, checkpoint_correlations(drifting(4), ["loss"], target="accuracy")["loss"]))
    assert not math.isnan(
        checkpoint_correlations(drifting(4), ["loss"], target="accuracy", least=3)["loss"].differences
    )


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match="records must not be empty"):
        checkpoint_correlations([], ["loss"], target="accuracy")
    with pytest.raises(ValueError, match="names must not be empty"):
        checkpoint_correlations(drifting(), [], target="accuracy")
    for names, target in ((["other"], "accuracy"), (["loss"], "other")):
        with pytest.raises(ValueError, match="records must all have the entry 'other'"):
            checkpoint_correlations(drifting(), names, target=target)
    broken = drifting()
    broken[3]["loss"] = math.nan
    with pytest.raises((TypeError, ValueError), match=r"records .* nan"):
        checkpoint_correlations(broken, ["loss"], target="accuracy")
    with pytest.raises(ValueError, match="least must be at least 3"):
        checkpoint_correlations(drifting(), ["loss"], target="accuracy", least=2)
