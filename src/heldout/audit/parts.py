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
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Subset

from heldout.audit.composition import compositions
from heldout.audit.examples import shown_suspects, worst_examples
from heldout.audit.graphs import GRAPH_PARTS
from heldout.audit.judging import Threshold, chance_calibration_error
from heldout.audit.probing import probes
from heldout.audit.repeated import repeated_rows
from heldout.audit.subgroups import subgroups
from heldout.audit.work import Audit, NotApplicableError, metric_interval, metric_of, named_validation
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
from heldout.problem import Nodes, no_difference, resolution, undertrained
from heldout.report import number
from heldout.statistics import Interval, newcombe, wilson
from heldout.train import contradicted_labels, cross_fit, fit

MEASURED = 2000  # examples that the difficulty of the task is estimated from
FOLDS = 4
SUSPECT = 0.5  # a label is suspicious where models speak against it half as strongly as they do for the median one
SHIFT_METHODS = ("adanpc", "tent", "itta", "t3a", "drm", "bang", "lines", "pego", "divdis", "dbat")
LESS_DATA = (0.25, 0.5)  # of the training set
WEAK, CLEAR = 0.15, 0.2  # below this median margin, only what is clear, or contradicted out of sample, is suspicious
LEAST_MEMBERS = 2 * FOLDS  # of a class whose labels are judged: with fewer, models hardly see it


# --- the parts of the report ----------------------------------------------------------------------------------------


def _scores(work: Audit) -> None:
    sets = {"train": "train", **dict.fromkeys(named_validation(work.problem), "val")}
    sets |= dict.fromkeys(work.problem.splits.test, "test")
    rows = {name: {"role": role, **_score_of(work, name)} for name, role in sets.items()}
    metric, sign, base = work.problem.metric, work.sign, rows[work.given]
    shifts = {}
    for name in work.problem.splits.test:
        row = rows[name]
        gap = _difference(base, row, sign)
        ends = {"low": row["low"], "high": row["high"], "gap_low": gap.low, "gap_high": gap.high}
        shifts[name] = {metric: row["score"], "gap": gap.estimate, **ends}
    work.document |= {"sets": rows, "shifts": shifts}
    limits = _gap_limits(work, base["score"])
    _above_a_constant(work, base)
    gap = _difference(rows["train"], base, sign)
    reading = "how much better the model is on what it was trained on: it overfits where this is more than noise"
    title = f"{metric}: train against {work.given}"
    methods, ends = ("ps_kd", "useful", "sam"), {"low": gap.low, "high": gap.high}
    work.finding(title, gap.estimate, reading, **ends, limits=limits, methods=methods)
    for name, found in shifts.items():
        if name != work.given:
            reading = f"what the shift to {name} costs"
            ends = {"low": found["gap_low"], "high": found["gap_high"]}
            work.finding(
                f"{metric}: {work.given} against {name}", found["gap"], reading, **ends, limits=limits,
                methods=SHIFT_METHODS, aim="shift",
                remedy="validation data with such a shift lets improve select for it",
            )  # fmt: skip


def _score_of(work: Audit, name: str) -> dict[str, Any]:
    (outputs, targets), losses = work.of(name), work.losses(name)
    mean, half = (
        float(losses.mean()),
        1.96 * float(losses.std(correction=int(len(losses) > 1))) / math.sqrt(len(losses)),
    )
    value, low, high = metric_interval(work.problem, outputs, targets, losses, seed=work.seed)
    row = {"n": len(targets), work.problem.metric: value, "score": value, "low": low, "high": high}
    if work.problem.task == "classification":
        row |= {"accuracy": float((outputs.argmax(1) == targets).double().mean())}
    return {**row, "loss": mean, "loss_low": mean - half, "loss_high": mean + half}


def _difference(better: dict[str, Any], worse: dict[str, Any], sign: int) -> Interval:
    """How much better one set is than another, from the intervals of both."""
    first, second = (Interval(row["score"], row["low"], row["high"]) for row in (better, worse))
    return newcombe(first, second) if sign > 0 else newcombe(second, first)


