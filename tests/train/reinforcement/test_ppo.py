"""PPO, against sums that are written out, and on worlds whose values are known."""

import copy
import math

import pytest
import torch
from torch import nn

from heldout.nn import ActorCritic, GridEncoder
from heldout.tasks import KeyMazes, LevelStep, play_levels
from heldout.train import PolicyHistory, PPOLog, clipped_policy_loss, generalized_advantages, ppo, seeded
from heldout.train.reinforcement.ppo import _rollout


def example(steps=9, envs=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rewards, values, following = (torch.randn(steps, envs, generator=generator).double() for _ in range(3))
    ended = torch.rand(steps, envs, generator=generator) < 0.2
    cut = (torch.rand(steps, envs, generator=generator) < 0.2) & ~ended
    return rewards, values, following, ended, cut


@pytest.mark.parametrize(("gamma", "lam"), [(0.9, 0.8), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_advantages_are_the_written_out_sums_of_errors(gamma, lam):
    rewards, values, following, ended, cut = example()
    found = generalized_advantages(rewards, values, following, ended, cut, gamma=gamma, lam=lam)
    for env in range(3):
        for start in range(9):
            total, weight = 0.0, 1.0
            for t in range(start, 9):
                after = 0.0 if ended[t, env] else following[t, env]
                total += weight * (rewards[t, env] + gamma * after - values[t, env])
                weight *= gamma * lam
                if ended[t, env] or cut[t, env]:
                    break
            assert found[start, env].item() == pytest.approx(float(total), abs=1e-12)


def test_with_lambda_one_an_advantage_is_the_return_less_the_value():
    rewards, values = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([10.0, 20.0, 30.0])
    following, ended = torch.tensor([20.0, 30.0, 50.0]), torch.tensor([False, False, True])
    none = torch.zeros(3, dtype=torch.bool)
    found = generalized_advantages(rewards, values, following, ended, none, gamma=0.5, lam=1.0)
    assert found.tolist() == [1 + 0.5 * 2 + 0.25 * 4 - 10, 2 + 0.5 * 4 - 20, 4 - 30]
    cut = generalized_advantages(rewards, values, following, none, ended, gamma=0.5, lam=1.0)
    assert (cut - found).tolist() == [0.125 * 50, 0.25 * 50, 0.5 * 50]  # time was over: what follows still counts


def test_a_history_gives_the_policy_that_reached_a_share_of_the_last_return():
    """The weights of an iteration are those that it played with, not those that it left."""
    policy = nn.Linear(1, 1)
    nn.init.constant_(policy.bias, 0)
    history = PolicyHistory(policy)
    with pytest.raises(ValueError, match="at_return"):
        history.at_return(0.5)
    for step, (episodes, value) in enumerate([(0, math.nan), (3, 0.2), (3, 0.9), (3, 1.4), (3, 2.0)], start=1):
        nn.init.constant_(policy.bias, step)
        history(PPOLog(step, episodes, value, 0, 0, 0, 0, 0))
    assert history.returns[1:] == [0.2, 0.9, 1.4, 2.0]
    assert [history.at_return(share).bias.item() for share in (0.0, 0.5, 0.6, 1.0)] == [1, 2, 3, 4]
    assert policy.bias.item() == 5
    with pytest.raises(ValueError, match="share"):
        history.at_return(1.5)


def test_wrong_shapes_and_flags_are_refused():
    rewards, values, following, ended, cut = example()
    for bad, error, name in (
        ((rewards, values[:-1], following, ended, cut), ValueError, "values"),
        ((rewards, values, following, ended.float(), cut), TypeError, "terminations"),
        ((rewards, values * math.nan, following, ended, cut), ValueError, "values"),
        ((rewards[:0], values[:0], following[:0], ended[:0], cut[:0]), ValueError, "rewards"),
    ):
        with pytest.raises(error, match=name):
            generalized_advantages(*bad)
    with pytest.raises(ValueError, match="lam"):
        generalized_advantages(rewards, values, following, ended, cut, lam=1.1)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "gradient"),
    [(1.5, 2.0, 2.4, 0.0), (0.5, 2.0, 1.0, 1.0), (1.5, -2.0, -3.0, -3.0), (0.5, -2.0, -1.6, 0.0), (1.1, 2.0, 2.2, 2.2)],
)
def test_a_ratio_is_followed_until_it_has_gained_enough(ratio, advantage, value, gradient):
    log_prob = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([advantage], dtype=torch.float64, requires_grad=True)
    old = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    loss = clipped_policy_loss(log_prob, old, weight)
    loss.backward()
    assert loss.item() == pytest.approx(-value)
    assert log_prob.grad.item() == pytest.approx(-gradient)
    assert old.grad is None
    assert weight.grad is None


def test_at_the_old_policy_the_gradient_is_that_of_the_policy_gradient():
    log_prob = torch.randn(7, requires_grad=True)
    advantage = torch.randn(7)
    clipped_policy_loss(log_prob, log_prob.detach(), advantage).backward()
    assert torch.allclose(log_prob.grad, -advantage / 7)
    with pytest.raises(ValueError, match="advantage"):
        clipped_policy_loss(log_prob, log_prob, advantage[:3])
    with pytest.raises(ValueError, match="clip"):
        clipped_policy_loss(log_prob, log_prob, advantage, clip=0.0)


class Corridor:
    """Two states in turn; action 1 gives 1. Episodes are cut off, or end, after ``length`` steps."""

    actions = 2

    def __init__(self, envs, length, ends):
        self.envs, self.length, self.ends = envs, length, ends
        self.levels = torch.zeros(envs, dtype=torch.int64)
        self.time = torch.arange(envs) % length

    def __len__(self):
        return self.envs

    def reset(self):
        self.time.zero_()
        return self.observations()

    def observations(self):
        return {"one": torch.ones(self.envs, 1)}

    def step(self, actions):
        self.time = self.time + 1
        over = self.time == self.length
        self.time[over] = 0
        never = torch.zeros_like(over)
        return LevelStep(self.observations(), actions.float(), *((over, never) if self.ends else (never, over)))


class OneState(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits, self.value = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))

    def forward(self, observations):
        ones = observations["one"]
        return ones * self.logits, ones[:, 0] * self.value


