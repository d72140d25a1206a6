"""Mazes, against a search of their own and an environment that is stepped one by one."""

import time

import numpy as np
import pytest
import torch

from heldout.tasks import MAZE_PLANES, KeyMazes, maze_env, maze_layout

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))


def shortest(maze):
    """Moves of a shortest plan, by breadth-first search over cells and whether the key is held."""
    size = len(maze.walls)
    ahead, seen = [(maze.agent, False, 0)], {(maze.agent, False)}
    for cell, key, moves in ahead:
        if cell == maze.goal:
            return moves
        row, column = divmod(cell, size)
        for down, right in MOVES:
            new = (row + down) * size + column + right
            if maze.walls[row + down, column + right] or (new == maze.door and not key):
                continue
            state = (new, key or new == maze.key)
            if state not in seen:
                seen.add(state)
                ahead.append((*state, moves + 1))
    return None


class OneMaze:
    """The rules, one agent, plainly."""

    def __init__(self, maze, horizon, step_cost, bonus):
        self.maze, self.horizon, self.step_cost, self.bonus = maze, horizon, step_cost, bonus
        self.agent, self.key, self.open, self.time = maze.agent, False, False, 0

    def step(self, action):
        size, reward = len(self.maze.walls), -self.step_cost
        row, column = divmod(self.agent, size)
        new = (row + MOVES[action][0]) * size + column + MOVES[action][1]
        if not self.maze.walls.flat[new] and not (new == self.maze.door and not self.open and not self.key):
            self.agent = new
        if self.agent == self.maze.key and not self.key:
            self.key, reward = True, reward + self.bonus
        if self.agent == self.maze.door and not self.open:
            self.open, reward = True, reward + self.bonus
        self.time += 1
        done = self.agent == self.maze.goal
        return reward + done, done, self.time == self.horizon and not done

    def picture(self):
        maze, size = self.maze, len(self.maze.walls)
        planes = {name: np.zeros(size * size, dtype=np.uint8) for name in MAZE_PLANES}
        planes["agent"][self.agent] = 1
        planes["wall"][:] = maze.walls.ravel()
        planes[f"colour {maze.colours[0]}"][maze.walls.ravel()] = 1
        planes["key"][self.agent if self.key else maze.key] = 1
        planes["goal"][maze.goal] = 1
        planes[f"colour {maze.colours[2]}"][maze.goal] = 1
        if not self.key:
            planes[f"colour {maze.colours[1]}"][maze.key] = 1
        if not self.open:
            planes["door"][maze.door] = 1
            planes[f"colour {maze.colours[1]}"][maze.door] = 1
        return np.stack([planes[name].reshape(size, size) for name in MAZE_PLANES])


