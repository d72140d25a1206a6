"""Which groups of a test set the model does worse for than for the rest, and what tells its errors.

The groups are the values of the factors that the file names for its test sets. Source of the protocol: arXiv:2402.10965
(Rahman et al.).
"""

from __future__ import annotations

from typing import Any

import torch

from heldout.audit.judging import Threshold
from heldout.audit.work import Audit, NotApplicableError
from heldout.data import factor_rows
from heldout.errors import check_same_length
from heldout.measure import gap_drivers, subgroup_report

MOST_GROUPS = 30  # values of a factor that are groups; beyond that it is a quantity, which may still tell errors
NAMED = 3  # groups of a test set that have a finding of their own


def subgroups(work: Audit) -> None:
    """Adds, for each test set whose factors are given, the groups whose accuracy lies below that of the rest."""
    factors, sets = work.problem.factors, work.problem.splits.test
    told = [name for name in sets if name in factors]
    if not told:
        raise NotApplicableError('the file names no factors = {"<test set>": {"site": [...], ...}} of its test sets')
    table: dict[str, Any] = {}
    work.document["subgroups"] = table
    limits = Threshold(0.03, 0.1, "3 and 10 points of accuracy")
    for name in told:
        outputs, targets = work.of(name)
        right = outputs.argmax(1) == targets
        names, rows = factor_rows(factors[name], f"factors[{name!r}]")
        check_same_length(**{f"factors[{name!r}]": rows, name: sets[name]})
        columns = dict(zip(names, (list(column) for column in zip(*rows, strict=True)), strict=True))
        grouped = {factor: column for factor, column in columns.items() if 1 < len(set(column)) <= MOST_GROUPS}
        if not grouped:
            continue
        report = subgroup_report(right.long(), torch.ones(len(right)), grouped, "accuracy", seed=work.seed)
        table[name] = {"groups": [{**row, "value": str(row["value"])} for row in report.records()], "drivers": []}
        behind = report.behind[:NAMED]
        drivers = []
        if behind:
            found = gap_drivers(~right, columns, model="boosting", repeats=2, seed=work.seed)
            drivers = [each.feature for each in found.drivers if each.drives]
            table[name]["drivers"] = [
                {"feature": each.feature, "importance": each.importance.estimate, "drives": each.drives}
                for each in found.drivers
            ]
        for group in behind:
            gap = group.gap
            assert gap is not None
            reading = (
                f"how much lower the accuracy of the {group.n} examples with {group.factor} {group.value} is than that "
                f"of the rest of {name}; the interval holds for all {report.comparisons} groups at once"
            )
            if drivers:
                reading += f". Errors are told by {', '.join(drivers)}"
            work.finding(
                f"accuracy on {name}: {group.factor} {group.value} against the rest", gap.estimate, reading,
                low=gap.low, high=gap.high, limits=limits,
                remedy="compare with how sure anybody could be there; then more examples of this group, or "
                "heldout.train.finetune_local for it",
            )  # fmt: skip
        worst = report.worst
        if not behind and worst is not None and worst.gap is not None:
            reading = (
                f"how much lower the lowest accuracy, of the {worst.n} examples with {worst.factor} {worst.value}, is "
                f"than that of the rest; no group of {report.comparisons} is below for certain"
            )
            work.finding(
                f"accuracy on {name}: lowest group", worst.gap.estimate, reading,
                low=worst.gap.low, high=worst.gap.high, limits=limits,
            )  # fmt: skip