def _gap_limits(work: Audit, score: float) -> Threshold | None:
    """What a gap in the metric must be to matter."""
    problem = work.problem
    if problem.measure is None and problem.metric == "accuracy":
        return Threshold(0.03, 0.1, "3 and 10 points of accuracy")
    if problem.task == "regression" and problem.measure is None and problem.kind.name != "language":
        _, targets = work.of(work.given)
        variance = float(targets.double().reshape(len(targets), -1).var(0, correction=0).mean())
        unit = "3 and 10 hundredths of the targets' variance, as in R2"
        return Threshold(0.03 * variance, 0.1 * variance, unit) if variance > 0 else None
    if score == 0 or not math.isfinite(score):
        return None
    shares = f"5 and 20 hundredths of the {problem.metric} on {work.given}"
    return Threshold(0.05 * abs(score), 0.2 * abs(score), shares)


def _above_a_constant(work: Audit, base: dict[str, Any]) -> None:
    """How much better the model is than the best constant answer; told where it is an accuracy or a squared error."""
    problem, (_, targets) = work.problem, work.of(work.given)
    if problem.measure is not None or problem.metric not in ("accuracy", "mse"):
        return
    name = f"{problem.metric}: {work.given} against a constant answer"
    if problem.metric == "accuracy":
        share = float(targets.bincount().max()) / len(targets)
        value, low, high = (base[key] - share for key in ("score", "low", "high"))
        reading = f"how far the model is above always giving the commonest label, which is right in {share:.1%}"
        why = "the model has learned next to nothing"
    else:
        variance = float(targets.double().reshape(len(targets), -1).var(0, correction=0).mean())
        if variance == 0:
            return
        value, low, high = (1 - base[key] / variance for key in ("score", "high", "low"))
        reading = "R2: the share of the targets' variance that the model explains"
        why = "the model explains next to nothing"
    limits = Threshold(0.1, 0.02, why, low_is_bad=True)
    remedy = "before any method, search the learning rate and train longer; improve does the former by itself"
    work.finding(name, value, reading, low=low, high=high, limits=limits, remedy=remedy)


def _calibration(work: Audit) -> None:
    table: dict[str, Any] = {}
    for name in work.problem.splits.test:
        outputs, targets = work.of(name)
        probs = outputs.double().softmax(1)
        table[name] = {
            "ece": expected_calibration_error(probs, targets),
            "chance": chance_calibration_error(probs.amax(1), seed=work.seed),
            "confidence": float(probs.amax(1).mean()),
            "accuracy": float((probs.argmax(1) == targets).double().mean()),
            "brier": brier(probs, targets),
            "nll": nll(probs, targets),
            "bins": [vars(row) for row in reliability_table(probs, targets)],
        }
    work.document["calibration"] = table
    remedy = 'metric = "loss" in the file lets improve select for good probabilities'
    worst = max(table, key=lambda name: table[name]["ece"])
    for name in dict.fromkeys([work.given, worst]):
        chance = table[name]["chance"]
        why = "above 0.05 probabilities mislead, above 0.15 badly"
        if chance > 0.05:
            bad = number(max(0.15, chance), 2)
            why = f"chance alone reaches {number(chance, 2)} with {len(work.of(name)[1])} examples; above {bad} is bad"
        limits = Threshold(max(0.05, chance), max(0.15, chance), why)
        excess = table[name]["confidence"] - table[name]["accuracy"]
        side = "over" if excess > 0 else "under"
        reading = (
            f"mean distance of confidence from accuracy; over all of {name} the model is {side}confident by "
            f"{number(100 * abs(excess), 2)} points"
        )
        work.finding(
            f"calibration error on {name}",
            table[name]["ece"],
            reading,
            limits=limits,
            methods=("ps_kd",),
            remedy=remedy,
        )


def _classes(work: Audit) -> None:
    outputs, targets = work.of(work.given)
    right = outputs.argmax(1) == targets
    labels = targets.unique()
    work.document["classes"] = rows = [_share(right, targets == label, int(label), len(labels)) for label in labels]
    _lowest(work, f"class on {work.given}", rows, float(right.double().mean()), "look at its examples and labels")
    for field_name in ("groups", "domains"):
        members = getattr(work.problem.splits, field_name)
        if members is None:
            continue
        members = torch.as_tensor(members)
        outputs, targets = work.of("train")
        right = outputs.argmax(1) == targets
        values = members.unique()
        work.document[field_name] = rows = [_share(right, members == each, int(each), len(values)) for each in values]
        reading = "a training accuracy that is low was not even learned"
        methods = ("drm",) if field_name == "domains" else ()
        _lowest(work, f"{field_name[:-1]} of train", rows, float(right.double().mean()), reading, methods)
    sizes = max(outputs.shape[1], int(targets.max()) + 1)
    work.document["confusion"] = {name: _counts(*work.of(name), sizes) for name in work.looked_at()}


