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
judges on the classes that chose the ridge, by which learning rates were compared. ``one_shot``, ``five_shot``: ridge
classifiers of held-out classes, their strength chosen on trained ones; what is asked is of other things than what was
shown; ``style``: those of five_shot (``shapes``: of the 28 classes), tested in the unseen style; ``known``: trained
classes.

Arms. ``base``; ``aligned``: the published recipe (soft choices, Jensen-Shannon divergence, inner products of 1,024
numbers over 100, triplets across the border of clusters, Adam, warm-up and cosine); ``unaligned``: the same with the
teacher at the scale and shift that explain judges best; ``hard``: the first choices of the same transformed teacher;
``uniform`` triplets; ``no-decay``; ``zero-decay``: ordinary weight decay as strong; ``direct``: the student learns the
judges' triplets.

Deviations. Small models, few steps, a larger learning rate for that, one a cell for all arms: in ``shapes`` the best
for ``aligned`` and ``hard`` of 3e-4, 1e-3, 3e-3 and (``aligned``) 1e-2 by ``validation`` on a development seed, for
``unaligned`` as good as 1e-3; in ``drawings`` not searched.
Decay times the sum of the learning rates is the published 1.5, so that over few steps it
pulls as strongly. The faint parts are as visible as it takes for the teacher to read them (development seeds): what it
does not know no linear map brings out. The real student trains one layer. Teachers are 64 principal components;
uncertainty is the answers' share, no Bayesian embedding (VICE) is fitted.
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
from heldout.measure import odd_one_out, rsa, uncertainty_alignment
from heldout.nn import cached_features, efficientnet_lite0, small_cnn
from heldout.sources import ENET, STYLE, TAGS, missing
from heldout.study import Study, at_least, better, higher_is_better, lower_is_better
from heldout.tasks import (
    ShapeItems,
    drawings,
    judged_choices,
    judged_similarity,
    judges_choices,
    keyword_judges,
    shape_hierarchy,
    stratified_split,
)
from heldout.train import (
    AffineTransform,
    embed_images,
    fit_similarity_transform,
    seeded,
    soft_align,
    tune_similarity_transform,
)

PER_KIND = 10  # classes
KNOWN, NOVEL = [c for c in range(40) if c % 10 < 7], [c for c in range(40) if c % 10 >= 7]
LEARNING_RATES = {"shapes": 3e-3, "drawings": 3e-4}
STEPS = {"smoke": {"shapes": 6, "drawings": 6}, "laptop": {"shapes": 120, "drawings": 60}}
BATCH, CLUSTERS = 32, {"shapes": 20, "drawings": 40}
COUNTS = {"smoke": (8, 4, 8, 8), "laptop": (36, 8, 12, 25)}  # of a class: to learn, judge, test of known, of others
DIMS = {"smoke": 16, "laptop": 64}  # principal components of a teacher
JUDGED, SYNTHETIC, ASKED = 8000, 30000, 1500  # triplets
PULL = 1.5  # published: decay to the initial weights times the sum of all learning rates
LAMS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
ALPHAS = {"smoke": (1.0,), "laptop": (1e-3, 1e-2, 1e-1, 1.0, 10.0)}
DRAWS = {"smoke": 1, "laptop": 10}  # of the shown pictures; fewer to choose the strength
LEVELS = ("coarse", "boundary", "fine")
OBJECTS = {  # Unicode's groups by the beginnings of their subgroups; signs and flags are left out
    "faces": ("face-", "cat-face", "monkey-face", "emotion", "heart"),
    "people": ("person", "hand", "body-parts"),
    "nature": ("animal-", "plant-"),
    "food": ("food-", "drink", "dishware"),
    "travel": ("place-", "transport-air", "transport-ground", "transport-water", "hotel", "time", "sky-weather"),
    "activities": ("event", "award-medal", "sport", "game", "arts-crafts"),
    "objects": (
        *("clothing", "sound", "music", "phone", "computer", "light-video", "book-paper", "money", "mail", "writing"),
        *("office", "lock", "tool", "science", "medical", "household", "other-object"),
    ),
}


