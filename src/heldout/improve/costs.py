"""What runs cost, measured in the screening, and how many finalists and seeds the time that is left buys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from heldout.improve.plan import FEWEST_SEEDS, METHOD_COST, SHARE, Plan
from heldout.improve.verdict import BASELINE

MOST_FINALISTS = 5
MOST_SEEDS = 10  # where their number is not asked for


@dataclass
class Costs:
    """Seconds of a run for all of the recipe's epochs.

    Attributes:
        plain: of training the baseline.
        after: methods that act after training, which share the baseline's.
        tests_share: examples of the tests, as a multiple of those that candidates are selected on.
        training: by method, where it was measured.
        inference: on what candidates are selected on, by method and for the baseline.
    """

    plain: float
    after: frozenset[str] = frozenset()
    tests_share: float = 1.0
    training: dict[str, float] = field(default_factory=dict)
    inference: dict[str, float] = field(default_factory=dict)

    def own_training(self, method: str, rate: float = 1.0, shared_rates: Sequence[float] = (1.0,)) -> float:
        """Returns what training costs that no other arm has paid for: none after the plain one of the same rate."""
        if method in self.after:
            return 0.0 if rate in shared_rates else self.plain
        return self.training.get(method, METHOD_COST * self.plain)

    def confirmation(self, plan: Plan, finalists: Sequence[str], rates: Mapping[str, float] | None = None) -> float:
        """Returns what the confirmation costs: the baseline, the tuned one if there is one, and the finalists.

        Args:
            rates: learning rates, as multiples of the recipe's, of the finalists and of the tuned baseline if there is
                one; default: not known yet, a search for settings is expected to find one.
        """
        tuned = plan.trials > 0 if rates is None else BASELINE in rates
        rates = rates or {}
        shared = [1.0, *([rates.get(BASELINE, 1.0)] if tuned else [])]
        seconds = len(shared) * (self.plain + self._tested(BASELINE))
        for name in finalists:
            seconds += self.own_training(name, rates.get(name, 1.0), shared) + self._tested(name)
        return plan.seeds * seconds

    def tuning(self, plan: Plan, finalists: Sequence[str]) -> float:
        """Returns what the search for settings costs; methods that act after training share the baseline's."""
        seconds = self.plain + self._selected(BASELINE)
        seconds += sum(self.own_training(name) + self._selected(name) for name in finalists)
        return plan.trials * (plan.settings + 1) * seconds

    def affordable(self, plan: Plan, ranked: Sequence[str], left: float, *, asked: int | None = None) -> list[str]:
        """Returns the candidates that can be tuned and then confirmed in ``left`` seconds.

        The first ones where there is time for several, else the first one that three seeds of can be paid for.

        Args:
            asked: seeds of the confirmation, where the user says them.
        """
        for number in range(min(MOST_FINALISTS, len(ranked)), 1, -1):
            names = list(ranked[:number])
            if self._seeds(plan, names, SHARE * left - self.tuning(plan, names), None, asked):
                return names
        least = replace(plan, trials=0, seeds=asked or FEWEST_SEEDS)
        paid = (name for name in ranked if self.confirmation(least, [name]) <= SHARE * left)
        return list(ranked[:1]) if (name := next(paid, None)) is None else [name]

    def tunable(self, plan: Plan, finalists: Sequence[str], left: float) -> bool:
        """Returns whether a search for settings leaves time for the plan's confirmation."""
        return self.tuning(plan, finalists) + self.confirmation(plan, finalists) <= left

    def confirmable(
        self,
        plan: Plan,
        finalists: Sequence[str],
        rates: Mapping[str, float],
        left: float,
        *,
        asked: int | None = None,
    ) -> tuple[list[str], int]:
        """Returns the first of the finalists that can be confirmed in ``left`` seconds, at least one, and their seeds.

        As many finalists as leave seeds enough for each: a gain as large as the standard deviation of the differences
        between seeds must be decided. Then as many seeds as there is time for, up to ten. All of it by cost alone,
        before anything of the confirmation is seen.

        Args:
            asked: seeds of the confirmation, where the user says them.
        """
        for number in range(len(finalists), 1, -1):
            if seeds := self._seeds(plan, finalists[:number], SHARE * left, rates, asked):
                return list(finalists[:number]), seeds
        if asked is not None:
            return list(finalists[:1]), plan.seeds
        affordable = int(SHARE * left / self.confirmation(replace(plan, seeds=1), finalists[:1], rates))
        return list(finalists[:1]), min(MOST_SEEDS, max(FEWEST_SEEDS, affordable))

    def _seeds(
        self, plan: Plan, names: Sequence[str], left: float, rates: Mapping[str, float] | None, asked: int | None
    ) -> int:
        """Seeds for several finalists; 0 where there are too few."""
        seconds = self.confirmation(replace(plan, seeds=1), names, rates)
        if asked is not None:
            return plan.seeds if plan.seeds * seconds <= left else 0
        seeds = min(MOST_SEEDS, int(left / seconds))
        return seeds if seeds >= FEWEST_SEEDS and half_width(seeds, len(names)) <= 1 else 0

    def _selected(self, name: str) -> float:
        return self.inference.get(name, self.inference.get(BASELINE, 0.0))

    def _tested(self, name: str) -> float:
        return (1 + self.tests_share) * self._selected(name)


def half_width(seeds: int, finalists: int) -> float:
    """Returns half the width of an adjusted 95 % interval, in standard deviations of the differences between seeds.

    Example:
        >>> round(half_width(5, 1), 2), round(half_width(9, 2), 2), round(half_width(3, 3), 2)
        (1.24, 0.92, 4.42)
    """
    from scipy.special import stdtrit

    return float(stdtrit(seeds - 1, 1 - 0.025 / finalists)) / math.sqrt(seeds)
