"""Evidence: the recorded results of a study, small enough to be read and kept beside the code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from heldout.study.digest import study_digest
from heldout.study.results import Results, write_atomically
from heldout.study.spec import Study, StudyError

PROFILE = "laptop"


class EvidenceError(StudyError):
    """Results that are no evidence, and why."""


def record(results: Results, folder: str | Path = "evidence") -> Path:
    """Writes ``<slug>.json`` and returns its path.

    It holds metrics by arm and seed, verdicts, durations, versions and the digest of the study's source. Values are
    rounded to 6 significant digits; the verdicts were found before that.

    Raises:
        EvidenceError: unless the profile is ``laptop``, every arm was run on the seeds 0 to n - 1 with n at least
            what the study declares, and every run is finished.
    """
    if results.profile != PROFILE:
        raise EvidenceError(f"only results of the profile {PROFILE} are evidence, got {results.profile}")
    if results.failed:
        raise EvidenceError(f"{len(results.failed)} runs failed, first {_named(results.failed)}; nothing was recorded")
    if results.pending:
        raise EvidenceError(f"{len(results.pending)} runs are missing, first {_named(results.pending)}")
    if omitted := [arm for arm in results.declared["arms"] if arm not in results.arms]:
        raise EvidenceError(f"evidence needs every arm, {omitted[0]} was not run")
    declared = results.declared["seeds"]
    if results.seeds != list(range(len(results.seeds))) or len(results.seeds) < declared:
        raise EvidenceError(f"evidence needs the seeds 0 to {declared - 1} or further, got {results.seeds}")
    path = Path(folder) / f"{results.slug}.json"
    write_atomically(path, json.dumps(_document(results), indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return path


def load_evidence(path: str | Path) -> dict[str, Any]:
    """The document that ``record`` wrote; raises EvidenceError where a file is none."""
    try:
        evidence = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvidenceError(f"{path} is no evidence: {error}") from None
    if not isinstance(evidence, dict) or "digest" not in evidence:
        raise EvidenceError(f"{path} is no evidence: it names no digest")
    return evidence


def is_stale(evidence: str | Path | Mapping[str, Any], study: Study) -> bool:
    """Whether the study or the code that it runs has changed since the evidence was recorded."""
    document = evidence if isinstance(evidence, Mapping) else load_evidence(evidence)
    return document["digest"] != study_digest(study)


def _document(results: Results) -> dict[str, Any]:
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
        "slug": results.slug,
        "title": results.title,
        "digest": results.digest,
        "profile": results.profile,
        "seeds": results.seeds,
        "metrics": results.metrics,
        "arms": arms,
        "claims": [
            {name: _rounded(value) for name, value in asdict(claim).items() if name not in ("arms", "metrics", "kind")}
            for claim in results.claims
        ],
        "seconds": round(results.seconds, 3),
        "environment": results.environment,
    }


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _named(runs: list[dict[str, Any]]) -> str:
    return f"{runs[0]['arm']} on seed {runs[0]['seed']}"
