"""audit: one report on a user's own model: how well it generalizes, and what seems to stand in its way.

Every measure is a function of ``heldout.measure`` or ``heldout.train`` that can be called alone; what is here is the
order in which they are called, the time that each may take, and the sentence that tells how to read its number.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.audit.work import Audit, named_validation
from heldout.data import all_targets, gather
from heldout.measure import (
    brier,
    classification_difficulty,
    expected_calibration_error,
    gradient_coherence,
    gradient_features,
    nll,
    reliability_table,
    sharpness,
    vendi_score,
)
from heldout.nn import inputs_for, split_head
from heldout.study import wilson
from heldout.train import contradicted_labels, cross_fit

MEASURED = 2000  # examples that the difficulty of the task is estimated from
FOLDS = 4
SUSPECT = 0.5  # a label is suspicious where models speak against it half as strongly as they do for the median one
WEAK, CLEAR = 0.15, 0.2  # below this median margin, only what is clear, or contradicted out of sample, is suspicious
LEAST_MEMBERS = 2 * FOLDS  # of a class whose labels are judged: with fewer, models hardly see it


# --- the parts of the report ----------------------------------------------------------------------------------------


def _scores(work: Audit) -> None:
    sets = {"train": "train", **dict.fromkeys(named_validation(work.problem), "val")}
    sets |= dict.fromkeys(work.problem.splits.test, "test")
    rows = {name: {"role": role, **_score_of(*work.of(name))} for name, role in sets.items()}
    metric, sign = ("accuracy", 1) if work.problem.task == "classification" else ("mse", -1)
    base = rows[work.given]
    shifts = {}
    for name in work.problem.splits.test:
        row = rows[name]
        gap, spread = sign * (base[metric] - row[metric]), math.hypot(_half(base), _half(row))
        ends = {"low": row["low"], "high": row["high"], "gap_low": gap - spread, "gap_high": gap + spread}
        shifts[name] = {metric: row[metric], "gap": gap, **ends}
    work.document |= {"sets": rows, "shifts": shifts}
    gap = sign * (rows["train"][metric] - base[metric])
    reading = "how much better the model is on what it was trained on: much more than noise means that it overfits"
    work.finding(f"{metric}: train against {work.given}", gap, reading, methods=["ps_kd", "useful", "sam"])
    shifted = [name for name in shifts if name != work.given]
    if shifted:
        worst = max(shifted, key=lambda name: shifts[name]["gap"])
        found = shifts[worst]
        title = f"{metric}: {work.given} against {worst}"
        reading = "what the worst shift costs: it does for sure where the interval lies above 0"
        work.finding(
            title, found["gap"], reading, low=found["gap_low"], high=found["gap_high"], methods=["tent", "itta"]
        )


def _score_of(outputs: Tensor, targets: Tensor) -> dict[str, Any]:
    losses = _losses(outputs, targets)
    mean, half = float(losses.mean()), 1.96 * float(losses.std()) / math.sqrt(len(losses))
    ends = {"low": mean - half, "high": mean + half}
    if targets.is_floating_point():
        return {"n": len(targets), "mse": mean, **ends}
    found = wilson(float((outputs.argmax(1) == targets).sum()), len(targets))
    accuracy = {"accuracy": found.estimate, "low": found.low, "high": found.high}
    return {"n": len(targets), **accuracy, "loss": mean, **{f"loss_{name}": value for name, value in ends.items()}}


def _half(row: dict[str, Any]) -> float:
    return (row["high"] - row["low"]) / 2


def _calibration(work: Audit) -> None:
    table: dict[str, Any] = {}
    for name in work.problem.splits.test:
        outputs, targets = work.of(name)
        probs = outputs.double().softmax(1)
        table[name] = {
            "ece": expected_calibration_error(probs, targets),
            "brier": brier(probs, targets),
            "nll": nll(probs, targets),
            "bins": [vars(row) for row in reliability_table(probs, targets)],
        }
    work.document["calibration"] = table
    worst = max(table, key=lambda name: table[name]["ece"])
    reading = "mean distance of confidence from accuracy: 0.02 is good, above 0.1 do not trust the probabilities"
    work.finding(f"calibration error on {work.given}", table[work.given]["ece"], reading, methods=["ps_kd"])
    if worst != work.given:
        work.finding(f"calibration error on {worst}", table[worst]["ece"], reading, methods=["ps_kd", "adanpc"])


def _classes(work: Audit) -> None:
    outputs, targets = work.of(work.given)
    right = outputs.argmax(1) == targets
    work.document["classes"] = [_share(right, targets == label, int(label)) for label in targets.unique()]
    worst = min(work.document["classes"], key=lambda row: row["accuracy"])
    reading = "the class with the lowest accuracy: look whether it has few examples, or wrong labels"
    work.finding(
        f"class {worst['group']} on {work.given}", worst["accuracy"], reading, low=worst["low"], high=worst["high"]
    )
    for field_name in ("groups", "domains"):
        labels = getattr(work.problem.splits, field_name)
        if labels is None:
            continue
        outputs, targets = work.of("train")
        right = outputs.argmax(1) == targets
        rows = [
            _share(right, torch.as_tensor(labels) == label, int(label)) for label in torch.as_tensor(labels).unique()
        ]
        work.document[field_name] = rows
        worst = min(rows, key=lambda row: row["accuracy"])
        reading = f"the lowest training accuracy of the {field_name}: a low one was not even learned"
        work.finding(
            f"{field_name[:-1]} {worst['group']}",
            worst["accuracy"],
            reading,
            low=worst["low"],
            high=worst["high"],
            methods=["drm"],
        )


def _share(right: Tensor, members: Tensor, group: int) -> dict[str, Any]:
    found = wilson(float(right[members].sum()), int(members.sum()))
    return {"group": group, "n": int(members.sum()), "accuracy": found.estimate, "low": found.low, "high": found.high}


def _memorization(work: Audit) -> None:
    train, test = (_losses(*work.of(name)) for name in ("train", work.given))
    ordered = test.sort().values
    places = torch.searchsorted(ordered, train) + torch.searchsorted(ordered, train, right=True)
    below = 1 - float(places.double().mean()) / (2 * len(test))  # ties count half
    work.document["memorization"] = {"auc": below, "examples": len(train) + len(test)}
    reading = (
        "probability that a training example has a lower loss than a new one: at 0.5 single examples left no trace, "
        "at 1 all did; privacy attacks work in between"
    )
    work.finding("memorization", below, reading, methods=["ps_kd", "sam"])


def _losses(outputs: Tensor, targets: Tensor) -> Tensor:
    if targets.is_floating_point():
        return (outputs.reshape(targets.shape) - targets).double().square().reshape(len(targets), -1).mean(1)
    return F.cross_entropy(outputs.double(), targets, reduction="none")


def _sharpness(work: Audit) -> None:
    found = sharpness(work.module, work.probed(), iterations=20, seed=work.seed)
    work.document["sharpness"] = vars(found)
    reading = "largest curvature of the loss: gradient descent diverges beyond a rate of 2 / this. Compare like models"
    work.finding("sharpness: top Hessian eigenvalue", found.top_eigenvalue, reading, methods=["sam"])
    reading = f"rise of the training loss {found.loss:.3g} within {found.rho} of the weights: what SAM lowers"
    work.finding("sharpness: ascent gap", found.ascent_gap, reading, methods=["sam"])


def _coherence(work: Audit) -> None:
    found = gradient_coherence(work.module, work.probed(), per_layer=True)
    work.document["coherence"] = {
        "m_coherence": found.m_coherence,
        "examples": found.examples,
        "layers": dict(found.by_layer),
    }
    reading = (
        f"how many of {found.examples} examples a step on one of them helps, at the end of training: 1 means that what "
        "is left to learn is learned by heart"
    )
    work.finding("gradient coherence", found.m_coherence, reading, methods=["useful"])


def _diversity(work: Audit) -> None:
    probed = work.probed()
    inputs, _ = gather(probed, torch.arange(len(probed)))
    inputs = inputs_for(work.module, inputs)
    encoder, _ = split_head(work.module, inputs)
    with torch.no_grad():
        features = encoder(inputs).float()
    kept = features[features.norm(dim=1) > 0]
    embedding = vendi_score(kept)
    gradients = gradient_features(work.module, probed, dim=256, projection="countsketch", normalise=False)
    lengths = gradients.norm(dim=1)
    by_gradient = vendi_score(gradients[lengths > 0])
    work.document["diversity"] = {"embedding_vendi": embedding, "g_vendi": by_gradient, "examples": len(probed)}
    reading = (
        f"how many different examples the model sees in {len(probed)}: near the number of classes, it sees these only"
    )
    work.finding("diversity of features (Vendi)", embedding, reading)
    reading = f"as many different directions in which {len(probed)} examples pull the weights: more of them teach more"
    work.finding("diversity of gradients (G-Vendi)", by_gradient, reading, methods=["useful"])


def _difficulty(work: Audit) -> None:
    train = work.problem.splits.train
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(work.seed))[:MEASURED]  # type: ignore[arg-type]
    inputs, targets = gather(train, chosen)
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise ValueError("the difficulty of a task is defined for inputs of real numbers")
    found = classification_difficulty(inputs, targets, error=0.01, seed=work.seed)
    work.document["difficulty"] = {
        "log2_bits": None if math.isnan(found.log2_bits) else found.log2_bits,
        "dimension": found.dim,
        "margin": found.margin,
    }
    if found.determined:
        reading = (
            f"the training data, of intrinsic dimension {found.dim:g}, suffice for 1 % error without any further bias"
        )
        work.finding("difficulty of the task, bits", 0.0, reading)
        return
    reading = (
        "log2 of the bits that architecture and training must bring along for 1 % error, at intrinsic dimension "
        f"{found.dim:g}: a further dimension, or classes half as far apart, raise it; more data hardly lower it"
    )
    work.finding("difficulty of the task, log2 bits", found.log2_bits, reading, low=found.low, high=found.high)


def _suspects(work: Audit) -> None:
    recipe = {name: value for name, value in work.problem.recipe.items() if name != "epochs"}
    spent = sum(entry["seconds"] for entry in work.document["curve"]) / max(1, len(work.document["curve"]))
    left = work.deadline - time.monotonic()
    epochs = work.problem.epochs if not spent else min(work.problem.epochs, int(left / (spent * (FOLDS - 1))))
    if epochs < 2:
        raise ValueError(f"the {left:.0f} s that are left of the budget do not allow {FOLDS} trainings of 2 epochs")
    train, model = work.problem.splits.train, functools.partial(work.problem.model, work.seed)
    margins, probabilities = cross_fit(model, train, folds=FOLDS, epochs=epochs, seed=work.seed, **recipe)
    targets = all_targets(work.problem.splits.train).cpu()
    typical = float(margins.median().clamp(min=0))
    wrong = margins < -SUSPECT * typical
    if typical < WEAK:
        wrong &= contradicted_labels(probabilities, targets, least=LEAST_MEMBERS) | (margins < -CLEAR)
    wrong &= targets.bincount()[targets] >= LEAST_MEMBERS
    order = margins.argsort()
    found = order[wrong[order]].tolist()
    rare = [
        int(label) for label, count in zip(*targets.unique(return_counts=True), strict=True) if count < LEAST_MEMBERS
    ]
    work.document["suspects"] = found
    work.document["suspect_margins"] = [round(float(margins[i]), 4) for i in found]
    work.document["suspect_labels"] = [int(targets[i]) for i in found]
    work.document["classes_not_judged"] = rare
    share = len(found) / len(margins)
    reading = (
        f"share of training examples whose label {FOLDS} cross-fitted models contradict, {len(found)} in all: wrong "
        "labels, or hard examples. Look at them from the first on"
    )
    if typical < WEAK:
        reading += ". These models hardly support the labels at all: with a longer training the list is worth more"
    if rare:
        names = ", ".join(map(str, rare))
        reading += f". Not judged, for having fewer than {LEAST_MEMBERS} examples: class {names}"
    work.finding("suspicious labels", share, reading)


def _curve(work: Audit) -> None:
    curve = work.document["curve"]
    if not curve:
        raise ValueError("weights were given, so there is no training curve to read")
    losses = [entry["val_loss"] for entry in curve]
    best = min(range(len(losses)), key=losses.__getitem__)
    fits = next((i + 1 for i, e in enumerate(curve) if e.get("train_error", 1.0) <= 0.005), None)
    after = len(losses) - 1 - best
    work.document["reading_of_curve"] = {"best_epoch": best + 1, "epochs": len(losses), "fits_training_set_at": fits}
    if fits is None:
        reading = (
            "the training set was never fitted: neither double descent nor grokking can be told; train longer or larger"
        )
    elif losses[-1] < min(losses[: max(1, fits)]):
        reading = (
            f"the training set is fitted since epoch {fits}, and validation went on improving: longer training may pay"
        )
    else:
        reading = (
            f"the training set is fitted since epoch {fits}, validation loss was lowest at epoch {best + 1}: stop "
            "there or regularise; a late second descent (grokking) shows only in far longer runs with weight decay"
        )
    work.finding("epochs since the lowest validation loss", float(after), reading, methods=["ps_kd", "sam"])


PARTS: tuple[tuple[str, Callable[[Audit], None], bool], ...] = (
    ("accuracy and shifts", _scores, False),
    ("calibration", _calibration, True),
    ("classes and groups", _classes, True),
    ("memorization", _memorization, False),
    ("training curve", _curve, False),
    ("sharpness", _sharpness, False),
    ("gradient coherence", _coherence, False),
    ("diversity of the training set", _diversity, True),
    ("difficulty of the task", _difficulty, True),
    ("suspicious labels", _suspects, True),
)
