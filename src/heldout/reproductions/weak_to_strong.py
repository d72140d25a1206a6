"""Weak-to-strong: does a strong pretrained model, taught by a weak one's labels, get beyond its teacher?

Claim. Naive training on weak labels beats the weak supervisor and recovers a good part of the gap to true labels (PGR);
letting the student trust itself (the confidence loss) recovers more, and imitates fewer of the supervisor's errors; the
strong model's pretraining is what is elicited. Source: arXiv:2312.09390 (Burns et al., ICML 2024).

World. A weak model learns part A with true labels and labels part B; the strong one learns B. The weak model's errors
are its own, made because it sees little. Parts share no example. ``fashion``: Fashion-MNIST at 14 x 14; weak is an MLP
on 7 x 7 pixels and 1,000 labels, strong a CNN pretrained on 30,000 other images by rotation and denoising, without
labels; B has 6,000 images, all weights are trained. ``text``: real examination questions in medicine, of which of seven
subjects (MedMCQA, without the large subject Dental); weak is a linear layer on WordLlama's mean token vector, cut to 64
numbers, strong one on MiniLM's sentence vector. ``drawings``: real drawings of 12 kinds of things in four styles, the
parts have different things; weak is a linear layer on 6 x 6 pixels, strong one on EfficientNet-Lite0's features.

Arms. ``weak``; ``ceiling``: the same student, B with true labels, the same recipe; ``naive``: cross-entropy to the soft
weak labels; ``hard`` labels; ``confidence-0.5`` and ``-0.75``, ``-repo`` with the published code's ramp, ``-argmax``
without balance; ``product``; ``bootstrap`` by way of a model of middle size (``small``: that one as the student; a
smaller CNN, all of WordLlama, stage 4 of EfficientNet); ``unpretrained``: a student that begins with random weights, in
``fashion`` the same CNN, with a ceiling of its own, ``unpretrained-ceiling``; ``noise``: true labels of B, as many
wrong ones as the hard weak labels have, at random; ``probe``: a linear layer on the pretrained CNN. ``pgr`` is the
share of the gap between ``weak`` and ``ceiling``, for all students of a cell, ``own_pgr`` that to the ceiling of the
student's own network; a seed with a gap below 0.01 has none. ``error_agreement`` is that with the supervisor where it
errs. ``oracle_accuracy`` is that of the best epoch by the test set's labels: no method, it shows how far the student
overfits the weak labels.

Deviations. Small models, one task a cell, no early stopping. ``text`` and ``drawings`` train linear layers (the paper's
vision variant); their unpretrained students are token vectors and a small CNN, trained whole. Part A is smaller than B
in ``fashion``. Generative fine-tuning on the task's texts is left out.
"""

from __future__ import annotations

import copy
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout.data import batches
from heldout.lm import minilm, text_features, word_vectors
from heldout.losses import ConfidenceLoss, ProductLoss
from heldout.measure import performance_gap_recovered, supervisor_agreement
from heldout.nn import cached_features, efficientnet_lite0, mlp, small_cnn
from heldout.sources import ENET, MINI, QA, STYLE, TAGS, WORD, missing
from heldout.study import Study, at_least, at_most, better, higher_is_better, lower_is_better
from heldout.tasks import choice_questions, digits, drawings, fashion_mnist, label_noise, stratified_split
from heldout.train import class_probabilities, fit_soft_labels, seeded

WIDTHS = {"strong": (16, 32, 64, 128), "mid": (8, 16, 32)}
PARTS = {"smoke": (100, 300, 300), "laptop": (1000, 6000, 3000)}  # A, B and test of ``fashion``
EPOCHS = {"weak": 40, "mid": 10, "strong": 10}  # of linear layers; students and ceiling see B equally often
SUBJECTS = (
    *("Surgery", "Pathology", "Medicine", "Pharmacology", "Anatomy", "Pediatrics"),
    "Gynaecology_Obstetrics",
)
LOSSES: dict[str, Callable[..., Tensor] | None] = {
    "ce": None,
    "confidence-0.5": ConfidenceLoss(0.5),
    "confidence-0.75": ConfidenceLoss(0.75),
    "confidence-repo": ConfidenceLoss(0.5, warmup=0.1, ramp="repo"),
    "confidence-argmax": ConfidenceLoss(0.5, balance=None),
    "product": ProductLoss(),
}
LEFT_OUT = {("fashion", "confidence-repo"), ("fashion", "confidence-argmax")}  # for want of time


