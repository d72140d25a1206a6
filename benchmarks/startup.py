"""Start-up: heldout --help <= 0.4 s, heldout list <= 0.6 s, from heldout import fit <= 1.1 x import torch.

    python benchmarks/startup.py [--rounds N]

Commands run in turn, as whole processes; the median of each is judged, and the exit code is 1 beyond a limit. On a busy
machine seconds say little: there ``--cpu`` judges the processor's time, which is what a quiet machine would take.
"""

import argparse
import math
import resource
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "heldout --help": ["-m", "heldout", "--help"],
    "heldout list": ["-m", "heldout", "list"],
    "import heldout": ["-c", "import heldout"],
    "import torch": ["-c", "import torch"],
    "from heldout import fit, Method, Splits": ["-c", "from heldout import fit, Method, Splits"],
}


LIMITS = {"heldout --help": 0.4, "heldout list": 0.6}
RATIOS = {"from heldout import fit, Method, Splits": 1.1}


def seconds(arguments: list[str], cpu: bool) -> float:
    """Returns the time of one process, on the clock or of the processor."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after, end = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return used if cpu else end - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.rounds + 1):  # the first round warms the caches
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments, options.cpu))
    median = {name: statistics.median(values[1:]) for name, values in times.items()}
    slow = []
    for name, taken in median.items():
        limit = LIMITS.get(name, RATIOS.get(name, math.inf) * median["import torch"])
        slow += [name] if taken > limit else []
        said = f"limit {limit:.3f} s" if limit < math.inf else ""
        print(f"{name:<42} {taken:6.3f} s  {taken / median['import torch']:5.2f} x import torch  {said}")
    if slow:
        print(f"too slow: {', '.join(slow)}", file=sys.stderr)
    return bool(slow)


if __name__ == "__main__":
    sys.exit(main())
