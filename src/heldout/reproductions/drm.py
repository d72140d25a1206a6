"""DRM: where domains contradict each other, does each example find the head that was trained for its domain?

Source: arXiv:2208.08661 (Zhang et al., KDD 2023), which reports the largest gains where p(y|x) differs across the
source domains (about ten points over plain training on coloured digits), at no loss on the sources.

World A: Fashion-MNIST at 14 x 14 (digits in the smoke profile), two classes, 25 % label noise, in red or cyan; colour
agrees with the label for 0.9, 0.8 and 0.1 of three domains. The target is an even mixture without domain numbers. In A1
a background tint shows the domain, in A2 (``blind``) nothing does. Exact ceilings: following each domain's colour
86.7 % (A1); without the domain the shape decides, 75 % (A2), so that more than that in A2 would be a leak. World B:
the same images turned by 0, 15, 30, 45 and 60 degrees, target 75 degrees, ten classes, so that the source is not the
target. Both have 5,000 images a domain and 501 steps of 30 images a domain.

``uniform`` and all ``drm`` arms take their predictions from one trained network and differ in how they weigh its heads.
``oracle`` takes each example's true domain head; ``discriminator`` weighs by a domain classifier of the features,
``prototype`` and ``prototype-cosine`` by the distance from the mean feature of each domain;
``routed_right`` is the share of examples whose heaviest head is that of their domain. gamma 0.5, 1 and 5, and steering
by the combined and by each head's own label at rates 2e-4 and 2e-3, were compared on development seeds of a smaller
world, and left as they were. In A, source and target are the same mixture, drawn twice: the claim about the source asks
something of its own in B and on drawings only.

``drawings``: real pictures, 12 kinds of things in four drawing styles; three styles are the sources, the fourth the
target (another for each seed in turn, with things that training never shows). A hidden layer and the heads are trained
on what EfficientNet-Lite0 with ImageNet weights makes of the pictures at 96 x 96. Here p(y|x) is the same in every
domain, so that the paper expects less. Steering was compared at rates 5e-5, 2e-4 and 2e-3 there.

Deviations: B turns pictures of clothes, for there are not 30,000 digits at hand; prototypes are means over the training
set at the end, not over the last 50 batches; the pretrained encoder of ``drawings`` is frozen.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import heldout
from heldout.adapt import DRM, SteerConfig, domain_means, drm, prototype_gap
from heldout.data import batches
from heldout.measure import adaptivity_gap
from heldout.nn import mlp, small_cnn
from heldout.sources import ENET, STYLE, TAGS, missing
from heldout.study import Study, at_least, at_most, better, higher_is_better, lower_is_better
from heldout.tasks import (
    coloured_conflict,
    digits,
    domains,
    drawing_features,
    fashion_mnist,
    split_drawings,
    stratified_split,
)

SIZES = {"smoke": (120, 60, 1), "laptop": (5000, 1000, 3)}  # training and test images of a domain, epochs
ANGLES = (0, 15, 30, 45, 60, 75)
DRAWING_EPOCHS = 12
OF_DOMAIN = 30  # images of a domain in a batch, on average


@functools.lru_cache(maxsize=8)
def drawing_world(seed: int, profile: str) -> tuple[heldout.Splits, Tensor]:
    pictures, features = drawing_features(64, things=5) if profile == "smoke" else drawing_features()
    train, source, target = split_drawings(pictures, held_out=seed % 4, seed=seed)
    tests = {name: (features[part], pictures.labels[part]) for name, part in (("source", source), ("target", target))}
    _, numbers = pictures.domains[train].unique(return_inverse=True)
    nowhere = torch.full((len(target),), -1)
    return heldout.Splits(train=(features[train], pictures.labels[train]), test=tests, domains=numbers), nowhere


@functools.lru_cache(maxsize=2)
def world(name: str, seed: int, profile: str) -> tuple[heldout.Splits, Tensor]:
    """Splits with tests "source" and "target", and the domain of each target example (-1: none of the sources)."""
    if name == "drawings":
        return drawing_world(seed, profile)
    images, labels = digits() if profile == "smoke" else fashion_mnist()
    size, test, _ = SIZES[profile]
    count = len(ANGLES) if name == "rotation" else 3
    train_part, test_part = stratified_split(labels, (count * size, count * test), seed=seed)
    if profile != "smoke":
        images = F.avg_pool2d(images, 2)
    if name == "rotation":
        x, y, d = domains(images[train_part], labels[train_part], values=ANGLES, seed=seed)
        other_x, other_y, other_d = domains(images[test_part], labels[test_part], values=ANGLES, seed=seed + 1)
        inside, source, target = d < 5, other_d < 5, other_d == 5
        tests = {"source": (other_x[source], other_y[source]), "target": (other_x[target], other_y[target])}
        nearest = torch.full_like(other_d[target], 4)
        return heldout.Splits(train=(x[inside], y[inside]), test=tests, domains=d[inside]), nearest
    paint = functools.partial(coloured_conflict, tint=name == "tint")
    x, y, d = paint(images[train_part], labels[train_part], seed=seed)
    source_x, source_y, _ = paint(images[test_part], labels[test_part], seed=seed + 10)
    target_x, target_y, target_d = paint(images[test_part], labels[test_part], seed=seed + 20)
    tests = {"source": (source_x, source_y), "target": (target_x, target_y)}
    return heldout.Splits(train=(x, y), test=tests, domains=d), target_d


@functools.lru_cache(maxsize=4)
def trained(method: str, name: str, seed: int, profile: str) -> Any:
    splits, _ = world(name, seed, profile)
    network = functools.partial(small_cnn, splits.train[0][0].shape[0], 10 if name == "rotation" else 2, (8, 16, 32))
    epochs, sources = SIZES[profile][2], len(splits.domains.unique())  # type: ignore[union-attr]
    if name == "drawings":
        network = functools.partial(mlp, 1280, 12, (128,), dropout=0.5)
        epochs = min(DRAWING_EPOCHS, 12 * epochs)
    optimizer = functools.partial(torch.optim.Adam, lr=1e-3 if name == "drawings" else 2e-3)
    chosen = None if method == "erm" else drm(estimate="discriminator" if name in ("tint", "drawings") else "entropy")
    batch_size = 64 if name == "drawings" else OF_DOMAIN * sources
    return heldout.fit(network, splits, chosen, epochs=epochs, batch_size=batch_size, optimizer=optimizer, seed=seed)


def predict(adapter: DRM, model: nn.Module, dataset: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs and weights of an adapter over a stream, the logits of the unsteered domain heads, and the targets."""
    parts = []
    for inputs, targets, _ in batches(dataset, 64):
        outputs = adapter(inputs)
        with torch.no_grad():
            parts.append((outputs, adapter.last_change["weights"], model(inputs)[:, : adapter.used], targets))
    outputs, weights, heads, targets = (torch.cat(column) for column in zip(*parts, strict=True))
    return outputs, weights, heads, targets


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    splits, domain = world(arm["world"], seed, profile)
    fitted = trained("erm" if arm["weights"] == "erm" else "drm", arm["world"], seed, profile)
    if arm["weights"] == "erm":
        return {f"{part}_accuracy": fitted.evaluate(splits.test[part])["accuracy"] for part in ("source", "target")}
    options: dict[str, Any] = {n: SteerConfig(**v) if n == "steer" else v for n, v in arm["options"].items()}
    if arm["weights"] == "discriminator":
        options["estimate"] = fitted.predictor.estimate  # type: ignore[attr-defined]
    elif arm["weights"] == "prototype":
        means = domain_means(fitted.module, splits.train, splits.domains)  # type: ignore[arg-type]
        options["estimate"] = prototype_gap(means, options.pop("distance"))
    metrics: dict[str, float] = {}
    for part in ("source", "target"):
        outputs, weights, heads, targets = predict(DRM(fitted.module, **options), fitted.module, splits.test[part])
        if arm["weights"] == "oracle":
            if part == "source":
                continue
            outputs = heads[torch.arange(len(heads)), domain]
        elif arm["weights"] != "uniform" and part == "target" and bool((domain >= 0).all()):
            metrics["routed_right"] = (weights.argmax(1) == domain).double().mean().item()
        metrics[f"{part}_accuracy"] = (outputs.argmax(1) == targets).double().mean().item()
    return metrics | {"adaptivity_gap": adaptivity_gap(heads, targets, outputs, groups=domain)}


