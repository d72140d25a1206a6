"""How often `heldout improve` announces a winner where there is none: its methods are identities under other names.

Each method trains exactly as the baseline does, from other initial weights of the same distribution, so every true gain
is zero. A search is the whole of `improve`: screening, combinations, settings, confirmation on fresh seeds. At most 5
of 100 searches may end with a winner, and of the adjusted intervals (against the baseline, given or tuned, that a
finalist is trained like) at least 95 % must contain zero; the exit status is 1 otherwise.

    python benchmarks/improve_null.py [--searches 100] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from heldout.improve import improve

torch.set_num_threads(1)
METHODS = 6
FILE = """
import torch
from torch import nn
from heldout import Method, Splits

g = torch.Generator().manual_seed({seed})
SHAPE, CLASSES = {shape}, 3
size = torch.Size(SHAPE).numel()
centres = torch.randn(CLASSES, size, generator=g) * {distance} / size ** 0.5


def draw(count, noise=1.0):
    y = torch.randint(0, CLASSES, (count,), generator=g)
    x = centres[y] + noise * torch.randn(count, size, generator=g) / size ** 0.5 * 4
    return x.view(count, *SHAPE), y


def data():
    return Splits(train=draw(96), val=draw(200), test={{"given": draw(400), "noisier": draw(400, 1.5)}})


def model():
    return {model}


def again(number):
    def anew(run, module):
        torch.manual_seed(1_000_003 * number + run.seed)
        for part in module.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
        return module
    return Method(f"identity_{{number}}", model=anew)


epochs, batch_size = 4, 16
methods = {{f"identity_{{number}}": again(number) for number in range(1, {methods} + 1)}}


def optimizer(module):
    return torch.optim.Adam(module.parameters(), lr=0.01)
"""
KINDS = {
    "tabular": ("(12,)", 3.0, "nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, CLASSES))"),
    "image": (
        "(1, 8, 8)",
        3.0,
        "nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), "
        "nn.Linear(24, CLASSES))",
    ),
}


def search(kind: str, seed: int, seeds: int, folder: Path) -> dict:
    """Runs one search and returns its verdict, the finalists' words and their intervals."""
    shape, distance, model = KINDS[kind]
    file = folder / f"{kind}_{seed}.py"
    file.write_text(FILE.format(seed=seed, shape=shape, distance=distance, model=model, methods=METHODS))
    names = [f"identity_{number}" for number in range(1, METHODS + 1)]
    found = improve(file, budget=900, seeds=seeds, methods=names, out=folder / f"{kind}-{seed}")
    tuned = found["settings"].get("tuned baseline", {})
    changed = tuned.get("method") != "baseline" or tuned.get("epochs") is not None
    gains = []
    for row in found["finalists"]:
        rate = found["rates"].get(row["method"], 1.0)
        if tuned and not changed and rate == found["rates"]["baseline"]:
            reference = "tuned_"
        elif rate == 1.0:
            reference = ""
        else:
            continue  # it is another training than either baseline: no null
        gains += [
            (entry[f"{reference}low"], entry[f"{reference}high"], entry["verdict"], test)
            for test, entry in row["tests"].items()
        ]
    words = [entry["verdict"] for row in found["finalists"] for entry in row["tests"].values()]
    return {"kind": kind, "seed": seed, "seeds": seeds, "winner": found["winner"], "verdict": found["verdict"],
            "words": words, "gains": gains, "tuned": found["tuned"] is not None,
            "seconds": found["seconds"]}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=100)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="every search, as JSON lines")
    arguments = parser.parse_args()
    done = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.searches):
            kind = list(KINDS)[number % 2]
            done.append(search(kind, arguments.first_seed + number, 3 + (number // 2) % 3, Path(folder)))
            if arguments.out:
                with arguments.out.open("a") as file:
                    file.write(json.dumps(done[-1]) + "\n")
    gains = [gain for each in done for gain in each["gains"]]
    covered = sum(low <= 0 <= high for low, high, *_ in gains) / max(1, len(gains))
    winners = sum(each["winner"] is not None for each in done)
    hurts = sum("hurts" in each["words"] for each in done)
    print(f"{len(done)} searches, {time.monotonic() - started:.0f} s")
    print(f"false winners: {winners} ({100 * winners / len(done):.1f} %)")
    print(f"searches in which a finalist hurts: {hurts}")
    print(f"intervals that contain the true gain, 0: {100 * covered:.1f} % of {len(gains)}")
    by_seeds = {
        number: [gain for each in done if each["seeds"] == number for gain in each["gains"]] for number in (3, 4, 5)
    }
    for number, some in by_seeds.items():
        if some:
            print(f"  {number} seeds: {100 * sum(low <= 0 <= high for low, high, *_ in some) / len(some):.1f} %")
    return int(winners > 0.05 * len(done) or covered < 0.95)


if __name__ == "__main__":
    sys.exit(main())