@pytest.mark.parametrize("ends", [False, True])
def test_the_value_goes_on_where_time_is_over_and_stops_where_an_episode_ends(ends):
    """All is 1 for ever, so that with a discount of 0.5 the value is 2; within episodes of 2 steps, (1.5 + 1) / 2."""
    policy = OneState()
    policy.logits.data[1] = 30.0
    ppo(
        policy, Corridor(8, 2, ends), transitions=8 * 8 * 40, steps=8, lr=0.1, gamma=0.5, lam=0.5, entropy=0.0,
        value_weight=1.0, anneal=True, epochs=2, minibatches=2,
    )  # fmt: skip
    assert policy.value.item() == pytest.approx(1.25 if ends else 2.0, abs=0.05)


def test_what_follows_a_limit_of_time_is_the_value_of_what_was_reached():
    """Not that of the first state of the next episode, which is what is acted on next."""

    class Count(Corridor):
        def observations(self):
            return {"one": self.time[:, None].float() + 1}

        def step(self, actions):
            reached = {"one": self.time[:, None].float() + 2}
            return super().step(actions)._replace(observations=reached)

    policy = OneState()
    policy.value.data.fill_(10.0)
    rewards, values, following, ends, cut = _rollout(policy, Count(1, 3, False), 5, torch.zeros(1)).told
    assert values[:, 0].tolist() == [10.0, 20.0, 30.0, 10.0, 20.0]
    assert following[:, 0].tolist() == [20.0, 30.0, 40.0, 20.0, 30.0]
    assert cut[:, 0].tolist() == [False, False, True, False, False]
    assert not ends.any()
    assert rewards.shape == (5, 1)


def test_what_is_rewarded_is_done():
    policy = OneState()
    seen = []
    log = ppo(policy, Corridor(8, 4, True), transitions=3000, steps=16, lr=0.1, minibatches=2, on_iteration=seen.append)
    assert policy.logits.diff().item() > 2
    assert seen == log
    assert log[0].mean_return < 3 < 3.6 < log[-1].mean_return <= 4
    assert log[-1].transitions == 3072
    assert log[0].episodes == 8 * 16 // 4
    assert log[-1].entropy < log[0].entropy <= math.log(2) + 1e-6
    assert log[0].kl >= 0


