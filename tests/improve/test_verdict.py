"""The words for what a confirmation shows; every case is one of a kind that once read wrongly."""

import numpy as np
import pytest

from heldout.improve.verdict import accounted, compare, ranking, resolution, sentence
from heldout.study import Results

SEEDS = range(5)


def confirmed(arms, seeds=SEEDS):
    """Results of a confirmation: for each arm the score on iid and on two shifts, with a spread between seeds."""
    runs = []
    for arm, (iid, shifted, spread) in arms.items():
        for seed in seeds:
            noise = spread * np.sin(7 * seed + len(arm))
            metrics = {"validation": iid + noise, "test iid": iid + noise, "test noisy": shifted + noise,
                       "test dark": shifted - noise, "training seconds": 1.0, "inference seconds": 1.0}  # fmt: skip
            runs.append({"arm": arm, "seed": seed, "metrics": metrics, "seconds": 1.0, "curves": {}, "figures": {}})
    metrics = dict.fromkeys(runs[0]["metrics"], "higher")
    return Results("improve", "", "confirm", list(seeds), {arm: {} for arm in arms}, metrics, runs, [], [], 1.0, "", {})


def judged(arms, finalists, aim="both", seeds=SEEDS, planned=5):
    results = confirmed(arms, seeds)
    found = compare(results, finalists, ["iid", "noisy", "dark"], maximise=True, metric="accuracy", seeds=planned)
    return found, *sentence(found, ["iid", "noisy", "dark"], aim, "accuracy")


def test_a_method_that_helps_under_shift_is_said_to_help_there():
    found, verdict, winner = judged({"baseline": (0.9, 0.5, 0.001), "m": (0.9, 0.7, 0.002)}, ["m"])
    assert winner == "m"
    assert verdict.startswith("m helps: +20.0 points [")
    assert "on shifted data; no difference beyond 1 point on iid" in verdict
    assert found["finalists"][0]["tests"]["mean of shifts"]["verdict"] == "helps"


def test_an_open_gain_is_not_called_nothing_and_says_how_many_seeds_would_decide():
    found, verdict, winner = judged({"baseline": (0.5, 0.5, 0.0), "m": (0.52, 0.5, 0.1)}, ["m"])
    assert winner is None
    assert verdict.startswith("Not decided: m, the best by validation: open, +")
    assert found["finalists"][0]["tests"]["iid"]["seeds_needed"] > 5
    assert "seeds would decide" in verdict


def test_no_difference_needs_an_interval_within_a_point():
    _, verdict, winner = judged({"baseline": (0.9, 0.5, 0.001), "m": (0.9, 0.5, 0.002)}, ["m"])
    assert winner is None
    assert verdict.count("no difference beyond 1 point") == 2


def test_a_small_gain_without_any_spread_between_seeds_proves_nothing():
    found, verdict, winner = judged({"baseline": (0.5, 0.5, 0.0), "m": (0.504, 0.5, 0.0)}, ["m"])
    assert winner is None
    assert verdict.startswith("No method is shown to help: m, the best by validation: no difference beyond 1 point")
    assert found["finalists"][0]["tests"]["iid"]["verdict"] == "no difference"


@pytest.mark.parametrize("seeds", [range(2), range(4)])
def test_an_unfinished_confirmation_has_no_verdict(seeds):
    arms = {"baseline": (0.5, 0.5, 0.001), "m": (0.9, 0.9, 0.001)}
    found, verdict, winner = judged(arms, ["m"], seeds=seeds)
    assert winner is None
    assert found["finalists"] == []
    assert found["unfinished"] == ["m"]
    assert verdict.startswith("No verdict: the confirmation of m is not finished")


def test_fewer_than_three_seeds_are_no_verdict_even_when_planned():
    arms = {"baseline": (0.5, 0.5, 0.001), "m": (0.9, 0.9, 0.001)}
    assert judged(arms, ["m"], seeds=range(2), planned=2)[2] is None


