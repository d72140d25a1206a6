"""Few-shot continual learning: do slow weights that follow fast ones keep, or even improve, what a few examples can do?

Claim. Learning a stream of few-shot tasks one after the other harms what the encoder can do with a few examples of
classes that never came (C1). Slow weights that take a gated part of what fast weights learn lose nothing there and gain
(C2), know the classes of the stream better than one set of weights does, with or without EWC (C3), and as well as a
model of all examples so far; the published "better than joint" is looked at by its sign (C4). Source: arXiv:2104.09034
(Wang et al. 2021), no code known: the equations of ``FastSlow`` are a reconstruction from its abstract.

World. ``strokes``: characters of random strokes, 30 base classes, then 5 tasks of 5 new ones, and 15 that never come.
What all characters of a script share, bows and a thin dotted pen, is below 0.5 for base classes and above for all
others: that is the gap between them. ``fonts``, the real cell: letters of Noto fonts. The base is six scripts (Latin,
Greek, Cyrillic, Armenian, Georgian, Hebrew); each task is five letters of one of 14 others, dealt by seed, and what
never comes are letters of the other nine. Letters are shown in sans and asked in serif. Both cells with 5 examples of a
class and with 1; odd seeds have the tasks in one order, even ones in the other.

Arms. All begin with the same encoder of base classes and predict by the nearest prototype, kept as it was when its
class came, among the classes of all tasks so far. ``frozen``: prototypes alone. ``single``: fine-tuning at its own best
rate; ``fast alone``: at that of ``tsc``. ``ewc``, which like ``tsc`` begins with the Fisher information of 200 base
examples. ``replay``: one example of each class. ``joint``: from the base encoder at each task, on all examples so far,
with prototypes of all made anew, and stopped at its best number of steps. ``reptile``: ``tsc`` without importance;
``tsc ungated``: all weights at one eta; ``tsc without reset``: fast weights go on from where they were. ``cl`` is the
accuracy on all stream classes with the weights that the last task has left, for ``tsc`` the fast ones; ``cl_slow`` that
with the slow ones and prototypes of theirs, where there are any. ``fsl``: 200 episodes of 5 classes that never came,
with the slow weights; ``fsl_1`` those with 1 example; ``fsl_change``: since before the stream.

Settings. Adam, 25 steps on all examples of a task. Settings were chosen with 5 examples of a class on seed 1000, by the
sum of ``fsl`` and ``cl_slow`` on a stream of base classes alone: for ``strokes`` new ones of the base's range, whose
lower half is learnt and whose upper half is streamed and held out; for ``fonts`` two of the six scripts are learnt, two
streamed, two held out. 14 settings of each arm for ``strokes`` and 8 for ``fonts``: rates from 1e-6 to 1e-2; with them
EWC's strength from 10 to 1e7, the steps of ``joint`` from 10 to 100, eta of ``reptile`` from 0.05 to 0.8; of ``tsc``
eta from 0.05 to 0.3 and a strength from 100 to 1e5. At an edge of what was tried: the strength of ``tsc``, at its
lowest, below which is ``reptile`` with a gate, and in ``strokes`` its eta, the highest of the specification; the rate
of EWC in ``strokes`` and those of ``single`` and ``joint`` in ``fonts``, at or next to their lowest, below which is
``frozen``. The sum judges ``tsc`` by its slow weights: ``cl`` of its fast ones was not tuned for. The two ablations
have the settings of ``tsc``, which may be wrong for them: without the gate the same eta is a larger step, and the tuned
ungated arm is ``reptile``. Kappa is 1. One seed of validation, where 300 answers give ``cl``, tells neighbouring
settings apart only roughly. What was chosen for 5 examples serves for 1. Sizes and jitter of ``strokes`` were set by
the accuracy of a frozen encoder on seed 1000, on its held-out classes, too. In ``fonts`` the strengths of ``tsc`` and
EWC are a tenth of those chosen: the mean importance of the base is ten times as large on test as on validation, whose
base knows a third of the classes: found after a first recording, and after test numbers of seeds 1001 and 1002.

Deviations. Classes are dealt at random, so that the two orders differ in their classes and not in kind. Pictures of 20
x 20 and strides in the place of pooling, for time. Steps and the base's recipe were not searched. No SI, no memory
beside the slow weights, no drawing styles.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.measure import prototype_episodes
from heldout.nn import PrototypeClassifier, conv4
from heldout.sources import FONTS, missing
from heldout.study import Study, at_most, better, higher_is_better, log_curve, lower_is_better
from heldout.tasks import FONT_SCRIPTS, FewShotStream, FontGlyphs, fewshot_stream, font_glyphs, rewritten, stroke_glyphs
from heldout.train import EWC, ContinualStrategy, Cumulative, FastSlow, Replay, fit_stream, prototype_training, seeded

WAYS = 5
STEPS = 25  # for each task
SIZE = 20  # pixels
BASE_SCRIPTS = ("Latin", "Greek", "Cyrillic", "Armenian", "Georgian", "Hebrew")


class Size(NamedTuple):
    tasks: int
    base: int  # classes
    held_out: int
    each: int  # images of a class
    base_steps: int
    most_steps: int  # for each task
    episodes: int
    every: int  # image of a held-out class is used, to save time


SIZES = {"smoke": Size(2, 6, 6, 12, 8, 1, 10, 1), "laptop": Size(5, 30, 15, 40, 500, 200, 200, 2)}


class World(NamedTuple):
    """Images with what they show, how they are dealt for 5 shots and for 1, and what may be shown and asked."""

    images: Tensor
    labels: Tensor
    streams: dict[int, FewShotStream]
    pool: Tensor
    query: Tensor


def strokes(seed: int, size: Size, part: str) -> World:
    """Scripts of base classes lie in [0, 0.5], those of all others in [0.5, 1]; for "validation" all are halved."""
    generator = torch.Generator().manual_seed(seed)
    new = WAYS * size.tasks + size.held_out
    script = torch.cat([torch.rand(size.base, generator=generator), 1 + torch.rand(new, generator=generator)]) / 2
    script = script / 2 if part == "validation" else script
    images, labels = stroke_glyphs(script.tolist(), size.each, size=SIZE, jitter=1.5, seed=generator)
    classes = list(range(size.base + new))
    tasks = [classes[size.base + WAYS * task :][:WAYS] for task in range(size.tasks)]
    everything = torch.arange(len(labels))
    rest = {"base": classes[: size.base], "held_out": classes[size.base + WAYS * size.tasks :]}
    return dealt(images, labels, tasks, everything, everything, size, seed, **rest)


@functools.cache
def letters_of_fonts() -> FontGlyphs:
    return font_glyphs(size=SIZE)


def fonts(seed: int, size: Size, part: str) -> World:
    """Six scripts to begin with, another one a task, the rest for episodes; "validation" deals the six alone."""
    generator = torch.Generator().manual_seed(seed)
    glyphs = letters_of_fonts()
    times = max(3, size.each // 6)
    images = rewritten(glyphs.images, times, jitter=1.0, seed=generator).float() / 255
    labels, scripts, faces = (v.repeat_interleave(times) for v in (glyphs.labels, glyphs.scripts, glyphs.faces))

    def letters(script: str, count: int) -> list[int]:
        own = labels[scripts == glyphs.names.index(script)].unique()
        return own[torch.randperm(len(own), generator=generator)[:count]].tolist()

    first: Sequence[str] = BASE_SCRIPTS
    if part == "validation":
        first, streamed, left = BASE_SCRIPTS[:2], BASE_SCRIPTS[2:4], list(BASE_SCRIPTS[4:])
        many = [letters(script, 15) for script in streamed]
        tasks = [many[task % 2][task // 2 * WAYS :][:WAYS] for task in range(size.tasks)]
    else:
        others = [script for script in FONT_SCRIPTS if script not in BASE_SCRIPTS]
        dealt_out = [others[place] for place in torch.randperm(len(others), generator=generator).tolist()]
        tasks, left = [letters(script, WAYS) for script in dealt_out[: size.tasks]], dealt_out[size.tasks :]
    held_out = [each for script in left for each in letters(script, 2 * size.held_out // len(left))]
    base = [each for script in first for each in letters(script, size.base)]
    sans = (faces < 2).nonzero().flatten()
    return dealt(
        images, labels, tasks, sans, (faces >= 2).nonzero().flatten(), size, seed, base=base, held_out=held_out
    )


def dealt(
    images: Tensor,
    labels: Tensor,
    tasks: Sequence[Any],
    pool: Tensor,
    query: Tensor,
    size: Size,
    seed: int,
    **rest: Any,
) -> World:
    tests = min(15, size.each // 2 - 2, 2 * max(3, size.each // 6))
    tasks = tasks[:: 1 if seed % 2 else -1]  # two orders
    options = {"tasks": tasks, "tests": tests, "pool": pool, "query": query, "seed": seed, **rest}
    streams = {k: fewshot_stream(labels, shots=k, **options) for k in (1, 5)}
    fewer = {k: stream._replace(held_out=stream.held_out[:: size.every]) for k, stream in streams.items()}
    return World(images, labels, fewer, pool, query)


@functools.lru_cache(maxsize=2)
def world_of(cell: str, seed: int, profile: str, part: str) -> World:
    return {"strokes": strokes, "fonts": fonts}[cell](seed, SIZES[profile], part)


@functools.lru_cache(maxsize=2)
def base_of(cell: str, seed: int, profile: str, part: str) -> nn.Module:
    """An encoder that has learnt the base classes by cross-entropy of cosines."""
    world, steps = world_of(cell, seed, profile, part), SIZES[profile].base_steps
    rows = world.streams[5].base
    targets = world.labels[rows].unique(return_inverse=True)[1]
    with seeded(seed):
        encoder = conv4(size=SIZE, halve="stride")
        head = nn.Linear(64, int(targets.max()) + 1, bias=False)
    weights = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(weights, lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps + 1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(len(rows), (64,), generator=generator)
        cosines = F.normalize(encoder(world.images[rows[batch]]), dim=1) @ F.normalize(head.weight, dim=1).T
        optimizer.zero_grad()
        F.cross_entropy(10 * cosines, targets[batch]).backward()
        optimizer.step()
        schedule.step()
    return encoder.eval()


class Joint(Cumulative):
    """Starts from the base model at each task, with the examples of all tasks so far."""

    name = "joint"

    def begin_task(self, model: nn.Module, data: Any) -> None:
        if not self.tasks_done:
            self.base = copy.deepcopy(model.state_dict())
        model.load_state_dict(self.base)


class OneOfEach(Replay):
    """Keeps one example of each class so far."""

    def end_task(self, model: nn.Module, data: Any) -> None:
        self.memory.capacity = WAYS * (self.tasks_done + 1)
        super().end_task(model, data)


def strategy_of(arm: dict[str, Any], classifier: PrototypeClassifier, seed: int) -> ContinualStrategy:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(classifier.logits(z), y, reduction="none")

    kind = arm["strategy"]
    if kind == "ewc":
        return EWC(arm["strength"], loss=loss)
    if kind == "replay":
        return OneOfEach(WAYS, policy="class", seed=seed)
    if kind == "fast_slow":
        options = {name: arm[name] for name in ("eta", "kappa", "reset", "importance") if name in arm}
        return FastSlow(arm.get("strength", 0.0), loss=loss, **options)
    return Joint() if kind == "joint" else ContinualStrategy()


class Judge:
    """Scores an encoder after each task on all tasks so far and on held-out episodes, and so its slow weights."""

    def __init__(
        self, world: World, stream: FewShotStream, strategy: ContinualStrategy, classifier: Any, episodes: int
    ) -> None:
        self.world, self.stream, self.strategy, self.classifier = world, stream, strategy, classifier
        self.episodes, self.slow_classifier = episodes, PrototypeClassifier()
        self.fsl: list[dict[int, float]] = []  # by shots, before the stream and after each task

    def __call__(self, model: nn.Module, task: int) -> float:
        if task == 0:  # once after each task
            done = len(self.fsl)
            self.right = self.slow_right = self.accuracies(model, self.classifier, done)
            with self.strategy.slow(model) if isinstance(self.strategy, FastSlow) and done else nullcontext():
                if isinstance(self.strategy, FastSlow) and done:
                    rows = self.stream.support[done - 1]
                    self.slow_classifier.update(model(self.world.images[rows]), self.world.labels[rows])
                    self.slow_right = self.accuracies(model, self.slow_classifier, done)
                self.fsl.append(self.few_shot(model))
        return self.right[task]

    def accuracies(self, model: nn.Module, classifier: PrototypeClassifier, done: int) -> list[float]:
        """Of each task, among the classes of all tasks so far; 0 for those that have not come."""
        images, labels = self.world.images, self.world.labels
        hits = [classifier.predict(model(images[rows])) == labels[rows] for rows in self.stream.test[:done]]
        return [float(each.double().mean()) for each in hits] + [0.0] * (len(self.stream.test) - done)

    def few_shot(self, model: nn.Module) -> dict[int, float]:
        world, rows = self.world, self.stream.held_out
        places = [torch.isin(rows, which).nonzero().flatten() for which in (world.pool, world.query)]
        options: dict[str, Any] = {"pool": places[0], "query": places[1], "queries": 5, "episodes": self.episodes}
        z, y = model(world.images[rows]), world.labels[rows]
        return {shots: prototype_episodes(z, y, shots=shots, **options).estimate for shots in (1, 5)}


def protect(strategy: Any, classifier: PrototypeClassifier, base: nn.Module, world: World, rows: Tensor) -> None:
    """Gives a strategy the Fisher information of 200 examples of the base classes."""
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[: 200 if len(rows) > 200 else 24]]
    data = (world.images[rows], world.labels[rows])
    with torch.no_grad():
        classifier.update(base(data[0]), data[1])
    if isinstance(strategy, FastSlow):
        strategy.protect(base, data)
    else:
        strategy.end_task(base, data)
        strategy.tasks_done = 0  # the base classes are no task of the stream
    classifier.forget(data[1].unique())


def run(arm: dict[str, Any], seed: int, profile: str, part: str = "test") -> dict[str, float]:
    shots, size, kind = arm["shots"], SIZES[profile], arm["strategy"]
    world = world_of(arm["cell"], seed, profile, part)
    stream, base = world.streams[shots], base_of(arm["cell"], seed, profile, part)
    classifier = PrototypeClassifier()
    strategy = strategy_of(arm, classifier, seed)
    if arm.get("strength"):
        protect(strategy, classifier, base, world, stream.base)
    judge = Judge(world, stream, strategy, classifier, size.episodes)
    train = prototype_training(
        classifier,
        steps=min(arm.get("steps", STEPS), size.most_steps),
        optimizer=functools.partial(torch.optim.Adam, lr=arm.get("lr", 1e-3)),
        classes_at_once=WAYS if kind == "joint" else None,
        refresh=kind == "joint",
        seed=seed,
    )
    tasks = [(world.images[rows], world.labels[rows]) for rows in stream.support]
    result = fit_stream(base, tasks, strategy, train=train, evaluate=judge, seed=seed)
    for task, found in enumerate(judge.fsl):
        log_curve("fsl", task, found[shots])
    for task in range(size.tasks):
        log_curve("cl", task + 1, float(np.mean(result.matrix.scores[task, : task + 1])))
    start = nn.utils.parameters_to_vector(base.parameters())
    with strategy.slow(result.module) if kind == "fast_slow" else nullcontext():  # type: ignore[attr-defined]
        moved = nn.utils.parameters_to_vector(result.module.parameters()) - start
    return {
        "cl": result.matrix.average(),
        "cl_slow": float(np.mean(judge.slow_right)),
        "forgetting": result.matrix.forgetting(),
        "fsl": judge.fsl[-1][shots],
        "fsl_1": judge.fsl[-1][1],
        "fsl_change": judge.fsl[-1][shots] - judge.fsl[0][shots],
        "moved": float(moved.detach().norm() / start.detach().norm()),
    }


def fonts_missing() -> str:
    """Why the letters cannot be drawn here, or an empty text."""
    return missing([FONTS]) or ("" if find_spec("PIL") else "PIL is not installed: pip install pillow")


TSC: dict[str, Any] = {"strategy": "fast_slow", "kappa": 1.0, "lr": 1e-3}


def settings_of(tsc: dict[str, Any], **tuned: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The arms of a cell: ``tsc`` and its ablations, and what was tuned of the others."""
    return {
        "frozen": {"strategy": "none", "steps": 0},
        "single": {"strategy": "none", **tuned["single"]},
        "fast alone": {"strategy": "none", "lr": tsc["lr"]},
        **{name: {"strategy": name, **tuned[name]} for name in ("ewc", "replay", "joint")},
        "reptile": {"strategy": "fast_slow", "importance": None, "kappa": 0.0, "lr": tsc["lr"], **tuned["reptile"]},
        "tsc": tsc,
        "tsc ungated": tsc | {"kappa": 0.0},
        "tsc without reset": tsc | {"reset": False},
    }


