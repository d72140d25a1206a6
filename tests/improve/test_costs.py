"""How many finalists the time that is left buys, from what their screening cost."""

from dataclasses import replace

from heldout.improve import Plan
from heldout.improve.costs import Costs

PLAN = Plan(4, 10, 1, 0, 0, 1, 10, 5, 2, 1)
COSTS = Costs(
    plain=10.0,
    after=frozenset({"late"}),
    tests_share=3.0,
    training={"slow": 30.0, "late": 11.0},
    inference={"baseline": 1.0, "slow": 1.0, "late": 2.0},
)


def test_a_confirmation_trains_evaluates_and_shares():
    baselines = 2 * (10 + 4 * 1)  # the given and the tuned one, on selection and test data
    assert COSTS.confirmation(PLAN, ["slow"]) == 5 * (baselines + 30 + 4)
    assert COSTS.confirmation(PLAN, ["late"]) == 5 * (baselines + 8)
    assert COSTS.confirmation(PLAN, ["late"], {"late": 1.0}) == 5 * (14 + 8)
    assert COSTS.confirmation(PLAN, ["late"], {"baseline": 3.0, "late": 3.0}) == 5 * (28 + 8)
    assert COSTS.confirmation(PLAN, ["late"], {"late": 3.0}) == 5 * (14 + 10 + 8)
    assert COSTS.confirmation(PLAN, ["unknown"]) == 5 * (baselines + 15 + 4)  # half as dear again as plain training


def test_every_setting_costs_a_training_and_the_best_is_repeated():
    assert COSTS.tuning(PLAN, ["slow", "late"]) == 6 * ((10 + 1) + (30 + 1) + 2)


def test_finalists_are_as_many_as_can_be_tuned_and_confirmed_on_the_seeds_asked_for():
    names = ["slow", "late"]
    needed = COSTS.tuning(PLAN, names) + COSTS.confirmation(PLAN, names)
    assert COSTS.affordable(PLAN, names, left=needed / 0.8 + 1e-6, asked=5) == names
    assert COSTS.affordable(PLAN, names, left=needed / 0.8 - 1, asked=5) == ["slow"]
    assert COSTS.affordable(PLAN, names, left=0, asked=5) == ["slow"]
    assert len(COSTS.affordable(PLAN, [f"m{i}" for i in range(9)], left=1e9, asked=5)) == 5
    assert COSTS.tunable(PLAN, names, left=needed)
    assert not COSTS.tunable(PLAN, names, left=needed - 1)


def test_after_the_search_only_those_that_still_fit_are_confirmed():
    rates = {"slow": 1.0, "late": 1.0}
    needed = COSTS.confirmation(PLAN, ["slow", "late"], rates)
    assert COSTS.confirmable(PLAN, ["slow", "late"], rates, needed / 0.8 + 1e-6, asked=5) == (["slow", "late"], 5)
    assert COSTS.confirmable(PLAN, ["slow", "late"], rates, needed / 0.8 - 1, asked=5) == (["slow"], 5)
    assert COSTS.confirmable(PLAN, ["slow"], rates, left=0.0, asked=5) == (["slow"], 5)


def test_seeds_that_are_not_asked_for_go_before_further_finalists_until_intervals_are_narrow():
    rates = {"slow": 1.0, "late": 1.0}
    one, two = (COSTS.confirmation(replace(PLAN, seeds=1), names, rates) for names in (["slow"], ["slow", "late"]))
    assert COSTS.confirmable(PLAN, ["slow", "late"], rates, (9 * two + 1) / 0.8) == (["slow", "late"], 9)
    assert COSTS.confirmable(PLAN, ["slow", "late"], rates, (6 * two + 1) / 0.8) == (["slow"], 7)
    assert COSTS.confirmable(PLAN, ["slow", "late"], rates, (4 * one + 1) / 0.8) == (["slow"], 4)
    assert COSTS.confirmable(PLAN, ["slow", "late"], rates, left=0.0) == (["slow"], 3)
    assert COSTS.confirmable(PLAN, ["slow", "late"], rates, left=1e9) == (["slow", "late"], 10)


def test_a_finalist_that_three_seeds_cannot_be_paid_for_gives_way():
    three = COSTS.confirmation(replace(PLAN, trials=0, seeds=3), ["late"])
    assert COSTS.affordable(PLAN, ["slow", "late"], left=three / 0.8 + 1e-6) == ["late"]