def _counts(outputs: Tensor, targets: Tensor, classes: int) -> list[list[int]]:
    """How often each label (row) was told as each class (column)."""
    pairs = targets * classes + outputs.argmax(1)
    return pairs.bincount(minlength=classes**2).reshape(classes, classes).tolist()


def _lowest(
    work: Audit, kind: str, rows: list[dict[str, Any]], whole: float, advice: str, methods: tuple[str, ...] = ()
) -> None:
    """The finding on the class or group that lags furthest behind the whole."""
    if len(rows) < 2:
        return
    worst = min(rows, key=lambda row: row["accuracy"])
    limits = Threshold(0.1, 0.25, "10 and 25 points below the accuracy of all")
    ends = {"low": whole - worst["high"], "high": whole - worst["low"]}
    reading = f"how far the lowest accuracy, of {worst['group']} with {worst['n']} examples, is below that of all"
    work.finding(
        f"lowest {kind}: {worst['group']}", whole - worst["accuracy"], reading, **ends, limits=limits,
        methods=methods, remedy=advice,
    )  # fmt: skip


def _share(right: Tensor, members: Tensor, group: int, of: int) -> dict[str, Any]:
    """The accuracy of one of ``of`` groups, with an interval that holds for all of them at once."""
    found = wilson(float(right[members].sum()), int(members.sum()), 1 - 0.05 / of)
    return {"group": group, "n": int(members.sum()), "accuracy": found.estimate, "low": found.low, "high": found.high}


def _memorization(work: Audit) -> None:
    train, test = (work.losses(name) for name in ("train", work.given))
    ordered = test.sort().values
    places = torch.searchsorted(ordered, train) + torch.searchsorted(ordered, train, right=True)
    below = 1 - float(places.double().mean()) / (2 * len(test))  # ties count half
    half = 1.96 * _auc_error(below, len(train), len(test))
    work.document["memorization"] = {"auc": below, "examples": len(train) + len(test)}
    reading = (
        "probability that a training example has a lower loss than a new one: at 0.5 single examples left no trace, "
        "at 1 all did; privacy attacks work in between"
    )
    limits = Threshold(0.6, 0.75, "from 0.6 on an attacker guesses right in 6 of 10 pairs, from 0.75 in 3 of 4")
    work.finding(
        "memorization", below, reading, low=max(0.0, below - half), high=min(1.0, below + half), limits=limits,
        methods=("ps_kd", "sam"),
    )  # fmt: skip


def _auc_error(auc: float, positives: int, negatives: int) -> float:
    """Standard error of an area under the ROC curve. Source: Hanley and McNeil, Radiology 143 (1982)."""
    first, second = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    spread = auc * (1 - auc) + (positives - 1) * (first - auc**2) + (negatives - 1) * (second - auc**2)
    return math.sqrt(max(0.0, spread) / (positives * negatives))


def _sharpness(work: Audit) -> None:
    each = work.example_loss
    if each is None:
        found = sharpness(work.differentiated(), work.probed(), iterations=20, seed=work.seed)
    else:
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
            found = sharpness(
                work.differentiated(), work.probed(), lambda *pair: each(*pair).mean(), iterations=20, seed=work.seed
            )
    work.document["sharpness"] = vars(found)
    reading = "largest curvature of the loss: gradient descent diverges beyond a rate of 2 / this. Compare like models"
    work.finding("sharpness: top Hessian eigenvalue", found.top_eigenvalue, reading)
    reading = f"rise of the training loss {number(found.loss, 3)} within {found.rho} of the weights: what SAM lowers"
    work.finding("sharpness: ascent gap", found.ascent_gap, reading)


