"""Results: everything a study found, as one document that reports are made from."""

from __future__ import annotations

import json
import os
import platform
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from heldout.errors import check_fields, checked
from heldout.study.claims import Judged
from heldout.study.spec import StudyError

_LIBRARIES = ("heldout", "numpy", "scipy", "scikit-learn", "torch", "transformers", "torch-geometric", "ray")


@dataclass
class Results:
    """What a study found.

    Attributes:
        slug, title, profile: of the study.
        seeds: the seeds that were asked for.
        arms: parameters by arm, for the arms that were asked for.
        metrics: ``"higher"`` or ``"lower"`` (is better) by metric name.
        runs: finished runs, ``{"arm", "seed", "metrics", "seconds", "curves", "figures"}``; curves are lists of
            ``[step, value]`` by name, figures Vega-Lite dictionaries by name.
        claims: the judged claims.
        checks: the judged checks: what must be so by construction, never counted as a claim.
        failed: ``{"arm", "seed", "cause", "error", "traceback", "seconds"}``; cause is one of ``raised``, ``exited``,
            ``time limit``, ``memory limit``, ``died`` and ``invalid metrics``.
        pending: ``{"arm", "seed"}`` of runs that were not made because the study was told to stop.
        seconds: time of all runs together, whenever they were made.
        environment: Python, platform, cpu count and versions of what is installed.
        digest: of the source and the declarations of the study (see ``heldout.study.digest``).
        left_out: arms that were asked for and cannot run here, with the reason.
        declared: the study's own arms and number of seeds, ``{"arms": [...], "seeds": n}``.

    Example:
        >>> from heldout.study import Study, run_study
        >>> def run(arm, seed, profile):
        ...     return {"x": 1 / (seed - arm["pole"])}
        >>> results = run_study(Study("demo", {"a": {"pole": 1}}, run, {"x": "higher"}), seeds=3)
        >>> results.metric("a", "x"), results.ok, results.failed[0]["error"]
        ({0: -1.0, 2: 1.0}, False, 'ZeroDivisionError: division by zero')
    """

    slug: str
    title: str
    profile: str
    seeds: list[int]
    arms: dict[str, dict[str, Any]]
    metrics: dict[str, str]
    runs: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    pending: list[dict[str, Any]]
    seconds: float
    digest: str
    declared: dict[str, Any]
    claims: list[Judged] = field(default_factory=list)
    checks: list[Judged] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def ok(self) -> bool:
        """Whether every run that was asked for is finished."""
        return not self.failed and not self.pending

    @checked
    def metric(self, arm: str, name: str) -> dict[int, float]:
        """Values of a metric by seed, over the finished runs of an arm that report it."""
        runs = self._by_arm().get(arm, [])
        return {run["seed"]: run["metrics"][name] for run in runs if name in run["metrics"]}

    def to_json(self) -> dict[str, Any]:
        """The results as one JSON-serialisable document."""
        document = asdict(self)
        document["heldout"] = self.environment.get("versions", {}).get("heldout")
        return document

    @checked
    def save(self, folder: str | Path) -> Path:
        """Writes ``results.json`` into a folder, whole or not at all, and returns its path."""
        path = Path(folder) / "results.json"
        text = json.dumps(self.to_json(), ensure_ascii=False, allow_nan=False)
        write_atomically(path, text + "\n")
        return path

    def _by_arm(self) -> dict[str, list[dict[str, Any]]]:
        if getattr(self, "_arm_runs", (None,))[0] is not self.runs:
            by_arm: dict[str, list[dict[str, Any]]] = {}
            for run in self.runs:
                by_arm.setdefault(run["arm"], []).append(run)
            self._arm_runs = (self.runs, by_arm)
        return self._arm_runs[1]


def environment() -> dict[str, Any]:
    """Python, platform, cpu count and the versions of installed libraries, none of which is imported for it.

    Example:
        >>> sorted(environment())
        ['cpus', 'platform', 'python', 'versions']
    """
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "versions": {name: version for name in _LIBRARIES if (version := _version(name))},
    }


@checked
def write_atomically(path: Path, text: str) -> None:
    """Writes a text file so that readers see the old or the new one and never a part.

    Args:
        path: the file; its folder is made where it is not there.
        text: written as UTF-8.

    Raises:
        StudyError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder, "new", "note.txt"), "done")
        ...     print(Path(folder, "new", "note.txt").read_text())
        done
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except (OSError, UnicodeEncodeError) as error:
        with suppress(OSError):
            temporary.unlink()
        raise StudyError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None


def _version(name: str) -> str | None:
    if name == "heldout":
        return getattr(sys.modules["heldout"], "__version__", None)
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
