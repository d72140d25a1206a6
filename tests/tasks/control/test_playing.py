"""Policies played on levels: scores and data sets, against episodes that are followed one by one."""

import pytest
import torch
from torch import nn

from heldout.data import to_episodes, transitions_of
from heldout.tasks import KeyMazes, LevelStep, collect, epsilon_greedy, maze_layout, play_levels

OPTIONS = {"size": 7, "horizon": 30}


class Best:
    """The best action, from the mazes themselves; the rows that are asked for are those that play."""

    def __init__(self, mazes):
        self.mazes = mazes

    def actor(self, episodes):
        assert episodes == len(self.mazes)
        self.recorded = []
        return self

    def logits(self, observations):
        assert observations["observation"].shape[0] == len(self.mazes)
        return nn.functional.one_hot(self.mazes.best_actions(), 4).float()

    def record(self, actions, rewards):
        self.recorded.append((actions, rewards))


def test_the_best_policy_succeeds_in_as_many_moves_as_it_takes():
    mazes = KeyMazes(range(12), **OPTIONS)
    best, expected = Best(mazes), mazes.best_returns()
    scores = play_levels(best, mazes)
    assert scores.success == 1.0
    assert scores.lengths.tolist() == [maze_layout(level, size=7).plan_length for level in range(12)]
    assert torch.allclose(scores.returns.double(), expected, atol=1e-5)
    assert scores.mean_return == pytest.approx(expected.mean().item(), abs=1e-5)
    assert scores.levels.tolist() == [*range(12)]
    assert len(best.recorded) == int(scores.lengths.max())


def test_the_first_episode_alone_counts():
    mazes = KeyMazes([1] * 4, **OPTIONS)
    best = Best(mazes)
    plain = best.logits
    best.logits = lambda seen: torch.where(
        torch.tensor([[True], [True], [True], [False]]), plain(seen), torch.eye(4)[:1]
    )
    scores = play_levels(best, mazes)
    assert scores.successes.tolist() == [True, True, True, False]
    assert scores.lengths[3] == 30
    assert scores.returns[3].item() == pytest.approx(-0.3, abs=1e-5)
    assert scores.returns[0].item() == pytest.approx(1 - 0.01 * int(scores.lengths[0]), abs=1e-5)


def test_a_module_is_played_in_evaluation_mode_and_left_in_its_own():
    seen = []

    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(8 * 49), nn.Dropout(0.5), nn.Linear(8 * 49, 4))

        def forward(self, observations):
            seen.append((self.training, len(observations)))
            return self.layers(observations.float())

    policy = Policy().train()
    first = play_levels(policy, KeyMazes(range(6), **OPTIONS), epsilon=0.5, seed=2)
    assert policy.training
    assert policy.layers[1].training
    assert not any(training for training, _ in seen)
    assert policy.layers[1].num_batches_tracked == 0
    counts = [count for _, count in seen]
    assert counts[0] == 6
    assert counts == sorted(counts, reverse=True)  # those that have ended are not asked
    again = play_levels(policy, KeyMazes(range(6), **OPTIONS), epsilon=0.5, seed=2)
    assert torch.equal(first.returns, again.returns)


def test_actions_are_greedy_sampled_or_uniform():
    logits = torch.tensor([[0.0, 1.0, 0.0]]).repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)

    def shares(**options):
        found = epsilon_greedy(logits, generator=generator, **({"epsilon": 0.0, "sample": False} | options))
        return found.bincount(minlength=3) / 4000

    assert shares().tolist() == [0, 1, 0]
    assert torch.allclose(shares(sample=True), logits[0].softmax(-1), atol=0.03)
    assert torch.allclose(shares(epsilon=0.3), torch.tensor([0.1, 0.8, 0.1]), atol=0.03)
    assert torch.allclose(shares(epsilon=1.0), torch.full((3,), 1 / 3), atol=0.03)


