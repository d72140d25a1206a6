"""What the confirmation shows: gains with intervals, one word for each, and the sentence at the top of the report.

A verdict needs a confirmation that is finished, on at least three fresh seeds, with the training that the user's recipe
says. Intervals are adjusted for the number of finalists (Bonferroni). A method *helps* where its whole interval lies
above zero against the recipe as given and, where better settings were found for it, against the tuned recipe; not where
all of it is too small to matter, and not where the gain is of a few examples, the same on every seed: an interval
without width proves nothing. The winner helps where that was asked for and hurts nowhere that was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from heldout.errors import check_at_least, check_nonempty, checked
from heldout.improve.plan import FEWEST_SEEDS
from heldout.problem import no_difference
from heldout.report import Scale, number
from heldout.statistics import interval
from heldout.study import Results, samples_needed

BASELINE, TUNED = "baseline", "tuned baseline"
SHIFTED = "mean of shifts"
SETTINGS = "settings"  # the rung whose candidates are a method under several of them
HELPS, HURTS, SAME, OPEN = "helps", "hurts", "no difference", "not decided"
AS_TUNED, BELOW_TUNED = "as tuned", "below tuned"  # better than the recipe as given, but not than the tuned baseline


@checked
def compare(
    results: Results,
    finalists: Sequence[str],
    tests: Sequence[str],
    *,
    maximise: bool,
    metric: str,
    seeds: int,
    ranked: bool = False,
) -> dict[str, Any]:
    """Returns ``{"baseline", "tuned", "finalists", "unfinished"}`` of a confirmation.

    Args:
        results: runs of the arms ``baseline``, ``tuned baseline`` (where there is one) and the finalists.
        finalists: names of arms.
        tests: names of test sets, the given distribution first.
        maximise: whether more of the metric is better.
        metric: its name.
        seeds: that the confirmation was to have.
        ranked: the finalists come best first; else their validation scores in the confirmation rank them.

    Example:
        >>> from heldout.study import Study, run_study
        >>> def run(arm, seed, profile):
        ...     score = arm["score"] + 0.001 * seed * arm["score"]
        ...     return {"validation": score, "test iid": score, "training seconds": 1.0, "inference seconds": 1.0}
        >>> metrics = dict.fromkeys(("validation", "test iid", "training seconds", "inference seconds"), "higher")
        >>> results = run_study(Study("demo", {"baseline": {"score": 0.7}, "sam": {"score": 0.8}}, run, metrics))
        >>> found = compare(results, ["sam"], ["iid"], maximise=True, metric="accuracy", seeds=5)
        >>> found["finalists"][0]["tests"]["iid"]["verdict"], found["unfinished"]
        ('helps', [])
    """
    check_nonempty(finalists=finalists, tests=tests)
    check_at_least(1, seeds=seeds)
    finished = {arm: len(results.metric(arm, "validation")) >= max(seeds, FEWEST_SEEDS) for arm in results.arms}
    references = [arm for arm in (BASELINE, TUNED) if arm in results.arms]
    judged = [name for name in finalists if finished[name] and all(finished[arm] for arm in references)]
    rows = [_row(results, name, references, tests, maximise, metric, len(finalists)) for name in judged]
    if not ranked:
        rows.sort(key=lambda row: row["validation"], reverse=maximise)
    scores = {arm: _scores(results, arm, tests) for arm in references}
    return {
        "baseline": scores[BASELINE],
        "tuned": scores.get(TUNED),
        "finalists": rows,
        "unfinished": [name for name in finalists if name not in {row["method"] for row in rows}],
    }


def _scores(results: Results, arm: str, tests: Sequence[str]) -> dict[str, Any]:
    validation = results.metric(arm, "validation")
    return {
        "method": arm,
        "validation": _mean(validation),
        "tests": {name: {"score": _mean(results.metric(arm, f"test {name}"))} for name in tests},
        "seeds": len(validation),
    }


def _mean(values: Mapping[int, float]) -> float | None:
    return float(np.mean(list(values.values()))) if values else None


def _row(
    results: Results,
    name: str,
    references: Sequence[str],
    tests: Sequence[str],
    maximise: bool,
    metric: str,
    finalists: int,
) -> dict[str, Any]:
    seeds = sorted(set.intersection(*(set(results.metric(arm, "validation")) for arm in (name, *references))))

    def values(arm: str, metric: str) -> np.ndarray:
        found = results.metric(arm, metric)
        return np.array([found[seed] for seed in seeds])

    def scores(arm: str) -> dict[str, np.ndarray]:
        sets = {test: values(arm, f"test {test}") for test in tests}
        if len(tests) > 1:
            sets[SHIFTED] = np.mean([sets[test] for test in tests[1:]], axis=0)
        return sets

    own, others = scores(name), {arm: scores(arm) for arm in references}
    sign, confidence = 1.0 if maximise else -1.0, 1 - 0.05 / finalists
    row: dict[str, Any] = {
        "method": name,
        "validation": float(values(name, "validation").mean()),
        "seeds": len(seeds),
        "tests": {},
    }
    for test, score in own.items():
        differences = {arm: sign * (score - other[test]) for arm, other in others.items()}
        gains = {arm: interval([each], confidence=confidence) for arm, each in differences.items()}
        entry = {
            "score": float(score.mean()),
            "baseline": float(others[BASELINE][test].mean()),
            **{
                key: getattr(gains[BASELINE], part)
                for key, part in (("gain", "estimate"), ("low", "low"), ("high", "high"))
            },
        }
        if TUNED in gains:
            tuned = gains[TUNED]
            entry |= {"tuned_gain": tuned.estimate, "tuned_low": tuned.low, "tuned_high": tuned.high}
        entry["no_difference"] = no_difference(metric, entry["baseline"])
        entry["verdict"], entry["seeds_needed"] = _word(entry, metric, len(seeds))
        row["tests"][test] = entry
    for cost in ("training", "inference"):  # medians: one run beside another job must not decide
        own_seconds, plain = (np.median(values(arm, f"{cost} seconds")) for arm in (name, BASELINE))
        row[f"{cost}_cost"] = float(own_seconds / plain) if plain > 0 else 1.0
    return row


def _negligible(metric: str, baseline: float) -> float:
    """A change up to this is none worth telling: what counts as none, and a tenth of the errors of an accuracy."""
    least = no_difference(metric, baseline)
    return min(least, 0.1 * max(0.0, 1 - baseline)) if metric == "accuracy" else least


def _word(entry: Mapping[str, Any], metric: str, seeds: int) -> tuple[str, int | None]:
    """The word for a gain, and about how many seeds would decide it where it is open."""
    parts = [("gain", "low", "high")] + ([("tuned_gain", "tuned_low", "tuned_high")] if "tuned_gain" in entry else [])
    found = [tuple(float(entry[key]) for key in keys) for keys in parts]
    rounding, none = 1e-9 * max(1.0, abs(entry["baseline"])), entry["no_difference"]
    if all(high - low <= rounding and abs(gain) <= none for gain, low, high in found):
        return SAME, None  # the same few examples on each seed: an interval without width proves nothing
    small = _negligible(metric, entry["baseline"])
    if all(low > rounding for _, low, _ in found):
        return (SAME if all(high <= small for _, _, high in found) else HELPS), None
    if found[0][2] < -rounding:
        return (SAME if found[0][1] >= -small else HURTS), None
    if len(found) > 1 and found[1][2] < -rounding:
        return BELOW_TUNED, None
    if found[0][1] > rounding and max(map(abs, found[-1][1:])) <= none:
        return AS_TUNED, None
    if all(max(abs(low), abs(high)) <= none for _, low, high in found):
        return SAME, None
    needed = 0
    for gain, low, high in found:
        if low > 0:
            continue
        distance = max(abs(gain), none - abs(gain))
        number = samples_needed(distance, low, high, seeds)
        if number is None:
            return OPEN, None
        needed = max(needed, number, seeds + 1)
    return OPEN, needed


def sentence(found: Mapping[str, Any], tests: Sequence[str], aim: str, metric: str) -> tuple[str, str | None]:
    """Returns the verdict in words, and the winner: of the finalists that are shown to help, the best by validation.

    Intervals are adjusted for the number of finalists, so that any of them may be told to help. What hurts the recipe
    as given where it was asked to help is no winner. Without one, the finalist told of is the best by validation, or
    another one that more seeds could still show to help.
    """
    rows = found["finalists"]
    if found["unfinished"] or not rows:
        names = ", ".join(found["unfinished"])
        return f"No verdict: the confirmation of {names} is not finished. Run the same command again to go on.", None
    proven = [row for row in rows if _wanted(row, tests, aim)]
    if proven:
        return _won(proven[0], tests, amounts(metric)), proven[0]["method"]
    mixed = [row for row in rows if aim == "both" and any(entry["verdict"] == HELPS for entry, _ in _asked(row, tests))]
    if mixed:
        told = _told(_asked(mixed[0], tests), amounts(metric))
        return f"No winner: {trained_as(mixed[0])} helps on one side alone: {told}. --for decides which counts.", None
    return _undecided(rows, tests, aim, amounts(metric)), None


def _won(row: Mapping[str, Any], tests: Sequence[str], amount: amounts) -> str:
    asked = _asked(row, tests)
    where = [f"{_gained(entry, amount)} on {title}" for entry, title in asked if entry["verdict"] == HELPS]
    rest = [f"{_other(entry, amount)} on {title}" for entry, title in asked if entry["verdict"] != HELPS]
    rest += [f"{_other(entry, amount)} on {title}" for entry, title in _single(row, tests) if entry["verdict"] == HURTS]
    return f"{trained_as(row)} helps: {', '.join(where)}" + (f"; {'; '.join(rest)}" if rest else "") + "."


def _undecided(rows: Sequence[Mapping[str, Any]], tests: Sequence[str], aim: str, amount: amounts) -> str:
    """The sentence where nothing is shown to help."""
    best = rows[0]
    for entry, title in _asked(best, tests, aim):
        if "tuned_low" in entry and entry["low"] > 0 and entry["verdict"] != OPEN:
            return (
                f"{trained_as(best)} helps the recipe as given, {amount(entry)} on {title}, but not beyond the tuned "
                f"baseline ({amount(entry, 'tuned_')}): tune that first."
            )
    told = _told(_asked(best, tests, aim), amount)
    apart = [each for each in _single(best, tests) if each[0]["verdict"] in (HELPS, HURTS)] if aim != "iid" else []
    first = f"{trained_as(best)}, the best by validation: {told}" + (f" ({_told(apart, amount)})" if apart else "")
    for row in rows:
        open_ones = [entry for entry, _ in _asked(row, tests, aim) if entry["verdict"] == OPEN]
        if not open_ones or (row is not best and not any(map(_promising, open_ones))):
            continue
        numbers = [entry["seeds_needed"] for entry in open_ones]
        seeds = "more than 200" if None in numbers else f"about {max(numbers)}"
        if row is best:
            return f"Not decided: {first}. {seeds.capitalize()} seeds would decide."
        told = _told(_asked(row, tests, aim), amount)
        return f"Not decided: {trained_as(row)}: {told}. {seeds.capitalize()} seeds would decide. {first}."
    return f"No method is shown to help: {first}."


def trained_as(row: Mapping[str, Any]) -> str:
    """Returns the name of a finalist, and its learning rate where that is not the recipe's.

    Example:
        >>> trained_as({"method": "swa", "rate": 3.162})
        'swa at 3.16 x the learning rate'
    """
    rate = row.get("rate", 1.0)
    return row["method"] + (f" at {rate:.3g} x the learning rate" if rate != 1.0 else "")


def _single(row: Mapping[str, Any], tests: Sequence[str]) -> list[tuple[Mapping[str, Any], str]]:
    """The gains on each shifted test set, where there are several."""
    return [(row["tests"][name], name) for name in tests[1:]] if len(tests) > 2 else []


def _promising(entry: Mapping[str, Any]) -> bool:
    """Whether a gain that is open would matter if it is what it seems, and can be decided."""
    gains = [entry["gain"], entry.get("tuned_gain", entry["gain"])]
    return entry["seeds_needed"] is not None and min(gains) > entry["no_difference"]


def _asked(row: Mapping[str, Any], tests: Sequence[str], aim: str = "both") -> list[tuple[Mapping[str, Any], str]]:
    """The gains on what was asked for, the given and the shifted data, with what they are called."""
    shifted = row["tests"].get(SHIFTED)
    found = [(row["tests"][tests[0]], tests[0])] if aim != "shift" or not shifted else []
    return found + ([(shifted, "shifted data")] if shifted and aim != "iid" else [])


def _wanted(row: Mapping[str, Any], tests: Sequence[str], aim: str) -> bool:
    words = [entry["verdict"] for entry, _ in _asked(row, tests, aim)]
    return HELPS in words and HURTS not in words


def _told(entries: Sequence[tuple[Mapping[str, Any], str]], amount: amounts) -> str:
    return "; ".join(f"{_other(entry, amount)} on {title}" for entry, title in entries)


def _gained(entry: Mapping[str, Any], amount: amounts) -> str:
    """A gain over the recipe as given, and over the tuned one where there is one."""
    tuned = f" ({amount(entry, 'tuned_')} over the tuned baseline)" if "tuned_gain" in entry else ""
    return amount(entry) + tuned


def _other(entry: Mapping[str, Any], amount: amounts) -> str:
    if entry["verdict"] == HELPS:
        return _gained(entry, amount)
    if entry["verdict"] == HURTS:
        return f"it hurts, {amount(entry)}"
    if entry["verdict"] in (AS_TUNED, BELOW_TUNED):
        less = "no more than" if entry["verdict"] == AS_TUNED else "less than"
        return f"{less} the tuned baseline, {amount(entry, 'tuned_')}"
    if entry["verdict"] == SAME:
        return f"no difference beyond {amount.size(entry['no_difference'])}"
    return f"open, {_gained(entry, amount)}"


class amounts:  # noqa: N801 - called like a function
    """Writes gains with their intervals: accuracies in points, other metrics as they are.

    Example:
        >>> amounts("accuracy")({"gain": 0.0213, "low": 0.01, "high": 0.0326})
        '+2.1 points [+1.0, +3.3]'
        >>> amounts("mse")({"gain": 2.78e-17, "low": 0.0, "high": 0.5})
        '0.00 [0.00, +0.50]'
    """

    def __init__(self, metric: str) -> None:
        self._scale = Scale(metric)
        self._points = f" {self._scale.points}" if self._scale.points else ""

    def __call__(self, entry: Mapping[str, Any], prefix: str = "") -> str:
        gain, low, high = self._scale.gains(entry, prefix)
        return f"{gain}{self._points} [{low}, {high}]"

    def size(self, value: float) -> str:
        """A size without a sign."""
        text = number(self._scale.unit * value, 3)
        return text + (self._points[:-1] if text == "1" else self._points)


def accounted(
    known: Sequence[str],
    skipped: Mapping[str, str],
    rungs: Sequence[Mapping[str, Any]],
    found: Mapping[str, Any],
    failed: Mapping[str, str],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Returns what became of every method: ``{"method", "status", "detail"}``.

    ``status`` is "confirmed", "not confirmed" (a finalist whose confirmation is unfinished), "screened", "failed",
    "not tried" or "not applicable". A finalist under other settings than its own is told by the name it was tried as.
    """
    tried_as = {name: each["of"] for name, each in (settings or {}).items()}
    confirmed, unfinished = {}, {}
    for row in found.get("finalists", []):
        name = tried_as.get(row["method"], row["method"])
        confirmed[name] = f"{row['seeds']} seeds" + (f", as {row['method']}" if name != row["method"] else "")
    for arm in found.get("unfinished", []):
        unfinished[tried_as.get(arm, arm)] = failed.get(arm, "the budget ended before its confirmation did")
    screened: dict[str, str] = {}
    for rung in rungs:
        for entry in rung["candidates"] if not rung["title"].startswith(SETTINGS) else ():
            if entry["seeds"]:
                count = f"{entry['seeds']} seed{'s' * (entry['seeds'] > 1)}"
                screened[entry["method"]] = f"{rung['epochs']} epochs on {count}"
    rows = []
    for name in dict.fromkeys([*known, *confirmed, *unfinished, *screened]):
        if name in confirmed:
            status, detail = "confirmed", confirmed[name]
        elif name in unfinished:
            status, detail = "not confirmed", unfinished[name]
        elif name in skipped:
            status, detail = "not applicable", skipped[name]
        elif name in screened:
            status, detail = "screened", screened[name]
        elif name in failed:
            status, detail = "failed", failed[name]
        else:
            status, detail = "not tried", "the budget did not allow it"
        rows.append({"method": name, "status": status, "detail": detail})
    return rows


def ranking(entries: list[dict[str, Any]], step: float) -> list[dict[str, Any]]:
    """Returns candidates, best first: by gain in steps of the resolution below the best, then by validation loss."""
    scored = [entry for entry in entries if entry["gain"] is not None]
    best = max((entry["gain"] for entry in scored), default=0.0)

    def key(entry: dict[str, Any]) -> tuple[float, float, float]:
        below = best - entry["gain"]
        entry["tier"] = math.floor(below / step + 1e-9) if step else below
        return entry["tier"], -entry["loss_gain"], below

    return sorted(scored, key=key) + [entry for entry in entries if entry["gain"] is None]
