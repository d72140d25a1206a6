"""Core: Rewards of routers: format, outcome and cost, in this order.

Source: Router-R1, arXiv:2506.09033 (section 3.2), with the window and the percentiles of its published code.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from heldout.errors import check_finite, checked
from heldout.lm import format_ok

_FLAT = 1e-8  # a narrower range of costs tells nothing


class CostReward:
    """A reward in [0, 1] that falls with the cost of an episode, on the scale of the costs that were seen lately.

    Costs are transformed to x; the reward is ``1 - clip((x - lo) / (hi - lo), 0, 1)`` with percentiles lo and hi of the
    last x, the new ones among them, and 0.5 where they do not differ. The window is state: keep it in checkpoints, and
    one for each process makes another reward.

    Args:
        window: costs that are remembered.
        low, high: percentiles, as fractions.
        transform: "sqrt", or "log" for ``log(1 + 0.01 cost)``.

    Raises:
        ValueError: bad percentiles or window; when called, costs that are negative or not finite.

    Example:
        >>> reward = CostReward()
        >>> reward([0.0, 1.0, 4.0]).round(3).tolist()
        [1.0, 0.5, 0.0]

    Source: arXiv:2506.09033, section 3.2.
    """

    @checked
    def __init__(
        self, window: int = 1000, low: float = 0.05, high: float = 0.95, transform: Literal["sqrt", "log"] = "sqrt"
    ) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        if not 0 <= low < high <= 1:
            raise ValueError(f"0 <= low < high <= 1 is needed, got {low} and {high}")
        if transform not in ("sqrt", "log"):
            raise ValueError(f"transform must be 'sqrt' or 'log', got {transform!r}")
        self.low, self.high, self.transform = low, high, transform
        self._seen: deque[float] = deque(maxlen=window)

    @checked
    def __call__(self, costs: Sequence[float] | np.ndarray) -> np.ndarray:
        """Returns the rewards of episodes, ``(n,)``; costs are tokens times price per million: millionths of money."""
        given = np.asarray(costs, float)
        if given.ndim != 1 or not np.isfinite(given).all() or (given < 0).any():
            raise ValueError("costs must be a list of finite numbers that are not negative")
        x = np.sqrt(given) if self.transform == "sqrt" else np.log1p(0.01 * given)
        self._seen.extend(x.tolist())
        if not len(x):
            return x
        lo, hi = np.quantile(np.array(self._seen), [self.low, self.high])
        if hi - lo < _FLAT:
            return np.full(len(x), 0.5)
        return 1 - np.clip((x - lo) / (hi - lo), 0, 1)

    def state_dict(self) -> dict[str, Any]:
        """Returns the transformed costs in the window, oldest first."""
        return {"seen": list(self._seen), "window": self._seen.maxlen, "transform": self.transform}

    @checked
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes the window of another one.

        Raises:
            ValueError: if its costs were transformed in another way.
        """
        if state["transform"] != self.transform:
            raise ValueError(f"the state is of transform {state['transform']!r}, this is {self.transform!r}")
        self._seen = deque(state["seen"], maxlen=state["window"])


@checked
def format_reward(text: str, names: Sequence[str]) -> float:
    """Returns 0 where an episode has the form that ``heldout.lm.format_ok`` asks for, else -1.

    Example:
        >>> format_reward("<think> easy </think> <answer> 4 </answer>", []), format_reward("4", [])
        (0.0, -1.0)
    """
    return 0.0 if format_ok(text, names) else -1.0


@checked
def router_reward(format_score: float, outcome: float, cost_reward: float, alpha: float = 0.0) -> float:
    """Returns -1 for a bad format, 0 for a wrong answer, else ``(1 - alpha) outcome + alpha cost_reward``.

    Args:
        format_score: 0, or -1 where the format is bad.
        outcome: of the answer, in [0, 1]: exact match, or F1.
        cost_reward: in [0, 1].
        alpha: weight of the cost, in [0, 1].

    Raises:
        ValueError: alpha outside [0, 1], or a number that is not finite.

    Example:
        >>> router_reward(0, 1.0, 0.5, alpha=0.6), router_reward(0, 0.0, 1.0, alpha=0.6), router_reward(-1, 1.0, 1.0)
        (0.7, 0.0, -1.0)

    Source: arXiv:2506.09033, section 3.2; the order of the three is that of its code.
    """
    check_finite(format_score=format_score, outcome=outcome, cost_reward=cost_reward)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    if not all(map(math.isfinite, (format_score, outcome, cost_reward))):
        raise ValueError(f"rewards must be finite, got {format_score}, {outcome} and {cost_reward}")
    if format_score < 0:
        return -1.0
    return 0.0 if outcome <= 0 else (1 - alpha) * outcome + alpha * cost_reward
