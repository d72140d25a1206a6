"""Which data sets have to do with a target that has no data of its own, told by their elements (modality, area, task).

Any named factors do: domain, device, language, label set. Source: arXiv:2412.20070 (Cai et al.), section 3, whose
triplets are (modality, anatomical area, task).
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from heldout.errors import check_at_least, check_nonempty, checked

Elements = Mapping[str, Hashable]
Catalog = Mapping[str, Elements]


@checked
def shared_elements(target: Mapping, catalog: Mapping) -> dict[str, tuple[str, ...]]:
    """Returns the factors in which each data set of a catalog has the target's element, in the target's order.

    A data set that has all of them is the target itself, and is left out.

    Args:
        target: the element of each factor, by name: ``{"modality": "CT", "area": "lung", "task": "nodules"}``.
        catalog: data set -> its elements, of the same factors.

    Raises:
        ValueError: no factors or data sets, a data set with other factors.

    Example:
        >>> catalog = {"a": {"organ": "lung", "device": "CT"}, "b": {"organ": "skin", "device": "photo"}}
        >>> shared_elements({"organ": "lung", "device": "MR"}, catalog)
        {'a': ('organ',), 'b': ()}
    """
    check_nonempty(target=target, catalog=catalog)
    found = {}
    for name, elements in catalog.items():
        if not isinstance(elements, Mapping) or set(elements) != set(target):
            raise ValueError(f"{name} must have elements of {', '.join(map(str, target))}, got {elements!r}")
        same = tuple(factor for factor in target if elements[factor] == target[factor])
        if len(same) < len(target):
            found[name] = same
    return found


@checked
def related_sets(target: Mapping, catalog: Mapping, *, max_size: int = 3) -> list[tuple[str, ...]]:
    """Returns every smallest group of data sets that supplies all elements of a target, without the target itself.

    Of the target (CT, lung, nodules), "CT of the liver for tumours" with "X-ray of the lung for nodules" is one. No
    group has a member that it could do without. Cost: all groups of at most ``max_size`` of the data sets that share
    an element are looked at.

    Args:
        target: the element of each factor, by name.
        catalog: data set -> its elements, of the same factors. Data sets with all elements of the target are passed
            over.
        max_size: data sets of a group, at most.

    Returns:
        Groups by size, then in the order of the catalog.

    Raises:
        ValueError: no factors or data sets, a data set with other factors, ``max_size`` below 1, an element of the
            target that no data set has.

    Source: arXiv:2412.20070, section 3: "related" data sets.

    Example:
        >>> catalog = {
        ...     "liver CT": {"modality": "CT", "area": "liver"},
        ...     "lung X-ray": {"modality": "X-ray", "area": "lung"},
        ...     "skin photo": {"modality": "photo", "area": "skin"},
        ... }
        >>> related_sets({"modality": "CT", "area": "lung"}, catalog)
        [('liver CT', 'lung X-ray')]
    """
    check_at_least(1, max_size=max_size)
    shares = {name: set(same) for name, same in shared_elements(target, catalog).items() if same}
    for factor, element in target.items():
        if not any(factor in same for same in shares.values()):
            raise ValueError(f"no data set of the catalog has the {factor} {element!r}")
    found: list[tuple[str, ...]] = []
    for size in range(1, max_size + 1):
        for group in combinations(shares, size):
            each = [shares[name] for name in group]
            if set().union(*each) == set(target) and all(
                set().union(*each[:i], *each[i + 1 :]) != set(target) for i in range(size)
            ):
                found.append(group)
    return found


@checked
def training_group(arm: str, target: Mapping, catalog: Mapping, *, seed: int = 0) -> tuple[str, ...]:
    """Returns the data sets to train on for a target without data, in one arm of a study of what transfers.

    Args:
        arm: "base": none. "related": one of the smallest groups of ``related_sets``, drawn. "unrelated": as many data
            sets as in that group that share no element with the target, drawn. "all": all but the target.
            "all-related": of these, the ones that share at most one element with the target. "without FACTOR":
            one of the smallest groups that supplies all elements but this one, drawn from the data sets that lack it,
            and data sets that share none, until they are as many as in "related".
        target: the element of each factor, by name.
        catalog: data set -> its elements, of the same factors.
        seed: of the draws; "unrelated" belongs to the group of "related" with the same seed.

    Returns:
        Names in the catalog's order, or the group's.

    Raises:
        ValueError: an unknown arm, an element that no data set supplies, too few data sets without any.

    Source: arXiv:2412.20070, section 4. Which data sets "all" loses in "all-related" is read here as those that share
    two elements or more: without those that share any, no data set would have the target's task.

    Example:
        >>> catalog = {
        ...     "liver CT": {"modality": "CT", "area": "liver"},
        ...     "lung X-ray": {"modality": "X-ray", "area": "lung"},
        ...     "skin photo": {"modality": "photo", "area": "skin"},
        ...     "eye photo": {"modality": "photo", "area": "eye"},
        ... }
        >>> target = {"modality": "CT", "area": "lung"}
        >>> training_group("without modality", target, catalog)
        ('lung X-ray', 'eye photo')
    """
    shares = shared_elements(target, catalog)
    unrelated = [name for name, same in shares.items() if not same]
    rng = random.Random(seed)
    if arm == "base":
        return ()
    if arm == "all":
        return tuple(shares)
    if arm == "all-related":
        return tuple(name for name, same in shares.items() if len(same) < 2)
    if arm in ("related", "unrelated"):
        groups = _smallest(target, catalog)
        group = groups[rng.randrange(len(groups))]
        if arm == "related":
            return group
        return _some(unrelated, len(group), rng)
    factor = arm.removeprefix("without ")
    if factor == arm or factor not in target or len(target) < 2:
        raise ValueError(
            f"arm must be base, related, unrelated, all, all-related or without one of {', '.join(target)}, got {arm!r}"
        )
    rest = {other: element for other, element in target.items() if other != factor}
    lacking = {
        name: {other: catalog[name][other] for other in rest} for name, same in shares.items() if factor not in same
    }
    check_nonempty(**{f"data sets without the {factor}": lacking})
    groups = [(name,) for name, elements in lacking.items() if elements == rest] or _smallest(rest, lacking)
    group = groups[rng.randrange(len(groups))]
    missing = len(_smallest(target, catalog)[0]) - len(group)
    return group + _some([name for name in unrelated if name not in group], max(0, missing), rng)


def _some(unrelated: Sequence[str], count: int, rng: random.Random) -> tuple[str, ...]:
    """``count`` of the data sets without any element of the target, drawn."""
    if len(unrelated) < count:
        raise ValueError(f"{len(unrelated)} data sets share no element with the target, {count} are needed")
    return tuple(rng.sample(unrelated, count))


def _smallest(target: Elements, catalog: Catalog) -> list[tuple[str, ...]]:
    """The related groups of the least size that there is."""
    for size in range(1, len(target) + 1):
        if groups := related_sets(target, catalog, max_size=size):
            return groups
    raise AssertionError  # each element has a data set, and these are a group


@checked
def match_size(
    datasets: Mapping, names: Sequence[str], n: int, *, labels: Mapping | None = None, seed: int = 0
) -> Dataset:
    """Returns ``n`` examples of some data sets, as many of each as the numbers allow, and of each label.

    Shares differ by one at most, between data sets and between the labels of a data set, unless one has too few: then
    all of its examples are taken, and the others make up for it.

    Args:
        datasets: data set by name.
        names: of those to draw from, each once.
        n: examples in all.
        labels: labels of each data set by name, one for each example; None: labels are not balanced.
        seed: of the draws.

    Raises:
        ValueError: no names, one twice or unknown, ``n`` below 1 or more than there is, labels of another length,
            missing or NaN.

    Example:
        >>> data = {"a": list(range(10)), "b": list(range(10, 30))}
        >>> drawn = match_size(data, ["a", "b"], 8)
        >>> len(drawn), sum(drawn[i] < 10 for i in range(8))
        (8, 4)
    """
    check_nonempty(names=names)
    check_at_least(1, n=n)
    if len(set(names)) < len(names):
        raise ValueError(f"names must be different, got {', '.join(names)}")
    if unknown := [name for name in names if name not in datasets]:
        raise ValueError(f"there is no data set {unknown[0]!r}; there are {', '.join(map(str, datasets))}")
    sizes = [len(datasets[name]) for name in names]
    if n > sum(sizes):
        raise ValueError(f"{', '.join(names)} hold {sum(sizes)} examples, fewer than {n}")
    rng = random.Random(seed)
    parts: list[Dataset] = []
    for name, share in zip(names, _shares(sizes, n, rng), strict=True):
        data = datasets[name]
        groups: dict[Any, list[int]] = {}
        if labels is None:
            groups[None] = list(range(len(data)))
        else:
            if name not in labels:
                raise ValueError(f"labels must have those of {name}; they have {', '.join(map(str, labels))}")
            own = labels[name].tolist() if isinstance(labels[name], torch.Tensor) else list(labels[name])
            if len(own) != len(data):
                raise ValueError(f"labels of {name} must be {len(data)}, got {len(own)}")
            for index, label in enumerate(own):
                if label != label:
                    raise ValueError(f"labels of {name} must not be NaN")
                groups.setdefault(label, []).append(index)
        taken: list[int] = []
        counts = _shares([len(group) for group in groups.values()], share, rng)
        for group, count in zip(groups.values(), counts, strict=True):
            taken += rng.sample(group, count)
        rng.shuffle(taken)
        parts.append(Subset(data, taken))
    return parts[0] if len(parts) == 1 else ConcatDataset(parts)


def _shares(sizes: Sequence[int], n: int, rng: random.Random) -> list[int]:
    """``n`` in parts as equal as the sizes allow; who gets one more is drawn."""
    shares = [0] * len(sizes)
    while left := n - sum(shares):
        open_ = [i for i, size in enumerate(sizes) if shares[i] < size]
        if left < len(open_):
            open_ = rng.sample(open_, left)
        step = max(1, min(left // len(open_), min(sizes[i] - shares[i] for i in open_)))
        for i in open_:
            shares[i] += step
    return shares
