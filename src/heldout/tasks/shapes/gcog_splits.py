"""The splits of gCOG: more distractors, unseen combinations, deeper trees; and what leaks in them.

Source: arXiv:2401.15030, section 3, and its code (dataset_generator.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from heldout.data import CombinationLeaks, combination_leaks
from heldout.errors import check_at_least, check_one_of, checked
from heldout.tasks.seeds import Seed, generator_of
from heldout.tasks.shapes.gcog import GCOG, GCOGTrials, QuestionFamily
from heldout.tasks.shapes.scene_questions import QUESTION_OPERATORS

GCOGSplitName = Literal["distractor", "systematic1", "systematic3", "productive"]
_Drawing = Callable[[int], GCOGTrials]  # so many trials of one kind
GCOGLeak = Literal["objects", "operators", "distractors", "depth", "trials"]

_OPERATOR_GROUPS = (("Exist", "SumEven", "ProductEven", "GetShape"), ("SumOdd", "ProductOdd", "Go", "GetColor"))
_TEST_GROUPS = (("Exist", "SumEven", "ProductEven"), ("SumOdd", "ProductOdd"))
_LEAF_GROUPS = (("SumEven", "ProductEven", "GetColor", "GetShape"), ("Exist", "SumOdd", "ProductOdd", "Go"))
_MOST, _MORE, _ROUNDS = 5, (10, 20, 30, 40), 50
_DEPTH_7 = 36  # cells, and objects, from which trees with 15 objects of their own are drawn without much search


@checked
def object_groups(colors: int, shapes: int, *, overlap: bool = False) -> Tensor:
    """Returns two groups of objects, bool ``(2, colors, shapes)``, in each of which every colour and shape occurs.

    The first group has the first half of the colours in the first half of the shapes and the second in the second; the
    second group has the others.

    Args:
        colors: how many, at least 2.
        shapes: how many, at least 2.
        overlap: the groups of the paper's code instead: the first half of the colours with all shapes, and all colours
            with the second half of the shapes. They share a quarter of all objects: about half of what is held out by
            them is trained on.

    Raises:
        ValueError: fewer than two colours or shapes.

    Source: deviation: the groups of arXiv:2401.15030 overlap (see above), these do not. Halves of the colours alone
    would be disjoint too, but GetColor of held-out objects would have answers that no question was trained with.

    Example:
        >>> object_groups(2, 3)[0].int().tolist(), object_groups(2, 3, overlap=True).all(0).int().tolist()
        ([[1, 0, 0], [0, 1, 1]], [[0, 1, 1], [0, 0, 0]])
    """
    check_at_least(2, colors=colors, shapes=shapes)
    early_color = (torch.arange(colors) < colors // 2)[:, None].expand(-1, shapes)
    early_shape = (torch.arange(shapes) < shapes // 2)[None, :].expand(colors, -1)
    if overlap:
        return torch.stack([early_color, ~early_shape])
    return torch.stack([early_color == early_shape, early_color != early_shape])


@checked
def operator_filter(groups: Tensor, *, crossed: bool = False) -> Tensor:
    """Returns which objects each operator may ask for, bool ``(8, colors, shapes)``: ``pair_filter`` of ``GCOG``.

    The operators Exist, SumEven, ProductEven and GetShape may ask for the first group, the others for the second.

    Args:
        groups: bool ``(2, colors, shapes)``, see ``object_groups``.
        crossed: each for the other group.

    Raises:
        ValueError: groups that are not two, or not bool.

    Source: arXiv:2401.15030, section 3.2 ("OpSys").

    Example:
        >>> operator_filter(object_groups(2, 2)).sum((1, 2)).tolist()
        [2, 2, 2, 2, 2, 2, 2, 2]
    """
    if groups.dtype != torch.bool or groups.ndim != 3 or len(groups) != 2:
        raise ValueError(f"groups must be bool (2, colors, shapes), got {groups.dtype} {tuple(groups.shape)}")
    second = torch.tensor([name in _OPERATOR_GROUPS[1] for name in QUESTION_OPERATORS])
    return groups[(second ^ crossed).long()]


@checked
def gcog_split(
    name: GCOGSplitName,
    world: GCOG | None = None,
    *,
    train: int = 20_000,
    test: int = 2_000,
    overlap: bool = False,
    seed: Seed = 0,
) -> dict[str, GCOGTrials]:
    """Returns the training set of a split and its test sets, none of whose trials is trained on.

    "distractor": depth 1, trained on 0 to 5 distractors, tested on those ("iid") and on exactly 10, 20, 30 and 40.
    "systematic1": depth 1 and up to 5 distractors; tested ("unseen pairs") on operators that ask for objects which only
    other operators asked for. "systematic3": depth 3; tested ("unseen pairs") on tests above leaves that only other
    tests stood above. "productive": trained on depths 1 and 3, tested on those and on 5 and 7. Of "distractor" the
    numbers that a small world has no cells for are left out, and of "productive" the depth 7 below 36 cells or objects.

    Args:
        name: of the split.
        world: by default that of the paper's splits, ``GCOG()``; it must have all operators.
        train: trials to train on.
        test: trials of each test set; of "productive" of each depth.
        overlap: the overlapping groups of the paper's code for "systematic1", see ``object_groups``.
        seed: of everything.

    Raises:
        ValueError: an unknown name, a world that lacks operators, or one too small to have trials that are not trained
            on.

    Source: arXiv:2401.15030, section 3; groups by its code. Deviation: groups of objects are disjoint.

    Example:
        >>> sets = gcog_split("systematic1", GCOG(grid=6), train=200, test=50)
        >>> {part: len(trials) for part, trials in sets.items()}
        {'train': 200, 'iid': 50, 'unseen pairs': 50}
        >>> gcog_leaks(sets["train"], sets["unseen pairs"], "objects").combinations.tolist()
        []
    """
    check_at_least(2, train=train)
    check_at_least(1, test=test)
    world = GCOG() if world is None else world
    if set(world.operators) != set(QUESTION_OPERATORS):
        raise ValueError(f"world must have all {len(QUESTION_OPERATORS)} operators, got {len(world.operators)}")
    cells = {"systematic3": 3, "productive": 7}.get(name, 1) + _MOST
    if world.grid**2 < cells:
        raise ValueError(f"world must have at least {cells} cells for {name}, got {world.grid**2}")
    generator = generator_of(seed)
    few = (0, _MOST)

    def drawn(depth: int, distractors: int | tuple[int, int], *, crossed: bool = False) -> _Drawing:
        filters, families = None, None
        if name == "systematic1":
            groups = object_groups(world.colors, world.shapes, overlap=overlap)
            filters = operator_filter(groups, crossed=crossed)
        if name == "systematic3":
            families = operator_families(crossed=crossed)
        return lambda count: world.trials(
            count, depth, distractors, pair_filter=filters, families=families, seed=generator
        )

    if name == "productive":
        shallow, deep = drawn(1, few), drawn(3, few)
        seen = shallow(train // 2).joined([deep(train - train // 2)])
        seen = seen.at(torch.randperm(train, generator=generator))
        sources = {"depth 1": shallow, "depth 3": deep, "depth 5": drawn(5, few)}
        if min(world.grid**2, world.colors * world.shapes) >= _DEPTH_7:
            sources["depth 7"] = drawn(7, few)
    else:
        depth = 3 if name == "systematic3" else 1
        source = drawn(depth, few)
        seen, sources = source(train), {"iid": source}
        if name == "distractor":
            room = world.grid**2 - 2
            sources |= {f"{count} distractors": drawn(1, count) for count in _MORE if count <= room}
        else:
            sources["unseen pairs"] = drawn(depth, few, crossed=True)
    known = set(_keys(seen))
    return {"train": seen} | {part: _unseen(each, test, known) for part, each in sources.items()}


@checked
def gcog_axes(
    world: GCOG,
    *,
    train: int = 20_000,
    test: int = 2_000,
    distractors: tuple[int, int] = (3, 10),
    seed: Seed = 0,
) -> dict[str, GCOGTrials]:
    """Returns one training set with test sets along all axes: more distractors, unseen combinations, deeper trees.

    "train", and "val" and "iid" of the same kind: half of depth 1 and half of depth 3, with distractors up to the first
    number, operators that ask for their own group of objects (``operator_filter``) and tests above their own group of
    leaves (``operator_families``). Each other set differs in one respect: "distractors" has the second number of them,
    at depth 1; "systematic1" operators that ask for the other group, at depth 1; "systematic3" tests above the other
    group of leaves, at depth 3; "depth 5" has trees of that depth, in which tests also stand above tests of their group
    (there Exist is new below the others of its group). No trial of any is trained on, and none of "iid" is in "val";
    shallow trials of few objects are trained on most often, so that these two have fewer of them.

    Args:
        world: must have all operators.
        train: trials to train on.
        test: trials of each other set.
        distractors: the most to train on, and how many to test on.
        seed: of everything.

    Raises:
        ValueError: a world that lacks operators or cells, or has too few trials; distractors that do not grow.

    Source: arXiv:2401.15030, section 3, whose axes have a training set each.

    Example:
        >>> sets = gcog_axes(GCOG(grid=5, colors=5, shapes=5), train=200, test=20)
        >>> {part: len(trials) for part, trials in sets.items()}["train"], gcog_leaks(sets["train"],
        ...     sets["systematic3"], "operators").total
        (200, 0)
    """
    check_at_least(2, train=train)
    check_at_least(1, test=test)
    check_at_least(0, distractors=distractors[0])
    check_at_least(distractors[0] + 1, distractors=distractors[1])
    if set(world.operators) != set(QUESTION_OPERATORS):
        raise ValueError(f"world must have all {len(QUESTION_OPERATORS)} operators, got {len(world.operators)}")
    generator, groups = generator_of(seed), object_groups(world.colors, world.shapes)

    def drawn(depth: int, *, others: bool = False, crossed: bool = False, more: bool = False) -> _Drawing:
        number = distractors[1] if more else (0, distractors[0])
        filters = operator_filter(groups, crossed=others)
        families = operator_families(crossed=crossed) if depth > 1 else None
        return lambda count: world.trials(count, depth, number, pair_filter=filters, families=families, seed=generator)

    def mixed(count: int) -> GCOGTrials:
        shallow = drawn(1)((count + 1) // 2)
        if count == 1:
            return shallow
        both = shallow.joined([drawn(3)(count // 2)])
        return both.at(torch.randperm(count, generator=generator))

    seen = mixed(train)
    known = set(_keys(seen))
    found = {"train": seen, "val": _unseen(mixed, test, known)}
    found["iid"] = _unseen(mixed, test, known | set(_keys(found["val"])))
    sources = {"distractors": drawn(1, more=True), "systematic1": drawn(1, others=True),
               "systematic3": drawn(3, crossed=True), "depth 5": drawn(5)}  # fmt: skip
    return found | {part: _unseen(each, test, known) for part, each in sources.items()}


@checked
def operator_families(*, crossed: bool = False) -> list[QuestionFamily]:
    """Returns which tests stand above which leaves in the split "systematic3": ``families`` of ``GCOG``.

    Args:
        crossed: those of the test set, each group of tests above the other group of leaves.

    Source: arXiv:2401.15030, section 3.2, by its code.

    Example:
        >>> operator_families(crossed=True)[1]
        (('SumOdd', 'ProductOdd'), ('SumEven', 'ProductEven', 'GetColor', 'GetShape'))
    """
    leaves = _LEAF_GROUPS[::-1] if crossed else _LEAF_GROUPS
    return [(_TEST_GROUPS[0], leaves[0]), (_TEST_GROUPS[1], leaves[1])]


@checked
def gcog_leaks(train: GCOGTrials, test: GCOGTrials, by: GCOGLeak) -> CombinationLeaks:
    """Returns which test trials have what should be unseen in training.

    "objects": an operator that asks for an object (its colour and shape, also the one that is the answer) as in
    training. "operators": an operator above another, as in training; "distractors" and "depth": a number of them as in
    training; "trials": the question and the scene of a training trial. ``values`` are the trials with an operator,
    colour or shape that training does not have at all, so that they test more than a combination.

    Args:
        train: trials that are trained on.
        test: trials of the same world.
        by: what should be unseen.

    Raises:
        ValueError: trials of different worlds, or "operators" of trees of one node.

    Example:
        >>> trials = GCOG(grid=6).trials(100, seed=1)
        >>> len(gcog_leaks(trials, trials.at(torch.arange(5)), "trials").combinations)
        5
    """
    if train.world != test.world:
        raise ValueError("test must be trials of the world of train")
    none = torch.zeros(0, dtype=torch.int64)
    if by in ("objects", "operators"):
        rows = _asked if by == "objects" else _edges
        (known, _), (tested, owner) = rows(train), rows(test)
        leaks = combination_leaks(known, tested)
        return CombinationLeaks(*(owner[each].unique() if len(each) else none for each in leaks))
    if by == "trials":
        seen = set(_keys(train))
        return CombinationLeaks(
            torch.tensor([i for i, key in enumerate(_keys(test)) if key in seen], dtype=torch.int64), none
        )
    check_one_of(("distractors", "depth"), by=by)
    shared = torch.isin(test.factors[by], train.factors[by])
    return CombinationLeaks(shared.nonzero()[:, 0], none)


def _unseen(source: _Drawing, count: int, known: set[bytes]) -> GCOGTrials:
    """Trials none of which is known."""
    parts, found = [], 0
    for _ in range(_ROUNDS):
        trials = source(count - found)
        fresh = torch.tensor([key not in known for key in _keys(trials)])
        if fresh.any():
            parts.append(trials.at(fresh.nonzero()[:, 0]))
            found += int(fresh.sum())
        if found == count:
            return parts[0].joined(parts[1:])
    raise ValueError(f"world must have more trials than train and test ask for: {found} of {count} were not trained on")


def _keys(trials: GCOGTrials) -> list[bytes]:
    """The question and the scene of each trial, as one value; what fills questions up does not count."""
    scenes = trials.scene_tokens[:, :, :2].flatten(1).to(torch.uint8).numpy()
    rules, lengths = trials.rule_tokens.to(torch.uint8).numpy(), trials.rule_mask.sum(1).tolist()
    return [
        rule[:length].tobytes() + scene.tobytes() for rule, length, scene in zip(rules, lengths, scenes, strict=True)
    ]


def _asked(trials: GCOGTrials) -> tuple[Tensor, Tensor]:
    """Each operator with the colour and shape of each of its objects, and the trial that it stands in."""
    objects = trials.factors["objects"]
    trial, slot, number = (objects[..., 0] >= 0).nonzero().T
    operators = trials.factors["operators"][trial, slot]
    return torch.cat([operators[:, None], objects[trial, slot, number]], 1), trial


def _edges(trials: GCOGTrials) -> tuple[Tensor, Tensor]:
    """Each test with each operator right below it, and the trial that they stand in."""
    operators = trials.factors["operators"]
    below = torch.arange(1, operators.shape[1])
    if not len(below) or not (operators[:, 1:] >= 0).any():
        raise ValueError("train and test must have trees deeper than 1 to have operators above others")
    trial, child = (operators[:, below] >= 0).nonzero().T
    return torch.stack([operators[trial, child // 2], operators[trial, child + 1]], 1), trial
