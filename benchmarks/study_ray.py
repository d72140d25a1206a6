"""A study of 100,000 runs on Ray whose workers die: it finishes, each run is there once, and memory stays flat.

One run in a thousand ends its worker the first time that it is tried, as a lost machine would. Limits: nothing failed
or missing, every outcome equal to an undisturbed one, less than MEMORY MiB more resident memory at the last run than
after the first tenth (bar the outcomes themselves, which are in the database).

    python benchmarks/study_ray.py [--runs 100000] [--workers 2]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from study_overhead import MemoryProbe

from heldout.study import Study, better, higher_is_better, run_study

MEMORY, DIES = 64.0, 1000


def outcome(arm: dict, seed: int) -> float:
    return arm["base"] + (seed * 7919 % 1000) / 1e5


def run(arm: dict, seed: int, profile: str) -> dict[str, float]:
    mark = Path(arm["folder"]) / f"{arm['base']} {seed}"
    if seed % DIES == 0 and not mark.exists():
        mark.touch()
        os._exit(1)
    return {"score": outcome(arm, seed)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as out:
        arms = {name: {"base": base, "folder": folder} for name, base in (("low", 0.1), ("high", 0.2))}
        study = Study(
            slug="many",
            arms=arms,
            run=run,
            metrics={"score": higher_is_better},
            claims=[better("high", than="low", on="score")],
            seeds=given.runs // 2,
        )
        probe, start = MemoryProbe(), time.perf_counter()
        results = run_study(study, on="ray", workers=given.workers, out=out, progress=probe)
        seconds, died = time.perf_counter() - start, len(list(Path(folder).iterdir()))
    assert not results.failed, results.failed[0]
    assert not results.pending, f"{len(results.pending)} runs are missing"
    found = {(each["arm"], each["seed"]): each["metrics"]["score"] for each in results.runs}
    assert len(results.runs) == len(found) == 2 * (given.runs // 2), "a run is there twice, or not at all"
    assert all(value == outcome(arms[arm], seed) for (arm, seed), value in found.items()), "an outcome is another's"
    growth = probe.late - probe.early
    print(
        f"{len(found)} runs, {died} of which ended their worker: {seconds:.0f} s, {1e6 * seconds / len(found):.0f} us "
        f"a run, {growth:+.1f} MiB between the first tenth and the last run (limit {MEMORY:.0f})"
    )
    return int(growth > MEMORY)


if __name__ == "__main__":
    sys.exit(main())
