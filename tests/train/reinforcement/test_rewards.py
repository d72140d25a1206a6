import json

import numpy as np
import pytest

from heldout.train import CostReward, format_reward, router_reward


@pytest.mark.parametrize(
    ("form", "outcome", "cost", "alpha", "reward"),
    [
        (-1.0, 1.0, 1.0, 0.6, -1.0),
        (-1.0, 0.0, 0.0, 0.0, -1.0),
        (0.0, 0.0, 1.0, 0.6, 0.0),
        (0.0, 0.0, 0.0, 1.0, 0.0),
        (0.0, 1.0, 0.5, 0.6, 0.7),
        (0.0, 1.0, 0.2, 0.0, 1.0),
        (0.0, 0.5, 1.0, 0.9, 0.95),
    ],
)
def test_format_comes_before_outcome_and_outcome_before_cost(form, outcome, cost, alpha, reward):
    assert router_reward(form, outcome, cost, alpha) == pytest.approx(reward)


def test_a_bad_form_costs_one():
    assert format_reward("<answer> 4 </answer>", ["small"]) == -1
    assert format_reward("<think> a </think> <search> small: b </search> <information> c </information> "
                         "<think> d </think> <answer> 4 </answer>", ["small"]) == 0  # fmt: skip


def test_equal_costs_are_worth_a_half():
    reward = CostReward()
    for _ in range(3):
        assert reward([2.0, 2.0]).tolist() == [0.5, 0.5]
    assert reward([]).tolist() == []


@pytest.mark.parametrize(("transform", "of"), [("sqrt", np.sqrt), ("log", lambda c: np.log1p(0.01 * c))])
def test_the_reward_is_that_of_numpy_percentiles_of_the_window(transform, of):
    costs = np.random.default_rng(0).exponential(100, size=1500)
    reward = CostReward(window=1000, low=0.05, high=0.95, transform=transform)
    reward(costs[:700])
    found = reward(costs[700:])
    x = of(costs)
    lo, hi = np.percentile(x[-1000:], [5, 95])
    np.testing.assert_allclose(found, 1 - np.clip((x[700:] - lo) / (hi - lo), 0, 1))
    assert found.min() == 0
    assert found.max() == 1


def test_the_reward_never_rises_with_the_cost():
    reward = CostReward()
    costs = np.sort(np.random.default_rng(1).exponential(size=200))
    assert (np.diff(reward(costs)) <= 0).all()


def test_the_window_survives_a_checkpoint():
    one, other = CostReward(window=5), CostReward(window=9)
    one([1.0, 4.0, 9.0])
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert one([2.0, 3.0, 7.0]).tolist() == other([2.0, 3.0, 7.0]).tolist()
    with pytest.raises(ValueError, match="transform 'sqrt', this is 'log'"):
        CostReward(transform="log").load_state_dict(one.state_dict())


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="window"):
        CostReward(window=0)
    with pytest.raises(ValueError, match="low < high"):
        CostReward(low=0.9, high=0.1)
    with pytest.raises(ValueError, match=r"'sqrt' or 'log'|transform must be one of 'sqrt', 'log'"):
        CostReward(transform="square")
    for bad in ([-1.0], [float("nan")], [[1.0]]):
        with pytest.raises(ValueError, match="costs must be"):
            CostReward()(bad)
    with pytest.raises(ValueError, match="alpha"):
        router_reward(0.0, 1.0, 1.0, 1.5)
    with pytest.raises(ValueError, match="outcome must be a number"):
        router_reward(0.0, float("nan"), 1.0)
