import importlib
import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from heldout.measure import gap_drivers, misranked


def planted(n=800, seed=0):
    """Wrong more often with age and at site "z"; height and coin say nothing."""
    rng = np.random.default_rng(seed)
    age, site = rng.uniform(0, 90, n), rng.choice(["x", "y", "z"], n)
    risk = 0.1 + 0.5 * (age > 60) + 0.2 * (site == "z")
    features = {"height": rng.normal(size=n), "age": age, "site": site, "coin": rng.integers(0, 2, n) == 1}
    return rng.random(n) < risk, features, risk


@pytest.mark.parametrize("model", ["forest", "boosting"])
def test_planted_drivers_come_first_and_the_rest_is_near_the_control(model):
    wrong, features, _ = planted()
    found = gap_drivers(wrong, features, model=model, repeats=2)
    assert [each.feature for each in found.drivers[:2]] == ["age", "site"]
    assert [each.feature for each in found.drivers if each.drives][:1] == ["age"]
    assert not found["height"].drives
    assert not found["coin"].drives
    assert abs(found.control.estimate) < 0.02
    assert found.score_name == "auc"
    assert 0.7 < found.score.estimate < 0.85


def test_numbers_are_explained_by_r2_and_frames_are_taken():
    _, features, risk = planted()
    rng = np.random.default_rng(1)
    found = gap_drivers(torch.from_numpy(risk + 0.1 * rng.normal(size=len(risk))), pd.DataFrame(features), repeats=2)
    assert found.score_name == "r2"
    assert found.score.estimate > 0.7
    assert [each.feature for each in found.drivers if each.drives] == ["age", "site"]
    assert found.drivers[0].importance.low < found.drivers[0].importance.estimate < found.drivers[0].importance.high


def test_intervals_over_folds_know_that_trainings_overlap():
    values = np.array([0.1, 0.3, 0.2, 0.6])
    found = importlib.import_module("heldout.measure.subgroups.gap_drivers")._over_folds(values)
    half = 3.182446 * math.sqrt(values.var(ddof=1) * (1 / 4 + 1 / 3))
    assert (found.estimate, found.low) == pytest.approx((0.3, 0.3 - half), rel=1e-5)
    assert found.high == pytest.approx(0.3 + half, rel=1e-5)


def test_what_is_above_the_control_is_the_difference_to_it():
    wrong, features, _ = planted(200)
    found = gap_drivers(wrong, features, folds=2, repeats=1)
    for each in found.drivers:
        assert each.above_control.estimate == pytest.approx(each.importance.estimate - found.control.estimate)


def test_nothing_is_found_where_nothing_is():
    hits = 0
    for seed in range(6):
        _, features, _ = planted(300, seed)
        found = gap_drivers(
            np.random.default_rng(seed + 50).random(300) < 0.4,
            features,
            model="boosting",
            folds=4,
            repeats=1,
            seed=seed,
        )
        hits += sum(each.drives for each in found.drivers)
    assert hits <= 2  # of 24


def test_what_is_misranked_adds_up_to_the_area():
    rng = np.random.default_rng(0)
    y, score = rng.integers(0, 2, 200), rng.normal(size=200).round(1)
    found = misranked(y, score + y)
    for label in (0, 1):
        assert 1 - found[y == label].mean() == pytest.approx(roc_auc_score(y, score + y))
    first = np.flatnonzero(y == 1)[0]
    others = (score + y)[y == 0]
    assert found[first] == pytest.approx(((others > score[first] + 1) + 0.5 * (others == score[first] + 1)).mean())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wrong": [True] * 20}, "wrong must vary"),
        ({"wrong": [math.nan] * 20}, "wrong must be finite"),
        ({"wrong": ["a"] * 20}, "wrong must hold booleans or numbers"),
        ({"wrong": [True, False]}, "equally long"),
        ({"features": {}}, "features must not be empty"),
        ({"features": {"a": [math.inf] * 20}}, "features 'a' must be finite"),
        ({"features": {"a": ["x", None] * 10}}, "features must be finite, got None"),
        ({"features": {"random control": [1, 2] * 10}}, "different"),
        ({"folds": 11}, "folds must be at most 10"),
        ({"folds": 1}, "folds must be at least 2"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"model": "line"}, "model must be"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = {"wrong": [True, False] * 10, "features": {"a": list(range(20))}}
    with pytest.raises(ValueError, match=message):
        gap_drivers(**(given | change))


def test_one_label_ranks_nothing():
    with pytest.raises(ValueError, match="y must hold both labels"):
        misranked([1, 1], [0.1, 0.2])


def test_an_unknown_feature_is_named():
    found = gap_drivers([True, False] * 10, {"a": list(range(20))}, folds=2, repeats=1)
    assert found[0] is found.drivers
    with pytest.raises(ValueError, match="feature must be one of 'a'"):
        found["b"]
