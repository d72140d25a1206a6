"""What runs cost, measured in the screening, and how many finalists the time that is left buys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from heldout.improve.plan import METHOD_COST, RATES_TRIED, SHARE, Plan
from heldout.improve.verdict import BASELINE

MOST_FINALISTS = 5


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
        """Returns what the confirmation costs: the baseline, the tuned one where rates are searched, and finalists.

        Args:
            rates: learning rates, as multiples of the recipe's; default: not known yet.
        """
        rates = rates or {}
        if rates:
            shared = list(dict.fromkeys([1.0, rates.get(BASELINE, 1.0)]))
        else:
            shared = [1.0] * (1 + (plan.trials > 0))
        seconds = len(shared) * (self.plain + self._tested(BASELINE))
        for name in finalists:
            seconds += self.own_training(name, rates.get(name, 1.0), shared) + self._tested(name)
        return plan.seeds * seconds

    def tuning(self, plan: Plan, finalists: Sequence[str]) -> float:
        """Returns what the search for learning rates costs; methods that act after training share the baseline's."""
        seconds = self.plain + self._selected(BASELINE)
        seconds += sum(self.own_training(name) + self._selected(name) for name in finalists)
        return plan.trials * RATES_TRIED * seconds

    def affordable(self, plan: Plan, ranked: Sequence[str], left: float) -> int:
        """Returns how many of the first candidates can be tuned and confirmed in ``left`` seconds; at least one."""
        for number in range(min(MOST_FINALISTS, len(ranked)), 1, -1):
            names = ranked[:number]
            if self.tuning(plan, names) + self.confirmation(plan, names) <= SHARE * left:
                return number
        return 1

    def confirmable(
        self, plan: Plan, finalists: Sequence[str], rates: Mapping[str, float], left: float
    ) -> Sequence[str]:
        """Returns the first of the finalists that can be confirmed in ``left`` seconds; at least one."""
        for number in range(len(finalists), 1, -1):
            if self.confirmation(plan, finalists[:number], rates) <= SHARE * left:
                return finalists[:number]
        return finalists[:1]

    def _selected(self, name: str) -> float:
        return self.inference.get(name, self.inference.get(BASELINE, 0.0))

    def _tested(self, name: str) -> float:
        return (1 + self.tests_share) * self._selected(name)