class Cell(NamedTuple):
    """What a seed works on: numbers of pictures in ``inputs``, by what they are for.

    Attributes:
        base: the network to be aligned, from inputs to embeddings.
        inputs: of all pictures; ``teacher``: its features of them.
        classes, kinds, things: of all pictures; a thing is drawn in several styles, or is the picture.
        similarity: what judges hold of each pair of the pictures given.
        choices: the judges' true choices of triplets of pictures; ``answers``: what they say when asked.
        judged, chosen, train, known, novel: pictures that judges are asked about to fit, to choose the ridge; that the
            student learns; of trained and of held-out classes, to test.
        shifted: pictures in the unseen style, and whether they are of ``train`` (True) or ``novel`` classes.
    """

    base: nn.Module
    inputs: Tensor
    teacher: Tensor
    classes: Tensor
    kinds: Tensor
    things: Tensor
    similarity: Callable[[Tensor], Tensor]
    choices: Callable[[Tensor], Tensor]
    answers: Callable[[Tensor], Tensor]
    judged: Tensor
    chosen: Tensor
    train: Tensor
    known: Tensor
    novel: Tensor
    shifted: tuple[Tensor, bool]


def adam(rate: float, decay: float = 0.0) -> Callable[..., torch.optim.Optimizer]:
    return functools.partial(torch.optim.AdamW if decay else torch.optim.Adam, lr=rate, weight_decay=decay)


def teacher_features(features: Tensor, train: Tensor, dims: int) -> Tensor:
    """Principal components of standardised features, so scaled that the squared length is 1 in the mean."""
    scaled = (features - features[train].mean(0)) / features[train].std(0).clamp(min=1e-3)
    _, axes = torch.linalg.eigh(scaled[train].T @ scaled[train])  # ascending
    found = scaled @ axes[:, -dims:]
    return found / found[train].square().sum(1).mean().sqrt()


shape_world: Callable[..., ShapeItems] = functools.partial(
    shape_hierarchy, classes_per_kind=PER_KIND, part_contrast=0.5, size=20
)


def fitted_cnn(
    widths: tuple[int, ...], items: ShapeItems, epochs: int, seed: int, attributes: Tensor | None = None
) -> nn.Module:
    """A CNN without its head, that learned classes, and where they are given attributes, ``(n, numbers)``."""
    n = len(KNOWN)
    wanted = F.one_hot(torch.searchsorted(torch.tensor(KNOWN), items.classes), n).float()
    wanted = wanted if attributes is None else torch.cat([wanted, attributes], 1)

    def loss(outputs: Tensor, wanted: Tensor) -> Tensor:
        named = soft_cross_entropy(outputs[:, :n], wanted[:, :n])
        return named if attributes is None else named + 5 * F.mse_loss(outputs[:, n:], wanted[:, n:])

    with seeded(seed):
        net = small_cnn(3, wanted.shape[1], widths)
    found = heldout.fit(
        net, (items.images, wanted), epochs=epochs, batch_size=64, optimizer=adam(3e-3), loss=loss, seed=seed
    )
    return found.module[:-1]  # type: ignore[index, no-any-return]


@functools.lru_cache(maxsize=1)
def shape_teacher(profile: str) -> nn.Module:
    """A larger network, taught by other pictures of three of the kinds: their classes and attributes, not the kinds."""
    smoke = profile == "smoke"
    other = shape_world([c for c in KNOWN if c < 30], 4 if smoke else 100, seed=5)
    attributes = torch.cat([other.parts, other.features], 1)
    return fitted_cnn((24, 48, 96), other, 1 if smoke else 6, 5, attributes)


