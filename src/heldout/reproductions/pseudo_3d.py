"""Pseudo-3-D residual networks: does a convolution over space and one over time do what a whole 3-D one does?

Claim. P3D blocks beat a frame-averaged 2-D network where motion tells the class, reach what whole 3 x 3 x 3
convolutions reach with under half of their weights, and take their spatial part from a 2-D network, which pays where
clips are few; mixing the three arrangements is better than any one. Source: arXiv:1711.10305 (Qiu et al., ICCV 2017).

World. ``shapes``: 8 frames of 24 x 24, a coloured shape over a still texture; what it is (4 shapes) and how it moves
(8 motions) are independent, and one network learns both with two heads. The test clips are there forwards and
backwards, so that a network without a sense of order tells exactly half of ``direction`` (the motion from its
opposite). Shifts: speed x 1.5 and x 2, other textures, other shapes; ``*_drop`` is ``motion`` less that.

``drawings``: real drawings of 12 kinds of things over pieces of a real photograph, 6 frames of 32 x 32, four motions
(left, right, up, down); EfficientNet-Lite0 up to its third stage with depthwise convolutions over time put in
(``add_temporal``). Tested on other things: in the styles and over the photograph of training, and (``target_*``) in
another style over another photograph.

Arms. ``frames``: 2-D, logits averaged; ``full``: 3 x 3 x 3; ``a``, ``b``, ``c``; ``mixed``: A, B, C in turn, the
paper's. All see the same clips equally often. ``few-*``: ``mixed`` on 200 clips: ``random``; ``init``, spatial parts
from a 2-D network that was trained to name the shapes in single frames of other clips, T random, as published;
``identity``, T passes on frames at first. ``drawings-*``: ``random`` weights, ``imagenet``, ``he`` (ImageNet, T
random as published), ``frames`` (ImageNet, nothing over time). ``middle_share`` is the number of weights in the units'
convolutions by that of ``full``, ``flops`` that of a forward pass on one clip.

Deviations. Basic blocks, 16-32-64 channels, no pooling of time; Adam. The specification has the 2-D network at chance
on eight motions: it is on directions, but it may tell horizontal from vertical motion by how frames of a clip differ.
ImageNet weights in EfficientNet instead of ResNet, whose ReLU6 and BatchNorm stay behind S and T; arrangements A and C.
Two photographs only, one to train and one to test on.
"""

from __future__ import annotations

import functools
import warnings
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import heldout
from heldout.data import predict_all
from heldout.errors import install_line
from heldout.method import evaluating
from heldout.nn import FrameAverage, P3DResNet, P3DUnit, add_temporal, efficientnet_lite0, inflate_2d
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

