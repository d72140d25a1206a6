"""AligNet: does a small transform of a teacher, fitted to odd-one-out choices, align a student at every level?

Claim. A student fine-tuned on the soft choices of a transformed teacher matches judges better, most at the coarse level
of kinds; soft choices teach uncertainty, and triplets across the border of clusters more than any triplets; few-shot
learning and a shift of style gain too. Source: arXiv:2409.06509 (Muttenthaler et al., Nature 2025).

World. ``shapes``: 4 kinds (shown by two faint parts) of 10 classes (outline), drawn at 20 x 20. The base is a CNN that
learned 28 classes. The teacher is a larger one that learned, from other and more pictures of three of the kinds, those
classes and the pictures' attributes (hue, pose, size, place and form of the parts), not the kinds. The other 12 classes
are for the test. Judges are simulated: softmax of shared kind, shared class and hue; each of 8,000 triplets of 160
pictures has five answers. ``drawings``: real drawings of things in four styles (one of them unseen, in turn); base and
teacher are EfficientNet-Lite0 at 64 x 64, of which the last convolution (0.41 M) is trained. Judges are the writers of
Unicode's keywords in twelve languages, each language a vote: that stands in for human judgements, nobody was asked.
Triplets of which these judges have no first choice are left out. Groups and subgroups are Unicode's; subgroups of
things are held out for the test, others to choose the ridge by.

``coarse``: triplets with two items of a kind and one of another; ``boundary``: of a kind, two of one class; ``fine``:
of one class; share with the judges' first choice, by the cosine of centred embeddings, on held-out classes.
``uncertainty``: rank correlation of entropies; ``rsa``: of all similarities; ``validation``: cross-entropy of the
judges on the classes that chose the ridge (in ``shapes`` they are trained ones), which chose learning rates.
``one_shot``, ``five_shot``: ridge classifiers of held-out classes, their strength chosen on trained ones; what is asked
is of other things than what was shown; ``style``: those of five_shot (``shapes``: of the 28 classes), tested in the
unseen style; ``known``: trained classes.

Arms. ``base``; ``aligned``: the published recipe (soft choices, Jensen-Shannon divergence, inner products of 1,024
numbers over 100, triplets across the border of clusters, Adam, warm-up and cosine); ``unaligned``: the same with the
teacher at the scale and shift that explain judges best; ``hard``: the first choices of the same transformed teacher;
``uniform`` triplets; ``no-decay``; ``zero-decay``: ordinary weight decay as strong; ``direct``: the student learns the
judges' triplets.

Deviations. Small models, few steps, and larger learning rates for that: of each arm the best of one grid (1e-4, 3e-4,
1e-3, 3e-3, 1e-2) by the mean ``validation`` of two development seeds, which the seeds of a recording never are. Beyond
the grid, because their best was at its edge: ``zero-decay`` of ``drawings`` (3e-2; 1e-1 is worse), ``direct`` of
``shapes`` (3e-5; 1e-5 is worse) and ``zero-decay`` of ``shapes`` (1e-5; below it nothing changes). For those two of
``shapes`` no rate beats ``base``: what they are compared with has hardly learned. Decay times the sum of the learning
rates is the published 1.5, so that over few steps it pulls as strongly. How faint the parts are was chosen without a
look at any student: the least of 0.2, 0.3, 0.4, 0.5, 0.8 at which a ridge classifier of the teacher's features, fitted
on trained classes, reads the kind of nine tenths of the pictures of held-out ones (two development seeds), for what the
teacher does not know no linear map brings out. The base can read kinds too, if less well; the specification wants it
blind. The real student trains one layer, and its teacher is itself. Teachers are 64 principal components; uncertainty
is the answers' share, no Bayesian embedding (VICE) is fitted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import heldout
from heldout.data import TripletKind, sample_triplets, spherical_kmeans
from heldout.losses import pair_similarities, soft_cross_entropy
from heldout.measure import few_shot_accuracy, odd_one_out, ridge_probe, rsa, uncertainty_alignment
from heldout.nn import cached_features, efficientnet_lite0, small_cnn
from heldout.sources import ENET, STYLE, TAGS, missing
from heldout.study import Study, at_least, better, higher_is_better, lower_is_better
from heldout.tasks import (
    JUDGED_LEVELS,
    KEYWORD_LANGUAGES,
    Drawings,
    JudgedPictures,
    drawing_tags,
    drawings,
    first_drawings,
    judged_drawings,
    judged_shapes,
    judged_triplets,
    keyword_judges,
    level_triplets,
    shape_hierarchy,
)
from heldout.train import (
    AffineTransform,
    embed_images,
    fit_similarity_transform,
    seeded,
    soft_align,
    tune_similarity_transform,
)

ARMS = ("base", "aligned", "unaligned", "hard", "uniform", "no-decay", "zero-decay", "direct")
PER_KIND, CONTRAST = 10, 0.4
KNOWN, NOVEL, VALIDATION = ([c for c in range(40) if c % 10 in part] for part in (range(7), (7, 8, 9), (5, 6)))
LEARNING_RATES = {  # of each arm the best by ``validation``
    "shapes": dict.fromkeys(ARMS, 3e-3) | {"zero-decay": 1e-5, "direct": 3e-5},
    "drawings": dict.fromkeys(ARMS, 1e-3) | {"no-decay": 3e-4, "zero-decay": 3e-2, "direct": 3e-3},
}
STEPS = {"shapes": 120, "drawings": 60}
BATCH, CLUSTERS = 32, {"shapes": 20, "drawings": 40}
DIMS = {"smoke": 16, "laptop": 64}  # principal components of a teacher
JUDGED, SYNTHETIC, ASKED = 8000, 30000, 1500  # triplets
# Decay to the initial weights times the sum of all learning rates, published; over two steps it would overshoot.
PULL = {"smoke": 0.1, "laptop": 1.5}
LAMS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
ALPHAS = {"smoke": (1.0,), "laptop": (1e-3, 1e-2, 1e-1, 1.0, 10.0)}
DRAWS = {"smoke": 1, "laptop": 10}  # of the shown pictures; fewer to choose the strength
GROUPS = (  # Unicode's; symbols and flags are left out
    "smileys-emotion", "people-body", "animals-nature", "food-drink", "travel-places", "activities", "objects",
)  # fmt: skip


class Cell(NamedTuple):
    """A world, the network to be aligned, what enters it and the teacher's features, of all pictures."""

    world: JudgedPictures
    base: nn.Module
    inputs: Tensor
    teacher: Tensor


