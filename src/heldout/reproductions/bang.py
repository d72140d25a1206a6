"""BANG (Lin, Tan et al.; ICLR 2024; arXiv:2309.17230) on votes and on digits inside coloured patches.

Claim. Averaging models with different spurious features corrects examples that all of them get wrong, since each
feature then counts for less; an over-confident member spoils this; and fine-tuning with label smoothing and Mixup
before averaging with the pretrained weights therefore generalizes better than WiSE-FT.

World. Theory: simulated linear voters against the exact enumeration of votes; ``worst_z`` is the largest distance in
standard errors. Digits at low contrast, so that patches are used, inside 32 patches that all show the class; in tests
each patch is redrawn with probability p.

Arms. Ensembles: members differ by seed, or see different halves of the patches ("disjoint"), or are fine-tuned on
different halves from one start and averaged in weights ("weights"). ``least_gain`` is the smallest gain over the mean
member, in points, where members score 40 to 75 %; ``kept_gain`` the gain at p = 0.8 relative to that of the plain
ensemble, for one member's logits times 5 ("loud") or 20 ("louder"). ``fft`` is the percentage that both members get
wrong and the average right, ``fft_by_chance`` what a random third model as accurate as the average would get right of
these, ``fft_minus_ttf`` sets what the average spoils against it. Fine-tuning: pretrained on nearly random patches,
fine-tuned on patches that all show the class, averaged half and half; ``ood`` is the mean accuracy at p of 0.7 to 0.9.
``control`` averages with the epoch of plain fine-tuning whose own accuracy on shifted validation images is nearest to
that of the balanced model. Real (arms with ``real``): the upper part of EfficientNet-Lite0 with ImageNet weights behind
a linear probe, fine-tuned on drawings of 12 classes in three styles (``drawing_transfer``); ``ood`` is the accuracy in
the fourth style, ``averaging_gain`` that beyond the fine-tuned model, which is what balance is about.

Deviations. 1,200 of scikit-learn's digits to train on; the network of the digits was pretrained on the same world in
other colours. On the drawings there is no ``control``, BatchNorm statistics stay those of ImageNet, and the average is
half and half.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import heldout
from heldout.measure import CorrectionTable, balance_temperatures, confidence_gap, correction_table, ensemble_logits
from heldout.method import Batch, Method, Run
from heldout.sources import ENET, STYLE, TAGS, missing
from heldout.study import Study, at_least, at_most, better, higher_is_better, log_curve, lower_is_better
from heldout.tasks import (
    DRAWING_STYLES,
    DrawingTransfer,
    SpuriousVotes,
    Votes,
    digits,
    drawing_transfer,
    exact_accuracy,
    paint_patches,
    patch_colours,
    stratified_split,
)
from heldout.train import outputs_of
from heldout.weights import balanced_finetune, interpolate

RATES, SHIFTED = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9), (0.7, 0.8, 0.9)
SETTINGS = {"smoke": (300, 100, 100, 2, 1), "laptop": (1200, 200, 397, 20, 5)}  # train, val, test, epochs, repeats
LR, FINETUNING_LR, PRETRAINING_RATE, PATCHES, CONTRAST = 2e-3, 4e-3, 0.9, 32, 0.3
DRAWN_LR = 6e-4  # of both recipes: the best of 3e-4, 6e-4 and 1e-3 on validation images, seeds 1000 to 1002
Outputs = dict[float, Tensor]


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 10)),
    )


@functools.lru_cache(maxsize=32)
def world(seed: int, profile: str, part: str, rate: float, hidden: int = 0, blank: bool = False) -> TensorDataset:
    """Returns one set of images; ``hidden`` 1 or 2 blackens a random half of the patches or the other half."""
    *sizes, _, repeats = SETTINGS[profile]
    images, labels = digits()
    chosen = stratified_split(labels, sizes, seed=seed)[("train", "val", "test").index(part)]
    if part != "train":
        chosen = chosen.repeat(repeats)  # the same digits inside other patches
    colours = patch_colours(labels[chosen], rate, seed=seed + len(part))
    if hidden:
        order = torch.randperm(PATCHES, generator=torch.Generator().manual_seed(seed))
        colours[:, order[: PATCHES // 2] if hidden == 1 else order[PATCHES // 2 :]] = -1
    return TensorDataset(paint_patches(images[chosen], colours, contrast=0.0 if blank else CONTRAST), labels[chosen])


def fit(seed: int, profile: str, data: TensorDataset, model: nn.Module | None = None, method: Method | None = None,
        epochs: float = 1.0) -> nn.Module:  # fmt: skip
    optimizer = functools.partial(torch.optim.AdamW, lr=LR if model is None else FINETUNING_LR)
    passes = max(1, round(epochs * SETTINGS[profile][3]))  # 10 steps each
    options: dict[str, Any] = {"epochs": passes, "batch_size": 128, "optimizer": optimizer, "seed": seed}
    return heldout.fit(model or network, data, method, **options).module


def outputs(model: nn.Module, seed: int, profile: str, part: str = "test", hidden: int = 0) -> Outputs:
    with torch.inference_mode():
        return {p: model(world(seed, profile, part, p, hidden).tensors[0]) for p in RATES}


@functools.lru_cache(maxsize=2)
def members(kind: str, seed: int, profile: str) -> tuple[list[Outputs], Outputs | None, float]:
    """Returns the outputs of two members, those of their average in weights, and a member's patch-only accuracy."""
    hidden = (0, 0) if kind == "seeds" else (1, 2)
    start = pretrained(seed, profile) if kind == "warm" else None
    models = [
        fit(2 * seed + number, profile, world(seed, profile, "train", 0.0, half), start)
        for number, half in enumerate(hidden)
    ]
    found = [outputs(model, seed, profile, hidden=half) for model, half in zip(models, hidden, strict=True)]
    images, labels = world(seed, profile, "test", 0.0, hidden[0], blank=True).tensors
    with torch.inference_mode():
        patch_only = percent(models[0](images), labels)
    if kind != "warm":
        return found, None, patch_only
    average = network()
    average.load_state_dict(interpolate(models[0], models[1], 0.5))
    return [outputs(model, seed, profile) for model in models], outputs(average, seed, profile), patch_only


