"""Rewards on one scale, and the return that a pool asks for."""

import pytest
import torch

from heldout.data import ExperiencePool, RewardScale, Trajectories


def test_rewards_are_scaled_by_the_range_of_the_pool():
    scale = RewardScale.of(torch.tensor([-2.0, 0.0, 6.0]), scale=10.0)
    assert scale(torch.tensor([-2.0, 6.0, 10.0])).tolist() == pytest.approx([0.0, 0.1, 0.15])


def test_a_scale_of_nothing_is_refused():
    with pytest.raises(ValueError, match="rewards must differ"):
        RewardScale.of(torch.ones(3))
    with pytest.raises(ValueError, match="scale"):
        RewardScale(0.0, 1.0, 0.0)


def test_tails_leave_rare_rewards_outside_of_the_range():
    rewards = torch.cat([torch.arange(101.0), torch.tensor([-5000.0, 900.0])])
    scale = RewardScale.of(rewards, tails=2 / 102)
    assert (scale.low, scale.high) == pytest.approx((1.0, 99.0))
    assert scale(torch.tensor([1.0, 99.0, 197.0])).tolist() == pytest.approx([0.0, 1.0, 2.0])
    assert RewardScale.of(rewards) == RewardScale(-5000.0, 900.0)
    for tails in (-0.1, 0.5, float("nan")):
        with pytest.raises(ValueError, match="tails"):
            RewardScale.of(rewards, tails=tails)


def test_a_pool_asks_for_the_best_return_of_an_episode():
    rewards = torch.tensor([5.0, -3.0, 1.0, 2.0, 0.0])
    rewards = torch.cat([rewards[:2], rewards[3:]])
    ends = torch.tensor([False, True, False, True])
    logged = Trajectories(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64), rewards, ends)
    pool = ExperiencePool.of(logged, scale=2.0)
    assert pool.scale == RewardScale(-3.0, 5.0, 2.0)
    scaled = (rewards + 3) / 16
    expected = [scaled[:2].sum(), scaled[1], scaled[2:].sum(), scaled[3]]
    assert pool.returns.tolist() == pytest.approx([float(each) for each in expected])
    assert pool.best == pytest.approx(float(scaled[:2].sum()))


def test_of_episodes_of_other_lengths_the_better_is_asked_for_and_not_the_longer():
    rewards = torch.tensor([-1.0, -1.0, -1.0, -1.0, -1.0, -2.0])
    ends = torch.tensor([True, False, False, False, False, True])
    pool = ExperiencePool.of(Trajectories(torch.zeros(6, 1), torch.zeros(6, dtype=torch.int64), rewards, ends))
    assert pool.scale == RewardScale(0.0, 1.0)
    assert pool.best == -1.0
    assert pool.returns.tolist() == [-1.0, -6.0, -5.0, -4.0, -3.0, -2.0]
    losing = torch.tensor([-7.0, -5.0, 0.0, -1.0])
    pool = ExperiencePool.of(Trajectories(torch.zeros(4, 1), torch.zeros(4).long(), losing, ends[[0, 3, 4, 5]]))
    assert pool.best == pytest.approx(-6 / 7)  # of an episode, not of its best step
