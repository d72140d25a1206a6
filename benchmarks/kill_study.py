"""SIGKILL at random moments of a study with 40 runs: no finished run may be lost, changed or repeated.

A study of 40 short runs is started in a process of its own and killed at a random moment, again and again, until it
gets through; then the next one is started in a new folder, until there were enough kills. After every kill:

- every run that the database held as finished before is still there, unchanged;
- no worker process outlives the killed one;
- the next start repeats none of the finished runs.

In the end the results equal those of an undisturbed study.

    python benchmarks/kill_study.py [--on in-process local processes ray] [--kills 50] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

RUNS = 40

STUDY = """
import os
import random
import time
from pathlib import Path

from heldout.study import Study, better, higher_is_better, log_curve


def run(arm, seed, profile):
    generator = random.Random(1000 * seed + arm["base"])
    with open(os.environ["HELDOUT_KILL_LOG"], "a") as log:
        log.write(f"{arm['base']} {seed}\\n")
    for step in range(5):
        log_curve("value", step, generator.random())
        time.sleep(0.005)
    return {"score": arm["base"] + generator.random()}


study = Study(
    slug="killed",
    arms={"low": {"base": 1}, "middle": {"base": 2}, "high": {"base": 3}, "top": {"base": 4}},
    run=run,
    metrics={"score": higher_is_better},
    claims=[better("high", than="low", on="score", margin=0.5)],
    seeds=10,
)
"""

PATIENCE = 300  # seconds for one study; one that takes longer hangs, and says where

MAIN = f"""
import faulthandler, json, sys
faulthandler.dump_traceback_later({PATIENCE - 10})
from heldout.study import load_study, run_study
file, on, out = sys.argv[1:]
results = run_study(load_study(file), on=on, workers=1 if on in ("in-process", "local") else 2, out=out).to_json()
for run in results["runs"]:
    del run["seconds"]
print(json.dumps([results["runs"], results["claims"], results["failed"], results["pending"]]))
"""


@dataclass
class Campaign:
    """What happened: how many kills, at how many finished runs on average, in how many studies."""

    on: str
    kills: int
    studies: int
    finished_at_kill: list[int]
    seconds: float


def run_campaign(on: str, kills: int, seed: int, folder: Path) -> Campaign:
    """Kills studies until there were enough kills; raises AssertionError when a promise is broken."""
    generator = random.Random(seed)
    file = folder / "killed.py"
    file.write_text(STUDY)
    begin = time.monotonic()
    start = time.monotonic()
    expected = _finish(file, on, folder / "undisturbed")
    duration = time.monotonic() - start
    done, studies, at_kill = 0, 0, []
    while done < kills:
        studies += 1
        out = folder / f"{on}{studies}"
        kept: dict[str, tuple] = {}
        while done < kills:
            log = _log(out)
            process = _start(file, on, out, subprocess.DEVNULL)
            if _ended_by_itself(
                process, out, generator.randint(0, min(20, RUNS - len(kept))), len(log), duration, generator
            ):
                assert process.returncode == 0, f"the study ended with {process.returncode}"
            else:
                process.kill()
                process.wait()
                done += 1
            check_no_orphans(file, on)
            before, kept = kept, _finished(out)
            assert before.items() <= kept.items(), "a finished run was lost or changed"
            repeated = {(base, run_seed) for base, run_seed, *_ in before.values()} & set(_log(out)[len(log) :])
            assert not repeated, f"finished runs were repeated: {repeated}"
            if process.returncode == 0:
                break
            at_kill.append(len(kept))
            if len(kept) == RUNS:
                break
        log = _log(out)
        assert _finish(file, on, out) == expected, "the results differ from those of an undisturbed study"
        repeated = {(base, run_seed) for base, run_seed, *_ in kept.values()} & set(_log(out)[len(log) :])
        assert not repeated, f"finished runs were repeated: {repeated}"
    return Campaign(on, done, studies, at_kill, time.monotonic() - begin)


def _ended_by_itself(
    process: subprocess.Popen, out: Path, runs: int, before: int, duration: float, generator: random.Random
) -> bool:
    """Waits for a random moment: before the first run, or within or shortly after the given number of further runs."""
    if not runs:
        time.sleep(generator.uniform(0.0, duration / 2))
        return process.poll() is not None
    while len(_log(out)) < before + runs:
        if process.poll() is not None:
            return True
        time.sleep(0.002)
    time.sleep(generator.uniform(0.0, 0.06))
    return process.poll() is not None


def _start(file: Path, on: str, out: Path, stdout: int) -> subprocess.Popen:
    out.mkdir(exist_ok=True)
    environment = {**os.environ, "HELDOUT_KILL_LOG": str(out / "log"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", MAIN, str(file), on, str(out)]
    with (out / "errors").open("w") as errors:
        return subprocess.Popen(command, env=environment, stdout=stdout, stderr=errors)


def _finish(file: Path, on: str, out: Path) -> object:
    process = _start(file, on, out, subprocess.PIPE)
    try:
        printed, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"the study hangs: {(out / 'errors').read_text()[-4000:]}") from None
    assert process.returncode == 0, f"the study ended with {process.returncode}"
    return json.loads(printed)


def _log(out: Path) -> list[tuple[int, int]]:
    path = out / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(base), int(seed)) for base, seed in map(str.split, lines)]


def _finished(out: Path) -> dict[str, tuple]:
    """Finished runs by key, each with its arm's base first."""
    return {key: (json.loads(parameters)["base"], *rest) for key, (parameters, *rest) in finished(out).items()}


def finished(out: Path) -> dict[str, tuple]:
    """Finished runs in the database as it lies there, by key: parameters, seed, metrics, curves and time."""
    path = out / "study.sqlite"
    if not path.exists() or not path.stat().st_size:
        return {}
    database = sqlite3.connect(path)
    try:
        rows = database.execute("SELECT key, parameters, seed, metrics, curves, time FROM runs WHERE status='finished'")
        return {key: tuple(rest) for key, *rest in rows}
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):  # killed before the tables were there
            raise
        return {}
    finally:
        database.close()


def check_no_orphans(file: Path, on: str) -> None:
    deadline = time.monotonic() + (60.0 if on == "ray" else 30.0)
    while orphans := descendants(file, on):
        assert time.monotonic() < deadline, f"processes outlive the killed study: {orphans}"
        time.sleep(0.02)


def descendants(file: Path, on: str) -> list[str]:
    """The study and its workers: processes whose environment names this campaign's folder, but for Ray's daemons."""
    mark, found = f"HELDOUT_KILL_LOG={file.parent}".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                if mark in (entry / "environ").read_bytes() and (on != "ray" or command.startswith(b"ray::_Actor")):
                    found.append(f"{entry.name} {command.decode()[:80]}")
            except OSError:
                continue
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--on", nargs="+", default=["in-process", "local", "processes", "ray"])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for on in given.on:
        with tempfile.TemporaryDirectory() as folder:
            found = run_campaign(on, given.kills, given.seed, Path(folder))
        spread = sorted(found.finished_at_kill)
        print(
            f"{on}: {found.kills} kills in {found.studies} studies, finished runs at the kill "
            f"{spread[0]}..{spread[-1]} (median {spread[len(spread) // 2]}), nothing lost or repeated, "
            f"{found.seconds:.0f} s",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
