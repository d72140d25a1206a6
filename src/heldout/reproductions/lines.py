"""LiNeS (Wang, Dimitriadis et al.; ICLR 2025; arXiv:2410.17146) on six small image tasks and a small transformer.

Claim. Scaling the weight change of each block by a factor that grows with depth gives a fine-tuned model its lost
general ability back at almost no cost to its task, and makes merged models interfere less.

World. A vision transformer of 6 blocks learns six tasks together for a short while, which plays the part of
pretraining; its heads are then frozen, and one copy is fine-tuned on each task alone. ``target`` is the accuracy on the
task itself, ``control`` that on the other tasks, averaged over the models, in percent. Real (arms with ``real``): the
upper part of EfficientNet-Lite0 with ImageNet weights, fine-tuned on drawings of 12 classes in three styles
(``drawing_transfer``); ``target`` is the accuracy on other things in these styles, ``unseen_style`` that in the fourth,
``control`` how often a drawing of a thing outside of the classes is nearest to the same thing in other styles.

Arms. ``uniform`` scales the whole change by one factor, which is WiSE-FT, the linear interpolation of the two models.
Every scale, ramp and beta is chosen on validation images: the single-task arms take the best control accuracy among
the values that cost at most one point of the target (``trade_off`` is the release's own criterion, with its own
choice), the merges the best accuracy relative to the fine-tuned models. All numbers are then those of test images that
no choice has seen. The norm rule turns the plain sum into the average, so LiNeS on the average and on task arithmetic
are one arm.

Deviations. Images of 18 x 18 in patches of 6 and 48 dimensions; the six tasks are four views of digits and the halves
of Fashion-MNIST; Consensus keeps its default mask threshold. The drawings' rate is the first of its grid that forgets
(a check): at those of the best validation accuracy, 3e-4 and 6e-4, the network keeps what it knew, and there is nothing
to give back. There one factor moves the whole change by twice as much as a step of a ramp, and its grid is twice as
fine. BatchNorm statistics stay those of ImageNet.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

import heldout
from heldout.nn import tiny_vit
from heldout.sources import ENET, STYLE, TAGS, missing
from heldout.study import Study, at_least, at_most, better, higher_is_better, log_curve, log_figure
from heldout.tasks import (
    DRAWING_STYLES,
    DrawingTransfer,
    colourise,
    digits,
    drawing_transfer,
    fashion_mnist,
    retrieval,
    stratified_split,
)
from heldout.train import outputs_of
from heldout.weights import (
    TaskVector,
    block_index,
    consensus,
    interpolate,
    layer_ramp,
    norm_alpha,
    search_scale,
    task_arithmetic,
    ties,
)

NUM_TASKS, SIZE, BLOCKS = 6, 18, 6
SETTINGS = {"smoke": ((60, 20, 20), 1, 1), "laptop": ((1000, 120, 300), 5, 6)}  # images by part, epochs of each phase
PARTS = ("train", "val", "test")
ALPHAS = [round(1 - 0.1 * i, 1) for i in range(11)]
MERGES = {"sum": (task_arithmetic, 10), "ties": (ties, 15), "consensus": (consensus, 10)}  # scales 0.1, 0.2, ...
METRICS = ("target", "control", "normalised_target", "normalised_control", "trade_off", "merged", "unseen_style")
LR, REAL_LR = 3e-4, 1e-3
DRAWN: dict[str, dict[str, int]] = {"smoke": {"size": 32, "things": 5, "other_things": 8}, "laptop": {}}
State = dict[str, Tensor]


class MultiTask(nn.Module):
    """A vision transformer with a linear head of 10 outputs for each task."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = tiny_vit(SIZE, 6, 48, BLOCKS, 4)
        self.encoder.head = nn.Identity()  # type: ignore[assignment]
        self.heads = nn.Linear(48, 10 * NUM_TASKS)

    def forward(self, images: Tensor, task: Tensor) -> Tensor:
        return self.heads(self.encoder(images)).view(len(images), -1, 10)[torch.arange(len(images)), task]


class World(NamedTuple):
    """The pretrained state, the fine-tuned ones, the data by part, and the accuracies of all these states."""

    pre: State
    tuned: list[State]
    sets: dict[str, TensorDataset]
    zero_shot: dict[str, Tensor]
    full: dict[str, Tensor]