def test_a_policy_of_the_wrong_form_is_refused():
    mazes = KeyMazes(range(2), **OPTIONS)
    for policy in (lambda seen: torch.zeros(2, 3), lambda seen: torch.full((2, 4), torch.nan), lambda seen: None):
        with pytest.raises(ValueError, match="policy"):
            play_levels(policy, mazes)
    for options in ({"epsilon": 1.5}, {"limit": 0}, {"seed": -1}, {"limit": 5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            play_levels(lambda seen: torch.zeros(len(seen), 4), mazes, **options)


class Ends:
    """Two environments that end at once: one with a reward of 1, one with a loss of 1."""

    actions, levels = 2, torch.tensor([5, 6])

    def __len__(self):
        return 2

    def reset(self):
        return self.observations()

    def observations(self):
        return torch.zeros(2, 1)

    def step(self, actions):
        ends = torch.ones(2, dtype=torch.bool)
        return LevelStep(self.observations(), torch.tensor([1.0, -1.0]), ends, ~ends)


def test_an_end_without_a_reward_is_no_success():
    scores = play_levels(lambda seen: torch.zeros(len(seen), 2), Ends())
    assert scores.successes.tolist() == [True, False]
    assert scores.levels.tolist() == [5, 6]


def uniform(seen):
    return torch.zeros(len(seen), 4)


def test_a_data_set_is_what_happened():
    levels = [4, 9, 17]
    logged = collect(uniform, KeyMazes(levels, envs=5, seed=1, **OPTIONS), 300, seed=2)
    assert 300 <= len(logged.rewards) < 330
    assert set(logged.levels.tolist()) == set(levels)
    assert bool((logged.lengths <= 30).all())
    assert bool((logged.lengths[logged.terminations[logged.lengths.cumsum(0) - 1]] <= 30).all())
    for episode in to_episodes(logged):  # played again, action by action
        mazes = KeyMazes([episode["level"]], **OPTIONS)
        for step, action in enumerate(episode["actions"]):
            assert torch.equal(mazes.observations()[0], torch.from_numpy(episode["observations"][step]))
            done = mazes.step(torch.tensor([action]))
            assert done.rewards[0] == episode["rewards"][step]
            assert bool(done.terminations[0]) == episode["terminations"][step]
            assert bool(done.truncations[0]) == episode["truncations"][step]
        assert torch.equal(done.observations[0], torch.from_numpy(episode["observations"][-1]))


def test_what_is_cut_off_by_time_is_not_marked_as_its_end():
    logged = collect(uniform, KeyMazes(range(20), **OPTIONS), 500)
    last = logged.lengths.cumsum(0) - 1
    long = logged.lengths == 30
    assert bool(logged.truncations[last][long & (logged.rewards[last] < 0)].all())
    assert bool((logged.terminations == (logged.rewards > 0.5)).all())
    assert not bool((logged.terminations & logged.truncations).any())
    assert bool((transitions_of(logged).terminations == logged.terminations).all())


def test_the_same_seed_plays_the_same_levels_again_where_they_are_drawn():
    world = KeyMazes(range(50), envs=5, seed=3, **OPTIONS)
    one, other = (play_levels(uniform, world, seed=1) for _ in range(2))
    assert torch.equal(one.levels, other.levels)
    assert torch.equal(one.returns, other.returns)
    assert len(set(one.levels.tolist())) > 2
    logs = [collect(uniform, world, 300, seed=1) for _ in range(2)]
    assert torch.equal(logs[0].levels, logs[1].levels)
    assert torch.equal(logs[0].actions, logs[1].actions)


def test_the_same_seed_collects_the_same_and_epsilon_one_needs_no_policy():
    one = collect(uniform, KeyMazes(range(6), **OPTIONS), 200, seed=5)
    assert torch.equal(one.actions, collect(uniform, KeyMazes(range(6), **OPTIONS), 200, seed=5).actions)
    assert not torch.equal(
        one.actions[:200], collect(uniform, KeyMazes(range(6), **OPTIONS), 200, seed=6).actions[:200]
    )
    lazy = collect(
        lambda seen: torch.tensor([[1e9, 0, 0, 0]]).repeat(len(seen), 1),
        KeyMazes(range(6), **OPTIONS),
        2000,
        epsilon=1.0,
        sample=False,
    )
    assert (lazy.actions.bincount() / len(lazy.actions)).tolist() == pytest.approx([0.25] * 4, abs=0.04)
    with pytest.raises(ValueError, match="transitions"):
        collect(uniform, KeyMazes([0]), 0)


class Coins:
    """Each episode lasts 1 or 19 steps, as often."""

    actions = 2

    def __init__(self, envs):
        self.generator = torch.Generator().manual_seed(0)
        self.envs = envs
        self.levels = torch.zeros(envs, dtype=torch.int64)
        self.reset()

    def __len__(self):
        return self.envs

    def drawn(self, count):
        return 1 + 18 * torch.randint(2, (count,), generator=self.generator)

    def reset(self):
        self.left = self.drawn(self.envs)
        return self.observations()

    def observations(self):
        return self.left[:, None].float()

    def step(self, actions):
        self.left = self.left - 1
        ended = self.left == 0
        done = LevelStep(self.observations(), torch.zeros(self.envs), ended, torch.zeros_like(ended))
        self.left = torch.where(ended, self.drawn(self.envs), self.left)
        return done


def test_short_episodes_are_as_frequent_as_they_are():
    """Taken in the order in which they end, 0.9 of them would be short."""
    lengths = torch.cat([
        collect(lambda seen: torch.zeros(len(seen), 2), Coins(64), 640, seed=seed).lengths for seed in range(6)
    ])  # fmt: skip
    assert 0.4 < (lengths == 1).double().mean() < 0.6


def test_episodes_that_do_not_end_and_rewards_that_are_not_finite_are_refused():
    class Endless(KeyMazes):
        def step(self, actions):
            done = super().step(actions)
            no = torch.zeros_like(done.terminations)
            return done._replace(terminations=no, truncations=no)

    class Broken(KeyMazes):
        def step(self, actions):
            return super().step(actions)._replace(rewards=torch.full((len(self),), float("nan")))

    def idle(seen):
        return torch.zeros(len(seen), 4)

    with pytest.raises(ValueError, match="limit"):
        collect(idle, Endless([1, 2]), 5, limit=20)
    with pytest.raises(ValueError, match="rewards"):
        play_levels(idle, Broken([1, 2]))


class TwoClocks(Coins):
    """Of two environments the first has episodes of 9 steps, the second of 2."""

    def drawn(self, count):
        return torch.tensor([9, 2])

    def __init__(self):
        super().__init__(2)


def test_episodes_are_taken_by_when_they_began():
    """The long one began first: what began later does not push it out for having ended before."""
    log = collect(lambda seen: torch.zeros(len(seen), 2), TwoClocks(), 10)
    assert log.lengths.tolist() == [9, 2]
