"""The words for what a confirmation shows; every case is one of a kind that once read wrongly."""

import numpy as np
import pytest

from heldout.improve.verdict import accounted, compare, ranking, sentence
from heldout.problem import resolution
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


def test_what_is_open_against_the_tuned_baseline_alone_says_so():
    arms = {"baseline": (0.6, 0.6, 0.001), "tuned baseline": (0.7, 0.7, 0.15), "m": (0.72, 0.72, 0.001)}
    _, verdict, winner = judged(arms, ["m"], aim="iid")
    assert winner is None
    assert verdict.startswith("Not decided: m, the best by validation: open, +12.0 points [")
    assert "over the tuned baseline) on" in verdict


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
    assert found["finalists"][0]["tests"]["iid"]["verdict"] == "as tuned"


@pytest.mark.parametrize("seeds", [5, 40])
@pytest.mark.parametrize("given", [0.6, 0.7])
def test_what_is_shown_to_be_below_the_tuned_baseline_is_not_open(given, seeds):
    arms = {"baseline": (0.6, 0.6, 0.001), "tuned baseline": (0.8, 0.8, 0.001), "m": (given, given, 0.002)}
    found, verdict, winner = judged(arms, ["m"], seeds=range(seeds), planned=seeds)
    assert winner is None
    assert {entry["verdict"] for entry in found["finalists"][0]["tests"].values()} == {"below tuned"}
    assert "seeds would decide" not in verdict
    assert "tuned baseline" in verdict


def test_a_method_that_hurts_where_it_was_asked_to_help_is_no_winner():
    arms = {"baseline": (0.6, 0.6, 0.001), "a": (0.7, 0.2, 0.001), "b": (0.602, 0.65, 0.001)}
    _, verdict, winner = judged(arms, ["a", "b"])
    assert winner == "b"
    assert verdict.startswith("b helps: +5.0 points")
    _, verdict, winner = judged({name: arms[name] for name in ("baseline", "a")}, ["a"])
    assert winner is None
    assert verdict.startswith("No winner: a helps on one side alone: +10.0 points [")
    assert "it hurts, -40.0 points" in verdict
    assert judged({name: arms[name] for name in ("baseline", "a")}, ["a"], aim="iid")[2] == "a"


def test_a_winner_that_is_below_the_tuned_baseline_elsewhere_says_so():
    arms = {"baseline": (0.6, 0.6, 0.001), "tuned baseline": (0.8, 0.6, 0.001), "m": (0.7, 0.7, 0.001)}
    _, verdict, winner = judged(arms, ["m"])
    assert winner == "m"
    assert "; less than the tuned baseline, -10.0 points [" in verdict


def test_a_loss_too_small_to_matter_stops_no_winner():
    arms = {"baseline": (0.6, 0.6, 0.001), "mm": (0.594, 0.8, 0.0012)}
    found, verdict, winner = judged(arms, ["mm"])
    entry = found["finalists"][0]["tests"]["iid"]
    assert -0.01 < entry["low"] < entry["high"] < 0
    assert entry["verdict"] == "no difference"
    assert winner == "mm"
    assert "no difference beyond 1 point on iid" in verdict


def test_another_finalist_that_more_seeds_could_show_to_help_is_told():
    results = confirmed({"baseline": (0.6, 0.6, 0.001), "a": (0.605, 0.5, 0.001), "bb": (0.6, 0.66, 0.0)})
    for run in results.runs:
        if run["arm"] == "bb":
            for shift in ("test noisy", "test dark"):
                run["metrics"][shift] += (-0.01, 0.06, -0.08, 0.0, -0.02)[run["seed"]]
    tests = ["iid", "noisy", "dark"]
    found = compare(results, ["a", "bb"], tests, maximise=True, metric="accuracy", seeds=5)
    verdict, winner = sentence(found, tests, "shift", "accuracy")
    assert winner is None
    assert verdict.startswith("Not decided: bb: open, +")
    assert "seeds would decide. a, the best by validation: it hurts, -10.0 points" in verdict


@pytest.mark.parametrize(("baseline", "word"), [(0.5, "no difference"), (0.985, "helps")])
def test_a_gain_too_small_to_matter_is_none(baseline, word):
    arms = {"baseline": (baseline, baseline, 0.001), "mm": (baseline + 0.006, baseline + 0.006, 0.0012)}
    found, _, winner = judged(arms, ["mm"])
    entry = found["finalists"][0]["tests"]["iid"]
    assert 0 < entry["low"] < entry["high"] < 0.01
    assert entry["verdict"] == word
    assert winner == ("mm" if word == "helps" else None)


