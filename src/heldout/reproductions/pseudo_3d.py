"""Pseudo-3-D residual networks: does a convolution over space and one over time do what a whole 3-D one does?

Claim. P3D blocks beat a frame-averaged 2-D network where motion tells the class and tie with it where a frame does;
they reach what whole 3 x 3 x 3 convolutions reach, also under shift, with under half of their weights; they take their
spatial part from a 2-D network, which pays where clips are few; mixing the three arrangements is no worse than the best
of them. Source: arXiv:1711.10305 (Qiu et al., ICCV 2017).

World. ``shapes``: 5 frames of 24 x 24, a coloured shape over a still texture; what it is (3 shapes) and how it moves
(8 motions) are independent, and one network learns both with two heads: ``appearance`` and ``motion``. The test clips
are there forwards and backwards: ``direction``, a motion told from its opposite, is exactly one half without a sense of
order. Shifts: speed x 1.5 and x 2, other textures, other shapes; ``*_drop`` is ``motion`` less that under the shift.

``drawings``: real drawings of 12 kinds of things over pieces of a real photograph, 4 frames of 32 x 32, moving left,
right, up or down; tested on other things in the styles and over the photograph of training, and (``target_*``) in
another style over another photograph.

Arms. ``frames``: 2-D, logits averaged; ``full``: 3 x 3 x 3; ``a``, ``b``, ``c``; ``mixed``: A, B, C in turn, the
paper's. All see the same 6,500 clips once. ``appearance-*``: trained to name the shape alone, for the tie: one that
learns motion as well names shapes less well. ``few-*``: ``mixed`` on 200 clips, 20 times: ``random``, and ``init``, the
paper's, spatial parts from a 2-D network that has learnt to name the shapes in one frame of each other clip, T random.
``drawings-*``, 1,500 clips once: EfficientNet-Lite0 up to its third stage, a convolution over time behind the last one
of each block (A, B, C in turn, T random): ``imagenet``, with ImageNet weights; ``random``, without; ``frames``, with
them and nothing over time. ``middle_share``: weights of the units' convolutions by those of ``full``; ``flops``: of a
forward pass on one clip.

Settings. Adam, 10 % of warm-up, cosine. Each arm has its own rate, the best in the sum of ``motion`` and ``appearance``
on ``iid`` of development seeds 1000 and 1001: of 0.003, 0.01, 0.03 and 0.1; for ``appearance-*`` without 0.1; for
``drawings-*`` with 0.001. ``b``, whose best is 0.1, learnt nothing at 0.3. Rates were searched with 7,500 clips but for
``appearance-*``; the worlds' and networks' sizes were chosen on seed 1000 so that motion and appearance can be learnt
in the time. The 2-D network of ``few-init`` has the rate of that arm.

Deviations. Three basic blocks of 16, 16 and 32 channels, no pooling of time, 5 frames for 8: no time for more. The
specification has the 2-D network at chance on the eight motions by construction. That is true of ``direction`` alone: a
network that is blind to order may tell pairs of motions by how much the frames of a clip differ, which one that
averages logits hardly can. ImageNet weights in EfficientNet instead of ResNet: ReLU6 and BatchNorm follow S and T, none
lies between. Two photographs only, one to train and one to test on.
"""

from __future__ import annotations

import functools
import warnings
from collections import OrderedDict
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import heldout
from heldout.data import predict_all
from heldout.method import evaluating
from heldout.nn import FrameAverage, MobileBlock, P3DResNet, P3DUnit, add_temporal, efficientnet_lite0, inflate_2d
from heldout.sources import ENET, STYLE, TAGS, missing
from heldout.study import Study, at_least, at_most, better, cheaper, equivalent, higher_is_better, lower_is_better
from heldout.tasks import (
    DRAWING_CLASSES,
    GROUND_TEXTURES,
    MOTIONS,
    MOVING_SHAPES,
    MovingClips,
    cut_out,
    drawings,
    forwards_and_backwards,
    moving_clips,
    moving_shapes,
    photo_crops,
    photographs,
    split_drawings,
)

