"""Trains and measures the networks of tasks.measured_architectures: python tools/measure_architectures.py

Writes src/heldout/tasks/graphs/measured_architectures.json. Each network is trained with four seeds on the digits that
were written first and tested on the others; about 20 minutes on one core. Networks have batch normalisation, for those
without learn little in 45 steps, and about 4,000 parameters, for otherwise their number or that one bit ranks a
family. Trainings of the same recipe that the file holds already are kept: remove it to measure all of them again.
"""

import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import update_bn

from heldout.tasks import NETWORK_FAMILIES, build_network, digits, draw_network, resize_network
from heldout.train import seeded

TARGET = Path(__file__).parents[1] / "src" / "heldout" / "tasks" / "graphs" / "measured_architectures.json"
RECIPE = {
    "data": "digits, 16 x 16 pixels, every second of the first 1200 to train on, the other 597 to test on",
    "epochs": 3, "batch_size": 40, "optimizer": "Adam", "lr": 0.01, "seeds": [0, 1, 2, 3],
    "normalisation": "statistics of the trained network, over batches of 200",
}  # fmt: skip
PARAMETERS, TOLERANCE = 4000, 0.15
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
    update_bn(images[train].split(200), model)  # running means still lag behind after so few steps
    model.eval()
    with torch.no_grad():
        return round((model(images[WRITTEN_FIRST:]).argmax(1) == labels[WRITTEN_FIRST:]).double().mean().item(), 4)


def designs(family: str, number: int) -> list[dict]:
    """The first designs of a family with batch normalisation and about the same size that differ from each other."""
    found: list[dict] = []
    seed = 0
    while len(found) < number:
        design = draw_network(family, seed)
        seed += 1
        if design["norm"]:
            design = resize_network(design, PARAMETERS)
            size = sum(p.numel() for p in build_network(design).parameters())
            found += [design] if abs(size / PARAMETERS - 1) <= TOLERANCE and design not in found else []
    return found


def known() -> dict[str, list[float]]:
    """Accuracies in the order of the seeds, by design, of the file that is there, if its recipe is the same."""
    table = json.loads(TARGET.read_text("utf-8")) if TARGET.exists() else {"recipe": {}, "networks": []}
    if table["recipe"] | {"seeds": RECIPE["seeds"]} != RECIPE:
        return {}
    return {json.dumps(row["design"]): row["accuracy"] for row in table["networks"]}


def measure(designs: list[dict], found: dict[str, list[float]]) -> None:
    """Adds to each design's accuracies in found those of the seeds that are still to be trained."""
    images, labels = digits(size=16)
    for design in designs:
        of_design = found.setdefault(json.dumps(design), [])
        of_design += [accuracy(design, images, labels, seed) for seed in RECIPE["seeds"][len(of_design) :]]


def write(designs: list[dict], found: dict[str, list[float]]) -> None:
    rows = [{"design": each, "accuracy": found[json.dumps(each)]} for each in designs if json.dumps(each) in found]
    text = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    new = TARGET.with_suffix(".new")
    new.write_text(f'{{"recipe":{json.dumps(RECIPE)},"networks":[\n{text}\n]}}\n')
    new.replace(TARGET)


if __name__ == "__main__":
    torch.set_num_threads(1)
    of_family = {family: designs(family, number) for family, number in NETWORKS.items()}
    everything = [design for family in of_family.values() for design in family]
    found = known()
    for family, of_it in of_family.items():
        start = time.time()
        measure(of_it, found)
        write(everything, found)  # after each family, so that what is interrupted can be taken up
        print(family, len(of_it), f"{time.time() - start:.0f} s", file=sys.stderr, flush=True)