@pytest.mark.parametrize("size", [5, 7, 9, 11])
def test_every_maze_is_solved_by_way_of_the_key_and_the_door(size):
    for level in range(60):
        maze = maze_layout(level, size=size, max_plan=60)
        assert maze.plan_length == shortest(maze)
        blocked = maze._replace(key=-1)
        assert shortest(blocked) is None
        assert maze.walls[0].all()
        assert maze.walls[:, -1].all()
        assert len({maze.agent, maze.key, maze.door, maze.goal}) == 4
        assert not maze.walls.flat[[maze.agent, maze.key, maze.door, maze.goal]].any()
        passages = int((~maze.walls).sum()) - (size // 2) ** 2
        assert passages == (size // 2) ** 2 - 1  # a tree


def test_the_same_level_is_the_same_maze_and_others_are_others():
    assert np.array_equal(maze_layout(5).walls, maze_layout(5).walls)
    forms = {maze_layout(level).walls.tobytes() for level in range(100)}
    assert len(forms) > 95
    colours = np.array([maze_layout(level).colours for level in range(300)])
    assert (np.abs(np.stack([(colours == c).mean(0) for c in range(3)]) - 1 / 3) < 0.1).all()
    assert max(maze_layout(level, max_plan=12).plan_length for level in range(50)) <= 12


@pytest.mark.parametrize("bonus", [0.0, 0.3])
@pytest.mark.parametrize("envs", [None, 4])
def test_mazes_that_are_played_in_step_are_those_that_are_played_one_by_one(envs, bonus):
    levels = [2, 30, 7, 7, 11]
    mazes = KeyMazes(levels, envs=envs, size=7, horizon=25, step_cost=0.02, bonus=bonus, seed=3)
    singles = [None] * len(mazes)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    ends = dict.fromkeys(("goal", "time", "key", "door"), 0)
    for _ in range(150):
        for k, level in enumerate(mazes.levels.tolist()):
            if singles[k] is None:
                singles[k] = OneMaze(maze_layout(level, size=7), 25, 0.02, bonus)
        assert np.array_equal(mazes.observations().numpy(), np.stack([one.picture() for one in singles]))
        best = mazes.best_actions()
        actions = torch.where(
            torch.rand(len(mazes), generator=generator) < 0.6, best, torch.from_numpy(rng.integers(4, size=len(mazes)))
        )
        step = mazes.step(actions)
        for k, one in enumerate(singles):
            reward, done, cut = one.step(int(actions[k]))
            assert step.rewards[k].item() == pytest.approx(reward, abs=1e-6)
            assert (bool(step.terminations[k]), bool(step.truncations[k])) == (done, cut)
            assert np.array_equal(step.observations[k].numpy(), one.picture())
            ends["goal"] += done
            ends["time"] += cut
            ends["key"] += one.key
            ends["door"] += one.open
            if done or cut:
                singles[k] = None
    assert min(ends.values()) > 1


@pytest.mark.parametrize("size", [7, 9])
def test_a_shortest_plan_is_played_and_gives_the_best_return(size):
    mazes = KeyMazes(range(40), size=size, step_cost=0.01, bonus=0.25)
    promised, got = mazes.best_returns(), torch.zeros(40, dtype=torch.float64)
    playing, length = torch.ones(40, dtype=torch.bool), torch.zeros(40, dtype=torch.int64)
    while bool(playing.any()):
        step = mazes.step(mazes.best_actions())
        got += torch.where(playing, step.rewards.double(), 0.0)
        length += playing
        playing &= ~(step.terminations | step.truncations)
    assert torch.allclose(got, promised, atol=1e-5)
    assert length.tolist() == [maze_layout(level, size=size).plan_length for level in range(40)]


def test_what_is_left_of_the_best_return_counts_down_by_what_was_given():
    mazes = KeyMazes(range(30), size=7, bonus=0.5)
    for _ in range(12):
        before, step = mazes.best_returns(), mazes.step(mazes.best_actions())
        going = ~(step.terminations | step.truncations)
        assert torch.allclose((before - mazes.best_returns())[going], step.rewards.double()[going], atol=1e-6)


def test_a_centred_view_shows_the_same_with_the_agent_in_the_middle():
    whole, centred = KeyMazes(range(20), size=7), KeyMazes(range(20), size=7, centred=True)
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        seen, moved = whole.observations(), centred.observations()
        assert bool((moved[:, 0, 3, 3] == 1).all())
        for k in range(20):
            row, column = divmod(int(seen[k, 0].flatten().argmax()), 7)
            assert torch.equal(seen[k].roll((3 - row, 3 - column), (1, 2)), moved[k])
        actions = torch.randint(4, (20,), generator=generator)
        one, other = whole.step(actions), centred.step(actions)
        assert torch.equal(one.rewards, other.rewards)


def test_observations_are_copies():
    mazes = KeyMazes(range(3))
    seen = mazes.observations()
    mazes.step(torch.tensor([0, 1, 2]))
    first = seen.clone()
    seen.zero_()
    assert not torch.equal(mazes.reset(), seen)
    assert torch.equal(mazes.observations(), first)


def test_a_thousand_levels_are_stepped_fast():
    mazes = KeyMazes(range(1000))
    actions = [torch.randint(4, (1000,), generator=torch.Generator().manual_seed(k)) for k in range(20)]
    start = time.process_time()
    for each in actions:
        mazes.step(each)
    assert 20_000 / (time.process_time() - start) > 50_000


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"size": 8}, "size"), ({"size": 3}, "size"), ({"horizon": 0}, "horizon"), ({"step_cost": -1.0}, "step_cost"),
        ({"bonus": -0.1}, "bonus"), ({"max_plan": 3}, "max_plan"), ({"envs": 0}, "envs"), ({"levels": []}, "levels"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options, name):
    with pytest.raises(ValueError, match=name):
        KeyMazes(**({"levels": [0]} | options))


def test_wrong_actions_are_refused():
    mazes = KeyMazes(range(2))
    for actions in (torch.tensor([0, 4]), torch.tensor([0]), torch.tensor([0, -1]), torch.tensor([0.0, 1.0])):
        with pytest.raises(ValueError, match="actions"):
            mazes.step(actions)


def test_the_environment_is_one_of_gymnasium():
    gymnasium = pytest.importorskip("gymnasium")
    from gymnasium.utils.env_checker import check_env

    env = maze_env(range(5), size=7, horizon=20)
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
        env.step(0)
    check_env(env, skip_render_check=True)
    _, info = env.reset(seed=4)
    assert info["level"] in range(5)
    ends = [env.step(k % 4)[2:4] for k in range(20)]
    assert ends[-1] == (False, True)
    assert {env.reset()[1]["level"] for _ in range(60)} == set(range(5))
    with pytest.raises(ValueError, match="size"):
        maze_env(range(5), size=4)


def test_a_maze_that_is_shared_cannot_be_written_to():
    maze = maze_layout(5)
    for shared in (maze.walls, maze.to_key, maze.to_goal):
        with pytest.raises(ValueError, match="read-only"):
            shared[:] = 0