def arms() -> dict[str, dict[str, Any]]:
    entropy = {"weights": "entropy"}
    weighings: dict[str, dict[str, Any]] = {
        "erm": {"weights": "erm"},
        "uniform": {"weights": "uniform", "options": {"gamma": 0.0}},
        "drm": entropy | {"options": {"gamma": 1.0}},
        "drm-argmin": entropy | {"options": {"hard": True}},
        "drm-gamma5": entropy | {"options": {"gamma": 5.0}},
        "drm-steered": entropy | {"options": {"steer": {"rule": "combined", "confidence": 0.25, "lr": 2e-3}}},
        "discriminator": {"weights": "discriminator", "options": {}},
        "prototype": {"weights": "prototype", "options": {"distance": "euclidean"}},
        "prototype-cosine": {"weights": "prototype", "options": {"distance": "cosine"}},
        "oracle": {"weights": "oracle", "options": {}},
    }
    chosen = {name: weighing | {"world": "tint"} for name, weighing in weighings.items()}
    for name in ("erm", "uniform", "drm"):
        chosen[f"{name}-blind"] = weighings[name] | {"world": "blind"}
    for name in ("erm", "uniform", "drm", "drm-argmin", "drm-steered"):
        chosen[f"{name}-rotation"] = weighings[name] | {"world": "rotation"}
    for name in ("erm", "uniform", "drm", "drm-argmin", "drm-steered", "discriminator", "prototype"):
        chosen[f"drawings-{name}"] = weighings[name] | {"world": "drawings"}
    steer = {"rule": "combined", "confidence": 0.25, "lr": 2e-4}
    chosen["drawings-drm-steered"] |= {"options": {"steer": steer}}
    return chosen


