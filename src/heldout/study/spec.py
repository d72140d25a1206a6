"""Study: what is compared (arms), how one run is made, what it measures, and what is claimed of it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from heldout.errors import check_fields
from heldout.study.claims import Claim
from heldout.study.text import plain_name

Direction = Literal["higher", "lower"]
higher_is_better: Direction = "higher"
lower_is_better: Direction = "lower"

Run = Callable[[dict[str, Any], int, str], Mapping[str, float]]

_SEEDS = {"smoke": 1, "laptop": 5}
_TIME_LIMIT = {"smoke": 60.0, "laptop": 600.0}


class StudyError(Exception):
    """A study that cannot be loaded, run or kept; the message is one line for the user.

    Example:
        >>> from heldout.study import load_study
        >>> load_study("nowhere.py")
        Traceback (most recent call last):
        heldout.study.spec.StudyError: there is no file nowhere.py
    """


@dataclass(frozen=True, eq=False)
class Study:
    """Arms x seeds of one experiment, and the claims that its results are judged by.

    Args:
        slug: short name, letters, digits, ``.``, ``_`` and ``-``; names the evidence file.
        arms: parameters of each arm, JSON-serialisable. Control characters in names are dropped, here and in metrics.
        run: ``(arm, seed, profile) -> {metric: number}``. Every metric that is declared must be returned, nothing
            else, and all of it finite. All randomness of a run must come from ``seed``. May call ``log_curve`` and
            ``log_figure``. A module-level function can be run in other processes.
        metrics: ``higher_is_better`` or ``lower_is_better`` for each metric name.
        claims: statements such as ``better("useful", than="erm", on="test_accuracy", margin=0.002)``.
        checks: what must be so by construction (closed forms, identities, gates, ceilings), in the same forms as
            claims. They are judged and shown, and never counted as claims.
        title: one line for reports.
        seeds: number of seeds per profile, ``{"smoke": 1, "laptop": 5}``; a number stands for the laptop profile.
        time_limit: seconds that one run may take, by profile or for all of them.
        optional: metrics that an arm may leave out.
        shared_setup: the arms of a seed share costly set-up that ``run`` caches in its process: with several workers,
            the runs of a seed go to one of them as long as the others have enough to do.
        source: further files that the results depend on, relative to the file of ``run``; see
            ``heldout.study.digest``.
        needs: for arms that use a data package: a function that returns why it cannot be used here, or an empty text.
            Such arms are left out where they cannot run, and named; claims about them are not judged.

    Raises:
        ValueError: what is wrong with the arms, metrics or claims, by name.
        TypeError: where something of another kind is expected.

    Example:
        >>> from heldout.study import at_least, run_study
        >>> def run(arm, seed, profile):
        ...     return {"score": arm["base"] + 0.01 * seed}
        >>> study = Study(slug="demo", arms={"good": {"base": 0.9}}, run=run, metrics={"score": higher_is_better},
        ...               claims=[at_least("good", on="score", value=0.8)])
        >>> [claim.verdict for claim in run_study(study).claims]
        ['holds']
    """

    slug: str
    arms: Mapping[str, Mapping[str, Any]]
    run: Run
    metrics: Mapping[str, Direction]
    claims: Sequence[Claim] = ()
    checks: Sequence[Claim] = ()
    title: str = ""
    seeds: int | Mapping[str, int] = field(default_factory=lambda: dict(_SEEDS))
    time_limit: float | Mapping[str, float] = field(default_factory=lambda: dict(_TIME_LIMIT))
    optional: Collection[str] = frozenset()
    shared_setup: bool = False
    source: Sequence[str | Path] = ()
    needs: Mapping[str, Callable[[], str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.slug, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.slug):
            raise ValueError(f"slug must be letters, digits, '.', '_' and '-', got {self.slug!r}")
        if not callable(self.run):
            raise TypeError(f"run must be a function (arm, seed, profile) -> metrics, got {type(self.run).__name__}")
        put = object.__setattr__
        put(self, "arms", _checked_arms(self.arms))
        put(self, "metrics", _checked_metrics(self.metrics))
        put(self, "claims", tuple(map(_plain_claim, self.claims)))
        put(self, "checks", tuple(map(_plain_claim, self.checks)))
        put(self, "optional", frozenset(map(_plain_names, self.optional)))
        put(self, "title", _plain_names(self.title))
        seeds = {"laptop": self.seeds} if isinstance(self.seeds, int) else self.seeds
        put(self, "seeds", _positive({**_SEEDS, **seeds}, "seeds"))
        limits = self.time_limit
        by_profile = limits if isinstance(limits, Mapping) else dict.fromkeys(self.seeds, limits)  # type: ignore[arg-type]
        put(self, "time_limit", _positive({**_TIME_LIMIT, **by_profile}, "time_limit"))
        if unknown := sorted(set(self.optional) - set(self.metrics)):
            raise ValueError(f"optional names metrics that are not declared: {', '.join(unknown)}")
        put(self, "needs", dict(self.needs))
        if unknown := sorted(set(self.needs) - set(self.arms)):
            raise ValueError(f"needs names arms that are not declared: {', '.join(unknown)}")
        for kind, listed in (("claim", self.claims), ("check", self.checks)):
            for claim in listed:
                self._check_claim(claim, kind)

    def _check_claim(self, claim: Claim, kind: str) -> None:
        if not isinstance(claim, Claim):
            raise TypeError(f"{kind}s must be made with better, at_least, ..., got {type(claim).__name__}")
        if missing := [arm for arm in claim.arm_names if arm not in self.arms]:
            raise ValueError(f"the {kind} {claim.text!r} names the unknown arm {missing[0]!r}")
        if missing := [metric for metric in claim.metric_names if metric not in self.metrics]:
            raise ValueError(f"the {kind} {claim.text!r} names the undeclared metric {missing[0]!r}")


def _plain_claim(claim: Any) -> Any:
    """A claim that names arms and metrics as the study does, without control characters."""
    if not isinstance(claim, Claim) or not dataclasses.is_dataclass(claim):
        return claim
    values = {each.name: getattr(claim, each.name) for each in dataclasses.fields(claim) if each.init}
    changed = {name: plain for name, value in values.items() if (plain := _plain_names(value)) != value}
    return dataclasses.replace(claim, **changed) if changed else claim


def _plain_names(value: Any) -> Any:
    if isinstance(value, str):
        return plain_name(value)
    if isinstance(value, tuple | list):
        return type(value)(map(_plain_names, value))
    return value


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces; raises ValueError or TypeError where there is none."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _checked_arms(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    if not isinstance(arms, Mapping):
        raise TypeError(f"arms must map names to parameters, got {type(arms).__name__}")
    if not arms:
        raise ValueError("a study needs at least one arm, got none")
    checked = {}
    for name, parameters in arms.items():
        if not isinstance(name, str) or not (plain := plain_name(name)):
            raise ValueError(f"arm names must be non-empty strings, got {name!r}")
        if plain in checked:
            raise ValueError(f"two arms are named {plain!r} once control characters are dropped")
        if not isinstance(parameters, Mapping):
            raise TypeError(f"the parameters of arm {name!r} must be a dict, got {type(parameters).__name__}")
        try:
            checked[plain] = json.loads(canonical_json(parameters))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the parameters of arm {name!r} must be JSON-serialisable: {error}") from None
    return checked


def _checked_metrics(metrics: Mapping[str, Direction]) -> dict[str, Direction]:
    if not isinstance(metrics, Mapping) or not metrics:
        raise ValueError("metrics must map at least one name to higher_is_better or lower_is_better")
    checked: dict[str, Direction] = {}
    for name, direction in metrics.items():
        if not isinstance(name, str) or not (plain := plain_name(name)):
            raise ValueError(f"metric names must be non-empty strings, got {name!r}")
        if plain in checked:
            raise ValueError(f"two metrics are named {plain!r} once control characters are dropped")
        if direction not in ("higher", "lower"):
            raise ValueError(f"metric {name!r} must be higher_is_better or lower_is_better, got {direction!r}")
        checked[plain] = direction
    return checked


def _positive(by_profile: Mapping[str, float], what: str) -> dict[str, float]:
    for profile, value in by_profile.items():
        if not isinstance(value, int | float) or not value > 0 or math.isnan(value):
            raise ValueError(f"{what} of profile {profile!r} must be a positive number, got {value!r}")
        if what == "seeds" and int(value) != value:
            raise ValueError(f"seeds of profile {profile!r} must be a whole number, got {value!r}")
    return dict(by_profile)