@functools.lru_cache(maxsize=2)
def pretrained(seed: int, profile: str) -> nn.Module:
    return fit(seed, profile, world(seed, profile, "train", PRETRAINING_RATE), epochs=0.25)


@functools.lru_cache(maxsize=8)
def finetuned(seed: int, profile: str, smoothing: float, mixup_alpha: float) -> nn.Module:
    if not (smoothing or mixup_alpha):
        return plain_finetuning(seed, profile)[0]
    train, method = world(seed, profile, "train", 0.0), balanced_finetune(smoothing, mixup_alpha)
    return fit(seed, profile, train, pretrained(seed, profile), method, 0.75)


@functools.lru_cache(maxsize=2)
def plain_finetuning(seed: int, profile: str) -> tuple[nn.Module, list[Mapping[str, Any]]]:
    """Returns the fine-tuned model, and its state after every epoch."""
    states: list[Mapping[str, Any]] = []

    def keep(run: Run, batch: Batch) -> Tensor:
        if run.epoch > len(states) + 1:
            states.append({name: value.clone() for name, value in run.module.state_dict().items()})
        return run.objective(batch.logits, batch.targets)

    train = world(seed, profile, "train", 0.0)
    model = fit(seed, profile, train, pretrained(seed, profile), Method("keep", loss=keep), 0.75)
    return model, [*states, model.state_dict()]


def early_stopped(seed: int, profile: str) -> nn.Module:
    """Returns plain fine-tuning after the epoch that does on shifted validation images what the balanced model does."""
    wanted = ood(outputs(finetuned(seed, profile, 0.1, 0.2), seed, profile, "val"), seed, profile, "val")
    model = network()

    def distance(state: Mapping[str, Any]) -> float:
        model.load_state_dict(state)
        return abs(ood(outputs(model, seed, profile, "val"), seed, profile, "val") - wanted)

    model.load_state_dict(min(plain_finetuning(seed, profile)[1], key=distance))
    return model


