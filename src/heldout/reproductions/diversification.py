"""Diversification: on which unlabelled data do DivDis and D-BAT find the cue that holds, and does the learner matter?

Source: arXiv:2312.16313 (Benoit et al., ICLR 2024), which finds that D-BAT is best where the spurious cue contradicts
the true one on the unlabelled data and DivDis where the two are independent, that the learner matters as much, and
that more hypotheses do not repair a mismatch.

Here: dominoes of a digit 0 or 1 (the spurious cue) above a dress or a coat of Fashion-MNIST (the true one). They always
agree on the 1,000 labelled images, and in a share r of the 1,000 unlabelled ones. ``accuracy`` is that, on images whose
cues are independent, of the hypothesis that 32 labels choose; ``best_accuracy`` that of the best one. The arm
``points`` is the example in the plane: the true cue is the first coordinate, scaled down so that the second is easier
to see; its figure shows the direction of each hypothesis.

The weights are fixed for all r, as a user would have to: 10 as published for DivDis; for D-BAT, of 0.1, 0.3 and 1, the
largest whose hypotheses still fit the labels (98 % on fresh source images) at r = 0, on development seeds. There
D-BAT's range is broad: at r = 0.5 it comes close to DivDis, and with weight 1 it equals it, at the cost of the labels.

Deviations: the base learner is a perceptron with one hidden layer, which learns both cues in seconds; convolutional
networks from scratch, with random features, and pretrained on the other eight classes are the other learners. The
curve of weights tuned for each r is left out.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import heldout
from heldout.measure import sweet_spot
from heldout.nn import mlp
from heldout.study import Study, at_most, better, higher_is_better, log_curve, log_figure, lower_is_better
from heldout.tasks import Dominoes, digits, dominoes, fashion_mnist, l_shape
from heldout.train import Hypotheses, disambiguate, diversify

AGREEMENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
COAT, DRESS = 4, 3
FEW = 32  # labels that choose among the hypotheses
WEIGHTS = {"divdis": 10.0, "dbat": 0.1}
TRUE_CUE_SIZE = 0.3  # of the first coordinate of the points: harder to see than the second, as the true cue is
SIZES = {"smoke": (64, 64, 1), "laptop": (1000, 1000, 8)}  # examples of each set, test examples, epochs

Pool = tuple[Tensor, Tensor]


def conv_net(classes: int = 2) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(672, classes)),
    )


@functools.lru_cache(maxsize=2)
def pools(seed: int, profile: str) -> tuple[dict[str, Pool], Pool]:
    """Bottom images of two classes for each set, all different; and the images of the other classes."""
    if profile == "smoke":
        images, labels = digits(size=14)
        two = (8, 9)
    else:
        images, labels = fashion_mnist()
        images, two = F.avg_pool2d(images, 2), (COAT, DRESS)
    chosen = torch.isin(labels, torch.tensor(two)).nonzero().squeeze(1)
    chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))]
    parts = zip(("labelled", "unlabelled", "test", "few"), chosen.tensor_split(4), strict=True)
    rest = (~torch.isin(labels, torch.tensor(two))).nonzero().squeeze(1)[:4000]
    return {name: (images[part], (labels[part] == two[1]).long()) for name, part in parts}, (images[rest], labels[rest])


def pairs(part: str, agreement: float, seed: int, profile: str) -> Dominoes:
    images, labels = digits(size=14)
    top = images[labels < 2], labels[labels < 2]
    train, test, _ = SIZES[profile]
    n = {"labelled": train, "unlabelled": train, "test": test, "few": FEW}[part]
    return dominoes(top, pools(seed, profile)[0][part], agreement, n, seed=seed)


@functools.lru_cache(maxsize=2)
def pretrained(seed: int, profile: str) -> nn.Sequential:
    """The convolutional network after training on the other classes, under digits that say nothing about them."""
    bottoms, labels = pools(seed, profile)[1]
    tops, _ = digits(size=14)
    drawn = torch.randint(len(tops), (len(bottoms),), generator=torch.Generator().manual_seed(seed))
    data = torch.cat([tops[drawn], bottoms], dim=2), labels
    optimizer = functools.partial(torch.optim.Adam, lr=2e-3)
    module = heldout.fit(
        lambda: conv_net(10), data, epochs=SIZES[profile][2] // 2 + 1, optimizer=optimizer, seed=seed
    ).module
    assert isinstance(module, nn.Sequential)
    return module


def learner(kind: str, seed: int, profile: str) -> nn.Module:
    """A learner; called under the seed of the training."""
    if kind == "mlp":
        return mlp(28 * 14, 2, (64,))
    model = conv_net()
    if kind == "pretrained":
        model[:-1].load_state_dict(pretrained(seed, profile)[:-1].state_dict())
    if kind == "random-features":
        model[:-1].requires_grad_(False)
    return model


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    if arm["method"] == "points":
        return points(seed, profile)
    labelled = pairs("labelled", 1.0, seed, profile)
    unlabelled = pairs("unlabelled", arm["agreement"], seed, profile)
    generator = torch.Generator().manual_seed(seed)
    hypotheses = diversify(
        functools.partial(learner, arm["learner"], seed, profile),
        DataLoader(TensorDataset(labelled.images, labelled.labels), 32, shuffle=True, generator=generator),
        DataLoader(TensorDataset(unlabelled.images), 64, shuffle=True, drop_last=True, generator=generator),
        "divdis" if arm["method"] == "divdis" else "dbat",
        arm["k"],
        weight=arm["weight"],
        epochs=SIZES[profile][2],
        optimizer=functools.partial(torch.optim.Adam, lr=3e-3),
        seed=seed,
    )
    test, few, source = (pairs(*of, seed, profile) for of in (("test", 0.5), ("few", 0.5), ("test", 1.0)))
    accuracies = hypotheses.accuracies(test.images, test.labels)
    if arm["method"] == "erm":
        chosen = 0
    else:
        chosen = disambiguate(hypotheses, few.images, few.labels)
    return {
        "accuracy": accuracies[chosen].item(),
        "best_accuracy": accuracies[0 if arm["method"] == "erm" else slice(None)].max().item(),
        "source_accuracy": hypotheses.accuracies(source.images, source.labels)[chosen].item(),
    }


def points(seed: int, profile: str) -> dict[str, float]:
    """The two methods on points in the plane, for each share of agreement: where each is best, and what it learnt."""
    n, epochs = (64, 1) if profile == "smoke" else (512, 12)
    train, test, few = (
        l_shape(*of, margin=0.05, seed=seed + 10 * i) for i, of in enumerate([(1.0, n), (0.5, n), (0.5, FEW)])
    )
    scale = torch.tensor([TRUE_CUE_SIZE, 1.0])
    labelled = DataLoader(TensorDataset(train.points * scale, train.labels), 64)
    found: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for method in ("dbat", "divdis"):
        scores = []
        for agreement in AGREEMENTS:
            target = l_shape(agreement, n, margin=0.05, seed=seed + 30)
            hypotheses = diversify(
                functools.partial(mlp, 2, 2, (32,)),
                labelled,
                [target.points * scale],
                method,  # type: ignore[arg-type]
                weight=WEIGHTS[method],
                epochs=epochs,
                optimizer=functools.partial(torch.optim.Adam, lr=1e-2),
                seed=seed,
            )
            chosen = disambiguate(hypotheses, few.points * scale, few.labels)
            scores.append(hypotheses.accuracies(test.points * scale, test.labels)[chosen].item())
            log_curve(f"points_accuracy_{method}", agreement, scores[-1])
            rows += [{"method": method, "agreement": agreement, **angle} for angle in angles(hypotheses)]
        found[f"points_sweet_spot_{method}"] = sweet_spot(AGREEMENTS, scores).best
        found[f"points_best_{method}"] = max(scores)
    log_figure("angle of each hypothesis to the true cue", {
        "data": {"values": rows},
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": {"field": "agreement", "type": "quantitative", "title": "share of unlabelled points whose cues agree"},
            "y": {"field": "angle", "type": "quantitative", "title": "degrees (0 true cue, 90 spurious cue)"},
            "color": {"field": "method", "type": "nominal"},
            "strokeDash": {"field": "hypothesis", "type": "nominal"},
        },
    })  # fmt: skip
    return found


def angles(hypotheses: Hypotheses) -> list[dict[str, float]]:
    """The direction in the plane along which each hypothesis' probability of class 1 rises."""
    side = torch.linspace(-1, 1, 21)
    grid = torch.cartesian_prod(side, side)
    probs = hypotheses(grid * torch.tensor([TRUE_CUE_SIZE, 1.0])).softmax(2)[..., 1]
    x, y = (grid.T @ (2 * probs - 1)).unbind(0)
    return [{"hypothesis": i, "angle": a} for i, a in enumerate(torch.atan2(y, x).rad2deg().tolist())]


