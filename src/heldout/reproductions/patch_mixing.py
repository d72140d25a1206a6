"""Patch Mixing: do patches of other images in training teach a convolutional network what a transformer does by itself?

Claim. Vision transformers lose less accuracy than convolutional networks when patches are replaced by those of other
images; trained with Patch Mixing, convolutional networks match them, and bear dropped and shuffled patches and
superimposed objects better, while the transformer gains nothing. Source: arXiv:2306.17848 (Lee et al., 2023).

World. 2,500 Fashion-MNIST images, 1,000 to test on, in a 7 x 7 grid: a convolutional network and a transformer of
about its size, from scratch. ``replaced_*``: that percentage of the patches is another class's; ``dropped_50``: half of
them are grey; ``shuffled_*``: tiles in random order; ``occluded_*``: that percentage is covered by blobs, letters and
textures, which no arm has seen in training. ``replaced_gain``: ``replaced_50`` less that of the plain network of the
same kind; ``shuffle_drop``: ``clean`` less the mean of ``shuffled_2`` and ``shuffled_4``.

``drawings``: EfficientNet-Lite0 with ImageNet weights, those of its first three stages kept, on drawings of 12 kinds of
things in three styles at 64 x 64 (8 x 8 patches): first its head alone, on plain images in every arm, then the rest;
tested on other things in those styles. What occludes them are sprites of openclipart: games, instruments and signs.

Arms. All targets are smoothed by 0.1, the plain arms' too. ``cutmix`` mixes half of the batches, ``cutmix-always`` all
(the two settings of its paper; the better one of each seed is compared); ``patchmix`` all, up to 0.7 of the patches;
``recipe`` is the paper's own variant: for each batch one of Mixup, CutMix and Patch Mixing. ``patchdrop`` greys as many
patches as Patch Mixing replaces and keeps the label: ``dropped_50`` is not unseen there.

Deviations: tiny networks, a tenth of the epochs of an ImageNet recipe, no other augmentation; the transformer starts
without the selectivity that pretraining gives, so that nothing here speaks of large pretrained transformers. On
drawings neither transformer nor ablations.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

import heldout
from heldout.data import CutMix, MixingChoice, Mixup, PatchMix, patch_mask, predict_all, soft_labels
from heldout.losses import label_smoothing, mixing_method, soft_cross_entropy
from heldout.measure import patch_drop_curve, patch_replacement_curve, patch_shuffle_curve
from heldout.method import Batch, Method, Run
from heldout.nn import efficientnet_lite0, tiny_vit
from heldout.sources import CLIP, ENET, STYLE, TAGS, missing
from heldout.study import Study, better, higher_is_better, log_curve, lower_is_better
from heldout.tasks import (
    OCCLUDERS,
    clipart_sprites,
    drawings,
    fashion_mnist,
    occluders,
    split_drawings,
    stratified_split,
)

SMOOTHING, RATIO = 0.1, (0.0, 0.7)
LEVELS = (0.2, 0.4)
SIZES = {"smoke": (128, 60), "laptop": (2500, 1000)}  # training and test images
DRAWING_SIZES = {"smoke": (48, 24), "laptop": (500, 300)}
EPOCHS = {"cnn": 12, "vit": 16, "enet": 3}
HEAD_EPOCHS = 20
BATCH = {"cnn": 64, "vit": 64, "enet": 16}
GRIDS = {"cnn": 7, "vit": 7, "enet": 8}


Examples = tuple[Tensor, Tensor]


@functools.lru_cache(maxsize=2)
def world(real: bool, seed: int, profile: str) -> tuple[Examples, Examples, dict[str, Tensor]]:
    """Training images with labels, test images with labels, and the test images occluded, by metric."""
    kinds: list[Any] = [clipart_sprites(size=32)] if real else list(OCCLUDERS)
    if real:
        train, test = drawing_parts(seed, profile)
    else:
        images, labels = fashion_mnist(part="train" if profile == "laptop" else "test")
        train, test = ((images[p], labels[p]) for p in stratified_split(labels, SIZES[profile], seed=seed))
    generator, occluded = torch.Generator().manual_seed(seed), {}
    for level in LEVELS:
        parts = zip(kinds, test[0].chunk(len(kinds)), strict=True)
        occluded[f"occluded_{level:.0%}"[:-1]] = torch.cat([occluders(k, level)(x, generator) for k, x in parts])
    return train, test, occluded


def drawing_parts(seed: int, profile: str) -> tuple[Examples, Examples]:
    """Drawings in three of the styles (another three for each seed in turn); the things to test on are others."""
    pictures = drawings(size=64)
    parts = split_drawings(pictures, held_out=seed % 4, seed=seed)[:2]
    chosen = []
    for part, size in zip(parts, DRAWING_SIZES[profile], strict=True):
        (kept,) = stratified_split(pictures.labels[part], (size,), seed=seed)
        chosen.append((pictures.images[part[kept]].float() / 255, pictures.labels[part[kept]]))
    return chosen[0], chosen[1]


def network(kind: str) -> nn.Module:
    if kind == "vit":
        return tiny_vit(28, 4, dim=32, depth=3, heads=4, num_classes=10, channels=1)
    blocks = []
    for inputs, outputs, stride in ((1, 32, 2), (32, 64, 2), (64, 64, 1)):
        blocks += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def pretrained(seed: int, profile: str) -> nn.Module:
    """The network with ImageNet weights and a head that was trained on its features of the plain training images."""
    (images, labels), _, _ = world(True, seed, profile)
    net = efficientnet_lite0(num_classes=12)
    features = predict_all(net[:-2], torch.utils.data.TensorDataset(images, labels), 100)[0]
    adam = functools.partial(torch.optim.Adam, lr=1e-3)
    net[-1] = heldout.fit(
        net[-1], (features, labels), label_smoothing(SMOOTHING), epochs=HEAD_EPOCHS, optimizer=adam, seed=seed
    ).module
    net[: [name for name, _ in net.named_children()].index("stage4")].requires_grad_(False)
    return net


def patchdrop(grid: int) -> Method:
    """Greys as many patches as Patch Mixing replaces; the label stays."""

    def loss(run: Run, batch: Batch) -> Tensor:
        images, count = batch.inputs, len(batch.targets)
        ratio = RATIO[0] + (RATIO[1] - RATIO[0]) * torch.rand(count, generator=run.generator)
        mask = patch_mask(torch.rand(count, grid, grid, generator=run.generator), ratio, *images.shape[-2:])
        targets = soft_labels(batch.targets, run.num_classes or 0, smoothing=SMOOTHING)
        return soft_cross_entropy(batch.with_inputs(images.masked_fill(mask.unsqueeze(1), 0.5)).logits, targets)

    return Method("patchdrop", loss=loss)


def method_of(name: str, grid: int) -> Method:
    cut = CutMix(label_smoothing=SMOOTHING, prob=0.5)
    patch = PatchMix(grid=grid, ratio=RATIO, label_smoothing=SMOOTHING)
    if name == "plain":
        return label_smoothing(SMOOTHING)
    if name == "patchdrop":
        return patchdrop(grid)
    always = CutMix(label_smoothing=SMOOTHING)
    recipe = MixingChoice([Mixup(alpha=0.8, label_smoothing=SMOOTHING), always, patch])
    mixings: dict[str, Any] = {"cutmix": cut, "cutmix-always": always, "patchmix": patch, "recipe": recipe}
    return mixing_method(mixings[name], name)


def optimizer_of(kind: str) -> Any:
    rate = {"cnn": 3e-3, "vit": 2e-3, "enet": 5e-4}[kind]
    return lambda module: torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=rate)


def warm_up_then_cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    warm = max(1, steps // 10)
    parts: list[Any] = [
        torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=warm),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warm)),
    ]
    return torch.optim.lr_scheduler.SequentialLR(optimizer, parts, [warm])


@functools.lru_cache(maxsize=4)
def trained(kind: str, method: str, seed: int, profile: str) -> nn.Module:
    train, _, _ = world(kind == "enet", seed, profile)
    return heldout.fit(
        functools.partial(pretrained, seed, profile) if kind == "enet" else functools.partial(network, kind),
        train,
        method_of(method, GRIDS[kind]),
        epochs=EPOCHS[kind] if profile == "laptop" else 1,
        batch_size=BATCH[kind],
        optimizer=optimizer_of(kind),
        schedule=warm_up_then_cosine,
        seed=seed,
    ).module


def accuracy(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    outputs, _ = predict_all(module, torch.utils.data.TensorDataset(images, labels), 100)
    return (outputs.argmax(1) == labels).double().mean().item()


def replaced(kind: str, method: str, seed: int, profile: str) -> dict[float, float]:
    """Accuracy by the fraction of replaced patches, the same patches for every arm of a seed."""
    _, (images, labels), _ = world(kind == "enet", seed, profile)
    loader = list(zip(images.split(100), labels.split(100), strict=True))
    fractions = (0.5,) if kind == "enet" else (0.25, 0.5, 0.75)
    generator = torch.Generator().manual_seed(seed)
    return patch_replacement_curve(
        trained(kind, method, seed, profile), loader, grid=GRIDS[kind], fractions=fractions, generator=generator
    )


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    kind, method, real = arm["model"], arm["method"], arm["model"] == "enet"
    _, (images, labels), occluded = world(real, seed, profile)
    module = trained(kind, method, seed, profile)
    loader = list(zip(images.split(100), labels.split(100), strict=True))
    metrics = {"clean": accuracy(module, images, labels)}
    curve = replaced(kind, method, seed, profile)
    for fraction, value in curve.items():
        log_curve("replaced", fraction, value)
        metrics[f"replaced_{100 * fraction:.0f}"] = value
    dropped = patch_drop_curve(
        module, loader, grid=GRIDS[kind], fractions=[0.5], fill=0.5, generator=torch.Generator().manual_seed(seed)
    )
    metrics["dropped_50"] = dropped[0.5]
    grids = (2, 4) if real else (2, 4, 7)
    shuffled = patch_shuffle_curve(module, loader, grids=grids, generator=torch.Generator().manual_seed(seed))
    metrics |= {f"shuffled_{grid}": value for grid, value in shuffled.items()}
    metrics["shuffle_drop"] = metrics["clean"] - (shuffled[2] + shuffled[4]) / 2
    metrics |= {name: accuracy(module, covered, labels) for name, covered in occluded.items()}
    if method == "patchmix":
        metrics["replaced_gain"] = curve[0.5] - replaced(kind, "plain", seed, profile)[0.5]
    return metrics


ARMS = {
    "cnn": ("plain", "cutmix", "cutmix-always", "patchmix", "recipe", "patchdrop"),
    "vit": ("plain", "cutmix", "patchmix"),
    "enet": ("plain", "cutmix", "patchmix"),
}
NAMES = {"cnn": "cnn", "vit": "vit", "enet": "drawings"}
ALL_ARMS = {
    f"{NAMES[kind]}-{method}": {"model": kind, "method": method} for kind, methods in ARMS.items() for method in methods
}


def robust(name: str) -> list[Any]:
    """The specification's claims 1, 2 and 4 about one network."""
    ours, plain = f"{name}-patchmix", f"{name}-plain"
    cut = [f"{name}-{method}" for method in ("cutmix", "cutmix-always") if f"{name}-{method}" in ALL_ARMS]
    return [
        better(ours, than=plain, on="replaced_50", margin=0.05),
        better(ours, than=plain, on="clean", margin=-0.01),
        better(ours, than=plain, on="occluded_40", margin=0.02),
        better(ours, than=plain, on="dropped_50", margin=0.02),
        better(ours, than=cut, on="occluded_40"),
        better(ours, than=cut, on="dropped_50"),
        better(ours, than=plain, on="shuffle_drop"),
    ]


study = Study(
    slug="patch-mixing",
    title="Hardwiring ViT Patch Selectivity into CNNs using Patch Mixing",
    arms=ALL_ARMS,
    run=run,
    metrics={
        **dict.fromkeys(("clean", "replaced_25", "replaced_50", "replaced_75", "dropped_50"), higher_is_better),
        **dict.fromkeys(("occluded_20", "occluded_40", "shuffled_2", "shuffled_4", "shuffled_7"), higher_is_better),
        "shuffle_drop": lower_is_better,
        "replaced_gain": higher_is_better,
    },
    needs=dict.fromkeys(
        [f"drawings-{method}" for method in ARMS["enet"]], functools.partial(missing, [STYLE, TAGS, ENET, CLIP])
    ),
    optional={"replaced_gain", "replaced_25", "replaced_75", "shuffled_7"},
    shared_setup=True,
    claims=[
        *robust("cnn"),
        better("cnn-patchmix", than="vit-patchmix", on="replaced_gain", margin=0.03),
        *robust("drawings"),
    ],
    seeds={"smoke": 1, "laptop": 5},
)
