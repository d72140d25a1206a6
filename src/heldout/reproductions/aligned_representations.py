"""AligNet: does a small transform of a teacher, fitted to odd-one-out choices, align a student at every level?

Claim. A student fine-tuned on the soft choices of a transformed teacher matches judges better, most at the coarse level
of kinds; soft choices teach uncertainty, and triplets across the border of clusters more than any triplets; few-shot
learning and a shift of style gain too. Source: arXiv:2409.06509 (Muttenthaler et al., Nature 2025).

World. ``shapes``: 4 kinds (shown by two faint parts) of 10 classes (outline), drawn at 20 x 20. The base is a CNN that
learned 28 classes, the teacher a larger one that learned those of three of the kinds, and to tell the parts that are
seen, from other and more pictures. The other 12 classes are for the test. Judges are simulated: softmax of shared kind,
shared class and hue; each of 8,000 triplets of 60 objects has five answers. ``drawings``: real drawings of things in
four styles (one of them unseen, in turn); base and teacher are EfficientNet-Lite0 at 64 x 64, of which the last
convolution (0.41 M) is trained. Judges are the writers of Unicode's keywords in twelve languages, each language a vote:
that stands in for human judgements, nobody was asked. Groups and subgroups are Unicode's; subgroups of things are held
out for the test, others to choose the ridge by.

``coarse``: triplets with two items of a kind and one of another; ``boundary``: of a kind, two of one class; ``fine``:
of one class; share with the judges' first choice, by the cosine of centred embeddings, on held-out classes.
``uncertainty``: rank correlation of entropies. ``one_shot``, ``five_shot``: ridge classifiers of held-out classes;
``style``: those of five_shot (``shapes``: of the 28 classes), tested in the unseen style; ``known``: trained classes.

Arms. ``base``; ``aligned``: the published settings (Jensen-Shannon divergence, inner products of 1,024 numbers over
100, decay of 1 to the initial weights, Adam, warm-up and cosine) but for steps and learning rate; ``kl`` divergence;
``unaligned``: the same with the teacher at the scale and shift that explain judges best; ``hard``: transform and
student learn first choices; ``uniform`` triplets; ``no-decay``; ``zero-decay``, ordinary weight decay of 1; ``direct``:
the student learns the judges' triplets. One learning rate a cell for all; the ridge is chosen by validation.

Deviations. Small models, few steps; the real student trains one layer; the teacher of ``drawings`` is 128 principal
components; uncertainty is the answers' share, no Bayesian embedding (VICE) is fitted.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import heldout
from heldout.data import sample_triplets, spherical_kmeans
from heldout.losses import pair_similarities, soft_cross_entropy
from heldout.measure import odd_one_out, uncertainty_alignment
from heldout.nn import cached_features, efficientnet_lite0, small_cnn
from heldout.sources import ENET, STYLE, TAGS, missing
from heldout.study import Study, at_least, better, higher_is_better
from heldout.tasks import (
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
LEARNING_RATES = {"shapes": 1e-3, "drawings": 3e-4}
STEPS = {"smoke": {"shapes": 3, "drawings": 3}, "laptop": {"shapes": 150, "drawings": 60}}
BATCH, CLUSTERS = 32, {"shapes": 20, "drawings": 40}
JUDGED, SYNTHETIC, ASKED = 8000, 30000, 1500  # triplets
LAMS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
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
        classes, kinds: of all pictures.
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


shape_world: Callable[..., Any] = functools.partial(
    shape_hierarchy, classes_per_kind=PER_KIND, part_contrast=0.3, size=20
)


def fitted_cnn(
    widths: tuple[int, ...], images: Tensor, labels: Tensor, epochs: int, seed: int, parts: Tensor | None = None
) -> nn.Module:
    """A CNN without its head, that learned classes, and where they are given which parts are seen, ``(n, 4)``."""
    classes = F.one_hot(torch.searchsorted(torch.tensor(KNOWN), labels), len(KNOWN)).float()
    targets = classes if parts is None else torch.cat([classes, parts], 1)

    def loss(outputs: Tensor, wanted: Tensor) -> Tensor:
        found = soft_cross_entropy(outputs[:, : len(KNOWN)], wanted[:, : len(KNOWN)])
        if parts is None:
            return found
        return found + F.binary_cross_entropy_with_logits(outputs[:, len(KNOWN) :], wanted[:, len(KNOWN) :])

    with seeded(seed):
        net = small_cnn(3, targets.shape[1], widths)
    found = heldout.fit(
        net, (images, targets), epochs=epochs, batch_size=64, optimizer=adam(3e-3), loss=loss, seed=seed
    )
    return found.module[:-1]  # type: ignore[index, no-any-return]


@functools.lru_cache(maxsize=1)
def shape_teacher(profile: str) -> nn.Module:
    """A larger network, taught the known classes of three of the kinds, and their parts, by more pictures."""
    smoke = profile == "smoke"
    other = shape_world([c for c in KNOWN if c < 30], 4 if smoke else 120, seed=5)
    parts = F.one_hot(other.kinds, 4).float()
    return fitted_cnn((24, 48, 96), other.images, other.classes, 1 if smoke else 6, 5, parts)


@functools.lru_cache(maxsize=2)
def shapes(seed: int, profile: str) -> Cell:
    smoke = profile == "smoke"
    counts = (6, 2, 6) if smoke else (36, 12, 25)  # of each class: to learn, to test of the known, of the others
    taught = shape_world(KNOWN, counts[0], seed=seed)
    sets = [
        taught,
        shape_world(KNOWN, 3, seed=seed + 10**6),
        shape_world(KNOWN, counts[1], seed=seed + 2 * 10**6),
        shape_world(NOVEL, counts[2], seed=seed + 3 * 10**6),
        shape_world(KNOWN, counts[1], style="outline", seed=seed + 4 * 10**6),
    ]
    images, classes, kinds, features = (torch.cat(parts) for parts in zip(*sets, strict=True))
    train, judged, known, novel, shifted = torch.arange(len(images)).split([len(each.images) for each in sets])
    chosen = judged[classes[judged] % 10 >= 5]  # two classes of each kind
    similarity = judged_similarity(classes, kinds, features[:, :2])
    base = fitted_cnn((16, 32, 64), taught.images, taught.classes, 1 if smoke else 8, seed)

    def answers(triplets: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(judged_choices(similarity, triplets), 5, replacement=True, generator=generator)
        return F.one_hot(drawn, 3).float().mean(1)

    teacher = embed_images(shape_teacher(profile), images)
    choices = functools.partial(judged_choices, similarity)
    rest = judged[classes[judged] % 10 < 5]
    return Cell(
        *(base, images, teacher, classes, kinds, choices, answers, rest, chosen),
        *(train, known, novel, (shifted, True)),
    )


@functools.lru_cache(maxsize=1)
def pictured() -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """The trained part of the network, its inputs, its outputs, and subgroup, group, style, thing and judges."""
    pictures = drawings(label="subgroup", size=64)
    net = efficientnet_lite0()
    names = [name for name, _ in net.named_children()]
    below, top = net[: names.index("top")], net[names.index("top") : names.index("dropout")]
    group = torch.tensor(
        [next((i for i, starts in enumerate(OBJECTS.values()) if c.startswith(starts)), -1) for c in pictures.classes]
    )[pictures.labels]
    kept = group >= 0
    maps = cached_features(below, pictures.images)[kept]
    labels, domains, things = (column[kept] for column in (pictures.labels, pictures.domains, pictures.things))
    judges = keyword_judges(pictures.names)
    return top, maps, embed_images(top, maps), labels, group[kept], domains, things, judges


@functools.lru_cache(maxsize=2)
def drawn(seed: int, profile: str) -> Cell:
    top, maps, features, classes, kinds, domains, things, judges = pictured()
    generator = torch.Generator().manual_seed(seed)
    members, where = classes.unique(return_inverse=True)
    kind_of = torch.zeros(len(members), dtype=torch.long)
    kind_of[where] = kinds
    large = torch.zeros(len(members), dtype=torch.bool)
    large[where] = classes.bincount()[classes] >= 4 * 8  # things in four styles
    parts = [part[large[part]] for part in stratified_split(kind_of, (0.3, 0.2, 0.5), seed=seed)[:2]]
    novel, chosen = (torch.isin(where, part) for part in parts)
    away = domains == seed % 4
    rank = torch.rand(int(things.max()) + 1, generator=generator)[things]
    test_things = rank < 0.2
    train = ~novel & ~chosen & ~away & ~test_things
    asked = things[train].unique()
    asked = asked[torch.randperm(len(asked), generator=generator)[:300]]
    one_style = domains == (seed + 1) % 4
    known = ~novel & ~chosen & ~away & test_things
    scaled = (features - features[train].mean(0)) / features[train].std(0).clamp(min=1e-3)
    _, _, axes = torch.pca_lowrank(scaled[train], 128, center=False) if profile == "laptop" else (0, 0, None)
    teacher = scaled[:, :32] if axes is None else scaled @ axes
    teacher = teacher / teacher[train].square().sum(1).mean().sqrt()

    def choices(triplets: Tensor) -> Tensor:
        return judges_choices(judges, things[triplets])

    masks = (train & one_style & torch.isin(things, asked), chosen & one_style, train, known, novel & ~away)
    return Cell(
        *(top, maps, teacher, classes, kinds, choices, choices),
        *(mask.nonzero().flatten() for mask in masks),
        ((novel & away).nonzero().flatten(), False),
    )


CELLS = {"shapes": shapes, "drawings": drawn}


def level_triplets(cell: Cell, items: Tensor, level: str, n: int, seed: int) -> Tensor:
    """Triplets of one level of the hierarchy, of different things by number."""
    labels = cell.kinds[items] if level == "coarse" else cell.classes[items]
    groups = cell.kinds[items] if level == "boundary" else None
    kind = "within" if level == "fine" else "border"
    return items[sample_triplets(labels, n, kind, groups=groups, seed=seed)]  # type: ignore[arg-type]


def any_triplets(cell: Cell, items: Tensor, n: int, seed: int) -> Tensor:
    """As judges are asked: half of any kind, the rest at the three levels."""
    parts = [level_triplets(cell, items, level, n // 6, seed + i) for i, level in enumerate(LEVELS)]
    return torch.cat([items[sample_triplets(cell.classes[items], n // 2, "uniform", seed=seed)], *parts])


@functools.lru_cache(maxsize=4)
def transform(name: str, seed: int, profile: str, kind: str) -> AffineTransform:
    """The map of the teacher's features: ``aligned`` to answers, ``hard``: to first choices, ``raw``: scaled only."""
    cell = CELLS[name](seed, profile)
    n = JUDGED if profile == "laptop" else 300
    data = []
    for items, count in ((cell.judged, n), (cell.chosen, n // 4)):
        triplets = any_triplets(cell, items, count, seed)
        answers = cell.answers(triplets)
        data += [triplets, first_choices(answers) if kind == "hard" else answers]
    if kind == "raw":
        return fit_similarity_transform(cell.teacher, data[0], data[1], lam=1e6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an edge: both ends are far beyond
        lams = LAMS if profile == "laptop" else LAMS[3:5]
        return tune_similarity_transform(cell.teacher, *data, lams=lams, max_steps=100)


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
        triplets = any_triplets(cell, cell.judged, JUDGED if laptop else 300, seed)
        targets = cell.answers(triplets)
    else:
        found = transform(name, seed, profile, {"unaligned": "raw", "hard": "hard"}.get(arm, "aligned"))
        moved = found(cell.teacher[cell.train])
        clusters = spherical_kmeans(moved, CLUSTERS[name] if laptop else 4, n_init=2, seed=seed).labels
        kind = "uniform" if arm == "uniform" else "border"
        triplets = cell.train[sample_triplets(clusters, SYNTHETIC if laptop else 300, kind, seed=seed)]  # type: ignore[arg-type]
        targets = found.choices(cell.teacher, triplets)
        targets = first_choices(targets) if arm == "hard" else targets
    aligned = soft_align(
        cell.base,
        cell.inputs,
        triplets,
        targets,
        divergence="kl" if arm == "kl" else "js",
        steps=STEPS[profile][name],
        batch_size=BATCH,
        optimizer=adam(LEARNING_RATES[name], 1.0 if arm == "zero-decay" else 0.0),
        weight_decay=0.0 if arm in ("no-decay", "zero-decay") else 1.0,
        seed=seed,
    )
    return embed_images(aligned.module, cell.inputs)


def probe(z: Tensor, classes: Tensor, support: Tensor, query: Tensor) -> float:
    """Accuracy of a ridge classifier, its strength by leave-one-out."""
    from sklearn.linear_model import RidgeClassifierCV

    fitted = RidgeClassifierCV((1e-2, 1e-1, 1.0, 10.0, 100.0)).fit(z[support].numpy(), classes[support].numpy())
    return float(fitted.score(z[query].numpy(), classes[query].numpy()))


def few_shot(cell: Cell, z: Tensor, shots: int, query: Tensor, seed: int) -> float:
    """Mean accuracy over ten draws of ``shots`` pictures of each held-out class; what is drawn is not asked."""
    scores = []
    for draw in range(10):
        order = cell.novel[torch.randperm(len(cell.novel), generator=torch.Generator().manual_seed(seed + draw))]
        seen = F.one_hot(cell.classes[order]).cumsum(0).gather(1, cell.classes[order][:, None]).flatten()
        support = order[seen <= shots]
        scores.append(probe(z, cell.classes, support, query[~torch.isin(query, support)]))
    return sum(scores) / len(scores)


def judged_metrics(cell: Cell, z: Tensor, seed: int, profile: str) -> dict[str, float]:
    """Agreement with the judges on held-out classes, at the temperature that suits the validation triplets."""
    n = ASKED if profile == "laptop" else 100
    asked = any_triplets(cell, cell.chosen, n, seed)
    truth, logits = cell.choices(asked), pair_similarities(z[asked])
    taus = torch.logspace(-2, 1, 16).tolist()
    tau = min(taus, key=lambda t: -(truth * (logits / t).log_softmax(1)).sum().item())
    metrics, model, judges = {}, [], []
    for number, level in enumerate(LEVELS):
        triplets = level_triplets(cell, cell.novel, level, n, seed + 100 + number)
        q = cell.choices(triplets)
        metrics[level] = odd_one_out(z, triplets, 2 - q.argmax(1))
        model.append((pair_similarities(z[triplets]) / tau).softmax(1))
        judges.append(q)
    metrics["uncertainty"] = uncertainty_alignment(torch.cat(model), torch.cat(judges))
    return metrics


@functools.lru_cache(maxsize=16)
def measured(name: str, arm: str, seed: int, profile: str) -> dict[str, float]:
    cell = CELLS[name](seed, profile)
    z = student(name, arm, seed, profile)
    z = F.normalize(z - z[cell.train].mean(0), dim=1)
    metrics = judged_metrics(cell, z, seed, profile)
    metrics["known"] = probe(z, cell.classes, cell.train, cell.known)
    metrics |= {f"{word}_shot": few_shot(cell, z, shots, cell.novel, seed) for word, shots in SHOTS.items()}
    shifted, trained = cell.shifted
    if trained:
        metrics["style"] = probe(z, cell.classes, cell.train, shifted)
    else:
        metrics["style"] = few_shot(cell, z, 5, shifted, seed)
    return metrics


SHOTS = {"one": 1, "five": 5}


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    found, base = (measured(arm["cell"], name, seed, profile) for name in (arm["arm"], "base"))
    return found | {"coarse_beyond_fine": found["coarse"] - base["coarse"] - (found["fine"] - base["fine"])}


ARMS = ("base", "aligned", "kl", "unaligned", "hard", "uniform", "no-decay", "zero-decay", "direct")


def claims_of(name: str) -> list[Any]:
    aligned, base, unaligned = f"{name}-aligned", f"{name}-base", f"{name}-unaligned"
    claims = [
        better(aligned, than=base, on="coarse", margin=0.08),
        at_least(aligned, on="coarse_beyond_fine", value=0.0),
        better(aligned, than=unaligned, on="coarse"),
        better(aligned, than=f"{name}-hard", on="uncertainty", margin=0.05),
        better(aligned, than=f"{name}-uniform", on="coarse", margin=0.01),
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
        (*LEVELS, "coarse_beyond_fine", "uncertainty", "known", "one_shot", "five_shot", "style"), higher_is_better
    ),
    needs=dict.fromkeys([f"drawings-{arm}" for arm in ARMS], functools.partial(missing, [STYLE, TAGS, ENET])),
    claims=[*claims_of("shapes"), *claims_of("drawings")],
    seeds={"smoke": 1, "laptop": 5},
    shared_setup=True,
)
