"""USEFUL (Nguyen, Haddad, Gan, Mirzasoleiman; NeurIPS 2024; arXiv:2404.17768) on patches and on Fashion-MNIST.

The paper claims that a network learns a fast, simple feature before a slow one; that SAM learns the two more evenly;
and that showing the examples not learned early twice does so too, which lowers the test error on the same distribution.

Patches, the paper's two-feature data and two-layer cubic network under full-batch gradient descent: early clusters find
the examples without the fast feature, SAM evens out the two alignments, USEFUL learns the slow feature sooner. The
final accuracy is no measure here (every arm reaches the same one, or leaves the slow feature unlearned); time is.
Deviations: the slow feature counts as learned at a fixed alignment, since half of its final value says nothing in runs
that end before it is learned; a run that does not learn it counts as its full number of steps.

Images, Fashion-MNIST at half resolution with few examples and a small convolutional network: test error of USEFUL
against plain SGD, against repeating as many random examples, and against SGD with as many steps as USEFUL takes in
all, its early epochs included. Ablations: factor 3, and separating too early and too late.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import RandomSampler, Subset, TensorDataset

import heldout
from heldout.data import early_output_clusters, upsample, useful
from heldout.method import Method, Run
from heldout.nn import PatchCNN, small_cnn
from heldout.optim import SAM, sam
from heldout.study import Study, at_least, better, cheaper, higher_is_better, log_curve, lower_is_better
from heldout.tasks import fashion_mnist, stratified_split, two_feature_patches

LEARNED = 0.6  # alignment max_j <w_j, slow> at which the slow feature counts as learned
EARLY_STEP, SEPARATING_STEP = 50, 100
PATCH_STEPS = {"smoke": 150, "laptop": 2500}
IMAGES = {"smoke": (200, 500, 3, (4, 8)), "laptop": (4000, 5000, 12, (16, 32, 64))}  # train, test, epochs, widths
LR, RHO = 0.1, 0.05


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    return patches(arm, seed, profile) if arm["world"] == "patches" else images(arm, seed, profile)


def patches(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    data, test = two_feature_patches(200, seed=seed), two_feature_patches(2000, seed=seed + 1_000_000)
    everything, metrics = TensorDataset(data.inputs, data.labels), {}
    train: TensorDataset | Subset = everything
    if arm["repeat"]:
        early, _ = descend(everything, SEPARATING_STEP, seed)
        with torch.no_grad():
            logits = early(data.inputs)
        losses = F.cross_entropy(logits, data.labels, reduction="none")
        slow = early_output_clusters(logits, losses, data.labels, seed=seed)
        if arm["repeat"] == "slow":
            metrics["cluster_recall"] = slow[~data.has_fast].float().mean().item()
        train = upsample(everything, slow if arm["repeat"] == "slow" else as_many_at_random(slow, seed))
    model, weights = descend(train, PATCH_STEPS[profile], seed, rho=arm["rho"])
    fast, slow_feature = ((weights @ direction).amax(1) for direction in (data.fast, data.slow))
    for step in range(0, len(weights), 25):
        log_curve("alignment with the fast feature", step + 1, fast[step].item())
        log_curve("alignment with the slow feature", step + 1, slow_feature[step].item())
    metrics["early_gap"] = (fast - slow_feature)[EARLY_STEP - 1].item()
    metrics["slow_steps"] = 1.0 + (slow_feature < LEARNED).cummin(0).values.sum().item()
    metrics["patch_accuracy"] = (model(test.inputs).argmax(1) == test.labels).double().mean().item()
    return metrics


def descend(train: TensorDataset | Subset, steps: int, seed: int, rho: float = 0.0) -> tuple[nn.Module, Tensor]:
    """Full-batch gradient descent, or SAM: the network and its filters after each step ``(steps, filters, dim)``."""
    inputs, labels = train[torch.arange(len(train))] if isinstance(train, TensorDataset) else gathered(train)
    model = PatchCNN(inputs.shape[-1], seed=seed)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if rho:
        optimizer = SAM(optimizer, rho)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss

    weights = []
    for _ in range(steps):
        optimizer.step(closure)  # type: ignore[arg-type]
        weights.append(model.weight.detach().clone())
    return model, torch.stack(weights)


def as_many_at_random(mask: Tensor, seed: int) -> Tensor:
    chosen = torch.randperm(len(mask), generator=torch.Generator().manual_seed(seed))[: int(mask.sum())]
    return torch.zeros_like(mask).index_fill(0, chosen, True)
