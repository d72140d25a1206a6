import math

import pytest
import torch

from heldout.train import discounted_returns, normalize_rewards, reinforce_loss


def naive_returns(rewards, gamma, reset):
    """The specification's loop, from the last to the first."""
    found, run = list(rewards), 0.0
    for i in range(len(found) - 1, -1, -1):
        run = 0.0 if reset and found[i] == 0 else gamma * run + found[i]
        found[i] = run
    return found


def test_returns_are_those_of_the_specification():
    rewards = torch.tensor([1.0, 0.0, 2.0, 3.0])
    assert discounted_returns(rewards, 0.5, reset_on_zero=True).tolist() == [1, 0, 3.5, 3]
    assert discounted_returns(rewards, 0.5).tolist() == [1.875, 1.75, 3.5, 3]
    assert discounted_returns(rewards, 0.0).tolist() == rewards.tolist()


@pytest.mark.parametrize("reset", [True, False])
def test_returns_are_those_of_a_naive_loop(reset):
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(40, generator=generator, dtype=torch.float64).clamp(min=0)
    assert (rewards == 0).any()
    found = discounted_returns(rewards, 0.9, reset_on_zero=reset)
    assert found.tolist() == pytest.approx(naive_returns(rewards.tolist(), 0.9, reset))
    assert found.dtype == torch.float64


def test_returns_leave_the_rewards_as_they_are_and_take_integers():
    rewards = torch.tensor([1, 0, 2])
    assert discounted_returns(rewards, 0.5).tolist() == [1.5, 1.0, 2.0]
    assert rewards.tolist() == [1, 0, 2]


def test_normalised_rewards_have_mean_0_and_population_deviation_1():
    found = normalize_rewards(torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([(x - 3) / math.sqrt(14 / 3) for x in (1, 2, 6)])
    assert normalize_rewards(torch.tensor([0, 4])).tolist() == [-1, 1]


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8])
def test_equal_rewards_become_0_without_nan(value):
    assert normalize_rewards(torch.full((7,), value)).tolist() == [0.0] * 7
    assert normalize_rewards(torch.tensor([value])).tolist() == [0.0]


def test_the_loss_has_the_analytic_gradient_on_a_bandit():
    """d/dz E[R] = p (1 - p) (R(1) - R(0)) for one Bernoulli with log-odds z; 10^5 draws, 3 standard errors."""
    n, z = 100_000, torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    p = torch.sigmoid(z).item()
    actions = (torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64) < p).double()
    rewards = 2.0 * actions + 0.5 * (1 - actions)
    log_prob = torch.distributions.Bernoulli(logits=z.expand(n)).log_prob(actions)
    reinforce_loss(log_prob, rewards).backward()
    each = (actions - p) * rewards
    error = each.std().item() / math.sqrt(n)
    assert -z.grad.item() == pytest.approx(each.mean().item())
    assert abs(-z.grad.item() - p * (1 - p) * 1.5) < 3 * error


def test_no_gradient_enters_the_reward():
    log_prob = torch.tensor([-0.5, -1.0], requires_grad=True)
    reward = torch.tensor([1.0, 3.0], requires_grad=True)
    loss = reinforce_loss(log_prob, reward)
    assert loss.item() == pytest.approx((0.5 * 1 + 1.0 * 3) / 2)
    loss.backward()
    assert reward.grad is None
    assert log_prob.grad.tolist() == [-0.5, -1.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reinforce_loss(torch.zeros(0), 1.0), "log_prob must not be empty"),
        (lambda: reinforce_loss(torch.zeros(2, 2), 1.0), "log_prob must have 1 dimensions"),
        (lambda: reinforce_loss(torch.zeros(2), torch.zeros(3)), "reward must be a number or"),
        (lambda: reinforce_loss(torch.zeros(2), math.nan), "reward must"),
        (lambda: discounted_returns(torch.ones(2), 1.1), "gamma must be between 0 and 1"),
        (lambda: discounted_returns(torch.tensor([math.nan]), 0.9), "rewards must be finite"),
        (lambda: discounted_returns(torch.ones(0), 0.9), "rewards must not be empty"),
        (lambda: normalize_rewards(torch.tensor([math.inf, 0.0])), "rewards must be finite"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
