"""Mazes with a key and a door, one for each level: a vectorised environment, and one of gymnasium's.

The way to the goal leads through a door, and the key lies on the near side of it: what to do next depends on what is
far away. Walls, key and door, and goal have a colour by level that means nothing. Source: the kind of world that
arXiv:2312.05742 is about (Procgen's mazes), small enough for a processor.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heldout.errors import check_at_least, check_labels, check_length, check_nonnegative, checked, require
from heldout.tasks.control.levels import LevelOrder, LevelStep

MAZE_PLANES = ("agent", "wall", "key", "door", "goal", "colour 0", "colour 1", "colour 2")
"""What the planes of an observation show. A key that is carried lies where the agent is."""
MAZE_ACTIONS = ("up", "right", "down", "left")
_COLOURS = 3
_FAR = 1000  # moves to where no way leads


class MazeLayout(NamedTuple):
    """A level: where everything is, and how far it is.

    Attributes:
        walls: bool ``(size, size)``.
        agent, key, door, goal: cells, ``row * size + column``.
        colours: of the walls, of key and door, and of the goal.
        to_key: moves from each cell to the key while the door is shut, int16 ``(size * size,)``, 1000 where there is no
            way.
        to_goal: moves from each cell to the goal with the key.
    """

    walls: NDArray[np.bool_]
    agent: int
    key: int
    door: int
    goal: int
    colours: tuple[int, int, int]
    to_key: NDArray[np.int16]
    to_goal: NDArray[np.int16]

    @property
    def plan_length(self) -> int:
        """Moves of the shortest plan."""
        return int(self.to_key[self.agent] + self.to_goal[self.key])


@checked
def maze_layout(level: int, *, size: int = 9, max_plan: int = 40) -> MazeLayout:
    """Returns the maze of a level: the same level, size and bound give the same maze.

    Rooms stand on odd rows and columns and are joined to a tree by random passages (Prim). One passage has a door;
    agent and key are in rooms on one side of it, and the goal on the other.

    Args:
        level: 0 or more.
        size: cells of a side, odd, 5 or more.
        max_plan: most moves of the shortest plan; mazes with longer ones are drawn again.

    Raises:
        ValueError: options out of range, or no maze with so short a plan in 1,000 draws.

    Example:
        >>> maze = maze_layout(3)
        >>> maze.walls.shape, maze.plan_length <= 40
        ((9, 9), True)
    """
    check_labels(level=level)
    check_at_least(5, size=size)
    check_at_least(4, max_plan=max_plan)
    if size % 2 == 0:
        raise ValueError(f"size must be odd, got {size}")
    return _layout(level, size, max_plan)


@functools.lru_cache(maxsize=20_000)
def _layout(level: int, size: int, max_plan: int) -> MazeLayout:
    rng = np.random.default_rng([level, size])
    for _ in range(1000):
        drawn = _drawn(rng, size)
        if drawn.plan_length <= max_plan:
            return drawn
    raise ValueError(f"max_plan must leave mazes of size {size}, got {max_plan}")


def _drawn(rng: np.random.Generator, size: int) -> MazeLayout:
    side = size // 2
    tree: list[tuple[int, int]] = []
    inside, frontier = {int(rng.integers(side * side))}, []
    newest = next(iter(inside))
    while len(inside) < side * side:
        frontier += [(newest, room) for room in _beside(newest, side) if room not in inside]
        source, room = frontier.pop(int(rng.integers(len(frontier))))
        if room not in inside:
            tree.append((source, room))
            inside.add(room)
            newest = room
            frontier = [edge for edge in frontier if edge[1] != room]
    walls = np.ones((size, size), dtype=bool)
    for room in inside:
        walls[_cell(room, side)] = False
    passages = {
        edge: tuple((a + b) // 2 for a, b in zip(*(_cell(r, side) for r in edge), strict=True)) for edge in tree
    }
    for place in passages.values():
        walls[place] = False
    while True:
        shut = tree[int(rng.integers(len(tree)))]
        near = _reached(shut[int(rng.integers(2))], [edge for edge in tree if edge != shut])
        if len(near) >= 2:
            break
    far = sorted(inside - near)
    agent, key = (int(room) for room in rng.choice(sorted(near), 2, replace=False))
    goal = far[int(rng.integers(len(far)))]
    flat = [row * size + column for row, column in (_cell(room, side) for room in (agent, key, goal))]
    door = passages[shut][0] * size + passages[shut][1]
    blocked = walls.ravel().copy()
    to_goal = _distances(blocked, flat[2], size)
    blocked[door] = True
    to_key = _distances(blocked, flat[1], size)
    colours = tuple(int(colour) for colour in rng.integers(_COLOURS, size=3))
    for shared in (walls, to_key, to_goal):  # by all who ask for this level
        shared.setflags(write=False)
    return MazeLayout(walls, flat[0], flat[1], door, flat[2], colours, to_key, to_goal)  # type: ignore[arg-type]


def _around(size: int) -> NDArray[np.int64]:
    """The cells of a view from each cell, ``(size * size, size * size)``: rolled, with that cell in the middle."""
    rows, columns = np.divmod(np.arange(size * size), size)
    shift = np.arange(size) - size // 2
    seen_rows = (rows[:, None, None] + shift[:, None]) % size
    return (seen_rows * size + (columns[:, None, None] + shift) % size).reshape(size * size, -1)


def _cell(room: int, side: int) -> tuple[int, int]:
    return 2 * (room // side) + 1, 2 * (room % side) + 1


def _beside(room: int, side: int) -> list[int]:
    row, column = divmod(room, side)
    places = ((row - 1, column), (row, column + 1), (row + 1, column), (row, column - 1))
    return [r * side + c for r, c in places if 0 <= r < side and 0 <= c < side]


def _reached(room: int, edges: list[tuple[int, int]]) -> set[int]:
    found, ahead = {room}, [room]
    while ahead:
        here = ahead.pop()
        new = [b if a == here else a for a, b in edges if here in (a, b)]
        ahead += [each for each in new if each not in found]
        found.update(new)
    return found


def _distances(blocked: NDArray[np.bool_], target: int, size: int) -> NDArray[np.int16]:
    found = np.full(size * size, _FAR, dtype=np.int16)
    found[target], ahead = 0, [target]
    for here in ahead:
        for step in (-size, 1, size, -1):
            if not blocked[here + step] and found[here + step] == _FAR:
                found[here + step] = found[here] + 1
                ahead.append(here + step)
    return found


class KeyMazes:
    """Many mazes that are played in step, a ``LevelWorld``.

    Observations are uint8 ``(envs, 8, size, size)``: ``MAZE_PLANES``. Moves into walls, and into the shut door without
    the key, leave the agent where it is. The goal ends an episode and gives 1; each move costs ``step_cost``. A step of
    1,000 environments costs the writing of their observations, and some twenty passes over 1,000 numbers.

    Args:
        levels: to play.
        envs: environments, each on levels that are drawn; None: one for each level, in order, again and again.
        size: cells of a side, odd.
        horizon: moves after which an episode is cut off. Below ``max_plan`` there can be mazes that take longer.
        step_cost: taken off for each move.
        bonus: given for taking the key and for passing the door, once each.
        max_plan: as for ``maze_layout``.
        centred: the planes are rolled so that the agent is in the middle. The walls around a maze keep its sides apart.
        seed: of the draws of levels.

    Attributes:
        levels: being played, int64 ``(envs,)``.
        actions: 4, ``MAZE_ACTIONS``.

    Raises:
        ValueError: options out of range.

    Example:
        >>> mazes = KeyMazes(range(5))
        >>> while True:
        ...     step = mazes.step(mazes.best_actions())
        ...     if bool(step.terminations.any()):
        ...         break
        >>> bool(step.rewards.max() > 0.98)
        True
    """

    actions = len(MAZE_ACTIONS)

    @checked
    def __init__(
        self,
        levels: Sequence[int],
        *,
        envs: int | None = None,
        size: int = 9,
        horizon: int = 60,
        step_cost: float = 0.01,
        bonus: float = 0.0,
        max_plan: int = 40,
        centred: bool = False,
        seed: int = 0,
    ) -> None:
        check_at_least(1, horizon=horizon)
        check_nonnegative(step_cost=step_cost, bonus=bonus)
        self._order = LevelOrder(levels, envs, seed=seed)
        self.size, self.horizon, self.step_cost, self.bonus = size, horizon, step_cost, bonus
        self._options = {"size": size, "max_plan": max_plan}
        self._around = _around(size) if centred else None
        count = len(self)
        self.levels = torch.zeros(count, dtype=torch.int64)
        self._seen = np.zeros((count, len(MAZE_PLANES), size * size), dtype=np.uint8)
        self._walls = np.zeros((count, size * size), dtype=bool)
        self._distances = np.zeros((count, 2, size * size), dtype=np.int16)
        self._cells = np.zeros((4, count), dtype=np.int64)  # of agent, key, door and goal
        self._colours = np.zeros((3, count), dtype=np.int64)
        self._has_key, self._open = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
        self._time, self._rows = np.zeros(count, dtype=np.int64), np.arange(count)
        self._moves = np.array([-size, 1, size, -1])
        self.reset()

    def __len__(self) -> int:
        """How many environments there are."""
        return self._order.envs

    def reset(self) -> Tensor:
        """Begins all episodes anew, on the levels that came first, and returns their observations."""
        self._order.restart()
        self._begin(torch.ones(len(self), dtype=torch.bool))
        return self.observations()

    def observations(self) -> Tensor:
        """What is to be acted on, uint8 ``(envs, 8, size, size)``."""
        if self._around is None:
            seen = self._seen.copy()
        else:
            seen = np.take_along_axis(self._seen, self._around[self._cells[0]][:, None], 2)
        return torch.from_numpy(seen.reshape(len(self), -1, self.size, self.size))

    def best_actions(self) -> Tensor:
        """The first action of a shortest plan in each environment, int64 ``(envs,)``."""
        ahead = self._cells[0] + self._moves[:, None]
        return torch.from_numpy(self._distances[self._rows, self._has_key.astype(int), ahead].argmin(0))

    def best_returns(self) -> Tensor:
        """The return of a shortest plan from where each environment is, float64 ``(envs,)``, undiscounted.

        The horizon is not looked at: it can cut off a plan that is longer.
        """
        moves = self._distances[self._rows, self._has_key.astype(int), self._cells[0]].astype(float)
        key_to_goal = self._distances[self._rows, 1, self._cells[1]]
        moves += np.where(self._has_key, 0, key_to_goal)
        bonuses = (~self._has_key).astype(float) + ~self._open
        return torch.from_numpy(1 + self.bonus * bonuses - self.step_cost * moves)

    @checked
    def step(self, actions: Tensor) -> LevelStep:
        """Moves all agents; where an episode ends, the next one begins.

        Args:
            actions: int64 ``(envs,)``, positions in ``MAZE_ACTIONS``.

        Raises:
            ValueError: actions that there are not, or of another number of environments.
        """
        check_length(len(self), actions=actions)
        check_labels(self.actions, actions=actions)
        rows, (here, key, door, goal) = self._rows, self._cells
        ahead = here + self._moves[actions.numpy()]
        shut = (ahead == door) & ~self._open & ~self._has_key
        now = np.where(self._walls[rows, ahead] | shut, here, ahead)
        taken, passed = (now == key) & ~self._has_key, (now == door) & ~self._open
        reached = now == goal
        self._seen[rows, 0, here] = 0
        self._seen[rows, 0, now] = 1
        self._colour(1, taken, key)
        self._colour(1, passed, door)
        self._seen[rows[passed], 3, door[passed]] = 0
        self._has_key |= taken
        self._open |= passed
        carried = self._has_key
        self._seen[rows[carried], 2, here[carried]] = 0
        self._seen[rows[carried], 2, now[carried]] = 1
        self._cells[0] = now
        self._time += 1
        rewards = reached - self.step_cost + self.bonus * (taken + passed.astype(float))
        terminated, truncated = torch.from_numpy(reached), torch.from_numpy((self._time >= self.horizon) & ~reached)
        found = LevelStep(self.observations(), torch.from_numpy(rewards).float(), terminated, truncated)
        self._begin(terminated | truncated)
        return found

    def _colour(self, kind: int, where: NDArray[np.bool_], cells: NDArray[np.int64]) -> None:
        """Takes the colour of what is gone."""
        self._seen[self._rows[where], 5 + self._colours[kind, where], cells[where]] = 0

    def _begin(self, ended: Tensor) -> None:
        rows = ended.nonzero()[:, 0].numpy()
        if not len(rows):
            return
        self.levels[ended] = self._order.next(ended)
        mazes = [maze_layout(level, **self._options) for level in self.levels[ended].tolist()]
        self._walls[rows] = walls = np.stack([maze.walls.ravel() for maze in mazes])
        self._distances[rows, 0] = np.stack([maze.to_key for maze in mazes])
        self._distances[rows, 1] = np.stack([maze.to_goal for maze in mazes])
        cells = np.array([(maze.agent, maze.key, maze.door, maze.goal) for maze in mazes]).T
        colours = np.array([maze.colours for maze in mazes]).T
        self._cells[:, rows], self._colours[:, rows] = cells, colours
        self._has_key[rows] = self._open[rows] = False
        self._time[rows] = 0
        seen = np.zeros((len(rows), len(MAZE_PLANES), self.size * self.size), dtype=np.uint8)
        each = np.arange(len(rows))
        seen[each, 0, cells[0]] = 1
        seen[:, 1] = walls
        seen[each, 5 + colours[0]] = walls
        for plane, cell, colour in ((2, 1, 1), (3, 2, 1), (4, 3, 2)):
            seen[each, plane, cells[cell]] = 1
            seen[each, 5 + colours[colour], cells[cell]] = 1
        self._seen[rows] = seen


def maze_env(levels: Sequence[int], **options: Any) -> Any:
    """Returns a ``gymnasium.Env`` of mazes: at each reset a level that is drawn from these.

    Observations are uint8 ``(8, size, size)``; ``info`` has the level. For many episodes at once ``KeyMazes`` is many
    times faster.

    Args:
        levels: to draw from.
        options: of ``KeyMazes``, but for ``envs``, ``seed`` and ``levels``.

    Raises:
        MissingExtraError: gymnasium is not installed.
        ValueError, TypeError: as for ``KeyMazes``.

    Example:
        >>> env = maze_env(range(10))  # doctest: +SKIP
        >>> observation, info = env.reset(seed=0)  # doctest: +SKIP
        >>> observation, reward, terminated, truncated, info = env.step(0)  # doctest: +SKIP
    """
    require("gymnasium")
    import gymnasium

    first = KeyMazes(levels, **options)  # refuses what is wrong with them now

    class MazeEnv(gymnasium.Env):  # type: ignore[misc, name-defined]
        metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

        def __init__(self) -> None:
            self.action_space = gymnasium.spaces.Discrete(len(MAZE_ACTIONS))
            shape = (len(MAZE_PLANES), first.size, first.size)
            self.observation_space = gymnasium.spaces.Box(0, 1, shape, dtype=np.uint8)
            self.mazes: KeyMazes | None = None

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
            super().reset(seed=seed)
            level = levels[int(self.np_random.integers(len(levels)))]
            self.mazes = KeyMazes([level], **given)
            return self.mazes.observations()[0].numpy(), {"level": level}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, int]]:
            if self.mazes is None:
                raise gymnasium.error.ResetNeeded("step: reset the environment first")
            done = self.mazes.step(torch.tensor([int(action)]))
            ends = bool(done.terminations[0]), bool(done.truncations[0])
            return done.observations[0].numpy(), done.rewards.item(), *ends, {"level": int(self.mazes.levels[0])}

    given = options
    return MazeEnv()
