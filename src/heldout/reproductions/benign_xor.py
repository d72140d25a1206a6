"""Benign overfitting and grokking of a two-layer ReLU network on XOR clusters.

Source: arXiv:2310.02541 (Xu, Wang, Frei, Vardi, Hu; ICLR 2024). The paper proves that one step of gradient descent from
a tiny initialisation fits all labels of high-dimensional XOR clusters, flipped ones included, as a nearly linear
classifier whose test accuracy is at chance; and that later steps reach a test accuracy near 1 without unlearning the
flipped labels, because neurons align with the cluster means.

Here: 200 examples in 40,000 dimensions, 10 % of labels flipped, 500 hidden units, ``||mu||^2 = sqrt(n p) / 2``,
learning rate n / p, 800 test points. ``relu`` has equal clusters and flips; ``unbalanced`` draws them independently, as
the paper does. ``lazy`` starts from weights 10^4 times larger, ``weak`` has a fifth of the signal, ``clean`` no flips;
two linear classifiers of the same data for comparison. The theorem asks for p far above n^5; here p = n^2. ``dim-*``
shrink the dimension at the same n, with signal and learning rate by the same rules, down to where one step no longer
memorises. ``plain-torch`` trains the network itself in 4,000 dimensions and compares it with SpanGD.

What was found on development seeds: with equal clusters the class means cancel, the linear classifier at step 1 is made
of noise alone, and 500 hidden units agree with it on 80 to 90 % of the test points (1,000 on 3 points more); with
independent draws on 98 to 100 %. With independent draws one cluster can remain unlearned for 100 steps and more:
``grok_step`` says how long. In 2,000 dimensions and below the order is the reverse: the network generalizes at step 2,
while it has the flipped labels wrong, and fits these later.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.measure import linear_agreement, neuron_alignment, overfitting_report
from heldout.nn import TwoLayerReLU
from heldout.study import (
    Study,
    at_least,
    at_most,
    higher_is_better,
    log_curve,
    log_figure,
    lower_is_better,
    ordered,
)
from heldout.tasks import XorData, xor_clusters
from heldout.train import SpanGD

SIZES = {"smoke": (40, 50, 0.05), "laptop": (200, 500, 1.0)}  # examples, hidden units, share of the dimension
COMPARED = 50  # the later step of the claims
RECORDED = [*range(1, 11), 12, 15, 20, 25, 30, 40, COMPARED, 70, 100, 150, 200, 300]

METRICS = {
    "first_train_accuracy": higher_is_better,
    "first_test_accuracy": lower_is_better,
    "first_agreement": higher_is_better,
    "train_accuracy": higher_is_better,
    "test_accuracy": higher_is_better,
    "agreement": lower_is_better,
    "last_train_accuracy": higher_is_better,
    "last_test_accuracy": higher_is_better,
    "worst_train_accuracy": higher_is_better,
    "alignment_rise": higher_is_better,
    "overlap": lower_is_better,
    "grok_step": lower_is_better,
    "difference": lower_is_better,
}


@functools.lru_cache(maxsize=1)
def world(seed: int, n: int, dim: int, signal: float, flip: float, balanced: bool) -> tuple[XorData, XorData]:
    data = xor_clusters(n, dim, signal * (n * dim) ** 0.5, flip=flip, balanced=balanced, seed=seed)
    return data, data.sample(800, seed=1_000_000 + seed)


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of scores of the label's sign; a score of 0 is an error."""
    return (scores * labels > 0).double().mean().item()


def linear(kind: str, data: XorData, test: XorData) -> dict[str, float]:
    """The linear classifier without intercept that interpolates the labels, or that has the largest margin."""
    gram, across = data.x @ data.x.T, test.x @ data.x.T
    if kind == "min-norm":
        coefficients = torch.linalg.solve(gram, data.y)
    else:
        from sklearn.svm import SVC

        machine = SVC(C=1e6, kernel="precomputed").fit(gram / len(data.x[0]), data.y)
        coefficients = torch.zeros(len(data.y))
        coefficients[machine.support_] = torch.from_numpy(machine.dual_coef_[0]).float()
    return {
        "train_accuracy": accuracy(gram @ coefficients, data.y),
        "test_accuracy": accuracy(across @ coefficients, test.y_clean),
    }


