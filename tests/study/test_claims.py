import math

import pytest

from heldout.study import (
    Study,
    at_least,
    at_most,
    better,
    cheaper,
    correlates,
    equivalent,
    higher_is_better,
    lower_is_better,
    ordered,
    run_study,
)

VALUES = {
    "low": [0.50, 0.51, 0.49, 0.50, 0.52],
    "mid": [0.60, 0.62, 0.59, 0.60, 0.61],
    "high": [0.70, 0.71, 0.69, 0.70, 0.73],
    "same": [0.502, 0.508, 0.492, 0.499, 0.519],
    "wild": [0.1, 0.9, 0.2, 0.95, 0.3],
}


def run(arm, seed, profile):
    value = VALUES[arm["name"]][seed]
    if arm["name"] == "mid" and seed == 9:
        raise ValueError
    metrics = {"score": value, "error": 1 - value, "cost": 10 * value, "twice": 2 * value + 0.01 * math.sin(seed)}
    return metrics if arm["name"] != "wild" else {**metrics, "extra": 1.0}


METRICS = {
    "score": higher_is_better,
    "error": lower_is_better,
    "cost": lower_is_better,
    "twice": higher_is_better,
    "extra": higher_is_better,
}


def judged(claim, **options):
    study = Study(
        slug="demo",
        arms={name: {"name": name} for name in VALUES},
        run=run,
        metrics=METRICS,
        optional={"extra"},
        claims=[claim],
    )
    return run_study(study, **options).claims[0]


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        (better("high", than="low", on="score"), "holds"),
        (better("high", than="low", on="score", margin=0.15), "holds"),
        (better("high", than="low", on="score", margin=0.3), "inconclusive"),
        (better("low", than="high", on="score"), "contradicted"),
        (better("low", than="high", on="error"), "contradicted"),
        (better("high", than="low", on="error"), "holds"),
        (better("high", than=["low", "mid"], on="score", margin=0.05), "holds"),
        (better("high", than=["low", "wild"], on="score"), "inconclusive"),
        (better("low", than="same", on="score", margin=-0.02), "holds"),
        (better("low", than="low", on="score"), "inconclusive"),
        (at_least("high", on="score", value=0.65), "holds"),
        (at_least("high", on="score", value=0.75), "contradicted"),
        (at_least("high", on="score", value=0.705), "inconclusive"),
        (at_most("low", on="score", value=0.55), "holds"),
        (at_most("low", on="score", value=0.45), "contradicted"),
        (cheaper("low", than="high", on="cost", ratio=0.8), "holds"),
        (cheaper("high", than="low", on="cost", ratio=0.9), "contradicted"),
        (cheaper("low", than="high", on="cost", ratio=0.714), "inconclusive"),
        (correlates("score", with_="twice", at_least=0.9), "holds"),
        (correlates("score", with_="twice", at_least=0.9, method="spearman"), "holds"),
        (correlates("score", with_="error", at_least=0.5), "contradicted"),
        (ordered(["low", "mid", "high"], on="score"), "holds"),
        (ordered(["high", "mid", "low"], on="cost"), "holds"),
        (ordered(["low", "high", "mid"], on="score"), "contradicted"),
        (ordered(["low", "wild", "high"], on="score"), "inconclusive"),
        (ordered(["low", "same"], on="score", tolerance=0.02), "holds"),
        (equivalent("low", "same", on="score", within=0.02), "holds"),
        (equivalent("low", "high", on="score", within=0.02), "contradicted"),
        (equivalent("low", "wild", on="score", within=0.02), "inconclusive"),
    ],
    ids=lambda value: getattr(value, "text", value),
)
def test_verdicts(claim, verdict):
    found = judged(claim)
    assert found.verdict == verdict
    assert found.low <= found.estimate <= found.high


def test_differences_are_paired_by_seed_and_point_to_the_better_side():
    found = judged(better("high", than="low", on="error"))
    assert found.estimate == pytest.approx(0.202)
    assert found.effect_size == pytest.approx(0.202 / 0.00447, rel=1e-2)
    assert found.n == 5