def test_a_shift_on_which_the_winner_hurts_is_told():
    results = confirmed({"baseline": (0.6, 0.6, 0.001), "m": (0.7, 0.6, 0.001)})
    for run in results.runs:
        if run["arm"] == "m":
            run["metrics"]["test noisy"] += 0.3
            run["metrics"]["test dark"] -= 0.1
    found = compare(results, ["m"], ["iid", "noisy", "dark"], maximise=True, metric="accuracy", seeds=5)
    assert "; it hurts, -10.0 points" in sentence(found, ["iid", "noisy", "dark"], "both", "accuracy")[0]


def test_of_a_metric_to_minimise_less_is_better():
    arms = {"baseline": (0.6, 0.6, 0.001), "worse": (0.7, 0.7, 0.001), "good": (0.5, 0.5, 0.001)}
    tests = ["iid", "noisy", "dark"]
    found = compare(confirmed(arms), ["worse", "good"], tests, maximise=False, metric="mse", seeds=5)
    assert [row["method"] for row in found["finalists"]] == ["good", "worse"]
    assert [row["tests"]["iid"]["verdict"] for row in found["finalists"]] == ["helps", "hurts"]
    assert found["finalists"][0]["tests"]["iid"]["gain"] == pytest.approx(0.1, abs=0.01)
    assert sentence(found, tests, "both", "mse")[1] == "good"


def test_finalists_that_come_ranked_stay_so():
    arms = {"baseline": (0.6, 0.6, 0.001), "a": (0.65, 0.65, 0.001), "b": (0.7, 0.7, 0.001)}
    options = {"maximise": True, "metric": "accuracy", "seeds": 5}
    found = compare(confirmed(arms), ["a", "b"], ["iid", "noisy", "dark"], ranked=True, **options)
    assert [row["method"] for row in found["finalists"]] == ["a", "b"]


@pytest.mark.parametrize("arm", ["tuned baseline", "n"])
def test_an_arm_that_is_not_finished_leaves_no_verdict(arm):
    arms = dict.fromkeys(("baseline", "tuned baseline", "m", "n"), (0.6, 0.6, 0.001))
    arms["m"] = (0.9, 0.9, 0.001)
    results = confirmed(arms)
    results.runs[:] = [run for run in results.runs if (run["arm"], run["seed"]) != (arm, 4)]
    tests = ["iid", "noisy", "dark"]
    found = compare(results, ["m", "n"], tests, maximise=True, metric="accuracy", seeds=5)
    assert "n" in found["unfinished"]
    verdict, winner = sentence(found, tests, "both", "accuracy")
    assert winner is None
    assert verdict.startswith("No verdict: the confirmation of")


def test_hurting_is_told_against_the_recipe_as_given():
    arms = {"baseline": (0.6, 0.6, 0.001), "tuned baseline": (0.55, 0.55, 0.001), "mm": (0.57, 0.57, 0.002)}
    entry = judged(arms, ["mm"])[0]["finalists"][0]["tests"]["iid"]
    assert entry["tuned_low"] > 0
    assert entry["verdict"] == "hurts"


def test_seeds_needed_are_those_of_the_harder_comparison():
    arms = {"baseline": (0.5, 0.5, 0.0), "tuned baseline": (0.56, 0.56, 0.0), "mm": (0.6, 0.6, 0.06)}
    entry = judged(arms, ["mm"])[0]["finalists"][0]["tests"]["iid"]
    alone = judged({name: arms[name] for name in ("baseline", "mm")}, ["mm"])[0]["finalists"][0]["tests"]["iid"]
    assert entry["verdict"] == "not decided"
    assert alone["verdict"] == "helps" or entry["seeds_needed"] > alone["seeds_needed"]


def test_costs_are_ratios_of_medians():
    results = confirmed({"baseline": (0.5, 0.5, 0.001), "m": (0.6, 0.6, 0.001)})
    for run in results.runs:
        run["metrics"]["training seconds"] = {"m": 3.0, "baseline": 2.0}[run["arm"]] + 50.0 * (run["seed"] == 0)
        run["metrics"]["inference seconds"] = {"m": 1.0, "baseline": 4.0}[run["arm"]]
    found = compare(results, ["m"], ["iid", "noisy", "dark"], maximise=True, metric="accuracy", seeds=5)
    assert found["finalists"][0]["training_cost"] == 1.5
    assert found["finalists"][0]["inference_cost"] == 0.25


def test_another_learning_rate_is_told_in_the_sentence():
    found, _, _ = judged({"baseline": (0.5, 0.5, 0.001), "m": (0.6, 0.6, 0.001)}, ["m"])
    found["finalists"][0]["rate"] = 3.1623
    verdict, winner = sentence(found, ["iid", "noisy", "dark"], "both", "accuracy")
    assert verdict.startswith("m at 3.16 x the learning rate helps: +10.0 points")
    assert winner == "m"


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
