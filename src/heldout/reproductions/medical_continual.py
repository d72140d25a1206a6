"""medical-continual: one promptable detector for many tasks and devices: specialised, joint, or learnt one by one?

DOC
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.lm import minilm, text_features
from heldout.losses import grounding_loss
from heldout.measure import TransferTest, average_precision, transfer_table
from heldout.nn import BagOfWordsEncoder, PromptDetector, detections, efficientnet_lite0
from heldout.sources import ENET, MINI, STYLE, TAGS, missing
from heldout.study import Study, at_least, at_most, better, higher_is_better, log_curve, lower_is_better
from heldout.tasks import (
    DRAWING_STYLES,
    IMAGING_DEVICES,
    IMAGING_TASKS,
    PROMPT_WORDS,
    PromptedPictures,
    cut_out,
    drawing_scenes,
    drawing_tags,
    drawings,
    first_drawings,
    photo_crops,
    photographs,
    promptable_imaging,
    prompted_shapes,
)
from heldout.train import EWC, ContinualStrategy, ParadigmRun, ShareReplay, compare_paradigms, seeded

WIDTH, BATCH, SHOTS = 32, 16, 10


class Size(NamedTuple):
    train: int  # pictures of a set
    tests: int  # of a set
    first: int  # to begin with
    first_steps: int
    steps: int  # in all, of each way of training
    shot_steps: int


SIZES = {
    ("imaging", "smoke"): Size(8, 5, 16, 1, 6, 1),
    ("imaging", "laptop"): Size(300, 100, 3000, 1500, 1200, 30),
    ("drawings", "smoke"): Size(3, 4, 4, 1, 6, 1),
    ("drawings", "laptop"): Size(150, 60, 500, 600, 600, 30),
}


class World(NamedTuple):
    """Sets in the order in which they come, and what models are tested on; names are "task, domain"."""

    sets: dict[str, PromptedPictures]
    tests: dict[str, TransferTest]  # of each block, by name
    shots: dict[str, PromptedPictures]  # of the task that is held out, by the name of its test
    start: nn.Module


class Residual(nn.Module):
    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.convolution = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convolution(F.gelu(self.norm(x)))


class Words(nn.Module):
    """Ids of words -> the mean of their vectors, through a perceptron: their order says nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bag = BagOfWordsEncoder(3 * torch.randn(len(PROMPT_WORDS), width))
        self.out = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.bag(ids, ids > 0))


def blocks(width: int) -> list[nn.Module]:
    return [Residual(width), Residual(width), Residual(width, 2), nn.GroupNorm(4, width), nn.GELU()]


def imaging_detector() -> PromptDetector:
    halves = [nn.Conv2d(3, 16, 5, 2, 2), nn.GroupNorm(4, 16), nn.GELU(), nn.Conv2d(16, WIDTH, 3, 2, 1)]
    return PromptDetector(nn.Sequential(*halves, *blocks(WIDTH)), Words(64), 64, image_dim=WIDTH)


def imaging(seed: int, size: Size, part: str) -> World:
    """Cells are held out as a task, the microscope as a device."""
    *tasks, new = IMAGING_TASKS
    *devices, far = IMAGING_DEVICES
    make = functools.partial(promptable_imaging, unseen=[new])
    sets = make(tasks, devices, size.train, 10 * seed)
    tests = make(list(IMAGING_TASKS), list(IMAGING_DEVICES), size.tests, 10 * seed + (1 if part == "test" else 2))
    shots = make([new], devices, SHOTS, 10 * seed + 3)
    first = prompted_shapes(size.first, seed=10 * seed + 4)
    return arranged(seed, size, sets, tests, shots, far, new, first, imaging_detector)