SEEN = ("wedge", "hook", "L")
SIZES = {"smoke": (32, 16), "laptop": (6500, 384)}  # training and test clips
COUNT = {"smoke": {"few": 16}, "laptop": {"few": 200}}  # of the training clips
DRAWN = {"smoke": (16, 8), "laptop": (1500, 256)}
EPOCHS = {"shapes": 1, "appearance": 1, "few": 20, "drawings": 1}
BATCH = {"shapes": 16, "appearance": 16, "few": 8, "drawings": 8}
VARIANTS = {"frames": ["2D"], "full": ["3D"], "a": ["A"], "b": ["B"], "c": ["C"], "mixed": ["A", "B", "C"]}
SMALL: Any = {"width": 16, "frames": 5, "temporal_pool": False, "stem_stride": 3, "stem_kernel": 5, "stem_pool": False}
SHIFTS: dict[str, dict[str, Any]] = {
    "iid": {},
    "speed_1.5": {"speed": 1.5},
    "speed_2": {"speed": 2.0},
    "ground": {"grounds": GROUND_TEXTURES[2:]},
    "shape": {"shapes": [shape for shape in MOVING_SHAPES if shape not in SEEN]},
}


class TwoHeads(nn.Module):
    """Logits of pairs (motion, thing) as sums of two logits: their cross-entropy is the sum of two cross-entropies."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, clips: Tensor) -> Tensor:
        logits = self.net(clips)
        motion, thing = logits[:, : len(MOTIONS)], logits[:, len(MOTIONS) :]
        return (motion.unsqueeze(2) + thing.unsqueeze(1)).flatten(1)


@functools.lru_cache(maxsize=1)
def shapes(seed: int, profile: str) -> dict[str, MovingClips]:
    """``train``, and a test set by shift."""
    generator = torch.Generator().manual_seed(seed)
    train, test = SIZES[profile]
    draw = functools.partial(moving_shapes, size=24, frames=5, seed=generator)
    found = {name: forwards_and_backwards(draw(test, **({"shapes": SEEN} | shift))) for name, shift in SHIFTS.items()}
    return found | {"train": draw(train, shapes=SEEN)}


@functools.lru_cache(maxsize=1)
def drawn(seed: int, profile: str) -> dict[str, MovingClips]:
    """``train``, ``iid`` (other things) and ``target`` (those things in another style, over another photograph)."""
    pictures, photos = drawings(size=32), list(photographs().values())
    parts = split_drawings(pictures, held_out=seed % 4, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    (train, test), here = DRAWN[profile], seed // 4 % 2
    found = {}
    for name, part, count, photo in zip(
        ("train", "iid", "target"), parts, (train, test, test), (here, here, 1 - here), strict=True
    ):
        chosen = part[torch.randperm(len(part), generator=generator)[:count]]
        motions = torch.arange(len(chosen)) % 4  # left, right, up, down
        grounds = photo_crops(photos[photo], len(chosen), size=32, seed=generator)
        sprites = cut_out(pictures.images[chosen].float() / 255)
        clips = moving_clips(sprites, grounds, motions, frames=4, seed=generator)
        found[name] = MovingClips(clips, motions, pictures.labels[chosen])
    return found | {name: forwards_and_backwards(found[name]) for name in ("iid", "target")}


def pairs(moving: MovingClips, things: int) -> tuple[Tensor, Tensor]:
    return moving.clips, moving.motions * things + moving.labels


def network(variants: list[str], outputs: int = len(MOTIONS) + len(SEEN)) -> P3DResNet:
    """Two basic blocks of 16 channels and one of 32; the stem makes 8 x 8 of 24 x 24 pixels, time is not pooled."""
    return P3DResNet((2, 1), outputs, variants=variants, block="basic", dropout=0.0, **SMALL)


def warm_up_and_cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, optimizer.defaults["lr"], total_steps=steps, pct_start=0.1)


def trained(net: Any, data: tuple[Tensor, Tensor], epochs: int, batch: int, rate: float, seed: int) -> nn.Module:
    options: Any = {"epochs": epochs, "batch_size": batch, "schedule": warm_up_and_cosine, "seed": seed}
    return heldout.fit(net, data, optimizer=functools.partial(torch.optim.Adam, lr=rate, fused=True), **options).module


def few_network(start: str, rate: float, seed: int, profile: str) -> nn.Module:
    """Its spatial parts from a 2-D network that names the shapes in one frame of each clip behind the few."""
    net = network(VARIANTS["mixed"])
    if start == "init":
        clips, _, labels = (part[COUNT[profile]["few"] :] for part in shapes(seed, profile)["train"])
        at = torch.randint(clips.shape[2], (len(clips),), generator=torch.Generator().manual_seed(seed))
        frames = clips[torch.arange(len(clips)), :, at].unsqueeze(2)
        flat = trained(functools.partial(network, ["2D"], len(SEEN)), (frames, labels), 1, BATCH["shapes"], rate, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its head names shapes alone, that of two tasks stays new
            inflate_2d(flat, net, "he", seed=seed)
    return TwoHeads(net)


def drawing_network(start: str, seed: int) -> nn.Module:
    """EfficientNet-Lite0 up to its third stage, and what looks over time behind the last convolution of each block."""
    whole = efficientnet_lite0(pretrained=start != "random", seed=seed)
    parts = OrderedDict(list(whole.named_children())[:5])
    parts |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    parts["head"] = nn.Linear(40, len(MOTIONS) + len(DRAWING_CLASSES))
    net = nn.Sequential(parts).train()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.1  # that of the package is made for long training
    blocks = [(name, block) for name, block in net.named_modules() if isinstance(block, MobileBlock)]
    names = [f"{name}.body.{len(block.body) - 2}" for name, block in blocks]
    video = FrameAverage(net) if start == "frames" else add_temporal(net, temporal_init="he", names=names, seed=seed)
    return TwoHeads(video).to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


def judged(module: nn.Module, moving: MovingClips, things: int) -> dict[str, float]:
    """Accuracy on things; on motions, where it has two heads, with how often a motion is told from its opposite."""
    logits = predict_all(module, torch.utils.data.TensorDataset(*pairs(moving, things)), 100)[0]
    motion, thing = logits.unflatten(1, (-1, things)).mean(2), logits.unflatten(1, (-1, things)).mean(1)
    found = {"appearance": (thing.argmax(1) == moving.labels).double().mean().item()}
    if motion.shape[1] == 1:
        return found
    own, other = (motion.gather(1, each.unsqueeze(1)) for each in (moving.motions, moving.motions ^ 1))
    return found | {
        "motion": (motion.argmax(1) == moving.motions).double().mean().item(),
        "direction": ((own - other).sign() / 2 + 0.5).double().mean().item(),
    }


def cost(name: str) -> dict[str, float]:
    """Weights of the units' convolutions by those of ``full``, all parameters, and operations on one clip."""
    net, full = network(VARIANTS[name]), network(VARIANTS["full"])
    mine, whole = (
        sum(p.numel() for unit in each.modules() if isinstance(unit, P3DUnit) for p in unit.parameters() if p.ndim == 5)
        for each in (net, full)
    )
    with evaluating(net), torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 5, 24, 24))
    parameters = sum(p.numel() for p in net.parameters())
    return {"middle_share": mine / whole, "parameters": parameters, "flops": counter.get_total_flops()}


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    cell, start, rate = arm["cell"], arm["start"], arm["rate"]
    things = len(DRAWING_CLASSES) if cell == "drawings" else len(SEEN)
    world = drawn(seed, profile) if cell == "drawings" else shapes(seed, profile)
    build: dict[str, Any] = {
        "shapes": lambda: TwoHeads(network(VARIANTS[start])),
        "appearance": lambda: network(VARIANTS[start], len(SEEN)),
        "few": lambda: few_network(start, rate, seed, profile),
        "drawings": lambda: drawing_network(start, seed),
    }
    seen = MovingClips(*(part[: COUNT[profile].get(cell)] for part in world["train"]))
    data = (seen.clips, seen.labels) if cell == "appearance" else pairs(seen, things)
    epochs = EPOCHS[cell] if profile == "laptop" else 1
    module = trained(build[cell], data, epochs, BATCH[cell], rate, seed)
    metrics = judged(module, world["iid"], things)
    if cell == "drawings":
        return metrics | {f"target_{name}": value for name, value in judged(module, world["target"], things).items()}
    if cell == "shapes":
        for shift in list(SHIFTS)[1:]:
            motion = judged(module, world[shift], things)["motion"]
            metrics |= {f"{shift}_motion": motion, f"{shift}_drop": metrics["motion"] - motion}
        metrics |= cost(start)
    return metrics