@functools.lru_cache(maxsize=2)
def shapes(seed: int, profile: str) -> Cell:
    learn, judge, test, few = COUNTS[profile]
    taught = shape_world(KNOWN, learn, seed=seed)
    sets = [
        taught,
        shape_world(KNOWN, judge, seed=seed + 10**6),
        shape_world(KNOWN, test, seed=seed + 2 * 10**6),
        shape_world(NOVEL, few, seed=seed + 3 * 10**6),
        shape_world(KNOWN, test, outline=0.2, seed=seed + 4 * 10**6),
    ]
    images, classes, kinds, features, _ = (torch.cat(parts) for parts in zip(*sets, strict=True))
    train, judged, known, novel, shifted = torch.arange(len(images)).split([len(each.images) for each in sets])
    wide = classes[judged] % PER_KIND
    held = judged_similarity(classes, kinds, features[:, :2])

    def answers(triplets: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(judged_choices(held, triplets), 5, replacement=True, generator=generator)
        return F.one_hot(drawn, 3).float().mean(1)

    return Cell(
        base=fitted_cnn((16, 32, 64), taught, 1 if profile == "smoke" else 8, seed),
        inputs=images,
        teacher=teacher_features(embed_images(shape_teacher(profile), images), train, DIMS[profile]),
        classes=classes,
        kinds=kinds,
        things=torch.arange(len(images)),
        similarity=lambda items: held[items][:, items],
        choices=functools.partial(judged_choices, held),
        answers=answers,
        judged=judged[wide < 5],
        chosen=judged[wide >= 5],  # two classes of each kind
        train=train,
        known=known,
        novel=novel,
        shifted=(shifted, True),
    )


class Pictures(NamedTuple):
    """The trained part of the network, its inputs and outputs of all pictures, what these are, and the judges."""

    top: nn.Module
    maps: Tensor
    features: Tensor
    classes: Tensor
    kinds: Tensor
    domains: Tensor
    things: Tensor
    judges: dict[str, Tensor]


@functools.lru_cache(maxsize=1)
def pictured(profile: str) -> Pictures:
    pictures = drawings(label="subgroup", size=64)
    net = efficientnet_lite0()
    names = [name for name, _ in net.named_children()]
    below, top = net[: names.index("top")], net[names.index("top") : names.index("dropout")]
    group = torch.tensor(
        [next((i for i, starts in enumerate(OBJECTS.values()) if c.startswith(starts)), -1) for c in pictures.classes]
    )[pictures.labels]
    kept = group >= 0
    if profile == "smoke":
        kept &= pictures.things % 2 == 0
    maps = cached_features(below, pictures.images)[kept]
    labels, domains, things = (column[kept] for column in (pictures.labels, pictures.domains, pictures.things))
    judges = keyword_judges(pictures.names)
    return Pictures(top, maps, embed_images(top, maps), labels, group[kept], domains, things, judges)


@functools.lru_cache(maxsize=2)
def drawn(seed: int, profile: str) -> Cell:
    top, maps, features, classes, kinds, domains, things, judges = pictured(profile)
    generator = torch.Generator().manual_seed(seed)
    members, where, sizes = classes.unique(return_inverse=True, return_counts=True)
    kind_of = torch.zeros(len(members), dtype=torch.long).scatter(0, where, kinds)
    least = 4 * (3 if profile == "smoke" else 8)  # things in four styles
    parts = stratified_split(kind_of, (0.3, 0.2, 0.5), seed=seed)[:2]
    novel, chosen = (torch.isin(where, part[sizes[part] >= least]) for part in parts)
    away, one_style = domains == seed % 4, domains == (seed + 1) % 4
    test_things = torch.rand(int(things.max()) + 1, generator=generator)[things] < 0.2
    train = ~novel & ~chosen & ~away & ~test_things
    mean = torch.stack(list(judges.values())).mean(0)

    def choices(triplets: Tensor) -> Tensor:
        return judges_choices(judges, things[triplets])

    return Cell(
        base=top,
        inputs=maps,
        teacher=teacher_features(features, train.nonzero().flatten(), DIMS[profile]),
        classes=classes,
        kinds=kinds,
        things=things,
        similarity=lambda items: mean[things[items]][:, things[items]],
        choices=choices,
        answers=choices,
        judged=(train & one_style).nonzero().flatten(),
        chosen=(chosen & one_style).nonzero().flatten(),
        train=train.nonzero().flatten(),
        known=(~novel & ~chosen & ~away & test_things).nonzero().flatten(),
        novel=(novel & ~away).nonzero().flatten(),
        shifted=((novel & away).nonzero().flatten(), False),
    )


CELLS = {"shapes": shapes, "drawings": drawn}


def level_triplets(cell: Cell, items: Tensor, level: str, n: int, seed: int) -> Tensor:
    """Triplets of one level, of three different things, on which judges have a first choice; "any": any three."""
    labels = cell.kinds[items] if level == "coarse" else cell.classes[items]
    groups = cell.kinds[items] if level == "boundary" else None
    kinds: dict[str, TripletKind] = {"fine": "within", "any": "uniform"}
    found = items[sample_triplets(labels, 3 * n, kinds.get(level, "border"), groups=groups, seed=seed)]
    a, b, c = cell.things[found].T
    first, second = cell.choices(found).topk(2, 1).values.T
    return found[(a != b) & (a != c) & (b != c) & (first > second + 1e-6)][:n]


def judged_triplets(cell: Cell, items: Tensor, n: int, seed: int) -> Tensor:
    """As judges are asked: half of any kind, the rest at the three levels."""
    parts = [level_triplets(cell, items, level, n // 6, seed + i) for i, level in enumerate(LEVELS)]
    return torch.cat([level_triplets(cell, items, "any", n // 2, seed), *parts])


@functools.lru_cache(maxsize=4)
def transform(name: str, seed: int, profile: str, raw: bool) -> AffineTransform:
    """The map of the teacher's features that explains the judges' answers; ``raw``: of scale and shift only."""
    cell = CELLS[name](seed, profile)
    n = JUDGED if profile == "laptop" else 300
    asked, other = (judged_triplets(cell, *each, seed) for each in ((cell.judged, n), (cell.chosen, n // 4)))
    answers = cell.answers(asked)
    if raw:
        return fit_similarity_transform(cell.teacher, asked, answers, lam=1e6)
    lams = LAMS if profile == "laptop" else LAMS[2:3]
    return tune_similarity_transform(cell.teacher, asked, answers, other, cell.answers(other), lams)


def first_choices(answers: Tensor) -> Tensor:
    return F.one_hot(answers.argmax(1), 3).float()


@functools.lru_cache(maxsize=16)
def student(name: str, arm: str, seed: int, profile: str) -> Tensor:
    """The embeddings of all pictures of a cell, by the network of an arm."""
    cell = CELLS[name](seed, profile)
    if arm == "base":
        return embed_images(cell.base, cell.inputs)
    laptop = profile == "laptop"
    if arm == "direct":
        triplets = judged_triplets(cell, cell.judged, JUDGED if laptop else 300, seed)
        targets = cell.answers(triplets)
    else:
        found = transform(name, seed, profile, arm == "unaligned")
        moved = found(cell.teacher[cell.train])
        clusters = spherical_kmeans(moved, CLUSTERS[name] if laptop else 4, n_init=2, seed=seed).labels
        kind: TripletKind = "uniform" if arm == "uniform" else "border"
        triplets = cell.train[sample_triplets(clusters, SYNTHETIC if laptop else 300, kind, seed=seed)]
        targets = found.choices(cell.teacher, triplets)
        targets = first_choices(targets) if arm == "hard" else targets
    steps, rate = STEPS[profile][name], LEARNING_RATES[name]
    decay = PULL / (rate * steps / 2)  # warm-up and cosine: half the largest rate in the mean
    aligned = soft_align(
        cell.base,
        cell.inputs,
        triplets,
        targets,
        steps=steps,
        batch_size=BATCH,
        optimizer=adam(rate, decay if arm == "zero-decay" else 0.0),
        weight_decay=0.0 if arm in ("no-decay", "zero-decay") else decay,
        seed=seed,
    )
    return embed_images(aligned.module, cell.inputs)


def probe(z: Tensor, classes: Tensor, support: Tensor, query: Tensor, alpha: float) -> float:
    """Accuracy of a ridge classifier."""
    from sklearn.linear_model import RidgeClassifier

    fitted = RidgeClassifier(alpha).fit(z[support].numpy(), classes[support].numpy())
    return float(fitted.score(z[query].numpy(), classes[query].numpy()))


def few_shot(
    cell: Cell, z: Tensor, shots: int, pool: Tensor, query: Tensor, alpha: float, seed: int, draws: int
) -> float:
    """Mean accuracy over draws of ``shots`` things of each class of the pool; things that are drawn are not asked."""
    scores = []
    for draw in range(draws):
        order = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed + draw))]
        seen = F.one_hot(cell.classes[order]).cumsum(0).gather(1, cell.classes[order][:, None]).flatten()
        support = order[seen <= shots]
        asked = query[~torch.isin(cell.things[query], cell.things[support])]
        asked = asked[torch.isin(cell.classes[asked], cell.classes[support])]
        scores.append(probe(z, cell.classes, support, asked, alpha))
    return sum(scores) / len(scores)


def judged_metrics(cell: Cell, z: Tensor, seed: int, profile: str) -> dict[str, float]:
    """Agreement with the judges on held-out classes, at the temperature that suits the validation triplets."""
    n = ASKED if profile == "laptop" else 100
    asked = judged_triplets(cell, cell.chosen, n, seed + 50)
    truth, logits = cell.choices(asked), pair_similarities(z[asked])
    losses = {
        tau: -(truth * (logits / tau).log_softmax(1)).sum(1).mean().item() for tau in torch.logspace(-2, 1, 16).tolist()
    }
    tau = min(losses, key=losses.__getitem__)
    metrics = {"validation": losses[tau]}
    model, judges = [], []
    for number, level in enumerate(LEVELS):
        triplets = level_triplets(cell, cell.novel, level, n, seed + 100 + number)
        q = cell.choices(triplets)
        metrics[level] = odd_one_out(z, triplets, 2 - q.argmax(1))
        model.append((pair_similarities(z[triplets]) / tau).softmax(1))
        judges.append(q)
    metrics["uncertainty"] = uncertainty_alignment(torch.cat(model), torch.cat(judges))
    metrics["rsa"] = rsa(z[cell.novel], 1 - cell.similarity(cell.novel))
    return metrics


@functools.lru_cache(maxsize=16)
def measured(name: str, arm: str, seed: int, profile: str) -> dict[str, float]:
    cell = CELLS[name](seed, profile)
    z = student(name, arm, seed, profile)
    z = F.normalize(z - z[cell.train].mean(0), dim=1)
    metrics = judged_metrics(cell, z, seed, profile)
    best, draws = {}, DRAWS[profile]
    for word, shots in SHOTS.items():
        scores = {
            a: few_shot(cell, z, shots, cell.known, cell.known, a, seed + 500, min(4, draws)) for a in ALPHAS[profile]
        }
        best[word] = max(scores, key=scores.__getitem__)  # chosen on trained classes
        metrics[f"{word}_shot"] = few_shot(cell, z, shots, cell.novel, cell.novel, best[word], seed, draws)
    metrics["known"] = probe(z, cell.classes, cell.train, cell.known, best["five"])
    shifted, trained = cell.shifted
    if trained:
        metrics["style"] = probe(z, cell.classes, cell.train, shifted, best["five"])
    else:
        metrics["style"] = few_shot(cell, z, 5, cell.novel, shifted, best["five"], seed, draws)
    return metrics


SHOTS = {"one": 1, "five": 5}


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    found, base = (measured(arm["cell"], name, seed, profile) for name in (arm["arm"], "base"))
    return found | {"coarse_beyond_fine": found["coarse"] - base["coarse"] - (found["fine"] - base["fine"])}


ARMS = ("base", "aligned", "unaligned", "hard", "uniform", "no-decay", "zero-decay", "direct")


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
        (*LEVELS, "coarse_beyond_fine", "uncertainty", "rsa", "known", "one_shot", "five_shot", "style"),
        higher_is_better,
    )
    | {"validation": lower_is_better},
    needs=dict.fromkeys([f"drawings-{arm}" for arm in ARMS], functools.partial(missing, [STYLE, TAGS, ENET])),
    claims=[*claims_of("shapes"), *claims_of("drawings")],
    seeds={"smoke": 1, "laptop": 5},
    shared_setup=True,
)
