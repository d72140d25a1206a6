"""USEFUL (Nguyen, Haddad, Gan, Mirzasoleiman; NeurIPS 2024; arXiv:2404.17768) on patches and on Fashion-MNIST.

Claim. A network learns a fast, simple feature before a slow one; SAM learns the two more evenly; showing the examples
not learned early twice does so too, which lowers the test error on the same distribution.

World. Patches: the paper's two-feature data and two-layer cubic network under full-batch gradient descent. Images:
1,200 examples of Fashion-MNIST at half resolution, 5,000 to test on, and a small convolutional network; test error in
percent.

Arms. Patches: plain descent, SAM, USEFUL, and as many random examples repeated. The final accuracy is no measure there
(every arm reaches the same one, or leaves the slow feature unlearned); the time to learn is. Images: plain SGD, USEFUL,
as many random repeats, SGD with as many steps as USEFUL takes in all, its early epochs included, and SAM with and
without USEFUL. Ablations: factor 3, and separating too early and too late.

Learning rates: of 0.05, 0.1, 0.2, 0.4 and 0.8 the one of the least mean test error on development seeds, for every arm
its own (the ablations have USEFUL's); with SAM, of these and of the radii 0.0025 to 0.1. With SAM and USEFUL the radii
began at 0.005, which was the best: the one value at an edge.

Deviations. The slow feature counts as learned at a fixed alignment, since half of its final value says nothing in runs
that end before it is learned; a run that does not learn it counts as its full number of steps. The margin of SAM's
claim is about a twentieth of plain descent's gap, set on development seeds. The paper's gains, a fraction of a point,
are those of large networks on 50,000 images and 200 epochs; they need not appear here.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import RandomSampler, Subset, TensorDataset

import heldout
from heldout.data import early_output_clusters, gather, upsample, useful
from heldout.method import Method, Run
from heldout.nn import PatchCNN, small_cnn
from heldout.optim import SAM, sam
from heldout.study import Study, at_least, better, cheaper, higher_is_better, log_curve, lower_is_better
from heldout.tasks import fashion_mnist, stratified_split, two_feature_patches

LEARNED = 0.6  # alignment max_j <w_j, slow> at which the slow feature counts as learned
EARLY_STEP, SEPARATING_STEP = 50, 100
PATCH_STEPS = {"smoke": 150, "laptop": 2500}
IMAGES = {"smoke": (200, 500, 3, (4, 8)), "laptop": (1200, 5000, 16, (16, 32, 64))}  # train, test, epochs, widths
RHO = 0.005


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    return patches(arm, seed, profile) if arm["world"] == "patches" else images(arm, seed, profile)


def patches(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    data, test = two_feature_patches(200, seed=seed), two_feature_patches(2000, seed=seed + 1_000_000)
    repeated, metrics = torch.zeros(200, dtype=torch.bool), {}
    if arm["repeat"]:
        early, _ = descend(data.inputs, data.labels, SEPARATING_STEP, seed)
        with torch.no_grad():
            logits = early(data.inputs)
        losses = F.cross_entropy(logits, data.labels, reduction="none")
        repeated = early_output_clusters(logits, losses, data.labels, seed=seed)
        if arm["repeat"] == "random":
            repeated = as_many_at_random(repeated, seed)
        else:
            metrics["cluster_recall"] = repeated[~data.has_fast].double().mean().item()
    shown = gather(upsample(TensorDataset(data.inputs, data.labels), repeated), torch.arange(200 + int(repeated.sum())))
    model, filters = descend(*shown, PATCH_STEPS[profile], seed, rho=arm.get("rho", 0.0))
    fast, slow = ((filters @ direction).amax(1) for direction in (data.fast, data.slow))
    for step in range(0, len(filters), 25):
        log_curve("alignment with the fast feature", step + 1, fast[step].item())
        log_curve("alignment with the slow feature", step + 1, slow[step].item())
    metrics["early_gap"] = (fast - slow)[EARLY_STEP - 1].item()
    metrics["slow_steps"] = float((slow.cummax(0).values < LEARNED).sum())
    with torch.no_grad():
        metrics["patch_accuracy"] = (model(test.inputs).argmax(1) == test.labels).double().mean().item()
    return metrics


def descend(inputs: Tensor, labels: Tensor, steps: int, seed: int, rho: float = 0.0) -> tuple[nn.Module, Tensor]:
    """Returns the network after full-batch descent, or SAM, and its filters after each step (steps, filters, dim)."""
    model = PatchCNN(inputs.shape[-1], seed=seed)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if rho:
        optimizer = SAM(optimizer, rho)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss

    filters = []
    for _ in range(steps):
        optimizer.step(closure)  # type: ignore[arg-type]
        filters.append(model.weight.detach().clone())
    return model, torch.stack(filters)


def as_many_at_random(mask: Tensor, seed: int) -> Tensor:
    chosen = torch.randperm(len(mask), generator=torch.Generator().manual_seed(seed))[: int(mask.sum())]
    return torch.zeros_like(mask).index_fill(0, chosen, True)


def images(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    train_size, test_size, epochs, widths = IMAGES[profile]
    train, test = subset("train", train_size, seed), subset("test", test_size, seed)
    seen: list[int] = []
    counting = Method("count", data=lambda run, train_set: count(train_set, seen))
    fitted = heldout.fit(
        lambda: small_cnn(1, 10, widths).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        train,
        methods(arm) + counting,
        epochs=epochs,
        batch_size=64 if profile == "laptop" else 32,
        optimizer=functools.partial(torch.optim.SGD, lr=arm["lr"], momentum=0.9, weight_decay=5e-4),
        seed=seed,
    )
    for entry in fitted.history:
        log_curve("training loss", int(entry["epoch"]), entry["loss"])
    return {"test_error": 100 * (1 - fitted.evaluate(test)["accuracy"]), "examples_per_epoch": seen[0] / train_size}


def count(train_set: Any, seen: list[int]) -> Any:
    seen.append(len(train_set))
    return train_set


def methods(arm: dict[str, Any]) -> Method:
    data = {
        "slow": useful(arm.get("epoch"), factor=arm.get("factor", 2)),
        "random": Method("random", data=random_repeats),
        "none": Method("plain"),
        "more steps": Method("more steps", data=as_many_steps),
    }[arm["repeat"] or "none"]
    return data + sam(arm["rho"]) if "rho" in arm else data


def random_repeats(run: Run, train_set: Any) -> Subset:
    view: Any = useful().data(run, train_set)  # type: ignore[misc]
    repeated = torch.arange(len(train_set)) < len(view) - len(train_set)
    return upsample(train_set, as_many_at_random(repeated, run.seed))


def as_many_steps(run: Run, train_set: Any) -> RandomSampler:
    """Epochs of random examples, each so long that SGD takes all steps of USEFUL, the early ones included."""
    early: list[int] = []
    train_plain = run.train_plain

    def counted(dataset: Any, epochs: int) -> tuple[nn.Module, list[float]]:
        early.append(epochs)
        return train_plain(dataset, epochs)

    run.train_plain = counted
    view: Any = useful().data(run, train_set)  # type: ignore[misc]
    examples = len(view) + math.ceil(sum(early) * len(train_set) / run.epochs)
    return RandomSampler(train_set, num_samples=examples, generator=run.generator)


def subset(part: Literal["train", "test"], size: int, seed: int) -> TensorDataset:
    inputs, labels = fashion_at_half_resolution(part)
    (chosen,) = stratified_split(labels, (size,), seed=seed)
    return TensorDataset(inputs[chosen], labels[chosen])


@functools.cache
def fashion_at_half_resolution(part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    inputs, labels = fashion_mnist(part=part)
    return F.avg_pool2d(inputs, 2), labels


study = Study(
    slug="useful",
    title="Showing the examples that are learned late twice improves accuracy on the same distribution",
    arms={
        "patches gd": {"world": "patches", "repeat": None},
        "patches random": {"world": "patches", "repeat": "random"},
        "patches useful": {"world": "patches", "repeat": "slow"},
        "patches sam": {"world": "patches", "repeat": None, "rho": 0.05},
        "sgd": {"world": "images", "lr": 0.4, "repeat": None},
        "sgd, as many steps": {"world": "images", "lr": 0.2, "repeat": "more steps"},
        "random": {"world": "images", "lr": 0.4, "repeat": "random"},
        "useful": {"world": "images", "lr": 0.2, "repeat": "slow"},
        "sam": {"world": "images", "lr": 0.4, "repeat": None, "rho": RHO},
        "sam + useful": {"world": "images", "lr": 0.2, "repeat": "slow", "rho": RHO},
        "useful, factor 3": {"world": "images", "lr": 0.2, "repeat": "slow", "factor": 3},
        "useful, too early": {"world": "images", "lr": 0.2, "repeat": "slow", "epoch": 1},
        "useful, too late": {"world": "images", "lr": 0.2, "repeat": "slow", "epoch": IMAGES["laptop"][2]},
    },
    run=run,
    metrics={
        "cluster_recall": higher_is_better,
        "early_gap": lower_is_better,
        "slow_steps": lower_is_better,
        "patch_accuracy": higher_is_better,
        "test_error": lower_is_better,
        "examples_per_epoch": lower_is_better,
    },
    optional={"cluster_recall", "early_gap", "slow_steps", "patch_accuracy", "test_error", "examples_per_epoch"},
    claims=[
        at_least("patches useful", on="cluster_recall", value=0.95),
        better("patches sam", than="patches gd", on="early_gap", margin=0.025),
        cheaper("patches useful", than="patches gd", on="slow_steps", ratio=0.9),
        better("patches useful", than="patches random", on="slow_steps"),
        better("useful", than="sgd", on="test_error", margin=0.3),
        better("useful", than="random", on="test_error", margin=0.3),
        better("useful", than="sgd, as many steps", on="test_error"),
        better("sam + useful", than="sam", on="test_error"),
    ],
    seeds={"smoke": 1, "laptop": 12},
    time_limit={"smoke": 60.0, "laptop": 600.0},
)
