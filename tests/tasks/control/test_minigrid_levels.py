"""minigrid's DoorKey with bonuses."""

import pytest

from heldout.tasks import GymLevels, door_key_env


def test_door_key_gives_its_bonuses_once_and_is_a_level_again_by_its_seed():
    pytest.importorskip("minigrid")
    env = door_key_env()
    seen, _ = env.reset(seed=4)
    assert seen.shape == (7, 7, 3)
    assert (env.reset(seed=4)[0] == seen).all()
    inner = env.unwrapped
    key = next(
        (x, y) for x in range(6) for y in range(6) if inner.grid.get(x, y) and inner.grid.get(x, y).type == "key"
    )
    free = [(key[0] + dx, key[1] + dy, d) for d, (dx, dy) in enumerate(((-1, 0), (0, -1), (1, 0), (0, 1)))]
    x, y, facing = next(each for each in free if inner.grid.get(each[0], each[1]) is None)
    inner.agent_pos, inner.agent_dir = (x, y), facing
    rewards = [env.step(action)[1] for action in (3, 4, 3, 0)]  # pick up, drop, pick up again, turn
    assert rewards == [0.5, 0.0, 0.0, 0.0]
    door = next(
        (x, y) for x in range(6) for y in range(6) if inner.grid.get(x, y) and inner.grid.get(x, y).type == "door"
    )
    inner.agent_pos, inner.agent_dir = (door[0] - 1, door[1]), 0
    assert [env.step(5)[1] for _ in range(3)] == [0.5, 0.0, 0.0]  # opened, shut, opened


def test_without_a_bonus_it_is_minigrids_own_and_moves_end_it():
    pytest.importorskip("minigrid")
    env = door_key_env(bonus=0.0, moves=3)
    env.reset(seed=0)
    assert [env.step(0)[1:4] for _ in range(3)] == [(0, False, False), (0, False, False), (0, False, True)]


def test_levels_of_it_are_played_in_step():
    pytest.importorskip("minigrid")
    world = GymLevels(lambda level: door_key_env(), [1, 2])
    assert world.reset().shape == (2, 7, 7, 3)
    assert world.actions == 7


@pytest.mark.parametrize(("name", "value"), [("size", 4), ("moves", 0), ("bonus", -1.0), ("bonus", float("nan"))])
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        door_key_env(**{name: value})