class Role(NamedTuple):
    """What a model of a cell reads of all examples, how it is built, and how it is trained."""

    inputs: Tensor
    network: Callable[[], nn.Module]
    recipe: dict[str, Any]


class Cell(NamedTuple):
    """A task: the models, the true labels, what keeps examples together (things), and the sizes of A, B and test."""

    roles: dict[str, Role]
    labels: Tensor
    groups: Tensor
    sizes: tuple[int | float, int | float, int | float]


class Learned(NamedTuple):
    """What a trained model says of B and of the test set, and its accuracy on the test set at its best epoch."""

    part_b: Tensor
    test: Tensor
    oracle: float


def recipe(epochs: int, lr: float, batch_size: int = 64) -> dict[str, Any]:
    return {"epochs": epochs, "batch_size": batch_size, "optimizer": functools.partial(torch.optim.Adam, lr=lr)}


def pretrained(images: Tensor, widths: tuple[int, ...], classes: int, epochs: int) -> nn.Sequential:
    """A CNN whose layers below the head told turned images apart and took noise away; it has seen no label."""
    with seeded(0):
        net = small_cnn(1, classes, widths)
        body = net[: len(widths)]
        shape = body(images[:2]).shape
        turn, clean = nn.Linear(widths[-1], 4), nn.Linear(shape[1:].numel(), images[0].numel())
        optimizer = torch.optim.Adam([*body.parameters(), *turn.parameters(), *clean.parameters()], lr=2e-3)
        for _ in range(epochs):
            for batch, _targets, _positions in batches(
                torch.utils.data.TensorDataset(images, torch.zeros(len(images))), 128, torch.randperm(len(images))
            ):
                turns = torch.randint(4, (len(batch),))
                seen = torch.empty_like(batch)
                for number in range(4):
                    seen[turns == number] = batch[turns == number].rot90(number, (2, 3))
                maps = body(seen + 0.3 * torch.randn(seen.shape))
                error = F.mse_loss(clean(maps.flatten(1)), seen.flatten(1))
                loss = F.cross_entropy(turn(maps.mean((2, 3))), turns) + 10 * error
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return net.eval()


def fashion(profile: str) -> Cell:
    images, labels = digits(size=14) if profile == "smoke" else fashion_mnist()
    images = images if profile == "smoke" else F.avg_pool2d(images, 2)
    unlabelled, rest = stratified_split(labels, (0.5, 0.5), seed=0)
    smoke = profile == "smoke"
    nets = {name: pretrained(images[unlabelled], widths, 10, 1 if smoke else 3) for name, widths in WIDTHS.items()}
    images, labels = images[rest], labels[rest]
    tune = recipe(1 if smoke else 5, 3e-3)
    return Cell(
        {
            "weak": Role(images, small_pixels, recipe(2 if smoke else 40, 3e-3)),
            "mid": Role(images, functools.partial(fresh_head, nets["mid"]), tune),
            "strong": Role(images, functools.partial(fresh_head, nets["strong"]), tune),
            "random": Role(images, functools.partial(small_cnn, 1, 10, WIDTHS["strong"]), tune),
            "probe": probe(cached_features(nets["strong"][:-1], images), 10, profile),
        },
        labels,
        torch.arange(len(labels)),
        PARTS[profile],
    )


def small_pixels() -> nn.Sequential:
    """An MLP on 7 x 7 pixels."""
    return nn.Sequential(nn.AvgPool2d(2), mlp(49, 10, (64,)))


def fresh_head(net: nn.Sequential) -> nn.Sequential:
    """A copy of a pretrained CNN with a new last layer."""
    own = copy.deepcopy(net)
    own.head.reset_parameters()  # type: ignore[operator, union-attr]
    return own


def probe(features: Tensor, classes: int, profile: str, epochs: int = 10) -> Role:
    """A linear layer on standardised features; 10 epochs as in the published code."""
    scaled = (features - features.mean(0)) / features.std(0).clamp(min=1e-6)
    network = functools.partial(nn.Linear, features.shape[1], classes)
    return Role(scaled, network, recipe(2 if profile == "smoke" else epochs, 1e-3))


