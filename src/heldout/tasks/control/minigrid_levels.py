"""Levels of minigrid as images of symbols, with bonuses on the way to a goal that is far for a short training."""

from __future__ import annotations

import functools
from typing import Any

from heldout.errors import check_at_least, check_nonnegative, checked, require


@checked
def door_key_env(*, size: int = 6, moves: int = 80, bonus: float = 0.5) -> Any:
    """Returns minigrid's DoorKey as a ``gymnasium.Env``: a key opens the door to the goal; its seed is its level.

    Observations are uint8 ``(7, 7, 3)``: object, colour and state of the cells ahead of the agent, which lies in the
    middle of one side and has what it carries where it is. There are 7 actions. The goal gives
    ``1 - 0.9 * actions / moves``. With a bonus it is another game than minigrid's, which is 0 until the goal.

    Args:
        size: cells of a side, walls included, 5 or more.
        moves: actions after which an episode is cut off.
        bonus: given for the first taking of the key and for the first opening of the door.

    Raises:
        MissingExtraError: minigrid is not installed.
        ValueError: options out of range.

    Source: arXiv:2306.13831 (minigrid).

    Example:
        >>> from heldout.tasks import GymLevels
        >>> world = GymLevels(lambda level: door_key_env(), range(3))  # doctest: +SKIP
        >>> world.reset().shape  # doctest: +SKIP
        torch.Size([3, 7, 7, 3])
    """
    check_at_least(5, size=size)
    check_at_least(1, moves=moves)
    check_nonnegative(bonus=bonus)
    made = require("minigrid.envs").DoorKeyEnv(size=size, max_steps=moves)
    return require("minigrid.wrappers").ImgObsWrapper(_with_bonus()(made, bonus))


@functools.cache
def _with_bonus() -> Any:
    class Bonus(require("gymnasium").Wrapper):  # type: ignore[misc]
        """Key and open door give something once."""

        def __init__(self, env: Any, bonus: float) -> None:
            super().__init__(env)
            self.bonus, self.left = bonus, {"key", "door"}

        def reset(self, **options: Any) -> Any:
            self.left = {"key", "door"}
            return self.env.reset(**options)

        def step(self, action: Any) -> Any:
            seen, reward, *rest = self.env.step(action)
            grid = self.unwrapped
            ahead = grid.grid.get(*grid.front_pos)
            found = {"key"} if grid.carrying is not None else set()
            if ahead is not None and ahead.type == "door" and ahead.is_open:
                found.add("door")
            reward += self.bonus * len(found & self.left)
            self.left -= found
            return seen, reward, *rest

    return Bonus