def adam(rate: float, decay: float = 0.0) -> Callable[..., torch.optim.Optimizer]:
    return functools.partial(torch.optim.AdamW if decay else torch.optim.Adam, lr=rate, weight_decay=decay)


def teacher_features(features: Tensor, train: Tensor, dims: int) -> Tensor:
    """Principal components of standardised features, so scaled that the squared length is 1 in the mean."""
    scaled = (features - features[train].mean(0)) / features[train].std(0).clamp(min=1e-3)
    seen = scaled[train].double()  # in float32 the solver may fail where there are fewer pictures than features
    _, axes = torch.linalg.eigh(seen.T @ seen)  # ascending
    found = scaled @ axes[:, -dims:].to(scaled)
    return found / found[train].square().sum(1).mean().sqrt()


def fitted_cnn(
    widths: tuple[int, ...], images: Tensor, classes: Tensor, epochs: int, seed: int, attributes: Tensor | None = None
) -> nn.Module:
    """A CNN without its head, that learned classes, and where they are given attributes, ``(n, numbers)``."""
    n = len(KNOWN)
    wanted = F.one_hot(torch.searchsorted(torch.tensor(KNOWN), classes), n).float()
    wanted = wanted if attributes is None else torch.cat([wanted, attributes], 1)

    def loss(outputs: Tensor, wanted: Tensor) -> Tensor:
        named = soft_cross_entropy(outputs[:, :n], wanted[:, :n])
        return named if attributes is None else named + 5 * F.mse_loss(outputs[:, n:], wanted[:, n:])

    with seeded(seed):
        net = small_cnn(3, wanted.shape[1], widths)
    found = heldout.fit(net, (images, wanted), epochs=epochs, batch_size=64, optimizer=adam(3e-3), loss=loss, seed=seed)
    return found.module[:-1]  # type: ignore[index, no-any-return]


@functools.lru_cache(maxsize=1)
def shape_teacher(profile: str) -> nn.Module:
    """A larger network, taught by other pictures of three of the kinds: their classes and attributes, not the kinds."""
    n, epochs = (100, 6) if profile == "laptop" else (3, 1)
    seen = [c for c in KNOWN if c < 3 * PER_KIND]
    other = shape_hierarchy(seen, n, classes_per_kind=PER_KIND, part_contrast=CONTRAST, size=20, seed=5)
    attributes = torch.cat([other.parts, other.features], 1)
    return fitted_cnn((24, 48, 96), other.images, other.classes, epochs, 5, attributes)


@functools.lru_cache(maxsize=2)
def shapes(seed: int, profile: str) -> Cell:
    counts, epochs = ((36, 8, 12, 25), 8) if profile == "laptop" else ((4, 3, 2, 7), 1)
    options = {"counts": counts, "classes_per_kind": PER_KIND, "part_contrast": CONTRAST}
    world = judged_shapes(KNOWN, NOVEL, VALIDATION, **options, seed=seed)  # type: ignore[arg-type]
    base = fitted_cnn((16, 32, 64), world.images[world.train], world.classes[world.train], epochs, seed)
    features = embed_images(shape_teacher(profile), world.images)
    return Cell(world, base, world.images, teacher_features(features, world.train, DIMS[profile]))


