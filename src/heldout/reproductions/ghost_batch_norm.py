"""Train longer, generalize better (Hoffer, Hubara, Soudry; NeurIPS 2017; arXiv:1705.08741) on Fashion-MNIST.

The paper claims that large batches generalize worse at equal epochs because they make fewer updates: raising the
learning rate with the root of the batch size, normalising in ghost batches and making as many updates as the small
batch closes the gap, step by step; and that in the first phase of training the distance from the initial weights grows
like the logarithm of the number of updates.

Here: a perceptron with 4 hidden layers of 128 units and BatchNorm, 6,000 training images, batches of 32 and 512.
All arms share the small batch's recipe: SGD with momentum, two tenfold drops of the learning rate, gradients clipped
at norm 5. The changes add up, as in the paper: "+ regime" has the scaled rate and ghosts too. A ghost of 512 must
change nothing. The learning rate is the best of 0.005, 0.01, 0.02 and 0.05 for the small batch on development seeds.

What was found: ghosts do not beat the plain large batch, in any of the sizes that were tried. A likely reason: after a
hundred or two updates the network is under-trained, and noise has nothing to regularise.

The diffusion arms train at a high constant learning rate, 0.05, the phase that the claim is about, without weight
decay, which would hold the weights back; distances are compared after the same number of examples. At 0.01 the R^2 of
the logarithm was 0.96 to 0.97.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch import Tensor, nn

import heldout
from heldout.measure import WeightDistance
from heldout.method import Added, Batch, Method, Run
from heldout.nn import ghost_batch_norm, mlp
from heldout.optim import adapt_regime, scale_lr
from heldout.study import Study, at_least, better, equivalent, higher_is_better, log_curve, lower_is_better, ordered
from heldout.tasks import fashion_mnist, stratified_split

SMALL, LARGE, LR, DIFFUSION_LR = 32, 512, 0.005, 0.05
SIZES = {"smoke": (1024, 500, 1, 24, 60), "laptop": (6000, 5000, 6, 128, 400)}  # train, test, epochs / 2, width, steps


@functools.cache
def images(part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    return fashion_mnist(part=part)


def subset(part: Literal["train", "test"], size: int, seed: int) -> tuple[Tensor, Tensor]:
    inputs, labels = images(part)
    (chosen,) = stratified_split(labels, (size,), seed=seed)
    return inputs[chosen], labels[chosen]


def train(train_set: tuple[Tensor, Tensor], method: Method | None, width: int, lr: float, **options: Any) -> Any:
    decay = options.pop("weight_decay", 1e-4)
    return heldout.fit(
        functools.partial(mlp, 784, 10, [width] * 4, batch_norm=True),
        train_set,
        method,
        optimizer=functools.partial(torch.optim.SGD, lr=lr, momentum=0.9, weight_decay=decay),
        max_grad_norm=5.0,
        **options,
    )


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    if "diffusion" in arm:
        return diffusion(arm["diffusion"], seed, profile)
    train_size, test_size, half, width, _ = SIZES[profile]
    batch, milestones, epochs = arm["batch"], [half, half * 3 // 2], 2 * half
    if arm.get("regime"):
        milestones, epochs = adapt_regime(milestones, epochs, batch, SMALL)

    def schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, [m * steps // epochs for m in milestones])

    fitted = train(
        subset("train", train_size, seed),
        ghost_batch_norm(arm["ghost"]) if "ghost" in arm else None,
        width,
        scale_lr(LR, batch, SMALL, rule=arm.get("rule", "none")),
        epochs=epochs,
        batch_size=batch,
        schedule=schedule,
        seed=seed,
    )
    for entry in fitted.history[:: max(1, epochs // 12)]:
        log_curve("training loss", int(entry["epoch"]), entry["loss"])
    updates = epochs * -(-train_size // batch)
    return {"test_accuracy": fitted.evaluate(subset("test", test_size, seed))["accuracy"], "updates": updates}


def diffusion(batch: int, seed: int, profile: str) -> dict[str, float]:
    train_size, _, _, width, steps = SIZES[profile]
    distances: list[WeightDistance] = []
    equal_epochs = steps * SMALL // batch
    recorded = {int(steps ** (i / 30)) for i in range(31)} | {equal_epochs}

    def start(run: Run, module: nn.Module) -> nn.Module:
        distances.append(WeightDistance(module))
        return module

    def record(run: Run, batch: Batch) -> Tensor:
        if run.step in recorded:
            log_curve("distance from the initial weights", run.step, distances[0].record(run.step))
        return torch.zeros(())

    epochs = 1 + steps * batch // train_size
    options = {"epochs": epochs, "batch_size": batch, "schedule": "constant", "seed": seed, "weight_decay": 0.0}
    train(
        subset("train", train_size, seed),
        Method("record", model=start, loss=Added(record)),
        width,
        DIFFUSION_LR,
        **options,
    )
    fit = distances[0].fit()
    return {
        "log_r2": fit.log_r2,
        "log_over_sqrt_r2": fit.log_r2 - fit.sqrt_r2,
        "exponent": fit.exponent,
        "distance": distances[0].distances[distances[0].steps.index(equal_epochs)],
    }


study = Study(
    slug="ghost-batch-norm",
    title="Train longer, generalize better: closing the generalization gap in large batch training",
    arms={
        "small batch": {"batch": SMALL},
        "large batch": {"batch": LARGE},
        "+ learning rate": {"batch": LARGE, "rule": "sqrt"},
        "+ ghosts": {"batch": LARGE, "rule": "sqrt", "ghost": SMALL},
        "+ regime": {"batch": LARGE, "rule": "sqrt", "ghost": SMALL, "regime": True},
        "ghosts of 8": {"batch": LARGE, "rule": "sqrt", "ghost": 8},
        "ghosts of 512": {"batch": LARGE, "rule": "sqrt", "ghost": LARGE},
        **{f"diffusion {batch}": {"diffusion": batch} for batch in (32, 128, 512)},
    },
    run=run,
    metrics={
        "test_accuracy": higher_is_better,
        "updates": lower_is_better,
        "log_r2": higher_is_better,
        "log_over_sqrt_r2": higher_is_better,
        "exponent": lower_is_better,
        "distance": lower_is_better,
    },
    optional={"test_accuracy", "updates", "log_r2", "log_over_sqrt_r2", "exponent", "distance"},
    claims=[
        better("small batch", than="large batch", on="test_accuracy", margin=0.01),
        ordered(["large batch", "+ learning rate", "+ ghosts", "small batch"], on="test_accuracy"),
        better("+ ghosts", than="+ learning rate", on="test_accuracy", margin=0.003),
        better("+ regime", than="small batch", on="test_accuracy", margin=-0.003),
        equivalent("ghosts of 512", "+ learning rate", on="test_accuracy", within=1e-9),
        *(at_least(f"diffusion {batch}", on="log_r2", value=0.97) for batch in (32, 128, 512)),
        *(at_least(f"diffusion {batch}", on="log_over_sqrt_r2", value=0.0) for batch in (32, 128, 512)),
        ordered(["diffusion 32", "diffusion 128", "diffusion 512"], on="distance"),
    ],
    seeds={"smoke": 1, "laptop": 5},
    time_limit={"smoke": 60.0, "laptop": 600.0},
)
