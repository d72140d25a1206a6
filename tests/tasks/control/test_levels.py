"""Levels: split, drawn, and played by environments of gymnasium."""

import pytest
import torch

from heldout.tasks import GymLevels, KeyMazes, LevelOrder, LevelWorld, maze_env, play_levels, split_alike, split_levels


def test_no_level_is_in_two_parts_and_none_is_left_out():
    split = split_levels(5, 3, 4, start=10)
    assert [*split.train, *split.val, *split.test] == [*range(10, 22)]
    assert tuple(map(len, split)) == (5, 3, 4)
    for options in ({"n_train": 0}, {"n_val": 0}, {"n_test": -1}, {"start": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            split_levels(**({"n_train": 1, "n_val": 1, "n_test": 1} | options))


def test_each_environment_keeps_its_level_or_draws_one():
    every = torch.ones(3, dtype=torch.bool)
    own = LevelOrder([4, 9, 4])
    assert own.next(every).tolist() == [4, 9, 4]
    assert own.next(torch.tensor([False, True, True])).tolist() == [9, 4]
    drawn = LevelOrder([4, 9], 3, seed=1)
    found = torch.stack([drawn.next(every) for _ in range(200)])
    assert sorted(found.unique().tolist()) == [4, 9]
    assert 0.4 < (found == 4).double().mean() < 0.6
    again = LevelOrder([4, 9], 3, seed=1)
    assert torch.equal(torch.stack([again.next(every) for _ in range(200)]), found)
    drawn.restart()
    assert torch.equal(torch.stack([drawn.next(every) for _ in range(200)]), found)
    for levels, envs, name in (([], None, "levels"), ([-1], None, "levels"), ([1], 0, "envs")):
        with pytest.raises(ValueError, match=name):
            LevelOrder(levels, envs)


def test_levels_that_are_alike_are_in_one_part():
    levels, shares = list(range(100, 160)), (0.5, 0.3, 0.2)
    parts = split_alike(levels, lambda level: level % 10, shares, seed=2)
    assert sorted(level for part in parts for level in part) == levels
    kinds = [{level % 10 for level in part} for part in parts]
    assert [len(each) for each in kinds] == [5, 3, 2]
    assert len(set().union(*kinds)) == 10
    assert all(list(part) == sorted(part) for part in parts)
    assert split_alike(levels, lambda level: level % 10, shares, seed=2) == parts
    assert split_alike(levels, lambda level: level % 10, shares, seed=3) != parts


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"levels": []}, "levels"), ({"levels": [1, 2, 1]}, "levels"), ({"shares": (0.5, 0.4)}, "shares"),
        ({"shares": ()}, "shares"), ({"shares": (1.5, -0.5)}, "shares"), ({"alike": lambda level: 0}, "levels"),
        ({"seed": -1}, "seed"),
    ],
)  # fmt: skip
def test_parts_that_cannot_be_made_are_refused(options, name):
    with pytest.raises(ValueError, match=name):
        split_alike(**({"levels": range(9), "alike": lambda level: level, "shares": (0.5, 0.5)} | options))


@pytest.fixture
def gymnasium():
    return pytest.importorskip("gymnasium")


def counter(gymnasium, *, start=0, space=None, seen=None, limit=3):
    """An environment that tells how far it counted; action 1 counts, and it ends at its level."""

    class Counter(gymnasium.Env):
        def __init__(self, level):
            self.level, self.closed = level, False
            self.action_space = space or gymnasium.spaces.Discrete(2, start=start)
            self.observation_space = seen or gymnasium.spaces.Dict(
                {"count": gymnasium.spaces.Box(0, 9, (1,)), "level": gymnasium.spaces.Discrete(99)}
            )

        def _seen(self):
            return {"count": [float(self.count)], "level": self.level}

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            assert seed == self.level
            self.count = self.time = 0
            return self._seen(), {}

        def step(self, action):
            self.count += int(action) - start
            self.time += 1
            over = self.count >= self.level
            return self._seen(), float(self.count), over, self.time >= limit, {}

        def close(self):
            self.closed = True

    return Counter


def test_anybodys_environment_is_played_on_levels(gymnasium):
    made = []

    def make(level):
        made.append(counter(gymnasium, start=5)(level))
        return made[-1]

    world = GymLevels(make, [1, 2, 7])
    assert isinstance(world, LevelWorld)
    assert (len(world), world.actions, world.levels.tolist()) == (3, 2, [1, 2, 7])
    assert world.observations()["level"].tolist() == [1, 2, 7]
    step = world.step(torch.tensor([1, 1, 0]))
    assert step.observations["count"][:, 0].tolist() == [1, 1, 0]
    assert step.rewards.tolist() == [1, 1, 0]
    assert step.terminations.tolist() == [True, False, False]
    assert world.observations()["count"][:, 0].tolist() == [0, 1, 0]  # the first begins anew
    world.step(torch.tensor([0, 0, 0]))
    step = world.step(torch.tensor([0, 1, 0]))
    assert step.terminations.tolist() == [False, True, False]
    assert step.truncations.tolist() == [False, False, True]  # the second came to its end when its time was over
    assert len(made) == 3
    world.close()
    assert all(env.closed for env in made)
    with pytest.raises(ValueError, match="actions"):
        world.step(torch.tensor([0, 2, 0]))
    with pytest.raises(ValueError, match="actions"):
        world.step(torch.tensor([0, 1]))


