"""Inductive bias: how many nats must be known beforehand, beyond training data and hypothesis space, for a test error?

Source: arXiv:2406.15941 (Boopathy, Yue, Hwang, Iyer, Fiete; IJCAI 2024), which measures ``-log P(error <= eps)`` over
hypotheses that fit the training data, and finds that it grows with the dimension of the task, that networks need much
less of it than kernel spaces, and that architectures differ.

Functions: ``y = sin(2 sum(x) / sqrt(d))`` of normal points, 100 to train on, 60 to test on, eps = 0.001; Gaussian
processes with a kernel of width 1, or of width sqrt(d) ("scaled"); 5,000 draws for each of 5 data sets for each seed.
``exact_nats`` is the saddle point of the exact law; ``step`` is the change from the neighbouring arm in bootstrap
standard errors, as a median over the data sets. ``gap`` and ``exact_gap`` are the differences of the two from the share
of draws that reach eps, in nats, where at least 20 do; ``tail_gap`` is the largest one of the fit between rank 10 and
the median.

Images: scikit-learn's digits, and Fashion-MNIST at half its size. A Gaussian process of width 1, one whose width and
variance maximise the marginal likelihood of the training data ("tuned"), 40 perceptrons (64 hidden units) and 40
convolutional networks; eps is the least test error of the convolutional ones. In "permuted" arms all images have their
pixels in one random order, and eps stays that of the images in order.

Deviations: the same number of steps for all networks, with a falling learning rate (``train_error`` says how well
they fit); 500 draws of a Gaussian process where there are images; 20 networks for Fashion-MNIST.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.measure import (
    BiasEstimate,
    ErrorLaw,
    gram,
    gram_cholesky,
    kernel_error_law,
    rbf_kernel,
    required_inductive_bias,
)
from heldout.study import (
    Study,
    at_least,
    at_most,
    better,
    cheaper,
    higher_is_better,
    log_curve,
    log_figure,
    lower_is_better,
    ordered,
)
from heldout.tasks import digits, fashion_mnist, stratified_split

EPS, DRAWS, TESTED = 1e-3, 5000, 60
SIZES = {"smoke": (20, 30), "laptop": (40, 300)}  # networks (half as many of Fashion-MNIST), steps
TEST_IMAGES = {"smoke": 100, "laptop": 500}
# of Adam, falling to 0; tuned on seed 1000 between 3e-3 and 2e-2
RATES = {"digits": {"mlp": 1e-2, "cnn": 5e-3}, "fashion": {"mlp": 5e-3, "cnn": 3e-3}}
CHANNELS, BATCH = 24, 50
TOGETHER = 10  # networks trained side by side: more leave the cache
DATASETS = {"smoke": 1, "laptop": 5}  # of functions, for each seed
Layer = list[Tensor]


@functools.lru_cache(maxsize=128)
def estimated(d: int, n: int, scaled: bool, draws: int, seed: int, profile: str) -> tuple[ErrorLaw, BiasEstimate]:
    """Returns the law of the test error of a Gaussian process, and the estimate from its draws."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400 + TESTED, 8, generator=generator, dtype=torch.float64)[:, :d]
    y = torch.sin(2 * x.sum(1) / math.sqrt(d))
    kernel = rbf_kernel(math.sqrt(d) if scaled else 1.0)
    law = kernel_error_law(x[TESTED:][:n], y[TESTED:][:n], x[:TESTED], y[:TESTED], kernel)
    errors = law.sample(draws // 10 if profile == "smoke" else draws, seed=seed)
    return law, required_inductive_bias(errors, EPS, seed=seed)


def function(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    """Returns means over several data sets, and the median step."""
    sets = [one_function(arm, 100 * seed + number, profile) for number in range(DATASETS[profile])]
    names = {name for metrics in sets for name in metrics}
    found = {name: np.array([metrics[name] for metrics in sets if name in metrics]) for name in sorted(names)}
    return {name: float(np.median(v) if name == "step" else v.mean()) for name, v in found.items()}


def one_function(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    d, n, scaled, draws = arm["d"], arm["n"], arm["scaled"], arm["draws"]
    law, found = estimated(d, n, scaled, draws, seed, profile)
    errors = law.sample(found.n_samples, seed=seed)
    metrics = measured(found, errors) | {"exact_nats": law.nats(EPS)}
    if "gap" in metrics:
        metrics["exact_gap"] = abs(law.nats(EPS) - found.empirical)
    if arm["easier"]:
        before = estimated(*arm["easier"], scaled, draws, seed, profile)[1]
        metrics["step"] = (found.nats - before.nats) / math.hypot(found.standard_error, before.standard_error)
    if seed % 100 == 0:
        if d == 1 and not scaled:
            log_dimensions(seed, profile)
        if d in (2, 3, 6) and n == 100 and draws == DRAWS:
            log_fit(found, errors)
    return metrics


def measured(found: BiasEstimate, errors: np.ndarray) -> dict[str, float]:
    metrics = {
        "nats": found.nats,
        "width": found.ci[1] - found.ci[0],
        "mean_error": float(errors.mean()),
        "ks": found.gof.ks,
        "tail_gap": found.gof.tail,
        "extrapolated": float(found.support != "measured"),
        "unsupported": float(found.support == "unsupported"),
    }
    if (errors <= found.target).sum() >= 20:
        metrics["gap"] = abs(found.nats - found.empirical)
    return metrics


def layer(networks: int, inputs: int, outputs: int, generator: torch.Generator) -> Layer:
    """Returns weights and biases of one layer of many networks, uniform as torch draws them."""
    shapes = (networks, inputs, outputs), (networks, 1, outputs)
    return [((2 * torch.rand(s, generator=generator) - 1) / math.sqrt(inputs)).requires_grad_() for s in shapes]


def dense(weights: Layer, x: Tensor) -> Tensor:
    """``(networks, batch, inputs)`` -> ``(networks, batch, outputs)``."""
    return torch.baddbmm(weights[1], x, weights[0])


def mlp(layers: list[Layer], images: Tensor) -> Tensor:
    """``(networks, batch, side, side)`` -> ``(networks, batch, 10)``."""
    return dense(layers[1], dense(layers[0], images.flatten(2)).relu())


def cnn(layers: list[Layer], images: Tensor) -> Tensor:
    """The same by a 4 x 4 convolution of stride 2, a 3 x 3 convolution and a linear layer."""
    networks, batch, side, _ = images.shape
    half = side // 2
    places = F.pad(images, (1, 1, 1, 1)).unfold(2, 4, 2).unfold(3, 4, 2)
    hidden = dense(layers[0], places.reshape(networks, batch * half**2, 16)).relu()
    padded = F.pad(hidden.view(networks, batch, half, half, -1), (0, 0, 1, 1, 1, 1))
    shifts = [padded[:, :, i : i + half, j : j + half] for i in range(3) for j in range(3)]
    hidden = dense(layers[1], torch.cat(shifts, dim=-1).view(networks, batch * half**2, -1)).relu()
    return dense(layers[2], hidden.view(networks, batch, -1))


def trained(
    kind: str, networks: int, steps: int, rate: float, sets: list[tuple[Tensor, Tensor]], seed: int
) -> list[Tensor]:
    """Returns the mean squared errors ``(networks,)`` on each of the sets, the first of which is trained on."""
    (x, y), generator, side = sets[0], torch.Generator().manual_seed(seed), sets[0][0].shape[-1]
    sizes = [(side**2, 64), (64, 10)]
    if kind == "cnn":
        sizes = [(16, CHANNELS), (9 * CHANNELS, CHANNELS), (CHANNELS * (side // 2) ** 2, 10)]
    layers = [layer(networks, *size, generator) for size in sizes]
    network = {"mlp": mlp, "cnn": cnn}[kind]

    def losses(images: Tensor, targets: Tensor) -> Tensor:
        return (network(layers, images) - targets).square().mean((1, 2))

    optimizer = torch.optim.Adam([weights for each in layers for weights in each], lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        chosen = torch.rand(networks, len(x), generator=generator).argsort(dim=1)[:, :BATCH]
        optimizer.zero_grad()
        losses(x[chosen], y[chosen]).sum().backward()
        optimizer.step()
        schedule.step()

    def errors(images: Tensor, targets: Tensor) -> Tensor:
        parts = zip(images.split(100), targets.split(100), strict=True)
        sums = [losses(a.expand(networks, *a.shape), b) * len(a) for a, b in parts]
        return torch.stack(sums).sum(0) / len(images)

    with torch.inference_mode():
        return [errors(*each) for each in sets]


@functools.lru_cache(maxsize=8)
def world(name: str, n: int, permuted: bool, seed: int, profile: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns training images ``(n, side, side)``, their one-hot labels, and those of the test."""
    if name == "digits" or profile == "smoke":
        images, labels = digits()
    else:
        images, labels = fashion_mnist()
        images = F.avg_pool2d(images, 2)
    sizes = (60 if profile == "smoke" else n, TEST_IMAGES[profile])
    train, test = stratified_split(labels, sizes, seed=seed)
    images = (images[:, 0] - images.mean()) / images.std()
    if permuted:
        order = torch.randperm(images[0].numel(), generator=torch.Generator().manual_seed(seed))
        images = images.flatten(1)[:, order].view_as(images)
    targets = F.one_hot(labels, 10).float()
    return images[train], targets[train], images[test], targets[test]


@functools.lru_cache(maxsize=16)
def ensemble(kind: str, name: str, n: int, permuted: bool, seed: int, profile: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the training and the test errors of the networks."""
    x, y, x_test, y_test = world(name, n, permuted, seed, profile)
    networks, steps = SIZES[profile]
    if name == "fashion":
        networks = max(20, networks // 2)
    groups = [
        trained(kind, TOGETHER, steps, RATES[name][kind], [(x, y), (x_test, y_test)], 100 * seed + group)
        for group in range(networks // TOGETHER)
    ]
    train, test = (torch.cat(parts).double().numpy() for parts in zip(*groups, strict=True))
    return train, test


def tuned_kernel(x: Tensor, y: Tensor) -> Callable[[Any, Any], Tensor]:
    """Returns the RBF kernel whose width and variance maximise the marginal likelihood of the training data."""

    def evidence(sigma: float) -> tuple[float, float]:
        factor = gram_cholesky(gram(rbf_kernel(sigma), x, x))
        white = torch.linalg.solve_triangular(factor, y.double(), upper=False)
        variance = white.square().mean().item()  # the best one for this width, in closed form
        return -len(y) * math.log(variance) - 2 * factor.diagonal().log().sum().item(), variance

    width = math.sqrt(x[0].numel())
    sigma = max((width * 2 ** (power / 2) for power in range(-6, 5)), key=lambda each: evidence(each)[0])
    return rbf_kernel(sigma, variance=evidence(sigma)[1])


def advantage(name: str, n: int, permuted: bool, target: float, seed: int, profile: str) -> float:
    """Returns how many nats fewer the convolutional networks need than the perceptrons."""
    pair = (ensemble(kind, name, n, permuted, seed, profile)[1] for kind in ("mlp", "cnn"))
    other, ours = (required_inductive_bias(errors, target, seed=seed).nats for errors in pair)
    return other - ours


def image(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    name, n, space, permuted = arm["world"], arm["n"], arm["space"], arm["permuted"]
    target = float(ensemble("cnn", name, n, False, seed, profile)[1].min())
    extra: dict[str, float] = {}
    if space in ("mlp", "cnn"):
        train, errors = ensemble(space, name, n, permuted, seed, profile)
        extra["train_error"] = float(train.mean())
    else:
        x, y, x_test, y_test = world(name, n, permuted, seed, profile)
        law = kernel_error_law(x, y, x_test, y_test, rbf_kernel() if space == "rbf" else tuned_kernel(x, y))
        errors = law.sample(100 if profile == "smoke" else 500, seed=seed)
        extra["exact_nats"] = law.nats(target)
    found = required_inductive_bias(errors, target, seed=seed)
    if space == "cnn":
        extra["advantage"] = advantage(name, n, permuted, target, seed, profile)
        if permuted:
            extra["lost_advantage"] = advantage(name, n, False, target, seed, profile) - 2 * extra["advantage"]
    for ratio in np.geomspace(0.5, 2.0, 25):
        log_curve(f"nats over target error, {name} {n}", float(target * ratio), float(found.curve(target * ratio)))
    if (name, n) == ("digits", 200) and not permuted:
        log_fit(found, errors)
    return measured(found, errors) | extra


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    return function(arm, seed, profile) if "d" in arm else image(arm, seed, profile)


def log_fit(found: BiasEstimate, errors: np.ndarray) -> None:
    """Logs the nats of the samples and of the fitted law over the error, down to the target."""
    ordered_errors = np.sort(errors)
    ranks = np.unique(np.concatenate([np.geomspace(1, len(errors), 40), np.linspace(1, len(errors), 20)]).astype(int))
    seen = zip(ordered_errors[ranks - 1], -np.log(ranks / len(errors)), strict=True)
    rows = [{"error": float(e), "nats": float(nats), "of": "samples"} for e, nats in seen]
    grid = np.geomspace(min(found.target, errors.min()), errors.max(), 60)
    rows += [{"error": float(e), "nats": float(v), "of": "fit"} for e, v in zip(grid, found.curve(grid), strict=True)]
    log_figure("required nats over the target error", {
        "data": {"values": rows},
        "mark": {"type": "line", "point": {"size": 15}},
        "encoding": {
            "x": {"field": "error", "type": "quantitative", "scale": {"type": "log"}, "title": "target error"},
            "y": {"field": "nats", "type": "quantitative", "scale": {"type": "symlog"}},
            "color": {"field": "of", "type": "nominal", "title": None},
        },
    })  # fmt: skip


def log_dimensions(seed: int, profile: str) -> None:
    """Logs the nats over the dimension, as fitted and by the saddle point."""
    rows = []
    for d in DIMENSIONS:
        for scaled, width in ((False, "width 1"), (True, "width sqrt(d)")):
            law, found = estimated(d, 100, scaled, DRAWS, seed, profile)
            rows += [{"d": d, "nats": found.nats, "of": f"{width}, fit"}]
            rows += [{"d": d, "nats": law.nats(EPS), "of": f"{width}, saddle point"}]
    log_figure("required nats over the dimension", {
        "data": {"values": rows},
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": {"field": "d", "type": "ordinal"},
            "y": {"field": "nats", "type": "quantitative"},
            "color": {"field": "of", "type": "nominal", "title": None},
        },
    })  # fmt: skip


def gp(
    d: int, n: int = 100, *, scaled: bool = False, draws: int = DRAWS, easier: tuple[int, int] | None = None
) -> dict[str, Any]:
    return {"d": d, "n": n, "scaled": scaled, "draws": draws, "easier": easier}


DIMENSIONS, CLAIMED, WORLDS = range(1, 9), (2, 3, 4, 6), (("digits", 200), ("digits", 500), ("fashion", 1000))
EASIER = {after: before for before, after in itertools.pairwise(CLAIMED)}
NUMBERS = (400, 200, 100, 50)  # from the easiest on

arms: dict[str, dict[str, Any]] = {}
for dim in DIMENSIONS:
    before = (EASIER[dim], 100) if dim in EASIER else None
    arms[f"d {dim}"] = gp(dim, easier=before)
    arms[f"d {dim}, scaled"] = gp(dim, scaled=True, easier=before)
for more, fewer in zip((None, *NUMBERS), NUMBERS, strict=False):
    arms[f"d 3, n {fewer}"] = gp(3, fewer, easier=(3, more) if more else None)
arms["d 3, 500 draws"] = gp(3, draws=500)
for where, count in WORLDS:
    for space in ("rbf", "tuned", "mlp", "cnn"):
        for permuted in (False, True) if where == "digits" and space in ("mlp", "cnn") else (False,):
            key = f"{where} {count}, {space}" + (", permuted" if permuted else "")
            arms[key] = {"world": where, "n": count, "space": space, "permuted": permuted}

REACHED = ("d 1", "d 2", "d 2, scaled", "d 3, n 200", "d 3, n 400")  # by enough draws

METRICS = {
    **dict.fromkeys(("nats", "exact_nats", "width", "mean_error", "train_error", "ks", "tail_gap"), lower_is_better),
    **dict.fromkeys(("gap", "exact_gap", "extrapolated", "unsupported"), lower_is_better),
    **dict.fromkeys(("step", "advantage", "lost_advantage"), higher_is_better),
}

study = Study(
    slug="inductive-bias",
    title="Towards Exact Computation of Inductive Bias",
    arms=arms,
    run=run,
    metrics=METRICS,
    optional=set(METRICS),
    claims=[
        *(at_least(f"d {d}", on="step", value=2) for d in EASIER),
        *(at_least(f"d {d}, scaled", on="step", value=2) for d in EASIER),
        ordered([f"d {d}" for d in reversed(CLAIMED)], on="exact_nats"),
        *(at_least(f"d 3, n {n}", on="step", value=2) for n in NUMBERS[1:]),
        ordered([f"d 3, n {n}" for n in reversed(NUMBERS)], on="exact_nats"),
        *(
            better(f"{where} {n}, {network}", than=f"{where} {n}, {kernel}", on="nats", margin=10)
            for where, n in WORLDS
            for network in ("mlp", "cnn")
            for kernel in ("rbf", "tuned")
        ),
        *(better(f"{where} {n}, cnn", than=f"{where} {n}, mlp", on="nats") for where, n in WORLDS),
        *(at_least(f"digits {n}, cnn, permuted", on="lost_advantage", value=0) for n in (200, 500)),
        *(at_most(arm, on=on, value=0.3) for on in ("gap", "exact_gap") for arm in REACHED),
        cheaper("d 3", than="d 3, 500 draws", on="width", ratio=0.5),
    ],
    seeds={"smoke": 1, "laptop": 3},
    time_limit={"smoke": 120.0, "laptop": 900.0},
    shared_setup=True,
)
