"""Grokking with corrupted labels: can memory and rule live side by side in a network, and can the memory be cut out?

Source: arXiv:2310.13061 (Doshi, Das, He, Gromov, ICLR 2024), which finds that a network can fit corrupted labels and
generalise at once, that neurons without a clear frequency hold the memorised labels, and that weight decay, dropout
and BatchNorm make it unlearn them after it has found the rule.

Here: addition modulo 59, half of all pairs to train on, 30 % of their labels drawn anew; the two-layer network of the
paper with 256 units, full-batch AdamW. ``corrupted_accuracy`` is that on the replaced labels as given (memory),
``truth_accuracy`` that on the same pairs by the rule, ``clean_accuracy`` that on the other training pairs.
``in_phase`` is 1 where ``memorization_phase`` names the phase that the arm is there for. The ``prune-*`` arms remove
half of the units of the ``wd2`` network: those with the lowest or highest participation ratio, or at random.
``batchnorm`` is trained in batches of 64 without weight decay on 65 % of the pairs, 20 % of them corrupted;
``gamma_correlation`` is that of its units' |gamma| and participation ratio.

``images*``: an ordinary ReLU network on 1,000 images of Fashion-MNIST with 30 % corrupted labels, where half of the
hidden units are cut by the participation ratio of their input weights in the basis of the cosine transform. On
development seeds the units of low ratio are those that matter least to test and memorised labels alike: the ratio ranks
units by their use, and does not tell memory from rule as it does where the rule is periodic.

Deviations: p = 59 instead of 97 and 256 units instead of 500, so that all seeds take minutes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import scipy.fft
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import heldout
from heldout.measure import memorization_phase, neuron_scores, participation_ratio
from heldout.method import evaluating
from heldout.nn import ModularMLP, mlp
from heldout.study import Study, at_least, at_most, better, cheaper, higher_is_better, log_curve, log_figure
from heldout.tasks import ArithmeticSplit, corrupt_labels, digits, fashion_mnist, modular
from heldout.train import full_batch, seeded
from heldout.weights import prune_units

# modulus, width, steps, passes of the BatchNorm arm; images to train on and to test, pixels, passes
SIZES = {"smoke": (23, 64, 100, 2, 300, 300, 8, 5), "laptop": (59, 256, 900, 57, 1000, 2000, 14, 80)}
Sets = dict[str, tuple[Tensor, Tensor]]


def sets_of(split: ArithmeticSplit) -> Sets:
    bad = split.is_corrupted
    sets = {"train": (split.x_train, split.y_train), "test": (split.x_test, split.y_test)}
    sets["clean"] = (split.x_train[~bad], split.y_train[~bad])
    if bad.any():
        sets["corrupted"] = (split.x_train[bad], split.y_train[bad])
        sets["truth"] = (split.x_train[bad], split.y_train_true[bad])
    return sets


@torch.no_grad()
def accuracies(model: nn.Module, sets: Sets) -> dict[str, float]:
    with evaluating(model):
        return {f"{name}_accuracy": (model(x).argmax(1) == y).double().mean().item() for name, (x, y) in sets.items()}


def one_hot_mse(logits: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(logits, F.one_hot(labels, logits.shape[1]).float())


@functools.lru_cache(maxsize=8)
def trained(
    seed: int, profile: str, weight_decay: float, corrupt: float, dropout: float
) -> tuple[ModularMLP, Sets, list[dict[str, float]]]:
    p, width, steps, *_ = SIZES[profile]
    split = modular("add", p, 0.5, corrupt, seed=seed)
    sets = sets_of(split)
    targets = F.one_hot(split.y_train, p).float()
    with seeded(seed):
        model = ModularMLP(p, width, dropout=dropout)
        watched = {name: sets[name] for name in ("train", "test", "corrupted") if name in sets}
        options: dict[str, Any] = {"steps": steps, "lr": 1e-2, "weight_decay": weight_decay, "evaluate": watched}
        history = list(full_batch(model, split.x_train, targets, loss=F.mse_loss, **options))
    return model, sets, history


def grokked(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    corrupt = arm.get("corrupt", 0.3)
    model, sets, history = trained(seed, profile, arm["wd"], corrupt, arm.get("dropout", 0.0))
    if "prune" in arm:
        return pruned(model, "embed", "output", neuron_scores(model.neuron_weights()), sets, arm["prune"], seed)
    for record in history:
        for name in ("train", "test", "corrupted"):
            if name in record:
                log_curve(f"{name}_accuracy", int(record["step"]), record[name])
    metrics = accuracies(model, sets)
    metrics["peak_train_accuracy"] = peak = max(record["train"] for record in history)
    phase = memorization_phase(metrics["train_accuracy"], metrics["test_accuracy"], corrupt, peak_train_acc=peak)
    if "phase" in arm:
        metrics["in_phase"] = float(phase == arm["phase"])
    scores = neuron_scores(model.neuron_weights(), lambda w: participation_ratio(w, allow_zero=True)).nan_to_num(1.0)
    log_figure("participation ratio of the units", histogram(scores))
    return metrics | {"mean_ipr": scores.mean().item()}


def batch_norm(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    p, width, _, epochs, *_ = SIZES[profile]
    split = modular("add", p, 0.65, 0.2, seed=seed)
    optimizer = functools.partial(torch.optim.AdamW, lr=5e-3, betas=(0.9, 0.98), weight_decay=0.0)
    train = (split.x_train, split.y_train)
    fitted = heldout.fit(
        lambda: ModularMLP(p, width, norm="batch"), train, epochs=epochs, batch_size=64, optimizer=optimizer,
        loss=one_hot_mse, seed=seed,
    )  # fmt: skip
    model = fitted.module
    assert isinstance(model, ModularMLP)
    scores = neuron_scores(model.neuron_weights())
    gamma = model.norm.weight.detach().abs()
    correlation = torch.corrcoef(torch.stack([scores, gamma]))[0, 1].item()
    return accuracies(model, sets_of(split)) | {"mean_ipr": scores.mean().item(), "gamma_correlation": correlation}


@functools.lru_cache(maxsize=2)
def trained_on_images(seed: int, profile: str) -> tuple[nn.Sequential, Sets]:
    *_, n, test, size, epochs = SIZES[profile]
    images, labels = digits() if profile == "smoke" else fashion_mnist()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: n + test]
    images, labels = F.adaptive_avg_pool2d(images[order], size), labels[order]
    noisy, bad = corrupt_labels(labels[:n], 0.3, 10, seed=seed)
    split = ArithmeticSplit(images[:n], noisy, labels[:n], bad, images[n:], labels[n:])
    optimizer = functools.partial(torch.optim.Adam, lr=3e-3)
    train = (split.x_train, split.y_train)
    fitted = heldout.fit(lambda: mlp(size**2, 10, (512,)), train, epochs=epochs, optimizer=optimizer, seed=seed)
    assert isinstance(fitted.module, nn.Sequential)
    return fitted.module, sets_of(split)


def on_images(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    model, sets = trained_on_images(seed, profile)
    if "prune" not in arm:
        return accuracies(model, sets)
    size = SIZES[profile][6]
    first = model.get_parameter("1.weight").detach()

    def cosines(w: Tensor) -> Tensor:
        return torch.from_numpy(scipy.fft.dctn(w.view(-1, size, size).numpy(), axes=(1, 2), norm="ortho")).flatten(1)

    scores = neuron_scores([(first, 0)], functools.partial(participation_ratio, basis=cosines))
    return pruned(model, "1", "3", scores, sets, arm["prune"], seed)


def pruned(
    model: nn.Module, layer_in: str, layer_out: str, scores: Tensor, sets: Sets, first: str, seed: int
) -> dict[str, float]:
    """Accuracies with half of the units gone; the whole curve is logged."""
    order = scores.argsort()
    if first == "high":
        order = order.flip(0)
    elif first == "random":
        order = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))
    curve = prune_units(model, layer_in, layer_out, order, lambda m: accuracies(m, sets), steps=16)
    for count, value in zip(curve.removed, curve.values, strict=True):
        for name in ("train_accuracy", "test_accuracy", "corrupted_accuracy"):
            log_curve(f"{name} by units removed", count, value[name])
    return curve.values[len(curve.values) // 2] | {"mean_ipr": scores.mean().item()}


def histogram(scores: Tensor) -> dict[str, Any]:
    x = {"bin": {"step": 0.05}, "field": "ratio", "type": "quantitative", "title": "inverse participation ratio"}
    y = {"aggregate": "count", "type": "quantitative", "title": "units"}
    values = [{"ratio": score} for score in scores.tolist()]
    return {"mark": "bar", "data": {"values": values}, "encoding": {"x": x, "y": y}}


def run(arm: dict[str, Any], seed: int, profile: str) -> Mapping[str, float]:
    world = {"modular": grokked, "batchnorm": batch_norm, "images": on_images}[arm["world"]]
    return world(arm, seed, profile)


def modular_arm(wd: float, **more: Any) -> dict[str, Any]:
    return {"world": "modular", "wd": wd, **more}


study = Study(
    slug="grok-corrupted",
    title="To grok or not to grok: Disentangling generalization and memorization on corrupted algorithmic datasets",
    arms={
        "wd0": modular_arm(0, phase="memorisation"),
        "wd2": modular_arm(2, phase="coexistence"),
        "wd5": modular_arm(5),
        "wd10": modular_arm(10, phase="full inversion"),
        "wd20": modular_arm(20, phase="forgetting"),
        "dropout": modular_arm(2, dropout=0.5),
        "no-corruption": modular_arm(5, corrupt=0.0),
        "prune-low": modular_arm(2, prune="low"),
        "prune-high": modular_arm(2, prune="high"),
        "prune-random": modular_arm(2, prune="random"),
        "batchnorm": {"world": "batchnorm"},
        "images": {"world": "images"},
        "images-low": {"world": "images", "prune": "low"},
        "images-high": {"world": "images", "prune": "high"},
        "images-random": {"world": "images", "prune": "random"},
    },
    run=run,
    metrics={
        "train_accuracy": higher_is_better,
        "clean_accuracy": higher_is_better,
        "corrupted_accuracy": higher_is_better,
        "truth_accuracy": higher_is_better,
        "test_accuracy": higher_is_better,
        "peak_train_accuracy": higher_is_better,
        "in_phase": higher_is_better,
        "mean_ipr": higher_is_better,
        "gamma_correlation": higher_is_better,
    },
    optional={
        "corrupted_accuracy", "truth_accuracy", "peak_train_accuracy", "in_phase", "mean_ipr", "gamma_correlation",
    },
    claims=[
        at_least("wd2", on="corrupted_accuracy", value=0.98),
        at_least("wd2", on="test_accuracy", value=0.95),
        at_most("wd10", on="corrupted_accuracy", value=0.15),
        better("wd2", than="prune-low", on="corrupted_accuracy", margin=0.5),
        better("prune-low", than="wd2", on="test_accuracy", margin=-0.02),
        better("prune-low", than=["prune-high", "prune-random"], on="test_accuracy", margin=0.2),
        at_most("wd10", on="train_accuracy", value=0.8),
        cheaper("dropout", than="wd2", on="corrupted_accuracy", ratio=0.9),
        at_least("batchnorm", on="gamma_correlation", value=0.0),
        better("images-low", than="images", on="test_accuracy", margin=-0.02),
        better("images-low", than="images-random", on="test_accuracy", margin=0.02),
    ],
    checks=[
        at_least("wd10", on="test_accuracy", value=0.98),
        at_least("wd10", on="peak_train_accuracy", value=0.97),
    ],
    seeds={"smoke": 1, "laptop": 3},
    shared_setup=True,
)  # fmt: skip
