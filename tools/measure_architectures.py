"""Trains and measures the networks of tasks.measured_architectures: python tools/measure_architectures.py

Writes src/heldout/tasks/graphs/measured_architectures.json. Each network is trained with two seeds on the digits that
were written first and tested on the others; about a quarter of an hour on one core.
"""

import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from heldout.tasks import NETWORK_FAMILIES, build_network, digits, draw_network
from heldout.train import seeded

TARGET = Path(__file__).parents[1] / "src" / "heldout" / "tasks" / "graphs" / "measured_architectures.json"
RECIPE = {
    "data": "digits, 16 x 16 pixels, every second of the first 1200 to train on, the other 597 to test on",
    "epochs": 3, "batch_size": 40, "optimizer": "Adam", "lr": 0.01, "seeds": [0, 1],
}  # fmt: skip
NETWORKS = {"cells": 110} | dict.fromkeys(NETWORK_FAMILIES[1:], 60)
WRITTEN_FIRST = 1200


def accuracy(design: dict, images: torch.Tensor, labels: torch.Tensor, seed: int) -> float:
    with seeded(seed):
        model = build_network(design)
        optimizer = torch.optim.Adam(model.parameters(), lr=RECIPE["lr"], fused=True)
        train = torch.arange(0, WRITTEN_FIRST, 2)
        for _ in range(RECIPE["epochs"]):
            for batch in train[torch.randperm(len(train))].split(RECIPE["batch_size"]):
                optimizer.zero_grad()
                F.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
    model.eval()
    with torch.no_grad():
        return round((model(images[WRITTEN_FIRST:]).argmax(1) == labels[WRITTEN_FIRST:]).double().mean().item(), 4)


def designs(family: str, number: int) -> list[dict]:
    """The first designs of a family that differ from each other."""
    found: list[dict] = []
    seed = 0
    while len(found) < number:
        design = draw_network(family, seed)
        found += [design] if design not in found else []
        seed += 1
    return found


def measure(number_of: dict[str, int], seeds: list[int]) -> list[dict]:
    images, labels = digits(size=16)
    networks = []
    for family, number in number_of.items():
        start = time.time()
        networks += [
            {"design": design, "accuracy": [accuracy(design, images, labels, seed) for seed in seeds]}
            for design in designs(family, number)
        ]
        print(family, number, f"{time.time() - start:.0f} s", file=sys.stderr, flush=True)
    return networks


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in measure(NETWORKS, RECIPE["seeds"]))
    TARGET.write_text(f'{{"recipe":{json.dumps(RECIPE)},"networks":[\n{rows}\n]}}\n')
