"""Patch Mixing: do patches of other images in training teach a convolutional network what a transformer does by itself?

Claim. Vision transformers lose less accuracy than convolutional networks when patches are replaced by those of other
images; trained with Patch Mixing, convolutional networks match them, and bear dropped and shuffled patches and
superimposed objects better, while the transformer gains nothing. Source: arXiv:2306.17848 (Lee et al., 2023).

World. 2,500 Fashion-MNIST images, 1,000 to test on, in a 7 x 7 grid: a convolutional network of 57,000 weights and a
transformer of 41,000, from scratch. ``replaced_*``: that percentage of the patches is another class's; ``dropped_50``:
half are grey; ``shuffled_*``: tiles in random order; ``occluded_*``: that percentage is covered by blobs, letters and
textures, which no arm has seen in training. ``replaced_drop``: ``clean`` less ``replaced_50``; ``replaced_gain``:
``replaced_50`` less that of the plain network of its kind; ``shuffle_drop``: ``clean`` less the mean of ``shuffled_2``
and ``shuffled_4``. ``selectivity``: with half of the patches replaced, how much more contrastive RISE finds in the
image's own pixels than in the others, in standard deviations of each map.

``drawings``: EfficientNet-Lite0 with ImageNet weights, its first three stages kept, on drawings of 12 kinds of things
in three styles at 64 x 64 (8 x 8 patches): first its head alone, on plain images in every arm, then the rest; tested on
other things in those styles. What occludes them are sprites of openclipart: games, instruments and signs.

Arms. All targets are smoothed by 0.1, the plain arms' too. ``cutmix`` mixes half of the batches, ``cutmix-always`` all
(the better one of each seed is compared); ``patchmix`` all, up to 0.7 of the patches; ``recipe`` is the paper's own
variant: for each batch one of Mixup, CutMix and Patch Mixing. ``patchdrop`` greys as many patches as Patch Mixing
replaces and keeps the label: ``dropped_50`` is not unseen there.

Deviations: tiny networks, a tenth of the epochs of an ImageNet recipe, no other augmentation; the transformer starts
without the selectivity that pretraining gives, so that nothing here speaks of large pretrained transformers. For time
it has no CutMix arm. On drawings neither transformer nor ``recipe`` nor
RISE, whose thousands of passes would cost more than an arm.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

import heldout
from heldout.data import CutMix, MixingChoice, Mixup, PatchMix, patch_mask, predict_all, soft_labels
from heldout.losses import label_smoothing, mixing_method, soft_cross_entropy
from heldout.measure import patch_drop_curve, patch_replacement_curve, patch_shuffle_curve, replaced_patch_selectivity
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
SIZES = {"smoke": (128, 60), "laptop": (2500, 1000)}  # training and test images
DRAWING_SIZES = {"smoke": (48, 24), "laptop": (500, 300)}
RISE = {"smoke": (2, 60), "laptop": (20, 250)}  # images and masks of each
EPOCHS = {"cnn": 12, "vit": 16, "drawings": 3, "head": 20}
RATES = {"cnn": 3e-3, "vit": 2e-3, "drawings": 5e-4, "head": 1e-3}
BATCH = {"cnn": 64, "vit": 64, "drawings": 16}
TEST_BATCH = {"cnn": 100, "vit": 100, "drawings": 25}  # as many as one core is fastest with
GRIDS = {"cnn": 7, "vit": 7, "drawings": 8}
METHODS = {
    "cnn": ("plain", "cutmix", "cutmix-always", "patchmix", "recipe", "patchdrop"),
    "vit": ("plain", "patchmix"),
    "drawings": ("plain", "cutmix", "cutmix-always", "patchmix"),
}

DATA = [STYLE, TAGS, ENET, CLIP]
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
    for level in (0.2, 0.4):
        parts = zip(kinds, test[0].chunk(len(kinds)), strict=True)
        occluded[f"occluded_{level:.0%}"[:-1]] = torch.cat([occluders(k, level)(x, generator) for k, x in parts])
    return train, test, occluded


def drawing_parts(seed: int, profile: str) -> tuple[Examples, Examples]:
    """Drawings in three of the styles (another three for each seed in turn); the things to test on are others."""
    pictures = drawings(size=64)
    parts = split_drawings(pictures, held_out=seed % 4, seed=seed)[:2]
    sizes = zip(parts, DRAWING_SIZES[profile], strict=True)
    chosen = (part[stratified_split(pictures.labels[part], (size,), seed=seed)[0]] for part, size in sizes)
    train, test = ((pictures.images[rows].float() / 255, pictures.labels[rows]) for rows in chosen)
    return train, test


def network(kind: str) -> nn.Module:
    if kind == "vit":
        return tiny_vit(28, 4, dim=32, depth=3, heads=4, num_classes=10, channels=1)
    blocks = []
    for inputs, outputs, stride in ((1, 32, 2), (32, 64, 2), (64, 64, 1)):
        blocks += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    net = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # only faster


class Kept(nn.Sequential):
    """Parts that stay as they are: training moves neither their weights nor the statistics of their BatchNorm."""

    def train(self, mode: bool = True) -> Kept:
        return super().train(False)


@functools.lru_cache(maxsize=1)
def pretrained(seed: int, profile: str) -> nn.Module:
    """The network with ImageNet weights and a head that was trained on its features of the plain training images."""
    (images, labels), _, _ = world(True, seed, profile)
    net = efficientnet_lite0(num_classes=12)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    features = predict_all(net[:-2], torch.utils.data.TensorDataset(images, labels), TEST_BATCH["drawings"])[0]
    smoothed, adam = label_smoothing(SMOOTHING), functools.partial(torch.optim.Adam, fused=True, lr=RATES["head"])
    head = heldout.fit(net[-1], (features, labels), smoothed, epochs=EPOCHS["head"], optimizer=adam, seed=seed)
    net[-1] = head.module
    kept = [name for name, _ in net.named_children()].index("stage4")
    parts = list(net)
    return nn.Sequential(Kept(*parts[:kept]).requires_grad_(False), *parts[kept:])


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
    if name in ("plain", "patchdrop"):
        return label_smoothing(SMOOTHING) if name == "plain" else patchdrop(grid)
    always = CutMix(label_smoothing=SMOOTHING)
    patch = PatchMix(grid=grid, ratio=RATIO, label_smoothing=SMOOTHING)
    mixings: dict[str, Any] = {
        "cutmix": CutMix(label_smoothing=SMOOTHING, prob=0.5),
        "cutmix-always": always,
        "patchmix": patch,
        "recipe": MixingChoice([Mixup(alpha=0.8, label_smoothing=SMOOTHING), always, patch]),
    }
    return mixing_method(mixings[name], name)


@functools.lru_cache(maxsize=4)
def trained(kind: str, method: str, seed: int, profile: str) -> nn.Module:
    train, _, _ = world(kind == "drawings", seed, profile)
    warm_up = functools.partial(OneCycleLR, pct_start=0.1, cycle_momentum=False, div_factor=10)
    return heldout.fit(
        pretrained(seed, profile) if kind == "drawings" else functools.partial(network, kind),
        train,
        method_of(method, GRIDS[kind]),
        epochs=EPOCHS[kind] if profile == "laptop" else 1,
        batch_size=BATCH[kind],
        optimizer=functools.partial(torch.optim.Adam, fused=True, lr=RATES[kind]),
        schedule=lambda optimizer, steps: warm_up(optimizer, RATES[kind], steps),
        seed=seed,
    ).module


def in_batches(kind: str, seed: int, profile: str) -> list[Examples]:
    images, labels = world(kind == "drawings", seed, profile)[1]
    return list(zip(images.split(TEST_BATCH[kind]), labels.split(TEST_BATCH[kind]), strict=True))


@functools.lru_cache(maxsize=8)
def replaced(kind: str, method: str, seed: int, profile: str) -> dict[float, float]:
    """Accuracy by the fraction of replaced patches, the same patches for every arm of a seed."""
    return patch_replacement_curve(
        trained(kind, method, seed, profile),
        in_batches(kind, seed, profile),
        grid=GRIDS[kind],
        fractions=(0.5,) if kind == "drawings" else (0.25, 0.5, 0.75),
        generator=torch.Generator().manual_seed(seed),
    )


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    kind, method = arm["kind"], arm["method"]
    _, (images, labels), occluded = world(kind == "drawings", seed, profile)
    module, loader = trained(kind, method, seed, profile), in_batches(kind, seed, profile)

    def accuracy(images: Tensor) -> float:
        dataset = torch.utils.data.TensorDataset(images, labels)
        return (predict_all(module, dataset, TEST_BATCH[kind])[0].argmax(1) == labels).double().mean().item()

    metrics = {"clean": accuracy(images)} | {name: accuracy(covered) for name, covered in occluded.items()}
    curve = replaced(kind, method, seed, profile)
    for fraction, value in curve.items():
        log_curve("replaced", fraction, value)
        metrics[f"replaced_{100 * fraction:.0f}"] = value
    metrics["replaced_drop"] = metrics["clean"] - curve[0.5]
    draws = torch.Generator().manual_seed(seed)
    dropped = patch_drop_curve(module, loader, grid=GRIDS[kind], fractions=[0.5], fill=0.5, generator=draws)
    metrics["dropped_50"] = dropped[0.5]
    grids = (2, 4) if kind == "drawings" else (2, 4, 7)
    shuffled = patch_shuffle_curve(module, loader, grids=grids, generator=torch.Generator().manual_seed(seed))
    metrics |= {f"shuffled_{grid}": value for grid, value in shuffled.items()}
    metrics["shuffle_drop"] = metrics["clean"] - (shuffled[2] + shuffled[4]) / 2
    if method == "patchmix":
        metrics["replaced_gain"] = curve[0.5] - replaced(kind, "plain", seed, profile)[0.5]
    if kind != "drawings" and method in ("plain", "patchmix"):
        model, (count, masks) = nn.Sequential(module, nn.Softmax(1)), RISE[profile]
        draws = torch.Generator().manual_seed(seed)
        found = replaced_patch_selectivity(model, images[:count], labels[:count], n_masks=masks, generator=draws)
        metrics["selectivity"] = found.mean().item()
    return metrics


def robust(name: str) -> list[Any]:
    """The specification's claims 1, 2 and 4 about one network."""
    ours, plain, cut = f"{name}-patchmix", f"{name}-plain", [f"{name}-cutmix", f"{name}-cutmix-always"]
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
    arms={f"{kind}-{each}": {"kind": kind, "method": each} for kind, methods in METHODS.items() for each in methods},
    run=run,
    metrics={
        **dict.fromkeys(("clean", "replaced_25", "replaced_50", "replaced_75", "dropped_50"), higher_is_better),
        **dict.fromkeys(("occluded_20", "occluded_40", "shuffled_2", "shuffled_4", "shuffled_7"), higher_is_better),
        **dict.fromkeys(("shuffle_drop", "replaced_drop"), lower_is_better),
        **dict.fromkeys(("replaced_gain", "selectivity"), higher_is_better),
    },
    needs={f"drawings-{each}": functools.partial(missing, DATA) for each in METHODS["drawings"]},
    optional={"replaced_gain", "selectivity", "replaced_25", "replaced_75", "shuffled_7"},
    shared_setup=True,
    claims=[
        better("vit-plain", than="cnn-plain", on="replaced_drop", margin=0.03),
        *robust("cnn"),
        better("cnn-patchmix", than="cnn-plain", on="selectivity"),
        better("cnn-patchmix", than="vit-patchmix", on="replaced_gain", margin=0.03),
        *robust("drawings"),
    ],
    seeds={"smoke": 1, "laptop": 5},
)