SETTINGS = {
    "strokes": settings_of(
        TSC | {"eta": 0.3, "strength": 1e2},
        single={"lr": 2.5e-5}, ewc={"lr": 2e-5, "strength": 1e4}, replay={"lr": 3e-5},
        joint={"lr": 3e-4, "steps": 50}, reptile={"eta": 0.15},
    ),
    "fonts": settings_of(
        TSC | {"eta": 0.1, "strength": 1e1},
        single={"lr": 1e-6}, ewc={"lr": 1e-4, "strength": 1e5}, replay={"lr": 1e-5},
        joint={"lr": 3e-5, "steps": 25}, reptile={"eta": 0.1},
    ),
}  # fmt: skip
CELLS = {"": ("strokes", 5), "1-shot: ": ("strokes", 1), "fonts: ": ("fonts", 5), "fonts 1-shot: ": ("fonts", 1)}
ARMS = {
    f"{prefix}{name}": {"cell": cell, "shots": shots, **setting}
    for prefix, (cell, shots) in CELLS.items()
    for name, setting in SETTINGS[cell].items()
}


def claims_of(prefix: str) -> list[Any]:
    def beats(*than: str, on: str, margin: float = 0.0) -> list[Any]:
        return [better(f"{prefix}tsc", than=f"{prefix}{name}", on=on, margin=margin) for name in than]

    found = [at_most(f"{prefix}fast alone", on="fsl_change", value=-0.02)]
    found += beats("frozen", on="fsl", margin=0.005) + beats("single", on="fsl", margin=0.025)
    found += beats("single", on="cl_slow", margin=0.05) + beats("ewc", on="cl_slow", margin=0.01)
    found += beats("joint", on="cl_slow", margin=-0.01)
    if "1-shot" in prefix:
        return found
    found += [at_most(f"{prefix}single", on="fsl_change", value=-0.02)]
    found += beats("fast alone", on="fsl", margin=0.025) + beats("fast alone", on="cl_slow", margin=0.05)
    found += beats("fast alone", "single", on="cl", margin=0.05) + beats("ewc", on="cl", margin=0.01)
    found += beats("joint", on="cl", margin=-0.01) + beats("joint", "frozen", "replay", on="cl_slow")
    return found + beats("reptile", "tsc ungated", "tsc without reset", on="fsl")


study = Study(
    slug="fewshot-continual",
    title="Few-shot Continual Learning: a Brain-inspired Approach",
    arms=ARMS,
    run=run,
    metrics={
        **dict.fromkeys(("cl", "cl_slow", "fsl", "fsl_1", "fsl_change"), higher_is_better),
        **dict.fromkeys(("forgetting", "moved"), lower_is_better),
    },
    claims=[claim for prefix in CELLS for claim in claims_of(prefix)],
    needs={name: fonts_missing for name, arm in ARMS.items() if arm["cell"] == "fonts"},
    seeds={"smoke": 1, "laptop": 5},
    shared_setup=True,
    time_limit=900,
)
