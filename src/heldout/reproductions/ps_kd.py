"""PS-KD: does distilling a model's own earlier predictions make it more accurate, better calibrated, better ranking?

Claim. Lower top-1 error, NLL, ECE and AURC than hard labels and than label smoothing on CIFAR-100 and ImageNet, with
alpha_T = 0.8. Source: arXiv:2006.12000 (Kim et al., ICCV 2021).

World. 1,600 Fashion-MNIST images of 14 x 14 pixels with random flips, 4,000 to test on, and a small CNN that is trained
until it fits them: the claim about over-confidence needs a model that is over-confident (the check says so).
``shifted_*`` are images turned by 15 degrees at lower contrast; nothing is claimed of them. AURC is in thousandths, ECE
in percent, as in the paper.

Arms. SGD with Nesterov momentum, weight decay and two tenfold drops of the learning rate, as in the paper; the last
epoch counts, there is no checkpoint selection. All arms share the recipe. ``born-again`` distils a finished model and
so trains twice; ``ps-kd-constant`` has the mean weight of ``ps-kd`` from the first epoch on.

Deviations. Half resolution, 1,600 images, and a network with a hidden layer instead of global pooling, so that it fits
them within 30 epochs; no random translation, under which it would not fit. How over-confident the plain model is
decides how much there is to gain.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import heldout
from heldout.losses import soft_cross_entropy
from heldout.measure import aurc, eaurc, expected_calibration_error, nll
from heldout.method import Batch, Method, Run
from heldout.study import Study, at_most, better, cheaper, log_curve, lower_is_better
from heldout.tasks import SHIFTS, fashion_mnist, rotate, stratified_split
from heldout.train import ps_kd

ALPHA = 0.8
SIZES = {"smoke": (200, 500, 2), "laptop": (1600, 4000, 30)}  # training images, test images, epochs


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)),
        *(nn.Flatten(), nn.Linear(512, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10)),
    )


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    flipped = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(flipped, images.flip(3), images)


def born_again(alpha: float) -> Method:
    """Distils a model that was trained to the end by the plain recipe, at a constant weight."""

    def loss(run: Run, batch: Batch) -> Tensor:
        if "teacher" not in run.state:
            run.state["teacher"] = run.train_plain(run.splits.train, run.epochs)[0].eval()
        with torch.no_grad():
            taught = run.state["teacher"](batch.inputs).softmax(1)
        onehot = F.one_hot(batch.targets, taught.shape[1]).float()
        return soft_cross_entropy(batch.logits, onehot.lerp(taught, alpha))

    return Method("born-again", loss=loss)


def method_of(arm: dict[str, Any]) -> Method | None:
    if arm["method"] == "ps-kd":
        return ps_kd(arm["alpha_T"], growth=arm["growth"])
    return born_again(arm["alpha"]) if arm["method"] == "born-again" else None


def step_schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps * 13 // 25, steps * 19 // 25])


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    train_size, test_size, epochs = SIZES[profile]
    images, labels = fashion_mnist(part="train" if profile == "laptop" else "test")
    train, test = stratified_split(labels, (train_size, test_size), seed=seed)
    train_set = F.avg_pool2d(images[train], 2), labels[train]
    tests = {
        "": F.avg_pool2d(images[test], 2),
        "shifted_": F.avg_pool2d(SHIFTS["contrast"](rotate(images[test], 15.0), 0.5), 2),
    }
    fitted = heldout.fit(
        network,
        train_set,
        method_of(arm),
        epochs=epochs,
        batch_size=64,
        optimizer=functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4),
        schedule=step_schedule,
        augment=random_flip,
        loss=functools.partial(F.cross_entropy, label_smoothing=arm.get("smoothing", 0.0)),
        seed=seed,
    )
    for entry in fitted.history:
        log_curve("train_error", int(entry["epoch"]), entry["train_error"])
    scores = {"train_error": 1 - fitted.evaluate(train_set)["accuracy"]}
    for prefix, inputs in tests.items():
        probs = fitted.outputs((inputs, labels[test]))[0].softmax(1)
        scores[f"{prefix}error"] = (probs.argmax(1) != labels[test]).double().mean().item()
        scores[f"{prefix}nll"] = nll(probs, labels[test])
        scores[f"{prefix}ece"] = 100 * expected_calibration_error(probs, labels[test])
        scores[f"{prefix}aurc"] = 1000 * aurc(probs, labels[test])
        scores[f"{prefix}eaurc"] = 1000 * eaurc(probs, labels[test])
    return scores


study = Study(
    slug="ps-kd",
    title="Self-Knowledge Distillation with Progressive Refinement of Targets",
    arms={
        "ce": {"method": "ce"},
        "label-smoothing": {"method": "ce", "smoothing": 0.1},
        "ps-kd": {"method": "ps-kd", "alpha_T": ALPHA, "growth": "linear"},
        "ps-kd-constant": {"method": "ps-kd", "alpha_T": ALPHA / 2, "growth": "constant"},
        "born-again": {"method": "born-again", "alpha": ALPHA},
    },
    run=run,
    metrics=dict.fromkeys(
        ["train_error", *(p + m for p in ("", "shifted_") for m in ("error", "nll", "ece", "aurc", "eaurc"))],
        lower_is_better,
    ),
    claims=[
        cheaper("ps-kd", than="ce", on="nll", ratio=0.9),
        cheaper("ps-kd", than="ce", on="ece", ratio=0.7),
        better("ps-kd", than="ce", on="aurc"),
        better("ps-kd", than="label-smoothing", on="aurc"),
        better("ps-kd", than="ce", on="error", margin=-0.001),
    ],
    checks=[at_most("ce", on="train_error", value=0.01)],
    seeds={"smoke": 1, "laptop": 5},
)
