"""PEGO: do low-rank adapters that are kept orthogonal to the pretrained weights carry further to unseen styles?

Claim. arXiv:2407.15085 (Hu et al., ECCV 2024) reports the state of the art on five DomainBed benchmarks with a CLIP
vision transformer, above full fine-tuning and above one LoRA adapter.

World. Procedural: a small vision transformer is pretrained on five classes of Fashion-MNIST in six styles, then tuned
on 900 images of the other five classes in three styles; ``unseen_accuracy`` is that in the three other styles, which it
has met in pretraining only. ``retention`` is the accuracy of a ridge classifier on the tuned features, on the task of
pretraining. ``real``: the upper part of EfficientNet-Lite0 as ImageNet made it is tuned on 12 kinds of things drawn in
three styles, and judged on other things in the fourth style, another for each seed in turn; ``retention`` is how often
a drawing of something else is nearest to the same thing in the other styles. ``overlap`` is the mean absolute entry of
W (W' - W)^T, ``source_accuracy`` that on validation images in the styles of training.

Arms. All start from the same pretrained model. ``lora_same_params`` is one adapter of rank N r: the same capacity as
``pego``, to the initialisation, without the penalty. ``lambda`` arms are PEGO at one weight, in the units of the paper:
the loss sums d^2 entries a layer, so it is multiplied by 768^2 / d^2. ``pego`` takes the weight of the best source
accuracy, as the paper does; ``preserve`` and ``diversify`` keep one term at the same weight. Learning rates are those
of the best source accuracy on development seeds, from grids in which the best is not the last.

Deviations. 12 x 12 pixels and 3 blocks; pretraining has seen the styles that are called unseen, as CLIP has. Drawings
at 64 x 64; that network has no attention, so that adapters sit on the linear ends of its blocks; BatchNorm keeps
ImageNet's statistics.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import heldout
from heldout.data import predict_all
from heldout.losses import pego
from heldout.method import Method, Run
from heldout.nn import VisionTransformer, tiny_vit
from heldout.study import Study, better, cheaper, higher_is_better, log_curve, lower_is_better
from heldout.tasks import (
    DRAWING_STYLES,
    DrawingTransfer,
    digits,
    drawing_transfer,
    fashion_mnist,
    retrieval,
    style_domains,
    why_no_drawing_transfer,
)

SOURCE, UNSEEN = ("plain", "colour", "stripes"), ("negative", "texture", "blurred")
RANK, SIZE, DIM = 4, 4, 64
LAMBDAS = (1e-5, 1e-4, 1e-3, 1e-2)
ENTRIES = {"procedural": DIM**2, "real": (4 * 192**2 + 320**2) / 5}  # of one product, mean over the adapted layers
REAL_EPOCHS = 8
# images for pretraining, for its probe (fit and test), for training, validation, and each unseen style; epochs of both
SIZES = {"smoke": (200, 100, 100, 50, 50, 1, 1), "laptop": (6000, 1000, 900, 600, 500, 5, 20)}


def network(profile: str) -> VisionTransformer:
    return tiny_vit(8 if profile == "smoke" else 12, patch_size=4, dim=DIM, depth=3, heads=4, num_classes=5)


@functools.lru_cache(maxsize=4)
def world(seed: int, profile: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Two tasks of five classes: one in all styles, to pretrain on; the other with styles that training never shows."""
    images, labels = digits() if profile == "smoke" else fashion_mnist()
    images = F.adaptive_avg_pool2d(images, 8 if profile == "smoke" else 12)
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randperm(10, generator=generator)
    new_label = torch.empty(10, dtype=torch.long).scatter_(0, classes, torch.arange(10) % 5)
    order = torch.randperm(len(images), generator=generator)
    pretraining = torch.isin(labels[order], classes[:5])
    pools = {"pretraining": order[pretraining], "downstream": order[~pretraining]}

    def take(task: str, count: int, styles: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        chosen, pools[task] = pools[task][:count], pools[task][count:]
        return style_domains(images[chosen], new_label[labels[chosen]], styles, seed=seed)[:2]

    pre, probe, train, val, unseen, *_ = SIZES[profile]
    return {
        "pretrain": take("pretraining", pre, SOURCE + UNSEEN),
        "probe_fit": take("pretraining", probe, SOURCE + UNSEEN),
        "probe_test": take("pretraining", probe, SOURCE + UNSEEN),
        "train": take("downstream", train, SOURCE),
        "val": take("downstream", val, SOURCE),
        "unseen": take("downstream", unseen * len(UNSEEN), UNSEEN),
    }


@functools.lru_cache(maxsize=4)
def pretrained(seed: int, profile: str) -> VisionTransformer:
    data = world(seed, profile)["pretrain"]
    optimizer = functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.05)
    epochs = SIZES[profile][5]
    module = heldout.fit(lambda: network(profile), data, epochs=epochs, optimizer=optimizer, seed=seed).module
    assert isinstance(module, VisionTransformer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module.head = nn.Linear(DIM, 5)
    return module


def retention(model: VisionTransformer, data: dict[str, tuple[Tensor, Tensor]]) -> float:
    """Accuracy of a ridge classifier on the features, on the task that the model was pretrained on."""

    def features(name: str) -> tuple[Tensor, Tensor]:
        z, y = predict_all(lambda x: model.features(x), torch.utils.data.TensorDataset(*data[name]))
        return torch.cat([z, torch.ones(len(z), 1)], 1).double(), y

    (z, y), (z_test, y_test) = features("probe_fit"), features("probe_test")
    ridge = torch.eye(z.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(z.T @ z + ridge, z.T @ (2 * F.one_hot(y, 5) - 1).double())
    return ((z_test @ weight).argmax(1) == y_test).double().mean().item()


def overlap_with_start(model: nn.Module, start: dict[str, Tensor]) -> float:
    """Mean absolute entry of ``W (W' - W)^T`` over the layers that get adapters, W pretrained and W' tuned."""
    overlaps = []
    for name, tuned in model.state_dict().items():
        parts = (slice(0, DIM), slice(2 * DIM, 3 * DIM)) if name.endswith("qkv.weight") else (slice(None),)
        if name.endswith(("qkv.weight", "linear.weight")):
            for rows in parts:  # of query and value, or all
                before = start[name][rows]
                overlaps.append((before @ (tuned[rows] - before).T).abs().mean().item())
    return sum(overlaps) / len(overlaps)


class Pointwise(nn.Module):
    """A 1 x 1 convolution as the linear layer over channels that it is, so that adapters can sit on it."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.linear = nn.Linear(convolution.in_channels, convolution.out_channels, bias=False)
        self.linear.weight.data.copy_(convolution.weight.detach().flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.movedim(1, -1)).movedim(-1, 1)


@functools.lru_cache(maxsize=1)
def drawn(seed: int) -> DrawingTransfer:
    """Drawings of three styles; the ends of the upper part's blocks, which are linear, are ready for adapters."""
    problem = drawing_transfer(seed % len(DRAWING_STYLES), seed=seed)
    for part in list(problem.network.modules()):
        if isinstance(body := getattr(part, "body", None), nn.Sequential):
            body[-2] = Pointwise(body[-2])  # type: ignore[arg-type]
    return problem


def is_pointwise(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and name.endswith("linear")


def freeze_all_but_head(run: Run, module: nn.Module) -> nn.Module:
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.startswith("head."))
    return module


class Recipe(NamedTuple):
    """How one model is tuned; ``lam`` in the units of the paper. Without rank the whole network is, or its head."""

    lr: float
    rank: int = 0
    size: int = 1
    lam: float = 0.0
    preserve: float = 1.0
    diversify: float = 1.0
    head_only: bool = False


@functools.lru_cache(maxsize=16)
def tuned(cell: str, recipe: Recipe, seed: int, profile: str) -> dict[str, float]:
    start: nn.Module
    if cell == "real":
        problem = drawn(seed)
        every = 2 if profile == "laptop" else 12
        data = {"train": tuple(column[::every] for column in problem.train), "val": problem.val}
        data["unseen"], start, epochs = problem.target, problem.network, REAL_EPOCHS if profile == "laptop" else 1
    else:
        data, start, epochs = world(seed, profile), pretrained(seed, profile), SIZES[profile][6]
    state = {name: value.clone() for name, value in start.state_dict().items()}
    splits = heldout.Splits(train=data["train"], val=data["val"], initial_state=state)
    method = Method("probe", model=freeze_all_but_head) if recipe.head_only else None
    if recipe.rank:
        method = pego(
            recipe.lam * 768**2 / ENTRIES[cell],
            recipe.rank,
            recipe.size,
            preserve=recipe.preserve,
            diversify=recipe.diversify,
            targets=is_pointwise if cell == "real" else None,
        )
    trainable: list[int] = []

    def adam(module: nn.Module) -> torch.optim.Optimizer:
        parameters = [p for p in module.parameters() if p.requires_grad]
        trainable.append(sum(p.numel() for p in parameters))
        return torch.optim.Adam(parameters, lr=recipe.lr)

    fitted = heldout.fit(start, splits, method, epochs=epochs, batch_size=60, optimizer=adam, seed=seed)
    if cell == "real":
        assert isinstance(fitted.module, nn.Sequential)
        kept = retrieval(fitted.module[:-1], problem.others_test) / 100
    else:
        assert isinstance(fitted.module, VisionTransformer)
        kept = retention(fitted.module, data)
    return {
        "unseen_accuracy": fitted.evaluate(data["unseen"])["accuracy"],
        "source_accuracy": fitted.evaluate(data["val"])["accuracy"],
        "retention": kept,
        "overlap": overlap_with_start(fitted.module, state),
        "parameters": float(trainable[0]),
    }


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    recipe = Recipe(**arm["recipe"])
    if arm.get("lam") == "chosen":
        both = recipe._replace(preserve=1.0, diversify=1.0)
        found = {lam: tuned(arm["cell"], both._replace(lam=lam), seed, profile)["source_accuracy"] for lam in LAMBDAS}
        for lam, accuracy in found.items():
            log_curve("source accuracy over lambda", lam, accuracy)
        recipe = recipe._replace(lam=max(found, key=found.__getitem__))
    return dict(tuned(arm["cell"], recipe, seed, profile))


def arms(cell: str, *, probe: float, full: float, lora: float, lora_same_params: float, pego: float) -> dict[str, Any]:
    """The arms of a cell, with the learning rate of each."""
    group = {"lr": pego, "rank": RANK, "size": SIZE}
    found: dict[str, Any] = {
        "probe": {"recipe": {"lr": probe, "head_only": True}},
        "full_ft": {"recipe": {"lr": full}},
        "lora": {"recipe": {"lr": lora, "rank": RANK}},
        "lora_same_params": {"recipe": {"lr": lora_same_params, "rank": RANK * SIZE}},
        **{f"lambda {lam:g}": {"recipe": group | {"lam": lam}} for lam in LAMBDAS},
        "pego": {"recipe": group, "lam": "chosen"},
        "preserve": {"recipe": group | {"diversify": 0.0}, "lam": "chosen"},
        "diversify": {"recipe": group | {"preserve": 0.0}, "lam": "chosen"},
    }
    prefix = "real " if cell == "real" else ""
    return {f"{prefix}{name}": {"cell": cell} | arm for name, arm in found.items()}


def claims(cell: str) -> list[better | cheaper]:
    return [
        better(f"{cell}lora", than=f"{cell}full_ft", on="unseen_accuracy", margin=0.01),
        better(f"{cell}pego", than=f"{cell}lora_same_params", on="unseen_accuracy", margin=0.005),
        better(f"{cell}pego", than=f"{cell}lora", on="retention", margin=0.005),
        cheaper(f"{cell}pego", than=f"{cell}lora", on="overlap", ratio=0.5),
        better(f"{cell}pego", than=f"{cell}preserve", on="unseen_accuracy", margin=-0.002),
        better(f"{cell}pego", than=f"{cell}diversify", on="unseen_accuracy", margin=-0.002),
    ]


def gates(cell: str) -> list[better]:
    """Tuning teaches the sources something that the frozen features do not, and costs some of what they held."""
    return [
        better(f"{cell}full_ft", than=f"{cell}probe", on="source_accuracy"),
        better(f"{cell}probe", than=f"{cell}full_ft", on="retention", margin=0.005),
    ]


REAL = arms("real", probe=1e-2, full=1e-3, lora=1e-3, lora_same_params=1e-3, pego=1e-3)

study = Study(
    slug="pego",
    title="Learn to Preserve and Diversify: Parameter-Efficient Group with Orthogonal Regularization",
    arms=arms("procedural", probe=1e-1, full=2e-3, lora=8e-3, lora_same_params=8e-3, pego=8e-3) | REAL,
    needs=dict.fromkeys(REAL, why_no_drawing_transfer),
    run=run,
    metrics={
        "unseen_accuracy": higher_is_better,
        "source_accuracy": higher_is_better,
        "retention": higher_is_better,
        "overlap": lower_is_better,
        "parameters": lower_is_better,
    },
    claims=[*claims(""), *claims("real ")],
    checks=[*gates(""), *gates("real ")],
    seeds={"smoke": 1, "laptop": 6},
    shared_setup=True,
)
