"""Start-up: heldout --help <= 0.4 s, heldout list <= 0.6 s, import heldout <= 1.15 x import torch.

    python benchmarks/startup.py [--rounds N]

Commands run in turn, as whole processes; the median of each is printed. Importing heldout loads nothing; the time that
counts is that of ``from heldout import fit``, which needs torch.
"""

import argparse
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds + 1):  # the first round warms the caches
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values[1:]) for name, values in times.items()}
    for name, seconds in median.items():
        print(f"{name:<42} {seconds:6.3f} s  {seconds / median['import torch']:5.2f} x import torch")


if __name__ == "__main__":
    main()
