import numpy as np
import pytest

from heldout.study import Study, at_least, better, equivalent, higher_is_better, run_study, seeds_needed

VALUES = np.random.default_rng(0).normal(size=10_000)


def run(arm, seed, profile):
    return {"score": arm["mean"] + VALUES[seed + arm["shift"]]}


def judged(claim, seeds, mean=1.0):
    arms = {"a": {"mean": mean, "shift": 0}, "b": {"mean": 0.0, "shift": 5000}}
    study = Study(slug="s", arms=arms, run=run, metrics={"score": higher_is_better}, claims=[claim])
    return run_study(study, seeds=seeds, first_seed=1000).claims[0]


def test_the_number_agrees_with_the_table_of_the_paired_t_test():
    # d = 1 / sqrt(2), two-sided 5 %, power 80 %: 18 pairs (Cohen's table, d_z = 0.7: 19)
    assert 15 <= seeds_needed(judged(better("a", than="b", on="score"), 2000), 2000) <= 20


def test_that_many_seeds_decide_four_times_in_five():
    needed = seeds_needed(judged(at_least("a", on="score", value=0.3), 2000), 2000)
    decided = [
        judged(at_least("a", on="score", value=0.3), [1000 + needed * i + j for j in range(needed)]).verdict == "holds"
        for i in range(60)
    ]
    assert 0.65 <= np.mean(decided) <= 0.95


def test_an_effect_between_zero_and_its_margin_is_decided_by_no_number_of_seeds():
    assert seeds_needed(judged(better("a", than="b", on="score", margin=5.0), 50), 50) is None


def test_equivalence_needs_more_seeds_the_closer_to_its_border():
    claims = [equivalent("a", "b", on="score", within=width) for width in (2.0, 4.0)]
    near, far = (seeds_needed(judged(claim, 400), 400) for claim in claims)
    assert near > far >= 2


def test_one_seed_tells_nothing():
    with pytest.raises(ValueError, match="a pilot needs at least 2 seeds"):
        seeds_needed(judged(at_least("a", on="score", value=0.3), 1), 1)
