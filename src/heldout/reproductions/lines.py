"""LiNeS (Wang, Dimitriadis et al.; ICLR 2025; arXiv:2410.17146) on small image tasks and on drawings.

Claim. Scaling the weight change of each block by a factor that grows with depth gives a fine-tuned model its lost
general ability back at almost no cost to its task, makes interpolation with the pretrained weights (WiSE-FT) carry
further to shifted data, and makes merged models interfere less.

World. Procedural: a vision transformer of 6 blocks learns six tasks together for a short while, which plays the part
of pretraining. ``real``: the upper part of EfficientNet-Lite0 (the four blocks of stage 6, stage 7 and the last
convolution) as ImageNet made it, and four tasks on drawings of three styles; the fourth style, another for each seed
in turn, shows the things of the test (``unseen_style``). In both, linear heads are fitted first and frozen, and one
copy is fine-tuned on each task alone. ``target`` is the accuracy on the task itself, ``control`` that on the other
tasks, averaged over the models, in percent.

Arms. ``uniform`` scales the whole change by one factor, which is WiSE-FT, the linear interpolation of the two models.
Every scale, ramp and beta is chosen on validation images: the single-task arms take the best control accuracy among
the values that cost at most one point of the target (``trade_off`` is the release's own criterion, with its own
choice), the merges the best accuracy relative to the fine-tuned models. ``wise-ft`` takes the interpolation of the best
target accuracy, and ``wise-ft + lines`` puts a ramp from 0.5 to 1 over the interpolated change, chosen likewise from as
many values. All numbers are then those of test images that no choice has seen. The norm rule turns the plain sum into
the average, so LiNeS on the average and on task arithmetic are one arm.

Deviations. Images of 18 x 18 in patches of 6 and 48 dimensions; the six tasks are four views of digits and the halves
of Fashion-MNIST; Consensus keeps its default mask threshold. Drawings at 64 x 64; BatchNorm keeps ImageNet's statistics
throughout, so that averages need none of their own; a convolutional network where the paper has transformers.
"""

from __future__ import annotations

import copy
import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