def text(profile: str) -> Cell:
    asked = [question for question in choice_questions("medmcqa") if question.group in SUBJECTS]
    asked = asked[::20] if profile == "smoke" else asked
    texts = [question.question for question in asked]
    labels = torch.tensor([SUBJECTS.index(question.group) for question in asked])
    model, tokenizer = minilm()
    strong = text_features(model, tokenizer, texts, max_length=128)
    inputs = {"weak": word_vectors(texts, dim=64), "mid": word_vectors(texts), "strong": strong}
    roles = {name: probe(features, len(SUBJECTS), profile, EPOCHS[name]) for name, features in inputs.items()}
    tokens = [torch.tensor(ids[:128]) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    words, ids = nn.utils.rnn.pad_sequence(tokens, batch_first=True).unique(return_inverse=True)  # 0: the padding
    bag = functools.partial(bag_of_tokens, len(words), len(SUBJECTS))
    roles["random"] = Role(ids, bag, recipe(2 if profile == "smoke" else 20, 1e-2))
    return Cell(roles, labels, torch.arange(len(labels)), (0.3, 0.45, 0.25))


def bag_of_tokens(tokens: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.EmbeddingBag(tokens, 64, padding_idx=0), nn.Linear(64, classes))


def drawn(profile: str) -> Cell:
    pictures = drawings(size=64 if profile == "smoke" else 96)
    kept = pictures.things % 12 == 0 if profile == "smoke" else torch.ones(len(pictures.labels), dtype=torch.bool)
    images, labels = pictures.images[kept], pictures.labels[kept]
    net, size = efficientnet_lite0(), images.shape[2]
    inputs = {
        "weak": F.avg_pool2d(images / 255, size // 6).flatten(1),
        "mid": cached_features(nn.Sequential(*list(net)[:6], nn.AdaptiveAvgPool2d(1), nn.Flatten()), images),
        "strong": cached_features(net[:-2], images),
    }
    classes = len(pictures.classes)
    roles = {name: probe(features, classes, profile, EPOCHS[name]) for name, features in inputs.items()}
    scratch = functools.partial(small_cnn, 3, classes, (16, 32, 64))
    roles["random"] = Role(
        F.avg_pool2d(images / 255, size // 24), scratch, recipe(1 if profile == "smoke" else 10, 3e-3)
    )
    return Cell(roles, labels, pictures.things[kept], (0.3, 0.4, 0.3))


CELLS: dict[str, Callable[[str], Cell]] = {"fashion": fashion, "text": text, "drawings": drawn}
cell = functools.lru_cache(maxsize=4)(lambda name, profile: CELLS[name](profile))


def parts(name: str, seed: int, profile: str) -> list[Tensor]:
    """Indices of A, B and the test set, in each of which the classes are as frequent; groups stay together."""
    found = cell(name, profile)
    groups, place = found.groups.unique(return_inverse=True)
    label_of = torch.zeros(len(groups), dtype=torch.long)
    label_of[place] = found.labels
    dealt = stratified_split(label_of, found.sizes, seed=seed)
    return [torch.isin(found.groups, groups[each]).nonzero().flatten() for each in dealt]


@functools.lru_cache(maxsize=64)
def learned(name: str, seed: int, profile: str, student: str, teacher: str, loss: str) -> Learned:
    """A model of a cell, trained on what a teacher says: ``truth``, ``weak``, ``hard``, ``noise`` or ``mid``."""
    roles, labels, *_ = cell(name, profile)
    part_a, part_b, test = parts(name, seed, profile)
    inputs, network, options = roles[student]
    if student == "weak":
        part, targets = part_a, labels[part_a]
    else:
        part, targets = part_b, labels[part_b]
        if teacher == "mid":
            targets = learned(name, seed, profile, "mid", "weak", "ce").part_b
        elif teacher != "truth":
            weak = learned(name, seed, profile, "weak", "truth", "ce").part_b
            rate = (weak.argmax(1) != targets).double().mean().item()
            noisy = label_noise(targets, rate, weak.shape[1], seed=seed)[0]
            targets = {"weak": weak, "hard": weak.argmax(1), "noise": noisy}[teacher]
    trained: list[nn.Module] = []
    accuracies: list[float] = []

    def build() -> nn.Module:
        trained.append(network())
        return trained[0]

    def look(_: dict[str, float]) -> None:
        said = class_probabilities(trained[0], (inputs[test], labels[test]))
        accuracies.append((said.argmax(1) == labels[test]).double().mean().item())

    fitted = fit_soft_labels(build, (inputs[part], targets), LOSSES[loss], seed=seed, on_epoch=look, **options)
    said = [class_probabilities(fitted.module, (inputs[each], labels[each])) for each in (part_b, test)]
    return Learned(said[0], said[1], max(accuracies))


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    where = (arm["cell"], seed, profile)
    truth = cell(arm["cell"], profile).labels[parts(*where)[2]]
    weak = learned(*where, "weak", "truth", "ce")
    student = learned(*where, arm["student"], arm["teacher"], arm["loss"])
    found = supervisor_agreement(student.test, weak.test, truth)
    metrics = {"accuracy": found["student_accuracy"], "oracle_accuracy": student.oracle}
    if arm["teacher"] == "truth":
        return metrics
    ceiling = learned(*where, "strong", "truth", "ce")
    best = (ceiling.test.argmax(1) == truth).double().mean().item()
    network = arm["student"] if arm["student"] == "random" else "strong"
    own = (learned(*where, network, "truth", "ce").test.argmax(1) == truth).double().mean().item()
    metrics |= {
        "error_agreement": found["agreement_where_wrong"],
        "right_agreement": found["agreement_where_right"],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where there is no gap
        shares = {
            name: performance_gap_recovered(found["weak_accuracy"], found["student_accuracy"], top)
            for name, top in [("pgr", best)] + [("own_pgr", own)] * (arm["student"] in ("strong", "random"))
        }
    return metrics | {name: share for name, share in shares.items() if not math.isnan(share)}


def arms_of(name: str) -> dict[str, dict[str, Any]]:
    students = {
        "weak": ("weak", "truth"),
        "ceiling": ("strong", "truth"),
        "naive": ("strong", "weak"),
        "hard": ("strong", "hard"),
        "noise": ("strong", "noise"),
        "small": ("mid", "weak"),
        "bootstrap": ("strong", "mid"),
        "unpretrained": ("random", "weak"),
        "unpretrained-ceiling": ("random", "truth"),
    }
    students |= {"probe": ("probe", "weak")} if name == "fashion" else {}
    found = {
        each: {"student": student, "teacher": teacher, "loss": "ce"} for each, (student, teacher) in students.items()
    }
    losses = [loss for loss in LOSSES if loss != "ce" and (name, loss) not in LEFT_OUT]
    found |= {loss: {"student": "strong", "teacher": "weak", "loss": loss} for loss in losses}
    return {f"{name}-{each}": {"cell": name, **options} for each, options in found.items()}


def claims_of(name: str) -> list[Any]:
    naive = f"{name}-naive"
    return [
        better(naive, than=f"{name}-weak", on="accuracy", margin=0.02),
        at_least(naive, on="pgr", value=0.2),
        better(f"{name}-confidence-0.5", than=naive, on="pgr", margin=0.05),
        better(f"{name}-confidence-0.5", than=naive, on="error_agreement", margin=0.05),
        better(naive, than=f"{name}-small", on="error_agreement"),
        better(naive, than=f"{name}-unpretrained", on="own_pgr", margin=0.2),
        better(f"{name}-noise", than=f"{name}-hard", on="pgr"),
    ]


ARMS = {arm: options for name in CELLS for arm, options in arms_of(name).items()}
NEEDS = {"text": [QA, MINI, WORD], "drawings": [STYLE, TAGS, ENET]}

study = Study(
    slug="weak-to-strong",
    title="Weak-to-Strong Generalization: Eliciting Strong Capabilities With Weak Supervision",
    arms=ARMS,
    run=run,
    metrics={
        "accuracy": higher_is_better,
        "pgr": higher_is_better,
        "own_pgr": higher_is_better,
        "error_agreement": lower_is_better,
        "right_agreement": higher_is_better,
        "oracle_accuracy": higher_is_better,
    },
    optional={"pgr", "own_pgr", "error_agreement", "right_agreement"},
    needs={
        arm: functools.partial(missing, NEEDS[options["cell"]])
        for arm, options in ARMS.items()
        if options["cell"] in NEEDS
    },
    claims=[claim for name in CELLS for claim in claims_of(name)],
    checks=[
        better(f"{name}-ceiling", than=f"{name}-weak", on="accuracy", margin=0.03, text=f"{name}: there is a gap")
        for name in CELLS
    ]
    + [at_most(f"{name}-naive", on="pgr", value=0.98, text=f"{name}: the ceiling is not reached") for name in CELLS],
    seeds={"smoke": 1, "laptop": 6},
)
