"""Train longer, generalize better (Hoffer, Hubara, Soudry; NeurIPS 2017; arXiv:1705.08741) on Fashion-MNIST.

Claim. Large batches generalize worse at equal epochs because they make fewer updates: raising the learning rate with
the root of the batch size, normalising in ghost batches and making as many updates as the small batch closes the gap,
step by step. In the first phase of training, at a high constant learning rate, the distance from the initial weights
grows like the logarithm of the number of updates, and at equal epochs a larger batch comes less far.

World. Fashion-MNIST, 8,000 training and 5,000 test images as vectors; a perceptron of four hidden layers of 128 units
with BatchNorm; batches of 32 and 1,024; 12 epochs with tenfold drops of the learning rate after 6 and 9.

Arms. All share the small batch's recipe: SGD with momentum 0.9, weight decay 1e-4, gradients clipped at norm 5, and its
learning rate. The changes add up, as in the paper: "+ regime" has the scaled rate and ghosts too. "own rate" is the
large batch with the learning rate that suits it best, without any rule. Ghosts of 8 are an ablation; a ghost of 1,024
is the whole batch and must change nothing. The diffusion arms train without schedule and without weight decay, which
would hold the weights back; their distances are compared after the same number of examples.

Learning rates: the best mean test accuracy of development seeds, of 0.00125, 0.0025, 0.005, 0.01, 0.02, 0.05 and 0.1
for the small batch, and of these, 0.2, 0.4 and 0.8 for the large batch's own. Diffusion at 0.05.

Deviations. The paper's perceptron has five layers of 512 units and learns 50,000 images of MNIST for 50 epochs, its
batches are 128 and 4,096: the ratio of 32 is kept, the rest is smaller. Fashion-MNIST, since MNIST leaves no gap. The
running variance is averaged, where the paper averages the standard deviation.
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

SMALL, LARGE, LR, OWN_LR, DIFFUSION_LR = 32, 1024, 0.02, 0.1, 0.05
SIZES = {"smoke": (1024, 500, 1, 24, 60), "laptop": (8000, 5000, 6, 128, 400)}  # train, test, epochs / 2, width, steps


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
        scale_lr(arm.get("lr", LR), batch, SMALL, rule=arm.get("rule", "none")),
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
        "large batch, own rate": {"batch": LARGE, "lr": OWN_LR},
        "+ learning rate": {"batch": LARGE, "rule": "sqrt"},
        "+ ghosts": {"batch": LARGE, "rule": "sqrt", "ghost": SMALL},
        "+ regime": {"batch": LARGE, "rule": "sqrt", "ghost": SMALL, "regime": True},
        "ghosts of 8": {"batch": LARGE, "rule": "sqrt", "ghost": 8},
        "ghosts of 1024": {"batch": LARGE, "rule": "sqrt", "ghost": LARGE},
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
        *(at_least(f"diffusion {batch}", on="log_r2", value=0.97) for batch in (32, 128, 512)),
        *(at_least(f"diffusion {batch}", on="log_over_sqrt_r2", value=0.0) for batch in (32, 128, 512)),
        ordered(["diffusion 32", "diffusion 128", "diffusion 512"], on="distance"),
    ],
    checks=[equivalent("ghosts of 1024", "+ learning rate", on="test_accuracy", within=1e-9)],
    seeds={"smoke": 1, "laptop": 8},
    time_limit={"smoke": 60.0, "laptop": 600.0},
)