def why_not_here() -> str:
    return missing([STYLE, TAGS, ENET]) or ("" if find_spec("PIL") else "PIL is not installed: pip install pillow")


RATES = {
    "shapes": {"frames": 0.01, "full": 0.01, "a": 0.01, "b": 0.1, "c": 0.03, "mixed": 0.03},
    "appearance": {"frames": 0.01, "mixed": 0.01},
    "few": {"random": 0.03, "init": 0.03},
    "drawings": {"random": 0.003, "imagenet": 0.01, "frames": 0.03},
}
ARMS = {
    start if cell == "shapes" else f"{cell}-{start}": {"cell": cell, "start": start, "rate": rate}
    for cell, rates in RATES.items()
    for start, rate in rates.items()
}
SHIFTED = [f"{shift}_{kind}" for shift in list(SHIFTS)[1:] for kind in ("motion", "drop")]
REAL = [f"target_{name}" for name in ("motion", "appearance", "direction")]

study = Study(
    slug="pseudo-3d",
    title="Learning Spatio-Temporal Representation with Pseudo-3D Residual Networks",
    arms=ARMS,
    run=run,
    metrics={
        **dict.fromkeys(("motion", "appearance", "direction"), higher_is_better),
        **{name: lower_is_better if name.endswith("drop") else higher_is_better for name in SHIFTED},
        **dict.fromkeys(REAL, higher_is_better),
        **dict.fromkeys(("middle_share", "parameters", "flops"), lower_is_better),
    },
    optional={"motion", "direction", *SHIFTED, *REAL, "middle_share", "parameters", "flops"},
    needs={name: why_not_here for name in ARMS if name.startswith("drawings-")},
    shared_setup=True,
    claims=[
        better("mixed", than="frames", on="motion", margin=0.2),
        equivalent("appearance-mixed", "appearance-frames", on="appearance", within=0.02),
        better("mixed", than="full", on="motion", margin=-0.01),
        better("few-init", than="few-random", on="motion", margin=0.03),
        better("few-init", than="few-random", on="appearance", margin=0.03),
        better("mixed", than=["a", "b", "c"], on="motion", margin=-0.005),
        *[better("mixed", than="full", on=f"{shift}_drop", margin=-0.01) for shift in list(SHIFTS)[1:]],
        better("drawings-imagenet", than="drawings-random", on="motion", margin=0.03),
        better("drawings-imagenet", than="drawings-random", on="appearance", margin=0.03),
        better("drawings-imagenet", than="drawings-random", on="target_motion", margin=0.03),
        better("drawings-imagenet", than="drawings-frames", on="target_motion", margin=0.2),
    ],
    checks=[
        at_most("frames", on="direction", value=0.5),
        at_least("frames", on="direction", value=0.5),
        at_least("appearance-frames", on="appearance", value=0.9),
        at_most("mixed", on="middle_share", value=0.55),
        cheaper("mixed", than="full", on="flops", ratio=0.55),
        at_most("drawings-frames", on="direction", value=0.5),
    ],
    seeds={"smoke": 1, "laptop": 5},
)