def accuracies(state: State, data: TensorDataset) -> Tensor:
    """Returns the accuracy on each task, in percent."""
    images, task, labels = data.tensors
    model = scratch()
    model.load_state_dict(state)
    with torch.inference_mode():
        right = torch.cat([model(x, t).argmax(dim=1) for x, t in zip(images.split(500), task.split(500))]) == labels
    return 100 * torch.stack([right[task == number].double().mean() for number in range(NUM_TASKS)]).clamp(min=0.01)


@functools.cache
def scratch() -> MultiTask:
    return MultiTask().eval()


def images(sizes: tuple[int, ...], seed: int) -> dict[str, TensorDataset]:
    """Returns (image, task, label) by part, for four views of digits and the two halves of Fashion-MNIST."""
    generator = torch.Generator().manual_seed(seed)
    grey, labels = digits(size=SIZE)
    colours = colourise(grey, torch.randint(0, 12, (len(grey),), generator=generator), 12)
    frequency, phase = torch.rand(2, len(grey), 3, 1, 1, generator=generator)
    across = torch.arange(SIZE) * (0.5 + 2 * frequency)
    waves = (across + torch.arange(SIZE)[:, None] + 6 * phase).sin() / 2 + 0.5
    sources = [(view, labels) for view in (grey, grey.rot90(1, (2, 3)), 1 - colours, waves.lerp(grey, 0.6))]
    clothes, kinds = fashion_mnist(part="test" if sizes[0] < 500 else "train")
    clothes = F.interpolate(clothes, (SIZE, SIZE), mode="area")
    sources += [(clothes[half], kinds[half]) for half in (kinds < 5, kinds >= 5)]
    columns: dict[str, list[tuple[Tensor, ...]]] = {part: [] for part in PARTS}
    for task, (inputs, targets) in enumerate(sources):
        for part, chosen in zip(PARTS, stratified_split(targets, sizes, seed=seed), strict=True):
            number = torch.full((len(chosen),), task)
            columns[part].append((inputs[chosen].expand(-1, 3, -1, -1), number, targets[chosen]))
    return {part: TensorDataset(*map(torch.cat, zip(*found, strict=True))) for part, found in columns.items()}


@functools.lru_cache(maxsize=1)
def world(seed: int, profile: str) -> World:
    sizes, pretraining, finetuning = SETTINGS[profile]
    sets = images(sizes, seed)
    options: dict[str, Any] = {"optimizer": adamw, "batch_size": 32, "seed": seed}
    model = heldout.fit(MultiTask, sets["train"], epochs=pretraining, **options).module
    model.heads.requires_grad_(False)  # type: ignore[union-attr]
    pre, tasks = model.state_dict(), sets["train"].tensors[1]
    parts = [Subset(sets["train"], (tasks == task).nonzero().flatten().tolist()) for task in range(NUM_TASKS)]
    tuned = [heldout.fit(model, part, epochs=finetuning, **options).module.state_dict() for part in parts]
    zero_shot = {part: accuracies(pre, sets[part]) for part in ("val", "test")}
    full = {part: torch.stack([accuracies(state, sets[part]) for state in tuned]).diag() for part in ("val", "test")}
    return World(pre, tuned, sets, zero_shot, full)


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=LR)


def factors(arm: dict[str, Any], alpha: float, index: Mapping[str, int | None]) -> dict[str, float]:
    if "restored" in arm:
        return {name: float(number not in arm["restored"]) for name, number in index.items()}
    first, last = {"uniform": (alpha, alpha), "lines": (alpha, 1.0), "reversed": (1.0, alpha)}[arm["ramp"]]
    return layer_ramp(index, first, last - first)


def edit(arm: dict[str, Any], w: World, task: int) -> tuple[dict[str, Tensor], dict[float, Tensor]]:
    """Returns the test results of one edited model, and its validation accuracies at every alpha."""
    others = torch.arange(NUM_TASKS) != task

    def control(found: Tensor) -> float:
        return float(found[others].mean() if found[task] >= w.full["val"][task] - 1 else found[task] - 100)

    def trade_off(found: Tensor, part: str = "val") -> float:
        return float(2 * found[task] / w.full[part][task] + (found[others] / w.zero_shot[part][others]).mean())

    alphas = arm.get("alphas", ALPHAS if len(w.sets["val"]) > 500 else ALPHAS[::5])
    states = {alpha: interpolate(w.pre, w.tuned[task], factors(arm, alpha, block_index(w.pre))) for alpha in alphas}
    val = {alpha: accuracies(state, w.sets["val"]) for alpha, state in states.items()}
    best, traded = (search_scale(val.__getitem__, alphas, score).value for score in (control, trade_off))
    test = {alpha: accuracies(states[alpha], w.sets["test"]) for alpha in {best, traded}}
    found = test[best]
    return {
        "target": found[task],
        "control": found[others].mean(),
        "normalised_target": 100 * found[task] / w.full["test"][task],
        "normalised_control": 100 * (found[others] / w.zero_shot["test"][others]).mean(),
        "trade_off": torch.tensor(trade_off(test[traded], "test")),
    }, {alpha: torch.stack([found[task], found[others].mean()]) for alpha, found in val.items()}


