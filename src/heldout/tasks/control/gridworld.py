"""A grid of four rooms and its best policy, as data: what an agent observes, and the move that it should make.

The agent stands in a cell and faces where it came from, as the last move went: it may go ahead, left or right, never
back. The best move depends on the cell and on the heading. Fully observed, both are given; partially observed, only the
last positions are, of which two tell the heading and more tell nothing new.
"""

from __future__ import annotations

import functools
from collections import deque
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from heldout.errors import checked

GRID = (
    "...#...",
    "...#...",
    ".......",
    "#.###.#",
    "...#...",
    "......G",
    "...#...",
)
"""The default rooms: ``#`` walls, ``G`` the goal."""

MOVES = ("ahead", "left", "right")
_HEADINGS = ((-1, 0), (0, 1), (1, 0), (0, -1))  # north, east, south, west, as (row, column)
_TURNS = {0: 0, 1: -1, 2: 1}
State = tuple[int, int, int]


class GridPolicy(NamedTuple):
    """What an agent sees, and what it should do.

    Attributes:
        observations: float32 ``(n, d)``.
        moves: int64 ``(n,)``, positions in ``MOVES``.
        states: int64 ``(n, 3)``: row, column and heading (north, east, south, west).

    Example:
        >>> seen = grid_policy(3, noise=0.0, grid=("..G",))
        >>> bool((seen.observations[:, :2] == seen.states[:, :2]).all())
        True
    """

    observations: Tensor
    moves: Tensor
    states: Tensor


@checked
def grid_policy(
    n: int, *, history: int | None = None, noise: float = 0.3, grid: tuple[str, ...] = GRID, seed: int = 0
) -> GridPolicy:
    """Returns observations of random states of a gridworld, with the best move of each.

    Where several moves are best, the first of ``MOVES`` is meant. Each number is observed with its own uniform noise,
    which is too small to confuse two cells: the best move follows from the observation.

    Args:
        n: observations.
        history: None: row, column, and the cosine and sine of the heading; else the rows and columns of the last
            ``history`` positions, the latest first, 2 or more.
        noise: greatest error, in cells, in [0, 0.5).
        grid: rows of ``#``, ``.`` and one ``G``.
        seed: of the states, the ways into them and the noise.

    Raises:
        ValueError: fewer than 1 observation, history below 2, noise outside [0, 0.5), or a grid without one goal, with
            rows of different lengths, or in which no state has a way in and a way to the goal.

    Example:
        >>> grid_policy(5).observations.shape, grid_policy(5, history=3).observations.shape
        (torch.Size([5, 4]), torch.Size([5, 6]))
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if history is not None and history < 2:
        raise ValueError(f"history must be None or at least 2, which tell the heading, got {history}")
    if not 0 <= noise < 0.5:
        raise ValueError(f"noise must lie in [0, 0.5), which keeps cells apart, got {noise}")
    best, into = _solved(grid, max(history or 2, 2))
    rng = np.random.default_rng(seed)
    states = sorted(best)
    chosen = [states[i] for i in rng.integers(len(states), size=n)]
    if history is None:
        angles = np.array([heading for *_, heading in chosen]) * np.pi / 2
        seen = np.column_stack([np.array(chosen)[:, :2], np.cos(angles), np.sin(angles)])
    else:
        seen = np.array([_way(state, history, into, rng) for state in chosen], float).reshape(n, -1)
    seen = seen + rng.uniform(-noise, noise, seen.shape)
    moves = torch.tensor([best[state] for state in chosen])
    return GridPolicy(torch.tensor(seen, dtype=torch.float32), moves, torch.tensor(chosen))


def _way(state: State, history: int, into: dict[State, list[tuple[State, int]]], rng: np.random.Generator) -> list:
    """The positions of a random way of moves that leads into a state, the latest first; its own is the first."""
    positions, length = [state[:2]], history - 1
    while length:
        fitting = [before for before, reach in into[state] if reach >= length - 1]
        state, length = fitting[rng.integers(len(fitting))], length - 1
        positions.append(state[:2])
    return positions


@functools.lru_cache(maxsize=8)
def _solved(grid: tuple[str, ...], history: int) -> tuple[dict[State, int], dict[State, list[tuple[State, int]]]]:
    """The best move of each state with a way in; and the states before each, with the moves that may lead to them."""
    goals = [(r, c) for r, row in enumerate(grid) for c, cell in enumerate(row) if cell == "G"]
    if len(goals) != 1 or len({len(row) for row in grid}) != 1:
        raise ValueError("a grid needs one goal, G, and rows of one length")
    free = {(r, c) for r, row in enumerate(grid) for c, cell in enumerate(row) if cell != "#"}
    after: dict[State, dict[int, State]] = {}
    for r, c in free:
        for heading in range(4):
            found = {}
            for move, turn in _TURNS.items():
                to = (heading + turn) % 4
                place = (r + _HEADINGS[to][0], c + _HEADINGS[to][1])
                if place in free:
                    found[move] = (*place, to)
            after[r, c, heading] = found
    before: dict[State, list[State]] = {state: [] for state in after}
    for state, ways in after.items():
        for to_state in ways.values():
            before[to_state].append(state)
    distance = {state: 0 for state in after if state[:2] == goals[0]}
    queue = deque(distance)
    while queue:
        state = queue.popleft()
        for earlier in before[state]:
            if earlier not in distance:
                distance[earlier] = distance[state] + 1
                queue.append(earlier)
    reach = dict.fromkeys(after, 0)  # moves that can lead into a state, up to what is asked
    for length in range(1, history):
        for state in after:
            if any(reach[earlier] >= length - 1 for earlier in before[state]):
                reach[state] = length
    best = {}
    for state, ways in after.items():
        if reach[state] >= history - 1 and distance.get(state, 0) > 0:
            best[state] = min((distance.get(to, len(after)), move) for move, to in ways.items())[1]
    if not best:
        raise ValueError("no state of the grid has a way in and a way to the goal")
    return best, {state: [(earlier, reach[earlier]) for earlier in ways] for state, ways in before.items()}