def arm(method: str, agreement: float, learner: str = "mlp", k: int = 2) -> dict[str, Any]:
    weight = WEIGHTS.get(method, 0.0)
    return {"method": method, "agreement": agreement, "learner": learner, "k": k, "weight": weight}


study = Study(
    slug="diversification",
    title="Unraveling the Key Components of OOD Generalization via Diversification",
    arms={
        "erm": arm("erm", 0.5),
        **{f"{method}-r{r:g}": arm(method, r) for method in ("divdis", "dbat") for r in AGREEMENTS},
        **{
            f"{method}-r{r:g}-{learner}": arm(method, r, learner)
            for method, r in (("dbat", 0.0), ("divdis", 0.5))
            for learner in ("conv", "random-features", "pretrained")
        },
        **{f"divdis-r{r:g}-k{k}": arm("divdis", r, k=k) for r, k in ((0.0, 4), (0.0, 8), (0.5, 8))},
        "points": {"method": "points"},
    },
    run=run,
    metrics={
        "accuracy": higher_is_better,
        "best_accuracy": higher_is_better,
        "source_accuracy": higher_is_better,
        "points_sweet_spot_dbat": lower_is_better,
        "points_sweet_spot_divdis": higher_is_better,
        "points_best_dbat": higher_is_better,
        "points_best_divdis": higher_is_better,
    },
    optional={
        "accuracy",
        "best_accuracy",
        "source_accuracy",
        "points_sweet_spot_dbat",
        "points_sweet_spot_divdis",
        "points_best_dbat",
        "points_best_divdis",
    },
    claims=[
        better("dbat-r0", than=["dbat-r0.5", "dbat-r0.75", "dbat-r1"], on="accuracy"),
        better("divdis-r0.5", than=["divdis-r0", "divdis-r1"], on="accuracy"),
        better("dbat-r0", than="dbat-r1", on="accuracy", margin=0.10),
        better("divdis-r0.5", than="divdis-r1", on="accuracy", margin=0.10),
        better("dbat-r0", than="divdis-r0", on="accuracy", margin=0.05),
        better("divdis-r0.5", than="dbat-r0.5", on="accuracy", margin=0.05),
        better("dbat-r0", than="dbat-r0-random-features", on="accuracy", margin=0.10),
        better("divdis-r0.5", than="divdis-r0.5-random-features", on="accuracy", margin=0.10),
        better("divdis-r0", than="divdis-r0-k8", on="accuracy", margin=-0.05),
    ],
    checks=[
        at_most("points", on="points_sweet_spot_dbat", value=0.25),
    ],
    seeds={"smoke": 1, "laptop": 4},
)
