import pytest
import torch

from heldout.tasks import GRID, MOVES, grid_policy

NORTH_EAST_SOUTH_WEST = ((-1, 0), (0, 1), (1, 0), (0, -1))
TURN = {"ahead": 0, "left": -1, "right": 1}


def steps_to_goal(grid):
    """Moves to the goal from every place and heading, by repeated relaxation."""
    far = 10**6
    free = {(r, c) for r, row in enumerate(grid) for c, cell in enumerate(row) if cell != "#"}
    found = {(*place, h): 0 if grid[place[0]][place[1]] == "G" else far for place in free for h in range(4)}
    for _ in found:
        for state, known in found.items():
            if known:
                found[state] = min([known, *(1 + found[to] for to in ways(state, free).values())])
    return found, free


def ways(state, free):
    r, c, heading = state
    found = {}
    for name, turn in TURN.items():
        to = (heading + turn) % 4
        place = (r + NORTH_EAST_SOUTH_WEST[to][0], c + NORTH_EAST_SOUTH_WEST[to][1])
        if place in free:
            found[name] = (*place, to)
    return found


def test_the_move_is_the_first_of_the_best():
    steps, free = steps_to_goal(GRID)
    drawn = grid_policy(400, noise=0.0)
    assert len({tuple(state) for state in drawn.states.tolist()}) > 80
    for state, move in zip(drawn.states.tolist(), drawn.moves.tolist(), strict=True):
        leading = ways(tuple(state), free)
        least = min(steps[to] for to in leading.values())
        assert MOVES[move] == next(name for name in MOVES if name in leading and steps[leading[name]] == least)
        assert steps[tuple(state)] == least + 1


def test_full_observations_are_place_and_heading():
    drawn = grid_policy(50, noise=0.0, seed=3)
    angle = drawn.states[:, 2] * torch.pi / 2
    expected = torch.column_stack([drawn.states[:, :2].float(), angle.cos(), angle.sin()])
    torch.testing.assert_close(drawn.observations, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("history", [2, 3, 5])
def test_a_history_is_a_way_that_ends_with_the_heading(history):
    _, free = steps_to_goal(GRID)
    drawn = grid_policy(200, history=history, noise=0.0, seed=1)
    places = drawn.observations.reshape(200, history, 2).long()
    assert torch.equal(places[:, 0], drawn.states[:, :2])
    moved = places[:, :-1] - places[:, 1:]
    assert (moved.abs().sum(-1) == 1).all()
    assert all(tuple(place) in free for row in places.tolist() for place in row)
    headings = torch.tensor(NORTH_EAST_SOUTH_WEST)
    assert torch.equal(moved[:, 0], headings[drawn.states[:, 2]])
    assert not (moved[:, :-1] == -moved[:, 1:]).all(-1).any()  # never back


def test_noise_is_bounded_and_leaves_moves_and_states_alone():
    plain, noisy = (grid_policy(300, history=2, noise=noise, seed=2) for noise in (0.0, 0.4))
    assert torch.equal(plain.states, noisy.states)
    assert torch.equal(plain.moves, noisy.moves)
    errors = (noisy.observations - plain.observations).abs()
    assert 0.35 < float(errors.max()) <= 0.4 + 1e-6
    assert not torch.equal(noisy.observations, grid_policy(300, history=2, noise=0.4, seed=4).observations)


def test_states_have_a_way_in_and_are_not_the_goal():
    drawn = grid_policy(500, grid=("...G",), noise=0.0)
    assert {tuple(state) for state in drawn.states.tolist()} == {(0, 1, 1), (0, 2, 1)}  # westward there is no way back
    assert set(drawn.moves.tolist()) == {0}


def test_bad_input_is_refused():
    for options, message in (
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"history": 1}, "at least 2, which tell the heading, got 1"),
        ({"noise": 0.5}, r"noise must lie in \[0, 0.5\)"),
        ({"grid": ("...",)}, "one goal, G"),
        ({"grid": ("..G", "..")}, "rows of one length"),
        ({"grid": ("#G#",)}, "no state of the grid"),
    ):
        with pytest.raises(ValueError, match=message):
            grid_policy(**{"n": 3} | options)
