"""What accuracy can be had for what cost, among systems that were measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from heldout.errors import checked


@dataclass(frozen=True)
class CostFrontier:
    """The systems that no other beats in both cost and score.

    Attributes:
        points: ``(cost, score)``, in the order of cost; both rise.
        names: of the systems, where they had some, else their numbers.
        area: mean over costs from 0 to ``max_cost`` of the best score that can be had for no more.
        max_cost: up to which the area reaches.

    Example:
        >>> found = cost_frontier([(1.0, 0.5), (3.0, 0.9)], max_cost=2.0)
        >>> found.points, found.names, found.area  # half of the costs up to 2 buy 0.5
        (((1.0, 0.5), (3.0, 0.9)), ('0', '1'), 0.25)
    """

    points: tuple[tuple[float, float], ...]
    names: tuple[str, ...]
    area: float
    max_cost: float


@checked
def cost_frontier(
    points: Mapping[str, tuple[float, float]] | Sequence[tuple[float, float]], *, max_cost: float | None = None
) -> CostFrontier:
    """Returns the Pareto set of ``(cost, score)`` points, and the area under its steps.

    Below the cheapest point the best score is 0. The area has the unit of the scores, so that frontiers compare if they
    reach to the same cost.

    Args:
        points: of the systems, by name or in a list; cost in any unit, a higher score is better.
        max_cost: up to which the area reaches; default the largest cost. Dearer systems do not count in it.

    Raises:
        ValueError: no point, a cost or score that is negative or not finite.

    Example:
        >>> found = cost_frontier({"small": (1.0, 0.4), "large": (4.0, 0.8), "bad": (2.0, 0.3)})
        >>> found.names, round(found.area, 3)
        (('small', 'large'), 0.3)
    """
    named = dict(points) if isinstance(points, Mapping) else {str(number): point for number, point in enumerate(points)}
    if not named:
        raise ValueError("cost_frontier needs at least one point, got none")
    for name, point in named.items():
        if len(point) != 2 or not all(math.isfinite(value) and value >= 0 for value in point):
            raise ValueError(f"point {name} must be a cost and a score, finite and not negative, got {point}")
    end = max(cost for cost, _ in named.values()) if max_cost is None else max_cost
    if not (math.isfinite(end) and end >= 0):
        raise ValueError(f"max_cost must be finite and not negative, got {max_cost}")
    kept: list[tuple[str, float, float]] = []
    for name, (cost, score) in sorted(named.items(), key=lambda item: (item[1][0], -item[1][1])):
        if not kept or score > kept[-1][2]:
            kept.append((name, float(cost), float(score)))
    within = [(cost, score) for _, cost, score in kept if cost <= end]
    if end == 0:
        area = max((score for _, score in within), default=0.0)
    else:
        stops = [cost for cost, _ in within[1:]] + [end]
        area = sum(score * (stop - cost) for (cost, score), stop in zip(within, stops, strict=False)) / end
    return CostFrontier(tuple((cost, score) for _, cost, score in kept), tuple(name for name, *_ in kept), area, end)