class Pictures(NamedTuple):
    """Drawings, their kinds and judges, the trained part of the network, and its inputs and outputs of them all."""

    drawings: Drawings
    kinds: Tensor
    judges: dict[str, Tensor]
    top: nn.Module
    maps: Tensor
    features: Tensor


@functools.lru_cache(maxsize=1)
def pictured(profile: str) -> Pictures:
    laptop = profile == "laptop"
    pictures = drawings(label="subgroup", size=64 if laptop else 32)
    tags = drawing_tags(pictures.names)
    groups = [tags[name].group for name in pictures.names]
    kinds = torch.tensor([GROUPS.index(each) if each in GROUPS else -1 for each in groups])
    kept = kinds[pictures.things] >= 0
    images, labels, domains, things = (column[kept] for column in pictures[:4])
    pictures = Drawings(images, labels, domains, things, pictures.classes, pictures.names)
    pictures = pictures if laptop else first_drawings(pictures, 4)
    net = efficientnet_lite0()
    names = [name for name, _ in net.named_children()]
    below, top = net[: names.index("top")], net[names.index("top") : names.index("dropout")]
    maps = cached_features(below, pictures.images)
    judges = keyword_judges(pictures.names, KEYWORD_LANGUAGES if laptop else KEYWORD_LANGUAGES[:2])
    return Pictures(pictures, kinds[pictures.things], judges, top, maps, embed_images(top, maps))


@functools.lru_cache(maxsize=2)
def drawn(seed: int, profile: str) -> Cell:
    found = pictured(profile)
    least = 8 if profile == "laptop" else 3
    world = judged_drawings(found.drawings, found.kinds, found.judges, least=least, seed=seed)
    return Cell(world, found.top, found.maps, teacher_features(found.features, world.train, DIMS[profile]))


CELLS = {"shapes": shapes, "drawings": drawn}