def arranged(
    seed: int,
    size: Size,
    sets: dict[tuple[str, str], PromptedPictures],
    tests: dict[tuple[str, str], PromptedPictures],
    shots: dict[tuple[str, str], PromptedPictures],
    far: str,
    new: str,
    first: PromptedPictures,
    make: Callable[[], PromptDetector],
) -> World:
    """Odd seeds go through the domains of one task after the other, even ones through the tasks of one domain."""
    generator = torch.Generator().manual_seed(seed)
    tasks, domains = (list(dict.fromkeys(key[place] for key in sets)) for place in (0, 1))
    tasks, domains = ([kind[i] for i in torch.randperm(len(kind), generator=generator)] for kind in (tasks, domains))
    order = [(t, d) for t in tasks for d in domains] if seed % 2 else [(t, d) for d in domains for t in tasks]
    judged = {}
    for (task, domain), pictures in tests.items():
        name = f"{task}, {domain}"
        if task != new and domain != far:
            judged[name] = TransferTest("in-domain", pictures, (name,))
        elif task != new:
            judged[name] = TransferTest("cross-domain", pictures, tuple(f"{task}, {own}" for own in domains))
        elif domain != far:
            judged[name] = TransferTest("cross-task", pictures)
    return World(
        {f"{task}, {domain}": sets[task, domain] for task, domain in order},
        judged,
        {f"{task}, {domain}": pictures for (task, domain), pictures in shots.items()},
        begun(make, first, size.first_steps, seed),
    )


STYLES = ("twemoji", "openmoji")  # of the sets; the detector begins with noto, fluent is held out
GROUPS, NEW_GROUP = ("mammal", "vehicle", "clothing"), "plant"
FIRST_GROUPS = ("other animal", "meal", "building", "sky", "person", "object")


class Things(NamedTuple):
    sprites: Tensor  # (styles, things, 4, size, size)
    labels: Tensor
    classes: tuple[str, ...]
    captions: list[list[str]]
    vectors: list[Tensor]


@functools.cache
def things() -> Things:
    """30 things of each class as sprites in four styles; what people wrote of each, and MiniLM's vectors of it."""
    whole = drawings(size=64)
    pictures = first_drawings(whole, 30)
    names = [whole.names[thing] for thing in pictures.things[pictures.domains == 0]]
    tags, count = drawing_tags(names), len(names)
    captions = [[tags[name].label, ", ".join([tags[name].label, *tags[name].keywords])] for name in names]
    vectors = text_features(*minilm(), [text for both in captions for text in both]).view(count, 2, -1)
    sprites = cut_out(pictures.images.float() / 255).unflatten(0, (len(DRAWING_STYLES), count))
    return Things(sprites, pictures.labels[:count], pictures.classes, captions, list(vectors))


def drawing_detector() -> PromptDetector:
    head = nn.Sequential(nn.Conv2d(112, 64, 1), *blocks(64)[1:])
    return PromptDetector(head, nn.Identity(), 64, text_dim=384)


def drawing(seed: int, size: Size, part: str) -> World:
    """Plants are held out as a task, fluent as a style; scenes to train on lie on the left of the photographs."""
    known, generator = things(), torch.Generator().manual_seed(10 * seed + (0 if part == "test" else 5))
    net = efficientnet_lite0()
    trunk = net[: [name for name, _ in net.named_children()].index("stage6")]

    def scenes(groups: Sequence[str], style: str, n: int, right: bool) -> PromptedPictures:
        whole = photographs().values()
        halves = [photo[..., 430:] if right else photo[..., :420] for photo in whole]
        grounds = torch.cat([photo_crops(half, 40, size=128, seed=generator) for half in halves])
        which = [known.classes.index(group) for group in groups]
        rows = torch.isin(known.labels, torch.tensor(which)).nonzero().flatten()
        sprites = known.sprites[DRAWING_STYLES.index(style)]
        made = drawing_scenes(sprites, known.captions, known.vectors, grounds, n, asked=rows, seed=generator)
        with torch.no_grad():
            return made._replace(images=torch.cat([trunk(images) for images in made.images.split(50)]))

    sets = {(group, style): scenes([group], style, size.train, False) for group in GROUPS for style in STYLES}
    kept = [(group, style) for group in (*GROUPS, NEW_GROUP) for style in (*STYLES, "fluent")][:-1]
    tests = {(group, style): scenes([group], style, size.tests, True) for group, style in kept}
    shots = {(NEW_GROUP, style): scenes([NEW_GROUP], style, SHOTS, False) for style in STYLES}
    first = scenes(FIRST_GROUPS, "noto", size.first, False)
    return arranged(seed, size, sets, tests, shots, "fluent", NEW_GROUP, first, drawing_detector)


