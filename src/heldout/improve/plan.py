"""How a budget is spent: planned backwards from a confirmation that is never shortened."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from heldout.errors import check_at_least, check_fields, check_nonnegative, checked

FEWEST_SEEDS = 3
SEEDS = 5  # that are planned for where their number is not asked for
METHOD_COST, COMBINATION_COST = 1.5, 2.0  # training with a method over training without, before anything is measured
AFTER_COST = 0.15  # the same for a method that acts after the plain training, which the baseline has paid for
SHARE = 0.8  # of the budget that a plan spends: timings are estimates


@dataclass(frozen=True)
class Plan:
    """How the budget is spent; kept in the output folder, so that a resumed search makes the same choices.

    Attributes:
        screened: how many methods are sure to be screened, those that act after training first, the others in the
            order given; where runs turn out to be quicker than expected, more are.
        short_epochs: epochs of the first rung, under ``short_seeds`` seeds; 0 where there is nothing to choose.
        long_epochs: epochs of the second rung and of the combinations, under ``long_seeds`` seeds; 0 without.
        trials: seeds of each trial in the search for settings; 0 without.
        epochs: epochs of the confirmation, always those of the recipe.
        seeds: fresh seeds of the confirmation.
        finalists: how many candidates are confirmed beside the baseline.
        after: how many of the methods screened act after training; where there is a second rung, they start in it.
        settings: trials of the baseline and of each finalist in that search, the recipe itself among them.

    Example:
        >>> plan = Plan(screened=1, short_epochs=0, short_seeds=0, long_epochs=0, long_seeds=0, trials=0, epochs=10,
        ...             seeds=3, finalists=1)
        >>> plan.cost()  # epochs of plain training: 30 of the baseline, and 1.8 times as many of the method
        84.0
    """

    screened: int
    short_epochs: int
    short_seeds: int
    long_epochs: int
    long_seeds: int
    trials: int
    epochs: int
    seeds: int
    finalists: int
    after: int = 0
    settings: int = 5

    def __post_init__(self) -> None:
        check_fields(self)

    def confirmation(self) -> float:
        """Returns the expected cost of the confirmation, in epochs of plain training; a tuned baseline counts too."""
        arms = 1 + (self.trials > 0) + METHOD_COST * 1.2 * self.finalists
        return arms * self.epochs * self.seeds

    def tuning(self) -> float:
        """Returns the expected cost of the search for settings; what looks best runs once more beside the recipe."""
        return (self.settings + 1) * self.trials * self.epochs * (1 + METHOD_COST * self.finalists)

    @checked
    def screening(self, combinations: int) -> float:
        """Returns the expected cost of both rungs and the combinations."""
        check_at_least(0, combinations=combinations)
        training, after = self.screened - self.after, AFTER_COST * self.after
        short = (1 + METHOD_COST * training + after * (not self.long_epochs)) * self.short_epochs * self.short_seeds
        kept = METHOD_COST * math.ceil(training / 2) + COMBINATION_COST * combinations
        long = (1 + kept + after) * self.long_epochs * self.long_seeds
        return short + long

    @checked
    def cost(self, combinations: int = 0) -> float:
        """Returns the expected cost of everything."""
        return self.screening(combinations) + self.tuning() + self.confirmation()

    @checked
    def text(self, seconds_per_epoch: float, combinations: int, workers: int = 1) -> str:
        """Returns what it buys, in words."""
        check_at_least(0, combinations=combinations)
        check_at_least(1, workers=workers)
        check_nonnegative(seconds_per_epoch=seconds_per_epoch)
        total = self.cost(combinations) * seconds_per_epoch / workers
        screened = f"{self.screened} methods screened, " if self.short_epochs else ""
        searched = f"{self.settings} settings of each searched, " if self.trials else ""
        return (
            f"{self.epochs} epochs take about {_time(self.epochs * seconds_per_epoch)} a run; {screened}{searched}"
            f"{self.finalists} finalist{'s' * (self.finalists > 1)} on {self.seeds} seeds: about {_time(total)}"
        )


@checked
def make_plan(
    epochs: int, seeds: int, candidates: int, combinations: int, affordable: float, *, after: int = 0
) -> Plan | None:
    """Returns the most thorough plan that costs at most ``affordable`` epochs of training, None where there is none.

    The confirmation is planned first: the baseline and at least one finalist, for all of the recipe's epochs, on at
    least 3 seeds. No method goes there from shorter training than the recipe's: what helps a model that is half trained
    is often not what helps it in the end. Given up in turn: screening seeds, combinations, finalists, the search for
    settings, confirmation seeds down to 3, and then methods that are tried, those that act after training last.

    Args:
        epochs: of the user's recipe.
        seeds: of the confirmation, as asked for: 3 or more.
        candidates: methods that apply.
        combinations: pairs (or more) of methods that would be screened.
        affordable: epochs of plain training that the budget allows.
        after: how many of the candidates act after training.

    Raises:
        ValueError: numbers out of range.

    Example:
        >>> rich, poor = (make_plan(10, seeds=5, candidates=8, combinations=0, affordable=a) for a in (1000.0, 100.0))
        >>> (rich.screened, rich.finalists, rich.seeds), (poor.screened, poor.finalists, poor.seeds)
        ((8, 3, 5), (1, 1, 3))
        >>> make_plan(10, seeds=5, candidates=8, combinations=0, affordable=50.0) is None
        True
    """
    check_at_least(1, epochs=epochs, candidates=candidates)
    check_at_least(FEWEST_SEEDS, seeds=seeds)
    check_at_least(0, combinations=combinations, after=after)
    half = max(1, round(epochs / 2))
    if candidates == 1:  # nothing to choose
        plans = [
            Plan(1, 0, 0, 0, 0, trials, epochs, seeds, 1, after, more) for trials, more in ((1, 8), (1, 5), (0, 5))
        ]
        few = plans[-1]
    else:
        full = Plan(candidates, epochs, 1, 0, 0, 1, epochs, seeds, 2, after)
        few = replace(full, trials=0, finalists=1)
        plans = [
            Plan(candidates, half, 2, epochs, 2, 1, epochs, seeds, min(3, candidates), after, 8),
            Plan(candidates, half, 1, epochs, 2, 1, epochs, seeds, min(3, candidates), after, 6),
            Plan(candidates, half, 1, epochs, 1, 1, epochs, seeds, 2, after),
            full,
            replace(full, finalists=1),
            few,
        ]
    plans += [replace(few, seeds=number) for number in range(seeds - 1, FEWEST_SEEDS - 1, -1)]
    for plan in plans:
        if plan.cost(combinations if plan.long_epochs else 0) <= affordable:
            return plan
    smallest = plans[-1]
    for screened in range(candidates - 1, 0, -1):
        plan = replace(smallest, screened=screened, after=min(after, screened))
        if screened == 1:
            plan = replace(plan, short_epochs=0)
        if plan.cost() <= affordable:
            return plan
    return None


@checked
def least_seconds(epochs: int, seconds_per_epoch: float, workers: int = 1) -> float:
    """Returns the smallest budget that can end in a verdict: one method against the baseline on three seeds.

    Args:
        epochs: of the user's recipe.
        seconds_per_epoch: of plain training.
        workers: processes that train at a time.

    Raises:
        ValueError: numbers out of range.

    Example:
        >>> round(least_seconds(epochs=10, seconds_per_epoch=2.0))  # 84 epochs are 80 % of it
        210
    """
    check_at_least(1, epochs=epochs, workers=workers)
    check_nonnegative(seconds_per_epoch=seconds_per_epoch)
    smallest = Plan(1, 0, 0, 0, 0, 0, epochs, FEWEST_SEEDS, 1)
    return smallest.cost() * seconds_per_epoch / SHARE / workers


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{math.ceil(seconds / 60)} min"
