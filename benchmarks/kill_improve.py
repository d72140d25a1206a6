"""SIGKILL at random moments of `heldout improve`: no finished training may be lost, changed or repeated.

A search over six methods of a file's own is started in a process of its own and killed at a random moment, again and
again, until it ends with a report; then the next one is started in a new folder, until there were enough kills. After
every kill each training that the database held as finished is still there, unchanged, and no process outlives the
killed one; what is started afterwards trains none of them again. Every search ends with a report whose finalists were
trained in full on at least three seeds.

    python benchmarks/kill_improve.py [--kills 50] [--workers 1] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kill_study import check_no_orphans, finished

METHODS, LR = 6, 0.01
FILE = f"""
import os
import torch
from torch import nn
from heldout import Method, Splits

g = torch.Generator().manual_seed(0)
centres = torch.randn(3, 8, generator=g)


def draw(count):
    y = torch.randint(0, 3, (count,), generator=g)
    return centres[y] + torch.randn(count, 8, generator=g), y


def data():
    return Splits(train=draw(96), val=draw(100), test={{"given": draw(200), "other": draw(200)}})


def model():
    return nn.Linear(8, 3)


def told(name):
    def optimizer(run, optimizer):
        with open(os.environ["HELDOUT_KILL_LOG"], "a") as log:
            log.write(f"{{name}} {{run.seed}} {{run.epochs}} {{optimizer.param_groups[0]['lr']:.9f}}\\n")
        return optimizer
    return Method(name, optimizer=optimizer)


epochs, batch_size = 4, 32
methods = {{f"told_{{number}}": told(f"told_{{number}}") for number in range({METHODS})}}


def optimizer(module):
    return torch.optim.SGD(module.parameters(), lr={LR})
"""
MAIN = """
import json, sys
from heldout.improve import improve
file, out, workers, names = sys.argv[1:]
on = "local" if workers == "1" else "processes"
found = improve(file, budget=600, seeds=3, methods=names.split(), out=out, workers=int(workers), on=on)
print(json.dumps([len(found["finalists"]), found["plan"]]))
"""
Training = tuple[str, int, int, str]


def start(file: Path, out: Path, workers: int) -> subprocess.Popen:
    out.mkdir(exist_ok=True)
    names = " ".join(f"told_{number}" for number in range(METHODS))
    environment = {**os.environ, "HELDOUT_KILL_LOG": str(out / "log"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", MAIN, str(file), str(out), str(workers), names]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def trainings(rows: dict[str, tuple]) -> set[Training]:
    """What the finished runs trained, as the file's methods log it; the baseline logs nothing."""
    found = set()
    for parameters, seed, *_ in rows.values():
        arm = json.loads(parameters)
        for name in arm["method"].split("+"):
            found.add((name, seed, arm["epochs"], f"{LR * arm['rate']:.9f}"))
    return found


def logged(out: Path) -> list[Training]:
    path = out / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(name, int(seed), int(epochs), rate) for name, seed, epochs, rate in map(str.split, lines)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    generator, kills, searches, at_kill, begin = random.Random(given.seed), 0, 0, [], time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "killed.py"
        file.write_text(FILE)
        clock = time.monotonic()
        undisturbed = start(file, Path(name) / "undisturbed", given.workers)
        undisturbed.communicate(timeout=600)
        duration, runs = time.monotonic() - clock, len(finished(Path(name) / "undisturbed"))
        while kills < given.kills:
            searches += 1
            out, kept = Path(name) / f"search{searches}", {}
            while True:
                before, seen = kept, len(logged(out))
                process = start(file, out, given.workers)
                try:
                    wait = generator.uniform(0.0, duration if kills < given.kills else 600.0)
                    printed, _ = process.communicate(timeout=wait if kills < given.kills else 600)
                except subprocess.TimeoutExpired:
                    process.kill()
                    printed, _ = process.communicate()
                    kills += 1
                check_no_orphans(file, "local")
                kept = finished(out)
                assert before.items() <= kept.items(), "a finished training was lost or changed"
                again = trainings(before) & set(logged(out)[seen:])
                assert not again, f"finished trainings were repeated: {again}"
                told = {each for each in trainings(kept) if each[0].startswith("told_")}  # the baseline logs nothing
                assert told <= set(logged(out)), "the log and the database tell of different trainings"
                at_kill.append(len(kept))
                if process.returncode == 0:
                    finalists, plan = json.loads(printed)
                    assert finalists >= 1, f"no finalist was confirmed: {plan}"
                    break
                assert process.returncode == -9, f"the search ended with {process.returncode}"
    print(
        f"{kills} kills in {searches} searches of about {runs} trainings, {len(at_kill)} starts, nothing lost or "
        f"repeated, {time.monotonic() - begin:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