def single(arm: dict[str, Any], w: World) -> dict[str, float]:
    results, curves = zip(*(edit(arm, w, task) for task in range(NUM_TASKS)), strict=True)
    points = {alpha: sum(curve[alpha] for curve in curves) / NUM_TASKS for alpha in curves[0]}
    for alpha, (target, control) in points.items():
        log_curve("target accuracy over alpha", alpha, float(target))
        log_curve("control accuracy over alpha", alpha, float(control))
    log_figure("pareto", pareto(points))
    if "restored" in arm:
        sensitivity(w)
    return {name: float(torch.stack([result[name] for result in results]).mean()) for name in results[0]}


def sensitivity(w: World) -> None:
    """Logs how much target accuracy is lost when one block gets its pretrained weights back."""
    for block in range(BLOCKS):
        restored = [
            interpolate(w.pre, state, factors({"restored": [block]}, 1.0, block_index(w.pre))) for state in w.tuned
        ]
        found = torch.stack([accuracies(state, w.sets["val"]) for state in restored]).diag()
        log_curve("target accuracy lost by restoring a block", block, float((w.full["val"] - found).mean()))


def pareto(points: dict[float, Tensor]) -> dict[str, Any]:
    values = [{"alpha": alpha, "target": float(t), "control": float(c)} for alpha, (t, c) in points.items()]
    axes = {
        name: {"field": name, "type": "quantitative", "scale": {"zero": False}, "title": f"{name} accuracy (val, %)"}
        for name in ("target", "control")
    }
    encoding = {"x": axes["control"], "y": axes["target"], "order": {"field": "alpha"}, "tooltip": {"field": "alpha"}}
    return {"data": {"values": values}, "mark": {"type": "line", "point": True}, "encoding": encoding}


def merged(arm: dict[str, Any], w: World) -> dict[str, float]:
    vectors = [TaskVector(w.pre, state) for state in w.tuned]
    merge, longest = MERGES[arm["merge"]]
    total = merge(vectors)
    alpha, index = norm_alpha(vectors, total), block_index(w.pre)

    def candidate(scale: float) -> State:
        return total.apply_to(w.pre, layer_ramp(index, alpha, scale) if arm["lines"] else scale)

    def score(state: State, part: str = "val") -> float:
        return 100 * float((accuracies(state, w.sets[part]) / w.full[part]).mean())

    scales = arm.get("scales", [round(0.1 * step, 1) for step in range(1, longest + 1)])
    best = search_scale(candidate, scales, score)
    for scale, value in best.scores.items():
        log_curve("merged accuracy over the scale", scale, value)
    return {"merged": score(candidate(best.value), "test")}


@functools.lru_cache(maxsize=1)
def drawn(seed: int, profile: str) -> tuple[DrawingTransfer, State]:
    """Drawings of three styles, and the upper part of the ImageNet network tuned on them behind a frozen head."""
    problem = drawing_transfer(seed % len(DRAWING_STYLES), seed=seed, **DRAWN[profile])
    problem.network.head.requires_grad_(False)  # type: ignore[union-attr]
    options: dict[str, Any] = {"epochs": 5 if profile == "laptop" else 1, "batch_size": 32, "seed": seed}
    options["optimizer"] = functools.partial(torch.optim.AdamW, lr=REAL_LR)
    return problem, heldout.fit(problem.network, problem.train, **options).module.state_dict()


def upper_blocks(state: State) -> dict[str, int | None]:
    """The six blocks of the upper part: four of stage 6, stage 7 and the last convolution; the head is none."""
    owner = {name: ".".join(name.split(".")[: 2 if name.startswith("stage") else 1]) for name in state}
    order = [block for block in dict.fromkeys(owner.values()) if block != "head"]
    return {name: order.index(block) if block in order else None for name, block in owner.items()}