def test_a_first_update_of_one_batch_is_that_of_one_step_of_adam():
    torch.manual_seed(0)
    policy, world = OneState(), Corridor(4, 100, True)
    policy.logits.data += torch.tensor([0.2, -0.1])
    twin = copy.deepcopy(policy)
    ppo(
        policy, world, transitions=32, steps=8, epochs=1, minibatches=1, lr=0.01, gamma=0.9, lam=0.8, entropy=0.3,
        value_weight=0.7, max_grad_norm=0.05, seed=4,
    )  # fmt: skip
    with seeded(4):
        actions = torch.stack(
            [torch.distributions.Categorical(logits=twin.logits.detach().expand(4, 2)).sample() for _ in range(8)]
        )
    zero, none = torch.zeros(8, 4), torch.zeros(8, 4, dtype=torch.bool)
    advantages = generalized_advantages(actions.float(), zero, zero, none, none, gamma=0.9, lam=0.8).flatten()
    log_probs = twin.logits.log_softmax(0)
    scaled = (advantages - advantages.mean()) / advantages.std()
    entropy = -(log_probs.exp() * log_probs).sum()
    policy_loss = -((log_probs[actions.flatten()] - log_probs[actions.flatten()].detach()).exp() * scaled).mean()
    loss = policy_loss + 0.7 * (twin.value - advantages).square().mean() / 2 - 0.3 * entropy
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.01, eps=1e-5)
    loss.backward()
    nn.utils.clip_grad_norm_(twin.parameters(), 0.05)
    optimizer.step()
    for one, other in zip(policy.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_strangers_policies_learn_and_the_same_seed_gives_the_same():
    def trained():
        torch.manual_seed(1)
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(8 * 25, 32), nn.BatchNorm1d(32), nn.Dropout(0.1), nn.Tanh())
        policy = ActorCritic(_Float(encoder), 32, 4)
        world = KeyMazes(range(3), envs=8, size=5, horizon=15, bonus=0.5, seed=0)
        log = ppo(policy, world, transitions=512, steps=16, minibatches=2, lr=1e-3, gamma=0.9, seed=2)
        return policy, log

    (one, log), (two, again) = trained(), trained()
    assert log == again
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert one.encoder.encoder[2].num_batches_tracked == 4 * 3 * 2  # statistics of updates, not of rollouts


def test_minibatches_are_of_nearly_one_size_so_that_none_has_a_single_transition():
    log = ppo(OneState(), Corridor(2, 4, True), transitions=20, steps=5, minibatches=4, lr=0.01)
    assert all(math.isfinite(entry.policy_loss) for entry in log)


def test_actions_that_are_ruled_out_by_infinite_logits_are_never_taken_and_cost_nothing():
    class Masked(OneState):
        def forward(self, observations):
            logits, values = super().forward(observations)
            return torch.cat([logits, torch.full((len(logits), 1), -torch.inf)], 1), values

    policy = Masked()
    log = ppo(policy, Corridor(8, 4, True), transitions=1024, steps=16, lr=0.05, minibatches=2)
    assert policy.logits.diff().item() > 0.5
    assert 0 < log[0].entropy <= math.log(2) + 1e-6


class _Float(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, grids):
        return self.encoder(grids.float())


def test_small_mazes_are_learned():
    with seeded(0):
        policy = ActorCritic(GridEncoder(8, 5, hidden=32), 32, 4)
    options = {"size": 5, "horizon": 20, "bonus": 0.5, "centred": True}
    world = KeyMazes(range(4), envs=32, seed=0, **options)
    before = play_levels(policy, KeyMazes(range(4), **options), epsilon=0.1).success
    ppo(policy, world, transitions=8_000, steps=16, lr=5e-3, gamma=0.9, minibatches=2)
    assert before < 0.6
    assert play_levels(policy, KeyMazes([*range(4)] * 10, **options), epsilon=0.1).success > 0.9


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"transitions": 0}, ValueError, "transitions"),
        ({"minibatches": 9}, ValueError, "minibatches"),
        ({"lr": -1.0}, ValueError, "lr"),
        ({"clip": 0.0}, ValueError, "clip"),
        ({"gamma": 1.2}, ValueError, "gamma"),
        ({"lr": 1e30}, ValueError, "lower lr"),
        ({"policy": nn.Sequential(_Float(nn.Flatten()), nn.Linear(200, 4))}, TypeError, "policy"),
        ({"policy": OneState().requires_grad_(False)}, ValueError, "policy"),
    ],
)
def test_options_out_of_range_are_refused(options, error, name):
    world = KeyMazes(range(2), size=5)
    given = {"policy": ActorCritic(GridEncoder(8, 5, hidden=4), 4, 4), "transitions": 64, "steps": 8}
    given |= options
    with pytest.raises(error, match=name):
        ppo(given.pop("policy"), world, **given)
