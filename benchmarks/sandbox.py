"""What the boundary around a judged program costs: beyond the start of the interpreter, at most 60 ms.

Run: python benchmarks/sandbox.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from heldout.lm import IsolationError, run_python, run_tests

LIMIT = 0.060  # seconds
REPEATS = 25


def seconds(run: Callable[[], Any]) -> float:
    """Returns the median time of a run."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Prints the cost of each boundary; exits with 1 beyond the limit."""
    interpreter = [sys.executable, "-I", "-S", "-c", "pass"]
    bare = seconds(lambda: subprocess.run(interpreter, env={}, check=True))
    print(f"interpreter alone: {1000 * bare:.1f} ms")
    worst = 0.0
    for isolation in ("namespaces+landlock+seccomp", "landlock+seccomp", "none"):
        options: Any = {"isolation": isolation}
        try:
            program = seconds(lambda options=options: run_python("pass", **options)) - bare
            tested = seconds(lambda options=options: run_tests("f = lambda: 1", "assert f() == 1", **options)) - bare
        except IsolationError as error:
            print(f"{isolation}: {error}")
            continue
        print(f"{isolation}: run_python +{1000 * program:.1f} ms, run_tests +{1000 * tested:.1f} ms")
        worst = max(worst, program, tested)
    if worst > LIMIT:
        sys.exit(
            f"a judged program costs {1000 * worst:.1f} ms beyond the interpreter: more than {1000 * LIMIT:.0f} ms"
        )


if __name__ == "__main__":
    main()
