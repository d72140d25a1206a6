"""What the boundary around a judged program costs: at most 60 ms beyond the start of the interpreter.

    python benchmarks/sandbox.py [--rounds N]

Everything is run in turn, and the lower quartile of its times is judged: what the machine does beside it only adds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from heldout.lm import IsolationError, run_python, run_tests

LIMIT = 0.060  # seconds


def main() -> int:
    """Prints the cost of each boundary; returns 1 beyond the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    bare = [sys.executable, "-I", "-S", "-c", "pass"]
    runs: dict[str, Callable[[], Any]] = {"interpreter": partial(subprocess.run, bare, env={}, check=True)}
    for isolation in ("namespaces+landlock+seccomp", "landlock+seccomp", "none"):
        options: Any = {"isolation": isolation}
        try:
            run_python("pass", **options)
        except IsolationError as error:
            print(f"{isolation}: {error}")
            continue
        runs[f"run_python, {isolation}"] = partial(run_python, "pass", **options)
        runs[f"run_tests, {isolation}"] = partial(run_tests, "f = lambda: 1", "assert f() == 1", **options)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    quartiles = {name: float(np.quantile(values, 0.25)) for name, values in times.items()}
    base = quartiles.pop("interpreter")
    print(f"interpreter: {1000 * base:.1f} ms")
    for name, value in quartiles.items():
        print(f"{name}: +{1000 * (value - base):.1f} ms")
    return int(max(quartiles.values()) - base > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
