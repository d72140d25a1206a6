"""Generalization difficulty (Boopathy et al., ICML 2023; arXiv:2305.01034): do bits tell what a task needs?

The paper computes, without training a model, how many bits of inductive bias a task needs, from the intrinsic dimension
of its inputs, the margin between its classes, the number of examples and of classes. It claims that the number grows
exponentially with the dimension and polynomially with the resolution, hardly falls with more examples, and orders data
sets and decision processes as one would.

Here, ``images``: digits and Fashion-MNIST (1,500 images each, greatest norm 1, target error 0.01) in 10 random subsets,
and the effect of ten times as many examples at the same geometry. ``formula``: the effect of added uniform dimensions,
each an estimate from 2,000 points, of halving the margin, and of the observations that a cartpole policy needs.

``manifold m f``: the useful test, which the paper does not make. Uniform latent points of m dimensions are bent into 64
by a random smooth map and labelled by the sign of a random sinusoid of f periods, points near its zeros left out. The
difficulty is estimated from 2,000 of them, for 10 examples, so that it is positive everywhere; ``log10_needed`` is how
many examples bring 1-NN to an error of 0.1, and ``log10_needed_mlp`` a small MLP, interpolated in the logarithm between
fourfold steps; the number is held within 10 and 10,240 (2,560 for the MLP).

``grid``: the same measurement for the policy of a gridworld of four rooms (``heldout.tasks.grid_policy``), in which the
best move depends on the place and the heading. ``grid full`` observes both, ``grid 2``, ``grid 3`` and ``grid 4`` the
last 2 to 4 places, noisily, which is all that they need. The paper's order of fully and partially observed decision
processes is claimed of the bits, with the margin of the cartpole's second observation, and, as the useful test, of the
examples that 1-NN needs; the MLP does not come to the target error on any grid within its examples and steps.

Checks: the effect of halving the margin and of a second observation of the cartpole are the formula's, without any
measurement; that digits are easier than Fashion-MNIST has been so in every subset.

Deviations: subsets of 1,500 images in place of 6,000. The grid is our own: the paper has none, its decision processes
are the cartpole and MuJoCo's, of which the formulas are checked.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.measure import classification_difficulty, intrinsic_dimension, knn_distances, pomdp_difficulty
from heldout.measure import task_difficulty as difficulty
from heldout.nn import mlp
from heldout.study import Study, at_least, at_most, better, correlates, higher_is_better, log_curve, lower_is_better
from heldout.tasks import MOVES, digits, fashion_mnist, grid_policy, stratified_split
from heldout.train import seeded

SIZES = {"smoke": (300, 2, 300, (20, 160), 100), "laptop": (1500, 10, 2000, (10, 40, 160, 640, 2560, 10240), 400)}
ERROR, TARGET, AMBIENT = 0.01, 0.1, 64


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    if arm["world"] == "images":
        return images(seed, profile)
    if arm["world"] == "formula":
        return formula(seed, profile)
    n = SIZES[profile][3][-1] + 2000
    if arm["world"] == "grid":
        seen = grid_policy(n, history=arm["history"], seed=seed)
        return learnt(seen.observations - seen.observations.mean(0), seen.moves, len(MOVES), seed, profile)
    return learnt(*labelled_manifold(arm["m"], arm["f"], n, seed), 2, seed, profile)


def images(seed: int, profile: str) -> dict[str, float]:
    size, resamples, *_ = SIZES[profile]
    log10: dict[str, list[float]] = {"digits": [], "other": []}
    for resample in range(resamples):
        for name in log10:
            found = classification_difficulty(*subset(name, profile, size, 1000 * seed + resample), error=ERROR)
            log10[name].append(found.log2_bits * math.log10(2))
    same = (found.dim, found.radius, found.classes, found.margin, ERROR)
    fewer, more = (difficulty(n, *same).log2_bits * math.log10(2) for n in (size, 10 * size))
    easier, harder = np.array(log10["digits"]), np.array(log10["other"])
    return {
        "log10_digits": float(easier.mean()),
        "log10_fashion": float(harder.mean()),
        "share_ordered": float((easier < harder).mean()),
        "decades_by_tenfold_data": abs(more - fewer),
    }


def subset(name: str, profile: str, size: int, seed: int) -> tuple[Tensor, Tensor]:
    inputs, labels = pictures(name, profile)
    (chosen,) = stratified_split(labels, (size,), seed=seed)
    return inputs[chosen] / inputs[chosen].norm(dim=1).max(), labels[chosen]


@functools.cache
def pictures(name: str, profile: str) -> tuple[Tensor, Tensor]:
    enlarged = digits(size=12) if profile == "smoke" else None
    inputs, labels = digits() if name == "digits" else enlarged or fashion_mnist()
    return inputs.flatten(1), labels


def formula(seed: int, profile: str) -> dict[str, float]:
    points = SIZES[profile][2]
    generator = torch.Generator().manual_seed(seed)
    added = np.arange(7)
    dims = [intrinsic_dimension(torch.rand(points, 3 + k, generator=generator)).estimate for k in added.tolist()]
    by_dims = np.array([difficulty(100, dim, 1.0, 2, 0.25, ERROR).log2_bits for dim in dims])
    for k, bits in zip(added.tolist(), by_dims.tolist(), strict=True):
        log_curve("log10 bits by added dimensions", k, bits * math.log10(2))
    halved = [difficulty(100, 8, 1.0, 2, 0.2 / 2**k, ERROR).log2_bits for k in range(4)]
    histories = [pomdp_difficulty(t, 10_000).log2_bits for t in (1, 2)]
    return {
        "r2_in_dimensions": float(np.corrcoef(added, by_dims)[0, 1] ** 2),
        "halving_over_dimension": float(np.diff(halved).mean() / 8),
        "decades_by_second_observation": (histories[1] - histories[0]) * math.log10(2),
    }


def learnt(x: Tensor, y: Tensor, classes: int, seed: int, profile: str) -> dict[str, float]:
    """The difficulty, and how many examples bring two learners to the target error on the last 2,000."""
    points, sizes, steps = SIZES[profile][2:]
    found = classification_difficulty(x[:points], y[:points], error=ERROR)
    bits = difficulty(10, found.dim, found.radius, classes, found.margin, ERROR).log2_bits
    test, (train, labels) = (x[-2000:], y[-2000:]), (x[:-2000], y[:-2000])
    errors = {
        "": [nearest_neighbour_error(train[:n], labels[:n], *test) for n in sizes],
        "_mlp": [mlp_error(train[:n], labels[:n], *test, classes, steps, seed) for n in sizes[:5]],
    }
    for n, error in zip(sizes, errors[""], strict=False):
        log_curve("1-NN error", n, error)
    needed = {f"log10_needed{kind}": needed_examples(sizes, found_errors) for kind, found_errors in errors.items()}
    return {"log10_bits": bits * math.log10(2), "dimension": float(found.dim), **needed}


def labelled_manifold(m: int, f: float, n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights, phases = torch.randn(m, AMBIENT, generator=generator), 6.3 * torch.rand(AMBIENT, generator=generator)
    direction = F.normalize(torch.randn(m, generator=generator), dim=0)
    latent = torch.rand(3 * n, m, generator=generator)
    wave = torch.sin(2 * math.pi * f * (latent @ direction) + phases[0])
    kept = (wave.abs() > 0.2).nonzero().flatten()[:n]
    embedded = torch.cos(latent[kept] @ weights + phases) / math.sqrt(AMBIENT)
    return embedded, (wave[kept] > 0).long()


def nearest_neighbour_error(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor) -> float:
    classes = y.unique()
    to_each = torch.cat([knn_distances(test_x, x[y == label], 1) for label in classes], dim=1)
    return float((classes[to_each.argmin(1)] != test_y).double().mean())


def mlp_error(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor, classes: int, steps: int, seed: int) -> float:
    with seeded(seed):
        net = mlp(x.shape[1], classes, (64,))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(seed)
    mean, std = x.mean(0), x.std(0) + 1e-3
    for _ in range(steps):
        chosen = torch.randint(len(y), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(net((x[chosen] - mean) / std), y[chosen]).backward()
        optimizer.step()
    with torch.no_grad():
        return float((net((test_x - mean) / std).argmax(1) != test_y).double().mean())


def needed_examples(sizes: tuple[int, ...], errors: list[float]) -> float:
    """log10 of the size at which the error first crosses the target; the last size if it does not."""
    logs = [math.log10(n) for n in sizes[: len(errors)]]
    if errors[0] <= TARGET:
        return logs[0]
    for number in range(1, len(errors)):
        if errors[number] <= TARGET:
            part = (errors[number - 1] - TARGET) / (errors[number - 1] - errors[number])
            return logs[number - 1] + part * (logs[number] - logs[number - 1])
    return logs[-1]


GRIDS = {name: {"world": "grid", "history": last} for name, last in
         {"grid full": None, "grid 2": 2, "grid 3": 3, "grid 4": 4}.items()}  # fmt: skip
MANIFOLDS = {f"manifold {m} {f}": {"world": "manifold", "m": m, "f": f} for m in (1, 2, 3, 4, 6) for f in (1, 3)}

study = Study(
    slug="generalization-difficulty",
    title="Model-agnostic Measure of Generalization Difficulty",
    arms={"images": {"world": "images"}, "formula": {"world": "formula"}, **MANIFOLDS, **GRIDS},
    run=run,
    metrics={
        "share_ordered": higher_is_better,
        "log10_digits": lower_is_better,
        "log10_fashion": lower_is_better,
        "decades_by_tenfold_data": lower_is_better,
        "r2_in_dimensions": higher_is_better,
        "halving_over_dimension": higher_is_better,
        "decades_by_second_observation": higher_is_better,
        "log10_bits": lower_is_better,
        "dimension": lower_is_better,
        "log10_needed": lower_is_better,
        "log10_needed_mlp": lower_is_better,
    },
    optional={
        *("share_ordered", "log10_digits", "log10_fashion", "decades_by_tenfold_data", "r2_in_dimensions"),
        *("halving_over_dimension", "decades_by_second_observation", "log10_bits", "dimension"),
        *("log10_needed", "log10_needed_mlp"),
    },
    claims=[
        at_most("images", on="decades_by_tenfold_data", value=1.0),
        at_least("formula", on="r2_in_dimensions", value=0.9),
        correlates("log10_bits", with_="log10_needed", at_least=0.7, arms=list(MANIFOLDS), method="spearman"),
        correlates("log10_bits", with_="log10_needed_mlp", at_least=0.7, arms=list(MANIFOLDS), method="spearman"),
        better("grid full", than="grid 2", on="log10_bits", margin=1.0),
        better("grid 2", than="grid 4", on="log10_bits", margin=1.0),
        better("grid full", than="grid 2", on="log10_needed"),
        better("grid 2", than="grid 4", on="log10_needed"),
    ],
    checks=[
        at_least("images", on="share_ordered", value=0.95, text="digits are easier in 95 % of subsets"),
        at_least("formula", on="halving_over_dimension", value=0.8),
        at_most("formula", on="halving_over_dimension", value=1.2),
        at_least("formula", on="decades_by_second_observation", value=1.0),
    ],
    seeds={"smoke": 1, "laptop": 5},
    time_limit={"smoke": 60.0, "laptop": 600.0},
)
