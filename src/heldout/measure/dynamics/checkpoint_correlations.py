"""Core: Does a quantity that training shows follow one that it does not, over the checkpoints of a run?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from heldout.errors import check_at_least, check_nonempty, check_values, checked
from heldout.statistics import spearman


class CheckpointCorrelation(NamedTuple):
    """Spearman's correlations of one quantity over the checkpoints of a run; NaN where one side does not move.

    Attributes:
        target: with the target. Two quantities with a trend correlate, whether they have to do with each other or not.
        step: with the number of the step: the trend.
        differences: of the changes from one checkpoint to the next, which leave a common trend out.

    Example:
        >>> signs = [(-1) ** n for n in range(8)]  # two quantities that rise, and move against each other
        >>> records = [{"step": n, "norm": 5 * n + s, "accuracy": 5 * n - s} for n, s in enumerate(signs)]
        >>> found = checkpoint_correlations(records, ["norm"], target="accuracy")["norm"]
        >>> round(found.target, 6), round(found.step, 6), round(found.differences, 6)
        (1.0, 1.0, -1.0)
    """

    target: float
    step: float
    differences: float


@checked
def checkpoint_correlations(
    records: Sequence[Mapping[str, float]], names: Sequence[str], *, target: str, least: int = 5
) -> dict[str, CheckpointCorrelation]:
    """Returns the correlations of each named quantity with the target and with time, over checkpoints.

    Leave out the checkpoints before what is asked about begins: over a whole run all that has a trend correlates.

    Args:
        records: of checkpoints, in order, with entries ``step``, the target and all names.
        names: of the quantities.
        target: what they may follow, held-out accuracy, say.
        least: with fewer records than that (differences, than that and one more), correlations are NaN; at least 3.

    Raises:
        ValueError: no records or names, an entry that is missing or not finite.

    Example:
        >>> records = [{"step": n, "accuracy": n * n, "loss": -n, "flat": 1.0} for n in range(6)]
        >>> found = checkpoint_correlations(records, ["loss", "flat"], target="accuracy")
        >>> found["loss"], found["flat"].target
        (CheckpointCorrelation(target=-1.0, step=-1.0, differences=nan), nan)
    """
    check_at_least(3, least=least)
    check_nonempty(records=records, names=names)
    if missing := [name for name in ("step", target, *names) for record in records if name not in record]:
        raise ValueError(f"records must all have the entry {missing[0]!r}")
    seen = {name: np.array([record[name] for record in records], dtype=float) for name in {"step", target, *names}}
    check_values(**{f"records[...][{name!r}]": values for name, values in seen.items()})

    def between(first: np.ndarray, second: np.ndarray) -> float:
        return float(spearman(first, second)) if len(first) >= least else float("nan")

    return {
        name: CheckpointCorrelation(
            between(seen[name], seen[target]),
            between(seen[name], seen["step"]),
            between(np.diff(seen[name]), np.diff(seen[target])),
        )
        for name in names
    }
