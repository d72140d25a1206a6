"""Evidence: a ledger of the recordings of a study, small enough to be read and kept beside the code.

``<slug>.json`` holds every recording that was ever made, oldest first: one is appended, none is removed. The seeds of a
recording are derived from the digest of the study and from how often it was recorded before, and lie beyond those of
development: nobody has seen them when the study is written, and a changed study is judged on others.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from heldout.errors import check_nonempty, checked
from heldout.study.claims import Judged
from heldout.study.digest import study_digest
from heldout.study.results import Results, write_atomically
from heldout.study.spec import Study, StudyError

PROFILE = "laptop"
DEVELOPMENT_SEEDS = range(1000, 10_000)
RECORDING_SEEDS = range(10_000, 1_000_000)


class EvidenceError(StudyError):
    """Results that are no evidence, and why.

    Example:
        >>> from heldout.study import run_study
        >>> study = Study("demo", {"a": {}}, lambda arm, seed, profile: {"x": seed}, {"x": "higher"})
        >>> record(run_study(study, seeds=1, profile="smoke"))
        Traceback (most recent call last):
        heldout.study.evidence.EvidenceError: only results of the profile laptop are evidence, got smoke
    """


@checked
def recording_seeds(study: Study, folder: str | Path = "evidence", count: int | None = None) -> list[int]:
    """The seeds of the next recording of a study, ``count`` of them (default: what the study declares).

    They follow from the study's digest and the number of its recordings in ``folder``, so that an interrupted recording
    goes on with the same ones. More of them begin with the fewer.

    Raises:
        EvidenceError: ``folder`` holds a file of that name that is no ledger.
        ValueError: a count below 1.

    Example:
        >>> from heldout.study import higher_is_better
        >>> study = Study(slug="demo", arms={"a": {}}, run=lambda *_: {"x": 1}, metrics={"x": higher_is_better})
        >>> seeds = recording_seeds(study, count=3)
        >>> len(seeds), min(seeds) >= 10_000, seeds == recording_seeds(study, count=5)[:3]
        (3, True, True)
    """
    number = int(study.seeds[PROFILE]) if count is None else count  # type: ignore[index]
    if number < 1:
        raise ValueError(f"count must be at least 1, got {number}")
    digest = study_digest(study)
    return _derived(digest, _times_recorded(_ledger(Path(folder) / f"{study.slug}.json"), digest), number)


@checked
def record(results: Results, folder: str | Path = "evidence", *, note: str = "") -> Path:
    """Appends a recording to the ledger ``<slug>.json`` and returns its path.

    It holds metrics by arm and seed, verdicts, durations, versions and the digest of the study's source. Values are
    rounded to 6 significant digits; the verdicts were found before that. ``note`` is kept with it.

    Raises:
        EvidenceError: unless the profile is ``laptop``, every arm was run on the seeds that ``recording_seeds`` gives
            (as many as the study declares, or more), and every run is finished.

    Example:
        >>> import tempfile
        >>> from heldout.study import run_study
        >>> study = Study("demo", {"a": {}}, lambda arm, seed, profile: {"x": seed}, {"x": "higher"}, seeds=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = record(run_study(study, seeds=recording_seeds(study, folder)), folder)
        ...     print(path.name, len(load_evidence(path)["recordings"]))
        demo.json 1
    """
    if results.profile != PROFILE:
        raise EvidenceError(f"only results of the profile {PROFILE} are evidence, got {results.profile}")
    if results.failed:
        raise EvidenceError(f"{len(results.failed)} runs failed, first {_named(results.failed)}; nothing was recorded")
    if results.pending:
        raise EvidenceError(f"{len(results.pending)} runs are missing, first {_named(results.pending)}")
    if omitted := [arm for arm in results.declared["arms"] if arm not in results.arms]:
        raise EvidenceError(f"evidence needs every arm, {omitted[0]} was not run")
    path = Path(folder) / f"{results.slug}.json"
    recordings = _ledger(path)
    declared = results.declared["seeds"]
    fresh = _derived(results.digest, _times_recorded(recordings, results.digest), max(declared, len(results.seeds)))
    if sorted(results.seeds) != sorted(fresh):
        raise EvidenceError(
            f"evidence needs the seeds that follow from the study's digest, {len(fresh)} from {fresh[0]} on "
            f"(recording_seeds gives them), got {results.seeds[:6]}"
        )
    ledger = {
        "slug": results.slug,
        "title": results.title,
        "recordings": [*recordings, _recording(results, note)],
    }
    write_atomically(path, json.dumps(ledger, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return path


@checked
def load_evidence(path: str | Path) -> dict[str, Any]:
    """The ledger that ``record`` wrote: ``slug``, ``title`` and ``recordings``, the oldest first.

    Raises:
        EvidenceError: a file that cannot be read, or is none.

    Example:
        >>> load_evidence("nowhere.json")
        Traceback (most recent call last):
        heldout.study.evidence.EvidenceError: nowhere.json is no evidence: ...
    """
    try:
        evidence = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvidenceError(f"{path} is no evidence: {error}") from None
    recordings = evidence.get("recordings") if isinstance(evidence, dict) else None
    if not recordings or not all(isinstance(each, dict) and "digest" in each for each in recordings):
        raise EvidenceError(f"{path} is no evidence: it holds no recordings with a digest")
    return evidence


@checked
def is_stale(evidence: str | Path | Mapping[str, Any], study: Study) -> bool:
    """Whether the study or the code that it runs has changed since the newest recording.

    Args:
        evidence: a ledger, or the file of one.
        study: as it is now.

    Raises:
        EvidenceError: a file that is no evidence.

    Example:
        >>> study = Study("demo", {"a": {}}, lambda arm, seed, profile: {"x": seed}, {"x": "higher"})
        >>> ledger = {"recordings": [{"digest": "of other code"}, {"digest": study_digest(study)}]}
        >>> is_stale(ledger, study), is_stale({"recordings": ledger["recordings"][:1]}, study)
        (False, True)
    """
    ledger = evidence if isinstance(evidence, Mapping) else load_evidence(evidence)
    return ledger["recordings"][-1]["digest"] != study_digest(study)


@checked
def changed_verdicts(ledger: Mapping[str, Any]) -> dict[str, list[str]]:
    """Verdicts by claim, oldest first, of the claims whose verdict was not the same in every recording.

    Example:
        >>> first, second = ({"claims": [{"text": "a beats b", "verdict": each}]} for each in ("inconclusive", "holds"))
        >>> changed_verdicts({"recordings": [first, second]})
        {'a beats b': ['inconclusive', 'holds']}
    """
    check_nonempty(ledger=ledger)
    verdicts: dict[str, list[str]] = {}
    for recording in ledger["recordings"]:
        for claim in recording["claims"]:
            verdicts.setdefault(claim["text"], []).append(claim["verdict"])
    return {text: found for text, found in verdicts.items() if len(set(found)) > 1}


def _ledger(path: Path) -> list[dict[str, Any]]:
    return load_evidence(path)["recordings"] if path.exists() else []


def _times_recorded(recordings: Sequence[Mapping[str, Any]], digest: str) -> int:
    return sum(recording["digest"] == digest for recording in recordings)


def _derived(digest: str, earlier: int, count: int) -> list[int]:
    seeds: dict[int, None] = {}
    position = 0
    while len(seeds) < count:
        drawn = int.from_bytes(hashlib.sha256(f"{digest} {earlier} {position}".encode()).digest()[:8], "big")
        seeds[RECORDING_SEEDS[drawn % len(RECORDING_SEEDS)]] = None
        position += 1
    return list(seeds)


def _recording(results: Results, note: str) -> dict[str, Any]:
    arms: dict[str, Any] = {}
    for arm, parameters in results.arms.items():
        runs = [run for run in results.runs if run["arm"] == arm]
        names = [name for name in results.metrics if any(name in run["metrics"] for run in runs)]
        arms[arm] = {
            "parameters": parameters,
            "metrics": {
                name: {str(run["seed"]): _rounded(run["metrics"][name]) for run in runs if name in run["metrics"]}
                for name in names
            },
            "seconds": {str(run["seed"]): round(run["seconds"], 3) for run in runs},
        }
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "digest": results.digest,
        "profile": results.profile,
        "seeds": results.seeds,
        "metrics": results.metrics,
        "arms": arms,
        "claims": _judgements(results.claims),
        "checks": _judgements(results.checks),
        "seconds": round(results.seconds, 3),
        "environment": results.environment,
        "note": note,
    }


def _judgements(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    left_out = ("arms", "metrics", "kind")
    return [{name: _rounded(value) for name, value in asdict(each).items() if name not in left_out} for each in judged]


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _named(runs: list[dict[str, Any]]) -> str:
    return f"{runs[0]['arm']} on seed {runs[0]['seed']}"