def _coherence(work: Audit) -> None:
    found = gradient_coherence(work.differentiated(), work.probed(), work.example_loss, per_layer=True)
    work.document["coherence"] = {
        "m_coherence": found.m_coherence,
        "examples": found.examples,
        "layers": dict(found.by_layer),
    }
    reading = (
        f"how many of {found.examples} examples a step on one of them helps, at the end of training: 1 means that what "
        "is left to learn is learned by heart"
    )
    work.finding("gradient coherence", found.m_coherence, reading)


def _diversity(work: Audit) -> None:
    if isinstance(work.problem.splits.train, Nodes):
        raise NotApplicableError("the classification layer is given all nodes of a graph, not the examples alone")
    probed = work.probed()
    inputs, _ = gather(probed, torch.arange(len(probed)))
    module = work.differentiated()
    inputs = inputs_for(module, inputs)
    encoder, _ = split_head(module, inputs)
    with torch.no_grad():
        features = encoder(inputs).float()
    kept = features[features.norm(dim=1) > 0]
    embedding = vendi_score(kept)
    gradients = gradient_features(module, probed, dim=256, projection="countsketch", normalise=False)
    lengths = gradients.norm(dim=1)
    by_gradient = vendi_score(gradients[lengths > 0])
    work.document["diversity"] = {"embedding_vendi": embedding, "g_vendi": by_gradient, "examples": len(probed)}
    reading = (
        f"how many different examples the model sees in {len(probed)}: near the number of classes, it sees these only"
    )
    work.finding("diversity of features (Vendi)", embedding, reading)
    reading = f"as many different directions in which {len(probed)} examples pull the weights: more of them teach more"
    work.finding("diversity of gradients (G-Vendi)", by_gradient, reading)


def _difficulty(work: Audit) -> None:
    train = work.problem.splits.train
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(work.seed))[:MEASURED]  # type: ignore[arg-type]
    inputs, targets = gather(train, chosen)
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise NotApplicableError("the difficulty of a task is defined for inputs of real numbers")
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
    if work.problem.own_train:
        raise NotApplicableError("the models that judge labels are trained by fit, and the file has a loop of its own")
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
    work.document["shown_suspects"] = shown_suspects(work)
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
    limits = Threshold(0.01, 0.05, "1 and 5 hundredths of the labels")
    work.finding("suspicious labels", share, reading, limits=limits, remedy="correct them and train again")


def _curve(work: Audit) -> None:
    curve = work.document["curve"]
    if not curve:
        raise NotApplicableError("weights were given, so there is no training curve to read")
    if len(curve) == 1:
        raise NotApplicableError("one epoch is no curve, nor is a loop that does not call stages.batches()")
    losses = [entry["val_loss"] for entry in curve]
    best = min(range(len(losses)), key=losses.__getitem__)
    fits = next((i + 1 for i, e in enumerate(curve) if e.get("train_error", 1.0) <= 0.005), None)
    work.document["reading_of_curve"] = {"best_epoch": best + 1, "epochs": len(losses), "fits_training_set_at": fits}
    rise = (losses[-1] - losses[best]) / losses[best] if losses[best] > 0 else 0.0
    fitted = "the training set was never fitted" if fits is None else f"the training set is fitted since epoch {fits}"
    reading = (
        f"share by which the validation loss rose since its lowest, at epoch {best + 1} of {len(losses)}; {fitted}. "
        "A second descent (grokking) shows only in far longer runs with weight decay"
    )
    limits = Threshold(0.05, 0.25, "a twentieth and a quarter of the lowest loss")
    remedy = f"stop at epoch {best + 1}, or regularise"
    methods = ("ps_kd", "sam")
    if work.problem.in_tasks:
        reading, remedy = (
            f"{reading}. Data come task after task: earlier ones are forgotten",
            "keep examples of each task",
        )
        methods = ("replay", "agem")
    work.finding("rise of the validation loss", rise, reading, limits=limits, methods=methods, remedy=remedy)