def test_a_gain_that_a_better_learning_rate_brings_too_is_no_win():
    arms = {"baseline": (0.155, 0.155, 0.001), "tuned baseline": (0.84, 0.84, 0.003), "m": (0.839, 0.839, 0.002)}
    found, verdict, winner = judged(arms, ["m"])
    assert winner is None
    assert "helps the recipe as given, +68.5 points" in verdict
    assert verdict.endswith("tune that first.")
    assert found["finalists"][0]["tests"]["iid"]["tuned_gain"] == pytest.approx(-0.001, abs=0.003)
    assert found["finalists"][0]["tests"]["iid"]["verdict"] == "no difference"


def test_several_finalists_make_every_interval_wider():
    arms = {"baseline": (0.5, 0.5, 0.0), "m": (0.6, 0.6, 0.01), "n": (0.6, 0.6, 0.01), "o": (0.6, 0.6, 0.01)}
    alone, many = (judged(arms, names)[0]["finalists"] for names in (["m"], ["m", "n", "o"]))
    width = {len(rows): next(r["tests"]["iid"] for r in rows if r["method"] == "m") for rows in (alone, many)}
    assert width[3]["high"] - width[3]["low"] > 1.3 * (width[1]["high"] - width[1]["low"])


def test_a_finalist_that_is_shown_to_help_wins_over_one_that_only_looks_better():
    arms = {"baseline": (0.5, 0.5, 0.0), "m": (0.6, 0.6, 0.2), "n": (0.58, 0.58, 0.002)}
    found, verdict, winner = judged(arms, ["m", "n"], aim="iid")
    assert [row["method"] for row in found["finalists"]] == ["m", "n"]
    assert winner == "n"
    assert verdict.startswith("n helps: +8")


def test_a_finalist_is_told_by_the_name_it_was_tried_as():
    arms = {"baseline": (0.5, 0.5, 0.0), "sam(rho=0.1)": (0.6, 0.6, 0.01)}
    found = judged(arms, ["sam(rho=0.1)"])[0]
    settings = {"sam(rho=0.1)": {"of": "sam"}}
    assert accounted(["sam"], {}, [], found, {}, settings) == [
        {"method": "sam", "status": "confirmed", "detail": "5 seeds, as sam(rho=0.1)"}
    ]


def test_the_aim_decides_what_counts():
    arms = {"baseline": (0.9, 0.5, 0.001), "m": (0.9, 0.7, 0.002)}
    assert judged(arms, ["m"], aim="shift")[2] == "m"
    assert judged(arms, ["m"], aim="iid")[2] is None


def test_every_method_is_accounted_for():
    rung = {
        "title": "screening",
        "epochs": 2,
        "candidates": [
            {"method": "a", "seeds": 2},
            {"method": "b", "seeds": 1},
            {"method": "c", "seeds": 0},
            {"method": "d", "seeds": 0},
        ],
    }
    found = {"finalists": [{"method": "a", "seeds": 5}], "unfinished": []}
    table = accounted(["a", "b", "c", "d", "e"], {"e": "it needs domains"}, [rung], found, {"d": "ValueError: no"})
    assert [(row["method"], row["status"]) for row in table] == [
        ("a", "confirmed"),
        ("b", "screened"),
        ("c", "not tried"),
        ("d", "failed"),
        ("e", "not applicable"),
    ]
    assert table[1]["detail"] == "2 epochs on 1 seed"
    assert table[4]["detail"] == "it needs domains"


def test_one_example_does_not_rank_methods_and_the_loss_does_then():
    step = resolution([300], "accuracy")
    entries = [{"method": name, "gain": gain, "loss_gain": loss} for name, gain, loss in
               [("lucky", 1 / 300, -0.2), ("sound", 0.0, 0.3), ("bad", -0.2, 0.5), ("unknown", None, 0.0)]]  # fmt: skip
    assert [entry["method"] for entry in ranking(entries, step)] == ["sound", "lucky", "bad", "unknown"]
    clear = [{"method": name, "gain": gain, "loss_gain": 0.0} for name, gain in (("a", 0.1), ("b", 0.2))]
    assert [entry["method"] for entry in ranking(clear, step)] == ["b", "a"]
