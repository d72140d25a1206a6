"""What a budget buys: never less than a confirmation in full."""

import pytest

from heldout.improve import Plan, least_seconds, make_plan


@pytest.mark.parametrize("affordable", [160, 250, 500, 1000, 4000, 1e6])
@pytest.mark.parametrize("candidates", [1, 2, 7, 30])
def test_whatever_is_given_up_the_confirmation_is_in_full_and_on_three_seeds(candidates, affordable):
    plan = make_plan(20, 5, candidates, 3, affordable)
    if plan is not None:
        assert plan.epochs == 20
        assert plan.seeds >= 3
        assert plan.finalists >= 1
        assert plan.cost(3 if plan.long_epochs else 0) <= affordable


def test_the_least_budget_is_that_of_the_smallest_plan():
    seconds = least_seconds(20, seconds_per_epoch=2.0, workers=2)
    affordable = 0.8 * seconds * 2 / 2.0
    assert make_plan(20, 5, 1, 0, affordable * 1.001).seeds == 3
    assert make_plan(20, 5, 1, 0, affordable * 0.999) is None


def test_methods_that_do_not_fit_are_left_out_before_seeds_fall_below_three():
    plan = make_plan(20, 5, 30, 3, affordable=250)
    assert (plan.seeds, plan.epochs) == (3, 20)
    assert 1 <= plan.screened < 30


def test_a_plan_says_what_it_buys():
    text = Plan(16, 2, 2, 3, 3, 2, 6, 5, 3).text(seconds_per_epoch=2.0, combinations=3)
    assert text.startswith(
        "6 epochs take about 12 s a run; 16 methods screened, 5 settings of each searched, 3 finalists on"
    )