def begun(make: Callable[[], PromptDetector], first: PromptedPictures, steps: int, seed: int) -> nn.Module:
    """A detector that has learnt to find other things, with prompts of the same words."""
    with seeded(seed):
        model = make()
    return tuned(model, first, steps, 3e-3, seed)


def tuned(model: nn.Module, pictures: PromptedPictures, steps: int, lr: float, seed: int) -> nn.Module:
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=lr), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(pictures.images), (BATCH,), generator=generator)
        loss = grounding_loss(model(pictures.images[rows], pictures.prompts[rows]), pictures.boxes[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@functools.lru_cache(maxsize=2)
def world_of(cell: str, seed: int, profile: str, part: str) -> World:
    return {"imaging": imaging, "drawings": drawing}[cell](seed, SIZES[cell, profile], part)


def precision(model: nn.Module, pictures: PromptedPictures) -> float:
    """AP50 over pairs of a picture and a prompt, those with nothing to find among them."""
    with torch.no_grad():
        parts = zip(pictures.images.split(100), pictures.prompts.split(100), strict=True)
        found = detections(torch.cat([model(images, prompts) for images, prompts in parts]))
    return average_precision([each.boxes for each in found], [each.scores for each in found], pictures.targets)


@functools.lru_cache(maxsize=4)
def trained(cell: str, way: str, lr: float, strength: float, share: float, seed: int, profile: str, part: str) -> Any:
    """What a way of training makes of the pretrained detector, on the sets of a cell."""
    world = world_of(cell, seed, profile, part)
    if way == "pretrained":
        return ParadigmRun(world.start, 0, 0, "")
    loss = functools.partial(grounding_loss, reduction="none")
    strategies: dict[str, Any] = {
        "sequential": ContinualStrategy,
        "ewc": lambda: EWC(strength, loss=loss, examples=100, seed=seed),
        "rehearsal": lambda: ShareReplay(share, seed=seed),
    }
    return compare_paradigms(
        world.start,
        {name: pictures.dataset for name, pictures in world.sets.items()},
        {way: strategies.get(way, way)},
        steps=SIZES[cell, profile].steps,
        batch_size=BATCH,
        loss=loss,
        optimizer=functools.partial(torch.optim.Adam, lr=lr),
        evaluate=lambda model, name: precision(model, world.tests[name].data),
        seed=seed,
    )[way]


def asked_otherwise(world: World) -> dict[str, TransferTest]:
    """In-domain tests with the prompts of the next set of another task: nothing of their own should be found."""
    names, found = list(world.sets), {}
    for place, name in enumerate(names):
        task = name.split(", ")[0]
        other = next(each for each in names[place:] + names[:place] if each.split(", ")[0] != task)
        prompts = world.tests[other].data.prompts
        found[name] = world.tests[name]._replace(data=world.tests[name].data._replace(prompts=prompts))
    return found


def run(arm: dict[str, Any], seed: int, profile: str, part: str = "test") -> dict[str, float]:
    cell, way = arm["cell"], arm["way"]
    world = world_of(cell, seed, profile, part)
    of = functools.partial(trained, cell, seed=seed, profile=profile, part=part)
    result = of(way, arm.get("lr", 0.0), arm.get("strength", 0.0), arm.get("share", 0.0))
    table = transfer_table({way: result.models}, world.tests, precision)

    def after_shots(model: nn.Module, name: str) -> float:
        shown = tuned(copy.deepcopy(model), world.shots[name], SIZES[cell, profile].shot_steps, SHOT_RATE[cell], seed)
        return precision(shown, world.tests[name].data)

    few = {name: world.tests[name]._replace(data=name) for name in world.shots}
    other = transfer_table({way: result.models}, asked_otherwise(world), precision)
    found = {
        "in_domain": table.mean(way, "in-domain"),
        "cross_domain": table.mean(way, "cross-domain"),
        "cross_task": table.mean(way, "cross-task"),
        "cross_task_10": transfer_table({way: result.models}, few, after_shots).mean(way, "cross-task"),
        "shuffled": other.mean(way, "in-domain"),
    }
    if way == "specialised":
        found["cross_domain_best"] = table.mean(way, "cross-domain", best=True)
    if result.matrix is not None:
        for stage, row in enumerate(result.matrix.scores):
            log_curve("seen", stage + 1, float(row[: stage + 1].mean()))
        found["earlier"] = float(result.matrix.scores[-1, :-1].mean())
        found["lost"] = -result.matrix.backward_transfer()
    if way == "rehearsal":
        plain = of("sequential", SETTINGS[cell]["sequential"]["lr"], 0.0, 0.0).matrix
        found["above_half"] = found["earlier"] - (float(plain.scores[-1, :-1].mean()) - plain.backward_transfer() / 2)
    return found


SHOT_RATE = {"imaging": 1e-3, "drawings": 1e-3}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "imaging": {
        "specialised": {"lr": 1e-3},
        "joint": {"lr": 1e-3},
        "sequential": {"lr": 1e-3},
        "ewc": {"lr": 1e-3, "strength": 1e2},
        "rehearsal": {"lr": 1e-3},
    },
    "drawings": {
        "specialised": {"lr": 1e-3},
        "joint": {"lr": 1e-3},
        "sequential": {"lr": 1e-3},
        "ewc": {"lr": 1e-3, "strength": 1e2},
        "rehearsal": {"lr": 1e-3},
    },
}
CELLS = {"": "imaging", "drawings: ": "drawings"}
SHARES = (0.01, 0.05, 0.2)


def arms_of(cell: str) -> dict[str, dict[str, Any]]:
    tuned_to = SETTINGS[cell]
    arms: dict[str, dict[str, Any]] = {"pretrained": {"way": "pretrained"}}
    arms |= {way: {"way": way, **tuned_to[way]} for way in ("specialised", "joint", "sequential")}
    arms["sequential+ewc"] = {"way": "ewc", **tuned_to["ewc"]}
    arms |= {
        f"rehearsal {share:.0%}": {"way": "rehearsal", "share": share, **tuned_to["rehearsal"]} for share in SHARES
    }
    return {name: {"cell": cell, **arm} for name, arm in arms.items()}


def claims_of(prefix: str) -> list[Any]:
    kept = f"{prefix}rehearsal 5%"
    return [
        at_least(f"{prefix}sequential", on="lost", value=0.1),
        at_least(kept, on="above_half", value=0.0),
        better(kept, than=f"{prefix}specialised", on="cross_domain", margin=0.03),
        better(kept, than=f"{prefix}joint", on="cross_domain", margin=-0.02),
        better(kept, than=f"{prefix}pretrained", on="cross_task", margin=0.02),
        better(kept, than=f"{prefix}pretrained", on="cross_task_10", margin=0.02),
    ]


def drawings_missing() -> str:
    """Why the drawings cannot be shown here, or an empty text."""
    absent = missing([STYLE, TAGS, ENET, MINI])
    return absent or ("" if find_spec("PIL") else "PIL is not installed: pip install pillow")


METRICS = (
    *("in_domain", "cross_domain", "cross_domain_best", "cross_task", "cross_task_10"),
    *("earlier", "above_half"),
)
study = Study(
    slug="medical-continual",
    title="Towards General Purpose Medical AI: Continual Learning Medical Foundation Model",
    arms={f"{prefix}{name}": arm for prefix, cell in CELLS.items() for name, arm in arms_of(cell).items()},
    run=run,
    metrics=dict.fromkeys(METRICS, higher_is_better) | dict.fromkeys(("lost", "shuffled"), lower_is_better),
    optional={"cross_domain_best", "earlier", "above_half", "lost"},
    claims=[claim for prefix in CELLS for claim in claims_of(prefix)],
    checks=[
        at_most(
            f"{prefix}{name}", on="shuffled", value=0.1, text=f"{prefix}{name} finds next to nothing by another prompt"
        )
        for prefix in CELLS
        for name in ("joint", "rehearsal 5%")
    ],
    seeds={"smoke": 1, "laptop": 5},
    needs={f"{prefix}{name}": drawings_missing for prefix in ["drawings: "] for name in arms_of("drawings")},
    shared_setup=True,
    time_limit=900,
)