def test_an_environment_is_closed_when_another_level_takes_its_place(gymnasium):
    made = []

    def make(level):
        made.append(counter(gymnasium)(level))
        return made[-1]

    world = GymLevels(make, range(1, 9), envs=2, seed=3)
    for _ in range(30):
        world.step(torch.ones(2, dtype=torch.int64))
    assert len(made) > 4
    assert [env.closed for env in made].count(False) == 2
    assert {env.level for env in made} <= set(range(1, 9))


def test_environments_that_rest_stand_still_until_all_begin_anew(gymnasium):
    steps = []

    def make(level):
        env = counter(gymnasium, limit=9)(level)
        step = env.step
        env.step = lambda action: steps.append(level) or step(action)
        return env

    world = GymLevels(make, [5, 6, 7])
    ones = torch.ones(3, dtype=torch.int64)
    world.step(ones)
    world.rest(torch.tensor([False, True, False]))
    step = world.step(ones)
    assert step.rewards.tolist() == [2, 0, 2]
    assert step.observations["count"][:, 0].tolist() == [2, 1, 2]
    assert steps == [5, 6, 7, 5, 7]
    world.reset()
    assert world.step(ones).rewards.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="envs"):
        world.rest(torch.tensor([True]))


def test_scores_are_the_same_where_those_that_are_over_rest(gymnasium):
    class Restless(GymLevels):
        def rest(self, envs):
            pass

    def forward(seen):
        return torch.stack([0 * seen["level"], seen["count"][:, 0] % 2 + 1], 1).float()

    one, other = (kind(counter(gymnasium, limit=9), [2, 4, 6, 8]) for kind in (GymLevels, Restless))
    scores = [play_levels(forward, world, epsilon=0.3, seed=1) for world in (one, other)]
    assert torch.equal(scores[0].returns, scores[1].returns)
    assert torch.equal(scores[0].lengths, scores[1].lengths)
    assert len(set(scores[0].lengths.tolist())) > 1


def test_what_does_not_fit_is_refused(gymnasium):
    spaces = gymnasium.spaces
    with pytest.raises(TypeError, match="Discrete actions"):
        GymLevels(counter(gymnasium, space=spaces.Box(0, 1, (2,))), [1])
    with pytest.raises(TypeError, match="observations"):
        GymLevels(counter(gymnasium, seen=spaces.Text(3)), [1])
    with pytest.raises(TypeError, match="make"):
        GymLevels(lambda level: level, [1])
    kinds = {1: counter(gymnasium), 2: counter(gymnasium, space=spaces.Discrete(3))}
    with pytest.raises(ValueError, match="2 actions"):
        GymLevels(lambda level: kinds[level](level), [1, 2])


def test_mazes_by_way_of_gymnasium_are_the_mazes(gymnasium):
    levels = [3, 8, 5]
    one, other = KeyMazes(levels), GymLevels(lambda level: maze_env([level]), levels)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(one.observations(), other.observations())
    for _ in range(130):
        actions = torch.randint(4, (3,), generator=generator)
        first, second = one.step(actions), other.step(actions)
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(one.observations(), other.observations())


def test_levels_of_minigrid_are_played(gymnasium):
    pytest.importorskip("minigrid")
    from minigrid.wrappers import ImgObsWrapper

    world = GymLevels(lambda level: ImgObsWrapper(gymnasium.make("MiniGrid-DoorKey-5x5-v0")), [0, 1, 0])
    seen = world.observations()
    assert torch.equal(seen[0], seen[2])
    assert world.actions == 7
    step = world.step(torch.tensor([2, 2, 2]))
    assert torch.equal(step.observations[0], step.observations[2])


def test_one_environment_for_all_levels_is_refused(gymnasium):
    """Played by several places in turn, each would reset and step the same state."""
    shared = gymnasium.make("CartPole-v1")
    with pytest.raises(ValueError, match="make must make an environment of its own for level 1"):
        GymLevels(lambda level: shared, range(3))
    with pytest.raises(ValueError, match="of its own"):
        GymLevels(lambda level: gymnasium.wrappers.TimeLimit(shared, 5), range(3))
    assert len(GymLevels(lambda level: shared, [3])) == 1