import heldout
from heldout.nn import tiny_vit
from heldout.study import Study, better, higher_is_better, log_curve, log_figure
from heldout.tasks import (
    DRAWING_STYLES,
    colourise,
    digits,
    drawing_tasks,
    fashion_mnist,
    stratified_split,
    why_no_drawing_transfer,
)
from heldout.weights import (
    BlockIndex,
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

SIZE, BLOCKS = 18, 6
SETTINGS = {"smoke": ((60, 20, 20), 1, 1), "laptop": ((1000, 120, 300), 5, 6)}  # images by part, epochs of each phase
PARTS = ("train", "val", "test")
UPPER = (*(f"encoder.stage6.{number}" for number in range(4)), "encoder.stage7", "encoder.top")
FIRST_HALF, SECOND_HALF = list(range(BLOCKS // 2)), list(range(BLOCKS // 2, BLOCKS))
ALPHAS = [round(1 - 0.1 * i, 1) for i in range(11)]
RAMPS = {  # factors of the first and the last block
    "uniform": lambda alpha: (alpha, alpha),
    "lines": lambda alpha: (alpha, 1.0),
    "reversed": lambda alpha: (1.0, alpha),
    "half": lambda alpha: (alpha / 2, alpha),
}
MERGES = {"sum": (task_arithmetic, 10), "ties": (ties, 15), "consensus": (consensus, 10)}  # scales 0.1, 0.2, ...
METRICS = ("target", "control", "normalised_target", "normalised_control", "trade_off", "merged", "unseen_style")
LR, REAL_LR, REAL_EPOCHS = 3e-4, 3e-4, 10
State = dict[str, Tensor]


class MultiTask(nn.Module):
    """An encoder, and a linear head of 10 outputs for each task."""

    def __init__(self, encoder: nn.Module, dim: int, tasks: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.Linear(dim, 10 * tasks)

    def forward(self, images: Tensor, task: Tensor) -> Tensor:
        return self.heads(self.encoder(images)).view(len(images), -1, 10)[torch.arange(len(images)), task]


class World(NamedTuple):
    """The pretrained state, the fine-tuned ones, the data by part, and the accuracies of all these states.

    ``model`` is any of these networks, to load states into; ``index`` tells the block of each parameter.
    """

    model: MultiTask
    index: BlockIndex
    pre: State
    tuned: list[State]
    sets: dict[str, TensorDataset]
    zero_shot: dict[str, Tensor]
    full: dict[str, Tensor]

    def accuracies(self, state: State, part: str) -> Tensor:
        """Returns the accuracy on each task, in percent."""
        return accuracies(self.model, state, self.sets[part])


def accuracies(model: MultiTask, state: State, data: TensorDataset) -> Tensor:
    images, task, labels = data.tensors
    model.load_state_dict(state)
    model.eval()
    with torch.inference_mode():
        right = torch.cat([model(x, t).argmax(dim=1) for x, t in zip(images.split(64), task.split(64))]) == labels
    tasks = model.heads.out_features // 10
    return 100 * torch.stack([right[task == number].double().mean() for number in range(tasks)]).clamp(min=0.01)


def vit() -> MultiTask:
    encoder = tiny_vit(SIZE, 6, 48, BLOCKS, 4)
    encoder.head = nn.Identity()  # type: ignore[assignment]
    return MultiTask(encoder, 48, 6)


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
def procedural(seed: int, profile: str) -> World:
    sizes, pretraining, finetuning = SETTINGS[profile]
    sets = images(sizes, seed)
    model = heldout.fit(vit, sets["train"], epochs=pretraining, **options(LR, seed)).module
    return finetuned(model, sets, None, epochs=finetuning, **options(LR, seed))


@functools.lru_cache(maxsize=1)
def real(seed: int, profile: str) -> World:
    problem, laptop = drawing_tasks(seed % len(DRAWING_STYLES), seed=seed), profile == "laptop"
    sets = {part: TensorDataset(*getattr(problem, part)) for part in (*PARTS, "unseen")}
    if not laptop:
        sets = {part: TensorDataset(*(column[::6] for column in data.tensors)) for part, data in sets.items()}
    shown, task, labels = sets["train"].tensors
    with torch.inference_mode():
        features = torch.cat([problem.upper(x) for x in shown.split(64)])
    probe = TensorDataset(features, task, labels)
    model = heldout.fit(lambda: MultiTask(nn.Identity(), 1280, len(problem.classes)), probe, epochs=30,
                        **options(1e-3, seed)).module  # fmt: skip
    model.encoder = problem.upper
    return finetuned(model, sets, UPPER, epochs=REAL_EPOCHS if laptop else 1, **options(REAL_LR, seed))


def options(lr: float, seed: int) -> dict[str, Any]:
    return {"optimizer": functools.partial(adamw, lr=lr), "batch_size": 32, "seed": seed}


def adamw(module: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=lr)


def finetuned(model: Any, sets: dict[str, TensorDataset], blocks: Any, **options: Any) -> World:
    """Freezes the heads and tunes one copy on the training images of each task."""
    model.heads.requires_grad_(False)
    pre, task = copy.deepcopy(model.state_dict()), sets["train"].tensors[1]
    parts = [Subset(sets["train"], (task == number).nonzero().flatten().tolist()) for number in task.unique()]
    tuned = [heldout.fit(model, part, **options).module.state_dict() for part in parts]
    model = copy.deepcopy(model)
    zero_shot = {part: accuracies(model, pre, sets[part]) for part in ("val", "test")}
    full = {part: torch.stack([accuracies(model, t, sets[part]) for t in tuned]).diag() for part in ("val", "test")}
    return World(model, block_index(pre, blocks), pre, tuned, sets, zero_shot, full)


def factors(arm: dict[str, Any], alpha: float, index: BlockIndex) -> dict[str, float]:
    if "restored" in arm:
        return {name: float(number not in arm["restored"]) for name, number in index.items()}
    first, last = RAMPS[arm["ramp"]](alpha)
    return layer_ramp(index, first, last - first)


def edit(arm: dict[str, Any], w: World, task: int) -> tuple[dict[str, Tensor], dict[float, Tensor]]:
    """Returns the test results of one edited model, and its validation accuracies at every alpha."""
    others = torch.arange(len(w.tuned)) != task

    def kept(found: Tensor) -> float:
        if arm.get("choose") == "target":
            return float(found[task])
        return float(found[others].mean() if found[task] >= w.full["val"][task] - 1 else found[task] - 100)

    def trade_off(found: Tensor, part: str = "val") -> float:
        return float(2 * found[task] / w.full[part][task] + (found[others] / w.zero_shot[part][others]).mean())

    def state(alpha: float) -> State:
        return interpolate(w.pre, w.tuned[task], factors(arm, alpha, w.index))

    alphas = arm.get("alphas", ALPHAS if len(w.sets["val"]) > 200 else ALPHAS[::5])
    val = {alpha: w.accuracies(state(alpha), "val") for alpha in alphas}
    best, traded = (search_scale(val.__getitem__, alphas, score).value for score in (kept, trade_off))
    test = {alpha: w.accuracies(state(alpha), "test") for alpha in {best, traded}}
    found = test[best]
    results = {
        "target": found[task],
        "control": found[others].mean(),
        "normalised_target": 100 * found[task] / w.full["test"][task],
        "normalised_control": 100 * (found[others] / w.zero_shot["test"][others]).mean(),
        "trade_off": torch.tensor(trade_off(test[traded], "test")),
    }
    if "unseen" in w.sets:
        results["unseen_style"] = w.accuracies(state(best), "unseen")[task]
    return results, {alpha: torch.stack([found[task], found[others].mean()]) for alpha, found in val.items()}


def single(arm: dict[str, Any], w: World) -> dict[str, float]:
    results, curves = zip(*(edit(arm, w, task) for task in range(len(w.tuned))), strict=True)
    points = {alpha: sum(curve[alpha] for curve in curves) / len(curves) for alpha in curves[0]}
    for alpha, (target, control) in points.items():
        log_curve("target accuracy over alpha", alpha, float(target))
        log_curve("control accuracy over alpha", alpha, float(control))
    log_figure("pareto", pareto(points))
    if arm.get("restored") == FIRST_HALF:
        sensitivity(w)
    return {name: float(torch.stack([result[name] for result in results]).mean()) for name in results[0]}


def sensitivity(w: World) -> None:
    """Logs how much target accuracy is lost when one block gets its pretrained weights back."""
    for block in range(BLOCKS):
        restored = factors({"restored": [block]}, 1.0, w.index)
        states = [interpolate(w.pre, tuned, restored) for tuned in w.tuned]
        found = torch.stack([w.accuracies(state, "val") for state in states]).diag()
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
    alpha = norm_alpha(vectors, total)

    def candidate(scale: float) -> State:
        return total.apply_to(w.pre, layer_ramp(w.index, alpha, scale) if arm["lines"] else scale)

    def score(state: State, part: str = "val") -> float:
        return 100 * float((w.accuracies(state, part) / w.full[part]).mean())

    scales = [1 / len(vectors)] if arm.get("average") else [round(0.1 * step, 1) for step in range(1, longest + 1)]
    best = search_scale(candidate, scales, score)
    for scale, value in best.scores.items():
        log_curve("merged accuracy over the scale", scale, value)
    return {"merged": score(candidate(best.value), "test")}


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    w = real(seed, profile) if arm.get("world") == "drawings" else procedural(seed, profile)
    return merged(arm, w) if "merge" in arm else single(arm, w)


ARMS: dict[str, dict[str, Any]] = {
    "pretrained": {"ramp": "uniform", "alphas": [0.0]},
    "fine-tuned": {"ramp": "uniform", "alphas": [1.0]},
    "uniform": {"ramp": "uniform"},
    "lines": {"ramp": "lines"},
    "reversed": {"ramp": "reversed"},
    "first half restored": {"restored": FIRST_HALF, "alphas": [1.0]},
    "second half restored": {"restored": SECOND_HALF, "alphas": [1.0]},
    "average": {"merge": "sum", "lines": False, "average": True},
    "task arithmetic": {"merge": "sum", "lines": False},
    "ties": {"merge": "ties", "lines": False},
    "consensus": {"merge": "consensus", "lines": False},
    "task arithmetic + lines": {"merge": "sum", "lines": True},
    "ties + lines": {"merge": "ties", "lines": True},
    "consensus + lines": {"merge": "consensus", "lines": True},
}
WISE: dict[str, dict[str, Any]] = {
    "wise-ft": {"ramp": "uniform", "choose": "target"},
    "wise-ft + lines": {"ramp": "half", "choose": "target"},
}
REAL = {f"real {name}": {"world": "drawings", **arm} for name, arm in (ARMS | WISE).items()}


def claimed(cell: str) -> list[better]:
    arithmetic = [f"{cell}task arithmetic", f"{cell}average"]
    return [
        better(f"{cell}lines", than=f"{cell}uniform", on="control", margin=2.0),
        better(f"{cell}lines", than=f"{cell}fine-tuned", on="control", margin=4.0),
        better(f"{cell}lines", than=f"{cell}fine-tuned", on="target", margin=-1.0),
        better(f"{cell}lines", than=f"{cell}uniform", on="trade_off"),
        better(f"{cell}task arithmetic + lines", than=arithmetic, on="merged", margin=1.0),
        better(f"{cell}ties + lines", than=f"{cell}ties", on="merged"),
        better(f"{cell}consensus + lines", than=f"{cell}consensus", on="merged"),
        better(f"{cell}uniform", than=f"{cell}reversed", on="control", margin=1.0),
        better(f"{cell}first half restored", than=f"{cell}second half restored", on="target", margin=5.0),
    ]


def gates(cell: str) -> list[better]:
    """Without these there is nothing to learn, or nothing to give back."""
    return [
        better(f"{cell}fine-tuned", than=f"{cell}pretrained", on="target", margin=3.0),
        better(f"{cell}pretrained", than=f"{cell}fine-tuned", on="control", margin=4.0),
    ]


study = Study(
    slug="lines",
    title="LiNeS: post-training layer scaling prevents forgetting and enhances model merging",
    arms=ARMS | REAL,
    needs=dict.fromkeys(REAL, why_no_drawing_transfer),
    run=run,
    metrics=dict.fromkeys(METRICS, higher_is_better),
    optional=set(METRICS),
    claims=[
        *claimed(""),
        *claimed("real "),
        better("real wise-ft + lines", than="real wise-ft", on="unseen_style"),
        better("real lines", than="real fine-tuned", on="unseen_style"),
    ],
    checks=[*gates(""), *gates("real ")],
    seeds={"smoke": 1, "laptop": 6},
    time_limit={"smoke": 60.0, "laptop": 600.0},
    shared_setup=True,
)