@functools.lru_cache(maxsize=4)
def transform(name: str, seed: int, profile: str, raw: bool) -> AffineTransform:
    """The map of the teacher's features that explains the judges' answers; ``raw``: of scale and shift only."""
    world, _, _, teacher = CELLS[name](seed, profile)
    n = JUDGED if profile == "laptop" else 300
    asked = judged_triplets(world, world.judged, n, seed=seed)
    if raw:
        return fit_similarity_transform(teacher, asked, world.answers(asked), lam=1e6)
    other = judged_triplets(world, world.validation, n // 4, seed=seed)
    lams = LAMS if profile == "laptop" else LAMS[4:5]
    return tune_similarity_transform(teacher, asked, world.answers(asked), other, world.answers(other), lams)


def targeted(name: str, arm: str, seed: int, profile: str) -> tuple[Tensor, Tensor]:
    """The triplets that an arm learns from, and the choices that it is taught."""
    world, _, _, teacher = CELLS[name](seed, profile)
    laptop = profile == "laptop"
    if arm == "direct":
        asked = judged_triplets(world, world.judged, JUDGED if laptop else 300, seed=seed)
        return asked, world.answers(asked)
    found = transform(name, seed, profile, arm == "unaligned")
    clusters = spherical_kmeans(found(teacher[world.train]), CLUSTERS[name] if laptop else 4, n_init=2, seed=seed)
    kind: TripletKind = "uniform" if arm == "uniform" else "border"
    triplets = world.train[sample_triplets(clusters.labels, SYNTHETIC if laptop else 300, kind, seed=seed)]
    choices = found.choices(teacher, triplets)
    return triplets, F.one_hot(choices.argmax(1), 3).float() if arm == "hard" else choices


def student(name: str, arm: str, seed: int, profile: str) -> Tensor:
    """The embeddings of all pictures of a cell, by the network of an arm."""
    cell = CELLS[name](seed, profile)
    if arm == "base":
        return embed_images(cell.base, cell.inputs)
    triplets, targets = targeted(name, arm, seed, profile)
    steps, rate = STEPS[name] if profile == "laptop" else 2, LEARNING_RATES[name][arm]
    decay = PULL[profile] / (rate * steps / 2)  # warm-up and cosine: half the largest rate in the mean
    aligned = soft_align(
        cell.base,
        cell.inputs,
        triplets,
        targets,
        steps=steps,
        batch_size=BATCH if profile == "laptop" else 8,
        optimizer=adam(rate, decay if arm == "zero-decay" else 0.0),
        weight_decay=0.0 if arm in ("no-decay", "zero-decay") else decay,
        seed=seed,
    )
    return embed_images(aligned.module, cell.inputs)


def judged_metrics(world: JudgedPictures, z: Tensor, seed: int, profile: str) -> dict[str, float]:
    """Agreement with the judges on held-out classes, at the temperature that suits the validation triplets."""
    n = ASKED if profile == "laptop" else 100
    asked = judged_triplets(world, world.validation, n, seed=seed + 50)
    truth, logits = world.choices(asked), pair_similarities(z[asked])
    losses = {tau: soft_cross_entropy(logits / tau, truth).item() for tau in torch.logspace(-2, 1, 16).tolist()}
    tau = min(losses, key=losses.__getitem__)
    metrics = {"validation": losses[tau]}
    model, judges = [], []
    for number, level in enumerate(JUDGED_LEVELS):
        triplets = level_triplets(world, world.novel, level, n, seed=seed + 100 + number)
        q = world.choices(triplets)
        metrics[level] = odd_one_out(z, triplets, 2 - q.argmax(1))
        model.append((pair_similarities(z[triplets]) / tau).softmax(1))
        judges.append(q)
    metrics["uncertainty"] = uncertainty_alignment(torch.cat(model), torch.cat(judges))
    metrics["rsa"] = rsa(z[world.novel], 1 - world.similarity(world.novel))
    return metrics


@functools.lru_cache(maxsize=16)
def measured(name: str, arm: str, seed: int, profile: str) -> dict[str, float]:
    world = CELLS[name](seed, profile).world
    y, things, draws = world.classes, world.things, DRAWS[profile]
    z = student(name, arm, seed, profile)
    z = F.normalize(z - z[world.train].mean(0), dim=1)
    metrics, alpha = judged_metrics(world, z, seed, profile), 1.0

    def shown(shots: int, pool: Tensor, query: Tensor, alpha: float, seed: int, draws: int) -> float:
        return few_shot_accuracy(
            z, y, shots, pool=pool, query=query, things=things, alpha=alpha, draws=draws, seed=seed
        )

    for word, shots in (("one_shot", 1), ("five_shot", 5)):
        if len(ALPHAS[profile]) > 1:  # chosen on trained classes
            score = functools.partial(shown, shots, world.known, world.known, seed=seed + 500, draws=min(4, draws))
            alpha = max(ALPHAS[profile], key=score)
        metrics[word] = shown(shots, world.novel, world.novel, alpha, seed, draws)
    metrics["known"] = ridge_probe(z, y, world.train, world.known, alpha=alpha)
    if name == "shapes":  # the unseen style shows trained classes
        metrics["style"] = ridge_probe(z, y, world.train, world.shifted, alpha=alpha)
    else:
        metrics["style"] = shown(5, world.novel, world.shifted, alpha, seed, draws)
    return metrics


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    found, base = (measured(arm["cell"], name, seed, profile) for name in (arm["arm"], "base"))
    return found | {"coarse_beyond_fine": found["coarse"] - base["coarse"] - (found["fine"] - base["fine"])}


def claims_of(name: str) -> list[Any]:
    aligned, base, unaligned = f"{name}-aligned", f"{name}-base", f"{name}-unaligned"
    claims = [
        better(aligned, than=base, on="coarse", margin=0.08),
        at_least(aligned, on="coarse_beyond_fine", value=0.0),
        better(aligned, than=unaligned, on="coarse"),
        better(aligned, than=unaligned, on="rsa"),
        better(aligned, than=f"{name}-hard", on="uncertainty", margin=0.05),
        better(aligned, than=f"{name}-uniform", on="coarse", margin=0.01),
        better(aligned, than=f"{name}-no-decay", on="five_shot"),
        better(aligned, than=f"{name}-zero-decay", on="five_shot"),
    ]
    for metric in ("one_shot", "five_shot", "style"):
        claims.append(better(aligned, than=base, on=metric, margin=0.01))
        claims.append(better(aligned, than=unaligned, on=metric, margin=0.005))
    return claims


study = Study(
    slug="aligned-representations",
    title="Aligning Machine and Human Visual Representations across Abstraction Levels",
    arms={f"{name}-{arm}": {"cell": name, "arm": arm} for name in CELLS for arm in ARMS},
    run=run,
    metrics=dict.fromkeys(
        (*JUDGED_LEVELS, "coarse_beyond_fine", "uncertainty", "rsa", "known", "one_shot", "five_shot", "style"),
        higher_is_better,
    )
    | {"validation": lower_is_better},
    needs=dict.fromkeys([f"drawings-{arm}" for arm in ARMS], functools.partial(missing, [STYLE, TAGS, ENET])),
    claims=[*claims_of("shapes"), *claims_of("drawings")],
    seeds={"smoke": 1, "laptop": 10},
    shared_setup=True,
)
