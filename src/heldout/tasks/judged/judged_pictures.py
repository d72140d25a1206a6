"""Pictures with judges, dealt into those that are judged, learned and tested: simulated judges of shapes, or drawings.

Triplets come at the three levels of arXiv:2409.06509 (Muttenthaler et al., Nature 2025), "Levels": across kinds, at the
border of classes within a kind, and within a class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from heldout.data import TripletKind, sample_triplets
from heldout.errors import (
    check_at_least,
    check_between,
    check_dimensions,
    check_labels,
    check_length,
    check_nonempty,
    check_same_length,
    checked,
)
from heldout.tasks.images.biases import stratified_split
from heldout.tasks.images.drawings import Drawings
from heldout.tasks.judged.keyword_judges import judges_choices
from heldout.tasks.judged.shape_hierarchy import judged_choices, judged_similarity, shape_hierarchy

JudgedLevel = Literal["coarse", "boundary", "fine", "any"]
JUDGED_LEVELS: tuple[JudgedLevel, ...] = ("coarse", "boundary", "fine")
_SAMPLED: dict[JudgedLevel, TripletKind] = {"fine": "within", "any": "uniform"}
_ANSWERS = 5  # of the simulated judges to each triplet


class JudgedPictures(NamedTuple):
    """Pictures, what they show, what judges hold of them, and the numbers of those that are used for something.

    Attributes:
        images: ``(n, 3, size, size)``.
        classes, kinds, things: of each picture, int64 ``(n,)``; a thing may be drawn in several styles.
        similarity: from numbers of pictures ``(m,)`` to what judges hold of each pair, ``(m, m)``.
        choices: from triplets ``(m, 3)`` of pictures to the judges' true probability of each pair, (0, 1), (0, 2),
            (1, 2), to be the most similar, ``(m, 3)``.
        answers: the same of what judges say when they are asked.
        judged, validation: pictures that judges are asked about, to fit and to choose by.
        train, known, novel: pictures to learn from, and others to test on, of trained and of held-out classes.
        shifted: pictures in a style that nothing was trained on, of known or of novel classes.

    Example:
        >>> world = judged_shapes([0, 1, 10, 11], [2, 3, 12, 13], [1, 11], counts=(2, 3, 1, 3))
        >>> sorted(set(world.classes[world.novel].tolist()))
        [2, 3, 12, 13]
    """

    images: Tensor
    classes: Tensor
    kinds: Tensor
    things: Tensor
    similarity: Callable[[Tensor], Tensor]
    choices: Callable[[Tensor], Tensor]
    answers: Callable[[Tensor], Tensor]
    judged: Tensor
    validation: Tensor
    train: Tensor
    known: Tensor
    novel: Tensor
    shifted: Tensor


@checked
def judged_shapes(
    known: Sequence[int],
    novel: Sequence[int],
    validation: Sequence[int],
    *,
    counts: tuple[int, int, int, int] = (36, 8, 12, 25),
    classes_per_kind: int = 10,
    part_contrast: float = 0.4,
    outline: float = 0.2,
    size: int = 20,
    seed: int = 0,
) -> JudgedPictures:
    """Returns shapes of ``shape_hierarchy`` and simulated judges, who see shared kind, shared class and hue.

    Each picture is a thing of its own. Of a triplet the judges give five answers, drawn from their true choices.

    Args:
        known, novel: classes to train on, and to hold out.
        validation: the known classes of which judged pictures are for choosing; the others' are for fitting.
        counts: pictures of each class to learn from, to be judged, and to test on, of known and of novel classes.
        classes_per_kind, part_contrast, size: of ``shape_hierarchy``.
        outline: style of ``shifted``, pictures of known classes, from 0 (the style that is trained on) to 1.
        seed: of the pictures and the answers, at most 2**62.

    Raises:
        ValueError: classes or options out of range, a class both known and novel, validation classes not known.

    Source: the reproduction's world of arXiv:2409.06509.

    Example:
        >>> world = judged_shapes([0, 1, 10, 11], [2, 3, 12, 13], [1, 11], counts=(2, 3, 1, 3))
        >>> len(world.train), len(world.judged), len(world.validation), len(world.known), len(world.novel)
        (8, 6, 6, 4, 12)
    """
    check_at_least(1, counts=counts)
    check_length(4, counts=counts)
    check_between(0, 2**62, seed=seed)
    check_nonempty(known=known, novel=novel, validation=validation)
    if shared := sorted(set(known) & set(novel)):
        raise ValueError(f"novel classes must not be known, got {shared}")
    if unknown := sorted(set(validation) - set(known)):
        raise ValueError(f"validation classes must be known, got {unknown}")
    learn, judge, test, few = counts
    draw = partial(shape_hierarchy, classes_per_kind=classes_per_kind, part_contrast=part_contrast, size=size)
    sets = [
        draw(known, learn, seed=seed),
        draw(known, judge, seed=seed + 10**6),
        draw(known, test, seed=seed + 2 * 10**6),
        draw(novel, few, seed=seed + 3 * 10**6),
        draw(known, test, outline=outline, seed=seed + 4 * 10**6),
    ]
    images, classes, kinds, features, _ = (torch.cat(parts) for parts in zip(*sets, strict=True))
    train, asked, tested, held_out, shifted = torch.arange(len(images)).split([len(each.images) for each in sets])
    similarity = judged_similarity(classes, kinds, features[:, :2])
    chosen = torch.isin(classes[asked], torch.tensor(list(validation)))

    def answers(triplets: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(judged_choices(similarity, triplets), _ANSWERS, replacement=True, generator=generator)
        return F.one_hot(drawn, 3).float().mean(1)

    return JudgedPictures(
        images,
        classes,
        kinds,
        things=torch.arange(len(images)),
        similarity=lambda items: similarity[items][:, items],
        choices=partial(judged_choices, similarity),
        answers=answers,
        judged=asked[~chosen],
        validation=asked[chosen],
        train=train,
        known=tested,
        novel=held_out,
        shifted=shifted,
    )


@checked
def judged_drawings(
    pictures: Drawings, kinds: Tensor, judges: Mapping[str, Tensor], *, least: int = 8, seed: int = 0
) -> JudgedPictures:
    """Returns drawings and the judges of their things, with classes, things and one style held out.

    Of the classes of each kind three tenths are novel, two tenths for validation, the others known; of all things a
    fifth is not trained on. One style, ``seed`` modulo their number, is seen in ``shifted`` alone, which shows novel
    classes. Judges are asked about pictures of the next style.

    Args:
        pictures: as of ``drawings``.
        kinds: superordinate of each picture, int64 ``(n,)``, the same for all of a class.
        judges: similarities ``(things, things)`` by the judge's name, as of ``keyword_judges``.
        least: things that a novel or validation class must have, or it is left out, at least 1.
        seed: of the dealing.

    Raises:
        ValueError: lengths that differ, fewer than two styles, or parts that nothing is left for.

    Source: the reproduction's world of arXiv:2409.06509.

    Example:
        >>> labels = torch.arange(240) // 12 % 10  # ten classes of twelve things, in two styles
        >>> names = tuple(map(str, range(120)))
        >>> pictures = Drawings(torch.zeros(240, 3, 8, 8), labels, torch.arange(240) // 120, torch.arange(240) % 120,
        ...                     names[:10], names)
        >>> world = judged_drawings(pictures, torch.zeros(240).long(), {"a": torch.eye(120)})
        >>> len(world.novel), len(world.shifted), len(world.validation)
        (36, 36, 24)
    """
    images, classes, domains, things = pictures[:4]
    check_same_length(labels=classes, kinds=kinds, domains=domains, things=things)
    check_dimensions(1, kinds=kinds)
    check_labels(kinds=kinds)
    check_nonempty(judges=judges)
    check_at_least(1, least=least)
    check_between(0, 2**63 - 1, seed=seed)
    styles = int(domains.max()) + 1
    if styles < 2:
        raise ValueError("pictures must have at least 2 styles")
    generator = torch.Generator().manual_seed(seed)
    members, where, sizes = classes.unique(return_inverse=True, return_counts=True)
    kind_of = torch.zeros(len(members), dtype=torch.long).scatter(0, where, kinds)
    parts = stratified_split(kind_of, (0.3, 0.2, 0.5), seed=seed)[:2]
    novel, chosen = (torch.isin(where, part[sizes[part] >= least * styles]) for part in parts)
    away, asked = domains == seed % styles, domains == (seed + 1) % styles
    tested = torch.rand(int(things.max()) + 1, generator=generator)[things] < 0.2
    train = ~novel & ~chosen & ~away & ~tested
    masks = (train & asked, chosen & asked, train, ~novel & ~chosen & ~away & tested, novel & ~away, novel & away)
    if not all(bool(mask.any()) for mask in masks):
        raise ValueError(f"pictures must have novel, validation and known classes of at least {least} things")
    mean = torch.stack(list(judges.values())).mean(0)

    def choices(triplets: Tensor) -> Tensor:
        return judges_choices(judges, things[triplets])

    return JudgedPictures(
        images,
        classes,
        kinds,
        things,
        lambda items: mean[things[items]][:, things[items]],
        choices,
        choices,
        *(mask.nonzero().flatten() for mask in masks),
    )


@checked
def level_triplets(world: JudgedPictures, items: Tensor, level: JudgedLevel, n: int, *, seed: int = 0) -> Tensor:
    """Returns triplets of one level of some pictures, of three different things, on which judges have a first choice.

    "coarse": two of a kind and one of another. "boundary": of one kind, two of one class. "fine": of one class. "any":
    any three. Three times as many are drawn and those without a first choice left out.

    Args:
        world: the pictures and judges.
        items: numbers of pictures, int64 ``(m,)``.
        level: as above.
        n: triplets, at least 1; there are fewer where judges have too seldom a first choice.
        seed: of the draws.

    Returns:
        int64 ``(at most n, 3)``, numbers of pictures.

    Raises:
        ValueError: numbers out of range, or too few pictures for the level.

    Example:
        >>> world = judged_shapes([0, 1, 10, 11], [2, 3, 12, 13], [1, 11], counts=(2, 3, 1, 3))
        >>> world.classes[level_triplets(world, world.novel, "fine", 2)].unique(dim=1).shape[1]
        1
    """
    check_dimensions(1, items=items)
    check_labels(len(world.classes), items=items)
    check_at_least(1, n=n)
    if level not in (*JUDGED_LEVELS, "any"):
        raise ValueError(f"level must be one of {', '.join(JUDGED_LEVELS)} or any, got {level!r}")
    labels = world.kinds[items] if level == "coarse" else world.classes[items]
    groups = world.kinds[items] if level == "boundary" else None
    found = items[sample_triplets(labels, 3 * n, _SAMPLED.get(level, "border"), groups=groups, seed=seed)]
    a, b, c = world.things[found].T
    first, second = world.choices(found).topk(2, 1).values.T
    return found[(a != b) & (a != c) & (b != c) & (first > second + 1e-6)][:n]


@checked
def judged_triplets(world: JudgedPictures, items: Tensor, n: int, *, seed: int = 0) -> Tensor:
    """Returns triplets as judges are asked, about ``(n, 3)``: half of any pictures, a sixth of each of three levels.

    Args:
        world, items: as for ``level_triplets``.
        n: triplets, at least 6.
        seed: of the draws.

    Raises:
        ValueError: numbers out of range, or too few pictures for a level.

    Example:
        >>> world = judged_shapes([0, 1, 10, 11], [2, 3, 12, 13], [1, 11], counts=(2, 3, 1, 3))
        >>> judged_triplets(world, world.novel, 12).shape
        torch.Size([12, 3])
    """
    check_at_least(6, n=n)
    parts = [level_triplets(world, items, level, n // 6, seed=seed + i) for i, level in enumerate(JUDGED_LEVELS)]
    return torch.cat([level_triplets(world, items, "any", n // 2, seed=seed), *parts])