def percent(logits: Tensor, labels: Tensor) -> float:
    return 100 * float((logits.argmax(1) == labels).double().mean())


def accuracy(found: Outputs, seed: int, profile: str, part: str = "test") -> dict[float, float]:
    labels = world(seed, profile, part, 0.0).tensors[1]
    return {p: percent(logits, labels) for p, logits in found.items()}


def ood(found: Outputs, seed: int, profile: str, part: str = "test") -> float:
    scores = accuracy(found, seed, profile, part)
    return sum(scores[p] for p in SHIFTED) / len(SHIFTED)


def corrected(one: Outputs, two: Outputs, average: Outputs, seed: int, profile: str) -> dict[str, float]:
    labels = world(seed, profile, "test", 0.0).tensors[1]
    table = correction_table(one[0.8].argmax(1), two[0.8].argmax(1), average[0.8].argmax(1), labels)
    return corrections(table, one[0.8], two[0.8])


def corrections(table: CorrectionTable, one: Tensor, two: Tensor) -> dict[str, float]:
    return {
        "fft": 100 * table.false_false_true,
        "fft_minus_ttf": 100 * (table.false_false_true - table.true_true_false),
        "fft_by_chance": 100 * table.agreement_by_chance,
        "fft_beyond_chance": 100 * (table.false_false_true - table.agreement_by_chance),
        "agreement": 100 * float((one.argmax(1) == two.argmax(1)).double().mean()),
    }


def theory(seed: int, profile: str) -> dict[str, float]:
    n, worst = (1000 if profile == "smoke" else 20_000), 0.0
    one, two = [1.0, 1, 0, 0, 1, 1, 1, 0, 0, 0], [0.0, 0, 1, 1, 0, 0, 0, 1, 1, 1]
    both, loud = [1.0] * 10, [a + 5 * b for a, b in zip(one, two, strict=True)]
    groups: dict[str, list[Votes | tuple[int, ...]]] = {"member": [(2, 3)], "average": [(2, 3), (2, 3)]}
    groups["one five times as loud"] = [(2, 3), (2, 3, 5)]
    for p in (0.5, 0.6, 0.7, 0.8, 0.9):
        votes = SpuriousVotes(4, 6, classes=3, flip_rate=p, dim=64, seed=seed)
        x, y = votes.sample(n, seed=seed)
        for weights, (name, group) in zip((one, both, loud), groups.items(), strict=True):
            exact = exact_accuracy(group, 3, p)
            error = votes.accuracy(votes.logits(x, weights), y) - exact
            worst = max(worst, abs(error) / math.sqrt(exact * (1 - exact) / n))
            log_curve(f"exact accuracy over p, {name}", p, exact)
    return {"worst_z": worst}


