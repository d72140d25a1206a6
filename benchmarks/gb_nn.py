"""Boosted networks beside a plain loop over scikit-learn's MLPRegressor, and beside HistGradientBoosting.

The loop is the algorithm as its paper has it: for each group an MLPRegressor with L-BFGS is fitted to the residuals of
half of the rows, and added by Newton's step. Same units, learning rate and rows; ours must take at most LIMIT of its
processor time over the three tables, and end at most SLACK above its training loss. The trees are shown for their time
and their test error.

    python benchmarks/gb_nn.py [--units 50] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.neural_network import MLPRegressor

from heldout.tasks import split_table, table
from heldout.train import GradientBoostedNetworkClassifier, SoftmaxLoss

LIMIT, SLACK, RATE = 1 / 3, 0.05, 0.5


def plain_loop(x: np.ndarray, y: np.ndarray, units: int, seed: int) -> tuple[float, Any]:
    """Training loss and the outputs' function of boosting with one scikit-learn network for each unit."""
    loss, rng = SoftmaxLoss(int(y.max()) + 1), np.random.default_rng(seed)
    outputs, groups = np.zeros((len(x), loss.classes)), []
    for number in range(units):
        rows = rng.permutation(len(x))[: len(x) // 2]
        net = MLPRegressor(
            hidden_layer_sizes=(1,), activation="logistic", solver="lbfgs", max_iter=200, random_state=seed + number
        ).fit(x[rows], loss.negative_gradient(outputs, y)[rows])
        direction = net.predict(x)
        step = RATE * loss.newton_step(outputs, y, direction)
        outputs = outputs + step * direction
        groups.append((net, step))
    return loss.value(outputs, y), lambda z: sum(step * net.predict(z) for net, step in groups)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    rows, failed = [], False
    GradientBoostedNetworkClassifier(1).fit(*split_table(table("wine"))[0][:2])  # loads what a first fit loads
    for name in ("wine", "breast_cancer", "digits"):
        train, test = split_table(table(name), seed=0)
        start = time.process_time()
        ours = GradientBoostedNetworkClassifier(given.units, learning_rate=RATE, step="newton").fit(*train[:2])
        seconds = time.process_time() - start
        start = time.process_time()
        loss, outputs = plain_loop(train.features, train.targets, given.units, 0)
        plain_seconds = time.process_time() - start
        start = time.process_time()
        trees = HistGradientBoostingClassifier(random_state=0).fit(*train[:2])
        tree_seconds = time.process_time() - start
        errors = [
            float((predicted != test.targets).mean())
            for predicted in (
                ours.predict(test.features),
                outputs(test.features).argmax(1),
                trees.predict(test.features),
            )
        ]
        rows.append(
            {"table": name, "ours": seconds, "loop": plain_seconds, "trees": tree_seconds, "errors": errors,
             "losses": [ours.train_losses_[-1], loss]}
        )  # fmt: skip
        failed |= ours.train_losses_[-1] > loss + SLACK
    failed |= sum(row["ours"] for row in rows) > LIMIT * sum(row["loop"] for row in rows)
    if given.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            times = f"ours {row['ours']:.2f} s, loop {row['loop']:.2f} s (x {row['ours'] / row['loop']:.2f})"
            losses = " and ".join(f"{loss:.3f}" for loss in row["losses"])
            errors = ", ".join(f"{100 * error:.1f} %" for error in row["errors"])
            print(f"{row['table']}: {times}, trees {row['trees']:.2f} s; losses {losses}; test errors {errors}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