def _half_trained(work: Audit) -> None:
    """Whether half of the epochs, as a training of its own, is clearly worse: by the same rule as ``improve``."""
    curve, epochs = work.document["curve"], work.problem.epochs
    half = max(1, round(epochs / 2))
    if not curve:
        raise NotApplicableError("weights were given: only the file's own recipe tells what fewer epochs do")
    if half == epochs:
        raise NotApplicableError("one epoch has no half")
    spent = sum(entry["seconds"] for entry in curve)
    if (left := work.deadline - time.monotonic()) < spent * half / epochs:
        raise ValueError(f"the {left:.0f} s that are left of the budget do not allow a training of half the epochs")
    fitted = work.problem.fit(None, seed=work.seed, epochs=half)
    sets = named_validation(work.problem)
    trained = [
        [work.problem.outputs(fitted, data) for data in sets.values()],
        [work.of(name) for name in sets],
    ]
    scores, losses = (
        [sum(measure(*pair) for pair in pairs) / len(pairs) for pairs in trained]
        for measure in (functools.partial(metric_of, work.problem), work.problem.kind.loss)
    )
    metric, step = work.problem.metric, resolution([len(data) for data in sets.values()], work.problem.metric)  # type: ignore[arg-type]
    over = not undertrained(metric, scores, losses, maximise=work.problem.maximise, resolution=step)
    gain, least = work.sign * (scores[1] - scores[0]), max(2 * step, no_difference(metric, scores[1]))
    reading = (
        f"what the second half of the {epochs} epochs adds to {metric} on validation data, both trained to the end of "
        f"their own schedule, for one seed"
        + ("; the validation loss does not fall with it" if over and gain > least else "")
    )
    limits = None if over else Threshold(least, 5 * least, "what counts as a difference, and five times as much")
    remedy = f"train longer: epochs = {2 * epochs}"
    work.finding("gain from the last epochs", gain, reading, limits=limits, remedy=remedy)


def _more_data(work: Audit) -> None:
    """The learning curve: the metric after training on a quarter, a half and all of the training set."""
    curve = work.document["curve"]
    if not curve:
        raise NotApplicableError("weights were given: only the file's own recipe tells what it does with less data")
    if work.problem.own_train or work.problem.sampler or work.problem.patience:
        raise NotApplicableError("the file's own loop, sampler or early stopping is of the whole training set")
    if work.problem.in_tasks:
        raise NotApplicableError("training data come task after task: less of them is another stream")
    train, size = work.problem.splits.train, len(work.problem.splits.train)  # type: ignore[arg-type]
    spent, left = sum(entry["seconds"] for entry in curve), work.deadline - time.monotonic()
    if left < spent * sum(LESS_DATA):
        raise ValueError(f"the {left:.0f} s that are left of the budget do not allow two shorter trainings")
    order = torch.randperm(size, generator=torch.Generator().manual_seed(work.seed))
    points = []
    for share in LESS_DATA:
        count = max(2, round(share * size))
        kept = Subset(train, order[:count].sort().values.tolist())
        module = fit(work.problem.model(work.seed), kept, seed=work.seed, **work.problem.recipe).module
        score = metric_of(work.problem, *work.problem.outputs(module, _given_set(work)))
        points.append({"examples": count, "score": score})
    points.append({"examples": size, "score": metric_of(work.problem, *work.of(work.given))})
    work.document["learning_curve"] = points
    gain = work.sign * (points[-1]["score"] - points[-2]["score"])
    reading = (
        f"what the second half of the training set has added to {work.problem.metric} on {work.given}, for one seed: "
        "doubling the data once more would add less than that, as a rule"
    )
    work.finding("gain from twice the data", gain, reading)


def _given_set(work: Audit) -> Any:
    return work.problem.splits.test[work.given]


# what each is, what makes it, and whether it needs classes; those of graphs are for problems of graphs alone
PARTS: tuple[tuple[str, Callable[[Audit], None], bool], ...] = (
    ("scores and shifts", _scores, False),
    ("calibration", _calibration, True),
    ("classes and groups", _classes, True),
    ("unseen combinations of factors", compositions, True),
    ("groups of a test set", subgroups, True),
    *GRAPH_PARTS,
    ("memorization", _memorization, False),
    ("repeated rows", repeated_rows, False),
    ("training curve", _curve, False),
    ("half of the epochs", _half_trained, False),
    ("worst examples", worst_examples, False),
    ("layers of a transformers model", probes, False),
    ("sharpness", _sharpness, False),
    ("gradient coherence", _coherence, False),
    ("diversity of the training set", _diversity, True),
    ("difficulty of the task", _difficulty, True),
    ("suspicious labels", _suspects, True),
    ("learning curve", _more_data, False),
)
