import numpy as np
import pytest

from heldout.study import Study, at_least, better, higher_is_better, lower_is_better


def run(arm, seed, profile):
    return {"score": 1.0}


def study(**changes):
    given = {"slug": "demo", "arms": {"a": {}, "b": {}}, "run": run, "metrics": {"score": higher_is_better}}
    return Study(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slug": "../up"}, "slug must be letters"),
        ({"slug": ""}, "slug must be letters"),
        ({"arms": {}}, "at least one arm"),
        ({"arms": ["a"]}, "arms must be a mapping"),
        ({"arms": {"a": 1}}, "mapping to mappings, got 1 at 'a'"),
        ({"arms": {"": {}}}, "non-empty strings"),
        ({"arms": {"a": {"f": print}}}, "'a' must be JSON-serialisable"),
        ({"arms": {"a": {"x": float("nan")}}}, "'a' must be JSON-serialisable"),
        ({"run": 3}, "run must be callable"),
        ({"metrics": {}}, "at least one name"),
        ({"metrics": {"score": "up"}}, "metrics must be a mapping to one of .* at 'score'"),
        ({"optional": {"recall"}}, "not declared: recall"),
        ({"claims": ["a wins"]}, "claims must be a sequence of Claim"),
        ({"claims": [better("c", than="a", on="score")]}, "unknown arm 'c'"),
        ({"claims": [at_least("a", on="loss", value=1)]}, "undeclared metric 'loss'"),
        ({"seeds": {"laptop": 0}}, "seeds of profile 'laptop'"),
        ({"seeds": {"laptop": 1.5}}, "seeds must be an integer or a mapping to integers"),
        ({"time_limit": -1}, "time_limit of profile"),
    ],
)
def test_a_wrong_study_says_what_is_wrong(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        study(**changes)


def test_a_number_of_seeds_stands_for_the_laptop_profile():
    assert study(seeds=7).seeds == {"smoke": 1, "laptop": 7}


def test_one_time_limit_stands_for_all_profiles():
    assert study(time_limit=3, seeds={"night": 2}).time_limit == {"smoke": 3, "laptop": 3, "night": 3}


def test_arms_reach_runs_as_json_whatever_was_given():
    assert study(arms={"a": {"sizes": (1, 2)}}).arms == {"a": {"sizes": [1, 2]}}


def test_names_with_html_and_path_characters_are_allowed_for_arms_and_metrics():
    name = "<b>../x</b>"
    assert study(arms={name: {}}, metrics={name: lower_is_better}).metrics == {name: "lower"}


def test_numpy_parameters_are_refused_by_name_of_the_arm():
    with pytest.raises(ValueError, match="arm 'a'"):
        study(arms={"a": {"x": np.float32(1.0)}})