def ensemble(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    (one, two), in_weights, patch_only = members(arm["members"], seed, profile)
    alone = [accuracy(member, seed, profile) for member in (one, two)]
    mean = {p: (alone[0][p] + alone[1][p]) / 2 for p in RATES}
    plain = {p: ensemble_logits([one[p], two[p]]) for p in RATES}
    if in_weights is not None:
        averaged = in_weights
    else:
        pairs = {p: [arm.get("loudness", 1.0) * one[p], two[p]] for p in RATES}
        averaged = {p: ensemble_logits(pair, balance_temperatures(pair) if arm.get("balanced") else None)
                    for p, pair in pairs.items()}  # fmt: skip
    scores, full = accuracy(averaged, seed, profile), accuracy(plain, seed, profile)
    for p in RATES:
        log_curve("accuracy over p", p, scores[p])
        log_curve("mean accuracy of the members over p", p, mean[p])
    between = [p for p in RATES if 40 <= mean[p] <= 75]
    metrics = {"ood": ood(averaged, seed, profile), "members_ood": sum(mean[p] for p in SHIFTED) / len(SHIFTED)}
    metrics |= {"patch_only": patch_only} | corrected(one, two, averaged, seed, profile)
    if between:
        metrics["least_gain"] = min(scores[p] - mean[p] for p in between)
    if full[0.8] > mean[0.8]:
        metrics["kept_gain"] = (scores[0.8] - mean[0.8]) / (full[0.8] - mean[0.8])
    return metrics


def wise(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    pre = pretrained(seed, profile)
    tuned = early_stopped(seed, profile) if arm.get("early") else finetuned(seed, profile, arm["ls"], arm["mixup"])
    model = network()
    model.load_state_dict(interpolate(pre, tuned, arm["alpha"]))
    start, end, found = (outputs(each, seed, profile) for each in (pre, tuned, model))
    for p, score in accuracy(found, seed, profile).items():
        log_curve("accuracy over p", p, score)
    gaps = [confidence_gap(end[p], start[p]) for p in SHIFTED]
    metrics = {"ood": ood(found, seed, profile), "iid": accuracy(found, seed, profile)[0.0]}
    if arm["alpha"] == 0.5:
        metrics |= corrected(start, end, found, seed, profile)
    return metrics | {"confidence_gap": abs(sum(gaps)) / len(gaps), "finetuned_ood": ood(end, seed, profile)}


@functools.lru_cache(maxsize=1)
def drawn(seed: int, profile: str) -> DrawingTransfer:
    smaller: dict[str, int] = {"size": 32, "things": 5, "other_things": 8} if profile == "smoke" else {}
    return drawing_transfer(seed % len(DRAWING_STYLES), seed=seed, **smaller)


@functools.lru_cache(maxsize=2)
def tuned_on_drawings(seed: int, profile: str, smoothing: float, mixup_alpha: float) -> nn.Module:
    problem = drawn(seed, profile)
    method = balanced_finetune(smoothing, mixup_alpha) if smoothing or mixup_alpha else None
    options: dict[str, Any] = {"epochs": 5 if profile == "laptop" else 1, "batch_size": 32, "seed": seed}
    options["optimizer"] = functools.partial(torch.optim.AdamW, lr=DRAWN_LR)
    return heldout.fit(problem.network, problem.train, method, **options).module


def real(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    problem = drawn(seed, profile)
    model = copy.deepcopy(problem.network)
    tuned = tuned_on_drawings(seed, profile, arm["ls"], arm["mixup"])
    model.load_state_dict(interpolate(problem.network, tuned, arm["alpha"]))
    start, end, found = (outputs_of(each, problem.target)[0] for each in (problem.network, tuned, model))
    labels = problem.target[1]
    metrics = {"ood": percent(found, labels), "finetuned_ood": percent(end, labels)}
    metrics["averaging_gain"] = metrics["ood"] - metrics["finetuned_ood"]
    metrics |= {
        "iid": percent(*outputs_of(model, problem.source_test)),
        "val": percent(*outputs_of(model, problem.val)),
    }
    if arm["alpha"] == 0.5:
        table = correction_table(start.argmax(1), end.argmax(1), found.argmax(1), labels)
        metrics |= corrections(table, start, end)
    return metrics | {"confidence_gap": abs(confidence_gap(end, start))}


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    if arm["part"] == "theory":
        return theory(seed, profile)
    if arm["part"] == "drawings":
        return real(arm, seed, profile)
    return ensemble(arm, seed, profile) if arm["part"] == "ensemble" else wise(arm, seed, profile)


def _tuned(ls: float, mixup: float, alpha: float, **more: Any) -> dict[str, Any]:
    return {"part": "finetuning", "ls": ls, "mixup": mixup, "alpha": alpha} | more


def _drawings(ls: float, mixup: float, alpha: float) -> dict[str, Any]:
    return {"part": "drawings", "ls": ls, "mixup": mixup, "alpha": alpha}


REAL = {
    "real pretrained": _drawings(0.0, 0.0, 0.0),
    "real fine-tuned": _drawings(0.0, 0.0, 1.0),
    "real both": _drawings(0.1, 0.2, 1.0),
    "real wise-ft": _drawings(0.0, 0.0, 0.5),
    "real bang": _drawings(0.1, 0.2, 0.5),
}
METRICS = {
    **dict.fromkeys(("val", "averaging_gain"), higher_is_better),
    **dict.fromkeys(("ood", "iid", "members_ood", "finetuned_ood", "least_gain", "kept_gain"), higher_is_better),
    **dict.fromkeys(("fft", "fft_minus_ttf", "fft_by_chance", "fft_beyond_chance", "patch_only"), higher_is_better),
    **dict.fromkeys(("worst_z", "agreement", "confidence_gap"), lower_is_better),
}

study = Study(
    slug="bang",
    title="BANG: balanced averaging of models with diverse spurious features",
    arms={
        "theory": {"part": "theory"},
        "ensemble": {"part": "ensemble", "members": "seeds"},
        "disjoint": {"part": "ensemble", "members": "disjoint"},
        "disjoint, one loud": {"part": "ensemble", "members": "disjoint", "loudness": 5.0},
        "disjoint, one louder": {"part": "ensemble", "members": "disjoint", "loudness": 20.0},
        "disjoint, one loud, balanced": {"part": "ensemble", "members": "disjoint", "loudness": 5.0, "balanced": True},
        "weights": {"part": "ensemble", "members": "warm"},
        "pretrained": _tuned(0.0, 0.0, 0.0),
        "fine-tuned": _tuned(0.0, 0.0, 1.0),
        "label smoothing": _tuned(0.1, 0.0, 1.0),
        "mixup": _tuned(0.0, 0.2, 1.0),
        "both": _tuned(0.1, 0.2, 1.0),
        "wise-ft": _tuned(0.0, 0.0, 0.5),
        "bang": _tuned(0.1, 0.2, 0.5),
        "control": _tuned(0.0, 0.0, 0.5, early=True),
        **REAL,
    },
    needs=dict.fromkeys(REAL, functools.partial(missing, [STYLE, TAGS, ENET])),
    run=run,
    metrics=METRICS,
    optional=set(METRICS),
    claims=[
        at_least("ensemble", on="least_gain", value=3.0),
        at_least("disjoint", on="least_gain", value=3.0),
        at_least("ensemble", on="fft", value=1.5),
        at_least("disjoint", on="fft", value=1.5),
        at_least("ensemble", on="fft_beyond_chance", value=0.0),
        at_least("disjoint", on="fft_beyond_chance", value=0.0),
        at_least("disjoint", on="fft_minus_ttf", value=0.0),
        at_most("disjoint, one loud", on="kept_gain", value=0.5),
        at_most("disjoint, one louder", on="kept_gain", value=0.5),
        better("bang", than="wise-ft", on="ood", margin=0.5),
        better("bang", than="wise-ft", on="confidence_gap"),
        better("bang", than="control", on="ood"),
        better("real wise-ft", than=["real pretrained", "real fine-tuned"], on="ood"),
        at_least("real wise-ft", on="fft", value=1.5),
        at_least("real wise-ft", on="fft_beyond_chance", value=0.0),
        at_least("real wise-ft", on="fft_minus_ttf", value=0.0),
        better("real bang", than="real wise-ft", on="ood", margin=0.5),
        better("real bang", than="real wise-ft", on="averaging_gain"),
        better("real bang", than="real wise-ft", on="confidence_gap"),
    ],
    checks=[
        at_most("theory", on="worst_z", value=3.0),
        at_least("disjoint, one loud, balanced", on="kept_gain", value=0.9),
    ],
    seeds={"smoke": 1, "laptop": 5},
    shared_setup=True,
    time_limit={"smoke": 60.0, "laptop": 600.0},
)
