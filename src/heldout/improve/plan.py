"""How a budget is spent: epochs, seeds and finalists of a search."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Plan:
    """How the budget is spent; kept in the output folder, so that a resumed search makes the same choices.

    Attributes:
        short_epochs: epochs of the first rung, under ``short_seeds`` seeds.
        long_epochs: epochs of the second rung and of the combinations, under ``long_seeds`` seeds.
        epochs: epochs of the confirmation, under ``seeds`` fresh seeds.
        finalists: how many candidates are confirmed beside the baseline.
    """

    short_epochs: int
    short_seeds: int
    long_epochs: int
    long_seeds: int
    epochs: int
    seeds: int
    finalists: int

    def cost(self, candidates: int, combinations: int) -> float:
        """Returns the expected cost in epochs of training, most of which a method makes 1.5 times as long."""
        short = (1 + 1.5 * candidates) * self.short_epochs * self.short_seeds
        kept = math.ceil(candidates / 2)
        long = (1 + 1.5 * kept + 2.0 * combinations) * self.long_epochs * self.long_seeds
        return short + long + (1 + 1.8 * self.finalists) * self.epochs * self.seeds


def make_plan(epochs: int, seeds: int, candidates: int, combinations: int, affordable: float) -> Plan:
    """Returns the most thorough plan that costs at most ``affordable`` epochs of training.

    The number of screening seeds goes first, then finalists, then confirmation seeds (not below 3), then epochs.
    """
    short, long = max(1, round(epochs / 4)), max(1, round(epochs / 2))
    plans = [
        Plan(short, 2, long, 3, epochs, seeds, 3),
        Plan(short, 2, long, 2, epochs, seeds, 2),
        Plan(short, 1, long, 2, epochs, seeds, 2),
        Plan(short, 1, short, 1, epochs, seeds, 1),
        Plan(short, 1, short, 1, epochs, min(seeds, 3), 1),
    ]
    for plan in plans:
        if plan.cost(candidates, combinations) <= affordable:
            return plan
    smallest = plans[-1]
    share = affordable / smallest.cost(candidates, combinations)
    brief = max(1, int(smallest.short_epochs * share))
    return replace(smallest, short_epochs=brief, long_epochs=brief, epochs=max(1, int(epochs * share)))