def real(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    problem, tuned = drawn(seed, profile)
    pre, model = problem.network.state_dict(), copy.deepcopy(problem.network)
    index, trunk = upper_blocks(pre), model[:-1]

    def accuracy(part: tuple[Tensor, Tensor]) -> float:
        logits, labels = outputs_of(model, part)
        return 100 * float((logits.argmax(1) == labels).double().mean())

    def control(alpha: float) -> float:
        model.load_state_dict(interpolate(pre, tuned, factors(arm, alpha, index)))
        target, kept = accuracy(problem.val), retrieval(trunk, problem.others_val)
        log_curve("drawings: target accuracy over alpha", alpha, target)
        log_curve("drawings: control accuracy over alpha", alpha, kept)
        return kept if target >= least else target - 100

    model.load_state_dict(tuned)
    least = accuracy(problem.val) - 1
    fine = [round(1 - 0.05 * i, 2) for i in range(21)] if arm.get("ramp") == "uniform" else ALPHAS
    best = search_scale(control, arm.get("alphas", fine[:: 1 if profile == "laptop" else 10]), float).value
    model.load_state_dict(interpolate(pre, tuned, factors(arm, best, index)))
    return {
        "target": accuracy(problem.source_test),
        "unseen_style": accuracy(problem.target),
        "control": retrieval(trunk, problem.others_test),
    }


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    if "world" in arm:
        return real(arm, seed, profile)
    return merged(arm, world(seed, profile)) if "merge" in arm else single(arm, world(seed, profile))


SINGLE: dict[str, dict[str, Any]] = {
    "pretrained": {"ramp": "uniform", "alphas": [0.0]},
    "fine-tuned": {"ramp": "uniform", "alphas": [1.0]},
    "uniform": {"ramp": "uniform"},
    "lines": {"ramp": "lines"},
    "reversed": {"ramp": "reversed"},
    "first half restored": {"restored": list(range(BLOCKS // 2)), "alphas": [1.0]},
    "second half restored": {"restored": list(range(BLOCKS // 2, BLOCKS)), "alphas": [1.0]},
}
REAL = {f"real {name}": arm | {"world": "drawings"} for name, arm in SINGLE.items()}

study = Study(
    slug="lines",
    title="LiNeS: post-training layer scaling prevents forgetting and enhances model merging",
    arms={
        **SINGLE,
        "average": {"merge": "sum", "lines": False, "scales": [1 / NUM_TASKS]},
        "task arithmetic": {"merge": "sum", "lines": False},
        "ties": {"merge": "ties", "lines": False},
        "consensus": {"merge": "consensus", "lines": False},
        "task arithmetic + lines": {"merge": "sum", "lines": True},
        "ties + lines": {"merge": "ties", "lines": True},
        "consensus + lines": {"merge": "consensus", "lines": True},
        **REAL,
    },
    needs=dict.fromkeys(REAL, functools.partial(missing, [STYLE, TAGS, ENET])),
    run=run,
    metrics=dict.fromkeys(METRICS, higher_is_better),
    optional=set(METRICS),
    claims=[
        better("lines", than="uniform", on="control", margin=2.0),
        better("lines", than="fine-tuned", on="control", margin=4.0),
        better("lines", than="fine-tuned", on="target", margin=-1.0),
        better("lines", than="uniform", on="trade_off"),
        better("task arithmetic + lines", than=["task arithmetic", "average"], on="merged", margin=1.0),
        better("ties + lines", than="ties", on="merged"),
        better("consensus + lines", than="consensus", on="merged"),
        better("uniform", than="reversed", on="control", margin=1.0),
        better("first half restored", than="second half restored", on="target", margin=5.0),
        better("real lines", than="real uniform", on="control", margin=2.0),
        better("real lines", than="real fine-tuned", on="control", margin=4.0),
        better("real lines", than="real fine-tuned", on="target", margin=-1.0),
        better("real lines", than="real uniform", on="target", margin=-1.0),
        better("real uniform", than="real reversed", on="control", margin=1.0),
        better("real first half restored", than="real second half restored", on="target", margin=5.0),
        better("real lines", than="real uniform", on="unseen_style"),
    ],
    checks=[  # pretraining leaves something to learn, fine-tuning learns it, and there is something to give back
        at_least("pretrained", on="target", value=60.0),
        at_most("pretrained", on="target", value=80.0),
        better("fine-tuned", than="pretrained", on="target", margin=3.0),
        better("pretrained", than="fine-tuned", on="control", margin=4.0),
        better("real fine-tuned", than="real pretrained", on="target", margin=1.0),
        better("real pretrained", than="real fine-tuned", on="control", margin=4.0),
    ],
    seeds={"smoke": 1, "laptop": 8},  # twice each style of the drawings
    time_limit={"smoke": 60.0, "laptop": 600.0},
    shared_setup=True,
)