def largest_difference(data: XorData, test: XorData, trainer: SpanGD, network: TwoLayerReLU, lr: float) -> float:
    """Largest difference of test scores between SpanGD and plain training over 20 steps, relative to the scores."""
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    worst = 0.0
    for _ in range(20):
        optimizer.zero_grad()
        F.softplus(-data.y * network.score(data.x)).mean().backward()
        optimizer.step()
        trainer.step()
        scores = trainer.predict(test.x)
        worst = max(worst, ((network.score(test.x).detach() - scores).abs().max() / scores.abs().max()).item())
    return worst


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    n, width, share = SIZES[profile]
    dim = int(arm["dim"] * share)
    data, test = world(seed, n, dim, arm["signal"], arm["flip"], arm["balanced"])
    if "linear" in arm:
        return linear(arm["linear"], data, test)
    lr, network_seed = n / dim, 2_000_000 + seed
    trainer = SpanGD(data.x, data.y, width, init_std=arm["init_std"], lr=lr, seed=network_seed)
    if arm.get("compare"):
        network = TwoLayerReLU(dim, width, std=arm["init_std"], seed=network_seed)
        return {"difference": largest_difference(data, test, trainer, network, lr)}
    points = trainer.points(test.x)
    steps = [step for step in RECORDED if step <= arm["steps"]]
    curves: dict[str, list[float]] = {"train accuracy": [], "test accuracy": [], "agreement with linear": []}
    alignments, worst_train = {}, 1.0
    for step in range(1, steps[-1] + 1):
        trainer.step()
        train = accuracy(trainer.train_scores(), data.y)
        worst_train = min(worst_train, train)
        if step in steps:
            scores = trainer.predict(points)
            agreement = linear_agreement(lambda _, scores=scores: scores, data.x, data.y, test.x)  # type: ignore[misc]
            values = (train, accuracy(scores, test.y_clean), agreement)
            for (name, curve), value in zip(curves.items(), values, strict=True):
                curve.append(value)
                log_curve(name, step, value)
        if step in (1, 2, 5, 20, COMPARED):
            aligned = neuron_alignment(trainer.weights(), trainer.head, *data.centers)
            alignments[step] = (aligned.positive + aligned.negative) / 2
            log_curve("neuron alignment", step, alignments[step])
    log_figure("accuracy by step", figure(steps, curves))
    train_curve, test_curve, agreement_curve = curves.values()
    report = overfitting_report(steps, train_curve, test_curve)
    later = steps.index(COMPARED)
    gram = trainer.gram - trainer.gram.diag().diag()
    metrics = {
        "first_train_accuracy": train_curve[0],
        "first_test_accuracy": test_curve[0],
        "first_agreement": agreement_curve[0],
        "train_accuracy": train_curve[later],
        "test_accuracy": test_curve[later],
        "agreement": agreement_curve[later],
        "last_train_accuracy": train_curve[-1],
        "last_test_accuracy": test_curve[-1],
        "worst_train_accuracy": worst_train,
        "alignment_rise": alignments[COMPARED] - alignments[1],
        "overlap": gram.abs().max().item() / dim,
    }
    return metrics | ({} if report.grok_step is None else {"grok_step": float(report.grok_step)})


def figure(steps: list[int], curves: dict[str, list[float]]) -> dict[str, Any]:
    rows = [
        {"step": step, "share": value, "of": name}
        for name, curve in curves.items()
        for step, value in zip(steps, curve, strict=True)
    ]
    return {
        "data": {"values": rows},
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": {"field": "step", "type": "quantitative", "scale": {"type": "log", "nice": False}},
            "y": {"field": "share", "type": "quantitative", "scale": {"domain": [0.4, 1.0], "clamp": True}},
            "color": {"field": "of", "type": "nominal", "title": None},
        },
    }


def arm(**changes: Any) -> dict[str, Any]:
    base = {"dim": 40_000, "signal": 0.5, "flip": 0.1, "balanced": True, "init_std": 1e-6, "steps": 200}
    return base | changes


study = Study(
    slug="benign-xor",
    title="Benign Overfitting and Grokking in ReLU Networks for XOR Cluster Data",
    arms={
        "relu": arm(),
        "lazy": arm(init_std=1e-2),
        "linear-min-norm": arm(linear="min-norm"),
        "linear-max-margin": arm(linear="max-margin"),
        "unbalanced": arm(balanced=False, steps=300),
        "clean": arm(flip=0.0),
        "weak": arm(signal=0.1),
        "dim-500": arm(dim=500),
        "dim-2000": arm(dim=2000),
        "dim-8000": arm(dim=8000),
        "plain-torch": arm(dim=4000, compare=True),
    },
    run=run,
    metrics=METRICS,
    optional=set(METRICS),
    claims=[
        at_least("relu", on="first_test_accuracy", value=0.40),
        at_most("relu", on="first_test_accuracy", value=0.60),
        at_least("relu", on="first_agreement", value=0.95),
        at_least("unbalanced", on="first_agreement", value=0.95),
        at_most("relu", on="agreement", value=0.65),
        at_least("relu", on="alignment_rise", value=0.2),
        at_most("linear-max-margin", on="test_accuracy", value=0.6),
        at_most("linear-min-norm", on="test_accuracy", value=0.6),
        at_most("lazy", on="last_test_accuracy", value=0.6),
        at_most("weak", on="last_test_accuracy", value=0.95),
        ordered(["dim-500", "dim-2000", "dim-8000", "relu"], on="first_train_accuracy", tolerance=0.01),
        at_most("dim-500", on="first_train_accuracy", value=0.97),
    ],
    checks=[
        at_least("relu", on="first_train_accuracy", value=0.99),
        at_least("relu", on="train_accuracy", value=0.999),
        at_least("relu", on="test_accuracy", value=0.98),
        at_least("relu", on="worst_train_accuracy", value=0.999),
        at_least("lazy", on="last_train_accuracy", value=0.99),
        at_most("plain-torch", on="difference", value=1e-3),
    ],
    seeds={"smoke": 1, "laptop": 5},
    shared_setup=True,
)
