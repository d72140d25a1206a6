"""How a model does on combinations of factors that it was not trained on, while it knew each of their values.

The factors are those that the file names: columns of values for the training set and for test sets. Source of the
split: arXiv:1912.09713 (Keysers et al.), atoms known, compounds new.
"""

from __future__ import annotations

from typing import Any

from heldout.audit.judging import Threshold
from heldout.audit.work import Audit, NotApplicableError
from heldout.data import factor_rows
from heldout.errors import check_same_length
from heldout.measure import composition_report
from heldout.statistics import Interval

LISTED = 10  # unseen combinations in the report, of each set


def compositions(work: Audit) -> None:
    """Adds, for each test set whose factors are given, what combinations cost that the training set does not hold."""
    factors, sets = work.problem.factors, work.problem.splits.test
    if not factors:
        raise NotApplicableError('the file names no factors = {"train": {"shape": [...], ...}, "<test set>": {...}}')
    if "train" not in factors:
        raise ValueError(f"factors must be given for train, got {', '.join(map(str, factors))}")
    if unknown := [name for name in factors if name not in ("train", *sets)]:
        raise ValueError(f"factors[{unknown[0]!r}] is of no test set: there are {', '.join(map(str, sets))}")
    names, rows = factor_rows(factors["train"], "factors['train']")
    check_same_length(**{"factors['train']": rows, "train": work.problem.splits.train})
    table: dict[str, Any] = {}
    work.document["compositions"] = table
    limits = Threshold(0.03, 0.1, "3 and 10 points of accuracy")
    for name in sets:
        if name not in factors:
            continue
        check_same_length(**{f"factors[{name!r}]": factor_rows(factors[name])[1], name: sets[name]})
        outputs, targets = work.of(name)
        found = composition_report(factors["train"], factors[name], outputs.argmax(1) == targets)
        worst = [
            {"combination": [str(value) for value in row], **_ends(share)}
            for row, share in list(found.by_combination.items())[:LISTED]
        ]
        kinds = {kind: getattr(found, kind) for kind in ("seen", "unseen", "unknown")}
        table[name] = {
            "factors": names,
            **found.counts,
            "accuracy": {kind: None if share is None else _ends(share) for kind, share in kinds.items()},
            "gap": None if found.gap is None else _ends(found.gap),
            "worst": worst,
        }
        counts = f"{found.counts['seen']} seen, {found.counts['unseen']} unseen"
        if found.counts["unknown"]:
            counts += f", {found.counts['unknown']} with a value that training never shows"
        if found.gap is None:
            reading = f"share of {name} whose combination of {', '.join(names)} is not in the training set ({counts})"
            total = sum(found.counts.values())
            work.finding(f"unseen combinations in {name}", 1 - found.counts["seen"] / total, reading)
            continue
        reading = (
            f"what a combination of {', '.join(names)} costs in {name} that the training set does not hold, though it "
            f"holds each value ({counts})"
        )
        if worst:
            reading += f"; the worst is {' '.join(worst[0]['combination'])}, {worst[0]['estimate']:.0%}"
        work.finding(
            f"accuracy: seen against unseen combinations, {name}", found.gap.estimate, reading,
            low=found.gap.low, high=found.gap.high, limits=limits, aim="shift",
            remedy="train on more combinations of the same values before more examples of the same combinations; "
            "heldout.data.hold_out_combinations makes validation data that select for it",
        )  # fmt: skip


def _ends(share: Interval) -> dict[str, Any]:
    return {"estimate": share.estimate, "low": share.low, "high": share.high}