SHAPES = len(MOVING_SHAPES) // 2
SIZES = {"smoke": (32, 16), "laptop": (1280, 128)}  # training and test clips
FEW = {"smoke": 16, "laptop": 200}
DRAWN = {"smoke": (16, 8), "laptop": (128, 96)}
EPOCHS = {"shapes": 3, "few": 8, "frames": 6, "drawings": 5}
RATE = {"shapes": 3e-3, "drawings": 1e-3}
VARIANTS = {"frames": ["2D"], "full": ["3D"], "a": ["A"], "b": ["B"], "c": ["C"], "mixed": ["A", "B", "C"]}
SHIFTS: dict[str, dict[str, Any]] = {
    "iid": {},
    "speed_1.5": {"speed": 1.5},
    "speed_2": {"speed": 2.0},
    "ground": {"grounds": GROUND_TEXTURES[2:]},
    "shape": {"shapes": MOVING_SHAPES[SHAPES:]},
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


@functools.lru_cache(maxsize=2)
def shapes(seed: int, profile: str) -> dict[str, MovingClips]:
    """``train``, ``frames`` (of which a 2-D network sees single ones), and a test set by shift."""
    generator = torch.Generator().manual_seed(seed)
    train, test = SIZES[profile]
    draw = functools.partial(moving_shapes, size=24, seed=generator)
    found = {"train": draw(train), "frames": draw(train)}
    return found | {name: forwards_and_backwards(draw(test, **options)) for name, options in SHIFTS.items()}


@functools.lru_cache(maxsize=2)
def drawn(seed: int, profile: str) -> dict[str, MovingClips]:
    """``train``, ``iid`` (other things) and ``target`` (other things in another style, over another photograph)."""
    pictures, photos = drawings(size=32), list(photographs().values())
    parts = split_drawings(pictures, held_out=seed % 4, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    (train, test), here = DRAWN[profile], seed // 4 % 2
    found = {}
    for name, part, count, photo in zip(
        ("train", "iid", "target"), parts, (train, test, test), (here, here, 1 - here), strict=True
    ):
        chosen = part[torch.randperm(len(part), generator=generator)[:count]]
        motions = torch.arange(count) % 4  # left, right, up, down
        grounds = photo_crops(photos[photo], count, size=32, seed=generator)
        sprites = cut_out(pictures.images[chosen].float() / 255)
        clips = moving_clips(sprites, grounds, motions, frames=6, seed=generator)
        found[name] = MovingClips(clips, motions, pictures.labels[chosen])
    return found | {name: forwards_and_backwards(found[name]) for name in ("iid", "target")}


def pairs(moving: MovingClips, things: int) -> tuple[Tensor, Tensor]:
    return moving.clips, moving.motions * things + moving.labels


def network(variants: list[str], outputs: int = len(MOTIONS) + SHAPES) -> P3DResNet:
    """16-32-64 channels, a basic block each; the stem makes 8 x 8 of 24 x 24 pixels, time is not pooled."""
    return P3DResNet(
        (1, 1, 1),
        outputs,
        width=16,
        variants=variants,
        frames=8,
        temporal_pool=False,
        stem_stride=3,
        stem_kernel=5,
        stem_pool=False,
        block="basic",
        dropout=0.0,
    )


def trained(net: Any, data: tuple[Tensor, Tensor], epochs: int, rate: float, seed: int) -> nn.Module:
    adam = functools.partial(torch.optim.Adam, lr=rate)
    return heldout.fit(net, data, epochs=epochs, batch_size=8, optimizer=adam, seed=seed).module


@functools.lru_cache(maxsize=2)
def frame_network(seed: int, profile: str) -> nn.Module:
    """A 2-D network that names the shapes in single frames, one at random of each clip and epoch."""
    clips, _, labels = shapes(seed, profile)["frames"]
    epochs = EPOCHS["frames"] if profile == "laptop" else 1
    at = torch.randint(clips.shape[2], (epochs, len(clips)), generator=torch.Generator().manual_seed(seed))
    images = torch.cat([clips[torch.arange(len(clips)), :, each].unsqueeze(2) for each in at])
    build = functools.partial(network, ["2D"], SHAPES)
    return trained(build, (images, labels.repeat(epochs)), 1, RATE["shapes"], seed)


def few_network(start: str, seed: int, profile: str) -> nn.Module:
    net = network(VARIANTS["mixed"])
    if start != "random":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its head names shapes alone, that of two tasks stays new
            inflate_2d(frame_network(seed, profile), net, "identity" if start == "identity" else "he", seed=seed)
    return TwoHeads(net)


def drawing_network(start: str, seed: int) -> nn.Module:
    """EfficientNet-Lite0 up to its third stage, and what looks over time."""
    whole = efficientnet_lite0(pretrained=start != "random", seed=seed)
    parts = OrderedDict(list(whole.named_children())[:5])
    parts |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    parts["head"] = nn.Linear(40, len(MOTIONS) + len(DRAWING_CLASSES))
    net = nn.Sequential(parts).train()
    if start == "frames":
        return TwoHeads(FrameAverage(net))
    return TwoHeads(add_temporal(net, "AC", temporal_init="he" if start == "he" else "identity", seed=seed))


def judged(module: nn.Module, moving: MovingClips, things: int) -> dict[str, float]:
    """Accuracy on motions and on things, and how often a motion is told from its opposite."""
    data = torch.utils.data.TensorDataset(*pairs(moving, things))
    logits = predict_all(module, data, 100)[0].unflatten(1, (len(MOTIONS), things))
    motion, thing = logits.mean(2), logits.mean(1)
    own = motion.gather(1, moving.motions.unsqueeze(1))
    other = motion.gather(1, (moving.motions ^ 1).unsqueeze(1))
    ahead = (own - other).flatten()
    return {
        "motion": (motion.argmax(1) == moving.motions).double().mean().item(),
        "appearance": (thing.argmax(1) == moving.labels).double().mean().item(),
        "direction": (ahead.sign() / 2 + 0.5).double().mean().item(),
    }


def cost(name: str) -> dict[str, float]:
    """Weights of the units' convolutions by those of ``full``, all parameters, and operations on one clip."""

    def middle(net: nn.Module) -> int:
        units = [part for part in net.modules() if isinstance(part, P3DUnit)]
        return sum(p.numel() for unit in units for p in unit.parameters() if p.ndim == 5)

    net, full = network(VARIANTS[name]), network(VARIANTS["full"])
    with evaluating(net), torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 8, 24, 24))
    return {
        "middle_share": middle(net) / middle(full),
        "parameters": float(sum(p.numel() for p in net.parameters())),
        "flops": float(counter.get_total_flops()),
    }


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    cell, start, laptop = arm["cell"], arm["start"], profile == "laptop"
    epochs = EPOCHS[cell] if laptop else 1
    things = len(DRAWING_CLASSES) if cell == "drawings" else SHAPES
    world = drawn(seed, profile) if cell == "drawings" else shapes(seed, profile)
    build: dict[str, Any] = {
        "shapes": lambda: TwoHeads(network(VARIANTS[start])),
        "few": lambda: few_network(start, seed, profile),
        "drawings": lambda: drawing_network(start, seed),
    }
    count = FEW[profile] if cell == "few" else len(world["train"].clips)
    data = pairs(MovingClips(*(part[:count] for part in world["train"])), things)
    module = trained(build[cell], data, epochs, RATE["drawings" if cell == "drawings" else "shapes"], seed)
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
    try:
        import PIL  # noqa: F401
    except ModuleNotFoundError:
        return install_line("PIL").replace("pip install PIL", "pip install pillow")
    return missing([STYLE, TAGS, ENET])


STARTS = {
    "shapes": list(VARIANTS),
    "few": ["random", "init", "identity"],
    "drawings": ["random", "imagenet", "he", "frames"],
}
ARMS = {
    start if cell == "shapes" else f"{cell}-{start}": {"cell": cell, "start": start}
    for cell, starts in STARTS.items()
    for start in starts
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
    optional={*SHIFTED, *REAL, "middle_share", "parameters", "flops"},
    needs={name: why_not_here for name in ARMS if name.startswith("drawings-")},
    shared_setup=True,
    claims=[
        better("mixed", than="frames", on="motion", margin=0.2),
        equivalent("mixed", "frames", on="appearance", within=0.02),
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
        at_least("frames", on="appearance", value=0.9),
        at_most("mixed", on="middle_share", value=0.55),
        cheaper("mixed", than="full", on="flops", ratio=0.55),
        at_most("drawings-frames", on="direction", value=0.5),
    ],
    seeds={"smoke": 1, "laptop": 5},
)