def test_several_baselines_stand_for_the_best_of_them_on_each_seed():
    found = judged(better("high", than=["low", "wild"], on="score"))
    best = [max(a, b) for a, b in zip(VALUES["low"], VALUES["wild"], strict=True)]
    assert found.estimate == pytest.approx(sum(h - b for h, b in zip(VALUES["high"], best, strict=True)) / 5)


def test_an_effect_below_its_margin_is_inconclusive_and_says_so():
    assert judged(better("high", than="low", on="score", margin=0.3)).note == "better, but by less than claimed"


def test_ordered_shows_its_weakest_pair():
    found = judged(ordered(["low", "high", "mid"], on="score"))
    assert found.note.startswith("weakest pair: high, mid")
    assert found.estimate == pytest.approx(-0.102)


def test_one_seed_is_never_more_than_inconclusive():
    found = judged(better("high", than="low", on="score"), profile="smoke")
    assert (found.verdict, found.low, found.note) == ("inconclusive", None, "one seed has no interval")


@pytest.mark.parametrize(
    ("claim", "note"),
    [
        (better("high", than="low", on="score"), "the arm low was not run"),
        (correlates("score", with_="twice", at_least=0.5, arms=["low", "high"]), "the arm low was not run"),
        (at_least("high", on="extra", value=0.5), "the arm high has no finished run with extra"),
    ],
)
def test_a_claim_without_its_arms_or_metrics_is_not_judged(claim, note):
    found = judged(claim, arms=["high", "mid"])
    assert (found.verdict, found.note, found.estimate) == ("not judged", note, None)


def test_a_correlation_of_a_constant_is_inconclusive():
    found = judged(correlates("extra", with_="score", at_least=0.5))
    assert (found.verdict, found.note) == ("inconclusive", "one of the two metrics never varies")


def test_a_ratio_of_values_that_are_not_positive_is_inconclusive():
    study = Study(
        slug="demo",
        arms={"a": {"x": 1}, "b": {"x": 0}},
        run=lambda arm, seed, profile: {"cost": arm["x"]},
        metrics={"cost": lower_is_better},
        claims=[cheaper("a", than="b", on="cost", ratio=0.5)],
    )
    assert run_study(study).claims[0].note == "a ratio needs positive values of cost"


def test_seeds_that_one_arm_lacks_are_left_out_and_noted():
    def sometimes(arm, seed, profile):
        if arm["x"] and seed == 1:
            raise ValueError
        return {"score": arm["x"] + 0.01 * seed}

    study = Study(
        slug="demo",
        arms={"a": {"x": 1}, "b": {"x": 0}},
        run=sometimes,
        metrics={"score": higher_is_better},
        claims=[better("a", than="b", on="score")],
    )
    found = run_study(study).claims[0]
    assert (found.n, found.note, found.verdict) == (4, "4 of 5 seeds; the same on every seed", "holds")


def test_the_sentence_can_be_ones_own():
    assert better("a", than="b", on="score", text="A wins").text == "A wins"
    assert better("a", than=["b", "c"], on="score").text == "a has better score than the best of b, c"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: better("a", than=[], on="score"), "at least one arm"),
        (lambda: better("a", than="b", on="score", margin=float("nan")), r"margin must be a (finite )?number"),
        (lambda: ordered(["a"], on="score"), "at least 2 arms"),
        (lambda: ordered(["a", "b"], on="score", tolerance=-1), "tolerance must not be negative"),
        (lambda: equivalent("a", "b", on="score", within=-1), "within must not be negative"),
        (lambda: correlates("x", with_="y", at_least=0.5, method="kendall"), "'pearson'"),
        (lambda: at_least("a", on="score", value="high"), r"value must be a (finite )?number"),
    ],
)
def test_a_wrong_claim_says_what_is_wrong(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
