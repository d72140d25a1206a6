"""What a study costs beside its runs: 10,000 runs of a function that returns at once.

Limits: 60 s in-process and in one worker process, 90 s with 2 processes, 2 s to resume the finished study, memory
flat.

    python benchmarks/study_overhead.py [--runs 10000] [--json]
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from heldout.study import Event, Study, better, higher_is_better, run_study

ARMS = {"low": {"base": 0.1}, "high": {"base": 0.2}}


def run(arm: dict, seed: int, profile: str) -> dict[str, float]:
    return {"score": arm["base"] + (seed * 7919 % 1000) / 1e5}


def overhead_study(runs: int) -> Study:
    return Study(
        slug="overhead",
        arms=ARMS,
        run=run,
        metrics={"score": higher_is_better},
        claims=[better("high", than="low", on="score")],
        seeds=runs // len(ARMS),
    )


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class MemoryProbe:
    """Resident memory of this process after one tenth of the runs and at the last one."""

    def __init__(self) -> None:
        self.early = self.late = 0.0

    def __call__(self, event: Event) -> None:
        if event.done == event.total // 10:
            self.early = resident_mb()
        if event.done == event.total:
            self.late = resident_mb()


def measure(runs: int, on: str, workers: int) -> dict[str, float | str]:
    study, probe = overhead_study(runs), MemoryProbe()
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        results = run_study(study, on=on, workers=workers, out=out, progress=probe)
        seconds = time.perf_counter() - start
        assert len(results.runs) == runs
        assert results.claims[0].verdict == "holds"
        start = time.perf_counter()
        again = run_study(study, on=on, workers=workers, out=out)
        resume = time.perf_counter() - start
        assert [each["metrics"] for each in again.runs] == [each["metrics"] for each in results.runs]
        size = (Path(out) / "study.sqlite").stat().st_size / 2**20
    return {
        "on": on,
        "workers": workers,
        "seconds": seconds,
        "microseconds_per_run": 1e6 * seconds / runs,
        "resume_seconds": resume,
        "memory_growth_mb": probe.late - probe.early,
        "database_mb": size,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = [measure(given.runs, *where) for where in (("in-process", 1), ("processes", 1), ("processes", 2))]
    if given.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            print(
                "  ".join(
                    f"{name} {value if isinstance(value, str) else f'{value:.2f}'}" for name, value in row.items()
                )
            )
    within = all(row["seconds"] <= limit for row, limit in zip(rows, (60, 60, 90), strict=True))
    within = within and all(row["resume_seconds"] <= 2 for row in rows)
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