ARMS = arms()
DRAWING_ARMS = [name for name in ARMS if name.startswith("drawings-")]

study = Study(
    slug="drm",
    title="Domain-Specific Risk Minimization for Out-of-Distribution Generalization",
    arms=ARMS,
    run=run,
    metrics={
        "target_accuracy": higher_is_better,
        "source_accuracy": higher_is_better,
        "adaptivity_gap": lower_is_better,
        "routed_right": higher_is_better,
    },
    needs=dict.fromkeys(DRAWING_ARMS, functools.partial(missing, [STYLE, TAGS, ENET])),
    optional={"source_accuracy", "adaptivity_gap", "routed_right"},
    claims=[
        better("drm", than="uniform", on="target_accuracy", margin=0.02),
        better("drm", than="erm", on="target_accuracy", margin=0.01),
        better("drm", than="erm", on="source_accuracy", margin=-0.005),
        better("discriminator", than="drm", on="target_accuracy"),
        better("prototype", than="drm", on="target_accuracy"),
        better("drm-rotation", than="erm-rotation", on="target_accuracy", margin=-0.005),
        better("drm-rotation", than="erm-rotation", on="source_accuracy", margin=-0.005),
        better("drm-rotation", than="drm-argmin-rotation", on="target_accuracy"),
        better("drm-rotation", than="uniform-rotation", on="target_accuracy"),
        better("drm-steered-rotation", than="drm-rotation", on="target_accuracy", margin=0.005),
        better("drm-steered", than="drm", on="target_accuracy", margin=0.005),
        better("drawings-drm", than="drawings-erm", on="target_accuracy", margin=-0.005),
        better("drawings-drm", than="drawings-uniform", on="target_accuracy"),
        better("drawings-drm", than="drawings-erm", on="source_accuracy", margin=-0.005),
        better("drawings-drm", than="drawings-drm-argmin", on="target_accuracy"),
        better("drawings-drm-steered", than="drawings-drm", on="target_accuracy", margin=0.005),
    ],
    checks=[
        at_least("discriminator", on="routed_right", value=0.8, text="the domain can be read from the tint"),
        at_most("drm-blind", on="target_accuracy", value=0.75, text="no gain where the domain cannot be seen"),
    ],
    seeds={"smoke": 1, "laptop": 12},
)
